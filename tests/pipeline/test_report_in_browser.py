"""Pages in a real browser: no complaint on the console, no request for anything but the page, every part in the document."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

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


MEASURE = """
<!doctype html><meta charset="utf-8"><pre id="told"></pre><script>
const told = [];
function channel(value) { const c = value / 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; }
function light(colour) {
  const [r, g, b] = colour.match(/[0-9.]+/g).map(Number);
  return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
}
function contrast(one, other) {
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
function look(frame, page) {
  const root = frame.contentDocument, width = root.documentElement.clientWidth;
  const style = (element) => frame.contentWindow.getComputedStyle(element);
  const paper = style(root.body).backgroundColor;
  const all = [...root.querySelectorAll("*")];
  const shown = all.filter((element) => element.getBoundingClientRect().width > 0);
  for (const each of root.querySelectorAll("details")) each.open = true;
  const reached = [...root.querySelectorAll("a, summary, [tabindex]")];
  const slides = (each) => each.scrollWidth > each.clientWidth + 1 && ["auto", "scroll"].includes(style(each).overflowX);
  told.push({
    page, width: frame.clientWidth, paper,
    overflow: root.documentElement.scrollWidth - width,
    cut: [...root.querySelectorAll("svg")].filter((each) => each.getBoundingClientRect().right > width + 1).length,
    unreachable: shown.filter((each) => slides(each) && each.tabIndex < 0).length,
    unfocused: reached.filter((each) => { each.focus(); return root.activeElement !== each; }).length,
    reached: reached.length,
    dangling: [...root.querySelectorAll("a[href]")].filter((each) => !root.querySelector(each.getAttribute("href"))).length,
    unnamed: [...root.querySelectorAll("svg, [role=region]")].filter((each) => !each.getAttribute("aria-label")).length,
    contrast: Math.min(...["h1", "p", "figcaption", "a", "summary", "td", "th", "svg text"].flatMap((name) =>
      [...root.querySelectorAll(name)].slice(0, 3).map((each) =>
        contrast(name === "svg text" ? style(each).fill : style(each).color, paper)))),
  });
  document.getElementById("told").textContent = JSON.stringify(told);
}
for (const page of PAGES) for (const width of [390, 1280]) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 900px; border: 0`;
  frame.onload = () => look(frame, page);
  frame.src = page;
  document.body.append(frame);
}
</script>
"""


def measured(pages: list[Path], folder: Path, dark: bool) -> list[dict[str, Any]]:
    """What a script finds in pages at the width of a phone and of a screen; it runs in a page around them."""
    assert BROWSER is not None
    around = folder / "around.html"
    around.write_text(MEASURE.replace("PAGES", json.dumps([page.as_uri() for page in pages])))
    more = [f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files", "--virtual-time-budget=20000"]
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [BROWSER, *FLAGS, *more, scheme, "--window-size=1400,1000", "--dump-dom", around.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
    found: list[dict[str, Any]] = json.loads(html.unescape(re.findall(r'<pre id="told">(.*?)</pre>', done.stdout)[0]))
    return found


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
    pages = []
    for number, words in enumerate([(*runs[0], *store, "--texts"), (*runs[1], *store), (*runs[0], *runs[1]), store]):
        page = tmp_path / f"page{number}.html"
        pages.append(page)
        sections = call("report", *words, "--out", page)["sections"]
        document, logged, asked = opened(page, tmp_path / f"profile{number}")
        assert [key for key in re.findall(r'<section id="([^"]+)"', document)] == sections
        assert document.count("<svg") == page.read_text("utf-8").count("<svg") > 0
        assert "CONSOLE" not in logged, logged
        assert asked == []
    papers = set()
    for dark in (True, False):
        found = measured(pages, tmp_path, dark)
        assert len(found) == 2 * len(pages)
        assert {each["width"] for each in found} == {390, 1280}
        for each in found:
            for fault in ("overflow", "cut", "unreachable", "unfocused", "dangling", "unnamed"):
                assert each[fault] == 0, (fault, each)
            assert each["contrast"] >= 4.5, each
            assert each["reached"] > 5
            papers.add((dark, each["paper"]))
    assert len(papers) == len({paper for _, paper in papers}) == 2, "light and dark are two papers"
    wide = tmp_path / "wide.html"
    wide.write_text(
        "<body style='background: #fff'><p style='color: #ddd'>x</p><svg width=600></svg><a href='#nowhere'>x</a>"
    )
    (phone,) = (each for each in measured([wide], tmp_path, False) if each["width"] == 390)
    assert all(phone[fault] > 0 for fault in ("overflow", "cut", "dangling", "unnamed"))
    assert phone["contrast"] < 4.5
    careless = tmp_path / "careless.html"
    careless.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('heard')</script>")
    _, logged, asked = opened(careless, tmp_path / "careless")
    assert "heard" in logged
    assert asked[0] == "http://127.0.0.1:9/x.png"
