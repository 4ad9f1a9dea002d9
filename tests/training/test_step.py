"""Both updates against a literal one: plain autograd over the networks of reference.py, a forward for every half."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from reference import Reference
from tiny import one_process, tiny_batches, tiny_config, tiny_gan
from torch import Tensor, nn

from sagan.config.schema import ConsistencySettings
from sagan.models.gan import GAN
from sagan.training.augment import augment, consistency_transform
from sagan.training.losses import LOSSES, GradientPenalty, Objective
from sagan.training.step import LatentBatch, RealBatch, discriminator_step, generator_step

MicroBatches = list[tuple[RealBatch, LatentBatch]]
State = dict[str, Tensor]
HINGE = Objective(LOSSES["hinge"])
R3GAN = [GradientPenalty("r1", 0.5, "reals"), GradientPenalty("r2", 2.0, "fakes")]
ICR = ConsistencySettings(reals=2.0, fakes=3.0, latents=5.0, diversity=0.5, noise=0.1)


def literal(network: nn.Module, moved: State, hold: bool) -> Reference:
    """The reference over the network's own tensors, in training mode; `moved` state takes the place of the old."""
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for name, _ in network.named_parameters():
        state[name].requires_grad_()
    return Reference(state | moved, training=True, hold=hold)


def literal_d_update(gan: GAN, objective: Objective, batches: MicroBatches) -> tuple[State, State, float]:
    """Gradients of the discriminator by name, its state after the update, and the mean loss."""
    moved: State = {}
    gradients: State = {}
    mean = 0.0
    for reals, draws in batches:
        fakes = literal(gan.generator, {}, hold=True).generator(draws.z, draws.labels).detach()
        critic = literal(gan.discriminator, moved, hold=bool(moved))
        images, fakes = reals.images.clone().requires_grad_(), fakes.requires_grad_()
        real_logits = critic.discriminator(augment(images, objective.policy, reals.augmentation), reals.labels)
        fake_logits = critic.discriminator(augment(fakes, objective.policy, draws.augmentation), draws.labels)
        loss = objective.loss.discriminator(real_logits, fake_logits)
        regular = objective.consistency
        halves = ((regular.reals, real_logits, images, reals), (regular.fakes, fake_logits, fakes, draws))
        for weight, logits, inputs, batch in halves:
            if weight:
                transformed = consistency_transform(inputs, batch.transform)
                again = critic.discriminator(augment(transformed, objective.policy, batch.augmentation), batch.labels)
                loss = loss + weight * sum((a - b) ** 2 for a, b in zip(logits, again, strict=True)) / len(logits)
        if regular.latents:
            z = draws.z + regular.noise * draws.noise
            near = literal(gan.generator, {}, hold=True).generator(z, draws.labels).detach()
            again = critic.discriminator(augment(near, objective.policy, draws.augmentation), draws.labels)
            loss = loss + regular.latents * ((fake_logits - again) ** 2).mean()
        if objective.lecam:
            mean_real, mean_fake = gan.discriminator.anchors.tolist()
            loss = loss + objective.lecam * (
                ((real_logits - mean_fake) ** 2).mean() + ((fake_logits - mean_real) ** 2).mean()
            )
        for penalty in objective.penalties:
            logits, inputs = (real_logits, images) if penalty.images == "reals" else (fake_logits, fakes)
            (slope,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
            loss = loss + penalty.every * penalty.weight / 2 * sum(image.square().sum() for image in slope) / len(slope)
        mean += loss.item() / len(batches)
        add_gradients(gradients, gan.discriminator, critic.state, loss / len(batches))
        moved = moved or critic.moved
    return gradients, moved, mean


def literal_g_update(
    gan: GAN, objective: Objective, batches: list[LatentBatch], reals: list[RealBatch] | None = None
) -> tuple[State, State, float]:
    """Gradients of the generator by name, its state after the update, and the mean loss."""
    moved: State = {}
    gradients: State = {}
    mean = 0.0
    for index, draws in enumerate(batches):
        generator = literal(gan.generator, {n: t for n, t in moved.items() if n.endswith(("_u", "_v"))}, bool(moved))
        fakes = generator.generator(draws.z, draws.labels)
        critic = literal(gan.discriminator, {}, hold=True)
        logits = critic.discriminator(augment(fakes, objective.policy, draws.augmentation), draws.labels)
        real_logits = None
        if reals is not None:
            images = augment(reals[index].images, objective.policy, reals[index].augmentation)
            real_logits = critic.discriminator(images, reals[index].labels)
        loss = objective.loss.generator(logits, real_logits)
        if weight := objective.consistency.diversity:
            still = literal(gan.generator, {n: t for n, t in moved.items() if n.endswith(("_u", "_v"))}, hold=True)
            still.state = generator.state | {n: t for n, t in generator.moved.items() if n.endswith(("_u", "_v"))}
            near = still.generator(draws.z + objective.consistency.noise * draws.noise, draws.labels)
            loss = loss - weight * ((fakes - near) ** 2).mean()
        for name, tensor in generator.state.items():
            if objective.orthogonal and tensor.dim() in (2, 4) and "original" in name:
                rows = tensor.flatten(1)
                for i in range(len(rows)):
                    for j in range(len(rows)):
                        if i != j:
                            loss = loss + objective.orthogonal * (rows[i] @ rows[j]) ** 2
        mean += loss.item() / len(batches)
        add_gradients(gradients, gan.generator, generator.state, loss / len(batches))
        moved = moved or generator.moved
    return gradients, moved, mean


def add_gradients(total: State, network: nn.Module, state: State, loss: Tensor) -> None:
    names = [name for name, _ in network.named_parameters()]
    for name, gradient in zip(names, torch.autograd.grad(loss, [state[name] for name in names]), strict=True):
        total[name] = total.get(name, torch.zeros_like(gradient)) + gradient


def steps_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[State]:
    """Fills with the gradients that every step of the optimizer sees."""
    seen: list[State] = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
    )
    return seen


def assert_equal(found: State, expected: State, what: str) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = float(tensor.abs().max().clamp(min=1))
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=1e-10 * scale, msg=lambda m, n=name: f"{what} {n}: {m}"
        )


def buffers(network: nn.Module) -> State:
    parameters = dict(network.named_parameters())
    return {n: t.clone() for n, t in network.state_dict().items() if n not in parameters}


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("d_steps", [1, 3])
def test_updates_are_the_literal_ones(d_steps: int, accumulation: int) -> None:
    config = tiny_config()
    gan = tiny_gan(config)
    d_seen = steps_of(gan.discriminator, gan.discriminator_optimizer)
    g_seen = steps_of(gan.generator, gan.generator_optimizer)
    for update in range(d_steps):
        batches = tiny_batches(config, accumulation, 2, seed=update)
        gradients, moved, loss = literal_d_update(gan, HINGE, batches)
        generator_before, d_buffers = copy.deepcopy(gan.generator.state_dict()), buffers(gan.discriminator)
        logs = discriminator_step(gan, HINGE, batches, one_process())
        assert len(d_seen) == update + 1
        assert_equal(d_seen[-1], gradients, "gradient of D")
        assert_equal(buffers(gan.discriminator), d_buffers | moved, "state of D")
        assert_equal(gan.generator.state_dict(), generator_before, "G in the step of D")
        assert logs["d_loss"].item() == pytest.approx(loss, rel=1e-10)
    draws = [draws for _, draws in tiny_batches(config, accumulation, 2, seed=99)]
    gradients, moved, loss = literal_g_update(gan, HINGE, draws)
    discriminator_before, g_buffers = copy.deepcopy(gan.discriminator.state_dict()), buffers(gan.generator)
    logs = generator_step(gan, HINGE, draws, one_process())
    assert (len(d_seen), len(g_seen)) == (d_steps, 1)
    assert_equal(g_seen[0], gradients, "gradient of G")
    assert_equal(buffers(gan.generator), g_buffers | moved, "state of G")
    assert_equal(gan.discriminator.state_dict(), discriminator_before, "D in the step of G")
    assert logs["g_loss"].item() == pytest.approx(loss, rel=1e-10)


R1 = [GradientPenalty("r1", 0.5, "reals")]
OBJECTIVES = {
    "r1": (4, Objective(LOSSES["non_saturating"], [GradientPenalty("r1", 3.0, "reals")])),
    "unconditional": (0, Objective(LOSSES["wasserstein"])),
    "augmented": (4, Objective(LOSSES["hinge"], policy=("color", "translation", "cutout"))),
    "unconditional-r1-augmented": (0, Objective(LOSSES["non_saturating"], R1, ("translation", "color"))),
    "relativistic": (4, Objective(LOSSES["relativistic"], R3GAN, ("color",))),
    "lazy": (4, Objective(LOSSES["hinge"], [GradientPenalty("r1", 0.5, "reals", every=4)])),
    "consistency": (4, Objective(LOSSES["hinge"], consistency=ConsistencySettings(reals=10.0))),
    "icr": (4, Objective(LOSSES["hinge"], policy=("color",), consistency=ICR)),
    "unconditional-icr-r1": (0, Objective(LOSSES["hinge"], R3GAN, consistency=ICR)),
    "lecam": (4, Objective(LOSSES["hinge"], lecam=0.3, lecam_decay=0.9)),
    "orthogonal": (4, Objective(LOSSES["hinge"], orthogonal=1e-2)),
}


@pytest.mark.parametrize(("num_classes", "objective"), OBJECTIVES.values(), ids=OBJECTIVES)
def test_objectives_are_the_literal_ones(num_classes: int, objective: Objective) -> None:
    """Penalties are with respect to images before augmentation, and need second derivatives of attention."""
    config = tiny_config(f"augment.policy={list(objective.policy)}")
    gan = tiny_gan(config, num_classes)
    if objective.lecam:
        gan.discriminator.register_buffer("anchors", torch.tensor([0.7, -0.4], dtype=torch.float64))
    batches = tiny_batches(config, 2, 3, num_classes=num_classes)
    seen = steps_of(gan.discriminator, gan.discriminator_optimizer)
    gradients, _, loss = literal_d_update(gan, objective, batches)
    logs = discriminator_step(gan, objective, batches, one_process())
    assert_equal(seen[0], gradients, "gradient of D")
    assert logs["d_loss"].item() == pytest.approx(loss, rel=1e-10)
    assert {penalty.name for penalty in objective.penalties} == logs.keys() & {"r1", "r2"}
    seen = steps_of(gan.generator, gan.generator_optimizer)
    reals, draws = (list(parts) for parts in zip(*batches, strict=True))
    gradients, moved, loss = literal_g_update(gan, objective, draws, reals if objective.loss.needs_reals else None)
    before = buffers(gan.generator)
    logs = generator_step(gan, objective, draws, one_process(), reals)
    assert logs["g_loss"].item() == pytest.approx(loss, rel=1e-10)
    assert_equal(seen[0], gradients, "gradient of G")
    assert_equal(buffers(gan.generator), before | moved, "state of G")


def test_lazy_penalties_are_left_out_between() -> None:
    config = tiny_config()
    gan, batches = tiny_gan(config), tiny_batches(config, 1, 2)
    lazy = Objective(LOSSES["hinge"], [GradientPenalty("r1", 1.0, "reals", every=3)])
    logs = [discriminator_step(gan, lazy, batches, one_process(), update) for update in range(4)]
    assert ["r1" in values for values in logs] == [True, False, False, True]
    assert all("d_adversarial" in values for values in logs)
    assert logs[1]["d_loss"] == logs[1]["d_adversarial"]


def test_anchors_of_lecam_follow_the_mean_logits() -> None:
    gan, config = tiny_gan(tiny_config()), tiny_config()
    gan.discriminator.register_buffer("anchors", torch.tensor([1.0, -1.0], dtype=torch.float64))
    logs = discriminator_step(gan, Objective(LOSSES["hinge"], lecam=1.0, lecam_decay=0.9), tiny_batches(config, 2, 3),
                              one_process())  # fmt: skip
    expected = [0.9 + 0.1 * logs["real_logits"], -0.9 + 0.1 * logs["fake_logits"]]
    torch.testing.assert_close(gan.discriminator.anchors, torch.stack(expected))


def test_one_discriminator_forward_a_micro_batch() -> None:
    config = tiny_config()
    gan, seen = tiny_gan(config), []
    gan.discriminator.register_forward_hook(lambda _, inputs, __: seen.append(("D", len(inputs[0]))))
    gan.generator.register_forward_hook(lambda _, inputs, __: seen.append(("G", len(inputs[0]))))
    batches = tiny_batches(config, 2, 3)
    discriminator_step(gan, HINGE, batches, one_process())
    assert seen == [("G", 3), ("D", 6)] * 2
    seen.clear()
    generator_step(gan, HINGE, [draws for _, draws in batches], one_process())
    assert seen == [("G", 3), ("D", 3)] * 2


def test_a_step_gives_the_other_network_no_gradient() -> None:
    config = tiny_config()
    gan, batches = tiny_gan(config), tiny_batches(config, 2, 2)
    frozen = gan.discriminator.head.linear.bias.requires_grad_(False)
    generator_step(gan, HINGE, [draws for _, draws in batches], one_process())
    assert all(parameter.grad is None for parameter in gan.discriminator.parameters())
    assert [p for p in gan.discriminator.parameters() if not p.requires_grad] == [frozen]
    gan = tiny_gan(config)
    discriminator_step(gan, HINGE, batches, one_process())
    assert all(parameter.grad is None for parameter in gan.generator.parameters())


def test_an_error_leaves_no_network_held_or_frozen() -> None:
    config = tiny_config()
    gan = tiny_gan(config)

    class Failing(Accelerator):
        def backward(self, loss: Tensor) -> None:
            raise RuntimeError("out of memory")

    batches = tiny_batches(config, 2, 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        discriminator_step(gan, HINGE, batches, Failing(cpu=True))
    with pytest.raises(RuntimeError, match="out of memory"):
        generator_step(gan, HINGE, [draws for _, draws in batches], Failing(cpu=True))
    assert all(parameter.requires_grad for parameter in gan.discriminator.parameters())
    assert not any(getattr(m, "held", False) for n in (gan.generator, gan.discriminator) for m in n.modules())


class Recording(Accelerator):
    """Notes whether each backward ran with gradients synchronized between processes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.synchronized: list[bool] = []
        self.off = False

    def backward(self, loss: Tensor) -> None:
        self.synchronized.append(not self.off)
        super().backward(loss)

    @contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        self.off = True
        yield
        self.off = False


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_gradients_are_synchronized_in_the_last_micro_batch_alone(accumulation: int) -> None:
    config = tiny_config()
    gan, engine = tiny_gan(config), Recording(cpu=True)
    batches = tiny_batches(config, accumulation, 2)
    discriminator_step(gan, HINGE, batches, engine)
    generator_step(gan, HINGE, [draws for _, draws in batches], engine)
    assert engine.synchronized == ([False] * (accumulation - 1) + [True]) * 2


def test_logs_are_scalars_without_graph() -> None:
    config = tiny_config()
    objective = Objective(LOSSES["hinge"], [GradientPenalty("r1", 1.0, "reals")])
    logs = discriminator_step(tiny_gan(config), objective, tiny_batches(config, 3, 2), one_process())
    assert set(logs) == {"d_loss", "d_adversarial", "real_logits", "fake_logits", "r1"}
    assert not any(value.requires_grad or value.shape for value in logs.values())
