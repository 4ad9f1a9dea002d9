"""How fast an exported file draws, against our own sampling: interleaved rounds of one run, one thread each."""

import time
from collections.abc import Callable
from statistics import median

import torch

from sagan.export import Draw
from sagan.networks import Generator
from sagan.progress import track
from sagan.sampling import BATCH, default_labels, generate, latents

ROUNDS, IMAGES = 9, 2 * BATCH


def speed_of(draw: Draw, generator: Generator) -> dict[str, float]:
    """Images per second of both (medians), and the median over rounds of how many times as fast the file is."""
    z, labels = latents(range(IMAGES), generator.z_dim), default_labels(range(IMAGES), generator.num_classes)

    def of_file() -> None:
        for start in range(0, IMAGES, BATCH):
            rows = slice(start, start + BATCH)
            draw(z[rows], None if labels is None else labels[rows])

    def of_sampling() -> None:
        for _ in generate(generator, z, labels):
            pass

    seconds: list[tuple[float, float]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for i in track(range(ROUNDS + 1), ROUNDS + 1, "timing"):
                pair = _seconds(of_file), _seconds(of_sampling)
                seconds += [pair] if i else []  # the first round warms up
    finally:
        torch.set_num_threads(threads)
    return {
        "images_per_second_file": IMAGES / median(file for file, _ in seconds),
        "images_per_second_sampling": IMAGES / median(sampling for _, sampling in seconds),
        "ratio_speed": median(sampling / file for file, sampling in seconds),
    }


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
