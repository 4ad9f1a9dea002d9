"""A second implementation of the networks: slow, literal, from the published equations alone, without `sagan`.

Self-attention: Zhang et al. 2018, arXiv 1805.08318, eqs. 1-3. Spectral norm: Miyato et al. 2018, arXiv 1802.05957,
algorithm 1. Projection head: Miyato & Koyama 2018, arXiv 1802.05637, eq. 3. Residual blocks: the released code of both.
Shared class embedding and hierarchical z: Brock et al. 2018, arXiv 1809.11096, appendix B.

Everything is read from a flat state dict {key: tensor}, in the state's dtype, differentiable in its tensors.
`moved` collects what a forward in training mode would leave in the buffers; the state itself does not change.
"""

import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Reference:
    """One forward of a generator or a discriminator. `hold`: training mode, but nothing of the state moves."""

    state: dict[str, Tensor]
    training: bool
    hold: bool = False
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    last_norm_momentum: float = 0.1
    spectral_norm_eps: float = 1e-12
    relu_shortcut: bool = False
    hierarchical: bool = False
    moved: dict[str, Tensor] = field(default_factory=dict)

    def generator(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """z (B, z_dim), labels (B,) -> images (B, 3, R, R) in [-1, 1]."""
        blocks = count(self.state, r"blocks\.(\d+)\.")
        size = z.shape[1] // (blocks + 1) if self.hierarchical else z.shape[1]
        x = z[:, :size] @ self.weight("linear").T + self.state["linear.bias"]  # (B, 16·C0)
        x = x.reshape(z.shape[0], -1, 4, 4)
        for i in range(blocks):
            condition = self.condition(z[:, size * (i + 1) : size * (i + 2)], labels)
            x = self.generator_block(f"blocks.{i}", x, condition)
            x = self.attention_at("attention", x)
        x = relu(self.norm("norm", x, None, self.last_norm_momentum))
        return torch.tanh(self.conv("conv", x))

    def condition(self, chunk: Tensor, labels: Tensor | None) -> Tensor | None:
        """What a block sees of its chunk of z (B, Z) and the labels: BigGAN's [shared embedding, chunk], or labels."""
        if "shared.weight" not in self.state:
            return chunk if self.hierarchical else labels
        assert labels is not None
        rows = torch.stack([self.state["shared.weight"][int(label)] for label in labels])  # (B, E)
        return torch.cat([rows, chunk], dim=1) if self.hierarchical else rows

    def generator_block(self, name: str, x: Tensor, condition: Tensor | None) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W)."""
        h = relu(self.norm(f"{name}.norm1", x, condition, self.norm_momentum))
        h = self.conv(f"{name}.conv1", double(h))
        h = relu(self.norm(f"{name}.norm2", h, condition, self.norm_momentum))
        h = self.conv(f"{name}.conv2", h)
        return h + self.conv(f"{name}.shortcut", double(x))

    def discriminator(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """images (B, 3, R, R), labels (B,) -> logits (B,)."""
        blocks = count(self.state, r"trunk\.blocks\.(\d+)\.")
        resolution = images.shape[-1]
        downsampled = {32: 2, 64: 4, 128: 5, 256: 6}[resolution]
        x = self.stem("trunk.blocks.0", images)
        x = self.attention_at("trunk.attention", x)
        for i in range(1, blocks):
            before = x.shape[-1]
            x = self.discriminator_block(f"trunk.blocks.{i}", x, down=i < downsampled)
            if x.shape[-1] != before:
                x = self.attention_at("trunk.attention", x)
        h = relu(x).sum(dim=3).sum(dim=2)  # (B, C)
        logits = (h @ self.weight("head.linear").T + self.state["head.linear.bias"])[:, 0]
        if labels is not None:
            rows = self.weight("head.embedding")  # (K, C)
            logits = logits + torch.stack([rows[int(label)] @ h[b] for b, label in enumerate(labels)])
        return logits

    def stem(self, name: str, x: Tensor) -> Tensor:
        """The first block: no first activation, the shortcut pools before its 1×1."""
        h = self.conv(f"{name}.conv1", x)
        h = halve(self.conv(f"{name}.conv2", relu(h)))
        return h + self.conv(f"{name}.shortcut", halve(x))

    def discriminator_block(self, name: str, x: Tensor, down: bool) -> Tensor:
        """(B, C, H, W) -> (B, C', H/2, W/2) with `down`, else (B, C', H, W)."""
        h = self.conv(f"{name}.conv1", relu(x))
        h = self.conv(f"{name}.conv2", relu(h))
        shortcut = relu(x) if self.relu_shortcut else x
        if down or h.shape[1] != x.shape[1]:
            shortcut = self.conv(f"{name}.shortcut", shortcut)
        if down:
            h, shortcut = halve(h), halve(shortcut)
        return h + shortcut

    def attention_at(self, name: str, x: Tensor) -> Tensor:
        """Self-attention where the state has one for the size of x."""
        place = f"{name}.{x.shape[2]}x{x.shape[3]}"
        if f"{place}.gamma" not in self.state:
            return x
        weights = {key: self.weight(f"{place}.{key}") for key in ("query", "key", "value", "out")}
        return self_attention(x, weights, {}, self.state[f"{place}.gamma"], pool=True)

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.weight(name)
        return F.conv2d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def weight(self, name: str) -> Tensor:
        """W, or W / sigma with sigma = uᵀ W v after one power iteration in training mode, none otherwise."""
        if f"{name}.weight" in self.state:
            return self.state[f"{name}.weight"]
        weight = self.state[f"{name}.parametrizations.weight.original"]
        names = [f"{name}.parametrizations.weight.0.{vector}" for vector in ("_u", "_v")]
        u, v = self.state[names[0]], self.state[names[1]]
        matrix = weight.reshape(weight.shape[0], -1)
        if self.training and not self.hold:
            with torch.no_grad():
                u = self.unit(matrix @ v)
                v = self.unit(matrix.T @ u)
            self.moved |= {names[0]: u, names[1]: v}
        return weight / (u @ matrix @ v)

    def unit(self, vector: Tensor) -> Tensor:
        return vector / max(float(vector.square().sum().sqrt()), self.spectral_norm_eps)

    def norm(self, name: str, x: Tensor, condition: Tensor | None, momentum: float) -> Tensor:
        """Batch norm with a gain and a bias per channel, or per image and channel."""
        if self.training:
            mean = x.mean(dim=(0, 2, 3))
            variance = (x - mean[:, None, None]).square().mean(dim=(0, 2, 3))
            if not self.hold:
                count = x.numel() // x.shape[1]
                seen = {"running_mean": mean, "running_var": variance * count / (count - 1)}
                for key, value in seen.items():
                    old = self.state[f"{name}.{key}"]
                    self.moved[f"{name}.{key}"] = ((1 - momentum) * old + momentum * value).detach()
        else:
            mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / (variance[:, None, None] + self.norm_eps).sqrt()
        gain, bias = self.gain_and_bias(name, condition)
        return x * gain[:, :, None, None] + bias[:, :, None, None]

    def gain_and_bias(self, name: str, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each (1 or B, C): one for all classes; or tables; or 1 + and 0 + a normalized map of a vector.

        The vector is the one-hot label or BigGAN's condition (B, K).
        """
        if f"{name}.weight" in self.state:
            return self.state[f"{name}.weight"][None], self.state[f"{name}.bias"][None]
        assert condition is not None
        gain, bias = self.weight(f"{name}.gain"), self.weight(f"{name}.bias")
        if not condition.is_floating_point():
            if f"{name}.gain.weight" in self.state:  # tables (K, C)
                return torch.stack([gain[int(k)] for k in condition]), torch.stack([bias[int(k)] for k in condition])
            labels, condition = condition, torch.zeros(len(condition), gain.shape[1], dtype=gain.dtype)
            for b, label in enumerate(labels):
                condition[b, int(label)] = 1
        return 1 + condition @ gain.T, condition @ bias.T


def self_attention(
    x: Tensor, weights: dict[str, Tensor], biases: dict[str, Tensor], gamma: Tensor, pool: bool
) -> Tensor:
    """y = x + gamma · W_v o (eq. 3), o_j = sum_i beta_ji h(x_i) (eq. 2), one query at a time."""
    maps = attention_maps(x, weights, biases, pool)  # (B, N, M)
    values = project(x, "value", weights, biases)
    values = (max_pool(values) if pool else values).flatten(2)  # (B, V, M)
    mixed = torch.stack([sum_over_keys(maps[:, j], values) for j in range(maps.shape[1])], dim=2)  # (B, V, N)
    mixed = mixed.reshape(x.shape[0], -1, *x.shape[2:])
    return x + gamma * project(mixed, "out", weights, biases)


def attention_maps(x: Tensor, weights: dict[str, Tensor], biases: dict[str, Tensor], pool: bool) -> Tensor:
    """beta_ji = exp(s_ij) / sum_i exp(s_ij), s_ij = f(x_i) · g(x_j) (eq. 1), no scale: (B, N queries, M keys)."""
    queries = project(x, "query", weights, biases).flatten(2)  # (B, D, N)
    keys = project(x, "key", weights, biases)
    keys = (max_pool(keys) if pool else keys).flatten(2)  # (B, D, M)
    rows = []
    for j in range(queries.shape[2]):
        scores = (queries[:, :, j, None] * keys).sum(dim=1)  # (B, M)
        exponentials = (scores - scores.max(dim=1, keepdim=True).values).exp()
        rows.append(exponentials / exponentials.sum(dim=1, keepdim=True))
    return torch.stack(rows, dim=1)


def sum_over_keys(row: Tensor, values: Tensor) -> Tensor:
    """(B, M), (B, V, M) -> (B, V)."""
    return (row[:, None, :] * values).sum(dim=2)


def project(x: Tensor, name: str, weights: dict[str, Tensor], biases: dict[str, Tensor]) -> Tensor:
    """A 1×1 convolution, as the product of a matrix with every pixel."""
    y = torch.einsum("oc,bchw->bohw", weights[name][:, :, 0, 0], x)
    return y + biases[name][:, None, None] if name in biases else y


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def double(x: Tensor) -> Tensor:
    """Nearest-neighbor up-sampling by two."""
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def halve(x: Tensor) -> Tensor:
    """Average over 2×2 cells; a last odd row or column is dropped."""
    return cells(x).mean(dim=(3, 5))


def max_pool(x: Tensor) -> Tensor:
    """Maximum over 2×2 cells; a last odd row or column is dropped."""
    return cells(x).amax(dim=(3, 5))


def cells(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H/2, 2, W/2, 2)."""
    height, width = x.shape[2] // 2, x.shape[3] // 2
    x = x[:, :, : 2 * height, : 2 * width]
    return x.reshape(*x.shape[:2], height, 2, width, 2)


def count(state: dict[str, Tensor], pattern: str) -> int:
    """How many numbers the first group of the pattern takes in the keys."""
    return len({match[1] for key in state if (match := re.match(pattern, key))})
