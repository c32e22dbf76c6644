"""Rounds of processes, one a way, and what they come to."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING

from ...storage import Store, commit
from ...storage.errors import OutOfMemory
from ..progress import size
from .document import Bench, Extraction, Failure, Forward, Job, Measured, PaidFor, Way
from .examples import training_batches
from .picture import picture
from .settings import settings_told

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..recipe import Recipe

Found = Measured | Forward | Failure
_KINDS: dict[str, type[Measured] | type[Forward] | type[Failure]] = {
    "Measured": Measured,
    "Forward": Forward,
    "Failure": Failure,
}


def bench(
    recipe: Recipe, root: str | Path, ways: Sequence[str], steps: int, rounds: int, lora_rank: int, out: Path
) -> Bench:
    """Measure some of WAYS over a store, and write bench.json and bench.html into `out`.

    steps: of a round, the first is not timed. rounds: of all ways in turn; a way that failed is left out of the next ones.
    """
    store = Store.open(root)
    batches = training_batches(store, recipe.data, steps)  # what is wrong with the data shows before the first process
    commit.link_mode(out)

    def job(way: str) -> Job:
        return Job(
            store=str(store.root), recipe=recipe.model_dump(mode="json"), way=way, steps=steps, lora_rank=lora_rank
        )

    front = in_process(job("forward")) if set(ways) - {"stage-two"} else None
    found: dict[str, list[Measured]] = {way: [] for way in ways}
    failed: dict[str, Failure] = {}
    for number in range(rounds):
        for way in ways:
            if way in failed:
                continue
            one = in_process(job(way))
            if isinstance(one, Measured):
                found[way].append(one)
                said = f"{median(one.seconds):.3f} s a step, {size(one.net_bytes)}"
            else:
                assert isinstance(one, Failure)
                failed[way] = one
                said = one.error
            _say(f"round {number + 1} of {rounds}, {label(way, recipe)}: {said}")
    measured = [together(way, label(way, recipe), found[way], failed.get(way)) for way in ways]
    examples = sum(map(len, batches[1:])) / (len(batches) - 1)
    extraction = None if front is None else _extraction(front, len(store.examples("train")))
    document = Bench(
        store=str(store.root),
        store_fingerprint=store.fingerprint,
        settings=settings_told(recipe, store, batches, rounds, [one for way in measured for one in way.rounds]),
        examples_a_step=examples,
        train_examples=len(store.examples("train")),
        ways=measured,
        extraction=extraction,
        paid_for=paid_for(measured, extraction, examples),
    )
    commit.replace(out / "bench.json", document.model_dump_json(indent=1).encode())
    commit.replace(out / "bench.html", picture(document).encode())
    return document


def label(way: str, recipe: Recipe) -> str:
    """What people read."""
    names = {"stage-two": "stage two", "live": f"live {recipe.name}", "lora": "LoRA (peft)", "full": "full fine-tuning"}
    return names[way]


def in_process(job: Job) -> Found:
    """What a fresh process says of a job, or that it was killed."""
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.process"],
        input=job.model_dump_json().encode(),
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode or not done.stdout:
        if done.returncode == -signal.SIGKILL:
            said = "killed by the system, which does so when memory is short"
            return Failure(error=said, exit_code=OutOfMemory.exit_code)
        return Failure(error=f"its process ended with code {done.returncode}, see above", exit_code=1)
    document = json.loads(done.stdout.splitlines()[-1])
    found: Found = _KINDS[document.pop("kind")].model_validate(document)
    return found


def together(name: str, label: str, rounds: Sequence[Measured], failure: Failure | None) -> Way:
    """All rounds of a way."""
    if failure is not None or not rounds:
        said = failure or Failure(error="not measured", exit_code=1)
        return Way(name=name, label=label, error=said.error, exit_code=said.exit_code, rounds=list(rounds))
    medians = [median(one.seconds) for one in rounds]
    seconds = [each for one in rounds for each in one.seconds]
    return Way(
        name=name,
        label=label,
        seconds_a_step=median(seconds),
        fastest=min(medians),
        slowest=max(medians),
        wait_share=sum(sum(one.wait_seconds) for one in rounds) / sum(seconds),
        peak_memory_bytes=max(one.net_bytes for one in rounds),
        imports_bytes=max(one.imports_bytes for one in rounds),
        trained_parameters=rounds[0].trained_parameters,
        rounds=list(rounds),
    )


def paid_for(ways: Sequence[Way], extraction: Extraction | None, examples_a_step: float) -> list[PaidFor]:
    """For every live way: extraction's seconds an example over what stage two saves an example, in epochs."""
    ours = next((way.seconds_a_step for way in ways if way.name == "stage-two"), None)
    if ours is None or extraction is None or extraction.seconds_an_example is None:
        return []
    found = []
    for way in ways:
        if way.name != "stage-two" and way.seconds_a_step is not None:
            saved = (way.seconds_a_step - ours) / examples_a_step
            epochs = extraction.seconds_an_example / saved if saved > 0 else None
            found.append(PaidFor(against=way.label, epochs=epochs))
    return found


def _extraction(found: Found, examples: int) -> Extraction:
    if not isinstance(found, Forward):
        said = found.error if isinstance(found, Failure) else "not measured"
        return Extraction(seconds_an_example=None, train_seconds=None, peak_memory_bytes=None, error=said)
    rate = found.seconds / found.examples
    return Extraction(seconds_an_example=rate, train_seconds=rate * examples, peak_memory_bytes=found.net_bytes)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
