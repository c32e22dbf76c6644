"""What stage one is about: a model, the rows it shall read, and the form in which it reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..storage.errors import RecipeError
from .choose_inputs import extract_inputs, fed_by
from .load import LoadedModel, load_pretrained
from .maps import MapForm
from .sources import open_source
from .splits import split_rules
from .streamed_model import load_streamed
from .tasks import pair_columns, task_for

if TYPE_CHECKING:
    import torch

    from .inputs import Inputs
    from .prepare import ExtractSettings
    from .sources.contract import Source
    from .tasks import Task


@dataclass(frozen=True)
class Subject:
    """A model with the streams that its data feed, and its data by the rules of the splits."""

    loaded: LoadedModel
    source: Source
    task: Task
    inputs: Inputs


def load_model(settings: ExtractSettings, device: torch.device) -> LoadedModel:
    """The model of some settings, whole or to be streamed. Raises ModelError."""
    load = load_streamed if settings.stream_weights else load_pretrained
    return load(settings.model, settings.revision, settings.precision, device, settings.answers)


def open_subject(settings: ExtractSettings, device: torch.device, loaded: LoadedModel | None = None) -> Subject:
    """Open the data and load the model, unless it is given. Raises ModelError, DataError, RecipeError."""
    source = open_source(
        settings.data, task=settings.task, validation=settings.validation, revision=settings.data_revision
    )
    named = (*settings.text_columns, *([] if settings.label_column is None else [settings.label_column]))
    source.require("train" if "train" in source.splits else source.splits[0], named)  # before minutes of loading
    loaded = loaded or load_model(settings, device)
    loaded = fed_by(loaded, source, pair_columns(source, settings.text_columns, settings.label_column))
    loaded = _with_maps(settings, loaded)
    table = loaded.table
    task = task_for(
        settings.task,
        source,
        settings.text_columns,
        settings.label_column,
        pictures=table.reads_pictures,
        pairs=table.reads_pairs,
    )
    source = split_rules(source, task, settings.splits, limit=settings.limit)
    return Subject(loaded, source, task, extract_inputs(settings, loaded, task))


def _with_maps(settings: ExtractSettings, loaded: LoadedModel) -> LoadedModel:
    """The model with its maps stored as the settings say. Raises RecipeError."""
    if settings.maps is None:
        return loaded
    if loaded.table.map_form is None:
        raise RecipeError(
            f"maps {settings.maps}: the states of {settings.model} are rows, of which nothing is pooled; leave it out"
        )
    return loaded.pooled(MapForm.parse(settings.maps))
