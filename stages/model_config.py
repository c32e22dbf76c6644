"""A model's config as plain JSON in a store, and made again from it."""

import json
from typing import Any

from transformers import AutoConfig

from ..storage.errors import ModelError
from .loading_errors import one_line

_NOT_CONFIG = frozenset(
    {
        "architectures",
        "auto_map",
        "dtype",
        "model_type",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
    }
)


def config_to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON: without keys of the library's own and without any that could name code."""
    return _plain_config(json.loads(config.to_json_string(use_diff=False)))


def config_from_json(model_type: str, document: dict[str, Any]) -> Any:
    """The config that `config_to_json` wrote; keys that its class does not know, or that could name code, are
    dropped.

    Raises ModelError.
    """
    try:
        known = AutoConfig.for_model(model_type).to_dict()
        return AutoConfig.for_model(model_type, **_known_config(document, known))
    except Exception as error:  # configs validate themselves with errors of several libraries
        raise ModelError(f"this is not a config of a {model_type} model: {one_line(error)}") from None


def _plain_config(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if not key.startswith("_") and key not in _NOT_CONFIG}


def _known_config(document: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What of a config, and of the configs inside it, stands in a config of that class, too."""
    found = {}
    for key, value in _plain_config(document).items():
        if key in known:
            part = known[key]
            inner = isinstance(value, dict) and isinstance(part, dict) and "model_type" in part
            found[key] = _known_config(value, part) if inner else value
    return found
