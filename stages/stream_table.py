"""One stack of layers of a backbone's table: where it is, what it reads, and what stands in its early layers' place."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from ..storage.errors import ModelError
from .layer_form import LayerForm
from .maps import MapTable
from .op_paths import OpPath


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


@dataclass(frozen=True, kw_only=True)
class StreamTable:
    """One stack of layers. Paths are those of the model class; a path of "" is the model itself."""

    name: str
    stack: str
    """Module whose forward runs the layers."""
    layers: str
    """The ModuleList of the layers."""
    depth: str
    """Config key of the number of layers, or of a list with an entry for each."""
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
    maps: MapTable | None = None
    """Where its states are maps instead of rows."""

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
        if self.maps is not None:
            return math.prod(self.maps.grid(config, height, width))
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


def _height_and_width(value: Any) -> tuple[int, int]:
    """Of a config's one number or pair."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)
