"""Advice as people read it."""

from __future__ import annotations

from typing import Any

from ..progress import duration, size


def advice_lines(result: dict[str, Any]) -> list[str]:
    """The choice first, then both ways, what the store needs, the options, and the command."""
    seconds, memory, speeds = result["seconds"], result["memory"], result["measured"]
    job = _times(result["epochs"], "epoch") + (f" of {result['runs']:,} runs" if result["runs"] > 1 else "")
    extract, first, later, live = (_long(seconds[key]) for key in ("extract", "first_epoch", "epoch", "live_epoch"))
    pays = result["break_even_epochs"]
    return [
        f"{result['way']}: {result['reason']}",
        f"from a store: about {_long(seconds['cached'])} for {job}: {extract} to extract, {first} the first epoch, {later} each "
        f"later one ({_kept(result)})",
        f"with the early layers in every step: about {_long(seconds['recomputed'])}: {live} an epoch",
        "no number of epochs makes caching pay" if pays is None else f"caching pays from {_times(pays, 'epoch')} on",
        f"memory: about {size(memory['train'])} from a store, {size(memory['live'])} live, {_known(memory['available'])} "
        "available",
        f"store: {size(result['bytes'])} as {result['encoding']}, {_known(result['free_bytes'])} free at {result['store']}: "
        f"{'fits' if result['fits'] else 'DOES NOT FIT'}",
        f"  {'encoding':<16} {'taps':>5} {'size':>10} {'extract':>10} {'an epoch':>10} {'in all':>10}",
        *map(_option_line, result["options"]),
        f"measured in {duration(result['seconds_taken'])}: {speeds['forward_tokens']:,.0f} tokens/s forward; "
        f"{speeds['cached_examples']:,.0f} examples/s from a store, {speeds['live_examples']:,.0f} live; disk "
        f"{size(speeds['read_bytes'])}/s read, {size(speeds['write_bytes'])}/s written",
        f"{'next' if result['way'] == 'cache' else 'to cache all the same'}: {result['command']}",
    ]


def _option_line(option: dict[str, Any]) -> str:
    taps = sum(map(len, option["taps"].values()))
    seconds = (_long(option[key]) for key in ("extract_seconds", "epoch_seconds", "seconds"))
    notes = ["" if option["holds"] else "  cannot hold all values", "" if option["fits"] else "  does not fit"]
    return (
        f"{'*' if option['chosen'] else ' '} {option['encoding']:<16} {taps:>5} {size(option['bytes']):>10} "
        f"{' '.join(f'{each:>10}' for each in seconds)}{''.join(notes)}"
    )


def _kept(result: dict[str, Any]) -> str:
    """Where later epochs find what they read."""
    if result["stays_in_memory"]:
        return "in memory"
    return "in the page cache" if result["stays_in_page_cache"] else "from the disk"


def _known(count: int | None) -> str:
    return "an unknown number of bytes" if count is None else size(count)


def _times(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _long(seconds: float) -> str:
    """Seconds, with a digit behind the point where they are few."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
