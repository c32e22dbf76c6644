"""The ways to train one task, all in float32 on the same examples: those of `sherl-cache bench`, and others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sherl_cache.pipeline.recipe import load_recipe

if TYPE_CHECKING:
    from sherl_cache.pipeline.recipe import Recipe

    from .subject import Subject

LORA_RANK = 8


@dataclass(frozen=True)
class Variant:
    """A way of `sherl_cache.pipeline.bench.document.WAYS`, with settings of the recipe."""

    way: str
    settings: tuple[str, ...] = ()
    cold: bool = False
    """The store is put out of the page cache first."""

    def recipe(self, subject: Subject, device: str) -> Recipe:
        """SHERL with batches of the subject's size."""
        common = (f"data.batch_examples={subject.batch}", "data.read_budget=512MiB", f"train.device={device}")
        return load_recipe("sherl", (*common, *self.settings))


WAYS = {
    "stage two, warm": Variant("stage-two"),
    "stage two, cold": Variant("stage-two", cold=True),
    # the head reads the first row of a segment, and the last layer computes no other
    "stage two, cls pooling": Variant("stage-two", ("head.pooling=cls",)),
    "live SHERL": Variant("live"),
    "LST, live": Variant("live", ("fusion.name=ladder", "late.blocks=0")),
    "LoRA (peft)": Variant("lora"),
    "full fine-tuning": Variant("full"),
}
