"""The stores that could be made, each with its size and what it would cost, and which of them to make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ...storage import encoding
from ..plan import step_memory
from .choice import Costs, Machine, Rates, Work, predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...stages.preparation import Preparation
    from ..recipe import Recipe
    from .codecs import Codec
    from .measuring import Measured

ALTERNATIVES: Final = ("bfloat16", "int8", "float16")
"""Encodings that are looked at beside the one that was asked for and its compressed form."""
_NEARLY: Final = 1.1
"""An option that was asked for stays the choice where no other takes less than 1/1.1 of its time."""
_EXAMPLE_BYTES: Final = 600
"""Of tables, which the read budget covers too."""

Taps = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Here:
    """What is known of the machine."""

    contention: float
    free_disk: int | None
    free_memory: int | None


@dataclass(frozen=True)
class Option:
    """One store that could be made."""

    encoding: str
    taps: Taps
    bytes: int
    holds: bool
    """Whether the encoding held every value that was looked at."""
    fits: bool
    """Whether there is room for it on the disk."""
    machine: Machine
    costs: Costs


def encodings_beside(asked: str) -> list[str]:
    """Encodings to look at beside the one that is asked for."""
    compressed = [] if encoding(asked).compressed else [f"{asked}+zstd"]
    return [encoding(name).name for name in (*compressed, *ALTERNATIVES) if encoding(name).name != asked]


def make_options(recipe: Recipe, prepared: Preparation, measured: Measured, here: Here) -> list[Option]:
    """Every encoding that was measured, with all taps that were asked for and with those alone that the recipe reads."""
    everything: Taps = {name: tuple(taps) for name, taps in prepared.taps.items()}
    read: Taps = {name: tuple(taps) for name, taps in measured.training.reads.items()}
    choices = [everything] if read == everything else [everything, read]
    return [
        _option(recipe, prepared, measured, here, codec, taps, taps == everything)
        for codec in measured.codecs.values()
        for taps in choices
    ]


def best(options: Sequence[Option], recipe: Recipe, epochs: int, runs: int) -> Option:
    """The option to make: what was asked for, all taps before fewer, unless it does not fit or another is clearly quicker.

    int8 and float16 round in another way, so they come last. Taps that were asked for stay.
    """
    allowed = [option for option in options if option.holds] or list(options)
    if recipe.extract.taps is not None:
        allowed = [option for option in allowed if option.taps == options[0].taps]
    kin = [option for option in allowed if option.encoding.startswith(options[0].encoding)]
    for group in (kin, allowed):
        fitting = [option for option in group if option.fits]
        if fitting:
            least = min(option.costs.cached(epochs, runs) for option in fitting)
            return next(option for option in fitting if option.costs.cached(epochs, runs) <= _NEARLY * least)
    return min(allowed, key=lambda option: option.bytes)


def _option(
    recipe: Recipe,
    prepared: Preparation,
    measured: Measured,
    here: Here,
    codec: Codec,
    taps: Taps,
    everything: bool,
) -> Option:
    work = _work(recipe, prepared, measured, codec, taps, everything)
    machine = _machine(recipe, prepared, here, work)
    return Option(
        encoding=codec.name,
        taps=taps,
        bytes=work.store_bytes,
        holds=codec.fits,
        fits=here.free_disk is None or work.store_bytes <= here.free_disk,
        machine=machine,
        costs=predict(_rates(measured, codec, everything), work, machine),
    )


def _work(
    recipe: Recipe, prepared: Preparation, measured: Measured, codec: Codec, taps: Taps, everything: bool
) -> Work:
    bill, training = prepared.bill(), measured.training
    splits = prepared.plan.splits
    own = codec is next(iter(measured.codecs.values()))
    array_bytes = sum(
        # exact where it is known: another encoding, or what compression makes of this one, is told by a few states
        bill.arrays[array.path] if own and not bill.at_most else array.rows * array.width * codec.bytes
        for array in prepared.plan.arrays()
        if array.tap in taps.get(array.stream, ())
    )
    counts = {name: split.examples for name, split in splits.items()}
    beside = bill.total - sum(bill.arrays.values())
    arrays = sum(map(len, taps.values()))
    units, all_arrays = len(prepared.plan.units()), sum(map(len, prepared.taps.values()))
    train_bytes = int(counts["train"] * training.train_values * codec.bytes)
    validation = counts.get("validation", 0)
    return Work(
        tokens=prepared.input_tokens(),
        store_bytes=beside + int(array_bytes),
        unit_files=units * (arrays + 1),  # a shard of each array, and the receipt
        other_files=max(bill.file_count - units * (all_arrays + 1) - len(splits) * (all_arrays - arrays), 0),
        units=units,
        train_examples=counts["train"],
        train_bytes=train_bytes,
        validation_examples=validation,
        validation_bytes=int(validation * training.validation_values * codec.bytes),
        block_bytes=int(train_bytes * min(recipe.data.window / splits["train"].groups, 1.0)),
    )


def _machine(recipe: Recipe, prepared: Preparation, here: Here, work: Work) -> Machine:
    budget, read = int(recipe.data.read_budget), work.train_bytes + work.validation_bytes
    stays = read + _EXAMPLE_BYTES * (work.train_examples + work.validation_examples) <= budget
    several = recipe.data.window < prepared.plan.splits["train"].groups
    room = stays or 2 * work.block_bytes <= budget
    batch = work.train_bytes / work.train_examples * _batch_examples(recipe, prepared)
    held = min(read, budget) + step_memory(recipe, prepared)
    return Machine(
        contention=here.contention,
        # one block ahead, which is a part of a batch where blocks are small
        ahead=min(work.block_bytes / batch, 1.0) if recipe.data.threads > 0 and several and room else 0.0,
        stays=stays,
        page_cache=here.free_memory is None or read + held <= here.free_memory,
    )


def _batch_examples(recipe: Recipe, prepared: Preparation) -> float:
    """Examples of a training batch, about."""
    if recipe.data.batch_examples is not None:
        return recipe.data.batch_examples
    split = prepared.plan.splits["train"]
    tokens = sum(stream.tokens for stream in split.streams.values())
    return max((recipe.data.batch_tokens or 0) * split.examples / max(tokens, 1), 1.0)


def _rates(measured: Measured, codec: Codec, everything: bool) -> Rates:
    """The rates of an option: what was measured, with another encoding's share of it put in the place of the store's own."""
    own = next(iter(measured.codecs.values()))
    training, slower = measured.training, codec.decode_seconds - own.decode_seconds
    return Rates(
        forward=measured.forward if everything else measured.forward_read,
        encode=codec.bytes / codec.encode_seconds,
        commit=measured.digest,
        files=measured.disk.files,
        write=measured.disk.write,
        cold=measured.disk.read,
        warm=1 / (1 / training.warm + (codec.unpack_seconds - own.unpack_seconds) / codec.bytes)
        if codec.unpack_seconds > own.unpack_seconds
        else training.warm,
        cached_step=_with(training.cached_step, slower * training.train_values),
        live_step=training.live_step,
        cached_validation=_with(training.cached_validation, slower * training.validation_values),
        live_validation=training.live_validation,
    )


def _with(rate: float, seconds: float) -> float:
    """A rate of examples each of which takes so many seconds more, or less; decoding is never all that a step does."""
    return rate if rate == float("inf") else 1 / max(1 / rate + seconds, 0.1 / rate)
