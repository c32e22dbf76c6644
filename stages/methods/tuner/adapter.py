"""Bottleneck adapters behind frozen ops."""

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from ..contract import Activation, Bottleneck, Op, OpOptions, OpPart, OpTuner


class Config(OpOptions):
    placement: Literal["houlsby", "pfeiffer"] = Field(
        default="houlsby",
        description="houlsby: behind the attention and the FFN; pfeiffer: behind the FFN and its residual.",
    )
    bottleneck: int = Field(default=64, ge=1, description="Inner width r.")
    activation: Activation = Field(default="gelu", description="The non-linearity.")
    init_std: float = Field(default=0.01, gt=0, description="Standard deviation of new weights.")


class AdapterPart(OpPart):
    """y + A(y), or y + A(LN(x + y)) where a frozen norm LN follows and the placement is pfeiffer."""

    def __init__(self, config: Any, op: Op) -> None:
        super().__init__(config, op)
        self.bottleneck = Bottleneck(op.out_width, config.bottleneck, config.activation, config.init_std)
        self.norm = (op.norm_after,) if config.placement == "pfeiffer" and op.norm_after is not None else ()
        # in a tuple, since the norm is the late layer's and no module of this one

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        (read,) = [norm(x + y) for norm in self.norm] or [y]
        added: Tensor = self.bottleneck(read)
        return y + added


class Adapter(OpTuner):
    """A bottleneck behind the attention and the FFN, before residual and norm.

    With the placement `pfeiffer` it is behind the FFN alone and, in post-norm models, reads LN(x + FFN(x)): the layer's
    frozen norm is then applied twice. New weights are small but not zero, so the start is near the frozen model and not
    equal to it. The published recipe trains the norms too; here they stay frozen. 2 d r + r + d parameters an op.
    """

    source = "Houlsby et al. 2019, arXiv:1902.00751, figure 2; pfeiffer: Pfeiffer et al. 2021, arXiv:2005.00247"
    trains = "2 D bottleneck + D + bottleneck, an op"
    Config = Config
    part = AdapterPart
    kinds = ("attention", "ffn")
    starts_as_identity = False

    @classmethod
    def roles(cls, config: Any) -> tuple[str, ...]:
        return ("attention", "ffn") if config.placement == "houlsby" else ("ffn",)
