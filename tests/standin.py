"""A small seeded feature extractor, registered with torch-fidelity as any user would register one: no weights file."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

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
