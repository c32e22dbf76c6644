"""A convolutional network through the command line: its stages pooled, stored with their own widths, fused, answered live."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
import torch
from cli import call
from PIL import Image
from tiny_pictures import tiny_resnet, tiny_vit, write_class_folders
from transformers import AutoImageProcessor, AutoModel

from sherl_cache import SherlModel
from sherl_cache.stages.load import load_pretrained
from sherl_cache.stages.maps import MapForm
from sherl_cache.stages.picture_inputs import PictureInputs
from sherl_cache.stages.sources import open_source
from sherl_cache.stages.tasks import task_for
from sherl_cache.storage import Store, decode

SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "json-schemas.json").read_text("utf-8"))["$defs"]
SMALL = ("--encoding", "float32", "--set", "extract.chunk_bytes=2KiB", "--unit-memory", "64KiB")
SETTINGS = ("--set", "data.batch_examples=16", "--set", "train.learning_rate=3e-3", "--epochs", 1)
IMAGE = ("--set", "fusion.preset=vse_image", "--set", "fusion.bottleneck=6", "--set", "late.blocks=0")
WIDTHS = {0: 8, 1: 8, 2: 12, 3: 20}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a set of folders, a store of all stages and a run on it."""
    root = tmp_path_factory.mktemp("maps")
    tiny_resnet(root / "model")
    write_class_folders(root / "set" / "train", {"blue": 12, "green": 10, "red": 14})
    write_class_folders(root / "set" / "validation", {"blue": 4, "green": 4, "red": 4}, seed=1)
    result = extract(root, root / "store")
    assert (result["late"], result["tokens"], result["taps"]) == (0, (36 + 12) * 4, {"encoder": [0, 1, 2, 3]})
    jsonschema.validate(
        call("train", "--store", root / "store", "--run", root / "run", *IMAGE, *SETTINGS), SCHEMAS["train"]
    )
    return root


def extract(place: Path, store: Path, *more: object, model: object = None, code: int = 0) -> Any:
    words = ("--model", model or place / "model", "--data", place / "set", "--store", store)
    result = call("extract", *words, *SMALL, *more, code=code)
    if code == 0:
        jsonschema.validate(result, SCHEMAS["extract"])
    return result


def states(store: Store, split: str, tap: int) -> dict[str, np.ndarray]:
    """Rows of every example by its source."""
    table, plan = store.examples(split), store.stream_plan(split, "encoder")
    calibration = store.calibration(split, "encoder")
    channels = None if calibration is None else calibration.tap(tap)
    found = {}
    for source, offset in zip(table.column("source_id").to_pylist(), table.offsets("encoder").tolist(), strict=True):
        group, row = divmod(offset, plan.chunk_rows)
        chunk = decode(store.chunk(split, "encoder", tap, group), store.encoding, channels)
        found[source] = chunk[row : row + plan.longest]
    return found


def test_stored_rows_equal_the_models_own_pooled_maps_of_the_processed_picture(place: Path) -> None:
    """Oracle: the library's model and processor, one picture at a time; 32 pixels give maps of 8, 8, 4 and 2 places."""
    model = AutoModel.from_pretrained(place / "model").eval()
    processor = AutoImageProcessor.from_pretrained(place / "model", backend="pil")
    store = Store.open(place / "store")
    assert store.stream_plan("train", "encoder").tap_widths == WIDTHS
    assert store.verify(deep=True) == []
    found = {tap: states(store, "train", tap) for tap in WIDTHS}
    for number, name in ((0, "blue/000"), (35, "red/013")):
        pixels = processor(images=Image.open(place / "set" / "train" / f"{name}.png"), return_tensors="pt")
        with torch.no_grad():
            maps = model(**pixels, output_hidden_states=True).hidden_states
        for tap, state in enumerate(maps):
            size = state.shape[-1] // 2
            cells = state[0].unflatten(1, (2, size)).unflatten(3, (2, size))  # [C, 2, size, 2, size]
            expected = (cells.mean((2, 4)) + cells.amax((2, 4))) / 2
            np.testing.assert_allclose(found[tap][str(number)], expected.flatten(1).T, atol=1e-5)


def test_live_score_equals_the_score_from_the_store(place: Path) -> None:
    live = call("eval", "--run", place / "run")
    best = call("train", "--store", place / "store", "--run", place / "run", *IMAGE, *SETTINGS)["best"]
    assert live["value"] == pytest.approx(best, abs=1e-12)


def test_an_exported_model_answers_pictures_as_the_run_does(place: Path, tmp_path: Path) -> None:
    files = [place / "set" / "validation" / label / "001.png" for label in ("blue", "green", "red")]
    answers = call("predict", "--run", place / "run", *files)
    call("export", "--run", place / "run", "--out", tmp_path / "exported")
    again = call("predict", "--run", tmp_path / "exported", *files)
    assert again == answers
    model = SherlModel.from_pretrained(tmp_path / "exported")
    assert [answer.label for answer in model.predict([str(path) for path in files])] == [a["label"] for a in answers]


def test_runs_of_other_fusions_side_by_side_equal_their_lone_runs(place: Path, tmp_path: Path) -> None:
    """One reads stages of one width as one array, the other all of them."""
    same = ("--set", "late.blocks=0", "--set", "train.learning_rate=1e-2", *SETTINGS[:2], "--epochs", 1)
    shared = call("sweep", "last", "unipt", "--store", place / "store", "--runs", tmp_path / "both", *same)
    for config, found in zip(("last", "unipt"), shared["runs"], strict=True):
        lone = call("train", "--store", place / "store", "--run", tmp_path / config, "--config", config, *same)
        ended = call("train", "--store", place / "store", "--run", found["run"], "--config", config, *same)
        assert ended["weights_digest"] == lone["weights_digest"]


def test_a_store_of_one_stage_grows_by_others_and_by_pictures(place: Path, tmp_path: Path) -> None:
    extract(place, tmp_path / "store", "--taps", "3", "--limit", 20)
    assert "widths" not in json.dumps(Store.open(tmp_path / "store").plan.model_dump(mode="json")["splits"])
    extract(place, tmp_path / "store", "--limit", 20)
    grown = extract(place, tmp_path / "store")
    store, whole = Store.open(tmp_path / "store"), Store.open(place / "store")
    assert len(store.chain.plans) == 3
    assert store.verify(deep=True) == []
    for tap in WIDTHS:
        expected = states(whole, "train", tap)
        for source, rows in states(store, "train", tap).items():
            np.testing.assert_allclose(rows, expected.pop(source), atol=1e-6)
        assert not expected
    assert extract(place, tmp_path / "store")["digest"] == grown["digest"]


def test_int8_and_streamed_weights_hold_the_same_states(place: Path, tmp_path: Path) -> None:
    """Oracle: the states of the float32 store."""
    extract(place, tmp_path / "int8", "--encoding", "int8")
    assert extract(place, tmp_path / "streamed", "--stream-weights")["digest"] == Store.open(place / "store").digest
    exact, found = Store.open(place / "store"), Store.open(tmp_path / "int8")
    assert found.stream_plan("train", "encoder").tap_widths == WIDTHS
    for tap in WIDTHS:
        expected = states(exact, "validation", tap)
        spread = np.concatenate(list(expected.values())).std()
        for source, rows in states(found, "validation", tap).items():
            np.testing.assert_allclose(rows, expected[source], atol=0.1 * spread)
    call("train", "--store", tmp_path / "int8", "--run", tmp_path / "run", *IMAGE, *SETTINGS)


def test_one_average_a_picture_is_a_sixteenth_of_the_rows(place: Path, tmp_path: Path) -> None:
    words = ("--model", place / "model", "--data", place / "set", "--store", tmp_path / "store", *SMALL)
    bill = call("plan", *words, "--maps", "average:1")
    jsonschema.validate(bill, SCHEMAS["plan"])
    assert bill["tokens"] == {"encoder": 36 + 12}
    extract(place, tmp_path / "store", "--maps", "average:1")
    last = states(Store.open(tmp_path / "store"), "train", 3)
    for source, rows in states(
        Store.open(place / "store"), "train", 3
    ).items():  # stored whole, so its mean is the pooler's
        np.testing.assert_allclose(last[source], rows.mean(0, keepdims=True), atol=1e-6)
    run = call("train", "--store", tmp_path / "store", "--run", tmp_path / "run", "--config", "probe", *SETTINGS)
    assert call("eval", "--run", tmp_path / "run")["value"] == pytest.approx(run["best"], abs=1e-12)


def test_what_does_not_fit_maps_is_refused(place: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert 'image.maps: "max+average" in the store, "average" asked for' in extract(
        place, place / "store", "--maps", "average", code=4
    )
    assert "at most 2" in extract(place, store, "--maps", "average:3", code=3)
    assert "maps 'mean': write max+average or average" in extract(place, store, "--maps", "mean", code=3)
    assert "late.blocks 1: no layer of this resnet model can run late" in extract(place, store, "--late", 1, code=3)
    assert "of which nothing is pooled" in extract(
        place, store, "--maps", "average", model=tiny_vit(tmp_path / "vit"), code=3
    )
    assert not store.exists()
    train = ("train", "--store", place / "store", "--run", tmp_path / "run")
    assert "set late.blocks: 0" in call(*train, code=3)
    told = call(*train, "--config", "res-tuning", code=3)
    assert "res_tuning needs taps of one width, and it reads the encoder's h00 8, h01 8, h02 12, h03 20" in told


def test_a_forward_counts_a_picture_by_its_last_map_however_little_of_it_is_stored(place: Path) -> None:
    loaded = load_pretrained(str(place / "model"))
    source = open_source(str(place / "set"))
    task = task_for(None, source, pictures=True)
    for maps, rows in (("max+average", 4), ("average:1", 1)):
        inputs = PictureInputs(loaded.pooled(MapForm.parse(maps)))
        assert inputs.max_length == rows
        assert inputs.batches(source, task).lengths(pa.table({"source_id": ["0", "1"]})).tolist() == [4, 4]
