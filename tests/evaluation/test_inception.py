"""The fast Inception network, against torch-fidelity's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate import random_weights
from PIL import Image
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

from sagan.evaluation.extractors import (
    IMAGES_AT_ONCE,
    as_file,
    build_extractor,
    fast_inception,
    fold_batch_norm,
    load_tensors,
)

CPU = torch.device("cpu")


def both(tensors: dict[str, Tensor], images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Features and logits of ours, and of torch-fidelity, of uint8 (B, H, W, 3)."""
    layers = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=as_file(tensors))
    with torch.inference_mode():
        ours = fast_inception(build_extractor(as_file(tensors)), CPU, logits=True)(images)
        return ours, theirs(images.permute(0, 3, 1, 2))


@pytest.mark.parametrize("size", [(32, 32), (56, 40)])
def test_equals_torch_fidelity_on_random_weights(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a layer is left out or moved, a norm is folded wrongly, or images of a batch change places."""
    monkeypatch.setitem(IMAGES_AT_ONCE, "cpu", 2)
    images = torch.randint(256, (3, *size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for ours, theirs in zip(*both(random_weights(0), images), strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
        assert (theirs[0] - theirs[1]).abs().max() > 1e-3 * theirs.abs().max()


def test_a_folded_block_is_the_block_in_eval_mode() -> None:
    """Breaks when eps, the mean or the bias of the norm is left out."""
    block = BasicConv2d(3, 4, kernel_size=3, padding=1).eval()
    for tensor in (block.bn.weight, block.bn.bias, block.bn.running_mean, block.bn.running_var):
        tensor.data.uniform_(0.0, 0.01)
    images = torch.rand(2, 3, 5, 5)
    with torch.no_grad():
        expected = block(images)
        fold_batch_norm(block)
        torch.testing.assert_close(block(images), expected)


def test_random_weights_are_seeded_and_alone() -> None:
    """Breaks when two benchmarks time different weights, or drawing them moves the random numbers of a run."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = random_weights(0), random_weights(0)
    assert torch.rand(1) == expected
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.assets
def test_equals_torch_fidelity_on_real_weights(assets: Path) -> None:
    """Breaks when features of real images leave torch-fidelity's by more than rounding. fc there is zero, so drawn."""
    tensors = load_tensors(assets / "inception-fid.pth")
    rng = torch.Generator().manual_seed(0)
    tensors["fc.weight"] = torch.randn(tensors["fc.weight"].shape, generator=rng) / 45
    paths = sorted((assets / "cifar10" / "test").glob("*/*.png"))[:: 10000 // 64][:64]
    pictures = [Image.open(path).convert("RGB") for path in paths]
    large = [picture.resize((128, 128), Image.Resampling.BICUBIC) for picture in pictures[:4]]
    for some in (pictures, large):
        images = torch.from_numpy(np.stack([np.asarray(picture) for picture in some]))
        for ours, theirs in zip(*both(tensors, images), strict=True):
            assert len(ours) == len(some)
            assert (ours - theirs).abs().max() < 1e-4
            assert theirs.abs().max() > 1
