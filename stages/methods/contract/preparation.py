"""What a fusion or a tuner may look at once, before training, to set its starting values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from .base import Packed
from .objective import Targets

if TYPE_CHECKING:
    from .tuner import Op


@dataclass(frozen=True)
class CachedBatch:
    """Some training examples: taps as `Fusion.reads` lists them, and what should be answered."""

    inputs: Mapping[str, Packed]
    targets: Targets


class Pretrained(Protocol):
    """The whole pretrained model, loaded for the occasion."""

    def modules_of(self, stream: str, block: int) -> Mapping[str, nn.Module]:
        """The modules of a block by role (see `Layer`); of block 0 also `relative_bias`, where there is one."""
        ...

    def losses(self, examples: int) -> Iterator[Tensor]:
        """The loss of each of the first `examples` labelled training examples, with the graph behind it: of the model as
        pretrained, and the run's head as it starts. One graph is gone when the next is asked for."""
        ...


class Preparation(Protocol):
    """The training split of the run, and the model it came from."""

    @property
    def classes(self) -> int:
        """Labels of the task; 0 where the answer is a number."""
        ...

    @property
    def seed(self) -> int: ...

    def batches(self) -> Iterator[CachedBatch]:
        """One pass over the cached training split."""
        ...

    def pretrained(self) -> Pretrained:
        """Loads the model. Raises StoreStale where its name now means other weights."""
        ...


class TunerPreparation(Preparation, Protocol):
    """The same, and what the run's loss says of the frozen ops that a tuner may be put on."""

    def gradients(self, ops: Sequence["Op"], examples: int, together: int = 1) -> Iterator[Mapping[str, Tensor]]:
        """Gradient of the loss by the frozen weight of each linear op [out, in] and norm [width], by `Op.name`, of `together`
        labelled training examples after another, `examples` in all. Fusion and head are as they start, no tuner acts and
        nothing drops out. Raises RecipeError for an op of another kind.
        """
        ...
