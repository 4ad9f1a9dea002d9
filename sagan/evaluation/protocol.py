"""What stands beside every score: how it was measured. Scores of different protocols are not comparable."""

from importlib.metadata import version
from typing import Any

from pydantic import Field

from sagan.settings import Count, Positive, Settings

RECORDED = ("sagan", "torch", "torchvision", "torch-fidelity", "lpips", "numpy")
NOT_COMPARED = ("versions", "seeds", "checkpoint_step")  # they change a score by chance or rounding, not by definition


class Protocol(Settings):
    """Everything that decides a score but the generator itself. None: does not apply to what was measured.

    Attributes:
        images: "generated", or "files" for a folder or an .npz.
        num: how many were scored; size: their height and width.
        seeds: inclusive ranges, one for each repeat.
        labels: "reference" (its exact class frequencies), "uniform", "as stored" or "none".
        weights: "averaged" or "raw"; batch_norm: "running" or "standing" statistics.
        reference, reference_hash, reference_count: display name, content hash and size of what was compared with.
        reference_resize: "crop" or "squash", how it was brought to `size`; "as is" where it was not.
        backbone, backbone_sha256: network of the features and its weights; backbone_input: what it is shown.
        kid, inception_score, manifold: their parameters, in words.
        lpips, lpips_sha256: backbone and weights of LPIPS.
    """

    images: str
    num: Positive
    size: tuple[int, int]
    lossy: bool = False
    seeds: str | None = None
    labels: str | None = None
    weights: str | None = None
    batch_norm: str | None = None
    truncation: float | None = None
    checkpoint_step: Count | None = None
    reference: str | None = None
    reference_hash: str | None = None
    reference_count: Count | None = None
    reference_resize: str | None = None
    backbone: str | None = None
    backbone_sha256: str | None = None
    backbone_input: str | None = None
    dtype: str = "float32, sums in float64"
    kid: str | None = None
    inception_score: str | None = None
    manifold: str | None = None
    lpips: str | None = None
    lpips_sha256: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)


def versions() -> dict[str, str]:
    """Version of each library that takes part in a score."""
    return {name: version(name) for name in RECORDED}


def protocol_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the fields in which two protocols differ so that their scores must not be compared; [] for none.

    Both as plain values, as in metrics.jsonl. A field that one of them lacks counts as None.
    """
    names = dict.fromkeys([*one, *other])
    return [name for name in names if name not in NOT_COMPARED and _plain(one.get(name)) != _plain(other.get(name))]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
