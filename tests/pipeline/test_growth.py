"""Growing through the command line: a limit raised, a tap added, validation added later; trained on; cleaned; repaired."""

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_t5

from sherl_cache.pipeline.cli import main
from sherl_cache.storage import Store, decode, system

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]
SETTINGS = ("--set", "data.batch_examples=16", "--epochs", 1)


def checked(command: str, result: Any) -> Any:
    jsonschema.validate(result, SCHEMAS[command])
    return result


@pytest.fixture(scope="module", params=["bert", "t5"])
def place(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    {"bert": tiny_bert, "t5": tiny_t5}[request.param](root / "model")
    write_csv(root / "train.csv", 120)
    write_csv(root / "validation.csv", 30, seed=1)
    return root


@pytest.fixture(scope="module")
def store(place: Path) -> Path:
    """A finished store that no test changes."""
    extract(place, place / "store", "--limit", 20)
    return place / "store"


def extract(place: Path, store: Path, *more: object, code: int = 0) -> Any:
    base = ("extract", "--model", place / "model", "--data", place / "train.csv", "--store", store)
    return call(
        *base, "--encoding", "float32", "--set", "extract.chunk_bytes=2KiB", "--unit-memory", "64KiB", *more, code=code
    )


def rows(store: Store, split: str, stream: str, tap: int) -> dict[str, np.ndarray]:
    table = store.examples(split)
    lengths, offsets, height = table.lengths[stream], table.offsets(stream), store.stream_plan(split, stream).chunk_rows
    starts, ids = lengths.starts(), table.column("source_id").to_pylist()
    found = {}
    for group in store.groups(split).tolist():
        chunk = decode(store.chunk(split, stream, tap, group), store.encoding)
        for example in range(*table.first_examples[group : group + 2].tolist()):
            spans = [slice(offsets[s] - group * height, None) for s in range(starts[example], starts[example + 1])]
            found[ids[example]] = np.concatenate(
                [chunk[s][: lengths.values[n]] for n, s in enumerate(spans, starts[example])]
            )
    return found


def same_values(one: Store, other: Store, tolerance: float = 1e-5) -> None:
    """Both hold the same examples with the same states, wherever they lie."""
    for split, plan in other.plan.splits.items():
        for stream, stream_plan in plan.streams.items():
            for tap in stream_plan.taps:
                here, there = rows(one, split, stream, tap), rows(other, split, stream, tap)
                assert set(here) == set(there)
                for source in here:
                    np.testing.assert_allclose(here[source], there[source], atol=tolerance)


def test_a_store_grows_by_limit_validation_and_taps_and_trains(place: Path, tmp_path: Path) -> None:
    taps = "encoder:0,2;decoder:1" if place.name.startswith("t5") else "0,2"
    first = extract(place, tmp_path / "cache", "--limit", 60, "--taps", taps)
    assert first["examples"] == 60
    longer = extract(place, tmp_path / "cache", "--limit", 100, "--taps", taps)
    assert longer["examples"] == 100
    wider = extract(place, tmp_path / "cache", "--limit", 100, "--taps", taps, "--validation", place / "validation.csv")
    assert wider["examples"] == 130
    train = ("train", "--store", tmp_path / "cache", "--run", tmp_path / "run", *SETTINGS)
    told = call("train", "--store", tmp_path / "cache", "--run", tmp_path / "refused", *SETTINGS, code=3)
    command = shlex.split(re.search(r"sherl-cache (extract .*)", told)[1])
    deeper = call(*command)
    assert all(set(taps) > set(first["taps"][name]) for name, taps in deeper["taps"].items())
    assert checked("verify", call("verify", "--store", tmp_path / "cache", "--deep"))["findings"] == []
    assert not checked("info", call("info", "--store", tmp_path / "cache"))["growing"]
    trained = checked("train", call(*train))
    live = call("eval", "--run", tmp_path / "run")
    assert live.get("label_scoring", live["value"]) == pytest.approx(trained["best"], abs=1e-12)

    whole = [*command[: command.index("--store")], "--store", str(tmp_path / "whole")]
    call(*whole)
    same_values(Store.open(tmp_path / "cache"), Store.open(tmp_path / "whole"))
    again = call(*command)
    assert again["digest"] == deeper["digest"]


def test_taps_added_later_are_bit_equal_to_those_of_one_extraction(place: Path, tmp_path: Path) -> None:
    base = (
        ("encoder:0,2;decoder:1", "encoder:0,1,2,3;decoder:0,1") if place.name.startswith("t5") else ("0,2", "0,1,2,3")
    )
    extract(place, tmp_path / "cache", "--taps", base[0])
    grown = extract(place, tmp_path / "cache", "--taps", base[1])
    store = Store.open(tmp_path / "cache")
    assert store.verify(deep=True) == []
    assert len(store.chain.plans) == 2
    shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    assert extract(place, tmp_path / "cache", "--taps", base[0])["digest"] == grown["digest"]


@pytest.mark.parametrize(
    ("refused", "expected"),
    [((), "link"), (("link",), "rename"), (("link", "rename_new"), "marker"), (("open",), None)],
)
def test_info_tells_how_files_are_committed(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: tuple[str, ...], expected
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EPERM if "open" in refused else errno.ENOTSUP, "refused")

    before = {path for path in store.rglob("*")}
    for name in refused:
        monkeypatch.setattr(system.system, name, refuse)
    assert checked("info", call("info", "--store", store))["commits"] == expected
    assert main(["info", "--store", str(store)]) == 0
    assert f"commits: {expected or 'none'}" in capsys.readouterr().out
    assert {path for path in store.rglob("*")} == before


def test_rows_appended_to_the_file_are_added_and_changed_rows_are_refused(place: Path, tmp_path: Path) -> None:
    lines = (place / "train.csv").read_text().splitlines(keepends=True)
    data = tmp_path / "data.csv"
    words = ("extract", "--model", place / "model", "--data", data, "--store", tmp_path / "cache")
    data.write_text("".join(lines[:61]))
    assert call(*words)["examples"] == 60
    data.write_text("".join(lines[:81]))
    assert call(*words)["examples"] == 80
    data.write_text("".join([lines[0], *lines[2:101]]))
    told = call(*words, code=4)
    assert "data.train" in told
    assert "put it elsewhere" in told
    data.write_text("".join(lines[:61]))
    assert "splits.train.examples: 80 in the store, 60 asked for" in call(*words, code=4)
    assert os.path.isdir(tmp_path / "cache")


def test_gc_shows_then_removes_and_readers_go_on(place: Path, tmp_path: Path) -> None:
    extract(place, tmp_path / "cache", "--limit", 40)
    before = Store.open(tmp_path / "cache")
    extract(place, tmp_path / "cache", "--limit", 80)
    (tmp_path / "cache/notes.txt").write_text("mine")
    shown = checked("gc", call("gc", "--store", tmp_path / "cache"))
    assert [item["path"] for item in shown["files"]] == ["sherl/manifest-1.json"]
    assert not shown["removed"]
    assert (tmp_path / "cache/sherl/manifest-1.json").exists()
    assert checked("gc", call("gc", "--store", tmp_path / "cache", "--yes"))["files"] == shown["files"]
    assert call("gc", "--store", tmp_path / "cache")["files"] == []
    assert len(rows(before, "train", "encoder", 0)) == 40
    assert (tmp_path / "cache/notes.txt").exists()
    assert call("verify", "--store", tmp_path / "cache", "--deep")["findings"] == []


def test_repair_makes_again_exactly_what_is_damaged(place: Path, tmp_path: Path) -> None:
    extract(place, tmp_path / "cache", "--limit", 40, "--validation", place / "validation.csv")
    digest = extract(place, tmp_path / "cache", "--limit", 80, "--validation", place / "validation.csv")["digest"]
    root = tmp_path / "cache"
    store = Store.open(root)
    whole = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    stamps = {path: path.stat().st_mtime_ns for path in whole}
    shards = sorted(path for path in whole if "/c/" in str(path))
    damaged = [shards[0], shards[-1], root / "train/encoder/h01/zarr.json", root / "sherl/examples/train.2.parquet"]
    damaged += [root / f"sherl/receipts/{store.plan.units()[0].name}.json", next(iter(root.glob("sherl/weights/*")))]
    for path in damaged:
        data = bytearray(whole[path])
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    assert "damaged" not in call("verify", "--store", root, "--deep", code=5)
    result = checked("repair", call("repair", "--store", root))
    assert result["digest"] == digest
    assert result["same_digest"]
    assert result["changed"] == []
    assert {path: path.read_bytes() for path in whole} == whole
    touched = {path for path in whole if path.stat().st_mtime_ns != stamps[path]}
    unit = store.plan.units()[0]
    expected = {*damaged, *(root / f"{a.path}/c/{unit.index}/0" for a in store.plan.arrays() if a.split == unit.split)}
    assert touched <= expected
    assert checked("repair", call("repair", "--store", root))["findings"] == 0


def test_explain_stale_tells_same_grows_and_stale(place: Path, tmp_path: Path) -> None:
    extract(place, tmp_path / "cache", "--limit", 40)
    words = ("explain-stale", "--model", place / "model", "--data", place / "train.csv", "--store", tmp_path / "cache")
    words = (*words, "--encoding", "float32", "--set", "extract.chunk_bytes=2KiB", "--unit-memory", "64KiB")
    assert checked("explain-stale", call(*words, "--limit", 40))["verdict"] == "same"
    grows = checked("explain-stale", call(*words, "--limit", 60))
    assert grows["verdict"] == "grows"
    assert {item["field"] for item in grows["fields"] if item["differs"]} >= {"data.train", "extract.limit"}
    shutil.copytree(place / "model", tmp_path / "moved")
    moved = ("explain-stale", "--model", tmp_path / "moved", *words[3:])
    assert checked("explain-stale", call(*moved, "--limit", 40))["verdict"] == "same"
