"""Some seconds of measuring: the early layers, both ways of training, encodings and the disk, on real rows of the data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...stages.extract import extract_missing
from ...stages.front import Front
from ...stages.overlap import as_numpy
from ...storage import Store, keys
from .codecs import Codec, States, measure_codec, some_states
from .disk import DiskRates, measure_disk
from .sample import sampled
from .training_rates import SampleTraining, TrainingRates
from .turns import Timer, take_turns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ...stages.methods.contract import Packed
    from ...stages.preparation import Preparation
    from ...stages.tokens import TokenBatch
    from ..recipe import Recipe

_SAMPLE, _TURNS, _DISK = 0.15, 0.6, 0.15
"""Shares of the time: to make the sample, to time forwards and steps, to time the disk. Encodings take what is left, about."""
_BATCHES: Final = 6
"""Training batches of the sample, at most, where the early layers are quick enough."""
_LEAST_BATCHES: Final = 2
_MOST_EXAMPLES: Final = 2048
_STATES_EXAMPLES: Final = 32
_DIGESTED_BYTES: Final = 32 << 20


@dataclass(frozen=True)
class Measured:
    """Everything that was measured. Speeds are a second's."""

    forward: float
    """Input tokens of the early layers, up to the deepest tap that is to be stored."""
    forward_read: float
    """The same up to the deepest tap that the recipe reads."""
    training: TrainingRates
    codecs: Mapping[str, Codec]
    """By encoding, that of the store first."""
    disk: DiskRates
    digest: float
    """Bytes of sha256."""


def measure(
    recipe: Recipe, prepared: Preparation, root: Path, seconds: float, workspace: Path, encodings: Sequence[str]
) -> Measured:
    """All of it within about `seconds`; a few steps of each way and one large forward are the least, however long they take.

    workspace: a temporary folder for the sample; beside `root` only a temporary folder for timing the disk is made and removed.
    encodings: what to look at beside the store's own.
    """
    front = Front(prepared.loaded, prepared.taps)
    first = _one_forward(front, prepared)
    examples = _sample_size(recipe, prepared, first, seconds * _SAMPLE)
    small = sampled(prepared, examples, workspace)
    writer = small.create_writer(workspace / "sample")
    extract_missing(front, writer, small.settings.batch_tokens, batches=small.batches)
    writer.finalize()
    training = SampleTraining(recipe, small, Store.open(workspace / "sample"))
    reads = training.training.model.reads
    whole = _forward_timer(front, prepared)
    read = whole if dict(reads) == dict(front.taps) else _forward_timer(front.only(reads), prepared)
    take_turns(list(dict.fromkeys([whole, read, *training.timers.values()])), seconds * _TURNS)
    states = _some_states(front, prepared)
    names = [prepared.plan.encoding, *(name for name in encodings if name != prepared.plan.encoding)]
    return Measured(
        forward=whole.rate,
        forward_read=read.rate,
        training=training.rates(),
        codecs={name: measure_codec(name, states, prepared.loaded.device) for name in names},
        disk=measure_disk(root, seconds * _DISK, recipe.data.threads),
        digest=_measure_digest(),
    )


def _one_forward(front: Front, prepared: Preparation) -> float:
    """Input tokens a second, from one small batch, after another one that warms up: a first guess."""
    batch = prepared.sample()
    front(batch)
    tokens = int(prepared.batches.lengths(prepared.rows(next(iter(prepared.packed)), 8)).sum())
    begun = time.perf_counter()
    _on_the_host(front(batch))
    return tokens / (time.perf_counter() - begun)


def _sample_size(recipe: Recipe, prepared: Preparation, rate: float, seconds: float) -> dict[str, int]:
    """Examples of each split in the sample: whole training batches, as many as the early layers run in `seconds`, and at
    most a third as many to validate.
    """
    held = {split: len(prepared.packed[split].order) for split in ("train", "validation") if split in prepared.packed}
    mean = max(prepared.input_tokens() / sum(spool.rows for spool in prepared.spools.values()), 1.0)
    batch = recipe.data.batch_examples or max(int((recipe.data.batch_tokens or 0) / mean), 1)
    quick = int(rate * seconds / mean / 1.5)
    batches = min(max(quick // batch, _LEAST_BATCHES), _BATCHES, max(_MOST_EXAMPLES // batch, _LEAST_BATCHES))
    sizes = {"train": batches * batch, "validation": max(batches * batch // 3, 1)}
    return {split: min(sizes[split], count) for split, count in held.items()}


def _forward_timer(front: Front, prepared: Preparation) -> Timer:
    """Forwards as `extract` makes them, their batches made anew each time; the rate is of input tokens."""

    def endless() -> Iterator[tuple[int, TokenBatch]]:
        while True:
            yield from prepared.probe_batches()

    source = endless()

    def forward() -> tuple[int, int]:
        tokens, batch = next(source)
        _on_the_host(front(batch))
        return tokens, tokens

    return Timer(forward, warm_up=0, least=1)


def _some_states(front: Front, prepared: Preparation) -> States:
    """States of a few examples, for encodings to be tried on."""
    return some_states(_on_the_host(front(prepared.sample(_STATES_EXAMPLES))))


def _on_the_host(taps: Mapping[str, Packed]) -> dict[tuple[str, int], NDArray[Any]]:
    """States as they are handed to an encoding, by stream and tap; a device's work is then done."""
    return {
        (stream, tap): as_numpy(values)
        for stream, packed in taps.items()
        for tap, values in zip(packed.depths, packed.taps, strict=True)
    }


def _measure_digest() -> float:
    data = np.zeros(_DIGESTED_BYTES, np.uint8).tobytes()
    begun = time.perf_counter()
    keys.digest_bytes(data)
    return _DIGESTED_BYTES / (time.perf_counter() - begun)
