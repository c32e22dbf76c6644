"""Bringing a model and data onto this machine, so that everything else runs without a network; no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.hub import cached_file

from .backbones.contract import table_for
from .checkpoint import checkpoint_files
from .load import commit_of, load_config, load_readers, quiet_transformers, resolved
from .loading_errors import explained
from .sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

    from .prepare import ExtractSettings


@dataclass(frozen=True)
class FetchedModel:
    """A model that is on this machine. revision: commit on the hub; None for a folder. bytes: of its weights."""

    name: str
    revision: str | None
    folder: Path
    weight_files: int
    bytes: int


@dataclass(frozen=True)
class FetchedData:
    """Data that is on this machine, with the rows of each split."""

    name: str
    rows: dict[str, int]


def fetch_model(name: str, revision: str | None = None) -> FetchedModel:
    """Bring everything that is read of a model: config, tokenizer or image processor, weights. Raises ModelError as
    `load_pretrained` does, also for a family without a table.
    """
    source = resolved(name)
    with quiet_transformers():
        commit = commit_of(name, source, revision)
        asked = commit or revision
        table = table_for(load_config(name, source, asked))
        load_readers(name, source, asked, table)
        with explained(name, asked, "weights"):
            files = checkpoint_files(source, asked)
        with explained(name, asked, "generation config"):  # few models have one; it changes what `eval` generates
            cached_file(source, GENERATION_CONFIG_NAME, revision=asked, _raise_exceptions_for_missing_entries=False)
    return FetchedModel(name, commit, files[0].parent, len(files), sum(file.stat().st_size for file in files))


def fetch_data(settings: ExtractSettings) -> FetchedData:
    """Bring the data that an extract with these settings reads. Raises DataError as the source does."""
    source = open_source(
        settings.data, task=settings.task, validation=settings.validation, revision=settings.data_revision
    )
    return FetchedData(settings.data, {split: source.rows(split) for split in source.splits})
