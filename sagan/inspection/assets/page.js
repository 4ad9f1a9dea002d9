// Pointer and keyboard events, and the controls.

function drawAll() {
  tiles.forEach((_, image) => drawImage(image));
  drawPins();
  describe();
}

/** Set the current point; null for none. */
function look(point) {
  const before = state.current;
  if (point && before ? sameCell(point, before) : point === before) return;
  state.current = point;
  if (before && before.image !== point?.image) drawImage(before.image);
  if (point) drawImage(point.image);
  describe();
}

/** Remove the pin in this cell or under this point; without one, pin the cell. */
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

function listen(element, image) {
  let pressed = [0, 0];
  const under = (event) => {
    const box = element.getBoundingClientRect(), { size } = state.layer;
    const fractions = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    return pointAt(image, fractions.map((fraction, axis) => fraction * size[axis]));
  };
  element.addEventListener("pointerdown", (event) => {
    pressed = [event.clientX, event.clientY];
    if (!claims(event)) look(under(event));
  });
  element.addEventListener("pointermove", (event) => { if (!claims(event)) look(under(event)); });
  element.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") look(null); });
  element.addEventListener("click", (event) => {
    if (!claims(event) && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < REACH) togglePin(under(event));
  });
  element.addEventListener("keydown", (event) => pressKey(event, image));
  element.addEventListener("focus", () => { if (element.matches(":focus-visible")) look(centerOf(image)); });
  element.addEventListener("blur", () => { if (state.current?.image === image) look(null); });
}

function pressKey(event, image) {
  const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  const current = state.current?.image === image ? state.current : centerOf(image);
  if (move) look(pointAt(image, cellOf(current).map((at, axis) => at + move[axis])));
  else if (event.key === "Enter" || event.key === " ") togglePin(current);
  else return;
  event.preventDefault();
}

/** Fit as many columns as are readable. If there is space, an image pixel is a whole number of screen pixels. */
function fit() {
  const root = document.documentElement, main = document.querySelector("main");
  const pixels = (element, name) => parseFloat(getComputedStyle(element).getPropertyValue(name));
  const beside = pixels(root, "--beside"), gap = pixels(find("images"), "column-gap");
  const available = main.clientWidth - 2 * pixels(root, "--margin") - (beside && beside + pixels(main, "column-gap"));
  const columns = Math.max(1, Math.min(images.length, Math.floor((available + gap) / (NARROWEST + gap))));
  const wide = Math.min((available - gap * (columns - 1)) / columns, Math.max(content.widest ?? WIDEST, resolution));
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
