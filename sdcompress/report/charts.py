"""Charts as SVG text. The page's style sheet colours them, so that they follow its light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from sdcompress.report.statistics import median, quantiles

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 14, 44
CHARACTER = 6.1  # pixels, the width of an average character at the charts' font size
LINE = 13
LABELS = 118  # width of the names beside strips and bars
MOST_DOTS = 400  # of one strip


@dataclass(frozen=True)
class Axis:
    """What an axis shows and how its values are written."""

    label: str
    text: Callable[[float], str]


@dataclass(frozen=True)
class Mark:
    """A point of a scatter chart. `kind` is a class of the style sheet; an infinite `y` is drawn at the upper edge."""

    x: float
    y: float
    label: str
    kind: str = "compressed"
    interval: tuple[float, float] | None = None
    detail: str = ""
    labelled: bool = True


def scatter(
    marks: Sequence[Mark],
    x: Axis,
    y: Axis,
    *,
    title: str,
    lines: Sequence[tuple[float, str]] = (),
    front: bool = False,
) -> str:
    """Return points over two axes as SVG.

    Args:
        lines: values and names of horizontal lines to compare with.
        front: whether a line joins the marks of the kind "front".
    """
    heights = [value for mark in marks for value in (mark.y, *(mark.interval or ())) if math.isfinite(value)]
    y_ticks = ticks([*heights, *(value for value, _ in lines)])
    x_ticks = ticks([0, *(mark.x for mark in marks)])  # from zero, so that lengths compare as bytes and times do
    above = 16 if any(math.isinf(mark.y) for mark in marks) else 0  # room for the infinite

    def across(value: float) -> float:
        return _scale(value, x_ticks, LEFT, WIDTH - RIGHT)

    def down(value: float) -> float:
        return TOP + 4 if math.isinf(value) else _scale(value, y_ticks, HEIGHT - BOTTOM, TOP + above)

    parts = [*_grid(x_ticks, y_ticks, x, y, across, down)]
    for value, label in lines:
        parts.append(_tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=down(value), y2=down(value), class_="floor"))
        parts.append(_text(WIDTH - RIGHT, down(value) - 4, label, "end", "note"))
    if front:
        places = sorted((across(mark.x), down(mark.y)) for mark in marks if mark.kind == "front")
        parts.append(_tag("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places), class_="joined"))
    for mark in marks:
        parts.append(_point(mark, across(mark.x), down(mark.y), down))
    parts += _place_labels([(mark, across(mark.x), down(mark.y)) for mark in marks])
    return _svg(parts, HEIGHT, title)


def strips(groups: Sequence[tuple[str, str, Sequence[float]]], text: Callable[[float], str], *, title: str) -> str:
    """Return each group's values as dots under a box: median, middle half, and whiskers from 5 to 95 %.

    A group is its name, its kind (a class of the style sheet) and its values.
    """
    steps = ticks([value for _, _, values in groups for value in values])
    row = 56
    height = TOP + row * len(groups) + 30

    def across(value: float) -> float:
        return _scale(value, steps, LABELS, WIDTH - RIGHT - 8)

    parts = [*_vertical_lines(steps, text, across, height)]
    for place, (name, kind, values) in enumerate(groups):
        top = TOP + row * place
        parts.append(_text(LABELS - 10, top + 24, name, "end"))
        parts.append(_text(LABELS - 10, top + 38, f"median {_median(values, text)}", "end", "note"))
        parts.append(_box(values, kind, across, top + 16))
        shown = values if len(values) <= MOST_DOTS else [*quantiles_of(values, MOST_DOTS)]
        for number, value in enumerate(shown):
            jitter = (number * 0.618_034) % 1  # the golden ratio spreads neighbours evenly, the same way each time
            parts.append(_tag("circle", cx=across(value), cy=top + 32 + 14 * jitter, r=2.2, class_=f"dot {kind}"))
    return _svg(parts, height, title)


def bars(rows: Sequence[tuple[str, float | None, float | None]], text: Callable[[float], str], *, title: str) -> str:
    """Return two bars for each row of name, original and compressed; None is written as not measured."""
    largest = max((value for _, *both in rows for value in both if value is not None), default=0) or 1
    row = 44
    parts = []
    for place, (name, *both) in enumerate(rows):
        top = TOP + row * place
        parts.append(_text(LABELS - 10, top + 19, name, "end"))
        for line, (kind, value) in enumerate(zip(("original", "compressed"), both, strict=True)):
            length = 0 if value is None else (WIDTH - LABELS - 76) * value / largest
            y = top + 2 + 16 * line
            parts.append(_tag("rect", x=LABELS, y=y, width=max(length, 1), height=12, rx=2, class_=f"bar {kind}"))
            written = "not measured" if value is None else text(value)
            parts.append(_text(LABELS + length + 6, y + 10, written, "start", "note"))
    return _svg(parts, TOP + row * len(rows), title)


def curves(lines: Sequence[tuple[str, Sequence[float]]], x: Axis, y: Axis, *, title: str, first: int = 0) -> str:
    """Return one line for each named series over its index, which counts from `first`."""
    longest = max(len(values) for _, values in lines)
    x_ticks, y_ticks = ticks([first, first + longest - 1]), ticks([value for _, values in lines for value in values])

    def across(value: float) -> float:
        return _scale(value, x_ticks, LEFT, WIDTH - RIGHT)

    def down(value: float) -> float:
        return _scale(value, y_ticks, HEIGHT - BOTTOM, TOP)

    parts = [*_grid(x_ticks, y_ticks, x, y, across, down)]
    for place, (name, values) in enumerate(lines):
        points = " ".join(f"{across(i):.1f},{down(value):.1f}" for i, value in enumerate(values, first))
        parts.append(_tag("polyline", points=points, class_=f"curve series{place % 4}"))
        parts.append(_text(across(first + len(values) - 1), down(values[-1]) - 5, name, "end", "note"))
    return _svg(parts, HEIGHT, title)


def ticks(values: Sequence[float], count: int = 5) -> list[float]:
    """Return about `count` round numbers that span the values (Heckbert 1990, "Nice numbers for graph labels")."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low < 1e-9 * max(abs(high), 1e-6):
        pad = abs(high) * 0.05 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / (count - 1)
    size = 10 ** math.floor(math.log10(rough))
    step = size * next(nice for nice in (1, 2, 2.5, 5, 10) if nice * size >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * place for place in range(first, last + 1)]


def quantiles_of(values: Sequence[float], count: int) -> Iterator[float]:
    """Yield `count` of the values, spread evenly over their order."""
    ordered = sorted(values)
    return (ordered[place * (len(ordered) - 1) // (count - 1)] for place in range(count))


def _scale(value: float, steps: Sequence[float], start: float, end: float) -> float:
    return start + (end - start) * (value - steps[0]) / (steps[-1] - steps[0])


def _median(values: Sequence[float], text: Callable[[float], str]) -> str:
    middle = median(values)
    return "not measured" if middle is None else text(middle)


def _box(values: Sequence[float], kind: str, across: Callable[[float], float], y: float) -> str:
    ends = quantiles(values)
    if ends is None:
        return ""
    ordered = sorted(values)
    lower, upper = (across(ordered[round(share * (len(ordered) - 1))]) for share in (0.25, 0.75))
    low, middle, high = (across(ends[name]) for name in ("p05", "p50", "p95"))
    return (
        _tag("line", x1=low, x2=high, y1=y, y2=y, class_=f"whisker {kind}")
        + _tag("rect", x=lower, y=y - 6, width=max(upper - lower, 1), height=12, rx=2, class_=f"box {kind}")
        + _tag("line", x1=middle, x2=middle, y1=y - 8, y2=y + 8, class_=f"median {kind}")
    )


def _grid(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x: Axis,
    y: Axis,
    across: Callable[[float], float],
    down: Callable[[float], float],
) -> Iterator[str]:
    for value in y_ticks:
        yield _tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=down(value), y2=down(value), class_="grid")
        yield _text(LEFT - 7, down(value) + 4, y.text(value), "end", "tick")
    for value in x_ticks:
        yield _tag("line", x1=across(value), x2=across(value), y1=TOP, y2=HEIGHT - BOTTOM, class_="grid")
        yield _text(across(value), HEIGHT - BOTTOM + 16, x.text(value) if value else "0", "middle", "tick")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x.label, "middle", "axis")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield _tag(
        "text", y.label, x=13, y=middle, text_anchor="middle", transform=f"rotate(-90 13 {middle})", class_="axis"
    )


def _vertical_lines(
    steps: Sequence[float], text: Callable[[float], str], across: Callable[[float], float], height: float
) -> Iterator[str]:
    for value in steps:
        yield _tag("line", x1=across(value), x2=across(value), y1=TOP, y2=height - 26, class_="grid")
        yield _text(across(value), height - 10, text(value), "middle", "tick")


def _point(mark: Mark, across: float, down: float, to_y: Callable[[float], float]) -> str:
    shown = ""
    if mark.interval:
        low, high = (to_y(value) for value in mark.interval)
        shown = _tag("line", x1=across, x2=across, y1=low, y2=high, class_=f"interval {mark.kind}")
    title = f"<title>{escape(mark.label)}{escape(': ' + mark.detail if mark.detail else '')}</title>"
    radius = 3.5 if mark.kind == "dominated" else 5
    return shown + f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{radius}" class="point {mark.kind}">{title}</circle>'


def _place_labels(placed: Sequence[tuple[Mark, float, float]]) -> Iterator[str]:
    """Yield each label at the first free place beside, above or below its point; none where all are taken."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for _, x, y in placed]
    for mark, x, y in placed:
        if not mark.labelled:
            continue
        label = mark.label if len(mark.label) <= 24 else mark.label[:23] + "…"
        width = CHARACTER * len(label)
        for anchor, at, baseline in (
            ("start", x + 8, y + 4),
            ("end", x - 8, y + 4),
            ("middle", x, y - 9),
            ("middle", x, y + 18),
            ("start", x + 6, y - 9),
            ("end", x - 6, y - 9),
        ):
            left = at - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
            box = (left, baseline - LINE + 3, left + width, baseline + 3)
            inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                yield _text(at, baseline, label, anchor, f"label {mark.kind}")
                break


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _text(x: float, y: float, text: str, anchor: str, kind: str = "name") -> str:
    return _tag("text", text, x=x, y=y, text_anchor=anchor, class_=kind)


def _tag(name: str, content: str = "", **attributes: str | float) -> str:
    """Return an element, its text and attributes escaped; `class_` is class, and `_` inside a name is `-`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{value:.1f}"'
        if isinstance(value, float)
        else f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{escape(content)}</{name}>"


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
