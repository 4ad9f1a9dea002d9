"""Dynamic Capacity Networks. Almahairi, Ballas, Cooijmans, Zheng, Larochelle, Courville. arXiv:1511.07838, ICML 2016.

Differs from the paper: the saliency is that of the real/fake logit, not of the entropy of classes (see saliency.py); a
patch is centred on its cell's block of pixels, not on its receptive field, and moved inside the image at the border.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sagan.attention.functional import at_least_float32, full_precision
from sagan.frontends.base import FrontEnd, Judgement, heard_as_heads
from sagan.frontends.saliency import logit_saliency
from sagan.spectral_norm import hold_state


class CoarseToFine(FrontEnd):
    """A thin trunk on the whole image, a full one on the k patches that matter most to the logit (section 2).

    c = f_c(x), M_ij = ‖∂h(c)/∂c_ij‖₂, S = the k cells of largest M, r = f_f(patches) on S and c elsewhere, D(x) = h(r).
    Penalty "hint": `hint` · Σ_S ‖c - sg(f)‖², a mean over the batch, whose gradient reaches f_c alone. Which cells are
    chosen is not differentiated; patches are, to the image.

    `trunk` is f_c, with features (B, C, n, n); `fine` is f_f: (B·k, 3, p, p) -> (B·k, C, …), averaged over its map.
    With a head that sums relu(c), M is the norm of the weights of a cell's active channels; equal cells are taken in
    reading order. Maps: "saliency", M; "patches", the boxes of S, the most salient first.
    """

    taps: Mapping[str, str] = {"saliency": "saliency", "patches": "boxes"}

    def __init__(self, fine: nn.Module, cells: int, patches: int, patch: int, hint: float):
        super().__init__()
        self.fine = fine
        self.resolution = (cells, cells)
        self.patches, self.patch, self.hint = patches, patch, hint

    @torch.compiler.disable(recursive=False)  # trunks and heads are compiled, what joins them is not
    def forward(
        self, trunk: nn.Module, head: nn.Module, images: Tensor, labels: Tensor | None, reals: Tensor | None
    ) -> Judgement:
        coarse = trunk(images)  # (B, C, n, n)
        saliency = head_saliency(head, coarse, labels)  # (B, n, n)  # type: ignore[call-arg]
        self.tap("saliency", lambda _: saliency[:, None, None], coarse.shape)
        cells = saliency.flatten(1).argsort(dim=1, descending=True, stable=True)[:, : self.patches]  # (B, k)
        corners = patch_corners(cells, coarse.shape[3], images.shape[3], self.patch)  # (B, k, 2)
        self.tap("patches", lambda _: _boxes(corners, self.patch, images.shape[3]), coarse.shape)
        with heard_as_heads(self.fine, self.patches):
            fine = self.fine(cut_patches(images, corners, self.patch).flatten(0, 1)).mean(dim=(2, 3))  # (B·k, C)
        fine = fine.unflatten(0, cells.shape).transpose(1, 2).to(coarse.dtype)  # (B, C, k)
        where = cells[:, None].expand_as(fine)
        flat = coarse.flatten(2)  # (B, C, n·n)
        refined = flat.scatter(2, where, fine).view_as(coarse)
        with hold_state(head):  # its vectors moved when it was asked for the saliency
            logits = head(refined, labels)
        penalties = {}
        if self.hint:
            distance = at_least_float32(flat.gather(2, where)) - at_least_float32(fine.detach())
            penalties["hint"] = self.hint * distance.square().sum(dim=(1, 2)).mean()
        return Judgement(logits, penalties)


@torch.compiler.disable
def head_saliency(head: nn.Module, features: Tensor, labels: Tensor | None) -> Tensor:
    """Saliency of features (B, C, h, w) to the head's logit, in float32 or wider: (B, h, w).

    Works with gradients switched off and parameters frozen; nothing gets a gradient from it.
    """
    with torch.enable_grad(), full_precision(features.device):
        leaf = at_least_float32(features.detach()).requires_grad_()
        return logit_saliency(head(leaf, labels), leaf)


def patch_corners(cells: Tensor, side: int, resolution: int, patch: int) -> Tensor:
    """Cells (B, k) of a side × side map, row by row -> (B, k, 2): top left pixel (row, column) of their patches.

    A patch has the centre of its cell's block of pixels, but for the border, where it is moved inside the image.
    """
    cell = resolution // side
    corners = torch.stack([cells // side, cells % side], dim=-1) * cell - (patch - cell) // 2
    return corners.clamp(0, resolution - patch)


def cut_patches(images: Tensor, corners: Tensor, patch: int) -> Tensor:
    """Images (B, 3, R, R), corners (B, k, 2) -> (B, k, 3, p, p), differentiable in the images."""
    along = torch.arange(patch, device=images.device)
    rows, columns = (corners[..., axis, None] + along for axis in (0, 1))  # (B, k, p)
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    return images[batch, :, rows[..., :, None], columns[..., None, :]].movedim(-1, 2)


def _boxes(corners: Tensor, patch: int, resolution: int) -> Tensor:
    """(B, k, 2) -> (B, k, 1, 1, 4): top, left, bottom, right in fractions of the image."""
    return (torch.cat([corners, corners + patch], dim=-1) / resolution)[:, :, None, None]
