"""The settings of a run with their defaults, as frozen pydantic models. Imports no torch."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

RESOLUTIONS = (32, 64, 128, 256)
GENERATOR_WIDTHS = {32: (4, 4, 4, 4), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1)}
DISCRIMINATOR_WIDTHS = {32: (4, 4, 4, 4), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16)}
ATTENTION_RESOLUTION = {32: 16, 64: 32, 128: 32, 256: 64}


def discriminator_downs(resolution: int) -> int:
    """Number of downsampling blocks of the discriminator: to 8×8 at 32 px, else to 4×4, as in SNGAN's code."""
    return 2 if resolution == 32 else resolution.bit_length() - 3


Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
UpToOne = Annotated[float, Field(gt=0, le=1)]
Checks = Iterable[tuple[object, str]]  # (condition, message)


def first_check(checks: Checks, prefix: str = "") -> None:
    """Raise ValueError with the message of the first condition that holds."""
    for wrong, message in checks:
        if wrong:
            raise ValueError(f"{prefix}{message}")


EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")  # 1e-4: a number in YAML 1.2, a word in 1.1


class _Dumper(yaml.SafeDumper):
    """Puts words in quotes that are numbers or booleans in YAML 1.1 or 1.2."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


class Settings(BaseModel):
    """A group of settings; unknown keys are errors."""

    # a folder may be called 3
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class AttentionSettings(Settings):
    """An attention module: name of the mechanism, place in its block, and options of the mechanism."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    place: Literal["after", "branch", "conv"] = "after"

    @model_validator(mode="before")
    @classmethod
    def _booleans(cls, raw: Any) -> Any:
        """Options have no declared type, so words that mean a boolean elsewhere are one here, too."""
        words = {"yes": True, "on": True, "no": False, "off": False}
        if not isinstance(raw, dict):
            return raw
        return {k: words.get(v, v) if isinstance(v, str) and k not in cls.model_fields else v for k, v in raw.items()}

    @model_validator(mode="after")
    def _check(self) -> "AttentionSettings":
        for name, value in self.options.items():
            parts = value if isinstance(value, list) else [value]
            if not all(isinstance(part, str | int | float) for part in parts):
                raise ValueError(
                    f"option {name} is {value!r}, expected a number, true, false, a word or a list of them"
                )
        return self

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class NetworkSettings(Settings):
    """Settings of both networks. `widths`: multiples of `channels`."""

    channels: Positive = 64
    widths: tuple[Positive, ...] = ()
    attention: dict[int, AttentionSettings] = {}
    init: Literal["xavier", "orthogonal"] = "xavier"
    spectral_norm: bool = True
    spectral_norm_eps: float = 1e-12

    @model_validator(mode="before")
    @classmethod
    def _expand_attention(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("attention"), dict):
            placed = {k: {"name": v} if isinstance(v, str) else v for k, v in raw["attention"].items()}
            raw = raw | {"attention": {k: v for k, v in placed.items() if v is not None}}
        return raw

    def check_batch(self, network: str, images: int) -> None:
        """Raise ValueError if a mechanism needs more than `images`, the number in a micro-batch."""
        for place, spec in self.attention.items():
            if images == 1 and spec.name == "selective_kernel" and spec.options.get("norm") == "batch":
                name = f"{network}.attention.{place}: selective_kernel with norm batch"
                raise ValueError(f"{name} needs at least 2 images at once; use norm group or none, or a larger batch")


class GeneratorSettings(NetworkSettings):
    """Settings of the generator. `widths`: of the 4×4 stem and each block.

    `class_norm`: "table" or "linear" (see ConditionalBatchNorm), or "shared" (BigGAN, arXiv:1809.11096): linear layers
    compute all gains and biases from one class embedding of `shared_dim` dimensions. `hierarchical`: z is split into
    equal chunks, for the stem and for the batch norms of each block (BigGAN, appendix B).
    """

    z_dim: Positive = 128
    class_norm: Literal["table", "linear", "shared"] = "table"
    shared_dim: Positive = 128
    hierarchical: bool = False
    norm_eps: float = 1e-5
    last_norm_eps: float | None = None  # of the batch norm before the last convolution; null: as the others
    norm_momentum: Decay = 0.1
    last_norm_momentum: Decay | None = None  # of the batch norm before the last convolution; null: as the others
    sync_norm: bool = False
    bilinear: bool = False  # upsampling; false: nearest


class CoarseToFineSettings(Settings):
    """A thin trunk for the whole image, a full one for the most important patches (models/frontends.py)."""

    name: Literal["coarse_to_fine"] = "coarse_to_fine"
    patches: Positive = 8
    patch: Annotated[int, Field(ge=4)] | None = None  # side in pixels; null: twice that of a cell
    cells: Positive = 8  # side of the coarse map
    coarse_width: UpToOne = 0.5  # of the coarse trunk and its head, relative to the plain discriminator
    hint: Weight = 0.1  # weight of the hint loss

    def patch_side(self, resolution: int) -> int:
        """Side of a patch in pixels."""
        return 2 * (resolution // self.cells) if self.patch is None else self.patch

    def check(self, resolution: int, attention: Iterable[int]) -> None:
        """Raise ValueError if cells or patches do not fit the resolution."""
        cells, side = self.cells, self.patch_side(resolution)
        known = [resolution >> i for i in range(1, discriminator_downs(resolution) + 2) if resolution >> i >= 4]
        first_check((
            (cells not in known, f"no map of {cells}x{cells} cells at resolution {resolution}; known: {known}"),
            (self.patches >= cells**2, f"{self.patches} patches of {cells}x{cells} cells: at most {cells**2 - 1}"),
            (side >= resolution, f"patches of {side} pixels must be smaller than the image, {resolution}"),
            *((place < cells, f"the coarse trunk ends at {cells}x{cells}, before attention at {place}x{place}")
              for place in attention),
        ), "coarse_to_fine: ")  # fmt: skip


class ZoomSettings(Settings):
    """Trunks at increasing zoom on the part of the image that a network proposes (models/frontends.py)."""

    name: Literal["zoom"] = "zoom"
    scales: Literal[2, 3] = 2
    size: Positive | None = None  # side in pixels of an enlarged part; null: that of the image
    smallest: Share = 1 / 3  # smallest side of a box relative to the previous one
    hidden: Positive = 64  # width of the proposal network
    margin: Weight = 0.05  # of the ranking loss
    rank: AboveZero = 1.0  # weight of the ranking loss
    mask: bool = False  # multiply by the boxcar mask of the paper

    def check(self, resolution: int, attention: Iterable[int]) -> None:
        """Raise ValueError if `size` does not fit the downsampling of the trunk."""
        least = 1 << discriminator_downs(resolution)
        if self.size is not None and self.size % least:
            raise ValueError(f"zoom enlarges to {self.size} pixels: size must be a multiple of {least}")


FrontEndSettings = Annotated[CoarseToFineSettings | ZoomSettings, Field(discriminator="name")]
FRONTEND_SETTINGS: dict[str, type[Settings]] = {"coarse_to_fine": CoarseToFineSettings, "zoom": ZoomSettings}


class DiscriminatorSettings(NetworkSettings):
    """Settings of the discriminator. `widths`: of each block."""

    relu_shortcut: bool = False  # shortcuts, but that of the stem, take relu(x), as code with in-place ReLUs does
    narrow: bool = False  # blocks, but the stem, widen in their second convolution instead of the first
    frontend: FrontEndSettings | None = None  # a name or {name, options}; null: the plain discriminator

    @field_validator("frontend", mode="before")
    @classmethod
    def _expand_frontend(cls, raw: Any) -> Any:
        raw = {"name": raw} if isinstance(raw, str) else raw
        if isinstance(raw, dict) and raw.get("name") not in tuple(FRONTEND_SETTINGS):
            raise ValueError(f"unknown front-end {raw.get('name')!r}; known: {', '.join(FRONTEND_SETTINGS)}")
        return raw


class DataSettings(Settings):
    """Training data."""

    source: Annotated[str, Field(min_length=1)] | None = None  # folder, archive, torchvision:NAME, .npz, shapes, pairs
    resolution: int = 32
    channels: Literal[1, 3] = 3  # of images and networks; 1: grayscale
    num_classes: Count | None = None  # null: taken from the data; 0: train without labels
    flip: bool = False
    resize: Literal["crop", "squash"] = "crop"
    skip_bad: bool = False
    labels: str | None = None  # a table of files and their labels
    columns: str | None = None  # "FILE,LABEL": columns of the table; null: found
    prepared: str | None = None  # where an unprepared source is prepared to; null: a cache folder

    @field_validator("resolution")
    @classmethod
    def _check_resolution(cls, resolution: int) -> int:
        if resolution not in RESOLUTIONS:
            raise ValueError(f"resolution {resolution} is not one of {', '.join(map(str, RESOLUTIONS))}")
        return resolution


class AdamSettings(Settings):
    lr: AboveZero = 1e-4
    betas: tuple[Decay, Decay] = (0.0, 0.999)
    eps: AboveZero = 1e-8


class DiscriminatorAdamSettings(AdamSettings):
    """A higher learning rate for the discriminator (TTUR, Heusel et al. 2017)."""

    lr: AboveZero = 4e-4


class OptimSettings(Settings):
    generator: AdamSettings = AdamSettings()
    discriminator: DiscriminatorAdamSettings = DiscriminatorAdamSettings()
    d_steps: Positive | None = None  # discriminator updates per generator update; null: see Config.d_steps
    accumulation: Positive = 1
    decay: Literal["none", "linear"] = "none"  # linear: to zero at training.steps
    decay_start: Count = 0  # the step at which the decay begins


class ConsistencySettings(Settings):
    """Weights of consistency regularization; 0: none.

    On reals: CR (Zhang et al. 2020, arXiv:1910.12027); on both: bCR, with `latents` and `diversity`: ICR (Zhao et al.
    2020, arXiv:2002.04724).
    """

    reals: Weight = 0.0  # of E(D(x) - D(T(x)))², T a random horizontal flip and shift
    fakes: Weight = 0.0  # of the same on fakes
    latents: Weight = 0.0  # of E(D(G(z)) - D(G(z + noise·ε)))², ε standard normal, in the discriminator's loss
    diversity: Weight = 0.0  # of -E(G(z) - G(z + noise·ε))² in the generator's loss
    noise: AboveZero = 0.03


class LossSettings(Settings):
    """The adversarial loss and its regularization; a weight of 0 is none."""

    name: Literal["hinge", "non_saturating", "wasserstein", "relativistic"] = "hinge"
    r1: Weight = 0.0  # γ of γ/2·E‖∇D(x)‖² on reals (Mescheder et al. 2018, eq. 9)
    r1_every: Positive = 1  # only in every n-th discriminator update, n times as strong (lazy, arXiv:1912.04958)
    r2: Weight = 0.0  # the same on fakes
    r2_every: Positive = 1
    consistency: ConsistencySettings = ConsistencySettings()
    lecam: Weight = 0.0  # LeCam regularization (Tseng et al. 2021, arXiv:2104.03310)
    lecam_decay: Decay = 0.99  # of the moving averages of the logits
    orthogonal: Weight = 0.0  # orthogonal regularization of the generator (BigGAN, arXiv:1809.11096, eq. 3)


class AugmentSettings(Settings):
    """DiffAugment (Zhao et al. 2020): any of color, translation, cutout, on reals and fakes alike."""

    policy: tuple[Literal["color", "translation", "cutout"], ...] = ()


class EmaSettings(Settings):
    """Weight averaging: either `decay` per step, or `half_life` in images, at most `ramp` times the images seen."""

    decay: Decay | None = None
    half_life: AboveZero | None = 500_000.0
    ramp: AboveZero | None = 0.05
    start: Count = 0  # before this step the averaged generator is a copy

    @model_validator(mode="before")
    @classmethod
    def _one_of(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("decay") is not None:
            for name in ("half_life", "ramp"):
                if raw.get(name) is not None:
                    raise ValueError(f"give decay or {name}, not both")
            raw = {"ramp": None} | raw | {"half_life": None}
        return raw


class TrainingSettings(Settings):
    steps: Positive = 100_000  # generator updates
    batch_size: Positive = 64  # images per update, over all processes and accumulation steps
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"  # auto: bf16 where the hardware has it
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    tf32: bool | None = None  # in CUDA convolutions and matrix products; null: in convolutions only, torch's default
    cudnn_benchmark: bool = False  # let cuDNN time its kernels for each shape and choose the fastest
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = False  # of whole updates, or with compile of the compiled parts; no effect without CUDA
    activation_checkpointing: bool = False  # recompute activations in backward: same results, less memory
    log_every: Positive = 50
    sample_every: Positive = 1000
    snapshot_every: Positive = 5000
    checkpoint_every: Positive = 1000
    keep_checkpoints: Positive = 2
    samples_per_class: Positive = 8
    trackers: tuple[str, ...] = ("tensorboard",)
    init_from: str | None = None

    @field_validator("precision", mode="before")
    @classmethod
    def _renamed(cls, raw: Any) -> Any:
        """`float32` was called `no`, which YAML may also read as false."""
        return "float32" if raw in ("no", False) else raw


class EvaluateSettings(Settings):
    """Evaluation of the averaged generator during training."""

    every: Count = 0  # steps; 0: never
    num: Positive = 1000
    metrics: tuple[str, ...] = ()
    best: str | None = None  # the score whose best checkpoint is kept
    patience: Count = 0  # stop after this many evaluations without a better `best`; 0: never
    reference: str | None = None  # null: the training data
    labels: Literal["reference", "uniform"] = "reference"
    batch_size: Positive = 64
    backbone: str = "inception"
    backbone_weights: str | None = None  # a file; null: from the cache of torch hub, or a download
    lpips: Literal["alex", "vgg"] = "alex"
    lpips_weights: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "EvaluateSettings":
        if self.patience and self.best is None:
            raise ValueError("patience needs best, the score that should improve")
        return self


RatioScore = Literal[  # scores of which a multiple is meaningful: KID and hue_agreement can be negative
    "fid", "is", "precision", "recall", "density", "coverage", "intra_fid", "lpips_diversity", "coherence",
    "two_objects", "shape_agreement",
]  # fmt: skip


class DivergenceSettings(Settings):
    """What counts as divergence, apart from values that are not finite (null: not checked), and what to do then.

    `saturation`: for `patience` steps, the adversarial loss of the discriminator is at most this share of its value
    where it cannot tell real from fake. `spread`: the standard deviation between samples of one class is below this
    share of the range of a pixel. `worse`: a score is this many times worse than its best. The action `rollback` goes
    back to the last good checkpoint at most `times` times, each time with learning rates multiplied by `rate`.
    """

    action: Literal["stop", "rollback"] = "stop"
    times: Positive = 3
    rate: UpToOne = 0.5
    saturation: Share | None = None
    patience: Count = 1000
    spread: Share | None = None
    worse: dict[RatioScore, Annotated[float, Field(gt=1)]] = Field(default_factory=dict)


class Config(Settings):
    """All settings of a run."""

    seed: Count = 0
    deterministic: bool = False
    data: DataSettings = DataSettings()
    generator: GeneratorSettings = GeneratorSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    optim: OptimSettings = OptimSettings()
    loss: LossSettings = LossSettings()
    augment: AugmentSettings = AugmentSettings()
    ema: EmaSettings = EmaSettings()
    training: TrainingSettings = TrainingSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    divergence: DivergenceSettings = DivergenceSettings()

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, raw: Any) -> Any:
        """`divergence` was called `sentinel`; configs and runs with the old name keep working."""
        if isinstance(raw, dict) and isinstance(raw.get("sentinel"), dict):
            rest = {name: value for name, value in raw.items() if name != "sentinel"}
            return rest | {"divergence": raw["sentinel"] | raw.get("divergence", {})}
        return raw

    @model_validator(mode="after")
    def _check(self) -> "Config":
        resolution, blocks = self.data.resolution, self.data.resolution.bit_length() - 3
        batch, parts = self.training.batch_size, self.optim.accumulation
        if batch % parts:
            raise ValueError(f"training.batch_size {batch} is not divisible by optim.accumulation {parts}")
        for name, network, count, known in (
            ("generator", self.generator, blocks + 1, [8 << i for i in range(blocks)]),
            ("discriminator", self.discriminator, len(DISCRIMINATOR_WIDTHS[resolution]),
             [resolution >> i for i in range(1, discriminator_downs(resolution) + 1)]),
        ):  # fmt: skip
            widths = len(network.widths)
            first_check((
                (widths != count, f".widths needs {count} numbers at resolution {resolution}, has {widths}"),
                *((place not in known, f".attention: no block outputs {place}x{place} at resolution {resolution}; "
                   f"known: {', '.join(map(str, known))}") for place in network.attention),
            ), name)  # fmt: skip
            network.check_batch(name, batch // parts)
        if self.discriminator.frontend is not None:
            self.discriminator.frontend.check(resolution, self.discriminator.attention)
        first_check(self._conflicts())
        first_check(self._divergence_conflicts(), "divergence.")
        return self

    def _conflicts(self) -> Checks:
        z_dim, chunks, training = self.generator.z_dim, len(self.generator.widths), self.training
        hierarchical, shared = self.generator.hierarchical, self.generator.class_norm == "shared"
        return (
            (hierarchical and z_dim % chunks, f"generator.z_dim {z_dim} is not divisible by {chunks}, the number of "
             "chunks of generator.hierarchical (one for the stem, one for each block); the nearest that is: "
             f"{max(1, round(z_dim / chunks)) * chunks}"),
            (hierarchical and not shared and self.data.num_classes != 0,
             "generator.hierarchical needs generator.class_norm shared, or data.num_classes 0"),
            (training.compile and (self.loss.r1 or self.loss.r2),
             f"training.compile and loss.{'r1' if self.loss.r1 else 'r2'} exclude each other: torch.compile has no "
             "double backward"),
            (training.cudnn_benchmark and self.deterministic,
             "training.cudnn_benchmark and deterministic exclude each other; switch one off"),
            (training.cuda_graphs and not training.compile and training.precision == "fp16",
             "training.cuda_graphs and training.precision fp16 exclude each other: its scaler reads values on the "
             "host; use bf16"),
            (training.cuda_graphs and not training.compile and training.activation_checkpointing,
             "training.cuda_graphs and training.activation_checkpointing exclude each other; switch one off"),
            (training.compile and training.activation_checkpointing,
             "training.compile and training.activation_checkpointing exclude each other; switch one off"),
        )  # fmt: skip

    def _divergence_conflicts(self) -> Checks:
        divergence, evaluate = self.divergence, self.evaluate
        scores = {*evaluate.metrics, *(("two_objects", "shape_agreement") if "coherence" in evaluate.metrics else ())}
        return (
            *((not evaluate.every or name not in scores, f"worse: {name} is not scored in training; "
               "set evaluate.every and evaluate.metrics") for name in divergence.worse),
            (divergence.worse and divergence.action == "rollback" and evaluate.best is None,
             "worse with action rollback needs evaluate.best, whose checkpoint it goes back to"),
            (divergence.saturation is not None and self.loss.name == "wasserstein",
             "saturation: the wasserstein loss has no floor to reach; leave it null"),
            (divergence.spread is not None and self.training.samples_per_class < 2,
             "spread compares samples of one class; training.samples_per_class must be above 1"),
        )  # fmt: skip

    @property
    def d_steps(self) -> int:
        """Discriminator updates per generator update: 1 with classes, 5 without (where 1 collapses) by default."""
        return self.optim.d_steps or (5 if self.data.num_classes == 0 else 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in config.yaml."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False)
