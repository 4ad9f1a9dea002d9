// Latents of a seed: those of `latents` in sampler.py, except for rounding in the last bit. Does not use the document.

const ROUNDS = [
  "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
  "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0",
].map((row) => Array.from(row, (digit) => parseInt(digit, 16)));
const START = [
  0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
  0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
];

/** BLAKE2b (RFC 7693) of up to 128 ASCII characters, with 8 bytes of output. */
function blake2b(text) {
  const block = new Uint8Array(128), word = (x) => BigInt.asUintN(64, x);
  new TextEncoder().encodeInto(text, block);
  const m = new BigUint64Array(block.buffer), first = START[0] ^ 0x01010008n, v = [first, ...START.slice(1), ...START];
  v[12] ^= BigInt(text.length);
  v[14] = ~v[14];
  const turn = (x, by) => word((x >> by) | (x << (64n - by)));
  const mix = (a, b, c, d, x, y) => {
    for (const [value, one, other] of [[x, 32n, 24n], [y, 16n, 63n]]) {
      v[a] = word(v[a] + v[b] + value);
      v[d] = turn(word(v[d] ^ v[a]), one);
      v[c] = word(v[c] + v[d]);
      v[b] = turn(v[b] ^ v[c], other);
    }
  };
  for (let round = 0; round < 12; round++) {
    const s = ROUNDS[round % 10];
    for (let i = 0; i < 4; i++) mix(i, i + 4, i + 8, i + 12, m[s[2 * i]], m[s[2 * i + 1]]);
    for (let i = 0; i < 4; i++) {
      mix(i, ((i + 1) % 4) + 4, ((i + 2) % 4) + 8, ((i + 3) % 4) + 12, m[s[2 * i + 8]], m[s[2 * i + 9]]);
    }
  }
  return new Uint8Array(BigUint64Array.of(first ^ v[0] ^ v[8]).buffer);
}

/** The first `count` words of the Mersenne Twister MT19937. */
function twister(seed, count) {
  const mt = new Uint32Array(624), words = new Uint32Array(count);
  mt[0] = seed;
  for (let i = 1; i < 624; i++) mt[i] = Math.imul(1812433253, mt[i - 1] ^ (mt[i - 1] >>> 30)) + i;
  for (let i = 0; i < count; i++) {
    const at = i % 624, both = (mt[at] & 0x80000000) | (mt[(at + 1) % 624] & 0x7fffffff);
    let y = (mt[at] = mt[(at + 397) % 624] ^ (both >>> 1) ^ (both & 1 ? 0x9908b0df : 0));
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    words[i] = y ^ (y >>> 18);
  }
  return words;
}

const NORMAL = [ // numerators and denominators of AS 241 (Wichura 1988): for the middle, the sides and the far tails
  [[2509.0809287301227, 33430.575583588128, 67265.7709270087, 45921.95393154987, 13731.69376550946,
    1971.5909503065513, 133.14166789178438, 3.3871328727963665],
   [5226.495278852855, 28729.085735721943, 39307.89580009271, 21213.794301586597, 5394.196021424751,
    687.1870074920579, 42.31333070160091, 1]],
  [[7.745450142783414e-4, 0.022723844989269184, 0.2417807251774506, 1.2704582524523684, 3.6478483247632045,
    5.769497221460691, 4.630337846156546, 1.4234371107496835],
   [1.0507500716444169e-9, 5.475938084995345e-4, 0.015198666563616457, 0.14810397642748008, 0.6897673349851,
    1.6763848301838038, 2.053191626637759, 1]],
  [[2.0103343992922881e-7, 2.7115555687434876e-5, 0.0012426609473880784, 0.026532189526576124, 0.29656057182850487,
    1.7848265399172913, 5.463784911164114, 6.657904643501103],
   [2.0442631033899397e-15, 1.421511758316446e-7, 1.8463183175100548e-5, 7.868691311456133e-4, 0.014875361290850615,
    0.1369298809227358, 0.599832206555888, 1]],
];

/** The p-quantile of the standard normal distribution. */
function quantile(p) {
  const q = p - 0.5, tail = Math.sqrt(-Math.log(Math.min(p, 1 - p)));
  const part = Math.abs(q) <= 0.425 ? 0 : tail <= 5 ? 1 : 2;
  const [above, below] = NORMAL[part].map((terms) => terms.reduce((sum, term) => sum * [0.180625 - q * q, tail - 1.6,
    tail - 5][part] + term, 0));
  return (above / below) * (part === 0 ? q : Math.sign(q));
}

/** Latents of a seed: normal, or normal within ±bound, of which `tail` is the probability to lie below -bound. */
function latentsOf(seed, count, bound = Infinity, tail = 0) {
  const hash = blake2b(`${seed}/z/`);
  const words = twister(((hash[3] & 1) << 31) | (hash[4] << 23) | (hash[5] << 15) | (hash[6] << 7) | (hash[7] >> 1),
    2 * count);
  return Float32Array.from({ length: count }, (_, i) => {
    const uniform = Math.max(((words[2 * i] & 0x1fffff) * 2 ** 32 + words[2 * i + 1]) * 2 ** -53, 2 ** -54);
    return Math.min(Math.max(quantile(tail + uniform * (1 - 2 * tail)), -bound), bound);
  });
}

/** Spherical interpolation, as `slerp` in sampler.py. */
function between(a, b, t) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0), [x, y] = [[...a], [...b]];
  const angle = Math.acos(Math.min(Math.max(dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y)), -1), 1));
  const [of, to] = angle < 1e-6 ? [1 - t, t] : [1 - t, t].map((part) => Math.sin(part * angle) / Math.sin(angle));
  return Float32Array.from(x, (value, i) => of * value + to * y[i]);
}
