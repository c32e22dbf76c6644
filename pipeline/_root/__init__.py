"""sherl-cache: adapt a big frozen model by training from its stored early activations.

This file is `sherl_cache/__init__.py`; the four folders beside `pipeline/` are its subpackages. It stays light: what it
offers is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sherl_cache.pipeline.pretrained import SherlModel
    from sherl_cache.stages.torch_dataset import StoreDataset

__all__ = ["SherlModel", "StoreDataset", "__version__"]

_HOMES = {"SherlModel": "sherl_cache.pipeline.pretrained", "StoreDataset": "sherl_cache.stages.torch_dataset"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("sherl-cache")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
