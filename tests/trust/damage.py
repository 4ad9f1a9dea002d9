"""Random damage to files that leaves most of them intact, and what any reader must do then."""

import copy
import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from sagan.utils.errors import UserError

LENGTHS = pytest.mark.parametrize("examples", [100, pytest.param(2_000, marks=pytest.mark.soak)])
SECONDS = 5.0
TOKENS = [
    b"", b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\xff" * 4, b"\x00\x00\x00\x80", b"-1", b"1e400", b"NaN",
    b"[" * 60, b"9" * 30, b"null", b"{}", b'"\\ud800"', b"\x1b[2J", b"\n", b"(-2, ", b"|O", b"'descr'", b"F64", b"..",
    b"!!python/name:os.x ", b"&a [*a]", b"<<: ", b"*a", b"PK\x05\x06", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x02",
    b"data_offsets",
]  # fmt: skip
HOSTILE = [
    None, True, -1, 0, 1.5, 10**9, 10**30, -(10**30), float("nan"), float("inf"), "", "x", "\x1b[2J", "\ud800", "a\nb",
    "x" * 5000, [], {}, [[]], [None], {"": 0}, [1] * 100, "../..", "/etc/passwd",
]  # fmt: skip


def fuzzing(examples: int) -> settings:
    """Always the same inputs, none kept; each may take `SECONDS`."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=1000 * SECONDS, suppress_health_check=checks
    )


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with bytes flipped, cut out, inserted or repeated, or its end missing, a few times."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(result) - 1, 0)))
        if draw(st.booleans()):  # headers and ends are where formats say what they hold
            at = draw(st.integers(0, min(len(result), 300))) if draw(st.booleans()) else max(len(result) - at % 300, 0)
        kind = draw(st.sampled_from(["flip", "token", "over", "cut", "end", "repeat"]))
        if kind == "flip" and at < len(result):
            result[at] ^= 1 << draw(st.integers(0, 7))
        elif kind in ("token", "over"):
            token = draw(st.sampled_from(TOKENS) | st.binary(max_size=8))
            result[at : at + len(token) * (kind == "over")] = token
        elif kind == "cut":
            del result[at : at + draw(st.integers(1, 40))]
        elif kind == "end":
            del result[at:]
        elif kind == "repeat":
            result[at:at] = result[at : at + draw(st.integers(1, 40))]
    return bytes(result)


@st.composite
def altered_json(draw: st.DrawFn, content: Any) -> bytes:
    """JSON with values replaced by hostile ones, and names left out, added or doubled, at any depth."""
    tree = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        inner = tree
        while isinstance(inner, dict | list) and inner:
            key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
            if not isinstance(inner[key], dict | list) or draw(st.booleans()):
                inner[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
                break
            inner = inner[key]
        if isinstance(inner, dict) and draw(st.booleans()):
            name = draw(st.sampled_from(["format", "name", "place", "\x1b", "x" * 300]))
            inner[name] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        elif isinstance(inner, dict) and inner and draw(st.booleans()):
            del inner[draw(st.sampled_from(sorted(inner)))]
    return json.dumps(tree).encode()


def taken_or_refused(read: Callable[[], object]) -> bool:
    """Whether it was taken; what is refused is one printable line. Anything else, warnings too, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            read()
            return True
        except UserError as error:
            message = str(error)
    assert message.isprintable(), repr(message)
    assert 0 < len(message) < 2000
    return False
