"""Stage one away from its preparation: units of a store that another process has begun, one at a time or two beside.

What stands in the store is enough for texts: their token ids are there, and no data set is opened. Pictures are read again
from their source.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ..storage import StoreWriter
from ..storage.errors import StoreStale
from .device import choose_device
from .environment import environment
from .extract import queue_unit
from .inputs import TokenBatches
from .overlap import UNITS, UnitQueue
from .proof import prove
from .streaming_front import front_of
from .subject import load_model, open_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..storage import Unit
    from .inputs import Batches
    from .load import LoadedModel
    from .prepare import ExtractSettings

Ending = Literal["done", "there", "refused"]
"""How a unit ended: committed, committed by another writer, or not begun."""


class Extractor:
    """The early part of one model at work for one plan of a store. Any thread may call `extract`: one at a time runs the
    model, and one commits beside it.
    """

    def __init__(
        self, root: Path, plan: str, settings: ExtractSettings, device: str, threads: int | None = None
    ) -> None:
        """Load the model and prove that it can be split here.

        plan: digest of the plan to carry out. threads: of a forward on a CPU; None: as they are. Raises StoreMissing,
        StoreStale where another store or another model is found than those that the plan was made from, and what loading
        raises.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.writer = StoreWriter.open(root, plan)
        self.units = {unit.name: unit for unit in self.writer.units()}
        """By name, every unit of the plan."""
        chosen = choose_device(device)
        loaded, self._batches = _model_and_batches(settings, chosen, self.writer)
        stored, here = self.writer.plan.environment, environment(loaded, chosen)
        self.differs = tuple(f"{name} {here[name]}" for name in here if stored.get(name) not in (None, here[name]))
        """What may move the last bits and is not as where the store was begun: `torch 2.12.0`, `threads 4`."""
        first = next(iter(self.units.values()))
        rows = self.writer.table(first.split).read_unit(first.index).slice(0, 8)
        prove(loaded, self._batches.batch(first.split, rows, np.arange(len(rows))))
        self._front = front_of(loaded, _taps(self.writer))
        self._batch_tokens = settings.batch_tokens
        self._running = threading.Lock()
        self._slots = threading.BoundedSemaphore(UNITS)

    def extract(
        self,
        unit: Unit,
        begin: Callable[[Unit], bool] = lambda unit: True,
        advance: Callable[[int], None] = lambda examples: None,
    ) -> Ending:
        """Run a unit and commit it. `begin` is asked when its turn has come; `advance` is told the examples of each
        forward. Errors as of `extract_unit`.
        """
        with self._slots, UnitQueue(self.writer) as behind, self._running:
            if self.writer.committed(unit):
                return "there"
            if not begin(unit):
                return "refused"
            queue_unit(self._front, self.writer, unit, behind, self._batch_tokens, advance, self._batches)
        return "done"


def _model_and_batches(
    settings: ExtractSettings, device: torch.device, writer: StoreWriter
) -> tuple[LoadedModel, Batches]:
    identity = writer.plan.identity
    loaded = load_model(settings, device)
    batches: Batches = TokenBatches(continued=loaded.table.text_form == "continuation")
    asked: dict[str, str | int | float | bool | None] = {"forward.batch_tokens": settings.batch_tokens}
    if loaded.table.reads_pictures:
        subject = open_subject(settings, device, loaded)
        loaded, batches = subject.loaded, subject.inputs.batches(subject.source, subject.task)
        asked |= subject.inputs.key_fields(subject.task)
    asked |= {"model.weights": loaded.weights_digest, "forward.precision": loaded.precision}
    other = [name for name, value in asked.items() if identity.get(name) != value]
    if other:
        raise StoreStale(
            f"{writer.root}: the store was begun with another {', '.join(other)} than what {settings.model} is here: every "
            "process of an extraction needs the same model, data and settings"
        )
    return loaded, batches


def _taps(writer: StoreWriter) -> Mapping[str, tuple[int, ...]]:
    """Every tap of a plan, by stream."""
    found: dict[str, set[int]] = {}
    for array in writer.plan.arrays():
        found.setdefault(array.stream, set()).add(array.tap)
    return {stream: tuple(sorted(taps)) for stream, taps in found.items()}
