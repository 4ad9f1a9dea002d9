"""Fine-tuning: start a run from the weights of another one of the same architecture, possibly with other classes."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sagan.config.load import load_config
from sagan.layers.normalization import BatchNorm, ClassEmbedding, ConditionalBatchNorm
from sagan.layers.spectral_norm import refresh_spectral_norm
from sagan.models.discriminator import Head
from sagan.models.gan import GAN
from sagan.models.generator import Generator
from sagan.models.hub import load_exactly, read_snapshot, read_tensors
from sagan.runs.checkpoint import require_whole_checkpoint
from sagan.utils.errors import UserError

ORIGINAL = ".parametrizations.weight.original"
VECTORS = (".parametrizations.weight.0._u", ".parametrizations.weight.0._v")

State = dict[str, Tensor]


def initialize_from(gan: GAN, source: str) -> str:
    """Load generator (and, from a run, discriminator) weights into a new GAN. Returns a message about what was loaded.

    `source`: a snapshot (folder or Hub id), which holds the averaged generator only, or a run, whose newest checkpoint
    is used. If the number of classes differs, every class starts at the mean of the old ones. Raises UserError if the
    architectures differ in anything else.
    """
    if (Path(source) / "checkpoints").is_dir():
        checkpoint = require_whole_checkpoint(Path(source))
        settings = load_config(Path(source) / "config.yaml").generator.model_dump()
        _load(gan.generator, read_tensors(checkpoint / "average.safetensors"), settings, source)
        _load(gan.discriminator, read_tensors(checkpoint / "discriminator.safetensors"), settings, source)
        said = f"weights of both networks from {checkpoint}"
    else:
        config, state = read_snapshot(source)
        settings = config.get("generator")
        _load(gan.generator, state, settings if isinstance(settings, dict) else {}, source)
        said = f"generator weights from {source}; the discriminator starts from scratch (only a run holds one)"
    gan.ema.load_state_dict(gan.generator.state_dict())
    return said


def _load(network: nn.Module, state: State, settings: dict[str, Any], source: str) -> None:
    """Load the state of a network of the same architecture, with or without spectral norm, with any classes.

    `settings`: of the generator in the source.
    """
    plain = _plain(state)
    shared, hierarchical = "shared.weight" in state, bool(settings.get("hierarchical"))
    if isinstance(network, Generator) and (shared, hierarchical) != (
        network.shared is not None,
        network.settings.hierarchical,
    ):
        raise UserError(
            f"{source}: its generator is of another architecture; generator.class_norm shared with classes, and "
            "generator.hierarchical, must be as in the source"
        )
    new: State = {}
    for name, own in network.state_dict().items():
        plain_name = name.replace(ORIGINAL, ".weight")
        if name in state and not name.endswith(VECTORS):
            new[name] = state[name]
        elif name.endswith(VECTORS):
            new[name] = own  # refreshed below
        elif plain_name in plain:
            new[name] = plain[plain_name]
    if (anchors := network.state_dict().get("anchors")) is not None:  # of LeCam regularization
        new.setdefault("anchors", anchors)
    used = {"anchors", *(name.replace(ORIGINAL, ".weight") for name in new)}
    for prefix, module in network.named_modules():
        if isinstance(module, ClassEmbedding):
            new |= _embeddings(prefix, network.state_dict(), state)
        elif isinstance(module, BatchNorm | ConditionalBatchNorm) and not (shared or hierarchical):
            new |= _class_tables(prefix, module, plain, settings.get("class_norm") == "linear", source)
            used |= {f"{prefix}.{part}" for part in ("weight", "bias", "gain.weight", "bias.weight")}
        elif isinstance(module, Head):
            new |= _embeddings(f"{prefix}.embedding", network.state_dict(), state)
            used.add(f"{prefix}.embedding.weight")
    load_exactly(network, new | {name: plain[name] for name in plain.keys() - used}, source)
    refresh_spectral_norm(network)


def _plain(state: State) -> State:
    """The state without spectral norm: every normalized weight as W/σ, under its plain name."""
    plain = {}
    for name, tensor in state.items():
        if name.endswith(ORIGINAL):
            owner = name.removesuffix(ORIGINAL)
            matrix, v = tensor.flatten(1), state[owner + VECTORS[1]]
            for _ in range(20):  # the stored vectors do not belong to averaged weights
                u = F.normalize(matrix @ v, dim=0)
                v = F.normalize(u @ matrix, dim=0)
            plain[f"{owner}.weight"] = tensor / torch.dot(u, matrix @ v)
        elif not name.endswith(VECTORS):
            plain[name] = tensor
    return plain


def _class_tables(
    prefix: str, module: BatchNorm | ConditionalBatchNorm, plain: State, linear: bool, source: str
) -> State:
    """Gain and bias of a batch norm from those in `plain`; empty if those can be loaded as they are."""
    conditional = f"{prefix}.gain.weight" in plain
    if not conditional and f"{prefix}.weight" not in plain:
        raise UserError(f"{source}: tensor {prefix}.gain.weight is missing, its generator is of another architecture")
    if not conditional:
        gain, bias = plain[f"{prefix}.weight"][None], plain[f"{prefix}.bias"][None]  # (1, C)
    else:
        gain, bias = plain[f"{prefix}.gain.weight"], plain[f"{prefix}.bias.weight"]  # tables (K, C)
        if linear:  # (C, K), the gain above 1
            gain, bias = 1 + gain.T, bias.T
    if isinstance(module, BatchNorm):
        return {f"{prefix}.weight": gain.mean(0), f"{prefix}.bias": bias.mean(0)} if conditional else {}
    if conditional and len(gain) == module.num_classes and linear == module.linear:
        return {}
    gain, bias = (t if len(t) == module.num_classes else t.mean(0).expand(module.num_classes, -1) for t in (gain, bias))
    if module.linear:
        gain, bias = (gain - 1).T, bias.T
    suffix = ORIGINAL if f"gain{ORIGINAL}" in module.state_dict() else ".weight"
    return {f"{prefix}.gain{suffix}": gain, f"{prefix}.bias{suffix}": bias}


def _embeddings(prefix: str, own: State, state: State) -> State:
    """Class embeddings for another number of classes: the mean of the old ones, or as initialized without any."""
    names = [name for name in own if name.startswith(prefix) and not name.endswith(VECTORS)]
    found = [tensor for name, tensor in state.items() if name.startswith(prefix) and not name.endswith(VECTORS)]
    if not names or (found and found[0].shape == own[names[0]].shape):
        return {}
    count = len(own[names[0]])
    return {names[0]: found[0].mean(0).expand(count, -1) if found else own[names[0]]}
