"""Encoder-only models with absolute positions: BERT (Devlin et al. 2019, arXiv:1810.04805) and its relatives.

The last layer ends in its own norm, so there is no final norm: the last tap is the model's answer. The pooler
is left out: many checkpoints lack it, and a random one would stand in its place.
"""

from dataclasses import replace
from typing import Any

from .contract import BackboneTable, LayerForm, OpPath, StreamTable, Sublayer, known_activation


def _initializer_range(config: Any) -> float:
    return float(config.initializer_range)


def _positions(config: Any) -> int:
    return int(config.max_position_embeddings)


def _positions_behind_padding(config: Any) -> int:
    # position ids count from the padding index + 1
    return int(config.max_position_embeddings) - int(config.pad_token_id) - 1


def _form(config: Any) -> LayerForm | None:
    activation = known_activation(config.hidden_act)
    if activation is None:
        return None
    return LayerForm(
        heads=config.num_attention_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        ffn_width=config.intermediate_size,
        norm_first=False,
        norm="layer",
        norm_eps=config.layer_norm_eps,
        activation=activation,
    )


def _distilled_form(config: Any) -> LayerForm | None:
    activation = known_activation(config.activation)
    if activation is None:
        return None
    return LayerForm(
        heads=config.n_heads,
        head_width=config.dim // config.n_heads,
        ffn_width=config.hidden_dim,
        norm_first=False,
        norm="layer",
        norm_eps=1e-12,
        activation=activation,
    )


_OPS: dict[str, OpPath] = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "ffn_norm": "output.LayerNorm",
    "attention": Sublayer("attention.self", "attention.output.dropout", after="attention.output.LayerNorm"),
    "ffn": Sublayer("intermediate.dense", "output.dropout", after="output.LayerNorm"),
}
_DISTILLED_OPS: dict[str, OpPath] = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "ffn_in": "ffn.lin1",
    "ffn_out": "ffn.lin2",
    "ffn_norm": "output_layer_norm",
    "attention": Sublayer("attention", "attention", after="sa_layer_norm"),
    "ffn": Sublayer("ffn", "ffn", after="output_layer_norm"),
}
_ENCODER = StreamTable(
    name="encoder",
    stack="",
    layers="encoder.layer",
    depth="num_hidden_layers",
    norm=None,
    late=True,
    tokens="input",
    form=_form,
    ops=_OPS,
)

_BERT = BackboneTable(
    model_types=("bert",),
    auto_class="AutoModel",
    streams=(_ENCODER,),
    text_form="pair",
    max_length=_positions,
    initializer_range=_initializer_range,
    options={"add_pooling_layer": False},
)

TABLES = (
    _BERT,
    replace(_BERT, model_types=("roberta", "xlm-roberta", "camembert"), max_length=_positions_behind_padding),
    replace(_BERT, model_types=("electra",), options={}),
    replace(
        _BERT,
        model_types=("distilbert",),
        streams=(replace(_ENCODER, layers="transformer.layer", ops=_DISTILLED_OPS, form=_distilled_form),),
        options={},
    ),
)
