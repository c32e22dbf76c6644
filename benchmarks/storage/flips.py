"""Flipped bits, and files that are cut, missing, empty or swapped: each found before a wrong value is served, and located.

For each damage the store is opened and everything in it is streamed: batches of every split and tap, tables, blobs. Either
that ends in an error before anything wrong is handed out, or nothing that was handed out differs (zarr.json is for other
readers; this package's never reads it). Then `verify --deep` must name the damaged file, and for the data of a shard the tap,
the row group and its examples. Damage is done in place and undone.

Then the store is repaired from the small producer, which makes only the damaged files again: `verify --deep` must find nothing
and the digest must be the old one. The tree is put back byte by byte before the next damage.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sherl_cache.storage import Finding, Store, Stream, verify_store
from sherl_cache.storage.documents import PLAN
from sherl_cache.storage.errors import SherlCacheError, StoreCorrupt, StoreNotUsable
from sherl_cache.storage.shards import CRC_BYTES, index_bytes

from .row import Row, Scale
from .seam import Unsynced, installed
from .small import BLOBS, STREAM, Small

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_BATCH = 4
_BUDGET = 1 << 22


@dataclass(frozen=True)
class Target:
    """Bytes that one kind of damage may touch: a file, a range of it, and what `verify` must say of it."""

    kind: str
    path: str
    first: int
    stop: int
    chunk: int | None = None


def targets(root: Path) -> dict[str, list[Target]]:
    """Every byte of a store, by kind: data, checksums and indexes of shards, and each kind of other file."""
    store = Store.open(root)
    found: dict[str, list[Target]] = {}
    shards = {r.path: (receipt, r) for receipt in store.receipts.values() for r in receipt.arrays.values()}
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        path, size = str(file.relative_to(root)), file.stat().st_size
        if path not in shards:
            found.setdefault(_kind(path), []).append(Target(_kind(path), path, 0, size))
            continue
        receipt, record = shards[path]
        slots = store.split(receipt.split).groups_per_unit
        end = size - index_bytes(slots)
        index = np.frombuffer(file.read_bytes()[end:-CRC_BYTES], "<u8").reshape(slots, 2)[: len(record.crc32c)]
        for slot, (start, count) in enumerate(index.tolist()):
            group, stop = receipt.index * slots + slot, start + count
            found.setdefault("data", []).append(Target("data", path, start, stop - CRC_BYTES, group))
            found.setdefault("checksum", []).append(Target("checksum", path, stop - CRC_BYTES, stop, group))
            following = int(index[slot + 1, 0]) if slot + 1 < len(index) else end
            if following > stop:
                found.setdefault("padding", []).append(Target("padding", path, stop, following))
        found.setdefault("index", []).append(Target("index", path, end, size))
    return found


def _kind(path: str) -> str:
    name = path.rpartition("/")[2]
    if name == "zarr.json":
        return name
    return name.partition("-")[0].removesuffix(".json") if path.count("/") == 1 else path.split("/")[1]


def served(root: Path) -> Iterator[tuple[str, bytes]]:
    """Everything that readers hand out, in pieces as they are handed out, each with its name."""
    store = Store.open(root)
    for path in BLOBS:
        yield path, store.file(path)
    for split, plan in store.plan.splits.items():
        yield split, repr(store.examples(split).source_ids(0, plan.examples)).encode()
        taps = {STREAM: plan.streams[STREAM].taps}
        stream = Stream(store, split, taps, batch_examples=_BATCH, window=2, budget_bytes=_BUDGET)
        for number, batch in enumerate(stream.epoch(0)):
            rows = batch.streams[STREAM]
            values = b"".join(tap.tobytes() for tap in rows.taps)
            yield f"{split} batch {number}", batch.examples.tobytes() + values + rows.lengths.tobytes()


def examine(root: Path, right: dict[str, bytes], target: Target) -> list[str]:
    """What one damage shows, in words; what must not be begins with `WRONG`."""
    shown = []
    try:
        for name, data in served(root):
            if right[name] != data:
                shown.append(f"WRONG: {name} is served")
    except (StoreCorrupt, StoreNotUsable) as error:
        shown.append(f"refused {type(error).__name__}")
    else:
        shown.append("not read")
    try:
        findings = verify_store(root, deep=True)
    except StoreNotUsable as error:
        located = target.path in str(error) or (target.path == "sherl/plan.json" and str(root) in str(error))
    else:
        located = any(_locates(finding, target, root) for finding in findings)
    if not located:
        shown.append(f"WRONG: {target.path} is not named")
    return shown


def repaired(small: Small, root: Path, digest: str) -> list[str]:
    """Repair the store; what it showed, in words."""
    try:
        findings = verify_store(root, deep=True)
    except StoreNotUsable as error:  # of a newer format, or no plan at all: only who knows better calls that damage
        findings = [_blamed(root, str(error))]
    if not findings:
        return ["WRONG: nothing to repair"]
    try:
        done = small.repair(root, findings)
    except SherlCacheError as error:
        return [f"WRONG: cannot be repaired: {error}"]
    shown = [f"WRONG after repair: {finding.problem}" for finding in verify_store(root, deep=True)]
    if Store.open(root).digest != digest or done.changed:
        shown.append("WRONG digest after repair")
    return shown or ["repaired"]


def _blamed(root: Path, problem: str) -> Finding:
    """The document that an error names, as a finding."""
    documents = sorted(str(path.relative_to(root)) for path in (root / "sherl").rglob("*.json"))
    path = next((path for path in documents if f"{root / path}:" in problem), PLAN)
    unit = path.removeprefix("sherl/receipts/").removesuffix(".json") if "/receipts/" in path else None
    return Finding("corrupt", path, problem, unit)


def tree(root: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def put_back(root: Path, before: dict[str, bytes]) -> None:
    """The tree as it was."""
    now = tree(root)
    put(root, {path: None for path in now if path not in before})
    put(root, {path: data for path, data in before.items() if now.get(path) != data})


def _locates(finding: Finding, target: Target, root: Path) -> bool:
    if finding.path != target.path:
        return False
    if target.chunk is None:
        return True
    return finding.tap == target.path.partition("/c/")[0] and finding.chunk == target.chunk and bool(finding.examples)


def flip(root: Path, target: Target, draw: random.Random) -> None:
    """Flip one bit of the target."""
    place, bit = draw.randrange(target.first, target.stop), 1 << draw.randrange(8)
    descriptor = os.open(root / target.path, os.O_RDWR)
    try:
        os.pwrite(descriptor, bytes([os.pread(descriptor, 1, place)[0] ^ bit]), place)
    finally:
        os.close(descriptor)


def damages(
    root: Path, other: Path, found: dict[str, list[Target]]
) -> Iterator[tuple[str, Target, dict[str, bytes | None]]]:
    """Damage to whole files: what it is, what `verify` must name, and the new content by path (None: no file)."""
    paths = sorted({target.path for held in found.values() for target in held})
    data = {path: (root / path).read_bytes() for path in paths}
    for path in paths:
        target = Target("file", path, 0, len(data[path]))
        yield "cut", target, {path: data[path][: len(data[path]) // 2]}
        yield "empty", target, {path: b""}
        yield "longer", target, {path: data[path] + b"\n"}
        yield "missing", target, {path: None}
        theirs = other / path
        if theirs.is_file() and theirs.read_bytes() != data[path]:
            yield "of another store", target, {path: theirs.read_bytes()}
        for twin in paths:
            if twin > path and _kind(twin) == _kind(path) and data[twin] != data[path]:
                yield "swapped", target, {path: data[twin], twin: data[path]}
    for shard in sorted({target.path for target in found["data"]}):
        other_unit = [
            path for path in {t.path for t in found["data"]} if path != shard and len(data[path]) == len(data[shard])
        ]
        for path in sorted(other_unit):
            yield "copied over", Target("file", shard, 0, len(data[shard])), {shard: data[path]}


def put(root: Path, content: Mapping[str, bytes | None]) -> None:
    """Write or remove files."""
    for path, data in content.items():
        if data is None:
            (root / path).unlink()
        else:
            (root / path).write_bytes(data)


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """A row for flips and a row for damage to whole files."""
    small = Small()
    root, other = folder / "store", folder / "other"
    with installed(Unsynced()):
        digest = small.build(root).digest
        Small(seed=1).build(other)
    right, before = dict(served(root)), tree(root)
    found = targets(root)
    draw = random.Random(scale.seed)
    count = scale.of(10_000, 90)
    shown: Counter[str] = Counter()
    wrong: list[str] = []

    def note(kind: str, target: Target, seen: list[str]) -> None:
        shown.update(f"{kind}: {what}" for what in seen if not what.startswith("WRONG"))
        wrong.extend(f"{kind}, {target.path}: {what}" for what in seen if what.startswith("WRONG"))

    for number in range(count):
        kind = list(found)[number % len(found)]
        target = draw.choice(found[kind])
        flip(root, target, draw)
        note(kind, target, examine(root, right, target))
        with installed(Unsynced()):
            note(kind, target, repaired(small, root, digest))
        put_back(root, before)
    yield _row("flipped bits", count, list(found), shown, wrong)

    shown, wrong = Counter(), []
    whole = sorted(damages(root, other, found), key=lambda damage: (damage[0], damage[1].path))
    if scale.quick:
        whole = draw.sample(whole, min(28, len(whole)))
    for kind, target, content in whole:
        put(root, content)
        note(kind, target, _examine_file(root, right, target, kind))
        with installed(Unsynced()):
            note(kind, target, repaired(small, root, digest))
        put_back(root, before)
    kinds = sorted({kind for kind, _, _ in whole})
    yield _row("damaged files", len(whole), kinds, shown, wrong)
    shutil.rmtree(root)


def _examine_file(root: Path, right: dict[str, bytes], target: Target, kind: str) -> list[str]:
    if kind == "missing" and target.path == "sherl/plan.json":  # then there is no store, for any command
        try:
            verify_store(root, deep=True)
        except StoreNotUsable:
            return ["refused StoreMissing"]
        return ["WRONG: verify knows nothing of a missing plan"]
    return examine(root, right, target)


def _row(name: str, count: int, kinds: list[str], shown: Counter[str], wrong: list[str]) -> Row:
    refused = sum(number for what, number in shown.items() if "refused" in what)
    unread = sum(number for what, number in shown.items() if "not read" in what)
    mended = sum(number for what, number in shown.items() if what.endswith(": repaired"))
    details: dict[str, Any] = {"damages": count, "kinds": kinds, "shown": dict(shown), "wrong": wrong[:40]}
    return Row(
        name,
        "100 % detected before a batch is yielded, located, repaired",
        f"{count:,} of {len(kinds)} kinds: {refused:,} refused, {unread:,} of bytes that no reader serves, "
        f"{mended:,} repaired, {len(wrong)} wrong",
        not wrong and mended == count,
        details,
    )
