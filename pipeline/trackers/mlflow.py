"""MLflow: at MLFLOW_TRACKING_URI, else in `mlflow.db` beside the run's folder (`mlflow ui --backend-store-uri`)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from .contract import Start, Tracker

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE = "mlflow"
DATABASE = "mlflow.db"
EXPERIMENT = "sherl-cache"
_LONGEST = 500
"""Characters of a parameter's value that every release takes."""


class MLflow(Tracker):
    """One run, told by a client: the calls that look at the machine and the command line are not used."""

    def __init__(self, start: Start, client: Any, metric: Any) -> None:
        self._client, self._metric = client, metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if known is None else known.experiment_id
        self._id, new = start.remembered(
            "mlflow", lambda: str(client.create_run(experiment, run_name=start.name).info.run_id)
        )
        if new:
            for key, value in start.settings.items():
                client.log_param(self._id, key, str(value)[:_LONGEST])
        else:
            client.update_run(self._id, status="RUNNING")

    def holds(self, group: str) -> int:
        names = [name for name in self._client.get_run(self._id).data.metrics if name.startswith(f"{group}/")]
        history = self._client.get_metric_history(self._id, min(names)) if names else []
        return max((point.step for point in history), default=-1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [self._metric(name, value, now, step) for name, value in values.items()])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def open_tracker(start: Start) -> Tracker:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{start.folder.resolve().parent / DATABASE}"
    return MLflow(start, MlflowClient(tracking_uri=place), Metric)
