"""Read this first: each command as a short sequence of plain calls. Results are JSON; the commands print them."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..storage import Bill, Store, StoreWriter, verify_store
from ..storage.errors import (
    StoreIncomplete,
    StoreStale,
    UsageError,
)
from .memory import peak_memory_bytes
from .progress import progress, size
from .run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..stages.prepare import ExtractSettings, Preparation
    from .recipe import Recipe


def extract(recipe: Recipe, root: Path) -> dict[str, Any]:
    """Stage one: plan, run the early layers unit by unit, publish the manifest. Goes on where an earlier call
    stopped.
    """
    from ..stages.device import choose_device
    from ..stages.extract import extract_unit
    from ..stages.front import Front, prove_split
    from ..stages.prepare import prepare

    begun = time.monotonic()
    device = choose_device(recipe.train.device)
    with _workspace() as workspace:
        prepared = prepare(_extract_settings(recipe), workspace, device, root)
        _report_truncation(prepared)
        if not (root / "sherl" / "plan.json").exists():
            _require_space(root, prepared.bill())
        writer = _create_writer(root, prepared)
        missing = writer.missing()
        if missing:
            prove_split(prepared.loaded, prepared.sample())
            front = Front(prepared.loaded, prepared.taps)
            total = sum(unit.examples for unit in writer.units())
            left = sum(unit.examples for unit in missing)
            with progress("extract", total, "examples", total - left) as bar:
                for unit in missing:
                    rows = writer.table(unit.split).read_unit(unit.index)
                    extract_unit(front, writer, unit, rows, prepared.settings.batch_tokens, bar.advance)
        writer.finalize()
    store = Store.open(root)
    known = info(root)
    return {
        **{key: known[key] for key in ("examples", "tokens", "taps", "bytes", "digest")},
        "store": str(root),
        "seconds": time.monotonic() - begun,
        "peak_memory_bytes": peak_memory_bytes(),
        "truncated": store.producer["data"]["truncated"],
    }


def plan(recipe: Recipe, root: Path) -> dict[str, Any]:
    """The bill of `extract`: nothing is written but a temporary file of token ids."""
    from ..stages.device import choose_device
    from ..stages.prepare import prepare
    from .plan import bill

    import_module(".training", __package__)  # what train imports, so that the baseline counts it
    baseline = peak_memory_bytes()
    device = choose_device(recipe.train.device)
    with _workspace() as workspace:
        prepared = prepare(_extract_settings(recipe), workspace, device, root)
        _report_truncation(prepared)
        return bill(recipe, prepared, root, baseline)


def train(recipe: Recipe, root: Path, folder: Path | None, restart: bool) -> dict[str, Any]:
    """Stage two: stream the store, train fusion and late layers, keep the best epoch. Goes on from the newest
    checkpoint.
    """
    from .training import train_run

    store = Store.open(root)
    _warn_other_environment(store)
    folder = folder or Path("runs") / recipe.run_name(store.fingerprint)
    if restart:
        folder = _free_name(folder)
    run = Run.create(folder, recipe, {"store_fingerprint": store.fingerprint, "producer": store.producer})
    finished = run.result()
    if finished is not None:
        print(f"{folder} is finished; --restart trains afresh beside it", file=sys.stderr)
        return finished
    result = {"run": str(folder), **train_run(recipe, store, run)}
    run.finish(result)
    return result


def evaluate(
    folder: Path,
    data: str | None,
    split: str | None,
    limit: int | None,
    batch_examples: int,
    num_beams: int,
    device: str,
) -> dict[str, Any]:
    """Score a run on raw text with the live model."""
    from ..stages.answer import score_split
    from .live import load_live, run_source

    run = Run.open(folder)
    answerer = load_live(run, device)
    source = run_source(run, answerer.task, data)
    split = split or next(name for name in ("validation", "test", "train") if name in source.splits)
    source.require(split, [*answerer.task.columns, answerer.task.label_column])
    rows = source.rows(split) if limit is None else min(source.rows(split), limit)
    with progress("eval", rows, "examples") as bar:
        scores = score_split(answerer, source, split, limit, batch_examples, num_beams, bar.advance)
    return {**scores, "split": split, "run": str(folder)}


def predict(
    folder: Path, texts: Sequence[str], data: Path | None, batch_examples: int, device: str
) -> list[dict[str, Any]]:
    """Answers for raw texts; a task of two columns takes them with a tab between."""
    from ..stages.answer import answer_rows
    from .live import load_live, rows_of_file, rows_of_texts

    run = Run.open(folder)
    answerer = load_live(run, device)
    rows = rows_of_texts(texts, answerer.task) if data is None else rows_of_file(data, answerer.task)
    return [
        {"text": texts[0] if len(texts) == 1 else list(texts), "label": answer.label, "score": answer.score}
        for texts, answer in answer_rows(answerer, rows, batch_examples)
    ]


def info(root: Path) -> dict[str, Any]:
    """What a store holds. Works on an unfinished one too."""
    try:
        store, complete = Store.open(root), True
    except StoreIncomplete:
        store, complete = Store.open(root, allow_partial=True), False
    splits = store.plan.splits
    streams = next(iter(splits.values())).streams
    return {
        "store": str(root),
        "complete": complete,
        "examples": sum(split.examples for split in splits.values()),
        "tokens": sum(stream.tokens for split in splits.values() for stream in split.streams.values()),
        "taps": {name: list(stream.taps) for name, stream in streams.items()},
        "bytes": store.bytes,
        "encoding": store.plan.encoding,
        "digest": store.digest if complete else None,
        "fingerprint": store.fingerprint,
        "model": store.producer["model"]["name"],
        "data": store.producer["data"]["name"],
        "splits": {name: split.examples for name, split in splits.items()},
    }


def verify(root: Path, deep: bool) -> dict[str, Any]:
    """Check a store's bytes: exit_code 0 whole, 4 incomplete, 5 damaged."""
    findings = verify_store(root, deep=deep)
    kinds = {finding.kind for finding in findings}
    return {
        "store": str(root),
        "deep": deep,
        "exit_code": 5 if "corrupt" in kinds else 4 if kinds else 0,
        "findings": [asdict(finding) for finding in findings],
    }


def methods(name: str | None) -> dict[str, Any]:
    """The plug-ins of every axis, or those called `name`, with their options."""
    from ..stages import plugins

    known = [(axis, found) for axis in plugins.AXES for found in plugins.names(axis)]
    chosen = [pair for pair in known if name in (None, pair[1])]
    if not chosen:
        raise UsageError(f"no method {name!r}{plugins.did_you_mean(name or '', [found for _, found in known])}")
    described = [plugins.describe(axis, found) for axis, found in chosen]
    return {
        "methods": [
            {
                "axis": item.axis,
                "name": item.name,
                "summary": item.summary,
                "source": item.source,
                "options": {
                    option.name: {"default": option.default, "type": option.type, "help": option.help}
                    for option in item.options
                },
            }
            for item in described
        ]
    }


# ---------------------------------------------------------------------------------------------------------------------


def _extract_settings(recipe: Recipe) -> ExtractSettings:
    from ..stages.prepare import ExtractSettings

    values = recipe.extract.model_dump()
    for key in ("model", "data"):
        if values[key] is None:
            raise UsageError(f"--{key} is missing; for example: sherl-cache extract --model t5-base --data glue/sst2")
    return ExtractSettings(**values)


def _create_writer(root: Path, prepared: Preparation) -> StoreWriter:
    try:
        writer = prepared.create_writer(root)
    except StoreStale as error:
        elsewhere = prepared.settings
        command = f"sherl-cache extract --model {elsewhere.model} --data {elsewhere.data} --store {_free_name(root)}"
        raise StoreStale(f"{error}\nto keep both, put it elsewhere: {command}") from None
    for warning in writer.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return writer


def _require_space(root: Path, bill: Bill) -> None:
    from ..storage.errors import OutOfSpace
    from .plan import free_bytes

    free = free_bytes(root)
    if free is not None and bill.total > free:
        raise OutOfSpace(
            f"{root}: the store needs {size(bill.total)} ({bill.total:,} bytes) and {size(free)} ({free:,} bytes) are free; "
            "fewer --taps, a smaller --encoding or another --store would fit"
        )


def _report_truncation(prepared: Preparation) -> None:
    for split, stats in prepared.stats.items():
        if stats.truncated:
            print(
                f"warning: {stats.truncated:,} of {stats.rows:,} {split} examples are longer than {prepared.max_length} tokens "
                "and were cut",
                file=sys.stderr,
            )


def _warn_other_environment(store: Store) -> None:
    from ..stages.prepare import versions

    here = versions()
    for key, value in here.items():
        stored = store.plan.environment.get(key)
        if stored is not None and stored != value:
            print(
                f"warning: the store was made with {key} {stored}, this is {value}; last bits may differ",
                file=sys.stderr,
            )


def _free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that is not there."""
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


@contextmanager
def _workspace() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sherl-cache-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
