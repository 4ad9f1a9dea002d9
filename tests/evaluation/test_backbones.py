"""Backbones by name: what they compute, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluate import random_weights
from standin import NAME, StandIn, register_standin
from torch import Tensor
from torch_fidelity import feature_extractor_clip as their_clip
from torch_fidelity import feature_extractor_dinov2 as their_dinov2
from torch_fidelity import feature_extractor_inceptionv3 as their_inception
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torchvision.models import vgg16
from torchvision.transforms.functional import normalize

from sagan.evaluation import extractors
from sagan.evaluation.extractors import BACKBONES, load_backbone, tensors_sha256
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


def some_images(count: int = 3, size: int = 32) -> Tensor:
    """uint8 (count, size, size, 3)."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, size, size, 3), generator=rng, dtype=torch.uint8)


def shown(images: Tensor) -> Tensor:
    """What torch-fidelity shows VGG16 and DINOv2: (B, 3, 224, 224)."""
    large = interpolate_bilinear_2d_like_tensorflow1x(
        images.permute(0, 3, 1, 2).float(), size=(224, 224), align_corners=False
    )
    mean, std = ([255 * value for value in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return normalize(large, mean, std)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub"


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the Inception network."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(random_weights(0), path)
    return path


def test_the_table_is_torch_fidelitys() -> None:
    """Breaks when a name, a layer, an address or a digest is mistyped, or torch-fidelity changes its own."""
    assert {known.registered for known in BACKBONES.values()} == set(FEATURE_EXTRACTORS_REGISTRY) - {NAME, "flat"}
    for name, known in BACKBONES.items():
        extractor = FEATURE_EXTRACTORS_REGISTRY[known.registered]
        assert known.layer == extractor.get_default_feature_layer_for_metric("fid")
        assert name in (known.registered, "inception")
        if name.startswith("clip-"):
            digest = their_clip.MODEL_METADATA[name]["hash"]
            assert known.pretrained.url == their_clip.MODEL_URLS[name]
            assert (known.pretrained.sha256, known.pretrained.file) == (digest, f"{name}-{digest}.pt")
        if name.startswith("dinov2-"):
            assert their_dinov2.MODEL_METADATA[name] in known.pretrained.url
    assert BACKBONES["inception"].pretrained.url == their_inception.URL_INCEPTION_V3
    assert their_inception.FeatureExtractorInceptionV3.get_default_feature_layer_for_metric("isc") == "logits_unbiased"


@pytest.mark.parametrize("as_array", [False, True])
def test_a_registered_extractor_is_taken(as_array: bool) -> None:
    """Breaks when height and width change places, the layers do, or the hash is not of what was built."""
    backbone = load_backbone(register_standin(), logits=True)
    extractor = StandIn(NAME, ["64", "logits_unbiased"])
    assert (backbone.name, backbone.dimension, backbone.device) == (NAME, 64, CPU)
    assert backbone.sha256 == load_backbone(NAME).sha256 == tensors_sha256(extractor.state_dict())
    images = some_images(5)[:, :20]
    found = backbone(images.numpy() if as_array else images)
    features, logits = extractor(images.permute(0, 3, 1, 2))
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.logits, logits)
    assert load_backbone(NAME)(images).logits is None


def test_loading_draws_no_random_number(inception_file: Path) -> None:
    """Breaks when an evaluation moves the random numbers of the program around it."""
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_backbone("inception", inception_file)
    load_backbone(register_standin())
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("name", "hint"), [("incpetion", "did you mean inception"), ("fid", f"known: inception, vgg16, .*{NAME}")]
)
def test_unknown_names_are_refused(name: str, hint: str) -> None:
    """The message offers the nearest name, or all names, registered ones too."""
    register_standin()
    with pytest.raises(UserError, match=rf"^unknown backbone '{name}'; {hint}"):
        load_backbone(name)


def test_features_that_are_not_finite_are_refused() -> None:
    """Breaks when a score becomes NaN; says how many images."""
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


def test_logits_that_do_not_exist_are_refused(inception_file: Path, tmp_path: Path) -> None:
    """Breaks when an Inception Score is computed of features, or of a last layer that is all zero."""
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
    """Breaks when torch-fidelity's name takes another way (it would unpickle), or the fields say something else."""
    one, other = (load_backbone(name, inception_file, logits=True) for name in ("inception", "inception-v3-compat"))
    assert one.name == other.name == "inception"
    assert one.sha256 == other.sha256 == sha256(inception_file)
    assert one.input == "299x299, TensorFlow-1 bilinear"
    found, again = one(some_images(2)), other(some_images(2).numpy())
    assert found.features.shape == (2, 2048)
    assert found.logits is not None
    assert found.logits.shape == (2, 1008)
    assert torch.equal(found.features, again.features)
    assert one(some_images(2)[:0]).features.shape == (0, 2048)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Conv2d_1a_3x3.conv.weight": None}, r'Missing key.* "Conv2d_1a_3x3\.conv\.weight'),
        ({"fc.weight": torch.zeros(1000, 2048)}, r"size mismatch for fc\.weight: .*\[1000, 2048\]"),
        ({"head.weight": torch.zeros(1)}, r'Unexpected key.* "head\.weight'),
        ({"fc.bias": torch.full((1008,), torch.inf)}, r"fc\.bias holds values that are not finite"),
    ],
)
def test_other_weights_are_refused(change: dict, message: str, inception_file: Path, tmp_path: Path) -> None:
    """Breaks when weights of another network give features, or the message does not name one tensor."""
    tensors = {**torch.load(inception_file, weights_only=True), **change}
    torch.save({name: value for name, value in tensors.items() if value is not None}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other\.pth: .*{message}") as error:
        load_backbone("inception", tmp_path / "other.pth")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_vgg16_is_torchvisions(tmp_path: Path) -> None:
    """Breaks when the layer or the file is another than torch-fidelity's, or a trunk alone is taken."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in vgg16().state_dict().items()}
    tensors = {name: torch.full((1,), 1e-3).expand(shape) for name, shape in shapes.items()}  # 4 bytes each in the file
    tensors["features.0.weight"] = torch.randn(shapes["features.0.weight"], generator=torch.Generator().manual_seed(0))
    torch.save(tensors, tmp_path / "vgg16.pth")
    backbone = load_backbone("vgg16", tmp_path / "vgg16.pth")
    with torch.device("meta"):
        network = vgg16().eval()
    network.load_state_dict(tensors, assign=True)
    network.classifier = network.classifier[:5]  # to the ReLU of the second layer of 4096
    with torch.no_grad():
        expected = network(shown(some_images(2)))
    torch.testing.assert_close(backbone(some_images(2)).features, expected, rtol=1e-4, atol=0)
    assert expected.shape == (2, backbone.dimension)
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.max() > 0
    torch.save({k: v for k, v in tensors.items() if k.startswith("features.")}, tmp_path / "trunk.pth")
    with pytest.raises(UserError, match=r"trunk\.pth: not the weights of vgg16: Missing key.*classifier\.0\.weight"):
        load_backbone("vgg16", tmp_path / "trunk.pth")


class Clip(torch.nn.Module):
    """A CLIP of one layer and 8 features, with the names of tensors that torch-fidelity reads."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = their_clip.CLIPVisual(8, 32, 1, 64, 16).visual
        self.text_projection = torch.nn.Parameter(torch.rand(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.text_projection.sum()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.jit
def test_clip_files_are_opened_by_their_digest_alone(tmp_path: Path) -> None:
    """Breaks when TorchScript of anybody is opened, or that of the right digest gives no features."""
    path = tmp_path / "clip.pt"
    torch.jit.save(torch.jit.trace(Clip(), torch.rand(1)), path)
    with pytest.raises(UserError, match=rf"clip\.pt: its SHA-256 is {sha256(path)}, that of clip-vit-b-32 is 40d36571"):
        load_backbone("clip-vit-b-32", path)
    digest = sha256(path)
    compute = extractors.clip("clip-vit-b-32", path, "clip", (digest, digest), CPU)
    with torch.inference_mode():
        (features,) = compute(some_images(2))
    assert features.shape == (2, 8)
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])


def test_dinov2_runs_no_code_that_the_user_did_not_bring(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when code is fetched, or images are shown otherwise than torch-fidelity shows them."""
    monkeypatch.setenv("XFORMERS_DISABLED", "1")  # is set in any case: so it is removed after the test
    weights = hub / "checkpoints" / "dinov2_vits14_pretrain.pth"
    weights.parent.mkdir(parents=True)
    conv = torch.nn.Conv2d(3, 384, 8, stride=56)
    torch.save({f"conv.{name}": tensor for name, tensor in conv.state_dict().items()}, weights)
    with pytest.raises(UserError, match=r"which is never downloaded; put a trusted copy at .*facebookresearch_dinov2"):
        load_backbone("dinov2-vit-s-14")
    (hub / "facebookresearch_dinov2_main").mkdir()
    (hub / "facebookresearch_dinov2_main" / "hubconf.py").write_text(HUBCONF)
    backbone = load_backbone("dinov2-vit-s-14")
    assert (backbone.sha256, backbone.dimension) == (sha256(weights), 384)
    with torch.no_grad():
        expected = conv(shown(some_images(2))).mean((2, 3))
    torch.testing.assert_close(backbone(some_images(2)).features, expected, rtol=1e-4, atol=1e-4)
    torch.save({"conv.bias": conv.bias.detach()}, weights)
    with pytest.raises(UserError, match=r"not the weights of dinov2-vit-s-14: tensor conv\.weight is missing"):
        load_backbone("dinov2-vit-s-14")


@pytest.mark.assets
def test_real_weights_without_a_last_layer(assets: Path) -> None:
    """Breaks when the file with the empty last layer is refused for features, or taken for Inception Score."""
    backbone = load_backbone("inception", assets / "inception-fid.pth")
    assert backbone(some_images(1)).features.shape == (1, 2048)
    with pytest.raises(UserError, match="all zero"):
        load_backbone("inception", assets / "inception-fid.pth", logits=True)
