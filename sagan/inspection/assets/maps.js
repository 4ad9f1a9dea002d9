"use strict";
// Decode maps into weights of a cell, and convert weights to opacities and pixels. Does not use the document.

/** Decode base64 and inflate (zlib) to bytes. */
async function inflate(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Inverse of `pack` in page.py: N peaks, then N·M bytes, or two int16 matrices, low bytes first. */
function readMap(bytes, { form, signed, shape: [n, m], rank, step }) {
  const peaks = new Float32Array(bytes.slice(0, 4 * n).buffer);
  const rest = bytes.slice(4 * n);
  if (form === "bytes" && signed) return { m, peaks, levels: new Int8Array(rest.buffer), most: 127.5 };
  if (form === "bytes") return { m, peaks, levels: rest, most: 255 };
  const count = (n + m) * rank;
  const both = Int16Array.from({ length: count }, (_, i) => rest[i] | (rest[count + i] << 8));
  return { m, peaks, rank, step, queries: both.subarray(0, n * rank), keys: both.subarray(n * rank) };
}

/** Attention of a cell: `ratios` of the weights to the peak magnitude, and the keys of the largest and smallest. */
function attentionAt(map, cell) {
  const row = map.rows?.subarray(cell * map.m, (cell + 1) * map.m);
  const peak = row ? row.reduce((most, weight) => Math.max(most, Math.abs(weight)), 0) : map.peaks[cell];
  const ratios = row ? row.map((weight) => weight / (peak || 1)) : map.levels ? levelsAt(map, cell) : productsAt(map, cell);
  let best = 0;
  let least = 0;
  for (let j = 1; j < ratios.length; j++) {
    if (ratios[j] > ratios[best]) best = j;
    if (ratios[j] < ratios[least]) least = j;
  }
  return { ratios, peak, best, least };
}

function levelsAt({ m, levels, most }, cell) {
  return Float32Array.from(levels.subarray(cell * m, (cell + 1) * m), (level) => level / most);
}

function productsAt({ m, rank, step, queries, keys }, cell) {
  const products = new Float64Array(m);
  let largest = -Infinity;
  for (let j = 0; j < m; j++) {
    for (let r = 0; r < rank; r++) products[j] += queries[cell * rank + r] * keys[j * rank + r];
    largest = Math.max(largest, products[j]);
  }
  return Float32Array.from(products, (product) => Math.exp(step * (product - largest)));
}

/** The key that covers each pixel of a side, or -1. A pooled key covers whole cells. */
function nearestKeys(side, cells, keys) {
  const covered = Math.floor(cells / keys);
  return Array.from({ length: side }, (_, pixel) => {
    const key = covered ? Math.floor(Math.floor((pixel * cells) / side) / covered) : Math.floor((pixel * keys) / side);
    return key < keys ? key : -1;
  });
}

/** Opacity of each pixel of a square: `factor` times the ratio of its key. */
function cellOpacities(ratios, factor, side, { size, keys }) {
  const shown = new Float32Array(side * side);
  const rows = nearestKeys(side, size[0], keys[0]);
  const columns = nearestKeys(side, size[1], keys[1]);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      if (rows[y] >= 0 && columns[x] >= 0) shown[y * side + x] = factor * ratios[rows[y] * keys[1] + columns[x]];
    }
  }
  return shown;
}

const cubic = (t) => (t < 1 ? (1.5 * t - 2.5) * t * t + 1 : t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0);

/** First key and weights of bicubic interpolation for each pixel of a side, as in Pillow. */
function cubicKeys(side, keys) {
  const stretch = Math.max(keys / side, 1);
  return Array.from({ length: side }, (_, pixel) => {
    const center = ((pixel + 0.5) * keys) / side;
    const first = Math.max(Math.floor(center - 2 * stretch + 0.5), 0);
    const end = Math.min(Math.floor(center + 2 * stretch + 0.5), keys);
    const weights = Array.from({ length: end - first }, (_, i) => cubic(Math.abs(first + i - center + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** The same with bicubic interpolation: rows first, then columns; clipped as in the figure. */
function smoothOpacities(ratios, factor, side, { keys: [height, width], scale }) {
  const lowest = scale === "signed" ? -1 : 0;
  const across = new Float32Array(height * side);
  cubicKeys(side, width).forEach(({ first, weights }, x) => {
    for (let y = 0; y < height; y++) {
      for (let i = 0; i < weights.length; i++) across[y * side + x] += weights[i] * ratios[y * width + first + i];
    }
  });
  const shown = new Float32Array(side * side);
  cubicKeys(side, height).forEach(({ first, weights }, y) => {
    for (let x = 0; x < side; x++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * across[(first + i) * side + x];
      shown[y * side + x] = Math.min(Math.max(factor * sum, lowest), 1);
    }
  });
  return shown;
}

/** Gray values (ITU-R BT.601) of the RGBA pixels of a square image, enlarged by `scale`. */
function grayOf(pixels, resolution, scale) {
  const side = resolution * scale;
  return Float32Array.from({ length: side * side }, (_, i) => {
    const from = 4 * (Math.floor(i / side / scale) * resolution + Math.floor((i % side) / scale));
    return 0.299 * pixels[from] + 0.587 * pixels[from + 1] + 0.114 * pixels[from + 2];
  });
}

/**
 * Fill RGBA pixels with the darkened gray image under overlays {opacities, positive, negative}, the latter being the
 * colors of positive and negative values. The order of the overlays does not matter.
 */
function paintOverlays(pixels, gray, overlays) {
  for (let i = 0; i < gray.length; i++) {
    let clear = 1, sum = 0, red = 0, green = 0, blue = 0;
    for (let k = 0; k < overlays.length; k++) {
      const value = overlays[k].opacities[i], opacity = Math.abs(value);
      const color = value < 0 ? overlays[k].negative : overlays[k].positive;
      red += opacity * color[0];
      green += opacity * color[1];
      blue += opacity * color[2];
      clear *= 1 - opacity;
      sum += opacity;
    }
    const dark = clear * (16 + 0.35 * gray[i]);
    const tint = sum > 0 ? ((0.7 + (0.3 * gray[i]) / 255) * (1 - clear)) / sum : 0;
    pixels[4 * i] = dark + tint * red;
    pixels[4 * i + 1] = dark + tint * green;
    pixels[4 * i + 2] = dark + tint * blue;
    pixels[4 * i + 3] = 255;
  }
}

const REACH_OF_NEAR = 3; // cells to each side that are local

/** Entropy (uniform: 1) of a softmax row of a cell, and its mass outside the 7×7 cells around it; as in health.py. */
function rowNumbers(row, [y, x], { size, keys }) {
  const near = [y, x].map((cell, axis) => {
    const stride = Math.floor(size[axis] / keys[axis]);
    return Array.from({ length: keys[axis] }, (_, i) => {
      const upper = Math.min((i + 1) * stride, cell + REACH_OF_NEAR + 1), lower = Math.max(i * stride, cell - REACH_OF_NEAR);
      return Math.max(upper - lower, 0) / stride;
    });
  });
  let entropy = 0, local = 0;
  for (let i = 0; i < row.length; i++) {
    if (row[i] > 0) entropy -= row[i] * Math.log(row[i]);
    local += row[i] * near[0][Math.floor(i / keys[1])] * near[1][i % keys[1]];
  }
  const sum = row.reduce((a, b) => a + b, 0); // 0 if every edge is cut
  return { entropy: entropy / Math.log(Math.max(row.length, 2)), far: sum - local };
}
