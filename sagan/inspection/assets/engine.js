// The worker of the live page: runs the network with onnxruntime-web (`ort`). Follows maps.js.
let session, layers, modules;

const bytesOf = async ({ text, url }) => {
  if (!url) return inflate(text);
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
};

async function open(sources) {
  ({ layers, modules } = sources);
  ort.env.wasm.numThreads = 1;
  postMessage({ step: 1, words: "Unpacking the runtime" });
  ort.env.wasm.wasmBinary = await bytesOf(sources.wasm);
  postMessage({ step: 2, words: "Unpacking the network" });
  const model = await bytesOf(sources.model);
  postMessage({ step: 3, words: "Preparing the network" });
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  return {};
}

/** Run the network: z (D), label or null; gains and cuts by module, without which nothing is changed. */
async function run({ z, label, gains, cuts }) {
  const feeds = { z: new ort.Tensor("float32", z, [1, z.length]) };
  if (label !== null) feeds.labels = new ort.Tensor("int64", BigInt64Array.of(BigInt(label)), [1]);
  for (const { name, queries, keys } of modules) {
    feeds[`gain.${name}`] = new ort.Tensor("float32", Float32Array.of(gains[name] ?? 1), []);
    if (!queries) continue;
    const shape = [queries, keys].map(([height, width]) => height * width);
    feeds[`cut.${name}`] = new ort.Tensor("bool", cuts[name] ?? new Uint8Array(shape[0] * shape[1]), shape);
  }
  const start = performance.now(), names = layers.map(({ name }) => name);
  const found = await session.run(feeds, ["images", ...names]);
  const milliseconds = performance.now() - start;
  const rows = Object.fromEntries(names.map((name) => [name, found[name].data]));
  const numbers = layers.map((layer) => (layer.scale === "share" ? meanNumbers(rows[layer.name], layer) : null));
  return { image: found.images.data, rows, numbers, milliseconds };
}

/** Means of `rowNumbers` over heads and cells. */
function meanNumbers(rows, layer) {
  const m = layer.keys[0] * layer.keys[1], n = rows.length / m, mean = { entropy: 0, far: 0 };
  for (let i = 0; i < n; i++) {
    const cell = i % (layer.size[0] * layer.size[1]), place = [Math.floor(cell / layer.size[1]), cell % layer.size[1]];
    const { entropy, far } = rowNumbers(rows.subarray(i * m, (i + 1) * m), place, layer);
    mean.entropy += entropy / n;
    mean.far += far / n;
  }
  return mean;
}

onmessage = async ({ data }) => {
  try {
    postMessage({ done: await (data.model ? open(data) : run(data)) });
  } catch (error) {
    postMessage({ error: error.message ?? `${error}` });
  }
};
