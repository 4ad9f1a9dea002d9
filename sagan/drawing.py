"""The generator as it draws: a copy that computes the same in eval mode, to rounding, with fewer operations.

What depends on the weights alone is computed once: the folded kernels of up-sampling convolutions, and the gain and
bias of each class with the running statistics in them. Every operation still sees each image by itself.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.blocks import GeneratorBlock
from sagan.layers import folded_once
from sagan.networks import Generator
from sagan.normalization import ConditionalBatchNorm, Normalization


@torch.no_grad()
def drawing_form(generator: Generator) -> Generator:
    """A copy for drawing, of a generator in eval mode; what is in this form already is returned as it is.

    It shares the tensors that it does not replace, so its weights are those of now; its attention modules keep their
    names. An image differs by about 1e-6 of its range.
    """
    if any(isinstance(block, DrawingBlock) for block in generator.blocks):
        return generator
    assert not generator.training, "eval() the generator first"
    shared = {id(tensor): tensor for tensor in [*generator.parameters(), *generator.buffers()]}
    drawing = copy.deepcopy(generator, shared)
    for i, block in enumerate(drawing.blocks):
        assert isinstance(block, GeneratorBlock)
        drawing.blocks[i] = DrawingBlock(block)
    return drawing.eval()


class DrawingBlock(nn.Module):
    """GeneratorBlock in eval mode: (B, C, H, W) -> (B, D, 2H, 2W). Takes over the parts that it does not replace."""

    def __init__(self, block: GeneratorBlock):
        super().__init__()
        self.norm1, self.norm2 = _norm(block.norm1), _norm(block.norm2, in_place=True)  # of conv1's own output
        self.conv1 = folded_once(block.conv1).to(memory_format=torch.channels_last)
        self.conv2, self.shortcut, self.branch = block.conv2, block.shortcut, block.branch

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = self.conv1(F.relu_(self.norm1(x, labels)))  # (B, D, 2H, 2W)
        h = self.conv2(F.relu_(self.norm2(h, labels)))
        if self.branch is not None:
            h = self.branch(h)
        shortcut = self.shortcut(x)[:, :, :, None, :, None]  # (B, D, H, 1, W, 1)
        cells = h.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, D, H, 2, W, 2), a view
        if self.branch is None and isinstance(self.conv2, nn.Conv2d):  # nobody else holds h
            cells.add_(shortcut)
            return h
        return (cells + shortcut).flatten(4).flatten(2, 3)


class DrawingNorm(nn.Module):
    """ConditionalBatchNorm in eval mode as one operation: x · scale + shift, the running statistics in both."""

    table: Tensor  # (K, 2, C), scale and shift of each class
    always: Tensor  # (2, C), what every class adds to: of the 1 in a gain 1 + W_g

    def __init__(self, norm: ConditionalBatchNorm, in_place: bool):
        super().__init__()
        self.in_place = in_place
        scale = torch.rsqrt(norm.running_var.float() + norm.eps)  # (C,)
        shift = -norm.running_mean.float() * scale
        gain, bias = (table.weight.T if norm.linear else table.weight for table in (norm.gain, norm.bias))  # (K, C)
        table = torch.stack([gain * scale, bias + gain * shift], dim=1)
        self.register_buffer("table", table.to(gain.dtype))
        self.register_buffer("always", (torch.stack([scale, shift]) * int(norm.linear)).to(gain.dtype))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():  # weights of the classes (B, K)
            rows = F.linear(labels, self.table.flatten(1).T).unflatten(1, self.always.shape)
        else:
            rows = self.table[labels]  # (B, 2, C)
        scale, shift = (rows + self.always).to(x.dtype)[..., None, None].unbind(1)  # (B, C, 1, 1)
        return torch.addcmul(shift, x, scale, out=x if self.in_place else None)


def _norm(norm: Normalization, in_place: bool = False) -> nn.Module:
    return DrawingNorm(norm, in_place) if isinstance(norm, ConditionalBatchNorm) else norm
