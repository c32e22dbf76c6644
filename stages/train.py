"""Stage two: the training loop. It sees batches, a model and an objective, and nothing of files or users.

The numbers of a run are a function of the settings, the seed and the order of batches alone: dropout is drawn from
(seed, step), so a loop that goes on from a checkpoint computes what the unbroken one computes, bit for bit on a CPU
with the same thread count; and so does one that takes its steps in turn with other loops.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..storage.errors import Interrupted, InvalidInput, RankLost
from .held_bytes import HeldBytes
from .methods.contract import Targets
from .optimization import adamw, learning_rate_factor, step_seed
from .ranks import ALONE
from .shared_step import Counted, add_up, agree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .model import StageTwo
    from .objectives import ObjectiveSum
    from .optimization import TrainSettings
    from .ranks import Ranks
    from .steps import Batches, Step


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


class Recorder(Protocol):
    """What a loop tells: a run's folder, or nothing."""

    def log(self, record: Mapping[str, Any]) -> None: ...
    def checkpoint(self, loop: TrainingLoop) -> None: ...
    def better(self, loop: TrainingLoop) -> None: ...


class TrainingLoop:
    """Model, optimiser and place; `run` goes from that place to the end, `take` and `close_epoch` go step by step."""

    def __init__(
        self,
        model: StageTwo,
        objective: ObjectiveSum,
        batches: Batches,
        settings: TrainSettings,
        ranks: Ranks = ALONE,
        asked: Callable[[], bool] = lambda: False,
    ) -> None:
        """ranks: the processes that take each step together, each on its slice of the batch; their models begin alike.
        asked: whether the loop is to end after the step at hand; one rank is enough.
        """
        self.model, self.objective, self.batches, self.settings = model, objective, batches, settings
        self.ranks, self.asked = ranks, asked
        self.at = Progress()
        self._saved = 0
        self.total_steps = sum(batches.batches_in(epoch) for epoch in range(settings.epochs))
        self.optimizer = adamw(model, settings)
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._timers = _forward_timers(model)
        self._held = HeldBytes(model, self.optimizer)

    @property
    def ended(self) -> bool:
        """Whether there is no further step."""
        return self.at.epoch >= self.settings.epochs or self.at.stopped_early

    def run(self, recorder: Recorder, validate: Callable[[], tuple[float, dict[str, Any]]] | None) -> Progress:
        """Train to the end. `validate()` gives (score, record), higher better; the best epoch is told to
        `recorder.better`.

        Raises InvalidInput when the loss stops being finite; Interrupted, with all that was learnt in a checkpoint, when an
        end was asked for, also by `validate`, or when another rank is gone.
        """
        while not self.ended:
            try:
                self._run_epoch(recorder)
                begun = time.perf_counter()
                score, record = (None, {}) if validate is None else validate()
            except Interrupted as error:
                self.save(recorder)
                if self.ranks.first or not isinstance(error, RankLost):  # else the one that saves may be gone
                    error.args = (f"{error}; step {self.at.step} of {self.total_steps} is saved",)
                raise
            self.at.seconds += time.perf_counter() - begun
            self.close_epoch(recorder, score, record)
        return self.at

    def save(self, recorder: Recorder) -> None:
        """Make a checkpoint, unless the newest one stands here."""
        if self.at.step != self._saved:
            self._checkpoint(recorder)

    def _run_epoch(self, recorder: Recorder) -> None:
        source = self.batches.steps(self.at.epoch, self.at.batch)
        while True:
            begun, waited = time.perf_counter(), self.batches.waited_seconds
            step = next(source, None)
            if step is None:
                return
            asked = self.take(step, recorder, time.perf_counter() - begun, self.batches.waited_seconds - waited)
            if asked:
                raise Interrupted("training was asked to end")

    def take(self, step: Step, recorder: Recorder, read_seconds: float, stall_seconds: float) -> bool:
        """Take one step, tell of it, and make a checkpoint where one is due; whether an end was asked for, which all ranks
        answer alike. The seconds are what getting `step` took, and how much of that was waiting for data.
        """
        begun = time.perf_counter()
        record, asked = self._step(step)
        elapsed = read_seconds + time.perf_counter() - begun
        self.at.seconds += elapsed
        times = {"step": elapsed, "read": read_seconds, "stall": stall_seconds}
        recorder.log({**record, "seconds": {**times, **record["seconds"]}})
        at_end = self.at.batch == self.batches.batches_in(self.at.epoch)
        if self.at.step % self.settings.checkpoint_steps == 0 and not at_end:
            self._checkpoint(recorder)
        return asked or (self.ranks.alone and self.asked())

    def _checkpoint(self, recorder: Recorder) -> None:
        recorder.checkpoint(self)
        self._saved = self.at.step

    def _step(self, step: Step) -> tuple[dict[str, Any], bool]:
        torch.manual_seed(step_seed(self.settings.seed, self.at.step, self.ranks.rank))
        rate = learning_rate_factor(self.at.step, self.total_steps, self.settings)
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * rate
        self.optimizer.zero_grad(set_to_none=True)
        weights, asked = self._agreed(step)
        counted, seconds = self._gradients(step, weights)
        if not self.ranks.alone:
            counted = add_up(list(self._names), counted, self.ranks)
        counted.loss += self._penalise(counted.parts)  # of the weights, which all ranks share: once, after the sum
        self._require_finite("loss", counted.loss)
        begun, norm = time.perf_counter(), None
        if self.settings.clip_norm is not None:
            norm = float(nn.utils.clip_grad_norm_(list(self._names), self.settings.clip_norm))
            self._require_finite("norm of the gradient", norm)
        self.optimizer.step()
        seconds["optimizer"] = time.perf_counter() - begun
        self.at.step += 1
        self.at.batch += 1
        self.at.examples += counted.examples
        self.at.tokens += counted.tokens
        record = {
            "step": self.at.step,
            "epoch": self.at.epoch,
            "examples": self.at.examples,
            "tokens": self.at.tokens,
            "loss": counted.loss,
            "parts": counted.parts,
            "learning_rate": self._base_rates[0] * rate,
            "gradient_norm": norm,
            "seconds": seconds,
            "bytes": self._held.told(),
            **_layer_weights(self.model),
        }
        return record, asked

    def _agreed(self, step: Step) -> tuple[dict[str, Tensor], bool]:
        """What each term weighs over the global batch, where it is not told by the losses of a lone batch; and whether a
        rank was asked for an end before this step.
        """
        targets = step.targets()
        if not self.ranks.alone:
            return agree(self.objective, targets, self.ranks, asked=self.asked())
        return (self.objective.weigh(targets) if len(targets) > 1 else {}), False

    def _gradients(self, step: Step, weights: dict[str, Tensor]) -> tuple[Counted, dict[str, float]]:
        """Add up the gradients of the micro-batches; what came of them, and seconds."""
        counted, seconds = Counted(step.examples, step.tokens, 0.0, {}), {"backward": 0.0}
        if not step.examples:
            self.objective.gathered(None, Targets(), self.ranks)
            return counted, seconds
        for batch in step.batches():
            self._timers.clear()
            self._held.see(batch)
            with self._autocast():
                outputs = self.model.outputs(
                    batch.inputs, batch.select, batch.segments, features=self.objective.reads_features
                )
            whole = self.objective.gathered(outputs, batch.targets, self.ranks)
            losses = self.objective.losses(outputs, batch.targets, whole)
            # a lone batch weighs what its losses say; so does one of which an objective sees the whole
            of_all = {name: loss.weight for name, loss in losses.items()} | weights
            mean = self.objective.total(losses, of_all)
            counted.loss += float(mean.detach())
            for name, part in self.objective.parts(losses, of_all).items():
                counted.parts[name] = counted.parts.get(name, 0.0) + part
            begun = time.perf_counter()
            mean.backward()  # type: ignore[no-untyped-call]
            self._timers["backward"] = time.perf_counter() - begun
            for name, took in self._timers.items():
                seconds[name] = seconds.get(name, 0.0) + took
        return counted, seconds

    def _penalise(self, parts: dict[str, float]) -> float:
        """Add the gradients of the model's penalties, once a step however it is split; their sum, each told in `parts`."""
        penalties = self.model.penalties()
        if not penalties:
            return 0.0
        parts |= {name: float(value.detach()) for name, value in penalties.items()}
        total = torch.stack(list(penalties.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    def _autocast(self) -> torch.autocast:
        enabled = self.settings.precision == "bfloat16"
        return torch.autocast(self.model.compute.device.type, torch.bfloat16, enabled=enabled)

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise InvalidInput(
                f"the {what} became {value} at step {self.at.step + 1}; a smaller train.learning_rate or late.learning_rate helps"
            )

    def close_epoch(self, recorder: Recorder, score: float | None, record: dict[str, Any]) -> None:
        """End the epoch with its validation score, None where there is no validation."""
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
        self._checkpoint(recorder)

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
        self._saved = self.at.step


def _layer_weights(model: StageTwo) -> dict[str, Any]:
    """Mean weights of the taps over the rows of the last micro-batch, and their spread, by stream, where the fusion has some."""
    found = model.fusion.layer_weights()
    if not found:
        return {}
    return {
        "layer_weights": {name: weights.mean(0).tolist() for name, weights in found.items()},
        "layer_weight_spreads": {name: weights.std(0, correction=0).tolist() for name, weights in found.items()},
    }


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
