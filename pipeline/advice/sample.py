"""A small store of the data's own examples, planned as the whole one is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...stages.spool import Spool
from ...storage import encoding, plan_split

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ...stages.preparation import Preparation


def sampled(prepared: Preparation, examples: Mapping[str, int], workspace: Path) -> Preparation:
    """The preparation of a store of the first examples of some splits, in the order in which they would be written, which is
    a random one.

    workspace: a folder for their token ids, for as long as the result is used.
    """
    loaded, settings = prepared.loaded, prepared.settings
    streams = {stream.name: stream for stream in loaded.table.streams if stream.name in prepared.taps}
    calibrations = prepared.survey.calibrations
    spools, packed, splits = {}, {}, {}
    for split, count in examples.items():
        chosen = np.sort(prepared.packed[split].order[:count])
        spool = spools[split] = Spool(workspace / f"{split}-sample.arrow", prepared.spools[split].take(chosen))
        packed[split] = plan_split(
            {name: prepared.inputs.segments(spool, stream.tokens) for name, stream in streams.items()},
            split=split,
            source_key="sample",
            widths={name: loaded.table.tap_widths(loaded.config, name) for name in streams},
            itemsize=encoding(prepared.plan.encoding).itemsize,
            taps=prepared.taps,
            seed=settings.seed,
            unit_memory=settings.unit_memory,
            chunk_bytes=(settings.chunk_bytes, 4 * settings.chunk_bytes),
            stored_widths={
                name: {tap: found.tap(tap).stored_width for tap in prepared.taps[name]}
                for name, found in calibrations.items()
            },
        )
        keys = dict.fromkeys(streams, "sample")
        splits[split] = packed[split].split_plan(
            keys, {name: found.record(name) for name, found in calibrations.items()}
        )
    return replace(
        prepared,
        spools=spools,
        packed=packed,
        parts={split: [part] for split, part in packed.items()},
        plan=prepared.plan.model_copy(update={"splits": splits}),
        known=None,
    )
