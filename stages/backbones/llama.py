"""Causal decoders with rotary positions: Llama (Touvron et al. 2023, arXiv:2302.13971) and what is built like it.

The one stream is a `decoder` that reads the text, as in gpt2.py. The stack computes the rotary angles once and
gives them to every layer; sliding windows (Mistral, Gemma) and their masks are the stack's own too, chosen by a
layer's place in the list, which is why late layers keep theirs.
"""

from dataclasses import replace
from typing import Any

from .contract import BackboneTable, StreamTable


def _positions(config: Any) -> int:
    """Longest input for which a token's angles are the same in any company: some variants of the rotary positions take
    others for a batch with a longer text."""
    ropes = config.rope_parameters or {}
    ropes = ropes.values() if all(isinstance(rope, dict) for rope in ropes.values()) else [ropes]
    limits = [rope["original_max_position_embeddings"] for rope in ropes if rope.get("rope_type") == "longrope"]
    return int(min([config.max_position_embeddings, *limits]))


_DECODER = StreamTable(
    name="decoder",
    stack="",
    layers="layers",
    depth="num_hidden_layers",
    norm="norm",
    late=True,
    tokens="input",
    rotary="rotary_emb",
    arguments={"use_cache": False},
)

_LLAMA = BackboneTable(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    auto_class="AutoModel",
    streams=(_DECODER,),
    text_form="template",
    max_length=_positions,
    initializer_range=lambda config: float(config.initializer_range),
    pooling="last",
)

TABLES = (
    _LLAMA,
    # norms scale by 1 + weight; Gemma 2 caps attention scores, which the fused attention cannot
    replace(_LLAMA, model_types=("gemma3_text",), unit_norm=0.0),
    replace(_LLAMA, model_types=("gemma2",), unit_norm=0.0, attention="eager"),
    replace(_LLAMA, model_types=("gpt_neox",), streams=(replace(_DECODER, norm="final_layer_norm"),)),
)
