"""A public name is public on purpose."""

import sherl_cache
import sherl_cache.storage

STORAGE = [
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


def test_storage_exports_these_names_and_no_others() -> None:
    assert sorted(sherl_cache.storage.__all__) == sorted(STORAGE)
    for name in STORAGE:
        assert hasattr(sherl_cache.storage, name)


def test_the_package_itself_offers_these_names_and_no_others() -> None:
    assert sorted(sherl_cache.__all__) == ["SherlModel", "StoreDataset", "__version__"]
