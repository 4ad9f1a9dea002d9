"""LPIPS as an embedding: it equals the package lpips, for distances, diversity and nearest images."""

import warnings
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from two import in_two

from sagan.evaluation.lpips import DiversitySums, Perceptual, load_perceptual, nearest, nearest_grid
from sagan.utils.errors import UserError
from sagan.utils.images import read_png

LAYERS = {  # index of the layer in torchvision, outputs, inputs, kernel size
    "alex": ((0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3), (10, 256, 256, 3)),
    "vgg": (
        (0, 64, 3, 3), (2, 64, 64, 3), (5, 128, 64, 3), (7, 128, 128, 3), (10, 256, 128, 3), (12, 256, 256, 3),
        (14, 256, 256, 3), (17, 512, 256, 3), (19, 512, 512, 3), (21, 512, 512, 3), (24, 512, 512, 3),
        (26, 512, 512, 3), (28, 512, 512, 3),
    ),
}  # fmt: skip


def trunk(net: str) -> dict[str, Tensor]:
    """Seeded weights under torchvision's names, whose activations neither vanish nor explode."""
    rng, tensors = torch.Generator().manual_seed(0), {}
    for index, outputs, inputs, kernel in LAYERS[net]:
        shape, scale = (outputs, inputs, kernel, kernel), (2 / (inputs * kernel**2)) ** 0.5
        tensors[f"features.{index}.weight"] = torch.randn(shape, generator=rng) * scale
        tensors[f"features.{index}.bias"] = torch.randn(outputs, generator=rng) * 0.1
    return tensors


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of seeded weights for each network."""
    folder = tmp_path_factory.mktemp("trunks")
    for net in LAYERS:
        torch.save(trunk(net), folder / f"{net}.pth")
    return {net: folder / f"{net}.pth" for net in LAYERS}


@pytest.fixture(scope="module")
def alex(files: dict[str, Path]) -> Perceptual:
    return load_perceptual("alex", files["alex"])


def images(count: int, height: int = 32, width: int = 32) -> Tensor:
    """uint8 (N, H, W, 3): half of them noise, half of them patches of one color."""
    rng = torch.Generator().manual_seed(count)
    drawn = torch.randint(0, 256, (count, height, width, 3), generator=rng, dtype=torch.uint8)
    drawn[::2] = drawn[::2, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width]
    return drawn


def by_lpips(network: torch.nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS by the package, (B,)."""
    scaled = (x.permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (a, b))
    with torch.no_grad():
        return network(*scaled)[:, 0, 0, 0]


def ordinary_lpips(net: str, file: Path) -> torch.nn.Module:
    """The package in ordinary use, the trunk's tensors put in one by one."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    tensors = torch.load(file, weights_only=True)
    with torch.no_grad():
        for name, parameter in network.net.named_parameters():
            parameter.copy_(tensors[f"features.{name.partition('.')[2]}"])
    return network


@pytest.mark.parametrize("size", [(32, 32), (40, 57)])
def test_distance_is_that_of_lpips(alex: Perceptual, files: dict[str, Path], size: tuple[int, int]) -> None:
    a, b = images(6, *size), images(7, *size)[1:]
    b[3] = a[3]
    expected = by_lpips(ordinary_lpips("alex", files["alex"]), a, b)
    found = alex.distance(a, b)
    assert expected[0] > 0.05
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert found[3] == expected[3] == 0
    assert alex.embed(a).dtype == torch.float32
    assert alex.embed(images(6)).shape == (6, 5760)


def test_vgg(files: dict[str, Path]) -> None:
    """Loading is silent and consumes no random numbers."""
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vgg = load_perceptual("vgg", files["vgg"])
    assert torch.equal(torch.get_rng_state(), state)
    assert not vgg.network.training
    assert not any(parameter.requires_grad for parameter in vgg.network.parameters())
    mine, tensors = vgg.network.net.state_dict(), trunk("vgg")
    assert len(mine) == len(tensors) == 26
    assert all(torch.equal(mine[name], tensors[f"features.{name.partition('.')[2]}"]) for name in mine)
    a, b = images(2), images(3)[1:]
    assert torch.allclose(vgg.distance(a, b), by_lpips(vgg.network, a, b), rtol=0, atol=1e-5)
    assert vgg.embed(a).shape == (2, 124_928)
    with pytest.raises(UserError, match="at least 16x16"):
        vgg.embed(images(1, 15, 32))
    assert vgg.embed(images(1, 16, 16)).isfinite().all()


def test_small_images(alex: Perceptual) -> None:
    with pytest.raises(UserError, match="images are 40x30, it needs at least 31x31"):
        alex.embed(images(1, 40, 30))
    assert alex.embed(images(1, 31, 31)).isfinite().all()
    many = images(9)  # and no embedding depends on the batch
    assert (alex.embed(many)[4] - alex.embed(many[4:5])[0]).square().sum() < 1e-10


def test_files_with_classifier_or_in_float64_are_accepted(alex: Perceptual, tmp_path: Path) -> None:
    whole = trunk("alex") | {"classifier.1.weight": torch.zeros(2, 2), "classifier.1.bias": torch.zeros(2)}
    torch.save({name: tensor.double() for name, tensor in whole.items()}, tmp_path / "double.pth")
    assert torch.equal(load_perceptual("alex", tmp_path / "double.pth").embed(images(2)), alex.embed(images(2)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (trunk("vgg"), "torchvision's alexnet: tensor features.3.bias is missing"),
        (trunk("alex") | {"features.3.weight": torch.zeros(192, 64, 3, 3)}, "features.3.weight has"),
        (trunk("alex") | {"features.12.weight": torch.zeros(1)}, "features.12.weight is not part"),
        ({"features.0.weight": 1, 2: 3}, "is not a tensor"),
    ],
)
def test_weights_of_other_networks_are_refused(content: dict, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_perceptual("alex", tmp_path / "weights.pth")
    assert str(caught.value).startswith(str(tmp_path / "weights.pth"))
    assert "\n" not in str(caught.value)


def diversity(batches: Iterable[Tensor], labels: np.ndarray | None = None) -> tuple[float, float | None]:
    """Diversity of embeddings (B, E), in all and within classes (N,)."""
    parts = list(batches)
    sums, ends = DiversitySums(parts[0].shape[1]), np.cumsum([len(part) for part in parts])
    for part, end in zip(parts, ends, strict=True):
        sums.update(part, None if labels is None else labels[end - len(part) : end])
    return scores(sums)


def scores(sums: DiversitySums) -> tuple[float, float | None]:
    found = sums.result()
    return found["lpips_diversity"], found.get("lpips_diversity_within")


def loop_over_pairs(network: torch.nn.Module, some: Tensor) -> float:
    """Mean LPIPS of all pairs, one after the other, by the package."""
    pairs = combinations(range(len(some)), 2)
    return float(np.mean([by_lpips(network, some[i : i + 1], some[j : j + 1]).item() for i, j in pairs]))


def test_diversity_is_the_mean_over_all_pairs(alex: Perceptual, files: dict[str, Path]) -> None:
    some, labels = images(9), np.array([3, 0, 3, 0, 0, 7, 3, 1, 1])  # class 7 has one image
    network = ordinary_lpips("alex", files["alex"])
    within = np.mean([loop_over_pairs(network, some[labels == label]) for label in (0, 1, 3)])
    found = diversity((alex.embed(part) for part in some.split(4)), labels)
    assert found == pytest.approx((loop_over_pairs(network, some), within), rel=1e-5)
    assert diversity([alex.embed(some)]) == (pytest.approx(found[0], rel=1e-6), None)


def vectors(count: int, size: int = 40, seed: int = 1) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_diversity_does_not_cancel() -> None:
    """Differences of squares of large means would give noise for a collapsed generator."""
    some = vectors(50) * 1e-2 + 3000
    expected = torch.pdist(some.double()).square().mean().item()
    for size in (50, 7, 1):
        assert diversity(some.split(size))[0] == pytest.approx(expected, rel=1e-9)
    assert diversity([some[:1].expand(5, -1)])[0] == 0
    assert diversity([some[:3]], np.array([0, 5, 2]))[1] is None


@pytest.mark.parametrize(("labeled", "split"), [(True, 6), (False, 6), (True, 10)])
def test_two_processes_are_one(labeled: bool, split: int, tmp_path: Path) -> None:
    """The first process has `split` of ten vectors, the second one the others; class 4 is of the first one alone."""
    labels, some = np.array([0, 4, 0, 0, 4, 0, 2, 0, 0, 1]), vectors(10) + 100

    def share(rank: int) -> None:
        sums, rows = DiversitySums(40), slice(split, 10) if rank else slice(0, split)
        for start in range(rows.start, rows.stop, 2):
            sums.update(some[start : start + 2], labels[start : start + 2] if labeled else None)
        sums.reduce()
        overall, within = diversity([some], labels if labeled else None)
        assert scores(sums) == (pytest.approx(overall, rel=1e-12), within and pytest.approx(within, rel=1e-12))

    in_two(share, tmp_path)


def compare_all(samples: Tensor, others: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and squared distances by the definition: all differences, in float64, and a stable sort."""
    differences = samples.double().numpy()[:, None] - others.double().numpy()
    distances = np.square(differences).sum(-1).astype(np.float32)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, 1)


def on_a_grid(count: int, seed: int) -> Tensor:
    """81 different vectors, not exact in binary: many are equally far away."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (count, 4), generator=rng).float() * 0.1 + 0.7


NEAR = {
    "apart": (vectors(9), vectors(150, seed=2)),
    "ties": (on_a_grid(20, 2), on_a_grid(300, 3)),  # go to the first image
    "far from 0": (vectors(6) * 1e-2 + 1000, torch.cat([vectors(80, seed=2), vectors(6)]) * 1e-2 + 1000),
}


@pytest.mark.parametrize(("batch", "k"), [(1, 5), (7, 40), (64, 1), (1000, 12)])
@pytest.mark.parametrize("case", NEAR)
def test_nearest_is_that_of_comparing_all(case: str, batch: int, k: int) -> None:
    samples, others = NEAR[case]
    indices, distances = compare_all(samples, others, k)
    found = nearest(samples, others.split(batch), k)
    assert (found.indices.dtype, found.distances.dtype) == (np.int64, np.float32)
    assert np.array_equal(found.indices, indices)
    assert np.allclose(found.distances, distances, rtol=1e-6, atol=0)


def tile(grid: np.ndarray, color: tuple[int, int, int]) -> tuple[slice, slice]:
    """Rows and columns of the rectangle of one color; fails if it is not one."""
    rows, columns = np.nonzero((grid == color).all(-1))
    where = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    assert (grid[where] == color).all()
    return where


@pytest.mark.parametrize("size", [(32, 32), (48, 20), (128, 96)])
def test_grid(size: tuple[int, int]) -> None:
    """Each row has a sample, a wider gap, and its neighbors in order with a distance below each."""
    colors = np.array([[(200, 10 * row, 10 * column) for column in range(4)] for row in range(3)], np.uint8)
    pictures = np.broadcast_to(colors[:, :, None, None], (3, 4, *size, 3))
    grid = nearest_grid(pictures[:, 0], pictures[:, 1:], np.full((3, 3), 0.125), "nearest")
    height, width = (side * {32: 2, 20: 4, 96: 1}[size[1]] for side in size)
    for row in range(3):
        found = [tile(grid, tuple(color)) for color in colors[row]]
        assert {(y.stop - y.start, x.stop - x.start) for y, x in found} == {(height, width)}
        assert len({y.start for y, _ in found}) == 1
        lefts = [x.start for _, x in found]
        assert lefts[1] - lefts[0] > lefts[2] - lefts[1] == lefts[3] - lefts[2] > width
        below = [grid[y.stop : y.stop + 18, x.start : x.stop] for y, x in found]
        assert (below[0] == 255).all()
        assert all((part < 128).any() for part in below[1:])


def test_grid_keeps_pixels_and_the_title() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3), np.uint8)
    short, long = (nearest_grid(noise[:, 0], noise[:, 1:], np.array([[3.0]]), title) for title in ("", "nearest " * 20))
    assert long.shape[1] > 800 > short.shape[1]
    assert (long[:, -12:] == 255).all()
    assert (long[:30, -80:] < 128).any()
    enlarged = np.asarray(Image.fromarray(noise[0, 0]).resize((64, 64), Image.Resampling.NEAREST))
    top = 56 + np.argwhere((short[56:] != 255).any(-1))[0, 0]
    assert np.array_equal(short[top : top + 64, 12 : 12 + 64], enlarged)


def cifar(folder: Path, count: int) -> Tensor:
    """The first `count` images of each class, uint8 (10 * count, 32, 32, 3)."""
    paths = [path for label in sorted(folder.iterdir()) for path in sorted(label.glob("*.png"))[:count]]
    return torch.from_numpy(np.stack([read_png(path) for path in paths]))


@pytest.mark.assets
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_real_weights_on_real_images(assets: Path, net: str) -> None:
    file = assets / f"lpips-{net}.pth"
    loaded, network, some = load_perceptual(net, file), ordinary_lpips(net, file), cifar(assets / "cifar10" / "test", 2)
    expected = by_lpips(network, some[:-1], some[1:])
    assert torch.allclose(loaded.distance(some[:-1], some[1:]), expected, rtol=0, atol=1e-5)
    assert 0.05 < expected.mean() < 1
    assert diversity([loaded.embed(some[:6])])[0] == pytest.approx(loop_over_pairs(network, some[:6]), abs=1e-5)


@pytest.mark.assets
def test_real_training_images_are_found(assets: Path) -> None:
    """Also if they are slightly brighter."""
    training = cifar(assets / "cifar10" / "train", 40)
    samples = training[[7, 123, 300]]
    brighter = (samples.int() + 6).clamp(max=255).byte()
    perceptual = load_perceptual("alex", assets / "lpips-alex.pth")
    embedded = [perceptual.embed(part) for part in training.split(64)]
    same, near = (nearest(perceptual.embed(some), embedded, 2) for some in (samples, brighter))
    assert same.indices[:, 0].tolist() == near.indices[:, 0].tolist() == [7, 123, 300]
    assert (same.distances[:, 0] < 1e-6).all()
    assert (near.distances[:, 0] < 0.2 * near.distances[:, 1]).all()
