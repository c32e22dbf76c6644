"""Every setting that moves a number of `bench`, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..progress import size
from ..report.places import shown_place
from .examples import tokens_a_segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...storage import Store
    from ..recipe import Recipe
    from .document import Measured
    from .examples import Examples

Settings = dict[str, str | int | float | None]
_WARM, _COLD = 0.1, 0.9
"""Share of what was read that came from a disk."""


def settings_told(
    recipe: Recipe, store: Store, batches: Sequence[Examples], rounds: int, measured: Sequence[Measured]
) -> Settings:
    """By name, in the order in which people read them."""
    producer = store.producer
    data, train = recipe.data, recipe.train
    lengths = tokens_a_segment(store.examples("train"), np.concatenate(batches))
    cut = f"{data.batch_examples} examples" if data.batch_tokens is None else f"{data.batch_tokens} padded tokens"
    clipping = "no clipping" if train.clip_norm is None else f"clipping at {train.clip_norm:g}"
    facts: dict[str, str] = {}
    for one in measured:
        facts |= one.facts
    return {
        "model": shown_place(str(producer["model"]["name"])),
        "model type": str(producer["model"]["model_type"]),
        "data": shown_place(str(producer["data"]["name"])),
        "task": f"{producer['task']['name']} ({producer['task']['kind']})",
        **{f"tokens, {name}": f"mean {mean:.1f}, at most {most}" for name, (mean, most) in lengths.items()},
        "recipe": recipe.name,
        "fusion": recipe.fusion.name,
        "late blocks": f"{recipe.late.blocks}, {'trained' if recipe.late_mode == 'full' else 'frozen'}",
        "tuner": recipe.tuner.name,
        "batch": cut,
        "micro-batch": None if train.micro_batch_examples is None else f"{train.micro_batch_examples} examples",
        "steps": f"{len(batches)} a round, the first of them not timed",
        "rounds": rounds,
        "optimizer": f"AdamW, {clipping}, weight decay {train.weight_decay:g}",
        "store encoding": store.plan.encoding,
        "read budget": size(int(data.read_budget)),
        "store read": _how_cold(measured),
        "compiled fusion": "yes" if train.compile else None,
        **facts,
    }


def _how_cold(measured: Sequence[Measured]) -> str:
    """Whether the page cache held the store."""
    known = [one for one in measured if one.store_bytes and one.device_bytes is not None]
    if not known:
        return "not known whether from a disk or from the page cache"
    read, fetched = sum(one.store_bytes or 0 for one in known), sum(one.device_bytes or 0 for one in known)
    share = fetched / read
    state = "warm" if share <= _WARM else "cold" if share >= _COLD else "partly warm"
    return f"{state}: {size(read)} read in all rounds, {size(min(fetched, read))} of it from a disk"
