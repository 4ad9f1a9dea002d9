"""A²-Nets: Double Attention Networks. Chen, Kalantidis, Li, Yan, Feng. arXiv:1810.11579, NeurIPS 2018.

Differs from the paper: γ stands in front of the sum (`gain="none"` is the paper's form).
"""

from math import inf

from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.attention.functional import select_points, tokens
from sagan.layers.precision import at_least_float32, full_precision


class DoubleAttention(AttentionModule):
    """y = x + γ·W Z, Z = [A(x) softmax_cells(B(x))ᵀ] softmax_n(V(x)), γ = 0 at first (section 3).

    The first attention gathers n descriptors of m numbers from the whole map; the second distributes a mixture of them
    to each cell. Time and memory are linear in the number of cells. value is the paper's A (m wide), key its B (n),
    query its V (n). `value_ratio` and `key_ratio`: m and n as fractions of C, at least 1. Maps: "attention", for a
    query cell q the composed row Σ_k V_k(q) B_k(·), which sums to 1; "gather", the n maps B_k (as heads), the same for
    all cells.
    """

    map_kinds = {"attention": "softmax row", "gather": "gather map"}

    def __init__(
        self, channels: int, resolution: Size, *, value_ratio: float = 1 / 4, key_ratio: float = 1 / 4,
        bias: bool = True, gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        for name, ratio in (("value_ratio", value_ratio), ("key_ratio", key_ratio)):
            require(0 < ratio < inf, f"double_attention: {name} is {ratio}, must be a positive part of the channels")
        width, descriptors = (max(1, int(channels * ratio)) for ratio in (value_ratio, key_ratio))
        self.value = nn.Conv2d(channels, width, 1, bias=bias)
        self.key = nn.Conv2d(channels, descriptors, 1, bias=bias)
        self.query = nn.Conv2d(channels, descriptors, 1, bias=bias)
        self.out = nn.Conv2d(width, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gather = at_least_float32(self.key(x)).flatten(2).softmax(dim=2)  # (B, n, N)
        mix = at_least_float32(self.query(x)).softmax(dim=1)  # (B, n, H, W)
        self.record("attention", lambda points: self._rows(gather, mix, points), x.shape)
        self.record("gather", lambda _: gather.unflatten(2, x.shape[2:])[:, :, None], x.shape)
        value = self.value(x).flatten(2).to(gather.dtype)  # (B, m, N)
        with full_precision(x.device):
            descriptors = value @ gather.transpose(1, 2)  # (B, m, n)
            attended = descriptors @ mix.flatten(2)  # (B, m, N)
        return self.added(x, self.out(attended.unflatten(2, x.shape[2:]).to(x.dtype)))

    def _rows(self, gather: Tensor, mix: Tensor, points: Tensor) -> Tensor:
        chosen = select_points(tokens(mix), points, mix.shape[3])  # (B, 1, k, n)
        with full_precision(mix.device):
            return (chosen @ gather[:, None]).unflatten(3, mix.shape[2:])  # (B, 1, k, H, W)
