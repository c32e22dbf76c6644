"""What a backbone's table says, and how the table of a model is found.

A table holds attribute paths of a transformers model and nothing that computes: where the layers of a stream
are, its final norm, which stream it attends to, and what must stand in an early layer's place when only the
late layers are loaded. Each file of this folder offers `TABLES`; a family is added by adding a file.
"""

import difflib
import importlib
import operator
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from ...storage.errors import ModelError
from ..layer_form import LayerForm as LayerForm
from ..layer_form import RelativePositions as RelativePositions
from ..layer_form import known_activation as known_activation

Answers = Literal["head", "text"]
"""Where a causal decoder's answers come from: a head on its last token, or its own output projection, token by token."""


class PassThrough(nn.Module):
    """Stands in the place of an early layer of a stack and hands on what it is given.

    The last one before the late layers is the stack's `entry`: while `state` is set it returns that instead,
    which is how a fused state enters a stack's own forward.
    """

    def __init__(self, layer: nn.Module, index: int) -> None:
        """layer: the layer it replaces, for what other layers need of it; index: its place in the stack."""
        super().__init__()
        self.state: Tensor | None = None

    def enter(self, hidden_states: Tensor) -> Tensor:
        """The state to hand on, [B, T, D]."""
        return hidden_states if self.state is None else self.state

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.enter(hidden_states)


@dataclass(frozen=True)
class Sublayer:
    """A composite op of a layer, by paths relative to the layer ("" is the layer): x enters `entry`, y leaves `exit`.

    `entry` of an attention is the module that calls the attention product. before: the norm whose output enters, in
    pre-norm models; after: the norm of residual + y, in post-norm models.
    """

    entry: str
    exit: str
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Share:
    """One of `of` equal shares of the output columns of a fused projection, counted from 0."""

    path: str
    index: int
    of: int
    head: str | None = None
    """Attribute of the layer that says how wide a head is, where the shares take turns head by head; else each is
    one run of columns."""

    def columns(self, layer: nn.Module, width: int) -> slice | tuple[int, ...]:
        """Its columns of a projection of `width` in this layer."""
        if self.head is None:
            size = width // self.of
            return slice(self.index * size, (self.index + 1) * size)
        run = int(operator.attrgetter(self.head)(layer))
        starts = range(self.index * run, width, self.of * run)
        return tuple(column for start in starts for column in range(start, start + run))


OpPath = str | Sublayer | Share | tuple[str, ...]
"""Of a tuple, the first path that the layer has; the op is left out where it has none of them."""


@dataclass(frozen=True, kw_only=True)
class StreamTable:
    """One stack of layers. Paths are those of the model class; a path of "" is the model itself."""

    name: str
    stack: str
    """Module whose forward runs the layers."""
    layers: str
    """The ModuleList of the layers."""
    depth: str
    """Config key of the number of layers."""
    norm: str | None
    """Norm that the stack applies after its last layer; None where the last layer's output is the answer."""
    late: bool
    """Whether late layers run in this stream; a stream without feeds others, or the head, with its last
    state."""
    tokens: Literal["input", "target", "continued", "pixels"]
    """What the stack reads: token ids of the text, those of a candidate answer shifted right, the text with a candidate
    answer behind it, or a picture, whose patches are its tokens."""
    memory: str | None = None
    """Stream whose normed states the layers attend to."""
    memory_arguments: tuple[str, str] | None = None
    """Names under which the stack takes the memory and the memory's mask."""
    layer_memory: tuple[int, str] | None = None
    """Position and name under which a layer takes the memory."""
    kept: tuple[str, ...] = ()
    """Modules of layers that other layers need, such as the owner of a shared position bias."""
    rotary: str | None = None
    """Module that computes the rotary angles of every layer, rounded to the number format of the states it is
    given."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Fixed keyword arguments of the stack's forward."""
    pass_through: type[PassThrough] = PassThrough
    causal: bool = False
    """Whether a token sees those before it only."""
    form: Callable[[Any], LayerForm | None] = lambda config: None
    """How a config's layers are put together, for methods that run them by their parts; None where they cannot be:
    rotary positions, biases of every layer's own, activations that `known_activation` does not know."""
    relative_bias: str | None = None
    """Module of layer 0, relative to it, that holds the bias on scores which all layers share."""
    ops: Mapping[str, OpPath] = field(default_factory=dict)
    """Where a layer's ops are, by role, relative to the layer. Linear: query, key, value, out, cross_query .. cross_out,
    ffn_in, ffn_gate, ffn_out; norms: attention_norm, cross_norm, ffn_norm; composite: attention, cross_attention, ffn;
    `block` is there without being named."""
    config_key: str | None = None
    """Key of the stack's own part of a config that has several."""
    norms_rows: bool = True
    """Whether the stack's answer is normed; else it norms one pooled row beside its answer."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """How a head pools where the stream is used alone; None: as the table says."""
    projection: str | None = None
    """Linear map without bias, one of `kept`, of a pooled and normed row into the space where streams meet."""
    embeddings: str | None = None
    """Module that makes the first state, where the stack has no other way to be given one. Stage two never runs it:
    patches, tokens and positions are in h00 already."""
    special_tokens: Callable[[Any], int] = lambda config: 1
    """Rows of a picture that are no patch, of a config."""
    any_size: bool = False
    """Whether positions are interpolated to pictures of another size than the config's."""

    @property
    def answers(self) -> bool:
        """Whether it has a segment for each candidate answer of an example, not one for the example."""
        return self.tokens in ("target", "continued")

    def own_config(self, config: Any) -> Any:
        """The part of a model's config that is this stack's."""
        return config if self.config_key is None else getattr(config, self.config_key)

    def picture_rows(self, config: Any, height: int, width: int) -> int:
        """Rows that a picture of so many pixels has in every tap. Raises ModelError where the model does not take it."""
        config = self.own_config(config)
        expected, patch = _height_and_width(config.image_size), _height_and_width(config.patch_size)
        if (height, width) != expected and not self.any_size:
            raise ModelError(
                f"the image processor makes pictures of {height} x {width} pixels and this {config.model_type} model takes "
                f"{expected[0]} x {expected[1]}; set the size in its preprocessor_config.json to that"
            )
        patches = (height // patch[0]) * (width // patch[1])
        if not patches:
            raise ModelError(
                f"the image processor makes pictures of {height} x {width} pixels, smaller than one patch of "
                f"{patch[0]} x {patch[1]}; set a larger size in its preprocessor_config.json"
            )
        return patches + self.special_tokens(config)


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
        return int(getattr(table.own_config(config), table.depth))

    def width(self, config: Any, stream: str | None = None) -> int:
        """Width D of a hidden state of a stream; None: of the first, which is that of all unless they have configs of
        their own."""
        table = self.streams[0] if stream is None else self.stream(stream)
        return int(table.own_config(config).hidden_size)

    def widths(self, config: Any) -> dict[str, int]:
        """Width of every stream."""
        return {stream.name: self.width(config, stream.name) for stream in self.streams}

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
        """Raises ModelError where `late` late layers leave no early one."""
        for stream in self.late_streams:
            depth = self.depth(config, stream.name)
            if not 0 <= late < depth:
                raise ModelError(
                    f"{late} late layers: the {stream.name} of this {config.model_type} model has "
                    f"{depth} layers, "
                    f"and at least one of them must be early; at most {depth - 1} can be late"
                )


def _height_and_width(value: Any) -> tuple[int, int]:
    """Of a config's one number or pair."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


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
