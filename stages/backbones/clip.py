"""CLIP (Radford et al. 2021, arXiv:2103.00020): a tower for pictures and one for texts, which meet in their projections.

Either tower may be used alone. That of pictures norms its class token only, behind all layers; a text is its last token,
the only one that has seen all others. The projections are stored beside the late layers.
"""

from typing import Any

from .contract import BackboneTable, OpPath, StreamTable, Sublayer

_OPS: dict[str, OpPath] = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "ffn_in": "mlp.fc1",
    "ffn_out": "mlp.fc2",
    "ffn_norm": "layer_norm2",
    "attention": Sublayer("self_attn", "self_attn", before="layer_norm1"),
    "ffn": Sublayer("mlp", "mlp", before="layer_norm2"),
}


def _positions(config: Any) -> int | None:
    """Of the whole config or a tower's own; pictures have theirs in the first state and set no limit behind it."""
    positions: int | None = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    return positions


def _initializer_range(config: Any) -> float:
    return float(config.vision_config.initializer_range)


_VISION = StreamTable(
    name="vision",
    config_key="vision_config",
    stack="vision_model",
    layers="vision_model.encoder.layers",
    depth="num_hidden_layers",
    norm="vision_model.post_layernorm",
    norms_rows=False,
    late=True,
    tokens="pixels",
    embeddings="vision_model.embeddings",
    kept=("visual_projection",),
    projection="visual_projection",
    pooling="cls",
    ops=_OPS,
)

_TEXT = StreamTable(
    name="text",
    config_key="text_config",
    stack="text_model",
    layers="text_model.encoder.layers",
    depth="num_hidden_layers",
    norm="text_model.final_layer_norm",
    late=True,
    tokens="input",
    embeddings="text_model.embeddings",
    kept=("text_projection",),
    projection="text_projection",
    pooling="last",
    ops=_OPS,
)

TABLES = (
    BackboneTable(
        model_types=("clip",),
        auto_class="AutoModel",
        streams=(_VISION, _TEXT),
        text_form="template",
        max_length=_positions,
        initializer_range=_initializer_range,
    ),
)
