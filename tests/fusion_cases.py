"""What the tests of fusions share: streams as a fusion sees them, with frozen layers where it asks for them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from sherl_cache.stages import plugins
from sherl_cache.stages.methods.contract import (
    Fusion,
    Layer,
    LayerForm,
    Packed,
    RelativePositions,
    StreamSpec,
    frozen_layer,
)

WIDTH, DEPTH = 16, 4
LENGTHS = torch.tensor([3, 1, 4])
OPTIONS: dict[str, dict[str, Any]] = {"head2toe": {"keep": 1.0}, "side": {"hidden": 8}, "ladder": {"reduction": 2}}
"""Where the defaults would leave taps unread, or are too large or too narrow for a test."""

POST_NORM = LayerForm(
    heads=4, head_width=4, ffn_width=32, norm_first=False, norm="layer", norm_eps=1e-12, activation="gelu"
)
PRE_NORM = LayerForm(
    heads=4,
    head_width=4,
    ffn_width=24,
    norm_first=True,
    norm="rms",
    norm_eps=1e-6,
    activation="gelu_tanh",
    gated=True,
    bias=False,
    scaled=False,
    relative=RelativePositions(buckets=8, farthest=16, both_ways=True),
)
CAUSAL = replace(
    PRE_NORM, causal=True, memory=True, relative=RelativePositions(buckets=8, farthest=16, both_ways=False)
)


def spec(name: str, late: int, where: str, form: LayerForm, *, encoder_decoder: bool) -> StreamSpec:
    return StreamSpec(
        name=name,
        width=WIDTH,
        depth=DEPTH,
        late=late,
        exit=where,
        encoder_decoder=encoder_decoder,
        memory="encoder" if form.memory else None,
        causal=form.causal,
        form=form,
    )


PROBE = {"encoder": spec("encoder", 0, "head", POST_NORM, encoder_decoder=False)}
CAUSAL_PROBE = {"encoder": replace(PROBE["encoder"], causal=True, form=replace(POST_NORM, causal=True))}
LATE = {
    "encoder-only": {"encoder": spec("encoder", 1, "late", POST_NORM, encoder_decoder=False)},
    "encoder-decoder": {
        "encoder": spec("encoder", 0, "memory", PRE_NORM, encoder_decoder=True),
        "decoder": spec("decoder", 2, "late", CAUSAL, encoder_decoder=True),
    },
}
BOTH_AT_HEAD = {
    "encoder": spec("encoder", 0, "memory", PRE_NORM, encoder_decoder=True),
    "decoder": spec("decoder", 0, "head", CAUSAL, encoder_decoder=True),
}


def models_of(name: str) -> dict[str, dict[str, StreamSpec]]:
    """Streams in which a fusion of this name can run."""
    method = plugins.find("fusion", name)
    assert issubclass(method, Fusion)
    models = {**(LATE if method.enters_late else {}), "probe": PROBE, "causal probe": CAUSAL_PROBE}
    if method.head_stream == "last":
        models["encoder-decoder"] = BOTH_AT_HEAD
    else:
        models["encoder alone"] = {"encoder": spec("encoder", 0, "head", PRE_NORM, encoder_decoder=True)}
    return models


def redraw(module: nn.Module, seed: int = 0) -> None:
    """Every trainable away from where it starts, gates open and not saturated; at an initial zero a mistake would not
    show."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=random)
            if parameter.requires_grad:
                gate = name.endswith("gate")
                parameter.copy_(0.03 + 0.07 * torch.rand((), generator=random) if gate else 0.3 + 0.7 * drawn)


def random_layer(form: LayerForm, width: int = WIDTH, seed: int = 0) -> Layer:
    random = torch.Generator().manual_seed(seed)
    state = {
        key: torch.randn(value.shape, generator=random) * 0.4 for key, value in Layer(form, width).state_dict().items()
    }
    return frozen_layer(form, width, state)


def with_layers(name: str, specs: Mapping[str, StreamSpec], options: Mapping[str, Any]) -> dict[str, StreamSpec]:
    wanted = plugins.find("fusion", name).frozen_layers(options, specs)
    return {
        stream: replace(item, layers={i: random_layer(item.form, seed=i) for i in wanted.get(stream, ())})
        for stream, item in specs.items()
    }


def make_fusion(name: str, model: str, options: Mapping[str, Any] | None = None, seed: int = 0) -> Fusion:
    options = OPTIONS.get(name, {}) if options is None else options
    torch.manual_seed(0)
    fusion = plugins.find("fusion", name).from_options(options, with_layers(name, models_of(name)[model], options))
    redraw(fusion, seed)
    return fusion


def make_taps(
    name: str, model: str, options: Mapping[str, Any] | None = None, segment: int | None = None
) -> dict[str, Packed]:
    """Random taps of every stream; `segment`: those of this one alone."""
    options = OPTIONS.get(name, {}) if options is None else options
    random = torch.Generator().manual_seed(1)
    packed = {}
    for stream, taps in plugins.find("fusion", name).reads(options, models_of(name)[model]).items():
        values, lengths = torch.randn(len(taps), int(LENGTHS.sum()), WIDTH, generator=random), LENGTHS
        if segment is not None:
            values, lengths = values.split(LENGTHS.tolist(), dim=1)[segment].clone(), LENGTHS[segment : segment + 1]
        packed[stream] = Packed(values, lengths, taps)
    return packed


def fused_of(fusion: Fusion, taps: Mapping[str, Packed]) -> Tensor:
    """Fused rows of the last stream."""
    rows: Tensor = list(fusion(taps).values())[-1].rows
    return rows


def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's norm takes its mean square in float32 even of float64; here it does so in float64."""
    own = T5LayerNorm.forward

    def forward(self: T5LayerNorm, states: Tensor) -> Tensor:
        if states.dtype != torch.float64:
            return own(self, states)
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(T5LayerNorm, "forward", forward)
