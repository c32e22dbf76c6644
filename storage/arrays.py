"""The zarr metadata of a store: every zarr.json, made by zarr in memory.

One 2-D array a tap, [token rows, width]; a chunk is a row group, a shard is a unit. Each chunk and each shard
index carries a crc32c. The root group's document holds the metadata of everything below it, so that opening
costs one read.
"""

from typing import Any

from . import keys
from .codecs import encoding
from .documents import FileRecord, Plan

ZARR_DOCUMENT = "zarr.json"


def zarr_documents(plan: Plan) -> dict[str, bytes]:
    """Bytes of every zarr.json of a store, by path."""
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
        members[array.path] = ArrayV3Metadata.from_dict(
            _array_metadata(plan, array.rows, array.stream_plan.chunk_rows, array.stream_plan.width)
            | {
                "chunk_grid": _grid(
                    array.split_plan.groups_per_unit * array.stream_plan.chunk_rows, array.stream_plan.width
                )
            }
        )
    root = GroupMetadata(
        attributes={"format": plan.format, "made_by": "sherl-cache"},
        consolidated_metadata=ConsolidatedMetadata(metadata=dict(members)),
    )
    documents = {f"{path}/{ZARR_DOCUMENT}": to_bytes(metadata) for path, metadata in members.items()}
    return {ZARR_DOCUMENT: to_bytes(root), **documents}


def zarr_records(documents: dict[str, bytes]) -> dict[str, FileRecord]:
    """Size and digest of each document."""
    return {path: FileRecord(bytes=len(data), sha256=keys.digest_bytes(data)) for path, data in documents.items()}


def _array_metadata(plan: Plan, rows: int, chunk_rows: int, width: int) -> dict[str, Any]:
    stored = encoding(plan.encoding)
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    checksum = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [chunk_rows, width],
        "codecs": [little, checksum],
        "index_codecs": [little, checksum],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, width],
        "data_type": stored.dtype.name,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": stored.fill if stored.dtype.kind == "u" else "NaN",
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {"logical_dtype": stored.name},
        "dimension_names": ["row", "feature"],
    }


def _grid(rows: int, width: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": [rows, width]}}
