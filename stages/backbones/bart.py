"""Encoder-decoders with learned positions: BART (Lewis et al. 2020, arXiv:1910.13461).

Every layer ends in its own norm, so no stack has a final norm, and the last tap is the answer. Positions and the
norm of the embeddings are already inside h00. The language model adds a bias to its logits that is no part of
the output projection.
"""

from .contract import BackboneTable, StreamTable

_ENCODER = StreamTable(
    name="encoder",
    stack="model.encoder",
    layers="model.encoder.layers",
    depth="encoder_layers",
    norm=None,
    late=False,
    tokens="input",
)

_DECODER = StreamTable(
    name="decoder",
    stack="model.decoder",
    layers="model.decoder.layers",
    depth="decoder_layers",
    norm=None,
    late=True,
    tokens="target",
    memory="encoder",
    memory_arguments=("encoder_hidden_states", "encoder_attention_mask"),
    layer_memory=(2, "encoder_hidden_states"),
    arguments={"use_cache": False},
)

TABLES = (
    BackboneTable(
        model_types=("bart",),
        auto_class="AutoModelForSeq2SeqLM",
        streams=(_ENCODER, _DECODER),
        text_form="text_to_text",
        max_length=lambda config: int(config.max_position_embeddings),
        initializer_range=lambda config: float(config.init_std),
        head="lm_head",
        head_bias="final_logits_bias",
    ),
)
