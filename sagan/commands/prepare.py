"""`sagan prepare`: images made ready for training, and a report on them."""

import json
import sys
from pathlib import Path

from sagan.data.prepare import prepare
from sagan.files import read_json


def prepare_command(source: str, out: Path, resolution: int, resize: str, skip_bad: bool, as_json: bool) -> None:
    """Prepare `source` into `out` and print the doctor's report; with `as_json` as one object, all else on stderr."""

    def report(line: str) -> None:
        print(line, file=sys.stderr if as_json else sys.stdout)

    data = prepare(source, out, resolution, resize=resize, skip_bad=skip_bad, report=report)
    if as_json:
        print(json.dumps({"out": str(out), **read_json(data.folder / "report.json")}))
    else:
        print(f"{out}: ready; look at {out / 'contact_sheet.png'}")
