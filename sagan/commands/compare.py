"""`sagan compare`: runs side by side, from their files: settings, scores by protocol, curves and samples."""

import difflib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from sagan.comparison.history import history_text
from sagan.comparison.published_table import RECOGNISE, published_data, published_record, published_text
from sagan.comparison.record import comparison_record
from sagan.comparison.runs import read_runs
from sagan.comparison.scores import Comparison, compare
from sagan.comparison.table import table_text
from sagan.errors import UserError
from sagan.evaluation.metric_names import DIRECTION
from sagan.published import published_results

PIPED_WIDTH = 120  # characters


def compare_command(
    runs: Sequence[Path], published: str | None, metric: str | None, out: Path | None, as_json: bool
) -> None:
    """Print the table of several runs, or the history of one; with `out` (a .png) draw curves and samples as well.

    `published`: results of the literature beside it: the name of a data set, or "auto" for the runs' own; None: none.
    `metric`: show and draw this one alone. `as_json`: one object on stdout. UserError for anything that cannot be had,
    before `out` is touched.
    """
    _check(runs, published, metric, out)
    comparison = _read(runs, metric)
    data = [] if published is None else published_data(comparison.runs, published)
    if out is not None:
        from sagan.comparison.picture import comparison_picture
        from sagan.images import save_png

        save_png(out, comparison_picture(comparison))
    if as_json:
        print(json.dumps({**comparison_record(comparison), **(published_record(data) if data else {})}))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH
        table = history_text if len(comparison.runs) == 1 else table_text
        print("\n\n".join([table(comparison, width), *(published_text(name, width) for name in data)]))
    if out is not None:
        print(out, file=sys.stderr if as_json else sys.stdout)


def _check(runs: Sequence[Path], published: str | None, metric: str | None, out: Path | None) -> None:
    """UserError for what can be seen to be wrong before a run is read."""
    if not runs:
        raise UserError("no run is named; name the folders of one run or more")
    if metric is not None and metric not in DIRECTION:
        near = difflib.get_close_matches(metric, DIRECTION, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(DIRECTION)}"
        raise UserError(f"--metric {metric}: unknown metric; {hint}")
    if published is not None and published != RECOGNISE:
        if Path(published).is_dir():
            raise UserError(f"--published {published}: is a folder, not a data set; put --published behind the runs")
        published_results(published)
    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: a comparison is drawn as a .png; give a name that ends in .png")
    if out is not None and out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a .png file")


def _read(folders: Sequence[Path], metric: str | None) -> Comparison:
    """The runs and their scores; UserError when a metric is asked for that none of them has."""
    runs = read_runs(folders)
    known = compare(runs).metrics()
    if metric is not None and metric not in known:
        have = f"they have {', '.join(known)}" if known else "they have no score yet"
        raise UserError(f"--metric {metric}: none of these runs was measured so; {have}")
    return compare(runs, only=metric)
