"""A user's mistake is one clear message, exit code 2, nothing half-written; docs/troubleshooting.md knows them all."""

import fcntl
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from accelerate.state import AcceleratorState
from bad_input_ablation import ABLATION, EXPORT, FRONT_ENDS
from bad_input_attention import ATTENTION
from bad_input_bench import BENCH
from bad_input_cases import CASES as OTHER_CASES
from bad_input_cases import Case
from bad_input_comparison import COMPARISON
from bad_input_data import DATA
from bad_input_evaluation import EVALUATION
from bad_input_measuring import MEASURING
from bad_input_mechanisms import MECHANISMS
from bad_input_sampling import SAMPLING
from bad_input_workspace import build_workspace
from command_line import sagan
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config
from troubleshooting import ELSEWHERE, NOWHERE, pattern, rows

from sagan.config import differences, load_config, make_config
from sagan.errors import UserError
from sagan.selections import HIGHEST_SEED, parse_classes, parse_seeds

CASES = [
    *OTHER_CASES, *DATA, *SAMPLING, *EVALUATION, *MEASURING, *COMPARISON, *ATTENTION, *MECHANISMS, *ABLATION, *EXPORT,
    *FRONT_ENDS, *BENCH,
]  # fmt: skip
MOST_LINES = 5
Tree = dict[str, bytes | None]
FUZZ = settings(max_examples=200, derandomize=True, database=None, deadline=None)
EARLY = """
import json, shlex, sys
from sagan.cli import main
for command in json.load(sys.stdin):
    try:
        main(shlex.split(command))
    except SystemExit as exit_:
        assert exit_.code == 2, (command, exit_.code)
    assert "torch" not in sys.modules, command
"""


class Outcome(NamedTuple):
    """What a case came to: exit code, stderr, and the names of all that is no longer as it was."""

    code: int
    message: str
    changed: list[str]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of broken things, as working folder; one run in it is locked, as by another process."""
    root = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("HOME", str(root / "home"))
        for name in ("RANK", "WORLD_SIZE", "TORCH_HOME", "XDG_CACHE_HOME", "no_proxy", "NO_PROXY"):
            patch.delenv(name, raising=False)
        for name in ("http_proxy", "https_proxy"):  # nothing is downloaded, and that is found out at once
            patch.setenv(name, "http://127.0.0.1:9")
        urllib.request.install_opener(None)  # an earlier one would not know of these
        AcceleratorState._reset_state(reset_partial_state=True)
        build_workspace()
        with open("run_locked/.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield root
    urllib.request.install_opener(None)


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


def in_a_fresh_process(cases: list[Case], workspace: Path) -> None:
    """Each case must be refused there before torch is imported."""
    environment = dict(cases[0].environment)
    done = subprocess.run(
        [sys.executable, "-c", EARLY], input=json.dumps([case.command for case in cases]), text=True,
        capture_output=True, cwd=workspace, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]


def test_mistakes_are_found_before_torch_is_imported(workspace: Path) -> None:
    """Breaks when a user, or each of many processes, loads torch for seconds to read that a word is misspelt."""
    early = [case for case in CASES if not case.late and case.limit is None]
    alone, launched = [c for c in early if not c.environment], [c for c in early if c.environment]
    assert len(alone) > 100
    in_a_fresh_process(alone, workspace)
    in_a_fresh_process(launched, workspace)


@pytest.mark.parametrize("row", [row for row in rows() if row not in ELSEWHERE and row not in NOWHERE])
def test_every_row_of_the_table_is_met(row: str, outcomes: dict[Case, Outcome]) -> None:
    """Breaks when docs/troubleshooting.md explains a message that does not exist, or words it differently."""
    assert any(re.search(pattern(row), outcome.message) for outcome in outcomes.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command[:80])
def test_every_message_is_in_the_table(case: Case, outcomes: dict[Case, Outcome]) -> None:
    """Breaks when a user looks a message up in docs/troubleshooting.md and does not find it."""
    assert [row for row in rows() if re.search(pattern(row), outcomes[case].message)]


def names(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Every dotted name of a nested config, groups included."""
    inner = [name for key, value in tree.items() if isinstance(value, dict) for name in names(value, f"{prefix}{key}.")]
    return [*(f"{prefix}{key}" for key in tree), *inner]


NAMES = names(tiny_config().to_dict())
KEYS = sorted({part for name in NAMES for part in name.split(".")})
TEXTS = st.text(max_size=8) | st.text("0123456789-,:.{}[]&*!|>%@'\"\\#~ \n\tae_", max_size=12)
VALUES = st.sampled_from(
    ["0", "-1", "1e400", ".inf", ".nan", "~", "yes", "[]", "{}", "[[1]]", "{a: 1}", "!!binary /w==", "2001-01-01",
     "!!set {a}", "&x [*x]", "&x {name: *x}", "*x", "{name: self_attention, pool: &x [*x]}", "9" * 25, "self_attention"]
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates(date(1, 1, 1)) | st.binary(max_size=4)
    | TEXTS | st.sampled_from(["self_attention", "shapes", "cpu"])
)  # fmt: skip


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}; a name below one that has a value of its own is left out."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {}) if isinstance(inner, dict) else inner
        if isinstance(inner, dict):
            inner[last] = value
    return tree


TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.sampled_from([8, 16, 32]) | SCALARS, inner, max_size=4)
    ),
    max_leaves=12,
)
SETTINGS = st.dictionaries(st.sampled_from(NAMES), SCALARS | TREES, max_size=4).map(nested)


@FUZZ
@given(TEXTS | st.lists(st.from_regex(r"[0-9]{1,4}(-[0-9]{1,5})?", fullmatch=True), max_size=3).map(",".join))
def test_any_seeds_are_taken_or_refused(text: str) -> None:
    """Breaks when some text is neither seeds nor a UserError."""
    try:
        seeds = parse_seeds(text)
    except UserError:
        return
    assert len(set(seeds)) == len(seeds) > 0
    assert 0 <= min(seeds) <= max(seeds) <= HIGHEST_SEED


@FUZZ
@given(TEXTS | st.lists(st.sampled_from(["cat", "3", "0-2", "7", "9-9", "a-b", " ", "٣"]), max_size=4).map(",".join),
       st.integers(0, 10))  # fmt: skip
def test_any_classes_are_taken_or_refused(text: str, num_classes: int) -> None:
    """Breaks when some text is neither classes nor a UserError."""
    class_names = ["cat", "dog", "3", "a-b", "", "ä"][:num_classes]
    try:
        classes = parse_classes(text, class_names, num_classes)
    except UserError:
        return
    assert len(set(classes)) == len(classes) > 0
    assert all(0 <= label < num_classes for label in classes)


def must_be_usable(raw: dict[str, Any], overrides: list[str]) -> None:
    """Whatever is not refused must survive being written as config.yaml and read again."""
    try:
        config = make_config(raw, overrides)
    except UserError:
        return
    assert differences(make_config(yaml.safe_load(config.to_yaml())), config) == {}


@FUZZ
@given(st.lists(st.builds("{}={}".format, st.sampled_from(NAMES) | TEXTS, VALUES | TEXTS) | TEXTS, max_size=3))
def test_any_override_is_taken_or_refused(overrides: list[str]) -> None:
    """Breaks when `--set` with some text is neither a config nor a UserError."""
    must_be_usable({}, overrides)


@FUZZ
@given(TREES | SETTINGS)
def test_any_config_is_taken_or_refused(workspace: Path, raw: Any) -> None:
    """Breaks when a file that is YAML is neither a config nor a UserError."""
    path = workspace / "fuzz.yaml"
    path.write_text(yaml.safe_dump(raw))
    try:
        load_config(path)
    except UserError:
        return
    must_be_usable(raw or {}, [])


@FUZZ
@given(
    TEXTS
    | st.lists(TEXTS | VALUES | st.sampled_from([f"{key}: " for key in KEYS]) | st.just("\n"), max_size=8).map("".join)
)
def test_any_file_is_taken_or_refused(workspace: Path, text: str) -> None:
    """Breaks when a file that is hardly YAML is neither a config nor a UserError."""
    path = workspace / "fuzz.yaml"
    path.write_text(text)
    try:
        load_config(path)
    except UserError:
        return
    must_be_usable(yaml.safe_load(path.read_text()) or {}, [])
