"""Several processes that train together, each on its slice of every global batch: sums, rows and bytes over all of them.

Everything goes through all-reduce, all-gather and broadcast of torch.distributed; no object is pickled. A process alone
is a Ranks of one, for which nothing is sent and every call gives back what it was given.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray


class Ranks:
    """This process among `count`, numbered from 0. Every method of several ranks waits for all of them."""

    def __init__(
        self,
        rank: int = 0,
        count: int = 1,
        device: torch.device | None = None,
        broken: Callable[[Exception], Exception] = lambda error: error,
    ) -> None:
        """device: where what is sent has to lie; None: the CPU. broken: what to raise where the others do not answer any
        more, from the error that was met.
        """
        self.rank, self.count = rank, count
        self.device = device or torch.device("cpu")
        self._broken = broken

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def sums(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over all ranks, one message a number format; bit for bit the same on every rank."""
        if self.alone:
            return list(tensors)
        found: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[place].detach().reshape(-1) for place in places]).to(self.device)
            with self._answering():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensors[place].numel() for place in places])
            for place, part in zip(places, parts, strict=True):
                found[place] = part.view(tensors[place].shape).to(tensors[place].device)
        return [found[place] for place in range(len(tensors))]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over all ranks, in float64."""
        if self.alone:
            return list(numbers)
        found: list[float] = self.sums([torch.tensor(list(numbers), dtype=torch.float64)])[0].tolist()
        return found

    def any(self, said: bool) -> bool:
        """Whether a rank says so."""
        return said if self.alone else self.sum([float(said)])[0] > 0

    def rows(self, tensors: Sequence[Tensor] | None) -> list[tuple[int, list[Tensor]]]:
        """Rank and tensors of every rank that gives some, in order of rank; those of one rank may differ from another's in
        their first dimension. They come without a gradient, this rank's own too.
        """
        head, payload = b"", torch.empty(0, dtype=torch.uint8, device=self.device)
        if tensors is not None:
            head = json.dumps([[str(tensor.dtype), list(tensor.shape)] for tensor in tensors]).encode()
            payload = torch.cat([_bytes_of(tensor).to(self.device) for tensor in tensors])
        heads = self._gather(_tensor_of(head))
        found = self._gather(payload)
        return [
            (rank, _unpacked(json.loads(_bytes_in(head)), data))
            for rank, (head, data) in enumerate(zip(heads, found, strict=True))
            if len(head)
        ]

    def in_order(
        self, columns: Sequence[Sequence[NDArray[Any]]], places: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[Any]]:
        """Columns given in parts, joined, with the rows of every rank by ascending `places`, equal ones by rank; of a rank
        alone in the order in which they came.
        """
        own = [np.concatenate(parts) for parts in columns] if len(places) else None
        if self.alone:
            return own or [np.empty(0) for _ in columns]
        sent = None if own is None else [torch.from_numpy(each) for each in (np.concatenate(places), *own)]
        found = [[tensor.cpu().numpy() for tensor in tensors] for _, tensors in self.rows(sent)]
        if not found:
            return [np.empty(0) for _ in columns]
        order, *joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        rows = np.argsort(order, kind="stable")
        return [column[rows] for column in joined]

    def gather_json(self, value: Any) -> list[Any]:
        """What every rank gives, through JSON, in order of rank."""
        if self.alone:
            return [value]
        return [json.loads(_bytes_in(data)) for data in self._gather(_tensor_of(json.dumps(value).encode()))]

    def share(self, data: bytes) -> bytes:
        """What rank 0 gives; what others give counts for nothing."""
        if self.alone:
            return data
        size = torch.tensor([len(data)], device=self.device)
        with self._answering():
            dist.broadcast(size, 0)
        sent = (
            _tensor_of(data).to(self.device)
            if self.first
            else torch.empty(int(size), dtype=torch.uint8).to(self.device)
        )
        with self._answering():
            dist.broadcast(sent, 0)
        return _bytes_in(sent)

    def share_json(self, value: Any) -> Any:
        """What rank 0 gives, through JSON."""
        return value if self.alone else json.loads(self.share(json.dumps(value).encode()))

    def _gather(self, data: Tensor) -> list[Tensor]:
        """The bytes of every rank."""
        if self.alone:
            return [data]
        sizes = [torch.empty(1, dtype=torch.int64, device=self.device) for _ in range(self.count)]
        with self._answering():
            dist.all_gather(sizes, torch.tensor([len(data)], device=self.device))
        counts = [int(size) for size in sizes]
        sent = torch.zeros(max(counts), dtype=torch.uint8, device=self.device)
        sent[: len(data)] = data
        found = [torch.empty_like(sent) for _ in range(self.count)]
        with self._answering():
            dist.all_gather(found, sent)
        return [part[:count] for part, count in zip(found, counts, strict=True)]

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of gloo and nccl alike
            raise self._broken(error) from error


ALONE = Ranks()


def _tensor_of(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _bytes_in(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _unpacked(head: list[tuple[str, list[int]]], data: Tensor) -> list[Tensor]:
    tensors, at = [], 0
    for name, shape in head:
        dtype = getattr(torch, name.removeprefix("torch."))
        size = dtype.itemsize
        for length in shape:
            size *= length
        # a copy of its own begins at an address that fits its numbers
        tensors.append(data[at : at + size].clone().view(dtype).view(shape))
        at += size
    return tensors
