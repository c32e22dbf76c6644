"""What a method is: the axes and what they are built from, one file an axis.

A method file holds one subclass of its axis and imports torch, pydantic, the standard library and this package.
Rows are valid tokens only, packed one after another: N rows make up S segments, and no row is padding.
"""

from ....storage.errors import RecipeError
from .base import Method, Options, Packed, at_least_float32
from .fusion import Block, Fusion, StreamSpec, TokenwiseFusion, choose_taps
from .head import Head, HeadSpec, Pair, Pooling, pool_segments
from .objective import UNLABELLED, Loss, Objective, ObjectiveSpec, Outputs, Targets
from .parts import Activation, Bottleneck, attend_to_rows, split_heads
from .tuner import Attention, LateOps, Op, OpKind, OpOptions, OpPart, OpTuner, Part, Tuner

__all__ = [
    "UNLABELLED",
    "Activation",
    "Attention",
    "Block",
    "Bottleneck",
    "Fusion",
    "Head",
    "HeadSpec",
    "LateOps",
    "Loss",
    "Method",
    "Objective",
    "ObjectiveSpec",
    "Op",
    "OpKind",
    "OpOptions",
    "OpPart",
    "OpTuner",
    "Options",
    "Outputs",
    "Packed",
    "Pair",
    "Part",
    "Pooling",
    "RecipeError",
    "StreamSpec",
    "Targets",
    "TokenwiseFusion",
    "Tuner",
    "at_least_float32",
    "attend_to_rows",
    "choose_taps",
    "pool_segments",
    "split_heads",
]
