"""`fetch`: what a run needs from the hub, brought while there is a network."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..storage.errors import UsageError

if TYPE_CHECKING:
    from .recipe import Recipe


def fetch(recipe: Recipe) -> dict[str, Any]:
    """Bring the model and the data that a recipe names; what is there then. Raises UsageError where it names neither."""
    from huggingface_hub import constants

    from ..stages.fetch import fetch_data, fetch_model
    from ..stages.prepare import ExtractSettings

    asked = recipe.extract
    if asked.model is None and asked.data is None:
        raise UsageError("nothing to fetch; for example: sherl-cache fetch --model t5-base --data glue/sst2")
    model = None if asked.model is None else fetch_model(asked.model, asked.revision)
    data = None
    if asked.data is not None:
        data = fetch_data(ExtractSettings(**{**asked.model_dump(), "model": asked.model or ""}))
    return {
        "model": None if model is None else {**asdict(model), "folder": str(model.folder)},
        "data": None if data is None else asdict(data),
        "cache": str(constants.HF_HOME),
    }
