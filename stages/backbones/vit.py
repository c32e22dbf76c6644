"""Vision transformers: ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) and its relatives DeiT (Touvron et al. 2021,
arXiv:2012.12877) and DINOv2 (Oquab et al. 2023, arXiv:2304.07193), with registers (Darcet et al. 2024, arXiv:2309.16588) too.

Every layer normalises what it reads, so the last state is normed once more. A picture's first row is its class token;
DeiT has a distillation token behind it, registers follow there. The pooler is left out: many checkpoints lack it.
"""

from dataclasses import replace
from typing import Any

from .contract import BackboneTable, LayerForm, OpPath, StreamTable, Sublayer, known_activation


def _initializer_range(config: Any) -> float:
    return float(config.initializer_range)


def _form(config: Any) -> LayerForm | None:
    activation = known_activation(config.hidden_act)
    if activation is None or not config.qkv_bias:
        return None
    return LayerForm(
        heads=config.num_attention_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        ffn_width=config.intermediate_size,
        norm_first=True,
        norm="layer",
        norm_eps=config.layer_norm_eps,
        activation=activation,
    )


_LINEAR_OPS: dict[str, OpPath] = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "out": "attention.o_proj",
    "ffn_in": ("mlp.fc1",),  # the gated form has one projection for both of its factors
    "ffn_out": ("mlp.fc2", "mlp.weights_out"),
}
_OPS: dict[str, OpPath] = {
    **_LINEAR_OPS,
    "attention_norm": "layernorm_before",
    "ffn_norm": "layernorm_after",
    "attention": Sublayer("attention", "attention", before="layernorm_before"),
    "ffn": Sublayer("mlp", "mlp", before="layernorm_after"),
}
_SCALED_OPS: dict[str, OpPath] = {  # layer scale belongs to what it scales
    **_LINEAR_OPS,
    "attention_norm": "norm1",
    "ffn_norm": "norm2",
    "attention": Sublayer("attention", "layer_scale1", before="norm1"),
    "ffn": Sublayer("mlp", "layer_scale2", before="norm2"),
}

_ENCODER = StreamTable(
    name="encoder",
    stack="",
    layers="layers",
    depth="num_hidden_layers",
    norm="layernorm",
    late=True,
    tokens="pixels",
    embeddings="embeddings",
    form=_form,
    ops=_OPS,
)

_VIT = BackboneTable(
    model_types=("vit",),
    auto_class="AutoModel",
    streams=(_ENCODER,),
    text_form=None,
    max_length=lambda config: None,
    initializer_range=_initializer_range,
    pooling="cls",
    options={"add_pooling_layer": False},
)

# a layer's form knows no layer scale
_DINOV2 = replace(_ENCODER, layers="encoder.layer", any_size=True, form=lambda config: None, ops=_SCALED_OPS)

TABLES = (
    _VIT,
    replace(_VIT, model_types=("deit",), streams=(replace(_ENCODER, special_tokens=lambda config: 2),)),
    replace(_VIT, model_types=("dinov2",), streams=(_DINOV2,), options={}),
    replace(
        _VIT,
        model_types=("dinov2_with_registers",),
        streams=(replace(_DINOV2, special_tokens=lambda config: 1 + int(config.num_register_tokens)),),
        options={},
    ),
)
