"""The manner of `transformers`: padded batches in place of packed rows, a config with labels, pipelines that know the class."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from ..stages.packing import padding_of
from ..stages.tokens import decoder_start
from ..storage.errors import InvalidInput

if TYPE_CHECKING:
    from ..stages.tasks import Task

IGNORED: Final = -100
"""Of labels, as in transformers."""


@dataclass
class SherlOutput(ModelOutput):
    """What `SherlModel.forward` gives."""

    loss: Tensor | None = None
    logits: Tensor | None = None


def kept_rows(values: Tensor, kept: Tensor) -> list[list[int]]:
    """The kept entries of each row."""
    return [row[inside].tolist() for row, inside in zip(values, kept.bool(), strict=True)]


def behind(labels: Tensor, kept: Tensor) -> Tensor:
    """Of every kept token of labels [B, T] the one behind it, packed [N]; the last of a row has none."""
    inside = kept.bool().to(labels.device)
    lengths = inside.sum(1)
    found = labels[inside].roll(-1)
    found[lengths[lengths > 0].cumsum(0) - 1] = IGNORED
    return found


def padded(found: Tensor, answers: list[list[int]] | None, output: str) -> Tensor:
    """Output of the head in the shape that transformers gives it."""
    if answers is not None:
        lengths = torch.tensor([len(answer) for answer in answers], device=found.device)
        return padding_of(lengths).pad(found)
    return found.unsqueeze(-1) if output == "score" else found


def in_places(found: Tensor, kept: Tensor) -> Tensor:
    """Rows of the kept tokens [N, V] -> [B, T, V], zero elsewhere."""
    inside = kept.bool().to(found.device)
    return found.new_zeros(*inside.shape, found.shape[-1]).masked_scatter(inside.unsqueeze(-1), found)


def answers_of(config: Any, labels: Tensor | None, decoder_input_ids: Tensor | None) -> list[list[int]]:
    """Token ids of one candidate answer a row, of an encoder-decoder. Raises InvalidInput."""
    if labels is not None:
        pad = int(config.pad_token_id)
        known = labels != IGNORED
        if not bool(known.any(1).all()):
            raise InvalidInput("labels: every row needs the tokens of an answer, and one has none")
        lengths = labels.shape[1] - known.flip(1).int().argmax(1)  # up to the last token that counts
        return [
            row[:count].masked_fill(row[:count] == IGNORED, pad).tolist()
            for row, count in zip(labels, lengths.tolist(), strict=True)
        ]
    if decoder_input_ids is None:
        raise InvalidInput(
            "this model answers with tokens: forward needs labels or decoder_input_ids; generate and predict need neither"
        )
    start = decoder_start(config)
    if bool((decoder_input_ids[:, 0] != start).any()):
        raise InvalidInput(f"decoder_input_ids: every row begins with the start token, {start}")
    # a stack reads its answer shifted right, so what stands last is never read
    return [[*row[1:].tolist(), start] for row in decoder_input_ids]


def config_with_labels(base: Any, task: Task) -> Any:
    """The pretrained model's config with the labels in it, where the task has some."""
    config, labels = copy.deepcopy(base), task.labels
    if task.kind == "retrieval":
        return config
    config.id2label = dict(enumerate(labels)) if labels else {0: "score"}
    config.label2id = {label: number for number, label in config.id2label.items()}
    config.problem_type = "single_label_classification" if len(labels) > 1 else "regression"
    return config


@cache
def known_to_pipelines(name: str) -> None:
    """`transformers.pipeline` complains of classes that it does not know by name, and runs them all the same."""
    from transformers.pipelines.base import SUPPORTED_PEFT_TASKS

    for task in ("text-classification", "sentiment-analysis", "image-classification"):
        SUPPORTED_PEFT_TASKS.setdefault(task, []).append(name)
