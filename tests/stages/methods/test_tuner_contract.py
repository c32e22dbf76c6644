"""What the contract of tuners carries beside the methods that exist: shared parameters, several parts on an op, tuners of
tuners, products inside products; each shown by a small tuner written here."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from model_cases import cached, loaded_model, ragged_batch, stage_two_of
from torch import Tensor, nn

from sherl_cache.stages import plugins
from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.late_ops import late_ops
from sherl_cache.stages.methods import tuner as tuner_package
from sherl_cache.stages.methods.contract import Attention, LateOps, Op, OpPart, OpTuner, Part, Tuner, split_heads
from sherl_cache.stages.model import StageTwo
from sherl_cache.stages.tuning import hang, merged_state


def stage_two(family: str, late: int = 2) -> StageTwo:
    recipe = StageTwoRecipe(fusion="last", late=late, mode="frozen")
    return stage_two_of(loaded_model(family, "float64"), recipe, torch.float64).eval()


def put(model: StageTwo, method: type[Tuner], **options: object) -> Tuner:
    """A tuner from outside on a model, as `build_stage_two` puts one there."""
    torch.manual_seed(0)
    tables = {stream.name: stream for stream in model.table.streams}
    widths = model.table.widths(model.late.stream(model.late.names[0]).stack.config)
    tuner = method.from_options(options, late_ops(tables, model.late, widths)).double()
    hang(tuner, model.late)
    model.tuner = tuner
    return tuner


def taps_of(family: str, model: StageTwo) -> dict:
    return cached(loaded_model(family, "float64"), model, [ragged_batch(family)])


class SumOfKroneckers(OpPart):
    """x sum_i (A_i x B_i), where the rules A [n, n, n] belong to the tuner (KAdaptation)."""

    def __init__(self, rules: nn.Parameter, op: Op) -> None:
        super().__init__(None, op)
        self.rules = rules
        count = len(rules)
        self.blocks = nn.Parameter(torch.randn(count, op.in_width // count, op.out_width // count))

    @property
    def update(self) -> Tensor:
        return sum(torch.kron(rule, block) for rule, block in zip(self.rules, self.blocks, strict=True))

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        return y + x @ self.update

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.update.T, bias


class SharedRules(OpTuner):
    """Kronecker updates whose rules all ops of all layers share."""

    default_ops = ("query", "value")
    starts_as_identity = False

    def share(self, ops: tuple[Op, ...]) -> None:
        self.rules = nn.Parameter(torch.randn(4, 4, 4))

    def build(self, op: Op) -> Part:
        return SumOfKroneckers(self.rules, op)


def test_parameters_that_all_parts_share_are_one_parameter_that_every_layer_trains() -> None:
    """Compacter check 3: the rule appears once, n^3 is counted once, and every late layer gives it gradient."""
    model = stage_two("bert")
    tuner = put(model, SharedRules)
    named = {name: value for name, value in model.named_parameters() if name.startswith("tuner.")}
    assert [name for name, value in named.items() if value is tuner.rules] == ["tuner.rules"]
    assert sum(value.numel() for value in named.values()) == 4**3 + 4 * 4 * (32 // 4) ** 2
    taps = taps_of("bert", model)
    model(taps).square().sum().backward()
    whole = tuner.rules.grad.clone()
    for op, part in tuner.placed:
        assert part.blocks.grad.abs().max() > 0, op.name
    model.zero_grad()
    part = tuner.placed[0][1]
    part.rules = nn.Parameter(tuner.rules.detach().clone())  # the first layer's gradient now goes elsewhere
    model(taps).square().sum().backward()
    assert part.rules.grad.abs().max() > 0
    torch.testing.assert_close(tuner.rules.grad + part.rules.grad, whole)


def test_a_shared_generator_is_merged_like_any_linear_update() -> None:
    model, plain = stage_two("bert"), stage_two("bert")
    tuner, taps = put(model, SharedRules), taps_of("bert", model)
    plain.late.load_state_dict(merged_state(tuner, model.late), strict=False)
    plain.head.load_state_dict(model.head.state_dict())
    torch.testing.assert_close(plain(taps), model(taps), rtol=0, atol=1e-10)


class SparseDelta(OpPart):
    """x (M * dW) with few entries, stored as places and values (FISH, DSEE)."""

    def __init__(self, op: Op) -> None:
        super().__init__(None, op)
        places = torch.randperm(op.in_width * op.out_width)[:7]
        self.register_buffer("places", places)
        self.values = nn.Parameter(torch.randn(7))
        self.shape = (op.out_width, op.in_width)

    @property
    def delta(self) -> Tensor:
        flat = self.values.new_zeros(self.shape[0] * self.shape[1]).index_put((self.places,), self.values)
        return flat.view(self.shape)

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        return y + x @ self.delta.T

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.delta, bias


class Searched(Tuner):
    """Other tuners on the same ops, each part behind a gate of its own, which a search would set (S3Delta)."""

    starts_as_identity = False

    def __init__(self, ops: LateOps) -> None:
        super().__init__()
        hosts = [plugins.find("tuner", "lora").from_options({}, ops), SparseDeltas.from_options({}, ops)]
        self.gates = nn.Parameter(torch.rand(sum(len(host.placed) for host in hosts)))
        for number, (op, part) in enumerate([pair for host in hosts for pair in host.placed]):
            self.place(op, Gated(self.gates, number, part))

    @classmethod
    def from_options(cls, options: Mapping[str, Any], ops: LateOps) -> Self:
        return cls(ops)


class SparseDeltas(OpTuner):
    """A few entries of each weight."""

    default_ops = ("query", "value")
    starts_as_identity = False

    def build(self, op: Op) -> Part:
        return SparseDelta(op)


class Gated(Part):
    def __init__(self, gates: nn.Parameter, number: int, part: Part) -> None:
        super().__init__()
        self.gates, self.number, self.part = gates, number, part

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.gates[self.number] * (self.part.leave(x, y) - y)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_search_over_tuners_puts_several_gated_parts_on_an_op(family: str) -> None:
    """S3Delta check 3: with all gates closed the output is the frozen one."""
    model = stage_two(family)
    tuner = put(model, Searched)
    with torch.no_grad():
        for name, parameter in tuner.named_parameters():
            if name.endswith("up"):
                parameter.normal_()
    taps = taps_of(family, model)
    model(taps).square().sum().backward()
    assert (tuner.gates.grad != 0).all()
    with torch.no_grad():
        tuner.gates.zero_()
        tuned = model(taps)
        with model.without_tuner():
            assert torch.equal(model(taps), tuned)


class MixAndMatch(Tuner):
    """A prefix and a parallel adapter in one (MAM)."""

    starts_as_identity = False

    def __init__(self, ops: LateOps, others: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        for name, options in others.items():
            for op, part in plugins.find("tuner", name).from_options(options, ops).placed:
                self.place(op, part)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], ops: LateOps) -> Self:
        return cls(ops, options)


def test_a_tuner_made_of_others_has_the_published_parameters_of_both() -> None:
    """MAM: 2 l d + 2 d r + r + d a layer."""
    model = stage_two("bert")
    tuner = put(model, MixAndMatch, prefix={"length": 16}, parallel_adapter={"bottleneck": 16})
    assert sum(value.numel() for value in tuner.parameters()) == 2 * (2 * 16 * 32 + 2 * 32 * 16 + 16 + 32)
    taps = taps_of("bert", model)
    model(taps).square().sum().backward()
    both = [name for name, value in tuner.named_parameters() if value.grad.abs().max() > 0]
    assert any("attention" in name for name in both)
    assert any("ffn" in name for name in both)


DROPPED_IN = '''
"""A tuner from elsewhere."""
import torch
from torch import nn
from ..contract import OpPart, OpTuner

class Shift(OpPart):
    def __init__(self, config, op):
        super().__init__(config, op)
        self.shift = nn.Parameter(torch.zeros(op.out_width))

    def leave(self, x, y):
        return y + self.shift

class Shifts(OpTuner):
    """Shifts what leaves each FFN."""
    part = Shift
    default_ops = ("ffn",)
    kinds = ("ffn",)
    starts_as_identity = True
'''


def test_a_tuner_dropped_in_as_a_file_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shifts.py").write_text(DROPPED_IN)
    monkeypatch.setattr(tuner_package, "__path__", [*tuner_package.__path__, str(tmp_path)])
    recipe = StageTwoRecipe(fusion="last", tuner="shifts", tuner_options={"layers": [3]})
    model = stage_two_of(loaded_model("bert", "float64"), recipe, torch.float64)
    sys.modules.pop(type(model.tuner).__module__)
    taps = taps_of("bert", model)
    before = model(taps).detach()
    optimizer = torch.optim.SGD(model.parameter_groups(1e-4, 1e-4))
    model(taps).square().sum().backward()
    optimizer.step()
    assert model.tuner.encoder.get_submodule("3").ffn.shift.any()
    assert model(taps).square().sum() < before.square().sum()


class OwnKeys(OpPart):
    """Keys and values in front, given."""

    def __init__(self, key: Tensor, value: Tensor, op: Op) -> None:
        super().__init__(None, op)
        self.key, self.value = nn.Parameter(key), nn.Parameter(value)

    def attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys = torch.cat([split_heads(self.key, key), key], dim=2)
        values = torch.cat([split_heads(self.value, value), value], dim=2)
        return attention(query, keys, values, extra=len(self.key))


class TwoPrefixes(Tuner):
    """Two parts inside one attention product, or one with the rows of both."""

    starts_as_identity = False

    def __init__(self, ops: LateOps, pieces: list[slice]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for op in ops.choose(None, ("attention",)):
            inner = op.inside["key"].out_width
            key, value = (torch.randn(5, inner, generator=generator, dtype=torch.float64) for _ in range(2))
            for piece in pieces:
                self.place(op, OwnKeys(key[piece], value[piece], op))

    @classmethod
    def from_options(cls, options: Mapping[str, Any], ops: LateOps) -> Self:
        return cls(ops, options["pieces"])


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_two_prefixes_on_one_attention_equal_one_that_holds_both(family: str) -> None:
    apart, joined = stage_two(family), stage_two(family)
    put(apart, TwoPrefixes, pieces=[slice(0, 2), slice(2, 5)])
    put(joined, TwoPrefixes, pieces=[slice(0, 5)])
    for own, other in zip(apart.head.parameters(), joined.head.parameters(), strict=True):
        own.data.copy_(other.data)
    taps = taps_of(family, apart)
    torch.testing.assert_close(apart(taps), joined(taps), rtol=0, atol=1e-10)
    with apart.without_tuner(), joined.without_tuner():
        torch.testing.assert_close(apart(taps), joined(taps), rtol=0, atol=1e-10)
