"""The picture of a comparison: curves over images seen, a colour a run, and under them the newest samples.

Laid out in pixels on a figure of matplotlib; the samples are put in pixel by pixel, so that nothing blurs them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sagan.comparison.axes import COLOURS, TEXT_FAINT, draw_axes, line_style
from sagan.comparison.columns import shortened
from sagan.comparison.curves import Chart, charts
from sagan.comparison.scores import Comparison
from sagan.comparison.sheets import NewestSheet, newest_sheet, panels, panels_in_a_row
from sagan.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
WIDTH, MARGIN, GAP = 2000, 70, 44  # pixels, as all below
TICKS, HEAD, FOOT, AXES = 84, 150, 120, 700  # left of axes, above, below, and their own height
LEGEND, ENTRY = 520, 84  # width of the legend, height of an entry
CAPTION = 104  # above a panel
MOST_IN_A_ROW = 4
LETTER = 18  # width of a letter of a name, on average
LONGEST_NAME, LONGEST_SUBTITLE = 22, 155  # characters


@dataclass(frozen=True, eq=False)
class Page:
    """A figure that is drawn on in pixels from its upper left corner."""

    figure: "Figure"
    height: int

    def text(self, x: float, y: float, text: str, size: float, colour: str) -> None:
        """Text on the base line y; `size` in points. Letters that the font lacks become "?"."""
        self.figure.text(
            x / WIDTH, 1 - y / self.height, drawable(text), fontsize=size, color=colour, fontfamily="DejaVu Sans",
            va="baseline", parse_math=False,
        )  # fmt: skip

    def line(self, x: tuple[float, float], y: float, colour: str, width: float, style: Any = "-") -> None:
        from matplotlib.lines import Line2D

        line = Line2D(
            [x[0] / WIDTH, x[1] / WIDTH], [1 - y / self.height] * 2, color=colour, linewidth=width, linestyle=style,
            solid_capstyle="butt", transform=self.figure.transFigure,
        )  # fmt: skip
        self.figure.add_artist(line)


def comparison_picture(comparison: Comparison) -> np.ndarray:
    """The picture as uint8 (H, WIDTH, 3). UserError when there is neither a score, a log nor a sheet."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn, sheets = charts(comparison), [newest_sheet(run) for run in comparison.runs]
    shown = any(sheet is not None for sheet in sheets)
    if not drawn and not shown:
        raise UserError("--out: nothing to draw, these runs have neither scores nor a log nor sheets of samples yet")
    placed, bottom = _place_panels(sheets, _chart_height(comparison, drawn)) if shown else ([], 0)
    height = max(bottom, _chart_height(comparison, drawn)) + MARGIN // 2
    with style.context("default"):  # not the settings of the user's matplotlib
        figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
        canvas, page = FigureCanvasAgg(figure), Page(figure, height)
        if drawn:
            _draw_charts(page, comparison, drawn)
        for run, (x, y, panel) in enumerate(placed):
            _draw_caption(page, comparison, run, sheets[run], x, y, panel.shape[1])
        canvas.draw()
        picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # (H, W, 3)
    for x, y, panel in placed:
        picture[y : y + panel.shape[0], x : x + panel.shape[1]] = panel
    return picture


def drawable(text: str) -> str:
    """The text with "?" for every letter that the font of the picture lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    return "".join(letter if ord(letter) in known else "?" for letter in text)


def _chart_height(comparison: Comparison, drawn: Sequence[Chart]) -> int:
    """Of the upper part of the page, legend and all; 0 without charts."""
    return HEAD + max(AXES, len(comparison.runs) * ENTRY) + FOOT if drawn else 0


def _draw_charts(page: Page, comparison: Comparison, drawn: Sequence[Chart]) -> None:
    """The charts side by side, at the right the legend of all."""
    bottom = _chart_height(comparison, drawn) - FOOT
    room = (WIDTH - 2 * MARGIN - LEGEND) // len(drawn)
    for i, chart in enumerate(drawn):
        left, right = MARGIN + i * room + TICKS, MARGIN + (i + 1) * room - GAP
        page.text(left - TICKS, MARGIN + 24, chart.title, 13, "black")
        page.text(left - TICKS, MARGIN + 62, shortened(chart.subtitle, LONGEST_SUBTITLE), 8, TEXT_FAINT)
        box = (left / WIDTH, 1 - bottom / page.height, (right - left) / WIDTH, (bottom - HEAD) / page.height)
        draw_axes(page.figure.add_axes(box), chart)
    x = WIDTH - MARGIN - LEGEND + GAP // 2
    labels = [{curve.run: curve for curve in chart.curves} for chart in drawn]
    for number, run in enumerate(comparison.runs):
        y = HEAD + number * ENTRY + 24
        curves = [found[number] for found in labels if number in found]
        apart = any(curve.apart for curve in curves)
        page.line((x, x + 70), y - 10, COLOURS[number % len(COLOURS)], 2.4, line_style(number, apart))
        page.text(x + 90, y, shortened(run.name, LONGEST_NAME), 10, "black")
        page.text(x + 90, y + 32, ", ".join(c.label for c in curves) or "not scored", 8, TEXT_FAINT)


def _place_panels(sheets: Sequence[NewestSheet | None], top: int) -> tuple[list[tuple[int, int, np.ndarray]], int]:
    """(x, y, picture) of the panel of each run, empty where it has no sheet, and the y below all."""
    room = WIDTH - 2 * MARGIN + GAP
    count = panels_in_a_row(sheets, room - MOST_IN_A_ROW * GAP, MOST_IN_A_ROW)
    pictures = panels(sheets, room // count - GAP)
    size = next(picture.shape for picture in pictures if picture is not None)
    placed, pitch = [], CAPTION + size[0] + GAP
    for number, picture in enumerate(pictures):
        row, column = divmod(number, count)
        x = MARGIN + column * min(room // count, size[1] + 2 * GAP)
        y = top + MARGIN // 2 + row * pitch + CAPTION
        placed.append((x, y, np.full(size, 246, np.uint8) if picture is None else picture))
    return placed, top + MARGIN // 2 + -(-len(pictures) // count) * pitch


def _draw_caption(
    page: Page, comparison: Comparison, run: int, sheet: NewestSheet | None, x: int, y: int, width: int
) -> None:
    """Over a panel at (x, y): a line in the colour of the run, its name, and the step of the sheet."""
    page.line((x, x + width), y - CAPTION + 20, COLOURS[run % len(COLOURS)], 2.4, line_style(run, False))
    said = "no samples yet" if sheet is None else f"step {sheet.step:,}"
    page.text(x, y - 46, shortened(comparison.runs[run].name, max(8, width // LETTER)), 10, "black")
    page.text(x, y - 16, said, 8, TEXT_FAINT)
