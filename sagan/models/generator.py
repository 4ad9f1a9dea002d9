"""Generator of SAGAN (arXiv:1805.08318, section 4, and its released code), and how both networks are built."""

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sagan.config.schema import GeneratorSettings, NetworkSettings
from sagan.layers.normalization import BatchNorm, ClassEmbedding, ConditionalBatchNorm, Normalization
from sagan.layers.spectral_norm import spectral_normalize, state_without_spectral_norm
from sagan.models.blocks import PLACES, GeneratorBlock, initialize, placed_attention
from sagan.models.checkpointing import checkpoint_activations
from sagan.models.hub import MODEL_CARD, load_exactly, read_snapshot, write_snapshot
from sagan.utils.errors import UserError
from sagan.utils.random import key

with warnings.catch_warnings():  # its tqdm misses ipywidgets, which nothing here needs
    warnings.filterwarnings("ignore", "IProgress not found")
    from huggingface_hub import ModelHubMixin

if TYPE_CHECKING:
    from sagan.config.schema import Config
    from sagan.models.discriminator import Discriminator

Network = TypeVar("Network", bound=nn.Module)


class Generator(
    nn.Module,
    ModelHubMixin,
    library_name="sagan",
    tags=["gan", "self-attention", "image-generation"],
    pipeline_tag="unconditional-image-generation",
    paper_url="https://arxiv.org/abs/1805.08318",
    model_card_template=MODEL_CARD,
):
    """z (B, z_dim), labels (B,) or class weights (B, K) -> images (B, C, R, R) in [-1, 1], C = `image_channels`.

    Linear to 4×4, residual blocks that double the map, batch norm, ReLU, conv 3×3, tanh; attention after the block
    that outputs its resolution. `num_classes` 0: no labels, plain batch norm. BigGAN's shared class embedding and
    hierarchical z (arXiv:1809.11096) condition the batch norms of the blocks instead where the settings say so.
    `memory_format`: of the feature maps. `activation_checkpointing`: blocks and attention store only their inputs for
    backward.

    Examples:
        >>> generator = sagan.Generator.from_pretrained("runs/shapes/snapshots/00000002")
        >>> generator.resolution, generator.num_classes, generator.class_names[0]
        (32, 4, 'disc')
    """

    memory_format = torch.contiguous_format
    activation_checkpointing = False

    def __init__(
        self, settings: GeneratorSettings, resolution: int, num_classes: int, class_names: tuple[str, ...] = (),
        image_channels: int = 3,
    ):  # fmt: skip
        super().__init__()
        self.settings, self.z_dim, self.resolution = settings, settings.z_dim, resolution
        self.num_classes, self.class_names, self.image_channels = num_classes, class_names, image_channels
        widths = [settings.channels * w for w in settings.widths]
        self.chunk = settings.z_dim // len(widths) if settings.hierarchical else settings.z_dim  # of the stem
        shares = settings.class_norm == "shared" and num_classes > 0
        self.shared = ClassEmbedding(num_classes, settings.shared_dim) if shares else None
        self.linear = nn.Linear(self.chunk, 16 * widths[0])
        self.blocks = nn.ModuleList()
        self.attention = nn.ModuleDict()
        for i, (width, next_width) in enumerate(pairwise(widths)):
            size = 8 << i
            branch, conv, after = (placed_attention(settings, "generator", size, place, next_width) for place in PLACES)
            norms = self._norm(width), self._norm(next_width)
            self.blocks.append(GeneratorBlock(*norms, width, next_width, branch, conv, settings.bilinear))
            if after is not None:
                self.attention[f"{size}x{size}"] = after
        momentum = settings.norm_momentum if settings.last_norm_momentum is None else settings.last_norm_momentum
        eps = settings.norm_eps if settings.last_norm_eps is None else settings.last_norm_eps
        self.norm = BatchNorm(widths[-1], eps, momentum, settings.sync_norm)
        self.conv = nn.Conv2d(widths[-1], image_channels, 3, padding=1)

    def _norm(self, width: int) -> Normalization:
        s = self.settings
        common = s.norm_eps, s.norm_momentum, s.sync_norm
        condition = (s.shared_dim if self.shared is not None else 0) + (self.chunk if s.hierarchical else 0)
        if condition:
            return ConditionalBatchNorm(width, condition, "linear", *common)
        if self.num_classes:
            return ConditionalBatchNorm(width, self.num_classes, s.class_norm, *common)
        return BatchNorm(width, *common)

    def _conditions(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The input of the stem, and what conditions the batch norms of each block: labels, or a vector (B, K)."""
        condition = labels if self.shared is None or labels is None else self.shared(labels)
        if not self.settings.hierarchical:
            return z, [condition] * len(self.blocks)
        stem, *chunks = z.split(self.chunk, dim=1)
        return stem, chunks if condition is None else [torch.cat([condition, c.to(condition)], 1) for c in chunks]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if (labels is None) != (self.num_classes == 0):
            raise ValueError("this generator needs labels" if labels is None else "this generator takes no labels")
        stem, conditions = self._conditions(z, labels)
        x = self.linear(stem).unflatten(1, (-1, 4, 4))  # (B, C0, 4, 4)
        x = x.contiguous(memory_format=self.memory_format)
        for block, condition in zip(self.blocks, conditions, strict=True):
            x = checkpoint_activations(block, x, condition, enabled=self.activation_checkpointing)  # (B, C, 2H, 2W)
            if (place := f"{x.shape[2]}x{x.shape[3]}") in self.attention:
                x = checkpoint_activations(self.attention[place], x, enabled=self.activation_checkpointing)
        return torch.tanh(self.conv(F.relu(self.norm(x))))

    def snapshot_config(self) -> dict[str, Any]:
        """The content of a snapshot's config.json: enough to build this network again."""
        return {
            "generator": self.settings.model_dump(mode="json"),
            "resolution": self.resolution,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            **({} if self.image_channels == 3 else {"image_channels": self.image_channels}),
        }

    def like(self) -> "Generator":
        """A new generator with these settings, without spectral normalization."""
        return Generator(self.settings, self.resolution, self.num_classes, self.class_names, self.image_channels)

    def _save_pretrained(self, save_directory: Path) -> None:
        assert not any(map(is_parametrized, self.modules())), "remove_spectral_norm() the generator first"
        write_snapshot(save_directory, self.snapshot_config(), self.state_dict())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None,
        cache_dir: str | Path | None = None, force_download: bool = False, local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> "Generator":  # fmt: skip
        """The generator of a snapshot folder or a Hub id, in eval mode. UserError if it is not one."""
        where = str(pretrained_model_name_or_path)
        config, state = read_snapshot(where, revision=revision, cache_dir=cache_dir, force_download=force_download,
                                      local_files_only=local_files_only, token=token)  # fmt: skip
        try:
            settings = GeneratorSettings.model_validate(config["generator"])
            resolution, num_classes, names = config["resolution"], config["num_classes"], tuple(config["class_names"])
            if (channels := config.get("image_channels", 3)) not in (1, 3):
                raise ValueError(f"image_channels {channels} is neither 1 nor 3")
            if resolution != 4 << (len(settings.widths) - 1) or num_classes < 0:
                raise ValueError(f"resolution {resolution}, {len(settings.widths)} widths, {num_classes} classes")
            _check_size(settings, num_classes, sum(tensor.numel() for tensor in state.values()))
            generator = cls(settings, resolution, num_classes, names, channels)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
            raise UserError(
                f"{where}: its config.json does not describe a generator ({' '.join(str(error).split())[:150]})"
            ) from None
        load_exactly(generator, state, where)
        return generator.eval().requires_grad_(False)


def _check_size(settings: GeneratorSettings, num_classes: int, numbers: int) -> None:
    """ValueError if stem, convolutions and class tables need far more numbers than the tensors hold."""
    widths = [settings.channels * w for w in settings.widths]
    table, condition = (
        (settings.shared_dim, settings.shared_dim) if settings.class_norm == "shared" else (max(widths), 0)
    )
    needed = 16 * widths[0] * settings.z_dim + sum(9 * a * b for a, b in pairwise(widths))
    needed += num_classes * table + bool(num_classes) * condition * sum(widths)
    if needed > max(4 * numbers, 10_000_000):
        raise ValueError(f"it needs at least {needed} numbers, its tensors hold {numbers}")


def build_generator(config: "Config", num_classes: int, class_names: tuple[str, ...] = ()) -> Generator:
    """A new generator, initialized from the config's seed, with spectral normalization."""
    arguments = config.generator, config.data.resolution, num_classes, class_names, config.data.channels
    generator = _build(lambda: Generator(*arguments), config.generator, key(config.seed, "generator"))
    generator.activation_checkpointing = config.training.activation_checkpointing
    return generator


def build_discriminator(config: "Config", num_classes: int) -> "Discriminator":
    """A new discriminator, initialized from the config's seed, with spectral normalization."""
    from sagan.models.discriminator import Discriminator, Trunk  # here: importing torch.compiler takes a second

    arguments = config.discriminator, config.data.resolution, num_classes, config.data.channels
    discriminator = _build(lambda: Discriminator(*arguments), config.discriminator, key(config.seed, "discriminator"))
    for module in discriminator.modules():
        if isinstance(module, Trunk):
            module.activation_checkpointing = config.training.activation_checkpointing
    if config.loss.lecam:
        discriminator.register_buffer("anchors", torch.zeros(2))  # of sagan.training.losses.lecam
    return discriminator


def remove_spectral_norm(generator: Generator) -> Generator:
    """A new generator that computes the same without spectral norm, in eval mode, as stored in a snapshot."""
    with torch.random.fork_rng(devices=[]):
        plain = generator.like()
    plain.load_state_dict(state_without_spectral_norm(generator))
    plain.memory_format = generator.memory_format
    return plain.to(generator.linear.bias.device).eval().requires_grad_(False)


def _build(make: Callable[[], Network], settings: NetworkSettings, seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
        initialize(network, settings.init)
        if settings.spectral_norm:
            spectral_normalize(network, settings.spectral_norm_eps)
    return network
