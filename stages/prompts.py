"""A text and an answer behind it, for models that go on writing where a text ends.

Between them stands a cue, which is never cut off: it says where the text ends, and the row of its last token predicts the
first token of every answer. Text, cue and answer are token ids of their own, put one after another, so that an answer has
the same ids behind every text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ..storage.errors import DataError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .tasks import Task
    from .text import Tokenizer

CUE: Final = "\nanswer:"
OPEN_ANSWER_TOKENS: Final = 16
"""Longest generated answer of an open set: a score is a few pieces long."""


def prompts(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> tuple[list[list[int]], Any]:
    """Token ids of texts, each with what the tokenizer puts in front of one and the cue behind it, at most `max_length`;
    and what the tokenizer said of the texts alone. What it puts behind a text is left out, since the answer goes on there.

    Raises DataError where `max_length` leaves no room for text.
    """
    front, cue = _front(tokenizer), _plain(tokenizer, CUE)
    room = max_length - len(front) - len(cue)
    if room < 1:
        raise DataError(
            f"a length of {max_length} tokens leaves no room for text beside the {len(front) + len(cue)} of the prompt; at "
            f"least {max_length - room + 1} are needed"
        )
    encoded = tokenizer(
        list(texts), add_special_tokens=False, truncation=True, max_length=room, return_attention_mask=False
    )
    return [[*front, *ids, *cue] for ids in encoded["input_ids"]], encoded


def answers(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of answers as they stand behind the cue, with the token that ends a text.

    Raises ModelError where the tokenizer has no such token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError(
            "the tokenizer has no token that ends a text, so no answer would ever end; give it an eos_token, or leave "
            "--answers out"
        )
    cue = _plain(tokenizer, CUE)
    found = []
    for text in texts:
        whole = _plain(tokenizer, f"{CUE} {text}")
        # where the cue's last token grows together with the answer's first, the answer is written on its own
        own = whole[len(cue) :] if whole[: len(cue)] == cue else _plain(tokenizer, f" {text}")
        found.append([*own, end])
    return found


def longest_answer(task: Task, tokenizer: Tokenizer) -> int:
    """Tokens that an answer to a task may have behind its text."""
    if task.label_texts is None:
        return OPEN_ANSWER_TOKENS
    return max(map(len, answers(task.label_texts, tokenizer)))


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text and nothing else."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return ids


def _front(tokenizer: Tokenizer) -> list[int]:
    """Token ids that the tokenizer puts in front of a text."""
    whole: list[int] = tokenizer("a", return_attention_mask=False)["input_ids"]
    plain = _plain(tokenizer, "a")
    starts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return whole[: next(starts, 0)]
