"""Stage two as one module: fusion, late layers, final norms and head. It sees packed taps and knows no
family.

taps -> fusion -> late layers -> norm -> head          the stream with late layers, which may hold a tuner
taps -> fusion -> norm -> memory of the late layers    the stream they attend to
taps -> fusion -> norm -> head                         without late layers: the first stream alone

A head whose output is a pair reads the streams of two towers, which do not see each other, each by the first or the last of
these paths.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..storage.errors import InvalidInput, RecipeError, StoreStale
from .dropout import TapDropout
from .methods.contract import Outputs, Packed, each_tap
from .tuning import leading_rows, merged_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .backbones.contract import BackboneTable
    from .build import StageTwoRecipe
    from .cached_block import CachedBlock
    from .late import LatePart, OutputProjection
    from .methods.contract import Fusion, Head, StreamSpec, Tuner


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
        tasks: tuple[str, ...] = (),
    ) -> None:
        """tasks: names of the tasks of the data, by their numbers."""
        super().__init__()
        self.table, self.specs, self.recipe = table, dict(specs), recipe
        self.tasks = tasks
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
        exits = tuple(name for name, spec in specs.items() if spec.exit in ("late", "head"))
        self.exit_streams = exits if head.output == "pair" else exits[:1]
        """Streams whose rows the head reads: one, or the two of a pair."""
        self.exit_stream = exits[0]

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
        output = self.head(self.dropped(rows), lengths)
        if not features:
            return Outputs(head=output)
        if self.cached_block is not None:
            inputs, _ = self.cached_block.split(inputs)
        taps = {
            name: Packed(
                each_tap(given.taps, lambda tap: tap.to(self.compute)),
                given.lengths.to(self.compute.device),
                given.depths,
            )
            for name, given in ((name, inputs[name]) for name in fused)
        }
        return Outputs(head=output, fused=fused, taps=taps)

    def dropped(self, rows: Any) -> Any:
        """Rows of one stream, or of two, with the head's dropout."""
        return tuple(map(self.head_dropout, rows)) if isinstance(rows, tuple) else self.head_dropout(rows)

    def final_rows(self, inputs: Mapping[str, Packed], segments: Tensor | None = None) -> tuple[Any, Any]:
        """Rows [N, D] that the head reads, after the last norm, and the lengths of their segments [S]; of a pair, tuples
        of two."""
        return self.rows_after(self.fuse(inputs, segments), segments)

    def rows_after(self, fused: Mapping[str, Packed], segments: Tensor | None = None) -> tuple[Any, Any]:
        """As `final_rows`, from fused rows."""
        states = {name: packed.rows for name, packed in fused.items()}
        lengths = {name: packed.lengths for name, packed in fused.items()}
        if self.late is not None:
            states, lengths = self._after_late(self.late, fused, states, lengths, segments)
        found = [(self.normed(name, states[name]), lengths[name]) for name in self.exit_streams]
        if len(found) == 1:
            return found[0]
        rows, counts = zip(*found, strict=True)
        return rows, counts

    def _after_late(
        self,
        late: LatePart,
        fused: Mapping[str, Packed],
        rows: dict[str, Tensor],
        lengths: dict[str, Tensor],
        segments: Tensor | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rows of the late streams after their last layer, of some only those that the head reads, and their lengths."""
        memories = {}
        for name in late.names:
            memory = self.table.stream(name).memory
            if memory is not None:
                counts = _segments(len(lengths[name]), len(lengths[memory]), lengths[memory], segments)
                memories[name] = (self.normed(memory, rows[memory]), lengths[memory], counts)
        if self.cached_block is not None:
            rows[self.cached_block.stream] = self.cached_block.after(fused[self.cached_block.stream])
        places = {name: self.head.reads(lengths[name], place) for place, name in enumerate(self.exit_streams)}
        read = {name: rows_read for name, rows_read in places.items() if rows_read is not None}
        leading = leading_rows(self.tuner, late, lengths, self.table.max_length)
        tasks = {name: fused[name].tasks for name in late.names}
        states = late(rows, lengths, memories, leading, read, tasks)
        return states, {**lengths, **{name: torch.ones_like(rows_read) for name, rows_read in read.items()}}

    def penalties(self) -> dict[str, Tensor]:
        """What fusion, tuner and head add to the loss of a step, by `<axis>.<name>`."""
        methods = [method for method in (self.fusion, self.tuner, self.head) if method is not None]
        return {f"{method.axis}.{name}": value for method in methods for name, value in method.penalties().items()}

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
            taps = each_tap(packed.taps, lambda tap: self.features_dropout(tap.to(device), dtype))
            tasks = None if packed.tasks is None else packed.tasks.to(device)
            given[name] = Packed(taps, lengths, packed.depths, owners, tasks)
        fused: dict[str, Packed] = self.fusion(given)
        if self.cached_block is not None and output is not None:
            fused = self.cached_block.beside(fused, output)
        if self.reads_tasks:
            return {name: replace(packed, tasks=given[name].tasks) for name, packed in fused.items()}
        return fused

    @property
    def reads_tasks(self) -> bool:
        """Whether it needs to know the task of each segment."""
        return self.tuner is not None and self.tuner.reads_tasks

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
        """Values of everything that trains, detached, and what fusion, head and tuner keep in buffers; with the store's late
        weights they are the whole model."""
        return {name: tensor.detach() for name, tensor in self._kept().items()}

    def _kept(self) -> dict[str, Tensor]:
        trained = self.trained_parameters()
        kept = ("fusion.", "head.", "tuner.")
        buffers = [name for name in self.state_dict() if name.startswith(kept) and name not in trained]
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


def _segments(count: int, examples: int, like: Tensor, segments: Tensor | None) -> Tensor:
    """Segments of each example, int64 [B], that add up to `count`. Raises InvalidInput."""
    if segments is not None:
        return segments.to(like.device)
    if not examples or count % examples:
        raise InvalidInput(
            f"{count} answers of {examples} examples: say how many belong to each where it is not the same number"
        )
    return torch.full_like(like, count // examples)
