"""LPIPS as an embedding equals the package lpips, weights are read safely, diversity is the mean over all pairs."""

import warnings
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from sagan.evaluation.lpips import DiversitySums, Perceptual, load_perceptual
from sagan.utils.errors import UserError
from sagan.utils.images import read_png

# index of the layer in torchvision, outputs, inputs, size of the kernel
ALEX = ((0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3), (10, 256, 256, 3))
VGG = (
    (0, 64, 3, 3), (2, 64, 64, 3), (5, 128, 64, 3), (7, 128, 128, 3), (10, 256, 128, 3), (12, 256, 256, 3),
    (14, 256, 256, 3), (17, 512, 256, 3), (19, 512, 512, 3), (21, 512, 512, 3), (24, 512, 512, 3), (26, 512, 512, 3),
    (28, 512, 512, 3),
)  # fmt: skip
LAYERS = {"alex": ALEX, "vgg": VGG}


def trunk(net: str) -> dict[str, Tensor]:
    """Seeded weights under torchvision's names, whose activations neither die out nor explode."""
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
    """uint8 (N, H, W, 3): half of them noise, half of them patches of one colour."""
    rng = torch.Generator().manual_seed(count)
    drawn = torch.randint(0, 256, (count, height, width, 3), generator=rng, dtype=torch.uint8)
    drawn[::2] = drawn[::2, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width]
    return drawn


def by_lpips(network: torch.nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """What the package itself computes, (B,)."""
    scaled = (x.permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (a, b))
    with torch.no_grad():
        return network(*scaled)[:, 0, 0, 0]


def ordinary_lpips(net: str, file: Path) -> torch.nn.Module:
    """The package used as everybody uses it, the trunk's tensors put in one by one."""
    import lpips  # here, so that the two processes below start quickly

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    tensors = torch.load(file, weights_only=True)
    with torch.no_grad():
        for name, parameter in network.net.named_parameters():
            parameter.copy_(tensors[f"features.{name.partition('.')[2]}"])
    return network


@pytest.mark.parametrize("size", [(32, 32), (40, 57), (128, 96)])
def test_distance_is_that_of_lpips(alex: Perceptual, files: dict[str, Path], size: tuple[int, int]) -> None:
    """Breaks with another scaling of images or features, a lost layer or weight, or a sum in place of a mean."""
    a, b = images(6, *size), images(7, *size)[1:]
    b[3] = a[3]
    expected = by_lpips(ordinary_lpips("alex", files["alex"]), a, b)
    found = alex.distance(a, b)
    assert expected[0] > 0.05
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert found[3] == expected[3] == 0
    embedded = alex.embed(a)
    assert embedded.dtype == torch.float32
    assert torch.allclose((embedded - alex.embed(b)).square().sum(1), expected, rtol=0, atol=1e-5)
    if size == (32, 32):
        assert embedded.shape == (6, 5760)


def test_vgg(files: dict[str, Path]) -> None:
    """Breaks when the second network's tensors go astray, or its embedding is not its distance."""
    vgg = load_perceptual("vgg", files["vgg"])
    mine, tensors = vgg.network.net.state_dict(), trunk("vgg")
    assert len(mine) == len(tensors) == 26
    assert all(torch.equal(mine[name], tensors[f"features.{name.partition('.')[2]}"]) for name in mine)
    a, b = images(2), images(3)[1:]
    assert torch.allclose(vgg.distance(a, b), by_lpips(vgg.network, a, b), rtol=0, atol=1e-5)
    assert vgg.embed(a).shape == (2, 124_928)
    assert vgg.sha256 != load_perceptual("alex", files["alex"]).sha256


def test_an_image_is_itself_in_another_batch(alex: Perceptual) -> None:
    """Breaks when the rounding of a batch decides what is an image's copy."""
    many = images(9)
    assert (alex.embed(many)[4] - alex.embed(many[4:5])[0]).square().sum() < 1e-10


def test_loading_is_silent_and_draws_nothing(files: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """Breaks when a score's place in a program changes what is drawn after it, or lpips says what it does."""
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_perceptual("vgg", files["vgg"])
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert not any(p.requires_grad for p in loaded.network.parameters())
    assert not loaded.network.training


def test_the_whole_file_of_torchvision_does(files: dict[str, Path], alex: Perceptual, tmp_path: Path) -> None:
    """Breaks when only a file without the classifier, or only float32, is taken."""
    whole = trunk("alex") | {"classifier.1.weight": torch.zeros(2, 2), "classifier.1.bias": torch.zeros(2)}
    torch.save(whole, tmp_path / "whole.pth")
    torch.save({name: tensor.double() for name, tensor in whole.items()}, tmp_path / "double.pth")
    expected = alex.embed(images(2))
    for name in ("whole.pth", "double.pth"):
        assert torch.equal(load_perceptual("alex", tmp_path / name).embed(images(2)), expected)


class Payload:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.witness,))


def changed(**tensors: Tensor) -> dict[str, Tensor]:
    return trunk("alex") | {f"features.{name[1:]}.weight": tensor for name, tensor in tensors.items()}


BAD: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "missing": (lambda path, witness: None, "no such weights file"),
    "folder": (lambda path, witness: path.mkdir(), "no such weights file"),
    "empty": (lambda path, witness: path.touch(), "damaged"),
    "garbage": (lambda path, witness: path.write_bytes(bytes(range(256)) * 40), "damaged"),
    "text": (lambda path, witness: path.write_text("<html>404</html>\n" * 9), "damaged"),
    "pickle": (lambda path, witness: torch.save(trunk("alex") | {"x": Payload(witness)}, path), "damaged"),
    "old pickle": (
        lambda path, witness: torch.save(Payload(witness), path, _use_new_zipfile_serialization=False), "damaged",
    ),
    "tensor": (lambda path, witness: torch.save(torch.zeros(3), path), "expected a dictionary"),
    "numbers": (lambda path, witness: torch.save({"features.0.weight": 1, 2: 3}, path), "is not a tensor"),
    "vgg": (lambda path, witness: torch.save(trunk("vgg"), path), "alexnet: tensor features.3.bias is missing"),
    "shape": (lambda path, witness: torch.save(changed(_3=torch.zeros(192, 64, 3, 3)), path), "features.3.weight has"),
    "more": (lambda path, witness: torch.save(changed(_12=torch.zeros(1)), path), "features.12.weight is not part"),
    "nan": (lambda path, witness: torch.save(changed(_0=trunk("alex")["features.0.weight"] / 0), path), "not finite"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [*BAD, "half"])
def test_bad_weights_are_one_line(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    """Breaks when a bad file ends in a traceback or is not named, when it is taken all the same, or runs code."""
    path, witness = tmp_path / "weights.pth", tmp_path / "witness"
    if kind == "half":
        content = files["alex"].read_bytes()
        path.write_bytes(content[: len(content) // 2])
    else:
        BAD[kind][0](path, witness)
    with pytest.raises(UserError) as caught:
        load_perceptual("alex", path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    assert BAD.get(kind, (None, "damaged"))[1] in message
    assert not witness.exists()


def test_small_images(alex: Perceptual, files: dict[str, Path]) -> None:
    """Breaks when either ends in a traceback, or the smallest image that works is refused."""
    with pytest.raises(UserError, match="images are 40x30, it needs at least 31x31"):
        alex.embed(images(1, 40, 30))
    assert alex.embed(images(1, 31, 31)).isfinite().all()
    vgg = load_perceptual("vgg", files["vgg"])
    with pytest.raises(UserError, match="at least 16x16"):
        vgg.embed(images(1, 15, 32))
    assert vgg.embed(images(1, 16, 16)).isfinite().all()


def diversity(batches: Iterable[Tensor], labels: np.ndarray | None = None) -> tuple[float, float | None]:
    """Diversity of embeddings (B, E) and within classes (N,), in the same order."""
    sums, done = None, 0
    for batch in batches:
        sums = DiversitySums(batch.shape[1], batch.device) if sums is None else sums
        sums.update(batch, None if labels is None else labels[done : done + len(batch)])
        done += len(batch)
    assert sums is not None
    return scores(sums)


def scores(sums: DiversitySums) -> tuple[float, float | None]:
    found = sums.result()
    return found["lpips_diversity"], found.get("lpips_diversity_within")


def loop_over_pairs(network: torch.nn.Module, shown: Tensor) -> float:
    """Mean LPIPS of all pairs, one after the other, by the package."""
    pairs = combinations(range(len(shown)), 2)
    return float(np.mean([by_lpips(network, shown[i : i + 1], shown[j : j + 1]).item() for i, j in pairs]))


def test_diversity_is_the_mean_over_all_pairs(alex: Perceptual, files: dict[str, Path]) -> None:
    """Breaks when a pair is left out or counted twice, or a class with one image counts as one without differences."""
    shown, labels = images(11), np.array([3, 0, 3, 0, 0, 7, 3, 0, 1, 1, 3])  # class 7 has one image
    network = ordinary_lpips("alex", files["alex"])
    within = np.mean([loop_over_pairs(network, shown[labels == label]) for label in (0, 1, 3)])
    found = diversity((alex.embed(part) for part in shown.split(4)), labels)
    assert found == pytest.approx((loop_over_pairs(network, shown), within), rel=1e-5)
    assert diversity([alex.embed(shown)]) == (pytest.approx(found[0], rel=1e-6), None)


def embeddings(count: int, size: int = 40, offset: float = 0.0, spread: float = 1.0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1)) * spread + offset


def test_diversity_does_not_cancel() -> None:
    """Breaks when squares of large means are subtracted: a collapsed generator would get noise, or less than 0."""
    vectors = embeddings(50, offset=3000.0, spread=1e-2)
    expected = torch.pdist(vectors.double()).square().mean().item()
    assert expected < 0.01
    for size in (50, 7, 1):
        assert diversity(vectors.split(size))[0] == pytest.approx(expected, rel=1e-9)
    assert diversity([vectors[:1].expand(5, -1)])[0] == 0


def test_classes_with_one_image_have_no_diversity_within() -> None:
    assert diversity([embeddings(3)], np.array([0, 5, 2]))[1] is None


LABELS = np.array([0, 4, 0, 0, 4, 0, 2, 0, 0, 1])


def share(rank: int, labelled: bool, lopsided: bool) -> DiversitySums:
    """Of ten vectors, the first six and the last four; or all, and none. Class 4 is of one process alone."""
    sums, vectors = DiversitySums(40), embeddings(10, offset=100.0)
    parts = [slice(0, 10), slice(10, 10)] if lopsided else [slice(0, 6), slice(6, 10)]
    for part in (range(*parts[rank].indices(10))[start : start + 2] for start in range(0, 10, 2)):
        rows = slice(part.start, part.stop)
        if len(part):
            sums.update(vectors[rows], LABELS[rows] if labelled else None)
    return sums


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for labelled, lopsided in ((True, False), (False, False), (True, True)):
        sums = share(rank, labelled, lopsided)
        sums.reduce()
        found.append(scores(sums))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Breaks when a process's mean, a class it has not seen, or one without any image, is added up wrongly or hangs."""
    mp.start_processes(one_of_two, (str(tmp_path),), nprocs=2, start_method="spawn")  # type: ignore[attr-defined]
    vectors = [embeddings(10, offset=100.0)]
    for rank in range(2):
        labeled, plain, lopsided = torch.load(tmp_path / f"{rank}.pt")
        assert labeled == pytest.approx(diversity(vectors, LABELS), rel=1e-12)
        assert lopsided == pytest.approx(diversity(vectors, LABELS), rel=1e-12)
        assert plain == (pytest.approx(diversity(vectors)[0], rel=1e-12), None)


def cifar(assets: Path, count: int) -> Tensor:
    """The first `count` test images of each class, uint8 (10 * count, 32, 32, 3)."""
    classes = sorted((assets / "cifar10" / "test").iterdir())
    paths = [path for folder in classes for path in sorted(folder.glob("*.png"))[:count]]
    return torch.from_numpy(np.stack([read_png(path) for path in paths]))


@pytest.mark.assets
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_real_weights_on_real_images(assets: Path, net: str) -> None:
    """Breaks as test_distance_is_that_of_lpips does, with the dead and the large features of trained weights."""
    file = assets / f"lpips-{net}.pth"
    loaded, network, shown = load_perceptual(net, file), ordinary_lpips(net, file), cifar(assets, 2)
    a, b = shown[:-1], shown[1:]
    expected = by_lpips(network, a, b)
    assert torch.allclose(loaded.distance(a, b), expected, rtol=0, atol=1e-5)
    assert 0.05 < expected.mean() < 1
    few = shown[:6]
    assert diversity([loaded.embed(few)])[0] == pytest.approx(loop_over_pairs(network, few), abs=1e-5)
