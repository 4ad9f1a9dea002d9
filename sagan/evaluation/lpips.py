"""LPIPS, the perceptual distance, as an embedding: diversity of images, and their nearest neighbors.

The Unreasonable Effectiveness of Deep Features as a Perceptual Metric. Zhang, Isola, Efros, Shechtman, Wang. 2018,
arXiv:1801.03924. Eq. 1 is a mean over positions of weighted squared differences, with non-negative weights. So
LPIPS(a, b) = ‖e(a) − e(b)‖² for an embedding e, and the mean over all pairs of images does not need the pairs.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from sagan.evaluation.extractors import Pretrained, find_weights, load_tensors
from sagan.evaluation.features import ImageSet
from sagan.evaluation.fid import float64_device
from sagan.models.hub import load_exactly
from sagan.utils.errors import UserError
from sagan.utils.images import BLACK, WHITE, enlarge
from sagan.utils.io import sha256
from sagan.utils.progress import Progress
from sagan.utils.system import rank_and_count

UNLABELED = -1
HUB = "https://download.pytorch.org/models"
TRUNKS = {  # torchvision's name, weights, and the smallest image side that the last layer takes
    "alex": ("alexnet", Pretrained(f"{HUB}/alexnet-owt-7be5be79.pth", "7be5be79"), 31),
    "vgg": ("vgg16", Pretrained(f"{HUB}/vgg16-397923af.pth", "397923af"), 16),
}


@dataclass(frozen=True, eq=False)
class Perceptual:
    """LPIPS 0.1 on one trunk.

    Attributes:
        name: "alex" or "vgg". Distances of the two are not comparable.
        sha256: of the trunk's weights file; the layer weights (w of eq. 1) ship with the package lpips.
        network: lpips.LPIPS, frozen, in eval mode, on `device`, in channels_last format (1.3 to 1.5 times as fast).
    """

    name: str
    sha256: str
    device: torch.device
    network: Any

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) on any device -> float32 (B, E) on `device`, E = the sum of C·H·W over the layers.

        At 32 pixels E is 5760 (alex) or 124928 (vgg); it grows with the area. UserError for images that are too small.
        """
        import lpips

        (height, width), least = images.shape[1:3], TRUNKS[self.name][2]
        if min(height, width) < least:
            raise UserError(f"LPIPS {self.name}: images are {height}x{width}, it needs at least {least}x{least}")
        x = images.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W) in [-1, 1]
        # With TF32, embeddings of an image in different batches would differ.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
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
    """Load LPIPS on a trunk of TRUNKS. Consumes no random numbers.

    `weights`: a file in torchvision's format (`features.0.weight`, …); None: torch hub's cache, or a download into it.
    Nothing in it is executed. UserError if the file is missing, damaged or of another network.
    """
    import lpips

    architecture, pretrained, _ = TRUNKS[net]
    path = find_weights(pretrained, weights, "--lpips-weights")
    trunk = {name: tensor.float() for name, tensor in load_tensors(path).items() if name.startswith("features.")}
    with torch.device("meta"), warnings.catch_warnings():  # on meta, the trunk is not initialized
        warnings.simplefilter("ignore")  # lpips calls torchvision in a deprecated way
        network: Any = lpips.LPIPS(pretrained=False, net=net, pnet_rand=True, verbose=False)
    network.to_empty(device="cpu").requires_grad_(False)
    network.scaling_layer = lpips.ScalingLayer()
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    network.load_state_dict(load_tensors(heads), strict=False)
    slices = [getattr(network.net, f"slice{i + 1}") for i in range(network.net.N_slices)]
    layers = nn.ModuleDict({name: layer for part in slices for name, layer in part.named_children()})
    load_exactly(nn.ModuleDict({"features": layers}), trunk, f"{path}: not the weights of torchvision's {architecture}")
    return Perceptual(net, sha256(path), torch.device(device), network.to(device, memory_format=torch.channels_last))


def embeddings(
    images: ImageSet, perceptual: Perceptual, batch_size: int, rank: int = 0, processes: int = 1
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Indices and embeddings (B, E) of this process's share of the images, in batches."""
    with Progress(images.count, f"LPIPS of {images.name}", quiet=rank > 0) as progress:
        for indices in images.batches(batch_size)[rank::processes]:
            yield indices, perceptual.embed(images.read(indices))
            progress.advance(len(indices) * processes)


def lpips_diversity(images: ImageSet, perceptual: Perceptual, batch_size: int) -> dict[str, float]:
    """Scores of `DiversitySums` of all images; every process calls it, the first one gets them, the others {}."""
    rank, processes = rank_and_count()
    first = perceptual.embed(images.read(np.arange(1)))
    sums = DiversitySums(first.shape[1], first.device)
    for indices, embedded in embeddings(images, perceptual, batch_size, rank, processes):
        sums.update(embedded, None if images.labels is None else images.labels[indices])
    sums.reduce()
    return sums.result() if rank == 0 else {}


class _Spread(NamedTuple):
    """Count and mean (E,) of some vectors, and the sum of their squared distances to the mean."""

    count: int
    mean: Tensor
    squares: float

    def merged(self, other: "_Spread") -> "_Spread":
        """Of both together (Chan, Golub, LeVeque 1979), from differences to avoid cancellation."""
        count, step = self.count + other.count, other.mean - self.mean  # (E,)
        share = other.count / max(count, 1)
        between = float(step.square().sum()) * self.count * share
        return _Spread(count, self.mean + step * share, self.squares + other.squares + between)

    def mean_of_pairs(self) -> float:
        """Mean squared distance over all pairs of different vectors: 2 / (n - 1) times the sum of squares."""
        return 2 * self.squares / (self.count - 1)


class DiversitySums:
    """Mean LPIPS of all pairs of images that arrive in batches: exact, in float64, without forming the pairs.

    Memory: E float64 for each class, 45 KiB (alex, 32 pixels) or 1.2 MB (alex, 128 pixels). The sums are on `device`,
    where the process group needs them (cuda for nccl), or on the CPU instead of MPS.
    """

    def __init__(self, embedding_size: int, device: torch.device | str = "cpu") -> None:
        self.device = float64_device(device)
        self._nothing = _Spread(0, torch.zeros(embedding_size, dtype=torch.float64, device=self.device), 0.0)
        self._classes: dict[int, _Spread] = {}

    def update(self, embeddings: Tensor, labels: np.ndarray | None = None) -> None:
        """Add embeddings (B, E) and their classes (B,), each at least 0, with every batch or with none."""
        classes = np.full(len(embeddings), UNLABELED) if labels is None else labels
        for label in np.unique(classes).tolist():
            rows = torch.from_numpy(np.flatnonzero(classes == label)).to(embeddings.device)
            chosen = embeddings[rows].to(self.device).double()  # (b, E)
            mean = chosen.mean(0)
            spread = _Spread(len(chosen), mean, float((chosen - mean).square().sum()))
            self._classes[label] = self._classes.get(label, self._nothing).merged(spread)

    def reduce(self) -> None:
        """Sum over the processes; each calls it once, after its last batch."""
        if rank_and_count()[1] == 1:
            return
        last = torch.tensor(max(self._classes, default=UNLABELED), device=self.device)
        dist.all_reduce(last, dist.ReduceOp.MAX)
        for label in range(UNLABELED, int(last) + 1):
            mine = self._classes.get(label, self._nothing)
            count = torch.tensor(mine.count, device=self.device)
            dist.all_reduce(count)
            if count:
                mean = mine.mean * (mine.count / int(count))
                dist.all_reduce(mean)
                squares = mine.squares + mine.count * (mine.mean - mean).square().sum()
                dist.all_reduce(squares)
                self._classes[label] = _Spread(int(count), mean, float(squares))

    def result(self) -> dict[str, float]:
        """Mean LPIPS of two different images: of any two, and of two of one class, averaged over the classes.

        The latter ignores classes with a single image, and is missing if no class has two.
        """
        whole = self._nothing
        for spread in self._classes.values():
            whole = whole.merged(spread)
        labeled = [spread for label, spread in sorted(self._classes.items()) if label != UNLABELED]
        within = [spread.mean_of_pairs() for spread in labeled if spread.count > 1]
        scores = {"lpips_diversity": whole.mean_of_pairs()}
        return scores | ({"lpips_diversity_within": sum(within) / len(within)} if within else {})


class Nearest(NamedTuple):
    """The k nearest images of each of S samples, nearest first; ties go to the lower index."""

    indices: np.ndarray  # int64 (S, k), in the order in which the images were given
    distances: np.ndarray  # float32 (S, k)


@torch.no_grad()
def nearest(samples: Tensor, batches: Iterable[Tensor], k: int) -> Nearest:
    """Compare embeddings (S, E) with those of at least k images in `batches`, (B, E) each, in one exact pass.

    Distances are squared Euclidean ones, which are LPIPS for embeddings of `Perceptual`. They are computed from
    differences in float64, and so are exactly 0 for equal embeddings.
    """
    points = samples.to(float64_device(samples.device)).double()  # (S, E)
    distances = torch.empty(len(points), 0, device=points.device)
    indices = torch.empty(len(points), 0, dtype=torch.long, device=points.device)
    seen = 0
    for batch in batches:
        found = torch.cdist(points, batch.to(points), compute_mode="donot_use_mm_for_euclid_dist")  # (S, B)
        places = torch.arange(seen, seen + len(batch), device=points.device).expand_as(found)
        distances, order = torch.cat([distances, found.square().float()], 1).sort(dim=1, stable=True)
        distances, indices = distances[:, :k], torch.cat([indices, places], 1).gather(1, order[:, :k])
        seen += len(batch)
    return Nearest(indices.cpu().numpy(), distances.cpu().numpy())


def nearest_grid(samples: np.ndarray, neighbors: np.ndarray, distances: np.ndarray, title: str) -> np.ndarray:
    """One row per sample: the sample, and its nearest images with their distances below, as uint8 (H', W', 3).

    Samples (S, H, W, 3) and neighbors (S, k, H, W, 3) are uint8, distances (S, k). Small images are enlarged by a
    whole factor to at least 64 pixels.
    """
    scale = max(1, -(-64 // min(samples.shape[1:3])))
    (height, width), k = (scale * side for side in samples.shape[1:3]), neighbors.shape[1]
    margin, top, pitch = 12, 56, height + 24  # pixels
    lefts = [margin, *(margin + width + 20 + i * (width + 6) for i in range(k))]
    font, larger = ImageFont.load_default(size=12), ImageFont.load_default(size=15)
    right = max(lefts[-1] + width, margin + int(larger.getlength(title)) + 1)
    canvas = Image.new("RGB", (right + margin, top + len(samples) * pitch + 6), WHITE)
    draw = ImageDraw.Draw(canvas)
    draw.text((margin, margin), title, fill=BLACK, font=larger)
    for left, heading in zip(lefts, ("sample", "nearest first" if k > 1 else "nearest"), strict=False):
        draw.text((left, 34), heading, fill=BLACK, font=font)
    for row, (sample, near) in enumerate(zip(samples, neighbors, strict=True)):
        y = top + row * pitch
        for left, image in zip(lefts, enlarge(np.stack([sample, *near]), scale), strict=True):
            canvas.paste(Image.fromarray(image), (left, y))
        for left, distance in zip(lefts[1:], distances[row], strict=True):
            text = f"{distance:.3f}" if distance < 10 else f"{distance:.1f}"
            draw.text((left + width // 2, y + height + 2), text, fill=BLACK, font=font, anchor="mt")
    return np.asarray(canvas)
