"""A wrong command ends with one message and exit code 2, and leaves every file as it was."""

import fcntl
import io
import resource
import shlex
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from bad_input import CASES, Case
from bad_input_workspace import build_workspace
from command_line import cut_off, sagan

MOST_LINES = 5
Tree = dict[str, bytes | None]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder as working folder; one run in it is locked, as by another process."""
    root = tmp_path_factory.mktemp("workspace")
    with cut_off(root):
        build_workspace()
        with open("run_locked/.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield root


@pytest.fixture(scope="module")
def contents(workspace: Path) -> Tree:
    """What the folder holds before the next case, without the folder `out`."""
    return tree(workspace)


def tree(folder: Path) -> Tree:
    """Content of every file below `folder`, and None for every folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command[:80])
def test_a_mistake_is_one_message_and_changes_nothing(
    case: Case, workspace: Path, contents: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    message, (unlimited, hard) = io.StringIO(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, value in case.environment:
        monkeypatch.setenv(name, value)
    resource.setrlimit(resource.RLIMIT_FSIZE, (case.limit or unlimited, hard))
    try:
        with redirect_stderr(message), redirect_stdout(io.StringIO()):
            code = sagan(*shlex.split(case.command))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, hard))
    after = tree(workspace)
    shutil.rmtree("out", ignore_errors=True)  # what should not be there must not disturb the next case
    changed = [n for n in sorted({*contents, *after}) if contents.get(n, "absent") != after.get(n, "absent")]
    contents.clear()
    contents.update({name: content for name, content in after.items() if Path(name).parts[0] != "out"})
    assert case.words in message.getvalue()
    assert code == 2
    assert len(message.getvalue().splitlines()) <= MOST_LINES
    assert changed == [] or case.began
