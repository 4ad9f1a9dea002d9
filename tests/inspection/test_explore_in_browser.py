"""The live page in Chromium, offline and opened from disk: images, maps, numbers and cuts against the Python code."""

import base64
import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from page_case import CHROMIUM
from PIL import Image
from small_generator import small_generator

from sagan.attention import record_attention
from sagan.config.load import load_config
from sagan.inspection import explore, figure
from sagan.inspection.health import map_health
from sagan.inspection.intervention import Change, edges, intervene
from sagan.inspection.page import BOUND
from sagan.inspection.record import attention_of
from sagan.models.generator import Generator, build_generator, remove_spectral_norm
from sagan.sampling.sampler import default_labels, latents, slerp
from sagan.utils.errors import UserError
from sagan.utils.images import to_uint8

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
SETTINGS = "generator.attention={8: {name: transformer, heads: 2}, 16: self_attention, 32: gated_positional}"
LAYER = "attention.16x16"
SIDE = 32


@pytest.fixture(scope="module")
def generator() -> Generator:
    generator = small_generator(SETTINGS, channels=4)
    for name, parameter in generator.named_parameters():
        if name.endswith("gamma"):
            parameter.data.fill_(25.0 if "16x16" in name else 0.8)
        if name.endswith("16x16.query.weight"):
            parameter.data.mul_(8)
    return generator


@pytest.fixture(scope="module")
def runtime() -> dict[str, bytes]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    try:
        return explore.read_runtime()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def files(generator: Generator, runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with page.html, the folder site, and without.html of a generator without attention."""
    folder = tmp_path_factory.mktemp("explore")
    plain = small_generator("generator.attention={}", num_classes=0, channels=2)
    worker = explore.worker_script(runtime[explore.CODE])
    for name, network in (("page", generator), ("without", plain)):
        parts = {"worker": worker, "wasm": runtime[explore.WASM], "model": explore.network_file(network)}
        content = explore.page_content(network)
        explore.write_file(folder / f"{name}.html", content, parts, "shapes")
        if name == "page":
            explore.write_folder(folder / "site", content, parts, "shapes")
    return folder


@pytest.fixture
def opened(browser: "Browser", files: Path) -> Iterator[Callable[..., "Page"]]:
    """Opens a page, which must log no error and request nothing but its own files."""
    errors: list[str] = []
    requests: list[str] = []
    contexts = []

    def open_page(address: str = "", offline: bool = True, script: str = "", **settings: Any) -> "Page":
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **settings}))
        contexts[-1].set_offline(offline)
        page = contexts[-1].new_page()
        page.add_init_script(script)
        page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address or (files / "page.html").as_uri())
        page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    assert requests
    assert not [url for url in requests if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))]


@pytest.fixture
def page(opened: Callable[..., "Page"]) -> "Page":
    return opened()


def wait(page: "Page") -> None:
    page.wait_for_selector("html:not([data-busy])", state="attached")


def fill(page: "Page", **values: object) -> None:
    for name, value in values.items():
        page.fill(f"#{name}", str(value))
    wait(page)


def decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB")).astype(int)


def image_of(page: "Page") -> np.ndarray:
    return decoded(page.eval_on_selector(".image img", "image => image.src"))


def canvas_of(page: "Page", selector: str) -> np.ndarray:
    return decoded(page.eval_on_selector(selector, "canvas => canvas.toDataURL()"))


def place(page: "Page", row: float, column: float) -> tuple[float, float]:
    """On the screen, of fractions of the image."""
    element = page.locator(".image").first
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    assert box
    return box["x"] + column * box["width"], box["y"] + row * box["height"]


def pixels(generator: Generator, z: torch.Tensor, label: int) -> np.ndarray:
    with torch.no_grad():
        return to_uint8(generator(z[None], torch.tensor([label])))[0].numpy().astype(int)


def test_images_are_those_of_the_seeds(page: "Page", generator: Generator) -> None:
    for seed in (0, 3, 4096, 99_999_999):
        fill(page, seed=seed)
        expected = pixels(generator, latents([seed], 128)[0], seed % 4)
        assert np.abs(image_of(page) - expected).max() <= 1
        assert page.inner_text("figcaption span") == f"seed {seed}"
    page.select_option("#class", label=generator.class_names[2])
    fill(page, truncation=6)
    assert np.abs(image_of(page) - pixels(generator, latents([99_999_999], 128, 0.7)[0], 2)).max() <= 1
    fill(page, seed=1, other=2, truncation=20, blend=30)
    assert np.abs(image_of(page) - pixels(generator, slerp(*latents([1, 2], 128), 11)[3], 2)).max() <= 1
    for text, seed in (("100000000", "99999999"), ("-3", "0"), ("2.7", "2")):
        page.fill("#seed", text)
        page.press("#seed", "Enter")
        assert page.input_value("#seed") == seed
    wait(page)
    before = page.input_value("#seed")
    page.click("#dice")
    wait(page)
    assert page.input_value("#seed") != before


KEEP_ROWS = """const Own = Worker;
window.Worker = class extends Own {
  constructor(...its) {
    super(...its);
    this.addEventListener("message", ({ data }) => { if (data.done?.rows) window.kept = data.done.rows; });
  }
};"""


def test_the_rows_of_all_cells_are_those_of_record_attention(
    opened: Callable[..., "Page"], generator: Generator
) -> None:
    page = opened(script=KEEP_ROWS)
    fill(page, seed=5)
    with torch.no_grad(), record_attention(generator) as maps:
        generator(latents([5], 128), default_labels([5], 4))
    assert page.evaluate("Object.keys(kept)") == [name for name in maps if not name.endswith("/gate")]
    for name in page.evaluate("Object.keys(kept)"):
        found = np.array(page.evaluate("name => Array.from(kept[name])", name)).reshape(maps[name].weights.shape)
        weights = maps[name].weights.numpy()
        assert (np.abs(found - weights) <= BOUND * np.abs(weights).max((3, 4), keepdims=True)).all()


def test_maps_and_numbers_are_those_of_the_recording(page: "Page", generator: Generator) -> None:
    fill(page, seed=5)
    seeds = [5]
    recording = attention_of(generator, latents(seeds, 128), default_labels(seeds, 4), seeds, cells(16))
    titles = page.locator("#layer option").all_inner_texts()
    for layer, head in (("attention.8x8", 1), (LAYER, 0), ("attention.32x32/attention", 3)):
        name = layer.removeprefix("attention.")
        page.select_option("#layer", index=next(i for i, title in enumerate(titles) if title.startswith(name)))
        if head:
            page.select_option("#head", index=head)
        for row, column in ((2, 3), (15, 9)):
            point = (row + 0.5) / 16, (column + 0.5) / 16
            page.mouse.move(*place(page, *point))
            with torch.no_grad(), record_attention(generator, torch.tensor([point])) as maps:
                generator(latents(seeds, 128), default_labels(seeds, 4))
            weights = maps[layer].weights[0, head, 0].numpy()
            alpha = figure.opacity(weights, recording.resolution[layer], SIDE, False)[..., None]
            gray = (recording.images[0] @ np.array([0.299, 0.587, 0.114]))[..., None]
            expected = (1 - alpha) * (16 + 0.35 * gray) + alpha * np.array(figure.COLORS[0]) * (0.7 + 0.3 * gray / 255)
            # an error of 1/510 of the peak, of one level of the image, and rounding
            assert np.abs(canvas_of(page, ".image canvas") - expected).max() <= 255 * BOUND + 1.3
    page.select_option("#layer", index=next(i for i, title in enumerate(titles) if title.startswith("16x16")))
    numbers = map_health(recording.maps[LAYER], recording.points, (16, 16))
    rows = "rows => rows.map(row => [row.firstChild.firstChild.textContent.trim(), row.lastChild.textContent])"
    shown = {title: float(value) for title, value in page.eval_on_selector_all("#numbers tbody tr", rows)}
    assert shown == {
        "Entropy": pytest.approx(numbers["entropy"], abs=0.006),
        "Far mass": pytest.approx(numbers["far_mass"], abs=0.006),
    }
    assert "Gamma 25" in page.inner_text("#numbers")


def cells(side: int) -> torch.Tensor:
    """The centers of all cells."""
    return (torch.cartesian_prod(torch.arange(side), torch.arange(side)) + 0.5).double() / side


def cut(page: "Page", start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*place(page, *start))
    page.mouse.down()
    page.mouse.move(*place(page, *end))
    page.mouse.up()
    wait(page)


def test_the_keyboard_cuts_the_largest_weight(page: "Page", generator: Generator) -> None:
    titles = page.locator("#layer option").all_inner_texts()
    page.select_option("#layer", index=next(i for i, title in enumerate(titles) if title.startswith("16x16")))
    fill(page, seed=7)
    z, label = latents([7], 128), torch.tensor([3])
    with torch.no_grad(), record_attention(generator, torch.tensor([[8.5 / 16, 8.5 / 16]])) as maps:
        generator(z, label)
    page.focus("#smooth")
    page.keyboard.press("Tab")  # selects the cell at the center
    page.keyboard.press("x")
    wait(page)
    queries = torch.zeros(16, 16, dtype=torch.bool)
    queries[7:10, 7:10] = True
    keys = maps[LAYER].weights[0, 0, 0] == maps[LAYER].weights[0, 0, 0].max()
    with intervene(generator, {LAYER: Change(cut=edges(queries, keys))}):
        assert np.abs(image_of(page) - pixels(generator, z[0], 3)).max() <= 1


@pytest.mark.parametrize("way", ["button", "shift", "every"])
def test_cuts_gains_and_reset_are_interventions(page: "Page", generator: Generator, way: str) -> None:
    titles = page.locator("#layer option").all_inner_texts()
    page.select_option("#layer", index=next(i for i, title in enumerate(titles) if title.startswith("16x16")))
    fill(page, seed=7)
    plain = image_of(page)
    z, label = latents([7], 128)[0], 3
    queries = torch.zeros(16, 16, dtype=torch.bool)
    queries[4:7, 6:9] = True  # cell (5, 7) and its neighbors
    keys = torch.zeros(8, 8, dtype=torch.bool)
    keys[2:7, 0:7] = True
    if way == "shift":
        page.mouse.move(*place(page, 5.5 / 16, 7.5 / 16))
        page.keyboard.down("Shift")
    else:
        page.mouse.click(*place(page, 5.5 / 16, 7.5 / 16))
        page.click("#cut")
    if way == "every":
        page.select_option("#from", "all")
        queries[:] = True
    cut(page, (6.5 / 8, 0.5 / 8), (2.5 / 8, 6.5 / 8))
    page.keyboard.up("Shift")
    change = Change(cut=edges(queries, keys))
    with intervene(generator, {LAYER: change}):
        expected = pixels(generator, z, label)
    assert np.abs(expected - plain).max() > 3
    assert np.abs(image_of(page) - expected).max() <= 1
    assert page.locator(".region").count() == 1
    difference = np.abs(image_of(page) - plain)
    shown = canvas_of(page, "#extras figure:nth-child(3) canvas")
    assert np.abs(canvas_of(page, "#extras figure:nth-child(1) canvas") - image_of(page)).max() == 0
    assert np.abs(canvas_of(page, "#extras figure:nth-child(2) canvas") - plain).max() == 0
    assert np.abs(shown - 255 * difference / difference.max()).max() <= 1
    assert f"at most {difference.max()} of 255" in page.inner_text("#extras")

    sliders = page.locator(".gain input[type=range]")
    sliders.nth(2).fill("1.5")  # layers: 8x8, 16x16, 32x32
    page.locator(".gain input[type=checkbox]").nth(0).uncheck()
    wait(page)
    changes = {LAYER: change, "attention.32x32": Change(gain=1.5), "attention.8x8": Change(gain=0)}
    with intervene(generator, changes):
        assert np.abs(image_of(page) - pixels(generator, z, label)).max() <= 1
    page.click("#reset")
    wait(page)
    assert np.abs(image_of(page) - plain).max() == 0
    assert not page.is_visible("#extras figure")
    assert page.locator(".region").count() == 0


def test_a_cut_needs_a_cell(page: "Page") -> None:
    before = image_of(page)
    page.click("#cut")
    cut(page, (0.2, 0.2), (0.8, 0.8))
    assert page.inner_text("#status") == "Pin a cell first, or cut from every cell"
    assert np.abs(image_of(page) - before).max() == 0


def test_a_layer_without_one_softmax_says_that_its_edges_cannot_be_cut(page: "Page") -> None:
    titles = page.locator("#layer option").all_inner_texts()
    page.select_option("#layer", index=next(i for i, title in enumerate(titles) if title.startswith("32x32/content")))
    page.wait_for_timeout(100)
    assert page.is_disabled("#cut")
    assert "its edges cannot be cut" in page.inner_text("#cut-words")


def test_a_generator_without_attention(opened: Callable[..., "Page"], files: Path) -> None:
    page = opened((files / "without.html").as_uri())
    assert "This generator has no attention." in page.inner_text("#numbers")
    assert not page.is_visible("#tools")
    assert not page.is_visible("#classes")
    assert not page.is_visible(".reading")
    before = image_of(page)
    fill(page, seed=9)
    assert np.abs(image_of(page) - before).max() > 0


def test_the_folder_is_a_site(opened: Callable[..., "Page"], files: Path, generator: Generator) -> None:
    handler = functools.partial(Quiet, directory=str(files / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = opened(f"http://127.0.0.1:{server.server_address[1]}/", offline=False)
        fill(page, seed=2)
        assert np.abs(image_of(page) - pixels(generator, latents([2], 128)[0], 2)).max() <= 1
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def test_pins_keyboard_and_a_phone(opened: Callable[..., "Page"]) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    page = opened(**phone)
    page.touchscreen.tap(*place(page, 0.4, 0.4))
    assert page.locator(".tile").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.focus(".image")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.locator(".tile").count() == 2
    fill(page, seed=11)
    assert page.locator(".tile").count() == 2
    assert "seed 11" in page.inner_text(".tile >> nth=0")


@pytest.mark.parametrize(
    ("config", "classes", "megabytes", "most"), [("shapes32", 4, 20, 60), ("cifar10", 10, 64, 1000)]
)
def test_an_image_takes_little_time(
    opened: Callable[..., "Page"], runtime: dict[str, bytes], config: str, classes: int, megabytes: float, most: float,
    tmp_path: Path,
) -> None:  # fmt: skip
    network = remove_spectral_norm(build_generator(load_config(config), classes))
    worker = explore.worker_script(runtime[explore.CODE])
    parts = {"worker": worker, "wasm": runtime[explore.WASM], "model": explore.network_file(network)}
    size = explore.write_file(tmp_path / "page.html", explore.page_content(network), parts, config) / 1e6
    page, times = opened((tmp_path / "page.html").as_uri()), []
    for seed in range(30):
        times.append(page.evaluate(
            """async (seed) => {
                const start = performance.now(), root = document.documentElement;
                document.getElementById("seed").value = seed;
                document.getElementById("seed").dispatchEvent(new Event("input"));
                while (root.dataset.busy !== undefined) await new Promise((done) => setTimeout(done, 1));
                return performance.now() - start;
            }""", seed + 1,
        ))  # fmt: skip
    quick, middle = np.quantile(times, (0.1, 0.5))
    print(f"\n{config}: {size:.1f} MB, an image in {middle:.0f} ms (median; fastest tenth {quick:.0f} ms)")
    assert size < megabytes
    assert quick < most  # other processes slow down single images


def test_many_changes_at_once_end_with_the_last(page: "Page", generator: Generator) -> None:
    page.evaluate(
        """() => { for (let seed = 20; seed < 60; seed++) {
            document.getElementById("seed").value = seed;
            document.getElementById("seed").dispatchEvent(new Event("input"));
        } }"""
    )
    wait(page)
    assert np.abs(image_of(page) - pixels(generator, latents([59], 128)[0], 3)).max() <= 1
