"""What a backbone's table says, and how the table of a model is found.

A table holds attribute paths of a transformers model and nothing that computes: where the layers of a stream
are, its final norm, which stream it attends to, and what must stand in an early layer's place when only the
late layers are loaded. Each file of this folder offers `TABLES`; a family is added by adding a file.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from ...storage.errors import ModelError, RecipeError
from ..layer_form import LayerForm as LayerForm
from ..layer_form import RelativePositions as RelativePositions
from ..layer_form import known_activation as known_activation
from ..maps import MapForm
from ..maps import MapTable as MapTable
from ..op_paths import OpPath as OpPath
from ..op_paths import Share as Share
from ..op_paths import Sublayer as Sublayer
from ..stream_table import PassThrough as PassThrough
from ..stream_table import StreamTable as StreamTable

Answers = Literal["head", "text"]
"""Where a causal decoder's answers come from: a head on its last token, or its own output projection, token by token."""


@dataclass(frozen=True, kw_only=True)
class BackboneTable:
    """What stages one and two need to know of a model family."""

    model_types: tuple[str, ...]
    auto_class: Literal["AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM"]
    streams: tuple[StreamTable, ...]
    """In order of dependence: a stream comes after its memory."""
    text_form: Literal["pair", "template", "text_to_text", "continuation"] | None
    """`pair`: the tokenizer's own form of one or two texts; `template`: the task's template, filled, as one
    text; `text_to_text`: the same, and answers as text; `continuation`: the same, and answers that go on where the text
    ends; None: the model reads no text."""
    max_length: Callable[[Any], int | None]
    """Longest input of a config, in tokens; None where positions are relative and nothing bounds it."""
    initializer_range: Callable[[Any], float]
    """Standard deviation of new weights."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """How a head makes one vector of a segment, unless a recipe says otherwise."""
    unit_norm: float = 1.0
    """Weight of a norm that scales by one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the model class."""
    head: str | None = None
    """Output projection of a language model."""
    head_bias: str | None = None
    """Tensor that the model adds to the logits, [1, V]."""
    head_scale: Callable[[Any], float] = lambda config: 1.0
    """Factor on the states before the output projection."""
    head_cap: Callable[[Any], float | None] = lambda config: None
    """Bound c of logits behind it, which become c * tanh(logits / c); None: there is none."""
    in_text: "BackboneTable | None" = None
    """The same with answers as text, see `continues`; None where there is no other way than the model's own."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation: `eager` where the fused one cannot compute what the model asks for."""
    refuses: Callable[[Any], str | None] = lambda config: None
    """Why a config of this model type does not fit the table; None where it does."""

    def stream(self, name: str) -> StreamTable:
        """The stream of that name. Raises KeyError."""
        return {stream.name: stream for stream in self.streams}[name]

    @property
    def encoder_decoder(self) -> bool:
        return any(stream.memory is not None for stream in self.streams)

    @property
    def reads_pictures(self) -> bool:
        return any(stream.tokens == "pixels" for stream in self.streams)

    @property
    def reads_pairs(self) -> bool:
        """Whether it has a tower for pictures and one for texts, neither of which attends to the other."""
        return {stream.tokens for stream in self.streams} == {"input", "pixels"} and not self.encoder_decoder

    @property
    def late_streams(self) -> tuple[StreamTable, ...]:
        return tuple(stream for stream in self.streams if stream.late)

    def depth(self, config: Any, stream: str) -> int:
        """Number of layers of a stream, L; its taps are h00 to hL."""
        table = self.stream(stream)
        depth = getattr(table.own_config(config), table.depth)
        return depth if isinstance(depth, int) else len(depth)

    def width(self, config: Any, stream: str | None = None) -> int:
        """Width D of the last hidden state of a stream; None: of the first, which is that of all unless they have configs
        of their own."""
        table = self.streams[0] if stream is None else self.stream(stream)
        own = table.own_config(config)
        return int(own.hidden_size) if table.maps is None else table.maps.widths(own)[-1]

    def widths(self, config: Any) -> dict[str, int]:
        """Width of every stream."""
        return {stream.name: self.width(config, stream.name) for stream in self.streams}

    def tap_widths(self, config: Any, stream: str) -> dict[int, int]:
        """Width of every tap of a stream, h00 to hL."""
        table = self.stream(stream)
        if table.maps is not None:
            return dict(enumerate(table.maps.widths(table.own_config(config))))
        return dict.fromkeys(range(self.depth(config, stream) + 1), self.width(config, stream))

    @property
    def map_form(self) -> MapForm | None:
        """What is stored of maps; None where there are none."""
        return next((stream.maps.form for stream in self.streams if stream.maps is not None), None)

    def pooled(self, form: MapForm) -> "BackboneTable":
        """The same with maps stored in another form."""
        streams = (
            stream if stream.maps is None else replace(stream, maps=replace(stream.maps, form=form))
            for stream in self.streams
        )
        return replace(self, streams=tuple(streams))

    def answering(self, answers: Answers | None, model_type: str) -> "BackboneTable":
        """The table for answers that come from there; None: as this kind of model usually answers. Raises ModelError."""
        own = "text" if self.text_form == "text_to_text" else "head"
        if answers in (None, own):
            return self
        if self.in_text is not None:
            return self.in_text
        said = (
            "an encoder-decoder answers in text, unless a recipe gives it a head"
            if own == "text"
            else ("only causal decoders with a table and encoder-decoders answer in text")
        )
        raise ModelError(f"answers {answers}: {model_type} does not: {said}; leave it out")

    def only(self, names: Sequence[str]) -> "BackboneTable":
        """The same with some of the streams, which must not attend to others. Raises KeyError."""
        streams = tuple(self.stream(name) for name in names)
        return replace(self, streams=streams, pooling=streams[0].pooling or self.pooling)

    def check_late(self, config: Any, late: int) -> None:
        """Raises ModelError where `late` late layers leave no early one, RecipeError where none can run late."""
        if late and not self.late_streams:
            raise RecipeError(
                f"late.blocks {late}: no layer of this {config.model_type} model can run late, since they read whole maps and "
                "the store holds pooled ones; set late.blocks: 0, and the head reads the fused rows"
            )
        for stream in self.late_streams:
            depth = self.depth(config, stream.name)
            if not 0 <= late < depth:
                raise ModelError(
                    f"{late} late layers: the {stream.name} of this {config.model_type} model has "
                    f"{depth} layers, "
                    f"and at least one of them must be early; at most {depth - 1} can be late"
                )


@cache
def all_tables() -> Mapping[str, BackboneTable]:
    """Every table of this folder by model type."""
    package = importlib.import_module(__package__)
    tables: dict[str, BackboneTable] = {}
    for module in pkgutil.iter_modules(package.__path__):
        file = importlib.import_module(f"{__package__}.{module.name}")
        for table in getattr(file, "TABLES", ()):
            tables.update(dict.fromkeys(table.model_types, table))
    return tables


def continues(table: BackboneTable, base: str) -> BackboneTable:
    """The table of a causal decoder, with that of the library's class which has a language model's head: its stack lies
    below `base` and reads a text with an answer behind it."""

    def below(path: str) -> str:
        return f"{base}.{path}" if path else base

    def moved(stream: StreamTable) -> StreamTable:
        norm, rotary = (None if path is None else below(path) for path in (stream.norm, stream.rotary))
        stack, layers = below(stream.stack), below(stream.layers)
        return replace(stream, stack=stack, layers=layers, norm=norm, rotary=rotary, tokens="continued")

    in_text = replace(
        table,
        auto_class="AutoModelForCausalLM",
        streams=tuple(map(moved, table.streams)),
        text_form="continuation",
        head="lm_head",
    )
    return replace(table, in_text=in_text)


def table_for(config: Any, answers: Answers | None = None) -> BackboneTable:
    """The table of a model's config, by its `model_type`, and of where its answers come from. Raises ModelError."""
    tables = all_tables()
    model_type = getattr(config, "model_type", None) or "model without a model_type"
    if model_type not in tables:
        raise ModelError(
            f"no backbone table describes a {model_type} (nearest: {nearest_table(config)}): model types with a table "
            f"are {', '.join(sorted(tables))}; a table is a file in stages/backbones that names each stack of layers "
            "with its layer list, depth and final norm, what its layers attend to, the longest input, and the output "
            "projection of a language model: docs/add-a-backbone.md shows how, and which test checks it"
        )
    if reason := tables[model_type].refuses(config):
        raise ModelError(f"this {model_type} model does not fit its backbone table: {reason}")
    return tables[model_type].answering(answers, model_type)


def nearest_table(config: Any) -> str:
    """The model type with a table whose config has the most keys in common with this one, beside those of every
    config."""
    common = set(PreTrainedConfig().to_dict())
    keys = set(config.to_dict()) - common

    def likeness(model_type: str) -> float:
        theirs = set(AutoConfig.for_model(model_type).to_dict()) - common
        names = difflib.SequenceMatcher(None, config.model_type or "", model_type).ratio()
        return len(keys & theirs) / max(1, len(keys | theirs)) + names / 2

    return max(sorted(all_tables()), key=likeness)
