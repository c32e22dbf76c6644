"""The fusion axis: taps of every stream -> the rows that late layers, or a head, go on from."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from ....storage.errors import RecipeError
from ...layer_form import LayerForm
from ...plugins import find, names, validate_options
from .base import Method, Packed
from .head import Pooling
from .layer import Layer
from .preparation import Preparation


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """One stream of a backbone as a fusion sees it.

    depth: number of blocks; late: how many of them run after the fusion; exit: where the fused rows go: into
    `late` blocks, as `memory` to another stream, or straight to the `head`.
    """

    name: str
    width: int
    """Of the deepest tap, and of the rows from which late blocks or the head go on."""
    depth: int
    late: int
    exit: Literal["late", "memory", "head"]
    encoder_decoder: bool
    memory: str | None = None
    """The stream that its blocks attend to."""
    causal: bool = False
    """Whether a token's states depend on earlier tokens only."""
    pooling: Pooling = "mean"
    """How the backbone makes one vector of a segment."""
    form: LayerForm | None = None
    """How its blocks are put together; None where the backbone's table does not say."""
    tap_widths: Mapping[int, int] = field(default_factory=dict)
    """Width of every tap by number, where they differ."""
    layers: Mapping[int, Layer] = field(default_factory=dict, compare=False, repr=False)
    """The frozen blocks that the fusion asked for by `frozen_layers`, by number; empty until it is built."""
    final_norm: nn.Module | None = field(default=None, compare=False, repr=False)
    """The pretrained norm after the last block, frozen; None until the fusion is built, or where there is none."""

    @property
    def deepest(self) -> int:
        """Number of the deepest tap that can be read: the state from which the late blocks start."""
        return self.depth - self.late

    def widths_of(self, taps: Sequence[int]) -> tuple[int, ...]:
        """Width of each of some taps."""
        return tuple(self.tap_widths.get(tap, self.width) for tap in taps)


class Fusion(Method):
    """Taps of every stream -> the rows from which late blocks, or the head, go on.

    `options` are the recipe's `fusion` section without its `name`: keys of the Config, and under a stream's
    name a mapping of keys that hold for this stream only.

    What is an attribute here is a promise that other parts build on; where it depends on options, an instance
    says otherwise than its class.
    """

    axis = "fusion"
    widths: Mapping[str, int]
    """Width of the fused rows of each stream, set when it is built; only rows for the head may have another than the
    states."""
    exit_norm: Literal["new", "pretrained", "none"] = "pretrained"
    """The final norm after the fused path: a new trainable one, the pretrained one, or none at all."""
    tokenwise: bool = False
    """Row n of a stream's result depends on row n of its taps alone; so it can run token by token."""
    causal: bool = False
    """On causal streams, row n of the result depends on no later row of its segment; so it can feed a head that
    predicts tokens."""
    enters_late: ClassVar[bool] = True
    """Whether late blocks can follow; if not, a recipe with some is refused."""
    head_stream: ClassVar[Literal["first", "last"]] = "first"
    """The stream whose rows the head reads where no late block runs. `first`: that stream is all that is read;
    `last`: the last one, and every stream before it is read too."""
    hands_on_deepest: ClassVar[bool] = False
    """Whether the fused rows of every stream are its deepest tap as it is, and no other tap is read."""
    any_widths: ClassVar[bool] = False
    """Whether taps may differ in width: `Packed.taps` is then a tuple. If not, a recipe that reads such taps is refused."""

    @classmethod
    @abstractmethod
    def from_options(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> Self:
        """The fusion for these streams. Raises RecipeError."""

    @classmethod
    @abstractmethod
    def reads(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> dict[str, tuple[int, ...]]:
        """Ascending tap numbers of each stream; the reader fetches no others. Raises RecipeError."""

    @classmethod
    def frozen_layers(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> dict[str, tuple[int, ...]]:
        """Numbers of the blocks of each stream that it calls: they come frozen in `StreamSpec.layers`. Usually none.

        Raises RecipeError, also where the backbone's table gives no `form`.
        """
        return {}

    @abstractmethod
    def forward(self, streams: Mapping[str, Packed]) -> dict[str, Packed]:
        """Taps as `reads` lists them, in the parameters' dtype -> fused rows (K = 1) of the streams that go on.

        Streams come in order of dependence, and the rows of one depend on it and on those before it: a fusion may
        be given the first of them alone.
        """

    @classmethod
    def prepares(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> bool:
        """Whether `prepare` has something to do. Raises RecipeError."""
        return False

    def prepare(self, preparation: Preparation) -> None:
        """Run once, before the first step of a run: set starting values of its parameters and buffers in place."""

    def layer_weights(self) -> dict[str, Tensor]:
        """Weights of the first K' taps that each row of the last forward was fused with, detached, [N, K'] by stream; of a
        fusion that pools its taps one row a segment. Usually nothing.
        """
        return {}

    @classmethod
    def stream_configs(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> dict[str, Any]:
        """A `Config` for each stream: the shared options with the stream's own on top. Raises RecipeError."""
        shared = {key: value for key, value in options.items() if key not in streams}
        owner = cls.method_name()
        validate_options(cls.Config, shared, where=cls.axis, owner=owner, also=streams)
        configs = {}
        for name in streams:
            own = options.get(name, {})
            if not isinstance(own, Mapping):
                raise RecipeError(
                    f"{cls.axis}.{name}: options of one stream are a mapping, not {own!r}; give each as option: value below it"
                )
            where = f"{cls.axis}.{name}"
            configs[name] = validate_options(cls.Config, {**shared, **own}, where=where, owner=owner)
        return configs

    @classmethod
    def check_exit(cls, streams: Mapping[str, StreamSpec]) -> None:
        """Raises RecipeError where late blocks are to follow a fusion after which none can."""
        if not cls.enters_late and any(spec.exit == "late" for spec in streams.values()):
            raise RecipeError(f"fusion.name: {cls.method_name()} ends at the head; set late.blocks: 0")

    @classmethod
    def check_widths(cls, options: Mapping[str, Any], streams: Mapping[str, StreamSpec]) -> None:
        """Raises RecipeError where taps that it reads differ in width and it cannot take them."""
        if cls.any_widths:
            return
        for name, taps in cls.reads(options, streams).items():
            widths = streams[name].widths_of(taps)
            if len(set(widths)) > 1:
                told = ", ".join(f"h{tap:02d} {width}" for tap, width in zip(taps, widths, strict=True))
                able = [other for other in names("fusion") if _takes_any_widths(other)]
                raise RecipeError(
                    f"fusion.name: {cls.method_name()} needs taps of one width, and it reads the {name}'s {told}; taps of any "
                    f"widths are read by {', '.join(able)}"
                )

    @staticmethod
    def check_taps(stream: str, packed: Packed, taps: tuple[int, ...]) -> None:
        """Raises ValueError where other taps come than those that the fusion reads."""
        if packed.depths != taps:
            raise ValueError(f"{stream}: the fusion reads taps {taps}, and was given {packed.depths}")


def _takes_any_widths(name: str) -> bool:
    try:
        return bool(getattr(find("fusion", name), "any_widths", False))
    except RecipeError:  # a broken file of another method
        return False
