"""The bill against the disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_distilbert, tiny_roberta, tiny_t5


@pytest.mark.parametrize(
    ("make", "flags"),
    [
        (lambda folder: tiny_bert(folder, hidden_size=64, num_hidden_layers=6), ()),
        (tiny_distilbert, ("--encoding", "float32", "--taps", "0,2,3")),
        (tiny_roberta, ("--encoding", "float16", "--unit-memory", "100KiB", "--set", "extract.chunk_bytes=8KiB")),
        (tiny_t5, ("--late", 1)),
    ],
    ids=["bert", "distilbert", "roberta", "t5"],
)
def test_planned_bytes_and_files_are_those_on_disk(
    make: Callable[[Path], Path], flags: tuple[object, ...], tmp_path: Path
) -> None:
    """Within 5 % in bytes, the same number of files; and plan itself writes nothing."""
    data = write_csv(tmp_path / "train.csv", 300)
    words = ("--model", make(tmp_path / "model"), "--data", data, "--store", tmp_path / "cache", *flags)
    bill = call("plan", *words)
    assert not (tmp_path / "cache").exists()
    extracted = call("extract", *words)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in files)
    assert bill["bytes"] == pytest.approx(written, rel=0.05)
    assert extracted["bytes"] == pytest.approx(written, rel=0.01)
    assert bill["files"] == len(files)
    assert sum(bill["bytes_by"]["taps"].values()) == sum(
        path.stat().st_size for path in files if "/c/" in path.as_posix()
    )


def test_units_of_the_suggested_memory_take_about_as_long_as_was_asked_for(tmp_path: Path) -> None:
    """In bytes: twice the seconds of a unit are twice its memory."""
    data = write_csv(tmp_path / "train.csv", 600)
    words = ("plan", "--model", tiny_bert(tmp_path / "model", hidden_size=64), "--data", data, "--unit-memory", "1MiB")
    words = (*words, "--store", tmp_path / "cache", "--set", "extract.chunk_bytes=8KiB")
    bill = call(*words, "--unit-seconds", 3600)
    assert bill["units"] > 1
    assert 0 < bill["unit_seconds"] <= bill["seconds"]
    suggested = int(bill["suggested_unit_memory"].removesuffix("MiB"))
    assert suggested == pytest.approx(3600 / bill["unit_seconds"], rel=0.15)  # a unit is a little less than 1 MiB
    assert call(*words)["suggested_unit_memory"] is None
