"""`sagan bench sample`: drawing images against the plain form, in interleaved rounds of one run."""

import statistics
from functools import partial
from typing import Any

from sagan.commands.bench_result import show

IMAGES = 64  # drawn at once


def bench_sample_command(source: str | None, rounds: int, as_json: bool) -> None:
    """Print images/s of the project's sampling and of the plain form, and `ratio_sample`: how many times as fast.

    `images_differ_by`: the most between two pixels of the same seed, in levels of grey.
    """
    import torch

    from sagan.commands.machine import bench_device
    from sagan.commands.sample_variants import generator_of, plain_form, project_form
    from sagan.commands.step_variants import seconds_a_step
    from sagan.sampling import default_labels, generate, latents

    device = bench_device()
    generator = generator_of(source).to(device)
    plain, project = plain_form(generator), project_form(generator)
    z, labels = latents(range(IMAGES), generator.z_dim), default_labels(range(IMAGES), generator.num_classes)
    forms = {"plain": plain.forward, "project": project}  # a method has no drawing form

    def draw(name: str) -> torch.Tensor:
        return torch.cat(list(generate(forms[name], z, labels, device)))

    difference = (draw("plain").int() - draw("project").int()).abs().max().item()
    seconds = seconds_a_step({name: partial(_discard, draw, name) for name in forms}, rounds, device)
    result: dict[str, Any] = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "resolution": generator.resolution,
        "channels": generator.settings.channels,
        "images": IMAGES,
        "rounds": rounds,
        "images_differ_by": difference,
    }
    for name, times in seconds.items():
        result[f"images_per_second_{name}"] = IMAGES / statistics.median(times)
        result[f"spread_{name}"] = max(times) / min(times) - 1
    result["ratio_sample"] = statistics.median(a / b for a, b in zip(seconds["plain"], seconds["project"], strict=True))
    show(result, as_json, note="plain: spectral norm in every forward, convolutions unfolded, contiguous, eager")


def _discard(draw: Any, name: str) -> None:
    draw(name)
