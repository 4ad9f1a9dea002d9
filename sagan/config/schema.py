"""What can be set in a run: typed, frozen groups with their defaults. Imports no torch."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

RESOLUTIONS = (32, 64, 128, 256)
GENERATOR_WIDTHS = {32: (4, 4, 4, 4), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1)}
DISCRIMINATOR_WIDTHS = {32: (4, 4, 4, 4), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16)}
ATTENTION_RESOLUTION = {32: 16, 64: 32, 128: 32, 256: 64}


def discriminator_downs(resolution: int) -> int:
    """How many of the discriminator's blocks halve the map: to 8×8 at 32 px, to 4×4 above (recipe of SNGAN's code)."""
    return 2 if resolution == 32 else resolution.bit_length() - 3


Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """A group of settings: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AttentionSettings(Settings):
    """One attention module: its name in the table, where it sits, and the options of that mechanism."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    place: Literal["after", "branch", "conv"] = "after"

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
    """What generator and discriminator share. `widths`: multiples of `channels`."""

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
        """ValueError where a mechanism takes the variance over more images than `images`, those of a micro-batch."""
        for place, spec in self.attention.items():
            if images == 1 and spec.name == "selective_kernel" and spec.options.get("norm") == "batch":
                raise ValueError(
                    f"{network}.attention.{place}: selective_kernel with norm batch needs at least 2 images at once, "
                    "training.batch_size gives 1; use norm group or none"
                )


class GeneratorSettings(NetworkSettings):
    """`widths`: of the 4×4 stem, then of each block. `class_norm`: how labels reach the batch norm.

    "table" and "linear": see ConditionalBatchNorm. "shared" (BigGAN, arXiv:1809.11096): linear layers compute every
    gain and bias from one embedding of the class, of `shared_dim` numbers. `hierarchical` (BigGAN, appendix B): z is
    cut into equal chunks, one for the stem and one for the batch norms of each block.
    """

    z_dim: Positive = 128
    class_norm: Literal["table", "linear", "shared"] = "table"
    shared_dim: Positive = 128
    hierarchical: bool = False
    norm_eps: float = 1e-5
    norm_momentum: Decay = 0.1
    last_norm_momentum: Decay | None = None  # of the batch norm before the last convolution; null: as the others
    sync_norm: bool = False


class CoarseToFineSettings(Settings):
    """A thin trunk sees the whole image, a full one the places that matter most (frontends/coarse_to_fine.py).

    `patches`: how many. `patch`: their side in pixels, null: twice that of a cell. `cells`: side of the coarse map.
    `coarse_width`: of its trunk, as a part of the plain one's; the head's, too. `hint`: weight of the hint.
    """

    name: Literal["coarse_to_fine"] = "coarse_to_fine"
    patches: Positive = 8
    patch: Annotated[int, Field(ge=4)] | None = None
    cells: Positive = 8
    coarse_width: Annotated[float, Field(gt=0, le=1)] = 0.5
    hint: Annotated[float, Field(ge=0)] = 0.1

    def patch_side(self, resolution: int) -> int:
        """Side of a patch in pixels."""
        return 2 * (resolution // self.cells) if self.patch is None else self.patch

    def check(self, resolution: int, attention: Iterable[int]) -> None:
        """ValueError where cells or patches do not fit images of this resolution."""
        known = [resolution >> i for i in range(1, discriminator_downs(resolution) + 2) if resolution >> i >= 4]
        if self.cells not in known:
            raise ValueError(
                f"coarse_to_fine has no map of {self.cells}x{self.cells} cells at resolution {resolution}; "
                f"known: {', '.join(map(str, known))}"
            )
        if self.patches >= self.cells**2:
            raise ValueError(
                f"coarse_to_fine takes {self.patches} patches of {self.cells}x{self.cells} cells: "
                f"at most {self.cells**2 - 1}, or nothing is left to the coarse trunk"
            )
        if self.patch_side(resolution) >= resolution:
            raise ValueError(
                f"coarse_to_fine cuts patches of {self.patch_side(resolution)} pixels: "
                f"they must be smaller than the image, {resolution}"
            )
        for place in attention:
            if place < self.cells:
                raise ValueError(
                    f"attention at {place}x{place}: the coarse trunk ends at {self.cells}x{self.cells}; "
                    f"take frontend.cells {place}, or remove it"
                )


class ZoomSettings(Settings):
    """Trunks that look ever closer at the part of the image that another network proposes (frontends/zoom.py).

    `size`: pixels to which a part is enlarged, null: the image's. `smallest`: side of a box as a part of the last one.
    `hidden`: width of the proposal. `margin`, `rank`: of the ranking loss, and its weight. `mask`: the paper's boxcar.
    """

    name: Literal["zoom"] = "zoom"
    scales: Literal[2, 3] = 2
    size: Positive | None = None
    smallest: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    hidden: Positive = 64
    margin: Annotated[float, Field(ge=0)] = 0.05
    rank: Annotated[float, Field(gt=0)] = 1.0
    mask: bool = False

    def check(self, resolution: int, attention: Iterable[int]) -> None:
        """ValueError where a part of the image would be too small for its trunk."""
        least = 1 << discriminator_downs(resolution)
        if self.size is not None and (self.size < least or self.size % least):
            raise ValueError(
                f"zoom enlarges to {self.size} pixels: its trunk halves them {discriminator_downs(resolution)} times, "
                f"so size is a multiple of {least}"
            )


FrontEndSettings = Annotated[CoarseToFineSettings | ZoomSettings, Field(discriminator="name")]
FRONTEND_SETTINGS: dict[str, type[Settings]] = {"coarse_to_fine": CoarseToFineSettings, "zoom": ZoomSettings}


class DiscriminatorSettings(NetworkSettings):
    """`widths`: of each block. `relu_shortcut`: shortcuts (but the stem's) see relu(x), as where ReLU is in place.

    `frontend`: how it looks at the image, a name or {name, options}; null: at the whole, once.
    """

    relu_shortcut: bool = False
    frontend: FrontEndSettings | None = None

    @field_validator("frontend", mode="before")
    @classmethod
    def _expand_frontend(cls, raw: Any) -> Any:
        if raw is None or isinstance(raw, Settings):
            return raw
        raw = raw if isinstance(raw, dict) else {"name": raw}
        name, known = raw.get("name"), ", ".join(FRONTEND_SETTINGS)
        if name is None:
            raise ValueError(f"its name is missing; known: {known}")
        if not isinstance(name, str) or name not in FRONTEND_SETTINGS:
            raise ValueError(f"unknown front-end {name!r}; known: {known}")
        options = [option for option in FRONTEND_SETTINGS[name].model_fields if option != "name"]
        for option in raw:
            if option not in ("name", *options):
                raise ValueError(f"{name} has no option {option!r}; known: {', '.join(options)}")
        return raw


class DataSettings(Settings):
    """What to train on. `source`: a folder, torchvision:NAME, an .npz, a prepared folder, or shapes.

    `num_classes`: null takes it from the data, 0 trains without labels.
    """

    source: Annotated[str, Field(min_length=1)] | None = None
    resolution: int = 32
    num_classes: Count | None = None
    flip: bool = False
    resize: Literal["crop", "squash"] = "crop"
    skip_bad: bool = False
    prepared: str | None = None  # where an unprepared source is prepared to; null: a cache folder

    @model_validator(mode="after")
    def _check(self) -> "DataSettings":
        if self.resolution not in RESOLUTIONS:
            raise ValueError(f"resolution {self.resolution} is not one of {', '.join(map(str, RESOLUTIONS))}")
        return self


class AdamSettings(Settings):
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[Decay, Decay] = (0.0, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8


class DiscriminatorAdamSettings(AdamSettings):
    """Two time scales (TTUR, Heusel et al. 2017): the discriminator learns faster."""

    lr: Annotated[float, Field(gt=0)] = 4e-4


class OptimSettings(Settings):
    """`d_steps`: discriminator updates per generator update; null: 1 with classes, 5 without (1:1 collapses there)."""

    generator: AdamSettings = AdamSettings()
    discriminator: DiscriminatorAdamSettings = DiscriminatorAdamSettings()
    d_steps: Positive | None = None
    accumulation: Positive = 1
    decay: Literal["none", "linear"] = "none"  # linear: to zero at training.steps
    decay_start: Count = 0  # the step at which the decay begins


class ConsistencySettings(Settings):
    """Weights of consistency regularization: E(D(x) - D(T(x)))², T a random horizontal flip and shift.

    `reals`: of real images (CR, Zhang et al. 2020, arXiv:1910.12027). `fakes`: of generated ones; both together are the
    balanced form (bCR, Zhao et al. 2020, arXiv:2002.04724). 0: none.
    """

    reals: Weight = 0.0
    fakes: Weight = 0.0


class LossSettings(Settings):
    """`r1`: weight γ of γ/2·E‖∇D(x)‖² on reals (Mescheder et al. 2018, eq. 9); 0: none."""

    name: Literal["hinge", "non_saturating", "wasserstein"] = "hinge"
    r1: Weight = 0.0
    consistency: ConsistencySettings = ConsistencySettings()


class AugmentSettings(Settings):
    """DiffAugment (Zhao et al. 2020): any of color, translation, cutout, on reals and fakes alike."""

    policy: tuple[Literal["color", "translation", "cutout"], ...] = ()


class EmaSettings(Settings):
    """Averaged generator. Either `decay` per step or `half_life` in images, at most `ramp` times the images seen."""

    decay: Decay | None = None
    half_life: Annotated[float, Field(gt=0)] | None = 500_000.0
    ramp: Annotated[float, Field(gt=0)] | None = 0.05
    start: Count = 0  # before this step the averaged generator is a copy

    @model_validator(mode="before")
    @classmethod
    def _one_of(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("decay") is not None:
            if raw.get("half_life") is not None:
                raise ValueError("give decay or half_life, not both")
            if raw.get("ramp") is not None:
                raise ValueError("ramp bounds half_life and would be ignored beside decay; leave one of them out")
            raw = {"ramp": None} | raw | {"half_life": None}
        return raw


class TrainingSettings(Settings):
    """`steps`: generator updates. `batch_size`: images of one update over all processes and accumulation steps.

    `cuda_graphs`: of what is compiled, on CUDA devices; without effect elsewhere. `activation_checkpointing`: keep the
    inputs of every block and compute what is inside again in backward: the same results for less memory and more time.
    """

    steps: Positive = 100_000
    batch_size: Positive = 64
    precision: Literal["no", "bf16", "fp16"] = "no"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    channels_last: bool = True
    compile: bool = False
    cuda_graphs: bool = False
    activation_checkpointing: bool = False
    log_every: Positive = 50
    sample_every: Positive = 1000
    snapshot_every: Positive = 5000
    checkpoint_every: Positive = 1000
    keep_checkpoints: Positive = 2
    samples_per_class: Positive = 8
    trackers: tuple[str, ...] = ("tensorboard",)
    init_from: str | None = None


class EvaluateSettings(Settings):
    """Scores of the averaged generator in training; `every` 0: never. The score `best` keeps its best checkpoint.

    `reference`: null: the training data. `patience`: evaluations without a better `best` after which it ends; 0: any.
    """

    every: Count = 0
    num: Positive = 1000
    metrics: tuple[str, ...] = ()
    best: str | None = None
    patience: Count = 0
    reference: str | None = None
    labels: Literal["reference", "uniform"] = "reference"
    batch_size: Positive = 64
    backbone: str = "inception"
    backbone_weights: str | None = None  # a file; null: from torch hub's cache, or a download
    lpips: Literal["alex", "vgg"] = "alex"
    lpips_weights: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "EvaluateSettings":
        if self.patience and self.best is None:
            raise ValueError("patience needs best, the score that should improve")
        return self


NeverNegative = Literal[  # scores of which a multiple means something: KID and hue_agreement can be below 0
    "fid", "is", "precision", "recall", "density", "coverage", "intra_fid", "lpips_diversity", "coherence",
    "two_objects", "shape_agreement",
]  # fmt: skip


class DivergenceSettings(Settings):
    """What counts as a collapse beside a value that is not finite, and what a run does then; null: not looked at.

    `saturation`: for `patience` steps the discriminator's adversarial loss is at most this share of its loss where it
    cannot tell reals from fakes. `spread`: the samples of one class differ by a standard deviation below this share of
    the range of a pixel. `worse`: a score is this many times worse than its best. `rollback` goes back `times` times at
    most, and each time trains on at `rate` times the learning rates.
    """

    action: Literal["stop", "rollback"] = "stop"
    times: Positive = 3
    rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    saturation: Annotated[float, Field(gt=0, lt=1)] | None = None
    patience: Count = 1000
    spread: Annotated[float, Field(gt=0, lt=1)] | None = None
    worse: dict[NeverNegative, Annotated[float, Field(gt=1)]] = Field(default_factory=dict)


class Config(Settings):
    """Everything that decides what a run computes."""

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
        """`divergence` was called `sentinel`: configs and runs that hold the old name keep working."""
        if isinstance(raw, dict) and isinstance(raw.get("sentinel"), dict):
            rest = {name: value for name, value in raw.items() if name != "sentinel"}
            return rest | {"divergence": raw["sentinel"] | raw.get("divergence", {})}
        return raw

    @model_validator(mode="after")
    def _check(self) -> "Config":
        resolution, blocks = self.data.resolution, self.data.resolution.bit_length() - 3
        for name, network, count, known in (
            ("generator", self.generator, blocks + 1, [8 << i for i in range(blocks)]),
            ("discriminator", self.discriminator, len(DISCRIMINATOR_WIDTHS[resolution]),
             [resolution >> i for i in range(1, discriminator_downs(resolution) + 1)]),
        ):  # fmt: skip
            if len(network.widths) != count:
                raise ValueError(
                    f"{name}.widths needs {count} numbers at resolution {resolution}, has {len(network.widths)}"
                )
            for place in network.attention:
                if place not in known:
                    raise ValueError(
                        f"{name}.attention: no block outputs {place}x{place} at resolution {resolution}; "
                        f"known: {', '.join(map(str, known))}"
                    )
        if self.discriminator.frontend is not None:
            self.discriminator.frontend.check(resolution, self.discriminator.attention)
        self._check_step()
        self._check_divergence()
        return self

    def _check_step(self) -> None:
        generator = self.generator
        if generator.hierarchical:
            if generator.z_dim % len(generator.widths):
                raise ValueError(
                    f"generator.z_dim {generator.z_dim} is not divisible by {len(generator.widths)}, the number of "
                    "chunks that generator.hierarchical cuts z into (one for the stem, one for each block)"
                )
            if generator.class_norm != "shared" and self.data.num_classes != 0:
                raise ValueError("generator.hierarchical needs generator.class_norm shared, or data.num_classes 0")
        batch, parts = self.training.batch_size, self.optim.accumulation
        if batch % parts:
            raise ValueError(f"training.batch_size {batch} is not divisible by optim.accumulation {parts}")
        self.generator.check_batch("generator", batch // parts)
        self.discriminator.check_batch("discriminator", batch // parts)
        if self.training.compile and self.loss.r1:
            raise ValueError("training.compile and loss.r1 exclude each other: torch.compile has no double backward")
        if self.training.cuda_graphs and not self.training.compile:
            raise ValueError("training.cuda_graphs records what training.compile makes; set that to true as well")
        if self.training.compile and self.training.activation_checkpointing:
            raise ValueError(
                "training.compile and training.activation_checkpointing exclude each other: a compiled step decides by "
                "itself what it keeps; switch one off"
            )

    def _check_divergence(self) -> None:
        divergence, evaluate = self.divergence, self.evaluate
        had = [*evaluate.metrics, *(("two_objects", "shape_agreement") if "coherence" in evaluate.metrics else ())]
        for name in divergence.worse:
            if not evaluate.every or name not in had:
                raise ValueError(f"divergence.worse: {name} is not scored in training; set evaluate.every and metrics")
        if divergence.worse and divergence.action == "rollback" and evaluate.best is None:
            raise ValueError(
                "divergence.worse with action rollback needs evaluate.best, which keeps what it goes back to"
            )
        if divergence.saturation is not None and self.loss.name == "wasserstein":
            raise ValueError("divergence.saturation: the wasserstein loss has no floor to reach; leave it null")
        if divergence.spread is not None and self.training.samples_per_class < 2:
            raise ValueError(
                "divergence.spread compares samples of one class; training.samples_per_class must be above 1"
            )

    @property
    def d_steps(self) -> int:
        return self.optim.d_steps or (5 if self.data.num_classes == 0 else 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; attention options stand beside `name` and `place`."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)
