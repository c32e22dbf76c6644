"""Stored rows -> float tensors on the device: the formulas of storage.decode in torch, equal to the last bit on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..storage.codecs.int8 import UNWRITTEN_SCALE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..storage import ChannelCalibration, Encoding, Store
    from ..storage.rows import Rows
    from .methods.contract import Taps


class TapDecoder:
    """Decodes the taps of one stream, always the same ones in the same order."""

    def __init__(
        self, stored: Encoding, channels: tuple[ChannelCalibration, ...], device: torch.device, *, widen: bool = True
    ) -> None:
        """channels: of each tap, for int8; none else. widen: give 16-bit floats as float32; else as they are, for a model
        that brings them into its own number format together with what else it does to them.
        """
        self.stored, self.device, self.widen = stored, device, widen
        self._each: tuple[TapDecoder, ...] = ()
        if len({tap.width for tap in channels}) > 1:
            self._each = tuple(TapDecoder(stored, (tap,), device, widen=widen) for tap in channels)
            return
        self._runs = [list(tap.runs()) for tap in channels]
        self._outliers = [torch.from_numpy(tap.outliers).to(device) for tap in channels]
        self._count = len(channels[0].ordinary) if channels else 0
        if channels:
            self._shift = (
                torch.from_numpy(np.stack([tap.shift for tap in channels])).to(device).unsqueeze(1)
            )  # [K, 1, D]
            self._scale = torch.from_numpy(np.stack([tap.scale for tap in channels])).to(device).unsqueeze(1)

    @classmethod
    def of(
        cls, store: Store, split: str, stream: str, taps: tuple[int, ...], device: torch.device, *, widen: bool = True
    ) -> TapDecoder:
        """The decoder of those taps of a store."""
        calibration = store.calibration(split, stream)
        channels = () if calibration is None else tuple(calibration.tap(number) for number in taps)
        return cls(store.encoding, channels, device, widen=widen)

    def __call__(self, rows: Rows) -> Taps:
        """Stored rows [K, N, stored width] as float32 [K, N, D] (float64 where they are stored so, 16 bits where they are and
        nobody widens) on the device; a tuple of taps, which are not equally wide, as one.

        The stored bytes travel to the device and are decoded there.
        """
        if self._each:  # rows of different widths may have as many bytes
            return tuple(one._decoded(tap[None])[0] for one, tap in zip(self._each, rows, strict=True))
        if isinstance(rows, tuple):
            return tuple(self._decoded(tap[None])[0] for tap in rows)
        return self._decoded(rows)

    def _decoded(self, rows: NDArray[np.generic]) -> Tensor:
        if self.stored.numbers == "bfloat16":
            taps = torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
        else:
            taps = torch.from_numpy(rows)
        taps = taps.to(self.device, non_blocking=True)
        if self.stored.calibrated:
            return self._dequantised(taps)
        return taps.float() if self.widen and taps.dtype != torch.float64 else taps

    def _dequantised(self, rows: Tensor) -> Tensor:
        tail = rows[..., self._count :].clone(memory_format=torch.contiguous_format)  # at an even address
        unwritten = tail.view(torch.int16)[..., :1] == int(UNWRITTEN_SCALE.view(np.int16))  # [K, N, 1]
        tail = tail.view(torch.float16).float().masked_fill(unwritten, torch.nan)
        values = torch.empty(*rows.shape[:-1], self._shift.shape[-1], device=self.device)
        for tap, runs in enumerate(self._runs):
            for source, target in runs:
                values[tap, :, target] = rows[tap, :, source]
        values *= tail[..., :1]
        for tap, outliers in enumerate(self._outliers):
            values[tap, :, outliers] = tail[tap, :, 1:]
        return values.mul_(self._scale).add_(self._shift)
