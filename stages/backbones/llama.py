"""Causal decoders with rotary positions: Llama (Touvron et al. 2023, arXiv:2302.13971) and what is built like it.

The one stream is a `decoder` that reads the text, as in gpt2.py. The stack computes the rotary angles once and
gives them to every layer; sliding windows (Mistral, Gemma) and their masks are the stack's own too, chosen by a
layer's place in the list, which is why late layers keep theirs.
"""

from dataclasses import replace
from typing import Any

from .contract import BackboneTable, OpPath, Share, StreamTable, Sublayer, continues


def _positions(config: Any) -> int:
    """Longest input for which a token's angles are the same in any company: some variants of the rotary positions take
    others for a batch with a longer text."""
    ropes = config.rope_parameters or {}
    ropes = ropes.values() if all(isinstance(rope, dict) for rope in ropes.values()) else [ropes]
    limits = [rope["original_max_position_embeddings"] for rope in ropes if rope.get("rope_type") == "longrope"]
    return int(min([config.max_position_embeddings, *limits]))


_OPS: dict[str, OpPath] = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_in": "mlp.up_proj",
    "ffn_out": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
    "attention": Sublayer("self_attn", "self_attn", before="input_layernorm"),
    "ffn": Sublayer("mlp", "mlp", before="post_attention_layernorm"),
}
# what leaves a sublayer passes a norm of its own before it is added
_GEMMA_OPS: dict[str, OpPath] = {
    **_OPS,
    "ffn_norm": "pre_feedforward_layernorm",
    "attention": Sublayer("self_attn", "post_attention_layernorm", before="input_layernorm"),
    "ffn": Sublayer("mlp", "post_feedforward_layernorm", before="pre_feedforward_layernorm"),
}
_NEOX_OPS: dict[str, OpPath] = {
    "query": Share("attention.query_key_value", 0, 3, head="attention.head_size"),
    "key": Share("attention.query_key_value", 1, 3, head="attention.head_size"),
    "value": Share("attention.query_key_value", 2, 3, head="attention.head_size"),
    "out": "attention.dense",
    "attention_norm": "input_layernorm",
    "ffn_in": "mlp.dense_h_to_4h",
    "ffn_out": "mlp.dense_4h_to_h",
    "ffn_norm": "post_attention_layernorm",
    "attention": Sublayer("attention", "attention", before="input_layernorm"),
    "ffn": Sublayer("mlp", "mlp", before="post_attention_layernorm"),
}
_DECODER = StreamTable(
    name="decoder",
    stack="",
    layers="layers",
    depth="num_hidden_layers",
    norm="norm",
    late=True,
    tokens="input",
    causal=True,
    rotary="rotary_emb",
    arguments={"use_cache": False},
    ops=_OPS,
)

_LLAMA = BackboneTable(
    model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
    auto_class="AutoModel",
    streams=(_DECODER,),
    text_form="template",
    max_length=_positions,
    initializer_range=lambda config: float(config.initializer_range),
    pooling="last",
)

_GEMMA = replace(
    _LLAMA,
    model_types=("gemma3_text",),
    streams=(replace(_DECODER, ops=_GEMMA_OPS),),
    unit_norm=0.0,
    head_cap=lambda config: config.final_logit_softcapping,
)
_NEOX = replace(
    _LLAMA,
    model_types=("gpt_neox",),
    streams=(replace(_DECODER, norm="final_layer_norm", ops=_NEOX_OPS),),
)

TABLES = (
    continues(_LLAMA, "model"),
    continues(
        replace(_LLAMA, model_types=("granite",), head_scale=lambda config: 1 / float(config.logits_scaling)), "model"
    ),
    # norms scale by 1 + weight; Gemma 2 caps attention scores, which the fused attention cannot
    continues(replace(_LLAMA, model_types=("gemma",), unit_norm=0.0), "model"),
    continues(_GEMMA, "model"),
    continues(replace(_GEMMA, model_types=("gemma2",), attention="eager"), "model"),
    continues(_NEOX, "gpt_neox"),
)
