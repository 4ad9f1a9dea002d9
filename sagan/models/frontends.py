"""Discriminator front-ends, which choose where to look.

`CoarseToFine`: Dynamic Capacity Networks. Almahairi, Ballas, Cooijmans, Zheng, Larochelle, Courville.
arXiv:1511.07838, ICML 2016, section 2. Differs from the paper: the saliency is the gradient of the logit, since the
entropy of a single logit vanishes at equilibrium.

`Zoom`: Look Closer to See Better: Recurrent Attention Convolutional Neural Network. Fu, Zheng, Mei. CVPR 2017,
section 3. Differs from the paper: real and fake replace the classes, so the ranking of two scales takes their sign;
both losses are computed in one update and separated by detaching; every scale is cropped from the image itself, not
from the previous scale; boxes always lie inside the image; the mask is optional, because bilinear sampling has its own
gradient.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sagan.attention.base import Observable, Recorder
from sagan.config.schema import CoarseToFineSettings, ZoomSettings
from sagan.layers.precision import at_least_float32, full_precision
from sagan.layers.spectral_norm import hold_state


class DiscriminatorOutput(NamedTuple):
    """logits (B,), or (B, S) with one column per scale; penalties: named terms () of the discriminator's loss."""

    logits: Tensor
    penalties: dict[str, Tensor]


class FrontEnd(Observable):
    """forward(trunk, head, images (B, C, R, R), labels (B,), reals (B,)) -> DiscriminatorOutput.

    `trunk`: images -> features (B, C, h, w); `head`: features, labels -> logits (B,). Both belong to the discriminator,
    which passes them to each call; a front-end's other networks belong to it. `reals`: which images are real; None:
    unknown, as in the generator's update. `resolution`: size of its first map.
    """

    resolution: tuple[int, int]


@contextmanager
def record_pieces_as_heads(network: nn.Module, pieces: int) -> Iterator[None]:
    """Inside, `network` processes `pieces` parts of every image as a batch (B·pieces, …), and its maps are recorded per
    image, (B, pieces·heads, k, H', W'), those of the first part first. Points are fractions of a part."""
    outer: list[tuple[Observable, Recorder]] = []
    for module in network.modules():
        if isinstance(module, Observable) and module.recorder is not None:
            points = module.recorder.points
            if points is not None and points.ndim == 3:
                points = points.repeat_interleave(pieces, 0)
            outer.append((module, module.recorder))
            module.recorder = Recorder(points)
    try:
        yield
    finally:
        for module, recorder in outer:
            assert module.recorder is not None
            for name, found in module.recorder.maps.items():
                weights = found.weights.unflatten(0, (-1, pieces)).flatten(1, 2)
                recorder.maps[name] = replace(found, weights=weights)
            module.recorder = recorder


SHARPNESS = 10.0  # of the mask's edges, per pixel


def box_from_shares(shares: Tensor, smallest: float) -> Tensor:
    """Shares (B, 3) in [0, 1] -> a box (B, 3) inside the image.

    The last share sets half the side, from `smallest` to 1. The others move the box from border to border; 1/2 is the
    middle.
    """
    half = smallest + (1 - smallest) * shares[:, 2:]
    return torch.cat([(2 * shares[:, :2] - 1) * (1 - half), half], dim=1)


def within(outer: Tensor, inner: Tensor) -> Tensor:
    """`inner` (B, 3), a box relative to `outer` (B, 3), as a box in the image."""
    half = outer[:, 2:]
    return torch.cat([outer[:, :2] + half * inner[:, :2], half * inner[:, 2:]], dim=1)


def zoom(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The part of images (B, C, R, R) inside boxes (B, 3), bilinearly on size × size pixels.

    Equals grid_sample for θ = [[tl, 0, tx], [0, tl, ty]] (Jaderberg et al., arXiv:1506.02025, eq. 10). Rows and columns
    are sampled one after the other: two matrix products, which have a second derivative and are deterministic on every
    device, unlike grid_sample. Border pixels are repeated outside the image: the outermost samples of a box at the
    border lie up to half a pixel outside.
    """
    side = images.shape[3]
    pixels = torch.arange(side, dtype=boxes.dtype, device=boxes.device)
    samples = (2 * torch.arange(size, dtype=boxes.dtype, device=boxes.device) + 1) / size - 1  # in [-1, 1]
    places = boxes[:, :2, None] + boxes[:, 2:, None] * samples  # (B, 2, S)
    places = ((places + 1) * side / 2 - 0.5).clamp(0, side - 1)  # in pixels
    weights = (1 - (places[..., None] - pixels).abs()).clamp(min=0)  # (B, 2, S, R)
    columns, rows = weights.to(images.dtype)[:, :, None].unbind(1)  # (B, 1, S, R)
    with full_precision(images.device):
        return rows @ images @ columns.transpose(2, 3)


def boxcar(boxes: Tensor, resolution: int) -> Tensor:
    """The mask M (B, 1, R, R) of boxes (B, 3): near 1 inside, near 0 outside (Fu et al., eqs. 5–6).

    M = [h(x - tx + tl) - h(x - tx - tl)] · [h(y - ty + tl) - h(y - ty - tl)], h the sigmoid, lengths in pixels.
    """
    pixels = torch.arange(resolution, dtype=boxes.dtype, device=boxes.device) + 0.5
    scale = resolution / 2
    center, half = (boxes[:, :2] + 1) * scale, boxes[:, 2:] * scale  # (B, 2), (B, 1)
    low, high = (center - half)[..., None], (center + half)[..., None]  # (B, 2, 1)
    sides = (SHARPNESS * (pixels - low)).sigmoid() - (SHARPNESS * (pixels - high)).sigmoid()  # (B, 2, R)
    return sides[:, None, 1, :, None] * sides[:, None, 0, None, :]


def edges(boxes: Tensor) -> Tensor:
    """(…, 3) -> (…, 4): top, left, bottom, right in fractions of the image."""
    tx, ty, tl = boxes.unbind(-1)
    return (torch.stack([ty - tl, tx - tl, ty + tl, tx + tl], dim=-1) + 1) / 2


class Proposal(nn.Module):
    """Features (B, C, h, w) -> shares (B, 3) of the next box: σ(γ · W₂ tanh(W₁ relu(features) + b₁) + b₂).

    γ and b₂ start at 0: the center. Neither is spectrally normalized, so boxes can move anywhere.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, 3, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, features: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(F.relu(features).flatten(1)))
        return (self.gamma * at_least_float32(self.out(hidden)) + self.bias).sigmoid()


class Zoom(FrontEnd):
    """S scales: the image, a part of it proposed from the features of the first trunk, a part of that, … (section 3).

    x_{s+1} = zoom(x, box_{s+1}), box_{s+1} = APN_s(f_s(x_s)) within box_s, D_s = h_s(f_s(x_s)): logits (B, S). The
    logits use detached boxes. Penalty "rank", only if `reals` is given (eq. 9, with the sign of the class):
    `rank` · mean_B Σ_s relu(∓(D_{s+1} - D_s) + margin), - for reals, + for fakes. Its gradient reaches only APN_s, by
    way of box_{s+1}: features, D_s, box_s, and the trunk and head of s+1 are detached.

    `trunks`, `heads`: of scales 2 … S; the first scale uses the discriminator's. `size`: of the enlarged parts.
    `settings.mask`: enlarge x ⊙ M instead of x (eqs. 4–6). Map: "boxes", (B, S, 1, 1, 4); the first is the whole image.
    """

    map_kinds = {"boxes": "boxes"}

    def __init__(
        self, settings: ZoomSettings, resolution: int, size: int,
        trunks: Sequence[nn.Module], heads: Sequence[nn.Module], proposals: Sequence[Proposal],
    ):  # fmt: skip
        super().__init__()
        self.settings, self.resolution, self.size = settings, (resolution, resolution), size
        self.trunks, self.heads, self.proposals = (nn.ModuleList(parts) for parts in (trunks, heads, proposals))

    @torch.compiler.disable(recursive=False)  # only trunks and heads are compiled
    def forward(
        self, trunk: nn.Module, head: nn.Module, images: Tensor, labels: Tensor | None, reals: Tensor | None
    ) -> DiscriminatorOutput:
        features, box = trunk(images), F.pad(images.new_ones(len(images), 1), (2, 0))  # (tx, ty, tl) = (0, 0, 1)
        logits, boxes = [head(features, labels)], [box]
        penalty = torch.zeros((), device=images.device)
        for index, proposal in enumerate(self.proposals):
            next_trunk, next_head = self.trunks[index], self.heads[index]
            proposed = within(box, box_from_shares(proposal(features.detach()), self.settings.smallest))
            box = proposed.detach()
            features = next_trunk(self._part(images, box))
            logits.append(next_head(features, labels))
            boxes.append(box)
            if reals is not None:
                part = self._part(images.detach(), proposed)
                closer = _detached(next_head, _detached(next_trunk, part), labels)  # type: ignore[call-arg]
                gain = at_least_float32(closer) - at_least_float32(logits[index].detach())
                penalty = penalty + F.relu(torch.where(reals, -gain, gain) + self.settings.margin).mean()
        self.record("boxes", lambda _: edges(torch.stack(boxes, 1))[:, :, None, None], images.shape)
        penalties = {} if reals is None else {"rank": self.settings.rank * penalty}
        return DiscriminatorOutput(torch.stack(logits, dim=1), penalties)

    def _part(self, images: Tensor, boxes: Tensor) -> Tensor:
        masked = images * boxcar(boxes, images.shape[3]).to(images.dtype) if self.settings.mask else images
        return zoom(masked, boxes, self.size)


@torch.compiler.disable
def _detached(network: nn.Module, *inputs: Tensor | None) -> Tensor:
    """The network's output, differentiable only in its inputs; state is held (the first forward has updated it)."""
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    with hold_state(network):
        return functional_call(network, parameters, inputs)


def logit_saliency(logits: Tensor, features: Tensor) -> Tensor:
    """‖∂l/∂c_ij‖₂: logits (B,), computed from features (B, C, h, w) -> (B, h, w), without graph."""
    (gradient,) = torch.autograd.grad(logits.sum(), features, retain_graph=True)
    return gradient.norm(dim=1)  # (B, h, w)


def entropy_saliency(logits: Tensor, features: Tensor) -> Tensor:
    """‖∂H/∂c_ij‖₂, H = -Σ_k o_k log o_k, o = softmax(logits): (B, K), features (B, C, h, w) -> (B, h, w).

    For heads with K outputs, as in the paper. The logits must be computed from the features. Without graph.
    """
    log_shares = logits.log_softmax(dim=1)
    return logit_saliency(-(log_shares.exp() * log_shares).sum(dim=1), features)


class CoarseToFine(FrontEnd):
    """A thin trunk on the whole image, a full trunk on the k patches that are most salient to the logit (section 2).

    c = f_c(x), M_ij = ‖∂h(c)/∂c_ij‖₂, S = the k cells of largest M, r = f_f(patches) on S and c elsewhere, D(x) = h(r).
    Penalty "hint": `hint` · Σ_S ‖c - sg(f)‖², averaged over the batch; its gradient reaches only f_c. The choice of
    cells is not differentiated; the patches are differentiable with respect to the image.

    `trunk` is f_c, with features (B, C, n, n); `fine` is f_f: (B·k, C, p, p) -> (B·k, C, …), averaged over its map.
    With a head that sums relu(c), M is the norm of the weights of a cell's active channels. Ties are broken in reading
    order. Maps: "saliency", M; "patches", the boxes of S, the most salient first.
    """

    map_kinds = {"saliency": "saliency", "patches": "boxes"}

    def __init__(self, settings: CoarseToFineSettings, patch: int, fine: nn.Module):
        super().__init__()
        self.settings, self.resolution = settings, (settings.cells, settings.cells)
        self.patch, self.fine = patch, fine

    @torch.compiler.disable(recursive=False)  # only trunks and heads are compiled
    def forward(
        self, trunk: nn.Module, head: nn.Module, images: Tensor, labels: Tensor | None, reals: Tensor | None
    ) -> DiscriminatorOutput:
        coarse = trunk(images)  # (B, C, n, n)
        saliency = head_saliency(head, coarse, labels)  # (B, n, n)  # type: ignore[call-arg]
        self.record("saliency", lambda _: saliency[:, None, None], coarse.shape)
        cells = saliency.flatten(1).argsort(dim=1, descending=True, stable=True)[:, : self.settings.patches]  # (B, k)
        corners = patch_corners(cells, coarse.shape[3], images.shape[3], self.patch)  # (B, k, 2)
        boxes = torch.cat([corners, corners + self.patch], dim=-1) / images.shape[3]  # top, left, bottom, right
        self.record("patches", lambda _: boxes[:, :, None, None], coarse.shape)
        with record_pieces_as_heads(self.fine, self.settings.patches):
            fine = self.fine(cut_patches(images, corners, self.patch).flatten(0, 1)).mean(dim=(2, 3))  # (B·k, C)
        fine = fine.unflatten(0, cells.shape).transpose(1, 2).to(coarse.dtype)  # (B, C, k)
        where = cells[:, None].expand_as(fine)
        flat = coarse.flatten(2)  # (B, C, n·n)
        refined = flat.scatter(2, where, fine).view_as(coarse)
        with hold_state(head):  # computing the saliency has updated its vectors
            logits = head(refined, labels)
        if not self.settings.hint:
            return DiscriminatorOutput(logits, {})
        distance = at_least_float32(flat.gather(2, where)) - at_least_float32(fine.detach())
        return DiscriminatorOutput(logits, {"hint": self.settings.hint * distance.square().sum(dim=(1, 2)).mean()})


@torch.compiler.disable
def head_saliency(head: nn.Module, features: Tensor, labels: Tensor | None) -> Tensor:
    """Saliency of features (B, C, h, w) to the head's logit, in float32 or wider: (B, h, w).

    Also works under no_grad and with frozen parameters. No gradient flows through it.
    """
    with torch.enable_grad(), full_precision(features.device):
        leaf = at_least_float32(features.detach()).requires_grad_()
        return logit_saliency(head(leaf, labels), leaf)


def patch_corners(cells: Tensor, side: int, resolution: int, patch: int) -> Tensor:
    """Cells (B, k) of a side × side map, row by row -> (B, k, 2): top left pixel (row, column) of their patches.

    A patch is centered on its cell's block of pixels; at the border it is moved inside the image.
    """
    cell = resolution // side
    corners = torch.stack([cells // side, cells % side], dim=-1) * cell - (patch - cell) // 2
    return corners.clamp(0, resolution - patch)


def cut_patches(images: Tensor, corners: Tensor, patch: int) -> Tensor:
    """Images (B, C, R, R), corners (B, k, 2) -> (B, k, C, p, p), differentiable in the images."""
    along = torch.arange(patch, device=images.device)
    rows, columns = (corners[..., axis, None] + along for axis in (0, 1))  # (B, k, p)
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    return images[batch, :, rows[..., :, None], columns[..., None, :]].movedim(-1, 2)
