"""SAGAN: prepare images, train a generator, sample, evaluate, and see what its attention does.

Examples:
    >>> run = sagan.train("shapes32", out="runs/shapes")  # doctest: +SKIP
    >>> sagan.sample(run, seeds=16)  # doctest: +SKIP
    >>> sagan.evaluate(run, num=1000)  # doctest: +SKIP
    >>> sagan.attend(run, seeds=4)  # doctest: +SKIP

docs/python.md describes sources, data and results.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sagan.api import Run as Run
    from sagan.api import attend as attend
    from sagan.api import compare as compare
    from sagan.api import evaluate as evaluate
    from sagan.api import prepare as prepare
    from sagan.api import sample as sample
    from sagan.api import train as train
    from sagan.attention.base import record_attention as record_attention
    from sagan.data.dataset import PreparedData as PreparedData
    from sagan.evaluation.result import Scores as Scores
    from sagan.experiments.runs import Comparison as Comparison
    from sagan.inspection.attention import Attention as Attention
    from sagan.models.generator import Generator as Generator
    from sagan.runs.snapshot import load_snapshot as load_snapshot
    from sagan.sampling.writer import Samples as Samples
    from sagan.utils.errors import UserError as UserError

__version__ = "0.1.0"
_MODULES = {  # name -> its module, which is imported when the name is first used
    "prepare": "sagan.api",
    "train": "sagan.api",
    "sample": "sagan.api",
    "evaluate": "sagan.api",
    "attend": "sagan.api",
    "compare": "sagan.api",
    "load_snapshot": "sagan.runs.snapshot",
    "record_attention": "sagan.attention.base",
    "Run": "sagan.api",
    "PreparedData": "sagan.data.dataset",
    "Samples": "sagan.sampling.writer",
    "Scores": "sagan.evaluation.result",
    "Attention": "sagan.inspection.attention",
    "Comparison": "sagan.experiments.runs",
    "Generator": "sagan.models.generator",
    "UserError": "sagan.utils.errors",
}
__all__ = [
    "Attention", "Comparison", "Generator", "PreparedData", "Run", "Samples", "Scores", "UserError", "attend",
    "compare", "evaluate", "load_snapshot", "prepare", "record_attention", "sample", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'sagan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
