"""Which chunks are asked for together: neighbours in one shard, where a request costs more than its bytes."""

from collections.abc import Sequence

from .readers.contract import Files


def run_bytes(files: Files, chunk_bytes: int, budget_bytes: int, threads: int) -> int:
    """Bytes that one reader asks for at a time: a chunk, or more where the place gains by it; runs of all readers take
    at most an eighth of the budget where a chunk is no more than that.
    """
    return max(chunk_bytes, min(files.request_bytes, budget_bytes // (8 * threads * (1 + files.copies))))


def runs(groups: Sequence[int], groups_per_unit: int, most: int) -> list[list[int]]:
    """Places in `groups`, ordered by group and cut into runs of at most `most` neighbours that lie in one shard."""
    found: list[list[int]] = []
    for place in sorted(range(len(groups)), key=groups.__getitem__):
        last = found[-1] if found else []
        if (
            last
            and len(last) < most
            and groups[place] == groups[last[-1]] + 1
            and groups[place] // groups_per_unit == groups[last[-1]] // groups_per_unit
        ):
            last.append(place)
        else:
            found.append([place])
    return found
