"""The results of an ablation: a table of scores, costs and attention, and a picture of samples and attention maps."""

import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sagan.attention import KINDS, AttentionMap
from sagan.evaluation.registry import DIRECTION
from sagan.evaluation.result import protocol_differences
from sagan.experiments.ablation import Ablation, Key
from sagan.experiments.runs import RunRecord, deciding_fields, leaders, read_run
from sagan.experiments.table import NONE, Column, arrow, markdown_table, mean_text, score_text, table_width, text_table
from sagan.inspection.figure import attention_figure
from sagan.inspection.record import Recording, attention_of, grid_points, module_of
from sagan.models.generator import Generator
from sagan.runs.snapshot import load_snapshot
from sagan.sampling.sampler import default_labels, generate, latents
from sagan.utils.errors import UserError
from sagan.utils.images import image_grid, save_png
from sagan.utils.io import atomic_file

HEALTH = ("gamma", "entropy", "far_mass")  # in log.jsonl: g_gamma/MODULE, d_gamma/MODULE, …
COSTS = {"images_per_second": "images/s", "peak_mib": "memory MiB"}
PICTURE, TEXT, PIPED_WIDTH = "ablation.png", "ablation.md", 160
SAMPLES, COLUMNS, ATTENDED, POINTS, TILE, SIDE = 32, 8, 2, 4, 96, 64
GAP, HEADING = 16, 34  # pixels
INK, FAINT = (32, 33, 36), (105, 109, 115)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. `numbers`: its scores, costs, gamma, entropy and far mass at the last step."""

    seed: int
    record: RunRecord
    step: int
    scores: tuple[str, ...]
    protocol: dict[str, Any]
    numbers: dict[str, float]


@dataclass(frozen=True)
class Row:
    """A variant and its finished runs."""

    name: str
    parameters: tuple[int, int]
    runs: list[FinishedRun]

    def values(self, name: str) -> list[float]:
        return [run.numbers[name] for run in self.runs if name in run.numbers]

    def health(self, network: str, number: str) -> dict[str, list[float]]:
        """Name in the log -> one value for each run; `network`: "g" or "d", `number`: one of `HEALTH`."""
        prefix = f"{network}_{number}/"
        names = dict.fromkeys(name for run in self.runs for name in run.numbers if name.startswith(prefix))
        return {name: self.values(name) for name in names}


def read_finished(ablation: Ablation, key: Key) -> FinishedRun:
    """Read a finished run. UserError if its files lack scores or costs of the last step."""
    folder, state = ablation.run_folder(key), ablation.runs[key]
    run = read_run(folder, folder.name)
    step = max(int(path.name) for path in (folder / "snapshots").glob("[0-9]" * 8))
    line = next((line for line in run.metrics if line.step == step), None)
    if line is None:
        raise UserError(f"{folder / 'metrics.jsonl'}: has no scores of the last step, {step}; remove {folder} and "
                        "train again")  # fmt: skip
    rates, memory = ([value for _, value in run.logged(name)] for name in ("images_per_second", "memory_mib"))
    if not rates or not memory:
        raise UserError(f"{folder / 'log.jsonl'}: is missing or damaged; remove {folder} and train again")
    peak = max(memory) if state.peak_mib is None else state.peak_mib
    costs = {"images_per_second": statistics.median(rates), "peak_mib": peak, "seconds": state.seconds}
    health = {
        n: value for n, value in run.log[-1].numbers.items() if n[:2] in ("g_", "d_") and n[2:].startswith(HEALTH)
    }
    return FinishedRun(key[1], run, step, tuple(line.numbers), line.protocol or {}, line.numbers | costs | health)


def report(ablation: Ablation, as_json: bool, picture: bool) -> None:
    """Write ablation.md, the results and, with `picture`, ablation.png; print the table or the results as JSON."""
    folder, base = ablation.folder, ablation.base
    finished = {key: read_finished(ablation, key) for key in sorted(ablation.runs) if ablation.finished(key)}
    rows = [
        Row(name, ablation.parameters.get(name, (0, 0)), [run for key, run in finished.items() if key[0] == name])
        for name in ablation.variants
    ]
    remarks = [
        f"{metric}: measured under different protocols, so no best value is marked."
        for metric in metrics_of(rows)
        if not comparable(rows, metric)
    ] + unfinished_notes(ablation)
    results = {"variants": [row_record(row) for row in rows], "notes": remarks}
    if picture and finished:
        save_png(folder / PICTURE, ablation_picture(rows))
    drawn = (folder / PICTURE).is_file()
    title = f"Ablation of {', '.join(next(iter(ablation.variants.values())))}"
    about = (
        f"{base.data.source} at {base.data.resolution} px, {base.training.steps:,} steps of {base.training.batch_size} "
        f"images, {base.evaluate.num:,} samples evaluated; mean ± standard deviation over n seeds"
    )
    columns = columns_of(rows)
    parts = [f"# {title}", f"{about}, the best in bold.", markdown_table(columns), *remarks]
    with atomic_file(folder / TEXT) as temporary:
        temporary.write_text("\n\n".join([*parts, *([f"![samples and attention]({PICTURE})"] if drawn else [])]) + "\n")
    if as_json:
        print(json.dumps(results))
    else:
        print(f"{title}\n{about}, * the best.\n\n{text_table(columns, table_width(PIPED_WIDTH))}\n")
        print("".join(f"{line}\n" for line in remarks), end="")
    written = [folder / TEXT, *([folder / PICTURE] if drawn else [])]
    print("\n".join(map(str, written)), file=sys.stderr if as_json else sys.stdout)
    ablation.save(results)


def unfinished_notes(ablation: Ablation) -> list[str]:
    """Runs that failed, with the reason, and runs that are not done."""
    lines, waiting = [], []
    for key, run in sorted(ablation.runs.items()):
        if run.state == "failed" and not ablation.finished(key):
            output = ablation.output_file(key).relative_to(ablation.folder)
            lines.append(f"failed: {key[0]}, seed {key[1]}: {run.reason} ({output})")
        elif not ablation.finished(key):
            waiting.append(f"{key[0]} (seed {key[1]})")
    return lines + ([f"not done yet: {', '.join(waiting)}"] if waiting else [])


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The metrics that some row has, in the order of the registry."""
    return [metric for metric in DIRECTION if any(row.values(metric) for row in rows)]


def comparable(rows: Sequence[Row], metric: str) -> bool:
    """Whether all scores of a metric were measured under one protocol."""
    protocols = [deciding_fields(metric, run.protocol) for row in rows for run in row.runs if metric in run.scores]
    return not any(protocol_differences(protocols[0], other) for other in protocols[1:])


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Variant, number of runs, scores, parameters, speed, memory and attention, without empty columns."""
    columns = [Column("n", [str(len(row.runs)) for row in rows])]
    for metric in metrics_of(rows):
        cells = [mean_text(row.values(metric), partial(score_text, metric)) for row in rows]
        means = {i: statistics.fmean(values) for i, row in enumerate(rows) if (values := row.values(metric))}
        best = leaders(means, metric) if comparable(rows, metric) else frozenset()
        columns.append(Column(arrow(metric), cells, bold=best))
    for i, network in enumerate("GD"):
        cells = [f"{row.parameters[i]:,}" if any(row.parameters) else NONE for row in rows]
        columns.append(Column(f"parameters {network}", cells))
    for name, heading in COSTS.items():
        columns.append(Column(heading, [mean_text(row.values(name), _three_digits) for row in rows]))
    for number, network in itertools.product(HEALTH, "gd"):
        health = [row.health(network, number).values() for row in rows]
        cells = [", ".join(mean_text(values, _two_digits) for values in each) or NONE for each in health]
        columns.append(Column(f"{number.replace('_', ' ')} {network.upper()}", cells))
    filled = [column for column in columns if any(cell != NONE for cell in column.cells)]
    return [Column("variant", [row.name for row in rows], words=True), *filled]


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _two_digits(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")


def row_record(row: Row) -> dict[str, Any]:
    """A row as plain values; numbers as mean, standard deviation (divisor n - 1, null for one run) and values."""

    def summary(name: str) -> dict[str, Any]:
        values = row.values(name)
        spread = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.fmean(values), "std": spread, "values": values}

    runs = row.runs
    record: dict[str, Any] = {"name": row.name, "n": len(runs), "seeds": [run.seed for run in runs]}
    record["parameters"] = dict(zip(("generator", "discriminator"), row.parameters, strict=True))
    if not runs:
        return record
    return record | {
        "steps": [run.step for run in runs],
        **{name: summary(name) for name in (*COSTS, "seconds")},
        "scores": {metric: summary(metric) for metric in runs[0].scores},
        "attention": {
            name: summary(name) for network in "gd" for number in HEALTH for name in row.health(network, number)
        },
        "protocol": runs[0].protocol,
    }


# --- the picture


def ablation_picture(rows: Sequence[Row]) -> np.ndarray:
    """Samples and attention of each variant's first finished run, uint8 (H, W, 3)."""
    metric, parts = next(iter(metrics_of(rows)), None), []
    for row in rows:
        if row.runs:
            first = row.runs[0]
            score = f"    {metric} {score_text(metric, first.numbers[metric])}" if metric in first.scores else ""
            images = samples_and_attention(load_snapshot(first.record.folder))
            parts.append((f"{row.name}    seed {first.seed}{score}", images))
    width = max(sum(image.shape[1] + GAP for image in images) for _, images in parts) + GAP
    height = sum(max(map(len, images)) + HEADING + GAP for _, images in parts) + HEADING
    canvas = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(canvas), 0
    for heading, images in parts:
        draw.text((GAP, y + HEADING - 8), heading, INK, ImageFont.load_default(18), "ls")
        for image, x in zip(images, (GAP, 2 * GAP + images[0].shape[1]), strict=False):
            canvas.paste(Image.fromarray(image), (x, y + HEADING))
        y += max(map(len, images)) + HEADING + GAP
    note = f"Left: seeds 0-{SAMPLES - 1}. Right: the same {POINTS} points in the first {ATTENDED}, averaged over heads."
    draw.text((GAP, y + 4), note, FAINT, ImageFont.load_default(13), "la")
    return np.asarray(canvas)


def samples_and_attention(generator: Generator) -> list[np.ndarray]:
    """A grid of samples and, if the generator has attention maps, a figure of them."""
    z, labels = latents(range(SAMPLES), generator.z_dim), default_labels(range(SAMPLES), generator.num_classes)
    images = torch.cat(list(generate(generator, z, labels)))
    grid = image_grid(images.numpy(), COLUMNS, scale=max(1, SIDE // generator.resolution))
    few = None if labels is None else labels[:ATTENDED]
    recording = attention_of(generator, z[:ATTENDED], few, range(ATTENDED), grid_points(POINTS))
    shown = shown_maps(recording)
    return [grid, attention_figure(shown, tile=TILE)] if shown.maps else [grid]


def shown_maps(recording: Recording) -> Recording:
    """The first map of image points of each module, averaged over heads, or else all maps of the module."""
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
