"""Golden values of the correctly rounded functions, by mpmath with 400 bits, rounded once to float32. usage: python3 test/make_crmath_golden.py > test/golden/crmath.txt

A line: function, bits of x, bits of F(x). Inputs: specials, neighbours of the thresholds where results saturate or become subnormal, subnormals,
powers of two and their neighbours, and random bit patterns (fixed seed)."""
import random
import struct

from mpmath import cosh, erfc, exp, log, mp, mpf, pi, sqrt, tanh

mp.prec = 400
CUBIC = mpf("0.044715")


def logistic_slope(x, w, dw):
    """The derivative of x / (1 + e^-w)."""
    s = 1 / (1 + exp(-w))
    return s * (1 + x * dw / (1 + exp(w)))


FUNCTIONS = {
    "exp": exp, "log": log, "tanh": tanh,
    "gelu": lambda x: x * erfc(-x / sqrt(mpf(2))) / 2,
    "gelu_new": lambda x: x / (1 + exp(-2 * sqrt(2 / pi) * (x + mpf("0.044715") * x ** 3))),
    "silu": lambda x: x / (1 + exp(-x)),
    "d_tanh": lambda x: 1 / cosh(x) ** 2,
    "d_gelu": lambda x: erfc(-x / sqrt(mpf(2))) / 2 + x * exp(-x * x / 2) / sqrt(2 * pi),
    "d_gelu_new": lambda x: logistic_slope(x, 2 * sqrt(2 / pi) * (x + CUBIC * x ** 3), 2 * sqrt(2 / pi) * (1 + 3 * CUBIC * x ** 2)),
    "d_silu": lambda x: logistic_slope(x, x, 1),
}
NAN, INF = 0x7FC00000, 0x7F800000


def value(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def rounded(v):
    """The bits of the float32 nearest to v > 0, ties to even."""
    exponent = max(int(mp.floor(log(v, 2))), -126)
    while v >= mpf(2) ** (exponent + 1):
        exponent += 1
    while exponent > -126 and v < mpf(2) ** exponent:
        exponent -= 1
    scaled = v / mpf(2) ** (exponent - 23)
    whole = int(mp.floor(scaled))
    rest = scaled - whole
    if rest > 0.5 or (rest == 0.5 and whole & 1):
        whole += 1
    if whole >= 1 << 24:
        whole, exponent = whole >> 1, exponent + 1
    if exponent > 127:
        return INF
    return whole if whole < 1 << 23 else ((exponent + 127) << 23) + (whole - (1 << 23))


def golden(name, bits):
    x = value(bits)
    if x != x or (name == "log" and x < 0):
        return NAN
    sign = bits >> 31
    if name.startswith("d_") and abs(x) > 1000:
        return 0 if name == "d_tanh" else 1 << 31 if sign else 0x3F800000
    if x == 0:
        one, half = 0x3F800000, 0x3F000000
        return {"exp": one, "log": INF | 1 << 31, "d_tanh": one, "d_gelu": half, "d_gelu_new": half, "d_silu": half}.get(name, bits)
    if x in (float("inf"), float("-inf")):
        return {"exp": 0 if sign else INF, "log": INF, "tanh": 0x3F800000 | sign << 31}.get(name, 1 << 31 if sign else INF)
    if name in ("gelu", "gelu_new", "silu") and abs(x) > 1000:
        return 1 << 31 if sign else bits
    if name == "exp" and abs(x) > 1000:
        return 0 if sign else INF
    if name == "tanh" and abs(x) > 100:
        return 0x3F800000 | sign << 31
    if name == "log" and x == 1:
        return 0
    v = FUNCTIONS[name](mpf(x))
    return rounded(abs(v)) | (1 << 31 if v < 0 else 0)


def inputs(draw):
    yield from (0, 1 << 31, INF, INF | 1 << 31, NAN, 0x7F800001, 1, 2, 3, 0x80000001, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800000, 0xBF800000)
    for limit in (88.72283, 87.33655, 103.27893, 103.97208, 9.010913, 13.1, 14.2, 10.1, 5.5, 0.4, 0.0156, 20.0, 110.0, 1.4142135, 0.7517916, 0.75246143, 1.2784645, 0.2517916, 1.2524614, 0.77846453, 12.0, 15.0, 55.0):
        at = struct.unpack("<I", struct.pack("<f", limit))[0]
        yield from (s << 31 | at + d for d in range(-8, 9) for s in (0, 1))
    for exponent in range(0, 255, 3):
        yield from (s << 31 | (exponent << 23) + d for d in (-1, 0, 1) for s in (0, 1) if exponent or d >= 0)
    yield from (draw.getrandbits(32) for _ in range(500))
    yield from (struct.unpack("<I", struct.pack("<f", draw.gauss(0, 4)))[0] for _ in range(700))


for function in FUNCTIONS:
    for x in dict.fromkeys(inputs(random.Random(1))):
        print("%s %08x %08x" % (function, x, golden(function, x)))
