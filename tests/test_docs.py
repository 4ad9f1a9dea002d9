"""README.md and docs/ agree with the code."""

import ast
import pkgutil
import re
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

import sagan
from sagan.cli import COMMANDS, cli
from sagan.config.schema import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATHS = [str(path.relative_to(ROOT)) for path in PAGES]
TEXTS = {path: path.read_text() for path in PAGES}
FROM_LIBRARIES = {"did you mean …?", "known: …"}


def code(text: str) -> list[str]:
    """Lines of code blocks but those in Python (continued lines joined), and inline code."""
    text = re.sub(r"^```python\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks = "".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\\\n\s*", "", blocks).splitlines() + re.findall(r"`([^`\n]+)`", rest)


def is_setting(name: str) -> bool:
    model: object = Config
    for part in name.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return True  # inside a dictionary, such as generator.attention.16
        if part not in model.model_fields:
            return False
        model = model.model_fields[part].annotation
    return True


def anchors(text: str) -> set[str]:
    """Anchors of the headings as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def messages() -> str:
    """Every string in the code, one a line; … stands for what is filled in."""
    found = []
    for path in (ROOT / "sagan").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(text.replace("\n", " ") for text in found)


@pytest.mark.parametrize("page", PAGES, ids=PATHS)
def test_commands_and_options_exist(page: Path):
    wrong = []
    for line in code(TEXTS[page]):
        for name, rest in re.findall(r"(?:^|[ (])sagan ([a-z]+)([^|#;]*)", line):
            command = cli.get_command(click.Context(cli), name) if name in COMMANDS else None
            options = (
                {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {"--help"} if command else set()
            )
            wrong += [f"sagan {name}"] if command is None else []
            wrong += [f"sagan {name} {o}" for o in re.findall(r"(?<!\S)--[a-z][\w-]*", rest) if o not in options]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=PATHS)
def test_options_quoted_alone_exist(page: Path):
    """Of any command of `sagan` or of a benchmark."""
    commands = [cli.get_command(click.Context(cli), name) for name in COMMANDS]
    known = {
        option
        for command in commands
        if command
        for parameter in command.params
        for option in [*parameter.opts, *parameter.secondary_opts]
    }
    known |= {o for path in (ROOT / "benchmarks").glob("*.py") for o in re.findall(r'"(--[\w-]+)"', path.read_text())}
    quoted = {name for line in code(TEXTS[page]) for name in re.findall(r"^--[a-z][\w-]*", line)}
    assert quoted <= known


@pytest.mark.parametrize("page", PAGES, ids=PATHS)
def test_settings_exist(page: Path):
    group = rf"(?<![\w./-])(?:{'|'.join(Config.model_fields)})(?:\.\w+)+(?![\w(/])"
    names = {name for line in code(TEXTS[page]) for name in re.findall(group, line)}
    assert [n for n in sorted(names) if not is_setting(n) and not n.endswith((".onnx", ".pt2", ".pth"))] == []


@pytest.mark.parametrize("page", PAGES, ids=PATHS)
def test_files_and_python_names_exist(page: Path):
    text = TEXTS[page]
    files = set(re.findall(r"(?<![\w/.])(?:benchmarks|configs|sagan|tests)/[\w/]+\.(?:py|yaml)", text))
    assert [name for name in sorted(files) if "NAME" not in name and not (ROOT / name).exists()] == []
    for module, names in re.findall(r"^from (sagan[\w.]*) import (.+)$", text, re.MULTILINE):
        for name in names.split(", "):
            pkgutil.resolve_name(f"{module}:{name}")
    for name in re.findall(r"`(sagan(?:\.\w+){2,})", text):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=PATHS)
def test_links_resolve(page: Path):
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXTS[page]):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(TEXTS[target])):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PATHS)
def test_lines_have_at_most_120_characters(page: str):
    assert [line for line in TEXTS[ROOT / page].splitlines() if len(line) > 120] == []


def test_quoted_messages_exist():
    """Every message in docs/troubleshooting.md occurs in the code."""
    rows = re.findall(r"^\| (`[^|]+`) \|", TEXTS[ROOT / "docs/troubleshooting.md"], re.MULTILINE)
    quoted = {message for row in rows for message in re.findall("`([^`]+)`", row)} - FROM_LIBRARIES
    known = messages()
    assert len(quoted) > 50
    assert [m for m in sorted(quoted) if not re.search(".*".join(map(re.escape, m.split("…"))), known)] == []


def test_the_citation_names_this_version():
    assert f"\nversion: {sagan.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'\nversion = "{sagan.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
