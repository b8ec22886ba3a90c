"""Make conformance/vectors.jsonl: for every op, inputs on which one particular mistake gives other bits. Imported by make_conformance.py.

A vector is searched for: random inputs until the right result (test/ports/contract.py) and the one with the mistake differ. Sums get cancelling pairs
and wide exponents, so that float64's own roundings reach the float32 result; without that no random test can tell the order of a float64 sum.
"""
import json
import math
import os
import random
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "ports"))
import contract  # noqa: E402
from contract import Fast, Reference, Sum, bits, f32, fma32, function, greatest  # noqa: E402

TRIES = 20000


# ==== numbers ====

class Dice(random.Random):
    def near(self):
        """1/16 to 4, 24 random bits."""
        return self.choice((-1, 1)) * f32((1 + self.getrandbits(23) / 2 ** 23) * 2.0 ** (self.getrandbits(8) % 6 - 4))

    def wide(self):
        return f32(self.near() * 2.0 ** (self.getrandbits(8) % 25 - 12))

    def cancelling(self, n):
        """n numbers whose large ones cancel, in random places."""
        x = [self.near() for _ in range(n)]
        for i in range(0, n - 1, 4):
            big = f32(self.near() * 2.0 ** 34)
            x[i], x[i + 1] = big, -big
        order = sorted(range(n), key=lambda _: self.getrandbits(30))
        return [x[i] for i in order]


# ==== the right ops with one thing wrong ====

def chain(step, pairs):
    s = 0.0
    for a, b in pairs:
        s = step(s, a, b)
    return s


def unfused(s, a, b):
    return f32(f32(a * b) + s)


def twice_rounded(s, a, b):
    return f32(a * b + s)


def f64_step(s, a, b):
    return s + a * b


def fast_step(s, a, b):
    return fma32(a, b, s)


def lanes(step, add, count):
    def S(x, w):
        part = [chain(step, list(zip(x, w))[lane::count]) for lane in range(count)]
        while len(part) > 1:
            half = len(part) // 2
            part = [add(part[i], part[i + half]) for i in range(half)]
        return part[0]
    return S


def add32(a, b):
    return f32(a + b)


def add64(a, b):
    return a + b


def flushed(x):
    return math.copysign(0.0, x) if abs(x) < 2.0 ** -126 else x


def dot(S):
    """A linear of one output whose dot product is S."""
    return lambda v: [f32(S(v["x"], v["w"]))]


def layernorm_with(mean=None, variance=None, root=None, last=None):
    def op(v):
        x, C, eps = v["x"], float(len(v["x"])), v["eps"]
        u = (mean or (lambda x: Sum(x) / C))(x)
        s = (variance or (lambda x, u: Sum((e - u) * (e - u) for e in x) / C))(x, u)
        r = (root or (lambda s: 1 / math.sqrt(s + eps)))(s)
        y = last or (lambda e, g, b, u, r: ((e - u) * r) * g + b)
        return [f32(y(e, g, b, u, r)) for e, g, b in zip(x, v["w"], v["b"])]
    return op


def softmax_with(minus=None, total=Sum, share=lambda p, Z: p / Z):
    def op(v):
        m = greatest(v["x"])
        e = [(minus or (lambda s: function("exp", f32(s - m))))(s) for s in v["x"]]
        Z = total(e)
        return [f32(share(p, Z)) for p in e]
    return op


def sum32(a):
    s = 0.0
    for x in a:
        s = f32(s + x)
    return s


def backwards(a):
    return Sum(reversed(list(a)))


def one_query(scale=None, after=False):
    """Attention with the scale on the query, or with the division by Z left to the end."""
    def op(v):
        q, D = v["x"], len(v["x"])
        keys, values = ([v[k][i:i + D] for i in range(0, len(v[k]), D)] for k in ("w", "b"))
        c = 1 / math.sqrt(float(D))
        S = Reference.S
        s = [f32(S([f32(e * c) for e in q], k)) if scale == "query" else f32(f32(S(q, k)) * f32(c)) if scale == "float" else f32(S(q, k) * c) for k in keys]
        m = greatest(s)
        e = [function("exp", f32(t - m)) for t in s]
        Z = Sum(e)
        if after:
            return [f32(S(e, [value[d] for value in values]) / Z) for d in range(D)]
        return [f32(S([f32(p / Z) for p in e], [value[d] for value in values])) for d in range(D)]
    return op


def of_function(f):
    return lambda v: [f(x) for x in v["x"]]


def float_logistic(x):
    return f32(1 / f32(1 + function("exp", f32(-x))))


def gelu_float(x):
    return f32(f32(0.5 * x) * f32(1 + f32(math.erf(f32(x * f32(1 / math.sqrt(2)))))))


def gelu_new_float_constants(x):
    return f32(x / (1 + math.exp(-2 * f32(math.sqrt(2 / math.pi)) * (x + f32(0.044715) * x * x * x))))


# ==== what is searched for: (op, arithmetic, inputs, mistake, words, more fields) ====

def pair(n, kind="near"):
    def inputs(d):
        if kind == "cancelling":
            return {"x": d.cancelling(n), "w": [1.0] * n}
        return {"x": [getattr(d, kind)() for _ in range(n)], "w": [getattr(d, kind)() for _ in range(n)]}
    return inputs


def with_bias(inputs):
    return lambda d: {**inputs(d), "b": [f32(d.near() * 2.0 ** -9)]}


def norm_row(n, offset=0.0, spread=1.0, eps=1e-5, bias=True):
    def inputs(d):
        v = {"x": [f32(offset + d.near() * spread) for _ in range(n)], "w": [d.near() for _ in range(n)], "eps": eps}
        if bias:
            v["b"] = [d.near() for _ in range(n)]
        return v
    return inputs


def norm_cancelling(n, eps=1e-5):
    return lambda d: {"x": d.cancelling(n), "w": [d.near() for _ in range(n)], "b": [0.0] * n, "eps": eps}


def row(n, scale=1.0):
    return lambda d: {"x": [f32(d.near() * scale) for _ in range(n)]}


def fixed(**fields):
    return lambda d: fields


def head_of(D, keys):
    return lambda d: {"x": [d.near() for _ in range(D)], "w": [d.near() for _ in range(D * keys)], "b": [d.near() for _ in range(D * keys)]}


def rms_with(S):
    return lambda v: [f32((e * (1 / math.sqrt(S(v["x"], v["x"]) / float(len(v["x"])) + v["eps"]))) * g) for e, g in zip(v["x"], v["w"])]


INF = math.inf
# Inputs whose result lies within about 2^-50 of the middle between two float32 numbers: a float64 approximation alone does not settle the rounding.
HARD = {
    "exp": "c16912cd 4001b249 40315b33 3fe67199", "log": "3fd364d7 63b134d9 3fc55379 5a8f8e03", "tanh": "3cd41b91 bcd41b91 3d7c3055 bd7c3055",
    "gelu": "3e60b687 bc2df329 3c2df329 bca716f5", "gelu_new": "bb9377a9 3b9377a9 3f414d8f c0773385", "silu": "4126277f c0a8fb13 3f7ad435 c13da995",
}


def hard(name):
    x = [struct.unpack(">f", bytes.fromhex(e))[0] for e in HARD[name].split()]

    def wrong(x):
        y = contract.FAST[name](x)
        return f32(y * (1 + 2.0 ** -45)) if f32(y * (1 + 2.0 ** -45)) != function(name, x) else f32(y * (1 - 2.0 ** -45))
    return name, None, fixed(x=x), of_function(wrong), "results next to a midpoint, where float64 with an error of 2^-45 decides wrongly"


SEARCHES = [
    ("linear", "reference", pair(9, "cancelling"), dot(lambda x, w: Fast.S(x, w)), "a float32 accumulator in the reference arithmetic"),
    ("linear", "reference", pair(9, "cancelling"), dot(lambda x, w: Reference.S(x[::-1], w[::-1])), "k descending"),
    ("linear", "reference", pair(16, "cancelling"), dot(lanes(f64_step, add64, 2)), "two partial sums (even and odd k)"),
    ("linear", "reference", pair(16, "cancelling"), dot(lanes(f64_step, add64, 4)), "four lanes and a tree"),
    ("linear", "reference", pair(32, "cancelling"), dot(lanes(f64_step, add64, 8)), "eight lanes and a tree"),
    ("linear", "reference", pair(16, "cancelling"), dot(lambda x, w: Reference.S(x[:8], w[:8]) + Reference.S(x[8:], w[8:])), "a sum cut in two blocks"),
    ("linear", "reference", pair(9, "cancelling"), dot(lambda x, w: math.fsum(a * b for a, b in zip(x, w))), "an exact or compensated sum"),
    ("linear", "reference", pair(9), lambda v: [f32(sum32(f32(a * b) for a, b in zip(v["x"], v["w"])))], "float32 products and sums"),
    ("linear", "reference", with_bias(pair(9)), lambda v: [f32(f32(Reference.S(v["x"], v["w"])) + v["b"][0])], "the sum rounded to float32 before the bias is added"),
    ("linear", "reference", with_bias(pair(9, "cancelling")), lambda v: [f32(chain(f64_step, [(v["b"][0], 1.0)] + list(zip(v["x"], v["w"]))))], "the sum begun from the bias"),
    ("linear", "reference", with_bias(pair(9)), lambda v: [f32(Reference.S(v["x"], v["w"]))], "the bias left out"),
    ("linear", "fast", pair(9), dot(Reference.S), "a float64 accumulator in the fast arithmetic"),
    ("linear", "fast", pair(9), dot(lambda x, w: chain(unfused, zip(x, w))), "a product rounded before it is added (no fused multiply-add)"),
    ("linear", "fast", pair(9), dot(lambda x, w: Fast.S(x[::-1], w[::-1])), "k descending"),
    ("linear", "fast", pair(16), dot(lanes(fast_step, add32, 2)), "two partial sums"),
    ("linear", "fast", pair(16), dot(lanes(fast_step, add32, 4)), "four lanes and a tree"),
    ("linear", "fast", pair(32), dot(lanes(fast_step, add32, 8)), "eight lanes and a tree"),
    ("linear", "fast", pair(64), dot(lanes(fast_step, add32, 16)), "sixteen lanes and a tree"),
    ("linear", "fast", pair(16), dot(lambda x, w: f32(Fast.S(x[:8], w[:8]) + Fast.S(x[8:], w[8:]))), "a sum cut in two blocks"),
    ("linear", "fast", with_bias(pair(9)), lambda v: [chain(fast_step, [(v["b"][0], 1.0)] + list(zip(v["x"], v["w"])))], "the sum begun from the bias"),
    ("linear", "fast", fixed(x=[1 + 2.0 ** -23, 2.0 ** -12 - 2.0 ** -35], w=[1.0, 2.0 ** -12 + 2.0 ** -35]), dot(lambda x, w: chain(twice_rounded, zip(x, w))),
     "a fused multiply-add made of a float64 addition that is rounded twice"),
    ("linear", "fast", fixed(x=[2.0 ** -70, 3 * 2.0 ** -80], w=[2.0 ** -70, 2.0 ** -69]), dot(lambda x, w: flushed(Fast.S(x, w))), "a subnormal result taken for zero (FTZ)"),
    ("linear", "reference", fixed(x=[2.0 ** -70, 3 * 2.0 ** -80], w=[2.0 ** -70, 2.0 ** -69]), dot(lambda x, w: flushed(f32(Reference.S(x, w)))), "a subnormal result taken for zero (FTZ)"),
    ("linear", "fast", fixed(x=[3 * 2.0 ** -149, 1.0], w=[2.0 ** 30, 2.0 ** -118]), dot(lambda x, w: Fast.S([flushed(e) for e in x], w)), "a subnormal operand taken for zero (DAZ)"),
    ("linear", "reference", fixed(x=[-0.0, -0.0], w=[1.0, 2.0]), dot(lambda x, w: -0.0), "a sum begun from its first product (-0) instead of +0"),
    ("linear", "fast", fixed(x=[0.0, 1.0], w=[INF, 2.0]), dot(lambda x, w: 2.0), "a zero of x skipped: 0 * infinity is NaN"),
    ("linear", "reference", fixed(x=[2.0 ** 127, 2.0 ** 127, -2.0 ** 127], w=[1.0, 1.0, 1.0]), dot(lambda x, w: INF), "an overflow in the middle: float64 holds the sum"),
    ("linear", "fast", fixed(x=[2.0 ** 127, 2.0 ** 127, -2.0 ** 127], w=[1.0, 1.0, 1.0]), dot(lambda x, w: 2.0 ** 127), "an overflow in the middle that float32 must show"),
    ("linear", "reference", fixed(x=[1.0, 2.0 ** -24], w=[1.0, 1.0]), dot(lambda x, w: 1 + 2.0 ** -23), "a tie rounded away from the even number"),
    ("embedding_sum", None, lambda d: {"x": [d.wide() for _ in range(5)], "w": [d.wide() for _ in range(5)], "b": [d.wide() for _ in range(5)]},
     lambda v: [f32(f32(a + b) + c) for a, b, c in zip(v["x"], v["w"], v["b"])], "float32 between the two additions"),
    ("embedding_sum", None, fixed(x=[2.0 ** 60], w=[-2.0 ** 60], b=[1 + 2.0 ** -23]), lambda v: [f32((v["x"][0] + v["b"][0]) + v["w"][0])], "another order: position before type"),
    ("residual", None, fixed(x=[3 * 2.0 ** -149, -0.0, -0.0], w=[-2.0 ** -149, -0.0, 0.0]), lambda v: [0.0, -0.0, 0.0], "a subnormal sum flushed; signs of zeros"),
    ("layernorm", None, norm_row(13, offset=30000.0), layernorm_with(variance=lambda x, u: Sum(e * e for e in x) / len(x) - u * u), "the variance as mean of squares minus square of the mean"),
    ("layernorm", None, norm_row(13), layernorm_with(variance=lambda x, u: Sum((e - u) * (e - u) for e in x) / (len(x) - 1)), "the variance divided by C - 1"),
    ("layernorm", None, norm_row(13, offset=9.0), layernorm_with(mean=lambda x: f32(Sum(x) / len(x))), "the mean rounded to float32"),
    ("layernorm", None, norm_row(13), layernorm_with(root=lambda s: f32(1 / math.sqrt(s + 1e-5))), "the reciprocal root rounded to float32"),
    ("layernorm", None, norm_row(13, spread=0.001), layernorm_with(root=lambda s: 1 / (math.sqrt(s) + 1e-5)), "eps outside the root"),
    ("layernorm", None, norm_row(13, spread=2.0 ** -20, eps=1e-12), layernorm_with(root=lambda s: 1 / math.sqrt(s + 1e-5)), "eps 1e-5 where 1e-12 is asked for"),
    ("layernorm", None, norm_row(13, spread=2.0 ** -20, eps=1e-12), layernorm_with(root=lambda s: 1 / math.sqrt(s)), "eps left out"),
    ("layernorm", None, norm_row(13, spread=2.0 ** -20, eps=1e-12), layernorm_with(root=lambda s: 1 / math.sqrt(s + f32(1e-12))), "eps rounded to float32"),
    ("layernorm", None, norm_cancelling(13), layernorm_with(mean=lambda x: backwards(x) / len(x)), "the mean's sum in another order"),
    ("layernorm", None, norm_row(13), layernorm_with(last=lambda e, g, b, u, r: f32(f32(f32(e - u) * f32(r)) * g) + b), "float32 between the steps"),
    ("layernorm", None, norm_row(13), layernorm_with(last=lambda e, g, b, u, r: f32(((e - u) * r) * g) + b), "float32 before the bias"),
    ("layernorm", None, norm_row(13), layernorm_with(last=lambda e, g, b, u, r: ((e - u) * r) * g), "the bias left out"),
    ("layernorm", None, norm_row(13, offset=2.0 ** 20), layernorm_with(last=lambda e, g, b, u, r: (e * r - u * r) * g + b), "x*r - u*r in the place of (x-u)*r"),
    ("layernorm", None, fixed(x=[2.0, 2.0, 2.0], w=[1.0, 1.0, 1.0], b=[0.5, 0.25, -0.0], eps=1e-12), lambda v: [math.nan] * 3, "a constant row"),
    ("rmsnorm", "reference", norm_row(13, bias=False), rms_with(Fast.S), "a float32 sum of squares in the reference arithmetic"),
    ("rmsnorm", "fast", norm_row(13, bias=False), rms_with(Reference.S), "a float64 sum of squares in the fast arithmetic"),
    ("rmsnorm", "reference", norm_row(13, bias=False), lambda v: [f32(f32(e * (1 / math.sqrt(Reference.S(v["x"], v["x"]) / 13 + v["eps"]))) * g) for e, g in zip(v["x"], v["w"])],
     "the scaled row rounded to float32 before the gain"),
    ("rmsnorm", "reference", norm_row(13, offset=3.0, bias=False), lambda v: contract.layernorm(v["x"], v["w"], [0.0] * 13, v["eps"]), "the mean subtracted, as LayerNorm does"),
    ("softmax", None, row(9), softmax_with(total=sum32), "Z summed in float32"),
    ("softmax", None, row(9), softmax_with(share=lambda p, Z: p * f32(1 / Z)), "a product with the reciprocal of Z"),
    ("softmax", None, row(9), softmax_with(share=lambda p, Z: p / f32(Z)), "Z rounded to float32"),
    ("softmax", None, row(9, 30.0), softmax_with(minus=lambda s: function("exp", f32(s)) if s < 88 else INF), "no maximum subtracted"),
    ("softmax", None, fixed(x=[1.0, -99.0, 1.0]), softmax_with(total=Sum, share=lambda p, Z: 0.0 if p < 2.0 ** -126 else p / Z), "subnormal probabilities flushed"),
    ("softmax", None, fixed(x=[-INF, 0.5, -INF, 0.25]), lambda v: [math.nan] * 4, "scores of -infinity (masked keys)"),
    ("softmax", None, fixed(x=[0.5, -0.0, 0.0, 0.5]), lambda v: [0.0] * 4, "equal greatest elements, zeros of both signs"),
    ("logsumexp", None, row(9), lambda v: [f32(greatest(v["x"]) + math.log(Sum(function("exp", f32(x - greatest(v["x"]))) for x in v["x"])))], "the logarithm not rounded before m is added"),
    ("logsumexp", None, row(9), lambda v: [f32(greatest(v["x"]) + function("log", sum32(function("exp", f32(x - greatest(v["x"]))) for x in v["x"])))], "Z summed in float32"),
    ("attention", "reference", head_of(5, 7), one_query(scale="float"), "scores rounded before the scale"),
    ("attention", "reference", head_of(5, 7), one_query(scale="query"), "the scale put on the query"),
    ("attention", "reference", head_of(5, 7), one_query(after=True), "the division by Z left to the end"),
    ("attention", "fast", head_of(5, 7), one_query(), "a float64 accumulator in the fast arithmetic"),
    ("gated", None, lambda d: {"x": [d.near() for _ in range(5)], "w": [d.near() for _ in range(5)], "function": "gelu_new"},
     lambda v: [f32(x / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))) * z) for x, z in zip(v["x"], v["w"])], "the activation not rounded before the product"),
    ("gelu", None, row(9, 2.0), of_function(lambda x: function("gelu_new", x)), "GELU_NEW in the place of GELU"),
    ("gelu", None, row(9, 2.0), of_function(gelu_float), "erf and products in float32"),
    ("gelu", None, fixed(x=[-9.0, -12.5, -13.9, -5.5]), of_function(lambda x: f32(x / 2 * (1 + math.erf(x / math.sqrt(2))))), "1 + erf, which cancels in the tail"),
    ("gelu", None, fixed(x=[3 * 2.0 ** -149, -3 * 2.0 ** -149, 5 * 2.0 ** -149, -5 * 2.0 ** -149]), of_function(lambda x: f32(x / 2)), "x/2 at subnormals, where it is a tie that the factor settles"),
    ("gelu", None, fixed(x=[-0.0, 0.0, -INF, INF, -20.0]), of_function(lambda x: abs(x / 2 + x / 2)), "signs of zeros, infinities"),
    ("gelu_new", None, row(9, 2.0), of_function(lambda x: function("gelu", x)), "GELU in the place of GELU_NEW"),
    ("gelu_new", None, row(9, 2.0), of_function(gelu_new_float_constants), "its constants rounded to float32"),
    ("gelu_new", None, fixed(x=[-0.0, 0.0, -INF, INF, -11.0]), of_function(lambda x: abs(x / 2 + x / 2)), "signs of zeros, infinities, the tail"),
    ("silu", None, row(9, 4.0), of_function(lambda x: f32(x * float_logistic(x))), "the logistic function rounded to float32"),
    ("silu", None, fixed(x=[-0.0, -INF, INF, -100.0, -103.5]), of_function(lambda x: x), "signs of zeros, infinities, subnormal results"),
    ("tanh", None, row(9, 0.25), of_function(lambda x: f32(1 - 2 / f32(1 + function("exp", f32(2 * x))))), "tanh through a float32 exponential"),
    ("tanh", None, fixed(x=[-0.0, 2.0 ** -149, 9.01, 9.02, -INF]), of_function(lambda x: f32(1 - 2 / (1 + math.exp(2 * x))) if x < 300 and x > -300 else 1.0), "signs of zeros, subnormals, where 1 is reached"),
    ("exp", None, row(9, 16.0), of_function(lambda x: f32(2.0 ** f32(x * f32(1 / math.log(2))))), "2^(x/ln 2) with the exponent in float32"),
    ("exp", None, fixed(x=[f32(88.72283), f32(88.72284), f32(-87.4), f32(-100.0), f32(-103.97), f32(-103.98), -INF, INF]), of_function(lambda x: flushed(function("exp", x))), "overflow, subnormal results, underflow"),
    ("log", None, fixed(x=[2.0 ** -149, 3 * 2.0 ** -140, f32(1 + 2.0 ** -23), f32(1 - 2.0 ** -24), 0.0, -0.0, -1.0, INF]), of_function(lambda x: -INF if x < 2.0 ** -126 else function("log", x)),
     "subnormal arguments, arguments near 1, zeros, negative ones"),
    ("relu", None, fixed(x=[-0.0, 0.0, -1.0, 2.0 ** -149, math.nan, -INF]), of_function(lambda x: max(0.0, x)), "signs of zeros, subnormals, NaN"),
    *map(hard, HARD),
]


def as_text(v, op, arithmetic, catches):
    out = {"op": op}
    if arithmetic:
        out["math"] = arithmetic
    for key, value in v.items():
        out[key] = " ".join(map(bits, value)) if isinstance(value, list) else value
    return {**out, "y": "", "catches": catches}


def vectors():
    for number, (op, arithmetic, inputs, mistake, catches) in enumerate(SEARCHES):
        dice = Dice("vector %d" % number)
        for _ in range(TRIES):
            v = inputs(dice)
            line = as_text(v, op, arithmetic, catches)
            line["y"] = " ".join(map(bits, contract.evaluate(line)))
            if line["y"] != " ".join(map(bits, mistake(v))):
                yield line
                break
        else:
            sys.exit("no input shows this mistake: %s, %s" % (op, catches))


def write(path):
    with open(path, "w") as f:
        for line in vectors():
            f.write(json.dumps(line) + "\n")
