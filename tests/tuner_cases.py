"""Stage two with one tuner, the parts of it, and ops of published sizes: what the tests of the tuners' equations share."""

import torch
from live_oracle import redraw
from model_cases import cached, loaded_model, ragged_batch, stage_two_of
from torch import Tensor, nn
from torch.nn import functional as F

from sherl_cache.stages import plugins
from sherl_cache.stages.build import StageTwoRecipe
from sherl_cache.stages.methods.contract import LateOps, Op, Part, Tuner
from sherl_cache.stages.model import StageTwo


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def make(family: str, name: str, late: int = 1, drawn: bool = True, **options: object) -> StageTwo:
    recipe = StageTwoRecipe(fusion="last", late=late, tuner=name, tuner_options=options)
    model = stage_two_of(loaded_model(family, "float64"), recipe, torch.float64)
    if drawn:
        redraw(model, seed=4)
    return model.eval()


def taps_of(family: str, model: StageTwo) -> dict:
    return cached(loaded_model(family, "float64"), model, [ragged_batch(family)])


def only_part(model: StageTwo, role: str) -> tuple[Op, Part]:
    return next((op, part) for op, part in model.tuner.placed if op.role == role)


def last_layer(model: StageTwo) -> nn.Module:
    stream = model.late.stream(model.late.names[-1])
    return stream.layers[stream.indices[-1]]


def zero(*parameters: Tensor) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()


def ops_of(width: int, ffn: int, layers: int, cross: bool = False, inner: int | None = None) -> LateOps:
    """Ops of a transformer of published size, without weights."""
    inner = inner or width
    found: list[Op] = []
    for layer in range(layers):

        def op(role: str, kind: str, x: int, y: int, inside: dict[str, Op] | None = None, layer: int = layer) -> Op:
            return Op(stream="encoder", layer=layer, role=role, kind=kind, in_width=x, out_width=y, inside=inside or {})

        for prefix, name in (("", "attention"), ("cross_", "cross"))[: 1 + cross]:
            inside = {role: op(prefix + role, "linear", width, inner) for role in ("query", "key", "value")}
            inside["out"] = op(prefix + "out", "linear", inner, width)
            found += [*inside.values(), op(f"{name}_norm", "norm", width, width)]
            found.append(op(f"{prefix}attention", "attention", width, width, inside))
        found += [op("ffn_in", "linear", width, ffn), op("ffn_out", "linear", ffn, width)]
        found += [
            op("ffn_norm", "norm", width, width),
            op("ffn", "ffn", width, width),
            op("block", "block", width, width),
        ]
    return LateOps(tuple(found))


def tuner_of(name: str, ops: LateOps, **options: object) -> Tuner:
    with torch.device("meta"):
        return plugins.find("tuner", name).from_options(options, ops)


def count(tuner: Tuner) -> int:
    return sum(parameter.numel() for parameter in tuner.parameters())


def bottleneck(part: Part, rows: Tensor, activation: object = F.gelu) -> Tensor:
    inner = part.bottleneck
    return activation(rows @ inner.down.T + inner.down_bias) @ inner.up.T + inner.up_bias


def ffn_of(layer: nn.Module, x: Tensor) -> Tensor:
    inner, outer = layer.intermediate.dense, layer.output.dense
    return F.gelu(x @ inner.weight.T + inner.bias) @ outer.weight.T + outer.bias


def plain_attention(query: Tensor, key: Tensor, value: Tensor, extra: int = 0) -> Tensor:
    return ((query @ key.transpose(2, 3)).softmax(-1) @ value).transpose(1, 2)


def attention_part(name: str, **options: object) -> Part:
    torch.manual_seed(0)
    tuner = plugins.find("tuner", name).from_options(options, ops_of(8, 16, 1))
    part = tuner.double().placed[0][1]
    with torch.no_grad():
        for number, parameter in enumerate(part.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=number))
    return part


HEADS = (draw(3, 2, 5, 4), draw(3, 2, 6, 4, seed=1), draw(3, 2, 6, 4, seed=2))
"""Query, key, value: 3 segments, 2 heads, 5 queries of 6 tokens."""


def frozen(model: StageTwo, taps: dict) -> Tensor:
    with model.without_tuner():
        return model(taps)
