"""Look Closer to See Better: Recurrent Attention Convolutional Neural Network. Fu, Zheng, Mei. CVPR 2017.

Differs from the paper: real and fake take the place of the classes, so the ranking of two scales has their sign; both
losses are of one update, kept apart by detaching; every scale is cut from the image itself, not from the scale before;
boxes lie inside the image by construction; the mask is an option, as bilinear sampling has a gradient of its own.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sagan.attention.functional import at_least_float32
from sagan.frontends.base import FrontEnd, Judgement
from sagan.frontends.boxes import box_from_shares, boxcar, edges, whole_image, within, zoom
from sagan.spectral_norm import hold_state


class Proposal(nn.Module):
    """Features (B, C, h, w) -> shares (B, 3) of the box to look at next: σ(γ · W₂ tanh(W₁ relu(features) + b₁) + b₂).

    γ = 0 and b₂ = 0 at first: the centre. Neither is normalised spectrally, so boxes can go anywhere.
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
    """S scales: the image, the part of it that the first trunk's features propose, a part of that, … (section 3).

    x_{s+1} = zoom(x, box_{s+1}), box_{s+1} = APN_s(f_s(x_s)) within box_s, D_s = h_s(f_s(x_s)): logits (B, S). They see
    boxes detached. Penalty "rank", only where `reals` are told (eq. 9, with their sign):
    `rank` · mean_B Σ_s relu(∓(D_{s+1} - D_s) + margin), - for reals, + for fakes; its gradient reaches box_{s+1} and
    through it APN_s alone: features, D_s, box_s, trunk and head of s+1 are detached in it.

    `trunks`, `heads`: of scales 2 … S; those of the first are the discriminator's. `size`: of the enlarged parts;
    `smallest`: side of a box as a part of the one before; `mask`: enlarge x ⊙ M instead of x (eqs. 4–6).
    Map: "boxes", (B, S, 1, 1, 4), the first the whole image.
    """

    taps: Mapping[str, str] = {"boxes": "boxes"}

    def __init__(
        self,
        trunks: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        proposals: Sequence[Proposal],
        resolution: int,
        size: int,
        smallest: float,
        margin: float,
        rank: float,
        mask: bool,
    ):
        super().__init__()
        self.trunks, self.heads, self.proposals = (nn.ModuleList(parts) for parts in (trunks, heads, proposals))
        self.resolution = (resolution, resolution)
        self.size, self.smallest, self.margin, self.rank, self.mask = size, smallest, margin, rank, mask

    @torch.compiler.disable(recursive=False)  # trunks and heads are compiled, what joins them is not
    def forward(
        self, trunk: nn.Module, head: nn.Module, images: Tensor, labels: Tensor | None, reals: Tensor | None
    ) -> Judgement:
        features, box = trunk(images), whole_image(images)
        logits, boxes = [head(features, labels)], [box]
        penalty = torch.zeros((), device=images.device)
        for index, proposal in enumerate(self.proposals):
            next_trunk, next_head = self.trunks[index], self.heads[index]
            proposed = within(box, box_from_shares(proposal(features.detach()), self.smallest))
            box = proposed.detach()
            features = next_trunk(self._part(images, box))
            logits.append(next_head(features, labels))
            boxes.append(box)
            if reals is not None:
                part = self._part(images.detach(), proposed)
                closer = _detached(next_head, _detached(next_trunk, part), labels)  # type: ignore[call-arg]
                penalty = penalty + self._ranking(logits[index].detach(), closer, reals)
        self.tap("boxes", lambda _: edges(torch.stack(boxes, 1))[:, :, None, None], images.shape)
        penalties = {} if reals is None else {"rank": self.rank * penalty}
        return Judgement(torch.stack(logits, dim=1), penalties)

    def _part(self, images: Tensor, boxes: Tensor) -> Tensor:
        masked = images * boxcar(boxes, images.shape[3]).to(images.dtype) if self.mask else images
        return zoom(masked, boxes, self.size)

    def _ranking(self, logits: Tensor, closer: Tensor, reals: Tensor) -> Tensor:
        """A mean over the batch of what the closer look lacks: more for reals, less for fakes."""
        gain = at_least_float32(closer) - at_least_float32(logits)
        return F.relu(torch.where(reals, -gain, gain) + self.margin).mean()


@torch.compiler.disable
def _detached(network: nn.Module, *inputs: Tensor | None) -> Tensor:
    """The network's output, differentiable in its inputs alone; its state is held (it moved in the first forward)."""
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    with hold_state(network):
        return functional_call(network, parameters, inputs)
