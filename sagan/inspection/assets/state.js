// State of the page: data, current layer and head, current point, pins; and the attention of a point.
const content = JSON.parse(find("data").textContent);
const { images, layers, resolution, colors, signs, uniformFull } = content;
const FINE = Math.ceil(128 / resolution); // canvas pixels per image pixel, as in the figure
const NARROWEST = 184, WIDEST = 352; // CSS pixels of an image
const REACH = 10; // CSS pixels: clicks this close to a pin hit it, longer moves are drags
const DARK = [61, 61, 61];

// A point is an image and a position in fractions, valid for every layer. A pin also has a slot: its color.
const NO_LAYER = { title: "none", scale: "share", size: [1, 1], keys: [1, 1], heads: 1 };
const state = { layer: layers[0] ?? NO_LAYER, head: 0, smooth: false, current: null, pins: [] };
const maps = new Map(); // key -> inflated map
const tiles = images.map(buildTile); // the elements of each image

function find(id) {
  return document.getElementById(id);
}

const mapKey = (image) => `map-${layers.indexOf(state.layer)}-${image}-${state.head}`;
const clamp = (value, most) => Math.min(Math.max(Math.floor(value), 0), most);
const withinCells = (cell) => cell.map((at, axis) => clamp(at, state.layer.size[axis] - 1));
const cellOf = ({ y, x }) => withinCells([y * state.layer.size[0], x * state.layer.size[1]]);
const sameCell = (a, b) => a.image === b.image && cellOf(a).join() === cellOf(b).join();

/** The point at the center of a cell. */
function pointAt(image, cell) {
  const [y, x] = withinCells(cell).map((at, axis) => (at + 0.5) / state.layer.size[axis]);
  return { image, y, x };
}

const centerOf = (image) => pointAt(image, state.layer.size.map((cells) => cells / 2));

/** Attention of a point; null until its map is inflated. */
function attentionOf(point) {
  const map = maps.get(mapKey(point.image));
  const [row, column] = cellOf(point);
  return map ? attentionAt(map, state.layer.perQuery ? row * state.layer.size[1] + column : 0) : null;
}

/** The weight drawn in full color. */
function fullOf(peak) {
  const { scale, keys } = state.layer;
  if (scale === "share") return Math.max(peak, uniformFull / (keys[0] * keys[1]));
  return scale === "gate" ? Math.max(peak, 1) : peak;
}
