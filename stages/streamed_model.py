"""A pretrained model whose tensors stay on disk, and its module with as many of them as are asked for."""

from __future__ import annotations

import copy
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .backbones.contract import Answers, table_for
from .checkpoint import Checkpoint, checkpoint_dtype, checkpoint_files, meta_model
from .load import LoadedModel, commit_of, load_config, load_readers, quiet_transformers, resolved
from .loading_errors import explained

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, kw_only=True)
class StreamedModel(LoadedModel):
    """A pretrained model whose tensors stay on disk; its module holds none."""

    checkpoint: Checkpoint
    where: torch.device
    """Where a block runs."""

    @property
    def device(self) -> torch.device:
        return self.where

    def tensors(self, paths: Sequence[str]) -> dict[str, Tensor]:
        prefixes = tuple(f"{path}." for path in paths)
        names = [name for name in self.checkpoint.names() if name.startswith(prefixes) or name in paths]
        return self.checkpoint.read(names)


def load_streamed(
    name: str,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    answers: Answers | None = None,
) -> StreamedModel:
    """As `load_pretrained`, with the tensors left on disk. Raises ModelError, also for a checkpoint whose tensors are
    converted while they are loaded.
    """
    source = resolved(name)
    with quiet_transformers():
        commit = commit_of(name, source, revision)
        revision = commit or revision  # all files of one state of the repository
        config = load_config(name, source, revision)
        table = table_for(config, answers)
        tokenizer, processor = load_readers(name, source, revision, table)
        with explained(name, revision, "weights"):
            files = checkpoint_files(source, revision)
            asked = getattr(torch, dtype) if isinstance(dtype, str) else dtype
            asked = asked or checkpoint_dtype(config, files)
            model = meta_model(table, config, asked)
            checkpoint = Checkpoint(model, files, asked, name)
            digest = checkpoint.digest()
    return StreamedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        processor=processor,
        table=table,
        revision=commit,
        weights_digest=digest,
        checkpoint=checkpoint,
        where=torch.device(device),
    )


class Skeleton:
    """A module of a streamed model's class: buffers as the class computes them, every parameter one zero that is read many
    times, but for those that are real for a while.
    """

    def __init__(self, loaded: StreamedModel) -> None:
        self.loaded = loaded
        self.module = _placeholders_for(loaded)
        self.read_seconds = 0.0
        """Spent on reading weights so far."""

    @contextmanager
    def real(self, names: Sequence[str]) -> Iterator[None]:
        """While open, these tensors have their values."""
        undo = []
        begun = time.perf_counter()
        tensors = self.loaded.checkpoint.read(names)
        while tensors:  # one by one, so that none is held twice
            name, tensor = tensors.popitem()
            undo.append(_exchange(self.module, name, tensor.to(self.loaded.device)))
        self.read_seconds += time.perf_counter() - begun
        try:
            yield
        finally:
            for module, kept, leaf, before in undo:
                getattr(module, kept)[leaf] = before


def _placeholders_for(loaded: StreamedModel) -> nn.Module:
    """The model's module with buffers as its class computes them, and every parameter a zero of no memory."""
    model: Any = copy.deepcopy(loaded.model)  # fronts of one model do not meet in it
    for module in model.modules():
        absent = [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name, buffer in absent:
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
        if absent:
            model._init_weights(module)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(loaded.device)
    persistent = dict(model.named_buffers(remove_duplicate=False)).keys() & set(loaded.checkpoint.names())
    for name, tensor in loaded.checkpoint.read(sorted(persistent)).items():
        _exchange(model, name, tensor.to(loaded.device))
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                zeros = torch.zeros((), dtype=parameter.dtype, device=loaded.device).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
    return model  # type: ignore[no-any-return]


def _exchange(model: nn.Module, name: str, tensor: Tensor) -> tuple[nn.Module, str, str, Tensor | None]:
    """Put a tensor at a name of the state dict; returns what puts the old one back."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        before = module._parameters[leaf]
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        return module, "_parameters", leaf, before
    kept = module._buffers[leaf]
    module._buffers[leaf] = tensor
    return module, "_buffers", leaf, kept
