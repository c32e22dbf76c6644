"""The data of the storage benchmark, and the peers that need nothing but what is installed here."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sherl_cache.storage import Store, decode

ROOT = Path(__file__).resolve().parents[2]
BYTES = 6 << 20


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.storage import data, disk
        from benchmarks.storage.peers import comparison
        from benchmarks.storage.row import Scale
    finally:
        sys.path.remove(str(ROOT))
    return {"data": data, "disk": disk, "peers": comparison, "quick": Scale(quick=True)}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def store(modules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Store:
    return modules["data"].build(tmp_path_factory.mktemp("data") / "store", BYTES, unit_memory=2 << 20)


def test_lengths_have_the_mean_of_the_phrases_they_are_drawn_from(modules: dict[str, Any]) -> None:
    counts = np.asarray(modules["data"].SST2_LENGTHS)
    assert counts.sum() == 67349
    drawn = modules["data"].draw_lengths(2000 * 13, row_bytes=1, seed=3)
    mean = (counts * np.arange(len(counts))).sum() / counts.sum()
    assert abs(drawn.mean() - mean) < 1
    assert drawn.min() >= 3


def test_every_token_of_every_tap_has_the_number_that_the_builder_says(modules: dict[str, Any], store: Store) -> None:
    data = modules["data"]
    base = np.random.default_rng(0).standard_normal((data._BASE_ROWS, data.WIDTH), dtype=np.float32)
    table = store.examples(data.SPLIT)
    lengths = table.lengths[data.STREAM].values.astype(np.int64)
    firsts = np.cumsum(lengths) - lengths
    height = store.split(data.SPLIT).streams[data.STREAM].chunk_rows
    groups = np.searchsorted(table.first_examples, np.arange(len(table)), side="right") - 1
    for tap in (0, 12):
        for example, group in enumerate(groups):
            start = int(table.offsets(data.STREAM)[example]) - int(group) * height
            chunk = store.chunk(data.SPLIT, data.STREAM, tap, int(group))[start : start + lengths[example]]
            expected = base[data.value_rows(tap, np.arange(firsts[example], firsts[example] + lengths[example]))]
            np.testing.assert_allclose(decode(chunk, store.encoding), expected, rtol=2**-8)


@pytest.mark.parametrize("script", ["memmap", "zarr"])
def test_a_peer_delivers_what_is_stored_and_a_false_sum_is_met(
    modules: dict[str, Any], store: Store, tmp_path: Path, script: str
) -> None:
    peers = modules["peers"]
    job = replace(peers.prepare(store, tmp_path, modules["quick"]), pass_seconds=60)
    sums = peers.example_sums(job)
    environment = peers.Environment(tmp_path, (), python=sys.executable)
    peer = peers.Peer(script, script, ())
    found = environment.run(peer, job)
    assert found["checked_examples"] == store.split("train").examples
    assert found["bytes"] == job.flat.stat().st_size
    peers.check(found, job, sums, peer)
    with pytest.raises(RuntimeError, match="add up to"):
        peers.check(found | {"checked_sum": found["checked_sum"] + 1}, job, sums, peer)


def test_a_file_put_out_of_the_page_cache_is_not_resident_and_a_file_just_read_is(
    modules: dict[str, Any], tmp_path: Path
) -> None:
    disk = modules["disk"]
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    disk.read_through([path], 1)
    assert disk.resident_share([path]) == 1
    disk.forget([path])
    if disk.resident_share([path]):
        pytest.skip("this file system does not let go of its pages")
    disk.read_through([path], 2)
    assert disk.resident_share([path]) == 1
