"""Where the ops of a layer are, by paths relative to the layer: modules, sublayers of several, shares of a fused projection."""

import operator
from dataclasses import dataclass

from torch import nn


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
