"""Weights & Biases: offline, in `<run>/wandb`, unless WANDB_MODE says online; `wandb sync` sends what was written offline.

Nothing of the machine is told: no command line, no git state, no code, no console, no packages, no statistics of
the system.
"""

from __future__ import annotations

import os
import shutil
import uuid
from typing import TYPE_CHECKING, Any

from .contract import Start, Tracker

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE = "wandb"
PROJECT = "sherl-cache"


class WeightsAndBiases(Tracker):
    """One run under one id. What was written offline before is written anew, so that it is whole, and then goes; a run
    on the server goes on behind its newest step.
    """

    def __init__(self, start: Start, wandb: Any) -> None:
        identity, _ = start.remembered("wandb", lambda: uuid.uuid4().hex[:12])
        online = os.environ.get("WANDB_MODE", "offline") == "online"
        folder = start.folder / "wandb"
        self._earlier = sorted(folder.glob("offline-run-*"))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identity,
            name=start.name,
            dir=str(start.folder),
            mode="online" if online else "offline",
            resume="allow" if online else None,
            reinit="create_new",  # the runs of a sweep are told side by side
            config=dict(start.settings),
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                silent=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._held = self._run.step - 1 if online else -1

    def holds(self, group: str) -> int:
        return self._held

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def caught_up(self) -> None:
        for path in self._earlier:
            shutil.rmtree(path, ignore_errors=True)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def open_tracker(start: Start) -> Tracker:
    import wandb

    return WeightsAndBiases(start, wandb)
