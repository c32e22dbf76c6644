"""Weights streamed from the checkpoint, a block at a time: the same bytes as the ordinary way, and what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call
from loopback_hub import LoopbackHub
from model_cases import PICTURES, folder_of, loaded_model, ragged_batch
from reviews_csv import write_csv
from safetensors.torch import load_file, save_file
from streaming_cases import check_streamed, every_tap
from tiny import tiny_bert, tiny_t5
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from sherl_cache.pipeline.again import extract_command
from sherl_cache.stages.backbones.contract import PassThrough
from sherl_cache.stages.front import Front
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.load import load_pretrained
from sherl_cache.stages.proof import prove_streaming
from sherl_cache.stages.streamed_model import load_streamed
from sherl_cache.stages.streaming_front import StreamingFront
from sherl_cache.storage.errors import ModelError

FAMILIES = ("bert", "roberta", "distilbert", "t5", *PICTURES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_digest_and_late_weights_equal_those_of_the_loaded_model(family: str, dtype: str) -> None:
    """Over several batches at once; in float16 a T5 keeps some weights in float32."""
    batches = [ragged_batch(family, seed=seed, lengths=lengths) for seed, lengths in enumerate([(5, 1, 9), (2, 4, 7)])]
    check_streamed(loaded_model(family, dtype), load_streamed(str(folder_of(family)), dtype=dtype), batches)


def test_only_the_blocks_below_the_deepest_tap_are_read() -> None:
    """Of an encoder that a decoder reads, all of them."""
    for family, taps, expected in (
        ("bert", {"encoder": (1, 2)}, {"encoder.layer.0", "encoder.layer.1"}),
        ("t5", {"decoder": (1,)}, {*(f"encoder.block.{n}" for n in range(3)), "decoder.block.0"}),
    ):
        streamed = load_streamed(str(folder_of(family)))
        asked: list[str] = []
        own = streamed.checkpoint.read
        streamed.checkpoint.read = lambda names, own=own, asked=asked: asked.extend(names) or own(names)  # type: ignore[method-assign]
        whole = loaded_model(family)
        found = StreamingFront(streamed, taps)(ragged_batch(family))
        expected_taps = Front(whole, taps)(ragged_batch(family))
        assert all(torch.equal(found[name].taps, expected_taps[name].taps) for name in taps)
        blocks = {".".join(name.split(".")[:3]) for name in asked if ".layer." in name or ".block." in name}
        kept = "relative_attention_bias"
        blocks -= {name for name in blocks if all(kept in item for item in asked if item.startswith(f"{name}."))}
        assert blocks == expected


def test_module_holds_one_block_at_a_time() -> None:
    """Elements that own memory, seen from inside each forward of a block."""
    streamed = load_streamed(str(folder_of("bert")))
    front = StreamingFront(streamed, {"encoder": (0, 4)})
    names = streamed.checkpoint.names("encoder.layer.0.")
    block = sum(tensor.numel() for tensor in streamed.checkpoint.read(names).values())
    held: list[int] = []

    def count(*_: Any) -> None:
        sizes = [
            parameter.untyped_storage().nbytes() // parameter.itemsize
            for parameter in front.skeleton.module.parameters()
        ]
        held.append(sum(size for size in sizes if size > 1))

    for layer in front.skeleton.module.get_submodule("encoder.layer").children():
        layer.register_forward_pre_hook(count)
    front(ragged_batch("bert"))
    assert held == [block] * 4


def shards(folder: Path, target: Path) -> Path:
    """The same model in several files with an index."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(target, max_shard_size="8KB")
    assert len(list(target.glob("*.safetensors"))) > 3
    assert (target / "model.safetensors.index.json").exists()
    return target


def named_for_another_head(folder: Path, target: Path) -> Path:
    """A checkpoint of the model with a task's head, so that every name has a prefix."""
    shutil.copytree(folder, target)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    model.base_model.load_state_dict(load_file(folder / "model.safetensors"))
    model.save_pretrained(target)
    assert all(name.startswith(("bert.", "classifier.")) for name in load_file(target / "model.safetensors"))
    return target


def with_tied_twice(folder: Path, target: Path, factor: float) -> Path:
    """The head is tied and in the file all the same: equal, or not."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["shared.weight"] * factor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


CHECKPOINTS: dict[str, tuple[str, dict[str, Any], Callable[[Path, Path], Path]]] = {
    "several files": ("t5", {}, shards),
    "prefixed names": ("bert", {}, named_for_another_head),
    "untied head": ("t5", {"tie_word_embeddings": False}, lambda folder, target: folder),
    "tied and in the file": ("t5", {}, lambda folder, target: with_tied_twice(folder, target, 1.0)),
    "tied and another in the file": ("t5", {}, lambda folder, target: with_tied_twice(folder, target, 2.0)),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_every_form_of_checkpoint_gives_the_digest_of_the_loaded_model(case: str, tmp_path) -> None:
    family, config, make = CHECKPOINTS[case]
    folder = str(make(folder_of(family, **config), tmp_path / "model"))
    whole, streamed = load_pretrained(folder), load_streamed(folder)
    assert streamed.weights_digest == whole.weights_digest
    assert dict(late_weights(streamed, 1)) == dict(late_weights(whole, 1))
    taps, batch = every_tap(whole), ragged_batch(family)
    expected, found = Front(whole, taps)(batch), StreamingFront(streamed, taps)(batch)
    assert all(torch.equal(found[name].taps, expected[name].taps) for name in taps)


def test_checkpoints_that_lack_or_misshape_a_tensor_are_refused(tmp_path) -> None:
    folder = shutil.copytree(folder_of("bert"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    save_file(
        {**tensors, name: tensors[name][:, :-1].contiguous()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ModelError, match=rf"{name} of shape"):
        load_streamed(str(folder))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"does not hold 1 tensors .*{name}"):
        load_streamed(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no safetensors weights"):
        load_streamed(str(folder))
    index = {"metadata": {}, "weight_map": {"x": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no file beside it"):
        load_streamed(str(folder))


class WithoutBias(PassThrough):
    """Forgets the position bias that the first block hands on."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.enter(hidden_states), None, None


def test_a_model_whose_blocks_tell_each_other_more_than_a_state_is_refused() -> None:
    """The proof compares two blocks that run together with the same two one after the other."""
    streamed = load_streamed(str(folder_of("t5")))
    prove_streaming(streamed, ragged_batch("t5"))
    broken = tuple(replace(stream, pass_through=WithoutBias) for stream in streamed.table.streams)
    with pytest.raises(ModelError, match="first two blocks run together differ"):
        prove_streaming(replace(streamed, table=replace(streamed.table, streams=broken)), ragged_batch("t5"))


@pytest.fixture(scope="module", params=["bert", "t5"])
def job(request, tmp_path_factory) -> tuple[str, tuple[object, ...]]:
    """A family and the flags of an extraction in several units."""
    root = tmp_path_factory.mktemp(request.param)
    model = {"bert": tiny_bert, "t5": tiny_t5}[request.param](root / "model")
    files = (
        "--data",
        write_csv(root / "train.csv", 64),
        "--validation",
        write_csv(root / "validation.csv", 20, seed=1),
    )
    small = ("--batch-tokens", 128, "--unit-memory", "96KiB", "--set", "extract.chunk_bytes=2KiB")
    return request.param, ("--model", model, *files, *small)


@pytest.mark.parametrize("encoding", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_store_is_that_of_the_ordinary_way(job, encoding: str, tmp_path) -> None:
    """Every byte of arrays, tables, weights and calibration, over several units of several batches each."""
    words = (*job[1], "--encoding", encoding)
    whole = call("extract", *words, "--store", tmp_path / "whole")
    streamed = call("extract", *words, "--store", tmp_path / "streamed", "--stream-weights")
    assert streamed["digest"] == whole["digest"]
    assert call("verify", "--deep", "--store", tmp_path / "streamed")["findings"] == []
    found, expected = content(tmp_path / "streamed"), content(tmp_path / "whole")
    assert len([name for name in expected if name.startswith("sherl/receipts")]) > 2
    assert found.keys() == expected.keys()
    # the plan notes how it was asked for, and receipts and the manifest name the plan
    notes = ("sherl/plan.json", "sherl/receipts/", "sherl/manifest-")
    assert not [name for name in expected if found[name] != expected[name] and not name.startswith(notes)]


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_store_may_be_begun_in_one_way_and_grow_in_the_other(job, tmp_path) -> None:
    taps = {"bert": ("0,2", "0,1,2,4"), "t5": ("encoder:0,3;decoder:1", "encoder:0,2,3;decoder:0,1")}
    digests = set()
    for way in ([], ["--stream-weights"]):
        store = tmp_path / f"grown-{len(way)}"
        for asked, flags in zip(taps[job[0]], ([], way), strict=True):
            digest = call("extract", *job[1], "--store", store, "--taps", asked, *flags)["digest"]
        digests.add(digest)
    assert len(digests) == 1


def test_the_extract_command_of_a_streamed_store_streams_too() -> None:
    settings = {"model": "m", "data": "d", "stream_weights": True}
    expected = "sherl-cache extract --model m --data d --stream-weights --store cache"
    assert extract_command({"extract": settings}, Path("cache")) == expected
    assert "--stream" not in extract_command({"extract": {**settings, "stream_weights": False}}, Path("cache"))


def test_plan_says_what_streaming_takes(job, tmp_path) -> None:
    if job[0] == "t5":
        pytest.skip("the bill is made the same way for all")
    bill = call("plan", *job[1], "--store", tmp_path / "cache", "--stream-weights")
    assert bill["tokens_per_second"] > 0
    assert bill["seconds"] > 0
    assert bill["memory"]["extract"] > 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_repair_of_a_streamed_store_streams(job, tmp_path) -> None:
    done = call("extract", *job[1], "--store", tmp_path / "cache", "--stream-weights")
    shard = max((tmp_path / "cache" / "train").rglob("c/*/*"), key=lambda path: path.stat().st_size)
    shard.write_bytes(bytes(len(shard.read_bytes())))
    repaired = call("repair", "--store", tmp_path / "cache")
    assert repaired["digest"] is not None
    assert call("info", "--store", tmp_path / "cache")["digest"] == done["digest"]
    assert call("verify", "--deep", "--store", tmp_path / "cache")["findings"] == []


@pytest.mark.slow
def test_model_of_the_hub_is_streamed_from_the_files_that_the_client_keeps(tmp_path) -> None:
    """Several files and their index, in a process that knows the loopback hub alone."""
    code = (
        "from sherl_cache.stages.load import load_pretrained\n"
        "from sherl_cache.stages.streamed_model import load_streamed\n"
        "streamed, whole = load_streamed('t5-base'), load_pretrained('t5-base')\n"
        "assert streamed.weights_digest == whole.weights_digest\n"
        "assert streamed.revision == whole.revision is not None\n"
    )
    with LoopbackHub() as hub:
        hub.add_model("google-t5/t5-base", shards(folder_of("t5"), tmp_path / "model"), alias="t5-base")
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
