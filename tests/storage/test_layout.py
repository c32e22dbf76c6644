"""Packing, checked against its definition: each example once, whole, in one chunk."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sherl_cache.storage import PackedSplit, Ragged, plan_split
from sherl_cache.storage.errors import DataError, InvalidInput
from sherl_cache.storage.order import BatchSize, EpochOrder, permutation
from sherl_cache.storage.ragged import cumulative


@st.composite
def splits(draw: st.DrawFn) -> tuple[dict[str, Ragged], PackedSplit]:
    count = draw(st.integers(1, 120))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    lengths = {}
    for stream in draw(st.sampled_from([["encoder"], ["encoder", "decoder"], ["a", "b", "c"]])):
        segments = rng.integers(0 if stream == "b" else 1, draw(st.integers(2, 5)), count)
        lengths[stream] = Ragged(rng.integers(0, draw(st.integers(2, 70)), int(segments.sum())), segments)
    packed = plan_split(
        lengths,
        widths=dict.fromkeys(lengths, draw(st.sampled_from([1, 3, 16]))),
        itemsize=2,
        taps=dict.fromkeys(lengths, (0, 1)),
        seed=draw(st.integers(0, 3)),
        chunk_bytes=draw(st.sampled_from([(64, 256), (256, 1024), (1 << 20, 4 << 20)])),
        unit_memory=draw(st.sampled_from([1, 4096, 1 << 29])),
    )
    return lengths, packed


@given(splits())
@settings(deadline=None)
def test_each_example_lies_once_whole_in_one_chunk(case: tuple[dict[str, Ragged], PackedSplit]) -> None:
    lengths, packed = case
    assert sorted(packed.order.tolist()) == list(range(len(packed.order)))
    assert packed.group_examples.min() >= 1
    assert packed.group_examples.sum() == len(packed.order)
    group_of = np.repeat(np.arange(len(packed.group_examples)), packed.group_examples)
    for stream, source in lengths.items():
        found = packed.streams[stream]
        starts, source_starts = found.lengths.starts(), source.starts()
        end_of_last = 0
        for place, example in enumerate(packed.order):
            mine = found.lengths.values[starts[place] : starts[place + 1]].tolist()
            assert mine == source.values[source_starts[example] : source_starts[example + 1]].tolist()
            offsets = found.offsets[starts[place] : starts[place + 1]].tolist()
            for offset, length in zip(offsets, mine, strict=True):
                assert offset >= end_of_last
                assert offset >= group_of[place] * found.chunk_rows
                assert offset + length <= (group_of[place] + 1) * found.chunk_rows
                end_of_last = offset + length
            for (one, length), (other, _) in itertools.pairwise(zip(offsets, mine, strict=True)):
                assert one + length == other
        rows = len(packed.group_examples) * found.chunk_rows
        assert found.fill_rows == rows - int(source.values.sum())


@given(splits())
@settings(deadline=None)
def test_units_cover_the_groups_in_order(case: tuple[dict[str, Ragged], PackedSplit]) -> None:
    _, packed = case
    assert 1 <= packed.groups_per_unit <= 64
    units = packed.units()
    assert [unit.index for unit in units] == list(range(len(units)))
    groups = list(itertools.chain(*[range(u.first_group, u.first_group + u.groups) for u in units]))
    assert groups == list(range(len(packed.group_examples)))
    firsts = cumulative(packed.group_examples)
    for unit in units:
        assert unit.first_example == firsts[unit.first_group]
        assert unit.examples == firsts[unit.first_group + unit.groups] - unit.first_example
    assert [unit.examples for unit in units] == packed.unit_examples


def sentences(count: int) -> dict[str, Ragged]:
    """Lengths like those of short sentences, with two label texts each."""
    rng = np.random.default_rng(3)
    encoder = np.clip(rng.lognormal(3.0, 0.55, count), 3, 128).astype(np.int32)
    decoder = rng.integers(2, 4, 2 * count).astype(np.int32)
    return {
        "encoder": Ragged(encoder, np.ones(count, np.int32)),
        "decoder": Ragged(decoder, np.full(count, 2, np.int32)),
    }


@pytest.mark.parametrize("streams", [["encoder"], ["encoder", "decoder"]])
def test_fill_is_below_three_percent_at_scale(streams: list[str]) -> None:
    lengths = {name: ragged for name, ragged in sentences(60_000).items() if name in streams}
    packed = plan_split(
        lengths,
        widths=dict.fromkeys(streams, 768),
        itemsize=2,
        taps={"encoder": range(13), "decoder": range(12)},
    )
    bytes_of = {name: 768 * 2 * len(packed.streams[name].taps) for name in streams}
    fill = sum(packed.fill_rows[name] * bytes_of[name] for name in streams)
    held = sum(packed.streams[name].tokens * bytes_of[name] for name in streams)
    assert fill / (fill + held) < 0.03
    height = packed.streams["encoder"].chunk_rows
    assert height & (height - 1) == 0
    assert (1 << 20) <= height * 768 * 2 <= (4 << 20)


def test_a_small_split_still_has_groups_to_permute() -> None:
    packed = plan_split(
        {"encoder": sentences(2_000)["encoder"]}, widths={"encoder": 768}, itemsize=2, taps={"encoder": range(13)}
    )
    assert len(packed.group_examples) >= 12


def test_order_follows_seed_and_split_name_only() -> None:
    arguments = {"widths": {"encoder": 4}, "itemsize": 4, "taps": {"encoder": (0,)}}
    lengths = {"encoder": sentences(300)["encoder"]}
    one = plan_split(lengths, **arguments)
    assert np.array_equal(one.order, plan_split(lengths, **arguments, unit_memory=1).order)
    for other in (plan_split(lengths, **arguments, seed=1), plan_split(lengths, **arguments, split="test")):
        assert not np.array_equal(one.order, other.order)
        assert one.order_key != other.order_key
    assert one.order_key != plan_split(lengths, **arguments, source_key="x").order_key


def test_permutation_is_fixed_for_ever() -> None:
    assert permutation(8, "written order", "train", 0).tolist() == [0, 6, 3, 7, 1, 5, 4, 2]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5), st.booleans())
def test_an_epoch_visits_each_example_once_block_by_block(groups: int, window: int, epoch: int, shuffle: bool) -> None:
    firsts = cumulative(np.random.default_rng(groups).integers(1, 9, groups))
    order = EpochOrder(
        np.arange(groups),
        firsts,
        lambda some: np.ones(0),
        batch=BatchSize(examples=3),
        order_key="k",
        seed=0,
        epoch=epoch,
        window=window,
        shuffle=shuffle,
    )
    seen = []
    for number in range(len(order)):
        block = order.block(number)
        assert order.starts[number] == len(seen)
        held = np.concatenate([np.arange(firsts[g], firsts[g + 1]) for g in block.groups])
        assert sorted(held) == sorted(block.examples)
        seen += block.examples.tolist()
    assert sorted(seen) == list(range(firsts[-1]))
    assert shuffle or seen == sorted(seen)


def test_what_cannot_be_packed_is_refused() -> None:
    one = {"encoder": Ragged(np.ones(2, np.int32), np.ones(2, np.int32))}
    arguments = {"widths": {"encoder": 4}, "itemsize": 4, "taps": {"encoder": (0,)}}
    with pytest.raises(DataError, match="holds no examples"):
        plan_split({"encoder": Ragged(np.zeros(0, int), np.zeros(0, int))}, **arguments)
    with pytest.raises(InvalidInput, match="differ in their number"):
        plan_split({**one, "b": Ragged(np.ones(1, int), np.ones(1, int))}, **arguments)
    with pytest.raises(InvalidInput, match="width"):
        plan_split({"other": one["encoder"]}, **arguments)
    with pytest.raises(InvalidInput, match="sum to 3"):
        Ragged(np.ones(2, int), np.asarray([3]))
