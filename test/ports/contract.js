// docs/NUMERICS.md in JavaScript (Node, no packages): every op and model, to the bit. A port to read beside the document.
//
// usage: node test/ports/contract.js FOLDER NAME fast|reference [OUT]   a run of FOLDER/runs.json: OUT.taps and OUT.safetensors, or the manifest on stdout
//        node test/ports/contract.js FOLDER vectors                     every vector of FOLDER/vectors.jsonl
//
// A number is float64 and each operation on it rounds by itself, so that RN64 is there already; RN32 is Math.fround. Matrices are arrays of rows.
"use strict";
const crypto = require("crypto"), fs = require("fs"), path = require("path");
const f32 = Math.fround;

// ==== section 1: numbers ====

const double = new Float64Array(1), word = new Uint32Array(double.buffer), single = new DataView(new ArrayBuffer(4));
const LOW = new Uint8Array(new Uint16Array([1]).buffer)[0] ? 0 : 1; // which word holds the last bit

// The neighbour of t towards an exact value above (up) or below it, if t's last bit is 0: the next rounding is then right.
function toOdd(t, up) {
  double[0] = t;
  if (word[LOW] & 1) return t;
  if (up === t > 0) word[LOW] += 1;
  else {
    if (word[LOW] === 0) word[1 - LOW] -= 1;
    word[LOW] -= 1;
  }
  return double[0];
}

// RN32(a*b + s)
function fma32(a, b, s) {
  const p = a * b, t = p + s;
  if (t - t !== 0) return f32(t);
  const back = t - p, error = (p - (t - back)) + (s - back);
  return f32(error !== 0 && t !== 0 ? toOdd(t, error > 0) : t);
}

const ARITHMETICS = {
  fast(a, b, n) {
    let s = 0;
    for (let k = 0; k < n; k++) s = fma32(a(k), b(k), s);
    return s;
  },
  reference(a, b, n) {
    let s = 0;
    for (let k = 0; k < n; k++) s = s + a(k) * b(k);
    return s;
  },
};
const sum = (a) => a.reduce((s, x) => s + x, 0);

// ==== section 2: functions ====
// Whole numbers of any size as fixed-point numbers with P bits behind the point. erf near -1 needs the most: its series reaches 2^290 before
// e^(-z^2) makes it small, and what is left beside 1 is as small as 2^-150.

const P = 700n, ONE = 1n << P;
const mul = (a, b) => (a * b) >> P, div = (a, b) => (a << P) / b;
const isqrt = (n) => {
  let x = 1n << BigInt((n.toString(2).length + 1) >> 1);
  for (;;) {
    const y = (x + n / x) >> 1n;
    if (y >= x) return x;
    x = y;
  }
};
const root = (a) => isqrt(a << P);
function series(term, next) { // term + next(term, 1) + ..., until nothing is left
  let total = 0n;
  for (let n = 1n; term !== 0n; n++) {
    total += term;
    term = next(term, n);
    if (term === -1n) break;
  }
  return total;
}
const artanh = (z) => { // z + z^3/3 + z^5/5 + ...
  let total = 0n, power = z;
  for (let n = 1n; power !== 0n && power !== -1n; n += 2n, power = mul(power, mul(z, z))) total += power / n;
  return total;
};
const arctan = (n) => { // of 1/n
  let total = 0n, power = ONE / n;
  for (let k = 1n; power !== 0n && power !== -1n; k += 2n, power = -power / (n * n)) total += power / k;
  return total;
};
const LN2 = 2n * artanh(ONE / 3n), PI = 16n * arctan(5n) - 4n * arctan(239n);
function exp(x) {
  const n = x / LN2, r = x - n * LN2;
  const e = series(ONE, (t, k) => mul(t, r) / k);
  return n < 0n ? e >> -n : e << n;
}
function log(x) {
  const n = BigInt(x.toString(2).length - 1) - P, m = n < 0n ? x << -n : x >> n;
  return n * LN2 + 2n * artanh(div(m - ONE, m + ONE));
}
// erf z = 2/sqrt(pi) e^(-z^2) sum of 2^n z^(2n+1) / (1 3 5 .. 2n+1)
const erf = (z) => mul(div(2n * ONE, root(PI)), mul(exp(-mul(z, z)), series(z, (t, n) => mul(mul(t, z), 2n * z) / (2n * n + 1n))));
const logistic = (x, u) => div(x, ONE + exp(-u));
const EXACT = {
  exp, log,
  tanh: (x) => div(exp(2n * x) - ONE, exp(2n * x) + ONE),
  gelu: (x) => mul(x / 2n, ONE + erf(div(x, root(2n * ONE)))),
  gelu_new: (x) => logistic(x, 2n * mul(root(div(2n * ONE, PI)), x + mul(44715n * ONE / 1000000n, mul(x, mul(x, x))))),
  silu: (x) => logistic(x, x),
};

function toFixed(x) { // a float32 is a whole number times 2^-149
  return BigInt(x * 2 ** 149) << (P - 149n);
}
function fromFixed(v) { // RN32: 60 leading bits, the rest kept as a last bit that is odd
  const sign = v < 0n ? -1 : 1, a = v < 0n ? -v : v, shift = BigInt(Math.max(a.toString(2).length - 50, 0));
  let top = a >> shift;
  if (top << shift !== a) top |= 1n;
  return f32(sign * Number(top) * 2 ** Number(shift - P / 2n) * 2 ** Number(-P / 2n));
}
// Below these the result is -0 or +0, above it +infinity or the limit.
const RANGE = { exp: [-110, 89, 0, Infinity], tanh: [-20, 20, -1, 1], gelu: [-20, Infinity, -0, Infinity], gelu_new: [-20, Infinity, -0, Infinity], silu: [-120, Infinity, -0, Infinity] };
function func(name, x) {
  if (x !== x) return NaN;
  if (name === "relu") return x < 0 ? 0 : x;
  if (name === "log") return x < 0 ? NaN : x === 0 ? -Infinity : x === Infinity ? x : fromFixed(log(toFixed(x)));
  const [least, most, low, high] = RANGE[name];
  if (x < least || x > most) return x < least ? low : high;
  if (x === Infinity) return high;
  if (x === 0) return name === "exp" ? 1 : x;
  if (Math.abs(x) < 2 ** -40) return name === "exp" ? 1 : name === "tanh" ? x : tiny(x);
  if (name !== "tanh" && name !== "exp" && x > 20) return x;
  const y = EXACT[name](toFixed(x));
  return y === 0n ? x * 0 : fromFixed(y);
}
// x/2 (1 + a little of x's sign): a tie of x/2 goes up.
const tiny = (x) => f32(toOdd(x / 2, true));

// ==== section 3: ops, on rows ====

const linear = (S, x, w, b) => x.map((row) => w[0].map((_, o) => {
  const s = S((k) => row[k], (k) => w[k][o], row.length);
  return f32(b ? s + b[o] : s);
}));
const embeddingSum = (a, ...more) => a.map((x, i) => f32(more.reduce((s, row) => s + row[i], x)));
function layernorm(x, g, b, eps) {
  const C = x.length, u = sum(x) / C, v = sum(x.map((e) => (e - u) * (e - u))) / C, r = 1 / Math.sqrt(v + eps);
  return x.map((e, i) => f32(((e - u) * r) * g[i] + b[i]));
}
function rmsnorm(S, x, g, eps) {
  const r = 1 / Math.sqrt(S((k) => x[k], (k) => x[k], x.length) / x.length + eps);
  return x.map((e, i) => f32((e * r) * g[i]));
}
const greatest = (row) => row.reduce((m, x) => (x > m ? x : m), row[0]);
function softmax(row) {
  const m = greatest(row), e = row.map((s) => func("exp", f32(s - m))), Z = sum(e);
  return e.map((p) => f32(p / Z));
}
function logsumexp(row) {
  const m = greatest(row);
  return f32(m + func("log", f32(sum(row.map((x) => func("exp", f32(x - m)))))));
}
const residual = (x, y) => x.map((row, n) => row.map((e, i) => f32(e + y[n][i])));
const activation = (name, x) => x.map((row) => row.map((e) => func(name, e)));
const gated = (name, x, z) => x.map((row, n) => row.map((e, i) => f32(func(name, e) * z[n][i])));

// scores and probs [heads][Tq][Tk], ctx [Tq][C]; bias(h, i, j)
function attention(S, q, k, v, heads, scale, causal, bias) {
  const D = q[0].length / heads, scores = [], probs = [], ctx = q.map(() => []);
  for (let h = 0; h < heads; h++) {
    scores.push([]), probs.push([]);
    q.forEach((row, i) => {
      const keys = causal ? Math.min(k.length, i + 1) : k.length, seen = [...Array(keys).keys()], rest = Array(k.length - keys);
      const s = seen.map((j) => {
        const score = S((d) => row[h * D + d], (d) => k[j][h * D + d], D) * scale;
        return f32(bias ? score + bias(h, i, j) : score);
      });
      const p = softmax(s);
      scores[h].push([...s, ...rest.fill(-Infinity)]);
      probs[h].push([...p, ...rest.slice().fill(0)]);
      for (let d = 0; d < D; d++) ctx[i].push(f32(S((j) => p[j], (j) => v[j][h * D + d], keys)));
    });
  }
  return { scores, probs, ctx };
}

// ==== the flat file, and runs ====

function openModel(file) {
  const raw = fs.readFileSync(file), length = Number(raw.readBigUInt64LE(0)), header = JSON.parse(raw.toString("utf8", 8, 8 + length));
  const w = { meta: header.__metadata__, config: JSON.parse(header.__metadata__.config), tensor: {} };
  delete header.__metadata__;
  for (const [name, t] of Object.entries(header)) {
    const flat = [], width = t.shape[t.shape.length - 1];
    for (let at = t.data_offsets[0]; at < t.data_offsets[1]; at += 4) flat.push(raw.readFloatLE(8 + length + at));
    w.tensor[name] = t.shape.length === 1 ? flat : Array.from({ length: flat.length / width }, (_, i) => flat.slice(i * width, (i + 1) * width));
  }
  w.dense = (S, x, name) => linear(S, x, w.tensor[name + ".weight"], w.tensor[name + ".bias"]);
  w.norm = (x, name, eps) => x.map((row) => layernorm(row, w.tensor[name + ".weight"], w.tensor[name + ".bias"], eps));
  return w;
}

const hex = (x) => (single.setUint32(0, 0x7fc00000), x === x && single.setFloat32(0, x), single.getUint32(0).toString(16).padStart(8, "0"));

function newTaps() {
  const items = [];
  const tap = (name, x) => {
    const shape = [];
    for (let at = x; Array.isArray(at); at = at[0]) shape.push(at.length);
    items.push({ name: tap.scope + name, dtype: "F32", shape, raw: Buffer.from(x.flat(2).map(hex).join(""), "hex").swap32() });
    return x;
  };
  tap.scope = "";
  tap.ids = (name, ids) => {
    const raw = Buffer.alloc(8 * ids.length);
    ids.forEach((id, i) => raw.writeBigInt64LE(BigInt(id), 8 * i));
    items.push({ name, dtype: "I64", shape: [ids.length], raw });
  };
  tap.manifest = () => items.map((t, i) => {
    const size = t.dtype === "I64" ? 8 : 4, first = [];
    for (let at = 0; at < Math.min(t.raw.length, 8 * size); at += size) first.push(Buffer.from(t.raw.subarray(at, at + size)).reverse().toString("hex"));
    return [i, t.name, t.dtype, t.shape.join("x"), crypto.createHash("sha256").update(t.raw).digest("hex").slice(0, 16), first.join(" ")].join("\t");
  }).join("\n") + "\n";
  tap.write = (out, arithmetic) => {
    const header = { __metadata__: { format: "trace-1", contract: "1", arithmetic } };
    let at = 0;
    for (const t of items) header[t.name] = { dtype: t.dtype, shape: t.shape, data_offsets: [at, (at += t.raw.length)] };
    const text = Buffer.from(JSON.stringify(header)), length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(text.length));
    fs.writeFileSync(out + ".safetensors", Buffer.concat([length, text, ...items.map((t) => t.raw)]));
    fs.writeFileSync(out + ".taps", `# contract 1\n# arithmetic ${arithmetic}\n` + tap.manifest());
  };
  return tap;
}

// ==== section 5: models ====

const ACTIVATIONS = { gelu: "gelu", gelu_new: "gelu_new", gelu_pytorch_tanh: "gelu_new", relu: "relu", silu: "silu", swish: "silu" };

function attend(S, tap, at, ...rest) {
  const result = attention(S, ...rest);
  for (const part of ["scores", "probs", "ctx"]) tap(at + part, result[part]);
  return result.ctx;
}

function encoder(S, w, ids, tap) {
  const c = w.config, t = w.tensor, eps = c.layer_norm_eps, xlmr = w.meta.architecture.startsWith("XLMRoberta"), e = "embeddings.";
  let next = xlmr ? c.pad_token_id + 1 : 0;
  let x = tap(e + "sum", ids.map((id) => embeddingSum(t[e + "word_embeddings.weight"][id], t[e + "token_type_embeddings.weight"][0],
    t[e + "position_embeddings.weight"][xlmr && id === c.pad_token_id ? id : next++])));
  x = tap(e + "LayerNorm", w.norm(x, e + "LayerNorm", eps));
  for (let n = 0; n < c.num_hidden_layers; n++) {
    const at = `encoder.layer.${n}.`, dense = (y, name) => tap(at + name, w.dense(S, y, at + name)), norm = (y, name) => tap(at + name, w.norm(y, at + name, eps));
    const [q, k, v] = ["query", "key", "value"].map((part) => dense(x, "attention.self." + part));
    const ctx = attend(S, tap, at + "attention.self.", q, k, v, c.num_attention_heads, 1 / Math.sqrt(c.hidden_size / c.num_attention_heads), false);
    x = tap(at + "attention.output.residual", residual(dense(ctx, "attention.output.dense"), x));
    x = norm(x, "attention.output.LayerNorm");
    const h = tap(at + "intermediate.act", activation(ACTIVATIONS[c.hidden_act], dense(x, "intermediate.dense")));
    x = tap(at + "output.residual", residual(dense(h, "output.dense"), x));
    x = norm(x, "output.LayerNorm");
  }
  tap("probs", tap("classifier", w.dense(S, x, "classifier")).map(softmax));
}

function gpt2(S, w, x, tap) { // x: rows of wte, or vectors
  const c = w.config, C = c.n_embd, eps = c.layer_norm_epsilon;
  tap("wte", x);
  x = tap("embeddings", x.map((row, i) => embeddingSum(row, w.tensor["wpe.weight"][i])));
  for (let n = 0; n < c.n_layer; n++) {
    const at = `h.${n}.`, dense = (y, name) => tap(at + name, w.dense(S, y, at + name)), norm = (name) => tap(at + name, w.norm(x, at + name, eps));
    const qkv = dense(norm("ln_1"), "attn.c_attn"), [q, k, v] = [0, 1, 2].map((part) => qkv.map((row) => row.slice(part * C, (part + 1) * C)));
    const ctx = attend(S, tap, at + "attn.", q, k, v, c.n_head, 1 / Math.sqrt(C / c.n_head), true);
    x = tap(at + "resid_mid", residual(dense(ctx, "attn.c_proj"), x));
    const h = tap(at + "mlp.act", activation(ACTIVATIONS[c.activation_function], dense(norm("ln_2"), "mlp.c_fc")));
    x = tap(at + "resid_out", residual(dense(h, "mlp.c_proj"), x));
  }
  return tap("ln_f", w.norm(x, "ln_f", eps));
}

function bucket(c, d, decoder) {
  const B = decoder ? c.relative_attention_num_buckets : c.relative_attention_num_buckets >> 1, exact = B >> 1;
  const first = !decoder && d > 0 ? B : 0, t = decoder ? Math.max(-d, 0) : Math.abs(d);
  if (t < exact) return first + t;
  const r = f32(func("log", f32(t / exact)) / func("log", f32(c.relative_attention_max_distance / exact)));
  return first + Math.min(exact + Math.trunc(f32(r * (B - exact))), B - 1);
}

function t5(S, w, side, x, memory, tap) { // memory: the encoder's output, for the decoder
  const c = w.config, t = w.tensor, H = c.num_heads, decoder = side === "decoder", last = decoder ? "2" : "1", T = x.length;
  const blocks = Array.from({ length: decoder ? c.num_decoder_layers : c.num_layers }, (_, n) => `${side}.block.${n}.layer.`);
  const dense = (y, name) => tap(name, w.dense(S, y, name)), norm = (name) => tap(name, x.map((row) => rmsnorm(S, row, t[name + ".weight"], c.layer_norm_epsilon)));
  const remembered = decoder ? blocks.map((at) => ["k", "v"].map((part) => dense(memory, at + "1.EncDecAttention." + part))) : [];
  const table = side + ".block.0.layer.0.SelfAttention.relative_attention_bias";
  const bias = tap(table, Array.from({ length: H }, (_, h) => Array.from({ length: 2 * T }, (_, i) => t[table + ".weight"][bucket(c, i - T, decoder)][h])));
  tap(side + ".embed_tokens", x);
  blocks.forEach((at, n) => {
    const y = norm(at + "0.layer_norm"), self = at + "0.SelfAttention.", cross = at + "1.EncDecAttention.", ffn = at + last + ".DenseReluDense.";
    const [q, k, v] = ["q", "k", "v"].map((part) => dense(y, self + part));
    const ctx = attend(S, tap, self, q, k, v, H, 1, decoder, (h, i, j) => bias[h][j - i + T]);
    x = tap(at + "0.residual", residual(dense(ctx, self + "o"), x));
    if (decoder) {
      const asked = dense(norm(at + "1.layer_norm"), cross + "q");
      x = tap(at + "1.residual", residual(dense(attend(S, tap, cross, asked, ...remembered[n], H, 1, false), cross + "o"), x));
    }
    const z = norm(at + last + ".layer_norm");
    let h;
    if (c.feed_forward_proj === "gated-gelu") {
      const [a, g] = ["wi_0", "wi_1"].map((part) => dense(z, ffn + part));
      h = gated("gelu_new", a, g);
    } else h = activation("relu", dense(z, ffn + "wi"));
    x = tap(at + last + ".residual", residual(dense(tap(ffn + "act", h), ffn + "wo"), x));
  });
  return norm(side + ".final_layer_norm");
}

function head(S, x, w, target, tap) {
  const logits = tap("lm_head", linear(S, x, w)), lse = tap("lse", logits.map((row) => [logsumexp(row)]));
  tap("logprob", target.map((id, i) => [f32(logits[i][id] - lse[i][0])]));
}

function languageModel(S, w, run, vectors, tap) {
  const c = w.config, t = w.tensor, columnsOf = (m, ids) => ids.map((id) => m.map((row) => row[id]));
  if (t["wpe.weight"]) return head(S, gpt2(S, w, [...vectors, ...columnsOf(t["wte.weight"], run.ids)], tap).slice(vectors.length), t["wte.weight"], run.ids.slice(1), tap);
  const tied = c.tie_word_embeddings, embed = (ids) => (tied ? columnsOf(t["shared.weight"], ids) : ids.map((id) => t["shared.weight"][id]));
  const memory = t5(S, w, "encoder", [...vectors, ...embed(run.encoder_ids || [])], null, tap), scale = 1 / Math.sqrt(c.d_model);
  let x = t5(S, w, "decoder", embed([c.decoder_start_token_id, ...run.ids.slice(0, -1)]), memory, tap);
  if (c.scale_decoder_outputs) x = tap("decoder.scaled", x.map((row) => row.map((e) => f32(e * scale))));
  return head(S, x, t[tied ? "shared.weight" : "lm_head.weight"], run.ids, tap);
}

function distil(S, w, ids, tap) {
  const t = w.tensor, prompt = t.init_prompt_weight;
  tap.scope = "hypernet.";
  let x = gpt2(S, w, [...ids.map((id) => t["wte.weight"].map((row) => row[id])), ...prompt], tap).slice(-prompt.length);
  if (t["adap_pooler.dense.weight"]) x = tap("adap_pooler.act", activation("tanh", tap("adap_pooler.dense", w.dense(S, x, "adap_pooler.dense"))));
  tap.scope = "";
  return x;
}

function compute(folder, run, S) {
  const open = (name) => openModel(path.join(folder, "models", name + ".safetensors")), tap = newTaps();
  for (const name of ["ids", "encoder_ids", "demonstration_ids"]) if (run[name]) tap.ids("input." + name, run[name]);
  if (run.model) encoder(S, open(run.model), run.ids, tap);
  else languageModel(S, open(run.llm), run, run.mend ? distil(S, open(run.mend), run.demonstration_ids, tap) : [], tap);
  return tap;
}

// ==== vectors: one op each ====

function evaluate(vector) {
  const numbers = (text) => text && text.split(" ").map((e) => (single.setUint32(0, parseInt(e, 16)), single.getFloat32(0)));
  const [x, w, b] = [vector.x, vector.w, vector.b].map(numbers), S = ARITHMETICS[vector.math || "reference"];
  const rows = (flat, width) => Array.from({ length: flat.length / width }, (_, i) => flat.slice(i * width, (i + 1) * width));
  switch (vector.op) {
    case "linear": return linear(S, [x], rows(w, w.length / x.length), b)[0];
    case "embedding_sum": return b ? embeddingSum(x, w, b) : embeddingSum(x, w);
    case "layernorm": return layernorm(x, w, b, vector.eps);
    case "rmsnorm": return rmsnorm(S, x, w, vector.eps);
    case "softmax": return softmax(x);
    case "logsumexp": return [logsumexp(x)];
    case "residual": return residual([x], [w])[0];
    case "gated": return gated(vector.function, [x], [w])[0];
    case "attention": return attention(S, [x], rows(w, x.length), rows(b, x.length), 1, 1 / Math.sqrt(x.length)).ctx[0];
    default: return x.map((e) => func(vector.op, e));
  }
}

function checkVectors(folder) {
  const lines = fs.readFileSync(path.join(folder, "vectors.jsonl"), "utf8").trim().split("\n");
  const wrong = lines.filter((line, i) => {
    const vector = JSON.parse(line), y = evaluate(vector).map(hex).join(" ");
    if (y !== vector.y) console.log(`vector ${i}, ${vector.op}: ${y}, not ${vector.y}: ${vector.catches}`);
    return y !== vector.y;
  });
  console.log(`${lines.length} vectors, ${wrong.length} wrong`);
  return wrong.length ? 1 : 0;
}

module.exports = { func, hex };
if (require.main !== module) return;
const [folder, name, arithmetic, out] = process.argv.slice(2);
if (name === "vectors") process.exitCode = checkVectors(folder);
else {
  const tap = compute(folder, JSON.parse(fs.readFileSync(path.join(folder, "runs.json")))[name], ARITHMETICS[arithmetic]);
  if (out) tap.write(out, arithmetic);
  else process.stdout.write(tap.manifest());
}
