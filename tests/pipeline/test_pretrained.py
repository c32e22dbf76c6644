"""SherlModel and the exported folder: the same answers in a fresh process without the store, and what is refused."""

import itertools
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cli import call
from live_oracle import live_decoder, live_encoder, redraw
from loopback_hub import LoopbackHub
from model_cases import redraw_norms
from PIL import Image
from reviews_csv import write_csv
from safetensors.torch import load_file, save_file
from tiny import tiny_bert, tiny_causal, tiny_t5
from tiny_pictures import tiny_vit

from sherl_cache import SherlModel
from sherl_cache.stages.tokens import TokenBatch
from sherl_cache.storage.errors import InvalidInput, ModelError, RecipeError, StoreCorrupt, StoreStale, UsageError

TEXTS = (
    "the film is good",
    "the plot is dull and the cast is cold",
    "a",
    "this comedy is charming and the music is nice",
)


LORA = ("--set", "tuner.name=lora", "--set", "late.mode=null")


@pytest.fixture(scope="module", params=["bert", "t5"])
def job(request, tmp_path_factory) -> dict[str, Any]:
    """A run that was trained, scored and exported; its store is gone."""
    root = tmp_path_factory.mktemp(request.param)
    model = redraw_norms({"bert": tiny_bert, "t5": tiny_t5}[request.param](root / "model"))
    data, validation = write_csv(root / "train.csv", 64), write_csv(root / "validation.csv", 20, seed=1)
    files = ("--data", data, "--validation", validation, "--encoding", "float32")
    call("extract", "--model", model, *files, "--store", root / "cache")
    settings = ("--epochs", 1, "--set", "data.batch_examples=8")
    trained = call("train", "--store", root / "cache", "--run", root / "run", *settings)
    call("train", "--store", root / "cache", "--run", root / "last", "--config", "last", *settings, "--seed", 3, *LORA)
    shutil.rmtree(root / "cache")
    scored = call("eval", "--run", root / "run")
    exported = call("export", "--run", root / "run", "--out", root / "exported")
    return {"root": root, "family": request.param, "trained": trained, "scored": scored, "exported": exported}


def arguments(model: SherlModel) -> dict[str, torch.Tensor]:
    """Some texts, and for a decoder an answer to each, ragged."""
    given = model.tokenize(TEXTS)
    if model.can_generate():
        given["labels"] = torch.tensor([[5, 9, 7, 1], [8, 1, -100, -100], [1, -100, -100, -100], [6, 7, 1, -100]])
    return given


def logits(model: SherlModel, **given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(**(given or arguments(model))).logits
    assert found is not None
    return found


SCRIPT = """
import sys
from safetensors.torch import save_file, load_file
from sherl_cache import SherlModel

model = SherlModel.from_pretrained(sys.argv[1])
save_file({"logits": model(**load_file(sys.argv[2])).logits.detach()}, sys.argv[3])
print([answer.label for answer in model.predict(["the film is good"])])
"""


@pytest.mark.parametrize("place", ["hub", pytest.param("folder", marks=pytest.mark.slow)])
def test_fresh_process_without_the_store_gives_bit_equal_logits(job, place: str, tmp_path) -> None:
    """Both the export and the pretrained model from a hub; or from folders."""
    if (place == "hub") == (job["family"] == "t5"):
        pytest.skip("a process is dear: one family comes from the hub, the other from a folder")
    model = SherlModel.from_pretrained(job["root"] / "run")
    save_file(arguments(model), tmp_path / "given")
    name: object = job["root"] / "exported"
    with LoopbackHub() as hub:
        if place == "hub":
            call("export", "--run", job["root"] / "run", "--out", tmp_path / "served", "--base-model", "owner/base")
            hub.add_model("owner/base", job["root"] / "model")
            hub.add_model("owner/reviews", tmp_path / "served")
            name = "owner/reviews"
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(name), str(tmp_path / "given"), str(tmp_path / "found")],
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert (place == "hub") == any("owner/reviews" in request for request in hub.requests)
        assert not any("README" in request for request in hub.requests), "the card is not fetched"
    assert torch.equal(load_file(tmp_path / "found")["logits"], logits(model))
    assert done.stdout.splitlines()[-1] == str([model.predict(["the film is good"])[0].label])


def test_logits_equal_the_models_own_forward_with_hooks(job) -> None:
    """Oracle: tests/live_oracle.py, which uses none of our code; every trained parameter redrawn."""
    model = SherlModel.from_pretrained(job["root"] / "exported")
    redraw(model.stage_two, seed=4)
    given = arguments(model)
    ids = [row[mask.bool()].tolist() for row, mask in zip(given["input_ids"], given["attention_mask"], strict=True)]
    if job["family"] == "bert":
        expected = live_encoder(job["root"] / "model", model.stage_two, TokenBatch(ids), torch.float32).output
        found = logits(model, **given)
    else:
        answers = [[row[row >= 0].tolist()] for row in given["labels"]]
        batch = TokenBatch(ids, None, answers)
        expected = live_decoder(job["root"] / "model", model.stage_two, batch, torch.float32).output
        found = logits(model, **given)[given["labels"] >= 0]
    expected = expected.detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def test_where_padding_lies_changes_nothing(job) -> None:
    model = SherlModel.from_pretrained(job["root"] / "run")
    given = arguments(model)
    lengths = given["attention_mask"].sum(1)
    turned = {
        name: torch.stack([row.roll(-int(length)) for row, length in zip(values, lengths, strict=True)])
        if name != "labels"
        else values
        for name, values in given.items()
    }
    assert turned["attention_mask"][0, -1] == 1, "padded on the left now"
    assert torch.equal(logits(model, **turned), logits(model, **given))


def test_loss_is_that_of_transformers(job) -> None:
    model = SherlModel.from_pretrained(job["root"] / "run")
    given = arguments(model)
    if not model.can_generate():
        given["labels"] = torch.tensor([1, 0, -100, 1])
    output = model(**given)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, -2), given["labels"].flatten())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {f"stage_two.{name}" for name in model.stage_two.trained_parameters()}


def test_predictions_are_those_of_the_command(job) -> None:
    model = SherlModel.from_pretrained(job["root"] / "exported")
    found = model.predict(TEXTS, batch_examples=2)
    for folder in ("run", "exported"):
        answers = call("predict", "--run", job["root"] / folder, *TEXTS, "--batch-examples", 2)
        assert [(item.label, item.score) for item in found] == [(item["label"], item["score"]) for item in answers]
    for answer in found:
        assert answer.probabilities is not None
        assert sum(answer.probabilities) == pytest.approx(1.0)
        if job["family"] == "bert":
            assert answer.label == ("negative", "positive")[answer.probabilities.index(max(answer.probabilities))]
    assert call("eval", "--run", job["root"] / "exported")["value"] == job["scored"]["value"]


def test_pipeline_of_transformers_answers_as_predict_does(job, caplog) -> None:
    if job["family"] != "bert":
        pytest.skip("transformers 5 has no text2text pipeline")
    model = SherlModel.from_pretrained(job["root"] / "exported")
    texts = [*TEXTS, " and ".join(["the film is good"] * 60)]
    transformers_log = logging.getLogger("transformers")
    transformers_log.addHandler(caplog.handler)
    try:
        classify = transformers.pipeline("text-classification", model=model, tokenizer=model.tokenizer, device="cpu")
        answers = classify(model.formatted(texts), truncation=True)
        every = classify(texts[0], truncation=True, top_k=None)
    finally:
        transformers_log.removeHandler(caplog.handler)
    assert "not supported" not in caplog.text
    expected = model.predict(texts)
    assert [answer["label"] for answer in answers] == [answer.label for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([answer.score for answer in expected], rel=1e-5)
    assert sorted(item["score"] for item in every) == pytest.approx(sorted(expected[0].probabilities or ()), rel=1e-5)


@pytest.mark.parametrize("form", ["template", "pair"])
def test_pipeline_is_given_texts_in_the_form_that_was_trained_with(form: str, tmp_path) -> None:
    """A causal decoder with GLUE's template; an encoder with pairs."""
    model = {"template": tiny_causal, "pair": tiny_bert}[form](tmp_path / "model")
    columns = {"template": ["sentence"], "pair": ["sentence1", "sentence2"]}[form]
    with (tmp_path / "train.csv").open("w") as file:
        file.write(",".join([*columns, "label"]) + "\n")
        for row in range(24):
            file.write(",".join([f"the film {row} is good" for _ in columns] + [str(row % 2)]) + "\n")
    task = {"template": "sst2", "pair": "rte"}[form]
    shutil.copyfile(tmp_path / "train.csv", tmp_path / "validation.csv")
    files = ("--data", tmp_path / "train.csv", "--validation", tmp_path / "validation.csv", "--task", task)
    call("extract", "--model", model, *files, "--store", tmp_path / "cache")
    call("train", "--store", tmp_path / "cache", "--run", tmp_path / "run", "--epochs", 1)
    found = SherlModel.from_pretrained(tmp_path / "run")
    texts = [tuple([text] * len(columns)) for text in TEXTS]
    classify = transformers.pipeline("text-classification", model=found, tokenizer=found.tokenizer, device="cpu")
    answers = [classify(text, truncation=True) for text in found.formatted(texts)]
    answers = [answer[0] if isinstance(answer, list) else answer for answer in answers]
    expected = found.predict(texts)
    assert [answer["label"] for answer in answers] == [answer.label for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([answer.score for answer in expected], rel=1e-5)


def test_pictures_are_answered_in_a_pipeline_as_predict_does(tmp_path) -> None:
    model = tiny_vit(tmp_path / "model")
    digits = ("--data", "builtin/digits", "--limit", 40, "--encoding", "float32")
    call("extract", "--model", model, *digits, "--store", tmp_path / "cache", "--stream-weights")
    call("train", "--store", tmp_path / "cache", "--run", tmp_path / "run", "--epochs", 1)
    call("export", "--run", tmp_path / "run", "--out", tmp_path / "exported")
    found = SherlModel.from_pretrained(tmp_path / "exported")
    files = []
    for number in range(3):
        files.append(str(tmp_path / f"{number}.png"))
        Image.effect_noise((8, 8), 60.0 * (number + 1)).convert("RGB").save(files[-1])
    expected = found.predict(files)
    likelihood = logits(found, **found.tokenize(files)).double().softmax(1)
    assert [answer.probabilities for answer in expected] == [tuple(row) for row in likelihood.tolist()]
    classify = transformers.pipeline(
        "image-classification", model=found, image_processor=found.image_processor, device="cpu"
    )
    answers = [classify(file)[0] for file in files]
    assert [answer["label"] for answer in answers] == [answer.label for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([answer.score for answer in expected], rel=1e-4)
    with pytest.raises(InvalidInput, match="reads pixel_values"):
        found(input_ids=torch.ones(1, 2).long())


def test_generation_is_what_forward_says_token_by_token(job) -> None:
    model = SherlModel.from_pretrained(job["root"] / "run")
    given = model.tokenize(TEXTS)
    if job["family"] == "bert":
        with pytest.raises(RecipeError, match="language_model"):
            model.generate(**given)
        return
    redraw(model.stage_two, seed=4)
    found = model.generate(**given, max_new_tokens=5)
    for row, answer in enumerate(found.tolist()):
        alone = {
            name: values[row : row + 1, : int(given["attention_mask"][row].sum())] for name, values in given.items()
        }
        expected = [0]
        while len(expected) < 6 and expected[-1] != 1:
            step = logits(model, **alone, decoder_input_ids=torch.tensor([expected]))
            expected.append(int(step[0, -1].argmax()))
        assert answer[: len(expected)] == expected
        assert set(answer[len(expected) :]) <= {0}
    beams = model.generate(**given, max_new_tokens=5, num_beams=4)
    assert score(model, given, beams) >= score(model, given, found), "beams find no worse answers in all"
    assert not torch.equal(beams[:, : found.shape[1]], found)


def score(model: SherlModel, given: dict[str, torch.Tensor], sequences: torch.Tensor) -> float:
    """Mean log-likelihood a token of answers, by forward, summed over the rows: what beams are ranked by."""
    rows = torch.cat([sequences, torch.zeros_like(sequences[:, :1])], dim=1)
    likelihood = logits(model, **given, decoder_input_ids=rows[:, :-1]).log_softmax(-1)
    total = 0.0
    for row, answer in enumerate(rows.tolist()):
        length = answer.index(1) if 1 in answer else sequences.shape[1] - 1
        steps = [float(likelihood[row, at, answer[at + 1]]) for at in range(length)]
        total += sum(steps) / len(steps)
    return total


def test_instances_do_not_know_of_each_other(job) -> None:
    runs = [job["root"] / "run", job["root"] / "last"]
    alone = [logits(SherlModel.from_pretrained(run)) for run in runs]
    models = [SherlModel.from_pretrained(run) for run in runs]
    before = {name: value.clone() for name, value in models[0].base.state_dict().items()}
    for _, (model, expected) in itertools.product(range(2), zip(models, alone, strict=True)):
        assert torch.equal(logits(model), expected)
        model.predict(TEXTS)
    assert not torch.equal(*alone)
    assert all(torch.equal(value, before[name]) for name, value in models[0].base.state_dict().items())


def test_a_tuner_is_exported_with_the_rest(job, tmp_path) -> None:
    call("export", "--run", job["root"] / "last", "--out", tmp_path / "exported")
    model = SherlModel.from_pretrained(tmp_path / "exported")
    assert any(name.startswith("tuner.") for name in load_file(tmp_path / "exported" / "adapter_model.safetensors"))
    assert "frozen, tuner lora" in (tmp_path / "exported" / "README.md").read_text("utf-8")
    found = logits(model)
    assert torch.equal(found, logits(SherlModel.from_pretrained(job["root"] / "last")))
    with model.stage_two.without_tuner():
        assert not torch.equal(found, logits(model))


def test_save_pretrained_of_a_loaded_model_writes_the_same_folder(job, tmp_path) -> None:
    model = SherlModel.from_pretrained(job["root"] / "exported")
    model.save_pretrained(tmp_path / "again")
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (job["root"] / "exported" / name).read_bytes(), name
    stored = load_file(job["root"] / "exported" / "adapter_model.safetensors")
    assert set(stored) == set(model.stage_two.trained_parameters())


def test_scores_are_those_that_were_measured_and_go_when_the_weights_change(job, tmp_path) -> None:
    card = (job["root"] / "exported" / "README.md").read_text("utf-8")
    assert f"{job['trained']['best']:.4f}" in card
    assert f"{job['scored']['value']:.4f}" in card
    assert f"{job['trained']['trained_parameters']:,} parameters" in card
    model = SherlModel.from_pretrained(job["root"] / "exported")
    with torch.no_grad():
        next(iter(model.stage_two.trained_parameters().values())).add_(1.0)
    model.save_pretrained(tmp_path)
    assert "Not measured" in (tmp_path / "README.md").read_text("utf-8")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["result"] is None
    assert torch.equal(logits(SherlModel.from_pretrained(tmp_path)), logits(model))


def test_forward_refuses_what_it_cannot_answer(job) -> None:
    model = SherlModel.from_pretrained(job["root"] / "run")
    given = model.tokenize(TEXTS)
    with pytest.raises(UsageError, match="reads 1 texts"):
        model.predict([("one", "two")])
    if job["family"] == "bert":
        with pytest.raises(InvalidInput, match="input_ids alone"):
            model(**given, decoder_input_ids=torch.zeros(4, 1).long())
        return
    with pytest.raises(InvalidInput, match="labels or decoder_input_ids"):
        model(**given)
    with pytest.raises(InvalidInput, match="begins with the start token, 0"):
        model(**given, decoder_input_ids=torch.ones(4, 2).long())
    with pytest.raises(InvalidInput, match="one has none"):
        model(**given, labels=torch.full((4, 2), -100))


def changed(key: str, value: Any) -> Callable[[Path], None]:
    """Puts `value` at a dotted key of adapter_config.json."""

    def change(folder: Path) -> None:
        document = json.loads((folder / "adapter_config.json").read_text())
        *path, last = key.split(".")
        inner = document
        for part in path:
            inner = inner[part]
        inner[last] = value
        (folder / "adapter_config.json").write_text(json.dumps(document))

    return change


def written(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


WEIGHTS = "adapter_model.safetensors"
BROKEN: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "of peft": (changed("peft_type", "LORA"), ModelError, "type LORA"),
    "newer": (changed("format", 2), ModelError, "format 2, and this version reads 1"),
    "unknown key": (changed("modules_to_save", []), ModelError, "unknown key modules_to_save"),
    "unknown key inside": (changed("base.code", "x"), ModelError, "unknown key base.code"),
    "unknown key of the recipe": (changed("recipe.late.block", 1), RecipeError, "did you mean late.blocks"),
    "unknown fusion": (changed("recipe.fusion.name", "os.system"), RecipeError, "os.system"),
    "no digest": (changed("base.weights", "0"), ModelError, "base.weights"),
    "not JSON": (written("adapter_config.json", lambda data: data[:-9]), StoreCorrupt, "not JSON"),
    "not an object": (written("adapter_config.json", lambda data: b"[]"), StoreCorrupt, "JSON object"),
    "cut weights": (written(WEIGHTS, lambda data: data[:-1]), StoreCorrupt, "not the file"),
    "longer weights": (written(WEIGHTS, lambda data: data + b"0"), StoreCorrupt, "are expected"),
    "flipped weights": (written(WEIGHTS, lambda data: data[:-1] + bytes([data[-1] ^ 1])), StoreCorrupt, "not the file"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), StoreCorrupt, f"lacks {WEIGHTS}"),
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), UsageError, "holds no run"),
    "other recipe": (changed("recipe.late.mode", "frozen"), StoreStale, "do not fit the recipe"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_export_is_refused_with_the_reason(job, case: str, tmp_path) -> None:
    if job["family"] == "t5":
        pytest.skip("the file is of one form for all")
    folder = shutil.copytree(job["root"] / "exported", tmp_path / "exported")
    change, error, message = BROKEN[case]
    change(folder)
    with pytest.raises(error, match=message):
        SherlModel.from_pretrained(folder)


def test_other_pretrained_weights_are_refused_and_another_name_of_the_same_is_taken(job, tmp_path) -> None:
    make = {"bert": tiny_bert, "t5": tiny_t5}[job["family"]]
    other = make(tmp_path / "other", seed=1, vocab_size=400)
    with pytest.raises(StoreStale, match=r"weights [0-9a-f]{12}\.\. now.*config vocab_size 400 now"):
        SherlModel.from_pretrained(job["root"] / "exported", base=other)
    moved = shutil.copytree(job["root"] / "model", tmp_path / "moved")
    model = SherlModel.from_pretrained(job["root"] / "exported", base=moved)
    assert torch.equal(logits(model), logits(SherlModel.from_pretrained(job["root"] / "run")))


def test_export_goes_into_a_folder_of_its_own(job, tmp_path) -> None:
    run = job["root"] / "run"
    assert "holds a run" in call("export", "--run", run, "--out", run, code=2)
    assert "holds a model" in call("export", "--run", run, "--out", job["root"] / "model", code=2)
    assert "holds no run" in call("export", "--run", tmp_path, "--out", tmp_path / "out", code=2)
    unfinished = shutil.copytree(run, tmp_path / "run")
    (unfinished / "result.json").unlink()
    assert "is not finished" in call("export", "--run", unfinished, "--out", tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()
    again = call("export", "--run", run, "--out", job["root"] / "exported")
    assert again == job["exported"]
