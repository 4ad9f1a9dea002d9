"""Squeeze-and-Excitation Networks. Hu, Shen, Albanie, Sun, Wu. arXiv:1709.01507, CVPR 2018.

Differs from the paper: the gate is scaled by γ, initially 0 (`gain="none"` is the paper's form); the inner width is at
least 4, because a single inactive ReLU would give every image the same gate.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.layers.precision import at_least_float32


class SqueezeExcitation(AttentionModule):
    """y = x + γ·(s·x - x), s = σ(W₂ ReLU(W₁ z)), z_c = the mean of channel c (eqs. 2–4).

    `reduction` is the paper's r: the inner width is max(⌊C/r⌋, 4). `bias`: of both layers (the released network has
    them). `double`: the gate is 2σ, initially near 1 instead of 1/2; for use without a gain. Map: the gate of every
    channel, the same for all points.
    """

    map_kinds = {"gate": "channel gate"}

    def __init__(
        self, channels: int, resolution: Size, *, reduction: int = 16, bias: bool = True, double: bool = False,
        gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        require(reduction >= 1, f"squeeze_excitation: reduction is {reduction}, it must be at least 1")
        self.largest = 2.0 if double else 1.0
        self.squeeze = nn.Linear(channels, max(channels // reduction, 4), bias=bias)
        self.excite = nn.Linear(self.squeeze.out_features, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3)))))
        gate = self.largest * at_least_float32(logits).sigmoid()  # (B, C)
        self.record("gate", lambda _: gate[:, None, None, None], x.shape)
        return self.blended(x, x * gate[:, :, None, None].to(x.dtype))
