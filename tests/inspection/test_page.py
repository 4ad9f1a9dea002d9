"""The attention page: packing of the maps, and the HTML. test_page_in_browser.py opens it."""

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
from page_case import HOSTILE, Known, dot_product_rows, inputs_of, known_layers, known_recording, sharp_generator

from sagan.attention import record_attention
from sagan.inspection import page
from sagan.inspection.page import Layer, attention_page, pack, pack_layers, unpack, write_page
from sagan.inspection.record import Recording, attention_of, grid_points
from sagan.models.generator import Generator
from sagan.utils.errors import UserError

HEALTH = {"attention.16x16": {"gamma": 0.5, "entropy": 0.61, "uniform_entropy": 1.0}}


@pytest.fixture(scope="module")
def known() -> list[Known]:
    return known_layers()


@pytest.fixture(scope="module")
def layers(known: list[Known]) -> list[Layer]:
    return [layer.layer() for layer in known]


@pytest.fixture(scope="module")
def recording(known: list[Known]) -> Recording:
    return known_recording(known)


def packed_layers(generator: Generator, count: int = 11, largest: float = 64) -> list[Layer]:
    z, labels, seeds = inputs_of(generator)
    assert labels is not None
    z, labels, seeds = z[:count], labels[:count], seeds[:count]
    return pack_layers(generator, z, labels, attention_of(generator, z, labels, seeds, grid_points(1)), largest)


class Page(HTMLParser):
    """The elements of a page, each as its name and attributes, and the text of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.scripts = dict(re.findall('<script type="[a-z/]*" id="(.*?)">(.*?)</script>', text))
        self.code, self.style = (re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0] for tag in ("script", "style"))
        self.content = json.loads(self.scripts["data"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


@pytest.mark.parametrize(("n", "m", "width", "spread", "form"), [
    (32, 32, 32, 1.0, "factors"),
    (32, 32, 32, 0.2, "factors"),
    (32, 16, 32, 1.0, "factors"),
    (16, 8, 8, 12.0, "bytes"),
    (4, 4, 16, 1.0, "bytes"),
])  # fmt: skip
def test_every_weight_is_within_a_510th_of_its_rows_peak(n, m, width, spread, form) -> None:
    weights = dot_product_rows(n, m, width, spread, np.random.default_rng(0))
    packed = pack(weights)
    error = (np.abs(unpack(packed) - weights) / weights.max(axis=1, keepdims=True)).max()
    assert packed.form == form
    assert error == pytest.approx(packed.error, abs=1e-6)
    assert 0 < error < 1 / 509
    if form == "factors" and spread == 1:  # not weight by weight: 16 images of such a map stay small
        assert 16 * len(packed.content) * 4 / 3 / 1e6 < (2.5 if m == 16 else 4.0)


def test_special_rows_are_kept_exactly() -> None:
    mixed = np.eye(16)[:9]
    mixed[3] = 0
    for weights in (np.full((9, 16), 1 / 16), np.zeros((9, 16)), np.eye(16)[:9], mixed):
        packed = pack(weights.astype(np.float32))
        assert np.allclose(unpack(packed), weights, atol=1e-9)
        assert packed.error < 1 / 509


def test_signed_weights_are_within_a_255th_of_the_peak() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    packed = pack(weights)
    assert packed.signed
    error = (np.abs(unpack(packed) - weights) / np.abs(weights).max(axis=1, keepdims=True)).max()
    assert error == pytest.approx(packed.error, abs=1e-6)
    assert error <= 1 / 255 * (1 + 1e-6)


def test_underflowed_weights_do_not_affect_the_others() -> None:
    weights = dot_product_rows(16, 16, 8, 40.0, np.random.default_rng(0))
    assert (weights == 0).any()
    assert np.abs(unpack(pack(weights)) - weights).max() <= 1 / 509


def test_packed_maps_are_those_of_the_network() -> None:
    generator = sharp_generator()
    layers = packed_layers(generator)
    with record_attention(generator.eval()) as full, torch.no_grad():
        generator(*inputs_of(generator)[:2])
    assert [layer.name for layer in layers] == list(full) == ["attention.8x8", "attention.16x16"]
    for layer in layers:
        weights = full[layer.name].weights.flatten(3).numpy()  # (B, heads, N, M)
        assert weights.max() > 3 / 64  # or rows would be alike
        unpacked = np.array([[unpack(packed) for packed in heads] for heads in layer.maps])
        assert (np.abs(unpacked - weights) <= weights.max(axis=3, keepdims=True) / 250).all()


def test_a_page_that_would_be_too_large_names_a_number_of_images_that_fits() -> None:
    generator = sharp_generator()
    with pytest.raises(UserError, match="maps of 11 images need about") as error:
        packed_layers(generator, largest=0.02)
    fitting = re.search("at most ([0-9]+)", str(error.value))
    assert fitting
    packed_layers(generator, int(fitting[1]), largest=0.02)


def test_maps_that_are_too_large_are_refused_before_they_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_WEIGHTS", 64 * 64 + 256 * 64 - 1)
    monkeypatch.setattr(page, "record_batch", None)
    with pytest.raises(UserError, match=r"attention\.16x16: all rows of its map"):
        packed_layers(sharp_generator())


def test_weights_that_are_not_finite_are_refused() -> None:
    diverged = sharp_generator()
    for parameter in diverged.attention["8x8"].query.parameters():  # type: ignore[union-attr]
        parameter.data.fill_(torch.nan)
    with pytest.raises(UserError, match=r"attention\.8x8: its weights are not finite"):
        packed_layers(diverged)


def test_the_page_holds_every_map_and_loads_nothing(recording: Recording, layers: list[Layer]) -> None:
    page = Page(attention_page(recording, layers, HEALTH, "runs/shapes"))
    expected = {
        f"map-{i}-{image}-{head}": packed.content
        for i, layer in enumerate(layers)
        for image, heads in enumerate(layer.maps)
        for head, packed in enumerate(heads)
    }
    assert {name: base64.b64decode(text) for name, text in page.scripts.items() if name != "data"} == expected
    assert [layer["scale"] for layer in page.content["layers"]] == ["share"] * 4 + ["signed", "gate"]
    assert all(image["source"].startswith("data:image/png;base64,") for image in page.content["images"])
    linked = [a.get("src") or a.get("href") for _, a in page.elements if "src" in a or "href" in a]
    assert linked == ["data:,"]
    assert "://" not in page.code
    assert "url(" not in page.style
    policy = next(attrs["content"] for tag, attrs in page.elements if tag == "meta" and attrs.get("http-equiv"))
    hashes = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in (page.code, page.style)]
    assert policy == (
        f"default-src 'none'; img-src data:; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_class_names_and_source_are_escaped(recording: Recording, layers: list[Layer]) -> None:
    text = attention_page(recording, layers, HEALTH, HOSTILE)
    page, harmless = Page(text), Page(attention_page(recording, layers, HEALTH, "runs/shapes"))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert 'onerror="' not in text
    assert page.content["images"][2]["name"] == HOSTILE
    assert attention_page(recording, layers, {HOSTILE: {"gamma": 0.5}}, "a").count("<img") == 0


def test_the_page_shows_the_statistics_and_the_error_of_storage(recording: Recording, layers: list[Layer]) -> None:
    text = attention_page(recording, layers, HEALTH, "")
    assert "attention at 16x16 is used: gamma 0.5" in text
    assert "<td>0.61</td><td>1.00</td>" in text
    assert "Variation" not in text  # not measured
    even = {"attention.8x8": {"entropy": 0.9996, "uniform_entropy": 1}}  # is not rounded up to 1
    assert "<td>0.9996</td>" in attention_page(recording, layers, even, "")
    for some in (layers, layers[:3]):
        stated = re.search("error of at most (.*) % of the largest", attention_page(recording, some, HEALTH, ""))
        error = 100 * max(packed.error for layer in some for heads in layer.maps for packed in heads)
        assert stated
        assert error <= float(stated[1]) < error + 0.01


def test_images_without_class_names(recording: Recording, layers: list[Layer]) -> None:
    for label, expected in ((-1, ""), (7, "class 7")):
        nameless = replace(recording, labels=np.full(4, label), class_names=())
        content = Page(attention_page(nameless, layers, {}, "a")).content
        assert [image["name"] for image in content["images"]] == [expected] * 4


def test_equal_arguments_give_equal_bytes(recording: Recording, layers: list[Layer], tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, recording, layers, HEALTH, "runs/shapes")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]
