"""What is there: the receipt of a unit, the manifest of a store, and the digest over both."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

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


class Receipt(Document):
    """The commit of one unit: its shards by array path. `plan` is the digest of the plan that asked for them first."""

    format: Literal[1] = FORMAT
    plan: Digest
    unit: Name
    split: Name
    index: Count
    arrays: dict[RelativePath, ShardRecord]


def checksums(receipts: Iterable[Receipt]) -> dict[str, tuple[int, ...]]:
    """The crc32c of each chunk of every shard of some receipts, by the shard's path."""
    return {record.path: record.crc32c for receipt in receipts for record in receipt.arrays.values()}


class Manifest(Document):
    """The commit of a whole store: digest of the plan, of each receipt, and the root over all shards."""

    format: Literal[1] = FORMAT
    features: tuple[str, ...] = ()
    plan: Digest
    fingerprint: Digest
    digest: Digest
    receipts: dict[Name, Digest]


def root_digest(plan: Plan, receipts: dict[str, Receipt]) -> str:
    """Digest over what a store is made from and every shard of the given receipts.

    Not over the plan's bytes: those name the model's and the data's place, which may change without a change of content.
    """
    units = [
        [name, sorted([record.path, record.sha256] for record in receipt.arrays.values())]
        for name, receipt in sorted(receipts.items())
    ]
    return keys.digest({"fingerprint": plan.fingerprint, "units": units})
