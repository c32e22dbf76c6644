"""Bytes on disk: the store of cached activations. NumPy in, NumPy out; usable alone.

Writing: `plan_split` packs the examples of a split, a `Plan` says what the store shall hold, `StoreWriter`
writes it. Reading: `Store.open` (a folder, `s3://bucket/prefix`, ...), then `Store.examples`,
`Store.chunk`, or batches from a `Stream`.

What it offers is imported when it is first asked for, so that a command line that imports an error imports no more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bill import Bill, store_bytes
    from .buffer import UnitBuffer
    from .buffers import ReadBuffers
    from .calibration import Calibration, calibrate
    from .claims import claim_units
    from .codecs import ENCODINGS, ChannelCalibration, Encoding, Misfit, decode, encode, encoding
    from .documents import (
        CalibrationRecord,
        FileRecord,
        Manifest,
        Plan,
        Receipt,
        ShardRecord,
        SplitPlan,
        StreamPlan,
        Unit,
    )
    from .examples import ExampleTable, examples_schema, placement_columns, write_examples
    from .gc import Garbage, collect_garbage, find_garbage
    from .growth import pack_part, with_part
    from .layout import PackedSplit, PackedStream, plan_split
    from .place import RemotePlace
    from .ragged import Ragged
    from .reader import Store
    from .readers.memory import MemoryFiles
    from .repair import Repair, repair_store
    from .session import Batch, PackedRows
    from .stream import Stream, StreamReport
    from .verify import Finding, verify_store
    from .writer import StoreWriter

__all__ = [
    "ENCODINGS",
    "Batch",
    "Bill",
    "Calibration",
    "CalibrationRecord",
    "ChannelCalibration",
    "Encoding",
    "ExampleTable",
    "FileRecord",
    "Finding",
    "Garbage",
    "Manifest",
    "MemoryFiles",
    "Misfit",
    "PackedRows",
    "PackedSplit",
    "PackedStream",
    "Plan",
    "Ragged",
    "ReadBuffers",
    "Receipt",
    "RemotePlace",
    "Repair",
    "ShardRecord",
    "SplitPlan",
    "Store",
    "StoreWriter",
    "Stream",
    "StreamPlan",
    "StreamReport",
    "Unit",
    "UnitBuffer",
    "calibrate",
    "claim_units",
    "collect_garbage",
    "decode",
    "encode",
    "encoding",
    "examples_schema",
    "find_garbage",
    "pack_part",
    "placement_columns",
    "plan_split",
    "repair_store",
    "store_bytes",
    "verify_store",
    "with_part",
    "write_examples",
]

_NAMES = {
    ".bill": ("Bill", "store_bytes"),
    ".buffer": ("UnitBuffer",),
    ".buffers": ("ReadBuffers",),
    ".calibration": ("Calibration", "calibrate"),
    ".claims": ("claim_units",),
    ".codecs": ("ENCODINGS", "ChannelCalibration", "Encoding", "Misfit", "decode", "encode", "encoding"),
    ".documents": (
        "CalibrationRecord",
        "FileRecord",
        "Manifest",
        "Plan",
        "Receipt",
        "ShardRecord",
        "SplitPlan",
        "StreamPlan",
        "Unit",
    ),
    ".examples": ("ExampleTable", "examples_schema", "placement_columns", "write_examples"),
    ".gc": ("Garbage", "collect_garbage", "find_garbage"),
    ".growth": ("pack_part", "with_part"),
    ".layout": ("PackedSplit", "PackedStream", "plan_split"),
    ".place": ("RemotePlace",),
    ".ragged": ("Ragged",),
    ".reader": ("Store",),
    ".readers.memory": ("MemoryFiles",),
    ".repair": ("Repair", "repair_store"),
    ".session": ("Batch", "PackedRows"),
    ".stream": ("Stream", "StreamReport"),
    ".verify": ("Finding", "verify_store"),
    ".writer": ("StoreWriter",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # a checker takes the names above, and no other

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(_HOMES[name], __name__), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
