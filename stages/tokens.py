"""Token ids or pixels of a batch, and what each stack of a model is given of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..storage.errors import DataError
from .backbones.contract import StreamTable
from .packing import Padding, last_rows, padded_ids, padding_of


@dataclass(frozen=True)
class TokenBatch:
    """What B examples give a model to read: token ids, without padding, or pixels, whose patches become tokens.

    token_type_ids: as long as input_ids, where the tokenizer gives them; targets: for each example its
    candidate answers, each a list of token ids that ends as the tokenizer ends a text; where answers stand behind the
    text they may be left out, and the stack reads input_ids as they are. pixels: [B, channels,
    height, width], as the model's image processor makes them. tasks: the number of each example's task, for tuners that
    read it; where there is one task they may be left out.
    """

    input_ids: Sequence[Sequence[int]] = ()
    token_type_ids: Sequence[Sequence[int]] | None = None
    targets: Sequence[Sequence[Sequence[int]]] | None = None
    pixels: Tensor | None = None
    tasks: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.input_ids) if self.pixels is None else len(self.pixels)

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
    """Padded ids and mask of one stream, a target shifted right behind the start token; or pixels as they are.

    Raises DataError where a text or an answer has no token, ModelError where pictures do not have the model's size.
    """
    if stream.tokens == "pixels":
        return _pixel_input(stream, config, batch, device)
    config = stream.own_config(config)
    if stream.tokens == "target":
        if batch.targets is None:
            raise ValueError(f"the {stream.name} reads candidate answers, and the batch has none")
        start = decoder_start(config)
        ids: Sequence[Sequence[int]] = [
            [start, *answer[:-1]] if answer else [] for candidates in batch.targets for answer in candidates
        ]
    elif stream.tokens == "continued" and batch.targets is not None:
        ids = [
            [*text, *answer[:-1]] if text and answer else []
            for text, candidates in zip(batch.input_ids, batch.targets, strict=True)
            for answer in candidates
        ]
    else:
        ids = batch.input_ids
    if empty := [number for number, item in enumerate(ids) if not item]:
        what = "answer" if stream.answers and batch.targets is not None else "text"
        raise DataError(f"{what} number {empty[0]} of a batch has no tokens; every {what} needs at least one")
    # any token of the vocabulary will do, since masks hide it; some decoders name none, or -1
    padded, lengths = padded_ids(ids, max(config.pad_token_id or 0, 0), device)
    padding = padding_of(lengths)
    arguments = {"input_ids": padded, "attention_mask": padding.mask}
    if stream.tokens == "input" and batch.token_type_ids is not None:
        arguments["token_type_ids"] = padded_ids(batch.token_type_ids, 0, device)[0]
    return StreamInput(arguments, lengths, padding)


def _pixel_input(stream: StreamTable, config: Any, batch: TokenBatch, device: torch.device) -> StreamInput:
    """Pixels; every segment has the same number of rows, so that nothing is padded and nothing masked."""
    if batch.pixels is None:
        raise ValueError(f"the {stream.name} reads pictures, and the batch has none")
    rows = stream.picture_rows(config, *batch.pixels.shape[-2:])
    lengths = torch.full((len(batch.pixels),), rows, device=device)
    return StreamInput({"pixel_values": batch.pixels.to(device)}, lengths, padding_of(lengths))


def answer_rows(batch: TokenBatch, lengths: Tensor) -> Tensor:
    """Which rows of packed segments of `lengths` [S], one a candidate, predict a token of its answer: bool [N].

    The last rows are those: a row predicts the token behind it, and the last token of an answer is not read.
    """
    counts = torch.tensor([len(answer) for answers in batch.targets or () for answer in answers], dtype=torch.int64)
    return last_rows(lengths, counts.to(lengths.device))


def decoder_start(config: Any) -> int:
    """Id of the token that a decoder starts from."""
    start = getattr(config, "decoder_start_token_id", None)
    return int(config.pad_token_id if start is None else start)
