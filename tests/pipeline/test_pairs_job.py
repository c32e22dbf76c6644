"""Pictures with captions through the command line on a tiny CLIP: extract both towers, train, eval; grow, repair, refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from captioned_pictures import write_pairs
from cli import call
from PIL import Image
from tiny_pictures import picture, png, tiny_clip, tiny_vit
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from sherl_cache.pipeline.preparing import preparing, report_data
from sherl_cache.stages.prepare import ExtractSettings
from sherl_cache.stages.sources import open_source
from sherl_cache.stages.torch_dataset import StoreDataset
from sherl_cache.storage import Store, decode
from sherl_cache.storage.errors import DataError

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]
SETTINGS = ("--set", "data.batch_examples=8", "--set", "train.learning_rate=3e-3", "--epochs", 2)
SMALL = ("--encoding", "float32", "--set", "extract.chunk_bytes=2KiB", "--unit-memory", "64KiB")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    tiny_clip(root / "model")
    write_pairs(root / "set" / "train", 24, 0)
    write_pairs(root / "set" / "validation", 10, 1)
    extract(root, root / "store")
    trained = call("train", "--store", root / "store", "--run", root / "run", *SETTINGS)
    jsonschema.validate(trained, SCHEMAS["train"])
    return root


def extract(place: Path, store: Path, *more: object, data: object = None, model: object = None, code: int = 0) -> Any:
    words = ("--model", model or place / "model", "--data", data or place / "set", "--store", store)
    result = call("extract", *words, *SMALL, *more, code=code)
    if code == 0:
        jsonschema.validate(result, SCHEMAS["extract"])
    return result


def states(store: Store, split: str, stream: str, tap: int) -> dict[str, list[np.ndarray]]:
    """Rows of every segment of an example, by the number of its row in the source."""
    table = store.examples(split)
    height = store.stream_plan(split, stream).chunk_rows
    lengths, offsets = table.lengths[stream], iter(table.offsets(stream).tolist())
    values = iter(lengths.values.tolist())
    found = {}
    for source, count in zip(table.column("source_id").to_pylist(), lengths.counts.tolist(), strict=True):
        rows = []
        for _ in range(count):
            group, row = divmod(next(offsets), height)
            rows.append(decode(store.chunk(split, stream, tap, group), store.encoding)[row : row + next(values)])
        found[source] = rows
    return found


def check(found: np.ndarray, live: torch.Tensor) -> None:
    """To rounding of float32."""
    np.testing.assert_allclose(found, live, rtol=0, atol=1e-5 * max(1.0, float(live.abs().max())))


def test_stored_states_of_both_towers_equal_the_models_own(place: Path) -> None:
    """Oracle: the library's model, processor and tokenizer, one picture and one caption at a time."""
    store, source = Store.open(place / "store"), open_source(str(place / "set"))
    assert store.verify(deep=True) == []
    model = AutoModel.from_pretrained(place / "model").eval()
    processor = AutoImageProcessor.from_pretrained(place / "model", backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    pictures = {tap: states(store, "train", "vision", tap) for tap in (0, 3)}
    captions = {tap: states(store, "train", "text", tap) for tap in (0, 4)}
    assert len(pictures[0]) == 24
    for number in (0, 5, 23):
        (shown,), (texts,) = (source.take("train", column, [number]) for column in ("image", "caption"))
        assert len(texts) == 1 + number % 3
        with torch.no_grad():
            pixels = processor(images=Image.open(shown.name), return_tensors="pt")
            expected = model.vision_model(**pixels, output_hidden_states=True).hidden_states
            for tap, found in pictures.items():
                check(found[str(number)][0], expected[tap][0])
            for place_, text in enumerate(texts):
                expected = model.text_model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
                for tap, found in captions.items():
                    check(found[str(number)][place_], expected.hidden_states[tap][0])


def test_live_score_equals_the_score_from_the_store(place: Path) -> None:
    live = call("eval", "--run", place / "run")
    jsonschema.validate(live, SCHEMAS["eval"])
    trained = call("train", "--store", place / "store", "--run", place / "run", *SETTINGS)
    assert live["metric"] == trained["metric"] == "recall"
    assert live["value"] == pytest.approx(trained["best"], abs=1e-12)
    assert live["examples"] == 10
    best = next(item for item in trained["history"] if item["epoch"] == trained["best_epoch"])
    for direction in ("first_to_second", "second_to_first"):
        for k in (1, 5, 10):
            assert live["scores"][f"{direction}_recall@{k}"] == pytest.approx(
                best[f"{direction}_recall@{k}"], abs=1e-12
            )
    ranks = pq.read_table(place / "run" / "predictions.parquet")["prediction"].to_numpy()
    assert float((ranks <= 5).mean()) == pytest.approx(live["scores"]["first_to_second_recall@5"])


@pytest.mark.parametrize(
    "recipe",
    [
        ("fusion.name=sherl", "fusion.preset=clip4clip", "fusion.bottleneck=8", "late.blocks=0"),
        ("fusion.name=last", "late.blocks=2", "tuner.name=lora"),
    ],
)
def test_other_recipes_score_live_as_from_the_store(place: Path, tmp_path: Path, recipe: tuple[str, ...]) -> None:
    settings = [word for item in recipe for word in ("--set", item)]
    trained = call("train", "--store", place / "store", "--run", tmp_path / "run", *SETTINGS, *settings)
    assert call("eval", "--run", tmp_path / "run")["value"] == pytest.approx(trained["best"], abs=1e-12)


def test_training_finds_the_colours(place: Path, tmp_path: Path) -> None:
    words = (
        "train",
        "--store",
        place / "store",
        "--run",
        tmp_path / "run",
        *SETTINGS[:-1],
        12,
        "--set",
        "fusion.name=last",
    )
    trained = call(*words)
    first, best = trained["history"][0], trained["best"]
    assert trained["history"][-1]["loss"] < first["loss"]
    assert best > first["value"]


def test_side_by_side_equals_alone(place: Path, tmp_path: Path) -> None:
    words = ("--store", place / "store", *SETTINGS, "--seeds", "0,1")
    (first, _) = call("sweep", *words, "--runs", tmp_path / "sweep")["runs"]
    alone = call("train", "--store", place / "store", "--run", tmp_path / "run", *SETTINGS)
    assert first["weights_digest"] == alone["weights_digest"]


def test_streamed_weights_give_the_same_store(place: Path, tmp_path: Path) -> None:
    streamed = extract(place, tmp_path / "streamed", "--stream-weights")
    assert streamed["digest"] == Store.open(place / "store").digest


def test_a_torch_data_set_gives_the_same_groups(place: Path) -> None:
    reads = {"vision": (3,), "text": (4,)}
    options = {"output": "pair", "exit_stream": "vision", "pair": ("vision", "text")}
    found = list(StoreDataset(place / "store", reads, split="validation", batch_examples=4, **options))
    table = Store.open(place / "store").examples("validation")
    first, second = (torch.cat([batch["targets"].groups[side] for batch in found]) for side in (0, 1))
    assert len(set(first.tolist())) == len(first) == 10
    assert (
        second.tolist()
        == first.repeat_interleave(torch.from_numpy(table.lengths["text"].counts.astype("int64"))).tolist()
    )


def test_rows_of_one_picture_belong_together_and_are_warned_of_across_splits(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same pictures as rows of one caption each: other examples, the same groups."""
    import datasets

    source = open_source(str(place / "set"))
    rows: dict[str, list[Any]] = {"image": [], "caption": []}
    for shown, texts in zip(*next(source.batches("train", ["image", "caption"])).values(), strict=True):
        for text in texts:
            rows["image"].append({"bytes": shown.read(), "path": None})
            rows["caption"].append(text)
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    extracted = extract(place, tmp_path / "store", data=tmp_path / "saved")
    table, whole = (Store.open(root).examples("train") for root in (tmp_path / "store", place / "store"))
    assert extracted["examples"] == len(rows["caption"]) == len(table) == 48
    assert set(table.column("group_id").to_pylist()) == set(whole.column("group_id").to_pylist())
    assert len(set(whole.column("group_id").to_pylist())) == len(whole) == 24

    pictures = [shown["bytes"] for shown in rows["image"]]
    held = ExtractSettings(model=str(place / "model"), data=str(tmp_path / "saved"), splits="holdout:16")
    with preparing(held, "cpu", tmp_path / "held") as prepared:
        ids = {split: prepared.rows(split, 48)["source_id"].to_pylist() for split in ("train", "validation")}
        shown = {split: [pictures[int(row)] for row in numbers] for split, numbers in ids.items()}
        both = sum(picture in shown["train"] for picture in shown["validation"])
        report_data(prepared)
    assert 0 < both < 16
    assert f"{both} of 16 validation examples show a picture that train shows too" in capsys.readouterr().err


def test_a_store_of_pairs_grows_and_repairs(place: Path, tmp_path: Path) -> None:
    few = extract(place, tmp_path / "store", "--limit", 10)
    assert few["examples"] == 10 + 10
    more = extract(place, tmp_path / "store", "--limit", 24)
    assert more["examples"] == 24 + 10
    grown, whole = Store.open(tmp_path / "store"), Store.open(place / "store")
    for stream in ("vision", "text"):
        expected = states(whole, "train", stream, 2)
        for source, rows in states(grown, "train", stream, 2).items():
            for found, right in zip(rows, expected[source], strict=True):
                check(found, torch.from_numpy(right))
    store = Path(shutil.copytree(place / "store", tmp_path / "copy"))
    shard = next(path for path in sorted(store.rglob("*")) if "/train/text/h03/c/" in str(path) and path.is_file())
    bytes_ = shard.read_bytes()
    shard.write_bytes(bytes_[:100] + bytes([bytes_[100] ^ 4]) + bytes_[101:])
    assert call("repair", "--store", store)["same_digest"]
    assert shard.read_bytes() == bytes_


def test_int8_is_calibrated_to_either_tower(place: Path, tmp_path: Path) -> None:
    extract(place, tmp_path / "store", "--encoding", "int8")
    trained = call("train", "--store", tmp_path / "store", "--run", tmp_path / "run", *SETTINGS)
    assert 0 < trained["best"] <= 1


def test_the_bill_counts_patches_and_captions(place: Path, tmp_path: Path) -> None:
    bill = call("plan", "--model", place / "model", "--data", place / "set", "--store", tmp_path / "store", *SMALL)
    jsonschema.validate(bill, SCHEMAS["plan"])
    table = Store.open(place / "store").examples
    assert bill["tokens"]["vision"] == (24 + 10) * 5
    assert bill["tokens"]["text"] == sum(
        int(table(split).lengths["text"].totals().sum()) for split in ("train", "validation")
    )


def test_captions_with_labels_stay_a_classification_and_named_columns_are_pairs(place: Path, tmp_path: Path) -> None:
    import datasets

    rows = [{"bytes": png(picture(seed)), "path": None} for seed in range(8)]
    columns = {"image": rows, "caption": ["x"] * 8, "label": ["a", "b"] * 4}
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "label": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "saved"))
    assert set(extract(place, tmp_path / "one", data=tmp_path / "saved")["taps"]) == {"vision"}
    named = ("--text-column", "caption", "--text-column", "image")
    assert set(extract(place, tmp_path / "both", *named, data=tmp_path / "saved")["taps"]) == {"vision", "text"}


def test_what_does_not_fit_pairs_is_refused(place: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert "has one view" in extract(place, store, "--views", 2, code=3)
    assert "reads no texts" in extract(place, store, model=tiny_vit(tmp_path / "vit"), code=3)
    assert "pictures with captions" in extract(place, store, "--task", "sst2", code=3)
    small = (*SETTINGS, "--set", "train.micro_batch_examples=2")
    assert "needs all of them at once" in call(
        "train", "--store", place / "store", "--run", tmp_path / "r", *small, code=3
    )
    head = (*SETTINGS, "--set", "head.name=classifier")
    chosen = (*SETTINGS, "--config", "head2toe")
    assert "and this one has none" in call(
        "train", "--store", place / "store", "--run", tmp_path / "h", *chosen, code=3
    )
    assert "one of retrieval" in call("train", "--store", place / "store", "--run", tmp_path / "r", *head, code=3)
    assert not store.exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("file,text\n001.png,x\n", "file and caption are wanted"),
        ("file,caption\n", "no rows"),
        ("file,caption\n001.png,\n", "row 1 below the header lacks"),
        ("file,caption\n,x\n", "row 1 below the header lacks"),
    ],
)
def test_a_table_that_lacks_something_is_refused(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "captions.csv").write_text(table)
    with pytest.raises(DataError, match=said):
        open_source(str(tmp_path))


def test_json_lines_and_lists_of_captions_are_read(tmp_path: Path) -> None:
    lines = [{"file_name": "b.png", "caption": ["one", "two"]}, {"file_name": "a.png", "caption": "three"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source(str(tmp_path))
    assert source.take("train", "caption", [1, 0]) == [["three"], ["one", "two"]]
    (tmp_path / "captions.csv").write_text("file,caption\nb.png,x\n")
    with pytest.raises(DataError, match="one table of captions"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"), [("gone.png", "cannot be read as a picture"), ("text.png", "cannot be decoded")]
)
def test_a_bad_picture_is_named(place: Path, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "text.png").write_bytes(b"text")
    (tmp_path / "set" / "captions.csv").write_text(f"file,caption\n{name},x\n")
    told = extract(place, tmp_path / "store", data=tmp_path / "set", code=3)
    assert name in told
    assert said in told
