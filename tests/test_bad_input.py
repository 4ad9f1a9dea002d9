"""A user's mistake is one clear message, exit code 2, nothing half-written."""

import fcntl
import io
import resource
import shlex
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
from bad_input_ablation import ABLATION, EXPORT, FRONT_ENDS
from bad_input_attention import ATTENTION
from bad_input_cases import CASES as OTHER_CASES
from bad_input_cases import Case
from bad_input_comparison import COMPARISON
from bad_input_data import DATA
from bad_input_evaluation import EVALUATION
from bad_input_measuring import MEASURING
from bad_input_mechanisms import MECHANISMS
from bad_input_sampling import SAMPLING
from bad_input_workspace import build_workspace
from command_line import cut_off, sagan

CASES = [
    *OTHER_CASES, *DATA, *SAMPLING, *EVALUATION, *MEASURING, *COMPARISON, *ATTENTION, *MECHANISMS, *ABLATION, *EXPORT,
    *FRONT_ENDS,
]  # fmt: skip
MOST_LINES = 5
Tree = dict[str, bytes | None]


class Outcome(NamedTuple):
    """What a case came to: exit code, stderr, and the names of all that is no longer as it was."""

    code: int
    message: str
    changed: list[str]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of broken things, as working folder; one run in it is locked, as by another process."""
    root = tmp_path_factory.mktemp("workspace")
    with cut_off(root):
        build_workspace()
        with open("run_locked/.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield root


@pytest.fixture(scope="module")
def outcomes(workspace: Path) -> dict[Case, Outcome]:
    found, before = {}, tree(workspace)
    for case in CASES:
        found[case], before = attempt(case, workspace, before)
    return found


def attempt(case: Case, workspace: Path, before: Tree) -> tuple[Outcome, Tree]:
    """What comes of a case, and the workspace after it, without the folder `out`; `before`: the workspace before it."""
    message = io.StringIO()
    unlimited, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(message), redirect_stdout(io.StringIO()):
        for name, value in case.environment:
            patch.setenv(name, value)
        resource.setrlimit(resource.RLIMIT_FSIZE, (case.limit or unlimited, hard))
        try:
            code = sagan(*shlex.split(case.command))
        except Exception as error:  # what a user would see as a traceback
            code = -1
            print(f"Traceback … {type(error).__name__}: {error}", file=message)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, hard))
    after = tree(workspace)
    shutil.rmtree("out", ignore_errors=True)  # what should not be there must not disturb the next case
    changed = [n for n in sorted(before.keys() | after.keys()) if before.get(n, "absent") != after.get(n, "absent")]
    kept = {name: content for name, content in after.items() if Path(name).parts[0] != "out"}
    return Outcome(code, message.getvalue(), changed), kept


def tree(folder: Path) -> Tree:
    """Content of every file below `folder`, and None for every folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command[:80])
def test_a_mistake_is_one_message_and_leaves_nothing(case: Case, outcomes: dict[Case, Outcome]) -> None:
    """Breaks when a mistake passes, ends in a traceback or in a wall of text, is not named, or when any file or folder
    is made, changed or removed before it is found."""
    code, message, changed = outcomes[case]
    assert "Traceback" not in message
    assert case.says in message
    assert code == 2
    assert len(message.splitlines()) <= MOST_LINES
    assert changed == [] or case.began
