"""Read this first: each command as a short sequence of plain calls. Results are JSON; the commands print them."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..storage import Store
from ..storage.commit import link_mode
from ..storage.errors import AccessDenied, SherlCacheError, StoreIncomplete, UsageError
from ..storage.place import open_files, parse_place
from ..storage.printable import printable
from .again import free_name
from .memory import peak_memory_bytes
from .monitor import look
from .progress import progress
from .run import Run
from .walltime import WallTime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..storage.place import Place
    from .cluster.extract import Workers
    from .grid import Variant
    from .parts import Part
    from .recipe import Recipe


def extract(
    recipe: Recipe,
    root: Path,
    workers: Workers | None = None,
    seconds_left: float | None = None,
    part: Part | None = None,
) -> dict[str, Any]:
    """Stage one: plan, run the early layers unit by unit, publish the manifest. Goes on where an earlier call
    stopped, and shares the work with others that run the same command on the same store.

    workers: run the units there; None: in this process. seconds_left: wall time of this job; None: what its batch system
    says, if there is one. Raises Interrupted where it does not suffice. part: do this share of the units, and publish the
    manifest only where no other unit is missing either.
    """
    from ..stages.proof import prove
    from .extracting import create_writer, extract_here, require_space, telling_what_is_needed
    from .preparing import extract_settings, preparing, report_data

    begun = time.monotonic()
    wall_time = WallTime.of(seconds_left)
    settings, device = extract_settings(recipe), recipe.train.device
    if workers is not None:
        workers.make_ready(device)
    with preparing(settings, device, root) as prepared:
        report_data(prepared)
        require_space(root, prepared)
        whole = create_writer(root, prepared)
        writer = whole if part is None else whole.part(part.number, part.count)
        missing = writer.missing()
        if missing:
            prove(prepared.loaded, prepared.sample())
        else:
            asked = "that was asked for" if part is None else f"of part {part}"
            print(printable(f"{root} holds everything {asked}; nothing to do"), file=sys.stderr)
        if missing and workers is None:
            with telling_what_is_needed(whole):
                extract_here(prepared, writer, wall_time)
    del prepared  # the model goes before workers load theirs
    if missing and workers is not None:
        from .cluster.extract import extract_on

        with telling_what_is_needed(whole):
            extract_on(workers, writer, settings, device, wall_time)
    others = 0 if part is None else len(whole.missing())
    if not others:
        whole.finalize()
    known, producer = info(root), Store.open(root, allow_partial=True).producer
    return {
        **{key: known[key] for key in ("examples", "tokens", "taps", "bytes")},
        "digest": None if others else known["digest"],
        "store": str(root),
        "late": producer["late"],
        "seconds": time.monotonic() - begun,
        "peak_memory_bytes": peak_memory_bytes(),
        "truncated": producer["data"]["truncated"],
        "part": None if part is None else str(part),
        "complete": not others,
        "units_missing": others,
    }


def plan(recipe: Recipe, root: Path, unit_seconds: float | None = None) -> dict[str, Any]:
    """The bill of `extract`: nothing is written but a temporary file of token ids. unit_seconds: suggest a size of units that
    take so long.
    """
    from .plan import bill
    from .preparing import extract_settings, preparing, report_data

    import_module(".training", __package__)  # what train imports, so that the baseline counts it
    baseline = peak_memory_bytes()
    with preparing(extract_settings(recipe), recipe.train.device, root) as prepared:
        report_data(prepared)
        return bill(recipe, prepared, root, baseline, unit_seconds)


def train(
    recipe: Recipe, root: str | Path, folder: Path | None, restart: bool, report_to: Sequence[str] = ()
) -> dict[str, Any]:
    """Stage two: stream the store, train fusion and late layers, keep the best epoch. Goes on from the newest
    checkpoint.
    """
    from ..stages.environment import machine
    from .reporting import chosen_trackers, reporting
    from .together import together
    from .training import Training

    trackers = chosen_trackers(report_to)
    store = Store.open(root)
    settings = recipe.model_dump(mode="json")
    with together(recipe.train.device) as ranks:  # this process alone, unless torchrun or srun started several
        if ranks.first:
            _warn_other_environment(store)
        folder = folder or Path("runs") / recipe.run_name(store.fingerprint)
        if restart:
            folder = free_name(folder)
        facts = {"store_fingerprint": store.fingerprint, "producer": store.producer}
        begun = Run.find(folder, recipe, facts) if ranks.first else None
        finished = ranks.share_json(None if begun is None else begun.result())
        if finished is not None:
            if ranks.first:
                print(printable(f"{folder} is finished; --restart trains afresh beside it"), file=sys.stderr)
            with reporting(trackers, begun, settings):
                pass
            return {**finished, "run": str(folder)}
        training = Training.of(recipe, store, ranks)  # every check, before there is a folder
        facts["environment"] = machine(training.parts.device)
        run = Run.create(folder, recipe, facts) if ranks.first else None
        with reporting(trackers, run, settings):
            result = {"run": str(folder), **training.run(run)}
        if run is not None:
            run.finish(result)
        found: dict[str, Any] = ranks.share_json(result)
        return found


def sweep(variants: Sequence[Variant], root: str | Path, folder: Path, report_to: Sequence[str] = ()) -> dict[str, Any]:
    """Several runs of stage two side by side, from one read of the store. Goes on where an earlier call stopped."""
    from .launch import Launch
    from .reporting import chosen_trackers
    from .sweeping import run_sweep

    if Launch.of() is not None:
        raise UsageError(
            "a sweep trains its runs side by side in one process; start it without torchrun and in one task, or give each "
            "recipe to `train` under torchrun"
        )
    trackers = chosen_trackers(report_to)
    store = Store.open(root)
    _warn_other_environment(store)
    return run_sweep(variants, store, folder, trackers)


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
    from .trained import open_trained

    trained = open_trained(folder)
    answerer = load_live(trained, device)
    source = run_source(trained.producer, answerer.task, data)
    split = split or next(name for name in ("validation", "test", "train") if name in source.splits)
    source.require(split, answerer.task.read_columns)
    rows = source.rows(split) if limit is None else min(source.rows(split), limit)
    with progress("eval", rows, "examples") as bar:
        scores = score_split(answerer, source, split, limit, batch_examples, num_beams, bar.advance)
    result = {**scores, "split": split, "run": str(folder)}
    if (folder / "run.json").is_file():
        asked = {"data": data or trained.producer["data"]["name"], "limit": limit, "num_beams": num_beams}
        try:
            Run.open(folder).add_eval({**result, **asked})
        except (OSError, AccessDenied) as error:  # scores are there, only the note of them is not
            print(printable(f"warning: {folder}: the scores are not kept ({error})"), file=sys.stderr)
    return result


def export(folder: Path, out: Path, base: str | None) -> dict[str, Any]:
    """Write a finished run as a folder that loads without it and without its store."""
    from .adapter import WEIGHTS_FILE, write_adapter
    from .trained import of_run

    run = Run.open(folder)
    if run.result() is None:
        raise UsageError(f"{folder} is not finished; run `sherl-cache train` to its end first")
    trained = of_run(run)
    config = write_adapter(trained, out, base)
    return {
        "run": str(folder),
        "out": str(out),
        "base": config.base_model_name_or_path,
        "revision": config.revision,
        "parameters": sum(tensor.numel() for tensor in trained.weights.values()),
        "bytes": (out / WEIGHTS_FILE).stat().st_size,
        "weights_sha256": config.weights.sha256,
    }


def predict(
    folder: Path,
    texts: Sequence[str],
    data: Path | None,
    batch_examples: int,
    device: str,
    top: int | None = None,
    vectors: Path | None = None,
) -> list[dict[str, Any]]:
    """Answers for raw texts, a task of two columns takes them with a tab between, or for pictures by their files.

    A run on pictures with captions ranks each text among all pictures, of `texts` by their files and of `data`, and each
    picture among all texts; all of them where `texts` is empty. top: the likest of a query, 5 unless given; vectors: file
    for what was compared.
    """
    from ..stages.answer import answer_rows
    from .live import load_live, rows_of_file, rows_of_texts
    from .trained import open_trained

    answerer = load_live(open_trained(folder), device)
    if answerer.task.kind == "retrieval":
        from .ranking import rankings_of

        return rankings_of(answerer, texts, data, batch_examples, 5 if top is None else top, vectors)
    if top is not None or vectors is not None:
        raise UsageError(
            f"--top and --vectors are for runs on pictures with captions; {folder} answers each row with a label or a number"
        )
    rows = rows_of_texts(texts, answerer.task) if data is None else rows_of_file(data, answerer.task)
    answers = []
    for given, answer in answer_rows(answerer, rows, batch_examples):
        asked = [value if isinstance(value, str) else value.name for value in given]
        answers.append({"text": asked[0] if len(asked) == 1 else asked, "label": answer.label, "score": answer.score})
    return answers


def info(root: str | Path) -> dict[str, Any]:
    """What a store holds. Works on an unfinished one too."""
    try:
        store, complete = Store.open(root), True
    except StoreIncomplete:
        store, complete = Store.open(root, allow_partial=True), False
    seen = look(open_files(parse_place(root)))
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
        "commits": _commit_mode(store.root),
        **seen.to_json(),
    }


def methods(name: str | None) -> dict[str, Any]:
    """The plug-ins of every axis, or those called `name`, with their options."""
    from .method_pages import describe_methods

    return describe_methods(name)


# ---------------------------------------------------------------------------------------------------------------------


def _commit_mode(root: Place) -> str | None:
    """How files are given their names where the store lies; None where nothing can be written."""
    if not isinstance(root, Path):
        return None
    try:
        return link_mode(root / "sherl")
    except SherlCacheError:
        return None


def _warn_other_environment(store: Store) -> None:
    from ..stages.environment import versions

    here = versions()
    for key, value in here.items():
        stored = store.plan.environment.get(key)
        if stored is not None and stored != value:
            print(
                f"warning: the store was made with {key} {stored}, this is {value}; last bits may differ",
                file=sys.stderr,
            )
