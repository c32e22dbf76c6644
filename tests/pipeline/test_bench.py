"""`bench`: every way trains the same examples, stage two without the model, and what fails is told beside what did not."""

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from captioned_pictures import write_pairs
from cli import call
from reviews_csv import write_csv
from tiny import tiny_bart, tiny_bert, tiny_causal, tiny_distilbert, tiny_roberta, tiny_t5
from tiny_pictures import tiny_clip, tiny_resnet, tiny_vit, write_class_folders

from sherl_cache.pipeline.bench.document import WAYS, Bench, read_bench
from sherl_cache.pipeline.bench.examples import tokens_a_segment, training_batches
from sherl_cache.pipeline.bench.measure import measure
from sherl_cache.pipeline.bench.process import put_together
from sherl_cache.pipeline.recipe import load_recipe
from sherl_cache.storage import Store

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]["bench"]
NO_DROPOUT = ("dropout.features=0", "dropout.late=false", "dropout.head=0")
SMALL = ("data.batch_examples=8", "train.device=cpu", *NO_DROPOUT)
CPU = torch.device("cpu")


def text_store(root: Path, maker: Any, *more: object, **config: Any) -> Path:
    """A float32 store of a tiny model and 40 sentences."""
    data = write_csv(root / "train.csv", 40)
    words = ("--model", maker(root / "model", **config), "--data", data, "--splits", "train")
    call("extract", *words, "--encoding", "float32", "--store", root / "cache", *more)
    return root / "cache"


def picture_store(root: Path, maker: Any, *more: object) -> Path:
    write_class_folders(root / "set" / "train", {"blue": 12, "green": 10, "red": 14})
    words = ("--model", maker(root / "model"), "--data", root / "set", "--splits", "train", *more)
    call("extract", *words, "--encoding", "float32", "--store", root / "cache")
    return root / "cache"


def pair_store(root: Path) -> Path:
    write_pairs(root / "set" / "train", 24, seed=0)
    words = ("--model", tiny_clip(root / "model"), "--data", root / "set", "--splits", "train")
    call("extract", *words, "--encoding", "float32", "--store", root / "cache")
    return root / "cache"


def check_every_way(place: Path, *settings: str, ways: tuple[str, ...] = WAYS, unread: int = 0) -> dict[str, Any]:
    """Four steps of each way; what was found, by way. unread: tensors of the whole model that its class does not read."""
    recipe, store = load_recipe("sherl", (*SMALL, *settings)), Store.open(place)
    batches = training_batches(store, recipe.data, 4)
    found = {}
    for name in ways:
        way = put_together(name, recipe, store, batches, lora_rank=2)
        found[name] = one = measure(way, 4, CPU, imports_bytes=0)
        assert len(one.losses) == 4
        assert all(map(math.isfinite, one.losses)), name
        assert len(one.seconds) == 3
        assert min(one.seconds) > 0
        assert one.changed_tensors == one.trained_tensors - (unread if name == "full" else 0) > 0, name
        assert one.trained_parameters == sum(parameter.numel() for parameter in way.trained)
    # the same examples and the same first weights; later steps have learning rates of their own
    assert found["stage-two"].losses[0] == pytest.approx(found["live"].losses[0], rel=1e-4)
    assert found["stage-two"].trained_parameters == found["live"].trained_parameters
    assert found["stage-two"].held_bytes < found["live"].held_bytes
    return found


def test_every_way_trains_an_encoder_on_the_same_examples(tmp_path: Path) -> None:
    place = text_store(tmp_path, tiny_bert)
    found = check_every_way(place)
    whole = sum(tensor.numel() for tensor in load_model(tmp_path / "model").parameters())
    assert found["full"].trained_parameters == whole + 2 * 32 + 2  # a new head on the pooled row
    # queries and values of 4 blocks, down to 2 and up again, and the head
    assert found["lora"].trained_parameters == 4 * 2 * 2 * (32 * 2) + 2 * 32 + 2
    assert found["lora"].facts["LoRA on"] == "8 modules: query, value"


def load_model(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder)


def test_every_way_trains_an_encoder_decoder_on_the_right_answer(tmp_path: Path) -> None:
    found = check_every_way(text_store(tmp_path, tiny_t5), "train.micro_batch_examples=3")
    # self-attention of 3 + 3 blocks and cross-attention of 3, queries and values, down to 2 and up again
    assert found["lora"].trained_parameters == 9 * 2 * 2 * (16 * 2)


def test_examples_are_those_that_stage_two_reads(tmp_path: Path) -> None:
    store = Store.open(text_store(tmp_path, tiny_bert))
    recipe = load_recipe("sherl", ("data.batch_examples=16",))
    batches = training_batches(store, recipe.data, 7)
    assert [len(batch) for batch in batches] == [16, 16, 8, 16, 16, 8, 16]  # over two epochs and into a third
    for epoch in (batches[:3], batches[3:6]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(40))
    assert not np.array_equal(batches[0], batches[3])
    table = store.examples("train")
    counts = [len(table.column("input_ids")[int(example)].as_py()) for example in batches[1]]
    assert tokens_a_segment(table, batches[1])["encoder"] == (pytest.approx(np.mean(counts)), max(counts))


def bench_alone(place: Path, ways: str, out: Path) -> dict[str, Any]:
    """The command over a store whose model is gone; its result and files checked against each other."""
    shutil.rmtree(place.parent / "model")
    words = ("--ways", ways, "--steps", 3, "--rounds", 1, "--batch-examples", 8, "--device", "cpu")
    result = call("bench", "--store", place, *words, "--output", out)
    jsonschema.validate(result, SCHEMA)
    kept = read_bench(out / "bench.json")
    assert kept.model_dump() == {name: value for name, value in result.items() if name in Bench.model_fields}
    return dict(result)


def test_stage_two_is_measured_without_the_model(tmp_path: Path) -> None:
    place = text_store(tmp_path, tiny_bert)
    result = bench_alone(place, "stage-two", tmp_path / "out")
    (ours,) = result["ways"]
    assert ours["error"] is None
    assert ours["peak_memory_bytes"] > 0 < ours["imports_bytes"]
    assert ours["seconds_a_step"] == pytest.approx(np.median(ours["rounds"][0]["seconds"]))
    assert ours["rounds"][0]["store_bytes"] > 0
    assert result["extraction"] is None
    assert result["exit_code"] == 0
    page = (tmp_path / "out" / "bench.html").read_text("utf-8")
    for name in ("threads", "device name", "store encoding", "tokens, encoder", "torch", "steps"):
        assert f">{name}<" in page


@pytest.mark.slow
def test_ways_that_fail_are_told_beside_one_that_does_not(tmp_path: Path) -> None:
    result = bench_alone(text_store(tmp_path, tiny_bert), "live,lora,full,stage-two", tmp_path / "out")
    *failed, ours = result["ways"]
    assert ours["error"] is None
    assert f"there is no folder {tmp_path / 'model'}" in result["extraction"]["error"]
    for way in failed:
        assert f"there is no folder {tmp_path / 'model'}" in way["error"]
        assert (way["exit_code"], way["seconds_a_step"], way["rounds"]) == (3, None, [])
    assert result["paid_for"] == []
    assert result["exit_code"] == 0
    assert (tmp_path / "out" / "bench.html").read_text("utf-8").count("not measured: there is no folder") == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ways", "stage-two,ful"), "did you mean full?"),
        (("--ways", ","), "there are stage-two, live, lora, full"),
        (("--model", "m", "--data", "d", "--store", "s"), "give one of the two"),
        (("--taps", "0", "--late", 2), "extract.taps, extract.late: a store that is there"),
    ],
)
def test_what_is_asked_for_wrongly_is_said(words: tuple[str, ...], said: str) -> None:
    assert said in call("bench", *words, code=2)


def test_costs_of_live_ways_are_drawn_beside_runs(tmp_path: Path) -> None:
    data, validation = write_csv(tmp_path / "train.csv", 40), write_csv(tmp_path / "validation.csv", 20, seed=1)
    files = ("--data", data, "--validation", validation)
    call("extract", "--model", tiny_bert(tmp_path / "model"), *files, "--store", tmp_path / "cache")
    for seed in (0, 1):
        train = ("train", "--store", tmp_path / "cache", "--run", tmp_path / f"run{seed}")
        call(*train, "--seed", seed, "--epochs", 1, "--set", "data.batch_examples=16")
    runs = ("--run", tmp_path / "run0", "--run", tmp_path / "run1", "--out", tmp_path / "page.html")
    document = bench_document(Store.open(tmp_path / "cache").fingerprint)
    (tmp_path / "bench.json").write_text(document.model_dump_json())
    call("report", *runs)
    without = (tmp_path / "page.html").read_text("utf-8")
    call("report", *runs, "--bench", tmp_path / "bench.json")
    page = (tmp_path / "page.html").read_text("utf-8")
    label = "LoRA (peft): cost alone"
    assert label not in without
    assert page.count(label) == 2
    assert "steps over 40 examples" in page
    assert "full fine-tuning: cost" not in page  # it failed
    assert "another store" not in page
    assert "--bench draws" in call("report", "--run", tmp_path / "run0", "--bench", tmp_path / "bench.json", code=2)
    (tmp_path / "bench.json").write_text('{"format": "sherl-cache bench", "version": 2}')
    assert "version: Input should be 1" in call("report", *runs, "--bench", tmp_path / "bench.json", code=3)


def bench_document(fingerprint: str) -> Bench:
    """A document as `bench` writes it, of a way that was measured and one that was not."""
    measured = {
        "seconds": [0.25, 0.5],
        "wait_seconds": [0.0, 0.0],
        "batch_seconds": 0.0,
        "losses": [0.7, 0.7, 0.7],
        "memory": "resident",
        "net_bytes": 1 << 30,
        "imports_bytes": 1 << 29,
        "held_bytes": 1 << 28,
        "trained_parameters": 64,
        "trained_tensors": 2,
        "changed_tensors": 2,
        "store_bytes": None,
        "device_bytes": None,
        "facts": {},
    }
    lora = {
        "name": "lora",
        "label": "LoRA (peft)",
        "seconds_a_step": 0.375,
        "fastest": 0.375,
        "slowest": 0.375,
        "wait_share": 0.0,
        "peak_memory_bytes": 1 << 30,
        "imports_bytes": 1 << 29,
        "trained_parameters": 64,
        "rounds": [measured],
    }
    return Bench.model_validate(
        {
            "store": "cache",
            "store_fingerprint": fingerprint,
            "settings": {"model": "m"},
            "examples_a_step": 8.0,
            "train_examples": 40,
            "ways": [lora, {"name": "full", "label": "full fine-tuning", "error": "out of memory", "exit_code": 7}],
            "extraction": {"seconds_an_example": None, "train_seconds": None, "peak_memory_bytes": None, "error": "no"},
            "paid_for": [],
        }
    )


FAMILIES = {
    "roberta": lambda root: text_store(root, tiny_roberta),
    "distilbert": lambda root: text_store(root, tiny_distilbert),
    "bart": lambda root: text_store(root, tiny_bart),
    "gpt2": lambda root: text_store(root, tiny_causal),
    "llama in text": lambda root: text_store(
        root, tiny_causal, "--answers", "text", model_type="llama", language_model=True
    ),
    "vit": lambda root: picture_store(root, tiny_vit),
    "clip's pictures": lambda root: picture_store(root, tiny_clip),
    "clip": pair_store,
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_trains_every_kind_of_model(tmp_path: Path, family: str) -> None:
    # this class pools the patches, and leaves the norm of the first row alone
    check_every_way(FAMILIES[family](tmp_path), unread=2 if family == "clip's pictures" else 0)


@pytest.mark.slow
def test_maps_are_trained_but_for_lora_which_is_refused(tmp_path: Path) -> None:
    place = picture_store(tmp_path, tiny_resnet)
    check_every_way(place, "late.blocks=0", ways=("stage-two", "live", "full"))
    with pytest.raises(Exception, match="queries and values"):
        check_every_way(place, "late.blocks=0", ways=("stage-two", "live", "lora"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sherl-paper", "unipt", "head2toe", "lora", "last"])
def test_other_recipes_train_from_the_store_as_live(tmp_path: Path, recipe: str) -> None:
    store = Store.open(text_store(tmp_path, tiny_bert))
    chosen = load_recipe(recipe, SMALL)
    batches = training_batches(store, chosen.data, 2)
    ours, live = (
        measure(put_together(way, chosen, store, batches, 2), 2, CPU, imports_bytes=0) for way in ("stage-two", "live")
    )
    assert ours.losses[0] == pytest.approx(live.losses[0], rel=1e-4)
    assert ours.trained_parameters == live.trained_parameters


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_and_data_are_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    model, data = tiny_bert(tmp_path / "model"), write_csv(tmp_path / "train.csv", 100)
    words = ("--model", model, "--data", data, "--steps", 3, "--rounds", 1, "--batch-examples", 8, "--device", "cpu")
    result = call("bench", *words, "--encoding", "float32", "--output", tmp_path / "out")
    jsonschema.validate(result, SCHEMA)
    assert result["train_examples"] == 24
    assert [way["name"] for way in result["ways"]] == list(WAYS)
    for way in result["ways"]:
        assert way["error"] is None
        assert way["exit_code"] == 0
        seconds = [each for one in way["rounds"] for each in one["seconds"]]
        assert way["seconds_a_step"] == pytest.approx(np.median(seconds))
        assert way["fastest"] <= way["slowest"]
        assert len(way["rounds"]) == 1
        for one in way["rounds"]:
            assert one["changed_tensors"] == one["trained_tensors"]
    held = {way["name"]: way["rounds"][0]["held_bytes"] for way in result["ways"]}
    assert held["stage-two"] < min(held[name] for name in WAYS[1:])
    assert {item["against"] for item in result["paid_for"]} == {"live sherl", "LoRA (peft)", "full fine-tuning"}
    for item, way in zip(result["paid_for"], result["ways"][1:], strict=True):
        saved = (way["seconds_a_step"] - result["ways"][0]["seconds_a_step"]) / result["examples_a_step"]
        expected = result["extraction"]["seconds_an_example"] / saved if saved > 0 else None
        assert item["epochs"] == (None if expected is None else pytest.approx(expected))


@pytest.mark.slow
def test_peft_is_asked_for_where_it_is_not_and_a_killed_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, hook = text_store(tmp_path, tiny_bert), tmp_path / "hook"
    hook.mkdir()
    # what every python of this environment runs as it begins
    (hook / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "sys.modules['peft'] = None\n"
        "import importlib.abc\n"
        "class Killer(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.endswith('bench.whole') and os.environ.get('KILL'):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.meta_path.insert(0, Killer())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(hook), prepend=os.pathsep)
    words = ("--steps", 2, "--rounds", 1, "--batch-examples", 8, "--device", "cpu", "--output", tmp_path / "out")
    found = call("bench", "--store", place, "--ways", "lora,stage-two", *words)
    assert found["ways"][0]["error"].endswith("pip install 'sherl-cache[bench]'")
    assert found["ways"][1]["error"] is None
    monkeypatch.setenv("KILL", "1")
    said = call("bench", "--store", place, "--ways", "full", *words, code=7)
    assert "when memory is short" in said


def test_a_step_is_the_median_of_all_rounds_and_its_range_that_of_theirs() -> None:
    from sherl_cache.pipeline.bench.document import Measured
    from sherl_cache.pipeline.bench.run import together

    base = bench_document("").ways[0].rounds[0].model_dump()
    rounds = [
        Measured.model_validate({**base, "seconds": seconds, "wait_seconds": [0.1] * 3, "net_bytes": net})
        for seconds, net in (([1.0, 2.0, 9.0], 5), ([3.0, 4.0, 5.0], 7))
    ]
    way = together("stage-two", "stage two", rounds, None)
    assert (way.seconds_a_step, way.fastest, way.slowest) == (3.5, 2.0, 4.0)
    assert way.wait_share == pytest.approx(0.6 / sum(itertools.chain(*(one.seconds for one in rounds))))
    assert way.peak_memory_bytes == 7
