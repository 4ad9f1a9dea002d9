"""What can be set of the networks: generator, discriminator, attention, front-ends. Imports no torch."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sagan.resolutions import discriminator_downs

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, le=1)]


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
    """`widths`: of the 4×4 stem, then of each block. `class_norm`: how labels reach the batch norm (see layers.py)."""

    z_dim: Positive = 128
    class_norm: Literal["table", "linear"] = "table"
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
