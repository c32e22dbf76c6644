"""Chunks that are asked for together: every one once, neighbours of one shard only, no more than asked."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sherl_cache.storage.readers.memory import MemoryFiles
from sherl_cache.storage.readers.remote import RemoteFiles
from sherl_cache.storage.runs import run_bytes, runs

REMOTE = RemoteFiles("s3", "bucket", "")  # nothing is asked of it


@given(st.lists(st.integers(0, 60), unique=True), st.integers(1, 64), st.integers(1, 9))
def test_runs_are_all_groups_in_neighbours_of_one_shard(groups: list[int], per_unit: int, most: int) -> None:
    found = runs(groups, per_unit, most)
    assert sorted(place for run in found for place in run) == list(range(len(groups)))
    for run in found:
        held = [groups[place] for place in run]
        assert held == list(range(held[0], held[0] + len(held)))
        assert len({group // per_unit for group in held}) == 1
        assert len(held) <= most
    for one, other in pairwise(found):  # none could have been longer
        last, first = groups[one[-1]], groups[other[0]]
        assert len(one) == most or first != last + 1 or first // per_unit != last // per_unit


@given(st.integers(1, 1 << 24), st.integers(1, 1 << 34), st.integers(1, 32))
def test_runs_take_an_eighth_of_the_budget_or_a_chunk_each(chunk: int, budget: int, threads: int) -> None:
    assert run_bytes(MemoryFiles("x"), chunk, budget, threads) == chunk
    bytes_ = run_bytes(REMOTE, chunk, budget, threads)
    assert bytes_ == chunk or chunk < bytes_ <= min(8 << 20, budget // (16 * threads))
