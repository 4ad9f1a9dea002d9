"""One adversarial update of each network: the algorithm, without files, loggers or schedules."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sagan.layers.precision import at_least_float32
from sagan.layers.spectral_norm import hold_state
from sagan.models.gan import GAN
from sagan.training.augment import augment, consistency_transform
from sagan.training.losses import Objective, gradient_penalty


@dataclass(frozen=True)
class LatentBatch:
    """Random inputs of one micro-batch: z (B, z_dim), labels (B,) or None, augmentation (B, P) of the fakes.

    `transform`: draws (B, 3) for the consistency regularization, or None without it.
    """

    z: Tensor
    labels: Tensor | None
    augmentation: Tensor
    transform: Tensor | None = None


@dataclass(frozen=True)
class RealBatch:
    """One micro-batch of data: images (B, 3, R, R) in [-1, 1], labels (B,) or None, augmentation (B, P).

    `transform`: as in LatentBatch.
    """

    images: Tensor
    labels: Tensor | None
    augmentation: Tensor
    transform: Tensor | None = None


def discriminator_step(
    gan: GAN, objective: Objective, batches: Sequence[tuple[RealBatch, LatentBatch]], accelerator: Accelerator
) -> dict[str, Tensor]:
    """One update of the discriminator over micro-batches. Reals and fakes share one forward.

    Its state (spectral-norm vectors) advances once, in the first forward. Returns detached scalars (), means over
    micro-batches.
    """
    gan.discriminator_optimizer.zero_grad(set_to_none=True)
    logs: list[dict[str, Tensor]] = []
    for index, (reals, latents) in enumerate(batches):
        with torch.no_grad(), hold_state(gan.generator), accelerator.autocast():
            fakes = gan.generator(latents.z, latents.labels)
        with (
            _micro_batch(gan.discriminator, gan.ddp_discriminator, index, len(batches), accelerator),
            _kernels(objective),
        ):
            terms = _discriminator_loss(gan, objective, reals, latents, fakes.to(reals.images.dtype))
            accelerator.backward(terms["d_loss"] / len(batches))
        logs.append({name: term.detach() for name, term in terms.items()})
    gan.discriminator_optimizer.step()
    return _means(logs)


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
                    real_logits = None
                    if objective.loss.needs_reals:
                        with torch.no_grad():
                            real_logits = _logits(gan, objective, reals[index].images, reals[index])
                    loss = objective.loss.generator(fake_logits, real_logits)
                accelerator.backward(loss / len(batches))
            logs.append({"g_loss": loss.detach()})
    gan.generator_optimizer.step()
    return _means(logs)


def _discriminator_loss(
    gan: GAN, objective: Objective, reals: RealBatch, latents: LatentBatch, fakes: Tensor
) -> dict[str, Tensor]:
    """d_loss, with all regularization, and the other logged terms."""
    penalized = {penalty.images for penalty in objective.penalties}
    images = {
        "reals": reals.images.detach().requires_grad_("reals" in penalized),
        "fakes": fakes.detach().requires_grad_("fakes" in penalized),
    }
    batches: dict[str, RealBatch | LatentBatch] = {"reals": reals, "fakes": latents}
    consistent = {name: weight for name, weight in objective.consistency if weight}  # reals, fakes, then T(x) of these
    parts = [augment(images[name], objective.policy, batch.augmentation) for name, batch in batches.items()]
    for name in consistent:
        draws = batches[name].transform
        assert draws is not None
        moved = consistency_transform(images[name], draws)
        parts.append(augment(moved, objective.policy, batches[name].augmentation))
    order = [*batches, *consistent]
    labels = None
    if reals.labels is not None:
        labels = torch.cat([batches[name].labels for name in order])  # type: ignore[misc]
    size = len(fakes)
    part = torch.arange(size * len(order), device=fakes.device) // size
    is_real = (part == 0) | ((part == 2) & ("reals" in consistent))
    output = gan.ddp_discriminator(torch.cat(parts), labels, is_real)  # (2B, 3, R, R), or up to (4B, 3, R, R)
    real_logits, fake_logits, *moved_logits = at_least_float32(output.logits).split(size)
    logits = {"reals": real_logits, "fakes": fake_logits}
    loss = objective.loss.discriminator(real_logits, fake_logits)
    terms = {"real_logits": real_logits.mean(), "fake_logits": fake_logits.mean(), **output.penalties}
    for penalty in output.penalties.values():
        loss = loss + penalty
    for (name, weight), moved in zip(consistent.items(), moved_logits, strict=True):
        terms[f"consistency_{name}"] = (logits[name] - moved).square().mean()
        loss = loss + weight * terms[f"consistency_{name}"]
    for penalty in objective.penalties:
        terms[penalty.name] = gradient_penalty(images[penalty.images], logits[penalty.images])
        loss = loss + penalty.weight * terms[penalty.name]
    return {"d_loss": loss, **terms}


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


def _kernels(objective: Objective) -> AbstractContextManager[object]:
    """Fused attention has no second derivative, which gradient penalties need."""
    return sdpa_kernel(SDPBackend.MATH) if objective.penalties else nullcontext()


def _means(logs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}
