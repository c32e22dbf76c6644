"""What writing costs: extraction into a store, against the same forwards whose taps are thrown away.

T5-base built from its config (weights make no difference to time), float32 on the CPU, all taps, bfloat16 store, the
sentences of builtin/reviews. The two take turns in one process; medians. A slow disk shows as soon as a unit takes
longer to commit than to compute.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from typing import TYPE_CHECKING

import torch

from sherl_cache.stages.extract import extract_missing, extract_unit, forwards
from sherl_cache.stages.front import Front
from sherl_cache.stages.prepare import ExtractSettings, prepare
from sherl_cache.stages.sources import open_source
from sherl_cache.stages.tasks import task_for

from ..memory import make_model
from .row import Row, Scale

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sherl_cache.stages.preparation import Preparation

GOAL = 1.05


def rows(scale: Scale, folder: Path) -> Iterator[Row]:
    """Writing beside the forward, and for comparison writing after it."""
    size = "mini" if scale.quick else "base"
    model = folder / f"t5-{size}"
    make_model(model, argparse.Namespace(data="builtin/reviews", task=None, size=size))
    settings = ExtractSettings(
        model=str(model),
        data=str(sentences(folder / "train.csv", scale.of(600, 60))),
        batch_tokens=scale.of(1024, 512),
        unit_memory=scale.of(16 << 20, 512 << 10),
        chunk_bytes=scale.of(256 << 10, 32 << 10),
    )
    prepared = prepare(settings, folder, torch.device("cpu"))
    front = Front(prepared.loaded, prepared.taps)
    read_only = prepared.create_writer(folder / "tables")
    alone: list[float] = []
    beside: list[float] = []
    after: list[float] = []
    for turn in range(scale.of(5, 1) + 1):
        begun = time.perf_counter()
        for unit in read_only.units():
            rows = read_only.table(unit.split).read_unit(unit.index)
            for _ in forwards(front, prepared.batches, unit.split, rows, settings.batch_tokens):
                pass
        alone.append(time.perf_counter() - begun)
        beside.append(_extract(prepared, front, folder / f"beside-{turn}", overlap=True))
        after.append(_extract(prepared, front, folder / f"after-{turn}", overlap=False))
    forward, written, plain = (statistics.median(times[1:]) for times in (alone, beside, after))  # the first warms up
    units, size_bytes = len(read_only.units()), prepared.bill().total
    details = {"forward": alone, "beside": beside, "after": after, "units": units, "bytes": size_bytes}
    yield Row(
        f"extraction beside the same forward without writing, T5-{size}, {units} units, {size_bytes / 2**20:.0f} MiB",
        f"at most {GOAL:.2f}x",
        f"{written / forward:.3f}x ({written:.2f} s, {forward:.2f} s)",
        written / forward <= GOAL,
        details,
    )
    yield Row(
        "the same, each unit written after its forward", "-", f"{plain / forward:.3f}x ({plain:.2f} s)", None, details
    )


def sentences(path: Path, count: int) -> Path:
    """The first sentences of builtin/reviews, as a file with no other split."""
    source = open_source("builtin/reviews")
    task = task_for(None, source)
    columns = [*task.columns, task.label_column]
    left = count
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for batch in source.batches("train", columns):
            found = list(zip(*(batch[name] for name in columns), strict=True))[:left]
            writer.writerows((text, ("negative", "positive")[int(label)]) for text, label in found)
            left -= len(found)
    return path


def _extract(prepared: Preparation, front: Front, root: Path, *, overlap: bool) -> float:
    """Seconds for every unit and the manifest; the plan and its tables are written before."""
    writer = prepared.create_writer(root)
    for split in writer.plan.splits:
        writer.table(split)
    begun = time.perf_counter()
    if overlap:
        extract_missing(front, writer, prepared.settings.batch_tokens)
    else:
        for unit in writer.missing():
            rows = writer.table(unit.split).read_unit(unit.index)
            extract_unit(front, writer, unit, rows, prepared.settings.batch_tokens)
    writer.finalize()
    return time.perf_counter() - begun
