"""The picture of `sagan compare --out`: curves of the main metric or of the losses, and the newest sample grids."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sagan.evaluation.registry import DIRECTION
from sagan.experiments.compare import protocol_words
from sagan.experiments.runs import Comparison, RunRecord, ScoreColumn
from sagan.experiments.table import score_text, shortened, step_text
from sagan.utils.errors import UserError
from sagan.utils.images import read_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The color-blind safe palette of Okabe and Ito (2008), without its yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", (0, (7, 2)), (0, (7, 2, 1.5, 2)))  # one for each turn through the colors
DOTS = (0, (1, 1.5))  # scores that are not comparable with the others
WIDTH, DPI = 20.0, 100  # inches
LOSSES = {"d_loss": "discriminator loss", "g_loss": "generator loss"}
MOST_POINTS = 60  # of a loss; beyond, neighbors are averaged
WIDE_RANGE = 4  # a positive score that spans more than this factor gets a logarithmic axis
GRIDS_IN_A_ROW = 4


def comparison_figure(comparison: Comparison, width: float = WIDTH) -> "Figure":
    """Draw the picture, `width` inches wide. UserError if there is neither a score, a log nor a sample grid."""
    from matplotlib import style
    from matplotlib.figure import Figure

    metric, runs = main_metric(comparison), comparison.runs
    losses = [] if metric else [name for name in LOSSES if any(run.logged(name) for run in runs)]
    grids = [newest_grid(run) for run in runs]
    if metric is None and not losses and not any(grids):
        raise UserError("--out: nothing to draw, these runs have neither scores nor a log nor samples yet")
    columns = min(GRIDS_IN_A_ROW, len(runs))
    aspect = max((grid[0].shape[0] / grid[0].shape[1] for grid in grids if grid), default=1.0)
    heights = [0.375 * width] if metric or losses else []
    heights += [width / columns * min(aspect, 2.5) + 0.8] * (-(-len(runs) // columns) if any(grids) else 0)
    with style.context("default"):  # not the user's settings
        figure = Figure(figsize=(width, sum(heights)), dpi=DPI, layout="constrained", facecolor="white")
        parts = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        if metric:
            draw_scores(figure.add_subplot(parts[0]), comparison, metric)
        elif losses:
            row = parts[0].subgridspec(1, len(losses))
            for i, name in enumerate(losses):
                draw_losses(figure.add_subplot(row[0, i]), runs, name)
        rows = [parts[i].subgridspec(1, columns) for i in range(1 if metric or losses else 0, len(heights))]
        for i, (run, grid) in enumerate(zip(runs, grids, strict=True) if rows else ()):
            axes = figure.add_subplot(rows[i // columns][0, i % columns])
            axes.set_axis_off()
            title = f"{drawable(run.name, 40)}\n{f'step {grid[1]:,}' if grid else 'no samples yet'}"
            axes.set_title(title, fontsize=11, loc="left", color=COLORS[i % len(COLORS)], parse_math=False)
            if grid:
                axes.imshow(grid[0], interpolation="nearest")
    return figure


def rendered(figure: "Figure") -> np.ndarray:
    """The pixels of a figure, uint8 (H, W, 3)."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with style.context("default"):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def newest_grid(run: RunRecord) -> tuple[np.ndarray, int] | None:
    """The newest samples/<step>.png, uint8 (H, W, 3), and its step; None before the first."""
    files = sorted(p for p in (run.folder / "samples").glob("*.png") if re.fullmatch(r"\d{8}", p.stem))
    return (read_png(files[-1]), int(files[-1].stem)) if files else None


def main_metric(comparison: Comparison) -> str | None:
    """FID, else the first metric that all runs have, else coherence, else the first; None without scores."""
    metrics = comparison.metrics
    scored = {metric: {run for column in columns for run in column.scores} for metric, columns in metrics.items()}
    everywhere = [metric for metric in metrics if len(scored[metric]) == len(comparison.runs)]
    return next((metric for metric in ["fid", *everywhere, "coherence", *metrics] if metric in metrics), None)


def draw_scores(axes: "Axes", comparison: Comparison, metric: str) -> None:
    """Draw a curve for each run: of its scores under the main protocol, else dotted under another one."""
    columns = comparison.metrics[metric]
    drawn = []
    for number, run in enumerate(comparison.runs):
        column = _column_of(columns, number)
        if column is None:
            continue
        points = [score for score in column.scores[number] if score.step is not None]
        best = column.best(number) if column is columns[0] else None
        if best is not None:
            label = f"best {score_text(metric, best.value)} at step {step_text(best.step)}"
        else:
            why = "no protocol recorded" if column.group is None else "other protocol"
            label = f"{score_text(metric, column.scores[number][-1].value)}, {why}"
        images, values = [run.images(score.step or 0) for score in points], [score.value for score in points]
        color = _curve(axes, number, run.name, images, values, label, comparable=best is not None)
        if best in points:
            axes.plot(
                run.images(best.step or 0), best.value, "o", markersize=8, color="white",
                markeredgecolor=color, markeredgewidth=1.8, zorder=3, clip_on=False,
            )  # fmt: skip
        drawn += values
    wide = DIRECTION[metric] < 0 and bool(drawn) and min(drawn) > 0 and max(drawn) > WIDE_RANGE * min(drawn)
    title = f"{metric}, {'higher' if DIRECTION[metric] > 0 else 'lower'} is better{' (log scale)' if wide else ''}"
    group = columns[0].group
    _style(axes, title, "no protocol recorded" if group is None else protocol_words(comparison.groups[group]), wide)


def _column_of(columns: Sequence[ScoreColumn], run: int) -> ScoreColumn | None:
    """The main column if it has the run, else the run's longest one with a protocol, else the other one."""
    own = [column for column in columns if run in column.scores]
    if own[:1] == [columns[0]]:
        return columns[0]
    return min(own, key=lambda column: (column.group is None, -len(column.scores[run])), default=None)


def draw_losses(axes: "Axes", runs: Sequence[RunRecord], name: str) -> None:
    """Draw a loss of each run, averaged over neighbors down to `MOST_POINTS` points."""
    for number, run in enumerate(runs):
        if points := run.logged(name):
            parts = np.array_split([(run.images(step), value) for step, value in points], min(len(points), MOST_POINTS))
            images, values = np.array([part.mean(0) for part in parts]).T
            _curve(axes, number, run.name, images, values, f"{points[-1][1]:.3f}")
    _style(axes, LOSSES[name], "during training; no run is scored yet")


def _curve(
    axes: "Axes", number: int, name: str, images: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray,
    label: str, comparable: bool = True,
) -> str:  # fmt: skip
    """Plot the curve of run `number`; returns its color."""
    color, dashes = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
    axes.plot(
        images, values, color=color, linewidth=1.8, linestyle=dashes if comparable else DOTS, clip_on=False,
        marker="o" if len(images) <= 30 else None, markersize=3.2, label=f"{drawable(name, 28)}\n{label}",
    )  # fmt: skip
    return color


def _style(axes: "Axes", title: str, subtitle: str, logarithmic: bool = False) -> None:
    """Titles, axes and a legend beside the curves, alike in all charts."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_title(f"{title}\n{drawable(subtitle, 150)}", loc="left", fontsize=11, parse_math=False)
    axes.set_xlim(left=0)
    axes.set_xlabel("images seen")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.grid(axis="y", color="#e3e5e8")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, labelspacing=1, fontsize=10)
    for text in legend.get_texts():
        text.set_parse_math(False)


def drawable(text: str, longest: int) -> str:
    """The text, shortened, with "?" for every character that the figure's font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    characters = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    return "".join(character if ord(character) in characters else "?" for character in shortened(text, longest))
