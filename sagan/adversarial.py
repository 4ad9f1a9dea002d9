"""One adversarial update of each network: the algorithm, apart from devices, files, loggers and processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sagan.attention.functional import at_least_float32
from sagan.augment import augment
from sagan.discriminator import Discriminator
from sagan.losses import AdversarialLoss, r1_penalty
from sagan.networks import Generator
from sagan.spectral_norm import hold_state


class Engine(Protocol):
    """What an update needs of its surroundings; an `accelerate.Accelerator` is one."""

    def backward(self, loss: Tensor) -> None: ...
    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]: ...

    @property
    def autocast(self) -> Callable[..., AbstractContextManager[Any]]: ...


class LocalEngine:
    """One process, full precision."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()


@dataclass
class GAN:
    """The networks of a run. Handles: the same networks as called where their gradients are taken (DDP)."""

    generator: Generator
    discriminator: Discriminator
    generator_handle: Callable[..., Tensor]
    discriminator_handle: Callable[..., Any]
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    average: Generator


@dataclass(frozen=True)
class Objective:
    """What is minimised: the adversarial loss, R1's weight γ, DiffAugment's policies."""

    loss: AdversarialLoss
    r1: float = 0.0
    policy: Sequence[str] = ()


@dataclass(frozen=True)
class Draws:
    """Random inputs of one micro-batch: z (B, z_dim), labels (B,) or None, augmentation (B, P) of the fakes."""

    z: Tensor
    labels: Tensor | None
    augmentation: Tensor


@dataclass(frozen=True)
class Reals:
    """One micro-batch of data: images (B, 3, R, R) in [-1, 1], labels (B,) or None, augmentation (B, P)."""

    images: Tensor
    labels: Tensor | None
    augmentation: Tensor


def discriminator_step(
    gan: GAN, objective: Objective, batches: Sequence[tuple[Reals, Draws]], engine: Engine
) -> dict[str, Tensor]:
    """One update of the discriminator over micro-batches; one forward each on reals and fakes together.

    Its state (spectral-norm vectors) moves once, in the first forward. Returns detached scalars (), means over batches.
    """
    gan.discriminator_optimizer.zero_grad(set_to_none=True)
    logs: list[dict[str, Tensor]] = []
    for index, (reals, draws) in enumerate(batches):
        with torch.no_grad(), hold_state(gan.generator), engine.autocast():
            fakes = gan.generator(draws.z, draws.labels)
        with (
            _micro_batch(gan.discriminator, gan.discriminator_handle, index, len(batches), engine),
            _kernels(objective),
        ):
            terms = _discriminator_loss(gan, objective, reals, draws, fakes.to(reals.images.dtype))
            engine.backward(terms["d_loss"] / len(batches))
        logs.append({name: term.detach() for name, term in terms.items()})
    gan.discriminator_optimizer.step()
    return _means(logs)


def generator_step(gan: GAN, objective: Objective, batches: Sequence[Draws], engine: Engine) -> dict[str, Tensor]:
    """One update of the generator over micro-batches; the discriminator neither moves nor collects gradients.

    Returns detached scalars (), means over batches.
    """
    gan.generator_optimizer.zero_grad(set_to_none=True)
    logs: list[dict[str, Tensor]] = []
    with hold_state(gan.discriminator), _without_gradients(gan.discriminator):
        for index, draws in enumerate(batches):
            with _micro_batch(gan.generator, gan.generator_handle, index, len(batches), engine):
                with engine.autocast():
                    fakes = gan.generator_handle(draws.z, draws.labels)
                    judgement = gan.discriminator(augment(fakes, objective.policy, draws.augmentation), draws.labels)
                    loss = objective.loss.generator(at_least_float32(judgement.logits))
                engine.backward(loss / len(batches))
            logs.append({"g_loss": loss.detach()})
    gan.generator_optimizer.step()
    return _means(logs)


def _discriminator_loss(gan: GAN, objective: Objective, reals: Reals, draws: Draws, fakes: Tensor) -> dict[str, Tensor]:
    real_images = reals.images.detach().requires_grad_(objective.r1 > 0)
    images = torch.cat(
        [
            augment(real_images, objective.policy, reals.augmentation),
            augment(fakes, objective.policy, draws.augmentation),
        ]
    )  # (2B, 3, R, R)
    labels = None if reals.labels is None or draws.labels is None else torch.cat([reals.labels, draws.labels])
    is_real = torch.arange(len(images), device=images.device) < len(reals.images)  # (2B,)
    judgement = gan.discriminator_handle(images, labels, is_real)
    real_logits, fake_logits = at_least_float32(judgement.logits).split([len(reals.images), len(fakes)])
    loss = objective.loss.discriminator(real_logits, fake_logits)
    terms = {"real_logits": real_logits.mean(), "fake_logits": fake_logits.mean(), **judgement.penalties}
    for penalty in judgement.penalties.values():
        loss = loss + penalty
    if objective.r1:
        terms["r1"] = r1_penalty(real_images, real_logits)
        loss = loss + objective.r1 * terms["r1"]
    return {"d_loss": loss, **terms}


@contextmanager
def _micro_batch(
    network: nn.Module, handle: Callable[..., Any], index: int, count: int, engine: Engine
) -> Iterator[None]:
    """State moves in the first micro-batch of an update, gradients are reduced over processes in the last."""
    with ExitStack() as stack:
        if index > 0:
            stack.enter_context(hold_state(network))
        if index < count - 1 and isinstance(handle, nn.Module):
            stack.enter_context(engine.no_sync(handle))
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


def _kernels(objective: Objective) -> AbstractContextManager[Any]:
    """Fused attention has no second derivative, which R1 needs."""
    return sdpa_kernel(SDPBackend.MATH) if objective.r1 else nullcontext()


def _means(logs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}
