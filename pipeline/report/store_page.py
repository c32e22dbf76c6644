"""The page of a store: what it holds, what its taps take, and what `analyze` found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...storage.place import redacted
from ..progress import size
from .charts import Series, heat_map, line_chart, number, stacked_bars
from .page import Figure, Page, Section, Table

if TYPE_CHECKING:
    from ...storage import Store
    from ..analysis.document import Analysis, StreamAnalysis


def store_page(store: Store, analysis: Analysis | None) -> Page:
    """Everything that is known of a store."""
    splits = store.plan.splits
    examples = sum(split.examples for split in splits.values())
    tokens = sum(stream.tokens for split in splits.values() for stream in split.streams.values())
    sections = [_contents(store), bytes_section(store)]
    if analysis is None:
        note = f"Not looked at yet: sherl-cache analyze --store {shown_place(str(store.root))}"
        sections.append(Section("analysis", "Layers", [note]))
    else:
        sections += analysis_sections(analysis, store.digest)
    return Page(
        title=f"{shown_place(str(store.root))}: store",
        question=f"What does {shown_place(str(store.root))} hold?",
        answer=f"{examples:,} examples, {tokens:,} tokens, {size(store.bytes)} as {store.encoding.name}",
        sections=sections,
    )


def _contents(store: Store) -> Section:
    rows = [
        [
            split,
            name,
            f"{plan.examples:,}",
            f"{stream.tokens:,}",
            str(stream.width),
            ", ".join(f"h{t:02d}" for t in stream.taps),
        ]
        for split, plan in sorted(store.plan.splits.items())
        for name, stream in sorted(plan.streams.items())
    ]
    facts = [
        ["digest", store.digest],
        ["fingerprint", store.fingerprint],
        *([k, v] for k, v in sorted(store.plan.environment.items())),
    ]
    for key in ("model", "data"):
        named = store.producer.get(key)
        if isinstance(named, dict) and "name" in named:
            facts.insert(0, [key, shown_place(str(named["name"]))])
    tables = [
        Table(["split", "stream", "examples", "tokens", "width", "taps"], rows),
        Table(["what", "value"], facts, "made from, and by"),
    ]
    return Section("contents", "Contents", tables=tables)


def bytes_section(store: Store) -> Section:
    """Bytes of each tap, over its units."""
    stored = store.array_bytes
    sizes: dict[str, dict[str, float]] = {}
    for array in store.plan.arrays():
        sizes.setdefault(f"{array.stream} h{array.tap:02d}", {})[array.split] = stored[array.path]
    chart = stacked_bars([(name, {k: v / 2**20 for k, v in split.items()}) for name, split in sizes.items()], "MiB")
    splits = sorted(store.plan.splits)
    rows = [[name, *(size(found.get(split, 0)) for split in splits)] for name, found in sizes.items()]
    return Section("bytes", "Bytes of each tap", figures=[Figure(chart, "MiB on disk", Table(["tap", *splits], rows))])


def analysis_sections(analysis: Analysis, digest: str) -> list[Section]:
    """What `analyze` found, stream by stream; said where the store with that digest is no longer what it looked at."""
    old = [] if analysis.store_digest == digest else ["The store has changed since: run sherl-cache analyze again."]
    return [_stream_section(name, stream, analysis, old) for name, stream in analysis.streams.items()]


def _stream_section(name: str, stream: StreamAnalysis, analysis: Analysis, notes: list[str]) -> Section:
    labels = [f"h{tap.tap:02d}" for tap in stream.taps]
    maps = {"CKA": stream.cka, "cosine": stream.cosine}
    texts = {
        "CKA": f"Linear CKA between taps, of {stream.sampled_rows:,} rows",
        "cosine": "Mean cosine between taps of the same row",
    }
    figures = []
    for key, values in maps.items():
        rows = [
            [label, *("-" if v is None else f"{v:.3f}" for v in row)] for label, row in zip(labels, values, strict=True)
        ]
        figures.append(Figure(heat_map(labels, values, texts[key]), texts[key], Table(["", *labels], rows, key)))
    norms = [Series("mean norm", [(tap.tap, tap.norm_mean) for tap in stream.taps])]
    ranks = [
        Series(
            "effective rank", [(tap.tap, tap.effective_rank) for tap in stream.taps if tap.effective_rank is not None]
        )
    ]
    table = Table(
        ["tap", "norm", "spread", "effective rank", f"channels above {number(analysis.outlier_ratio)}x the median"],
        [
            [
                label,
                number(tap.norm_mean),
                number(tap.norm_std),
                "-" if tap.effective_rank is None else number(tap.effective_rank),
                str(tap.outliers),
            ]
            for label, tap in zip(labels, stream.taps, strict=True)
        ],
    )
    figures.append(Figure(line_chart(norms, "tap", "mean norm"), "Mean norm of the rows of each tap"))
    if ranks[0].points:
        figures.append(
            Figure(line_chart(ranks, "tap", "effective rank"), f"Effective rank of each tap, of {stream.width} at most")
        )
    note = f"{analysis.split}, {stream.rows:,} rows of {stream.width}, of the store with digest {analysis.store_digest[:16]}."
    return Section(f"redundancy-{name}", f"Redundancy of {name}", [note, *notes], figures, [table])


def shown_place(name: str) -> str:
    """A place or name as a page may show it: nothing that may be a secret."""
    return redacted(name) if "://" in name else name
