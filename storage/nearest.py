"""The nearest right name, for messages: one way to look for it and one way to say it, for the whole package."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Final

_LEAST_PREFIX: Final = 3


def nearest(name: object, known: Iterable[object]) -> str | None:
    """The known name that somebody who wrote `name` may have meant; None where none is near.

    Case and the choice between `-` and `_` do not count; a dotted name may have been written without what stands before
    its last dot, and a long one cut short.
    """
    written = _folded(str(name))
    if not written:
        return None
    names = {_folded(str(each)): str(each) for each in reversed(list(known))}
    if written in names:
        return names[written]
    last = [each for folded, each in names.items() if folded.rpartition(".")[2] == written]
    if last:
        return last[0] if len(last) == 1 else None
    if near := get_close_matches(written, names, n=1):
        return names[near[0]]
    longer = [each for folded, each in names.items() if folded.startswith(written)]
    return longer[0] if len(longer) == 1 and len(written) >= _LEAST_PREFIX else None


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """` (did you mean x?)` with the nearest known name, or nothing where none is near."""
    near = nearest(name, known)
    return "" if near is None else f" (did you mean {near}?)"


def instead(name: object, known: Iterable[object], otherwise: str) -> str:
    """`did you mean x?` with the nearest known name; where none is near, `otherwise` and all of them."""
    names = [str(each) for each in known]
    near = nearest(name, names)
    return f"{otherwise} {', '.join(names) or 'none'}" if near is None else f"did you mean {near}?"


def folder_meant(path: Path) -> str:
    """As `did_you_mean`, for a folder that is not there: the nearest of those beside it."""
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    near = nearest(path.name, beside)
    return "" if near is None else f" (did you mean {path.with_name(near)}?)"


def _folded(name: str) -> str:
    return name.strip().casefold().replace("_", "-")
