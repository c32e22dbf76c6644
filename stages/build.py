"""From a recipe and a store to stage two: which streams it reads, and what it is put together of."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from ..storage.errors import RecipeError, StoreStale
from .backbones.contract import table_for
from .folded_memory import let_memory_be_folded
from .frozen_layers import with_frozen_parts
from .late import build_late
from .late_ops import late_ops
from .maps import MapForm
from .methods.contract import Fusion, Head, HeadSpec, StreamSpec
from .model import StageTwo
from .model_config import config_from_json
from .plugins import find
from .producer import task_names
from .selected_rows import let_rows_be_selected
from .tuning import hang, tuner_class

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from .backbones.contract import BackboneTable
    from .late import LateModules


@dataclass(frozen=True, kw_only=True)
class StageTwoRecipe:
    """What a recipe says of the model."""

    fusion: str = "sherl"
    fusion_options: Mapping[str, Any] = field(default_factory=dict)
    late: int = 1
    """Late layers that run after the fusion; 0: the head reads the fused state."""
    mode: Literal["frozen", "full"] | None = None
    """Whether the late layers train; None: full without a tuner, frozen with one."""
    tuner: str | None = None
    """What trains on the frozen late layers."""
    tuner_options: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    """None: what the backbone and the task call for."""
    head_options: Mapping[str, Any] = field(default_factory=dict)
    features_dropout: float = 0.0
    """On the taps as they are read."""
    late_dropout: bool = False
    """Late layers drop out as their own config says; else they run as in evaluation."""
    head_dropout: float = 0.0
    """On the pooled row of a head that pools, else on the rows that the head reads."""

    def __post_init__(self) -> None:
        if self.mode is None:
            object.__setattr__(self, "mode", "full" if self.tuner is None else "frozen")


def stream_specs(
    table: BackboneTable, config: Any, late: int, head_stream: Literal["first", "last"] = "first"
) -> dict[str, StreamSpec]:
    """The streams that stage two reads, in order of dependence; `head_stream` says which one feeds the head where
    no late layer runs, unless there are two towers, which both do. Raises ModelError where `late` leaves no early layer."""
    table.check_late(config, late)
    whole = late or head_stream == "last" or table.reads_pairs
    streams = table.streams if whole else table.streams[:1]
    specs = {}
    for stream in streams:
        last: Literal["late", "head"] = "late" if late else "head"
        specs[stream.name] = StreamSpec(
            name=stream.name,
            width=table.width(config, stream.name),
            tap_widths={} if stream.maps is None else table.tap_widths(config, stream.name),
            depth=table.depth(config, stream.name),
            late=late if stream.late else 0,
            exit=last if stream.late or stream is streams[-1] else "memory",
            encoder_decoder=table.encoder_decoder,
            memory=stream.memory,
            causal=stream.causal,
            pooling=stream.pooling or table.pooling,
            form=stream.form(config),
        )
    return specs


def producer_config(producer: Mapping[str, Any]) -> tuple[BackboneTable, Any]:
    """Table and config of the model that a store was made with. Raises ModelError."""
    model = producer["model"]
    config = config_from_json(model["model_type"], model["config"])
    table = table_for(config, model.get("answers"))
    table = table.only(model["streams"]) if "streams" in model else table
    return table.pooled(MapForm.parse(model["maps"])) if model.get("maps") else table, config


def build_stage_two(
    producer: Mapping[str, Any],
    open_weights: Callable[[str], bytes],
    recipe: StageTwoRecipe,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> StageTwo:
    """The model of a recipe over a store, in train mode on the CPU; `seed` draws what is new in it.

    producer: the store's own (`model`: model_type, config; `task`: kind, labels; `late`: blocks stored).
    open_weights: bytes of a file that `late_weights` named; only those of the late layers that run are
    opened. Raises RecipeError, ModelError, StoreStale.
    """
    table, config = producer_config(producer)
    fusion_class = _fusion_class(recipe)
    specs = stream_specs(table, config, recipe.late, fusion_class.head_stream)
    if recipe.late > producer["late"]:
        raise StoreStale(
            f"the recipe runs {recipe.late} late blocks and the store holds the weights of "
            f"{producer['late']}; "
            f"set late.blocks to at most that, or extract with --late {recipe.late} into another store"
        )
    fusion_class.check_widths(recipe.fusion_options, specs)
    parts = build_late(table, config, open_weights, recipe.late, dropout=recipe.late_dropout, dtype=dtype)
    tuned_by = tuner_class(recipe.tuner, recipe.tuner_options, recipe.late, recipe.mode)
    if parts.late is not None:
        parts.late.requires_grad_(False)
        if recipe.mode == "full":
            parts.late.layers_require_grad()
    specs = with_frozen_parts(
        specs,
        fusion_class,
        recipe.fusion_options,
        table,
        config,
        parts.norms,
        open_weights,
        stored=producer["late"],
        dtype=dtype,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fusion = fusion_class.from_options(recipe.fusion_options, specs)
        head = _build_head(table, config, producer["task"], recipe, parts, fusion, specs)
        tuner = None
        if parts.late is not None:
            streams = {stream.name: stream for stream in table.streams}
            ops = replace(late_ops(streams, parts.late, table.widths(config)), tasks=task_names(producer))
            if tuned_by is not None:
                tuner = tuned_by.from_options(recipe.tuner_options, ops)
                hang(tuner, parts.late)
            let_rows_be_selected(parts.late, ops, tuner)
            let_memory_be_folded(parts.late, ops, tuner)
    norms = {
        name: _exit_norm(parts.norms[name], fusion.exit_norm, table.unit_norm)
        for name in specs
        if name in parts.norms and fusion.exit_norm != "none" and (recipe.late or specs[name].exit == "head")
    }
    model = StageTwo(
        table, specs, fusion, parts.late, tuner, norms, parts.projection, head, recipe, task_names(producer)
    )
    return model.to(dtype).train()


_HEADS: Final = {"classification": "classifier", "retrieval": "projection_pair"}
"""Name of the head of a kind of task, where it is not the kind's own."""


def _fusion_class(recipe: StageTwoRecipe) -> type[Fusion]:
    method = find("fusion", recipe.fusion)
    assert issubclass(method, Fusion)
    return method


def _build_head(
    table: BackboneTable,
    config: Any,
    task: Mapping[str, Any],
    recipe: StageTwoRecipe,
    parts: LateModules,
    fusion: Fusion,
    specs: Mapping[str, StreamSpec],
) -> Head:
    kind = task["kind"]
    source, *others = (spec for spec in specs.values() if spec.exit in ("late", "head"))
    second = others[0] if others else None
    # logits over a vocabulary are an answer of the last stream, where late layers, or the fusion's own, finish it
    lm = parts.projection if source.name == table.streams[-1].name else None
    default = "language_model" if lm is not None else _HEADS.get(kind, kind)
    method = find("head", recipe.head or default)
    assert issubclass(method, Head)
    if table.stream(source.name).tokens == "continued" and method.output != "tokens":
        raise RecipeError(
            f"head.name: {method.method_name()} would read the answers, which stand in the store behind their texts; leave it "
            "out, or extract without --answers text"
        )
    spec = HeadSpec(
        width=fusion.widths[source.name],
        kind=kind,
        classes=len(task.get("labels") or ()),
        pooling=source.pooling,
        initializer_range=table.initializer_range(config),
        lm=lm,
        second_width=None if second is None else fusion.widths[second.name],
        second_pooling=None if second is None else second.pooling,
        meeting=None if second is None else _meeting(parts, source.name, second.name),
    )
    options = dict(recipe.head_options)
    if "dropout" in method.Config.model_fields:
        options.setdefault("dropout", recipe.head_dropout)
    if method.output == "tokens" and not fusion.causal:
        raise RecipeError(
            f"fusion.name: {fusion.method_name()} lets a token see later ones, which a head that predicts tokens must "
            f"not; set head.name to classifier or regression"
        )
    return method.from_options(options, spec)


def _meeting(parts: LateModules, first: str, second: str) -> tuple[Tensor, Tensor] | None:
    if first in parts.meeting and second in parts.meeting:
        return parts.meeting[first], parts.meeting[second]
    return None


def _exit_norm(pretrained: nn.Module, exit_norm: str, unit: float) -> nn.Module:
    """The pretrained norm, frozen, or a new one of its kind, trained: weights of `unit`, which scale by one, shift
    zero."""
    if exit_norm == "pretrained":
        return pretrained.requires_grad_(False)
    norm = copy.deepcopy(pretrained)
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else unit)
    return norm.requires_grad_(True)
