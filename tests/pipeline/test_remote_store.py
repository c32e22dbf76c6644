"""A store copied to S3 serves every command that reads; the ones that write say what to do instead."""

import os
from typing import Any

import pytest
from cli import call, run
from places import CANARY, S3Copy
from reviews_csv import write_csv
from tiny import tiny_bert

from sherl_cache.pipeline.cli import main

SETTINGS = ("--set", "data.batch_examples=16", "--epochs", 1)


@pytest.fixture(scope="module")
def job(s3: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("remote")
    model = tiny_bert(root / "model")
    data, validation = write_csv(root / "train.csv", 60), write_csv(root / "validation.csv", 30, seed=1)
    extract = ("extract", "--model", model, "--data", data, "--validation", validation)
    call(*extract, "--store", root / "cache")
    return {"root": root, "extract": extract, "place": S3Copy(root / "cache").place}


def test_training_from_s3_gives_the_weights_of_training_from_disk(job, tmp_path) -> None:
    there = call("train", "--store", job["place"], "--run", tmp_path / "s3", *SETTINGS)
    here = call("train", "--store", job["root"] / "cache", "--run", tmp_path / "disk", *SETTINGS)
    assert there["weights_digest"] == here["weights_digest"]
    assert there["best"] == here["best"]
    scores = [call("eval", "--run", tmp_path / name, "--limit", 20) for name in ("s3", "disk")]
    assert {**scores[0], "run": None} == {**scores[1], "run": None}


def test_a_run_folder_is_local_and_holds_no_secret(job, tmp_path) -> None:
    call("train", "--store", job["place"], "--run", tmp_path / "run", *SETTINGS)
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()


def test_info_and_verify_say_the_same_of_the_copy(job) -> None:
    for words in (("info",), ("verify",), ("verify", "--deep")):
        there, here = call(*words, "--store", job["place"]), call(*words, "--store", job["root"] / "cache")
        assert there.pop("store") == job["place"]
        here.pop("store")
        if words == ("info",):  # nothing is committed there
            assert (there.pop("commits"), here.pop("commits")) == (None, "link")
        assert there == here


def test_a_fresh_process_reads_from_s3(job) -> None:
    """Warnings are errors there: what a client library says at the end of a process would be seen."""
    leading = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "NO_PROXY", "no_proxy"))}
    assert run("info", "--store", job["place"], **leading)["store"] == job["place"]


@pytest.mark.parametrize("command", ["extract", "plan"])
def test_writing_to_s3_is_refused_with_the_way_there(job, command: str) -> None:
    said = call(command, *job["extract"][1:], "--store", "s3://bucket/store", code=2)
    assert "aws s3 cp --recursive" in said
    assert "sherl-cache verify --deep --store s3://bucket/store" in said


@pytest.mark.parametrize(
    ("place", "code", "saying"),
    [
        ("s3://no-such-bucket/store", 4, "s3://no-such-bucket/store: there is no store here"),
        (f"s3://key:{CANARY}@bucket/store", 2, "environment"),
        (f"https://host/store?sig={CANARY}", 2, "s3://bucket/prefix"),
    ],
)
def test_errors_name_the_place_and_no_secret(s3: str, capsys, tmp_path, place: str, code: int, saying: str) -> None:
    """With -v too, which prints the traceback of an error and of what it was raised from."""
    for words in (("info",), ("verify",), ("train", "--run", tmp_path)):
        assert main([*map(str, words), "--store", place, "-v"]) == code
        said = capsys.readouterr()
        assert saying in said.err
        assert CANARY not in said.err + said.out
