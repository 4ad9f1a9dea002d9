"""Protocols in words: how a score was measured, and in what two ways of measuring differ."""

import re
from typing import Any

from sagan.comparison.columns import value_text
from sagan.evaluation.protocol import protocol_differences

UNKNOWN = "no protocol stands beside it (an older version wrote it): comparable with nothing"


def protocol_words(protocol: dict[str, Any]) -> str:
    """Such as "10,000 generated images, 32x32, labels: uniform, against cifar10 (50,000 images), inception"."""
    images = "images of files" if protocol.get("images") == "files" else "generated images"
    words = [f"{_text(protocol.get('num'))} {images}"]
    words += [_text(protocol["size"])] if "size" in protocol else []
    for name, what in (("weights", "weights"), ("batch_norm", "batch-norm statistics")):
        words += [f"{_text(protocol[name])} {what}"] if name in protocol else []
    words += [f"{name}: {_text(protocol[name])}" for name in ("labels", "truncation") if name in protocol]
    if "reference" in protocol:
        count = f" ({_text(protocol['reference_count'])} images)" if "reference_count" in protocol else ""
        words.append(f"against {_text(protocol['reference'])}{count}")
    words += [_text(protocol["backbone"])] if "backbone" in protocol else []
    return ", ".join(words)


def difference_words(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The fields in which two protocols differ, with both values: "num 1,000, not 10,000; dtype a, not b"."""
    names = protocol_differences(one, other)
    return "; ".join(f"{name} {_text(one.get(name))}, not {_text(other.get(name))}" for name in names)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:8]
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value_text(value)
