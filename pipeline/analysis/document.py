"""The statistics of a split as files: `analysis.json` with all of it but single channels, and three Parquet tables.

    <folder>/taps.parquet        one row a tap: norms, effective rank, outlier channels
             pairs.parquet       one row a pair of taps: cosine, CKA
             channels.parquet    one row a channel of a tap
             analysis.json       the same but for channels; written last, with the digests of the tables

By default the folder is `sherl/analysis/<split>` of the store: plans and manifests do not name it, so `verify` and `gc` pass it
by, and it travels with a store that is copied. It says which digest it is of.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from ...storage import FileRecord, commit, keys
from ...storage.documents import Document, parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ...storage import Store
    from .moments import Channels

JSON_FILE: Final = "analysis.json"
_SCHEMA: Final = b"sherl_cache_store_digest"


class OutlierChannel(Document):
    """A channel far above the tap's others: its root mean square, that over the median channel's, largest absolute value."""

    channel: int
    rms: float
    ratio: float
    largest: float


class TapAnalysis(Document):
    """One tap: norms of its rows, effective rank (of the sample; None where nothing varies), outlier channels: how many,
    and the largest of them.
    """

    tap: int
    norm_mean: float
    norm_std: float
    norm_min: float
    norm_max: float
    effective_rank: float | None
    outliers: int
    largest_outliers: tuple[OutlierChannel, ...]


class StreamAnalysis(Document):
    """One stream: `rows` of values were read, of which `sampled_rows` count for CKA and effective rank.

    cosine, cka: [taps, taps]; CKA is None where a tap does not vary or the sample is too small.
    """

    width: int
    rows: int
    sampled_rows: int
    taps: tuple[TapAnalysis, ...]
    cosine: tuple[tuple[float, ...], ...]
    cka: tuple[tuple[float | None, ...], ...]


class Analysis(Document):
    """What `analyze` found in one split of a store. files: the tables beside it, by name."""

    format: Literal[1] = 1
    store_digest: str
    split: str
    encoding: str
    outlier_ratio: float
    streams: dict[str, StreamAnalysis]
    files: dict[str, FileRecord] = Field(default_factory=dict)


def analysis_path(split: str) -> str:
    """Where the analysis of a split lies in a store."""
    return f"sherl/analysis/{split}"


def write_analysis(folder: Path, found: Analysis, channels: dict[str, Channels]) -> Analysis:
    """Write the tables and, last, `analysis.json`; each is replaced whole. channels: by stream."""
    tables = {
        "taps.parquet": _columns(_tap_rows(found)),
        "pairs.parquet": _columns(_pair_rows(found)),
        "channels.parquet": _channel_columns(found, channels),
    }
    records = {}
    for name, columns in tables.items():
        data = _parquet(columns, found.store_digest)
        commit.replace(folder / name, data)
        records[name] = FileRecord(bytes=len(data), sha256=keys.digest_bytes(data))
    written = found.model_copy(update={"files": records})
    commit.replace(folder / JSON_FILE, written.to_bytes())
    return written


def read_analysis(store: Store, split: str, folder: Path | None = None) -> Analysis | None:
    """The analysis of a split that lies in a store, or in `folder`; None where there is none. Raises StoreCorrupt."""
    if folder is not None:
        path = folder / JSON_FILE
        return parse(Analysis, path.read_bytes(), str(path)) if path.is_file() else None
    path_in_store = f"{analysis_path(split)}/{JSON_FILE}"
    size = store.files.size(path_in_store)
    data = None if size is None else store.files.read(path_in_store, size)
    return None if data is None else parse(Analysis, data, store.files.place(path_in_store))


def _tap_rows(found: Analysis) -> Iterator[dict[str, Any]]:
    for stream, of_stream in found.streams.items():
        for tap in of_stream.taps:
            yield {"stream": stream, **tap.model_dump(exclude={"largest_outliers"}), "rows": of_stream.rows}


def _pair_rows(found: Analysis) -> Iterator[dict[str, Any]]:
    for stream, of_stream in found.streams.items():
        for one, cosines, similarities in zip(of_stream.taps, of_stream.cosine, of_stream.cka, strict=True):
            for other, cosine, cka in zip(of_stream.taps, cosines, similarities, strict=True):
                yield {"stream": stream, "tap": one.tap, "other": other.tap, "cosine": cosine, "cka": cka}


def _columns(rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    listed = list(rows)
    return {name: [row[name] for row in listed] for name in listed[0]}


def _channel_columns(found: Analysis, channels: dict[str, Channels]) -> dict[str, Any]:
    import numpy as np

    columns: dict[str, list[Any]] = {}
    for stream, of_stream in found.streams.items():
        known, taps = channels[stream], [tap.tap for tap in of_stream.taps]
        parts = {
            "stream": np.full(known.rms.size, stream),
            "tap": np.repeat(taps, of_stream.width),
            "channel": np.tile(np.arange(of_stream.width), len(taps)),
            **{name: getattr(known, name).reshape(-1) for name in ("mean", "std", "rms", "largest", "ratio")},
            "outlier": known.ratio.reshape(-1) > found.outlier_ratio,
        }
        for name, part in parts.items():
            columns.setdefault(name, []).append(part)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _parquet(columns: dict[str, Any], store_digest: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns).replace_schema_metadata({_SCHEMA: store_digest})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
