"""Runs on pictures with captions asked for new ones: vectors, rankings, the export, and a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from captioned_pictures import write_pairs
from cli import ENVIRONMENT, call
from PIL import Image
from reviews_csv import write_csv
from safetensors import safe_open
from tiny import tiny_bert
from tiny_pictures import tiny_clip
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from sherl_cache import SherlModel
from sherl_cache.storage.errors import InvalidInput, UsageError

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]
SETTINGS = ("--set", "data.batch_examples=8", "--set", "train.learning_rate=3e-3", "--epochs", 2)
TEXTS = ("a red wall, 3", "7: blue, all of it", "something else")
SCRIPT = """
import json, sys
from sherl_cache import SherlModel

model = SherlModel.from_pretrained(sys.argv[1])
pictures, texts = model.embed(sys.argv[3:], json.loads(sys.argv[2]))
print(json.dumps([pictures.tolist(), texts.tolist()]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`: SHERL, trained; `untouched`: the model's own embeddings, since nothing moves at such a rate."""
    root = tmp_path_factory.mktemp("pairs-predict")
    words = ("--model", tiny_clip(root / "model"), "--data", write_pairs(root / "set", 12, 0), "--encoding", "float32")
    call("extract", *words, "--splits", "holdout:4", "--store", root / "store")
    call("train", "--store", root / "store", "--run", root / "run", *SETTINGS)
    still = ("--config", "last", "--epochs", 1, "--set", "late.blocks=0", "--set", "train.learning_rate=1e-30")
    call("train", "--store", root / "store", "--run", root / "untouched", *still)
    return root


def pictures_of(place: Path) -> list[Path]:
    return sorted((place / "set" / "shown").iterdir())


def test_vectors_of_the_untouched_model_equal_the_librarys_own(place: Path) -> None:
    """Oracle: image_embeds, text_embeds and logits_per_image of the library's model, one batch of both."""
    model = SherlModel.from_pretrained(place / "untouched")
    files = pictures_of(place)
    pictures, texts = model.embed(files, TEXTS, batch_examples=5)
    oracle = AutoModel.from_pretrained(place / "model").eval()
    processor = AutoImageProcessor.from_pretrained(place / "model", backend="pil")
    tokens = AutoTokenizer.from_pretrained(place / "model")(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        pixels = processor(images=[Image.open(file) for file in files], return_tensors="pt")
        expected = oracle(**tokens, **pixels)
        found = model(tokens["input_ids"], tokens["attention_mask"], pixel_values=pixels["pixel_values"])
    torch.testing.assert_close(pictures, expected.image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(texts, expected.text_embeds, rtol=0, atol=1e-5)
    scale = model.stage_two.head.log_scale.exp().detach()
    torch.testing.assert_close(found.logits / scale, expected.image_embeds @ expected.text_embeds.T, rtol=0, atol=1e-5)


def test_a_side_alone_has_the_vectors_that_it_has_in_company(place: Path) -> None:
    """In float64: how far rounding in float32 is carried hangs on the weights that training happened to find."""
    model, files = SherlModel.from_pretrained(place / "run").double(), pictures_of(place)
    both = model.embed(files, TEXTS)
    shown, nothing = model.embed([file.read_bytes() for file in files])
    said = model.embed(texts=TEXTS, batch_examples=2)[1]
    assert nothing.shape == (0, both[0].shape[1])
    torch.testing.assert_close(shown, both[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(said, both[1], rtol=0, atol=1e-6)


def test_predict_ranks_each_text_among_all_pictures_and_each_picture_among_all_texts(
    place: Path, tmp_path: Path
) -> None:
    """Oracle: products of the vectors, sorted by hand; the vectors are those of the file that is asked for."""
    files = pictures_of(place)
    words = ("predict", "--run", place / "run", "--data", place / "set" / "shown")
    found = call(*words, *TEXTS, files[3], "--top", 4, "--vectors", tmp_path / "vectors")
    jsonschema.validate(found, SCHEMAS["predict"])
    with safe_open(tmp_path / "vectors", framework="pt") as file:
        pictures, texts = file.get_tensor("pictures"), file.get_tensor("texts")
        names, said = (json.loads(file.metadata()[side]) for side in ("pictures", "texts"))
    assert said == list(TEXTS)
    assert names == [str(files[3]), *(str(path) for path in files if path != files[3])]
    assert [item["query"] for item in found] == [str(files[3]), *TEXTS]
    products = pictures @ texts.T
    for item in found:
        query, others = (
            (products[0], said) if item["query"] == str(files[3]) else (products[:, said.index(item["query"])], names)
        )
        expected = sorted(zip((-query).tolist(), range(len(others)), strict=True))[:4]
        assert [near["item"] for near in item["nearest"]] == [others[number] for _, number in expected]
        assert [near["similarity"] for near in item["nearest"]] == pytest.approx(
            [-value for value, _ in expected], abs=1e-6
        )
    assert len({near["item"] for item in found for near in item["nearest"]}) > 4


def test_without_a_query_every_picture_and_caption_of_the_data_is_one(place: Path) -> None:
    found = call("predict", "--run", place / "run", "--data", place / "set", "--top", 1)
    captions = sum(1 + number % 3 for number in range(12))
    assert len(found) == 12 + captions
    assert all(len(item["nearest"]) == 1 for item in found)
    ranked = SherlModel.from_pretrained(place / "run").rank(TEXTS, pictures_of(place), top=2)
    assert [item.query for item in ranked] == [*map(str, pictures_of(place)), *TEXTS]
    assert {len(item.nearest) for item in ranked} == {2}


@pytest.mark.slow
def test_export_gives_the_same_vectors_in_a_fresh_process(place: Path) -> None:
    exported = call("export", "--run", place / "run", "--out", place / "exported")
    jsonschema.validate(exported, SCHEMAS["export"])
    files = pictures_of(place)[:3]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place / "exported"), json.dumps(TEXTS), *map(str, files)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = SherlModel.from_pretrained(place / "run").embed(files, TEXTS)
    assert json.loads(done.stdout.splitlines()[-1]) == [vectors.tolist() for vectors in here]
    config = json.loads((place / "exported" / "adapter_config.json").read_text())
    assert config["task_type"] == "FEATURE_EXTRACTION"
    assert "model.rank(" in (place / "exported" / "README.md").read_text()


def test_what_cannot_be_compared_is_refused(place: Path, tmp_path: Path) -> None:
    run = ("predict", "--run", place / "run")
    assert "a text is ranked against pictures" in call(*run, "a wall", code=2)
    assert "a picture is ranked against texts" in call(*run, pictures_of(place)[0], code=2)
    assert "cannot be read as a picture" in call(*run, "gone.png", "a wall", code=3)
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    assert "has neither pictures nor a column of texts" in call(*run, "--data", tmp_path / "numbers.csv", code=3)
    model = SherlModel.from_pretrained(place / "run")
    with pytest.raises(UsageError, match="call rank, or embed"):
        model.predict(["a wall"])
    with pytest.raises(InvalidInput, match="give pixel_values and input_ids"):
        model(input_ids=torch.tensor([[1, 2]]))


def test_rankings_are_asked_of_such_runs_alone(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", 12)
    call("extract", "--model", tiny_bert(tmp_path / "model"), "--data", data, "--store", tmp_path / "store")
    call("train", "--store", tmp_path / "store", "--run", tmp_path / "run", "--epochs", 1)
    assert "runs on pictures with captions" in call("predict", "--run", tmp_path / "run", "a", "--top", 2, code=2)
    with pytest.raises(UsageError, match="was not trained on pictures with captions"):
        SherlModel.from_pretrained(tmp_path / "run").embed(texts=["a"])
