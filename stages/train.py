"""Stage two: the training loop. It sees batches, a model and an objective, and nothing of files or users.

The numbers of a run are a function of the settings, the seed and the order of batches alone: dropout is drawn from
(seed, step), so a loop that goes on from a checkpoint computes what the unbroken one computes, bit for bit on a CPU
with the same thread count.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..storage.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .methods.contract import Objective, Packed, Targets
    from .model import StageTwo


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The optimisation. AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with linear warm-up, decay and clipping."""

    epochs: int
    learning_rate: float
    """Of everything that trains but the late blocks."""
    late_learning_rate: float
    weight_decay: float = 0.0
    """Decoupled, on weights of two and more dimensions."""
    warmup: float = 0.06
    """Steps; below 1, that share of all steps."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip_norm: float | None = 1.0
    patience: int | None = None
    """Epochs without a better score before the loop stops; None: never."""
    checkpoint_steps: int = 200
    seed: int = 0


@dataclass(frozen=True)
class TrainBatch:
    """One batch as the model takes it."""

    inputs: Mapping[str, Packed]
    targets: Targets
    select: Tensor | None
    """Rows that carry a label, [N] bool, for heads that answer row by row; None: all rows."""
    segments: Tensor
    """Segments of each example in the stream that the head reads, [B]."""
    examples: int
    tokens: int


@dataclass
class Progress:
    """Where a loop stands: all that it needs, beside tensors, to go on."""

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Of steps and validations, over every process that took part."""
    best: float | None = None
    best_epoch: int | None = None
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record an epoch: the validation scores."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Batches(Protocol):
    """Where batches come from: the same sequence for the same epoch, from any batch on."""

    @property
    def waited_seconds(self) -> float:
        """Seconds spent waiting for data so far."""
        ...

    def batches_in(self, epoch: int) -> int: ...
    def epoch(self, number: int, start_batch: int) -> Iterator[TrainBatch]: ...


class Recorder(Protocol):
    """What a loop tells: a run's folder, or nothing."""

    def log(self, record: Mapping[str, Any]) -> None: ...
    def checkpoint(self, loop: TrainingLoop) -> None: ...
    def better(self, loop: TrainingLoop) -> None: ...


class TrainingLoop:
    """Model, optimiser and place; `run` goes from that place to the end."""

    def __init__(self, model: StageTwo, objective: Objective, batches: Batches, settings: TrainSettings) -> None:
        self.model, self.objective, self.batches, self.settings = model, objective, batches, settings
        self.at = Progress()
        self.total_steps = sum(batches.batches_in(epoch) for epoch in range(settings.epochs))
        self.optimizer = _adamw(model, settings)
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._timers = _forward_timers(model)

    def run(self, recorder: Recorder, validate: Callable[[], tuple[float, dict[str, Any]]] | None) -> Progress:
        """Train to the end. `validate()` gives (score, record), higher better; the best epoch is told to
        `recorder.better`.

        Raises InvalidInput when the loss stops being finite.
        """
        while self.at.epoch < self.settings.epochs and not self.at.stopped_early:
            self._run_epoch(recorder)
            begun = time.perf_counter()
            score, record = (None, {}) if validate is None else validate()
            self.at.seconds += time.perf_counter() - begun
            self._close_epoch(recorder, score, record)
        return self.at

    def _run_epoch(self, recorder: Recorder) -> None:
        source = self.batches.epoch(self.at.epoch, self.at.batch)
        while True:
            begun, waited = time.perf_counter(), self.batches.waited_seconds
            batch = next(source, None)
            read = time.perf_counter() - begun
            if batch is None:
                return
            record = self._step(batch)
            elapsed = time.perf_counter() - begun
            self.at.seconds += elapsed
            stall = self.batches.waited_seconds - waited
            record["seconds"] = {"step": elapsed, "read": read, "stall": stall, **record["seconds"]}
            recorder.log(record)
            at_end = self.at.batch == self.batches.batches_in(self.at.epoch)
            if self.at.step % self.settings.checkpoint_steps == 0 and not at_end:
                recorder.checkpoint(self)

    def _step(self, batch: TrainBatch) -> dict[str, Any]:
        torch.manual_seed(_mix(self.settings.seed, self.at.step))
        rate = learning_rate_factor(self.at.step, self.total_steps, self.settings)
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * rate
        self._timers.clear()
        output = self.model(batch.inputs, batch.select, batch.segments)
        loss = self.objective(output, batch.targets)
        mean = loss.sum / loss.weight if float(loss.weight) else loss.sum  # a batch without any label has sum 0
        forward_done = time.perf_counter()
        value = float(mean.detach())
        self._require_finite("loss", value)
        self.optimizer.zero_grad(set_to_none=True)
        mean.backward()
        backward_done = time.perf_counter()
        norm = None
        if self.settings.clip_norm is not None:
            norm = float(nn.utils.clip_grad_norm_(list(self._names), self.settings.clip_norm))
            self._require_finite("norm of the gradient", norm)
        self.optimizer.step()
        optimizer_done = time.perf_counter()
        self.at.step += 1
        self.at.batch += 1
        self.at.examples += batch.examples
        self.at.tokens += batch.tokens
        return {
            "step": self.at.step,
            "epoch": self.at.epoch,
            "examples": self.at.examples,
            "tokens": self.at.tokens,
            "loss": value,
            "parts": {name: float(part.detach()) for name, part in loss.parts.items()},
            "learning_rate": self._base_rates[0] * rate,
            "gradient_norm": norm,
            "seconds": {
                **self._timers,
                "backward": backward_done - forward_done,
                "optimizer": optimizer_done - backward_done,
            },
        }

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise InvalidInput(
                f"the {what} became {value} at step {self.at.step + 1}; a smaller train.learning_rate or late.learning_rate helps"
            )

    def _close_epoch(self, recorder: Recorder, score: float | None, record: dict[str, Any]) -> None:
        self.at.history.append({"epoch": self.at.epoch, "step": self.at.step, **record})
        better = score is not None and (self.at.best is None or score > self.at.best)
        if better or score is None:
            self.at.best, self.at.best_epoch = score, self.at.epoch
        if score is not None:
            recorder.log({"step": self.at.step, "epoch": self.at.epoch, "validation": record})
            patience = self.settings.patience
            since = self.at.epoch - (self.at.best_epoch if self.at.best_epoch is not None else self.at.epoch)
            self.at.stopped_early = patience is not None and since >= patience
        self.at.epoch += 1
        self.at.batch = 0
        if better or score is None:
            recorder.better(self)
        recorder.checkpoint(self)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimiser's state by parameter name: `exp_avg/<name>`, `exp_avg_sq/<name>`, `step/<name>`."""
        return {
            f"{key}/{name}": value
            for parameter, name in self._names.items()
            for key, value in self.optimizer.state[parameter].items()
        }

    def restore(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], at: Mapping[str, Any]) -> None:
        """Take up a checkpoint's place: its tensors and its Progress as JSON."""
        self.model.load_trainable_state_dict(weights)
        by_name = {name: parameter for parameter, name in self._names.items()}
        for key, value in optimizer.items():
            kind, _, name = key.partition("/")
            self.optimizer.state[by_name[name]][kind] = value.clone()
        self.at = Progress(**at)


def learning_rate_factor(step: int, total: int, settings: TrainSettings) -> float:
    """Share of the learning rate at `step` (from 0): a linear rise over the warm-up, then the schedule down to 0 at
    `total`.
    """
    warmup = settings.warmup * total if settings.warmup < 1 else settings.warmup
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    return 1.0 - done if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def _adamw(model: StageTwo, settings: TrainSettings) -> torch.optim.AdamW:
    groups = []
    for group in model.parameter_groups(settings.learning_rate, settings.late_learning_rate):
        for decays in (True, False):
            chosen = [parameter for parameter in group["params"] if (parameter.ndim > 1) == decays]
            if chosen:
                decay = settings.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": group["lr"], "weight_decay": decay})
    # one kernel over all tensors where there is one: a third of the time on a CPU
    return torch.optim.AdamW(groups, fused=model.compute.device.type in ("cpu", "cuda"))


def _forward_timers(model: StageTwo) -> dict[str, float]:
    """Seconds of the last forward of each part that has one, filled by hooks (on a GPU: the time to launch)."""
    seconds: dict[str, float] = {}
    begun: dict[str, float] = {}
    for name in ("fusion", "late", "head"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            part.register_forward_pre_hook(lambda *_, name=name: begun.__setitem__(name, time.perf_counter()))
            part.register_forward_hook(
                lambda *_, name=name: seconds.__setitem__(name, time.perf_counter() - begun[name])
            )
    return seconds


def _mix(seed: int, step: int) -> int:
    """A seed for one step (the 64-bit finaliser of splitmix64), so that neighbouring steps do not share draws."""
    value = (seed * 0x9E3779B97F4A7C15 + step + 1) & 0xFFFFFFFFFFFFFFFF
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * factor) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) & 0x7FFFFFFFFFFFFFFF
