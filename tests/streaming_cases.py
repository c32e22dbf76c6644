"""What the tests of streamed weights share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sherl_cache.stages.front import Front, TokenBatch
from sherl_cache.stages.late_weights import late_weights
from sherl_cache.stages.load import LoadedModel
from sherl_cache.stages.streamed_model import StreamedModel
from sherl_cache.stages.streaming_front import StreamingFront


def every_tap(loaded: LoadedModel) -> dict[str, tuple[int, ...]]:
    return {
        stream.name: tuple(range(loaded.table.depth(loaded.config, stream.name) + 1)) for stream in loaded.table.streams
    }


def check_streamed(whole: LoadedModel, streamed: StreamedModel, batches: Sequence[TokenBatch]) -> None:
    """Oracle: the ordinary front, to the last bit."""
    assert streamed.weights_digest == whole.weights_digest
    assert streamed.config_document() == whole.config_document()
    assert dict(late_weights(streamed, 2)) == dict(late_weights(whole, 2))
    taps = every_tap(whole)
    front, streaming = Front(whole, taps), StreamingFront(streamed, taps)
    found: dict[tuple[int, str, int], Tensor] = {}
    for number, part, _ in streaming.run(batches):
        for name, packed in part.items():
            found |= {(number, name, tap): rows for tap, rows in zip(packed.depths, packed.taps, strict=True)}
    for number, batch in enumerate(batches):
        for name, packed in front(batch).items():
            for tap, rows in zip(packed.depths, packed.taps, strict=True):
                assert torch.equal(found.pop((number, name, tap)), rows), (number, name, tap)
    assert not found
