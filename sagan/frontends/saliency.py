"""Which cells of a map of features matter: by the gradient of the logit, or of the entropy of the classes.

With one logit l the entropy H of p = σ(l) has ∂H/∂l = -l·p(1-p): within an image both rank the cells alike, but that
of the entropy is exactly 0 at l = 0, which is where a discriminator's equilibrium lies. So a real/fake head takes the
logit's, and the paper's is for heads of several classes.
"""

import torch
from torch import Tensor


def logit_saliency(logits: Tensor, features: Tensor) -> Tensor:
    """‖∂l/∂c_ij‖₂: logits (B,), computed from features (B, C, h, w) -> (B, h, w), without graph."""
    return _norm_of_gradient(logits.sum(), features)


def entropy_saliency(logits: Tensor, features: Tensor) -> Tensor:
    """‖∂H/∂c_ij‖₂, H = -Σ_k o_k log o_k, o = softmax(logits): (B, K), features (B, C, h, w) -> (B, h, w).

    For heads with K outputs, as in the paper; the logits must have been computed from the features. Without graph.
    """
    log_shares = logits.log_softmax(dim=1)
    return _norm_of_gradient(-(log_shares.exp() * log_shares).sum(), features)


def _norm_of_gradient(value: Tensor, features: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, features, retain_graph=True)
    return gradient.norm(dim=1)  # (B, h, w)
