"""Convolutional networks through their stages: ResNet (He et al. 2016, arXiv:1512.03385) with basic or bottleneck layers, and
RegNet (Radosavovic et al. 2020, arXiv:2003.13678), whose layers have grouped convolutions.

A layer here is a whole stage: h00 is the stem's map, h<i> that of stage i. A stage's layers are of one width and one size,
and its last map is what published forms read. Maps are stored pooled, so no stage can run late. The library's ResNet has no
groups, so that ResNeXt (Xie et al. 2017, arXiv:1611.05431) is not among its models; RegNet is the family of grouped
convolutions that it has. Norms use their stored statistics; a head's mean over an unpooled last map is the model's own pooler.
"""

from dataclasses import replace
from typing import Any

from .contract import BackboneTable, MapTable, StreamTable


def _widths(config: Any) -> tuple[int, ...]:
    return (int(config.embedding_size), *map(int, config.hidden_sizes))


def _halvings(config: Any) -> int:
    """Of the stages: each halves a map but the first, which a key of the config decides."""
    return len(config.depths) - (0 if config.downsample_in_first_stage else 1)


_ENCODER = StreamTable(
    name="encoder",
    stack="",
    layers="encoder.stages",
    depth="depths",
    norm=None,
    late=False,
    tokens="pixels",
    maps=MapTable(widths=_widths, stride=lambda config: 4 << _halvings(config)),  # a convolution and a pooling before
)

_RESNET = BackboneTable(
    model_types=("resnet",),
    auto_class="AutoModel",
    streams=(_ENCODER,),
    text_form=None,
    max_length=lambda config: None,
    initializer_range=lambda config: 0.02,
    attention="eager",
)

_REGNET_MAPS = MapTable(widths=_widths, stride=lambda config: 2 << _halvings(config))

TABLES = (
    _RESNET,
    replace(_RESNET, model_types=("regnet",), streams=(replace(_ENCODER, maps=_REGNET_MAPS),)),
)
