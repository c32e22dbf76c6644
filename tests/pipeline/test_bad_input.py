"""What a user can do wrong, and what a machine can: the right exit code, and a message that names the thing and the cure."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cli import ENVIRONMENT, arguments, call
from reviews_csv import write_csv
from tiny import tiny_bert
from transformers import BertModel


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "train.csv", 80)


@pytest.fixture(scope="module")
def store(model, data, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("store") / "cache"
    call("extract", "--model", model, "--data", data, "--store", root)
    return root


def refused(code: int, *words: object, saying: tuple[str, ...]) -> str:
    message = call(*words, code=code)
    for part in saying:
        assert part in message, message
    return message


def command_in(message: str) -> list[str]:
    """The words of the command that a message tells the user to run."""
    return shlex.split(re.search(r"sherl-cache (extract .*)", message)[1])


def test_no_such_model(data, tmp_path) -> None:
    words = ("extract", "--data", data, "--store", tmp_path / "cache")
    refused(3, *words, "--model", tmp_path / "nowhere", saying=("nowhere", "no folder"))
    assert not (tmp_path / "cache").exists()


def test_model_and_data_are_asked_for(data) -> None:
    refused(2, "extract", "--data", data, saying=("--model is missing", "sherl-cache extract --model"))


def test_no_such_column(model, data, tmp_path) -> None:
    words = ("extract", "--model", model, "--data", data, "--store", tmp_path / "cache", "--text-column", "txet")
    refused(3, *words, saying=("'txet'", "did you mean text?", "text, label"))


def test_empty_file(model, tmp_path) -> None:
    (tmp_path / "empty.csv").write_text("")
    words = ("extract", "--model", model, "--data", tmp_path / "empty.csv", "--store", tmp_path / "cache")
    refused(3, *words, saying=("empty.csv", "empty"))
    (tmp_path / "header.csv").write_text("text,label\n")
    refused(3, *words[:3], "--data", tmp_path / "header.csv", "--store", tmp_path / "cache", saying=("header.csv",))


def test_label_outside_the_set(model, data, tmp_path) -> None:
    other = tmp_path / "validation.csv"
    other.write_text("text,label\nthe film is good,positive\nthe plot is fine,neutral\n")
    words = ("extract", "--model", model, "--data", data, "--validation", other, "--store", tmp_path / "cache")
    refused(3, *words, saying=("validation", "row 1", "'neutral'", "negative, positive"))


def test_long_text_is_cut_counted_and_reported(model, tmp_path) -> None:
    path = tmp_path / "long.csv"
    rows = ["text,label", "good film,positive", f"{'a very long film ' * 60},negative", "bad plot,negative"]
    path.write_text("\n".join([*rows, "fine,positive"]) + "\n")
    result = call("extract", "--model", model, "--data", path, "--store", tmp_path / "cache")
    assert result["truncated"] == {"train": 1}
    done = subprocess.run(
        arguments("plan", "--model", model, "--data", path), capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert "1 of 4 train examples are longer than 128 tokens and were cut" in done.stderr


def test_incomplete_store(store, tmp_path) -> None:
    partial = tmp_path / "partial"
    shutil.copytree(store, partial)
    for path in [
        *(partial / "sherl").glob("manifest-*.json"),
        *(partial / "sherl" / "receipts").glob("train-00000.json"),
    ]:
        path.unlink()
    refused(4, "train", "--store", partial, saying=("units are missing", "train-00000"))
    call("verify", "--store", partial, code=4)
    assert call("info", "--store", partial)["complete"] is False


def test_no_store(tmp_path) -> None:
    refused(4, "train", "--store", tmp_path / "none", saying=(str(tmp_path / "none"),))


def test_flipped_byte_names_the_shard_the_chunk_and_the_examples(store, tmp_path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    shard = damaged / "train" / "encoder" / "h02" / "c" / "0" / "0"
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 1
    shard.write_bytes(raw)
    refused(
        5, "train", "--store", damaged, "--run", tmp_path / "run", saying=("train/encoder/h02", "chunk 0", "example")
    )
    call("verify", "--store", damaged)  # sizes are right
    call("verify", "--store", damaged, "--deep", code=5)


def test_nan_in_a_late_unit_is_refused_and_earlier_units_stay(model, tmp_path) -> None:
    """One token of the vocabulary has a NaN embedding; the one example that holds it lies in a late unit."""
    poisoned = tmp_path / "poisoned"
    shutil.copytree(model, poisoned)
    network = BertModel.from_pretrained(model)
    from transformers import AutoTokenizer

    token = AutoTokenizer.from_pretrained(model)("Q").input_ids[1]
    with torch.no_grad():
        network.embeddings.word_embeddings.weight[token] = float("nan")
    network.save_pretrained(poisoned)
    rows = write_csv(tmp_path / "train.csv", 400).read_text().splitlines()
    words = ("extract", "--model", poisoned, "--set", "extract.chunk_bytes=4KiB", "--unit-memory", "20KiB")
    for row in range(1, 400):  # the written order is a permutation: find a row that lies late
        (tmp_path / "train.csv").write_text("\n".join([*rows[:row], "good Q film,positive", *rows[row:]]) + "\n")
        message = call(*words, "--data", tmp_path / "train.csv", "--store", tmp_path / f"cache{row}", code=3)
        if len(list((tmp_path / f"cache{row}" / "sherl" / "receipts").glob("*"))) > 3:
            break
    assert "NaN" in message
    assert f"'{row - 1}'" in message
    assert "train/encoder/h00" in message
    call("verify", "--store", tmp_path / f"cache{row}", "--deep", code=4)


def test_unknown_recipe_key(store, tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {epohs: 3}\n")
    refused(3, "train", "--store", store, "--config", tmp_path / "mine.yaml", saying=("did you mean train.epochs?",))


def test_unknown_option_of_a_method(store, tmp_path) -> None:
    words = ("train", "--store", store, "--run", tmp_path / "run", "--set", "fusion.reducton=4")
    refused(3, *words, saying=("fusion.reducton", "did you mean reduction?"))


def test_full_disk(model, data, tmp_path) -> None:
    """A limit on file size stands for the full disk; with room again, the same command goes on."""
    words = ("extract", "--model", model, "--data", data, "--store", tmp_path / "cache", "--encoding", "float32")
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "-", *arguments(*words)]
    done = subprocess.run(limited, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert "no room for " in done.stderr
    assert re.search(r"What is missing of the store needs .* bytes\) in \d+ files", done.stderr)
    call(*words)


def test_store_that_does_not_fit_is_refused_before_the_first_forward(model, data, tmp_path, monkeypatch) -> None:
    from sherl_cache.pipeline import extracting

    monkeypatch.setattr(extracting, "free_bytes", lambda root: 1000)
    words = ("extract", "--model", model, "--data", data, "--store", tmp_path / "cache")
    refused(6, *words, saying=("the store needs", "1,000 bytes) are free"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("override", "saying"),
    [
        ("data.read_budget=1KiB", ("bytes", "window")),
        ("late.blocks=3", ("3 late blocks", "--late 3")),
        ("fusion.no_such_option=1", ("no_such_option",)),
        ("head.name=no-such-head", ("no-such-head",)),
        ("objective.name=mse", ("no objective named 'mse'", "there are barlow")),
        ("objective.name=regression", ("objective.name: regression does not read",)),
        ("train.device=no-such-device", ("no-such-device",)),
    ],
)
def test_what_a_store_cannot_be_trained_with_is_refused_before_there_is_a_run(
    store, tmp_path, override, saying
) -> None:
    code = {"late.blocks=3": 4, "train.device=no-such-device": 2}.get(override, 3)
    words = ("train", "--store", store, "--run", tmp_path / "run", "--set", override)
    refused(code, *words, saying=saying)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_a_file_is_refused(store, tmp_path) -> None:
    (tmp_path / "run").write_text("mine")
    refused(2, "train", "--store", store, "--run", tmp_path / "run", saying=("is a file", "another --run"))
    assert (tmp_path / "run").read_text() == "mine"


def test_no_permission(model, data, tmp_path) -> None:
    place = Path("/sys/sherl-cache")  # refused to root as well
    if os.geteuid() != 0:
        place = tmp_path / "closed" / "cache"
        place.parent.mkdir(mode=0o500)
    refused(2, "extract", "--model", model, "--data", data, "--store", place, saying=(str(place), "choose"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("--max-length", 16), "text.max_length"),
        (("--encoding", "float16"), "encoding"),
        (("--limit", 10), "data.train"),
    ],
)
def test_another_request_into_the_same_store_is_refused_with_the_difference(model, data, store, change, field) -> None:
    words = ("extract", "--model", model, "--data", data, "--store", store, *change)
    refused(4, *words, saying=(field, "in the store", "asked for", f"--store {store}-2"))


def test_another_model_into_the_same_store_is_refused(model, data, store, tmp_path) -> None:
    other = tiny_bert(tmp_path / "other", seed=1)
    refused(4, "extract", "--model", other, "--data", data, "--store", store, saying=("model.weights",))


def test_a_tap_that_the_store_lacks_is_refused_and_the_command_that_is_named_mends_the_same_run(
    model, data, tmp_path
) -> None:
    call("extract", "--model", model, "--data", data, "--store", tmp_path / "cache", "--taps", "0,3")
    words = ("train", "--store", tmp_path / "cache", "--run", tmp_path / "run", "--epochs", 1)
    said = refused(3, *words, saying=("encoder h01", "--taps encoder:0,1,2,3"))
    assert not (tmp_path / "run").exists()
    grown = call(*command_in(said))
    assert grown["store"] == str(tmp_path / "cache")
    assert call(*words)["steps"] > 0


def test_an_int8_store_takes_in_no_tap_and_the_command_that_is_named_makes_another(model, data, tmp_path) -> None:
    """Its calibration is of its own taps: extract and train both say so, and name the store that holds them all."""
    base = ("extract", "--model", model, "--data", data, "--encoding", "int8", "--store", tmp_path / "cache")
    digest = call(*base, "--taps", "0,3")["digest"]
    said = refused(4, *base, "--taps", "0,1,3", saying=("h01 asked for", "calibrated for its own taps only"))
    elsewhere = call(*command_in(said))
    assert elsewhere["store"] == f"{tmp_path / 'cache'}-2"
    assert elsewhere["taps"] == {"encoder": [0, 1, 3]}
    assert call("info", "--store", elsewhere["store"])["encoding"] == "int8"

    words = ("train", "--run", tmp_path / "run", "--epochs", 1, "--store")
    said = refused(
        3, *words, tmp_path / "cache", saying=("encoder h01, encoder h02", "calibrated for its own taps only")
    )
    other = call(*command_in(said))
    assert other["store"] == f"{tmp_path / 'cache'}-3"
    assert call(*words, other["store"])["steps"] > 0
    assert call("info", "--store", tmp_path / "cache")["digest"] == digest


def test_a_folder_with_a_colon_in_its_name_is_a_store_like_any_other(model, data, tmp_path) -> None:
    store = tmp_path / "2026-11-21T10:57" / "a:b"
    words = ("extract", "--model", model, "--data", data, "--store", store)
    digest = call(*words, "--limit", 40)["digest"]
    assert call(*words)["digest"] != digest
    assert call("verify", "--deep", "--store", store)["findings"] == []
    assert call("train", "--store", store, "--run", tmp_path / "run:1", "--epochs", 1)["run"] == str(tmp_path / "run:1")
    assert call("eval", "--run", tmp_path / "run:1", "--split", "train", "--limit", 8)["split"] == "train"
    assert call("explain-stale", *words[1:])["verdict"] == "same"
    assert call("gc", "--store", store, "--yes")["removed"]
    assert call("repair", "--store", store)["findings"] == 0


def test_a_folder_with_a_colon_is_found_from_where_it_lies(model, data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    call("extract", "--model", model, "--data", data, "--limit", 20, "--store", "sst2:small")
    assert call("info", "--store", "sst2:small")["examples"] == 20
    assert (tmp_path / "sst2:small").is_dir()


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (("--text-column", "txet"), ("txet", "did you mean text?")),
        (("--label-column", "lable"), ("lable", "did you mean label?")),
    ],
)
def test_a_wrong_column_is_told_before_a_model_is_looked_for(data, tmp_path, words, saying) -> None:
    given = ("--model", tmp_path / "nowhere", "--data", data)
    refused(3, "plan", *given, *words, saying=saying)
    refused(3, "plan", "--model", tmp_path / "nowhere", "--data", tmp_path / "none.csv", saying=("none.csv",))


@pytest.mark.parametrize("command", ["train", "info"])
def test_a_folder_that_was_removed_is_no_place_to_start_from(tmp_path, monkeypatch, command) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    os.chdir("here")
    (tmp_path / "here").rmdir()
    refused(2, command, saying=("is gone", "go to one that is there"))


@pytest.mark.parametrize("command", ["extract", "plan", "info", "verify", "train", "gc", "repair", "explain-stale"])
@pytest.mark.parametrize("place", ["s3:cache", "file:cache"])
def test_a_place_that_is_half_an_address_is_refused_by_every_command(
    model, data, tmp_path, monkeypatch, command, place
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("--model", model, "--data", data) if command in ("extract", "plan", "explain-stale") else ()
    refused(2, command, *more, "--store", place, saying=(place, "://"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["gc", "repair", "explain-stale"])
def test_what_writes_or_compares_a_store_wants_it_on_a_disk(model, data, command) -> None:
    more = ("--model", model, "--data", data) if command == "explain-stale" else ()
    refused(2, command, *more, "--store", "s3://bucket/store", saying=("s3://bucket/store", "on a local disk only"))


def test_a_run_folder_of_another_recipe_is_refused(store, tmp_path) -> None:
    call("train", "--store", store, "--run", tmp_path / "run", "--epochs", 1)
    refused(
        3, "train", "--store", store, "--run", tmp_path / "run", "--epochs", 2, saying=("train.epochs: 1 there, 2",)
    )


def test_a_folder_that_is_no_run(tmp_path) -> None:
    refused(2, "eval", "--run", tmp_path, saying=("holds no run",))


def test_an_unknown_command_names_the_nearest() -> None:
    refused(2, "trian", saying=("did you mean train?",))
