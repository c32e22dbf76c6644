"""On a real terminal: Ctrl-C leaves a tidy screen that says how to go on, and texts of others steer nothing."""

import csv
import json
import shlex
import unicodedata
from pathlib import Path

import pytest
from cli import call
from reviews_csv import write_csv
from terminal import on_a_terminal
from tiny import tiny_bert

from sherl_cache.pipeline.cli import main
from sherl_cache.storage.printable import printable, printable_json

STEERING = "\x1b[2J\x1b]0;mine\x07\x9b31m\u202eevil\u2028\r"
MARKUP = "<script>alert(1)</script>\"'&"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("terminal")
    tiny_bert(root / "model")
    write_csv(root / "train.csv", 160)
    return root


@pytest.mark.slow
def test_ctrl_c_leaves_a_tidy_screen_and_the_command_that_goes_on(place: Path, tmp_path: Path) -> None:
    """Of extraction, then of training; the command it names is then run, and ends as one that was not disturbed."""
    data = ("--model", place / "model", "--data", place / "train.csv", "--splits", "holdout:50")
    small = ("--unit-memory", "40KiB", "--set", "extract.chunk_bytes=4KiB", "--batch-tokens", 64)
    train = ("--run", "run", "--epochs", 12, "--set", "data.batch_examples=8", "--set", "train.checkpoint_steps=20")
    receipts = tmp_path / "cache" / "sherl" / "receipts"
    steps = tmp_path / "run" / "metrics.jsonl"
    jobs = [
        (
            ("extract", *data, *small, "--store", "cache"),
            lambda _: receipts.is_dir() and len(list(receipts.iterdir())) > 2,
        ),
        (("train", "--store", "cache", *train), lambda _: steps.is_file() and steps.read_bytes().count(b"\n") > 30),
    ]
    for words, begun in jobs:
        code, screen, said = on_a_terminal(*words, cwd=tmp_path, press="\x03", once=begun)
        assert code == 130, said[-2000:]
        assert screen.cursor_shown
        assert "Traceback" not in said
        assert "━" in said, "there was a bar"
        assert not [line for line in screen.shown if "━" in line or "^C" in line], screen.shown
        told = "".join(screen.shown)
        assert "stopped. What was committed is kept; the same command goes on from there: " in told
        command = told.rpartition("from there: ")[2]
        assert shlex.split(command)[0] == "sherl-cache"
        code, screen, said = on_a_terminal(*shlex.split(command)[1:], cwd=tmp_path)
        assert code == 0, said[-2000:]
    digest = call("info", "--store", tmp_path / "cache")["digest"]
    assert call("extract", *data, *small, "--store", tmp_path / "whole")["digest"] == digest


def steering(text: str) -> list[str]:
    """Characters that a terminal, or a reader, would be led by."""
    bidi = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return [
        character
        for character in text
        if character not in "\n\t"
        and (
            unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in bidi
        )
    ]


def test_names_labels_and_texts_of_others_steer_no_terminal_and_no_page(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Labels, texts, a column and a folder that hold controls and markup; every word that commands say is looked at."""
    folder = tmp_path / f"a{STEERING.replace('/', '')}{MARKUP.replace('/', '')}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    labels = (f"good{STEERING}", f"bad{MARKUP}")
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "label", f"more{STEERING}"])
        for number in range(48):
            writer.writerow([f"row {number} {STEERING}{MARKUP}", labels[number % 2], "x"])
    data = ("--model", place / "model", "--data", folder / "rows.csv", "--splits", "holdout:16")
    run = ("--run", folder / "run")
    for words in (
        ("plan", *data),
        ("extract", *data, "--store", folder / "cache"),
        ("extract", *data, "--store", folder / "cache"),
        ("train", "--store", folder / "cache", *run, "--epochs", 1),
        ("train", "--store", folder / "cache", *run, "--epochs", 1),
        ("eval", *run),
        ("predict", *run, f"a text{STEERING}"),
        ("report", *run, "--store", folder / "cache", "--texts", "--out", folder / "page.html"),
        ("export", *run, "--out", folder / "exported"),
        ("info", "--store", folder / "cache"),
    ):
        assert main([*map(str, words)]) == 0, capfd.readouterr().err
        said = "".join(capfd.readouterr())
        assert not steering(said), (words, said)
        if words[0] in ("predict", "info", "export"):
            assert main([*map(str, words), "--json"]) == 0
            said = "".join(capfd.readouterr())
            assert not steering(said), (words, said)
    for words in (
        ("plan", *data, "--text-column", "absent"),
        ("plan", *data, "--limit", 30, "--label-column", f"more{STEERING}x"),
        ("info", "--store", folder / "cachee"),
        (f"tra{STEERING}in",),
    ):
        assert main([*map(str, words)]) in (2, 3, 4)
        said = "".join(capfd.readouterr())
        assert "\\x1b" in said
        assert not steering(said), (words, said)
    for written in ("page.html", "exported/README.md"):
        text = (folder / written).read_text("utf-8")
        assert not steering(text), written
        assert "<script" not in text
    assert "good\\x1b[2J" in (folder / "page.html").read_text("utf-8")


def test_only_what_steers_is_written_out() -> None:
    kept = "caf\u00e9 \u00ab\u00a0x\u00a0\u00bb \u4e2d\u6587 \u0639\u0631\u0628\u064a \U0001f468\u200d\U0001f469 a\tb\nc \\x1b"
    assert printable(kept) == kept
    assert printable("\x1b[31m\x9b\u202e\u2028\r\udcff") == "\\x1b[31m\\x9b\\u202e\\u2028\\x0d\\udcff"
    assert not steering(printable("".join(map(chr, range(0x3000)))))
    document = json.dumps({"a": STEERING}, ensure_ascii=False)
    assert json.loads(printable_json(document)) == {"a": STEERING}
    assert not steering(printable_json(document))
