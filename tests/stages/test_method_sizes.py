"""What `methods` says a method reads and trains, against the method itself, built over models of several sizes."""

import re
from typing import Any

import pytest
import torch

from sherl_cache.stages import plugins
from sherl_cache.stages.method_sizes import Size, fusion_streams, head_spec, late_ops, sizing, trained_numbers

EVERY = [(axis, name) for axis in plugins.AXES for name in plugins.names(axis)]
SIZES = [Size(blocks=5, width=64, heads=4, ffn_width=256, classes=3), Size(blocks=4, width=32, heads=2, ffn_width=128)]
OPTIONS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("fusion", "sherl"): [{}, {"reduction": 4}],
    ("fusion", "side"): [{}, {"layers": 2, "hidden": 5, "kernel": 1}],
    ("fusion", "vqt"): [{}, {"queries": 3}],
    ("fusion", "res_tuning"): [{}, {"bottleneck": 3}],
    ("tuner", "lora"): [{}, {"rank": 3, "ops": ["ffn_in", "ffn_out"]}],
    ("tuner", "prefix"): [{}, {"length": 3}],
}


def as_expression(formula: str) -> str:
    """`K (D d + 1)` as Python would have it."""
    return re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula)


@pytest.mark.parametrize(("axis", "name"), EVERY)
def test_the_formula_gives_what_trains(axis: str, name: str) -> None:
    method = plugins.find(axis, name)
    formula, _, unit = re.split(r";", method.trains)[0].partition(",")
    assert formula, "a method says how much of it trains"
    for size in SIZES:
        for options in OPTIONS.get((axis, name), [{}]):
            config = method.Config(**options)
            names = {key: value for key, value in config.model_dump().items() if isinstance(value, int)}
            names |= {"D": size.width, "F": size.ffn_width, "C": size.classes, "P": 256}
            places = [{}]
            if axis == "fusion":
                streams = fusion_streams(method, size, options)
                built = method.from_options(options, streams)
                reduction = names.get("reduction", 2)  # SHERL's own outside of encoder-decoders
                names |= {"K": len(method.reads(options, streams)["encoder"]), "d": size.width // reduction}
            elif axis == "tuner":
                built = method.from_options(options, late_ops(size))
                if unit.strip() == "an op":
                    places = [{"D_in": op.in_width, "D_out": op.out_width} for op, _ in built.placed]
            else:
                built = (
                    method.from_options(options, head_spec(method, size)) if axis == "head" else method.from_options({})
                )
            expression = as_expression(formula)
            said = sum(eval(expression, {"__builtins__": {}}, names | place) for place in places)
            assert said == trained_numbers(built), (expression, names)


@pytest.mark.parametrize(("axis", "name"), EVERY)
def test_the_size_is_found_without_weights(axis: str, name: str) -> None:
    """The count over a common model is that of the real thing, and nothing is allocated for it."""
    found = sizing(axis, name, SIZES[0])
    assert found.reads
    method = plugins.find(axis, name)
    if axis == "fusion":
        streams = fusion_streams(method, SIZES[0], {})
        assert found.trained == trained_numbers(method.from_options({}, streams))
        for tap in method.reads({}, streams)["encoder"][::99]:
            assert f"h{tap:02d}" in found.reads
    assert torch.empty(0).device.type == "cpu"


def test_reads_say_taps_and_what_may_follow() -> None:
    size = SIZES[1]
    assert sizing("fusion", "weighted_sum", size).reads == (
        "h00 to h03 of the encoder; every token alone; late blocks may follow"
    )
    assert sizing("fusion", "side", size).reads == (
        "h00, h03 of the encoder; the tokens of a text together; late blocks may follow"
    )
    assert sizing("tuner", "lora", size).reads == "query, value of every late block"
