"""Golden cases of tensor.c's operations, from exact rationals and IEEE float64 (which Python's floats are). Standard library alone.

usage: python3 test/make_tensor_golden.py > test/golden/tensor.txt
A case, after a comment: operation, arithmetic, N, C, O, what a wrong implementation it detects does; then the operands and the result as float32 bits, "-" for none."""
import math
import random
import struct
from fractions import Fraction


def bits(f):
    return struct.unpack("<I", struct.pack("<f", f))[0]


def single(f):
    return struct.unpack("<f", struct.pack("<f", f))[0]


def nearest(v):
    """The float32 nearest to a Fraction, ties to even, as a float."""
    if v == 0:
        return 0.0
    size, exponent = abs(v), -149
    while size >= Fraction(2) ** (exponent + 24):
        exponent += 1
    scaled = size / Fraction(2) ** exponent
    whole, rest = scaled.numerator // scaled.denominator, scaled % 1
    whole += rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1)
    return math.copysign(float(whole * Fraction(2) ** exponent), v)


def dot(arithmetic, a, b):
    s = 0.0
    for x, y in zip(a, b):
        s = nearest(Fraction(x) * Fraction(y) + Fraction(s)) if arithmetic == "fast" else s + x * y
    return s


def linear(arithmetic, x, w, b, N, C, O):
    out = []
    for n in range(N):
        for o in range(O):
            s = dot(arithmetic, x[n * C:(n + 1) * C], w[o::O])
            out.append(single(s + b[o] if b else s))
    return out


def layernorm(x, g, b, C):
    u = 0.0
    for v in x:
        u += v
    u /= C
    d = 0.0
    for v in x:
        d += (v - u) * (v - u)
    r = 1 / math.sqrt(d / C + 1e-5)
    return [single(((v - u) * r) * gain + bias) for v, gain, bias in zip(x, g, b)]


def rmsnorm(arithmetic, x, g, C):
    r = 1 / math.sqrt(dot(arithmetic, x, x) / C + 1e-6)
    return [single((v * r) * gain) for v, gain in zip(x, g)]


def show(op, arithmetic, N, C, O, detects, x, w, b, y):
    print("# detects: %s\ncase %s %s %d %d %d %s" % (detects.replace("_", " "), op, arithmetic, N, C, O, detects))
    for name, values in (("x", x), ("w", w), ("b", b), ("y", y)):
        print(name, " ".join("%08x" % bits(v) for v in values) if values else "-")


def main():
    draw = random.Random(1)
    normal = lambda n, scale=1.0: [single(draw.gauss(0, scale)) for _ in range(n)]
    for arithmetic in ("fast", "reference"):
        for C in (1, 2, 3, 5, 8, 13, 17, 31, 33, 64, 65, 100):
            for O in (1, 2, 5):
                x, w, b = normal(2 * C), normal(C * O), normal(O) if O != 2 else []
                show("linear", arithmetic, 2, C, O, "another_order_or_accumulator", x, w, b, linear(arithmetic, x, w, b, 2, C, O))
        for a, b, detects in (([1, 2.0 ** -12, 2.0 ** -30], [1, 2.0 ** -12, 2.0 ** -30], "an_accumulator_wider_than_float64"),
                              ([2.0 ** 24, 1, -2.0 ** 24], [1, 1, 1], "another_order"), ([1 + 2.0 ** -12, -1], [1 + 2.0 ** -12, 1 + 2.0 ** -11], "a_product_rounded_alone"),
                              ([2.0 ** -75, 2.0 ** -75], [2.0 ** -74, 2.0 ** -74], "subnormals_flushed"), ([2.0 ** -140], [2.0 ** 20], "subnormal_operands_taken_for_zero"),
                              ([1e30, 1, -1e30], [1, 1, 1], "a_sum_in_pairs"), ([1 + 2.0 ** -23] * 7, [1 - 2.0 ** -24] * 7, "rounding_each_product")):
            a, b = [single(v) for v in a], [single(v) for v in b]
            show("linear", arithmetic, 1, len(a), 1, detects, a, b, [], linear(arithmetic, a, b, [], 1, len(a), 1))
        for C in (1, 2, 7, 16, 33):
            x, g, b = normal(C, 3), normal(C), normal(C)
            if C > 1:
                show("layernorm", arithmetic, 1, C, 0, "one_pass_variance_or_float32_sums", x, g, b, layernorm(x, g, b, C))
            show("rmsnorm", arithmetic, 1, C, 0, "another_order_or_accumulator", x, g, [], rmsnorm(arithmetic, x, g, C))
        for C in (1, 5, 16):
            x, w, b = normal(C), normal(C, 2.0 ** -24), normal(C, 2.0 ** -25)
            show("embedding_sum", arithmetic, 1, C, 0, "a_sum_rounded_twice", x, w, b, [single(p + q + r) for p, q, r in zip(x, w, b)])


main()
