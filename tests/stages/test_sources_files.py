"""Local files as a source, against the rows that were written into them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sherl_cache.stages.sources import open_source
from sherl_cache.stages.sources.contract import BATCH_ROWS, Source
from sherl_cache.stages.tasks import task_for
from sherl_cache.storage.errors import AccessDenied, DataError

Row = dict[str, Any]
ROWS: list[Row] = [
    {"text": 'he said "no"', "label": 0},
    {"text": "a, b and c", "label": 1},
    {"text": "café, naïve", "label": 1},
    {"text": "", "label": 0},
]


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_tsv(path: Path, rows: list[Row]) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(str(value) for value in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def write_parquet(path: Path, rows: list[Row]) -> None:
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[Path, list[Row]], None]] = {
    "csv": write_csv,
    "tsv": write_tsv,
    "json": write_json,
    "jsonl": write_json,
    "parquet": write_parquet,
}


def read(source: Source, split: str, *columns: str) -> list[tuple[Any, ...]]:
    batches = list(source.batches(split, columns))
    assert all(0 < len(batch[columns[0]]) <= BATCH_ROWS for batch in batches)
    return [row for batch in batches for row in zip(*(batch[column] for column in columns), strict=True)]


@pytest.mark.parametrize("suffix", WRITERS)
def test_rows_come_back_as_written_and_can_be_read_twice(suffix: str, tmp_path: Path) -> None:
    train, validation = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    WRITERS[suffix](train, ROWS * 600)
    WRITERS[suffix](validation, ROWS)
    source = open_source(str(train), validation=str(validation))
    text = suffix in ("csv", "tsv")
    written = [(row["text"], str(row["label"]) if text else row["label"]) for row in ROWS]
    assert source.splits == ("train", "validation")
    assert source.columns("train") == ("text", "label")
    assert source.rows("train") == 2400
    assert read(source, "train", "text", "label") == written * 600
    assert read(source, "train", "text", "label") == written * 600
    assert read(source, "validation", "label", "text") == [row[::-1] for row in written]


def test_one_file_alone_is_training_data(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ROWS)
    assert open_source(str(tmp_path / "a.csv")).splits == ("train",)


FIELD = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=8))
def test_csv_agrees_with_the_standard_library(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    assert read(open_source(str(path)), "train", "text", "label") == rows


# --- folders of GLUE files -------------------------------------------------------------------------------------


def folder(root: Path, **files: str) -> str:
    for name, content in files.items():
        (root / f"{name}.tsv").write_text(content, "utf-8")
    return str(root)


def test_cola_has_no_header_and_four_columns(tmp_path: Path) -> None:
    data = folder(tmp_path, train='x1\t1\t\tShe said "hi.\nx1\t0\t*\tHi said she.\n', dev="x1\t1\t\tFine.\n")
    source = open_source(data, task="cola")
    assert read(source, "train", "sentence", "label") == [('She said "hi.', "1"), ("Hi said she.", "0")]
    assert source.rows("validation") == 1


def test_mrpc_has_a_byte_order_mark_and_plain_quotes(tmp_path: Path) -> None:
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    data = folder(tmp_path, train=header + '1\t7\t8\tHe said " no .\t" No , " he said .\n')
    source = open_source(data, task="mrpc")
    assert source.splits == ("train",)
    assert read(source, "train", "sentence1", "sentence2", "label") == [('He said " no .', '" No , " he said .', "1")]


def test_mnli_has_two_validation_files(tmp_path: Path) -> None:
    rows = "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n"
    source = open_source(folder(tmp_path, train=rows, dev_matched=rows, dev_mismatched=rows), task="mnli")
    assert source.splits == ("train", "validation_matched", "validation_mismatched")
    assert read(source, "validation_mismatched", "premise", "hypothesis", "label") == [("a", "b", "neutral")]


def test_a_folder_without_its_columns_is_refused(tmp_path: Path) -> None:
    data = folder(tmp_path, train="sentense\tlabel\nfine\t1\n")
    with pytest.raises(DataError, match=r"no column 'sentence'.*it has label"):
        open_source(data, task="sst2")


def test_a_folder_needs_its_task_and_its_files(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("x", "utf-8")
    with pytest.raises(DataError, match="--task sst2"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match=r"none of train\.tsv, dev\.tsv is there.*readme\.md"):
        open_source(str(tmp_path), task="sst2")
    with pytest.raises(DataError, match="did you mean sst2"):
        open_source(str(tmp_path), task="sst-2")


# --- a folder of the library datasets ----------------------------------------------------------------------------


@pytest.mark.parametrize("single", [True, False])
def test_a_saved_data_set_gives_its_rows_and_class_names(single: bool, tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)
    saved = rows if single else datasets.DatasetDict({"train": rows, "validation": rows})
    saved.save_to_disk(str(tmp_path / "saved"))
    source = open_source(str(tmp_path / "saved"))
    assert source.splits == (("train",) if single else ("train", "validation"))
    assert read(source, "train", "text", "label") == [("a", 0), ("b", 1), ("c", 1)]
    assert task_for(None, source).labels == ("no", "yes")


# --- what cannot be read ----------------------------------------------------------------------------------------


def read_all(path: Path) -> None:
    source = open_source(str(path))
    read(source, "train", *source.columns("train"))


def refused(path: Path, match: str, error: type[Exception] = DataError) -> None:
    with pytest.raises(error, match=match):
        read_all(path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_empty_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"none.{suffix}"
    path.touch()
    refused(path, "the file is empty")


def test_a_header_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n", "utf-8")
    refused(tmp_path / "a.csv", "has no rows")
    pa.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "has no rows")


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write_csv(tmp_path / "reviews.csv", ROWS)
    refused(tmp_path / "review.csv", r"review\.csv: no such file or folder \(did you mean reviews\.csv\?\)")
    refused(tmp_path / "not" / "there.csv", "no folder")


def test_a_missing_column_names_the_nearest_and_all(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ROWS)
    source = open_source(str(tmp_path / "a.csv"))
    with pytest.raises(DataError, match=r"no column 'txt' \(did you mean text\?\); it has text, label"):
        next(source.batches("train", ["txt"]))
    with pytest.raises(DataError, match="no split 'test'"):
        source.rows("test")


def test_other_unreadable_files_are_refused(tmp_path: Path) -> None:
    cases = {
        "a.xlsx": (b"x", "unknown format '.xlsx'"),
        "ragged.csv": (b"text,label\na,1\nb,1,2\n", r"ragged\.csv: cannot be read.*Expected 2 columns, got 3"),
        "latin.csv": ("text,label\ncaf\xe9,1\n".encode("latin-1"), "UTF8"),
        "latin.jsonl": ('{"text": "caf\xe9"}\n'.encode("latin-1"), "not UTF-8 text"),
        "twice.csv": (b"text,text\na,1\n", "column 'text' is there more than once"),
        "array.json": (b'[\n{"text": "a"}\n]\n', "line 1 is not JSON"),
        "number.json": (b"3\n", "line 1 is no JSON object"),
        "broken.parquet": (b"PAR1 and nothing else", r"broken\.parquet: cannot be read"),
    }
    for name, (content, match) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, match)


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the system's refusal is raised where the file is opened."""
    path = tmp_path / "a.jsonl"
    write_json(path, ROWS)

    def no(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", no)
    refused(path, "refuses to read", AccessDenied)


def test_names_that_mean_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="is no data"):
        open_source("nothing at all")
    with pytest.raises(DataError, match=r"did you mean builtin/reviews\?"):
        open_source("builtin/review")
    with pytest.raises(DataError, match="brings its own splits"):
        open_source("builtin/reviews", validation="x.csv")
