"""Before anything is written: that a model gives in parts what it gives as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .front import prove_split, require_equal
from .late import build_late
from .late_weights import late_weights
from .model_config import config_from_json
from .streamed_model import StreamedModel
from .streaming_front import StreamingFront

if TYPE_CHECKING:
    from .load import LoadedModel
    from .tokens import TokenBatch


def prove(loaded: LoadedModel, batch: TokenBatch) -> None:
    """That the model can be split, or streamed. Raises ModelError."""
    if isinstance(loaded, StreamedModel):
        prove_streaming(loaded, batch)
    else:
        prove_split(loaded, batch)


@torch.no_grad()
def prove_streaming(loaded: StreamedModel, batch: TokenBatch, late: int = 1) -> None:
    """What `front.prove_split` proves, without the whole model: that the first two blocks of each stream give together
    what they give one after the other, and that the last `late` blocks, built anew from the bytes that the store will
    hold, give on the streamed states what streaming through them gives.

    Two blocks are in memory, or the late ones. Raises ModelError where the states differ by more than rounding.
    """
    table, config = loaded.table, loaded.config
    depths = {stream.name: table.depth(config, stream.name) for stream in table.streams}
    pair = {name: (min(2, depth),) for name, depth in depths.items()}
    together, single = StreamingFront(loaded, pair, blocks=2)(batch), StreamingFront(loaded, pair)(batch)
    for name in pair:
        require_equal(together[name].rows, single[name].rows, loaded, name, "its first two blocks run together")
    if not table.late_streams:
        return
    cuts = {stream.name: depths[stream.name] - (late if stream.late else 0) for stream in table.streams}
    asked = {name: tuple(sorted({cuts[name], depths[name]})) for name in depths}
    found = StreamingFront(loaded, asked)(batch)
    rebuilt = config_from_json(config.model_type, loaded.config_document())
    parts = build_late(table, rebuilt, late_weights(loaded, late).__getitem__, late, dtype=loaded.dtype)
    assert parts.late is not None
    part = parts.late.to(loaded.device).eval()
    lengths = {name: packed.lengths for name, packed in found.items()}
    memories = {}
    for stream in table.late_streams:
        if stream.memory is not None:
            memory = found[stream.memory].taps[-1]
            if stream.memory in parts.norms:
                memory = parts.norms[stream.memory].to(loaded.device)(memory)
            counts = torch.tensor(batch.candidates, device=loaded.device)
            memories[stream.name] = (memory, lengths[stream.memory], counts)
    states = part({name: packed.taps[0] for name, packed in found.items()}, lengths, memories)
    for stream in table.late_streams:
        expected = found[stream.name].taps[-1]
        require_equal(states[stream.name], expected, loaded, stream.name, "its late layers, run on the stored states,")
