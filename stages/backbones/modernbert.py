"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): an encoder with rotary positions and a final norm.

Layers alternate between attention to every token and attention to a window, each kind with a mask and rotary
angles of its own; the stack asks every layer of its list which kind it is.
"""

from typing import Any

from torch import nn

from .contract import BackboneTable, PassThrough, StreamTable


class AttentionTypePassThrough(PassThrough):
    """Still says which kind of attention its layer had."""

    def __init__(self, layer: nn.Module, index: int) -> None:
        super().__init__(layer, index)
        kind: Any = layer
        self.attention_type: str = kind.attention_type


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
