"""The grammar of taps: what each rule picks, and that whatever cannot be read is refused by us."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sherl_cache.stages.taps import format_taps, parse_stream_taps, parse_taps
from sherl_cache.storage.errors import RecipeError


@pytest.mark.parametrize(
    ("grammar", "taps"),
    [
        ("0,2,-1", (0, 2, 12)),
        (" 4 , 0 ,4", (0, 4)),
        ("-1", (12,)),
        ("-13", (0,)),
        ("every:2", (0, 2, 4, 6, 8, 10, 12)),
        ("every:5", (0, 5, 10, 12)),
        ("every:100", (0, 12)),
        ("late:3", (10, 11, 12)),
        ("late:13", tuple(range(13))),
    ],
)
def test_each_rule_picks_its_taps(grammar: str, taps: tuple[int, ...]) -> None:
    assert parse_taps(grammar, deepest=12) == taps


@pytest.mark.parametrize(
    ("grammar", "word"),
    [
        ("13", "h12"),
        ("-14", "h12"),
        ("late:14", "13"),
        ("every:0", "at least 1"),
        ("late:", "at least 1"),
        ("every:x", "at least 1"),
        ("", "not a choice"),
        ("0,,1", "not a choice"),
        ("0-3", "not a choice"),
        ("\u0661", "not a choice"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_with_the_reason(grammar: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word) as caught:
        parse_taps(grammar, deepest=12, where="extract.taps")
    assert str(caught.value).startswith("extract.taps: ")


def test_one_rule_holds_for_every_stream_counted_from_its_own_end() -> None:
    assert parse_stream_taps("0,-1", {"encoder": 12, "decoder": 11}) == {
        "encoder": (0, 12),
        "decoder": (0, 11),
    }
    assert parse_stream_taps("every:6", {"encoder": 12}) == {"encoder": (0, 6, 12)}


def test_a_rule_a_stream_leaves_the_others_out() -> None:
    deepest = {"encoder": 12, "decoder": 11}
    assert parse_stream_taps("decoder: late:2", deepest) == {"decoder": (10, 11)}
    assert parse_stream_taps("encoder:0,2,4; decoder:every:4", deepest) == {
        "encoder": (0, 2, 4),
        "decoder": (0, 4, 8, 11),
    }


@pytest.mark.parametrize(
    ("grammar", "word"),
    [
        ("vision:0", "encoder, decoder"),
        ("encoder:0;encoder:1", "twice"),
        ("encoder:0;1", "names no stream"),
        ("0;1", "names no stream"),
        ("encoder:", "not a choice"),
        ("decoder:12", "decoder"),
    ],
)
def test_streams_that_cannot_be_are_refused_with_the_reason(grammar: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        parse_stream_taps(grammar, {"encoder": 12, "decoder": 11})


@given(st.dictionaries(st.sampled_from(["encoder", "decoder", "vision"]), st.sets(st.integers(0, 40), min_size=1)))
def test_formatted_taps_are_read_back_as_the_same_taps(taps: dict[str, set[int]]) -> None:
    if not taps:
        return
    chosen = {stream: tuple(sorted(numbers)) for stream, numbers in taps.items()}
    assert parse_stream_taps(format_taps(chosen), dict.fromkeys(taps, 40)) == chosen


@given(st.text(alphabet="0123456789,-:; everylat\n\u00d7\u00b2\u0661", max_size=20), st.integers(0, 30))
def test_any_text_is_taps_in_range_or_a_recipe_error(grammar: str, deepest: int) -> None:
    try:
        streams = parse_stream_taps(grammar, {"encoder": deepest, "decoder": deepest})
    except RecipeError:
        return
    for taps in streams.values():
        assert taps == tuple(sorted(set(taps)))
        assert set(taps) <= set(range(deepest + 1))
        assert taps
