"""Encoder-decoders with relative positions: T5 (Raffel et al. 2020, arXiv:1910.10683), T5 1.1, Flan-T5, mT5, umT5.

Only the first block of a stack owns the relative position bias; every later block, and so every late one,
takes it from there (umT5 has one in every block). The encoder has no late blocks: late decoder blocks attend to
its fused state, early ones to the plain one.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from .contract import (
    BackboneTable,
    LayerForm,
    OpPath,
    PassThrough,
    RelativePositions,
    StreamTable,
    Sublayer,
    known_activation,
)


class PositionBiasPassThrough(PassThrough):
    """Hands on the state beside the position bias, which the first block's attention computes."""

    def __init__(self, layer: nn.Module, index: int) -> None:
        super().__init__(layer, index)
        block: Any = layer
        self.bias_owner = block.layer[0].SelfAttention if index == 0 else None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        position_bias: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Any, None]:
        state = self.enter(hidden_states)
        if self.bias_owner is not None:
            length = state.shape[1]
            position_bias = self.bias_owner.compute_bias(length, length, device=state.device)
        return state, position_bias, None


def _form(config: Any, decoder: bool) -> LayerForm | None:
    activation = known_activation(config.dense_act_fn)
    if activation is None:
        return None
    return LayerForm(
        heads=config.num_heads,
        head_width=config.d_kv,
        ffn_width=config.d_ff,
        norm_first=True,
        norm="rms",
        norm_eps=config.layer_norm_epsilon,
        activation=activation,
        gated=config.is_gated_act,
        bias=False,
        scaled=False,
        causal=decoder,
        memory=decoder,
        relative=RelativePositions(
            buckets=config.relative_attention_num_buckets,
            farthest=config.relative_attention_max_distance,
            both_ways=not decoder,
        ),
    )


def _ops(*, cross: bool) -> dict[str, OpPath]:
    """Ops of a block: self-attention, cross-attention in the decoder, and an FFN; a gated one has `wi_0` and `wi_1` in
    place of `wi`, and their product enters `wo`."""
    ops: dict[str, OpPath] = {}
    parts = [("", "attention", 0, "SelfAttention"), ("cross_", "cross", 1, "EncDecAttention")]
    for prefix, name, place, attention in parts if cross else parts[:1]:
        for role, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            ops[prefix + role] = f"layer.{place}.{attention}.{letter}"
        norm = f"layer.{place}.layer_norm"
        ops[f"{name}_norm"] = norm
        ops[f"{prefix}attention"] = Sublayer(f"layer.{place}.{attention}", f"layer.{place}.dropout", before=norm)
    ffn = "layer.2" if cross else "layer.1"
    dense = f"{ffn}.DenseReluDense"
    return {
        **ops,
        "ffn_in": (f"{dense}.wi", f"{dense}.wi_1"),
        "ffn_gate": (f"{dense}.wi_0",),
        "ffn_out": f"{dense}.wo",
        "ffn_norm": f"{ffn}.layer_norm",
        "ffn": Sublayer(dense, f"{ffn}.dropout", before=f"{ffn}.layer_norm"),
    }


_ENCODER = StreamTable(
    name="encoder",
    stack="encoder",
    layers="encoder.block",
    depth="num_layers",
    norm="encoder.final_layer_norm",
    late=False,
    tokens="input",
    kept=("encoder.block.0.layer.0.SelfAttention.relative_attention_bias",),
    pass_through=PositionBiasPassThrough,
    form=partial(_form, decoder=False),
    relative_bias="layer.0.SelfAttention.relative_attention_bias",
    ops=_ops(cross=False),
)

_DECODER = StreamTable(
    name="decoder",
    stack="decoder",
    layers="decoder.block",
    depth="num_decoder_layers",
    norm="decoder.final_layer_norm",
    late=True,
    tokens="target",
    memory="encoder",
    memory_arguments=("encoder_hidden_states", "encoder_attention_mask"),
    layer_memory=(3, "encoder_hidden_states"),
    kept=("decoder.block.0.layer.0.SelfAttention.relative_attention_bias",),
    arguments={"use_cache": False},
    pass_through=PositionBiasPassThrough,
    causal=True,
    form=partial(_form, decoder=True),
    relative_bias="layer.0.SelfAttention.relative_attention_bias",
    ops=_ops(cross=True),
)


def _tied_scale(config: Any) -> float:
    return float(config.d_model**-0.5) if config.scale_decoder_outputs else 1.0


_T5 = BackboneTable(
    model_types=("t5",),
    auto_class="AutoModelForSeq2SeqLM",
    streams=(_ENCODER, _DECODER),
    text_form="text_to_text",
    max_length=lambda config: None,
    initializer_range=lambda config: 0.02,  # the config's own factor scales per-matrix deviations
    head="lm_head",
    head_scale=_tied_scale,
)

TABLES = (
    _T5,
    replace(_T5, model_types=("mt5",), head_scale=lambda config: 1.0),
    # every block owns a position bias: nothing is shared
    replace(
        _T5,
        model_types=("umt5",),
        streams=(
            replace(_ENCODER, kept=(), pass_through=PassThrough, form=lambda config: None, relative_bias=None),
            replace(
                _DECODER,
                layer_memory=(2, "encoder_hidden_states"),
                kept=(),
                pass_through=PassThrough,
                form=lambda config: None,
                relative_bias=None,
            ),
        ),
        head_scale=lambda config: float(config.d_model**-0.5) if config.tie_word_embeddings else 1.0,
    ),
)
