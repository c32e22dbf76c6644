"""The whole pretrained model beside a stage-two model, for fusions that look at it once before training."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..storage.errors import RecipeError
from .frozen_layers import module_paths
from .methods.contract import CachedBatch
from .tokens import TokenBatch, stream_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..storage import ExampleTable
    from .data import StoreBatches
    from .load import LoadedModel
    from .methods.contract import Loss, Pretrained, Targets
    from .model import StageTwo


@dataclass(frozen=True)
class PretrainedModel:
    """`Pretrained` over a loaded model and the training examples of a store."""

    loaded: LoadedModel
    stage_two: StageTwo
    objective: Callable[[Tensor, Targets], Loss]
    batches: StoreBatches
    examples: ExampleTable

    def modules_of(self, stream: str, block: int) -> Mapping[str, nn.Module]:
        table = self.loaded.table.stream(stream)
        layers = self.loaded.model.get_submodule(table.layers)
        assert isinstance(layers, nn.ModuleList)
        layer = layers[block]
        known = dict(layer.named_modules())
        found = {
            role: next((known[path] for path in paths if path in known), None)
            for role, paths in module_paths(table).items()
        }
        modules = {role: module for role, module in found.items() if module is not None}
        if block == 0 and table.relative_bias is not None:
            modules["relative_bias"] = known[table.relative_bias]
        return modules

    def losses(self, examples: int) -> Iterator[Tensor]:
        """Raises RecipeError where the examples of the store are not text."""
        columns = {name: self.examples.column(name) for name in ("input_ids", "token_type_ids")}
        for number in islice(self._labelled(), examples):
            ids, types = (column[number].as_py() for column in columns.values())
            if not ids:
                raise RecipeError(
                    "fusion.init: the pretrained model is run on stored token ids, and these examples have none"
                )
            yield self._loss(number, ids, types)

    def _labelled(self) -> Iterator[int]:
        targets = self.batches.targets
        known = targets.gold >= 0 if targets.output != "score" else ~np.isnan(targets.score)
        return iter(np.flatnonzero(known).tolist())

    def _loss(self, number: int, ids: list[int], types: list[int] | None) -> Tensor:
        device, targets = self.loaded.device, self.batches.targets
        answer = None
        if targets.output == "tokens":
            answer = [[targets.candidates(number)[int(targets.gold[number])].tolist()]]
        batch = TokenBatch([ids], None if types is None else [types], answer)
        outputs: dict[str, tuple[Tensor, Tensor]] = {}
        for stream in self.loaded.table.streams:
            if stream.name not in self.stage_two.specs:
                continue
            given = stream_input(stream, self.loaded.config, batch, device)
            arguments: dict[str, Any] = {**given.arguments, **stream.arguments}
            if stream.memory is not None and stream.memory_arguments is not None:
                arguments |= dict(zip(stream.memory_arguments, outputs[stream.memory], strict=True))
            state = self.loaded.model.get_submodule(stream.stack)(**arguments).last_hidden_state
            outputs[stream.name] = state, given.padding.mask
        rows = outputs[self.stage_two.exit_stream][0][0].to(self.stage_two.compute.dtype)
        if answer is not None:  # the last rows predict its tokens
            rows = rows[-len(answer[0][0]) :]
        output = self.stage_two.head(rows, torch.tensor([len(rows)], device=device))
        loss = self.objective(output, targets.of(np.asarray([number]), "gold", device))
        return loss.sum / loss.weight


@dataclass(frozen=True)
class RunPreparation:
    """`Preparation` of a run: its cached batches, and the model when it is asked for."""

    classes: int
    seed: int
    cached: StoreBatches
    load: Callable[[], Pretrained]

    def batches(self) -> Iterator[CachedBatch]:
        for batch in self.cached.epoch(0):
            yield CachedBatch(batch.inputs, batch.targets)

    def pretrained(self) -> Pretrained:
        return self.load()
