"""A shard holds the chunks that zarr writes for the same rows, each from a multiple of 64 bytes on, and zarr reads it."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from sherl_cache.storage import shards


@pytest.mark.parametrize("rows", [24, 20, 30])
def test_chunks_equal_what_zarr_writes_and_zarr_reads_them(tmp_path: Path, rows: int) -> None:
    values = np.random.default_rng(0).standard_normal((rows, 5)).astype(np.float16)
    arrays = [
        zarr.create_array(
            tmp_path / name,
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
        for name in ("theirs", "ours")
    ]
    arrays[0][:] = values
    for unit, first in enumerate(range(0, rows, 12)):
        held = values[first : first + 12]
        held = np.concatenate([held, np.full((-len(held) % 4, 5), np.nan, np.float16)])
        ours = b"".join(shards.encode(np.split(held, len(held) // 4), 3))
        assert len(ours) == shards.shard_bytes(len(held) // 4, 40, 3)
        theirs = (tmp_path / "theirs" / "c" / str(unit) / "0").read_bytes()
        for place, wanted in zip(entries(ours), entries(theirs), strict=True):
            assert ours[slice(*place)] == theirs[slice(*wanted)]
            assert place[0] % 64 == 0
        path = tmp_path / "ours" / "c" / str(unit) / "0"
        path.parent.mkdir(parents=True)
        path.write_bytes(ours)
    assert arrays[1][:].tobytes() == values.tobytes()


def entries(shard: bytes) -> list[tuple[int, int]]:
    """First byte of each chunk of a shard of 3 slots, and the one behind its checksum."""
    index = np.frombuffer(shard[-shards.index_bytes(3) : -shards.CRC_BYTES], "<u8").reshape(3, 2)
    return [(first, first + count) for first, count in index.tolist() if first != 2**64 - 1]


def test_every_flipped_byte_of_an_index_is_seen() -> None:
    data = b"".join(shards.encode([np.ones((2, 2), np.float32)] * 2, 3))
    raw = bytearray(data[-shards.index_bytes(3) :])
    offsets = shards.decode_index(bytes(raw), 3, 16, len(data))
    assert offsets is not None
    assert offsets.tolist() == [0, 64, -1]
    for place in range(len(raw)):
        raw[place] ^= 4
        assert shards.decode_index(bytes(raw), 3, 16, len(data)) is None
        raw[place] ^= 4
