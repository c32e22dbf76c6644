"""Choose where tensors live."""

from __future__ import annotations

import torch

from ..storage.errors import UsageError
from ..storage.nearest import did_you_mean


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU, else the CPU. Raises UsageError for one that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        kinds, kind = ("auto", "cpu", "cuda", "mps"), name.partition(":")[0]
        hint = "" if kind in kinds else did_you_mean(kind, kinds)
        raise UsageError(
            f"--device {name}{hint}: not available here ({str(error).splitlines()[0]}); use auto or cpu"
        ) from None
    return device
