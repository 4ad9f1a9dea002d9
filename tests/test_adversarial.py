"""Both updates against a literal one: plain autograd over the networks of reference.py, a forward for every half."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from reference import Reference
from tiny import tiny_batches, tiny_config, tiny_gan
from torch import Tensor, nn

from sagan.adversarial import GAN, Draws, LocalEngine, Objective, Reals, discriminator_step, generator_step
from sagan.augment import augment
from sagan.losses import LOSSES

MicroBatches = list[tuple[Reals, Draws]]
State = dict[str, Tensor]
HINGE = Objective(LOSSES["hinge"])


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
        images = reals.images.clone().requires_grad_()
        real_logits = critic.discriminator(augment(images, objective.policy, reals.augmentation), reals.labels)
        fake_logits = critic.discriminator(augment(fakes, objective.policy, draws.augmentation), draws.labels)
        loss = objective.loss.discriminator(real_logits, fake_logits)
        if objective.r1:
            (slope,) = torch.autograd.grad(real_logits.sum(), images, create_graph=True)
            loss = loss + objective.r1 / 2 * sum(image.square().sum() for image in slope) / len(slope)
        mean += loss.item() / len(batches)
        add_gradients(gradients, gan.discriminator, critic.state, loss / len(batches))
        moved = moved or critic.moved
    return gradients, moved, mean


def literal_g_update(gan: GAN, objective: Objective, batches: list[Draws]) -> tuple[State, State, float]:
    """Gradients of the generator by name, its state after the update, and the mean loss."""
    moved: State = {}
    gradients: State = {}
    mean = 0.0
    for draws in batches:
        generator = literal(gan.generator, {n: t for n, t in moved.items() if n.endswith(("_u", "_v"))}, bool(moved))
        fakes = generator.generator(draws.z, draws.labels)
        critic = literal(gan.discriminator, {}, hold=True)
        logits = critic.discriminator(augment(fakes, objective.policy, draws.augmentation), draws.labels)
        loss = objective.loss.generator(logits)
        mean += loss.item() / len(batches)
        add_gradients(gradients, gan.generator, generator.state, loss / len(batches))
        moved = moved or generator.moved
    return gradients, moved, mean


def add_gradients(total: State, network: nn.Module, state: State, loss: Tensor) -> None:
    names = [name for name, _ in network.named_parameters()]
    for name, gradient in zip(names, torch.autograd.grad(loss, [state[name] for name in names]), strict=True):
        total[name] = total.get(name, torch.zeros_like(gradient)) + gradient


def steps_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[State]:
    """Fills with the gradients that every step of the optimiser sees."""
    seen: list[State] = []

    def note(*_: Any) -> None:
        seen.append({n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})

    optimizer.register_step_pre_hook(note)
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
    """Breaks when an update takes a step too many or too few, weighs its micro-batches wrongly, forgets or keeps old
    gradients, mixes batch-norm statistics of micro-batches, or moves any state but its own network's, once."""
    config = tiny_config()
    gan = tiny_gan(config)
    d_seen = steps_of(gan.discriminator, gan.discriminator_optimizer)
    g_seen = steps_of(gan.generator, gan.generator_optimizer)
    for update in range(d_steps):
        batches = tiny_batches(config, accumulation, 2, seed=update)
        gradients, moved, loss = literal_d_update(gan, HINGE, batches)
        generator_before, d_buffers = copy.deepcopy(gan.generator.state_dict()), buffers(gan.discriminator)
        logs = discriminator_step(gan, HINGE, batches, LocalEngine())
        assert len(d_seen) == update + 1
        assert_equal(d_seen[-1], gradients, "gradient of D")
        assert_equal(buffers(gan.discriminator), d_buffers | moved, "state of D")
        assert_equal(gan.generator.state_dict(), generator_before, "G in the step of D")
        assert logs["d_loss"].item() == pytest.approx(loss, rel=1e-10)
    draws = [draws for _, draws in tiny_batches(config, accumulation, 2, seed=99)]
    gradients, moved, loss = literal_g_update(gan, HINGE, draws)
    discriminator_before, g_buffers = copy.deepcopy(gan.discriminator.state_dict()), buffers(gan.generator)
    logs = generator_step(gan, HINGE, draws, LocalEngine())
    assert (len(d_seen), len(g_seen)) == (d_steps, 1)
    assert_equal(g_seen[0], gradients, "gradient of G")
    assert_equal(buffers(gan.generator), g_buffers | moved, "state of G")
    assert_equal(gan.discriminator.state_dict(), discriminator_before, "D in the step of G")
    assert logs["g_loss"].item() == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize(
    ("num_classes", "objective"),
    [
        (4, Objective(LOSSES["non_saturating"], r1=3.0)),
        (0, Objective(LOSSES["wasserstein"])),
        (4, Objective(LOSSES["hinge"], policy=("color", "translation", "cutout"))),
        (0, Objective(LOSSES["non_saturating"], r1=0.5, policy=("translation", "color"))),
    ],
    ids=["r1", "unconditional", "augmented", "unconditional-r1-augmented"],
)
def test_objectives_are_the_literal_ones(num_classes: int, objective: Objective) -> None:
    """Breaks when R1, DiffAugment or missing labels enter an update otherwise than in the equations; R1 is taken on the
    reals alone, as they are before augmentation, and needs second derivatives of attention."""
    config = tiny_config(f"augment.policy={list(objective.policy)}")
    gan = tiny_gan(config, num_classes)
    batches = tiny_batches(config, 2, 3, num_classes=num_classes)
    seen = steps_of(gan.discriminator, gan.discriminator_optimizer)
    gradients, _, loss = literal_d_update(gan, objective, batches)
    logs = discriminator_step(gan, objective, batches, LocalEngine())
    assert_equal(seen[0], gradients, "gradient of D")
    assert logs["d_loss"].item() == pytest.approx(loss, rel=1e-10)
    assert ("r1" in logs) == (objective.r1 > 0)
    seen, draws = steps_of(gan.generator, gan.generator_optimizer), [draws for _, draws in batches]
    gradients, _, _ = literal_g_update(gan, objective, draws)
    generator_step(gan, objective, draws, LocalEngine())
    assert_equal(seen[0], gradients, "gradient of G")


def test_one_discriminator_forward_a_micro_batch() -> None:
    """Breaks when reals and fakes are judged apart, or the generator runs twice."""
    config = tiny_config()
    gan, seen = tiny_gan(config), []
    gan.discriminator.register_forward_hook(lambda _, inputs, __: seen.append(("D", len(inputs[0]))))
    gan.generator.register_forward_hook(lambda _, inputs, __: seen.append(("G", len(inputs[0]))))
    batches = tiny_batches(config, 2, 3)
    discriminator_step(gan, HINGE, batches, LocalEngine())
    assert seen == [("G", 3), ("D", 6)] * 2
    seen.clear()
    generator_step(gan, HINGE, [draws for _, draws in batches], LocalEngine())
    assert seen == [("G", 3), ("D", 3)] * 2


def test_generator_step_gives_the_discriminator_no_gradient() -> None:
    """Breaks when the step of G fills D's gradients (work and, accumulated, a wrong update) or leaves D frozen."""
    config = tiny_config()
    gan = tiny_gan(config)
    frozen = gan.discriminator.head.linear.bias.requires_grad_(False)
    generator_step(gan, HINGE, [draws for _, draws in tiny_batches(config, 2, 2)], LocalEngine())
    assert all(parameter.grad is None for parameter in gan.discriminator.parameters())
    assert [p for p in gan.discriminator.parameters() if not p.requires_grad] == [frozen]


def test_discriminator_step_gives_the_generator_no_gradient() -> None:
    """Breaks when fakes keep their graph in the step of D."""
    config = tiny_config()
    gan = tiny_gan(config)
    discriminator_step(gan, HINGE, tiny_batches(config, 2, 2), LocalEngine())
    assert all(parameter.grad is None for parameter in gan.generator.parameters())


def test_an_error_leaves_no_network_held_or_frozen() -> None:
    """Breaks when a failing step leaves networks in a state in which they never learn again."""
    config = tiny_config()
    gan = tiny_gan(config)

    class Failing(LocalEngine):
        def backward(self, loss: Tensor) -> None:
            raise RuntimeError("out of memory")

    batches = tiny_batches(config, 2, 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        discriminator_step(gan, HINGE, batches, Failing())
    with pytest.raises(RuntimeError, match="out of memory"):
        generator_step(gan, HINGE, [draws for _, draws in batches], Failing())
    assert all(parameter.requires_grad for parameter in gan.discriminator.parameters())
    assert not any(getattr(m, "held", False) for n in (gan.generator, gan.discriminator) for m in n.modules())


class Recording(LocalEngine):
    """Notes whether each backward ran with gradients synchronised between processes."""

    def __init__(self) -> None:
        self.synchronised: list[bool] = []
        self.off = False

    def backward(self, loss: Tensor) -> None:
        self.synchronised.append(not self.off)
        super().backward(loss)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        @contextmanager
        def off() -> Iterator[None]:
            self.off = True
            yield
            self.off = False

        return off()


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_gradients_are_synchronised_in_the_last_micro_batch_alone(accumulation: int) -> None:
    """Breaks when every micro-batch (slow) or none (processes drift apart) reduces gradients."""
    config = tiny_config()
    gan, engine = tiny_gan(config), Recording()
    batches = tiny_batches(config, accumulation, 2)
    discriminator_step(gan, HINGE, batches, engine)
    generator_step(gan, HINGE, [draws for _, draws in batches], engine)
    assert engine.synchronised == ([False] * (accumulation - 1) + [True]) * 2


def test_logs_are_means_without_graph() -> None:
    """Breaks when a log holds the graph of its step alive, or is that of one micro-batch."""
    config = tiny_config()
    objective = Objective(LOSSES["hinge"], r1=1.0)
    gan, batches = tiny_gan(config), tiny_batches(config, 3, 2)
    logs = discriminator_step(copy.deepcopy(gan), objective, batches, LocalEngine())
    assert set(logs) == {"d_loss", "real_logits", "fake_logits", "r1"}
    assert not any(value.requires_grad for value in logs.values())
    assert all(value.shape == () for value in logs.values())
    first = discriminator_step(gan, objective, batches[:1], LocalEngine())
    assert first["real_logits"] != logs["real_logits"]
