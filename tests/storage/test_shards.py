"""The bytes of a shard equal the bytes that zarr writes for the same rows."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from sherl_cache.storage import shards


@pytest.mark.parametrize("rows", [24, 20, 30])
def test_shard_bytes_equal_what_zarr_writes(tmp_path: Path, rows: int) -> None:
    values = np.random.default_rng(0).standard_normal((rows, 5)).astype(np.float16)
    array = zarr.create_array(
        tmp_path / "a",
        shape=values.shape,
        chunks=(12, 5),
        dtype="float16",
        fill_value=float("nan"),
        compressors=None,
        filters=None,
        serializer=ShardingCodec(
            chunk_shape=(4, 5), codecs=[BytesCodec(), Crc32cCodec()], index_codecs=[BytesCodec(), Crc32cCodec()]
        ),
        config={"write_empty_chunks": True},
    )
    array[:] = values
    for unit, first in enumerate(range(0, rows, 12)):
        held = values[first : first + 12]
        held = np.concatenate([held, np.full((-len(held) % 4, 5), np.nan, np.float16)])
        ours = b"".join(shards.encode(np.split(held, len(held) // 4), 3))
        assert ours == (tmp_path / "a" / "c" / str(unit) / "0").read_bytes()
        assert len(ours) == shards.shard_bytes(len(held) // 4, 40, 3)


def test_every_flipped_byte_of_an_index_is_seen() -> None:
    data = b"".join(shards.encode([np.ones((2, 2), np.float32)] * 2, 3))
    raw = bytearray(data[-shards.index_bytes(3) :])
    offsets = shards.decode_index(bytes(raw), 3, 16, len(data))
    assert offsets is not None
    assert offsets.tolist() == [0, 20, -1]
    for place in range(len(raw)):
        raw[place] ^= 4
        assert shards.decode_index(bytes(raw), 3, 16, len(data)) is None
        raw[place] ^= 4
