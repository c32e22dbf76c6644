"""Model, data and settings made ready for stage one, with a temporary folder for token ids that goes when they do."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..stages.device import choose_device
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
