"""FID's Inception network as torch-fidelity has it, made ready for speed: the same features up to rounding.

Batch norm is folded into the convolutions, memory is channels_last, and the resize is two matrix products. With fused
convolutions of oneDNN, packed weights or sibling 1×1 convolutions in one, nothing more was gained.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

from sagan.evaluation.resize import resize_like_tensorflow
from sagan.evaluation.weights import as_file
from sagan.randomness import torch_generator

IMAGES_AT_ONCE = {"cpu": 32, "cuda": 128}  # the largest map takes 5.5 MB an image


def build_extractor(weights: BytesIO) -> FeatureExtractorInceptionV3:
    """torch-fidelity's own extractor of these weights; RuntimeError where they are another network's."""
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)


def random_weights(seed: int) -> dict[str, Tensor]:
    """Weights of the network that know nothing, the same for the same seed; its maps keep their size with depth."""
    with torch.random.fork_rng(devices=[]):
        tensors = _Unfilled("inception-v3-compat", ["2048"], feature_extractor_weights_path=as_file({})).state_dict()
    rng = torch_generator(seed, "inception")
    for name, tensor in tensors.items():
        if name.endswith("running_var") or name.endswith("bn.weight"):
            tensor.uniform_(0.8, 1.2, generator=rng)
        elif tensor.is_floating_point():
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 0.1, generator=rng)
    return tensors


class _Unfilled(FeatureExtractorInceptionV3):
    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Leave the values that torch drew."""
        return super().load_state_dict({}, strict=False)


def fast_inception(
    extractor: FeatureExtractorInceptionV3, device: torch.device, logits: bool
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function of uint8 (B, H, W, 3) on `device` to features (B, 2048) and, where asked for, logits (B, 1008).

    They are the layers "2048" and "logits_unbiased" of `extractor`, whose convolutions are folded in place.
    """
    for block in extractor.modules():
        if isinstance(block, BasicConv2d):
            fold_batch_norm(block)
    layers = nn.Sequential(*list(extractor.children())[:-1])  # all but fc, in the order in which they are applied
    layers = layers.to(device=device).to(memory_format=torch.channels_last)
    directions = extractor.fc.weight.T.to(device)  # (2048, 1008)
    at_once = IMAGES_AT_ONCE.get(device.type, 32)

    def compute(images: Tensor) -> tuple[Tensor, ...]:
        parts = []
        for some in images.split(at_once):
            x = resize_like_tensorflow((some.float() - 128) / 128, extractor.INPUT_IMAGE_SIZE)  # (b, 3, 299, 299)
            parts.append(layers(x).flatten(1))
        features = torch.cat(parts)
        return (features, features @ directions) if logits else (features,)

    return compute


def fold_batch_norm(block: Any) -> None:
    """Take a BasicConv2d's batch norm into weight and bias of its convolution, in float64, rounded once."""
    conv, norm = block.conv, block.bn
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # (C,)
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    conv.weight, conv.bias = (nn.Parameter(x.float(), requires_grad=False) for x in (weight, bias))
    block.bn = nn.Identity()
