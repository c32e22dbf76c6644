"""A tiny model of every type that reads text and has a table, made once."""

from functools import cache

import torch
import transformers
from tiny_configs import TEXT_CONFIGS, VOCABULARY
from transformers import AutoConfig

from sherl_cache.stages.backbones.contract import table_for
from sherl_cache.stages.load import LoadedModel, weights_digest

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


@cache
def tiny_model(model_type: str, precision: str = "float32", **options: object) -> LoadedModel:
    """A model of that type, every parameter redrawn, so that a forgotten or a swapped one shows."""
    kept = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    config = AutoConfig.for_model(model_type, **{**kept, **TEXT_CONFIGS[model_type], **options})
    table = table_for(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # built in its number format, as a checkpoint is loaded: a cast would round rotary frequencies too
        auto, dtype = getattr(transformers, table.auto_class), DTYPES[precision]
        model = auto.from_config(config, attn_implementation=table.attention, dtype=dtype, **table.options).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                norm = "norm" in name.lower() or "ln_" in name
                shape = parameter.shape
                parameter.copy_(table.unit_norm - 0.5 + torch.rand(shape) if norm else 0.2 * torch.randn(shape))
            if table.head_bias is not None:
                model.get_buffer(table.head_bias).normal_()
    model = model.requires_grad_(False)
    return LoadedModel(model_type, model, None, table, None, weights_digest(model))
