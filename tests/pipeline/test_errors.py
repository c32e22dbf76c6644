"""docs/errors.md against the error tree; and every error of the tree, met by a command that a user might type."""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli import call
from places import lead_to
from reviews_csv import write_csv
from tiny import tiny_bert
from transformers import BertModel

from sherl_cache.pipeline import error_page, stopping
from sherl_cache.pipeline.cli import main
from sherl_cache.storage import errors

ROOT = Path(__file__).parents[2]
TREE = {each.__name__: each for each in error_page.tree()}
Words = tuple[object, ...]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, and a store made from both."""
    folder = tmp_path_factory.mktemp("errors")
    tiny_bert(folder / "model")
    write_csv(folder / "train.csv", 40)
    call("extract", *given(folder), "--store", folder / "cache")
    return folder


def given(place: Path) -> Words:
    return ("--model", place / "model", "--data", place / "train.csv")


def a_copy(place: Path, into: Path) -> Path:
    shutil.copytree(place / "cache", into / "copy")
    return into / "copy"


def incomplete(place: Path, into: Path) -> Words:
    store = a_copy(place, into)
    for path in (store / "sherl").glob("manifest-*.json"):
        path.unlink()
    return ("train", "--store", store)


def damaged(place: Path, into: Path) -> Words:
    store = a_copy(place, into)
    (store / "sherl" / "plan.json").write_text("{")
    return ("info", "--store", store)


def of_a_later_version(place: Path, into: Path) -> Words:
    store = a_copy(place, into)
    (path,) = (store / "sherl").glob("manifest-*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    return ("train", "--store", store)


def too_large_for_float16(place: Path, into: Path) -> Words:
    shutil.copytree(place / "model", into / "model")
    network = BertModel.from_pretrained(into / "model")
    with torch.no_grad():
        network.encoder.layer[0].output.LayerNorm.weight.fill_(1e6)
    network.save_pretrained(into / "model")
    asked = ("--model", into / "model", "--data", place / "train.csv", "--store", into / "cache")
    return ("extract", *asked, "--encoding", "float16")


def no_column(place: Path, into: Path) -> Words:
    return ("extract", *given(place), "--store", into / "cache", "--text-column", "txet")


def too_large_a_step(place: Path, into: Path) -> Words:
    rates = ("--set", "train.learning_rate=1e30", "--set", "late.learning_rate=1e30", "--set", "train.warmup=0")
    return ("train", "--store", place / "cache", "--run", into / "run", *rates)


def train_with(*words: str) -> Callable[[Path, Path], Words]:
    return lambda place, into: ("train", "--store", place / "cache", "--run", into / "run", "--set", *words)


CASES: dict[str, tuple[Callable[[Path, Path], Words], str]] = {
    # where the kernel keeps its tables nothing can be made, and that is no question of permission
    "SherlCacheError": (lambda place, into: ("extract", *given(place), "--store", "/proc/none/cache"), "/proc/none"),
    "UsageError": (lambda place, into: ("eval", "--run", into), "holds no run"),
    "AccessDenied": (lambda place, into: ("extract", *given(place), "--store", "/sys/none"), "/sys/none"),
    "InvalidInput": (too_large_a_step, "a smaller train.learning_rate"),
    "RecipeError": (train_with("train.epohs=3"), "did you mean train.epochs?"),
    "DataError": (no_column, "did you mean text?"),
    "ModelError": (
        lambda place, into: ("extract", "--model", into / "none", "--data", place / "train.csv", "--store", into / "c"),
        "there is no folder",
    ),
    "NonFinite": (too_large_for_float16, "do not fit float16"),
    "BudgetTooSmall": (train_with("data.read_budget=1KiB"), "bytes"),
    "StoreNotUsable": (of_a_later_version, "update sherl-cache"),
    "StoreMissing": (lambda place, into: ("train", "--store", into / "none"), "none"),
    "StoreIncomplete": (incomplete, "run the same extract command again"),
    "StoreStale": (
        lambda place, into: ("extract", *given(place), "--store", place / "cache", "--max-length", 16),
        "text.max_length",
    ),
    "StoreCorrupt": (damaged, "plan.json"),
    "OutOfMemory": (train_with("fusion.bottleneck=100000000000000"), "a smaller"),
    "RemoteUnavailable": (lambda place, into: ("info", "--store", "s3://bucket/store"), "does not answer"),
}
"""For each error a command that meets it, and what it says among other things; two more have tests of their own."""

ELSEWHERE = {
    "RankLost": (
        "test_ranks.py",
        "test_when_a_rank_is_killed_the_others_name_it_and_other_ranks_end_in_the_same_weights",
    )
}
"""What takes several processes, and the test that starts and kills them."""


def test_the_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "errors.md").read_text("utf-8") == error_page.page(), (
        "make it again: python -m sherl_cache.pipeline.error_page > docs/errors.md"
    )


def test_the_page_has_every_error_and_every_code() -> None:
    text = error_page.page()
    assert re.findall(r"^### (\w+)$", text, re.MULTILINE) == [entry.name for entry in error_page.entries()]
    assert {entry.name for entry in error_page.entries()} == set(TREE)
    codes = {each.exit_code for each in TREE.values()}
    assert codes == set(error_page.MEANINGS), "a new exit code needs a meaning"
    readme = (ROOT / "README.md").read_text("utf-8")
    said = readme.partition("ends with a [documented](docs/errors.md) code: ")[2].partition("\n\n")[0]
    assert {int(code) for code in re.findall(r"\b(\d+) [a-zC]", said)} == {*codes, *error_page.OTHERS}


def test_the_tree_drawn_in_the_source_is_the_tree() -> None:
    drawn = re.findall(r"^    (?:\|   )*(?:\+-- )?(\w+) +(\d+)   ", errors.__doc__ or "", re.MULTILINE)
    assert [(name, int(code)) for name, code in drawn] == [(name, each.exit_code) for name, each in TREE.items()]


def test_every_error_is_met_by_a_test_here() -> None:
    """Those that take a signal or a limit of the system have one of their own below, named after them."""
    own = {name for name in TREE if f"test_{name}" in globals()}
    for name, (file, test) in ELSEWHERE.items():
        source = (Path(__file__).parent / file).read_text("utf-8")
        assert f"def {test}(" in source, name
    assert own | set(CASES) | set(ELSEWHERE) == set(TREE)


@pytest.mark.parametrize("name", CASES)
def test_a_command_meets_it(name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "SherlCacheError" and not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    lead_to(monkeypatch, "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.chdir(tmp_path)
    make, saying = CASES[name]
    found, code, said = met(*make(place, tmp_path))
    assert (found, code) == (name, TREE[name].exit_code), said
    assert saying in said


def met(*words: object) -> tuple[str, int, str]:
    """Class, exit code and message of the error that a command ends with."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, words), "-v"])
    assert out.getvalue() == ""
    said = err.getvalue().rpartition("\nerror: ")[2] or err.getvalue()
    return said.partition(": ")[0], code, said


def test_OutOfSpace(place: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, before[1]))
    try:
        found = met("extract", *given(place), "--encoding", "float32", "--store", tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found[:2] == ("OutOfSpace", 6), found
    assert "TMPDIR" in found[2]
    assert call("extract", *given(place), "--encoding", "float32", "--store", tmp_path / "cache")["examples"] == 40


def test_Interrupted(place: Path, tmp_path: Path) -> None:
    """SIGTERM as soon as a training has begun."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.02):
            if (tmp_path / "run" / "metrics.jsonl").exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    stopping.listen()
    sender = threading.Thread(target=send)
    sender.start()
    words = ("train", "--store", place / "cache", "--run", tmp_path / "run", "--epochs", 1000)
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            code = main([*map(str, words)])
    finally:
        ended.set()
        sender.join()
        stopping.listen()  # forgets the signal
        for number, handler in before.items():
            signal.signal(number, handler)
    assert code == errors.Interrupted.exit_code, err.getvalue()
    assert "the same command goes on from there: sherl-cache train" in err.getvalue()
    assert "Traceback" not in err.getvalue()
