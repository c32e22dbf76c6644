"""Stage two as one module: fusion, late layers, final norms and head. It sees packed taps and knows no
family.

taps -> fusion -> late layers -> norm -> head          the stream with late layers, which may hold a tuner
taps -> fusion -> norm -> memory of the late layers    the stream they attend to
taps -> fusion -> norm -> head                         without late layers: the first stream alone
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..storage.errors import InvalidInput, RecipeError, StoreStale
from .backbones.contract import BackboneTable, table_for
from .dropout import TapDropout
from .frozen_layers import with_frozen_parts
from .late import LatePart, OutputProjection, build_late
from .late_ops import late_ops
from .load import config_from_json
from .methods.contract import Fusion, Head, HeadSpec, Outputs, Packed, StreamSpec, Tuner
from .plugins import find
from .selected_rows import let_rows_be_selected
from .tuning import hang, leading_rows, merged_state, tuner_class

if TYPE_CHECKING:
    from .cached_block import CachedBlock


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
    no late layer runs. Raises ModelError where `late` leaves no early layer."""
    table.check_late(config, late)
    streams = table.streams if late or head_stream == "last" else table.streams[:1]
    specs = {}
    for stream in streams:
        last: Literal["late", "head"] = "late" if late else "head"
        specs[stream.name] = StreamSpec(
            name=stream.name,
            width=table.width(config, stream.name),
            depth=table.depth(config, stream.name),
            late=late if stream.late else 0,
            exit=last if stream.late or stream is streams[-1] else "memory",
            encoder_decoder=table.encoder_decoder,
            memory=stream.memory,
            causal=stream.causal,
            pooling=table.pooling,
            form=stream.form(config),
        )
    return specs


def producer_config(producer: Mapping[str, Any]) -> tuple[BackboneTable, Any]:
    """Table and config of the model that a store was made with. Raises ModelError."""
    model = producer["model"]
    config = config_from_json(model["model_type"], model["config"])
    table = table_for(config)
    return table.only(model["streams"]) if "streams" in model else table, config


def build_stage_two(
    producer: Mapping[str, Any],
    open_weights: Callable[[str], bytes],
    recipe: StageTwoRecipe,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> "StageTwo":
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
        head = _build_head(table, config, producer["task"], recipe, parts.projection, fusion, specs)
        tuner = None
        if parts.late is not None:
            streams = {stream.name: stream for stream in table.streams}
            ops = late_ops(streams, parts.late, table.width(config))
            if tuned_by is not None:
                tuner = tuned_by.from_options(recipe.tuner_options, ops)
                hang(tuner, parts.late)
            let_rows_be_selected(parts.late, ops, tuner)
    norms = {
        name: _exit_norm(parts.norms[name], fusion.exit_norm, table.unit_norm)
        for name in specs
        if name in parts.norms and fusion.exit_norm != "none" and (recipe.late or specs[name].exit == "head")
    }
    model = StageTwo(table, specs, fusion, parts.late, tuner, norms, parts.projection, head, recipe)
    return model.to(dtype).train()


class StageTwo(nn.Module):
    """What trains, and the frozen late layers between."""

    compute: Tensor

    def __init__(
        self,
        table: BackboneTable,
        specs: Mapping[str, StreamSpec],
        fusion: Fusion,
        late: LatePart | None,
        tuner: Tuner | None,
        norms: Mapping[str, nn.Module],
        projection: OutputProjection | None,
        head: Head,
        recipe: StageTwoRecipe,
    ) -> None:
        super().__init__()
        self.table, self.specs, self.recipe = table, dict(specs), recipe
        self.reads = fusion.reads(recipe.fusion_options, specs)
        self.fusion = fusion
        self.late = late
        self.tuner = tuner
        self.cached_block: CachedBlock | None = None
        """The first late block, where its output is read instead of run."""
        self.norm = nn.ModuleDict(norms)
        self.projection = projection if head.output == "tokens" else None
        self.head = head
        self.features_dropout = TapDropout(recipe.features_dropout)
        own_dropout = "dropout" in head.Config.model_fields
        self.head_dropout = nn.Dropout(0.0 if own_dropout else recipe.head_dropout)
        # says where and in which number format to compute; a fusion and a head may have no parameter to ask
        self.register_buffer("compute", torch.empty(0), persistent=False)
        self.exit_stream = next(name for name, spec in specs.items() if spec.exit in ("late", "head"))

    def forward(
        self, inputs: Mapping[str, Packed], select: Tensor | None = None, segments: Tensor | None = None
    ) -> Any:
        """Taps as `reads` lists them -> output of the head.

        select: bool [N] over the rows of the last stream: only these reach the head, for heads that answer
        row by row. segments: int64 [B], how many segments of the late stream belong to each example; None:
        all the same number.
        """
        return self.outputs(inputs, select, segments).head

    def outputs(
        self,
        inputs: Mapping[str, Packed],
        select: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        features: bool = False,
    ) -> Outputs:
        """As forward; with `features`, what the fusion gave and read beside it."""
        fused = self.fuse(inputs, segments)
        rows, lengths = self.rows_after(fused, segments)
        if select is not None:
            rows = rows[select]
        output = self.head(self.head_dropout(rows), lengths)
        if not features:
            return Outputs(head=output)
        if self.cached_block is not None:
            inputs, _ = self.cached_block.split(inputs)
        taps = {
            name: Packed(given.taps.to(self.compute), given.lengths.to(self.compute.device), given.depths)
            for name, given in ((name, inputs[name]) for name in fused)
        }
        return Outputs(head=output, fused=fused, taps=taps)

    def final_rows(self, inputs: Mapping[str, Packed], segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows [N, D] that the head reads, after the last norm, and the lengths of their segments [S]."""
        return self.rows_after(self.fuse(inputs, segments), segments)

    def rows_after(self, fused: Mapping[str, Packed], segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `final_rows`, from fused rows."""
        rows = {name: packed.rows for name, packed in fused.items()}
        lengths = {name: packed.lengths for name, packed in fused.items()}
        last = self.exit_stream
        if self.late is None:
            return self.normed(last, rows[last]), lengths[last]
        memories = {}
        for name in self.late.names:
            memory = self.table.stream(name).memory
            if memory is not None:
                counts = _segments(len(lengths[name]), len(lengths[memory]), lengths[memory], segments)
                memories[name] = (self.normed(memory, rows[memory]), lengths[memory], counts)
        if self.cached_block is not None:
            rows[self.cached_block.stream] = self.cached_block.after(fused[self.cached_block.stream])
        places = self.head.reads(lengths[last])
        read = {} if places is None else {last: places}
        leading = leading_rows(self.tuner, self.late, lengths, self.table.max_length)
        states = self.late(rows, lengths, memories, leading, read)
        return self.normed(last, states[last]), lengths[last] if places is None else torch.ones_like(places)

    @contextmanager
    def without_tuner(self) -> Iterator[None]:
        """The model as if no tuner were on its late layers."""
        with nullcontext() if self.tuner is None else self.tuner.disabled():
            yield

    def merged_late_state(self) -> dict[str, Tensor]:
        """The late layers' weights with the tuner folded in, by the names `late.<stream>.<index>.`: a model of the same
        recipe without the tuner computes with them what this one computes.

        Raises RecipeError where there is no tuner, or one that cannot be folded.
        """
        if self.tuner is None or self.late is None:
            raise RecipeError("tuner.name: this recipe has no tuner, so that there is nothing to merge")
        return {f"late.{name}": tensor for name, tensor in merged_state(self.tuner, self.late).items()}

    def fuse(self, inputs: Mapping[str, Packed], segments: Tensor | None = None) -> dict[str, Packed]:
        """Taps [K, N, D] of some streams -> their fused rows (K = 1), in the model's number format.

        segments: int64 [B], how many segments of the last stream belong to each example; None: all the same number.
        """
        output = None
        if self.cached_block is not None:
            inputs, output = self.cached_block.split(inputs)
        device, dtype = self.compute.device, self.compute.dtype
        given: dict[str, Packed] = {}
        for name, spec in self.specs.items():
            if name not in inputs:
                continue
            packed = inputs[name]
            lengths, owners = packed.lengths.to(device), None
            if spec.memory in given and not self.fusion.tokenwise:
                like = given[spec.memory].lengths
                counts = _segments(len(lengths), len(like), like, segments)
                owners = torch.repeat_interleave(counts, output_size=len(lengths))
            taps = self.features_dropout(packed.taps.to(device, dtype))
            given[name] = Packed(taps, lengths, packed.depths, owners)
        fused: dict[str, Packed] = self.fusion(given)
        if self.cached_block is not None and output is not None:
            return self.cached_block.beside(fused, output)
        return fused

    @property
    def fused_streams(self) -> tuple[str, ...]:
        """Streams of which the fusion gives rows."""
        return tuple(name for name, spec in self.specs.items() if self.late is not None or spec.exit == "head")

    def normed(self, stream: str, rows: Tensor) -> Tensor:
        """Rows after the stream's exit norm, where it has one."""
        if stream not in self.norm:
            return rows
        normed: Tensor = self.norm[stream](rows)
        return normed

    def parameter_groups(self, learning_rate: float, late_learning_rate: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: everything that trains but the late layers, and the late layers where they
        train."""
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, parameter in self.trained_parameters().items():
            groups[name.startswith("late.")].append(parameter)
        rates = {False: learning_rate, True: late_learning_rate}
        return [{"params": params, "lr": rates[late]} for late, params in groups.items() if params]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter that trains, by name: `fusion.`, `late.<stream>.<index>.`, `tuner.`, `norm.<stream>.`,
        `head.`."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """Values of everything that trains, detached, and what fusion and head keep in buffers; with the store's late
        weights they are the whole model."""
        return {name: tensor.detach() for name, tensor in self._kept().items()}

    def _kept(self) -> dict[str, Tensor]:
        trained = self.trained_parameters()
        buffers = [name for name in self.state_dict() if name.startswith(("fusion.", "head.")) and name not in trained]
        own = dict(self.named_buffers())
        return {**trained, **{name: own[name] for name in buffers if name in own}}

    @torch.no_grad()
    def load_trainable_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `trainable_state_dict` gave. Raises StoreStale where names or shapes are others."""
        own = self._kept()
        for name in sorted(own.keys() ^ state.keys()):
            where = "the model has no such parameter" if name in state else "the weights lack it"
            raise StoreStale(f"trained weights do not fit the recipe: {name}: {where}; train again with this recipe")
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise StoreStale(
                    f"trained weights do not fit the recipe: {name} has shape "
                    f"{list(state[name].shape)}, and the model's "
                    f"is {list(parameter.shape)}; train again with this recipe"
                )
            parameter.copy_(state[name])


def _fusion_class(recipe: StageTwoRecipe) -> type[Fusion]:
    method = find("fusion", recipe.fusion)
    assert issubclass(method, Fusion)
    return method


def _build_head(
    table: BackboneTable,
    config: Any,
    task: Mapping[str, Any],
    recipe: StageTwoRecipe,
    projection: OutputProjection | None,
    fusion: Fusion,
    specs: Mapping[str, StreamSpec],
) -> Head:
    kind = task["kind"]
    source = next(spec for spec in specs.values() if spec.exit in ("late", "head"))
    # logits over a vocabulary are an answer of the stream that late layers, or the fusion's own, finish
    lm = projection if recipe.late or fusion.head_stream == "last" else None
    default = "language_model" if lm is not None else {"classification": "classifier"}.get(kind, kind)
    method = find("head", recipe.head or default)
    assert issubclass(method, Head)
    spec = HeadSpec(
        width=fusion.widths[source.name],
        kind=kind,
        classes=len(task.get("labels") or ()),
        pooling=table.pooling,
        initializer_range=table.initializer_range(config),
        lm=lm,
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


def _segments(count: int, examples: int, like: Tensor, segments: Tensor | None) -> Tensor:
    """Segments of each example, int64 [B], that add up to `count`. Raises InvalidInput."""
    if segments is not None:
        return segments.to(like.device)
    if not examples or count % examples:
        raise InvalidInput(
            f"{count} answers of {examples} examples: say how many belong to each where it is not the same number"
        )
    return torch.full_like(like, count // examples)
