"""The bill: what extract would cost in rows, bytes, files, minutes and memory, said before the work."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..stages.overlap import FORWARDS, UNITS
from ..stages.streamed_model import StreamedModel
from ..stages.streaming_front import StreamingFront, front_of
from ..storage import encoding
from .memory import peak_memory_bytes
from .progress import duration, size
from .space import free_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from ..stages.preparation import Preparation
    from .recipe import Recipe

PROBE_SECONDS = 5.0


def bill(
    recipe: Recipe, prepared: Preparation, root: Path, baseline: int, unit_seconds: float | None = None
) -> dict[str, Any]:
    """Everything that `plan` says. Runs the model on a few batches to learn its speed; writes nothing.

    `baseline` is the resident memory of a process that has imported everything and loaded nothing, in bytes.
    unit_seconds: how long a unit shall take; its size is then suggested.
    """
    costs = prepared.bill()
    splits = prepared.plan.splits
    streams = {name for split in splits.values() for name in split.streams}
    tokens = {
        name: sum(split.streams[name].tokens for split in splits.values() if name in split.streams) for name in streams
    }
    rate, reading = _probe(prepared)
    seconds = prepared.input_tokens() / rate + reading * len(prepared.plan.units())
    free = free_bytes(root)
    share = min(1.0, prepared.unit_bytes() / max(sum(costs.arrays.values()), 1))
    computing = prepared.input_tokens() / rate * share
    return {
        "store": str(root),
        "examples": {name: split.examples for name, split in splits.items()},
        "tokens": tokens,
        "truncated": {name: stats.truncated for name, stats in prepared.stats.items()},
        "taps": {name: list(taps) for name, taps in prepared.taps.items()},
        "encoding": prepared.plan.encoding,
        "bytes": costs.total,
        "at_most": costs.at_most,
        "compressed_share": prepared.survey.share,
        "bytes_by": {
            "taps": costs.arrays,
            "fill": costs.fill_bytes,
            "tables": costs.table,
            "late_weights": costs.files,
            "documents": costs.documents,
        },
        "files": costs.file_count,
        "units": len(prepared.plan.units()),
        "seconds": seconds,
        "unit_seconds": computing + reading,
        "suggested_unit_memory": None
        if unit_seconds is None
        else _unit_memory(prepared.unit_bytes(), computing, unit_seconds - reading),
        "tokens_per_second": rate,
        "memory": {
            "extract": peak_memory_bytes() + _extract_memory(prepared),
            "train": train_memory(recipe, prepared, baseline),
        },
        "free_bytes": free,
        "fits": free is None or costs.total <= free,
    }


def bill_lines(result: dict[str, Any]) -> list[str]:
    """The bill as people read it."""
    by = result["bytes_by"]
    lines = [
        f"{name}: {count:,} examples" + (f", {result['truncated'][name]:,} cut" if result["truncated"][name] else "")
        for name, count in result["examples"].items()
    ]
    lines += [f"{name}: {count:,} tokens, {len(result['taps'][name])} taps" for name, count in result["tokens"].items()]
    lines += [f"  {path}: {size(count)}" for path, count in by["taps"].items()]
    rest = ", ".join(
        f"{name.replace('_', ' ')} {size(by[name])}" for name in ("fill", "tables", "late_weights", "documents")
    )
    free = result["free_bytes"]
    share = result["compressed_share"]
    arrays = sum(by["taps"].values())
    compressed = result["bytes"] - arrays + int(arrays * (share or 1))
    verdict = "fits" if result["fits"] else "DOES NOT FIT"
    return [
        *lines,
        f"in all {'at most ' if result['at_most'] else ''}{size(result['bytes'])} as {result['encoding']} ({rest}), "
        f"{result['files']:,} files, {result['units']:,} units",
        *([] if share is None else [f"zstd made a sample {share:.2f} of its size: about {size(compressed)}"]),
        f"about {duration(result['seconds'])} at {result['tokens_per_second']:,.0f} tokens/s",
        *(
            []
            if result["suggested_unit_memory"] is None
            else [
                f"a unit takes about {duration(result['unit_seconds'])}; --unit-memory {result['suggested_unit_memory']} makes "
                "it about as long as was asked for"
            ]
        ),
        f"memory: extract about {size(result['memory']['extract'])}, train about {size(result['memory']['train'])}",
        f"{'unknown space' if free is None else size(free)} free at {result['store']}: {verdict}",
    ]


def _extract_memory(prepared: Preparation) -> int:
    """What `extract` holds beside a forward: the buffers of two units, one filled and one committed, and the taps of
    forwards that wait to be encoded. Where weights are streamed, the states of a unit too, of each stream once.
    """
    widths = prepared.widths
    itemsize = prepared.loaded.dtype.itemsize
    rows = {name: sum(widths[name][tap] for tap in taps) for name, taps in prepared.taps.items()}
    values = prepared.settings.batch_tokens * sum(rows.values())
    states = 0
    if isinstance(prepared.loaded, StreamedModel):
        states = max(
            sum(
                split.groups_per_unit * stream.chunk_rows * max(widths[name].values())
                for name, stream in split.streams.items()
            )
            for split in prepared.plan.splits.values()
        )
    units = min(UNITS, len(prepared.plan.units())) * prepared.unit_bytes()
    return units + (FORWARDS * values + states) * itemsize


def train_memory(recipe: Recipe, prepared: Preparation, baseline: int) -> int:
    """About what `train` holds: imports, late weights with gradient and two moments, a block of row groups, one
    batch's activations.
    """
    return baseline + reading_memory(recipe, prepared) + step_memory(recipe, prepared)


def reading_memory(recipe: Recipe, prepared: Preparation) -> int:
    """Bytes of what `train` reads of the planned store: all of it, or blocks within the budget."""
    item = encoding(prepared.plan.encoding).itemsize
    groups = [  # bytes of a row group of each split, and how many there are
        (sum(s.chunk_rows * s.row_numbers for s in part.streams.values()) * item, part.groups)
        for name, part in prepared.plan.splits.items()
        if name in ("train", "validation")
    ]
    everything = sum(group * count for group, count in groups)
    two_blocks = 2 * max(group * min(recipe.data.window, count) for group, count in groups)
    budget = int(recipe.data.read_budget)
    return everything if everything <= budget else min(two_blocks, budget)


def step_memory(recipe: Recipe, prepared: Preparation) -> int:
    """Bytes of late weights with gradient and two moments, and of one batch's activations.

    The late blocks' activations are counted as sixteen states of the model's width a token, which is what a transformer
    block keeps for its gradient, and the taps of a batch once in float32.
    """
    late = sum(len(data) for name, data in prepared.files.items() if not name.endswith("rest.safetensors"))
    rest = sum(len(data) for name, data in prepared.files.items() if name.endswith("rest.safetensors"))
    stored = int(str(prepared.plan.producer["late"]))
    late = late * min(recipe.late.blocks, stored) // max(stored, 1)
    trained = 4 if recipe.late_mode == "full" else 1
    split = next(prepared.packed[name] for name in ("train", "validation") if name in prepared.packed)
    widths, itemsize = prepared.widths, prepared.loaded.dtype.itemsize
    late_float32 = late * 4 // itemsize
    tokens = sum(stream.tokens for stream in split.streams.values())
    batch = recipe.data.batch_examples
    share = (recipe.data.batch_tokens or 0) / tokens if batch is None else batch / len(split.order)
    values = sum(
        stream.tokens * (sum(stream.widths.values()) + 16 * max(widths[name].values()) * max(recipe.late.blocks, 1))
        for name, stream in split.streams.items()
    )
    return int(late_float32 * trained + rest * 4 // itemsize + share * values * 4)


def _unit_memory(unit_bytes: int, seconds: float, wanted: float) -> str:
    """`--unit-memory` of units that take `wanted` seconds, where one of `unit_bytes` takes `seconds`."""
    return f"{max(1, int(unit_bytes / 2**20 * wanted / max(seconds, 1e-9)))}MiB"


def _probe(prepared: Preparation) -> tuple[float, float]:
    """Input tokens a second of the early layers, from forward batches as extract would make them; and the seconds that
    each unit takes beside, to read the weights where they are streamed.
    """
    front = front_of(prepared.loaded, prepared.taps)
    if isinstance(front, StreamingFront):
        begun = time.perf_counter()
        counts, batches = zip(*prepared.probe_batches(), strict=True)
        for _ in front.run(batches):
            pass
        reading = front.skeleton.read_seconds
        return sum(counts) / (time.perf_counter() - begun - reading), reading
    tokens, spent = 0, 0.0
    front(prepared.sample(1))  # the first call pays for warming up
    begun = time.perf_counter()
    for count, batch in prepared.probe_batches():
        front(batch)
        tokens += count
        spent = time.perf_counter() - begun  # with the time that making the batch takes: pictures are decoded
        if spent > PROBE_SECONDS:
            break
    return tokens / spent, 0.0
