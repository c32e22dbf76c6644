"""What each setting of stage one means for the store that is made with it."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..storage.stale import Class

SETTING_CLASSES: Final[Mapping[str, Class]] = MappingProxyType(
    {
        "model": "recorded",  # a name or a place; the weights themselves are `model.weights`
        "revision": "recorded",
        "data": "recorded",  # likewise: `data.<split>` is what the rows hold
        "data_revision": "recorded",
        "validation": "recorded",
        "task": "numbers",
        "text_columns": "numbers",
        "label_column": "numbers",
        "splits": "numbers",
        "limit": "numbers",
        "taps": "numbers",
        "late": "numbers",
        "max_length": "numbers",
        "answers": "numbers",
        "views": "numbers",
        "augment": "numbers",
        "encoding": "numbers",
        "precision": "numbers",
        "batch_tokens": "numbers",
        "unit_memory": "layout",
        "chunk_bytes": "layout",
        "seed": "layout",
        "stream_weights": "recorded",  # another way to the same values
    }
)
"""Every field of ExtractSettings: `numbers` and `layout` make another store, `recorded` does not by itself."""
