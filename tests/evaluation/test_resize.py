"""The resize of FID's network, against torch-fidelity's own."""

import pytest
import torch
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from sagan.evaluation.extractors import resize_like_tensorflow


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(32, 32, 299), (128, 128, 299), (300, 300, 299), (64, 48, 299), (299, 299, 299), (1, 5, 299), (48, 700, 224)],
)
def test_equals_torch_fidelity(height: int, width: int, size: int) -> None:
    """Breaks when rows and columns change places, the grid shifts by half a pixel, or the last sample is not held."""
    images = torch.randint(256, (2, height, width, 3), generator=torch.Generator().manual_seed(0)).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(
        images.permute(0, 3, 1, 2), size=(size, size), align_corners=False
    )
    found = resize_like_tensorflow(images, size)
    assert found.shape == expected.shape == (2, 3, size, size)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() < 1e-4  # of a grey level


def test_is_not_the_resize_of_today() -> None:
    """Breaks when it is replaced by torch's, which differs by many grey levels."""
    images = torch.randint(256, (1, 32, 32, 3), generator=torch.Generator().manual_seed(0)).float()
    today = torch.nn.functional.interpolate(images.permute(0, 3, 1, 2), size=(299, 299), mode="bilinear")
    assert (resize_like_tensorflow(images, 299) - today).abs().max() > 50
