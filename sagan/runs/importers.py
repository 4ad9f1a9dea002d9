"""Networks of other projects: their names, shapes and spectral norm become those of this project.

A layout is recognized by its tensors. The settings follow from their shapes; `Assumed` holds what shapes cannot tell. A
weight is divided by the σ that its own project computes in eval mode from the stored vectors, so images and logits are
the same up to rounding.
"""

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor, nn

from sagan.config.schema import (
    RESOLUTIONS,
    AboveZero,
    DiscriminatorSettings,
    GeneratorSettings,
    Settings,
)
from sagan.layers.spectral_norm import Projection
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator
from sagan.runs.tfhub import read_h5
from sagan.utils.errors import UserError, first_error

Role = Literal["generator", "discriminator"]
Names = tuple[tuple[str, str], ...]  # (pattern of a whole name, the name here)
State = dict[str, Tensor]
WRAPPERS = ("state_dict", "model_state_dict")  # keys under which a checkpoint holds a state dict


class Assumed(Settings):
    """What a file of tensors does not say. `gain_offset`: added to the gains in class tables."""

    norm_eps: AboveZero = 1e-5
    last_norm_eps: AboveZero = 1e-5  # of the batch norm before the last convolution
    gain_offset: Annotated[int, Field(ge=0, le=1)] = 1
    relu_shortcut: bool = False  # ReLUs of the discriminator work in place, so that its shortcuts take relu(x)
    channel_order: Literal["rgb", "bgr"] = "rgb"


OF_ROLE = {
    "generator": {"norm_eps", "last_norm_eps", "gain_offset", "channel_order"},
    "discriminator": {"relu_shortcut", "channel_order"},
}


@dataclass(frozen=True)
class Layout:
    """How a project names tensors. `generator`, `discriminator`: names that tell its networks from others."""

    name: str  # for --from
    title: str
    generator: tuple[str, ...]
    discriminator: tuple[str, ...]
    assumed: Assumed = Assumed()  # noqa: RUF009  it is frozen
    without: str = ""  # a tensor that its networks lack


BIGGAN = ("output_layer.0.gain", "blocks.0.0.conv1.weight")
LAYOUTS = (
    Layout("tfhub-biggan", "BigGAN of TF-Hub, converted by BigGAN-PyTorch", (*BIGGAN, "shared.weight", "linear.u0"), (),
           Assumed(norm_eps=1e-4), without="linear.sv0"),
    Layout("biggan-pytorch", "BigGAN-PyTorch", BIGGAN, ("embed.weight", "blocks.0.0.conv_sc.weight")),
    Layout("studiogan", "StudioGAN", ("linear0.weight", "conv2d5.weight"),
           ("linear1.weight", "blocks.0.0.conv2d0.weight"),
           Assumed(norm_eps=1e-4, last_norm_eps=1e-4, relu_shortcut=True)),
    Layout("mmgeneration", "mmgeneration (SNGAN, SAGAN)", ("noise2feat.weight", "to_rgb.conv.weight"),
           ("decision.weight", "from_rgb.conv_1.conv.weight"), Assumed(norm_eps=1e-4, last_norm_eps=1e-4)),
    Layout("mimicry", "mimicry", ("l1.weight", "block2.c1.weight"),
           ("block1.c1.weight", "block2.c1.weight"), Assumed(gain_offset=0, relu_shortcut=True)),
    Layout("mmgeneration", "mmgeneration (BigGAN)", ("noise2feat.weight", "output_layer.conv.weight"),
           ("decision.weight", "conv_blocks.0.conv1.conv.weight")),
)  # fmt: skip
UNSUPPORTED = {  # a tensor that only such a network has -> what it is
    r"generator\.gen_z\.weight": "a BigGAN-deep of pytorch-pretrained-BigGAN (bottleneck blocks)",
    r"(conv_)?blocks\.0\.(0\.)?conv(2d)?4(\.conv)?\.weight": "a BigGAN-deep (bottleneck blocks)",
    r"attn1\.query_conv\.weight": "a network of heykeetae's Self-Attention-GAN (transposed convolutions)",
    r"blocks\.0\.0\.bn0\.weight": "a StudioGAN discriminator without spectral norm (batch norm instead)",
    r"(linear2|linear_mi|info_\w+)\.weight": "a StudioGAN network with a classifier or InfoGAN head",
}

UNIT = re.compile(r"(from_rgb|(?:conv_)?blocks\.\d+(?:\.[01])?|block\d|attn_block)\.(.+)")  # a block or attention
NORM, CONV = r"(?:bn|norm_|b)([12])\.", r"(?:\.conv)?\.(weight|bias)"
BLOCK: Names = (
    (rf"(?:conv|conv_|conv2d|c)([12]){CONV}", r"conv\1.\2"),
    (rf"(?:conv_sc|conv2d0|shortcut|c_sc){CONV}", r"shortcut.\1"),
    (rf"{NORM}(?:bn\.|norm\.)?(?:stored|running)_(mean|var)", r"norm\1.running_\2"),
    (rf"{NORM}(?:gain|weight_embedding)\.weight", r"norm\1.gain.weight"),
    (rf"{NORM}bias(?:_embedding)?\.weight", r"norm\1.bias.weight"),
    (rf"{NORM}(?:bn\.|norm\.)?(weight|bias)", r"norm\1.\2"),
)
ATTENTION: Names = (
    (r"(?:conv1x1_)?theta(?:\.conv)?\.weight", "query.weight"),
    (r"(?:conv1x1_)?phi(?:\.conv)?\.weight", "key.weight"),
    (r"(?:conv1x1_)?g(?:\.conv)?\.weight", "value.weight"),
    (r"(?:o|conv1x1_attn)(?:\.conv)?\.weight", "out.weight"),
    (r"gamma|sigma", "gamma"),
)
LAST_NORM = r"(?:output_layer\.0|output_layer\.bn|to_rgb\.bn|bn4|b\d)\."
OUTSIDE: dict[Role, Names] = {  # outside the blocks
    "generator": (
        (r"(?:linear0?|noise2feat|l1)\.(weight|bias)", r"linear.\1"),
        (rf"{LAST_NORM}(?:bn\.)?(?:stored|running)_(mean|var)", r"norm.running_\1"),
        (rf"{LAST_NORM}(?:weight|gain)", "norm.weight"),
        (rf"{LAST_NORM}bias", "norm.bias"),
        (r"(?:output_layer\.2|output_layer\.conv|to_rgb\.conv|conv2d5|c\d)\.(weight|bias)", r"conv.\1"),
        (r"shared(?:_embedding)?\.weight", "shared.weight"),
    ),
    "discriminator": (
        (r"(?:linear1?|decision|l\d)\.(weight|bias)", r"head.linear.\1"),
        (r"(?:embed|embedding|proj_y|l_y)\.weight", "head.embedding.weight"),
    ),
}
IGNORED = re.compile(r"(?:.+\.)?(?:sv\d|u\d|sn_u|sn_sigma|weight_[uv]|num_batches_tracked|accumulation_counter)")


class Vectors(NamedTuple):
    """Singular vectors that give the σ of a weight (out, …), seen as (out, rest)."""

    u: Tensor  # (out,)
    v: Tensor  # (rest,)


@dataclass
class Network:
    """The tensors of one network in a file, in float64. `kind`: "averaged" or "raw".

    By their names here: `names` in the file, `weights` before spectral normalization, `vectors` of those that have it.
    """

    where: str
    role: Role
    kind: str
    layout: Layout
    names: dict[str, str]
    weights: State
    vectors: dict[str, Vectors]

    def fold(self, name: str, offset: float = 0) -> None:
        """Divide a weight by its σ, if it has spectral norm, and add `offset`, in place."""
        if (vectors := self.vectors.pop(name, None)) is not None:
            self.weights[name] = self.weights[name] / sigma(self.weights[name], vectors)
        self.weights[name] = self.weights[name] + offset

    def refuse(self, why: str) -> UserError:
        """The error for a network that cannot be represented."""
        return UserError(f"{self.where}: a {self.role} of {self.layout.title}, {why}")


@dataclass(frozen=True)
class Imported:
    """A network of another project in terms of this one.

    `state`: its tensors in float64, with spectral norm if `settings.spectral_norm`. `plain`: without.
    """

    network: Network
    settings: Any  # GeneratorSettings or DiscriminatorSettings
    resolution: int
    num_classes: int
    assumed: dict[str, Any]
    plain: State
    state: State


def sigma(weight: Tensor, vectors: Vectors) -> Tensor:
    """uᵀWv."""
    return vectors.u @ weight.flatten(1) @ vectors.v


def load_state(path: Path, role: Role) -> tuple[State, str]:
    """The state dict of the generator or discriminator in a checkpoint, and "averaged" or "raw".

    UserError if the file is missing, damaged, or needs more than tensors and plain values.
    """
    if path.suffix == ".h5":
        return read_h5(path), "averaged"
    try:
        with warnings.catch_warnings():  # torch's about other pickles
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # damaged bytes can raise anything
        if needed := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path}: needs {needed[1]} to be unpickled, which could run code; if you trust it, save only its "
                'tensors: torch.save(torch.load(FILE, weights_only=False)["state_dict"], NEW)'
            ) from None
        raise UserError(f"{path}: damaged, truncated, or not written by torch.save; nothing was executed") from None
    state: Any = content
    for key in WRAPPERS:
        state = state[key] if isinstance(state, Mapping) and key in state else state
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no state dict of a network")
    state = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    for name in [name for name in state if re.fullmatch(r"block\d\.b[12]\.embed\.weight", name)]:
        table = state.pop(name)  # of mimicry: gains and biases side by side
        half = table.shape[-1] // 2 if table.ndim else 0
        state |= {name.replace("embed", "gain"): table[..., :half], name.replace("embed", "bias"): table[..., half:]}
    kind = "averaged" if re.search("ema", path.name, re.IGNORECASE) else "raw"
    if any(re.match(r"(generator|generator_ema|discriminator)\.(noise2feat|decision)", name) for name in state):
        averaged = role == "generator" and any(name.startswith("generator_ema.") for name in state)
        prefix, kind = (f"{role}_ema.", "averaged") if averaged else (f"{role}.", "raw")
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if not state:
            raise UserError(f"{path}: holds no {role}")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if claimed > 4 * path.stat().st_size + (1 << 20):  # views of few numbers
        raise UserError(f"{path}: its tensors claim {claimed} bytes, more than the file holds")
    return state, kind


def read_network(path: Path, role: Role, origin: str | None = None) -> Network:
    """The generator or discriminator in a checkpoint of another project, with the names of this one.

    `origin`: the only layout to accept. UserError if it is damaged, unknown, or has tensors without a place here.
    """
    state, kind = load_state(path, role)
    layout = recognize(frozenset(state) | {_plain(name) for name in state}, role, str(path), origin)
    kind = "averaged" if layout.name == "tfhub-biggan" else kind  # which its converter takes by default
    network = Network(str(path), role, kind, layout, {}, {}, {})
    kept = [name for name in state if not IGNORED.fullmatch(name)]
    units, unknown = _units(kept), []
    for name in kept:
        here = _renamed(_plain(name), role, units)
        if here is None or here in network.names:
            unknown.append(name)
            continue
        network.names[here] = name
        network.weights[here] = _checked(f"{path}: {name}", state[name])
        if (vectors := _vectors(name, state, str(path))) is not None:
            network.vectors[here] = vectors
    if unknown:
        raise network.refuse(f"with tensors that have no equivalent here: {_some(unknown)}")
    for name, tensor in state.items():
        if name.endswith("accumulation_counter") and tensor.any():
            raise network.refuse(f"whose statistics are sums over batches ({name} is not 0)")
    return network


def recognize(names: frozenset[str], role: Role, where: str, origin: str | None = None) -> Layout:
    """The layout of a network with these names. UserError if it is unknown, of another role, or not `origin`."""
    other: Role = "discriminator" if role == "generator" else "generator"

    def fits(layout: Layout, role: Role) -> bool:
        signature = {*getattr(layout, role)}
        return bool(signature) and signature <= names and layout.without not in names

    for pattern, what in UNSUPPORTED.items():
        if any(re.fullmatch(pattern, name) for name in names):
            raise UserError(f"{where}: is {what}, which cannot be represented exactly")
    for layout in LAYOUTS:
        if fits(layout, role) and origin in (None, layout.name):
            return layout
    for layout in LAYOUTS:
        if fits(layout, role):
            raise UserError(f"{where}: is a {role} of {layout.title}, not of {origin}; leave out --from")
    for layout in LAYOUTS:
        if fits(layout, other):
            place = "as FILE" if other == "generator" else "by --discriminator"
            raise UserError(f"{where}: is a {other} of {layout.title}, expected a {role}; give it {place}")
    raise UserError(f"{where}: no known {role}; it holds {_some(sorted(names))}")


def _plain(name: str) -> str:
    return re.sub(r"weight_orig$", "weight", name)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _units(names: list[str]) -> dict[str, str]:
    """Blocks and attention modules in order: prefix in the file -> "blocks.I", or "attention.I" after block I."""
    prefixes = {match[1] for name in names if (match := UNIT.fullmatch(name))}
    after = 2 if "block1" in prefixes else 4 if "block6" in prefixes else 3  # mimicry's attn_block
    places = {prefix: [int(digits) for digits in re.findall(r"\d+", prefix)] for prefix in prefixes}
    units, block = {}, -1
    for prefix in sorted(prefixes, key=(places | {"attn_block": [after, 1]}).__getitem__):
        attends = not {f"{prefix}.gamma", f"{prefix}.sigma"}.isdisjoint(names)
        block += not attends
        units[prefix] = f"{'attention' if attends else 'blocks'}.{block}"
    return units


def _renamed(name: str, role: Role, units: dict[str, str]) -> str | None:
    """The name here, None for an unknown one. Attention modules get their resolution."""
    match = UNIT.fullmatch(name)
    if match is None:
        return _translated(name, OUTSIDE[role])
    unit = units[match[1]]
    inner = _translated(match[2], ATTENTION if unit.startswith("attention") else BLOCK)
    if inner is None:
        return None
    blocks = sum(unit.startswith("blocks") for unit in units.values())
    if unit.startswith("attention"):
        after = int(unit.partition(".")[2])
        size = 8 << after if role == "generator" else (2 << blocks) >> (after + 1)
        unit = f"attention.{size}x{size}"
    return f"{'trunk.' * (role == 'discriminator')}{unit}.{inner}"


def _translated(name: str, names: Names) -> str | None:
    for pattern, here in names:
        if match := re.fullmatch(pattern, name):
            return match.expand(here)
    return None


def _checked(where: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise UserError(f"{where} holds values that are not finite numbers")
    return tensor.detach().double()


def _vectors(name: str, state: State, where: str) -> Vectors | None:
    """The singular vectors with which the project computes σ in eval mode; None without spectral norm.

    torch's spectral norm stores both. BigGAN-PyTorch's and mimicry's store u and make one iteration from it.
    """
    owner, _, last = name.rpartition(".")
    own = f"{owner}.sn_u" if f"{owner}.sn_u" in state else f"{owner}.u0"
    stored = {"weight_orig": f"{owner}.weight_u", "weight": own}.get(last, "")
    if last != "weight_orig" and stored not in state:
        return None
    if stored not in state:
        raise UserError(f"{where}: incomplete checkpoint, {stored} is missing")
    matrix, u = state[name].detach().double(), _checked(f"{where}: {stored}", state[stored]).flatten()
    matrix, v = matrix.flatten(1) if matrix.ndim > 1 else matrix.reshape(-1, 1), state.get(f"{owner}.weight_v")
    if len(u) == len(matrix) and (v is None or v.numel() == matrix.shape[1]):
        if v is None:
            v = F.normalize(u @ matrix, dim=0)
            u = F.normalize(matrix @ v, dim=0)
        vectors = Vectors(u, _checked(f"{where}: {owner}.weight_v", v).flatten())
        if sigma(matrix, vectors) > 0:
            return vectors
    raise UserError(f"{where}: {stored} does not fit {name}: it gives no positive singular value")


def translate(network: Network, assume: Mapping[str, Any], classes: int | None = None) -> Imported:
    """The network in terms of this project. `assume`: changed fields of Assumed; `classes`: where shapes leave it open.

    UserError if it cannot be represented exactly.
    """
    try:
        assumed = Assumed.model_validate(network.layout.assumed.model_dump() | dict(assume))
    except ValidationError as error:
        raise UserError(f"--assume {first_error(error)}") from None
    weights, trunk = network.weights, "trunk." * (network.role == "discriminator")
    blocks = [f"{trunk}blocks.{i}" for i in range(sum(".conv1.weight" in name for name in weights))]
    try:
        if network.role == "generator":
            settings, num_classes = _generator_settings(network, blocks, assumed, classes)
            resolution = 4 << len(blocks)
        else:
            settings = _discriminator_settings(network, blocks, assumed)
            num_classes, resolution = len(weights.get("head.embedding.weight", ())), 2 << len(blocks)
    except KeyError as error:
        raise network.refuse(f"with missing tensors: {error.args[0]}") from None
    except UserError:
        raise
    except (IndexError, TypeError, ValueError) as error:
        raise network.refuse(f"with inconsistent shapes ({' '.join(str(error).split())[:100]})") from None
    if resolution not in RESOLUTIONS:
        raise network.refuse(f"of {resolution} px; known: {', '.join(map(str, RESOLUTIONS))}")
    build: Any = Generator if network.role == "generator" else Discriminator
    with torch.device("meta"):
        target = build(settings, resolution, num_classes)
    _check_fits(network, target)
    if assumed.channel_order == "bgr":
        _reverse_channels(network)
    normalized = {f"{name}.weight" for name, module in target.named_modules()
                  if isinstance(module, nn.Conv2d | nn.Linear | Projection)}  # fmt: skip
    bare = sorted(normalized - network.vectors.keys())
    if 0 < len(bare) < len(normalized):
        there = [network.names[name] for name in bare]
        raise network.refuse(f"with spectral-norm vectors for some weights, but not for {_some(there)}")
    plain = {name: weight / sigma(weight, network.vectors[name]) if name in network.vectors else weight
             for name, weight in network.weights.items()}  # fmt: skip
    state = plain if bare else _with_spectral_norm(network, plain, normalized)
    fields = {name: value for name, value in assumed.model_dump().items() if name in OF_ROLE[network.role]}
    settings = settings.model_copy(update={"spectral_norm": not bare})
    return Imported(network, settings, resolution, num_classes, fields, plain, state)


def _common(network: Network, widths: list[int]) -> dict[str, Any]:
    """Settings of both networks: widths as multiples of their greatest common divisor, attention by resolution."""
    channels = math.gcd(*widths)
    sizes = sorted({int(match[1]) for name in network.weights if (match := re.search(r"attention\.(\d+)x", name))})
    return {"channels": channels, "widths": tuple(width // channels for width in widths),
            "attention": dict.fromkeys(sizes, "self_attention")}  # fmt: skip


def _generator_settings(
    network: Network, blocks: list[str], assumed: Assumed, classes: int | None
) -> tuple[GeneratorSettings, int]:
    """Settings and number of classes. Gains of class tables become those of this project, in place."""
    weights, chunk = network.weights, network.weights["linear.weight"].shape[1]
    widths = [weights["blocks.0.conv1.weight"].shape[1], *(len(weights[f"{block}.conv1.weight"]) for block in blocks)]
    if len(weights["linear.weight"]) != 16 * widths[0]:
        raise network.refuse("whose first feature map is not 4x4")
    gain = weights.get("blocks.0.norm1.gain.weight")
    found: dict[str, Any] = {"class_norm": "linear"}
    if gain is None:
        found, num_classes = {}, 0
    elif "shared.weight" in weights:
        num_classes, shared = weights["shared.weight"].shape
        found = {"class_norm": "shared", "shared_dim": shared, "hierarchical": gain.shape[1] == shared + chunk}
    elif network.layout.name != "studiogan" and gain.shape[1] == widths[0]:
        found, num_classes = {"class_norm": "table"}, len(gain)
        for name in [name for name in weights if name.endswith(".gain.weight")]:
            network.fold(name, assumed.gain_offset)
            network.fold(name.replace("gain", "bias"), 0)
    elif gain.shape[1] == chunk != classes:
        found, num_classes = {"hierarchical": True}, 0
    else:
        num_classes = gain.shape[1]
    z_dim = chunk * (len(widths) if found.get("hierarchical") else 1)
    found["bilinear"] = network.layout.name == "mimicry"
    eps = {"norm_eps": assumed.norm_eps, "last_norm_eps": assumed.last_norm_eps}
    return GeneratorSettings(**_common(network, widths), **eps, **found, z_dim=z_dim), num_classes


def _discriminator_settings(network: Network, blocks: list[str], assumed: Assumed) -> DiscriminatorSettings:
    hidden, widths = ([len(network.weights[f"{block}.conv{i}.weight"]) for block in blocks] for i in (1, 2))
    if len(blocks) == 5 and re.match(r"from_rgb|block1", network.names["trunk.blocks.0.conv1.bias"]):
        raise network.refuse("whose last block halves the map at 64 px")
    return DiscriminatorSettings(
        **_common(network, widths), relu_shortcut=assumed.relu_shortcut, narrow=hidden != widths
    )


def _check_fits(network: Network, target: nn.Module) -> None:
    """UserError with the names in the file unless every tensor has its place and shape in `target`."""
    own = target.state_dict()
    if extra := [network.names[name] for name in network.weights if name not in own]:
        raise network.refuse(f"with tensors that have no equivalent here: {_some(extra)}")
    if missing := [name for name in own if name not in network.weights]:
        raise network.refuse(f"with missing tensors: {_some(missing)}")
    for name, weight in network.weights.items():
        if own[name].ndim == 0 and weight.numel() == 1:
            network.weights[name] = weight = weight.reshape(())
        if weight.shape != own[name].shape:
            raise network.refuse(
                f"but {network.names[name]} has shape {tuple(weight.shape)}, expected {tuple(own[name].shape)}"
            )


def _reverse_channels(network: Network) -> None:
    """BGR images become RGB ones: reverse the outputs of the last convolution, or the inputs of the first ones."""
    image_side = {"conv.weight": 0, "conv.bias": 0, "trunk.blocks.0.conv1.weight": 1,
                  "trunk.blocks.0.shortcut.weight": 1}  # fmt: skip
    for name in image_side.keys() & network.weights.keys():
        weight, dim = network.weights[name], image_side[name]
        network.weights[name] = weight.flip(dim)
        if name in network.vectors:
            u, v = network.vectors[name]
            v = v if dim == 0 else v.reshape(weight.shape[1:]).flip(0).flatten()
            network.vectors[name] = Vectors(u.flip(0) if dim == 0 else u, v)


def _with_spectral_norm(network: Network, plain: State, normalized: set[str]) -> State:
    """The state dict of a network with spectral norm, in which `normalized` weights are stored as in the file."""
    state = {name: tensor for name, tensor in plain.items() if name not in normalized}
    for name in normalized:
        prefix = f"{name.removesuffix('weight')}parametrizations.weight"
        (u, v), weight = network.vectors[name], network.weights[name]
        state |= {f"{prefix}.original": weight, f"{prefix}.0._u": u, f"{prefix}.0._v": v}
    return state
