"""What a notebook shows of a store, a plan or a run: small tables in which every text is text, whatever stands in it."""

from collections.abc import Iterable, Sequence
from html import escape

from .printable import printable

_LONGEST = 200


def facts_html(title: object, facts: Iterable[tuple[str, object]], *tables: str) -> str:
    """A title, a row for each fact that is not None, and tables below."""
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left">{text_html(name)}</th>'
        f'<td style="text-align:left">{text_html(value)}</td></tr>'
        for name, value in facts
        if value is not None
    )
    return f"<div><p><strong>{text_html(title)}</strong></p><table>{rows}</table>{''.join(tables)}</div>"


def table_html(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a row of heads; numbers stand to the right. Nothing where there are no rows."""
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    head = "".join(f'<th scope="col" style="text-align:left">{text_html(name)}</th>' for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def text_html(value: object) -> str:
    """A value as text of a page: escaped, controls written out, cut where it is long."""
    said = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    shown = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
    return escape(printable(shown))


def bytes_text(count: float) -> str:
    """Bytes in powers of 1024: `3.2 GiB`."""
    for name in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if name == "B" else f"{count:.1f} {name}"
        count /= 1024
    return f"{count:.1f} TiB"


def taps_text(taps: Sequence[int]) -> str:
    """`h00 to h12`, or each of them where one between is missing."""
    named = [f"h{tap:02d}" for tap in taps]
    together = len(taps) > 2 and list(taps) == list(range(taps[0], taps[-1] + 1))
    return f"{named[0]} to {named[-1]}" if together else ", ".join(named)


def _cell(value: object) -> str:
    side = "right" if isinstance(value, int | float) and not isinstance(value, bool) else "left"
    shown = f"{value:.4g}" if isinstance(value, float) else value
    return f'<td style="text-align:{side}">{text_html(shown)}</td>'
