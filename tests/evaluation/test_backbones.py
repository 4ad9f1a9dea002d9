"""Feature extractors: their features equal those of torch-fidelity, and wrong weights are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from standin import NAME, StandIn, random_weights, register_standin
from torch import Tensor
from torch_fidelity import feature_extractor_clip as their_clip
from torch_fidelity import feature_extractor_dinov2 as their_dinov2
from torch_fidelity import feature_extractor_inceptionv3 as their_inception
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torchvision.models import vgg16
from torchvision.transforms.functional import normalize

from sagan.evaluation import extractors
from sagan.evaluation.extractors import (
    BACKBONES,
    as_file,
    build_extractor,
    fast_inception,
    fold_batch_norm,
    load_backbone,
    load_tensors,
    resize_like_tensorflow,
    tensors_sha256,
)
from sagan.utils.errors import UserError
from sagan.utils.io import sha256

CPU = torch.device("cpu")
HUBCONF = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 384, 8, stride=56)
    def forward(self, x):
        return self.conv(x).mean((2, 3))
def dinov2_vits14(pretrained=True):
    assert not pretrained
    return Model()
"""


def some_images(count: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """uint8 (count, height, width, 3)."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, height, width, 3), generator=rng, dtype=torch.uint8)


def their_resize(images: Tensor, size: int) -> Tensor:
    return interpolate_bilinear_2d_like_tensorflow1x(
        images.permute(0, 3, 1, 2).float(), size=(size, size), align_corners=False
    )


def network_input(images: Tensor) -> Tensor:
    """torch-fidelity's input of VGG16 and DINOv2: (B, 3, 224, 224)."""
    mean, std = ([255 * value for value in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return normalize(their_resize(images, 224), mean, std)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the Inception network."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(random_weights(0), path)
    return path


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 299), (300, 300, 299), (1, 5, 299), (48, 700, 224)])
def test_resize_is_torch_fidelitys(height: int, width: int, size: int) -> None:
    images = some_images(2, height, width)
    expected, found = their_resize(images, size), resize_like_tensorflow(images.float(), size)
    assert found.shape == expected.shape == (2, 3, size, size)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() < 1e-4  # of a gray level


def both(tensors: dict[str, Tensor], images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Features and logits of uint8 (B, H, W, 3), by sagan and by torch-fidelity."""
    layers = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=as_file(tensors))
    with torch.inference_mode():
        ours = fast_inception(build_extractor(as_file(tensors)), CPU, logits=True)(images)
        return ours, theirs(images.permute(0, 3, 1, 2))


def test_inception_is_torch_fidelitys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extractors.IMAGES_AT_ONCE, "cpu", 2)
    for ours, theirs in zip(*both(random_weights(0), some_images(3, 40, 32)), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
        assert (theirs[0] - theirs[1]).abs().max() > 1e-3 * theirs.abs().max()


def test_a_folded_block_is_the_block_in_eval_mode() -> None:
    block = BasicConv2d(3, 4, kernel_size=3, padding=1).eval()
    for tensor in (block.bn.weight, block.bn.bias, block.bn.running_mean, block.bn.running_var):
        tensor.data.uniform_(0.0, 0.01)
    images = torch.rand(2, 3, 5, 5)
    with torch.no_grad():
        expected = block(images)
        fold_batch_norm(block)
        torch.testing.assert_close(block(images), expected)


def test_the_table_is_torch_fidelitys() -> None:
    ours = {"inception-v3-compat" if name == "inception" else name: spec for name, spec in BACKBONES.items()}
    assert set(ours) == set(FEATURE_EXTRACTORS_REGISTRY) - {NAME, "flat"}
    for name, spec in ours.items():
        assert spec.layer == FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric("fid")
        if name.startswith("dinov2-"):
            assert their_dinov2.MODEL_METADATA[name] in spec.pretrained.url
    digest = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"  # as OpenAI publishes it
    assert BACKBONES["clip-vit-b-32"].pretrained.sha256 == digest
    assert BACKBONES["inception"].pretrained.url == their_inception.URL_INCEPTION_V3
    assert FeatureExtractorInceptionV3.get_default_feature_layer_for_metric("isc") == "logits_unbiased"


@pytest.mark.parametrize("as_array", [False, True])
def test_registered_extractors_can_be_used(as_array: bool) -> None:
    backbone = load_backbone(register_standin(), logits=True)
    extractor = StandIn(NAME, ["64", "logits_unbiased"])
    assert (backbone.name, backbone.dimension, backbone.device) == (NAME, 64, CPU)
    assert backbone.sha256 == load_backbone(NAME).sha256 == tensors_sha256(extractor.state_dict())
    images = some_images(5, 20, 32)
    found = backbone(images.numpy() if as_array else images)
    features, logits = extractor(images.permute(0, 3, 1, 2))
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.logits, logits)
    assert load_backbone(NAME)(images).logits is None


def test_loading_consumes_no_random_numbers(inception_file: Path) -> None:
    state = torch.get_rng_state()
    load_backbone("inception", inception_file)
    load_backbone(register_standin())
    assert torch.equal(torch.get_rng_state(), state)


def test_features_that_are_not_finite_are_refused() -> None:
    backbone = load_backbone(register_standin())

    def broken(images: Tensor) -> tuple[Tensor, ...]:
        (features,) = backbone.compute(images)
        features[1, 5], features[2, 0] = float("nan"), float("inf")
        return (features,)

    with pytest.raises(UserError, match=f"^{NAME}: the features of 2 of 4 images are not finite"):
        replace(backbone, compute=broken)(some_images(4))


class Flat(StandIn):
    """One layer for all metrics, as of VGG16 or CLIP."""

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "64"


def test_missing_logits_are_refused(inception_file: Path, tmp_path: Path) -> None:
    if "flat" not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor("flat", Flat)
    for name in ("vgg16", "clip-rn50", "dinov2-vit-s-14", "flat"):
        with pytest.raises(UserError, match=f"^{name}: has no class logits"):
            load_backbone(name, logits=True)
    tensors = torch.load(inception_file, weights_only=True)
    torch.save({**tensors, "fc.weight": torch.zeros_like(tensors["fc.weight"])}, tmp_path / "zero.pth")
    assert load_backbone("inception", tmp_path / "zero.pth")(some_images(1)).logits is None
    with pytest.raises(UserError, match=r"zero\.pth: its last layer .* is all zero, .*6726825d\.pth"):
        load_backbone("inception", tmp_path / "zero.pth", logits=True)


def test_inception_by_both_names(inception_file: Path) -> None:
    """torch-fidelity's own name must not reach torch-fidelity, which would unpickle the file."""
    one, other = (load_backbone(name, inception_file, logits=True) for name in ("inception", "inception-v3-compat"))
    assert (one.name, one.input) == (other.name, other.input) == ("inception", "299x299, TensorFlow-1 bilinear")
    assert one.sha256 == other.sha256 == sha256(inception_file)
    features, logits = one(some_images(2))
    assert logits is not None
    assert (features.shape, logits.shape) == ((2, 2048), (2, 1008))
    assert torch.equal(features, other(some_images(2)).features)
    assert one(some_images(0)).features.shape == (0, 2048)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Conv2d_1a_3x3.conv.weight": None}, r'Missing key.* "Conv2d_1a_3x3\.conv\.weight'),
        ({"fc.weight": torch.zeros(1000, 2048)}, r"size mismatch for fc\.weight: .*\[1000, 2048\]"),
        ({"head.weight": torch.zeros(1)}, r'Unexpected key.* "head\.weight'),
    ],
)
def test_weights_of_other_networks_are_refused(
    change: dict, message: str, inception_file: Path, tmp_path: Path
) -> None:
    tensors = {**torch.load(inception_file, weights_only=True), **change}
    torch.save({name: value for name, value in tensors.items() if value is not None}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other\.pth: .*{message}") as error:
        load_backbone("inception", tmp_path / "other.pth")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_vgg16_is_torchvisions(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = vgg16().eval()
    tensors = {name: torch.full((1,), 1e-3).expand(tensor.shape) for name, tensor in network.state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    tensors["features.0.weight"] = torch.randn(tensors["features.0.weight"].shape, generator=rng)
    torch.save(tensors, tmp_path / "vgg16.pth")  # small: expanded tensors are stored as one number
    network.load_state_dict(tensors, assign=True)
    network.classifier = network.classifier[:5]  # to the ReLU of the second layer of 4096
    backbone = load_backbone("vgg16", tmp_path / "vgg16.pth")
    with torch.no_grad():
        expected = network(network_input(some_images(2)))
    torch.testing.assert_close(backbone(some_images(2)).features, expected, rtol=1e-4, atol=0)
    assert expected.shape == (2, backbone.dimension)
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.max() > 0


class Clip(torch.nn.Module):
    """A CLIP of one layer and 8 features, with the tensor names that torch-fidelity reads."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = their_clip.CLIPVisual(8, 32, 1, 64, 16).visual
        self.text_projection = torch.nn.Parameter(torch.rand(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.text_projection.sum()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.jit
def test_only_official_clip_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, path = "clip-vit-b-32", tmp_path / "clip.pt"
    torch.jit.save(torch.jit.trace(Clip(), torch.rand(1)), path)
    with pytest.raises(UserError, match=rf"clip\.pt: its SHA-256 is {sha256(path)}, that of {name} is 40d36571"):
        load_backbone(name, path)
    official = replace(BACKBONES[name].pretrained, sha256=sha256(path))
    monkeypatch.setitem(BACKBONES, name, replace(BACKBONES[name], pretrained=official))
    features = load_backbone(name, path)(some_images(2)).features
    assert features.shape == (2, 8)
    assert not torch.equal(features[0], features[1])


def test_dinov2_runs_local_code_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("XFORMERS_DISABLED", "1")  # is set in any case, and so is removed after the test
    weights, code = tmp_path / "hub" / "checkpoints", tmp_path / "hub" / "facebookresearch_dinov2_main"
    weights.mkdir(parents=True)
    weights /= "dinov2_vits14_pretrain.pth"
    conv = torch.nn.Conv2d(3, 384, 8, stride=56)
    torch.save({f"conv.{name}": tensor for name, tensor in conv.state_dict().items()}, weights)
    with pytest.raises(UserError, match=r"never downloaded; put a trusted copy at .*facebookresearch_dinov2"):
        load_backbone("dinov2-vit-s-14")
    code.mkdir()
    (code / "hubconf.py").write_text(HUBCONF)
    backbone = load_backbone("dinov2-vit-s-14")
    assert (backbone.sha256, backbone.dimension) == (sha256(weights), 384)
    with torch.no_grad():
        expected = conv(network_input(some_images(2))).mean((2, 3))
    torch.testing.assert_close(backbone(some_images(2)).features, expected, rtol=1e-4, atol=1e-4)
    torch.save({"conv.bias": conv.bias.detach()}, weights)
    with pytest.raises(UserError, match=r"not the weights of dinov2-vit-s-14: tensor conv\.weight is missing"):
        load_backbone("dinov2-vit-s-14")


@pytest.mark.assets
def test_inception_is_torch_fidelitys_with_real_weights(assets: Path) -> None:
    path = assets / "inception-fid.pth"
    with pytest.raises(UserError, match="all zero"):  # its fc is, so it is replaced below
        load_backbone("inception", path, logits=True)
    tensors, rng = load_tensors(path), torch.Generator().manual_seed(0)
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
