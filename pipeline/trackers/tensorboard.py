"""TensorBoard: event files in `<run>/tensorboard`, written anew when a run goes on; `tensorboard --logdir runs` shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .contract import Start, Tracker

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE = "tensorboard"


class TensorBoard(Tracker):
    """A writer of one event file; those of an earlier part of the run go once it holds their points."""

    def __init__(self, start: Start, writer: type[Any]) -> None:
        folder = start.folder / "tensorboard"
        self._earlier = sorted(folder.glob("events.out.tfevents.*"))
        # a server that shows the earlier files hides their points from this step on
        self._writer = writer(str(folder), purge_step=0 if self._earlier else None)
        recipe = "\n".join(f"    {key}: {value}" for key, value in start.settings.items())
        self._writer.add_text("recipe", recipe, 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def caught_up(self) -> None:
        self._writer.flush()
        for path in self._earlier:
            path.unlink(missing_ok=True)

    def close(self, finished: bool) -> None:
        self._writer.close()


def open_tracker(start: Start) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoard(start, SummaryWriter)
