"""Batch norm with and without classes, over one or all processes; its state can be held."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class HeldState(nn.Module):
    """A module whose forward updates state in training (running statistics, bases), except while `held`."""

    def __init__(self) -> None:
        super().__init__()
        self.held = False  # set from the start: a later attribute would make torch.compile recompile


class Normalization(HeldState):
    """Base class of both batch norms: normalization with batch statistics, optionally over all processes (`sync`).

    Training mode uses the statistics of the batch and updates the running ones with `momentum` unless held; eval mode
    uses the running ones.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, sync: bool = False):
        super().__init__()
        self.eps, self.momentum, self.sync = eps, momentum, sync
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def normalize(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to mean 0 and variance 1 over batch and map, then scaled and shifted per channel."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, eps=self.eps)
        if self.sync and dist.is_initialized() and dist.get_world_size() > 1:
            return self._normalize_globally(x, weight, bias)
        if self.held:
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, True, self.momentum, self.eps)

    def _normalize_globally(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        mean, var, count = _global_statistics(x)
        if not self.held:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                self.running_var.lerp_((var * count / (count - 1)).to(self.running_var), self.momentum)
        scale = torch.rsqrt(var + self.eps)
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return torch.addcmul(shift.to(x)[:, None, None], x, scale.to(x)[:, None, None])


class BatchNorm(Normalization):
    """Batch normalization (Ioffe & Szegedy, arXiv:1502.03167): (B, C, H, W) -> same. Labels are ignored."""

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, sync: bool = False):
        super().__init__(channels, eps, momentum, sync)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.normalize(x, self.weight, self.bias)


class ClassTable(nn.Embedding):
    """Labels (B,), or class weights (B, K), which mix the rows -> (B, embedding_dim)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.T) if input.is_floating_point() else super().forward(input)


class ClassEmbedding(ClassTable):
    """The class embedding that all batch norms of a BigGAN generator share (arXiv:1809.11096); no spectral norm."""


class ConditionalBatchNorm(Normalization):
    """Batch norm whose gain and bias are looked up by class (de Vries et al., arXiv:1707.00683).

    (B, C, H, W), labels (B,) -> (B, C, H, W). Labels may also be class weights (B, K), which mix the rows, or, for
    "linear", any condition (B, K), as in BigGAN (arXiv:1809.11096).
    `class_norm`: "table": gains start at 1, biases at 0; "linear": 1 + W_g·onehot(y) and W_b·onehot(y), linear layers
    with spectral normalization.
    """

    def __init__(
        self, channels: int, num_classes: int, class_norm: str = "table", eps: float = 1e-5, momentum: float = 0.1,
        sync: bool = False,
    ):  # fmt: skip
        super().__init__(channels, eps, momentum, sync)
        self.num_classes, self.linear = num_classes, class_norm == "linear"
        if self.linear:
            self.gain, self.bias = (nn.Linear(num_classes, channels, bias=False) for _ in range(2))
        else:
            self.gain, self.bias = (ClassTable(num_classes, channels) for _ in range(2))
            nn.init.ones_(self.gain.weight)
            nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        if self.linear and not labels.is_floating_point():
            labels = F.one_hot(labels, self.num_classes).to(x.dtype)
        gain, bias = (layer(labels).to(x.dtype)[:, :, None, None] for layer in (self.gain, self.bias))
        return torch.addcmul(bias, self.normalize(x), 1 + gain if self.linear else gain)


def _global_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and count () over batch, map and processes, in one differentiable reduction."""
    var, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
    mean, var = mean.double(), var.double()  # so that E[x²] - E[x]² does not cancel
    count = torch.full((1,), x.numel() / x.shape[1], dtype=torch.float64, device=x.device)
    sums = _sum_over_processes(torch.cat([mean * count, (var + mean * mean) * count, count]))
    channels, total = x.shape[1], sums[-1]
    mean = sums[:channels] / total
    return mean, sums[channels:-1] / total - mean * mean, total.detach()


@torch.library.custom_op("sagan::sum_over_processes", mutates_args=(), tags=[torch.Tag.cudagraph_unsafe])
def _sum_over_processes(x: Tensor) -> Tensor:
    """The sum of x over all processes, as an operation that torch.compile and CUDA graphs do not trace into."""
    x = x.clone()
    dist.all_reduce(x)
    return x


@_sum_over_processes.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


_sum_over_processes.register_autograd(lambda _, grad: _sum_over_processes(grad.contiguous()))
