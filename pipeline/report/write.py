"""`report`: reads runs and a store, chooses the page, writes the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ...storage import Store, commit
from ...storage.errors import StoreStale, UsageError
from ..analysis.document import read_analysis
from ..bench.document import read_bench
from .answers import most_wrong
from .comparison_page import comparison_page
from .page import render
from .read_run import read_run
from .run_page import run_page
from .store_page import store_page
from .texts import read_texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..analysis.document import Analysis

MOST_BYTES: Final = 5 << 20


def write_report(
    folders: Sequence[Path], root: str | None, out: Path, texts: bool = False, bench: Path | None = None
) -> dict[str, Any]:
    """One run, several, or a store alone, as one HTML file at `out`. texts: show those of the examples that a run got most
    wrong; bench: a bench.json, for a comparison.

    Raises UsageError where nothing is named, texts of something else than one run, or a bench beside less than two;
    StoreStale where the run was trained on another store.
    """
    if texts and len(folders) != 1:
        raise UsageError("--texts shows what one run got wrong; give it with one --run")
    if not folders and root is None:
        raise UsageError("nothing to report on; name a --run, several of them, or a --store")
    if bench is not None and len(folders) < 2:
        raise UsageError("--bench draws live ways into the comparison of several runs; name two --run or more")
    runs = [read_run(folder) for folder in folders]
    store = None if root is None else Store.open(root)
    for run in runs:
        if store is not None and run.facts["store_fingerprint"] != store.fingerprint:
            raise StoreStale(f"{run.name} was trained on another store than {store.root}; name its own, or none")
    if len(runs) > 1:
        page = comparison_page(runs, None if bench is None else read_bench(bench))
    elif runs:
        named = [row.source for row in most_wrong(runs[0])]
        shown = read_texts(runs[0], named) if texts else None
        page = run_page(runs[0], store, None if store is None else _analysis(store), shown)
    else:
        assert store is not None
        page = store_page(store, _analysis(store))
    data = render(page).encode("utf-8")
    if len(data) > MOST_BYTES:
        raise UsageError(f"the page would have {len(data):,} bytes, more than {MOST_BYTES:,}; compare fewer runs")
    commit.replace(out, data)
    return {
        "out": str(out),
        "bytes": len(data),
        "runs": [str(folder) for folder in folders],
        "store": None if store is None else str(store.root),
        "sections": [section.key for section in page.sections],
    }


def _analysis(store: Store) -> Analysis | None:
    """Of train, or of the first split that was looked at."""
    splits = sorted(store.plan.splits, key=lambda name: name != "train")
    return next((found for split in splits if (found := read_analysis(store, split)) is not None), None)
