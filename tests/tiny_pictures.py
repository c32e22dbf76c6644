"""Tiny vision models with random weights and their image processors, and small pictures in memory and in folders."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny import build, save
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIDE = 16
"""Pixels of a side of what the tiny models read; a patch has 8 x 8, so that a picture has four."""
_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "initializer_range": 0.2,
}
_TINY = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
_WIDE = {**_TINY, "intermediate_size": 24}
_TEXT = {"hidden_size": 12, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
PICTURE_CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {**_WIDE, "qkv_bias": False},
    "deit": _WIDE,
    "dinov2": {**_TINY, "use_swiglu_ffn": True, "layerscale_value": 0.3},
    "dinov2_with_registers": {**_TINY, "num_register_tokens": 3},
    "clip": {
        "text_config": {**_TEXT, "vocab_size": 60, "bos_token_id": 58, "eos_token_id": 59},
        "vision_config": _WIDE,
        "projection_dim": 8,
    },
}
"""A tiny config of every model type that reads pictures as rows and has a table: 8 x 8 pixels in patches of 4 x 4."""
MAP_SIDE = 48
_STAGES = {"embedding_size": 4, "hidden_sizes": [8, 8, 12, 20], "depths": [1, 2, 1, 2]}
MAP_CONFIGS: dict[str, dict[str, Any]] = {
    "resnet": {**_STAGES, "layer_type": "bottleneck"},
    "regnet": {**_STAGES, "layer_type": "y", "groups_width": 2},
}
"""The same of those whose states are maps: two stages of one width, the others of their own; 48 x 48 pixels, of which the last
stage makes 2 x 2 places, and the one before 3 x 3."""


def tiny_vit(folder: Path | str, *, seed: int = 0, processor: Mapping[str, Any] | None = None, **config: Any) -> Path:
    """A ViTModel of 3 blocks, width 16, that reads 16 x 16 pixels."""
    made = ViTImageProcessorPil(**{"size": {"height": SIDE, "width": SIDE}, **(processor or {})})
    return save(folder, build(ViTModel, ViTConfig(**{**_SIZES, "intermediate_size": 24, **config}), seed), made)


def tiny_deit(folder: Path | str, *, seed: int = 0, **config: Any) -> Path:
    """A DeiTModel, as `tiny_vit`; its processor crops the middle out."""
    made = DeiTImageProcessorPil(size={"height": 20, "width": 20}, crop_size={"height": SIDE, "width": SIDE})
    return save(folder, build(DeiTModel, DeiTConfig(**{**_SIZES, "intermediate_size": 24, **config}), seed), made)


def tiny_dinov2(folder: Path | str, *, seed: int = 0, **config: Any) -> Path:
    """A Dinov2Model, as `tiny_vit`; its positions are interpolated to the 24 x 24 pixels of its processor."""
    made = BitImageProcessorPil(size={"shortest_edge": 26}, crop_size={"height": 24, "width": 24})
    return save(folder, build(Dinov2Model, Dinov2Config(**{**_SIZES, "mlp_ratio": 2, **config}), seed), made)


def tiny_resnet(folder: Path | str, *, seed: int = 0, **config: Any) -> Path:
    """A ResNetModel of 3 stages and widths 8, 8, 12, 20, the stem's first; its processor makes 32 x 32 pixels, the last map of
    which is 2 x 2. Statistics of its norms are random."""
    made = ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.9)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12, 20], "depths": [1, 2, 1], "layer_type": "basic"}
    model = build(ResNetModel, ResNetConfig(**{**sizes, **config}), seed)
    return save(folder, redraw_statistics(model, seed), made)


def redraw_statistics(model: nn.Module, seed: int = 0) -> Any:
    """The model with other weights, means and variances of its batch norms than those that do nothing."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=random)
            module.bias.data = 0.3 * torch.randn(module.bias.shape, generator=random)
            module.running_mean = 0.3 * torch.randn(module.weight.shape, generator=random)
            module.running_var = 0.5 + torch.rand(module.weight.shape, generator=random)
    return model


def tiny_clip(folder: Path | str, *, seed: int = 0) -> Path:
    """A CLIPModel whose towers differ in width and depth; pictures of 16 x 16 pixels, texts of at most 32 tokens."""
    characters = sorted(ByteLevel.alphabet())
    words = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32)
    last = len(words) - 1
    text = {"vocab_size": len(words), "max_position_embeddings": 32, "bos_token_id": last - 1, "eos_token_id": last}
    sizes = {"num_attention_heads": 2, "intermediate_size": 24, "attention_dropout": 0.1, "initializer_factor": 5.0}
    config = CLIPConfig(
        text_config={**sizes, **text, "hidden_size": 12, "num_hidden_layers": 4, "pad_token_id": last},
        vision_config={**_SIZES, **sizes},
        projection_dim=10,
    )
    made = CLIPImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": SIDE, "width": SIDE})
    save(folder, build(CLIPModel, config, seed), made)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def picture(seed: int, side: int = 20, mode: str = "RGB") -> Image.Image:
    """Random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """An encoded picture."""
    sink = BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


def write_class_folders(root: Path, counts: Mapping[str, int], seed: int = 0) -> Path:
    """`root/<class>/<number>.png`: bright pictures, a colour for each class."""
    for label, (name, count) in enumerate(counts.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([seed, label, number]).integers(0, 128, (22, 20, 3), dtype=np.uint8)
            pixels[..., label % 3] += 127
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return root
