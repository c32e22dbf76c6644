"""The zarr metadata of a store: every zarr.json, made by zarr in memory.

One 2-D array a tap, [token rows, stored width]; a chunk is a row group, a shard is a unit. Each chunk and each shard
index carries a crc32c. The root group's document holds the metadata of everything below it, so that opening
costs one read.
"""

from collections.abc import Mapping
from typing import Any

from . import keys
from .calibration import Calibration
from .codecs import ChannelCalibration, encoding
from .codecs.int8 import FORMULA, SCALE_BYTES
from .documents import ArrayPlan, FileRecord, Plan

ZARR_DOCUMENT = "zarr.json"


def zarr_documents(plan: Plan, calibrations: Mapping[str, Calibration]) -> dict[str, bytes]:
    """Bytes of every zarr.json of a store, by path. calibrations: by file, those that the plan names."""
    # zarr takes most of a second to import and readers of a store never need it.
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.group import ConsolidatedMetadata, GroupMetadata
    from zarr.core.metadata.v3 import ArrayV3Metadata

    prototype = default_buffer_prototype()

    def to_bytes(metadata: GroupMetadata | ArrayV3Metadata) -> bytes:
        return bytes(metadata.to_buffer_dict(prototype)[ZARR_DOCUMENT].to_bytes())

    members: dict[str, GroupMetadata | ArrayV3Metadata] = {}
    for array in plan.arrays():
        members.setdefault(array.split, GroupMetadata(attributes={}))
        members.setdefault(f"{array.split}/{array.stream}", GroupMetadata(attributes={}))
        record = array.stream_plan.calibration
        channels = None if record is None else calibrations[record.file].tap(array.tap)
        members[array.path] = ArrayV3Metadata.from_dict(_array_metadata(plan, array, channels))
    root = GroupMetadata(
        attributes={"format": plan.format, "made_by": "sherl-cache"},
        consolidated_metadata=ConsolidatedMetadata(metadata=dict(members)),
    )
    documents = {f"{path}/{ZARR_DOCUMENT}": to_bytes(metadata) for path, metadata in members.items()}
    return {ZARR_DOCUMENT: to_bytes(root), **documents}


def zarr_records(documents: dict[str, bytes]) -> dict[str, FileRecord]:
    """Size and digest of each document."""
    return {path: FileRecord(bytes=len(data), sha256=keys.digest_bytes(data)) for path, data in documents.items()}


def _array_metadata(plan: Plan, array: ArrayPlan, channels: ChannelCalibration | None) -> dict[str, Any]:
    stored = encoding(plan.encoding)
    chunk_rows, width = array.stream_plan.chunk_rows, array.stored_width
    shard_rows = array.split_plan.groups_per_unit * chunk_rows
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    checksum = {"name": "crc32c"}
    zstd = {"name": "zstd", "configuration": {"level": stored.level, "checksum": False}}
    sharding = {
        "chunk_shape": [chunk_rows, width],
        "codecs": [
            little if stored.itemsize > 1 else {"name": "bytes"},
            *([zstd] if stored.compressed else []),
            checksum,
        ],
        "index_codecs": [little, checksum],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [array.rows, width],
        "data_type": stored.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, width]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if stored.dtype.kind == "f" else stored.fill,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {
            "logical_dtype": stored.numbers,
            **({} if stored.keepbits is None else {"bitround_keepbits": stored.keepbits}),
            **({} if channels is None else {"int8": _layout(channels)}),
        },
        "dimension_names": ["row", "feature" if channels is None else "byte"],
    }


def _layout(channels: ChannelCalibration) -> dict[str, Any]:
    """How a row of an int8 array is made into values, for readers that know nothing but zarr."""
    count = len(channels.ordinary)
    return {
        "width": channels.width,
        "formula": FORMULA,
        "bytes": {
            "q": [0, count],
            "scale": [count, count + SCALE_BYTES],
            "o": [count + SCALE_BYTES, channels.stored_width],
        },
        "outliers": channels.outliers.tolist(),
        "channel_shift": [float(str(number)) for number in channels.shift],
        "channel_scale": [float(str(number)) for number in channels.scale],
    }
