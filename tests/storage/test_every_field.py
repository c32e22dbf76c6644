"""Every field of a plan, found by reflection, is flipped: its class says what a writer then does, and the writer does it."""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import growth_builders as cases
import pytest

from benchmarks.storage.small import BLOBS
from sherl_cache.storage import FileRecord, Plan, StoreWriter, keys
from sherl_cache.storage.documents import Document
from sherl_cache.storage.errors import StoreStale
from sherl_cache.storage.ledger import read_chain
from sherl_cache.storage.readers.local import LocalFiles
from sherl_cache.storage.stale import PLAN_CLASSES, compare, differences

BLOB = next(iter(BLOBS))
LONGER_BLOB = {BLOB: BLOBS[BLOB] + b"."}
OTHER_BLOB = {BLOB: BLOBS[BLOB][::-1]}


def documents(annotation: Any) -> Iterator[type[Document]]:
    """Document classes within the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, Document):
        yield annotation
    for inner in get_args(annotation):
        yield from documents(inner)


def leaves(kind: type[Document], here: str = "") -> Iterator[str]:
    """Every field of a document that holds no document itself, and those of the documents in it: `splits.parts.examples`."""
    for name, info in kind.model_fields.items():
        held = list(documents(info.annotation))
        yield from (leaf for inner in held for leaf in leaves(inner, f"{here}{name}."))
        if not held:
            yield f"{here}{name}"


@dataclass(frozen=True)
class Flip:
    """Other value at a place of a stored plan; `shown` is the field as messages name it, "" where it is not compared."""

    leaf: str
    path: tuple[str | int, ...]
    value: Any
    shown: str = ""
    blobs: Mapping[str, bytes] = field(default_factory=lambda: BLOBS)
    base: str = "grown"


def changed(tree: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """A plan with `value`, or what `value` makes of what is there, at a path."""
    if not path:
        return value(tree) if callable(value) else value
    first, *rest = path
    if isinstance(tree, Document):
        return tree.model_copy(update={first: changed(getattr(tree, str(first)), tuple(rest), value)})
    if isinstance(tree, tuple):
        return (*tree[:first], changed(tree[first], tuple(rest), value), *tree[first + 1 :])
    return {**tree, first: changed(tree.get(first), tuple(rest), value)}


def more(count: int) -> int:
    return count + 1


TRAIN, PART, ENCODER = ("splits", "train"), ("splits", "train", "parts", 0), ("splits", "train", "streams", "encoder")
CALIBRATION = (*ENCODER, "calibration")
FLIPS = [
    Flip("format", ("format",), 2, "format"),
    Flip("features", ("features",), ("zstd",)),
    Flip("encoding", ("encoding",), "float16", "encoding"),
    Flip("identity", ("identity", "model.weights"), "other", "model.weights"),
    Flip("identity", ("identity", "text.new"), 1, "text.new"),
    Flip("identity", ("identity", "data.train"), "other", "data.train"),
    Flip("producer", ("producer", "task"), {"kind": "other"}, "producer.task"),
    Flip("environment", ("environment", "numpy"), "0", "environment.numpy"),
    Flip("files.bytes", ("files", BLOB, "bytes"), more, f"files.{BLOB}.bytes", LONGER_BLOB),
    Flip("files.sha256", ("files", BLOB, "sha256"), "0" * 64, f"files.{BLOB}.sha256", OTHER_BLOB),
    Flip("metadata.bytes", ("metadata", "zarr.json", "bytes"), more),
    Flip("metadata.sha256", ("metadata", "zarr.json", "sha256"), "0" * 64),
    Flip("extends", ("extends",), "0" * 64),
    Flip("splits.examples", (*TRAIN, "examples"), more, "splits.train.examples"),
    Flip("splits.groups", (*TRAIN, "groups"), more, "splits.train.groups"),
    Flip("splits.groups_per_unit", (*TRAIN, "groups_per_unit"), more, "splits.train.groups_per_unit"),
    Flip("splits.group_examples", (*TRAIN, "group_examples", 0), more, "splits.train.group_examples"),
    Flip("splits.order_key", (*TRAIN, "order_key"), "other", "splits.train.order_key"),
    Flip("splits.table.bytes", (*TRAIN, "table", "bytes"), more),
    Flip("splits.table.sha256", (*TRAIN, "table", "sha256"), "0" * 64),
    Flip("splits.parts.first_group", (*PART, "first_group"), more, "splits.train.parts.2.first_group"),
    Flip("splits.parts.examples", (*PART, "examples"), more, "splits.train.parts.2.examples"),
    Flip("splits.parts.order_key", (*PART, "order_key"), "other", "splits.train.parts.2.order_key"),
    Flip("splits.parts.table.bytes", (*PART, "table", "bytes"), more),
    Flip("splits.parts.table.sha256", (*PART, "table", "sha256"), "0" * 64),
    Flip(
        "splits.parts.content_keys",
        (*PART, "content_keys", "encoder"),
        "other",
        "splits.train.parts.2.encoder.content_keys",
    ),
    Flip("splits.streams.width", (*ENCODER, "width"), more, "splits.train.encoder.width"),
    Flip("splits.streams.widths", (*ENCODER, "widths"), (7, 8), "splits.train.encoder.widths"),
    Flip("splits.streams.chunk_rows", (*ENCODER, "chunk_rows"), more, "splits.train.encoder.chunk_rows"),
    Flip("splits.streams.tokens", (*ENCODER, "tokens"), more),
    Flip("splits.streams.segments", (*ENCODER, "segments"), more),
    Flip("splits.streams.longest", (*ENCODER, "longest"), more),
    Flip("splits.streams.content_key", (*ENCODER, "content_key"), "other", "splits.train.encoder.content_key"),
    Flip(
        "splits.streams.calibration.file",
        (*CALIBRATION, "file"),
        "calibration/other.json",
        "splits.train.encoder.calibration.file",
        base="int8",
    ),
    Flip(
        "splits.streams.calibration.outliers",
        (*CALIBRATION, "outliers"),
        more,
        "splits.train.encoder.calibration.outliers",
        base="int8",
    ),
]
ADDED_OR_LESS = {"splits.streams.taps"}
"""A flip is growth, or less of what is there: never another store; see the tests of those."""


@pytest.fixture(scope="module")
def roots(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("fields")
    cases.BEGUN.build(place / "grown")
    cases.LONGER.build(place / "grown")
    builders.Case(encoding="int8", examples={"train": 20}, taps={"encoder": (0,)}, widths={"encoder": 8}).build(
        place / "int8"
    )
    return {"grown": place / "grown", "int8": place / "int8"}


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def records(blobs: Mapping[str, bytes]) -> dict[str, FileRecord]:
    return {path: FileRecord(bytes=len(data), sha256=keys.digest_bytes(data)) for path, data in blobs.items()}


def stored_plan(root: Path) -> Plan:
    return read_chain(LocalFiles(root)).head


def ask(root: Path, plan: Plan, blobs: Mapping[str, bytes]) -> StoreWriter:
    """Ask for a plan as extract does; its tables are there already, or are those of EVERYTHING."""
    known = cases.EVERYTHING.tables()
    unread = {table.name: known.get(table.name, lambda file: None) for table in plan.tables()}
    return StoreWriter.create(root, plan, blobs, unread)


def test_every_field_of_every_document_of_a_plan_has_a_class_and_a_flip() -> None:
    assert set(leaves(Plan)) == set(PLAN_CLASSES) == {flip.leaf for flip in FLIPS} | ADDED_OR_LESS


@pytest.mark.parametrize("flip", FLIPS, ids=lambda flip: "/".join(map(str, flip.path)))
def test_a_flipped_field_is_refused_exactly_when_its_class_says_so(roots: dict[str, Path], flip: Flip) -> None:
    root = roots[flip.base]
    stored, before = stored_plan(root), content(root)
    asked = changed(stored, flip.path, flip.value)
    assert asked != stored
    meaning = PLAN_CLASSES[flip.leaf]
    told = [item for item in compare(stored, asked, asked.files) if item.differs]
    assert [(item.field, item.meaning) for item in told] == ([(flip.shown, meaning)] if flip.shown else [])
    assert [item.refused for item in told] == [meaning != "recorded"] * len(told)
    assert len(differences(stored, asked, asked.files)) == (meaning != "recorded")
    blobs = (
        flip.blobs if flip.base == "grown" else {path: (root / "sherl" / path).read_bytes() for path in stored.files}
    )
    if meaning == "recorded":
        writer = ask(root, asked, blobs)
        assert writer.missing() == []
        assert writer.plan == stored
        noted = [line for line in writer.warnings if line.startswith(f"{flip.path[-1]}: ")]
        assert len(noted) == len(writer.warnings) == (flip.leaf == "environment")
    else:
        with pytest.raises(StoreStale, match=re.escape(f"{flip.shown}: ")):
            ask(root, asked, blobs)
    assert content(root) == before


@pytest.mark.parametrize("taps", [(0,), (2,), (0, 1, 2, 3), (1,)])
def test_other_taps_are_less_or_growth_and_never_another_store(
    roots: dict[str, Path], tmp_path: Path, taps: tuple[int, ...]
) -> None:
    root = Path(shutil.copytree(roots["grown"], tmp_path / "store"))
    stored, before = stored_plan(root), content(root)
    asked = changed(stored, (*ENCODER, "taps"), taps)
    told = [item for item in compare(stored, asked, stored.files) if item.differs]
    assert [(item.field, item.meaning, item.refused) for item in told] == [
        ("splits.train.encoder.taps", "numbers", False)
    ]
    writer = ask(root, asked, BLOBS)
    new = set(taps) - {0, 2}
    assert {tap for unit in writer.missing() for tap in writer.lacking(unit)["encoder"]} == new
    after = content(root)
    assert {path for path, data in after.items() if before.get(path) != data} <= {"sherl/plan-3.json"}
    assert ("sherl/plan-3.json" in after) == bool(new)


def test_taps_that_an_int8_store_is_not_calibrated_for_are_another_store(roots: dict[str, Path]) -> None:
    stored = stored_plan(roots["int8"])
    asked = changed(stored, (*ENCODER, "taps"), (0, 1))
    assert ["calibrated for its own taps only" in line for line in differences(stored, asked, stored.files)] == [True]


@pytest.mark.parametrize("step", ["wider", "everything"])
def test_what_is_added_differs_and_is_not_refused(roots: dict[str, Path], tmp_path: Path, step: str) -> None:
    root = Path(shutil.copytree(roots["grown"], tmp_path / "store"))
    stored = stored_plan(root)
    asked = replace(cases.STEPS[step], parts={"train": (40, 25, 9), "validation": (12,)}).plan()
    told = [item for item in compare(stored, asked, records(BLOBS)) if item.differs]
    assert {"data.train", "data.validation", "splits.train.parts.3.order_key", "splits.validation.examples"} <= {
        item.field for item in told
    }
    assert not any(item.refused for item in told)
    assert {unit.split for unit in ask(root, asked, BLOBS).missing()} == {"train", "validation"}


@pytest.mark.parametrize("name", ["train.late", "train.2.x", "a.b"])
def test_a_split_may_have_dots_in_its_name(name: str) -> None:
    stored = cases.BEGUN.plan()
    split = stored.splits["train"]
    named = stored.model_copy(update={"splits": {name: split}})
    assert differences(named, named, {}) == []
    other = changed(named, ("splits", name, "order_key"), "other")
    assert differences(named, other, {}) == [
        f'splits.{name}.order_key: {keys.shown(split.order_key)} in the store, "other" asked for'
    ]
    assert differences(named, stored.model_copy(update={"splits": {name: split, "more": split}}), {}) == []
