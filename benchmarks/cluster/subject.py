"""A model, data and a begun store for the topics, and a progress bar that says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sherl_cache.pipeline.cluster.unit import UnitJob
from sherl_cache.stages.prepare import ExtractSettings, prepare

from ..training.subject import _make_bert, _write

if TYPE_CHECKING:
    from sherl_cache.stages.preparation import Preparation
    from sherl_cache.storage import StoreWriter


class Silent:
    """Progress that is not shown."""

    def advance(self, amount: int, note: str = "") -> None:
        pass


def prepared(folder: Path, size: str, examples: int, tokens: int, unit_memory: int, threads: int) -> Preparation:
    """A BERT of a published shape with random weights, and random texts of so many tokens each."""
    torch.set_num_threads(threads)
    model = folder / f"bert-{size}"
    if not model.exists():
        _make_bert(model, size)
    data = folder / f"{examples}x{tokens}.csv"
    if not data.exists():
        _write(data, [tokens] * examples)
    settings = ExtractSettings(
        model=str(model.absolute()),
        data=str(data.absolute()),
        text_columns=("text",),
        label_column="label",
        unit_memory=unit_memory,
        chunk_bytes=1 << 16,
    )
    workspace = folder / f"tokens-{unit_memory}"
    workspace.mkdir(exist_ok=True)
    return prepare(settings, workspace, torch.device("cpu"))


def begin(found: Preparation, root: Path, threads: int) -> tuple[StoreWriter, UnitJob]:
    """A new store, and what workers must know of it."""
    writer = found.create_writer(root)
    return writer, UnitJob(str(root.absolute()), writer.chain.digests[-1], found.settings, "cpu", threads)
