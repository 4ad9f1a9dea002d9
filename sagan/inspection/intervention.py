"""Interventions: cut edges of attention, switch off layers and heads, scale gains, swap keys; and what that causes.

An edge goes from a query to a key. When it is cut, its logit is -inf and the softmax renormalizes the others:

    with intervene(generator, {"attention.16x16": Change(cut=edges(queries, keys))}):
        images = generator(z, labels)

A causal map tells how much the output depends on each key of a query point: Δ_j is the change of the output when the
edges from the point's neighborhood to key j are cut. Where attention explains the output, Δ has the order of the
softmax row (rank correlation 1).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from sagan.attention import AttentionMap, AttentionModule, record_attention
from sagan.attention.base import cells_of
from sagan.attention.functional import Edit
from sagan.data.shapes import Variant, variant_of
from sagan.evaluation.coherence import clear_objects, find_objects, hue_angle, hue_differences, pair_hues
from sagan.inspection.health import masks_of
from sagan.inspection.record import Recording, as_input, attention_modules, module_of
from sagan.layers.spectral_norm import hold_state
from sagan.models.discriminator import Discriminator
from sagan.models.generator import Generator
from sagan.sampling.sampler import BATCH, latents
from sagan.utils.errors import UserError, suggestion
from sagan.utils.images import to_uint8
from sagan.utils.progress import Progress
from sagan.utils.random import numpy_generator

GRAY_LEVELS = 127.5  # of a change of 1 of a pixel in [-1, 1]
NEIGHBORHOOD = 1  # cells to each side of a query point that belong to its neighborhood
SAMPLES, RESAMPLES = 256, 1000  # images of the shapes experiment, and bootstrap samples of them
FEWEST = 16  # images with clear objects that the experiment needs


@dataclass(frozen=True)
class Change:
    """A change of one attention layer; the default changes nothing.

    Attributes:
        cut: bool, broadcastable to (B, heads, N, M): the edges to cut. N and M count the cells of the query and the key
            map, row by row. A query that keeps no edge takes nothing from the layer.
        gain: factor of what the layer changes, x + gain · (layer(x) - x); 0 switches it off.
        heads: factor of each head's result, (heads,).
        keys, values: for each image of the batch, int64 (B,), the image whose keys (values) it gets.
    """

    cut: Tensor | None = None
    gain: float = 1.0
    heads: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


@contextmanager
def intervene(network: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Change the attention layers named as in `attention_modules` during the forwards inside the block.

    Gradients flow as usual. Maps that are recorded inside are those after the cut. UserError for an unknown layer, for
    edges that do not fit its map, and for a mechanism whose map is not the softmax of one product of queries and keys,
    unless only `gain` changes.
    """
    modules = {name: _checked(network, name, change) for name, change in changes.items()}
    before, hooks = {name: module.edit for name, module in modules.items()}, []
    try:
        for name, change in changes.items():
            edit = Edit(change.cut, change.heads, change.keys, change.values)
            modules[name].edit = edit if _edits(change) else None
            if change.gain != 1:
                hooks.append(modules[name].register_forward_hook(partial(_scaled, change.gain)))
        yield
    finally:
        for name, module in modules.items():
            module.edit = before[name]
        for hook in hooks:
            hook.remove()


def _edits(change: Change) -> bool:
    return any(each is not None for each in (change.cut, change.heads, change.keys, change.values))


def _checked(network: nn.Module, name: str, change: Change) -> AttentionModule:
    """The layer, if it can be changed so. UserError otherwise."""
    modules = attention_modules(network)
    if name not in modules:
        raise UserError(f"{name}: no such attention layer; {suggestion(name, modules)}")
    module = modules[name]
    if not module.editable and _edits(change):
        mechanism = type(module).__module__.rpartition(".")[2]
        raise UserError(f"{name}: {mechanism} has no softmax over keys to intervene in; only its gain can be changed")
    if change.cut is not None:
        for side, size, count in zip(("query", "key"), module.map_sizes, change.cut.shape[-2:], strict=True):
            if count not in (1, size[0] * size[1]):
                raise UserError(f"{name}: a region of {count} cells is outside its {side} map of {size[0]}x{size[1]}")
    return module


def _scaled(gain: float, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return inputs[0] + gain * (output - inputs[0])


def edges(queries: Tensor, keys: Tensor) -> Tensor:
    """All edges between two regions: bool (…, H, W), (…, H', W') -> (…, 1, H·W, H'·W'), for `Change.cut`."""
    return (queries.flatten(-2)[..., :, None] & keys.flatten(-2)[..., None, :]).unsqueeze(-3)


def cells_in(region: Tensor, size: tuple[int, int], share: float = 0.25) -> Tensor:
    """Cells of an (H, W) map of which at least `share` lies in a region of the image: bool (…, R, R) -> (…, H, W).

    UserError for a region of which no cell is left.
    """
    side = region.shape[-1]
    areas = region.double().unflatten(-1, (size[1], side // size[1])).unflatten(-3, (size[0], side // size[0]))
    cells = areas.mean((-3, -1)) >= share
    if not cells.flatten(-2).any(-1).all():
        raise UserError(f"a region of the image covers no cell of a map of {size[0]}x{size[1]}")
    return cells


@dataclass(frozen=True, eq=False)
class CausalMaps:
    """Of one layer, for B images and k points of each, on the CPU."""

    attention: Tensor  # (B, k, H', W'): softmax rows, mean over heads
    effects: Tensor  # (B, k, H', W'): change of the output per key
    unit: str

    def rank_correlations(self) -> np.ndarray:
        """Spearman's rank correlation of attention and effect for every point where both vary: (n,)."""
        pairs = zip(self.attention.flatten(0, 1).flatten(1), self.effects.flatten(0, 1).flatten(1), strict=True)
        return np.array([spearmanr(a.numpy(), b.numpy())[0] for a, b in pairs if a.std() > 0 and b.std() > 0])

    def numbers(self) -> dict[str, float | str]:
        """Means over the points: `rank_correlation`, and the effect of the most effective key in `unit`."""
        found = self.rank_correlations()
        numbers: dict[str, float | str] = {"rank_correlation": float(found.mean())} if len(found) else {}
        return numbers | {"largest_effect": self.effects.amax((2, 3)).mean().item(), "unit": self.unit}

    def describe(self) -> str:
        """The numbers in a sentence."""
        numbers = self.numbers()
        effect = f"cutting the most effective key changes {self.unit} by {numbers['largest_effect']:.2g}"
        if "rank_correlation" not in numbers:
            return f"{effect}; attention or effect is the same for every key"
        return f"{effect}; rank correlation of attention and effect: {numbers['rank_correlation']:.2f}"


@torch.no_grad()
def causal_maps(
    network: Generator | Discriminator, layer: str, inputs: Tensor, labels: Tensor | None, points: Tensor,
    progress: bool = False,
) -> CausalMaps:  # fmt: skip
    """Causal maps of a layer: `inputs` are z (B, z_dim) or images (B, C, R, R), `points` (B, k, 2) fractions.

    Cuts one key at a time from the queries within NEIGHBORHOOD of the point. The effect is, for a generator, the root
    mean square change of the pixels of these cells in gray levels; for a discriminator, the change of the logit. Takes
    B·k·M images, M keys. `network` is in eval mode and is not changed. UserError as for `intervene`.
    """
    device, found = next(network.parameters()).device, []
    with hold_state(network), Progress(points[..., 0].numel(), f"cutting {layer}", not progress) as bar:
        for index, own in enumerate(points):
            image = inputs[index : index + 1].to(device).expand(BATCH, *inputs.shape[1:])
            label = None if labels is None else labels[index : index + 1].to(device).expand(BATCH)
            for point in own:
                found.append(_cut_each_key(network, layer, image, label, point))
                bar.advance()
    rows, effects = (torch.stack(each).unflatten(0, points.shape[:2]) for each in zip(*found, strict=True))
    return CausalMaps(rows, effects, "gray levels" if isinstance(network, Generator) else "the logit")


def causal_recording(
    network: Generator | Discriminator, recording: Recording, z: Tensor, labels: Tensor | None
) -> tuple[Recording, dict[str, CausalMaps]]:
    """The causal maps of every layer of a recording that has softmax rows, by layer; and a recording for the figure,
    of the softmax rows (mean over heads) beside the effects, which are called "<layer>/effect".

    `z` (B, z_dim) of the images, for a generator; a discriminator takes the images themselves.
    """
    inputs = z if isinstance(network, Generator) else as_input(recording.images, network)
    found, maps, resolution = {}, {}, {}
    for name in recording.maps:
        layer = module_of(name)
        module = attention_modules(network).get(layer)
        if module is not None and module.editable and recording.maps[name].kind == "softmax row":
            found[layer] = causal_maps(network, layer, inputs, labels, recording.points, progress=True)
            maps[layer] = AttentionMap("softmax row", found[layer].attention[:, None])
            maps[f"{layer}/effect"] = AttentionMap("unnormalised weight", found[layer].effects[:, None])
            resolution |= dict.fromkeys((layer, f"{layer}/effect"), recording.resolution[name])
    return replace(recording, maps=maps, resolution=resolution), found


def _cut_each_key(
    network: nn.Module, layer: str, inputs: Tensor, labels: Tensor | None, point: Tensor
) -> tuple[Tensor, Tensor]:
    """The softmax row of a point and the effect of cutting each key: (H', W') each. `inputs`: BATCH copies of one."""
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=inputs.device)
    size, key_size = _checked(network, layer, Change(cut=nothing)).map_sizes
    near = torch.zeros(size, dtype=torch.bool)
    row, column = cells_of(point[None], *size)[0].tolist()
    rows, columns = (slice(max(0, at - NEIGHBORHOOD), at + NEIGHBORHOOD + 1) for at in (row, column))
    near[rows, columns] = True

    def output(cut: Tensor) -> Tensor:
        with intervene(network, {layer: Change(cut=cut)}):
            found = network(inputs, labels)
        return found if isinstance(found, Tensor) else found.logits

    with record_attention(network, point[None]) as maps:
        base = output(nothing)  # by the same arithmetic as with cuts, so that a key without effect has exactly 0
    softmax = next(m for name, m in maps.items() if module_of(name) == layer and m.kind == "softmax row")
    effects = []
    for keys in torch.eye(key_size[0] * key_size[1], dtype=torch.bool).split(BATCH):
        cut = near.flatten()[:, None] & keys[:, None, None, :]  # (b, 1, N, M)
        cut = torch.cat([cut, cut[:1].expand(BATCH - len(cut), -1, -1, -1)])
        effects.append(_effect(output(cut.to(inputs.device)), base, near)[: len(keys)])
    return softmax.weights[0].mean(0)[0].float().cpu(), torch.cat(effects).view(key_size).cpu()


def _effect(output: Tensor, base: Tensor, near: Tensor) -> Tensor:
    """(B,): RMS change of images (B, C, R, R) in the cells of `near`, in gray levels; or |change| of logits (B, …)."""
    change = (output - base).float()
    if output.ndim < 4:
        return change.abs().flatten(1).mean(1) if output.ndim > 1 else change.abs()
    scale = output.shape[2] // near.shape[0], output.shape[3] // near.shape[1]
    pixels = near.repeat_interleave(scale[0], 0).repeat_interleave(scale[1], 1).to(output.device)
    return GRAY_LEVELS * change[:, :, pixels].square().mean((1, 2)).sqrt()


@dataclass(frozen=True)
class Agreement:
    """Hue agreement of partners (see `Coherence`), and its 95 % interval from a bootstrap over the images."""

    value: float
    low: float
    high: float
    images: int  # with clear objects

    def __str__(self) -> str:
        return f"{self.value:.3f} (95 %: {self.low:.3f} to {self.high:.3f}; {self.images} images)"


@torch.no_grad()
def partner_cut(generator: Generator, layer: str, seeds: Sequence[int] = range(SAMPLES)) -> dict[str, Agreement]:
    """On `shapes` and `pairs`: the hue agreement with all edges ("intact"), without those between partners ("partner"),
    and without as many from the objects to random keys outside of all objects ("random"). Over the images with clear
    objects.

    Empty if fewer than FEWEST images have them. UserError as for `intervene`.
    """
    variant = variant_of(generator.class_names)
    assert variant is not None
    size, key_size = _checked(generator, layer, Change(cut=torch.zeros(1, 1))).map_sizes
    device = next(generator.parameters()).device
    z, labels = latents(seeds, generator.z_dim), torch.tensor([seed % len(variant.classes) for seed in seeds])

    def images(rows: Tensor, cuts: Tensor | None) -> np.ndarray:
        def forward(first: int) -> Tensor:
            chosen = rows[first : first + BATCH]
            change = Change(cut=None if cuts is None else cuts[first : first + BATCH].to(device))
            with intervene(generator, {layer: change}):
                return to_uint8(generator(z[chosen].to(device), labels[chosen].to(device))).cpu()

        return torch.cat([forward(first) for first in range(0, len(rows), BATCH)]).numpy()

    with hold_state(generator):
        chosen, objects = clear_objects(find_objects(images(torch.arange(len(seeds)), None)), variant)
        if len(chosen) < FEWEST:
            return {}
        masks = torch.from_numpy(masks_of(objects, variant, generator.resolution))  # (P, objects, R, R)
        queries, keys = (cells_in(masks, each) for each in (size, key_size))
        partners = keys[:, variant.partners]  # (P, objects, H', W')
        others = torch.stack([_elsewhere(keys[i], partners[i], seeds[image]) for i, image in enumerate(chosen)])
        cuts = {
            "intact": None,
            "partner": edges(queries, partners).any(1),  # (P, 1, N, M)
            "random": edges(queries, others).any(1),
        }
        rows = torch.from_numpy(chosen)
        return {name: _agreement(images(rows, cut), variant) for name, cut in cuts.items()}


def _elsewhere(keys: Tensor, partners: Tensor, seed: int) -> Tensor:
    """For each object, as many random keys outside of all objects as its partner has: (objects, H', W')."""
    free = (~keys.any(0)).flatten().nonzero()[:, 0].numpy()
    rng, found = numpy_generator(seed, "partner cut"), torch.zeros_like(keys)
    for own, partner in zip(found, partners, strict=True):
        own.view(-1)[rng.permutation(free)[: int(partner.sum())]] = True
    return found


def _agreement(images: np.ndarray, variant: Variant) -> Agreement:
    objects = clear_objects(find_objects(images), variant)[1]
    hues, shapes = pair_hues(objects, variant), objects.shape.reshape(-1, variant.objects)
    difference, expected = hue_differences(hues, shapes[:, 0], variant)
    angles = np.mean([hue_angle(*hues[:, pair].T) for pair in variant.pairs], axis=0)  # (P,)
    rng = numpy_generator(0, "bootstrap")
    means = [angles[rng.integers(0, len(angles), len(angles))].mean() for _ in range(RESAMPLES)]
    high, low = 1 - np.quantile(means, [0.025, 0.975]) / expected
    return Agreement(1 - difference / expected, float(low), float(high), len(angles))
