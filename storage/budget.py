"""What a stream may hold in memory, in the worst case, and what to say when a budget is too small for it."""

import numpy as np
from numpy.typing import NDArray

from .errors import BudgetTooSmall


def check_budget(
    budget_bytes: int,
    window: int,
    *,
    group_bytes: NDArray[np.int64],
    example_bytes: NDArray[np.int64],
    batch_examples: int,
    fixed_bytes: int,
) -> int:
    """Bytes needed in the worst case: the `window` largest row groups, two of the largest batches,
    `fixed_bytes`.

    group_bytes: [groups], example_bytes: [examples]. Raises BudgetTooSmall.
    """
    largest = np.sort(group_bytes)[::-1].cumsum()
    batch = min(batch_examples, len(example_bytes))
    batch_bytes = int(np.partition(example_bytes, len(example_bytes) - batch)[-batch:].sum())
    rest = fixed_bytes + 2 * batch_bytes
    needed = int(largest[min(window, len(largest)) - 1]) + rest
    if needed > budget_bytes:
        fits = int(np.searchsorted(largest, budget_bytes - rest, side="right"))
        advice = (
            f"a window of {fits} groups fits"
            if fits
            else f"even a window of 1 group needs {int(largest[0]) + rest:,} bytes"
        )
        raise BudgetTooSmall(
            f"the read budget of {budget_bytes:,} bytes is too small: a window of {window} row groups and "
            f"batches of {batch_examples} examples need {needed:,} bytes; {advice}"
        )
    return needed
