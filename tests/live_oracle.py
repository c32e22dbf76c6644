"""The live side of the parity tests: the transformers model's own forward with hooks written here.

Nothing of our split code is used: examples are padded here, taps are read and the fused state put in by hooks
of this file, the model's own layers, final norm and output projection compute. Fusion, new norm and head are
copies of the modules under test, and run on padded batches with all their padding.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSeq2SeqLM
from tuner_oracle import hang_in

from sherl_cache.stages.front import TokenBatch
from sherl_cache.stages.methods.contract import Packed
from sherl_cache.stages.model import StageTwo


@dataclass
class Live:
    """Output for every valid token (or example), and the modules whose gradients stand against stage
    two's."""

    output: Tensor
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def gradients(self) -> dict[str, Tensor]:
        """Gradients by stage two's names."""
        return {
            f"{prefix}.{name}": parameter.grad
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        }


def redraw(stage_two: StageTwo, seed: int) -> None:
    """Every trainable anew: open gates, norms 0.5 to 1.5, all others random about what they were."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in stage_two.trained_parameters().items():
            uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            if "gate" in name:
                value = 0.03 + 0.07 * uniform  # tanh(g / 0.1) is then 0.3 to 0.76: open, and not saturated
            elif "norm" in name.lower() and name.endswith("weight"):
                value = 0.5 + uniform
            else:
                value = parameter.double() + 0.4 * (uniform - 0.5)
            parameter.copy_(value)


def padded(rows: list[list[int]], pad: int, extra: int = 0) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows)) + extra
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def fuse(fusion: nn.Module, stream: str, states: dict[int, Tensor], taps: tuple[int, ...]) -> Tensor:
    """The fusion on every position of a padded batch, [B, T, D]."""
    batch, length, width = states[taps[0]].shape
    rows = torch.stack([states[tap].reshape(-1, width) for tap in taps])
    packed = Packed(rows, torch.full((batch,), length), taps)
    return fusion({stream: packed})[stream].rows.view(batch, length, width)


def watch(layers: nn.ModuleList) -> dict[int, Tensor]:
    """States by tap number, filled as a forward passes them."""
    states: dict[int, Tensor] = {}
    layers[0].register_forward_pre_hook(lambda module, args: states.__setitem__(0, args[0]))
    for index, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda module, args, output, index=index: states.__setitem__(
                index + 1, output[0] if isinstance(output, tuple) else output
            )
        )
    return states


def own_late_layers(stage_two: StageTwo, stream: str, layers: nn.ModuleList) -> dict[str, nn.Module]:
    """The model's own late layers, with the values of stage two's."""
    late = stage_two.late.stream(stream).layers
    for index, layer in late.items():
        layers[index].load_state_dict(layer.state_dict())
        layers[index].requires_grad_(stage_two.recipe.mode == "full")
    return {f"late.{stream}.{index}": layers[index] for index in late}


def live_encoder(folder: Any, stage_two: StageTwo, batch: TokenBatch, dtype: torch.dtype, extra: int = 0) -> Live:
    """Class logits [B, C] of an encoder-only model: of the mean over a text, or of a picture's class token."""
    model = AutoModel.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    fusion, head = copy.deepcopy(stage_two.fusion), copy.deepcopy(stage_two.head)
    states, taps = watch(layers), stage_two.reads["encoder"]
    modules: dict[str, nn.Module] = {"fusion": fusion, "head": head}
    norm: nn.Module = nn.Identity()
    if "encoder" in stage_two.norm:
        norm = modules["norm.encoder"] = copy.deepcopy(stage_two.norm["encoder"])
    if hasattr(model, "layernorm"):
        model.layernorm = norm
    if stage_two.late is not None:
        modules |= own_late_layers(stage_two, "encoder", layers)
        if stage_two.tuner is not None:
            modules["tuner"] = hang_in(model.config.model_type, stage_two.tuner, layers)
        layers[len(layers) - stage_two.recipe.late].register_forward_pre_hook(
            lambda module, args: (fuse(fusion, "encoder", states, taps), *args[1:])
        )
    if batch.pixels is not None:
        output = model(pixel_values=batch.pixels).last_hidden_state
        if stage_two.late is None:
            output = norm(fuse(fusion, "encoder", states, taps))
        return Live(head.linear(output[:, 0]), modules)
    ids, mask = padded(batch.input_ids, model.config.pad_token_id, extra)
    arguments = {"input_ids": ids, "attention_mask": mask}
    if batch.token_type_ids is not None:
        arguments["token_type_ids"] = padded(batch.token_type_ids, 0, extra)[0]
    output = model(**arguments).last_hidden_state
    if stage_two.late is None:
        output = fuse(fusion, "encoder", states, taps)
    mean = (output * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    return Live(head.linear(mean), modules)


def live_decoder(folder: Any, stage_two: StageTwo, batch: TokenBatch, dtype: torch.dtype, extra: int = 0) -> Live:
    """Vocabulary logits [N, V] of an encoder-decoder: every candidate answer is an example of its own."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
    fusion = copy.deepcopy(stage_two.fusion)
    first = len(model.decoder.block) - stage_two.recipe.late
    encoder_states, decoder_states = watch(model.encoder.block), watch(model.decoder.block)
    norm = copy.deepcopy(stage_two.norm["encoder"])
    model.decoder.final_layer_norm.load_state_dict(stage_two.norm["decoder"].state_dict())
    model.decoder.final_layer_norm.requires_grad_(stage_two.fusion.exit_norm == "new")
    modules = own_late_layers(stage_two, "decoder", model.decoder.block)
    if stage_two.tuner is not None:
        modules["tuner"] = hang_in("t5", stage_two.tuner, model.decoder.block)
    modules |= {"fusion": fusion, "norm.encoder": norm, "norm.decoder": model.decoder.final_layer_norm}

    def enter(module: nn.Module, args: Any) -> Any:
        hidden, *rest = args
        if module is model.decoder.block[first]:
            hidden = fuse(fusion, "decoder", decoder_states, stage_two.reads["decoder"])
        rest[2] = norm(fuse(fusion, "encoder", encoder_states, stage_two.reads["encoder"]))
        return (hidden, *rest)

    for block in model.decoder.block[first:]:
        block.register_forward_pre_hook(enter)
    texts = [text for text, answers in zip(batch.input_ids, batch.targets, strict=True) for _ in answers]
    answers = [answer for answers in batch.targets for answer in answers]
    ids, mask = padded(texts, 0, extra)
    labels, valid = padded(answers, 0, extra)
    logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
    return Live(logits[valid.bool()], modules)
