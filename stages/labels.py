"""What the values of a label column mean: names of classes, numbers, or nothing."""

import math
from typing import Any, Final

from ..storage.errors import DataError
from .sources.contract import Source

MOST_CLASSES: Final = 1000
"""More distinct values than this are no class labels."""
_SCORES_ABOVE: Final = 20  # whole numbers written as floats: more distinct values than this are scores


def distinct_labels(source: Source, split: str, column: str) -> tuple[str, ...]:
    """Names of the classes in a label column, numbers in their order and text sorted, or () for scores.

    Fractions are scores, and so are more than 20 different floats. Reads the split once, in bounded memory.

    Raises DataError for a column without label, with only one, or with too many to be classes.
    """
    seen: set[str] = set()
    numbers = True  # so far every label is a number
    fractions = floats = False
    for batch in source.batches(split, [column]):
        for value in batch[column]:
            if value is None or value == "":
                continue
            value_number = number(value)
            if value_number is None:
                numbers = False
            else:
                fractions = fractions or not value_number.is_integer()
                floats = floats or isinstance(value, float) or (isinstance(value, str) and "." in value)
            if len(seen) <= MOST_CLASSES:
                seen.add(label_name(value))
    place = f"{source.name}: column {column!r} of split {split!r}"
    if not seen:
        raise DataError(f"{place} holds no label; name the label column with --label-column")
    if numbers and (fractions or (floats and len(seen) > _SCORES_ABOVE)):
        return ()
    if len(seen) > MOST_CLASSES:
        raise DataError(
            f"{place} holds more than {MOST_CLASSES} different values, so it is no class label; name the label "
            "column with --label-column"
        )
    if len(seen) == 1:
        only = next(iter(seen))
        raise DataError(f"{place} holds only the label {only!r}; at least two classes are needed")
    return tuple(sorted(seen, key=float) if numbers else sorted(seen))


def label_name(value: Any) -> str:
    """The name of a class: text as it is, whole numbers without a fraction (2.0 and "2.0" are "2")."""
    if isinstance(value, float) or (isinstance(value, str) and "." in value):
        as_number = number(value)
        if as_number is not None and as_number.is_integer():
            return str(int(as_number))
    return str(value)


def number(value: Any) -> float | None:
    """A finite number, from a number or its text; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        parsed = float(value)
    except (TypeError, ValueError):
        return None
    return parsed if math.isfinite(parsed) else None
