"""Answers as text: what a model learns to answer, its token ids, and what a text that it gives means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .labels import number
from .prompts import answers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .tasks import Task
    from .text import Form, Tokenizer


def target_text(task: Task, label: int | float) -> str:
    """The text that a model learns to answer: the class's text, or a score with one decimal.

    Scores are rounded as `numpy.round` does, half to even: 2.75 is "2.8", 3.25 is "3.2".
    """
    if task.label_texts is not None:
        return task.label_texts[int(label)]
    return str(float(np.round(label, decimals=1)))


def decode_answer(text: str, task: Task) -> int | float | None:
    """Class number or score of a generated answer, stripped and matched exactly.

    None is an answer outside the label set; a score that cannot be read is -1.0, as in SHERL's official code.
    """
    answer = text.strip()
    if task.label_texts is None:
        score = number(answer)
        return -1.0 if score is None else score
    return task.label_texts.index(answer) if answer in task.label_texts else None


def target_ids(texts: Sequence[str], tokenizer: Tokenizer, form: Form) -> list[list[int]]:
    """Token ids of answers, in the form of a model that answers in text. Raises ModelError, DataError."""
    if form == "continuation":
        return answers(texts, tokenizer)
    ids: list[list[int]] = tokenizer(text_target=list(texts), return_attention_mask=False)["input_ids"]
    return ids


def right_targets(
    labels: Sequence[int | float | None], task: Task, tokenizer: Tokenizer, form: Form
) -> list[list[list[int]]]:
    """Of each row the right answer alone."""
    known = [target_text(task, label) for label in labels if label is not None]
    ids = iter(target_ids(known, tokenizer, form) if known else [])
    return [[] if label is None else [next(ids)] for label in labels]
