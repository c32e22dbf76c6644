"""Shares of an array job: what they are called, that they have nothing in common, and that the last publishes the manifest."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bert

from sherl_cache.pipeline.parts import Part, parse_part
from sherl_cache.storage import Store, StoreWriter, leases
from sherl_cache.storage.errors import UsageError

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]


def task(number: int, least: int, most: int, count: int, **more: str) -> dict[str, str]:
    names = {"ID": number, "MIN": least, "MAX": most, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()} | more


@pytest.mark.parametrize(
    ("text", "environment", "part"),
    [
        ("3/16", {}, Part(3, 16)),
        ("1/1", task(5, 0, 9, 10), Part(1, 1)),
        ("slurm", task(0, 0, 15, 16), Part(1, 16)),
        ("slurm", task(16, 1, 16, 16), Part(16, 16)),
        ("slurm", task(6, 2, 10, 5), Part(3, 5)),
        ("slurm", task(7, 7, 7, 1), Part(1, 1)),
        ("slurm", task(2, 1, 4, 4, SLURM_PROCID="1", SLURM_NTASKS="2"), Part(4, 8)),
    ],
)
def test_a_share_is_read(text: str, environment: dict[str, str], part: Part) -> None:
    assert parse_part(text, environment) == part


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("0/4", {}, "counted from 1"),
        ("5/4", {}, "the last of 4 is 4/4"),
        ("3", {}, "as in 3/16"),
        ("array", {}, "as in 3/16"),
        ("slurm", {}, "SLURM_ARRAY_TASK_ID and its like are not set"),
        ("slurm", task(3, 1, 7, 3), "not evenly spaced"),
    ],
)
def test_what_is_no_share_is_refused(text: str, environment: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_part(text, environment)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_shares_of_all_parts_are_the_units_each_once(plan_of_a_store: StoreWriter, count: int) -> None:
    whole = plan_of_a_store.units()
    shares = [plan_of_a_store.part(number, count).units() for number in range(1, count + 1)]
    assert sorted(unit.name for share in shares for unit in share) == sorted(unit.name for unit in whole)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    root = tmp_path_factory.mktemp("parts")
    data, validation = write_csv(root / "train.csv", 120), write_csv(root / "validation.csv", 30, seed=1)
    words = ("extract", "--model", tiny_bert(root / "model"), "--data", data, "--validation", validation)
    return (*words, "--unit-memory", "20000", "--set", "extract.chunk_bytes=8192")


@pytest.fixture(scope="module")
def lone(job: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return call(*job, "--store", tmp_path_factory.mktemp("lone") / "cache")


@pytest.fixture
def plan_of_a_store(lone: Any) -> StoreWriter:
    return StoreWriter.open(lone["store"])


def test_each_part_does_its_share_and_the_last_one_publishes_the_store_of_a_lone_run(
    job: tuple[object, ...], lone: Any, tmp_path: Path
) -> None:
    store = tmp_path / "cache"
    units = len(StoreWriter.open(lone["store"]).units())
    assert units >= 6
    left = units
    for number in (2, 1, 3):
        result = call(*job, "--store", store, "--part", f"{number}/3")
        jsonschema.validate(result, SCHEMAS["extract"])
        left -= len(range(number - 1, units, 3))
        assert (result["part"], result["units_missing"], result["complete"]) == (f"{number}/3", left, left == 0)
        assert (result["digest"] is None) == (left > 0)
        seen = call("info", "--store", store)
        assert seen["units"] == {"done": units - left, "all": units}
        if left:
            assert "units are missing" in call("finalize", "--store", store, code=4)
    assert result["digest"] == lone["digest"]
    manifests = sorted(path.name for path in (store / "sherl").glob("manifest-*"))
    finalized = call("finalize", "--store", store)
    jsonschema.validate(finalized, SCHEMAS["finalize"])
    assert finalized == {"store": str(store), "units": units, "digest": lone["digest"]}
    assert sorted(path.name for path in (store / "sherl").glob("manifest-*")) == manifests
    assert not list((store / leases.FOLDER).iterdir())


def test_a_copied_store_trains_to_the_same_weights_in_the_same_folder(lone: Any, tmp_path: Path) -> None:
    copied = call("copy", "--store", lone["store"], "--to", tmp_path / "node" / "cache")
    jsonschema.validate(copied, SCHEMAS["copy"])
    assert copied["digest"] == lone["digest"]
    assert copied["bytes"] > 0
    assert call("copy", "--store", lone["store"], "--to", tmp_path / "node" / "cache")["bytes"] == 0
    train = ("--epochs", 1, "--run", tmp_path / "run")
    trained = call("train", "--store", lone["store"], *train)
    assert call("train", "--store", tmp_path / "node" / "cache", *train) == trained


@pytest.mark.parametrize("umask", [0o027, pytest.param(0o002, marks=pytest.mark.slow)])
def test_store_and_run_are_as_open_as_the_umask_says(job: tuple[object, ...], tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        call(*job, "--limit", 20, "--store", tmp_path / "cache")
        call("train", "--store", tmp_path / "cache", "--run", tmp_path / "run", "--epochs", 1)
        call("copy", "--store", tmp_path / "cache", "--to", tmp_path / "copy")
    finally:
        os.umask(before)
    for root in ("cache", "run", "copy"):
        found = [tmp_path / root, *(tmp_path / root).rglob("*")]
        assert len(found) > 8
        for path in found:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, f"{path} has {mode:o}"


def test_nothing_is_left_of_shares_where_the_store_is_whole(job: tuple[object, ...], lone: Any) -> None:
    again = call(*job, "--store", lone["store"], "--part", "7/9")
    assert (again["complete"], again["units_missing"], again["digest"]) == (True, 0, lone["digest"])
    assert Store.open(lone["store"]).digest == lone["digest"]
