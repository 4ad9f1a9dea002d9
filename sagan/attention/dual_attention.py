"""Dual Attention Network for Scene Segmentation. Fu, Liu, Tian, Li, Bao, Fang, Lu. arXiv:1809.02983, CVPR 2019.

Differs from the paper: both modules read x itself and add to it, y = x + γ_p·P + γ_c·C, instead of the paper's
segmentation head (convolution, module, convolution; then a sum). Differs from the released code: the channel module
uses softmax(E), as in the paper; `sign=-1` is the code's softmax(-E), which ranks channels in the opposite order.
"""

from math import inf

import torch
from torch import Tensor, nn

from sagan.attention.base import AttentionModule, Size, require
from sagan.attention.functional import dot_product_attention, feature_map, softmax_rows, tokens
from sagan.layers.precision import at_least_float32, full_precision

FORMS = ("both", "position", "channel")


class DualAttention(AttentionModule):
    """y = x + γ_p·Σ_i softmax_i(q_j·k_i) v_i + γ_c·Σ_d softmax_d(x_c·x_d) x_d, both gains start at 0 (eqs. 1–4).

    The position module (eqs. 1, 2): query, key and value are the paper's B, C and D, 1×1 convolutions. The channel
    module (eqs. 3, 4) has no parameter but its gain; x_c is channel c's whole map. The energies x_c·x_d grow with the
    number of cells, so a channel mostly attends to itself; they are computed in float32 also under autocast.

    `form`: "both", "position" or "channel". `sign`: -1 for softmax(-E). `normalize`: channel energies divided by the
    number of cells. `ratio`: width of query and key as a fraction of C, at least 1; `bias`: of the convolutions.

    Maps: "position", a query cell's softmax row over the cells; "channel", the same for all cells, the weights of all
    channels in each channel. Time O(N·C² + N²·C), memory O(N·C + C²).
    """

    def __init__(
        self, channels: int, resolution: Size, *, form: str = "both", sign: int = 1, normalize: bool = False,
        ratio: float = 1 / 8, bias: bool = True,
    ):  # fmt: skip
        super().__init__(channels, resolution, gain="none")
        require(form in FORMS, f"dual_attention: form is {form!r}; known: {', '.join(FORMS)}")
        require(sign in (1, -1), f"dual_attention: sign is {sign}, must be 1 or -1")
        require(0 < ratio < inf, f"dual_attention: ratio is {ratio}, must be above 0 and finite")
        self.sign, self.normalize = sign, normalize
        self.position, self.channel = form != "channel", form != "position"
        self.editable = self.position
        kinds = {"position": "softmax row"} if self.position else {}
        self.map_kinds = kinds | ({"channel": "channel rows"} if self.channel else {})
        if self.position:
            inner = max(1, int(channels * ratio))
            self.query = nn.Conv2d(channels, inner, 1, bias=bias)
            self.key = nn.Conv2d(channels, inner, 1, bias=bias)
            self.value = nn.Conv2d(channels, channels, 1, bias=bias)
            self.gamma_position = nn.Parameter(torch.zeros(()))
        if self.channel:
            self.gamma_channel = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y, size = x, (x.shape[2], x.shape[3])
        if self.position:
            query, key, value = (tokens(layer(x)) for layer in (self.query, self.key, self.value))  # (B, 1, N, d or C)
            place = size[1], size, 1, self.edit
            self.record("position", lambda cells: softmax_rows(query, key, cells, *place), x.shape)
            attended = dot_product_attention(query, key, value, edit=self.edit)  # (B, 1, N, C)
            y = y + self.gamma_position * feature_map(attended, *size)  # eqs. 1, 2
        if self.channel:
            maps = at_least_float32(x.flatten(2))  # (B, C, N)
            scale = self.sign / maps.shape[2] if self.normalize else self.sign
            with full_precision(x.device):
                weights = (scale * maps @ maps.transpose(1, 2)).softmax(dim=2)  # (B, C, C), x_ji as [j, i] (eq. 3)
            self.record("channel", lambda _: weights[:, None, None], x.shape)
            y = y + self.gamma_channel * (weights.to(x.dtype) @ x.flatten(2)).unflatten(2, size)  # eq. 4
        return y

    def pairs(self, height: int, width: int) -> int:
        return (height * width) ** 2 if self.position else 0
