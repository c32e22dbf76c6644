"""The analysis of a split, stream after stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..progress import progress
from .analyze import StreamArrays
from .document import Analysis, OutlierChannel, StreamAnalysis, TapAnalysis
from .moments import OUTLIER_RATIO, Channels, channels_of, cosines_of, norms_of
from .similarity import LEAST_ROWS, centre, effective_rank, linear_cka
from .work import plan_work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...storage import Store
    from .moments import Moments, TapNorms

_SHOWN_OUTLIERS: Final = 16


def analyze_split(
    store: Store, split: str, memory: int, threads: int, rows: int | None
) -> tuple[Analysis, dict[str, Channels]]:
    """Statistics of every stream of a split, and its channels by stream, within `memory` bytes beside what the process
    holds. rows: see `plan_work`. Raises BudgetTooSmall, DataError, StoreCorrupt.
    """
    plans = store.split(split).streams
    works = {stream: plan_work(store, split, stream, memory, threads, rows) for stream in plans}
    streams, channels = {}, {}
    with progress("analyze", sum(len(work.groups) for work in works.values()), "row groups") as bar:
        for stream, work in works.items():
            moments, sample = StreamArrays(store, split, stream, work).compute(bar.advance)
            channels[stream] = channels_of(moments)
            streams[stream] = _stream(plans[stream].taps, moments, channels[stream], sample)
    found = Analysis(
        store_digest=store.digest,
        split=split,
        encoding=store.encoding.name,
        outlier_ratio=OUTLIER_RATIO,
        streams=streams,
    )
    return found, channels


def _stream(taps: tuple[int, ...], moments: Moments, channels: Channels, sample: NDArray[Any]) -> StreamAnalysis:
    centre(sample)
    enough = sample.shape[1] >= LEAST_ROWS
    cka = linear_cka(sample) if enough else np.full((len(taps), len(taps)), np.nan)
    ranks = [effective_rank(rows) if enough else float("nan") for rows in sample]
    norms = norms_of(moments)
    return StreamAnalysis(
        width=sample.shape[2],
        rows=int(moments.rows[0]),
        sampled_rows=sample.shape[1],
        taps=tuple(_tap(index, tap, norms, channels, ranks[index]) for index, tap in enumerate(taps)),
        cosine=tuple(map(tuple, cosines_of(moments).tolist())),
        cka=tuple(tuple(_known(value) for value in row) for row in cka.tolist()),
    )


def _tap(index: int, tap: int, norms: TapNorms, channels: Channels, rank: float) -> TapAnalysis:
    ratio = channels.ratio[index]
    largest = np.argsort(-ratio, kind="stable")[:_SHOWN_OUTLIERS].tolist()
    return TapAnalysis(
        tap=tap,
        norm_mean=float(norms.mean[index]),
        norm_std=float(norms.std[index]),
        norm_min=float(norms.smallest[index]),
        norm_max=float(norms.largest[index]),
        effective_rank=_known(rank),
        outliers=int((ratio > OUTLIER_RATIO).sum()),
        largest_outliers=tuple(
            OutlierChannel(
                channel=channel,
                rms=float(channels.rms[index, channel]),
                ratio=float(ratio[channel]),
                largest=float(channels.largest[index, channel]),
            )
            for channel in largest
            if ratio[channel] > OUTLIER_RATIO
        ),
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
