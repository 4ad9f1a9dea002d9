"""Selective Kernel Networks. Li, Wang, Hu, Yang. arXiv:1903.06586, CVPR 2019.

Differs from the paper: no norm by default (`norm="batch"` is the paper's); without a norm the convolutions have biases;
after a block or on a branch it is scaled by γ, initially 0. In place of a convolution (`place: conv`) or with
`gain="none"` it is the paper's form.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.attention.functional import largest_divisor, make_norm
from sagan.layers.precision import at_least_float32


class SelectiveKernel(AttentionModule):
    """y = x + γ·(V - x), V = Σ_i a_i·U_i (eq. 6), U_i = ReLU(norm(conv_i x)); as a convolution y = V.

    conv_i: 3×3 with dilation i = 1…`paths`, in as many groups as the largest divisor of C that is at most `groups`.
    s = mean over the map of Σ_i U_i (eqs. 1, 2); z = ReLU(norm(W s)), max(⌊C/reduction⌋, 32) wide (eqs. 3, 4);
    a = softmax over the paths of A z, for every channel (eq. 5). W and A have no biases. `norm`: "none", "batch" or
    "group" (of z: over all of its channels, since one cell has no statistics of its own). `relu: false` omits the ReLU
    of U_i, so V may be negative. Map: the share of every kernel (a head) in every channel, the same for all points.
    """

    map_kinds = {"kernels": "kernel choice"}
    places = ("after", "branch", "conv")

    def __init__(
        self, channels: int, resolution: Size, *, paths: int = 2, groups: int = 32, reduction: int = 16,
        norm: str = "none", relu: bool = True, gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        require(paths >= 2, f"selective_kernel: paths is {paths}, there must be at least 2 to choose from")
        require(groups >= 1, f"selective_kernel: groups is {groups}, it must be at least 1")
        require(reduction >= 1, f"selective_kernel: reduction is {reduction}, it must be at least 1")
        self.groups = largest_divisor(channels, groups)
        width = max(channels // reduction, 32)
        self.norm, self.relu = norm, relu
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=i, dilation=i, groups=self.groups, bias=norm == "none")
            for i in range(1, paths + 1)
        )
        self.norms = nn.ModuleList(make_norm(norm, channels) for _ in range(paths))
        self.squeeze = nn.Linear(channels, width, bias=False)
        self.squeeze_norm = nn.GroupNorm(1, width) if norm == "group" else make_norm(norm, width)
        self.select = nn.Linear(width, paths * channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He et al. (2015) for the convolutions: Xavier's fan-out would count the channels of all groups."""
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        processes = dist.get_world_size() if dist.is_initialized() else 1
        require(
            self.norm != "batch" or not self.training or len(x) * processes > 1,
            "selective_kernel: norm batch needs at least 2 images in training, got 1; use norm group or none",
        )
        features = [norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True)]  # U_i, (B, C, H, W)
        if self.relu:
            features = [F.relu(feature) for feature in features]
        pooled = torch.stack([feature.mean(dim=(2, 3)) for feature in features]).sum(dim=0)  # s, (B, C) (eqs. 1, 2)
        squeezed = F.relu(self.squeeze_norm(self.squeeze(pooled)[..., None, None])).flatten(1)  # z, (B, width) (eq. 3)
        logits = self.select(squeezed).unflatten(1, (len(features), -1))  # (B, paths, C)
        shares = at_least_float32(logits).softmax(dim=1)  # a (eq. 5)
        self.record("kernels", lambda _: shares[:, :, None, None], x.shape)
        weights = shares.to(features[0].dtype)[..., None, None]  # (B, paths, C, 1, 1)
        chosen = weights[:, 0] * features[0]
        for i in range(1, len(features)):
            chosen = torch.addcmul(chosen, weights[:, i], features[i])
        return self.blended(x, chosen)
