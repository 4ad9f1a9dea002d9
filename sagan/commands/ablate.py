"""`sagan ablate`: one config in variants, each trained with the same seeds, and a table and a picture of them."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from sagan.commands.ablate_check import Checked, check_variants
from sagan.commands.ablate_numbers import Row, record_of, rows_of
from sagan.commands.ablate_options import Options, check_options
from sagan.commands.ablate_plan import Ablation, Key, Outcome, merged, plan_of, read_ablation, run_name, save_ablation
from sagan.commands.ablate_runs import train_runs
from sagan.commands.ablate_table import markdown, notes, print_table
from sagan.files import atomic_file, check_folder_place
from sagan.rundir import lock_run

PIPED_WIDTH = 160  # characters
PICTURE, TEXT = "ablation.png", "ablation.md"


def ablate_command(options: Options) -> int:
    """Train what is not trained yet and show all that is. Exit code: 1 when a run failed, 128 + n after signal n.

    UserError for everything that is wrong with options, config, variants, data or machine, before anything is written.
    """
    check_options(options)
    if options.shows_again:
        found = read_ablation(options.config)
        assert found is not None
        _report(found, options.as_json, picture=True)
        return 0
    assert options.out is not None
    plan = plan_of(options)
    check_folder_place(options.out)
    found = merged(options.out, plan)
    done = all(found.finished(key) and key[0] in found.parameters for key in plan.runs)
    checked = Checked({}, "cpu") if done else check_variants(plan.configs, options.out)
    with lock_run(options.out):
        ablation = merged(options.out, plan)
        ablation = replace(ablation, parameters=ablation.parameters | checked.parameters)
        return _train(ablation, plan.runs, options, checked)


def _train(ablation: Ablation, asked: Sequence[Key], options: Options, checked: Checked) -> int:
    runs = dict(ablation.runs)
    ablation = replace(ablation, runs=runs)
    save_ablation(ablation, {})

    def ended(key: Key, outcome: Outcome) -> None:
        runs[key] = outcome
        save_ablation(ablation, {})
        if outcome.state != "done":
            print(
                f"{run_name(key)} {outcome.state}: {outcome.reason or 'goes on with the same command'}", file=sys.stderr
            )

    waiting = [key for key in asked if not ablation.finished(key)]
    stopped = train_runs(ablation, waiting, options.slots, checked.device == "cuda", ended) if waiting else None
    _report(ablation, options.as_json, picture=stopped is None)
    if stopped is not None:
        return 128 + stopped
    return 1 if any(not ablation.finished(key) for key in asked) else 0


def _report(ablation: Ablation, as_json: bool, picture: bool) -> None:
    """Write ablation.json, ablation.md and, unless told to stop, ablation.png; print the table or the object."""
    rows = rows_of(ablation)
    results = {"variants": record_of(rows), "notes": notes(ablation, rows)}
    save_ablation(ablation, results)
    written = [ablation.folder / TEXT]
    if picture and any(row.runs for row in rows):
        _write_picture(ablation, rows)
    if (ablation.folder / PICTURE).is_file():
        written.append(ablation.folder / PICTURE)
    with atomic_file(ablation.folder / TEXT) as temporary:
        temporary.write_text(markdown(ablation, rows, PICTURE if len(written) > 1 else None))
    if as_json:
        print(json.dumps(results))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH
        print_table(ablation, rows, Console(width=width, file=sys.stdout))
    print("\n".join(map(str, written)), file=sys.stderr if as_json else sys.stdout)


def _write_picture(ablation: Ablation, rows: Sequence[Row]) -> None:
    from sagan.commands.ablate_picture import ablation_picture
    from sagan.images import save_png

    picture = ablation_picture(ablation, rows)
    assert picture is not None
    save_png(ablation.folder / PICTURE, picture)
