"""What an ablation shows: a table of scores, costs and attention, its Markdown, and a picture of samples and maps."""

import json
import re
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sagan.attention import KINDS, AttentionMap
from sagan.config.schema import Config
from sagan.evaluation.registry import DIRECTION
from sagan.evaluation.result import protocol_differences
from sagan.experiments.runs import LogLine, MetricsLine, deciding_fields, read_lines
from sagan.experiments.table import NONE, Column, arrow, markdown_table, mean_text, score_text, text_table
from sagan.inspection.figure import attention_figure
from sagan.inspection.record import Recording, attention_of, grid_points, module_of
from sagan.models.generator import Generator
from sagan.runs.snapshot import load_snapshot
from sagan.sampling.sampler import default_labels, generate, latents
from sagan.utils.errors import UserError
from sagan.utils.images import image_grid, save_png
from sagan.utils.io import atomic_file

HEALTH = r"([gd])_(gamma|entropy|far_mass)/(.+)"  # in logs: network, number, module or map
NETWORKS = {"g": "generator", "d": "discriminator"}
PICTURE, TEXT, PIPED_WIDTH = "ablation.png", "ablation.md", 160
SAMPLES, COLUMNS, ATTENDED, POINTS, TILE, SIDE = 32, 8, 2, 4, 96, 64
GAP, HEADING = 16, 34  # pixels
INK, FAINT, PAPER = (32, 33, 36), (105, 109, 115), (255, 255, 255)


@dataclass
class Run:
    """A run of an ablation and, once it is finished, its numbers. `health`: gamma, entropy and far_mass at the end."""

    variant: str
    seed: int
    folder: Path
    output: Path
    finished: bool
    state: str
    reason: str
    seconds: float
    peak_mib: float | None
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    images_per_second: float = 0.0
    health: dict[str, float] = field(default_factory=dict)

    def read(self) -> None:
        """Read the numbers of a finished run. UserError where its files lack them."""
        self.step = max(int(path.name) for path in (self.folder / "snapshots").glob("[0-9]" * 8))
        path = self.folder / "metrics.jsonl"
        line = next((line for line in read_lines(path, MetricsLine) if line.step == self.step), None)
        if line is None:
            raise UserError(f"{path}: has no scores of the last step, {self.step}; remove {self.folder} and train anew")
        self.scores, self.protocol = line.numbers, line.protocol or {}
        log = read_lines(self.folder / "log.jsonl", LogLine, may_be_cut=True)
        rates, memory = (
            [value for each in log if (value := each.number(name)) is not None]
            for name in ("images_per_second", "memory_mib")
        )
        if not rates or not memory:
            raise UserError(f"{self.folder / 'log.jsonl'}: is missing or damaged; remove {self.folder} and train anew")
        self.images_per_second = statistics.median(rates)
        self.peak_mib = max(memory) if self.peak_mib is None else self.peak_mib
        self.health = log[-1].numbers(HEALTH)


@dataclass(frozen=True)
class Row:
    """A variant and its finished runs."""

    name: str
    parameters: tuple[int, int]
    runs: list[Run]

    def values(self, metric: str) -> list[float]:
        return [run.scores[metric] for run in self.runs if metric in run.scores]

    def health(self, network: str, number: str) -> dict[str, list[float]]:
        """Module or map -> one value for each run."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            for name, value in run.health.items():
                match = re.fullmatch(HEALTH, name)
                if match is not None and match.groups()[:2] == (network, number):
                    found.setdefault(match[3], []).append(value)
        return found


def report(
    folder: Path, base: Config, variants: dict[str, dict[str, Any]], parameters: dict[str, tuple[int, int]],
    runs: Sequence[Run], as_json: bool, picture: bool,
) -> dict[str, Any]:  # fmt: skip
    """Write ablation.md and, with `picture`, ablation.png; print the table or the results as JSON; return these."""
    for run in runs:
        if run.finished:
            run.read()
    rows = [
        Row(name, parameters.get(name, (0, 0)), [run for run in runs if run.variant == name and run.finished])
        for name in variants
    ]
    remarks = notes(rows, runs)
    results = {"variants": [row_record(row) for row in rows], "notes": remarks}
    if picture and any(row.runs for row in rows):
        save_png(folder / PICTURE, ablation_picture(rows))
    drawn = (folder / PICTURE).is_file()
    title = f"Ablation of {', '.join(next(iter(variants.values())))}"
    about = (
        f"{base.data.source} at {base.data.resolution} px, {base.training.steps:,} steps of {base.training.batch_size} "
        f"images, {base.evaluate.num:,} samples scored; mean ± standard deviation over n seeds"
    )
    columns = columns_of(rows)
    parts = [f"# {title}", f"{about}, the best in bold.", markdown_table(columns), *remarks]
    with atomic_file(folder / TEXT) as temporary:
        temporary.write_text("\n\n".join([*parts, *([f"![samples and attention]({PICTURE})"] if drawn else [])]) + "\n")
    if as_json:
        print(json.dumps(results))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH
        print(f"{title}\n{about}, * the best.\n\n{text_table(columns, width)}\n")
        print("".join(f"{line}\n" for line in remarks), end="")
    written = [folder / TEXT, *([folder / PICTURE] if drawn else [])]
    print("\n".join(map(str, written)), file=sys.stderr if as_json else sys.stdout)
    return results


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The metrics that some row has, in the order of the registry."""
    return [metric for metric in DIRECTION if any(row.values(metric) for row in rows)]


def comparable(rows: Sequence[Row], metric: str) -> bool:
    """Whether all scores of a metric were measured under one protocol."""
    protocols = [deciding_fields(metric, run.protocol) for row in rows for run in row.runs if metric in run.scores]
    return not any(protocol_differences(protocols[0], other) for other in protocols[1:])


def leaders(rows: Sequence[Row], metric: str) -> frozenset[int]:
    """The rows with the best mean; none where all are equal, or scores are not comparable."""
    means = {i: statistics.fmean(values) for i, row in enumerate(rows) if (values := row.values(metric))}
    if len({*means.values()}) < 2 or not comparable(rows, metric):
        return frozenset()
    best = max(means.values(), key=lambda mean: DIRECTION[metric] * mean)
    return frozenset(i for i, mean in means.items() if mean == best)


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Variant, number of runs, scores, parameters, speed, memory and attention; empty columns are left out."""
    columns = [Column("n", tuple(str(len(row.runs)) for row in rows))]
    for metric in metrics_of(rows):
        cells = tuple(mean_text(row.values(metric), partial(score_text, metric)) for row in rows)
        columns.append(Column(arrow(metric), cells, bold=leaders(rows, metric)))
    for i, network in enumerate("GD"):
        cells = tuple(f"{row.parameters[i]:,}" if any(row.parameters) else NONE for row in rows)
        columns.append(Column(f"parameters {network}", cells))

    def three_digits(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    for heading, name in (("images/s", "images_per_second"), ("memory MiB", "peak_mib")):
        cells = tuple(mean_text([getattr(run, name) for run in row.runs], three_digits) for row in rows)
        columns.append(Column(heading, cells))
    for number, word in (("gamma", "gamma"), ("entropy", "entropy"), ("far_mass", "far mass")):
        for network in NETWORKS:
            columns.append(Column(f"{word} {network.upper()}", tuple(_health(row, network, number) for row in rows)))
    filled = [column for column in columns if any(cell != NONE for cell in column.cells)]
    return [Column("variant", tuple(row.name for row in rows), words=True), *filled]


def _health(row: Row, network: str, number: str) -> str:
    """One number for each module, in the order of the network."""
    two_digits = lambda value: f"{value:.2f}".replace("-0.00", "0.00")  # noqa: E731
    return ", ".join(mean_text(values, two_digits) for values in row.health(network, number).values()) or NONE


def notes(rows: Sequence[Row], runs: Sequence[Run]) -> list[str]:
    """Scores that cannot be compared, runs that failed, and runs that are not done."""
    lines = [
        f"{metric}: not measured alike in all runs, so none is called the best."
        for metric in metrics_of(rows)
        if not comparable(rows, metric)
    ]
    for run in runs:
        if not run.finished and run.state == "failed":
            lines.append(f"failed: {run.variant}, seed {run.seed}: {run.reason} ({run.output})")
    undone = [f"{run.variant} (seed {run.seed})" for run in runs if not run.finished and run.state != "failed"]
    return lines + ([f"not done yet: {', '.join(undone)}"] if undone else [])


def row_record(row: Row) -> dict[str, Any]:
    """A row as plain values; numbers as mean, standard deviation (divisor n - 1, null for one run) and values."""

    def summary(values: Sequence[float]) -> dict[str, Any]:
        spread = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.fmean(values), "std": spread, "values": [*values]}

    runs = row.runs
    record: dict[str, Any] = {"name": row.name, "n": len(runs), "seeds": [run.seed for run in runs]}
    record["parameters"] = dict(zip(NETWORKS.values(), row.parameters, strict=True))
    if not runs:
        return record
    return record | {
        "steps": [run.step for run in runs],
        **{n: summary([getattr(run, n) for run in runs]) for n in ("images_per_second", "peak_mib", "seconds")},
        "scores": {metric: summary(row.values(metric)) for metric in runs[0].scores},
        "attention": {
            f"{network}_{number}/{name}": summary(values)
            for network in NETWORKS
            for number in ("gamma", "entropy", "far_mass")
            for name, values in row.health(network, number).items()
        },
        "protocol": runs[0].protocol,
    }


# --- the picture


def ablation_picture(rows: Sequence[Row]) -> np.ndarray:
    """Samples and attention of each variant's first finished run, uint8 (H, W, 3)."""
    metric = next(iter(metrics_of(rows)), None)
    parts = []
    for row in rows:
        if row.runs:
            first = row.runs[0]
            score = f"    {metric} {score_text(metric, first.scores[metric])}" if metric in first.scores else ""
            generator = load_snapshot(first.folder)
            parts.append((f"{row.name}    seed {first.seed}{score}", _samples_and_attention(generator)))
    width = max(part.shape[1] for _, part in parts) + 2 * GAP
    height = sum(len(part) + HEADING + GAP for _, part in parts) + HEADING
    canvas = Image.new("RGB", (width, height), PAPER)
    draw, y = ImageDraw.Draw(canvas), 0
    for heading, part in parts:
        draw.text((GAP, y + HEADING - 8), heading, INK, ImageFont.load_default(18), "ls")
        canvas.paste(Image.fromarray(part), (GAP, y + HEADING))
        y += len(part) + HEADING + GAP
    note = f"Left: seeds 0-{SAMPLES - 1}. Right: the same {POINTS} points in the first {ATTENDED}, heads averaged."
    draw.text((GAP, y + 4), note, FAINT, ImageFont.load_default(13), "la")
    return np.asarray(canvas)


def _samples_and_attention(generator: Generator) -> np.ndarray:
    z, labels = latents(range(SAMPLES), generator.z_dim), default_labels(range(SAMPLES), generator.num_classes)
    images = torch.cat(list(generate(generator, z, labels)))
    left = image_grid(images.numpy(), COLUMNS, scale=max(1, SIDE // generator.resolution))
    few = None if labels is None else labels[:ATTENDED]
    recording = attention_of(generator, z[:ATTENDED], few, range(ATTENDED), grid_points(POINTS))
    shown = shown_maps(recording)
    if not shown.maps:
        return left
    right = attention_figure(shown, tile=TILE)
    canvas = np.full((max(len(left), len(right)), left.shape[1] + GAP + right.shape[1], 3), PAPER, np.uint8)
    canvas[: len(left), : left.shape[1]] = left
    canvas[: len(right), left.shape[1] + GAP :] = right
    return canvas


def shown_maps(recording: Recording) -> Recording:
    """Of each module the first map of image points, averaged over heads; else all of its maps."""
    of_points = {
        name: AttentionMap(found.kind, found.weights.mean(1, keepdim=True))
        for name, found in recording.maps.items()
        if KINDS[found.kind].per_query and KINDS[found.kind].spatial
    }
    first = {module_of(name): name for name in reversed(of_points)}
    maps = {
        name: of_points.get(name, found)
        for name, found in recording.maps.items()
        if first.get(module_of(name), name) == name
    }
    return replace(recording, maps=maps)
