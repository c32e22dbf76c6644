"""Pictures through the command line on a tiny vision transformer: extract, train, eval, predict; grow, repair, refuse."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from cli import call
from PIL import Image
from reviews_csv import write_csv
from tiny_pictures import SIDE, picture, png, tiny_clip, tiny_deit, tiny_dinov2, tiny_vit, write_class_folders
from transformers import AutoImageProcessor, AutoModel

from sherl_cache.stages.sources import open_source
from sherl_cache.storage import Store, decode

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]
SETTINGS = ("--set", "data.batch_examples=16", "--set", "train.learning_rate=3e-3", "--epochs", 1)
SMALL = ("--encoding", "float32", "--set", "extract.chunk_bytes=2KiB", "--unit-memory", "64KiB")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a set of folders, a store of two views and a run on it."""
    root = tmp_path_factory.mktemp("pictures")
    tiny_vit(root / "model")
    write_class_folders(root / "set" / "train", {"blue": 12, "green": 10, "red": 14})
    write_class_folders(root / "set" / "validation", {"blue": 4, "green": 4, "red": 4}, seed=1)
    extract(root, root / "store", "--views", 2)
    train = ("train", "--store", root / "store", "--run", root / "run", *SETTINGS)
    jsonschema.validate(call(*train), SCHEMAS["train"])
    return root


def extract(place: Path, store: Path, *more: object, data: object = None, model: object = None, code: int = 0) -> Any:
    words = ("--model", model or place / "model", "--data", data or place / "set", "--store", store)
    result = call("extract", *words, *SMALL, *more, code=code)
    if code == 0:
        jsonschema.validate(result, SCHEMAS["extract"])
    return result


def states(store: Store, split: str, tap: int) -> dict[tuple[str, int], np.ndarray]:
    """Rows of every example by its source and its view."""
    table = store.examples(split)
    height = store.stream_plan(split, "encoder").chunk_rows
    offsets, lengths = table.offsets("encoder"), table.lengths["encoder"].values
    calibration = store.calibration(split, "encoder")
    channels = None if calibration is None else calibration.tap(tap)
    keys = zip(table.column("source_id").to_pylist(), table.column("view").to_pylist(), strict=True)
    found = {}
    for example, key in enumerate(keys):
        group, row = divmod(int(offsets[example]), height)
        chunk = decode(store.chunk(split, "encoder", tap, group), store.encoding, channels)
        found[key] = chunk[row : row + lengths[example]]
    return found


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
def test_stored_states_equal_the_models_own_of_the_processed_picture(place: Path, tmp_path: Path, family: str) -> None:
    """Oracle: the library's model and processor, one picture at a time."""
    make = {"vit": tiny_vit, "deit": tiny_deit, "dinov2": tiny_dinov2}[family]
    folder = make(tmp_path / "model")
    extract(place, tmp_path / "store", model=folder)
    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    store, source = Store.open(tmp_path / "store"), open_source(str(place / "set"))
    assert store.verify(deep=True) == []
    found = {tap: states(store, "train", tap) for tap in (0, 3)}
    for number in (0, 7, 35):
        (shown,) = source.take("train", "image", [number])
        pixels = processor(images=Image.open(shown.name), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model(pixels, output_hidden_states=True).hidden_states
        for tap, rows in found.items():
            np.testing.assert_allclose(rows[str(number), 0], expected[tap][0], atol=1e-5)


def test_first_of_several_views_equals_the_store_of_one(place: Path, tmp_path: Path) -> None:
    extract(place, tmp_path / "one")
    one, two = Store.open(tmp_path / "one"), Store.open(place / "store")
    assert {split: plan.examples for split, plan in two.plan.splits.items()} == {"train": 72, "validation": 12}
    for tap in (0, 3):
        single, double = states(one, "train", tap), states(two, "train", tap)
        assert {source for source, _ in single} == {source for source, _ in double}
        changed = 0
        for source, _ in single:
            np.testing.assert_allclose(double[source, 0], single[source, 0], atol=1e-6)
            changed += not np.allclose(double[source, 1], single[source, 0], atol=1e-2)
        assert changed > 30
    table = two.examples("train")
    assert table.column("group_id").to_pylist() == table.column("source_id").to_pylist()
    labels = dict(zip(table.column("source_id").to_pylist(), table.label.tolist(), strict=True))
    ids = table.column("source_id").to_pylist()
    assert [labels[source] for source in ids] == table.label.tolist()
    assert one.examples("train").column("group_id").null_count == 36


def test_live_score_equals_the_score_from_the_store_and_comes_out_again(place: Path) -> None:
    live = call("eval", "--run", place / "run")
    jsonschema.validate(live, SCHEMAS["eval"])
    best = call("train", "--store", place / "store", "--run", place / "run", *SETTINGS)["best"]
    assert live["value"] == pytest.approx(best, abs=1e-12)
    assert live["examples"] == 12
    assert call("eval", "--run", place / "run") == live


def test_predict_answers_files_and_folders_alike(place: Path, tmp_path: Path) -> None:
    files = [
        place / "set" / "validation" / label / f"{n:03}.png" for n in range(4) for label in ("blue", "green", "red")
    ]
    answers = call("predict", "--run", place / "run", *files)
    jsonschema.validate(answers, SCHEMAS["predict"])
    assert [answer["text"] for answer in answers] == [str(path) for path in files]
    shutil.copytree(place / "set" / "validation", tmp_path / "asked")
    again = call("predict", "--run", place / "run", "--data", tmp_path / "asked")
    assert [answer["label"] for answer in again] == [answer["label"] for answer in answers]
    right = [Path(answer["text"]).parent.name == answer["label"] for answer in answers]
    assert np.mean(right) == pytest.approx(call("eval", "--run", place / "run")["value"])


def test_a_store_of_pictures_grows_by_examples(place: Path, tmp_path: Path) -> None:
    few = extract(place, tmp_path / "store", "--limit", 20, "--views", 2)
    assert few["examples"] == 40 + 12
    before = states(Store.open(tmp_path / "store"), "train", 3)
    more = extract(place, tmp_path / "store", "--limit", 36, "--views", 2)
    assert more["examples"] == 72 + 12
    store = Store.open(tmp_path / "store")
    assert len(store.chain.plans) == 2
    after = states(store, "train", 3)
    assert all(np.array_equal(after[key], rows) for key, rows in before.items())
    for key, rows in states(Store.open(place / "store"), "train", 3).items():
        np.testing.assert_allclose(after[key], rows, atol=1e-6)
    assert extract(place, tmp_path / "store", "--limit", 36, "--views", 2)["digest"] == more["digest"]


def test_repair_makes_the_same_bytes_from_the_pictures(place: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(place / "store", tmp_path / "store"))
    shard = next(path for path in sorted(store.rglob("*")) if "/train/encoder/h03/c/" in str(path) and path.is_file())
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 4]) + whole[101:])
    assert call("repair", "--store", store)["same_digest"]
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("--views", 3), "image.views: 2 in the store, 3 asked for"),
        (("--views", 2, "--augment", "flip"), 'image.augment: "flip+crop:0.5" in the store, "flip" asked for'),
        (("--views", 2, "--set", "extract.seed=1"), "image.seed"),
    ],
)
def test_other_views_are_another_store(place: Path, change: tuple[object, ...], told: str) -> None:
    assert told in extract(place, place / "store", *change, code=4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("image_mean", [0.4, 0.5, 0.5]), ("resample", 3), ("do_rescale", False), ("rescale_factor", 1 / 128)],
)
def test_another_setting_of_the_processor_is_another_store(
    place: Path, tmp_path: Path, setting: str, value: object
) -> None:
    model = Path(shutil.copytree(place / "model", tmp_path / "model"))
    file = model / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), setting: value}))
    told = extract(place, place / "store", "--views", 2, model=model, code=4)
    assert f"image.processor.{setting}: " in told


def test_another_picture_is_other_data(place: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(place / "set", tmp_path / "set"))
    assert extract(place, tmp_path / "same", "--views", 2)["digest"] == Store.open(place / "store").digest
    (data / "train" / "red" / "003.png").write_bytes(png(picture(5)))
    assert "data.train" in extract(place, place / "store", "--views", 2, data=data, code=4)


def test_digits_train_from_the_command_line(place: Path, tmp_path: Path) -> None:
    extracted = extract(place, tmp_path / "store", "--limit", 120, "--augment", "crop:0.8", data="builtin/digits")
    assert extracted["tokens"] == extracted["examples"] * 5 == (120 + 359) * 5
    trained = call("train", "--store", tmp_path / "store", "--run", tmp_path / "run", *SETTINGS)
    live = call("eval", "--run", tmp_path / "run")
    assert live["value"] == pytest.approx(trained["best"], abs=1e-12)
    assert not live["synthetic"]
    (tmp_path / "seven.png").write_bytes(png(Image.new("L", (30, 20), 200)))
    (answer,) = call("predict", "--run", tmp_path / "run", tmp_path / "seven.png")
    assert answer["label"] in list("0123456789")


@pytest.mark.parametrize("data", ["pictures", "texts"])
def test_either_of_two_towers_serves_data_that_only_it_reads(place: Path, tmp_path: Path, data: str) -> None:
    model = tiny_clip(tmp_path / "model")
    given = {"pictures": place / "set", "texts": write_csv(tmp_path / "train.csv", 40)}[data]
    more = () if data == "pictures" else ("--splits", "holdout:10")
    extracted = extract(place, tmp_path / "store", *more, data=given, model=model)
    assert set(extracted["taps"]) == {"vision" if data == "pictures" else "text"}
    trained = call("train", "--store", tmp_path / "store", "--run", tmp_path / "run", *SETTINGS)
    assert call("eval", "--run", tmp_path / "run")["value"] == pytest.approx(trained["best"], abs=1e-12)
    files = [path.read_bytes() for path in (tmp_path / "store").rglob("*.safetensors")]
    assert not any((b"text_model" if data == "pictures" else b"vision_model") in content for content in files)


def test_the_bill_counts_patches(place: Path, tmp_path: Path) -> None:
    words = ("--model", place / "model", "--data", place / "set", "--store", tmp_path / "store", *SMALL)
    bill = call("plan", *words)
    jsonschema.validate(bill, SCHEMAS["plan"])
    assert bill["tokens"] == {"encoder": (36 + 12) * 5}


def test_int8_is_calibrated_to_pictures(place: Path, tmp_path: Path) -> None:
    """Oracle: the states of the float32 store."""
    extract(place, tmp_path / "store", "--encoding", "int8", "--limit", 12)
    exact = states(Store.open(place / "store"), "validation", 2)
    found = states(Store.open(tmp_path / "store"), "validation", 2)
    spread = np.concatenate(list(exact.values())).std()
    assert set(found) == set(exact)
    for key, rows in exact.items():
        np.testing.assert_allclose(found[key], rows, atol=0.1 * spread)


def damaged(place: Path, folder: Path, data: bytes) -> Path:
    copy = Path(shutil.copytree(place / "set", folder))
    (copy / "train" / "green" / "003.png").write_bytes(data)
    return copy


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"text", "cannot be decoded as a picture"), (b"", "empty"), (png(picture(1))[:200], "truncated")],
)
def test_a_bad_file_is_named(place: Path, tmp_path: Path, data: bytes, said: str) -> None:
    told = extract(place, tmp_path / "store", data=damaged(place, tmp_path / "set", data), code=3)
    assert "green/003.png" in told
    assert said in told


def test_what_does_not_fit_pictures_is_refused(place: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert "which are not cut" in extract(place, store, "--max-length", 8, code=3)
    assert "'turn' is not known" in extract(place, store, "--augment", "turn", code=3)
    assert "no column of split 'train' holds pictures" in extract(place, store, data="builtin/reviews", code=3)
    assert "reads text, and the model reads pictures" in extract(place, store, "--task", "sst2", code=3)
    wide = tiny_vit(tmp_path / "wide", processor={"size": {"height": 32, "width": 32}})
    assert f"32 x 32 pixels and this vit model takes {SIDE} x {SIDE}" in extract(place, store, model=wide, code=3)
    ragged = tiny_vit(tmp_path / "ragged", processor={"size": {"shortest_edge": SIDE}})
    assert "pictures of different sizes" in extract(place, store, model=ragged, code=3)
    bare = Path(shutil.copytree(place / "model", tmp_path / "bare"))
    (bare / "preprocessor_config.json").unlink()
    assert "the image processor of the model" in extract(place, store, model=bare, code=3)
    assert not store.exists()


def test_a_picture_that_changes_between_plan_and_forward_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sherl_cache.pipeline import extracting

    data = Path(shutil.copytree(place / "set", tmp_path / "set"))
    create = extracting.create_writer

    def change(root: Path, prepared: Any) -> Any:
        (data / "train" / "red" / "001.png").write_bytes(png(picture(9)))
        return create(root, prepared)

    monkeypatch.setattr(extracting, "create_writer", change)
    told = extract(place, tmp_path / "store", data=data, code=3)
    assert "red/001.png: the picture has changed since the store was planned" in told
