"""Stage one in this process: its store begun, its units run, and what an error of the disk leaves to be said."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..stages.extract import extract_missing
from ..stages.streaming_front import front_of
from ..storage.bill import unit_bytes
from ..storage.errors import Interrupted, OutOfSpace, StoreStale
from ..storage.printable import printable
from .again import extract_command, free_name
from .progress import progress, size
from .space import free_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..stages.preparation import Preparation
    from ..storage import StoreWriter
    from .walltime import WallTime


def create_writer(root: Path, prepared: Preparation) -> StoreWriter:
    try:
        writer = prepared.create_writer(root)
    except StoreStale as error:
        command = extract_command(prepared.plan.producer, free_name(root))
        raise StoreStale(f"{error}\nto keep both, put it elsewhere: {command}") from None
    for warning in writer.warnings:
        print(printable(f"warning: {warning}"), file=sys.stderr)
    return writer


def require_space(root: Path, prepared: Preparation) -> None:
    free, needed = free_bytes(root), prepared.added_bytes()
    if free is not None and needed > free:
        raise OutOfSpace(
            f"{root}: the store needs {size(needed)} ({needed:,} bytes) and {size(free)} ({free:,} bytes) are free; "
            "fewer --taps, a smaller --encoding or another --store would fit"
        )


def extract_here(prepared: Preparation, writer: StoreWriter, wall_time: WallTime) -> None:
    """Run the missing units of a writer, one after the other. Raises Interrupted where the wall time does not suffice."""
    front = front_of(prepared.loaded, prepared.taps)
    total = sum(unit.examples for unit in writer.units())
    left = sum(unit.examples for unit in writer.missing())
    with progress("extract", total, "examples", total - left) as bar:

        def waiting(units: int) -> None:
            wall_time.pause()
            bar.advance(0, f"waiting for {units} units of other writers")

        tokens = prepared.settings.batch_tokens
        extract_missing(front, writer, tokens, bar.advance, waiting, prepared.batches, wall_time.begin)
    if wall_time.refused:
        raise Interrupted(wall_time.told)


@contextmanager
def telling_what_is_needed(writer: StoreWriter) -> Iterator[None]:
    """Where the disk or a quota is full meanwhile, say what the store needs still, in bytes and in files."""
    try:
        yield
    except OutOfSpace as error:
        count, files = unit_bytes(writer.plan, writer.missing())
        raise OutOfSpace(
            f"{error}. What is missing of the store needs {size(count)} ({count:,} bytes) in {files:,} files"
        ) from error
