"""What was put into a store comes out of it: through our reader, and through zarr alone."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from places import MakeCopy

from sherl_cache.storage import ENCODINGS, Store, decode, encode, encoding
from sherl_cache.storage.errors import DataError, InvalidInput, StoreMissing

COMPOUND = ("int8", "int8+zstd:3", "bfloat16+zstd:1", "float32+bitround:6+zstd:3")


@pytest.mark.parametrize("name", [*sorted(ENCODINGS), *COMPOUND])
def test_every_row_reads_back_as_it_was_put(builders: ModuleType, copied: MakeCopy, tmp_path: Path, name: str) -> None:
    case = builders.Case(encoding=name)
    store = Store.open(copied(case.build(tmp_path / "store").root).place)
    for split in case.examples:
        for stream, taps in case.taps.items():
            rows = case.rows(split, stream)
            calibration = store.calibration(split, stream)
            for tap in taps:
                channels = None if calibration is None else calibration.tap(tap)
                groups = range(store.split(split).groups)
                whole = np.concatenate([store.chunk(split, stream, tap, group) for group in groups])
                expected, _ = encode(case.values(split, stream, tap), store.encoding, channels)
                np.testing.assert_array_equal(whole[rows], expected)
                fill = np.delete(whole, rows, axis=0)
                assert np.isnan(decode(fill, store.encoding, channels)).all()


def test_example_table_holds_what_was_written(builders: ModuleType, copied: MakeCopy, tmp_path: Path) -> None:
    case = builders.Case()
    store = Store.open(copied(case.build(tmp_path).root).place)
    for split, count in case.examples.items():
        packed, table = case.packed(split), store.examples(split)
        assert len(table) == count
        assert table.column("source_id").to_pylist() == [f"{split}/{i}" for i in packed.order]
        for stream in case.taps:
            np.testing.assert_array_equal(table.offsets(stream), packed.offsets[stream])
            np.testing.assert_array_equal(
                np.concatenate(table.column(f"{stream}_offset").to_pylist()), packed.offsets[stream]
            )
            np.testing.assert_array_equal(table.lengths[stream].values, packed.lengths[stream].values)
            np.testing.assert_array_equal(table.lengths[stream].counts, packed.lengths[stream].counts)
        np.testing.assert_array_equal(table.label, [np.nan if i % 5 == 0 else i for i in packed.order])
        units = store.split(split).units(split)
        assert [table.read_unit(unit.index).num_rows for unit in units] == [unit.examples for unit in units]
        assert table.source_ids(3, 9) == [f"{split}/{i}" for i in packed.order[3:9]]
        chosen = np.random.default_rng(0).integers(count, size=2 * count)  # some of them twice
        whole = pa.concat_tables(table.batches())
        assert table.rows(chosen).equals(whole.take(chosen))
        assert table.rows(chosen[:0]).num_rows == 0


def test_files_read_back(builders: ModuleType, copied: MakeCopy, tmp_path: Path) -> None:
    store = Store.open(copied(builders.Case().build(tmp_path).root).place)
    for path, data in builders.FILES.items():
        assert store.file(path) == data
    with pytest.raises(DataError, match=r"holds no file 'weights/x'"):
        store.file("weights/x")


def test_digest_is_the_same_for_two_stores_made_alike(builders: ModuleType, tmp_path: Path) -> None:
    one, other = builders.Case().build(tmp_path / "a"), builders.Case().build(tmp_path / "b")
    assert one.digest == other.digest
    assert one.fingerprint == other.fingerprint
    seeded = builders.Case(seed=1).build(tmp_path / "c")
    assert seeded.digest != one.digest
    assert seeded.fingerprint != one.fingerprint


STRANGER = """
import sys, numpy, zarr
root = zarr.open_group(sys.argv[1], mode="r")
found = 0
for name, array in root.members(max_depth=None):
    if isinstance(array, zarr.Array):
        numpy.save(sys.argv[2] + "/" + name.replace("/", "."), array[:])
        assert array.attrs["logical_dtype"] in ("bfloat16", "float32", "float16", "float64", "int8")
        found += 1
assert "sherl_cache" not in sys.modules
print(found)
"""


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", *COMPOUND])
def test_a_stranger_with_zarr_alone_reads_every_array(builders: ModuleType, tmp_path: Path, name: str) -> None:
    case = builders.Case(encoding=name)
    store = case.build(tmp_path / "store")
    printed = _stranger(tmp_path)
    assert int(printed) == len(list(store.plan.arrays())) == 8
    for array in store.plan.arrays():
        seen = np.load(tmp_path / f"{array.path.replace('/', '.')}.npy")
        assert seen.shape == (array.rows, array.stored_width)
        groups = range(array.split_plan.groups)
        chunks = [store.chunk(array.split, array.stream, array.tap, group) for group in groups]
        np.testing.assert_array_equal(seen, np.concatenate(chunks))


def test_unwritten_rows_of_an_unfinished_store_read_as_nan(builders: ModuleType, tmp_path: Path) -> None:
    case = builders.Case(encoding="float32")
    writer = case.create(tmp_path / "store")
    unit = writer.missing()[0]
    case.fill(writer, unit)
    _stranger(tmp_path)
    for array in writer.plan.arrays():
        seen = np.load(tmp_path / f"{array.path.replace('/', '.')}.npy")
        rows = case.rows(array.split, array.stream)
        end = unit.groups * array.stream_plan.chunk_rows if array.split == unit.split else 0
        assert np.isfinite(seen[rows[rows < end]]).all()
        assert np.isnan(seen[end:]).all()


def test_store_bytes_count_what_the_disk_holds(builders: ModuleType, copied: MakeCopy, tmp_path: Path) -> None:
    store = Store.open(copied(builders.Case().build(tmp_path).root).place)
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert store.bytes == on_disk


def test_importing_storage_loads_neither_torch_nor_dask_nor_zarr() -> None:
    probe = (
        "import sys, sherl_cache.storage as s; "
        "print(sorted(m for m in ('torch', 'dask', 'zarr', 'transformers') if m in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", probe], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_what_is_not_there_is_named(builders: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="no such folder"):
        Store.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreMissing, match="no store here"):
        Store.open(tmp_path / "empty")
    store = builders.Case().build(tmp_path / "store")
    with pytest.raises(DataError, match="h01"):
        store.chunk("train", "encoder", 1, 0)
    with pytest.raises(DataError, match="'test'"):
        store.examples("test")
    with pytest.raises(DataError, match="'vision'"):
        store.stream_plan("train", "vision")


def test_an_unknown_encoding_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"'int4'.*float16"):
        encoding("int4")


def _stranger(tmp_path: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", STRANGER, str(tmp_path / "store"), str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()
