// Drawing of images, maps and pins.

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
  element.setAttribute("aria-describedby", "keys");
  element.append(picture, canvas, outline);
  figure.append(element, caption);
  find("images").append(figure);
  listen(element, index);
  const tile = { element, picture, canvas, outline, caption, grays: new Map() };
  nameTile(tile, index);
  return tile;
}

function nameTile({ element, caption }, index) {
  element.setAttribute("aria-label", nameOf(index));
  caption.replaceChildren(make("b", "", images[index].name), make("span", "", `seed ${images[index].seed}`));
}

/** The gray image, enlarged by `scale`. */
function grayAt(tile, scale) {
  if (!tile.grays.has(scale)) {
    const canvas = Object.assign(make("canvas"), { width: resolution, height: resolution });
    const context = canvas.getContext("2d");
    context.drawImage(tile.picture, 0, 0);
    tile.grays.set(scale, grayOf(context.getImageData(0, 0, resolution, resolution).data, resolution, scale));
  }
  return tile.grays.get(scale);
}

/** The canvas has the resolution of the image if cells consist of whole pixels: CSS then enlarges it evenly. */
function paint(canvas, tile, points) {
  const { layer, smooth } = state;
  const scale = smooth || layer.size.some((cells) => resolution % cells) ? FINE : 1;
  const side = resolution * scale, signed = layer.scale === "signed";
  const overlays = points.map(({ attention: { ratios, peak }, slot }) => {
    const factor = peak > 0 ? peak / fullOf(peak) : 0;
    const opacities = (smooth ? smoothOpacities : cellOpacities)(ratios, factor, side, layer);
    return { opacities, positive: signed ? signs[1] : colorOf(slot), negative: signs[0] };
  });
  if (canvas.width !== side) canvas.width = canvas.height = side;
  canvas.classList.toggle("smooth", smooth);
  const context = canvas.getContext("2d"), frame = context.createImageData(side, side);
  paintOverlays(frame.data, grayAt(tile, scale), overlays);
  context.putImageData(frame, 0, 0);
}

const colorOf = (slot) => colors[slot % colors.length];
const css = (color) => `rgb(${color.join(" ")})`;

/** The color of the current cell: that of its pin, or the one that its pin would get. */
function currentSlot() {
  const pin = state.current && state.pins.find((pin) => sameCell(pin, state.current));
  return pin ? pin.slot : freeSlot();
}

function freeSlot() {
  return [...state.pins, null].findIndex((_, slot) => !state.pins.some((pin) => pin.slot === slot));
}

/** Draw the image: alone, under the map of the current cell, or under the maps of its pins. */
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
  dot.style.setProperty("--color", css(colorOf(slot)));
  Object.assign(dot.style, { top: `${100 * y}%`, left: `${100 * x}%` });
  return dot;
}

/** The map of a pin, beside the images, for comparison. A click removes the pin. */
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
