"""Every message that sagan/ can refuse a user with, read from its source; … stands for what is filled in."""

import ast
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

SAGAN = Path(__file__).parent.parent / "sagan"
ALWAYS = {"UserError", "UsageError", "BadParameter"}  # wherever it is raised or made, a user reads it
HANDED_ON = {  # where ValueError becomes a UserError, and what is put before it
    "attention": "….attention.…: ", "settings.py": "…: ", "network_settings.py": "…: ",
}  # fmt: skip
MOST = 0.7  # of a row's letters must stand in the message too
PIECE = 8  # that many in one place


class Message(NamedTuple):
    """A message as `text`, and where: the file relative to sagan/, the function."""

    file: str
    function: str
    text: str


@cache
def messages() -> list[Message]:
    """In the order of files and lines."""
    return [message for path in sorted(SAGAN.rglob("*.py")) for message in _of_file(path)]


def _of_file(path: Path) -> Iterator[Message]:
    name = path.relative_to(SAGAN).as_posix()
    before = HANDED_ON.get(name.split("/")[0])
    refusing = ALWAYS if before is None else ALWAYS | {"ValueError"}
    for function, call in _calls(ast.parse(path.read_text()), "module"):
        called = getattr(call.func, "id", getattr(call.func, "attr", ""))
        place = {"require": 1, "fail": 0}.get(called, 0 if called in refusing else None)
        if place is not None and len(call.args) > place:
            for text in _texts(call.args[place]):
                yield Message(name, function, f"{before or ''}{text}")


def _calls(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield function, child
        inner = child.name if isinstance(child, ast.FunctionDef | ast.ClassDef) else function
        yield from _calls(child, inner)


def _texts(node: ast.expr) -> list[str]:
    """What the expression can be: one text, or one for each side of a condition."""
    match node:
        case ast.Constant():
            return [str(node.value)]
        case ast.JoinedStr():
            return _joined([_texts(part) for part in node.values])
        case ast.FormattedValue(value=ast.IfExp() as inner) | (ast.IfExp() as inner):
            return _texts(inner.body) + _texts(inner.orelse)
        case ast.BinOp(op=ast.Add()):
            return _joined([_texts(node.left), _texts(node.right)])
    return ["…"]


def _joined(parts: list[list[str]]) -> list[str]:
    whole = [""]
    for choices in parts:
        whole = [before + choice for before in whole for choice in choices]
    return whole


def explains(row: str, message: str) -> bool:
    """Whether one text fits both, with anything around the row, and most of the row's letters are literal in both."""
    pieces = [row[start : start + PIECE] for start in range(len(row) - PIECE + 1)]
    if not any(piece in message for piece in pieces if "…" not in piece):
        return False  # what follows takes long
    return _shared(f"…{row}…", message) >= MOST * len(row.replace("…", ""))


def _shared(a: str, b: str) -> float:
    """The most characters that are literal in both patterns, of texts that fit both; below 0 where none does."""
    shared = [0.0]  # shared[j]: of the characters of `a` so far and b[:j]
    for y in b:
        shared.append(shared[-1] if y == "…" else -math.inf)
    for x in a:
        above, shared = shared, [shared[0] if x == "…" else -math.inf]
        for j, y in enumerate(b, 1):
            if "…" in (x, y):
                shared.append(max(above[j], shared[-1]))
            else:
                shared.append(above[j - 1] + 1 if x == y else -math.inf)
    return shared[-1]
