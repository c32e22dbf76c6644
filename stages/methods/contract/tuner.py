"""The tuner axis: small trained parts on the frozen ops of late layers (U-Tuning, arXiv:2303.00690).

A tuner is one object for all late layers, so that it may share parameters between them. It puts a `Part` on each op
that it tunes; stages/tuning.py sets the hooks by which the parts act. No frozen weight is replaced, renamed or changed.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import Field
from torch import Tensor, nn

from ....storage.errors import InvalidInput, RecipeError
from ...plugins import did_you_mean
from .base import Method, Options
from .preparation import TunerPreparation

OpKind = Literal["linear", "norm", "attention", "ffn", "block"]


class FrozenOp(Protocol):
    """A frozen op as a function of rows [..., in] -> [..., out]."""

    def __call__(self, rows: Tensor) -> Tensor: ...


class Attention(Protocol):
    """The frozen attention product with its mask, position bias and scale.

    query [B, H, T, d], key and value [B, G, M, d] (G divides H) -> [B, T, H, d]. The first `extra` of the M keys are
    the tuner's own: every query sees them, and they have no position. With `extra` = M all of them are.
    """

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, extra: int = 0) -> Tensor: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Op:
    """One frozen op of a late layer.

    `attention`, `cross_attention`, `ffn` and `block` are composite: x is what enters their first module, y what leaves
    their last, in post-norm models before the residual and the norm.
    """

    stream: str
    layer: int
    """Number of the layer in the model."""
    role: str
    kind: OpKind
    in_width: int
    out_width: int
    frozen: FrozenOp | None = None
    """The op itself, of linear ops and norms."""
    norm_before: FrozenOp | None = None
    """The frozen norm whose output enters the op (pre-norm models)."""
    norm_after: FrozenOp | None = None
    """The frozen norm of residual + y (post-norm models); there the residual is x."""
    inside: Mapping[str, "Op"] = field(default_factory=dict)
    """Ops of a composite: `query`, `key`, `value`, `out` of any attention; `ffn_in`, `ffn_gate`, `ffn_out`."""

    @property
    def name(self) -> str:
        return f"{self.stream}.{self.layer}.{self.role}"

    def within(self, role: str) -> "Op":
        """An op of those inside. Raises RecipeError where the backbone's table does not name it."""
        if role not in self.inside:
            raise RecipeError(
                f"tuner.ops: this tuner needs the {role} projection of {self.name}, which the table of this model does not "
                f"name (it names {', '.join(self.inside) or 'none'}); choose another tuner"
            )
        return self.inside[role]


@dataclass(frozen=True)
class LateOps:
    """Every op of every late layer."""

    ops: tuple[Op, ...]
    tasks: tuple[str, ...] = ()
    """Names of the tasks of the data; their places are the numbers that `SegmentTasks` gives."""

    @property
    def streams(self) -> dict[str, int]:
        """Width of the rows of each stream that has late layers."""
        return {op.stream: op.in_width for op in self.ops if op.kind == "block"}

    def choose(
        self,
        roles: Sequence[str] | None,
        default: Sequence[str] | None,
        layers: Sequence[int] | None = None,
        kinds: Sequence[OpKind] = ("linear", "norm", "attention", "ffn", "block"),
    ) -> tuple[Op, ...]:
        """Ops of these roles, or else of `default` (None: of every role), in these late layers, or in all.

        Roles of `default` that speak of a cross-attention hold where there is one. Raises RecipeError where the late
        layers have no op of a role and one of these kinds, or there is no such late layer.
        """
        fitting = [op for op in self.ops if op.kind in kinds]
        known = list(dict.fromkeys(op.role for op in fitting))
        have = f"the late layers have {', '.join(known) or 'none'}"
        for role in roles or ():
            if role not in known:
                hint = did_you_mean(role, known)
                raise RecipeError(f"tuner.ops: no op {role!r} that this tuner can tune{hint}; {have}")
        if roles is None:
            for role in default or ():
                if role not in known and not role.startswith("cross_"):
                    raise RecipeError(
                        f"tuner.ops: this tuner tunes {role} unless ops are named, and the table of this model knows no such "
                        f"op; name some: {have}"
                    )
        wanted = (known if default is None else default) if roles is None else roles
        numbers = sorted({op.layer for op in self.ops})
        for layer in layers or ():
            if layer not in numbers:
                raise RecipeError(
                    f"tuner.layers: {layer} is no late layer; these are {', '.join(map(str, numbers))} (layers are "
                    "counted from 0 at the bottom of the model)"
                )
        return tuple(op for op in fitting if op.role in wanted and (layers is None or op.layer in layers))


class Part(nn.Module):
    """What a tuner puts on one op. A subclass overrides what it changes, and only that is hooked in.

    x is what came to the op, y what the op gives; [B, T, width] of padded batches, and padding is never read again.
    """

    def enter(self, x: Tensor) -> Tensor:
        """What enters the op in place of x."""
        return x

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        """What leaves the op in place of y."""
        return y

    def attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """On an attention op: what its product gives in place of `attention(query, key, value)`, [B, T, H, d]."""
        return attention(query, key, value)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight ([out, in]; of a norm [width]) and bias that make the op alone equal the op with this part."""
        raise NotImplementedError

    @classmethod
    def overrides(cls, method: str) -> bool:
        return getattr(cls, method) is not getattr(Part, method)


class SegmentTasks:
    """Which task each segment belongs to that is now in the late layers. A tuner has one, and gives it to parts that ask."""

    def __init__(self) -> None:
        self._now: Tensor | None = None

    @contextmanager
    def during(self, tasks: Tensor | None) -> Iterator[None]:
        """Meanwhile these are the tasks, int64 [B]."""
        before, self._now = self._now, tasks
        try:
            yield
        finally:
            self._now = before

    def of(self, x: Tensor) -> Tensor:
        """Task numbers, int64 [B], of a batch [B, T, width] as `Part` sees it; beams of a segment have its task. Raises
        InvalidInput where none are known.
        """
        if self._now is None:
            raise InvalidInput("the tuner reads the task of each row, and the rows come without: give their numbers")
        return self._now.repeat_interleave(len(x) // max(len(self._now), 1), output_size=len(x))


class Tuner(Method):
    """Trained parts on the frozen ops of late layers."""

    axis = "tuner"
    starts_as_identity: ClassVar[bool]
    """Whether the model with a new tuner computes exactly what it computes without."""
    mixes_rows: ClassVar[bool] = False
    """Whether a part's result for a row depends on other rows, beyond what the frozen op does."""
    reads_tasks: ClassVar[bool] = False
    """Whether parts ask `tasks` which task a segment belongs to; only then is it carried along."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.tasks = SegmentTasks()
        self._placed: list[tuple[Op, Part]] = []

    @classmethod
    @abstractmethod
    def from_options(cls, options: Mapping[str, Any], ops: LateOps) -> Self:
        """The tuner for these late layers. Raises RecipeError."""

    @classmethod
    def prepares(cls, options: Mapping[str, Any]) -> bool:
        """Whether `prepare` has something to do. Raises RecipeError."""
        return False

    def prepare(self, preparation: TunerPreparation) -> None:
        """Run once, before the first step of a run and after the fusion's: set starting values of parameters and buffers in
        place, such as masks."""

    @property
    def placed(self) -> tuple[tuple[Op, Part], ...]:
        """Every op that is tuned, with its part; those of one op act one after another."""
        return tuple(self._placed)

    def place(self, op: Op, part: Part) -> None:
        """Put `part` on `op`; its parameters are called `<stream>.<layer>.<role>.`, unless they are shared: a module or
        parameter that several parts hold has the name of the first, and trains once.
        """
        self._placed.append((op, part))
        home: nn.Module = self
        for name in (op.stream, str(op.layer)):
            if name not in home._modules:
                home.add_module(name, nn.Module())
            home = home.get_submodule(name)
        taken = sum(key.split("+")[0] == op.role for key in home._modules)
        home.add_module(op.role if not taken else f"{op.role}+{taken}", part)

    def leading_rows(self) -> dict[str, Tensor]:
        """Rows [p, D] by stream that stand in front of each segment's state as it enters the late layers."""
        return {}

    @property
    def mergeable(self) -> bool:
        """Whether every part can be folded into the op's own weights."""
        return bool(self._placed) and all(part.overrides("fold") for _, part in self._placed)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The frozen model, as if there were no tuner."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before


class OpOptions(Options):
    """Options of every tuner that works op by op."""

    ops: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Roles of the ops that are tuned; null: those that the method names."
    )
    layers: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="Numbers of the late layers that are tuned; null: every late layer."
    )


class OpPart(Part):
    """A part built from the Config for one op."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__()


class OpTuner(Tuner):
    """A tuner of one part an op; the parts are instances of the same code and share nothing.

    A subclass names its `part` and the ops it tunes by default (None: every op of its kinds). One whose parts share
    parameters makes these in `share` and hands them to the parts in `build`.
    """

    Config: ClassVar[type[Options]] = OpOptions
    part: ClassVar[type[OpPart]]
    default_ops: ClassVar[tuple[str, ...] | None]
    kinds: ClassVar[tuple[OpKind, ...]] = ("linear",)

    def __init__(self, config: Any, ops: LateOps) -> None:
        super().__init__()
        self.config = config
        chosen = ops.choose(config.ops, self.roles(config), config.layers, self.kinds)
        self.share(chosen)
        for op in chosen:
            self.place(op, self.build(op))

    @classmethod
    def roles(cls, config: Any) -> tuple[str, ...] | None:
        """Roles of the ops that are tuned where the recipe names none."""
        return cls.default_ops

    def share(self, ops: tuple[Op, ...]) -> None:
        """Make what the parts of these ops share, as modules of the tuner; here nothing."""

    def build(self, op: Op) -> Part:
        """The part of one op."""
        return self.part(self.config, op)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], ops: LateOps) -> Self:
        return cls(cls.validated(options), ops)
