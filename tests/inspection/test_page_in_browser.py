"""The attention page in Chromium, opened from disk. Every pixel is compared with the figure of that cell."""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from page_case import HOSTILE, NAMES, RESOLUTION, Known, known_layers, known_recording
from PIL import Image

from sagan.inspection import figure
from sagan.inspection.page import write_page
from sagan.inspection.record import Recording

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
CLOSE = 255 / 255 + 1  # levels of color: the storage error of a signed map, and rounding
HEALTH = {"attention.16x16": {"gamma": 0.5, "entropy": 0.61, "uniform_entropy": 1.0}}
Cell = tuple[int, int]


@dataclass(frozen=True)
class Screen:
    """The open page and its content."""

    page: "Page"
    layers: list[Known]
    data: Recording
    layer: int = 0
    head: int = 0

    @property
    def known(self) -> Known:
        return self.layers[self.layer]

    def choose(self, layer: int, head: int = 0) -> "Screen":
        self.page.select_option("#layer", index=layer)
        if head:
            self.page.select_option("#head", index=head)
        self.page.wait_for_timeout(100)
        return Screen(self.page, self.layers, self.data, layer, head)

    def place(self, image: int, cell: Cell) -> tuple[float, float]:
        """(x, y) on the screen of a cell's center."""
        element = self.page.locator(".image").nth(image)
        element.scroll_into_view_if_needed()
        box = element.bounding_box()
        assert box
        height, width = self.known.size
        return box["x"] + (cell[1] + 0.5) / width * box["width"], box["y"] + (cell[0] + 0.5) / height * box["height"]

    def hover(self, image: int, cell: Cell) -> None:
        self.page.mouse.move(*self.place(image, cell))

    def click(self, image: int, cell: Cell) -> None:
        self.page.mouse.click(*self.place(image, cell))

    def leave(self) -> None:
        self.page.mouse.move(2, 2)

    def pixels(self, canvas: str) -> np.ndarray | None:
        """(side, side, 3) of a canvas; None while it is hidden."""
        found = self.page.locator(canvas)
        if found.get_attribute("hidden") is not None:
            return None
        source = found.evaluate("canvas => canvas.toDataURL()")
        return np.asarray(Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"), float)

    def shown(self, image: int) -> np.ndarray | None:
        return self.pixels(f"figure:nth-child({image + 1}) canvas")

    def check(self, image: int, *cells: Cell, slots: Sequence[int] = range(8), smooth: bool = False,
              side: int = RESOLUTION, canvas: str = "") -> None:  # fmt: skip
        """A canvas must show the image under the maps of these cells, in the colors of `slots`."""
        large = figure.enlarged(self.data.images[image], side)
        maps = [self.known.at(image, self.head, cell) for cell in cells]
        alphas = [figure.opacity(weights, self.known.size, side, smooth) for weights in maps]
        expected = blended(large, alphas, [figure.COLORS[slot] for slot in slots[: len(cells)]])
        assert_close(self.pixels(canvas or f"figure:nth-child({image + 1}) canvas"), expected)

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()


def blended(large: np.ndarray, alphas: list[np.ndarray], colors: list[tuple[int, int, int]]) -> np.ndarray:
    """The darkened image under the mean of the colors, weighted by their opacities."""
    gray = (large @ np.array([0.299, 0.587, 0.114]))[..., None]
    every = np.stack(alphas)[..., None]
    clear = np.prod(1 - every, axis=0)
    mean = (every * np.array(colors)[:, None, None]).sum(0) / np.maximum(every.sum(0), 1e-9)
    return clear * (16 + 0.35 * gray) + (1 - clear) * mean * (0.7 + 0.3 * gray / 255)


def assert_close(shown: np.ndarray | None, expected: np.ndarray) -> None:
    assert shown is not None
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= CLOSE


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Known], Recording]:
    path, layers = tmp_path_factory.mktemp("page") / "attention.html", known_layers()
    recording = known_recording(layers)
    write_page(path, recording, [layer.layer() for layer in layers], HEALTH, "runs/shapes")
    return path, layers, recording


@pytest.fixture
def opened(browser: "Browser", file: tuple[Path, list[Known], Recording]) -> Iterator[Callable[..., Screen]]:
    """Opens the page, which must log no error and request nothing but itself."""
    path, layers, recording = file
    errors: list[str] = []
    requests: list[str] = []
    contexts = []

    def open_page(script: str = "", ready: bool = True, **settings: Any) -> Screen:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings}))
        contexts[-1].set_default_timeout(10_000)
        page = contexts[-1].new_page()
        page.add_init_script(script)
        page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        if ready:
            page.wait_for_selector("html[data-ready]", state="attached")
        return Screen(page, layers, recording)

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    assert requests
    assert not [url for url in requests if url != path.as_uri() and not url.startswith("data:")]


@pytest.fixture
def screen(opened: Callable[..., Screen]) -> Screen:
    return opened()


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)])
def test_the_map_of_the_cell_under_the_pointer(screen: Screen, layer: int, head: int) -> None:
    chosen = screen.choose(layer, head)
    height, width = chosen.known.size
    for image, cell in ((0, (0, 0)), (1, (height - 1, 1)), (2, (2, width - 1)), (3, (height // 2, 3))):
        chosen.hover(image, cell)
        chosen.check(image, cell, side=128 if layer == 3 else RESOLUTION)  # 7 cells do not end at pixels of 32


def test_map_and_outline_follow_the_pointer_and_leaving_restores_the_image(screen: Screen) -> None:
    for column in range(5, 9):
        screen.hover(1, (4, column))
        screen.check(1, (4, column))
    screen.hover(2, (3, 11))
    assert screen.shown(1) is None
    screen.check(2, (3, 11))
    outer, inner = (screen.page.locator(f"figure:nth-child(3) {part}").bounding_box() for part in (".image", ".cell"))
    assert outer
    assert inner
    assert inner["x"] - outer["x"] == pytest.approx(11 / 16 * outer["width"], abs=0.1)
    assert inner["y"] - outer["y"] == pytest.approx(3 / 16 * outer["height"], abs=0.1)
    assert inner["width"] == pytest.approx(outer["width"] / 16, abs=0.1)
    screen.leave()
    assert screen.shown(2) is None


def test_the_peak_is_described_and_announced(screen: Screen) -> None:
    screen.hover(1, (5, 7))
    weights = screen.known.at(1, 0, (5, 7))
    row, column = np.unravel_index(weights.argmax(), weights.shape)
    peak = weights.max() * weights.size
    shown = f"{peak:.0f}×" if peak >= 10 else f"{float(f'{peak:.1f}'):g}×"
    words = f"cell 5, 7 attends most to {2 * row}–{2 * row + 1}, {2 * column}–{2 * column + 1}: {shown} uniform"
    assert screen.text("#words") == f"ring, seed 1: {words}"
    assert screen.text("#peak").split() == [shown, "uniform"]
    assert screen.text("#full") == "Full color: the largest weight of the map"
    screen.page.wait_for_timeout(400)
    assert screen.page.text_content("#live") == f"ring, seed 1: {words}"


def test_flat_maps_stay_faint(screen: Screen) -> None:
    flat = screen.choose(2)
    flat.hover(0, (4, 4))
    assert flat.known.at(0, 0, (4, 4)).max() * 64 < 4
    assert flat.text("#full") == "Full color: 4× uniform, more than any weight here"
    assert flat.text("#ticks").split() == ["0", "uniform", "4×"]
    flat.check(0, (4, 4))


def test_signed_weights_have_two_colors_and_gates_are_not_stretched(screen: Screen) -> None:
    large = screen.data.images[2].astype(np.float32)
    signed = screen.choose(4)
    signed.hover(2, (9, 9))
    weights = signed.known.at(2, 0, (9, 9)).repeat(4, 0).repeat(4, 1)
    alpha = np.abs(weights) / np.abs(weights).max()
    negative, positive = (blended(large, [alpha], [color]) for color in figure.SIGNS)
    assert_close(signed.shown(2), np.where(weights[..., None] < 0, negative, positive))
    assert signed.text("#ticks").split()[1] == "0"
    assert "smallest −" in signed.text("#words")
    gate = screen.choose(5)
    gate.hover(2, (1, 2))
    opened = gate.known.at(2, 0, (1, 2))
    assert_close(gate.shown(2), blended(large, [opened.repeat(4, 0).repeat(4, 1)], [figure.COLORS[0]]))
    assert gate.text("#peak").split()[0] == f"{opened.max():.2g}"


def test_pins_have_the_figures_colors_and_a_click_removes_one(screen: Screen) -> None:
    cells = [(2, 3), (12, 5), (7, 13)]
    for cell in cells:
        screen.click(0, cell)
    screen.click(3, (8, 8))
    screen.leave()
    screen.check(0, *cells)
    screen.check(3, (8, 8), slots=[3])
    for i, cell in enumerate(cells):
        screen.check(0, cell, slots=[i], canvas=f".tile:nth-child({i + 1}) canvas")
    colors = "pins => pins.map(p => getComputedStyle(p).backgroundColor)"
    found = screen.page.eval_on_selector_all(".image .pin", colors)
    assert found == [f"rgb({r}, {g}, {b})" for r, g, b in figure.COLORS[:4]]
    screen.click(0, cells[1])
    screen.leave()
    screen.check(0, cells[0], cells[2], slots=[0, 2])
    screen.hover(1, (5, 5))
    screen.check(1, (5, 5), slots=[1])  # the next pin takes the free color
    screen.page.locator(".tile").first.click()
    screen.leave()
    screen.check(0, cells[2], slots=[2])
    screen.page.keyboard.press("Escape")
    assert screen.shown(0) is screen.shown(3) is None
    assert not screen.page.is_visible("#pinned")
    assert screen.count(".image .pin") == 0


def test_a_click_on_the_dot_removes_the_pin(screen: Screen) -> None:
    """Also on the part of the dot outside its cell."""
    fine = screen.choose(1)
    for cells, left in ((((16, 16), (16, 17)), 0), (((16, 16), (16, 22)), 2)):
        for cell in cells:
            fine.click(0, cell)
        assert fine.count(".image .pin") == left
    fine.page.click("#clear")
    assert fine.count(".image .pin") == 0


def test_pins_keep_their_position_when_layer_and_head_change(screen: Screen) -> None:
    screen.click(1, (4, 6))
    screen.leave()
    screen.choose(0, 1).check(1, (4, 6))
    fine = screen.choose(1)
    fine.check(1, (9, 13))  # its center: 4.5/16, 6.5/16
    assert not fine.page.is_visible("#heads")
    screen.choose(2).check(1, (2, 3))


def test_smooth_maps_are_interpolated_as_in_the_figure(screen: Screen) -> None:
    screen.page.check("#smooth")
    for layer in (0, 1, 3):
        chosen = screen.choose(layer)
        chosen.hover(2, (1, 5))
        chosen.check(2, (1, 5), side=128, smooth=True)
    screen.page.uncheck("#smooth")
    screen.choose(0).hover(2, (1, 5))
    screen.check(2, (1, 5))


def test_the_slider_blends_the_overlay_with_the_image(screen: Screen) -> None:
    """Compared with a screenshot."""
    screen.click(0, (15, 15))
    screen.leave()
    overlay, image = screen.shown(0), screen.data.images[0]
    assert overlay is not None
    for value in (100, 40, 0):
        screen.page.locator("#opacity").fill(str(value))
        seen = Image.open(BytesIO(screen.page.locator(".image").first.screenshot())).convert("RGB")
        scale = seen.width // RESOLUTION
        assert seen.width == scale * RESOLUTION  # the pixels are all of one size
        places = np.arange(0, 24) * scale + scale // 2  # away from the dot of the pin
        expected = (value * overlay + (100 - value) * image.astype(float))[:24, :24] / 100
        assert np.abs(np.asarray(seen)[places[:, None], places].astype(float) - expected).max() <= 2


def test_everything_can_be_done_with_the_keyboard(screen: Screen) -> None:
    page, label = screen.page, "document.activeElement.getAttribute('aria-label')"
    page.focus("#smooth")
    page.keyboard.press("Tab")
    assert page.evaluate(label) == "disc, seed 0"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    screen.check(0, (8, 8))
    for key in ("ArrowUp", "ArrowUp", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    screen.check(0, (7, 7))
    page.keyboard.press("Enter")
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    screen.check(0, (7, 0), slots=[1])
    for pins in (2, 1):
        page.keyboard.press("Space")
        assert screen.count(".tile") == pins
    assert page.evaluate("window.scrollY") == 0
    page.wait_for_timeout(400)
    assert "cell 7, 0 attends most to" in (page.text_content("#live") or "")
    page.keyboard.press("Tab")
    assert page.evaluate(label) == "ring, seed 1"
    screen.check(0, (7, 7))  # its pin
    page.keyboard.press("Escape")
    assert screen.count(".tile") == 0


PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


def test_a_phone_needs_no_horizontal_scrolling(opened: Callable[..., Screen]) -> None:
    screen = opened(**PHONE)
    assert screen.page.evaluate("document.documentElement.scrollWidth") == 360
    for image in range(4):
        x, y = screen.place(image, (4, 4))
        screen.page.touchscreen.tap(x, y)
        assert screen.page.is_visible(".reading")
        box = screen.page.locator(".image").nth(image).bounding_box()
        assert box
        assert box["width"] >= 256
    assert screen.count(".tile") == 4
    assert screen.page.evaluate("document.documentElement.scrollWidth") == 360
    bar = screen.page.locator(".reading").bounding_box()
    assert bar
    assert bar["y"] + bar["height"] == pytest.approx(740, abs=1)


def test_a_drag_explores_and_a_tap_pins(opened: Callable[..., Screen]) -> None:
    screen = opened(**PHONE)
    client = screen.page.context.new_cdp_session(screen.page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in places]})

    start = screen.place(0, (2, 2))
    before = screen.page.evaluate("window.scrollY")
    touch("touchStart", start)
    for cell in ((3, 4), (6, 6), (9, 8)):
        touch("touchMove", screen.place(0, cell))
    touch("touchEnd")
    screen.check(0, (9, 8))
    assert screen.count(".tile") == 0
    assert screen.page.evaluate("window.scrollY") == before
    screen.page.touchscreen.tap(*screen.place(0, (5, 5)))
    assert screen.count(".tile") == 1
    assert screen.page.evaluate("window.scrollY") == before
    screen.page.touchscreen.tap(180, 20)  # beside the images
    screen.check(0, (5, 5))
    actions = screen.page.evaluate(
        "['.image', 'main', 'figcaption'].map(s => getComputedStyle(document.querySelector(s)).touchAction)"
    )
    assert actions == ["none", "auto", "auto"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_systems_colors_and_is_readable(opened: Callable[..., Screen], scheme: str) -> None:
    page = opened(color_scheme=scheme).page

    def luminance(selector: str, name: str) -> float:
        value = page.evaluate("([s, n]) => getComputedStyle(document.querySelector(s))[n]", [selector, name])
        channels = np.array([float(part) for part in value.removeprefix("rgb(").removesuffix(")").split(",")]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    paper = luminance("body", "backgroundColor")
    assert (paper < 0.02) == (scheme == "dark")
    for selector in ("h1", ".lead", "figcaption span", "footer", "#words", "th small", "#full", ".controls label"):
        ink = luminance(selector, "color")
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, selector


def test_a_class_name_is_never_html(screen: Screen) -> None:
    assert screen.page.title() == "Attention of runs/shapes"
    captions = screen.page.locator("figcaption b").all_text_contents()
    assert captions == [NAMES[int(label)] for label in screen.data.labels]
    assert HOSTILE in captions
    assert screen.count("img") == 4
    screen.click(2, (3, 3))
    assert HOSTILE in screen.text("#words")
    assert screen.count("img") == 4
    assert screen.page.title() == "Attention of runs/shapes"


def test_an_old_browser_gets_a_message(opened: Callable[..., Screen]) -> None:
    screen = opened(script="delete window.DecompressionStream", ready=False)
    screen.page.wait_for_timeout(500)
    assert "too old to unpack the maps" in screen.text("#words")


@pytest.mark.parametrize("smooth", [False, True])
def test_a_move_takes_less_than_8_ms(screen: Screen, smooth: bool) -> None:
    fine = screen.choose(1)
    fine.page.set_checked("#smooth", smooth)
    durations = fine.page.evaluate(
        """() => {
            const image = document.querySelector(".image"), box = image.getBoundingClientRect(), durations = [];
            for (let i = 0; i < 300; i++) {
                const x = box.left + ((i % 32) + 0.5) / 32 * box.width, y = box.top + (i / 32 + 0.5) / 32 * box.height;
                const start = performance.now();
                image.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y, pointerType: "mouse" }));
                durations.push(performance.now() - start);
            }
            return durations;
        }"""
    )
    quick, middle, slow = np.quantile(durations, (0.25, 0.5, 0.95))
    print(f"\nsmooth {smooth}: {quick:.2f} ms at 25 %, {middle:.2f} ms at 50 %, {slow:.2f} ms at 95 %")
    assert quick < 8  # other processes slow down single moves
