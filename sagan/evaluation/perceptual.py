"""LPIPS, the perceptual distance, as an embedding; and how much images differ from each other by it.

R. Zhang, P. Isola, A. Efros, E. Shechtman, O. Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric", arXiv:1801.03924. Eq. 1 is a mean over positions of weighted squares of differences, with weights that are not
negative. So LPIPS(a, b) = ‖e(a) − e(b)‖² for one vector e an image, and a sum over all pairs needs no pairs.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sagan.errors import UserError
from sagan.evaluation.weights import Published, find_weights, load_tensors
from sagan.files import sha256
from sagan.pretrained import load_exactly

UNLABELLED = -1


class Trunk(NamedTuple):
    """A network of torchvision."""

    architecture: str
    published: Published
    smallest: int  # image that reaches its last layer


HUB = "https://download.pytorch.org/models"
TRUNKS = {
    "alex": Trunk("alexnet", Published(f"{HUB}/alexnet-owt-7be5be79.pth", "7be5be79"), 31),
    "vgg": Trunk("vgg16", Published(f"{HUB}/vgg16-397923af.pth", "397923af"), 16),
}


@dataclass(frozen=True, eq=False)
class Perceptual:
    """LPIPS 0.1 on one trunk.

    Attributes:
        name: "alex" or "vgg". Distances of the two are not comparable.
        sha256: of the trunk's weights file; the weights of the layers (w of eq. 1) come with the package lpips.
        network: lpips.LPIPS, frozen, in eval mode, on `device`, channels last as images are (1.3 to 1.5 times as fast).
    """

    name: str
    sha256: str
    device: torch.device
    network: Any

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3), anywhere -> float32 (B, E) on `device`, E = the sum of C·H·W over the layers.

        At 32 pixels E is 5760 (alex) or 124928 (vgg), and it grows with the area. UserError for images too small.
        """
        import lpips

        assert images.dtype == torch.uint8
        (height, width), least = images.shape[1:3], TRUNKS[self.name].smallest
        if min(height, width) < least:
            raise UserError(f"LPIPS {self.name}: images are {height}x{width}, it needs at least {least}x{least}")
        x = images.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W) in [-1, 1]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 would part equal images of two batches
            layers = self.network.net(self.network.scaling_layer(x))
        parts = []
        for features, head in zip(layers, self.network.lins, strict=True):
            positions = features.shape[2] * features.shape[3]
            scale = (head.model[-1].weight / positions).sqrt()  # (1, C, 1, 1)
            parts.append((lpips.normalize_tensor(features) * scale).flatten(1))  # (B, C·H·W)
        return torch.cat(parts, 1)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS of uint8 (B, H, W, 3) and (B, H, W, 3), pair by pair -> float32 (B,)."""
        return (self.embed(a) - self.embed(b)).square().sum(1)


def load_perceptual(net: str, weights: Path | None = None, device: torch.device | str = "cpu") -> Perceptual:
    """LPIPS on the trunk `net`, "alex" or "vgg", whose weights are in torchvision's format (`features.0.weight`, …).

    `weights`: their file; None: torch hub's cache, where the file is downloaded once if it is not there. Nothing in
    it is executed. UserError when there is no file, when it is damaged or of another network.
    """
    if net not in TRUNKS:
        raise UserError(f"LPIPS: unknown network {net!r}; known: {', '.join(TRUNKS)}")
    path = find_weights(TRUNKS[net].published, weights, "--lpips-weights")
    of_trunk = {name: tensor.float() for name, tensor in load_tensors(path).items() if name.startswith("features.")}
    network = _network(net)
    slices = [getattr(network.net, f"slice{i + 1}") for i in range(network.net.N_slices)]
    layers = nn.ModuleDict({name: layer for part in slices for name, layer in part.named_children()})
    where = f"{path}: not the weights of torchvision's {TRUNKS[net].architecture}"
    load_exactly(nn.ModuleDict({"features": layers}), of_trunk, where)
    return Perceptual(net, sha256(path), torch.device(device), network.to(device, memory_format=torch.channels_last))


class Diversity(NamedTuple):
    """Mean LPIPS of two different images: of any two, and of two of one class, averaged over the classes.

    `within` leaves classes with one image out; None without any class that has two.
    """

    overall: float
    within: float | None


@dataclass(frozen=True, eq=False)
class _Spread:
    """Of some vectors: how many, their mean (E,), and the sum of their squared distances to it."""

    count: int
    mean: Tensor
    squares: float

    def __add__(self, other: "_Spread") -> "_Spread":
        """Of both together (Chan, Golub, LeVeque 1979): differences only, so that nothing cancels."""
        count, step = self.count + other.count, other.mean - self.mean  # (E,)
        share = other.count / max(count, 1)
        between = float(step.square().sum()) * self.count * share
        return _Spread(count, self.mean + step * share, self.squares + other.squares + between)

    def mean_of_pairs(self) -> float:
        """Mean squared distance over all pairs of two different vectors: 2 / (n - 1) times the sum of squares."""
        return 2 * self.squares / (self.count - 1)


class DiversitySums:
    """What `Diversity` needs to know of images seen batch by batch: exact, in float64, without the pairs.

    Its memory is E float64 for every class that was seen: 45 KiB a class (alex, 32 pixels), 1.2 MB (alex, 128 pixels).
    The sums stand on `device`, as the process group needs them (cuda for nccl); for mps, without float64, on the CPU.
    """

    def __init__(self, embedding_size: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self._nothing = _Spread(0, torch.zeros(embedding_size, dtype=torch.float64, device=self.device), 0.0)
        self._classes: dict[int, _Spread] = {}

    def update(self, embeddings: Tensor, labels: np.ndarray | Tensor | None = None) -> None:
        """Add embeddings (B, E) and their classes (B,), each 0 or more: with every batch, or with none."""
        classes = [UNLABELLED] * len(embeddings) if labels is None else labels.tolist()
        assert len(classes) == len(embeddings)
        for label in sorted(set(classes)):
            rows = torch.tensor([i for i, other in enumerate(classes) if other == label], device=embeddings.device)
            chosen = embeddings[rows].to(self.device).double()  # (b, E)
            mean = chosen.mean(0)
            spread = _Spread(len(chosen), mean, float((chosen - mean).square().sum()))
            self._classes[label] = self._classes.get(label, self._nothing) + spread
        assert not (UNLABELLED in self._classes and len(self._classes) > 1), "some batches had labels, some had none"

    def reduce(self) -> None:
        """Add up over the processes of torch.distributed, so that each knows all; every one calls it, once."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        last = torch.tensor(max(self._classes, default=UNLABELLED), device=self.device)
        dist.all_reduce(last, dist.ReduceOp.MAX)
        for label in range(UNLABELLED, int(last) + 1):
            if total := _reduced(self._classes.get(label, self._nothing)):
                self._classes[label] = total

    def result(self) -> Diversity:
        """Diversity of all images so far; UserError for fewer than two."""
        everything = sum(self._classes.values(), self._nothing)
        if everything.count < 2:
            raise UserError(f"LPIPS diversity: pairs need at least 2 images, there is {everything.count}")
        labelled = [spread for label, spread in sorted(self._classes.items()) if label != UNLABELLED]
        within = [spread.mean_of_pairs() for spread in labelled if spread.count > 1]
        return Diversity(everything.mean_of_pairs(), sum(within) / len(within) if within else None)


def _reduced(mine: _Spread) -> _Spread | None:
    """The sum over all processes; None when none has an image."""
    count = torch.tensor(mine.count, device=mine.mean.device)
    dist.all_reduce(count)
    if not count:
        return None
    mean = mine.mean * (mine.count / int(count))
    dist.all_reduce(mean)
    squares = mine.squares + mine.count * (mine.mean - mean).square().sum()
    dist.all_reduce(squares)
    return _Spread(int(count), mean, float(squares))


def _network(net: str) -> Any:
    """lpips.LPIPS with the package's weights of the layers and a trunk without values; draws no random number."""
    import lpips

    with torch.device("meta"), warnings.catch_warnings():  # lpips calls torchvision in a way that it deprecates
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(pretrained=False, net=net, version="0.1", pnet_rand=True, verbose=False)
    network.to_empty(device="cpu").requires_grad_(False).eval()
    network.scaling_layer = lpips.ScalingLayer()
    heads = nn.ModuleDict({f"lin{i}": head for i, head in enumerate(network.lins)})
    path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    load_exactly(heads, load_tensors(path), str(path))
    assert all((weight >= 0).all() for weight in heads.parameters())
    return network
