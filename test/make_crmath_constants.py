"""The polynomials of crmath.c: interpolation of the real function at Chebyshev nodes with 60 digits (mpmath), coefficients rounded to float64.

usage: python3 test/make_crmath_constants.py      prints each table as C hex floats with its largest relative error, before rounding of the evaluation
"""
from mpmath import mp, mpf, cos, pi, exp, log, tanh, sqrt, erfc, diff, findroot, matrix, lu_solve

mp.dps = 60


def fit(f, low, high, degree):
    """Coefficients, lowest first, of the polynomial that equals f at the Chebyshev nodes of [low, high]."""
    nodes = [(low + high) / 2 + (high - low) / 2 * cos(pi * (2 * i + 1) / (2 * degree + 2)) for i in range(degree + 1)]
    return list(lu_solve(matrix([[x ** k for k in range(degree + 1)] for x in nodes]), matrix([f(x) for x in nodes])))


def value(c, x):
    total = mpf(0)
    for a in reversed(c):
        total = total * x + a
    return total


def show(name, f, low, high, degree):
    rounded = [mpf(float(a)) for a in fit(f, mpf(low), mpf(high), degree)]
    worst = max(abs(value(rounded, x) / f(x) - 1) for x in (mpf(low) + (mpf(high) - mpf(low)) * (i + mpf(1) / 3) / 1500 for i in range(1500)))
    print("/* %s: degree %d on [%.6g, %.6g], relative error 2^%.1f */" % (name, degree, low, high, float(log(worst, 2))))
    print("{" + ", ".join(float(a).hex() for a in rounded) + "}\n")


def mills(u):
    """exp(a^2/2) Phi(-a) where u = (a - 4)/(a + 4)."""
    a = 4 * (1 + u) / (1 - u)
    return exp(a * a / 2) * erfc(a / sqrt(mpf(2))) / 2


def split(name, x):
    hi = mpf(float(x))
    mid = mpf(float(x - hi))
    print("%s %s %s" % (name, float(hi).hex(), float(mid).hex()))


# The derivatives of the GELUs and of SiLU at -a have a zero at some a0: the factor that has it, divided by a0 - a.
CUBIC, TWICE = mpf("0.044715"), 2 * sqrt(2 / pi)
SLOPES = {
    "d_gelu": lambda a: exp(a * a / 2) * erfc(a / sqrt(mpf(2))) / 2 - a / sqrt(2 * pi),
    "d_gelu_new": lambda a: 1 + exp(-TWICE * (a + CUBIC * a ** 3)) - a * TWICE * (1 + 3 * CUBIC * a * a),
    "d_silu": lambda a: 1 + exp(-a) - a,
}


def without_zero(slope, zero):
    return lambda a: slope(a) / (zero - a) if abs(a - zero) > mpf(10) ** -25 else -diff(slope, zero)


import sys
ln2h = log(mpf(2)) / 2
show("exp", lambda r: exp(r), -ln2h * mpf("1.0001"), ln2h * mpf("1.0001"), 9)
for d in ([16, 18, 20, 22] if len(sys.argv) > 1 else [20]):
    show("mills", mills, mpf(-1), mpf(11) / 19, d)
third = lambda z: (log((1 + sqrt(z)) / (1 - sqrt(z))) / sqrt(z) - 2) / z
show("log", lambda z: third(z) if z > mpf(10) ** -20 else mpf(2) / 3 , mpf(10) ** -12, mpf("0.02945"), 7)
th = lambda z: (tanh(sqrt(z)) / sqrt(z) - 1) / z if z > mpf(10) ** -20 else -mpf(1) / 3
show("tanh", th, mpf(10) ** -12, mpf("0.16"), 8)
split("ln2", log(mpf(2))); split("1/sqrt(2pi)", 1 / sqrt(2 * pi)); split("2sqrt(2/pi)", 2 * sqrt(2 / pi)); split("0.044715", mpf("0.044715"))
x = log(mpf(2)); 
from mpmath import floor
hi = floor(x * 2 ** 40) / mpf(2) ** 40; mid = mpf(float(x - hi)); lo = mpf(float(x - hi - mid))
print("ln2 three", float(hi).hex(), float(mid).hex(), float(lo).hex(), "log2e", float(1 / x).hex())
split("2sqrt(2/pi)*0.044715", 2 * sqrt(2 / pi) * mpf("0.044715"))
for k in range(2, 14): split("1/%d!" % k, 1 / mp.factorial(k))
for name, degree in (("d_gelu", 17), ("d_gelu_new", 12), ("d_silu", 10)):
    zero = findroot(SLOPES[name], mpf("1.28") if name == "d_silu" else mpf("0.75"))
    factor = without_zero(SLOPES[name], zero)
    split(name + " is 0 at minus", zero)
    if name == "d_gelu":
        show(name, lambda u: factor(4 * (1 + u) / (1 - u)), mpf(-1), mpf(11) / 19, degree)
    else:
        show(name, lambda d: factor(zero + d), mpf("-0.5"), mpf("0.5"), degree)
split("6sqrt(2/pi)*0.044715", 3 * TWICE * CUBIC)
