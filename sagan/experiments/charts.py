"""The picture of `sagan compare --out`: a curve of the main metric or of the losses, and the newest sample grids."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sagan.evaluation.registry import DIRECTION
from sagan.experiments.compare import protocol_words
from sagan.experiments.runs import LOSSES, Comparison, RunRecord, read_losses
from sagan.experiments.table import score_text, shortened, step_text
from sagan.utils.errors import UserError
from sagan.utils.images import read_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette for all kinds of color vision (2008), without its yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", (0, (7, 2)), (0, (7, 2, 1.5, 2)))  # one for each turn through the colors
DOTS = (0, (1, 1.5))  # scores that are not comparable with the others
FAINT, GRID = "#5f6368", "#e3e5e8"
WIDTH, DPI = 20.0, 100  # inches
MOST_POINTS = 60  # of a loss; beyond, neighbors are averaged
WIDE_RANGE = 4  # a positive score that spans more than this factor gets a logarithmic axis
GRIDS_IN_A_ROW = 4


@dataclass(frozen=True)
class Curve:
    """Images seen (N,) and values (N,) of a run; `best`: index of the best point."""

    run: int
    images: np.ndarray
    values: np.ndarray
    label: str
    comparable: bool = True
    best: int | None = None


@dataclass(frozen=True)
class Chart:
    title: str
    subtitle: str
    curves: Sequence[Curve]
    logarithmic: bool = False


def comparison_figure(comparison: Comparison) -> np.ndarray:
    """The picture, uint8 (H, W, 3). UserError when there is neither a score, a log nor a sample grid."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = charts(comparison)
    grids = [newest_grid(run) for run in comparison.runs]
    if not drawn and all(grid is None for grid in grids):
        raise UserError("--out: nothing to draw, these runs have neither scores nor a log nor samples yet")
    columns = min(GRIDS_IN_A_ROW, len(grids))
    rows = -(-len(grids) // columns) if any(grid is not None for grid in grids) else 0
    aspect = max((grid[0].shape[0] / grid[0].shape[1] for grid in grids if grid is not None), default=1.0)
    heights = [7.5] * bool(drawn) + [WIDTH / columns * min(aspect, 2.5) + 0.8] * rows
    with style.context("default"):  # not the user's settings
        figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained", facecolor="white")
        canvas = FigureCanvasAgg(figure)
        parts = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        if drawn:
            cells = parts[0].subgridspec(1, len(drawn))
            for i, chart in enumerate(drawn):
                draw_chart(figure.add_subplot(cells[0, i]), comparison, chart)
        for number, (run, grid) in enumerate(zip(comparison.runs, grids, strict=True) if rows else ()):
            row, column = divmod(number, columns)
            axes = figure.add_subplot(parts[bool(drawn) + row].subgridspec(1, columns)[0, column])
            axes.set_axis_off()
            step = "no samples yet" if grid is None else f"step {grid[1]:,}"
            axes.set_title(f"{known(shortened(run.name, 40))}\n{step}", fontsize=11, loc="left",
                           color=COLORS[number % len(COLORS)], parse_math=False)  # fmt: skip
            if grid is not None:
                axes.imshow(grid[0], interpolation="nearest")
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # (H, W, 3)


def newest_grid(run: RunRecord) -> tuple[np.ndarray, int] | None:
    """The newest samples/<step>.png, uint8 (H, W, 3), and its step; None before the first."""
    files = sorted(p for p in (run.folder / "samples").glob("*.png") if re.fullmatch(r"\d{8}", p.stem))
    return (read_png(files[-1]), int(files[-1].stem)) if files else None


def charts(comparison: Comparison) -> list[Chart]:
    """One chart of the main metric, or one of each loss; [] when nothing was scored or logged."""
    metric = main_metric(comparison)
    if metric is not None:
        return [_score_chart(comparison, metric)]
    losses = [read_losses(run) for run in comparison.runs]
    found = []
    for name, title in zip(LOSSES, ("discriminator loss", "generator loss"), strict=True):
        curves = [
            _loss_curve(run, number, each[name])
            for number, (run, each) in enumerate(zip(comparison.runs, losses, strict=True))
            if name in each
        ]
        found += [Chart(title, "during training; no run is scored yet", curves)] if curves else []
    return found


def main_metric(comparison: Comparison) -> str | None:
    """FID, else the first metric that all runs have, else coherence, else the first; None without scores."""
    metrics = comparison.metrics()
    everywhere = [m for m in metrics if len({s.run for s in comparison.of(m)}) == len(comparison.runs)]
    order = [*(["fid"] if "fid" in metrics else []), *everywhere, *(["coherence"] if "coherence" in metrics else [])]
    return next(iter([*order, *metrics]), None)


def _score_chart(comparison: Comparison, metric: str) -> Chart:
    main, curves = comparison.columns(metric)[0], []
    for number, run in enumerate(comparison.runs):
        series = comparison.at(metric, main, number) or next(iter(comparison.of(metric, number)), None)
        if series is None:
            continue
        points = [point for point in series.points if point.step is not None]
        comparable = series.best is not None and series.group == main
        best = None
        if comparable and series.best is not None:
            label = f"best {score_text(metric, series.best.value)} at step {step_text(series.best.step)}"
            best = next((i for i, point in enumerate(points) if point is series.best), None)
        else:
            why = "no protocol recorded" if series.group is None else "other protocol"
            label = f"{score_text(metric, series.newest.value)}, {why}"
        images, values = ([run.images(p.step or 0) for p in points], [p.value for p in points])
        curves.append(Curve(number, np.array(images, float), np.array(values), label, comparable, best))
    values = np.concatenate([curve.values for curve in curves])
    wide = DIRECTION[metric] < 0 and values.size > 0 and values.min() > 0 and values.max() > WIDE_RANGE * values.min()
    better = "higher" if DIRECTION[metric] > 0 else "lower"
    title = f"{metric}, {better} is better" + (" (log scale)" if wide else "")
    words = "no protocol recorded" if main is None else protocol_words(comparison.groups[main])
    return Chart(title, words, curves, bool(wide))


def _loss_curve(run: RunRecord, number: int, points: Sequence[tuple[int, float]]) -> Curve:
    """A loss, averaged over neighbors down to `MOST_POINTS` points."""
    images = np.array([run.images(step) for step, _ in points], float)
    values = np.array([value for _, value in points])
    parts = min(len(points), MOST_POINTS)
    means = ([part.mean() for part in np.array_split(each, parts)] for each in (images, values))
    x, y = (np.array(each) for each in means)
    return Curve(number, x, y, f"{values[-1]:.3f}")


def draw_chart(axes: "Axes", comparison: Comparison, chart: Chart) -> None:
    """Draw the curves over the images seen, with a legend beside them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for curve in chart.curves:
        color = COLORS[curve.run % len(COLORS)]
        dashes = DASHES[curve.run // len(COLORS) % len(DASHES)] if curve.comparable else DOTS
        name = known(shortened(comparison.runs[curve.run].name, 28))
        axes.plot(
            curve.images, curve.values, color=color, linewidth=1.8, linestyle=dashes, clip_on=False,
            marker="o" if len(curve.images) <= 30 else None, markersize=3.2, label=f"{name}\n{curve.label}",
        )  # fmt: skip
        if curve.best is not None:
            axes.plot(
                curve.images[curve.best], curve.values[curve.best], "o", markersize=8, color="white",
                markeredgecolor=color, markeredgewidth=1.8, zorder=3, clip_on=False,
            )  # fmt: skip
    axes.set_title(f"{chart.title}\n{shortened(known(chart.subtitle), 150)}", loc="left", fontsize=11, parse_math=False)
    axes.set_xlim(left=0)
    axes.set_xlabel("images seen")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))
    if chart.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, labelspacing=1, fontsize=10)
    for text in legend.get_texts():
        text.set_parse_math(False)


def known(text: str) -> str:
    """The text with "?" for every character that the figure's font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    characters = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    return "".join(character if ord(character) in characters or character == "\n" else "?" for character in text)
