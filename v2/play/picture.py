"""The picture that play shows: game panes, keys, figures, divergence curve, help.

Contract: a `View` (plain values and uint8 frames) becomes a picture; frames are scaled by whole
numbers with square pixels, as gymnasium shows them, so every model pixel stays sharp. The same
drawing serves the window, videos and screenshots. Knows no torch, no games and no events.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pygame

from v2.play.draw import COLORS, Draw

FRAME_HEIGHT, FRAME_WIDTH = 84, 64
MAX_SCALE = 16
MARGIN, GAP, HEADER, LABEL, FOOTER, HINT = 24, 20, 54, 34, 168, 34  # at unit 1
MIN_WIDTH = 690  # what header and footer need at unit 1
WIDEST = 1.2  # how much wider than its frames need a picture may be, for the chart
CURVE_STEPS = 300  # the last 20 seconds


@dataclass(frozen=True)
class Pane:
    """One frame under its name."""

    title: str
    frame: np.ndarray | None  # uint8 (84, 64, 3)
    color: str = "text"
    detail: str = ""


@dataclass(frozen=True)
class Curve:
    """One line of the chart; `axis` is % (left) or px (right)."""

    label: str
    values: Sequence[float]
    color: str
    axis: str


@dataclass(frozen=True)
class View:
    """All that a picture shows."""

    title: str
    panes: tuple[Pane, ...]
    subtitle: str = ""
    columns: int = 2
    badges: tuple[tuple[str, str], ...] = ()  # (text, color)
    inputs: frozenset[str] = frozenset()
    action: str = ""
    has_footer: bool = True  # keys, figures and chart
    stats: tuple[tuple[str, str], ...] = ()
    chart_title: str = ""
    curves: tuple[Curve, ...] = ()
    notice: str = ""
    hint: str = ""
    help: tuple[tuple[str, str], ...] = field(default=())

    @property
    def num_rows(self) -> int:
        return math.ceil(len(self.panes) / self.columns)


def picture_size(columns: int, rows: int, scale: int, has_footer: bool = True) -> tuple[int, int]:
    """Return the width and height of a picture whose frames are scaled by `scale`."""
    unit = _unit(columns, scale)
    width = columns * FRAME_WIDTH * scale + ((columns - 1) * _gap(columns) + 2 * MARGIN) * unit
    others = HEADER + FOOTER * has_footer + HINT
    height = rows * (FRAME_HEIGHT * scale + LABEL * unit) + others * unit
    return math.ceil(max(width, MIN_WIDTH * unit)), math.ceil(height)


def largest_scale(columns: int, rows: int, size: tuple[int, int], has_footer: bool = True) -> int:
    """Return the largest whole scale that fits a window; 1 where none does."""
    for scale in range(MAX_SCALE, 1, -1):
        width, height = picture_size(columns, rows, scale, has_footer)
        if width <= size[0] and height <= size[1]:
            return scale
    return 1


def _gap(columns: int) -> int:
    return GAP if columns <= 2 else GAP // 3 if columns <= 4 else GAP // 5


def _unit(columns: int, scale: int) -> float:
    """Return the size of text and margins: 1 for two panes at scale 6."""
    return min(2.0, max(0.85, columns * scale / 12))


def render(view: View, scale: int) -> np.ndarray:
    """Draw a view of its natural size; returns uint8 (H, W, 3)."""
    surface = pygame.Surface(picture_size(view.columns, view.num_rows, scale, view.has_footer))
    draw_view(surface, view)
    return np.ascontiguousarray(pygame.surfarray.array3d(surface).swapaxes(0, 1))


def draw_view(surface: pygame.Surface, view: View) -> None:
    """Draw a view in the middle of a surface, as large as whole pixels allow."""
    shape = (view.columns, view.num_rows)
    scale = largest_scale(*shape, surface.get_size(), view.has_footer)
    unit = _unit(view.columns, scale)
    width, height = picture_size(*shape, scale, view.has_footer)
    width = min(surface.get_width(), round(width * WIDEST))
    left, top = (surface.get_width() - width) // 2, (surface.get_height() - height) // 2
    surface.fill(COLORS["background"])
    draw = Draw(surface, unit)
    margin = round(MARGIN * unit)
    inner = pygame.Rect(left + margin, top, width - 2 * margin, height)
    _draw_header(draw, inner, view)
    _draw_panes(draw, inner, view, scale)
    bottom = top + height
    if view.has_footer:
        y = bottom - draw.px(FOOTER + HINT - 14)
        _draw_footer(draw, pygame.Rect(inner.x, y, inner.w, draw.px(FOOTER - 14)), view)
    _draw_hint(draw, pygame.Rect(inner.x, bottom - draw.px(HINT), inner.w, draw.px(HINT)), view)
    if view.help:
        _draw_help(draw, inner, view.help)


def _draw_header(draw: Draw, area: pygame.Rect, view: View) -> None:
    middle = area.y + draw.px(HEADER * 0.52)
    title = draw.text(view.title, (area.x, middle), 28)
    right = area.right
    for text, color in reversed(view.badges):
        width = draw.width(text, 14) + draw.px(20)
        box = pygame.Rect(right - width, middle - draw.px(12), width, draw.px(24))
        draw.box(box, color, 12, max(1, draw.px(1.5)))
        draw.text(text, box.center, 14, color, "middle")
        right = box.x - draw.px(8)
    start = title.right + draw.px(14)
    subtitle = draw.fitted(view.subtitle, right - start - draw.px(6), 16)
    draw.text(subtitle, (start, middle + draw.px(3)), 16, "dim")


def _draw_panes(draw: Draw, area: pygame.Rect, view: View, scale: int) -> None:
    frame_size = (FRAME_WIDTH * scale, FRAME_HEIGHT * scale)
    gap = draw.px(_gap(view.columns))
    row_width = view.columns * frame_size[0] + (view.columns - 1) * gap
    for index, pane in enumerate(view.panes):
        row, column = divmod(index, view.columns)
        x = area.x + (area.w - row_width) // 2 + column * (frame_size[0] + gap)
        y = area.y + draw.px(HEADER) + row * (frame_size[1] + draw.px(LABEL))
        middle = y + draw.px(LABEL * 0.45)
        dot = draw.px(5)
        draw.dot((x + dot, middle), 5, pane.color)
        title = draw.fitted(pane.title, frame_size[0] - 3 * dot, 19)
        name = draw.text(title, (x + 3 * dot, middle), 19)
        space = x + frame_size[0] - name.right - draw.px(10)
        end = x + frame_size[0] - draw.px(4)
        draw.text(draw.fitted(pane.detail, space), (end, middle), 16, "dim", "right")
        rect = pygame.Rect((x, y + draw.px(LABEL)), frame_size)
        draw.box(rect.inflate(4, 4), "line", 0, 2)
        if pane.frame is None:
            draw.surface.fill(COLORS["panel"], rect)
            continue
        image = pygame.surfarray.make_surface(pane.frame.swapaxes(0, 1))
        draw.surface.blit(pygame.transform.scale(image, frame_size), rect)


def _draw_footer(draw: Draw, area: pygame.Rect, view: View) -> None:
    keys = pygame.Rect(area.x, area.y, draw.px(150), area.h)
    stats = pygame.Rect(keys.right + draw.px(12), area.y, draw.px(196), area.h)
    chart = pygame.Rect(stats.right + draw.px(12), area.y, 0, area.h)
    chart.w = area.right - chart.x
    _draw_keys(draw, keys, view)
    _draw_stats(draw, stats, view.stats)
    if view.chart_title:
        _draw_chart(draw, chart, view)


def _draw_keys(draw: Draw, area: pygame.Rect, view: View) -> None:
    draw.box(area)
    side, gap = draw.px(30), draw.px(4)
    middle, top = area.centerx, area.y + draw.px(14)
    places = {
        "UP": (middle - side // 2, top), "DOWN": (middle - side // 2, top + side + gap),
        "LEFT": (middle - side // 2 - side - gap, top + side + gap),
        "RIGHT": (middle - side // 2 + side + gap, top + side + gap),
    }  # fmt: skip
    turns = {"UP": 0, "RIGHT": 1, "DOWN": 2, "LEFT": 3}
    for name, place in places.items():
        rect, is_down = pygame.Rect(place, (side, side)), name in view.inputs
        draw.box(rect, "text" if is_down else "line", 6, 0 if is_down else max(1, draw.px(1.5)))
        arrow = [(0, -0.22), (0.24, 0.18), (-0.24, 0.18)]
        for _ in range(turns[name]):
            arrow = [(-y, x) for x, y in arrow]
        points = [(rect.centerx + x * side, rect.centery + y * side) for x, y in arrow]
        pygame.draw.polygon(draw.surface, COLORS["background" if is_down else "dim"], points)
    width = 3 * side + 2 * gap
    bar = pygame.Rect(middle - width // 2, top + 2 * (side + gap), width, draw.px(20))
    is_down = "FIRE" in view.inputs
    draw.box(bar, "text" if is_down else "line", 6, 0 if is_down else max(1, draw.px(1.5)))
    draw.text("SPACE", bar.center, 13, "background" if is_down else "dim", "middle")
    draw.text(view.action, (middle, area.bottom - draw.px(18)), 19, "text", "middle")


def _draw_stats(draw: Draw, area: pygame.Rect, stats) -> None:
    draw.box(area)
    step = (area.h - draw.px(16)) / max(len(stats), 6)
    for index, (label, value) in enumerate(stats):
        y = area.y + draw.px(8) + round((index + 0.5) * step)
        draw.text(label, (area.x + draw.px(12), y), 16, "dim")
        draw.text(value, (area.right - draw.px(12), y), 16, "text", "right")


def _draw_chart(draw: Draw, area: pygame.Rect, view: View) -> None:
    draw.box(area)
    line = area.y + draw.px(16)
    draw.text(view.chart_title, (area.x + draw.px(12), line), 16, "dim")
    size = (area.w - draw.px(88), area.h - draw.px(72))
    plot = pygame.Rect((area.x + draw.px(44), area.y + draw.px(58)), size)
    tops = {axis: _axis_top(view.curves, axis) for axis in ("%", "px")}
    for share in (0.0, 0.5, 1.0):
        y = round(plot.bottom - share * plot.h)
        pygame.draw.line(draw.surface, COLORS["line"], (plot.x, y), (plot.right, y))
        draw.text(f"{share * tops['%']:g}%", (plot.x - draw.px(6), y), 14, "dim", "right")
        if any(curve.axis == "px" for curve in view.curves):
            draw.text(f"{share * tops['px']:g} px", (plot.right + draw.px(6), y), 14, "dim")
    x, y = area.x + draw.px(12), line + draw.px(19)
    for curve in view.curves:
        shown = list(curve.values)[-CURVE_STEPS:]
        _draw_curve(draw, plot, shown, tops[curve.axis], COLORS[curve.color])
        draw.dot((x + draw.px(4), y), 4, curve.color)
        last = shown[-1] if shown else math.nan
        unit = "%" if curve.axis == "%" else " px"
        value = "–" if math.isnan(last) else f"{last:.1f}{unit}"
        x = draw.text(f"{curve.label} {value}", (x + draw.px(10), y), 16).right + draw.px(8)


def _axis_top(curves: Sequence[Curve], axis: str) -> float:
    """Return a round number above every value of an axis."""
    values = [v for c in curves if c.axis == axis for v in list(c.values)[-CURVE_STEPS:]]
    largest = max([v for v in values if not math.isnan(v)], default=0.0)
    return next((top for top in (4, 10, 20, 40, 60) if largest <= top), 100)


def _draw_curve(draw: Draw, plot: pygame.Rect, values, top: float, color) -> None:
    num_steps = max(60, len(values))
    piece: list[tuple[float, float]] = []
    for index, value in enumerate([*values, math.nan]):
        if not math.isnan(value):
            share = min(1.0, value / top)
            piece.append((plot.x + index / (num_steps - 1) * plot.w, plot.bottom - share * plot.h))
            continue
        if len(piece) == 1:
            pygame.draw.circle(draw.surface, color, piece[0], max(1, draw.px(1.5)))
        elif piece:
            pygame.draw.lines(draw.surface, color, False, piece, max(2, draw.px(1.6)))
        piece = []


def _draw_hint(draw: Draw, area: pygame.Rect, view: View) -> None:
    middle = area.y + draw.px(15)
    notice = draw.fitted(view.notice, area.w, 16)
    place = draw.text(notice, (area.right, middle), 16, "ball", "right")
    space = place.x - area.x - draw.px(16) if view.notice else area.w
    draw.text(draw.fitted(view.hint, space), (area.x, middle), 16, "dim")


def _draw_help(draw: Draw, area: pygame.Rect, rows) -> None:
    line = draw.px(25)
    size = (min(area.w, draw.px(540)), line * (len(rows) + 1) + draw.px(28))
    box = pygame.Rect((0, 0), size)
    box.center = (area.centerx, area.centery)
    draw.box(box, "panel", 12)
    draw.box(box, "dim", 12, max(1, draw.px(1.5)))
    y = box.y + draw.px(24)
    draw.text("Keys", (box.x + draw.px(22), y), 20)
    for key, meaning in rows:
        y += line
        draw.text(key, (box.x + draw.px(22), y), 16, "ball")
        draw.text(draw.fitted(meaning, box.w - draw.px(190), 16), (box.x + draw.px(170), y), 16)
