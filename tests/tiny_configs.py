"""A tiny config of every model type that reads text and has a table: keys beside the class's own defaults.

Depths leave three late layers, windows are shorter than the texts of the tests, and what differs between layers of one
stack (kinds of attention, rotary bases) differs here too.
"""

from typing import Any

VOCABULARY = 61

_SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
_GROUPED = {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
_T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 3,
    "num_decoder_layers": 4,
    "num_heads": 2,
}
_POSITIONS = {"max_position_embeddings": 64}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _SIZES,
    "roberta": _SIZES,
    "xlm-roberta": _SIZES,
    "camembert": _SIZES,
    "electra": {**_SIZES, "embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24, "sinusoidal_pos_embds": True},
    "mpnet": _SIZES,
    "modernbert": {**_SIZES, **_POSITIONS, "local_attention": 4, "layer_types": _ALTERNATING},
    "t5": {**_T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
    "mt5": _T5,
    "umt5": {**_T5, "tie_word_embeddings": True},
    "bart": {
        "d_model": 16,
        "encoder_layers": 3,
        "decoder_layers": 4,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "scale_embedding": True,
        "eos_token_id": 1,
        "decoder_start_token_id": 1,
        "bos_token_id": 2,
        "forced_eos_token_id": 1,
    },
    "gpt2": {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_inner": 24, "n_positions": 64},
    "opt": {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "word_embed_proj_dim": 16,
    },
    "gpt_neox": {**_SIZES, **_POSITIONS, "rotary_pct": 0.5},
    "llama": {**_GROUPED, "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
    "mistral": {**_GROUPED, "sliding_window": 3},
    "qwen2": {
        **_SIZES,
        **_POSITIONS,
        "num_key_value_heads": 1,
        "sliding_window": 3,
        "use_sliding_window": True,
        "max_window_layers": 1,
    },
    "qwen3": {**_GROUPED, "attention_bias": True},
    "smollm3": {**_SIZES, **_POSITIONS, "num_key_value_heads": 1, "no_rope_layers": [1, 0, 1, 0]},
    "granite": {
        **_SIZES,
        **_POSITIONS,
        "num_key_value_heads": 1,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.7,
        "logits_scaling": 3.0,
    },
    "gemma": _GROUPED,
    "gemma2": {
        **_GROUPED,
        "sliding_window": 3,
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {**_GROUPED, "sliding_window": 3, "layer_types": _ALTERNATING, "query_pre_attn_scalar": 8},
}
