"""The weighted sum and `last` against what their equations say, and options of single streams."""

import pytest
import torch

from sherl_cache.stages.methods.contract import Packed, StreamSpec
from sherl_cache.stages.methods.fusion.last import Last
from sherl_cache.stages.methods.fusion.weighted_sum import WeightedSum
from sherl_cache.storage.errors import RecipeError

STREAMS = {
    "encoder": StreamSpec(name="encoder", width=8, depth=5, late=0, exit="memory", encoder_decoder=True),
    "decoder": StreamSpec(name="decoder", width=8, depth=5, late=2, exit="late", encoder_decoder=True),
}
LENGTHS = torch.tensor([4, 2])


def taps_of(fusion: WeightedSum) -> dict[str, Packed]:
    random = torch.Generator().manual_seed(0)
    return {
        name: Packed(torch.randn(len(taps), 6, 8, generator=random, dtype=torch.float64), LENGTHS, taps)
        for name, taps in fusion.taps.items()
    }


@pytest.mark.parametrize("layer_norm", [False, True])
def test_weighted_sum_equals_the_equation_written_out(layer_norm: bool) -> None:
    fusion = WeightedSum.from_options({"layer_norm": layer_norm}, STREAMS).double()
    block = fusion.blocks["decoder"]
    with torch.no_grad():
        block.scores.copy_(torch.tensor([0.3, -1.0, 2.0, 0.7]))
        block.gain.fill_(1.7)
    packed = taps_of(fusion)
    taps = packed["decoder"].taps
    expected = torch.zeros(6, 8, dtype=torch.float64)
    total = sum(score.exp() for score in block.scores)
    for score, tap in zip(block.scores, taps, strict=True):
        if layer_norm:
            centred = tap - tap.mean(1, keepdim=True)
            tap = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        expected = expected + 1.7 * score.exp() / total * tap
    torch.testing.assert_close(fusion(packed)["decoder"].rows, expected)


def test_weighted_sum_starts_as_the_mean_of_its_taps() -> None:
    fusion = WeightedSum.from_options({}, STREAMS).double()
    packed = taps_of(fusion)
    torch.testing.assert_close(fusion(packed)["encoder"].rows, packed["encoder"].taps.mean(0))
    assert sum(parameter.numel() for parameter in fusion.parameters()) == (6 + 1) + (4 + 1)


def test_last_hands_on_the_deepest_tap_and_has_no_parameter() -> None:
    fusion = Last.from_options({}, STREAMS)
    assert Last.reads({}, STREAMS) == {"encoder": (5,), "decoder": (3,)}
    packed = taps_of(fusion)
    assert torch.equal(fusion(packed)["decoder"].rows, packed["decoder"].taps[0])
    assert not list(fusion.parameters())


def test_a_new_final_norm_is_only_for_fusions_that_leave_the_pretrained_space() -> None:
    assert Last.exit_norm == WeightedSum.exit_norm == "pretrained"


def test_a_stream_may_have_options_of_its_own() -> None:
    options = {"taps": "every:2", "encoder": {"taps": "0,5", "layer_norm": True}}
    fusion = WeightedSum.from_options(options, STREAMS)
    assert fusion.taps == WeightedSum.reads(options, STREAMS) == {"encoder": (0, 5), "decoder": (0, 2, 3)}
    assert fusion.blocks["encoder"].layer_norm
    assert not fusion.blocks["decoder"].layer_norm


def test_a_grammar_that_names_one_stream_leaves_the_other_at_its_default() -> None:
    assert WeightedSum.reads({"taps": "decoder:0,1"}, STREAMS) == {
        "encoder": (0, 1, 2, 3, 4, 5),
        "decoder": (0, 1),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tap": "0"}, r"fusion\.tap: unknown option of weighted_sum \(did you mean taps\?\)"),
        ({"encodr": {}}, r"fusion\.encodr: .*did you mean encoder\?"),
        ({"encoder": {"tap": "0"}}, r"fusion\.encoder\.tap: .*did you mean taps\?"),
        ({"encoder": "0,2"}, r"fusion\.encoder: options of one stream are a mapping, not '0,2'"),
        ({"layer_norm": "perhaps"}, r"fusion\.layer_norm: .*'perhaps'"),
        ({"taps": "0,4"}, r"fusion\.taps \(decoder\): there is no tap 4; the deepest here is h03"),
        ({"taps": "vision:0"}, r"fusion\.taps: no stream 'vision'.*encoder, decoder"),
    ],
)
def test_wrong_options_are_refused_by_key(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        WeightedSum.reads(options, STREAMS)
