"""Every mechanism, with its double backward, uses no tensor of the host and reads no value."""

import torch
from forms import CHANNELS, each_form
from meta_device import META, device

from sagan.attention import make_attention


@each_form
def test_it_stays_on_the_device(name: str, options: dict) -> None:
    module = make_attention(name, CHANNELS, (8, 8), **options).to(META)
    x = torch.empty(2, CHANNELS, 8, 8, device=META, requires_grad=True)
    with device():
        (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert x.grad is not None
