"""Training logs: log.jsonl, trackers, and progress: a bar on a terminal, else lines."""

import json
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor, nn

from sagan.attention import AttentionModule, record_attention
from sagan.config.schema import Config, TrainingSettings
from sagan.inspection.health import attention_health
from sagan.inspection.record import grid_points, module_gammas
from sagan.layers.spectral_norm import hold_state, singular_values
from sagan.models.gan import GAN
from sagan.training.step import LatentBatch
from sagan.utils.images import read_png
from sagan.utils.io import append_json_line, atomic_file
from sagan.utils.progress import say, shows_bars, status_line
from sagan.utils.system import peak_resident_mib

SHOWN = ("d_loss", "g_loss", "real_logits", "fake_logits")


class RunLog:
    """The log of one process. `silent` (any process but the main one): write nothing.

    `track(values, step)` and `track_picture(name, picture, step)` pass values and images to trackers; `show()` shows
    the run in a notebook after it was sampled.
    """

    def __init__(self, run: Path, start: int, steps: int, images_per_step: int,
                 track: Callable[[dict[str, float], int], None], silent: bool = False,
                 track_picture: Callable[[str, np.ndarray, int], None] | None = None,
                 show: Callable[[], None] | None = None):  # fmt: skip
        self.folder, self.track_picture, self.show = run, track_picture, show
        self.path, self.start, self.steps, self.images_per_step = run / "log.jsonl", start, steps, images_per_step
        self.track, self.silent = track, silent
        self._since = time.monotonic()
        self._bar, self._line = _bar() if shows_bars() and not silent else None, status_line()
        if self._bar is not None:
            self._bar.add_task("", total=steps, completed=start, rate="")
            self._bar.start()
        if not silent:
            truncate_log(self.path, start)

    def advance(self, step: int) -> None:
        """Move the progress bar to `step`."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, rate=self._pace(step))

    def record(self, step: int, values: dict[str, float]) -> None:
        """Append one line to log.jsonl, pass the values to the trackers, print the main ones."""
        if self.silent:
            return
        values = values | {"images_per_second": round(self.rate(step), 2)}
        append_json_line(self.path, {"step": step, "kimg": step * self.images_per_step / 1000, **values})
        self.track(values, step)
        shown = "  ".join(f"{name} {values[name]:.3f}" for name in SHOWN if name in values)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=shown)
        else:
            self._line(f"step {step}/{self.steps}  {shown}  {self._pace(step)}")

    def samples(self, step: int) -> None:
        """Pass the pictures of this step in samples/ to the trackers."""
        if self.silent:
            return
        if self.show is not None:
            self.show()
        for name, end in (("samples", ""), ("attention", "-attention")):
            path = self.folder / "samples" / f"{step:08d}{end}.png"
            if self.track_picture is not None and path.exists():
                self.track_picture(name, read_png(path), step)

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Pass scores to the trackers."""
        if not self.silent:
            self.track({f"score/{name}": value for name, value in scores.items()}, step)

    def say(self, message: str) -> None:
        """Print one line, above the progress bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        elif not self.silent:
            say(message)

    def restart(self, step: int) -> None:
        """Count the pace from `step`, to which the run has returned."""
        self.start, self._since = step, time.monotonic()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def rate(self, step: int) -> float:
        """Training throughput since this process started, in images of data per second."""
        return (step - self.start) * self.images_per_step / max(time.monotonic() - self._since, 1e-9)

    def _pace(self, step: int) -> str:
        rate = self.rate(step)
        left = round((self.steps - step) * self.images_per_step / rate) if rate else 0
        return f"{rate:.1f} img/s  {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"


def truncate_log(path: Path, step: int, keep: Path | None = None) -> None:
    """Remove the lines after `step`, which a resumed run writes again, and a line that a kill cut short.

    `keep`: a file for the removed lines.
    """
    if not path.exists():
        return
    kept, dropped, text = [], [], path.read_text(errors="replace")
    for line in text.splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.rstrip("\n") + "\n")
                continue
        except (ValueError, RecursionError, KeyError, TypeError):
            pass
        dropped.append(line)
    if keep is not None and dropped:
        with atomic_file(keep) as temporary:
            temporary.write_text("".join(dropped))
    if "".join(kept) != text:
        with atomic_file(path) as temporary:
            temporary.write_text("".join(kept))


def _bar() -> Progress:
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        *(TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[rate]}")),
    )
    return Progress(*columns, console=Console(stderr=True))


POINTS, IMAGES = 16, 8
FEWEST_STEPS = 100  # earlier, a gain has had no time to move
LARGE = 2**30  # bytes
LOGGED = ("entropy", "distance", "far_mass")


def measure(gan: GAN, values: dict[str, Tensor], latents: LatentBatch) -> dict[str, float]:
    """All logged values: the step's `values`, gradient norms, singular values, gains, attention, memory in MiB.

    Attention is measured in the training networks on `latents`.
    """
    measured: dict[str, Tensor | float] = dict(values)
    for name, network in (("g", gan.generator), ("d", gan.discriminator)):
        measured[f"{name}_gradient_norm"] = _gradient_norm(network)
        measured |= {f"{name}_sigma/{weight}": sigma for weight, sigma in singular_values(network).items()}
        measured |= {f"{name}_gamma/{module}": gamma for module, gamma in module_gammas(network).items()}
    measured |= _attention(gan, latents)
    measured["memory_mib"] = memory_mib(next(gan.generator.parameters()).device)
    return {name: float(value) for name, value in measured.items()}


@torch.no_grad()
def _attention(gan: GAN, latents: LatentBatch) -> dict[str, float]:
    """Entropy, distance and far mass of every attention map of both networks, on a few fakes."""
    points = grid_points(POINTS)
    labels = None if latents.labels is None else latents.labels[:IMAGES]
    measured = {}
    eager = torch.compiler.set_stance("force_eager")  # a compiled step ignores recorders
    with eager, hold_state(gan.generator), hold_state(gan.discriminator):
        with record_attention(gan.generator, points) as g_maps:
            fakes = gan.generator(latents.z[:IMAGES], labels)
        with record_attention(gan.discriminator, points) as d_maps:
            gan.discriminator(fakes, labels)
    for player, network, maps in (("g", gan.generator, g_maps), ("d", gan.discriminator, d_maps)):
        for module, health in attention_health(network, maps, points).items():
            measured |= {f"{player}_{name}/{module}": health[name] for name in LOGGED if name in health}
    return measured


def attention_warning(step: int, settings: TrainingSettings, measured: dict[str, float]) -> str | None:
    """A warning, once, if the gain of an attention module is still 0 after a quarter of the run."""
    start = max(settings.steps // 4, FEWEST_STEPS)
    window = range(start, start + settings.log_every)
    unused = [n for n, gamma in measured.items() if "_gamma/" in n and abs(gamma) < 1e-3]
    if step in window and unused:
        return f"attention unused: {', '.join(unused)} still 0 after {step} steps; try a larger learning rate"
    return None


def quadratic_warnings(config: Config, generator: nn.Module, discriminator: nn.Module, processes: int) -> list[str]:
    """A warning for each attention module whose query-key weights take more than 1 GiB if they are stored.

    Fused kernels do not store them; gradient penalties rule those kernels out in the discriminator.
    """
    images = config.training.batch_size // (config.optim.accumulation * processes)
    warnings = []
    for player, network, count in (("generator", generator, images), ("discriminator", discriminator, 2 * images)):
        for name, module in network.named_modules():
            if not isinstance(module, AttentionModule):
                continue
            size = 4 * count * module.pairs(*module.resolution)
            if size > LARGE:
                unfused = player == "discriminator" and config.loss.r1 > 0
                how = "R1 stores several copies" if unfused else "stored wherever no fused kernel runs"
                warnings.append(
                    f"{player} {name}: attention at {module.resolution[0]}x{module.resolution[1]} has "
                    f"{size / 2**30:.1f} GiB of weights for {count} images ({how}); double_attention, em_attention and "
                    "non_local with form dot_product or concatenation are linear in the number of positions"
                )
    return warnings


def memory_mib(device: torch.device) -> float:
    """Peak memory so far in MiB: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_resident_mib(resource.getrusage(resource.RUSAGE_SELF))


def _gradient_norm(network: nn.Module) -> Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
