// The page of recorded maps: unpack those of a layer and head, and start.

async function loadMaps() {
  const load = async (image) => {
    const key = mapKey(image), packed = state.layer.maps[image][state.head];
    if (!maps.has(key)) maps.set(key, readMap(await inflate(find(key).textContent), packed));
  };
  await Promise.all(images.map((_, image) => load(image)));
}

function showNumbers() {}

/** Whether a pointer event is not for the maps. */
function claims() {
  return false;
}

fit();
fillControls();
try {
  await Promise.all(tiles.map(({ picture }) => picture.decode()));
  await showMap(layers[0], 0);
  document.documentElement.dataset.ready = "";
} catch (error) {
  find("words").textContent = "DecompressionStream" in window ? `The maps cannot be read: ${error.message}`
    : "This browser is too old to unpack the maps. Use Chrome 80, Firefox 113, Safari 16.4 or newer.";
}
