"""Encoder-decoders with learned positions: BART (Lewis et al. 2020, arXiv:1910.13461).

Every layer ends in its own norm, so no stack has a final norm, and the last tap is the answer. Positions and the
norm of the embeddings are already inside h00. The language model adds a bias to its logits that is no part of
the output projection.
"""

from functools import partial
from typing import Any

from .contract import BackboneTable, LayerForm, OpPath, StreamTable, Sublayer, known_activation


def _ops(*, cross: bool) -> dict[str, OpPath]:
    """Ops of a layer: self-attention, cross-attention in the decoder, and an FFN, each with its norm behind."""
    ops: dict[str, OpPath] = {}
    parts = [("", "attention", "self_attn"), ("cross_", "cross", "encoder_attn")]
    for prefix, name, attention in parts if cross else parts[:1]:
        for role in ("query", "key", "value", "out"):
            ops[prefix + role] = f"{attention}.{'out' if role == 'out' else role[0]}_proj"
        norm = f"{attention}_layer_norm"
        ops[f"{name}_norm"] = norm
        ops[f"{prefix}attention"] = Sublayer(attention, attention, after=norm)
    return {
        **ops,
        "ffn_in": "fc1",
        "ffn_out": "fc2",
        "ffn_norm": "final_layer_norm",
        "ffn": Sublayer("fc1", "fc2", after="final_layer_norm"),
    }


def _form(config: Any, decoder: bool) -> LayerForm | None:
    activation = known_activation(config.activation_function)
    if activation is None:
        return None
    heads = config.decoder_attention_heads if decoder else config.encoder_attention_heads
    return LayerForm(
        heads=heads,
        head_width=config.d_model // heads,
        ffn_width=config.decoder_ffn_dim if decoder else config.encoder_ffn_dim,
        norm_first=False,
        norm="layer",
        norm_eps=1e-5,
        activation=activation,
        causal=decoder,
        memory=decoder,
    )


_ENCODER = StreamTable(
    name="encoder",
    stack="model.encoder",
    layers="model.encoder.layers",
    depth="encoder_layers",
    norm=None,
    late=False,
    tokens="input",
    form=partial(_form, decoder=False),
    ops=_ops(cross=False),
)

_DECODER = StreamTable(
    name="decoder",
    stack="model.decoder",
    layers="model.decoder.layers",
    depth="decoder_layers",
    norm=None,
    late=True,
    tokens="target",
    memory="encoder",
    memory_arguments=("encoder_hidden_states", "encoder_attention_mask"),
    layer_memory=(2, "encoder_hidden_states"),
    arguments={"use_cache": False},
    causal=True,
    form=partial(_form, decoder=True),
    ops=_ops(cross=True),
)

TABLES = (
    BackboneTable(
        model_types=("bart",),
        auto_class="AutoModelForSeq2SeqLM",
        streams=(_ENCODER, _DECODER),
        text_form="text_to_text",
        max_length=lambda config: int(config.max_position_embeddings),
        initializer_range=lambda config: float(config.init_std),
        head="lm_head",
        head_bias="final_logits_bias",
    ),
)
