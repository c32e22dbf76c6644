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

from ..storage import (
    Plan,
    Repair,
    Store,
    StoreWriter,
    Unit,
    UnitBuffer,
    collect_garbage,
    find_garbage,
    keys,
    repair_store,
    verify_store,
)
from ..storage.errors import (
    StoreCorrupt,
    StoreIncomplete,
    StoreStale,
    UsageError,
)
from ..storage.growth import grown
from ..storage.ledger import newest_snapshot, read_chain
from ..storage.place import parse_place
from ..storage.readers.local import LocalFiles
from .again import stored_settings
from .memory import peak_memory_bytes
from .progress import progress, size
from .run import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..stages.prepare import ExtractSettings, Preparation
    from .recipe import Recipe


def extract(recipe: Recipe, root: Path) -> dict[str, Any]:
    """Stage one: plan, run the early layers unit by unit, publish the manifest. Goes on where an earlier call
    stopped, and shares the work with others that run the same command on the same store.
    """
    from ..stages.device import choose_device
    from ..stages.extract import extract_missing
    from ..stages.front import Front, prove_split
    from ..stages.prepare import prepare

    begun = time.monotonic()
    device = choose_device(recipe.train.device)
    with _workspace() as workspace:
        prepared = prepare(_extract_settings(recipe), workspace, device, root)
        _report_truncation(prepared)
        _require_space(root, prepared)
        writer = _create_writer(root, prepared)
        missing = writer.missing()
        if missing:
            prove_split(prepared.loaded, prepared.sample())
            front = Front(prepared.loaded, prepared.taps)
            total = sum(unit.examples for unit in writer.units())
            left = sum(unit.examples for unit in missing)
            with progress("extract", total, "examples", total - left) as bar:

                def waiting(units: int) -> None:
                    bar.advance(0, f"waiting for {units} units of other writers")

                extract_missing(front, writer, prepared.settings.batch_tokens, bar.advance, waiting)
        else:
            print(f"{root} holds everything that was asked for; nothing to do", file=sys.stderr)
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


def train(recipe: Recipe, root: str | Path, folder: Path | None, restart: bool) -> dict[str, Any]:
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
        return {**finished, "run": str(folder)}
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


def info(root: str | Path) -> dict[str, Any]:
    """What a store holds. Works on an unfinished one too."""
    try:
        store, complete = Store.open(root), True
    except StoreIncomplete:
        store, complete = Store.open(root, allow_partial=True), False
    splits = store.plan.splits
    streams = next(iter(splits.values())).streams
    return {
        "store": str(store.root),
        "complete": complete,
        "growing": store.growing,
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


def verify(root: str | Path, deep: bool) -> dict[str, Any]:
    """Check a store's bytes: exit_code 0 whole, 4 incomplete, 5 damaged."""
    place = parse_place(root)
    findings = verify_store(place, deep=deep)
    kinds = {finding.kind for finding in findings}
    return {
        "store": str(place),
        "deep": deep,
        "exit_code": 5 if "corrupt" in kinds else 4 if kinds else 0,
        "findings": [asdict(finding) for finding in findings],
    }


def gc(root: Path, remove: bool) -> dict[str, Any]:
    """What lies in a store and nothing names any more; removed with `remove`."""
    found = collect_garbage(root) if remove else find_garbage(root)
    return {
        "store": str(root),
        "removed": remove,
        "files": [asdict(garbage) for garbage in found],
        "bytes": sum(garbage.bytes for garbage in found),
    }


def repair(root: Path, overrides: Mapping[str, Any], device_name: str) -> dict[str, Any]:
    """Find every damaged byte, make again exactly what is damaged, and look once more."""
    from ..stages.device import choose_device
    from ..stages.extract import unit_buffer
    from ..stages.front import Front
    from ..stages.prepare import ExtractSettings, prepare

    findings = verify_store(root, deep=True)
    damaged = [finding for finding in findings if finding.kind == "corrupt" or finding.unit is None]
    done = Repair()
    before = _manifest_digest(root)
    if damaged and any(finding.path.startswith("sherl/plan") for finding in damaged):
        repair_store(root, damaged, _no_unit)  # says that a plan cannot be made again
    if damaged:
        recorded = stored_settings(_read_plan(root).producer) if not {"model", "data"} <= set(overrides) else {}
        values = {**recorded, **overrides}
        values["text_columns"] = tuple(values.get("text_columns") or ())
        with _workspace() as workspace:
            prepared = prepare(ExtractSettings(**values), workspace, choose_device(device_name), root)
            _refuse_other_store(root, prepared)
            front = Front(prepared.loaded, prepared.taps)

            def make(unit: Unit) -> UnitBuffer:
                return unit_buffer(front, StoreWriter.open(root), unit, prepared.settings.batch_tokens)

            done = repair_store(root, damaged, make, files=prepared.files, tables=prepared.tables())
    left = verify_store(root, deep=True)
    after = _manifest_digest(root)
    return {
        "store": str(root),
        "findings": len(findings),
        "files": done.files,
        "units": done.units,
        "changed": done.changed,
        "digest": after,
        "same_digest": before is None or before == after,
        "exit_code": 5 if any(finding.kind == "corrupt" for finding in left) else 4 if left else 0,
        "left": [asdict(finding) for finding in left],
    }


def explain_stale(recipe: Recipe, root: Path) -> dict[str, Any]:
    """Field by field, what a store was made from and what is asked for."""
    from ..stages.device import choose_device
    from ..stages.explain import SETTING_CLASSES
    from ..stages.prepare import prepare
    from ..storage.stale import compare, differences

    stored = _read_plan(root)
    with _workspace() as workspace:
        prepared = prepare(_extract_settings(recipe), workspace, choose_device(recipe.train.device), root)
    files = prepared.file_records()
    fields = [asdict(item) for item in compare(stored, prepared.plan, files) if item.field != "producer.extract"]
    here, there = stored.producer.get("extract"), prepared.plan.producer["extract"]
    assert isinstance(there, dict)
    for name, meaning in SETTING_CLASSES.items():
        one = here.get(name) if isinstance(here, dict) else None
        fields.append(
            {
                "field": f"extract.{name}",
                "stored": keys.shown(one),
                "asked": keys.shown(there[name]),
                "meaning": meaning,
                "differs": one != there[name],
                "refused": False,
            }
        )
    lines = differences(stored, prepared.plan, files)
    adds = not lines and grown(stored, prepared.plan, "0" * 64) is not None
    return {
        "store": str(root),
        "verdict": "stale" if lines else "grows" if adds else "same",
        "differences": lines,
        "fields": fields,
        "exit_code": 4 if lines else 0,
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


def _no_unit(unit: Unit) -> UnitBuffer:
    raise StoreStale(f"unit {unit.name} cannot be made again without the plan")


def _read_plan(root: Path) -> Plan:
    """The newest plan of a store. Raises StoreMissing, StoreCorrupt."""
    return read_chain(LocalFiles(root)).head


def _manifest_digest(root: Path) -> str | None:
    """Digest that the newest manifest tells of, whether the store's bytes are right or not."""
    try:
        files = LocalFiles(root)
        found = newest_snapshot(files, read_chain(files))
    except StoreCorrupt:
        return None
    return None if found is None else found[2].digest


def _refuse_other_store(root: Path, prepared: Preparation) -> None:
    """A store is repaired only with what it was made from. Raises StoreStale."""
    from ..storage.stale import differences

    if changed := differences(_read_plan(root), prepared.plan, prepared.file_records()):
        raise StoreStale(
            f"{root}: cannot be repaired with this model and data, it was made from others: {'; '.join(changed)}. "
            "Name those that it was made from with --model and --data"
        )


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


def _require_space(root: Path, prepared: Preparation) -> None:
    from ..storage.errors import OutOfSpace
    from .plan import free_bytes

    free, needed = free_bytes(root), prepared.added_bytes()
    if free is not None and needed > free:
        raise OutOfSpace(
            f"{root}: the store needs {size(needed)} ({needed:,} bytes) and {size(free)} ({free:,} bytes) are free; "
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
