"""A bar chart as SVG, written by hand: no library, small, readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from .measure import NAMES, Row

WIDTH, LABEL, BAR, GAP, TOP = 900, 300, 11, 10, 64
COLOURS = {"warm": "#ffb000", "alone": "#2da44e", "ours": "#3776ab", "go": "#00add8"}
_LINES = ["#ffb000", "#8c959f", "#3776ab", "#00add8", "#2da44e", "#cf222e"]
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


def lines(
    series: dict[str, list[tuple[float, float]]], title: str, x_title: str, y_title: str
) -> str:
    """A line for each name through its points (x, y)."""
    width, height, left, top, right, bottom = 720, 380, 60, 56, 170, 44
    points = [point for each in series.values() for point in each]
    most_x, most_y = (max((point[n] for point in points), default=1.0) or 1.0 for n in (0, 1))
    wide, high = width - left - right, height - top - bottom

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / most_x * wide, top + (1 - y / most_y) * high

    parts = [
        f'<text class="title" x="12" y="22">{escape(title)}</text>',
        f'<text class="small" x="12" y="42">{escape(y_title)}</text>',
        f'<text class="small" x="{left + wide / 2}" y="{height - 8}">{escape(x_title)}</text>',
    ]
    for part in range(5):
        value = most_y * part / 4
        y = place(0, value)[1]
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + wide}" y2="{y:.1f}"/>')
        text = f'<text class="small" x="{left - 6}" y="{y + 3:.1f}" text-anchor="end">'
        parts.append(f"{text}{value:.0f}</text>")
    for x in sorted({point[0] for point in points}):
        at = place(x, 0)
        text = f'<text class="small" x="{at[0]:.1f}" y="{at[1] + 14:.1f}" text-anchor="middle">'
        parts.append(f"{text}{x:.0f}</text>")
    for (name, each), colour in zip(series.items(), _LINES * len(series), strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in each))
        parts.append(
            f'<polyline points="{path}" fill="none" style="stroke:{colour};stroke-width:2"/>'
        )
        if each:
            x, y = place(*each[-1])
            parts.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}"><style>{STYLE}</style>\n'
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
