"""Causal decoders with learned positions: GPT-2 (Radford et al. 2019) and OPT (Zhang et al. 2022, arXiv:2205.01068).

The one stream is a `decoder` that reads the text: a token sees those before it, so the last one has seen them all and
stands for the text. Answers come from a head on that state; the model's output projection is not loaded.
"""

from dataclasses import replace
from typing import Any

from .contract import BackboneTable, StreamTable


def _post_norm(config: Any) -> str | None:
    if config.do_layer_norm_before and config.word_embed_proj_dim == config.hidden_size:
        return None
    return (
        "its layers end in their own norms or its embeddings are narrower than its states, and the table "
        "describes the variant with a final norm and one width (all sizes of OPT but 350m)"
    )


_DECODER = StreamTable(
    name="decoder",
    stack="",
    layers="h",
    depth="num_hidden_layers",
    norm="ln_f",
    late=True,
    tokens="input",
    arguments={"use_cache": False},
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

TABLES = (
    _GPT2,
    replace(
        _GPT2,
        model_types=("opt",),
        streams=(replace(_DECODER, stack="decoder", layers="decoder.layers", norm="decoder.final_layer_norm"),),
        initializer_range=lambda config: float(config.init_std),
        refuses=_post_norm,
    ),
)
