"""Networks built from files of weights, each as a function of images; of files nothing but tensors is read.

What executes code: files of CLIP are TorchScript, so they are opened only when their SHA-256 is the published one.
DINOv2 is code of facebookresearch/dinov2: it is never fetched, and run only where the user has put a copy of it in
torch hub's cache. What somebody registered with torch-fidelity is that person's code, and reads files as it likes.
"""

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sagan.errors import UserError
from sagan.evaluation.resize import resize_like_tensorflow
from sagan.evaluation.weights import as_file, load_tensors
from sagan.pretrained import load_exactly

Compute = Callable[[Tensor], tuple[Tensor, ...]]  # uint8 (B, H, W, 3) -> features (B, D) and, where asked for, logits
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 is shown images


def inception(path: Path, url: str, device: torch.device, logits: bool) -> Compute:
    """FID's Inception network; `url`: of the whole file."""
    from sagan.evaluation.inception import build_extractor, fast_inception

    tensors = load_tensors(path)
    extractor = _filled(lambda: build_extractor(as_file(tensors)), path, "inception")
    if logits and not tensors["fc.weight"].any():
        raise UserError(
            f"{path}: its last layer (fc) is all zero, so Inception Score would be 1 for any images; leave that out, "
            f"or take {url}"
        )
    return fast_inception(extractor, device, logits)


def vgg16(path: Path, layer: str, device: torch.device) -> Compute:
    """torch-fidelity's own VGG16."""
    source = as_file(load_tensors(path))
    return as_compute(_filled(lambda: create("vgg16", [layer], source), path, "vgg16"), device)


def clip(name: str, path: Path, layer: str, digests: tuple[str, str], device: torch.device) -> Compute:
    """torch-fidelity's own CLIP; `digests`: SHA-256 of the file, and of the published one."""
    found, published = digests
    if found != published:
        raise UserError(
            f"{path}: its SHA-256 is {found}, that of {name} is {published}; a CLIP file can execute code, so no other "
            f"is opened"
        )
    return as_compute(create(name, [layer], str(path)), device)


def dinov2(name: str, path: Path, side: int, device: torch.device) -> Compute:
    """DINOv2 as torch-fidelity shows it images, from code in torch hub's cache."""
    repository = Path(torch.hub.get_dir()) / "facebookresearch_dinov2_main"
    if not (repository / "hubconf.py").is_file():
        raise UserError(
            f"{name}: runs the code of facebookresearch/dinov2, which is not fetched; put a copy that you trust at "
            f"{repository}"
        )
    tensors = load_tensors(path)
    os.environ["XFORMERS_DISABLED"] = "1"  # as torch-fidelity does: other kernels would be taken where it is installed
    model = f"dinov2_vit{name.split('-')[2]}14"
    network: Any = torch.hub.load(str(repository), model, source="local", pretrained=False, verbose=False)
    load_exactly(network, tensors, f"{path}: not the weights of {name}")
    network.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(values, device=device) * 255 for values in (MEAN, STD))
    return lambda images: (network(resize_like_tensorflow((images.float() - mean) / std, side)).float(),)


def create(name: str, layers: list[str], weights: Any = None) -> Any:
    """An extractor of torch-fidelity's registry, on the CPU, frozen and in eval mode."""
    from torch_fidelity.utils import create_feature_extractor

    options = {"feature_extractor_weights_path": weights, "verbose": False}
    return create_feature_extractor(name, layers, cuda=False, **options)


def as_compute(extractor: Any, device: torch.device) -> Compute:
    """A torch-fidelity extractor as a function of images."""
    extractor = extractor.to(device)
    return lambda images: tuple(layer.float() for layer in extractor(images.permute(0, 3, 1, 2).contiguous()))


def _filled(build: Callable[[], Any], path: Path, name: str) -> Any:
    """What `build` makes of a file; where that holds another network's tensors, a UserError that names one."""
    try:
        return build()
    except RuntimeError as error:  # of load_state_dict: a headline, then one line a kind of difference
        difference = " ".join(str(error).splitlines()[1:2]) or str(error)
        difference = textwrap.shorten(difference.split('", "')[0], 200)
        raise UserError(f"{path}: not the weights of {name}: {difference}") from None
