"""Makes torchvision importable beside a torch without CUDA where its wheel was built for CUDA; imported before a peer that
imports torchvision without using it here.
"""

from __future__ import annotations

import sys
from typing import Any

from torch.library import Library

_OPERATORS = ("nms", "qnms")

try:
    import torchvision
except RuntimeError:
    # Its compiled part did not load, and its Python part insists on the names of two operators of it.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library: Any = Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in _OPERATORS:
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
