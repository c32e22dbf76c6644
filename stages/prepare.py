"""Before the first forward: model, data and settings become a plan of the store.

Text is tokenised first, so every offset, every byte and every key is known before a single hidden state is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..storage import PackedSplit, Plan, SplitPlan, encoding, keys, plan_split
from ..storage.codecs.int8 import stored_width
from ..storage.errors import DataError
from ..storage.layout import written_order
from .calibrate import Survey, known_survey, sample_examples, survey
from .choose_inputs import extract_inputs, fed_by
from .environment import environment
from .grow import known_store, pack_parts
from .late_weights import LazyFiles, late_weights, stored_blocks
from .load import LoadedModel, load_pretrained
from .preparation import Preparation
from .producer import producer_block
from .sources import open_source
from .splits import split_rules
from .spool import Spool
from .streamed_model import load_streamed
from .streaming_front import front_of
from .taps import format_taps, parse_stream_taps
from .tasks import pair_columns, task_for
from .text import EncodeStats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from ..storage import Ragged
    from .backbones.contract import Answers, BackboneTable
    from .inputs import Inputs

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
    answers: Answers | None = None
    views: int = 1
    augment: str = "flip+crop:0.5"
    encoding: str = "bfloat16"
    precision: str | None = None
    batch_tokens: int = 4096
    unit_memory: int = 512 * 2**20
    chunk_bytes: int = 2**20
    seed: int = 0
    stream_weights: bool = False


def prepare(
    settings: ExtractSettings,
    workspace: Path,
    device: torch.device,
    store: Path | None = None,
    plans: int | None = None,
) -> Preparation:
    """Load model and data, encode every split into `workspace`, and plan the store.

    `store`: where it lies or will lie; a store that was begun there keeps its calibration, its packing and its taps, and
    what is asked for beside them is added to the plan. `plans`: how many of its plans are looked at, the oldest; None:
    all. Raises ModelError, DataError or RecipeError for what cannot be,
    NonFinite where a first look at the states finds that they do not fit the encoding.
    """
    stored = encoding(settings.encoding)
    load = load_streamed if settings.stream_weights else load_pretrained
    loaded = load(settings.model, settings.revision, settings.precision, device, settings.answers)
    source = open_source(
        settings.data, task=settings.task, validation=settings.validation, revision=settings.data_revision
    )
    loaded = fed_by(loaded, source, pair_columns(source, settings.text_columns, settings.label_column))
    table, config = loaded.table, loaded.config
    late = _late_blocks(settings, loaded)
    taps = choose_store_taps(settings.taps, table, config)
    known = known_store(store, plans)
    if known is not None:
        taps = {name: numbers for name, numbers in known.joined(taps).items() if name in depths(table, config)}
    task = task_for(
        settings.task,
        source,
        settings.text_columns,
        settings.label_column,
        pictures=table.reads_pictures,
        pairs=table.reads_pairs,
    )
    source = split_rules(source, task, settings.splits, limit=settings.limit)
    inputs = extract_inputs(settings, loaded, task)
    batches = inputs.batches(source, task)

    spools: dict[str, Spool] = {}
    stats: dict[str, EncodeStats] = {}
    for split in source.splits:
        stats[split] = EncodeStats(marks=frozenset(known.ends(split)) if known else frozenset())
        spools[split] = Spool(workspace / f"{split}.arrow", inputs.encode(source, split, task, stats[split]))
        if not spools[split].rows:
            raise DataError(f"{settings.data}: split {split} has no rows")

    identity: dict[str, str | int | float | bool | None] = {
        "model.weights": loaded.weights_digest,
        "model.type": str(config.model_type),
        "forward.precision": str(loaded.dtype).removeprefix("torch."),
        "forward.batch_tokens": settings.batch_tokens,
        "encoding": stored.name,
        "late.blocks": late,
        **{f"taps.{stream}": format_taps({stream: numbers}) for stream, numbers in taps.items()},
        **inputs.key_fields(task),
        **{f"data.{split}": stats[split].data_digest for split in spools},
    }
    widths = table.widths(config)
    weights = late_weights(loaded, late)
    producer = producer_block(settings, loaded, task, late, inputs.max_length, stats, source.synthetic)

    def planned(seen: Survey) -> Preparation:
        records = {stream: found.record(stream) for stream, found in seen.calibrations.items()}
        whole = identity | {f"calibration.{name}": found.file_sha256 for name, found in seen.calibrations.items()}

        def pack(split: str) -> tuple[SplitPlan, list[PackedSplit]]:
            begun = known is not None and known.begins(split, stats[split])
            return pack_parts(
                {name: ragged for name, ragged in _lengths(spools[split], table, inputs).items() if name in taps},
                stats[split],
                known.ends(split) if known is not None and begun else (stats[split].rows,),
                partial(first_part, split, known.first_taps(split) if known is not None and begun else taps),
                partial(first_plan, split),
                lambda data: content_keys(split, data),
                settings.seed,
            )

        def content_keys(split: str, data: str) -> dict[str, str]:
            return {stream: _content_key({**whole, f"data.{split}": data}, stream, split) for stream in taps}

        def first_part(
            split: str, first_taps: Mapping[str, Sequence[int]], lengths: Mapping[str, Ragged], data: str
        ) -> PackedSplit:
            return plan_split(
                lengths,
                split=split,
                source_key=data,
                widths=widths,
                itemsize=stored.itemsize,
                taps=first_taps,
                seed=settings.seed,
                unit_memory=settings.unit_memory,
                chunk_bytes=(settings.chunk_bytes, 4 * settings.chunk_bytes),
                stored_widths={
                    stream: stored_width(widths[stream], found.outliers) for stream, found in seen.calibrations.items()
                },
            )

        def first_plan(split: str, packed: PackedSplit) -> SplitPlan:
            count = len(packed.order)
            data = stats[split].data_digest if count == stats[split].rows else stats[split].marked[count]
            plan = packed.split_plan(content_keys(split, data), records)
            streams = {name: part.model_copy(update={"taps": taps[name]}) for name, part in plan.streams.items()}
            return plan.model_copy(update={"streams": streams})

        found = {split: pack(split) for split in spools}
        plan = Plan(
            encoding=stored.name,
            identity=whole,
            producer=producer,
            environment=environment(loaded, device),
            splits={split: split_plan for split, (split_plan, _) in found.items()},
        )
        files = LazyFiles(
            {f"weights/{name}": partial(weights.__getitem__, name) for name in weights}
            | {records[stream].file: found.to_bytes for stream, found in seen.calibrations.items()}
        )
        return Preparation(
            settings=settings,
            loaded=loaded,
            inputs=inputs,
            batches=batches,
            taps=taps,
            stats=stats,
            packed={split: parts[0] for split, (_, parts) in found.items()},
            parts={split: parts for split, (_, parts) in found.items()},
            spools=spools,
            files=files,
            plan=plan,
            known=known,
            survey=seen,
            replan=lambda calibrations: planned(Survey(calibrations, seen.share)),
        )

    seen = known_survey(store, stored, taps, widths)
    if seen is None:
        split, spool = next(iter(spools.items()))
        order = written_order(spool.rows, split, settings.seed)
        count = sample_examples(_lengths(spool, table, inputs), order, taps, widths, settings.unit_memory)
        rows = pa.Table.from_batches(list(spool.take(order[:count])))
        looked_at = (batch for _, batch in batches.forwards(split, rows, settings.batch_tokens))
        seen = survey(front_of(loaded, taps), looked_at, stored, settings.chunk_bytes)
    return planned(seen)


def choose_store_taps(grammar: str | None, table: BackboneTable, config: Any) -> dict[str, tuple[int, ...]]:
    """Taps to store of every stream.

    Without a grammar: every state that some late part can start from, and the last of an encoder; of a decoder not
    its last, which no late block would follow.
    """
    depth = depths(table, config)
    if grammar is not None:
        return parse_stream_taps(grammar, depth, where="taps")
    feeds_late = {stream.name: table.encoder_decoder and stream.late for stream in table.streams}
    return {name: tuple(range(deepest + (0 if feeds_late[name] else 1))) for name, deepest in depth.items()}


def depths(table: BackboneTable, config: Any) -> dict[str, int]:
    """Layers of each stream of a model."""
    return {stream.name: table.depth(config, stream.name) for stream in table.streams}


def _lengths(spool: Spool, table: BackboneTable, inputs: Inputs) -> dict[str, Ragged]:
    """Tokens of every segment of every stream, in source order."""
    return {stream.name: inputs.segments(spool, stream.tokens) for stream in table.streams}


def _content_key(identity: Mapping[str, Any], stream: str, split: str) -> str:
    skipped = ("taps.", "data.", "encoding", "calibration.", "late.")
    kept = {key: value for key, value in identity.items() if not key.startswith(skipped)}
    return keys.digest({**kept, "stream": stream, "data": identity[f"data.{split}"]})


def _late_blocks(settings: ExtractSettings, loaded: LoadedModel) -> int:
    """Late blocks whose weights the store holds."""
    depth = min(loaded.table.depth(loaded.config, stream.name) for stream in loaded.table.late_streams)
    late = min(DEFAULT_LATE, depth - 1) if settings.late is None else settings.late
    stored_blocks(loaded.table, loaded.config, late)
    return late
