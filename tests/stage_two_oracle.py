"""The live side for any text model: its own forward with hooks written here, found without its table.

Layer lists are the model's ModuleLists, final norms its children of that name, and the memory of a decoder's layer is
recognised as the very tensor that the encoder gave. Padding, pooling and hooks are of this file; fusion, new norms and
head are copies of the modules under test, and run on padded batches with all their padding.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from live_oracle import Live, fuse, padded
from torch import Tensor, nn

from sherl_cache.stages.front import TokenBatch
from sherl_cache.stages.model import StageTwo

FINAL_NORMS = ("norm", "ln_f", "final_norm", "final_layer_norm")


def layer_list(stack: nn.Module) -> nn.ModuleList:
    return next(module for module in stack.modules() if isinstance(module, nn.ModuleList))


def final_norm(stack: nn.Module) -> nn.Module | None:
    """The norm after the last layer, where there is one: a norm of a layer is no child of what holds the list."""
    layers = layer_list(stack)
    owner = next(module for module in stack.modules() if any(child is layers for child in module.children()))
    return next((child for name, child in owner.named_children() if name in FINAL_NORMS), None)


def tap_states(layers: nn.ModuleList) -> dict[int, Tensor]:
    """States by tap number, filled as a forward passes them."""
    states: dict[int, Tensor] = {}
    layers[0].register_forward_pre_hook(lambda module, args: states.__setitem__(0, args[0]))
    for index, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda module, args, output, tap=index + 1: states.__setitem__(
                tap, output[0] if isinstance(output, tuple) else output
            )
        )
    return states


def take_over(stage_two: StageTwo, stream: str, layers: nn.ModuleList) -> dict[str, nn.Module]:
    """The model's own late layers, with the values of stage two's, by stage two's names."""
    assert stage_two.late is not None
    late = stage_two.late.stream(stream).layers
    for index, layer in late.items():
        layers[index].load_state_dict(layer.state_dict())
        layers[index].requires_grad_(stage_two.recipe.mode == "full")
    return {f"late.{stream}.{index}": layers[index] for index in late}


def take_over_norm(stage_two: StageTwo, stream: str, norm: nn.Module | None) -> dict[str, nn.Module]:
    """The model's own final norm, with the values of stage two's."""
    assert (norm is not None) == (stream in stage_two.norm)
    if norm is None:
        return {}
    norm.load_state_dict(stage_two.norm[stream].state_dict())
    norm.requires_grad_(stage_two.fusion.exit_norm == "new")
    return {f"norm.{stream}": norm}


def live_text(whole: nn.Module, stage_two: StageTwo, batch: TokenBatch, extra: int = 0) -> Live:
    """Class logits [B, C] of a model with one stack; `extra`: columns of padding beside those needed."""
    model = copy.deepcopy(whole)
    (stream,) = stage_two.specs
    layers = layer_list(model)
    fusion, head = copy.deepcopy(stage_two.fusion), copy.deepcopy(stage_two.head)
    states, taps = tap_states(layers), stage_two.reads[stream]
    modules: dict[str, nn.Module] = {"fusion": fusion, "head": head}
    norm = final_norm(model)
    modules |= take_over_norm(stage_two, stream, norm)
    if stage_two.late is not None:
        modules |= take_over(stage_two, stream, layers)
        layers[len(layers) - stage_two.recipe.late].register_forward_pre_hook(
            lambda module, args: (fuse(fusion, stream, states, taps), *args[1:])
        )
    ids, mask = padded(batch.input_ids, 0, extra)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if batch.token_type_ids is not None:
        arguments["token_type_ids"] = padded(batch.token_type_ids, 0, extra)[0]
    output = model(**arguments).last_hidden_state
    if stage_two.late is None:
        output = fuse(fusion, stream, states, taps)
        output = output if norm is None else norm(output)
    pooled = {
        "mean": lambda: (output * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True),
        "cls": lambda: output[:, 0],
        "last": lambda: torch.stack([row[len(text) - 1] for row, text in zip(output, batch.input_ids, strict=True)]),
    }[head.pooling]()
    return Live(head.linear(pooled), modules)


def live_text_to_text(whole: nn.Module, stage_two: StageTwo, batch: TokenBatch, extra: int = 0) -> Live:
    """Vocabulary logits [N, V] of an encoder-decoder: every candidate answer is an example of its own."""
    model: Any = copy.deepcopy(whole)
    encoder, decoder = model.get_encoder(), model.get_decoder()
    layers = {"encoder": layer_list(encoder), "decoder": layer_list(decoder)}
    states = {name: tap_states(found) for name, found in layers.items()}
    fusion = copy.deepcopy(stage_two.fusion)
    new_norm = copy.deepcopy(stage_two.norm["encoder"]) if "encoder" in stage_two.norm else nn.Identity()
    modules = take_over(stage_two, "decoder", layers["decoder"])
    modules |= {"fusion": fusion, "norm.encoder": new_norm}
    modules |= take_over_norm(stage_two, "decoder", final_norm(decoder))
    plain: list[Tensor] = []
    encoder.register_forward_hook(lambda module, args, output: plain.append(output.last_hidden_state))
    late = layers["decoder"][len(layers["decoder"]) - stage_two.recipe.late :]

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        memory = new_norm(fuse(fusion, "encoder", states["encoder"], stage_two.reads["encoder"]))
        found = [*args, *kwargs.values()]
        assert sum(value is plain[0] for value in found) == 1
        arguments = [memory if value is plain[0] else value for value in args]
        if module is late[0]:
            arguments[0] = fuse(fusion, "decoder", states["decoder"], stage_two.reads["decoder"])
        return tuple(arguments), {name: memory if value is plain[0] else value for name, value in kwargs.items()}

    for layer in late:
        layer.register_forward_pre_hook(enter, with_kwargs=True)
    assert batch.targets is not None
    texts = [text for text, answers in zip(batch.input_ids, batch.targets, strict=True) for _ in answers]
    answers = [answer for answers in batch.targets for answer in answers]
    ids, mask = padded(texts, 0, extra)
    labels, valid = padded(answers, 0, extra)
    logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
    return Live(logits[valid.bool()], modules)


def live_continuation(whole: nn.Module, stage_two: StageTwo, batch: TokenBatch, extra: int = 0) -> Live:
    """Vocabulary logits [N, V] of a causal decoder for the rows that predict answers: text and candidate are one example,
    and a row predicts the token behind it."""
    model: Any = copy.deepcopy(whole)
    (stream,) = stage_two.specs
    layers, norm = layer_list(model), final_norm(model)
    fusion = copy.deepcopy(stage_two.fusion)
    states, taps = tap_states(layers), stage_two.reads[stream]
    modules: dict[str, nn.Module] = {"fusion": fusion, **take_over_norm(stage_two, stream, norm)}
    assert norm is not None
    if stage_two.late is not None:
        modules |= take_over(stage_two, stream, layers)
    entered = norm if stage_two.late is None else layers[len(layers) - stage_two.recipe.late]
    entered.register_forward_pre_hook(lambda module, args: (fuse(fusion, stream, states, taps), *args[1:]))
    assert batch.targets is not None
    pairs = [(text, answer) for text, row in zip(batch.input_ids, batch.targets, strict=True) for answer in row]
    ids, mask = padded([[*text, *answer] for text, answer in pairs], 0, extra)
    logits = model(input_ids=ids, attention_mask=mask).logits
    chosen = [
        row[len(text) - 1 : len(text) - 1 + len(answer)] for row, (text, answer) in zip(logits, pairs, strict=True)
    ]
    return Live(torch.cat(chosen), modules)


@contextmanager
def double_precision(model: nn.Module) -> Iterator[None]:
    """While open, root-mean-square norms, softmax and rotations of float64 states compute in float64.

    The library takes them in float32 whatever they are given, which makes 1e-7 of a difference in the last bit of a sum.
    Both sides get the same formula; other number formats run the library's own.
    """
    classes = {type(module) for module in model.modules() if type(module).__name__.endswith(("RMSNorm", "T5LayerNorm"))}
    own_softmax = nn.functional.softmax

    def softmax(states: Tensor, dim: int, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        return own_softmax(states, dim=dim, dtype=None if states.dtype == torch.float64 else dtype, **options)

    def forward_of(kind: type[nn.Module]) -> Any:
        own: Any = kind.forward

        def forward(self: Any, states: Tensor) -> Tensor:
            if states.dtype != torch.float64:
                return own(self, states)
            epsilon = getattr(self, "variance_epsilon", None) or self.eps
            weight = self.weight + (1.0 if kind.__name__.startswith("Gemma") else 0.0)
            return weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + epsilon)

        return forward

    patches = [patch.object(kind, "forward", forward_of(kind)) for kind in classes]
    patches.append(patch.object(nn.functional, "softmax", softmax))
    # rotations of queries and keys say `q.float()`
    own_float = Tensor.float
    patches.append(patch.object(Tensor, "float", lambda self: self if self.dtype == torch.float64 else own_float(self)))
    for item in patches:
        item.start()
    try:
        yield
    finally:
        for item in patches:
            item.stop()
