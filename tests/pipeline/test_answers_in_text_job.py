"""The main job with a causal decoder that answers in text: what the store holds, both scores, generation, the export."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cli import ENVIRONMENT, call
from reviews_csv import write_csv
from tiny import tiny_bert, tiny_causal
from transformers import AutoModelForCausalLM, AutoTokenizer

from sherl_cache import SherlModel, StoreDataset
from sherl_cache.pipeline.recipe import load_recipe
from sherl_cache.pipeline.training import Training
from sherl_cache.stages.prompts import CUE
from sherl_cache.storage import Store
from sherl_cache.storage.errors import DataError, InvalidInput

SETTINGS = ("--set", "data.batch_examples=16", "--set", "train.learning_rate=1e-2", "--epochs", 3)
LONGER = ("--set", "data.batch_examples=8", "--set", "late.learning_rate=1e-2", "--set", "train.learning_rate=1e-2")
SCRIPT = """
import json, sys
from sherl_cache import SherlModel

model = SherlModel.from_pretrained(sys.argv[1])
answers = model.predict(sys.argv[2:])
print(json.dumps([[answer.label, answer.scored, answer.probabilities] for answer in answers]))
"""


def rows_of(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run on a store in float32, scored and exported."""
    root = tmp_path_factory.mktemp("continuation")
    model = tiny_causal(root / "model", "llama", num_key_value_heads=2, language_model=True)
    files = (
        "--data",
        write_csv(root / "train.csv", 96),
        "--validation",
        write_csv(root / "validation.csv", 40, seed=1),
    )
    words = ("--model", model, *files, "--answers", "text", "--encoding", "float32")
    extracted = call("extract", *words, "--store", root / "cache")
    trained = call("train", "--store", root / "cache", "--run", root / "run", *LONGER, "--epochs", 14)
    scored = call("eval", "--run", root / "run", "--num-beams", 2)
    call("export", "--run", root / "run", "--out", root / "exported")
    return {"root": root, "words": words, "extracted": extracted, "trained": trained, "scored": scored}


def test_store_holds_prompt_and_answer_with_every_candidate_in_validation_alone(job: dict[str, Any]) -> None:
    """Oracle: the tokenizer on each text, cue and answer. A training row has the right answer alone: the others would bring
    the rows of its text again and nobody reads them."""
    store = Store.open(job["root"] / "cache")
    tokenizer = AutoTokenizer.from_pretrained(job["root"] / "model")
    for split, candidates in (("train", None), ("validation", ["negative", "positive"])):
        rows = rows_of(job["root"] / f"{split}.csv")
        table = store.examples(split)
        lengths, first = table.lengths["decoder"], 0
        for example, source in enumerate(table.column("source_id").to_pylist()):
            text, label = rows[int(source)]
            prompt = len(tokenizer(text + CUE).input_ids)
            answers = [label] if candidates is None else candidates
            expected = [prompt + len(tokenizer(f" {answer}").input_ids) for answer in answers]  # the end is not read
            count = int(lengths.counts[example])
            assert lengths.values[first : first + count].tolist() == expected
            assert int(table.gold[example]) == (0 if candidates is None else candidates.index(label))
            first += count


def test_training_learns_from_the_tokens_of_the_right_answer_alone(job: dict[str, Any]) -> None:
    """Oracle: the library's loss with labels of -100 before the answer, of the untouched model on the raw texts."""
    root = job["root"]
    recipe = load_recipe("last", ["late.mode=full", "data.batch_examples=8", "train.device=cpu"])
    training = Training.of(recipe, Store.open(root / "cache"))
    model = AutoModelForCausalLM.from_pretrained(root / "model").eval()
    tokenizer, rows = AutoTokenizer.from_pretrained(root / "model"), rows_of(root / "train.csv")
    sources = training.store.examples("train").column("source_id").to_pylist()
    stream = training.batches.stream
    batch = next(stream.epoch(0))
    examples = batch.examples.tolist()
    part = training.batches.convert(batch)
    loss = training.objective.of_the_head()(training.model(part.inputs, part.select, part.segments), part.targets)
    total, count = 0.0, 0
    for example in examples:
        text, label = rows[int(sources[example])]
        prompt, answer = tokenizer(text + CUE).input_ids, [*tokenizer(f" {label}").input_ids, tokenizer.eos_token_id]
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum").detach())
        count += len(answer)
    assert int(loss.weight) == count
    assert float(loss.sum.detach()) == pytest.approx(total, rel=1e-4)


def test_live_label_scoring_equals_that_of_the_store_and_answers_are_generated(job: dict[str, Any]) -> None:
    root, trained, scored = job["root"], job["trained"], job["scored"]
    assert scored["label_scoring"] == pytest.approx(trained["best"], abs=1e-12)
    assert (trained["metric"], scored["metric"], scored["examples"]) == ("accuracy", "accuracy", 40)
    assert scored["outside_label_set"] < 1, "it learns to write answers of the set"
    table = pq.read_table(root / "run" / "predictions.parquet").to_pydict()
    rows = rows_of(root / "validation.csv")
    model = SherlModel.from_pretrained(root / "run")
    answers = model.predict([rows[int(row)][0] for row in table["source_id"]])
    assert [answer.scored for answer in answers] == table["prediction"]
    assert len(set(table["prediction"])) == 2, "answers that are all the same would show little"
    assert all(sum(answer.probabilities or ()) == pytest.approx(1) for answer in answers)
    told = call("predict", "--run", root / "run", rows[0][0], rows[1][0])
    assert [item["label"] for item in told] == [answer.label for answer in model.predict([rows[0][0], rows[1][0]])]


@pytest.mark.slow
def test_export_answers_the_same_in_a_fresh_process(job: dict[str, Any]) -> None:
    import json

    texts = [text for text, _ in rows_of(job["root"] / "validation.csv")[:3]]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(job["root"] / "exported"), *texts],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = SherlModel.from_pretrained(job["root"] / "run").predict(texts)
    assert json.loads(done.stdout.splitlines()[-1]) == [
        [answer.label, answer.scored, list(answer.probabilities or ())] for answer in here
    ]
    config = json.loads((job["root"] / "exported" / "adapter_config.json").read_text())
    assert (config["task_type"], config["base"]["answers"]) == ("CAUSAL_LM", "text")


def test_python_object_reads_texts_with_their_answers_as_the_library_does(job: dict[str, Any]) -> None:
    """Logits at every token, labels of -100 before the answer; wherever the padding lies. Generation goes on behind."""
    model = SherlModel.from_pretrained(job["root"] / "run")
    prompts = model.tokenize(["the film is good", "the plot is dull and the cast is cold"])
    end = int(model.tokenizer.eos_token_id)
    rows = [row[kept.bool()].tolist() for row, kept in zip(*prompts.values(), strict=True)]
    answers = [[*model.tokenizer(" positive").input_ids, end], [*model.tokenizer(" negative").input_ids, end]]
    length = max(len(row) + len(answer) for row, answer in zip(rows, answers, strict=True)) + 2
    found = {}
    for side in ("right", "left"):
        ids, mask, labels = (torch.full((2, length), fill) for fill in (0, 0, -100))
        for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            first = 0 if side == "right" else length - len(row) - len(answer)
            inside = slice(first, first + len(row) + len(answer))
            ids[place, inside], mask[place, inside] = torch.tensor([*row, *answer]), 1
            labels[place, first + len(row) : inside.stop] = torch.tensor(answer)
        with torch.no_grad():
            found[side] = model(ids, mask, labels=labels), mask, labels
    right, mask, labels = found["right"]
    assert right.logits.shape == (2, length, model.config.vocab_size)
    shifted = torch.nn.functional.cross_entropy(right.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(right.loss, shifted)
    left, left_mask, _ = found["left"]
    torch.testing.assert_close(left.logits[left_mask.bool()], right.logits[mask.bool()], rtol=0, atol=1e-5)
    torch.testing.assert_close(left.loss, right.loss)
    generated = model.generate(**prompts, max_new_tokens=10)
    assert [text.strip() for text in model.tokenizer.batch_decode(generated, skip_special_tokens=True)] == [
        str(answer.label).strip()
        for answer in model.predict(["the film is good", "the plot is dull and the cast is cold"])
    ]
    with pytest.raises(InvalidInput, match="answers behind its input"):
        model(ids, mask, decoder_input_ids=ids)


def test_store_dataset_serves_the_right_answers_rows(job: dict[str, Any]) -> None:
    from sherl_cache.pipeline.trained import open_trained
    from sherl_cache.pipeline.training import stage_two

    store = Store.open(job["root"] / "cache")
    recipe = open_trained(job["root"] / "run").recipe
    model = stage_two(recipe, store.producer, lambda name: store.file(f"weights/{name}"))
    item = next(iter(StoreDataset.for_model(job["root"] / "cache", model, batch_examples=8)))
    assert (
        item["select"].sum()
        == len(item["targets"].tokens)
        == model(item["inputs"], item["select"], item["segments"]).shape[0]
    )
    assert item["segments"].tolist() == [1] * 8
    reads = {"decoder": (3,)}
    with pytest.raises(DataError, match="would read the answer"):
        next(
            iter(StoreDataset(job["root"] / "cache", reads, output="classes", exit_stream="decoder", batch_examples=8))
        )


def test_weights_that_stay_on_disk_give_the_same_store(job: dict[str, Any], tmp_path: Path) -> None:
    streamed = call("extract", *job["words"], "--store", tmp_path / "cache", "--stream-weights")
    assert streamed["digest"] == job["extracted"]["digest"]


def test_what_does_not_fit_is_refused(job: dict[str, Any], tmp_path: Path) -> None:
    root, words = job["root"], job["words"]
    refused = call("train", "--store", root / "cache", "--set", "head.name=classifier", code=3)
    assert "would read the answers, which stand in the store behind their texts" in refused
    assert "positions for 1" in call("extract", *words, "--store", tmp_path / "a", "--max-length", 128, code=3)
    encoder = ("--model", tiny_bert(tmp_path / "bert"), *words[2:])
    assert "answers text: bert does not" in call("extract", *encoder, "--store", tmp_path / "b", code=3)
    by_head = [word for word in words if word not in ("--answers", "text")]
    assert "text.form" in call("extract", *by_head, "--store", root / "cache", code=4)


def write_scores(path: Path, rows: int, seed: int = 0) -> Path:
    drawn = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(rows):
            score = drawn.integers(0, 11) / 2
            writer.writerow([f"the film is {'good' if score > 2.5 else 'bad'}", "" if drawn.random() < 0.1 else score])
    return path


def test_open_set_trains_on_scores_as_text_and_is_scored_by_generation(tmp_path: Path) -> None:
    """Validation is a loss; a row without label has no segment, in training and in validation."""
    files = (
        "--data",
        write_scores(tmp_path / "train.csv", 64),
        "--validation",
        write_scores(tmp_path / "v.csv", 20, 1),
    )
    model = tiny_causal(tmp_path / "model")
    call("extract", "--model", model, *files, "--answers", "text", "--store", tmp_path / "cache")
    trained = call("train", "--store", tmp_path / "cache", "--run", tmp_path / "run", *SETTINGS)
    assert (trained["metric"], trained["best"] < 0) == ("loss", False)
    table = Store.open(tmp_path / "cache").examples("validation")
    assert table.lengths["decoder"].counts.tolist() == [int(label == label) for label in table.label.tolist()]
    scored = call("eval", "--run", tmp_path / "run")
    assert scored["metric"] == "pearson_spearman"
    assert scored["examples"] == int((~np.isnan(table.label)).sum())
    label = call("predict", "--run", tmp_path / "run", "the film is good")[0]["label"]
    assert isinstance(label, float)
