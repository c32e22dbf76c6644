"""The grammar of taps: which hidden states of a stream are meant.

A tap is a hidden state by number: h00 the embeddings, h<i> the output of block i-1. A rule picks taps of one
stream:

    0,2,-1                        numbers; negative ones count back from the deepest tap
    every:2                       h00, h02, h04 ..., and the deepest
    late:3                        the three deepest
    encoder:0,2,4;decoder:every:2 a rule a stream; without stream names one rule holds for every stream
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from ..storage.errors import RecipeError
from ..storage.nearest import did_you_mean

_RULES = ("every", "late")
_HELP = "write numbers ('0,2,-1'), 'every:2', 'late:3', or one of them a stream ('encoder:0,2;decoder:late:2')"


def parse_taps(grammar: str, deepest: int, *, where: str = "taps") -> tuple[int, ...]:
    """Tap numbers, ascending and without repeats, that a rule picks among h00 to h<deepest>.

    `where` names the setting in messages. Raises RecipeError for a rule that cannot be read, or a tap that is
    not there.
    """
    text = grammar.strip()
    rule, colon, count = (part.strip() for part in text.partition(":"))
    if colon and rule in _RULES:
        if not re.fullmatch(r"[1-9][0-9]{0,5}", count):
            raise RecipeError(f"{where}: {text!r} needs a whole number of at least 1 after '{rule}:', not {count!r}")
        if rule == "every":
            return tuple(sorted({*range(0, deepest + 1, int(count)), deepest}))
        if int(count) > deepest + 1:
            raise RecipeError(
                f"{where}: {text!r} asks for {count} taps; there are {deepest + 1}, h00 to h{deepest:02d}"
            )
        return tuple(range(deepest + 1 - int(count), deepest + 1))
    taps = set()
    for part in text.split(","):
        if not re.fullmatch(r"-?[0-9]{1,6}", part.strip()):
            raise RecipeError(f"{where}: {text!r} is not a choice of taps; {_HELP}")
        number = int(part)
        tap = number if number >= 0 else deepest + 1 + number
        if not 0 <= tap <= deepest:
            raise RecipeError(f"{where}: there is no tap {number}; the deepest here is h{deepest:02d}")
        taps.add(tap)
    return tuple(sorted(taps))


def parse_stream_taps(grammar: str, deepest: Mapping[str, int], *, where: str = "taps") -> dict[str, tuple[int, ...]]:
    """Tap numbers of each stream; `deepest` gives each stream's deepest tap.

    A rule without stream names holds for every stream; where streams are named, the others are left out.
    Raises RecipeError as `parse_taps` does, and for a stream that is unknown or named twice.
    """
    rules = split_streams(grammar, deepest, where=where)
    return {stream: parse_taps(rule, deepest[stream], where=f"{where} ({stream})") for stream, rule in rules.items()}


def split_streams(grammar: str, streams: Iterable[str], *, where: str = "taps") -> dict[str, str]:
    """The rule of each stream, not yet read; see `parse_stream_taps`."""
    streams = tuple(streams)
    parts = [part.strip() for part in grammar.split(";")]
    heads = [part.partition(":")[0].strip() for part in parts]
    named = [bool(re.fullmatch(r"[A-Za-z_]\w*", head)) and head not in _RULES for head in heads]
    if len(parts) == 1 and not named[0]:
        return dict.fromkeys(streams, parts[0])
    rules: dict[str, str] = {}
    for stream, is_named, part in zip(heads, named, parts, strict=True):
        if not is_named:
            raise RecipeError(f"{where}: {part!r} names no stream, but {grammar!r} has several parts; {_HELP}")
        if stream not in streams:
            hint = did_you_mean(stream, [*streams, *_RULES])
            raise RecipeError(
                f"{where}: no stream {stream!r} in {grammar!r}{hint}; this model has {', '.join(streams)}"
            )
        if stream in rules:
            raise RecipeError(f"{where}: stream {stream!r} is named twice in {grammar!r}; name it once")
        rules[stream] = part.partition(":")[2].strip()
    return rules


def format_taps(taps: Mapping[str, Sequence[int]]) -> str:
    """The grammar that `parse_stream_taps` reads back as the same taps."""
    return ";".join(f"{stream}:{','.join(str(tap) for tap in numbers)}" for stream, numbers in taps.items())
