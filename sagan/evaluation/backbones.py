"""The networks whose features FID and its kin compare, by name: torch-fidelity's, or what was registered with it."""

import difflib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sagan.errors import UserError
from sagan.evaluation import extractors
from sagan.evaluation.weights import Published, find_weights, tensors_sha256
from sagan.files import sha256

FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download"
CLIP = "https://openaipublic.azureedge.net/clip/models"
DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"
NO_LOGITS = "has no logits of classes, which Inception Score needs; take inception"


class Features(NamedTuple):
    """What a backbone says of B images, on its device."""

    features: Tensor  # (B, D) float32
    logits: Tensor | None = None  # (B, K) float32, only where asked for


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network that turns images into features.

    Attributes:
        name: as in BACKBONES, or in torch-fidelity's registry.
        sha256: of the file of its weights; of the tensors where there is no file.
        dimension: D, the number of features.
        input: what the network is shown.
        compute: uint8 (B, H, W, 3) on `device` -> features and, where asked for, logits; nothing is checked.
    """

    name: str
    sha256: str
    dimension: int
    input: str
    device: torch.device
    compute: extractors.Compute

    def __call__(self, images: np.ndarray | Tensor) -> Features:
        """uint8 (B, H, W, 3), anywhere -> features, on `device`; UserError where some are not finite."""
        images = torch.as_tensor(images)
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != 3:
            raise UserError(
                f"{self.name}: images are {images.dtype} {tuple(images.shape)}, expected uint8 (B, H, W, 3)"
            )
        precision = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # TF32 moves features by 1e-3
        with torch.inference_mode(), precision:
            found = Features(*self.compute(images.to(self.device)))
            assert found.features.shape == (len(images), self.dimension)
            wrong = int((~found.features.isfinite().all(1)).sum())
        if wrong:
            raise UserError(
                f"{self.name}: the features of {wrong} of {len(images)} images are not finite; take other weights"
            )
        return found


@dataclass(frozen=True)
class Known:
    """A network of torch-fidelity: name and layer of it there, number of features, side of what it is shown, file."""

    registered: str
    layer: str
    dimension: int
    side: int
    published: Published


def _clip(name: str, dimension: int, side: int, file: str, digest: str) -> Known:
    return Known(name, "clip", dimension, side, Published(f"{CLIP}/{digest}/{file}.pt", digest, f"{name}-{digest}.pt"))


def _dinov2(name: str, dimension: int, model: str) -> Known:
    return Known(name, "dinov2", dimension, 224, Published(f"{DINOV2}/{model}/{model}_pretrain.pth"))


_KNOWN = (
    _clip("clip-rn50", 1024, 224, "RN50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"),
    _clip("clip-rn101", 512, 224, "RN101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
    _clip("clip-rn50x4", 640, 288, "RN50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
    _clip("clip-rn50x16", 768, 384, "RN50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
    _clip("clip-rn50x64", 1024, 448, "RN50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
    _clip("clip-vit-b-32", 512, 224, "ViT-B-32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    _clip("clip-vit-b-16", 512, 224, "ViT-B-16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    _clip("clip-vit-l-14", 768, 224, "ViT-L-14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    _clip(
        "clip-vit-l-14-336px", 768, 336, "ViT-L-14-336px",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    ),
    _dinov2("dinov2-vit-s-14", 384, "dinov2_vits14"),
    _dinov2("dinov2-vit-b-14", 768, "dinov2_vitb14"),
    _dinov2("dinov2-vit-l-14", 1024, "dinov2_vitl14"),
    _dinov2("dinov2-vit-g-14", 1536, "dinov2_vitg14"),
)  # fmt: skip
BACKBONES = {
    "inception": Known(
        "inception-v3-compat", "2048", 2048, 299,
        Published(f"{FIDELITY}/v0.2.0/weights-inception-2015-12-05-6726825d.pth", "6726825d"),
    ),
    "vgg16": Known(
        "vgg16", "fc2_relu", 4096, 224,
        Published("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    ),
    **{known.registered: known for known in _KNOWN},
}  # fmt: skip


def load_backbone(
    name: str, weights: Path | None = None, device: torch.device | str = "cpu", logits: bool = False
) -> Backbone:
    """A backbone by its name: one of BACKBONES, or what was registered with torch-fidelity.

    `weights`: their file; None: torch hub's cache, or a download into it. `logits`: of classes, for Inception Score;
    inception has them, and a registered extractor whose layer for that metric is not its layer for FID.
    UserError for a name that is not known, weights that are missing, damaged or of another network, and no logits.
    """
    name = next((ours for ours, known in BACKBONES.items() if known.registered == name), name)
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # networks are drawn before they are filled
        warnings.simplefilter("ignore")  # of torch-fidelity and of code in torch hub's cache
        if name not in BACKBONES:
            return _registered(name, weights, device, logits)
        known = BACKBONES[name]
        if logits and name != "inception":
            raise UserError(f"{name}: {NO_LOGITS}")
        option = f"--{'inception' if name == 'inception' else 'backbone'}-weights (evaluate.backbone_weights)"
        path = find_weights(known.published, weights, option)
        digest = sha256(path)
        if name == "inception":
            compute = extractors.inception(path, known.published.url, device, logits)
        elif name == "vgg16":
            compute = extractors.vgg16(path, known.layer, device)
        elif name.startswith("clip-"):
            compute = extractors.clip(name, path, known.layer, (digest, known.published.sha256), device)
        else:
            compute = extractors.dinov2(name, path, known.side, device)
    shown = f"{known.side}x{known.side}, TensorFlow-1 bilinear"
    return Backbone(name, digest, known.dimension, shown, device, compute)


def _registered(name: str, weights: Path | None, device: torch.device, logits: bool) -> Backbone:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if name not in FEATURE_EXTRACTORS_REGISTRY:
        names = list(dict.fromkeys([*BACKBONES, *FEATURE_EXTRACTORS_REGISTRY]))
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown backbone {name!r}; {hint}known: {', '.join(names)}")
    layer_for = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric
    layers = [layer_for("fid"), layer_for("isc")] if logits else [layer_for("fid")]
    if len(set(layers)) < len(layers):
        raise UserError(f"{name}: {NO_LOGITS}")
    path = None if weights is None else find_weights(Published(""), weights)
    extractor = extractors.create(name, layers, None if path is None else str(path))
    digest = tensors_sha256(extractor.state_dict()) if path is None else sha256(path)
    compute = extractors.as_compute(extractor, device)
    with torch.inference_mode():
        dimension = compute(torch.zeros(1, 64, 64, 3, dtype=torch.uint8, device=device))[0].shape[1]
    return Backbone(name, digest, dimension, "as registered with torch-fidelity", device, compute)
