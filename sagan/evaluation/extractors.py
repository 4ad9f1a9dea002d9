"""Feature extractors: networks by name, with pretrained weights.

Weights files are read as tensors only. Code is executed in three cases: CLIP files are TorchScript, and are opened only
if their SHA-256 is the official one; DINOv2 runs the code of facebookresearch/dinov2, which is never downloaded, from a
copy in torch hub's cache; extractors that the user registered with torch-fidelity are the user's own code.
"""

import hashlib
import os
import textwrap
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIP_FILES
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_URLS
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

from sagan.models.hub import load_exactly
from sagan.utils.errors import UserError, suggestion
from sagan.utils.io import atomic_file, sha256
from sagan.utils.progress import track

MEBIBYTE, TIMEOUT = 1 << 20, 10.0  # seconds without an answer before a download fails


@dataclass(frozen=True)
class Pretrained:
    """A weights file to download.

    Attributes:
        sha256: its digest, or a prefix of it; "" if unknown.
        file: its name in torch hub's cache, if it differs from that of the URL.
    """

    url: str
    sha256: str = ""
    file: str = ""

    @property
    def cached(self) -> Path:
        """Its path in torch hub's cache."""
        return Path(torch.hub.get_dir()) / "checkpoints" / (self.file or Path(urlparse(self.url).path).name)

    @property
    def digits(self) -> str:
        """Its digest, for messages."""
        return f"SHA-256 {self.sha256 or 'unknown'}" + ("…" if 0 < len(self.sha256) < 64 else "")


def find_weights(pretrained: Pretrained, given: Path | str | None = None, option: str = "weights") -> Path:
    """Return the `given` file or, if None, the pretrained one from torch hub's cache, downloading it if necessary.

    `option`: the command-line option for a file, for messages. UserError if there is no file, or if the cached file is
    not the official one.
    """
    if given is not None:
        if not Path(given).is_file():
            raise UserError(f"{given}: no such weights file")
        return Path(given)
    path = pretrained.cached
    if not path.is_file():
        _download(pretrained, path, option)
    elif not sha256(path).startswith(pretrained.sha256):
        raise UserError(f"{path}: not the official file ({pretrained.digits}); delete it, or name a file by {option}")
    return path


def _download(pretrained: Pretrained, path: Path, option: str) -> None:
    try:
        with atomic_file(path) as temporary:
            opener = urllib.request.build_opener()  # unlike urlopen, does not keep the proxies of an earlier call
            with opener.open(pretrained.url, timeout=TIMEOUT) as source, open(temporary, "wb") as target:
                size = int(source.headers.get("Content-Length") or 0)
                for block in track(iter(partial(source.read, MEBIBYTE), b""), size // MEBIBYTE, f"MiB of {path.name}"):
                    target.write(block)
            if size not in (0, temporary.stat().st_size) or not sha256(temporary).startswith(pretrained.sha256):
                raise OSError("the download is truncated, or another file")
    except (OSError, HTTPException) as error:
        raise UserError(
            f"{path}: missing, and {pretrained.url} cannot be downloaded ({error or type(error).__name__}); "
            f"put the file there ({pretrained.digits}), or name it by {option}"
        ) from None


def load_tensors(path: Path | str) -> dict[str, Tensor]:
    """Load a dictionary of tensors written by torch.save, on the CPU.

    UserError if the file is missing or damaged, or holds anything but tensors with finite values.
    """
    try:
        with warnings.catch_warnings():  # torch's about TorchScript
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception:  # damaged bytes can raise anything
        raise UserError(f"{path}: damaged, truncated, or not a file of tensors only; nothing was executed") from None
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: expected a dictionary of tensors")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is not a tensor, expected a dictionary of tensors")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: {name} holds values that are not finite")
    return {str(name): value for name, value in content.items()}


def as_file(tensors: Mapping[str, Tensor]) -> BytesIO:
    """Write tensors to a file in memory, for libraries that would unpickle a file on disk."""
    file = BytesIO()
    torch.save(dict(tensors), file)
    file.seek(0)
    return file


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in any order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear resize of float32 (B, H, W, C) -> (B, C, size, size) in channels_last format, as TensorFlow 1 does."""
    batch, height, width, channels = images.shape
    rows, columns = (_bilinear_weights(side, size, images.device) for side in (height, width))
    x = images.transpose(2, 3) @ columns.T  # (B, H, C, size)
    x = rows @ x.transpose(2, 3).reshape(batch, height, size * channels)  # (B, size, size·C)
    return x.view(batch, size, size, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=16)
def _bilinear_weights(count: int, size: int, device: torch.device) -> Tensor:
    """Interpolation weights (size, count): two adjacent ones in a row, which sum to 1."""
    positions = torch.arange(size, dtype=torch.float32) * torch.tensor(count / size, dtype=torch.float32)
    low = positions.long()
    fraction = (positions - low).double()
    weights = torch.zeros(size, count, dtype=torch.float64)
    new = torch.arange(size)
    weights[new, low] += 1 - fraction
    weights[new, (low + 1).clamp_max(count - 1)] += fraction  # the last pixel is repeated
    return weights.float().to(device)


Compute = Callable[[Tensor], tuple[Tensor, ...]]  # uint8 (B, H, W, 3) -> features (B, D) and, if requested, logits


class Features(NamedTuple):
    """Output of a backbone for B images, on its device."""

    features: Tensor  # (B, D) float32
    logits: Tensor | None = None  # (B, K) float32, if requested


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network that turns images into features.

    Attributes:
        name: as in BACKBONES, or in torch-fidelity's registry.
        sha256: of its weights file, or of its tensors if there is no file.
        dimension: D, the number of features.
        input: size and resizing of the network input.
        compute: uint8 (B, H, W, 3) on `device` -> features and, if requested, logits, unchecked.
    """

    name: str
    sha256: str
    dimension: int
    input: str
    device: torch.device
    compute: Compute

    def __call__(self, images: np.ndarray | Tensor) -> Features:
        """uint8 (B, H, W, 3) on any device -> features on `device`; UserError if some are not finite."""
        images = torch.as_tensor(images)
        precision = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # TF32 moves features by 1e-3
        with torch.inference_mode(), precision:
            found = self.compute(images.to(self.device))
            wrong = int((~torch.cat(found, 1).isfinite().all(1)).sum())
        if wrong:
            raise UserError(
                f"{self.name}: the features of {wrong} of {len(images)} images are not finite; use other weights"
            )
        return Features(*found)


@dataclass(frozen=True)
class BackboneSpec:
    """A network of torch-fidelity: the layer there, number of features, input side, weights."""

    layer: str
    dimension: int
    side: int
    pretrained: Pretrained


FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download"
CLIP = {  # number of features, input side
    "clip-rn50": (1024, 224), "clip-rn101": (512, 224), "clip-rn50x4": (640, 288), "clip-rn50x16": (768, 384),
    "clip-rn50x64": (1024, 448), "clip-vit-b-32": (512, 224), "clip-vit-b-16": (512, 224), "clip-vit-l-14": (768, 224),
    "clip-vit-l-14-336px": (768, 336),
}  # fmt: skip
DINOV2 = {"s": 384, "b": 768, "l": 1024, "g": 1536}  # number of features


def _clip_file(name: str) -> Pretrained:
    digest = CLIP_FILES[name]["hash"]
    return Pretrained(CLIP_URLS[name], digest, f"{name}-{digest}.pt")


def _dinov2_file(size: str) -> Pretrained:
    return Pretrained(f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{size}14/dinov2_vit{size}14_pretrain.pth")


BACKBONES = {
    "inception": BackboneSpec(
        "2048", 2048, 299, Pretrained(f"{FIDELITY}/v0.2.0/weights-inception-2015-12-05-6726825d.pth", "6726825d")
    ),
    "vgg16": BackboneSpec(
        "fc2_relu", 4096, 224, Pretrained("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")
    ),
    **{name: BackboneSpec("clip", *size, _clip_file(name)) for name, size in CLIP.items()},
    **{f"dinov2-vit-{k}-14": BackboneSpec("dinov2", D, 224, _dinov2_file(k)) for k, D in DINOV2.items()},
}
NO_LOGITS = "has no class logits, which Inception Score needs; use inception"


def load_backbone(
    name: str, weights: Path | None = None, device: torch.device | str = "cpu", logits: bool = False
) -> Backbone:
    """Load a backbone by name: one of BACKBONES, or one that the user registered with torch-fidelity.

    `weights`: a file; None: torch hub's cache, or a download into it. `logits`: also compute class logits, for
    Inception Score; inception has them, and registered extractors with different layers for that metric and FID.
    UserError for an unknown name, for weights that are missing, damaged or of another network, and without logits.
    """
    name = "inception" if name == "inception-v3-compat" else name
    device = torch.device(device)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # building initializes weights
        warnings.simplefilter("ignore")  # from torch-fidelity and code in torch hub's cache
        if name not in BACKBONES:
            return _load_registered(name, weights, device, logits)
        spec = BACKBONES[name]
        if logits and name != "inception":
            raise UserError(f"{name}: {NO_LOGITS}")
        option = f"--{'inception' if name == 'inception' else 'backbone'}-weights (evaluate.backbone_weights)"
        path = find_weights(spec.pretrained, weights, option)
        digest = sha256(path)
        if name.startswith("clip-"):
            if digest != spec.pretrained.sha256:
                raise UserError(
                    f"{path}: its SHA-256 is {digest}, that of {name} is {spec.pretrained.sha256}; CLIP files can "
                    f"execute code, so only the official one is opened"
                )
            compute = _as_compute(_create(name, [spec.layer], str(path)), device)
        elif name.startswith("dinov2-"):
            compute = _load_dinov2(name, path, spec.side, device)
        else:
            compute = _load_convolutional(name, path, device, logits)
    return Backbone(name, digest, spec.dimension, f"{spec.side}x{spec.side}, TensorFlow-1 bilinear", device, compute)


def _load_registered(name: str, weights: Path | None, device: torch.device, logits: bool) -> Backbone:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if name not in FEATURE_EXTRACTORS_REGISTRY:
        names = list(dict.fromkeys([*BACKBONES, *FEATURE_EXTRACTORS_REGISTRY]))
        raise UserError(f"unknown backbone {name!r}; {suggestion(name, names)}")
    layer_for = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric
    layers = [layer_for("fid"), layer_for("isc")] if logits else [layer_for("fid")]
    if len(set(layers)) < len(layers):
        raise UserError(f"{name}: {NO_LOGITS}")
    path = None if weights is None else find_weights(Pretrained(""), weights)
    extractor = _create(name, layers, None if path is None else str(path))
    digest = tensors_sha256(extractor.state_dict()) if path is None else sha256(path)
    compute = _as_compute(extractor, device)
    with torch.inference_mode():
        dimension = compute(torch.zeros(1, 64, 64, 3, dtype=torch.uint8, device=device))[0].shape[1]
    return Backbone(name, digest, dimension, "as registered with torch-fidelity", device, compute)


def _load_convolutional(name: str, path: Path, device: torch.device, logits: bool) -> Compute:
    """FID's Inception network or torch-fidelity's VGG16. UserError if the file is of another network."""
    tensors = load_tensors(path)
    try:
        if name == "vgg16":
            return _as_compute(_create(name, [BACKBONES[name].layer], as_file(tensors)), device)
        extractor = build_extractor(as_file(tensors))
    except RuntimeError as error:  # of load_state_dict: a headline, then a line per kind of difference
        difference = " ".join(str(error).splitlines()[1:2]) or str(error)
        difference = textwrap.shorten(difference.split('", "')[0], 200)
        raise UserError(f"{path}: not the weights of {name}: {difference}") from None
    if logits and not tensors["fc.weight"].any():
        raise UserError(
            f"{path}: its last layer (fc) is all zero, so Inception Score would be 1 for any images; "
            f"leave out that metric, or use {BACKBONES[name].pretrained.url}"
        )
    return fast_inception(extractor, device, logits)


def _load_dinov2(name: str, path: Path, side: int, device: torch.device) -> Compute:
    """DINOv2, from code in torch hub's cache, with torch-fidelity's preprocessing."""
    repository = Path(torch.hub.get_dir()) / "facebookresearch_dinov2_main"
    if not (repository / "hubconf.py").is_file():
        raise UserError(
            f"{name}: runs code of facebookresearch/dinov2, which is never downloaded; put a trusted copy at "
            f"{repository}"
        )
    tensors = load_tensors(path)
    os.environ["XFORMERS_DISABLED"] = "1"  # like torch-fidelity: its kernels give other features
    model = f"dinov2_vit{name.split('-')[2]}14"
    network: Any = torch.hub.load(str(repository), model, source="local", pretrained=False, verbose=False)
    load_exactly(network, tensors, f"{path}: not the weights of {name}")
    network.to(device).eval().requires_grad_(False)
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean, std = (torch.tensor(values, device=device) * 255 for values in imagenet)
    return lambda images: (network(resize_like_tensorflow((images.float() - mean) / std, side)).float(),)


def _create(name: str, layers: list[str], weights: Any = None) -> Any:
    """An extractor of torch-fidelity's registry, on the CPU, frozen and in eval mode."""
    from torch_fidelity.utils import create_feature_extractor

    options = {"feature_extractor_weights_path": weights, "verbose": False}
    return create_feature_extractor(name, layers, cuda=False, **options)


def _as_compute(extractor: Any, device: torch.device) -> Compute:
    """A torch-fidelity extractor as a function of images."""
    extractor = extractor.to(device)
    return lambda images: tuple(layer.float() for layer in extractor(images.permute(0, 3, 1, 2).contiguous()))


IMAGES_AT_ONCE = {"cpu": 32, "cuda": 128}  # the largest feature map takes 5.5 MB per image


def build_extractor(weights: BytesIO) -> FeatureExtractorInceptionV3:
    """torch-fidelity's Inception extractor with these weights; RuntimeError if they are another network's."""
    return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)


def fast_inception(extractor: FeatureExtractorInceptionV3, device: torch.device, logits: bool) -> Compute:
    """Return a function from uint8 (B, H, W, 3) on `device` to features (B, 2048) and, if requested, logits (B, 1008).

    These are the layers "2048" and "logits_unbiased" of `extractor`, whose batch norms are folded in place.
    """
    for block in extractor.modules():
        if isinstance(block, BasicConv2d):
            fold_batch_norm(block)
    layers = nn.Sequential(*list(extractor.children())[:-1])  # all but fc, in order of application
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
    """Fold the batch norm of a BasicConv2d into its convolution, computed in float64."""
    conv, norm = block.conv, block.bn
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # (C,)
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    conv.weight, conv.bias = (nn.Parameter(x.float(), requires_grad=False) for x in (weight, bias))
    block.bn = nn.Identity()
