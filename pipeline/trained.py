"""What training leaves behind, wherever it lies: a run's folder, an exported folder, or an export on the hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..storage.errors import UsageError
from ..storage.nearest import folder_meant
from .run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from .recipe import Recipe


@dataclass(frozen=True)
class Trained:
    """All that the live model is made of, beside the pretrained model itself."""

    where: str
    """For messages: the folder, or the name on the hub."""
    producer: Mapping[str, Any]
    """What the store said: `model`, `task`, `data`, and `late`, the late blocks whose weights it held."""
    recipe: Recipe
    weights: Mapping[str, Tensor]
    """Everything that trained, by stage two's names."""
    result: Mapping[str, Any] | None = None
    """Of the run; None while it is not finished, or where the weights have changed since."""
    evals: Sequence[Mapping[str, Any]] = field(default=())
    """What `eval` said of the run, one record a call."""


def of_run(run: Run) -> Trained:
    """The best weights of a run, finished or not. Raises UsageError where it has none yet, StoreCorrupt."""
    return Trained(
        where=str(run.root),
        producer=run.facts()["producer"],
        recipe=run.recipe(),
        weights=run.best_weights(),
        result=run.result(),
        evals=run.evals(),
    )


def open_trained(name: str | Path, revision: str | None = None) -> Trained:
    """A run's folder, a folder that `export` or `save_pretrained` wrote, or the name of such a folder on the hub.

    revision: branch, tag or commit on the hub. Raises UsageError where there is none of these, ModelError or
    StoreCorrupt where it cannot be read.
    """
    from .adapter import CONFIG_FILE, download, read_adapter

    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "run.json").is_file():
            return of_run(Run.open(folder))
        if (folder / CONFIG_FILE).is_file():
            return read_adapter(folder)
        raise UsageError(
            f"{folder} holds no run: it has no run.json (`sherl-cache train` prints the folder it made), nor {CONFIG_FILE}, "
            "which `sherl-cache export` writes"
        )
    text = str(name)
    if folder.exists() or text.startswith((".", "/", "~")) or text.count("/") != 1:
        what = "is a file" if folder.exists() else f"is not there{folder_meant(folder)}"
        raise UsageError(
            f"{text} {what}; give the folder of a run or of an export, or a name on the hub as in owner/name"
        )
    return read_adapter(download(text, revision), where=text)
