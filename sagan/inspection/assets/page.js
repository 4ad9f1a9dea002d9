// The page: what is shown, drawn, said, and how pointer and keyboard change it.
(async () => {
  const { images, layers, resolution, colours, signs, uniformFull } = JSON.parse(find("data").textContent);
  const FINE = Math.ceil(128 / resolution); // canvas pixels a pixel of the image, as in the figure
  const NARROWEST = 184, WIDEST = 352; // CSS pixels of an image
  const REACH = 10; // CSS pixels: nearer to a pin is on it, farther from where it was pressed is a drag
  const DARK = [61, 61, 61];

  // A point is an image and a place in it as fractions, which every layer has. A pin has a slot too: its colour.
  const state = { layer: layers[0], head: 0, smooth: false, current: null, pins: [] };
  const maps = new Map(); // key -> map, once inflated
  const tiles = images.map(buildTile); // the elements of each image

  // ---- What a point attends to

  function find(id) {
    return document.getElementById(id);
  }

  const mapKey = (image) => `map-${layers.indexOf(state.layer)}-${image}-${state.head}`;
  const clamp = (value, most) => Math.min(Math.max(Math.floor(value), 0), most);
  const withinCells = (cell) => cell.map((at, axis) => clamp(at, state.layer.size[axis] - 1));
  const cellOf = ({ y, x }) => withinCells([y * state.layer.size[0], x * state.layer.size[1]]);
  const sameCell = (a, b) => a.image === b.image && cellOf(a).join() === cellOf(b).join();

  /** The point at the centre of a cell. */
  function pointAt(image, cell) {
    const [y, x] = withinCells(cell).map((at, axis) => (at + 0.5) / state.layer.size[axis]);
    return { image, y, x };
  }

  const centreOf = (image) => pointAt(image, state.layer.size.map((cells) => cells / 2));

  /** null while its map is not inflated. */
  function attentionOf(point) {
    const map = maps.get(mapKey(point.image));
    const [row, column] = cellOf(point);
    return map ? attentionAt(map, row * state.layer.size[1] + column) : null;
  }

  /** The weight that is drawn in full colour. */
  function fullOf(peak) {
    const { scale, keys } = state.layer;
    if (scale === "share") return Math.max(peak, uniformFull / (keys[0] * keys[1]));
    return scale === "gate" ? Math.max(peak, 1) : peak;
  }

  async function loadMaps() {
    const load = async (image) => {
      const key = mapKey(image), packed = state.layer.maps[image][state.head];
      if (!maps.has(key)) maps.set(key, readMap(await inflate(find(key).textContent), packed));
    };
    await Promise.all(images.map((_, image) => load(image)));
  }

  // ---- Drawing

  function make(tag, className = "", text = "") {
    return Object.assign(document.createElement(tag), { className, textContent: text });
  }

  function buildTile(image, index) {
    const figure = make("figure"), element = make("div", "image"), caption = make("figcaption");
    const picture = make("img"), canvas = make("canvas"), outline = make("div", "cell");
    Object.assign(picture, { src: image.source, alt: "", draggable: false });
    canvas.hidden = outline.hidden = true;
    element.tabIndex = 0;
    element.setAttribute("role", "application");
    element.setAttribute("aria-roledescription", "attention map");
    element.setAttribute("aria-label", nameOf(index));
    element.setAttribute("aria-describedby", "keys");
    element.append(picture, canvas, outline);
    caption.append(make("b", "", image.name), make("span", "", `seed ${image.seed}`));
    figure.append(element, caption);
    find("images").append(figure);
    listen(element, index);
    return { element, picture, canvas, outline, greys: new Map() };
  }

  /** The grey image at `scale` canvas pixels a pixel. */
  function greyAt(tile, scale) {
    if (!tile.greys.has(scale)) {
      const canvas = Object.assign(make("canvas"), { width: resolution, height: resolution });
      const context = canvas.getContext("2d");
      context.drawImage(tile.picture, 0, 0);
      tile.greys.set(scale, greyOf(context.getImageData(0, 0, resolution, resolution).data, resolution, scale));
    }
    return tile.greys.get(scale);
  }

  /** A canvas has the image's own pixels where cells end at them: the page enlarges those evenly. */
  function paint(canvas, tile, points) {
    const { layer, smooth } = state;
    const scale = smooth || layer.size.some((cells) => resolution % cells) ? FINE : 1;
    const side = resolution * scale, signed = layer.scale === "signed";
    const overlays = points.map(({ attention: { ratios, peak }, slot }) => {
      const factor = peak > 0 ? peak / fullOf(peak) : 0;
      const opacities = (smooth ? smoothOpacities : cellOpacities)(ratios, factor, side, layer);
      return { opacities, positive: signed ? signs[1] : colourOf(slot), negative: signs[0] };
    });
    if (canvas.width !== side) canvas.width = canvas.height = side;
    canvas.classList.toggle("smooth", smooth);
    const context = canvas.getContext("2d"), frame = context.createImageData(side, side);
    paintOverlays(frame.data, greyAt(tile, scale), overlays);
    context.putImageData(frame, 0, 0);
  }

  const colourOf = (slot) => colours[slot % colours.length];
  const css = (colour) => `rgb(${colour.join(" ")})`;

  /** The current cell has the colour of its pin, or the one that its pin would have. */
  function currentSlot() {
    const pin = state.current && state.pins.find((pin) => sameCell(pin, state.current));
    return pin ? pin.slot : freeSlot();
  }

  function freeSlot() {
    return [...state.pins, null].findIndex((_, slot) => !state.pins.some((pin) => pin.slot === slot));
  }

  /** The image as it is, or under the map of the current cell, or under those of its pins. */
  function drawImage(image) {
    const tile = tiles[image], current = state.current?.image === image ? state.current : null;
    const points = current ? [{ ...current, slot: currentSlot() }] : state.pins.filter((pin) => pin.image === image);
    const each = points.map((point) => ({ ...point, attention: attentionOf(point) }));
    const known = each.filter(({ attention }) => attention);
    if (known.length) paint(tile.canvas, tile, known);
    tile.canvas.hidden = known.length === 0;
    tile.outline.hidden = !current;
    if (current) placeOutline(tile.outline, cellOf(current));
  }

  function placeOutline({ style }, [row, column]) {
    const [height, width] = state.layer.size;
    Object.assign(style, { top: `${(100 * row) / height}%`, left: `${(100 * column) / width}%` });
    Object.assign(style, { height: `${100 / height}%`, width: `${100 / width}%` });
  }

  function drawPins() {
    document.querySelectorAll(".image .pin").forEach((dot) => dot.remove());
    state.pins.forEach((pin) => tiles[pin.image].element.append(pinDot(pin)));
    find("tiles").replaceChildren(...state.pins.map(pinTile));
    find("pinned").hidden = state.pins.length === 0;
  }

  function pinDot({ slot, y, x }) {
    const dot = make("span", "pin", `${slot + 1}`);
    dot.style.setProperty("--colour", css(colourOf(slot)));
    Object.assign(dot.style, { top: `${100 * y}%`, left: `${100 * x}%` });
    return dot;
  }

  /** A pin's map by itself, beside the images: so several can be compared. Click removes the pin. */
  function pinTile(pin) {
    const button = make("button", "tile"), picture = make("div"), canvas = make("canvas"), text = make("p");
    const attention = attentionOf(pin);
    if (attention) paint(canvas, tiles[pin.image], [{ ...pin, attention }]);
    picture.append(canvas, pinDot(pin));
    const place = make("span", "", `cell ${cellOf(pin).join(", ")}`);
    text.append(make("b", "", attention ? peakOf(attention) : ""), ` ${nameOf(pin.image)}, `, place);
    button.append(picture, text);
    Object.assign(button, { type: "button", title: "Remove this pin" });
    button.setAttribute("aria-label", `Remove pin ${pin.slot + 1}: ${nameOf(pin.image)}, ${wordsOf(pin, attention)}`);
    button.addEventListener("click", () => {
      togglePin(pin);
      find("tiles").querySelector("button")?.focus();
    });
    return button;
  }

  // ---- Words and legend

  function nameOf(image) {
    return [images[image].name, `seed ${images[image].seed}`].filter(Boolean).join(", ");
  }

  const times = (multiple) => `${Number(multiple.toFixed(multiple < 10 ? 1 : 0))}×`;
  const number = (weight) => `${Number(weight.toPrecision(2))}`.replace("-", "−");

  function peakOf({ ratios, peak, best }) {
    return state.layer.scale === "share" ? times(peak * ratios.length) : number(peak * ratios[best]);
  }

  /** The cells that a key covers, such as "10–11, 12–13". */
  function cellsOf(key) {
    const { size, keys } = state.layer;
    const each = [Math.floor(key / keys[1]), key % keys[1]].map((at, axis) => {
      const covered = Math.max(Math.floor(size[axis] / keys[axis]), 1);
      return covered === 1 ? `${at}` : `${at * covered}–${(at + 1) * covered - 1}`;
    });
    return each.join(", ");
  }

  function wordsOf(point, attention) {
    const cell = `cell ${cellOf(point).join(", ")}`;
    if (!attention) return cell;
    const { scale } = state.layer, { ratios, peak, best, least } = attention;
    if (scale === "share") return `${cell} attends most to ${cellsOf(best)}: ${peakOf(attention)} uniform`;
    const most = `${cell}: largest weight ${peakOf(attention)} at ${cellsOf(best)}`;
    return scale === "signed" ? `${most}, smallest ${number(peak * ratios[least])} at ${cellsOf(least)}` : most;
  }

  let speaking = 0;

  function say() {
    const { current, layer } = state, attention = current && attentionOf(current);
    const words = current ? `${nameOf(current.image)}: ${wordsOf(current, attention)}` : "";
    const unit = make("small", "", layer.scale === "share" ? "uniform" : "largest weight");
    find("peak").replaceChildren(...(attention ? [peakOf(attention), " ", unit] : ["–"]));
    find("peak").parentElement.classList.toggle("rest", !attention);
    find("words").textContent = words || "Point at an image.";
    drawLegend(attention);
    clearTimeout(speaking); // a moving pointer is read out where it rests
    speaking = setTimeout(() => { find("live").textContent = words; }, 200);
  }

  function drawLegend(attention) {
    const { scale, keys } = state.layer, count = keys[0] * keys[1];
    const share = scale === "share", signed = scale === "signed";
    const full = attention ? fullOf(attention.peak) : uniformFull / count, even = 100 / (full * count);
    const most = share ? times(full * count) : attention ? number(full) : scale === "gate" ? "1" : "largest";
    const marks = signed ? [[0, `−${most}`], [50, "0"], [100, most]] : [[0, "0"], [100, most]];
    if (share && even > 12 && even < 80) marks.splice(1, 0, [even, "uniform"]);
    const stops = signed ? [signs[0], DARK, signs[1]] : [DARK, colourOf(currentSlot())];
    find("bar").style.setProperty("--stops", stops.map(css).join(", "));
    find("even").hidden = !share;
    find("even").style.left = `${even}%`;
    find("ticks").replaceChildren(...marks.map(([left, text]) => {
      const mark = make("span", "", text);
      mark.style.left = `${left}%`;
      return mark;
    }));
    find("full").textContent = legendWords(attention, full);
  }

  function legendWords(attention, full) {
    if (state.layer.scale === "gate" && !(attention?.peak > 1)) return "Full colour: weight 1";
    if (attention && full > attention.peak) return `Full colour: ${uniformFull}× uniform, more than any weight here`;
    if (attention || state.layer.scale !== "share") return "Full colour: the largest weight of the map";
    return `Full colour: the largest weight of the map, at least ${uniformFull}× uniform`;
  }

  // ---- Changes

  function drawAll() {
    tiles.forEach((_, image) => drawImage(image));
    drawPins();
    say();
  }

  /** Make a point the current one; null: none. */
  function look(point) {
    const before = state.current;
    if (point && before ? sameCell(point, before) : point === before) return;
    state.current = point;
    if (before && before.image !== point?.image) drawImage(before.image);
    if (point) drawImage(point.image);
    say();
  }

  /** Remove the pin in this cell, or the one whose dot it lies under; without one, pin the cell. */
  function togglePin(point) {
    const reach = REACH / tiles[point.image].element.clientWidth;
    const near = (pin) => pin.image === point.image && Math.hypot(pin.y - point.y, pin.x - point.x) < reach;
    const there = state.pins.find((pin) => sameCell(pin, point)) ?? state.pins.find(near);
    const { image, y, x } = point;
    state.pins = there ? state.pins.filter((pin) => pin !== there) : [...state.pins, { image, y, x, slot: freeSlot() }];
    drawAll();
  }

  function removePins() {
    state.pins = [];
    drawAll();
  }

  async function showMap(layer, head) {
    Object.assign(state, { layer, head });
    await loadMaps();
    drawAll();
  }

  // ---- Pointer and keyboard

  function listen(element, image) {
    let pressed = [0, 0];
    const under = (event) => {
      const box = element.getBoundingClientRect(), { size } = state.layer;
      const fractions = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
      return pointAt(image, fractions.map((fraction, axis) => fraction * size[axis]));
    };
    element.addEventListener("pointerdown", (event) => {
      pressed = [event.clientX, event.clientY];
      look(under(event));
    });
    element.addEventListener("pointermove", (event) => look(under(event)));
    element.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") look(null); });
    element.addEventListener("click", (event) => {
      if (Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < REACH) togglePin(under(event));
    });
    element.addEventListener("keydown", (event) => pressKey(event, image));
    element.addEventListener("focus", () => { if (element.matches(":focus-visible")) look(centreOf(image)); });
    element.addEventListener("blur", () => { if (state.current?.image === image) look(null); });
  }

  function pressKey(event, image) {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const current = state.current?.image === image ? state.current : centreOf(image);
    if (move) look(pointAt(image, cellOf(current).map((at, axis) => at + move[axis])));
    else if (event.key === "Enter" || event.key === " ") togglePin(current);
    else return;
    event.preventDefault();
  }

  /** As many columns as are readable; each image a whole multiple of its pixels on the screen, where there is room. */
  function fit() {
    const root = document.documentElement, main = find("images").parentElement;
    const pixels = (element, name) => parseFloat(getComputedStyle(element).getPropertyValue(name));
    const beside = pixels(root, "--beside"), gap = pixels(find("images"), "column-gap");
    const room = main.clientWidth - 2 * pixels(root, "--margin") - (beside && beside + pixels(main, "column-gap"));
    const columns = Math.max(1, Math.min(images.length, Math.floor((room + gap) / (NARROWEST + gap))));
    const wide = Math.min((room - gap * (columns - 1)) / columns, Math.max(WIDEST, resolution));
    const step = resolution / window.devicePixelRatio;
    root.style.setProperty("--columns", columns);
    root.style.setProperty("--side", `${wide < step ? wide : Math.floor(wide / step) * step}px`);
  }

  function fillControls() {
    find("layer").replaceChildren(...layers.map(({ title }, i) => new Option(title, i)));
    const fillHeads = () => {
      find("head").replaceChildren(...Array.from({ length: state.layer.heads }, (_, i) => new Option(i + 1, i)));
      find("heads").hidden = state.layer.heads === 1;
    };
    fillHeads();
    find("layer").addEventListener("change", () => { showMap(layers[find("layer").value], 0); fillHeads(); });
    find("head").addEventListener("change", () => showMap(state.layer, Number(find("head").value)));
    find("opacity").addEventListener("input", () => {
      find("images").style.setProperty("--overlay", find("opacity").value / 100);
    });
    find("smooth").addEventListener("change", () => { state.smooth = find("smooth").checked; drawAll(); });
    find("clear").addEventListener("click", removePins);
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") removePins(); });
    document.addEventListener("pointerdown", ({ target }) => { if (!target.closest(".image, .controls")) look(null); });
    window.addEventListener("resize", fit);
  }

  fit();
  fillControls();
  try {
    await Promise.all(tiles.map(({ picture }) => picture.decode()));
    await showMap(layers[0], 0);
    document.documentElement.dataset.ready = "";
  } catch (error) {
    find("words").textContent = "DecompressionStream" in window ? `The maps cannot be read: ${error.message}`
      : "This browser is too old to unpack the maps: Chrome 80, Firefox 113 and Safari 16.4 or newer can.";
  }
})();
