"""Pages in a real browser: no complaint on the console, no request for anything but the page, every part in the document."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
]
NO_ORIGIN = "not an origin"


def opened(page: Path, profile: Path) -> tuple[str, str, list[str]]:
    """The document that the browser made of a page, what it logged, and the addresses that the page asked for."""
    assert BROWSER is not None
    network = profile.with_suffix(".json")
    more = [
        f"--user-data-dir={profile}",
        f"--log-net-log={network}",
        "--window-size=390,900",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run([BROWSER, *FLAGS, *more], capture_output=True, text=True, timeout=250, check=True)
    events = [event.get("params", {}) for event in json.loads(network.read_text("utf-8"))["events"]]
    # what the browser asks for on its own has no origin
    asked = [event["url"] for event in events if "url" in event and event.get("initiator", NO_ORIGIN) != NO_ORIGIN]
    return done.stdout, done.stderr, asked


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
def test_pages_open_without_a_complaint_or_a_request(tmp_path: Path) -> None:
    data, validation = write_csv(tmp_path / "train.csv", 60), write_csv(tmp_path / "validation.csv", 30, seed=1)
    model = tiny_bert(tmp_path / "model")
    call("extract", "--model", model, "--data", data, "--validation", validation, "--store", tmp_path / "cache")
    for seed in (0, 1):
        settings = ("--set", "data.batch_examples=16", "--epochs", 2, "--seed", seed)
        call("train", "--store", tmp_path / "cache", "--run", tmp_path / f"run{seed}", *settings)
    call("analyze", "--store", tmp_path / "cache")
    task = json.loads((tmp_path / "run1" / "run.json").read_text())
    task["producer"]["task"]["labels"] = ["<script>console.error('ran')</script>", "<img src=http://nowhere.invalid/x>"]
    (tmp_path / "run1" / "run.json").write_text(json.dumps(task))
    store = ("--store", tmp_path / "cache")
    runs = [("--run", tmp_path / f"run{seed}") for seed in (0, 1)]
    for number, words in enumerate([(*runs[0], *store), (*runs[1], *store), (*runs[0], *runs[1]), store]):
        page = tmp_path / f"page{number}.html"
        sections = call("report", *words, "--out", page)["sections"]
        document, logged, asked = opened(page, tmp_path / f"profile{number}")
        assert [key for key in re.findall(r'<section id="([^"]+)"', document)] == sections
        assert document.count("<svg") == page.read_text("utf-8").count("<svg") > 0
        assert "CONSOLE" not in logged, logged
        assert asked == []
    careless = tmp_path / "careless.html"
    careless.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('heard')</script>")
    _, logged, asked = opened(careless, tmp_path / "careless")
    assert "heard" in logged
    assert asked[0] == "http://127.0.0.1:9/x.png"
