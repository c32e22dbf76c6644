"""A model, data and a begun store for the topics, and a progress bar that says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sherl_cache.pipeline.cluster.unit import UnitJob
from sherl_cache.stages.prepare import ExtractSettings, prepare

from ..training.subject import Subject

if TYPE_CHECKING:
    from pathlib import Path

    from sherl_cache.stages.preparation import Preparation
    from sherl_cache.storage import StoreWriter


class Silent:
    """Progress that is not shown."""

    def advance(self, amount: int, note: str = "") -> None:
        pass


def prepared(folder: Path, size: str, examples: int, tokens: int, unit_memory: int, threads: int) -> Preparation:
    """A BERT of a published shape with random weights, and random texts of so many tokens each, ready to be extracted."""
    torch.set_num_threads(threads)
    subject = Subject("encoder", size, tokens, examples, 1, folder / "inputs")
    data = subject.make_inputs()
    settings = ExtractSettings(
        model=str(subject.model.absolute()),
        data=str(data.absolute()),
        text_columns=("text",),
        label_column="label",
        splits="holdout:8",
        unit_memory=unit_memory,
        chunk_bytes=1 << 16,
    )
    workspace = folder / f"tokens-{size}-{unit_memory}-{threads}"
    workspace.mkdir(exist_ok=True)
    return prepare(settings, workspace, torch.device("cpu"))


def begin(found: Preparation, root: Path, threads: int) -> tuple[StoreWriter, UnitJob]:
    """A new store, and what workers must know of it."""
    writer = found.create_writer(root)
    return writer, UnitJob(str(root.absolute()), writer.chain.digests[-1], found.settings, "cpu", threads)
