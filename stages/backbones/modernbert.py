"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): an encoder with rotary positions and a final norm.

Layers alternate between attention to every token and attention to a window, each kind with a mask and rotary
angles of its own; the stack asks every layer of its list which kind it is.
"""

from typing import Any

from torch import nn

from .contract import BackboneTable, OpPath, PassThrough, Share, StreamTable, Sublayer


class AttentionTypePassThrough(PassThrough):
    """Still says which kind of attention its layer had."""

    def __init__(self, layer: nn.Module, index: int) -> None:
        super().__init__(layer, index)
        kind: Any = layer
        self.attention_type: str = kind.attention_type


_OPS: dict[str, OpPath] = {
    "query": Share("attn.Wqkv", 0, 3),
    "key": Share("attn.Wqkv", 1, 3),
    "value": Share("attn.Wqkv", 2, 3),
    "out": "attn.Wo",
    "ffn_gate": Share("mlp.Wi", 0, 2),
    "ffn_in": Share("mlp.Wi", 1, 2),
    "ffn_out": "mlp.Wo",
    "ffn_norm": "mlp_norm",
    "attention_norm": "attn_norm",  # the first layer has none, and is never late
    "attention": Sublayer("attn", "attn", before="attn_norm"),
    "ffn": Sublayer("mlp", "mlp", before="mlp_norm"),
}
_ENCODER = StreamTable(
    name="encoder",
    stack="",
    layers="layers",
    depth="num_hidden_layers",
    norm="final_norm",
    late=True,
    tokens="input",
    rotary="rotary_emb",
    pass_through=AttentionTypePassThrough,
    ops=_OPS,
)

TABLES = (
    BackboneTable(
        model_types=("modernbert",),
        auto_class="AutoModel",
        streams=(_ENCODER,),
        text_form="pair",
        max_length=lambda config: int(config.max_position_embeddings),
        initializer_range=lambda config: float(config.initializer_range),
    ),
)
