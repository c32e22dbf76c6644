"""What is there: the receipt of a unit, the manifest of a store, and the digest over both."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from .. import keys
from .base import FORMAT, Count, Digest, Document
from .paths import Name, RelativePath
from .plans import Plan

Checksum = Annotated[int, Field(ge=0, lt=1 << 32)]


class ShardRecord(Document):
    """One committed shard: where it lies, its content, and how many rows hold values.

    crc32c: the checksum of each chunk, so that a reader tells a chunk from the whole chunk of another shard.
    """

    path: RelativePath
    bytes: Count
    sha256: Digest
    rows: Count
    crc32c: Annotated[tuple[Checksum, ...], Field(min_length=1, max_length=64)]
    nan: Literal[0] = 0
    inf: Literal[0] = 0
    overflow: Literal[0] = 0


class Shard(NamedTuple):
    """A shard in few bytes of memory: the path of its array, its own, its size and content."""

    array: str
    path: str
    bytes: int
    sha256: str


class Receipt(Document):
    """The commit of one unit: its shards by array path. `plan` is the digest of the plan that asked for them first."""

    format: Literal[1] = FORMAT
    plan: Digest
    unit: Name
    split: Name
    index: Count
    arrays: dict[RelativePath, ShardRecord]

    def shards(self) -> Iterator[Shard]:
        """What the digest of a store and its sizes are made of."""
        return (Shard(array, record.path, record.bytes, record.sha256) for array, record in self.arrays.items())


class Manifest(Document):
    """The commit of a whole store: digest of the plan, of each receipt's file, and the root over all shards.

    arrays: bytes of the shards of each array. seal: digest of everything else in it, so that a store can be opened by its
    plans and this one document, and each receipt be held to it when its unit is read.
    """

    format: Literal[1] = FORMAT
    features: tuple[str, ...] = ()
    plan: Digest
    fingerprint: Digest
    digest: Digest
    receipts: dict[Name, Digest]
    arrays: dict[RelativePath, Count]
    seal: Digest

    @classmethod
    def sealed(cls, **fields: Any) -> Self:
        """A manifest with its seal."""
        unsealed = cls.model_construct(**fields, seal="")
        return cls(**fields, seal=unsealed._seal())

    def _seal(self) -> str:
        return keys.digest(self.model_dump(mode="json", exclude={"seal"}))

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.seal != self._seal():
            raise ValueError("it is not as it was sealed")
        return self


class Tally:
    """What a manifest says of all units together, from those that it is told, in ascending order of their names."""

    def __init__(self, plan: Plan) -> None:
        # the canonical JSON of {"fingerprint": ..., "units": [[name, [[path, sha256], ...]], ...]}, a unit at a time
        self._hash = hashlib.sha256(b'{"fingerprint":' + keys.canonical(plan.fingerprint) + b',"units":[')
        self._last = ""
        self.arrays = {array.path: 0 for array in plan.arrays()}
        """Bytes of the shards of each array."""

    def add(self, unit: str, shards: Iterable[Shard]) -> None:
        """Count a unit with all its shards."""
        assert unit > self._last
        held = list(shards)
        named = keys.canonical([unit, sorted([shard.path, shard.sha256] for shard in held)])
        self._hash.update(b"," + named if self._last else named)
        self._last = unit
        for shard in held:
            self.arrays[shard.array] += shard.bytes

    @property
    def digest(self) -> str:
        """Digest over what a store is made from and every shard.

        Not over the plan's bytes: those name the model's and the data's place, which may change without a change of content.
        """
        whole = self._hash.copy()
        whole.update(b"]}")
        return whole.hexdigest()


def root_digest(plan: Plan, receipts: Mapping[str, Receipt]) -> str:
    """Digest over what a store is made from and every shard of the given receipts, by unit; each is asked for once."""
    tally = Tally(plan)
    for name in sorted(receipts):
        tally.add(name, receipts[name].shards())
    return tally.digest
