"""One unit in memory: every array of the unit, as stored numbers, filled with fill until rows are put."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibration
from .codecs import ChannelCalibration, Misfit, encode, encoding
from .documents import ArrayPlan, Plan, Unit
from .errors import InvalidInput


class UnitBuffer:
    """Takes the rows of one unit, in any order, and encodes them.

    Rows are physical rows of the split's arrays, as the offsets of the example table name them.
    """

    def __init__(
        self,
        plan: Plan,
        unit: Unit,
        calibrations: Mapping[str, Calibration] = MappingProxyType({}),
        paths: Collection[str] | None = None,
    ) -> None:
        """calibrations: by file, those that the plan names. paths: of the arrays that are wanted; None: every one."""
        self.unit = unit
        self.encoding = encoding(plan.encoding)
        self.plans: dict[tuple[str, int], ArrayPlan] = {}
        self.arrays: dict[tuple[str, int], NDArray[Any]] = {}
        self.written: dict[tuple[str, int], NDArray[np.bool_]] = {}
        self.channels: dict[tuple[str, int], ChannelCalibration | None] = {}
        self.misfits: dict[tuple[str, int], Misfit] = {}
        """What did not fit so far, by stream and tap; rows are physical rows."""
        for array in plan.arrays():
            if array.split == unit.split and (paths is None or array.path in paths):
                key = array.stream, array.tap
                rows = unit.groups * array.stream_plan.chunk_rows
                record = array.stream_plan.calibration
                self.plans[key] = array
                self.channels[key] = None if record is None else calibrations[record.file].tap(array.tap)
                self.arrays[key] = np.full((rows, array.stored_width), self.encoding.fill, dtype=self.encoding.dtype)
                self.written[key] = np.zeros(rows, dtype=np.bool_)

    def first_row(self, stream: str, tap: int) -> int:
        """Physical row of the buffer's first row."""
        return self.unit.first_group * self.plans[stream, tap].stream_plan.chunk_rows

    def put(self, stream: str, tap: int, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Encode values [n, width] into physical rows [n] of one tap.

        Raises InvalidInput for a tap that is not planned, rows outside of the unit, or another width. Values
        that the encoding cannot hold are counted here and refused when the unit is written.
        """
        array = self.arrays.get((stream, tap))
        if array is None:
            raise InvalidInput(f"unit {self.unit.name}: tap {stream}/h{tap:02d} is not in the plan, or not wanted")
        width = self.plans[stream, tap].width
        if values.shape != (len(rows), width):
            raise InvalidInput(
                f"unit {self.unit.name}: values of {stream}/h{tap:02d} have shape {values.shape}, "
                f"({len(rows)}, {width}) was planned"
            )
        local = np.asarray(rows, dtype=np.int64) - self.first_row(stream, tap)
        if len(local) and (int(local.min()) < 0 or int(local.max()) >= len(array)):
            raise InvalidInput(f"unit {self.unit.name}: rows of {stream}/h{tap:02d} lie outside of the unit")
        stored, misfit = encode(values, self.encoding, self.channels[stream, tap])
        array[local] = stored
        self.written[stream, tap][local] = True
        if misfit.rows:
            before = self.misfits.get((stream, tap), Misfit(0, 0, 0, ()))
            self.misfits[stream, tap] = Misfit(
                before.nan + misfit.nan,
                before.inf + misfit.inf,
                before.overflow + misfit.overflow,
                before.rows + tuple(int(rows[row]) for row in misfit.rows),
            )
