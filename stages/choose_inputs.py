"""Which form of input a model reads, and how long an input may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..storage.errors import ModelError, RecipeError
from .augment import Augment
from .inputs import Inputs, TextInputs
from .pair_inputs import PairInputs
from .picture_inputs import PictureInputs
from .prompts import longest_answer
from .text import default_max_length

if TYPE_CHECKING:
    from .load import LoadedModel
    from .prepare import ExtractSettings
    from .sources.contract import Source
    from .tasks import Task


def fed_by(loaded: LoadedModel, source: Source, pairs: tuple[str, str] | None = None) -> LoadedModel:
    """The model with the streams that a source has something for: of one with towers for pictures and for texts, both
    where there are pairs, else that of pictures where the source has any. Raises ModelError.

    pairs: the columns of pictures and captions, where it has both.
    """
    streams = loaded.table.streams
    if not loaded.table.reads_pairs:
        if pairs is not None and loaded.table.reads_pictures:
            raise ModelError(
                f"{source.name} has pictures ({pairs[0]}) with captions ({pairs[1]}), and {loaded.name} reads no texts; take a "
                "model with two towers, such as CLIP, or name a --label-column"
            )
        return loaded
    if pairs is not None:
        return loaded
    pictures = any(source.picture_columns(split) for split in source.splits)
    return loaded.only([stream.name for stream in streams if (stream.tokens == "pixels") == pictures])


def extract_inputs(settings: ExtractSettings, loaded: LoadedModel, task: Task) -> Inputs:
    """What stage one reads of its source. Raises ModelError, RecipeError where a setting does not fit the model."""
    if not loaded.table.reads_pictures:
        if settings.views != 1:
            raise RecipeError(f"views {settings.views}: {settings.model} reads text, which has one view; leave it out")
        return live_inputs(loaded, _max_length(settings, loaded, task))
    if loaded.table.reads_pairs:
        if settings.views != 1:
            raise RecipeError(f"views {settings.views}: a picture with captions has one view; leave it out")
        return live_inputs(loaded, _max_length(settings, loaded, task))
    if settings.max_length is not None:
        raise RecipeError(
            f"max_length {settings.max_length}: {settings.model} reads pictures, which are not cut; leave it out"
        )
    return PictureInputs(loaded, settings.views, Augment.parse(settings.augment), settings.seed)


def live_inputs(loaded: LoadedModel, max_length: int) -> Inputs:
    """What a live model reads; `max_length`: longest text in tokens."""
    if loaded.table.reads_pairs:
        return PairInputs(loaded, max_length)
    if loaded.table.reads_pictures:
        return PictureInputs(loaded)
    assert loaded.table.text_form is not None
    return TextInputs(loaded, loaded.table.text_form, max_length)


def _max_length(settings: ExtractSettings, loaded: LoadedModel, task: Task) -> int:
    """Longest text in tokens; where an answer goes on behind it, both fit the positions together."""
    positions = loaded.table.max_length(loaded.config)
    if positions is not None and loaded.table.text_form == "continuation":
        positions -= longest_answer(task, loaded.tokenizer)
    if settings.max_length is None:
        return default_max_length(loaded.tokenizer, positions)
    if positions is not None and settings.max_length > positions:
        raise ModelError(
            f"max_length {settings.max_length}: {settings.model} has positions for {positions} tokens; use at most that"
        )
    return settings.max_length
