"""What a tracker is: it is told of points, and says which it holds already."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...storage import commit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Scalar = str | int | float | bool | None
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Start:
    """A run as a tracker sees it: its folder, and its recipe as dotted keys; no word of the environment."""

    folder: Path
    settings: Mapping[str, Scalar]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def remembered(self, tracker: str, make: Callable[[], str]) -> tuple[str, bool]:
        """The run's name at a tracker, made once and kept in `<run>/<tracker>.json`; and whether it is new."""
        path = self.folder / f"{tracker}.json"
        if path.is_file():
            return str(json.loads(path.read_text("utf-8"))["id"]), False
        found = make()
        commit.replace(path, json.dumps({"id": found}).encode() + b"\n")
        return found, True


class Tracker:
    """One run at one tracker. Points come in order of their steps, at first those of metrics.jsonl."""

    def holds(self, group: str) -> int:
        """The newest step of `train` or `validation` that is there already and is not told again; -1: none."""
        return -1

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Points of one step, named `train/loss`, `validation/accuracy`, ..."""
        raise NotImplementedError

    def caught_up(self) -> None:
        """Every point of metrics.jsonl has been told."""

    def close(self, finished: bool) -> None:
        """Nothing more comes; `finished`: the run has ended, and will not go on."""


def points(record: Mapping[str, Any]) -> tuple[str, int, dict[str, float]]:
    """Group, step and named points of one record of metrics.jsonl: every finite number in it, by the way to it."""
    if VALIDATION in record:
        found = dict(record[VALIDATION])
        name = found.pop("metric", "value")
        if "value" in found:
            found[str(name)] = found.pop("value")
        return VALIDATION, int(record["step"]), dict(_numbers(found, VALIDATION))
    rest = {key: value for key, value in record.items() if key != "step"}
    return TRAIN, int(record["step"]), dict(_numbers(rest, TRAIN))


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Settings by dotted keys; a list as JSON."""
    found: dict[str, Scalar] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, Scalar) else json.dumps(value, default=str)
    return found


def _numbers(value: Any, name: str) -> list[tuple[str, float]]:
    if isinstance(value, Mapping):
        return [point for key, item in value.items() for point in _numbers(item, f"{name}/{key}")]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [point for place, item in enumerate(value) for point in _numbers(item, f"{name}/{place:02d}")]
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return [(name, float(value))] if numeric else []
