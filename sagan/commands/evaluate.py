"""`sagan evaluate`: scores of a run, a snapshot, a folder or an .npz, with the protocol they were taken by."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sagan.commands.evaluate_options import Options, check_options
from sagan.commands.measured import Source, recognise
from sagan.evaluation.choices import parse_metrics
from sagan.evaluation.metric_names import DIRECTION
from sagan.files import append_json_line, write_json

if TYPE_CHECKING:
    from sagan.commands.scored import Result


def evaluate_command(options: Options) -> None:
    """Score a source; print the card, keep it in the run's metrics.jsonl or in `options.out`.

    Under torchrun all processes share the work. UserError for everything that is wrong with source, reference, weights
    or options, before anything is computed.
    """
    asked = None if options.metrics is None else parse_metrics(options.metrics)
    source = recognise(options.source)
    check_options(options, source, asked)
    files = source.kind in ("prepared", "files")

    from sagan.commands.scored import score_files, score_generators
    from sagan.evaluation.processes import process_group
    from sagan.sampling import pick_device, processes

    rank, world = processes()
    device = pick_device(options.device)
    options = replace(options, quiet=rank > 0)
    with process_group(world, device):
        if files:
            results = score_files(source, options, asked or ("fid",), device)
        else:
            results = score_generators(source, options, asked, device)
    if rank == 0:
        _tell(results, source, options)


def _tell(results: "list[Result]", source: Source, options: Options) -> None:
    """Keep and print the result; of several modes the best one is the result, the others stand beside it."""
    best = _best(results)
    record = best.card.to_dict()
    if len(results) > 1:
        record["modes"] = {one.mode: one.card.values for one in results}
        record["best_mode"] = best.mode
    if best.step is not None:
        record = {"step": best.step, **record}
    if best.sheet is not None:
        from sagan.images import save_png

        save_png(_sheet_path(source, options, best), best.sheet)
    if options.out is not None:
        write_json(options.out, record)
    elif source.run is not None:
        append_json_line(source.run / "metrics.jsonl", record)
    if options.as_json:
        print(json.dumps(record))
        return
    if len(results) > 1:
        print(_modes_table(results, best) + "\n")
    print(best.card.to_table())
    if best.sheet is not None:
        print(_sheet_path(source, options, best))


def _best(results: "list[Result]") -> "Result":
    """By the first score that has a direction."""
    name = next((name for name in results[0].card.values if name in DIRECTION), None)
    return results[0] if name is None else max(results, key=lambda one: DIRECTION[name] * one.card.values[name])


def _modes_table(results: "list[Result]", best: "Result") -> str:
    names = list(best.card.values)
    rows = [["", *names], *([one.mode, *(f"{one.card.values[n]:.4g}" for n in names)] for one in results)]
    rows[1 + results.index(best)].append("best")
    width = max(len(row[0]) for row in rows)
    return "\n".join("  ".join([row[0].ljust(width), *(cell.rjust(10) for cell in row[1:])]) for row in rows)


def _sheet_path(source: Source, options: Options, result: "Result") -> Path:
    if options.out is not None:
        return options.out.with_name(f"{options.out.stem}-nearest.png")
    assert source.run is not None
    step = 0 if result.step is None else result.step
    return source.run / "samples" / f"{step:08d}-nearest.png"
