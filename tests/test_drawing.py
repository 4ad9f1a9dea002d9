"""The drawing form: the same images to rounding, whatever the batch, and everything of the generator still there."""

import pytest
import torch
from small_generator import small_generator

from sagan.attention import record_attention
from sagan.commands.sample_variants import STUDIO32, plain_form, random_generator
from sagan.config import load_config
from sagan.drawing import DrawingBlock, DrawingNorm, drawing_form
from sagan.networks import Generator
from sagan.sampling import BATCH, default_labels, generate, latents

MECHANISMS = "generator.attention={8: {name: cbam, place: branch}, 16: {name: augmented_conv, place: conv}}"
CASES = [((), 4), ((), 0), (("generator.class_norm=linear",), 3), (("data.resolution=64", MECHANISMS), 4)]


@pytest.mark.parametrize(("settings", "num_classes"), CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_computes_the_same(settings: tuple[str, ...], num_classes: int, memory_format: torch.memory_format) -> None:
    """Breaks when a fold, a class's gain or a shortcut is wrong, for labels or for weights of classes."""
    generator = small_generator(*settings, num_classes=num_classes, channels=16)
    generator.memory_format = memory_format
    drawing, z = drawing_form(generator), latents(range(BATCH), 128)
    weights = torch.rand(BATCH, max(num_classes, 1))  # they need not sum to 1
    for labels in [default_labels(range(BATCH), num_classes), weights] if num_classes else [None]:
        expected = generator(z, labels)
        assert expected.std() > 0.05
        torch.testing.assert_close(drawing(z, labels), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("settings", "num_classes"), CASES)
def test_an_image_depends_on_its_row_alone(settings: tuple[str, ...], num_classes: int) -> None:
    """Breaks, in the last bits, when an operation sums an image otherwise in another place of the batch."""
    drawing = drawing_form(small_generator(*settings, num_classes=num_classes, channels=12))
    drawing.memory_format = torch.channels_last
    z, labels = latents(range(BATCH), 128), default_labels(range(BATCH), num_classes)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    with torch.no_grad():
        assert torch.equal(drawing(z[order], None if labels is None else labels[order]), drawing(z, labels)[order])
    torch.set_num_threads(threads)


def test_images_of_the_plain_form_are_at_most_one_grey_level_away() -> None:
    """Breaks when `generate` draws another network than the one with spectral norm that was trained."""
    generator = random_generator(load_config(None, [*STUDIO32, "generator.channels=8"]))
    z, labels = latents(range(20), 128), default_labels(range(20), 10)
    plain = torch.cat(list(generate(plain_form(generator).forward, z, labels))).int()
    found = torch.cat(list(generate(generator, z, labels))).int()
    assert plain.float().std() > 10
    assert (plain - found).abs().max() <= 1
    assert (plain != found).float().mean() < 1e-3


def test_the_generator_is_left_alone() -> None:
    """Breaks when drawing changes a generator, its snapshot or its images; or copies what it need not."""
    generator = small_generator()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    z, labels = latents(range(3), 128), default_labels(range(3), 4)
    first = torch.cat(list(generate(generator, z, labels)))
    drawing = drawing_form(generator)
    assert type(generator.blocks[0]) is not DrawingBlock
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    assert drawing.linear.weight is generator.linear.weight
    assert drawing_form(drawing) is drawing
    assert torch.equal(torch.cat(list(generate(drawing, z, labels))), first)
    generator.linear.weight.data.mul_(2)  # weights are those of the call
    assert not torch.equal(torch.cat(list(generate(generator, z, labels))), first)


def test_attention_can_be_recorded_in_it() -> None:
    """Breaks when names or maps of the attention modules are others."""
    generator = small_generator(MECHANISMS[:-1] + ", 32: self_attention}", channels=16)
    z, labels = latents(range(2), 128), default_labels(range(2), 4)
    found = []
    for form in (generator, drawing_form(generator)):
        with record_attention(form, torch.tensor([[0.5, 0.25]])) as maps:
            form(z, labels)
        found.append(maps)
    assert found[0].keys() == found[1].keys() != set()
    for name, one in found[0].items():
        torch.testing.assert_close(found[1][name].weights, one.weights, atol=1e-4, rtol=0)


def test_a_generator_in_training_is_refused() -> None:
    """Breaks when statistics of a batch are silently replaced by running ones."""
    with pytest.raises(AssertionError, match="eval"):
        drawing_form(small_generator().train())


def test_both_kinds_of_norm_are_taken() -> None:
    """Breaks when conditional batch norms stay as they are, which costs what the form is for."""

    def kinds(generator: Generator) -> set[type]:
        return {type(block.norm1) for block in drawing_form(generator).blocks}  # type: ignore[union-attr]

    assert kinds(small_generator()) == {DrawingNorm}
    assert DrawingNorm not in kinds(small_generator(num_classes=0))
