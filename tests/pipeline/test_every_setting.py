"""Every setting of stage one, found by reflection, is flipped: `explain-stale` and `extract` agree with its class."""

import contextlib
import csv
import io
import json
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from cli import call
from tiny import tiny_bert, tiny_causal
from tiny_pictures import tiny_vit, write_class_folders

from sherl_cache.pipeline.cli import main
from sherl_cache.pipeline.recipe_sections import Extract
from sherl_cache.stages.explain import SETTING_CLASSES
from sherl_cache.stages.prepare import ExtractSettings

ROWS = 60
Outcome = Literal["same", "grows", "stale"]


@dataclass(frozen=True)
class Flip:
    """Another value of a setting; a `{place}` in it is the folder of the model and the data."""

    setting: str
    value: object
    outcome: Outcome
    told: str = ""
    """The field that a refusal must name."""
    store: str = "texts"
    """Which of BASES it is asked of."""


FLIPS = [
    Flip("model", "{place}/moved", "same"),
    Flip("model", "{place}/trained", "stale", "model.weights"),
    Flip("revision", "main", "same"),
    Flip("data", "{place}/moved.csv", "same"),
    Flip("data", "{place}/changed.csv", "stale", "data.train"),
    Flip("data_revision", "main", "same"),
    Flip("validation", "{place}/validation.csv", "grows"),
    Flip("task", "sst2", "stale", "text."),
    Flip("text_columns", "[other]", "stale", "data.train"),
    Flip("label_column", "kind", "stale", "data.train"),
    Flip("splits", "holdout:10", "stale", "data.train"),
    Flip("limit", 50, "grows"),
    Flip("limit", 30, "stale", "splits.train.examples"),
    Flip("taps", "0,2,3", "grows"),
    Flip("taps", "'2'", "same"),
    Flip("late", 1, "stale", "late.blocks"),
    Flip("max_length", 16, "stale", "text.max_length"),
    Flip("answers", "text", "stale", "text.form", "decoders"),
    Flip("views", 3, "stale", "image.views", "pictures"),
    Flip("augment", "flip", "stale", "image.augment", "pictures"),
    Flip("encoding", "float16", "stale", "encoding"),
    Flip("precision", "float64", "stale", "forward.precision"),
    Flip("batch_tokens", 512, "stale", "forward.batch_tokens"),
    Flip("unit_memory", "32KiB", "stale", "groups_per_unit"),
    Flip("chunk_bytes", "1KiB", "stale", "chunk_rows"),
    Flip("seed", 1, "stale", "order_key"),
    Flip("stream_weights", True, "same"),
]
ADDED_OR_LESS = {"taps"}
"""Other taps are growth, or less of what is there; of int8 stores see test_bad_input.py."""
SMALL = {"taps": "0,2", "encoding": "float32", "unit_memory": "64KiB", "chunk_bytes": "2KiB"}
BASES = {
    "texts": {"model": "{place}/model", "data": "{place}/train.csv", "limit": 40, **SMALL},
    "decoders": {"model": "{place}/decoder", "data": "{place}/train.csv", "limit": 8, **SMALL},
    "pictures": {"model": "{place}/eye", "data": "{place}/shapes", "limit": 12, "views": 2, **SMALL},
}


def write_rows(path: Path, first: int, stop: int, word: str = "film") -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label", "other", "kind"])
        for row in range(first, stop):
            text = f"the {word} was {'good' if row % 2 else 'bad'}" + " and very long" * (row % 9)
            writer.writerow([text, ("negative", "positive")[row % 2], f"another {row}", f"kind {row % 3}"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("settings")
    shutil.copytree(tiny_bert(root / "model"), root / "moved")
    tiny_bert(root / "trained", seed=1)
    write_rows(root / "train.csv", 0, ROWS)
    shutil.copyfile(root / "train.csv", root / "moved.csv")
    write_rows(root / "changed.csv", 0, ROWS, "plot")
    write_rows(root / "validation.csv", ROWS, ROWS + 10)
    tiny_vit(root / "eye")
    tiny_causal(root / "decoder")
    write_class_folders(root / "shapes", {"blue": 9, "red": 9})
    for name in BASES:
        call("extract", *words(root, name, {}), "--store", root / name)
    return root


def words(place: Path, store: str, changed: dict[str, object]) -> list[object]:
    found: list[object] = ["--set", "train.device=cpu"]
    for name, value in {**BASES[store], **changed}.items():
        found += ["--set", f"extract.{name}={str(value).format(place=place)}"]
    return found


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_setting_has_a_class_and_a_flip() -> None:
    settings = {field.name for field in fields(ExtractSettings)}
    assert settings == set(Extract.model_fields) == set(SETTING_CLASSES) == {flip.setting for flip in FLIPS}


def test_what_is_recorded_only_can_be_the_same_store_and_the_rest_can_be_another() -> None:
    for name, meaning in SETTING_CLASSES.items():
        outcomes = {flip.outcome for flip in FLIPS if flip.setting == name}
        if meaning == "recorded":
            assert outcomes - {"stale"}, name
        else:
            assert "stale" in outcomes or name in ADDED_OR_LESS, name


@pytest.mark.parametrize("flip", FLIPS, ids=lambda flip: f"{flip.setting}={flip.value}")
def test_a_flipped_setting_does_what_explain_stale_says(place: Path, tmp_path: Path, flip: Flip) -> None:
    store = Path(shutil.copytree(place / flip.store, tmp_path / "store"))
    before = content(store)
    asked = [*words(place, flip.store, {flip.setting: flip.value}), "--store", store]

    told = explained(asked, 4 if flip.outcome == "stale" else 0)
    assert told["verdict"] == flip.outcome
    fields_told: dict[str, Any] = {item["field"]: item for item in told["fields"]}
    assert len(fields_told) == len(told["fields"])
    setting = fields_told[f"extract.{flip.setting}"]
    assert setting["differs"]
    assert setting["meaning"] == SETTING_CLASSES[flip.setting]
    refused = [name for name, item in fields_told.items() if item["refused"]]
    assert bool(refused) == (flip.outcome == "stale")
    assert any(flip.told in name for name in refused) or flip.outcome != "stale", refused
    kinds = {item["meaning"] for item in fields_told.values() if item["refused"]}
    assert kinds == ({"layout"} if SETTING_CLASSES[flip.setting] == "layout" else kinds - {"recorded"})
    assert content(store) == before

    if flip.outcome == "stale":
        said = call("extract", *asked, code=4)
        assert any(f"{name}: " in said for name in refused if flip.told in name)
        assert content(store) == before
    elif flip.outcome == "same":
        assert call("extract", *asked)["bytes"] == sum(map(len, before.values()))
        assert content(store) == before
    else:
        assert call("extract", *asked)["bytes"] > sum(map(len, before.values()))
        after = content(store)
        lost = {path for path, data in before.items() if after.get(path) != data}
        assert all(os.path.basename(path) == "zarr.json" for path in lost), lost


def explained(asked: list[object], code: int) -> Any:
    """What `explain-stale` prints, whatever its exit code."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main(["explain-stale", *map(str, asked), "--json"])
    assert found == code, err.getvalue()
    return json.loads(out.getvalue())
