"""Where rows lie in memory when they are read: block after block in slots, or the whole split for good."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .blocks import Load, Loaded, Reading
from .budget import Needs
from .buffers import Region
from .order import Block
from .placement import Placement
from .readers.pieces import Memory
from .rows import Rows, some_rows
from .workspace import Workspace, Workspaces


class Destination(Protocol):
    """Where rows go when they are read, and where batches are put together."""

    slots: int
    """Blocks that may be in memory, or on their way there, at once."""
    spaces: Workspaces
    joined: dict[str, Rows]
    """By stream, rows of the largest batch; empty where no batch has to be put together."""

    def place(
        self, number: int, block: Block, examples: NDArray[np.int64]
    ) -> tuple[dict[str, Rows], dict[str, Placement], NDArray[np.bool_]]:
        """Places for block `number`; see blocks.Place."""
        ...

    def arrived(self, load: Load) -> None:
        """A block is there."""
        ...

    def rows(self, loaded: Loaded, stream: str, first: int, stop: int) -> Rows | None:
        """The rows of some examples as views; None where they do not lie together."""
        ...


class BlockSlots:
    """Blocks one after another in one or two slots; rows lie in training order, so batches are views."""

    def __init__(self, reading: Reading, needs: Needs, memory: NDArray[np.uint8], slots: int) -> None:
        self._reading, self.slots = reading, slots
        region = Region(memory)
        self._memory = [region.take(needs.slot) for _ in range(slots)]
        self.spaces = workspaces(region, needs)
        self.joined = batch_buffers(reading, region, needs) if needs.join else {}

    def place(
        self, number: int, block: Block, examples: NDArray[np.int64]
    ) -> tuple[dict[str, Rows], dict[str, Placement], NDArray[np.bool_]]:
        reading = self._reading
        region = Region(self._memory[number % self.slots])
        placements = {name: choice.place(block.groups, examples) for name, choice in reading.choices.items()}
        rows = {name: reading.rows_from(region, name, placed.rows) for name, placed in placements.items()}
        return rows, placements, np.ones(len(block.groups), np.bool_)

    def arrived(self, load: Load) -> None:
        pass

    def rows(self, loaded: Loaded, stream: str, first: int, stop: int) -> Rows | None:
        starts = loaded.placements[stream].row_starts
        return some_rows(loaded.rows[stream], starts[first], starts[stop])


class MemoryRows:
    """All rows of the split, in written order: each chunk is read once, and batches are gathered."""

    def __init__(
        self,
        reading: Reading,
        needs: Needs,
        memory: NDArray[np.uint8],
        group_rows: dict[str, NDArray[np.int64]],
        groups: NDArray[np.int64],
    ) -> None:
        self._reading, self._groups, self.slots = reading, groups, 2
        region = Region(memory)
        self._rows = {name: reading.rows_from(region, name, int(rows.sum())) for name, rows in group_rows.items()}
        self._firsts = {name: np.cumsum(rows) - rows for name, rows in group_rows.items()}
        self._present = np.zeros(len(groups), np.bool_)
        self.spaces = workspaces(region, needs)
        self.joined = batch_buffers(reading, region, needs)

    @property
    def complete(self) -> bool:
        """Whether everything was read."""
        return bool(self._present.all())

    def place(
        self, number: int, block: Block, examples: NDArray[np.int64]
    ) -> tuple[dict[str, Rows], dict[str, Placement], NDArray[np.bool_]]:
        at = np.searchsorted(self._groups, block.groups)
        placements = {
            name: choice.place(block.groups, examples, self._firsts[name][at])
            for name, choice in self._reading.choices.items()
        }
        return self._rows, placements, ~self._present[at]

    def arrived(self, load: Load) -> None:
        self._present[np.searchsorted(self._groups, load.groups)] = True

    def rows(self, loaded: Loaded, stream: str, first: int, stop: int) -> Rows | None:
        return None


def workspaces(region: Region, needs: Needs) -> Workspaces:
    """Workspaces for every thread; what nobody wants goes to one place for all."""
    spaces = Workspaces()
    scratch = Memory(region.take(needs.scratch))
    for _ in range(needs.bounces):
        spaces.put(Workspace(region.take(needs.bounce), scratch))
    return spaces


def batch_buffers(reading: Reading, region: Region, needs: Needs) -> dict[str, Rows]:
    """Room for the largest batch, by stream."""
    return {name: reading.rows_from(region, name, needs.batch_rows[name]) for name in reading.taps}
