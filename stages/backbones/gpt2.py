"""Causal decoders with learned positions: GPT-2 (Radford et al. 2019) and OPT (Zhang et al. 2022, arXiv:2205.01068).

The one stream is a `decoder` that reads the text: a token sees those before it, so the last one has seen them all and
stands for the text. Answers come from a head on that state, and the model's output projection is not loaded; or from
that projection, as text behind the text.
"""

from dataclasses import replace
from typing import Any

from .contract import BackboneTable, LayerForm, OpPath, Share, StreamTable, Sublayer, continues, known_activation


def _post_norm(config: Any) -> str | None:
    final_norm = config.do_layer_norm_before and not config._remove_final_layer_norm
    if final_norm and config.word_embed_proj_dim == config.hidden_size:
        return None
    return (
        "its layers end in their own norms or its embeddings are narrower than its states, and the table "
        "describes the variant with a final norm and one width (all sizes of OPT but 350m)"
    )


def _open_form(config: Any) -> LayerForm | None:
    activation = known_activation(config.activation_function)
    if activation is None or not config.layer_norm_elementwise_affine:
        return None
    return LayerForm(
        heads=config.num_attention_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        ffn_width=config.ffn_dim,
        norm_first=True,
        norm="layer",
        norm_eps=1e-5,
        activation=activation,
        bias=config.enable_bias,
        causal=True,
    )


_OPS: dict[str, OpPath] = {
    "query": Share("attn.c_attn", 0, 3),
    "key": Share("attn.c_attn", 1, 3),
    "value": Share("attn.c_attn", 2, 3),
    "out": "attn.c_proj",
    "attention_norm": "ln_1",
    "ffn_in": "mlp.c_fc",
    "ffn_out": "mlp.c_proj",
    "ffn_norm": "ln_2",
    "attention": Sublayer("attn", "attn", before="ln_1"),
    "ffn": Sublayer("mlp", "mlp", before="ln_2"),
}
_OPT_OPS: dict[str, OpPath] = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "ffn_in": "fc1",
    "ffn_out": "fc2",
    "ffn_norm": "final_layer_norm",
    "attention": Sublayer("self_attn", "self_attn", before="self_attn_layer_norm"),
    "ffn": Sublayer("fc1", "fc2", before="final_layer_norm"),
}
_DECODER = StreamTable(
    name="decoder",
    stack="",
    layers="h",
    depth="num_hidden_layers",
    norm="ln_f",
    late=True,
    tokens="input",
    causal=True,
    arguments={"use_cache": False},
    ops=_OPS,
)

_GPT2 = BackboneTable(
    model_types=("gpt2",),
    auto_class="AutoModel",
    streams=(_DECODER,),
    text_form="template",
    max_length=lambda config: int(config.max_position_embeddings),
    initializer_range=lambda config: float(config.initializer_range),
    pooling="last",
)

_OPT = replace(
    _GPT2,
    model_types=("opt",),
    streams=(
        replace(
            _DECODER,
            stack="decoder",
            layers="decoder.layers",
            norm="decoder.final_layer_norm",
            form=_open_form,
            ops=_OPT_OPS,
        ),
    ),
    initializer_range=lambda config: float(config.init_std),
    refuses=_post_norm,
)

TABLES = (continues(_GPT2, "transformer"), continues(_OPT, "model"))
