"""`sagan attend`: what generator and discriminator attend to, as figures, arrays, page, animation, and in numbers."""

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from sagan.commands.attend_options import DEFAULT_POINTS, Options, check_options, parse_pixels
from sagan.commands.measured import recognise
from sagan.files import check_folder_place, make_folder
from sagan.selections import parse_seeds

if TYPE_CHECKING:
    from torch import nn

    from sagan.commands.attended import Subject
    from sagan.inspection.maps import Points, Recording

RANDOM, GRID = 5, 9  # how many points `random` and `grid` are


def attend_command(options: Options) -> None:
    """Write what `options` ask for into `options.out`, and print whether attention does anything.

    UserError for anything that cannot be had, before `options.out` is touched; also for a network without attention.
    """
    seeds = parse_seeds(options.seeds)
    source = recognise(options.source)
    check_options(options, source)
    check_folder_place(options.out)

    from sagan.commands.attend_extras import write_ablation, write_animation, write_html
    from sagan.commands.attend_report import ablation_sentences
    from sagan.commands.attended import open_subject, record_discriminator, record_generator
    from sagan.images import save_png
    from sagan.inspection.figure import attention_figure
    from sagan.inspection.maps import save_npz
    from sagan.inspection.page_data import page_data_of

    subject = open_subject(source, options, seeds)
    points = _points(options, subject.generator.resolution)
    recordings: dict[str, Recording] = {}
    if options.of_generator:
        recordings["attention"] = record_generator(subject, points, options.layers)
    if options.of_discriminator:
        recordings |= record_discriminator(subject, points, options)
    page = None
    if options.html:  # which may refuse, and must do so before anything is written
        page = page_data_of(subject.generator, subject.z, subject.labels, subject.seeds, progress=True)
    make_folder(options.out)
    written = []
    for name, recording in recordings.items():
        save_npz(options.out / f"{name}.npz", recording)
        save_png(options.out / f"{name}.png", attention_figure(recording, options.smooth, options.tile))
        written += [options.out / f"{name}.png", options.out / f"{name}.npz"]
    report, said = _report(subject, recordings)
    if options.of_generator:
        change, path = write_ablation(subject, options)
        report["ablation"] = change
        said += ["", *ablation_sentences(change)]
        written.append(path)
    if page is not None:
        written.append(write_html(page, options, report["attention"]))
    if options.animate is not None:
        written.append(write_animation(source, subject, points, options))
    if options.as_json:
        print(json.dumps(report))
    else:
        print("\n".join([*said, "", *map(str, written)]))


def _points(options: Options, resolution: int) -> "Points":
    import torch

    from sagan.inspection.points import grid_points, pixel_points, random_points, salient_points

    if options.at is not None:
        return pixel_points(torch.tensor(parse_pixels(options.at)), resolution, resolution)
    chosen = options.points or DEFAULT_POINTS
    if chosen == "grid":
        return grid_points(GRID)
    return random_points(RANDOM) if chosen == "random" else partial(salient_points, k=int(chosen))


def _report(subject: "Subject", recordings: "dict[str, Recording]") -> tuple[dict[str, Any], list[str]]:
    """The numbers, for JSON, and the same in plain words."""
    from sagan.commands.attend_report import partner_numbers, partner_sentence, table
    from sagan.data.shapes import CLASSES
    from sagan.inspection.ablation import agreement_with_untrained
    from sagan.inspection.health import attention_health, describe

    report: dict[str, Any] = {"images": len(subject.seeds)}
    said: list[str] = []
    for name, recording in recordings.items():
        network: nn.Module | None = subject.generator if name == "attention" else subject.discriminator
        assert network is not None
        health = attention_health(network, recording.maps, recording.points)
        if name == "attention":
            for layer, agreement in agreement_with_untrained(
                subject.generator, recording, subject.z, subject.labels
            ).items():
                health[layer]["untrained"] = agreement
        said += ["", name] * (len(recordings) > 1) + [describe(health)]
        partners = partner_numbers(recording) if recording.class_names == CLASSES else {}
        said += [partner_sentence(layer, numbers) for layer, numbers in partners.items()]
        if recording.class_names == CLASSES and not partners:
            said.append("no query point lies on one of two clear objects: attention to the partner is not measured")
        said += ["", table(health)]
        report[name] = health
        report["partner" if name == "attention" else f"{name}-partner"] = partners
    return report, said if said[0] else said[1:]
