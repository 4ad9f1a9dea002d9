"""The fused generator: the same images up to rounding, whatever the batch, with the same names."""

import copy

import pytest
import torch
from small_generator import small_generator

from sagan.attention import record_attention
from sagan.layers.resampling import ResamplingConv2d
from sagan.layers.spectral_norm import spectral_normalize
from sagan.models.inference import FusedBlock, FusedNorm, fuse_for_inference
from sagan.sampling.sampler import BATCH, default_labels, generate, latents

MECHANISMS = "generator.attention={8: {name: cbam, place: branch}, 16: {name: augmented_conv, place: conv}}"
BIGGAN = ("generator.class_norm=shared", "generator.hierarchical=true")
CASES = [((), 4), ((), 0), (("generator.class_norm=linear",), 3), (BIGGAN, 4), (BIGGAN[:1], 3),
         (("data.resolution=64", MECHANISMS), 4)]  # fmt: skip


@pytest.mark.parametrize(("settings", "num_classes"), CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_computes_the_same(settings: tuple[str, ...], num_classes: int, memory_format: torch.memory_format) -> None:
    """For labels and class weights."""
    generator = small_generator(*settings, num_classes=num_classes, channels=16)
    generator.memory_format = memory_format
    drawing, z = fuse_for_inference(generator), latents(range(BATCH), 128)
    weights = torch.rand(BATCH, max(num_classes, 1))  # they need not sum to 1
    for labels in [default_labels(range(BATCH), num_classes), weights] if num_classes else [None]:
        expected = generator(z, labels)
        assert expected.std() > 0.05
        torch.testing.assert_close(drawing(z, labels), expected, atol=2e-5, rtol=0)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("settings", "num_classes"), CASES)
def test_an_image_depends_on_its_row_alone(settings: tuple[str, ...], num_classes: int) -> None:
    drawing = fuse_for_inference(small_generator(*settings, num_classes=num_classes, channels=12))
    drawing.memory_format = torch.channels_last
    z, labels = latents(range(BATCH), 128), default_labels(range(BATCH), num_classes)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    with torch.no_grad():
        assert torch.equal(drawing(z[order], None if labels is None else labels[order]), drawing(z, labels)[order])


def test_images_are_those_of_the_plain_generator() -> None:
    """With spectral norm computed in every forward and nothing folded, images differ by at most one gray level."""
    generator = small_generator(num_classes=10, channels=8)
    spectral_normalize(generator, 1e-6)
    plain = copy.deepcopy(generator)
    for module in plain.modules():
        if isinstance(module, ResamplingConv2d):
            module.folding = False
    z, labels = latents(range(20), 128), default_labels(range(20), 10)
    expected = torch.cat(list(generate(plain.forward, z, labels))).int()  # a bound method is not fused
    found = torch.cat(list(generate(generator, z, labels))).int()
    assert expected.float().std() > 5
    assert (expected - found).abs().max() <= 1
    assert (expected != found).float().mean() < 1e-3


def test_the_generator_is_left_alone() -> None:
    generator = small_generator()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    z, labels = latents(range(3), 128), default_labels(range(3), 4)
    first = torch.cat(list(generate(generator, z, labels)))
    drawing = fuse_for_inference(generator)
    assert type(generator.blocks[0]) is not FusedBlock
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert drawing.linear.weight is generator.linear.weight
    assert fuse_for_inference(drawing) is drawing
    assert torch.equal(torch.cat(list(generate(drawing, z, labels))), first)
    generator.linear.weight.data.mul_(2)  # weights are those of the call
    assert not torch.equal(torch.cat(list(generate(generator, z, labels))), first)


def test_attention_can_be_recorded_in_it() -> None:
    generator = small_generator(MECHANISMS[:-1] + ", 32: self_attention}", channels=16)
    z, labels = latents(range(2), 128), default_labels(range(2), 4)
    found = []
    for form in (generator, fuse_for_inference(generator)):
        with record_attention(form, torch.tensor([[0.5, 0.25]])) as maps:
            form(z, labels)
        found.append({name: recorded.weights for name, recorded in maps.items()})
    assert len(found[0]) == 4
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def test_a_generator_in_training_is_refused() -> None:
    with pytest.raises(AssertionError, match="eval"):
        fuse_for_inference(small_generator().train())


@pytest.mark.parametrize("num_classes", [4, 0])
def test_norms_with_classes_are_fused_norms_and_others_are_folded(num_classes: int) -> None:
    blocks = fuse_for_inference(small_generator(num_classes=num_classes)).blocks
    assert {isinstance(block.norm1, FusedNorm) for block in blocks} == {num_classes > 0}
