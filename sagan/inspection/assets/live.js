// The live page: seeds and settings, the worker that runs the network, cuts and gains.
const { classes, zDim, tails, modules, files, changes } = content;
const edits = { gains: {}, cuts: {}, regions: {} }; // by module: a factor; edges, N × M; rectangles of keys
const extras = ["changed", "unchanged", "difference"].map(buildExtra);
let numbers = [], running = false, again = false, plainKey = "", plain = null, drag = null;

function loadMaps() {}

// --- The network

let answer = null, worker = null;

/** Ask the worker; one question at a time. */
function ask(question) {
  return new Promise((resolve, reject) => {
    answer = { resolve, reject };
    worker.postMessage(question);
  });
}

async function openWorker() {
  const source = (id) => {
    if (files[id]) return { url: new URL(files[id], location.href).href };
    const text = find(id).textContent;
    find(id).remove();
    return { text };
  };
  const code = source("worker");
  const blob = code.text && new Blob([await inflate(code.text)], { type: "text/javascript" });
  worker = new Worker(code.url ?? URL.createObjectURL(blob));
  worker.onmessage = ({ data }) => {
    if (data.words) report(data.words, data.step);
    else if (data.done) answer.resolve(data.done);
    else answer.reject(new Error(data.error));
  };
  worker.onerror = (event) => answer.reject(new Error(event.message || "the worker cannot be started"));
  await ask({ wasm: source("wasm"), model: source("model"), layers, modules });
}

function report(words, step = null) {
  find("status").querySelector("progress").hidden = step === null;
  find("status").querySelector("progress").value = step ?? 0;
  find("status").querySelector("span").textContent = words;
}

// --- Settings

const seedOf = (id) => Math.min(Math.max(Math.floor(Number(find(id).value)) || 0, 0), content.highestSeed);

function settings() {
  const [seed, other] = [seedOf("seed"), seedOf("other")], blend = Number(find("blend").value) / 100;
  const [bound, tail] = tails[find("truncation").value] ?? [Infinity, 0], own = find("class").value;
  const [a, b] = [seed, other].map((each) => latentsOf(each, zDim, bound, tail));
  const label = classes.length ? (own === "" ? seed % classes.length : Number(own)) : null;
  return { z: blend ? between(a, b, blend) : a, label, seed: blend ? `${seed} → ${other}, ${Math.round(100 * blend)} %` : `${seed}` };
}

const changed = () => Object.values(edits.gains).some((gain) => gain !== 1) || Object.keys(edits.cuts).length > 0;

/** Show the image of the settings. While one is computed, later calls are joined into one. */
async function update() {
  again = true;
  if (running) return;
  running = true;
  document.documentElement.dataset.busy = "";
  try {
    while (again) {
      again = false;
      const { z, label, seed } = settings(), key = JSON.stringify([...z, label]);
      if (key !== plainKey) plain = await ask({ z, label, gains: {}, cuts: {} });
      plainKey = key;
      const found = changed() ? await ask({ z, label, gains: edits.gains, cuts: edits.cuts }) : plain;
      await show(found, label, seed);
    }
  } catch (error) {
    report(`The network cannot be run: ${error.message}`);
  }
  running = false;
  delete document.documentElement.dataset.busy;
}

async function show({ image, rows, numbers: measured, milliseconds }, label, seed) {
  const tile = tiles[0], pixels = (part) => drawPixels(make("canvas"), part).toDataURL();
  tile.picture.src = pixels((i) => image[i]);
  await tile.picture.decode();
  tile.grays.clear();
  layers.forEach(({ name, keys, heads }, i) => {
    const m = keys[0] * keys[1], each = rows[name].length / heads;
    for (let head = 0; head < heads; head++) {
      maps.set(`map-${i}-0-${head}`, { m, rows: rows[name].subarray(head * each, (head + 1) * each) });
    }
  });
  numbers = measured;
  Object.assign(images[0], { name: label === null ? "" : classes[label], seed });
  nameTile(tile, 0);
  compare(image);
  report(`${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`);
  drawAll();
}

/** Fill a canvas: `part(i)` is the value i of the pixels, three for each. */
function drawPixels(canvas, part) {
  canvas.width = canvas.height = resolution;
  const context = canvas.getContext("2d"), frame = context.createImageData(resolution, resolution);
  for (let i = 0; i < resolution * resolution; i++) {
    for (let channel = 0; channel < 3; channel++) frame.data[4 * i + channel] = part(3 * i + channel);
    frame.data[4 * i + 3] = 255;
  }
  context.putImageData(frame, 0, 0);
  return canvas;
}

function buildExtra(name) {
  const figure = make("figure"), canvas = make("canvas"), caption = make("figcaption"), facts = make("span");
  figure.hidden = true;
  caption.append(make("b", "", name), facts);
  figure.append(canvas, caption);
  find("extras").append(figure);
  return { figure, canvas, facts };
}

/** Show the image with and without changes, and the difference, in which the largest is white. */
function compare(image) {
  const differences = Array.from(image, (value, i) => Math.abs(value - plain.image[i]));
  const most = differences.reduce((a, b) => Math.max(a, b), 0);
  const mean = differences.reduce((a, b) => a + b, 0) / differences.length;
  extras.forEach(({ figure }) => { figure.hidden = !changed(); });
  const parts = [(i) => image[i], (i) => plain.image[i], (i) => (255 * differences[i]) / Math.max(most, 1)];
  extras.forEach(({ canvas }, i) => drawPixels(canvas, parts[i]));
  extras[2].facts.textContent = `mean ${mean.toFixed(1)}, at most ${most} of 255`;
}

// --- Numbers beside the image

function showNumbers(attention) {
  drawRegions();
  const { layer, current } = state, here = [], mean = numbers[layers.indexOf(layer)];
  if (mean) {
    const own = attention && rowNumbers(attention.ratios.map((ratio) => ratio * attention.peak), cellOf(current), layer);
    here.push(["Entropy", "1: uniform attention", own?.entropy, mean.entropy]);
    here.push(["Far mass", "weight outside the surrounding 7×7 cells", own?.far, mean.far]);
  }
  const table = make("table"), head = make("thead"), body = make("tbody"), gain = layer.gamma ?? null;
  head.append(make("tr"));
  head.firstChild.append(make("th"), make("th", "", "cell"), make("th", "", "all cells"));
  const rows = here.map(([title, meaning, ...values]) => {
    const row = make("tr"), name = make("th", "", `${title} `);
    name.append(make("small", "", meaning));
    row.append(name, ...values.map((value) => make("td", "", value === undefined || value === null ? "–" : value.toFixed(2))));
    return row;
  });
  body.append(...rows);
  if (rows.length) table.append(head, body);
  const words = gain === null ? "" : `Gamma ${number(gain)}${Math.abs(gain) < 1e-6 ? ": this attention is unused" : ""}`;
  find("numbers").replaceChildren(...(layers.length ? [make("p", "", words), table] : [make("p", "", content.none)]));
}

// --- Changes of the attention

const moduleOf = (layer) => modules.find(({ name }) => name === layer.module);
const cuttable = () => moduleOf(state.layer)?.queries;
const wanted = (event) => find("cut").getAttribute("aria-pressed") === "true" || event.shiftKey;

/** The key under a pointer: (row, column). */
function keyAt(event) {
  const box = tiles[0].element.getBoundingClientRect(), { size, keys } = state.layer;
  return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map((at, axis) => {
    const covered = Math.floor(size[axis] / keys[axis]);
    return clamp(clamp(at * size[axis], size[axis] - 1) / covered, keys[axis] - 1);
  });
}

/** Pointer events on the image belong to a cut while the button is pressed, or Shift is held. */
function claims(event) {
  if (!modules.length || !cuttable() || !(drag || wanted(event))) return false;
  if (event.type === "pointerdown") {
    drag = [keyAt(event), keyAt(event)];
    tiles[0].element.setPointerCapture(event.pointerId);
  } else if (drag && event.type === "pointermove") drag[1] = keyAt(event);
  drawRegions();
  return true;
}

/** Cut the edges from the chosen cells to the keys of a rectangle. */
function cutRegion([[top, left], [bottom, right]]) {
  const { name, queries, keys } = moduleOf(state.layer), all = find("from").value === "all";
  const from = state.current ? [state.current] : state.pins;
  if (!all && !from.length) return report("Pin a cell first, or cut from every cell");
  const near = ([row, column]) => from.some(({ y, x }) => Math.abs(Math.floor(y * queries[0]) - row) < 2
    && Math.abs(Math.floor(x * queries[1]) - column) < 2);
  const count = keys[0] * keys[1], cut = edits.cuts[name] ?? new Uint8Array(queries[0] * queries[1] * count);
  for (let query = 0; query < queries[0] * queries[1]; query++) {
    if (!all && !near([Math.floor(query / queries[1]), query % queries[1]])) continue;
    for (let row = Math.min(top, bottom); row <= Math.max(top, bottom); row++) {
      for (let column = Math.min(left, right); column <= Math.max(left, right); column++) {
        cut[query * count + row * keys[1] + column] = 1;
      }
    }
  }
  edits.cuts[name] = cut;
  (edits.regions[name] ??= []).push([[top, left], [bottom, right]]);
  update();
}

function drawRegions() {
  tiles[0].element.querySelectorAll(".region").forEach((box) => box.remove());
  const { size, keys, module } = state.layer, regions = [...(edits.regions[module] ?? []), ...(drag ? [drag] : [])];
  regions.forEach((ends) => {
    const box = make("div", "region"), sides = [0, 1].map((axis) => {
      const covered = (100 * Math.floor(size[axis] / keys[axis])) / size[axis], at = ends.map((key) => key[axis]);
      return [covered * Math.min(...at), covered * (Math.abs(at[0] - at[1]) + 1)];
    });
    Object.assign(box.style, { top: `${sides[0][0]}%`, height: `${sides[0][1]}%` });
    Object.assign(box.style, { left: `${sides[1][0]}%`, width: `${sides[1][1]}%` });
    tiles[0].element.append(box);
  });
  find("cut").disabled = find("from").disabled = !cuttable();
  find("reset").disabled = !changed();
  find("cut-words").textContent = cuttable() ? changes
    : "This layer has no single softmax over keys: its edges cannot be cut, only its gain can be changed.";
}

function buildGain({ name, title }) {
  const row = make("div", "gain"), label = make("label"), on = make("input"), slider = make("input"), value = make("output");
  Object.assign(on, { type: "checkbox", checked: true, autocomplete: "off" });
  Object.assign(slider, { type: "range", min: 0, max: 2, step: 0.05, autocomplete: "off" });
  slider.setAttribute("aria-label", `Gain of ${title}`);
  label.append(on, ` ${title}`);
  row.append(label, slider, value);
  const set = () => {
    edits.gains[name] = on.checked ? Number(slider.value) : 0;
    value.textContent = `γ × ${edits.gains[name]}`;
    slider.disabled = !on.checked;
  };
  const reset = () => { Object.assign(on, { checked: true }); slider.value = 1; set(); };
  for (const input of [on, slider]) input.addEventListener("input", () => { set(); update(); });
  reset();
  find("gains").append(row);
  return reset;
}

// --- Start

function listenToSettings() {
  find("class").replaceChildren(new Option("of the seed", ""), ...classes.map((name, i) => new Option(name, i)));
  find("classes").hidden = classes.length === 0;
  Object.assign(find("truncation"), { max: tails.length, value: tails.length });
  const words = { truncation: (at) => (tails[at] ? tails[at][0].toFixed(1) : "none"), blend: (at) => `${at} %` };
  for (const id of ["seed", "other", "class", "truncation", "blend"]) {
    const say = () => { if (words[id]) find(id).parentElement.querySelector("output").textContent = words[id](find(id).value); };
    find(id).addEventListener("input", () => { say(); update(); });
    say();
  }
  for (const [button, field] of [["dice", "seed"], ["other-dice", "other"]]) {
    find(field).addEventListener("change", () => { find(field).value = seedOf(field); });
    find(button).addEventListener("click", () => { find(field).value = Math.floor(1e6 * Math.random()); update(); });
  }
  const resets = modules.map(buildGain);
  find("reset").addEventListener("click", () => {
    Object.assign(edits, { cuts: {}, regions: {} });
    resets.forEach((reset) => reset());
    update();
  });
  tiles[0].element.addEventListener("keydown", ({ key }) => {
    const found = key === "x" && cuttable() && state.current && attentionOf(state.current), { keys } = state.layer;
    if (found) cutRegion(Array(2).fill([Math.floor(found.best / keys[1]), found.best % keys[1]]));
  });
  find("cut").addEventListener("click", () => find("cut").setAttribute("aria-pressed", !wanted({})));
  for (const kind of ["pointerup", "pointercancel"]) {
    tiles[0].element.addEventListener(kind, () => {
      const ends = drag;
      drag = null;
      if (ends && kind === "pointerup") cutRegion(ends);
      drawRegions();
    });
  }
}

document.documentElement.dataset.live = "";
fit();
fillControls();
listenToSettings();
drawRegions();
if (!layers.length) document.documentElement.dataset.without = "";
find("tools").hidden = modules.length === 0;
try {
  await openWorker();
  await update();
  document.documentElement.dataset.ready = "";
} catch (error) {
  report("DecompressionStream" in window ? `The network cannot be loaded: ${error.message}. ${content.advice}`
    : "This browser is too old to unpack the network. Use Chrome 91, Firefox 113, Safari 16.4 or newer.");
}
