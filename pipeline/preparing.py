"""Model, data and settings made ready for stage one, with a temporary folder for token ids that goes when they do."""

from __future__ import annotations

import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..stages.device import choose_device
from ..stages.pair_inputs import PairInputs, shared_pictures
from ..stages.prepare import ExtractSettings, prepare
from ..storage.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..stages.preparation import Preparation
    from .recipe import Recipe


def extract_settings(recipe: Recipe) -> ExtractSettings:
    """What a recipe asks of stage one. Raises UsageError without a model or data."""
    values = recipe.extract.model_dump()
    for key in ("model", "data"):
        if values[key] is None:
            raise UsageError(f"--{key} is missing; for example: sherl-cache extract --model t5-base --data glue/sst2")
    return ExtractSettings(**values)


@contextmanager
def preparing(settings: ExtractSettings, device: str, root: Path, plans: int | None = None) -> Iterator[Preparation]:
    """The preparation of a store at `root`, there or not yet; its rows can be read while the context is open.

    plans: how many plans of the store are looked at, the oldest; None: all.
    """
    with tempfile.TemporaryDirectory(prefix="sherl-cache-", ignore_cleanup_errors=True) as folder:
        yield prepare(settings, Path(folder), choose_device(device), root, plans)


def report_data(prepared: Preparation) -> None:
    """Warn of texts that are cut, and of pictures with captions that train as well as they are scored."""
    for split, stats in prepared.stats.items():
        if stats.truncated:
            print(
                f"warning: {stats.truncated:,} of {stats.rows:,} {split} examples are longer than "
                f"{prepared.inputs.max_length} tokens and were cut",
                file=sys.stderr,
            )
    if isinstance(prepared.inputs, PairInputs):
        for split, count in shared_pictures(prepared.spools).items():
            print(
                f"warning: {count:,} of {prepared.stats[split].rows:,} {split} examples show a picture that train shows too, "
                "so their scores flatter; give each picture one row with a list of its captions, or another validation split",
                file=sys.stderr,
            )
