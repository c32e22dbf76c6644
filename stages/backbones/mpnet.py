"""MPNet (Song et al. 2020, arXiv:2004.09297): BERT's layers with one relative position bias for all of them.

The encoder around the layers owns the bias and gives it to each. The class has no fused attention, and calls no
attention function that could be exchanged: the table names no op `attention`.
"""

from torch import Tensor

from .contract import BackboneTable, OpPath, PassThrough, StreamTable, Sublayer


class TuplePassThrough(PassThrough):
    """Hands on the state as the first of a tuple, as these layers do."""

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor]:
        return (self.enter(hidden_states),)


_OPS: dict[str, OpPath] = {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "ffn_norm": "output.LayerNorm",
    "ffn": Sublayer("intermediate.dense", "output.dropout", after="output.LayerNorm"),
}
_ENCODER = StreamTable(
    name="encoder",
    stack="",
    layers="encoder.layer",
    depth="num_hidden_layers",
    norm=None,
    late=True,
    tokens="input",
    kept=("encoder.relative_attention_bias",),
    pass_through=TuplePassThrough,
    ops=_OPS,
)

TABLES = (
    BackboneTable(
        model_types=("mpnet",),
        auto_class="AutoModel",
        streams=(_ENCODER,),
        text_form="pair",
        # position ids count from the padding index + 1
        max_length=lambda config: int(config.max_position_embeddings) - int(config.pad_token_id) - 1,
        initializer_range=lambda config: float(config.initializer_range),
        options={"add_pooling_layer": False},
        attention="eager",
    ),
)
