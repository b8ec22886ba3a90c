"""docs/NUMERICS.md in Python, standard library alone: every op and model, to the bit, slowly. A port to read beside the document.

usage: python3 test/ports/contract.py FOLDER NAME fast|reference [OUT]     a run of FOLDER/runs.json: OUT.taps and OUT.safetensors, or the manifest on stdout
       python3 test/ports/contract.py FOLDER vectors                       every vector of FOLDER/vectors.jsonl

Python's float is float64 and rounds each operation by itself, so that RN64 is there already; RN32 is f32(). Matrices are lists of rows.
"""
import decimal
import fractions
import hashlib
import json
import math
import os
import struct
import sys

INF, NAN = math.inf, math.nan


# ==== section 1: numbers ====

def f32(x):
    """RN32."""
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(INF, x)


def bits(x):
    return "7fc00000" if x != x else struct.pack(">f", x).hex()


def to_odd(t, up):
    """The neighbour of t towards an exact value above (up) or below it, if t's last bit is 0: the next rounding is then right."""
    m = struct.unpack("<q", struct.pack("<d", t))[0]
    if m & 1:
        return t
    return struct.unpack("<d", struct.pack("<q", m + (1 if up == (t > 0) else -1)))[0]


def fma32(a, b, s):
    """RN32(a*b + s)."""
    p = a * b
    t = p + s
    if t - t != 0:  # infinite or NaN
        return f32(t)
    back = t - p
    error = (p - (t - back)) + (s - back)
    return f32(to_odd(t, error > 0) if error and t else t)


class Fast:
    name = "fast"

    @staticmethod
    def S(a, b):
        s = 0.0
        for x, y in zip(a, b):
            s = fma32(x, y, s)
        return s


class Reference:
    name = "reference"

    @staticmethod
    def S(a, b):
        s = 0.0
        for x, y in zip(a, b):
            s = s + x * y
        return s


def Sum(a):
    s = 0.0
    for x in a:
        s = s + x
    return s


def quotient(a, b):
    """IEEE's a / b."""
    if b:
        return a / b
    return NAN if a == 0 or a != a else math.copysign(INF, a) * math.copysign(1, b)


def square_root(x):
    return math.sqrt(x) if x >= 0 else NAN


# ==== section 2: functions ====
# A float64 value that is right to about 1e-13 settles nearly every rounding; decimal arithmetic of 160 digits the others.

D = decimal.Decimal
decimal.getcontext().prec = 160
decimal.getcontext().Emin, decimal.getcontext().Emax = -10**9, 10**9


def exact_erfc(z):
    """1 - erf z, from erf z = 2/sqrt(pi) e^(-z^2) sum of 2^n z^(2n+1) / (1 3 5 .. 2n+1), whose terms are all of one sign."""
    term = total = z
    n = 0
    while abs(term) > abs(total) * D(10) ** -150:
        n += 1
        term = term * 2 * z * z / (2 * n + 1)
        total += term
    return 1 - 2 / PI.sqrt() * (-z * z).exp() * total


def machin():
    def arctan(inverse):
        total = term = D(1) / inverse
        k = 1
        while abs(term) > D(10) ** -158:
            term /= -inverse * inverse
            k += 2
            total += term / k
        return total
    return 16 * arctan(5) - 4 * arctan(239)


PI = machin()


def gelu_new_slope(x, sqrt, root, cubic):
    return 2 * sqrt(root) * (x + cubic * x * x * x)


def safe_exp(x):
    return math.exp(x) if x < 709 else INF


FAST = {
    "exp": safe_exp,
    "log": math.log,
    "tanh": math.tanh,
    "gelu": lambda x: x / 2 * math.erfc(-x / math.sqrt(2)),
    "gelu_new": lambda x: x / (1 + safe_exp(-gelu_new_slope(x, math.sqrt, 2 / math.pi, 0.044715))),
    "silu": lambda x: x / (1 + safe_exp(-x)),
}
EXACT = {
    "exp": lambda x: x.exp(),
    "log": lambda x: x.ln(),
    "tanh": lambda x: 1 - 2 / ((2 * x).exp() + 1),
    "gelu": lambda x: x / 2 * exact_erfc(-x / D(2).sqrt()),
    "gelu_new": lambda x: x / (1 + (-gelu_new_slope(x, D.sqrt, 2 / PI, D("0.044715"))).exp()),
    "silu": lambda x: x / (1 + (-x).exp()),
}
LIMITS = {  # (-inf, +inf, below: certainly underflows)
    "exp": (0.0, INF, -200), "tanh": (-1.0, 1.0, -INF), "gelu": (-0.0, INF, -30), "gelu_new": (-0.0, INF, -30), "silu": (-0.0, INF, -200)}


def function(name, x):
    """F(x)."""
    if x != x:
        return NAN
    if name == "relu":
        return 0.0 if x < 0 else x
    if name == "log":
        if x <= 0 or x == INF:
            return NAN if x < 0 else -INF if x == 0 else INF
    else:
        low, high, least = LIMITS[name]
        if x < least or x == -INF:
            return low
        if x == INF or (x == 0 and name != "exp") or (name == "exp" and x > 100):
            return x if x == 0 else high
    y = FAST[name](x)
    low, high = f32(y * (1 - 1e-12)), f32(y * (1 + 1e-12))
    if low == high:
        return low
    exact = EXACT[name](D(x))
    y = float(exact)
    difference = fractions.Fraction(exact) - fractions.Fraction(y)
    return f32(to_odd(y, difference > 0) if difference else y)


# ==== section 3: ops, on rows ====

def column(w, o):
    return [row[o] for row in w]


def linear(m, x, w, b=None):
    columns = [column(w, o) for o in range(len(w[0]))]
    return [[f32(m.S(row, c) if b is None else m.S(row, c) + b[o]) for o, c in enumerate(columns)] for row in x]


def embedding_sum(*rows):
    return [f32(sum(items[1:], items[0])) for items in zip(*rows)]


def layernorm(x, g, b, eps):
    C = float(len(x))
    u = Sum(x) / C
    v = Sum((e - u) * (e - u) for e in x) / C
    r = quotient(1.0, square_root(v + eps))
    return [f32(((e - u) * r) * gain + bias) for e, gain, bias in zip(x, g, b)]


def rmsnorm(m, x, g, eps):
    r = quotient(1.0, square_root(m.S(x, x) / float(len(x)) + eps))
    return [f32((e * r) * gain) for e, gain in zip(x, g)]


def greatest(row):
    m = row[0]
    for e in row:
        m = e if e > m else m
    return m


def softmax(row):
    m = greatest(row)
    e = [function("exp", f32(s - m)) for s in row]
    Z = Sum(e)
    return [f32(quotient(p, Z)) for p in e]


def logsumexp(row):
    m = greatest(row)
    return f32(m + function("log", f32(Sum(function("exp", f32(x - m)) for x in row))))


def residual(x, y):
    return [[f32(a + b) for a, b in zip(p, q)] for p, q in zip(x, y)]


def activation(name, x):
    return [[function(name, e) for e in row] for row in x]


def gated(name, x, z):
    return [[f32(function(name, a) * b) for a, b in zip(p, q)] for p, q in zip(x, z)]


def attention(m, q, k, v, heads, scale, causal=False, bias=None):
    """scores and probs [heads][Tq][Tk], ctx [Tq][C]; bias(h, i, j)."""
    width = len(q[0]) // heads
    scores, probs, ctx = [], [], [[] for _ in q]
    for h in range(heads):
        at = slice(h * width, (h + 1) * width)
        scores.append([]), probs.append([])
        for i, query in enumerate(q):
            keys = min(len(k), i + 1) if causal else len(k)
            s = [m.S(query[at], k[j][at]) * scale for j in range(keys)]
            s = [f32(e if bias is None else e + bias(h, i, j)) for j, e in enumerate(s)]
            p = softmax(s)
            scores[h].append(s + [-INF] * (len(k) - keys))
            probs[h].append(p + [0.0] * (len(k) - keys))
            ctx[i] += [f32(m.S(p, [v[j][c] for j in range(keys)])) for c in range(at.start, at.stop)]
    return scores, probs, ctx


# ==== the flat file, and runs ====

class Model:
    def __init__(self, path):
        with open(path, "rb") as f:
            raw = f.read()
        (length,) = struct.unpack_from("<Q", raw)
        header = json.loads(raw[8:8 + length])
        self.meta = header.pop("__metadata__")
        self.config = json.loads(self.meta["config"])
        self.tensor = {}
        for name, t in header.items():
            begin, end = (8 + length + at for at in t["data_offsets"])
            flat = list(struct.unpack("<%df" % ((end - begin) // 4), raw[begin:end]))
            width = t["shape"][-1]
            self.tensor[name] = flat if len(t["shape"]) == 1 else [flat[i:i + width] for i in range(0, len(flat), width)]

    def __getitem__(self, name):
        return self.tensor[name]

    def __contains__(self, name):
        return name in self.tensor

    def dense(self, m, x, name):
        return linear(m, x, self[name + ".weight"], self[name + ".bias"] if name + ".bias" in self else None)

    def norm(self, x, name, eps):
        return [layernorm(row, self[name + ".weight"], self[name + ".bias"], eps) for row in x]


class Taps:
    """Results in order: (name, dtype, shape, bytes)."""

    def __init__(self):
        self.items, self.scope, self.inputs = [], "", b""

    def ids(self, name, ids):
        raw = struct.pack("<%dq" % len(ids), *ids)
        self.inputs += raw
        self.items.append((name, "I64", [len(ids)], raw))

    def __call__(self, name, x):
        shape, flat = [], x
        while isinstance(flat[0], list):
            shape.append(len(flat))
            flat = [e for row in flat for e in row]
        shape.append(len(flat))
        for i in range(1, len(shape)):
            shape[i] //= math.prod(shape[:i])
        self.items.append((self.scope + name, "F32", shape, b"".join(bytes.fromhex(bits(e))[::-1] for e in flat)))
        return x

    def manifest(self):
        """The lines that are compared: all fields but the last three."""
        for i, (name, dtype, shape, raw) in enumerate(self.items):
            size = 8 if dtype == "I64" else 4
            first = " ".join(raw[k:k + size][::-1].hex() for k in range(0, min(len(raw), 8 * size), size))
            yield "\t".join([str(i), name, dtype, "x".join(map(str, shape)), hashlib.sha256(raw).hexdigest()[:16], first])

    def write(self, path, arithmetic):
        header, at = {"__metadata__": {"format": "trace-1", "contract": "1", "arithmetic": arithmetic}}, 0
        for name, dtype, shape, raw in self.items:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
            at += len(raw)
        text = json.dumps(header).encode()
        with open(path + ".safetensors", "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + b"".join(item[3] for item in self.items))
        with open(path + ".taps", "w") as f:
            f.write("# contract 1\n# arithmetic %s\n" % arithmetic + "\n".join(self.manifest()) + "\n")


# ==== section 5: models ====

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}


def encoder(m, w, ids, tap):
    c = w.config
    eps, H, act = c["layer_norm_eps"], c["num_attention_heads"], ACTIVATIONS[c["hidden_act"]]
    xlmr = w.meta["architecture"].startswith("XLMRoberta")
    position, next_position = [], c["pad_token_id"] + 1 if xlmr else 0
    for i in ids:
        padding = xlmr and i == c["pad_token_id"]
        position.append(i if padding else next_position)
        next_position += not padding
    e = "embeddings."
    x = tap(e + "sum", [embedding_sum(w[e + "word_embeddings.weight"][i], w[e + "token_type_embeddings.weight"][0], w[e + "position_embeddings.weight"][p])
                        for i, p in zip(ids, position)])
    x = tap(e + "LayerNorm", w.norm(x, e + "LayerNorm", eps))
    for n in range(c["num_hidden_layers"]):
        at = "encoder.layer.%d." % n
        q, k, v = (tap(at + "attention.self." + part, w.dense(m, x, at + "attention.self." + part)) for part in ("query", "key", "value"))
        for part, value in zip(("scores", "probs", "ctx"), attention(m, q, k, v, H, 1 / math.sqrt(float(len(x[0]) // H)))):
            tap(at + "attention.self." + part, value)
        y = tap(at + "attention.output.dense", w.dense(m, value, at + "attention.output.dense"))
        x = tap(at + "attention.output.residual", residual(y, x))
        x = tap(at + "attention.output.LayerNorm", w.norm(x, at + "attention.output.LayerNorm", eps))
        y = tap(at + "intermediate.dense", w.dense(m, x, at + "intermediate.dense"))
        y = tap(at + "intermediate.act", activation(act, y))
        y = tap(at + "output.dense", w.dense(m, y, at + "output.dense"))
        x = tap(at + "output.residual", residual(y, x))
        x = tap(at + "output.LayerNorm", w.norm(x, at + "output.LayerNorm", eps))
    tap("probs", [softmax(row) for row in tap("classifier", w.dense(m, x, "classifier"))])


def gpt2(m, w, x, tap):
    """x: rows of wte, or vectors."""
    c = w.config
    eps, H, C = c["layer_norm_epsilon"], c["n_head"], c["n_embd"]
    tap("wte", x)
    x = tap("embeddings", [embedding_sum(row, w["wpe.weight"][i]) for i, row in enumerate(x)])
    for n in range(c["n_layer"]):
        at = "h.%d." % n
        y = tap(at + "ln_1", w.norm(x, at + "ln_1", eps))
        qkv = tap(at + "attn.c_attn", w.dense(m, y, at + "attn.c_attn"))
        q, k, v = ([row[part * C:(part + 1) * C] for row in qkv] for part in range(3))
        for part, value in zip(("scores", "probs", "ctx"), attention(m, q, k, v, H, 1 / math.sqrt(float(C // H)), causal=True)):
            tap(at + "attn." + part, value)
        y = tap(at + "attn.c_proj", w.dense(m, value, at + "attn.c_proj"))
        x = tap(at + "resid_mid", residual(y, x))
        y = tap(at + "ln_2", w.norm(x, at + "ln_2", eps))
        y = tap(at + "mlp.c_fc", w.dense(m, y, at + "mlp.c_fc"))
        y = tap(at + "mlp.act", activation(ACTIVATIONS[c["activation_function"]], y))
        y = tap(at + "mlp.c_proj", w.dense(m, y, at + "mlp.c_proj"))
        x = tap(at + "resid_out", residual(y, x))
    return tap("ln_f", w.norm(x, "ln_f", eps))


def bucket(c, d, decoder):
    B, first, t = c["relative_attention_num_buckets"], 0, max(-d, 0)
    if not decoder:
        B //= 2
        first, t = (B if d > 0 else 0), abs(d)
    exact = B // 2
    if t < exact:
        return first + t
    r = f32(function("log", f32(t / exact)) / function("log", f32(c["relative_attention_max_distance"] / exact)))
    return first + min(exact + int(f32(r * (B - exact))), B - 1)


def t5(m, w, side, x, memory, tap):
    """memory: the encoder's output, for the decoder."""
    c = w.config
    eps, H, decoder = c["layer_norm_epsilon"], c["num_heads"], side == "decoder"
    layers = c["num_decoder_layers"] if decoder else c["num_layers"]
    blocks = [side + ".block.%d.layer." % n for n in range(layers)]
    cross = "1.EncDecAttention."
    remembered = [[tap(at + cross + part, w.dense(m, memory, at + cross + part)) for part in "kv"] for at in blocks] if decoder else []
    T, table = len(x), side + ".block.0.layer.0.SelfAttention.relative_attention_bias"
    bias = tap(table, [[w[table + ".weight"][bucket(c, i - T, decoder)][h] for i in range(2 * T)] for h in range(H)])
    tap(side + ".embed_tokens", x)

    def norm(name):
        return tap(name, [rmsnorm(m, row, w[name + ".weight"], eps) for row in x])

    def attend(at, q, k, v, **more):
        for part, value in zip(("scores", "probs", "ctx"), attention(m, q, k, v, H, 1.0, **more)):
            tap(at + part, value)
        return tap(at + "o", w.dense(m, value, at + "o"))
    for n, at in enumerate(blocks):
        y = norm(at + "0.layer_norm")
        self = at + "0.SelfAttention."
        q, k, v = (tap(self + part, w.dense(m, y, self + part)) for part in "qkv")
        y = attend(self, q, k, v, causal=decoder, bias=lambda h, i, j: bias[h][j - i + T])
        x = tap(at + "0.residual", residual(y, x))
        if decoder:
            y = norm(at + "1.layer_norm")
            q = tap(at + cross + "q", w.dense(m, y, at + cross + "q"))
            x = tap(at + "1.residual", residual(attend(at + cross, q, *remembered[n]), x))
        last = at + ("2" if decoder else "1")
        y, ffn = norm(last + ".layer_norm"), last + ".DenseReluDense."
        if c["feed_forward_proj"] == "gated-gelu":
            h, g = (tap(ffn + part, w.dense(m, y, ffn + part)) for part in ("wi_0", "wi_1"))
            y = tap(ffn + "act", gated("gelu_new", h, g))
        else:
            y = tap(ffn + "act", activation("relu", tap(ffn + "wi", w.dense(m, y, ffn + "wi"))))
        y = tap(ffn + "wo", w.dense(m, y, ffn + "wo"))
        x = tap(last + ".residual", residual(y, x))
    return norm(side + ".final_layer_norm")


def head(m, x, w, target, tap):
    logits = tap("lm_head", linear(m, x, w))
    lse = tap("lse", [[logsumexp(row)] for row in logits])
    tap("logprob", [[f32(row[t] - s)] for row, t, (s,) in zip(logits, target, lse)])


def language_model(m, w, run, vectors, tap):
    ids, c = run["ids"], w.config
    if "wpe.weight" in w:
        x = gpt2(m, w, vectors + [column(w["wte.weight"], i) for i in ids], tap)
        return head(m, x[len(vectors):], w["wte.weight"], ids[1:], tap)
    tied = c["tie_word_embeddings"]

    def embed(pieces):
        return [column(w["shared.weight"], i) if tied else w["shared.weight"][i] for i in pieces]
    memory = t5(m, w, "encoder", vectors + embed(run["encoder_ids"]), None, tap)
    x = t5(m, w, "decoder", embed([c["decoder_start_token_id"]] + ids[:-1]), memory, tap)
    if c["scale_decoder_outputs"]:
        scale = 1 / math.sqrt(float(c["d_model"]))
        x = tap("decoder.scaled", [[f32(e * scale) for e in row] for row in x])
    return head(m, x, w["shared.weight" if tied else "lm_head.weight"], ids, tap)


def distil(m, w, ids, tap):
    tap.scope, prompt = "hypernet.", w["init_prompt_weight"]
    x = gpt2(m, w, [column(w["wte.weight"], i) for i in ids] + prompt, tap)[-len(prompt):]
    if "adap_pooler.dense.weight" in w:
        x = tap("adap_pooler.act", activation("tanh", tap("adap_pooler.dense", w.dense(m, x, "adap_pooler.dense"))))
    tap.scope = ""
    return x


def compute(folder, run, m):
    """A run of runs.json."""
    def model(key):
        return Model(os.path.join(folder, "models", run[key] + ".safetensors"))
    tap = Taps()
    for name in ("ids", "encoder_ids", "demonstration_ids"):
        if name in run:
            tap.ids("input." + name, run[name])
    if "model" in run:
        encoder(m, model("model"), run["ids"], tap)
    else:
        vectors = distil(m, model("mend"), run["demonstration_ids"], tap) if "mend" in run else []
        language_model(m, model("llm"), run, vectors, tap)
    return tap


# ==== vectors: one op each ====

def evaluate(vector):
    """The result of one line of vectors.jsonl, flat."""
    def numbers(key):
        return [struct.unpack(">f", bytes.fromhex(e))[0] for e in vector[key].split()] if key in vector else None

    def rows(flat, width):
        return [flat[i:i + width] for i in range(0, len(flat), width)]
    op, m = vector["op"], Fast if vector.get("math") == "fast" else Reference
    x, w, b = numbers("x"), numbers("w"), numbers("b")
    if op == "linear":
        return linear(m, [x], rows(w, len(w) // len(x)), b)[0]
    if op == "embedding_sum":
        return embedding_sum(*filter(None, (x, w, b)))
    if op == "layernorm":
        return layernorm(x, w, b, vector["eps"])
    if op == "rmsnorm":
        return rmsnorm(m, x, w, vector["eps"])
    if op == "softmax":
        return softmax(x)
    if op == "logsumexp":
        return [logsumexp(x)]
    if op == "residual":
        return residual([x], [w])[0]
    if op == "gated":
        return gated(vector["function"], [x], [w])[0]
    if op == "attention":  # one query x, its keys w and values b, with c = 1/sqrt(D)
        return attention(m, [x], rows(w, len(x)), rows(b, len(x)), 1, 1 / math.sqrt(float(len(x))))[2][0]
    return [function(op, e) for e in x]


def check_vectors(folder):
    failed = 0
    with open(os.path.join(folder, "vectors.jsonl")) as f:
        for number, line in enumerate(f):
            vector = json.loads(line)
            y = " ".join(map(bits, evaluate(vector)))
            if y != vector["y"]:
                failed += 1
                print("vector %d, %s: %s, not %s: %s" % (number, vector["op"], y, vector["y"], vector["catches"]))
    print("%d vectors, %d wrong" % (number + 1, failed))
    return failed


def main():
    folder, name = sys.argv[1:3]
    if name == "vectors":
        return 1 if check_vectors(folder) else 0
    with open(os.path.join(folder, "runs.json")) as f:
        tap = compute(folder, json.load(f)[name], Fast if sys.argv[3] == "fast" else Reference)
    if len(sys.argv) > 4:
        tap.write(sys.argv[4], sys.argv[3])
    else:
        print("\n".join(tap.manifest()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
