"""Some seconds of measuring: the early layers, both ways of training, encodings and the disk, on real rows of the data."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from ...stages.extract import extract_missing
from ...stages.front import Front
from ...stages.overlap import as_numpy
from ...storage import Store, keys
from .codecs import Codec, States, measure_codec, some_states
from .disk import DiskRates, measure_disk
from .sample import sampled
from .training_rates import TrainingRates, measure_training

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ...stages.preparation import Preparation
    from ..recipe import Recipe

_FORWARD, _SAMPLE, _TRAINING, _DISK = 0.2, 0.15, 0.4, 0.15
"""Shares of the time; encodings take what is left, about."""
_BATCHES: Final = 6
"""Training batches of the sample, at most, where the early layers are quick enough."""
_LEAST_BATCHES: Final = 2
_MOST_EXAMPLES: Final = 2048
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
    """All of it within about `seconds`, on a slow machine more: two training batches of each way are the least.

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
    training = measure_training(recipe, small, Store.open(workspace / "sample"), seconds * _TRAINING)
    forward, forward_read, states = _measure_forward(front, training.reads, prepared, seconds * _FORWARD)
    names = [prepared.plan.encoding, *(name for name in encodings if name != prepared.plan.encoding)]
    return Measured(
        forward=forward,
        forward_read=forward_read,
        training=training,
        codecs={name: measure_codec(name, states, prepared.loaded.device) for name in names},
        disk=measure_disk(root, seconds * _DISK, recipe.data.threads),
        digest=_measure_digest(),
    )


def _one_forward(front: Front, prepared: Preparation) -> float:
    """Input tokens a second, from one small batch, after another one that warms up: a first guess."""
    batch = prepared.sample()
    front(batch)
    tokens = int(prepared.batches.lengths(prepared.rows(next(iter(prepared.packed)), 8)).sum())
    with _timed(prepared) as took:
        front(batch)
    return tokens / took[0]


def _sample_size(recipe: Recipe, prepared: Preparation, rate: float, seconds: float) -> dict[str, int]:
    """Examples of each split in the sample: whole training batches, as many as the early layers run in `seconds`, and at
    most half as many to validate.
    """
    held = {split: len(prepared.packed[split].order) for split in ("train", "validation") if split in prepared.packed}
    mean = max(prepared.input_tokens() / sum(spool.rows for spool in prepared.spools.values()), 1.0)
    batch = recipe.data.batch_examples or max(int((recipe.data.batch_tokens or 0) / mean), 1)
    quick = int(rate * seconds / mean / 1.5)
    batches = min(max(quick // batch, _LEAST_BATCHES), _BATCHES, max(_MOST_EXAMPLES // batch, _LEAST_BATCHES))
    sizes = {"train": batches * batch, "validation": max(batches * batch // 2, 1)}
    return {split: min(sizes[split], count) for split, count in held.items()}


def _measure_forward(
    front: Front, reads: Mapping[str, tuple[int, ...]], prepared: Preparation, seconds: float
) -> tuple[float, float, States]:
    """Input tokens a second, up to the deepest tap of the store and up to the deepest that is read; and some states."""
    read = front if dict(reads) == dict(front.taps) else front.only(reads)
    spent, tokens = {"all": 0.0, "read": 0.0}, 0
    states: States = {}
    for count, batch in prepared.probe_batches():
        for name, each in {"all": front, "read": read}.items():
            if name == "read" and read is front:
                continue
            with _timed(prepared) as took:
                found = {
                    (stream, tap): as_numpy(values)
                    for stream, packed in each(batch).items()
                    for tap, values in zip(packed.depths, packed.taps, strict=True)
                }
            spent[name] += took[0]
            if name == "all" and not states:
                states = some_states(found)
        tokens += count
        if sum(spent.values()) > seconds:
            break
    return tokens / spent["all"], tokens / (spent["all"] if read is front else spent["read"]), states


def _measure_digest() -> float:
    data = np.zeros(_DIGESTED_BYTES, np.uint8).tobytes()
    begun = time.perf_counter()
    keys.digest_bytes(data)
    return _DIGESTED_BYTES / (time.perf_counter() - begun)


@contextmanager
def _timed(prepared: Preparation) -> Iterator[list[float]]:
    """The seconds of what is done within, all of a device's work included, in the list's first place."""
    took: list[float] = []
    device = prepared.loaded.device
    begun = time.perf_counter()
    yield took
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    took.append(time.perf_counter() - begun)
