"""The zarr metadata of a store on disk: made from a plan, published with it, replaced when the store has grown."""

from pathlib import Path

from . import commit, ledger
from .arrays import ZARR_DOCUMENT, zarr_documents, zarr_records
from .calibration import stored_calibrations
from .checks import refuse_other
from .documents import Plan
from .readers.local import LocalFiles


def complete_metadata(root: Path, chain: ledger.Chain) -> None:
    """Publish what is lacking of the metadata of the newest plan that is finished, of the first one where none is."""
    files = LocalFiles(root)
    place, *_ = ledger.newest_snapshot(files, chain) or (0,)
    plan, *later = chain.plans[place:]
    lacking = []
    for path, record in plan.metadata.items():
        sizes = {record.bytes, *(other.metadata[path].bytes for other in later if path in other.metadata)}
        if files.size(path) not in sizes:
            lacking.append(path)
    documents = _made_again(root, files, plan) if lacking else {}
    for path in lacking:
        commit.publish(root / path, [documents[path]])


def grow_metadata(root: Path, chain: ledger.Chain) -> None:
    """Put the metadata of the last plan in the place of that of the plan before; the root's comes last."""
    if len(chain.plans) == 1:
        return
    files, plan = LocalFiles(root), chain.head
    ordered = sorted(plan.metadata.items(), key=lambda item: (item[0] == ZARR_DOCUMENT, item[0]))
    old = [
        path for path, record in ordered if files.size(path) != record.bytes or files.digest(path)[1] != record.sha256
    ]
    documents = _made_again(root, files, plan) if old else {}
    for path in old:
        commit.replace(root / path, documents[path])


def _made_again(root: Path, files: LocalFiles, plan: Plan) -> dict[str, bytes]:
    documents = zarr_documents(plan, stored_calibrations(files, plan))
    for path, record in zarr_records(documents).items():
        refuse_other(root / path, plan.metadata.get(path), record)
    return documents
