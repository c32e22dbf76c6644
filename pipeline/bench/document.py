"""What `bench` measures, as its documents: one process, all rounds of a way, and the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...storage.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

WAYS: Final = ("stage-two", "live", "lora", "full")
"""By the names that `--ways` takes: from the store; the same recipe hung into the live model; LoRA on every layer of it;
every weight of it."""


class Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(Document):
    """What one process measures: a way of WAYS, or `forward`, the early layers that extraction runs."""

    store: str
    recipe: dict[str, Any]
    way: str
    steps: int
    """Training steps, of which the first warms up and is not timed."""
    lora_rank: int


class Measured(Document):
    """What one process found.

    Seconds are of timed steps, each with the wait for its batch where the batch comes from a store; a live batch is made
    between the clocks, as a loader's workers would make it beside.
    """

    seconds: list[float]
    wait_seconds: list[float]
    """Of the timed steps: waiting for the store."""
    batch_seconds: float
    """Making live batches, in all; no part of `seconds`."""
    losses: list[float]
    """Of every step, the first one included."""
    memory: Literal["resident", "allocator"]
    """Where `net_bytes` comes from: VmHWM of the process less `imports_bytes`, or the peak of a GPU's allocator."""
    net_bytes: int
    imports_bytes: int
    """VmHWM when everything was imported and nothing loaded."""
    held_bytes: int
    """All weights and buffers that the way holds."""
    trained_parameters: int
    trained_tensors: int
    changed_tensors: int
    """Of those, how many are not what they were before the first step."""
    store_bytes: int | None
    """Read from the store; None for live ways."""
    device_bytes: int | None
    """Of what this process read meanwhile, what came from a disk and not from the page cache; None where the system does
    not say."""
    facts: dict[str, str]
    """Machine, versions, number formats, and what the way makes of its settings."""


class Forward(Document):
    """The early layers over some examples, without writing: what one process of `forward` found."""

    examples: int
    seconds: float
    net_bytes: int
    imports_bytes: int


class Failure(Document):
    """A process that did not come to an end."""

    error: str
    exit_code: int


class Way(Document):
    """A way to train, over all rounds; every number is None where it failed."""

    name: str
    label: str
    error: str | None = None
    exit_code: int = 0
    seconds_a_step: float | None = None
    """Median over the timed steps of all rounds."""
    fastest: float | None = None
    slowest: float | None = None
    """Medians of the fastest and of the slowest round."""
    wait_share: float | None = None
    """Of the time of the timed steps, spent waiting for the store."""
    peak_memory_bytes: int | None = None
    """The largest of all rounds, less what the imports take; on a GPU, of its allocator."""
    imports_bytes: int | None = None
    trained_parameters: int | None = None
    rounds: list[Measured] = Field(default_factory=list)


class Extraction(Document):
    """What stage one costs, from its forward over the measured examples; writing is not in it."""

    seconds_an_example: float | None
    train_seconds: float | None
    """Of the store's whole training split, at that rate."""
    peak_memory_bytes: int | None
    error: str | None = None


class PaidFor(Document):
    """After how many passes over the training split extraction and stage two together took less time than this way."""

    against: str
    epochs: float | None
    """None: never, since a step of stage two is not the faster one."""


class Bench(Document):
    """bench.json."""

    format: Literal["sherl-cache bench"] = "sherl-cache bench"
    version: Literal[1] = 1
    store: str
    store_fingerprint: str
    settings: dict[str, str | int | float | None]
    """Every setting that moves a number, for people."""
    examples_a_step: float
    train_examples: int
    ways: list[Way]
    extraction: Extraction | None
    """None where no live way is measured, which it could be held against."""
    paid_for: list[PaidFor]

    @property
    def exit_code(self) -> int:
        """0 where a way was measured; else that of the first failure."""
        codes = [way.exit_code for way in self.ways]
        return 0 if 0 in codes else codes[0]


def read_bench(path: Path) -> Bench:
    """A bench.json. Raises InvalidInput."""
    try:
        return Bench.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}); `sherl-cache bench` writes bench.json") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        said = f"{where}: {problem['msg']}" if where else problem["msg"]
        raise InvalidInput(f"{path} is not what this version of `sherl-cache bench` writes: {said}") from None
