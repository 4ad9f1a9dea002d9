"""One chart on the axes of matplotlib: curves, a faint grid, ticks that can be read."""

from typing import TYPE_CHECKING, Any

from sagan.comparison.curves import Chart, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEXT, TEXT_FAINT, GRID = "#202124", "#5f6368", "#e3e5e8"
# Okabe and Ito's palette for all kinds of colour vision (2008), without its yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", (0, (7, 2)), (0, (7, 2, 1.5, 2)))  # one for each turn through the colours
DOTS = (0, (1, 1.5))  # what is not compared
FEW = 30  # points up to which each one is marked
SCALES = ((1e6, "millions"), (1e3, "thousands"), (1, ""))
LOGARITHMIC_TICKS = (1, 1.5, 2, 3, 5, 7)


def line_style(run: int, apart: bool) -> Any:
    """The dashes of a run's curve, as matplotlib takes them."""
    return DOTS if apart else DASHES[run // len(COLOURS) % len(DASHES)]


def draw_axes(axes: "Axes", chart: Chart) -> None:
    """Draw the curves of a chart over the images seen."""
    furthest = max([1.0, *(x for curve in chart.curves for x, _ in curve.points)])
    unit, word = next((unit, word) for unit, word in SCALES if furthest >= 2 * unit or unit == 1)
    for curve in chart.curves:
        _draw_curve(axes, curve, unit)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"images seen ({word})" if word else "images seen", fontsize=9, color=TEXT, labelpad=8)
    if chart.logarithmic:
        _logarithmic(axes)
    axes.margins(y=0.08)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(TEXT_FAINT)
    axes.tick_params(labelsize=9, labelcolor=TEXT, color=TEXT_FAINT, length=4)
    axes.tick_params(axis="y", length=0)


def _draw_curve(axes: "Axes", curve: Curve, unit: float) -> None:
    colour = COLOURS[curve.run % len(COLOURS)]
    x, y = [x / unit for x, _ in curve.points], [value for _, value in curve.points]
    marker = "o" if len(x) <= FEW else None
    axes.plot(
        x, y, color=colour, linewidth=1.8, linestyle=line_style(curve.run, curve.apart), marker=marker, markersize=3.2,
        clip_on=False, solid_joinstyle="round",
    )  # fmt: skip
    if curve.best is not None:
        axes.plot(
            curve.best[0] / unit, curve.best[1], "o", markersize=8, color="white", markeredgecolor=colour,
            markeredgewidth=1.8, zorder=3, clip_on=False,
        )  # fmt: skip


def _logarithmic(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=LOGARITHMIC_TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
