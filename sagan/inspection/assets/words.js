// Texts that describe a point, and the legend.

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

let announcement = 0;

function describe() {
  const { current, layer } = state, attention = current && attentionOf(current);
  const words = current ? `${nameOf(current.image)}: ${wordsOf(current, attention)}` : "";
  const unit = make("small", "", layer.scale === "share" ? "uniform" : "largest weight");
  find("peak").replaceChildren(...(attention ? [peakOf(attention), " ", unit] : ["–"]));
  find("peak").parentElement.classList.toggle("rest", !attention);
  find("words").textContent = words || "Point at an image.";
  drawLegend(attention);
  showNumbers(attention);
  clearTimeout(announcement); // announce only where the pointer rests
  announcement = setTimeout(() => { find("live").textContent = words; }, 200);
}

function drawLegend(attention) {
  const { scale, keys } = state.layer, count = keys[0] * keys[1];
  const share = scale === "share", signed = scale === "signed";
  const full = attention ? fullOf(attention.peak) : uniformFull / count, even = 100 / (full * count);
  const most = share ? times(full * count) : attention ? number(full) : scale === "gate" ? "1" : "largest";
  const marks = signed ? [[0, `−${most}`], [50, "0"], [100, most]] : [[0, "0"], [100, most]];
  if (share && even > 12 && even < 80) marks.splice(1, 0, [even, "uniform"]);
  const stops = signed ? [signs[0], DARK, signs[1]] : [DARK, colorOf(currentSlot())];
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
  if (state.layer.scale === "gate" && !(attention?.peak > 1)) return "Full color: weight 1";
  if (attention && full > attention.peak) return `Full color: ${uniformFull}× uniform, more than any weight here`;
  if (attention || state.layer.scale !== "share") return "Full color: the largest weight of the map";
  return `Full color: the largest weight of the map, at least ${uniformFull}× uniform`;
}
