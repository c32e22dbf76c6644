"""Token ids of a batch, and what each stack of a model is given of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..storage.errors import DataError
from .backbones.contract import StreamTable
from .packing import Padding, padded_ids, padding_of


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of B examples, without padding.

    token_type_ids: as long as input_ids, where the tokenizer gives them; targets: for each example its
    candidate answers, each a list of token ids that ends as the tokenizer ends a text.
    """

    input_ids: Sequence[Sequence[int]]
    token_type_ids: Sequence[Sequence[int]] | None = None
    targets: Sequence[Sequence[Sequence[int]]] | None = None

    @property
    def candidates(self) -> list[int]:
        """Number of candidate answers of each example."""
        return [len(item) for item in self.targets or ()]


@dataclass(frozen=True)
class StreamInput:
    """What one stack reads: keyword arguments of its forward, and how its segments lie in the padded
    batch."""

    arguments: dict[str, Tensor]
    lengths: Tensor
    padding: Padding


def stream_input(stream: StreamTable, config: Any, batch: TokenBatch, device: torch.device) -> StreamInput:
    """Padded ids and mask of one stream; a target is shifted right behind the start token.

    Raises DataError where a text or an answer has no token.
    """
    if stream.tokens == "target":
        if batch.targets is None:
            raise ValueError(f"the {stream.name} reads candidate answers, and the batch has none")
        start = decoder_start(config)
        ids: Sequence[Sequence[int]] = [
            [start, *answer[:-1]] if answer else [] for candidates in batch.targets for answer in candidates
        ]
    else:
        ids = batch.input_ids
    if empty := [number for number, item in enumerate(ids) if not item]:
        what = "answer" if stream.tokens == "target" else "text"
        raise DataError(f"{what} number {empty[0]} of a batch has no tokens; every {what} needs at least one")
    # any token of the vocabulary will do, since masks hide it; some decoders name none, or -1
    padded, lengths = padded_ids(ids, max(config.pad_token_id or 0, 0), device)
    padding = padding_of(lengths)
    arguments = {"input_ids": padded, "attention_mask": padding.mask}
    if stream.tokens == "input" and batch.token_type_ids is not None:
        arguments["token_type_ids"] = padded_ids(batch.token_type_ids, 0, device)[0]
    return StreamInput(arguments, lengths, padding)


def decoder_start(config: Any) -> int:
    """Id of the token that a decoder starts from."""
    start = getattr(config, "decoder_start_token_id", None)
    return int(config.pad_token_id if start is None else start)
