"""A fused copy of the generator for inference: the same images up to rounding, with fewer operations.

Everything that depends only on the weights is computed once: the folded kernels of the upsampling convolutions, and the
gain and bias of each class combined with the running statistics. An image never depends on the rest of its batch.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.layers.normalization import ConditionalBatchNorm, HeldState, Normalization
from sagan.layers.resampling import UpsampleConv2d, fold_upsampling
from sagan.layers.spectral_norm import SpectralNorm
from sagan.models.blocks import GeneratorBlock
from sagan.models.generator import Generator
from sagan.utils.random import torch_generator


@torch.no_grad()
def fuse_for_inference(generator: Generator) -> Generator:
    """A fused copy of a generator in eval mode; a generator that is already fused is returned as it is.

    The copy shares all tensors that it does not replace; its attention modules keep their names. Images differ by about
    1e-6 of their range.
    """
    if any(isinstance(block, FusedBlock) for block in generator.blocks):
        return generator
    assert not generator.training, "eval() the generator first"
    shared = {id(tensor): tensor for tensor in [*generator.parameters(), *generator.buffers()]}
    fused = copy.deepcopy(generator, shared)
    for i, block in enumerate(fused.blocks):
        assert isinstance(block, GeneratorBlock)
        if isinstance(block.conv1, UpsampleConv2d):  # bilinear upsampling has no folded kernel
            fused.blocks[i] = FusedBlock(block, block.conv1)
    return fused.eval()


class FusedBlock(nn.Module):
    """GeneratorBlock in eval mode: (B, C, H, W) -> (B, D, 2H, 2W). Reuses the parts that it does not replace."""

    def __init__(self, block: GeneratorBlock, conv1: UpsampleConv2d):
        super().__init__()
        self.norm1, self.norm2 = _norm(block.norm1), _norm(block.norm2, in_place=True)  # of conv1's own output
        self.conv1 = fold_upsampling(conv1).to(memory_format=torch.channels_last)
        self.conv2, self.shortcut, self.branch = block.conv2, block.shortcut, block.branch

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = self.conv1(F.relu_(self.norm1(x, labels)))  # (B, D, 2H, 2W)
        h = self.conv2(F.relu_(self.norm2(h, labels)))
        if self.branch is not None:
            h = self.branch(h)
        shortcut = self.shortcut(x)[:, :, :, None, :, None]  # (B, D, H, 1, W, 1)
        cells = h.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, D, H, 2, W, 2), a view
        if self.branch is None and isinstance(self.conv2, nn.Conv2d):  # h is not used elsewhere
            cells.add_(shortcut)
            return h
        return (cells + shortcut).flatten(4).flatten(2, 3)


class FusedNorm(nn.Module):
    """ConditionalBatchNorm in eval mode as one operation: x · scale + shift, both including the running statistics."""

    table: Tensor  # (K, 2, C), scale and shift of each class
    always: Tensor  # (2, C), added for every class: the 1 in a gain 1 + W_g

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
    return FusedNorm(norm, in_place) if isinstance(norm, ConditionalBatchNorm) else norm


@torch.no_grad()
def with_standing_statistics(generator: Generator, batches: int = 64, batch_size: int = 64) -> Generator:
    """A copy whose batch-norm statistics are means over batches of samples (BigGAN, arXiv:1809.11096)."""
    network = copy.deepcopy(generator).train()
    device, classes = next(network.parameters()).device, network.num_classes
    rng = torch_generator(0, "standing statistics")
    norms = [module for module in network.modules() if isinstance(module, Normalization)]
    momenta = [norm.momentum for norm in norms]
    for module in network.modules():
        if isinstance(module, HeldState) and not isinstance(module, Normalization | SpectralNorm):
            module.held = True  # bases of EM attention are not statistics of samples
    for batch in range(batches):
        for norm in norms:
            norm.momentum = 1 / (batch + 1)  # so that running statistics are the mean over batches
        z = torch.randn(batch_size, network.z_dim, generator=rng)
        labels = (torch.arange(batch_size) + batch * batch_size) % classes if classes else None
        network(z.to(device), None if labels is None else labels.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
