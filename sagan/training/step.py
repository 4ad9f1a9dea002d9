"""One adversarial update of each network: the algorithm, without files, loggers or schedules."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sagan.layers.precision import at_least_float32
from sagan.layers.spectral_norm import hold_state
from sagan.models.gan import GAN
from sagan.training.augment import augment, consistency_transform
from sagan.training.losses import GradientPenalty, Objective, gradient_penalty, lecam, orthogonal_penalty


@dataclass(frozen=True)
class LatentBatch:
    """Random inputs of one micro-batch: z (B, z_dim), labels (B,) or None, augmentation (B, P) of the fakes.

    For consistency regularization, else None: `transform`, draws (B, 3), and `noise` on z, standard normal (B, z_dim).
    """

    z: Tensor
    labels: Tensor | None
    augmentation: Tensor
    transform: Tensor | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class RealBatch:
    """One micro-batch of data: images (B, C, R, R) in [-1, 1], labels (B,) or None, augmentation (B, P).

    `transform`: as in LatentBatch.
    """

    images: Tensor
    labels: Tensor | None
    augmentation: Tensor
    transform: Tensor | None = None


def discriminator_step(
    gan: GAN,
    objective: Objective,
    batches: Sequence[tuple[RealBatch, LatentBatch]],
    accelerator: Accelerator,
    update: int = 0,
) -> dict[str, Tensor]:
    """One update of the discriminator over micro-batches. Reals and fakes share one forward.

    Its state (spectral-norm vectors) advances once, in the first forward. `update`: number of the update, for lazy
    penalties. Returns detached scalars (), means over micro-batches.
    """
    gan.discriminator_optimizer.zero_grad(set_to_none=True)
    penalties = [penalty for penalty in objective.penalties if update % penalty.every == 0]
    logs: list[dict[str, Tensor]] = []
    for index, (reals, latents) in enumerate(batches):
        with torch.no_grad(), hold_state(gan.generator), accelerator.autocast():
            fakes = gan.generator(latents.z, latents.labels).to(reals.images.dtype)
            neighbors = None
            if objective.consistency.latents:
                neighbors = gan.generator(_nearby(latents, objective), latents.labels).to(reals.images.dtype)
        with (
            _micro_batch(gan.discriminator, gan.ddp_discriminator, index, len(batches), accelerator),
            _kernels(penalties),
        ):
            terms = _discriminator_loss(gan, objective, penalties, reals, latents, fakes, neighbors)
            accelerator.backward(terms["d_loss"] / len(batches))
        logs.append({name: term.detach() for name, term in terms.items()})
    gan.discriminator_optimizer.step()
    values = _means(logs)
    if objective.lecam:
        found: Any = torch.stack([values["real_logits"], values["fake_logits"]])
        if accelerator.num_processes > 1:
            found = accelerator.reduce(found, "mean")
        gan.discriminator.anchors.lerp_(found, 1 - objective.lecam_decay)
    return values


def generator_step(
    gan: GAN,
    objective: Objective,
    batches: Sequence[LatentBatch],
    accelerator: Accelerator,
    reals: Sequence[RealBatch] = (),
) -> dict[str, Tensor]:
    """One update of the generator over micro-batches. The discriminator's state and gradients do not change.

    `reals`: one micro-batch for each of `batches`, for losses that need reals. Returns detached scalars (), means over
    micro-batches.
    """
    gan.generator_optimizer.zero_grad(set_to_none=True)
    logs: list[dict[str, Tensor]] = []
    with hold_state(gan.discriminator), _without_gradients(gan.discriminator):
        for index, latents in enumerate(batches):
            with _micro_batch(gan.generator, gan.ddp_generator, index, len(batches), accelerator):
                with accelerator.autocast():
                    fakes = gan.ddp_generator(latents.z, latents.labels)
                    fake_logits = _logits(gan, objective, fakes, latents)
                    real_logits, neighbors = None, None
                    if objective.loss.needs_reals:
                        with torch.no_grad():
                            real_logits = _logits(gan, objective, reals[index].images, reals[index])
                    if objective.consistency.diversity:
                        with hold_state(gan.generator):
                            neighbors = gan.ddp_generator(_nearby(latents, objective), latents.labels)
                terms = {"g_loss": objective.loss.generator(fake_logits, real_logits)}
                if neighbors is not None:
                    terms["diversity"] = (at_least_float32(fakes) - at_least_float32(neighbors)).square().mean()
                    terms["g_loss"] = terms["g_loss"] - objective.consistency.diversity * terms["diversity"]
                if objective.orthogonal:
                    terms["orthogonal"] = orthogonal_penalty(gan.generator)
                    terms["g_loss"] = terms["g_loss"] + objective.orthogonal * terms["orthogonal"]
                accelerator.backward(terms["g_loss"] / len(batches))
            logs.append({name: term.detach() for name, term in terms.items()})
    gan.generator_optimizer.step()
    return _means(logs)


def _discriminator_loss(
    gan: GAN, objective: Objective, penalties: Sequence[GradientPenalty], reals: RealBatch, latents: LatentBatch,
    fakes: Tensor, neighbors: Tensor | None,
) -> dict[str, Tensor]:  # fmt: skip
    """d_loss, with all regularization, and the other logged terms. `neighbors`: fakes of latents nearby, for zCR."""
    penalized = {penalty.images for penalty in penalties}
    images = {
        "reals": reals.images.detach().requires_grad_("reals" in penalized),
        "fakes": fakes.detach().requires_grad_("fakes" in penalized),
    }
    batches: dict[str, RealBatch | LatentBatch] = {"reals": reals, "fakes": latents}
    parts = [*images.items()]  # inputs of the one forward, each (B, C, R, R), and whether they are reals or fakes
    consistent = []  # (name, weight, reals or fakes) of every part after these two
    for name in ("reals", "fakes"):
        if weight := getattr(objective.consistency, name):
            draws = batches[name].transform
            assert draws is not None
            parts.append((name, consistency_transform(images[name], draws)))
            consistent.append((name, weight, name))
    if neighbors is not None:
        parts.append(("fakes", neighbors))
        consistent.append(("latents", objective.consistency.latents, "fakes"))
    inputs = torch.cat([augment(part, objective.policy, batches[name].augmentation) for name, part in parts])
    labels = None
    if reals.labels is not None:
        labels = torch.cat([batches[name].labels for name, _ in parts])  # type: ignore[misc]
    size = len(fakes)
    is_real = torch.cat([torch.full((size,), name == "reals", device=fakes.device) for name, _ in parts])
    output = gan.ddp_discriminator(inputs, labels, is_real)  # (2B, C, R, R), or up to (5B, C, R, R)
    real_logits, fake_logits, *others = at_least_float32(output.logits).split(size)
    logits = {"reals": real_logits, "fakes": fake_logits}
    adversarial = loss = objective.loss.discriminator(real_logits, fake_logits)
    terms = {"real_logits": real_logits.mean(), "fake_logits": fake_logits.mean(), **output.penalties}
    for penalty in output.penalties.values():
        loss = loss + penalty
    for (name, weight, of), other in zip(consistent, others, strict=True):
        terms[f"consistency_{name}"] = (logits[of] - other).square().mean()
        loss = loss + weight * terms[f"consistency_{name}"]
    for penalty in penalties:
        terms[penalty.name] = gradient_penalty(images[penalty.images], logits[penalty.images])
        loss = loss + penalty.every * penalty.weight * terms[penalty.name]
    if objective.lecam:
        terms["lecam"] = lecam(real_logits, fake_logits, gan.discriminator.anchors.clone())
        loss = loss + objective.lecam * terms["lecam"]
    if len(terms) > 2 or objective.penalties:
        terms["d_adversarial"] = adversarial
    return {"d_loss": loss, **terms}


def _nearby(latents: LatentBatch, objective: Objective) -> Tensor:
    """z plus a little noise (B, z_dim), the T(z) of zCR (arXiv:2002.04724)."""
    assert latents.noise is not None
    return latents.z + objective.consistency.noise * latents.noise


def _logits(gan: GAN, objective: Objective, images: Tensor, batch: RealBatch | LatentBatch) -> Tensor:
    """Logits of augmented images for the generator's loss."""
    augmented = augment(images, objective.policy, batch.augmentation)
    return at_least_float32(gan.discriminator(augmented, batch.labels).logits)


@contextmanager
def _micro_batch(
    network: nn.Module, ddp_network: nn.Module, index: int, count: int, accelerator: Accelerator
) -> Iterator[None]:
    """Advance state in the first micro-batch of an update only, reduce gradients over processes in the last only."""
    with ExitStack() as stack:
        if index > 0:
            stack.enter_context(hold_state(network))
        if index < count - 1:
            stack.enter_context(accelerator.no_sync(ddp_network))
        yield


@contextmanager
def _without_gradients(network: nn.Module) -> Iterator[None]:
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _kernels(penalties: Sequence[GradientPenalty]) -> AbstractContextManager[object]:
    """Fused attention has no second derivative, which gradient penalties need."""
    return sdpa_kernel(SDPBackend.MATH) if penalties else nullcontext()


def _means(logs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}
