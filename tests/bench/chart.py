"""A bar chart as SVG, written by hand: no library, small, readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from .measure import NAMES, Row

WIDTH, LABEL, BAR, GAP, TOP = 900, 300, 11, 10, 64
COLOURS = {"warm": "#ffb000", "alone": "#2da44e", "ours": "#3776ab", "go": "#00add8"}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.small { font-size: 10px; fill: #6e7781 }
line { stroke: #8c959f; stroke-width: .5 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .small { fill: #9198a1 } }
"""


def draw(rows: Sequence[Row], title: str, subtitle: str) -> str:
    """A bar for each implementation, medians in ms, with the ratios to Go at the end."""
    rows = [row for row in rows if row.times]
    largest = max((time.median for row in rows for time in row.times.values()), default=1.0)
    scale = (WIDTH - LABEL - 130) / largest
    parts = [
        f'<text class="title" x="12" y="22">{escape(title)}</text>',
        f'<text class="small" x="12" y="38">{escape(subtitle)}</text>',
        *_legend(),
    ]
    y = TOP
    for row in rows:
        parts += _row(row, y, scale)
        y += len(row.times) * BAR + GAP
    parts.append(f'<line x1="{LABEL}" y1="{TOP - 4}" x2="{LABEL}" y2="{y - GAP + 4}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" '
        f'height="{y}" role="img" aria-label="{escape(title)}"><style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _legend() -> list[str]:
    parts = []
    for number, (key, name) in enumerate(NAMES.items()):
        x = LABEL + number * 145
        parts.append(f'<rect x="{x}" y="46" width="10" height="10" fill="{COLOURS[key]}"/>')
        parts.append(f'<text x="{x + 15}" y="55">{name}</text>')
    return parts


def _row(row: Row, y: float, scale: float) -> list[str]:
    middle = y + len(row.times) * BAR / 2 + 4
    label = escape(f"{row.case} {row.verb}")
    parts = [f'<text x="{LABEL - 8}" y="{middle}" text-anchor="end">{label}</text>']
    widest = 0.0
    for number, (key, time) in enumerate(row.times.items()):
        width = max(time.median * scale, 1)
        top = y + number * BAR
        widest = max(widest, width)
        parts.append(
            f'<rect x="{LABEL}" y="{top}" width="{width:.1f}" height="{BAR - 1}" '
            f'fill="{COLOURS.get(key, "#888")}"/>'
        )
        parts.append(
            f'<text class="small" x="{LABEL + width + 4:.1f}" y="{top + BAR - 2}">'
            f"{time.median:.1f} ms</text>"
        )
    ratios = [f"× {ratio:.2f}" for name in row.times if (ratio := row.ratio(name)) is not None]
    if ratios[:-1]:
        x = LABEL + widest + 62
        parts.append(f'<text x="{x:.1f}" y="{middle}">{" / ".join(ratios[:-1])}</text>')
    return parts
