"""Self-Attention Generative Adversarial Networks. Zhang, Goodfellow, Metaxas, Odena. arXiv:1805.08318, ICML 2019.

Differs from the paper's text, as the released code does: keys and values are max-pooled 2×2 after their
projections, and the value is C/2 wide. `pool=False, value_ratio=0.125` is the text's form.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.attention.functional import dot_product_attention, feature_map, softmax_rows, tokens


class SelfAttention(AttentionModule):
    """y = x + γ·W_v Σ_i softmax_i(f(x_i)·g(x_j)) h(x_i), γ = 0 at first (eqs. 1–3).

    query is the paper's g (theta in the code), key its f (phi), value its h (g), out its v (o). `query_ratio` and
    `value_ratio`: widths as fractions of C. `pool`: 2×2 max-pooling of key and value, which drops a last odd row or
    column. Map of a query cell: its softmax row over the (pooled) keys.
    """

    map_kinds = {"attention": "softmax row"}
    editable = True

    def __init__(
        self, channels: int, resolution: Size, *, pool: bool = True, query_ratio: float = 1 / 8,
        value_ratio: float = 1 / 2, bias: bool = False, gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        inner, outer = int(channels * query_ratio), int(channels * value_ratio)
        fits = min(inner, outer) >= 1
        require(fits, f"self_attention: {channels} channels are too few for its query and value widths")
        self.pool = pool
        self.require_poolable(self.resolution)
        self.query = nn.Conv2d(channels, inner, 1, bias=bias)
        self.key = nn.Conv2d(channels, inner, 1, bias=bias)
        self.value = nn.Conv2d(channels, outer, 1, bias=bias)
        self.out = nn.Conv2d(outer, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        query = tokens(self.query(x))  # (B, 1, N, d)
        key, value = self._pooled(self.key(x)), self._pooled(self.value(x))  # (B, d, H', W'), (B, e, H', W')
        place = x.shape[3], (key.shape[2], key.shape[3]), 1, self.edit
        self.record("attention", lambda cells: softmax_rows(query, tokens(key), cells, *place), x.shape)
        attended = dot_product_attention(query, tokens(key), tokens(value), edit=self.edit)  # (B, 1, N, e)
        return self.added(x, self.out(feature_map(attended, *x.shape[2:])))

    def pairs(self, height: int, width: int) -> int:
        return height * width * ((height // 2) * (width // 2) if self.pool else height * width)

    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if self.pool else x
