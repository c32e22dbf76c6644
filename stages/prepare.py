"""Before the first forward: model, data and settings become a plan of the store.

Text is tokenised first, so every offset, every byte and every key is known before a single hidden state is computed.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pyarrow as pa
import torch

from ..storage import (
    Bill,
    PackedSplit,
    Plan,
    Ragged,
    StoreWriter,
    keys,
    placement_columns,
    plan_split,
    store_bytes,
    write_examples,
)
from ..storage.codecs import encoding
from ..storage.errors import DataError, ModelError
from .extract import forward_batches, input_lengths, token_batch
from .late import late_weights
from .load import LoadedModel, load_pretrained
from .producer import describe_model, describe_task
from .sources import open_source
from .splits import split_rules
from .spool import Spool
from .taps import format_taps, parse_stream_taps
from .tasks import Task, task_for
from .text import EncodeStats, default_max_length, encode, text_key_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .backbones.contract import BackboneTable
    from .tokens import TokenBatch

DEFAULT_LATE = 2


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """What stage one is asked for; the recipe's `extract` section explains each field."""

    model: str
    data: str
    revision: str | None = None
    data_revision: str | None = None
    task: str | None = None
    validation: str | None = None
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    splits: str = "official"
    limit: int | None = None
    taps: str | None = None
    late: int | None = None
    max_length: int | None = None
    encoding: str = "bfloat16"
    precision: str | None = None
    batch_tokens: int = 4096
    unit_memory: int = 512 * 2**20
    chunk_bytes: int = 2**20
    seed: int = 0


PROBE_EXAMPLES = 512


@dataclass(frozen=True)
class Preparation:
    """Everything that extract and plan need: the model, the rows, and the plan of the store."""

    settings: ExtractSettings
    loaded: LoadedModel
    task: Task
    max_length: int
    taps: Mapping[str, tuple[int, ...]]
    stats: Mapping[str, EncodeStats]
    packed: Mapping[str, PackedSplit]
    spools: Mapping[str, Spool]
    files: Mapping[str, bytes]
    plan: Plan

    def create_writer(self, root: Path) -> StoreWriter:
        """Begin the store at `root`, or go on with it. Raises StoreStale where another one is there."""
        tables = {split: partial(self._write_table, split) for split in self.packed}
        return StoreWriter.create(root, self.plan, self.files, tables)

    def bill(self) -> Bill:
        """Bytes and files that the store will hold."""
        return store_bytes(self.plan, files={name: len(data) for name, data in self.files.items()})

    def unit_bytes(self) -> int:
        """Bytes of the largest unit in all taps, which stage one holds in memory."""
        return (
            max(
                sum(
                    part.groups_per_unit * stream.chunk_rows * stream.width * len(stream.taps)
                    for stream in part.streams.values()
                )
                for part in self.packed.values()
            )
            * encoding(self.settings.encoding).itemsize
        )

    def sample(self, examples: int = 8) -> TokenBatch:
        """The first rows of the first split, for the proof that the model can be split."""
        rows = self._rows(next(iter(self.packed)), examples)
        return token_batch(rows, np.arange(len(rows)))

    def probe_batches(self) -> Iterator[tuple[int, TokenBatch]]:
        """Forward batches of some hundred examples as extract would make them, with the tokens of each, longest
        first.
        """
        rows = self._rows(next(iter(self.packed)), PROBE_EXAMPLES)
        lengths = input_lengths(rows)
        for chosen in reversed(list(forward_batches(lengths, self.settings.batch_tokens))):
            yield int(lengths[chosen].sum()), token_batch(rows, chosen)

    def input_tokens(self) -> int:
        """Tokens of all inputs, the amount of work."""
        return sum(int(spool.input_lengths().sum()) for spool in self.spools.values())

    def _rows(self, split: str, examples: int) -> pa.Table:
        batches = self.spools[split].take(self.packed[split].order[:examples])
        return pa.Table.from_batches(list(batches))

    def _write_table(self, split: str, file: BinaryIO) -> None:
        """Write a split's example table in written order."""
        packed = self.packed[split]

        def placed() -> Iterator[pa.RecordBatch]:
            first = 0
            for batch in self.spools[split].take(packed.order):
                columns = placement_columns(packed, first, batch.num_rows)
                names = [*batch.schema.names, *columns]
                yield pa.RecordBatch.from_arrays([*batch.columns, *columns.values()], names=names)
                first += batch.num_rows

        write_examples(file, placed(), packed.unit_examples, packed.streams)


def prepare(settings: ExtractSettings, workspace: Path, device: torch.device) -> Preparation:
    """Load model and data, tokenise every split into `workspace`, and plan the store.

    Raises ModelError, DataError or RecipeError for what cannot be.
    """
    loaded = load_pretrained(settings.model, settings.revision, settings.precision, device)
    table, config = loaded.table, loaded.config
    late = _late_blocks(settings, loaded)
    taps = choose_store_taps(settings.taps, table, config)
    source = open_source(
        settings.data, task=settings.task, validation=settings.validation, revision=settings.data_revision
    )
    task = task_for(settings.task, source, settings.text_columns, settings.label_column)
    source = split_rules(source, task, settings.splits, limit=settings.limit)
    max_length = _max_length(settings, loaded)

    spools: dict[str, Spool] = {}
    stats: dict[str, EncodeStats] = {}
    for split in source.splits:
        stats[split] = EncodeStats()
        batches = encode(
            source, split, task, loaded.tokenizer, form=table.text_form, max_length=max_length, stats=stats[split]
        )
        spools[split] = Spool(workspace / f"{split}.arrow", batches)
        if not spools[split].rows:
            raise DataError(f"{settings.data}: split {split} has no rows")

    identity: dict[str, str | int | float | bool | None] = {
        "model.weights": loaded.weights_digest,
        "model.type": str(config.model_type),
        "forward.precision": str(loaded.dtype).removeprefix("torch."),
        "forward.batch_tokens": settings.batch_tokens,
        "encoding": settings.encoding,
        "late.blocks": late,
        **{f"taps.{stream}": format_taps({stream: numbers}) for stream, numbers in taps.items()},
        **text_key_fields(task, loaded.tokenizer, form=table.text_form, max_length=max_length),
        **{f"data.{split}": stats[split].data_digest for split in spools},
    }
    packed = {
        split: plan_split(
            _lengths(spool, table),
            split=split,
            source_key=stats[split].data_digest,
            widths={stream: table.width(config) for stream in taps},
            itemsize=encoding(settings.encoding).itemsize,
            taps=taps,
            seed=settings.seed,
            unit_memory=settings.unit_memory,
            chunk_bytes=(settings.chunk_bytes, 4 * settings.chunk_bytes),
        )
        for split, spool in spools.items()
    }
    files = {f"weights/{name}": data for name, data in late_weights(loaded, late).items()}
    plan = Plan(
        encoding=settings.encoding,
        identity=identity,
        producer=_producer(settings, loaded, task, late, max_length, stats, source.synthetic),
        environment=environment(loaded, device),
        splits={
            split: part.split_plan({stream: _content_key(identity, stream, split) for stream in taps})
            for split, part in packed.items()
        },
    )
    return Preparation(settings, loaded, task, max_length, taps, stats, packed, spools, files, plan)


def choose_store_taps(grammar: str | None, table: BackboneTable, config: Any) -> dict[str, tuple[int, ...]]:
    """Taps to store of every stream.

    Without a grammar: every state that some late part can start from, and the last of an encoder; of a decoder not
    its last, which no late block would follow.
    """
    depth = {stream.name: table.depth(config, stream.name) for stream in table.streams}
    if grammar is not None:
        return parse_stream_taps(grammar, depth, where="taps")
    feeds_late = {stream.name: table.encoder_decoder and stream.late for stream in table.streams}
    return {name: tuple(range(deepest + (0 if feeds_late[name] else 1))) for name, deepest in depth.items()}


def versions() -> dict[str, str]:
    """Versions of what computes."""
    packages = ("torch", "transformers", "zarr", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def environment(loaded: LoadedModel, device: torch.device) -> dict[str, str]:
    """What may move the last bits of a forward; recorded, warned about, never refused."""
    return {
        **versions(),
        "attention": str(getattr(loaded.config, "_attn_implementation", "unknown")),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def _producer(
    settings: ExtractSettings,
    loaded: LoadedModel,
    task: Task,
    late: int,
    max_length: int,
    stats: Mapping[str, EncodeStats],
    synthetic: bool,
) -> dict[str, Any]:
    """What stage two and the live model need to know; storage only carries it."""
    return {
        "model": describe_model(loaded),
        "task": describe_task(task, loaded, max_length),
        "data": {
            "name": settings.data,
            "task": settings.task,
            "validation": settings.validation,
            "revision": settings.data_revision,
            "splits": settings.splits,
            "limit": settings.limit,
            "synthetic": synthetic,
            "truncated": {split: part.truncated for split, part in stats.items()},
        },
        "late": late,
    }


def _lengths(spool: Spool, table: BackboneTable) -> dict[str, Ragged]:
    """Tokens of every segment of every stream, in source order."""
    inputs = spool.input_lengths()
    lengths = {}
    for stream in table.streams:
        if stream.tokens == "target":
            lengths[stream.name] = Ragged(*spool.target_lengths())
        else:
            lengths[stream.name] = Ragged(inputs, np.ones(len(inputs), np.int32))
    return lengths


def _content_key(identity: Mapping[str, Any], stream: str, split: str) -> str:
    skipped = ("taps.", "data.", "encoding", "late.")
    kept = {key: value for key, value in identity.items() if not key.startswith(skipped)}
    return keys.digest({**kept, "stream": stream, "data": identity[f"data.{split}"]})


def _late_blocks(settings: ExtractSettings, loaded: LoadedModel) -> int:
    """Late blocks whose weights the store holds."""
    depth = min(loaded.table.depth(loaded.config, stream.name) for stream in loaded.table.late_streams)
    late = min(DEFAULT_LATE, depth - 1) if settings.late is None else settings.late
    loaded.table.check_late(loaded.config, late)
    return late


def _max_length(settings: ExtractSettings, loaded: LoadedModel) -> int:
    positions = loaded.table.max_length(loaded.config)
    if settings.max_length is None:
        return default_max_length(loaded.tokenizer, positions)
    if positions is not None and settings.max_length > positions:
        raise ModelError(
            f"max_length {settings.max_length}: {settings.model} has positions for {positions} tokens; use at most that"
        )
    return settings.max_length
