"""Non-local Neural Networks. Wang, Girshick, Gupta, He. arXiv:1711.07971, CVPR 2018.

Differs from the paper: γ scales the sum, so W_z need not start at zero, nor with a batch norm of gain 0
(`norm="batch", gain="none"` is the paper's form). The embedded Gaussian has no scale, as in the text; the authors'
code divides its energies by √C' (`scale=True`). Dot product and concatenation never form the N×M weights.
"""

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.attention.functional import (
    dot_product_attention,
    feature_map,
    make_norm,
    select_points,
    softmax_rows,
    tokens,
)
from sagan.layers.precision import at_least_float32, full_precision

FORMS = {
    "embedded_gaussian": "softmax row",
    "gaussian": "softmax row",
    "dot_product": "signed weight",
    "concatenation": "unnormalised weight",
}


class NonLocal(AttentionModule):
    """z_i = x_i + γ·W_z (1/C(x)) Σ_j f(x_i, x_j) g(x_j), γ = 0 at first (eqs. 1, 6). `form` chooses f:

    - "embedded_gaussian": exp(θ(x_i)·φ(x_j)), C(x) its sum over j: a softmax (eq. 3);
    - "gaussian": exp(x_i·x_j), likewise (eq. 2). Its energies grow with C and the squared features: if each cell
      attends only to itself, use `scale`;
    - "dot_product": θ(x_i)·φ(x_j) / M for M keys (eq. 4);
    - "concatenation": ReLU(w_f·[θ(x_i), φ(x_j)]) / M (eq. 5).

    query is θ, key φ, value g, out W_z, pair w_f. `ratio`: inner width C' as a fraction of C, at least 1. `pool`: 2×2
    max-pooling "before" key and value, as in the authors' code, or "after" them; drops a last odd row or column.
    `scale`: energies of a Gaussian times C'^-1/2 (C^-1/2 without embedding). `norm`: after W_z. Map of a query cell:
    its weights f/C(x) of the (pooled) keys, which sum to 1 only for the Gaussians.
    """

    def __init__(
        self, channels: int, resolution: Size, *, form: str = "embedded_gaussian", pool: str = "none",
        scale: bool = False, ratio: float = 0.5, bias: bool = True, norm: str = "none", gain: str = "scalar",
    ):  # fmt: skip
        super().__init__(channels, resolution, gain)
        require(form in FORMS, f"non_local: form is {form!r}; known: {', '.join(FORMS)}")
        require(pool in ("none", "before", "after"), f"non_local: pool is {pool!r}; known: none, before, after")
        require(0 < ratio < inf, f"non_local: ratio is {ratio}, must be a positive part of the channels")
        require(not scale or "gaussian" in form, f"non_local: scale is for the Gaussian forms, form is {form!r}")
        self.form, self.pool = form, pool
        self.map_kinds = {"attention": FORMS[form]}
        inner, embedded = max(1, int(channels * ratio)), form != "gaussian"
        self.factor = (inner if embedded else channels) ** -0.5 if scale else 1.0
        self.require_poolable(self.resolution)
        self.editable = "gaussian" in form
        self.query = nn.Conv2d(channels, inner, 1, bias=bias) if embedded else nn.Identity()
        self.key = nn.Conv2d(channels, inner, 1, bias=bias) if embedded else nn.Identity()
        self.value = nn.Conv2d(channels, inner, 1, bias=bias)
        self.pair = nn.Conv2d(2 * inner, 1, 1, bias=False) if form == "concatenation" else None
        self.out = nn.Conv2d(inner, channels, 1, bias=bias)
        self.norm = make_norm(norm, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Without γ the norm starts at gain 0, as in the paper; with both at 0 neither would learn."""
        if self.gamma is None and not isinstance(self.norm, nn.Identity):
            nn.init.zeros_(self.norm.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        source = self._pooled(x, "before")
        query, key = self._query_and_key(x, source)
        value = self._pooled(self.value(source), "after")  # (B, C', H', W')
        self.record("attention", lambda points: self._rows(query, key, points), x.shape)
        attended = self._attended(query, key, value).to(value.dtype)  # (B, C', H, W)
        return self.added(x, self.norm(self.out(attended)))

    def pairs(self, height: int, width: int) -> int:
        keys = height * width if self.pool == "none" else (height // 2) * (width // 2)
        return height * width * keys if "gaussian" in self.form else 0

    def _query_and_key(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C', H, W) and (B, C', H', W'); for the concatenation, the parts of w_f·[θ, φ]: (B, 1, …)."""
        query, key = self.query(x), self._pooled(self.key(source), "after")
        if self.pair is None:
            return query, key
        query, key = at_least_float32(query), at_least_float32(key)
        with full_precision(x.device):
            of_query, of_key = self.pair.weight.to(query.dtype).chunk(2, dim=1)  # (1, C', 1, 1)
            return F.conv2d(query, of_query), F.conv2d(key, of_key)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if "gaussian" in self.form:
            query, key = query.to(value.dtype), key.to(value.dtype)
            q, k, v = tokens(query), tokens(key), tokens(value)
            return feature_map(dot_product_attention(q, k, v, self.factor, self.edit), *query.shape[2:])
        mean = mean_by_products if self.form == "dot_product" else mean_by_hinges
        return mean(query.flatten(2), key.flatten(2), value.flatten(2)).unflatten(2, query.shape[2:])

    def _rows(self, query: Tensor, key: Tensor, points: Tensor) -> Tensor:
        size = (key.shape[2], key.shape[3])
        if "gaussian" in self.form:
            place = query.shape[3], size, self.factor, self.edit
            return softmax_rows(tokens(query), tokens(key), points, *place)
        chosen, keys = select_points(tokens(query), points, query.shape[3]), key.flatten(2)[:, None]  # (B, 1, k, C')
        with full_precision(query.device):
            if self.form == "concatenation":
                rows = F.relu(chosen + keys)  # (B, 1, k, M)
            else:
                rows = at_least_float32(chosen) @ at_least_float32(keys)
        return (rows / keys.shape[3]).unflatten(3, size)  # (B, 1, k, H', W')

    def _pooled(self, x: Tensor, when: str) -> Tensor:
        if self.pool != when:
            return x
        self.require_poolable(x.shape[2:])
        return F.max_pool2d(x, 2)


def mean_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """1/M Σ_j (q_i·k_j) v_j as q (kᵀ v): query (B, d, N), key (B, d, M), value (B, e, M) -> (B, e, N), float32."""
    query, key, value = at_least_float32(query), at_least_float32(key), at_least_float32(value)
    with full_precision(query.device):
        return (value @ key.transpose(1, 2) / key.shape[2]) @ query


def mean_by_hinges(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """1/M Σ_j max(a_i + b_j, 0) v_j, exactly: a (B, 1, N), b (B, 1, M), value (B, e, M) -> (B, e, N), float32.

    Time O((N + M)·(log M + e)), memory O((N + M)·e). With b in descending order, the keys that count for a_i are the
    first n, those above -a_i, so the sum is a_i·Σ v + Σ b·v over them: two prefix sums. The mean of b is subtracted
    from b and added to a, which changes nothing but avoids large terms that cancel.
    """
    value = at_least_float32(value)
    middle = key.detach().mean(dim=2, keepdim=True)  # (B, 1, 1)
    query, (key, order) = query + middle, (key - middle).sort(dim=2, descending=True)
    value = value.gather(2, order.expand_as(value))
    plain, weighted = (F.pad(terms.cumsum(dim=2), (1, 0)) for terms in (value, key * value))  # (B, e, 1 + M)
    count = torch.searchsorted(-key.detach(), query.detach().contiguous())  # (B, 1, N): n, in 0 … M
    first = count.expand(-1, value.shape[1], -1)
    return (query * plain.gather(2, first) + weighted.gather(2, first)) / value.shape[2]
