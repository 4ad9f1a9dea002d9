"""The bases of EM attention: they follow what the images find, once, alike on all processes, and disturb no graph."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from em_reference import unit
from test_em_attention import CHANNELS, draw, make
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from sagan.attention import make_attention
from sagan.layers.spectral_norm import hold_state
from sagan.models.blocks import initialize


@pytest.mark.parametrize("momentum", [0.9, 0.0, 1.0])
def test_bases_follow_once_and_stay_unit_vectors(momentum: float):
    """Bases move only in training, by the momentum, and keep unit length."""
    module, x = make(momentum=momentum), draw(4, 5)
    before = module.get_buffer("bases.vectors").clone()
    _, _, found = unit(x, dict(module.named_parameters()), before)
    mean = F.normalize(found.mean(dim=0), dim=1)
    expected = F.normalize(momentum * before + (1 - momentum) * mean, dim=1)
    with hold_state(module):
        module(x)
    module.eval()(x)
    assert torch.equal(module.get_buffer("bases.vectors"), before)
    module.train()(x)
    torch.testing.assert_close(module.get_buffer("bases.vectors"), expected, rtol=0, atol=1e-12)
    released = 0.9 * before + 0.1 * found.mean(dim=0)
    assert (released.norm(dim=1) < 0.999).all()  # the form that shrinks is another


def test_bases_start_as_unit_vectors():
    """Bases are drawn as unit vectors, also by `initialize`."""
    module = make_attention("em_attention", 64, 12)
    first = module.get_buffer("bases.vectors").clone()
    assert first.shape == (64, 64)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(64))
    initialize(module, "orthogonal")
    assert not torch.equal(module.get_buffer("bases.vectors"), first)
    assert {name: p.numel() for name, p in module.named_parameters()} == {
        "gamma": 1, "inner.weight": 64 * 64, "inner.bias": 64, "out.weight": 64 * 64,
    }  # fmt: skip


def test_a_step_leaves_earlier_graphs_alone():
    """Moving the bases leaves first and second derivatives of earlier forwards intact."""
    x, y = draw(4, 5), draw(4, 5)
    module = make()
    state, bases = dict(module.named_parameters()), module.get_buffer("bases.vectors").clone()
    first = module(x)
    moved = module.get_buffer("bases.vectors").clone()
    second = module(y)  # D(real), D(fake), then the backward of both
    expected = unit(x, state, bases)[0].square().sum() + unit(y, state, moved)[0].square().sum()
    inputs = [p for p in module.parameters() if p.requires_grad]

    def penalty(loss: Tensor) -> list[Tensor]:
        slopes = torch.autograd.grad(loss, (x, y), create_graph=True)
        return list(torch.autograd.grad(torch.stack([s.square().sum() for s in slopes]).sum(), inputs))

    for gradient, by_loop in zip(penalty(first.square().sum() + second.square().sum()), penalty(expected), strict=True):
        torch.testing.assert_close(gradient, by_loop, rtol=1e-7, atol=1e-7)


def test_an_empty_basis_has_finite_derivatives():
    """A basis without cells has finite first and second derivatives."""
    module, x = make((3, 3), bases=30, lam=1e4), draw(3, 3)
    module(x)
    kept = module.get_buffer("bases.vectors")
    torch.testing.assert_close(kept.norm(dim=1), torch.ones(30, dtype=torch.float64))
    (slope,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    gradients = torch.autograd.grad(slope.square().sum(), [x, *module.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_autocast_leaves_float32_state():
    """EM runs in float32 under autocast, and so do the bases."""
    torch.manual_seed(0)
    x = torch.randn(2, CHANNELS, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module = make((8, 8), dtype=torch.float32)
        rows = module.attention_rows(x, torch.tensor([[1, 2]]))
        module(x)
    assert {row.dtype for row in rows.values()} == {torch.float32}
    torch.testing.assert_close(rows["attention"].sum(), torch.tensor(2.0), rtol=0, atol=1e-5)
    assert module.get_buffer("bases.vectors").dtype == torch.float32
    torch.testing.assert_close(module.get_buffer("bases.vectors").norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def follow_in_two(rank: int, folder: Path) -> None:
    """One of two processes: its half of the batch, one forward in training."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    module = make((3, 4))
    images = torch.load(folder / "images.pt", weights_only=True)
    module(images[2 * rank : 2 * rank + 2])
    torch.save(module.get_buffer("bases.vectors"), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_keep_the_same_bases(tmp_path: Path):
    """Two processes keep the bases of one process with both batches."""
    torch.manual_seed(1)
    images = torch.randn(4, CHANNELS, 3, 4, dtype=torch.float64)
    torch.save(images, tmp_path / "images.pt")
    spawn(follow_in_two, (tmp_path,), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(*both)
    module = make((3, 4))
    module(images)
    torch.testing.assert_close(both[0], module.get_buffer("bases.vectors"), rtol=0, atol=1e-12)
