import base64
import json
import re
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from page_case import HOSTILE, dot_product_rows, known_data, known_layers

from sagan.attention import record_attention
from sagan.config.load import load_config
from sagan.inspection import page as page_data
from sagan.inspection.page import PageData, attention_page, pack, page_data_of, unpack, write_page
from sagan.models.generator import Generator, build_generator
from sagan.sampling.sampler import default_labels, generate, latents
from sagan.utils.errors import UserError

HEALTH = {"attention.16x16": {"gamma": 0.5, "entropy": 0.61, "uniform_entropy": 1.0}}
SEEDS = list(range(2, 13))  # more than one batch of 8


@pytest.fixture(scope="module")
def data() -> PageData:
    return known_data(known_layers())


def page_of(data: PageData, source: str = "runs/shapes") -> str:
    return attention_page(data, HEALTH, source)


def content_of(page: "Elements") -> dict:
    """What the page's script reads."""
    return json.loads(next(text for attrs, text in page.named("script") if attrs.get("id") == "data"))


def small_generator(*settings: str) -> Generator:
    attention = "generator.attention={8: {name: self_attention, pool: false}, 16: self_attention}"
    generator = build_generator(load_config(None, ["generator.channels=8", attention, *settings]), 4)
    for module in generator.attention.values():
        module.gamma.data.fill_(0.5)  # type: ignore[union-attr]
        module.query.register_forward_hook(lambda _module, _inputs, output: 100 * output)  # type: ignore[union-attr]
    return generator


class Elements(HTMLParser):
    """Every element with its attributes, and the text in each script and style."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.texts.append("")
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data

    def named(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, text) for (name, attrs), text in zip(self.found, self.texts, strict=True) if name == tag]


# ---- Packing


@pytest.mark.parametrize(("n", "m", "width", "spread", "form"), [
    (32, 32, 32, 1.0, "factors"),
    (32, 32, 32, 0.2, "factors"),
    (32, 16, 32, 1.0, "factors"),
    (16, 8, 8, 12.0, "bytes"),
    (4, 4, 16, 1.0, "bytes"),
])  # fmt: skip
def test_every_weight_is_within_a_510th_of_its_rows_peak(n, m, width, spread, form) -> None:
    """Both forms keep the bound and report their true error."""
    weights = dot_product_rows(n, m, width, spread, np.random.default_rng(0))
    packed = pack(weights)
    error = (np.abs(unpack(packed) - weights) / weights.max(axis=1, keepdims=True)).max()
    assert packed.form == form
    assert error == pytest.approx(packed.error, abs=1e-6)
    assert 0 < error < 1 / 509


@pytest.mark.parametrize(("m", "most"), [(16, 2.5), (32, 4.0)])
def test_sixteen_images_of_a_32x32_map_stay_small(m: int, most: float) -> None:
    """Wide queries (32 channels) are stored as factors, not weight by weight."""
    packed = pack(dot_product_rows(32, m, 32, 1.0, np.random.default_rng(0)))
    assert 16 * len(packed.content) * 4 / 3 / 1e6 < most


def test_constant_empty_and_one_hot_rows_are_kept_exactly() -> None:
    """Rows without structure are kept."""
    for weights in (np.full((9, 16), 1 / 16), np.zeros((9, 16)), np.eye(16)[:9]):
        packed = pack(weights.astype(np.float32))
        assert np.allclose(unpack(packed), weights, atol=1e-9)
        assert packed.error < 1 / 509
    mixed = np.eye(16)[:9]
    mixed[3] = 0
    assert np.allclose(unpack(pack(mixed)), mixed)


def test_signed_weights_keep_sign_and_bound() -> None:
    """Signs are kept, within 1/255 of the peak."""
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    packed = pack(weights)
    peaks = np.abs(weights).max(axis=1, keepdims=True)
    assert packed.signed
    assert (np.abs(unpack(packed) - weights) <= peaks / 255 * (1 + 1e-6)).all()


def test_underflowed_weights_do_not_spoil_the_others() -> None:
    """Weights that underflowed to 0 do not affect the others."""
    weights = dot_product_rows(16, 16, 8, 40.0, np.random.default_rng(0))
    assert (weights == 0).any()
    packed = pack(weights)
    assert np.abs(unpack(packed) - weights).max() <= 1 / 509


# ---- Recording


def test_packed_maps_are_those_of_the_network_and_images_those_of_sampling() -> None:
    """Every map is that of its image, cell and head, from the forward that gave the image."""
    generator = small_generator().train()
    z, labels = latents(SEEDS, generator.z_dim), default_labels(SEEDS, 4)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    data = page_data_of(generator, z, labels, SEEDS)
    assert generator.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    generator.eval()
    assert np.array_equal(data.images, torch.cat(list(generate(generator, z, labels))).numpy())
    with record_attention(generator) as full, torch.no_grad():
        generator(z, labels)
    assert [layer.name for layer in data.layers] == list(full) == ["attention.8x8", "attention.16x16"]
    for layer, size in zip(data.layers, (8, 16), strict=True):
        assert (layer.size, layer.keys, layer.gamma) == ((size, size), (8, 8), 0.5)
        weights = full[layer.name].weights.flatten(3).numpy()  # (B, heads, N, M)
        assert weights.max() > 3 / 64  # or rows would be alike
        for i, heads in enumerate(layer.maps):
            for head, packed in enumerate(heads):
                unpacked, expected = unpack(packed), weights[i, head]
                assert (np.abs(unpacked - expected) <= expected.max(axis=1, keepdims=True) / 250).all()


def test_a_page_that_would_be_too_large_says_what_fits() -> None:
    """The error names a number of images that fits."""
    generator = small_generator()
    z, labels = latents(SEEDS, generator.z_dim), default_labels(SEEDS, 4)
    with pytest.raises(
        UserError, match=r"maps of 11 images need about .* MB, a page holds 0\.05; choose at most"
    ) as error:
        page_data_of(generator, z, labels, SEEDS, largest=0.05)
    fitting = re.search("at most ([0-9]+)", str(error.value))
    assert fitting
    count = int(fitting[1])
    page_data_of(generator, z[:count], None if labels is None else labels[:count], SEEDS[:count], largest=0.05)


def test_maps_too_large_to_hold_are_refused_before_they_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map of more than MOST_WEIGHTS is refused from its shape alone."""
    generator = small_generator()
    z, labels = latents(SEEDS, generator.z_dim), default_labels(SEEDS, 4)
    monkeypatch.setattr(page_data, "MOST_WEIGHTS", 64 * 64 + 256 * 64 - 1)
    monkeypatch.setattr(page_data, "record_batch", None)
    with pytest.raises(UserError, match=r"attention\.16x16: all rows of its map are .* million weights per image"):
        page_data_of(generator, z, labels, SEEDS)


def test_nothing_to_point_at_and_weights_that_are_not_finite_are_refused() -> None:
    """There is no empty page and no page of nan."""
    plain = build_generator(load_config(None, ["generator.channels=8", "generator.attention={}"]), 0)
    with pytest.raises(UserError, match="no attention module"):
        page_data_of(plain, latents(SEEDS, plain.z_dim), None, SEEDS)
    diverged = small_generator()
    for parameter in diverged.attention["8x8"].query.parameters():  # type: ignore[union-attr]
        parameter.data.fill_(torch.nan)
    with pytest.raises(UserError, match=r"attention\.8x8: its weights are not finite"):
        page_data_of(diverged, latents(SEEDS, diverged.z_dim), default_labels(SEEDS, 4), SEEDS)


# ---- The page


def test_the_page_holds_every_map_and_nothing_from_elsewhere(data: PageData) -> None:
    """Every map has its own element, and the page loads nothing."""
    page = Elements(page_of(data))
    scripts = {attrs.get("id"): text for attrs, text in page.named("script")}
    for i, layer in enumerate(data.layers):
        for image, heads in enumerate(layer.maps):
            for head, packed in enumerate(heads):
                assert base64.b64decode(scripts.pop(f"map-{i}-{image}-{head}")) == packed.content
    assert set(scripts) == {"data", None}
    content = content_of(page)
    assert [layer["scale"] for layer in content["layers"]] == ["share"] * 4 + ["signed", "gate"]
    linked = [attrs.get("src") or attrs.get("href") for _, attrs in page.found if "src" in attrs or "href" in attrs]
    assert linked == ["data:,"]
    assert all(image["source"].startswith("data:image/png;base64,") for image in content["images"])
    assert "://" not in scripts[None]
    assert "url(" not in page.named("style")[0][1]


def test_the_policy_allows_the_pages_own_script_and_style_alone(data: PageData) -> None:
    """The policy holds the hashes of the page's script and style and forbids everything else."""
    page = Elements(page_of(data))
    policy = next(attrs["content"] for attrs, _ in page.named("meta") if attrs.get("http-equiv"))
    script = next(text for attrs, text in page.named("script") if not attrs)
    style = page.named("style")[0][1]
    hashes = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in (script, style)]
    assert policy == (
        f"default-src 'none'; img-src data:; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_names_cannot_end_or_begin_an_element(data: PageData) -> None:
    """Class names and source are escaped."""
    text = page_of(data, source=HOSTILE)
    page, harmless = Elements(text), Elements(page_of(data))
    assert [tag for tag, _ in page.found] == [tag for tag, _ in harmless.found]
    assert 'onerror="' not in text
    assert content_of(page)["images"][2]["name"] == HOSTILE
    assert attention_page(data, {HOSTILE: {"gamma": 0.5}}, "a").count("<img") == 0


def test_numbers_sentence_and_error_of_storage_are_told(data: PageData) -> None:
    """The numbers are those of `health`; even maps are not rounded up to 1."""
    page = page_of(data)
    assert "attention at 16x16 is used: gamma 0.5" in page
    assert "<td>0.61</td><td>1.00</td>" in page
    assert "Variation" not in page  # not measured
    assert "<td>0.9996</td>" in attention_page(data, {"attention.8x8": {"entropy": 0.9996, "uniform_entropy": 1}}, "")
    for layers in (data.layers, data.layers[:3]):
        told = re.search(
            "error of at most (.*) % of the largest", attention_page(replace(data, layers=layers), HEALTH, "")
        )
        error = 100 * max(packed.error for layer in layers for heads in layer.maps for packed in heads)
        assert told
        assert error <= float(told[1]) < error + 0.01


def test_images_without_classes_and_with_nameless_ones(data: PageData) -> None:
    """A label without a name is shown by its number."""
    for labels, names, expected in (([-1] * 4, (), ""), ([7] * 4, (), "class 7")):
        page = Elements(attention_page(replace(data, labels=np.array(labels), class_names=names), {}, "a"))
        assert [image["name"] for image in content_of(page)["images"]] == [expected] * 4


def test_a_page_is_written_whole_and_the_same_bytes_again(data: PageData, tmp_path: Path) -> None:
    """Equal arguments give equal bytes, and no temporary file is left."""
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, data, HEALTH, "runs/shapes")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]
