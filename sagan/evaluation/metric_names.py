"""The scores by name: which way is better, and which fields of a protocol belong to one of them alone."""

from sagan.evaluation.choices import MANIFOLD, ON_FEATURES

# Of lpips_diversity more is better only while the images stay plausible: noise is the most diverse of all. It says
# whether a generator collapses, and nothing about quality; it is read beside FID or precision, never by itself.
DIRECTION: dict[str, int] = {  # +1: higher is better, -1: lower; in the order in which they are shown
    "fid": -1,
    "kid": -1,
    "is": +1,
    "precision": +1,
    "recall": +1,
    "density": +1,
    "coverage": +1,
    "intra_fid": -1,
    "lpips_diversity": +1,
    "coherence": +1,
    "two_objects": +1,
    "hue_agreement": +1,
    "shape_agreement": +1,
}

PARAMETERS_OF: dict[str, tuple[str, ...]] = {  # field of a protocol -> the scores that it decides; others: all
    "kid": ("kid",),
    "inception_score": ("is",),
    "manifold": MANIFOLD,
    "lpips": ("lpips_diversity",),
    "lpips_sha256": ("lpips_diversity",),
    "backbone": ON_FEATURES,
    "backbone_sha256": ON_FEATURES,
    "backbone_input": ON_FEATURES,
}
