"""The JSON documents of a store: plan, receipts, manifest; strict models, so that a foreign or damaged file
is refused.

    sherl/plan.json              Plan: what the store shall hold; written first, never changed
    sherl/plan-<n>.json          a whole Plan that extends the one before, where the store has grown
    sherl/receipts/<unit>.json   Receipt: one unit is committed, with the digest of each of its shards
    sherl/receipts/<unit>.<n>.json    the same of the arrays that plan n added to the unit
    sherl/manifest-<n>.json      Manifest: everything of one plan is there, and all that opening needs of it; the newest
                                 valid one of the last plan wins
"""

from .base import DOCUMENT_BYTES, Count, Document, FileRecord, Positive, parse
from .commits import Manifest, Receipt, Shard, ShardRecord, Tally, root_digest
from .paths import PLAN, array_path, is_relative_path, plan_path, shard_path, table_path
from .plans import ArrayPlan, Plan
from .splits import CalibrationRecord, PartPlan, SplitPlan, StreamPlan, TablePlan, Unit

__all__ = [
    "DOCUMENT_BYTES",
    "PLAN",
    "ArrayPlan",
    "CalibrationRecord",
    "Count",
    "Document",
    "FileRecord",
    "Manifest",
    "PartPlan",
    "Plan",
    "Positive",
    "Receipt",
    "Shard",
    "ShardRecord",
    "SplitPlan",
    "StreamPlan",
    "TablePlan",
    "Tally",
    "Unit",
    "array_path",
    "is_relative_path",
    "parse",
    "plan_path",
    "root_digest",
    "shard_path",
    "table_path",
]
