"""What a method is: the axes and what they are built from, one file an axis.

A method file holds one subclass of its axis and imports torch, pydantic, the standard library and this package.
Rows are valid tokens only, packed one after another: N rows make up S segments, and no row is padding.
"""

from ....storage.errors import RecipeError
from ...layer_form import LayerForm, RelativePositions
from ...packing import Padding, padding_of
from .base import Method, Options, Packed, at_least_float32
from .fusion import Fusion, StreamSpec
from .head import Head, HeadSpec, Pair, Pooling, only_row, pool_segments
from .layer import Layer, RelativeBias, frozen_layer, make_norm
from .objective import UNLABELLED, Loss, Objective, ObjectiveSpec, Outputs, Targets
from .parts import Activation, Bottleneck, attend_to_rows, group_lasso, split_heads
from .preparation import CachedBatch, Preparation, Pretrained, TunerPreparation
from .streamwise import Block, SegmentBlock, StreamwiseFusion, TokenwiseFusion, choose_taps
from .tuner import Attention, LateOps, Op, OpKind, OpOptions, OpPart, OpTuner, Part, SegmentTasks, Tuner

__all__ = [
    "UNLABELLED",
    "Activation",
    "Attention",
    "Block",
    "Bottleneck",
    "CachedBatch",
    "Fusion",
    "Head",
    "HeadSpec",
    "LateOps",
    "Layer",
    "LayerForm",
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
    "Padding",
    "Pair",
    "Part",
    "Pooling",
    "Preparation",
    "Pretrained",
    "RecipeError",
    "RelativeBias",
    "RelativePositions",
    "SegmentBlock",
    "SegmentTasks",
    "StreamSpec",
    "StreamwiseFusion",
    "Targets",
    "TokenwiseFusion",
    "Tuner",
    "TunerPreparation",
    "at_least_float32",
    "attend_to_rows",
    "choose_taps",
    "frozen_layer",
    "group_lasso",
    "make_norm",
    "only_row",
    "padding_of",
    "pool_segments",
    "split_heads",
]
