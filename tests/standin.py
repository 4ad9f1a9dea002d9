"""Feature extractors without a weights file: a small one, registered as a user would, and a random Inception."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from sagan.evaluation.extractors import as_file
from sagan.utils.random import torch_generator

NAME = "sagan-standin"
DIMENSION, CLASSES = 64, 10


class StandIn(FeatureExtractorBase):
    """uint8 (B, 3, H, W) to "64", (B, 64), and "logits_unbiased", (B, 10); H and W from 4."""

    def __init__(self, name: str, features_list: list[str], **options: object) -> None:
        super().__init__(name, features_list)
        rng = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.Conv2d(32, DIMENSION, 3, stride=2)
        self.last = nn.Linear(DIMENSION, CLASSES, bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.1, generator=rng)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The requested features, in the order in which they were asked for."""
        x = self.first(images.float() / 127.5 - 1).relu()  # (B, 32, H/2, W/2)
        pooled = F.adaptive_avg_pool2d(self.second(x).relu(), 1).flatten(1)  # (B, 64)
        found = {"64": pooled, "logits_unbiased": self.last(pooled)}
        return tuple(found[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "64", "logits_unbiased"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits_unbiased", "fid": "64", "kid": "64", "prc": "64"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> tuple[Tensor, ...]:
        return (torch.zeros(1, 3, 8, 8, dtype=torch.uint8),)


def register_standin() -> str:
    """Register the extractor where it is not yet registered; its name."""
    if NAME not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(NAME, StandIn)
    return NAME


def random_weights(seed: int) -> dict[str, Tensor]:
    """Seeded random weights of the Inception network, whose activations neither vanish nor explode."""
    with torch.random.fork_rng(devices=[]):
        network = _Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=as_file({}))
    tensors, rng = network.state_dict(), torch_generator(seed, "inception")
    for name, tensor in tensors.items():
        if name.endswith("running_var") or name.endswith("bn.weight"):
            tensor.uniform_(0.8, 1.2, generator=rng)
        elif tensor.is_floating_point():
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 0.1, generator=rng)
    return tensors


class _Untrained(FeatureExtractorInceptionV3):
    def load_state_dict(self, *arguments: object, **options: object) -> object:
        """Keep the initial values."""
        return super().load_state_dict({}, strict=False)
