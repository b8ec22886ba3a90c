/* crmath.c - see crmath.h. Correctly rounded float32 functions without a libm.
 *
 * Each function is computed twice over:
 *   fast      in float64, by polynomials without tables or branches, so that the compiler makes vectors of it. The relative error is below
 *             2^-42; where the float64 result is farther than that from the midpoint of two float32 neighbours, rounding it is right.
 *   accurate  in double-double (106 bits), relative error below 2^-70: for the one input in about 2^16 that is too close to a midpoint,
 *             for subnormal results, and for everything special. No float32 input of these functions lies closer to a midpoint than
 *             that error; test/cr_proof.c walks all 2^32 of them.
 *
 * The result is unique, so neither a fused multiply-add nor the order of operations can change a bit: they may be used freely here.
 *
 * Left out on purpose: other rounding modes, exception flags, arguments beyond float32.
 * The polynomials are made by test/make_crmath_constants.py.
 */
#include "crmath.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "isa.h"

#if defined(__FAST_MATH__)
#error "-ffast-math (or -Ofast) changes results: compile without it"
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

static inline uint64_t bits_of(double x) {
    uint64_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static inline double from_bits(uint64_t b) {
    double x;
    memcpy(&x, &b, sizeof x);
    return x;
}

static inline float float_from_bits(uint32_t b) {
    float x;
    memcpy(&x, &b, sizeof x);
    return x;
}

#define THE_NAN float_from_bits(0x7fc00000u)
#define INFINITE float_from_bits(0x7f800000u)

/* ---- double-double: an unevaluated sum hi + lo, |lo| <= ulp(hi)/2 ---- */

typedef struct {
    double hi, lo;
} DD;

static DD fast_two_sum(double a, double b) { /* |a| >= |b|, or a is 0 */
    double s = a + b;
    return (DD){s, b - (s - a)};
}

static DD two_sum(double a, double b) {
    double s = a + b, back = s - a;
    return (DD){s, (a - (s - back)) + (b - back)};
}

/* a*b exactly: Dekker's product, each factor cut into halves of 26 bits. Factors here stay below 2^300. */
static DD two_product(double a, double b) {
    double ca = 0x1.000000002p27 * a, ah = ca - (ca - a), al = a - ah;
    double cb = 0x1.000000002p27 * b, bh = cb - (cb - b), bl = b - bh;
    double p = a * b;
    return (DD){p, ((ah * bh - p) + ah * bl + al * bh) + al * bl};
}

static DD dd_add(DD a, DD b) {
    DD s = two_sum(a.hi, b.hi), t = two_sum(a.lo, b.lo);
    s = fast_two_sum(s.hi, s.lo + t.hi);
    return fast_two_sum(s.hi, s.lo + t.lo);
}

static DD dd_negate(DD a) { return (DD){-a.hi, -a.lo}; }

static DD dd_multiply(DD a, DD b) {
    DD p = two_product(a.hi, b.hi);
    return fast_two_sum(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

static DD dd_divide(DD a, DD b) { /* two steps of long division: quotient digits of 53 bits */
    double q = a.hi / b.hi;
    DD r = dd_add(a, dd_negate(dd_multiply((DD){q, 0}, b)));
    double q2 = r.hi / b.hi;
    r = dd_add(r, dd_negate(dd_multiply((DD){q2, 0}, b)));
    DD s = fast_two_sum(q, q2);
    return dd_add(s, (DD){r.hi / b.hi, 0});
}

static DD dd_scale(DD a, double power_of_two) { return (DD){a.hi * power_of_two, a.lo * power_of_two}; }

/* The float32 nearest to hi + lo. Forcing the last bit of hi to 1 where lo is not 0, towards the exact value (round to odd), makes
 * the second rounding right, in the subnormal range too. */
static float dd_to_float(DD a) {
    uint64_t b = bits_of(a.hi);
    if (a.lo != 0 && (b & 1) == 0) b = (a.lo > 0) == (a.hi > 0) ? b + 1 : b - 1;
    return (float)from_bits(b);
}

/* ---- accurate functions ---- */

static const double LOG2_E = 0x1.71547652b82fep+0;

/* e^x, |x.hi| < 700, relative error below 2^-90: x = n ln2 + 256 r, Taylor's series to r^10, squared eight times. */
static DD exp_accurate(DD x) {
    static const double ln2[3] = {0x1.62e42fefa2p-1, 0x1.9ef35793c7673p-41, 0x1.f97b57a079a19p-103}; /* n * ln2[0] is exact */
    double n = (x.hi * LOG2_E + 0x1.8p52) - 0x1.8p52;
    DD r = dd_add(x, (DD){-n * ln2[0], 0});
    r = dd_add(r, dd_negate(two_product(n, ln2[1])));
    r = dd_add(r, (DD){-n * ln2[2], 0});
    r = dd_scale(r, 0x1p-8);
    DD sum = {1, 0};
    for (int k = 10; k >= 1; k--) sum = dd_add((DD){1, 0}, dd_divide(dd_multiply(sum, r), (DD){k, 0}));
    for (int i = 0; i < 8; i++) sum = dd_multiply(sum, sum);
    return dd_scale(sum, from_bits((uint64_t)((int64_t)n + 1023) << 52));
}

/* ln x by one step of Halley's method from the float64 estimate y: y + 2 (x - e^y) / (x + e^y), which triples its digits. */
static double log_fast(int level, double x);
static DD log_accurate(double x) {
    double y = log_fast(ISA_BASE, x);
    DD e = exp_accurate((DD){y, 0}), value = {x, 0};
    DD step = dd_divide(dd_add(value, dd_negate(e)), dd_add(value, e));
    return dd_add((DD){y, 0}, dd_scale(step, 2));
}

/* tanh x, |x| < 30. Near 0 the series x - x^3/3 + 2x^5/15 - ..., its coefficients as exact fractions; else (e^2x - 1) / (e^2x + 1). */
static DD tanh_accurate(double x) {
    if (x > -0x1p-6 && x < 0x1p-6) {
        static const double over[][2] = {{-1, 3},          {2, 15},           {-17, 315},           {62, 2835},
                                         {-1382, 155925}, {21844, 6081075}, {-929569, 638512875}, {6404582, 10854718875.0}};
        DD z = two_product(x, x), sum = {0, 0};
        for (int k = 7; k >= 0; k--) sum = dd_multiply(z, dd_add(dd_divide((DD){over[k][0], 0}, (DD){over[k][1], 0}), sum));
        return dd_add((DD){x, 0}, dd_multiply((DD){x, 0}, sum));
    }
    DD e = exp_accurate((DD){2 * x, 0});
    return dd_divide(dd_add(e, (DD){-1, 0}), dd_add(e, (DD){1, 0}));
}

/* 1 / (1 + e^-w), |w.hi| < 700. */
static DD sigmoid_accurate(DD w) {
    if (w.hi > 0) return dd_divide((DD){1, 0}, dd_add((DD){1, 0}, exp_accurate(dd_negate(w))));
    DD e = exp_accurate(w);
    return dd_divide(e, dd_add((DD){1, 0}, e));
}

/* e^(-a^2/2) / sqrt(2 pi), the normal distribution's density. */
static DD density_accurate(double a) {
    static const DD one_over_sqrt_2pi = {0x1.9884533d43651p-2, -0x1.cbc0d30ebfd15p-56};
    return dd_multiply(one_over_sqrt_2pi, exp_accurate(dd_scale(two_product(a, a), -0.5)));
}

/* Phi(-a), a >= 0, its tail.
 *   a < 2:  1/2 - density (a + a^3/3 + a^5/(3*5) + ...), all terms positive; at most 5 bits cancel
 *   else:   density / (a + 1/(a + 2/(a + 3/(a + ...)))), Laplace's continued fraction; n terms leave e^(-2a sqrt(2n)) */
static DD tail_accurate(double a) {
    DD square = two_product(a, a), density = density_accurate(a);
    if (a < 2) {
        DD term = {a, 0}, sum = term;
        for (int k = 3; term.hi > 0x1p-110 * sum.hi; k += 2) {
            term = dd_divide(dd_multiply(term, square), (DD){k, 0});
            sum = dd_add(sum, term);
        }
        return dd_add((DD){0.5, 0}, dd_negate(dd_multiply(density, sum)));
    }
    DD fraction = {a, 0};
    for (int n = (int)(20 + 900 / (a * a)); n > 0; n--) fraction = dd_add((DD){a, 0}, dd_divide((DD){n, 0}, fraction));
    return dd_divide(density, fraction);
}

/* 2 sqrt(2/pi) (x + 0.044715 x^3), so that gelu_new(x) = x / (1 + e^-w); |x| < 2^100. */
static DD gelu_new_argument(double x) {
    static const DD twice_sqrt = {0x1.9884533d43651p+0, -0x1.cbc0d30ebfd15p-54}, cubic = {0x1.6e4e26d4801f7p-5, 0x1.441355475a31ap-59};
    DD inner = dd_add((DD){1, 0}, dd_multiply(cubic, two_product(x, x)));
    return dd_multiply(twice_sqrt, dd_multiply((DD){x, 0}, inner));
}

/* The derivatives of GELU, GELU_NEW and SILU at -a, 0 <= a <= 200. At a > 0 they are 1 less that: f(x) - f(-x) = x. */
static DD slope_accurate(CrFunction f, double a) {
    if (f == CR_D_GELU) return dd_add(tail_accurate(a), dd_negate(dd_multiply((DD){a, 0}, density_accurate(a)))); /* Phi(-a) - a phi(a) */
    static const DD twice_sqrt = {0x1.9884533d43651p+0, -0x1.cbc0d30ebfd15p-54}, cubic = {0x1.b6676bf7450f0p-3, 0x1.bba7351828aabp-57};
    const bool silu = f == CR_D_SILU;
    const DD w = silu ? (DD){-a, 0} : gelu_new_argument(-a), s = sigmoid_accurate(w), rest = dd_add((DD){1, 0}, dd_negate(s));
    const DD dw = silu ? (DD){1, 0} : dd_add(twice_sqrt, dd_multiply(cubic, two_product(a, a)));
    return dd_multiply(s, dd_add((DD){1, 0}, dd_negate(dd_multiply(dd_multiply((DD){a, 0}, rest), dw)))); /* (x s(w))' = s (1 + x (1-s) w') */
}

float cr_one(CrFunction f, float x) {
    const double d = (double)x, a = d < 0 ? -d : d;
    if (x != x) return THE_NAN;
    switch (f) {
    case CR_EXP:
        if (x > 100) return INFINITE;
        if (x < -110) return 0;
        return x == 0 ? 1 : dd_to_float(exp_accurate((DD){d, 0}));
    case CR_LOG:
        if (x < 0) return THE_NAN;
        if (x == 0) return -INFINITE;
        return x == 1 ? 0 : x == INFINITE ? x : dd_to_float(log_accurate(d));
    case CR_TANH:
        if (x > 20 || x < -20) return x > 0 ? 1 : -1; /* 1 - 2e-18 */
        return x == 0 ? x : dd_to_float(tanh_accurate(d));
    case CR_GELU:
        if (x > 20 || x < -20) return x > 0 ? x : -0.0f; /* x Phi(-20) is below 2^-150 for all x >= -20, and falls from there */
        if (x == 0) return x;
        if (x < 0) return dd_to_float(dd_multiply((DD){d, 0}, tail_accurate(-d)));
        return dd_to_float(dd_multiply((DD){d, 0}, dd_add((DD){1, 0}, dd_negate(tail_accurate(d)))));
    case CR_GELU_NEW:
        if (x > 20 || x < -20) return x > 0 ? x : -0.0f; /* e^-w is below 2^-900 */
        return x == 0 ? x : dd_to_float(dd_multiply((DD){d, 0}, sigmoid_accurate(gelu_new_argument(d))));
    case CR_SILU:
        if (x > 200 || x < -200) return x > 0 ? x : -0.0f;
        return x == 0 ? x : dd_to_float(dd_multiply((DD){d, 0}, sigmoid_accurate((DD){d, 0})));
    case CR_D_TANH: {
        if (a > 60) return 0; /* 4 e^-2a is below 2^-150 */
        const DD t = exp_accurate((DD){-2 * a, 0}), one = dd_add((DD){1, 0}, t);
        return dd_to_float(dd_divide(dd_scale(t, 4), dd_multiply(one, one)));
    }
    case CR_D_GELU:
    case CR_D_GELU_NEW:
    case CR_D_SILU:
        if (a > (f == CR_D_SILU ? 200 : 20)) return x > 0 ? 1 : -0.0f;
        return dd_to_float(x > 0 ? dd_add((DD){1, 0}, dd_negate(slope_accurate(f, a))) : slope_accurate(f, a));
    case CR_D_RELU: return x > 0 ? 1 : 0;
    case CR_RELU:
    case CR_FUNCTIONS: break;
    }
    /* By bits: of x < 0 ? 0 : x clang 14 makes WebAssembly's f32.max, which takes the sign off -0. */
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b > 0x80000000u ? 0 : x;
}

/* ---- fast functions: float64, no branches ---- */

/* a*b + c, fused where that is one instruction: the error bounds hold for both. */
ISA_BODY double mul_add(int level, double a, double b, double c) {
#if defined(__GNUC__)
    if (ISA_HAS_FMA(level)) return __builtin_fma(a, b, c);
#endif
    (void)level;
    return a * b + c;
}

/* c[0] + c[1] x + ... + c[n-1] x^(n-1), n a constant: unrolled, so that the loop over a block holds no loop. */
ISA_BODY double horner(int level, const double *c, const size_t n, double x) {
    double p = c[n - 1];
    ISA_UNROLL
    for (size_t k = 1; k < n; k++) p = mul_add(level, p, x, c[n - 1 - k]);
    return p;
}

/* e^x for -708 < x < 708: x = n ln2 + r, |r| <= ln2/2. Polynomial of degree 9, relative error 2^-45.6; the reduction adds at most 2^-52. */
ISA_BODY double exp_fast(int level, double x) {
    static const double c[10] = {0x1.000000000003dp+0,  0x1.0000000000006p+0,  0x1.ffffffffe74a0p-2,  0x1.5555555550d79p-3,  0x1.55555588c026cp-5,
                                 0x1.11111123c1f47p-7,  0x1.6c162ba880942p-10, 0x1.a01994bd214e7p-13, 0x1.a17e031985654p-16, 0x1.72e1150d0c9b6p-19};
    const double shifted = mul_add(level, x, LOG2_E, 0x1.8p52), n = shifted - 0x1.8p52;
    const double r = mul_add(level, n, -0x1.9ef35793c7673p-41, mul_add(level, n, -0x1.62e42fefa2p-1, x));
    const double p = horner(level, c, sizeof c / sizeof *c, r);
    return from_bits(bits_of(p) + (bits_of(shifted) << 52)); /* the last bits of `shifted` are n */
}

/* Outside the range where a result is a finite float32 above 0 the argument is moved to its edge: no overflow of the exponent. */
ISA_BODY double exp_any(int level, double x) { return exp_fast(level, x > 100 ? 100 : x < -110 ? -110 : x); }

/* ln x, x > 0: x = 2^e m, sqrt(1/2) <= m < sqrt 2, s = (m-1)/(m+1), ln m = 2s + s^3 P(s^2). Degree 7, relative error of P 2^-54. */
ISA_BODY double log_body(int level, double x) {
    static const double c[8] = {0x1.5555555555555p-1, 0x1.9999999999a38p-2, 0x1.2492492476ba1p-2, 0x1.c71c72017a15cp-3,
                                0x1.745cf8f6c9117p-3, 0x1.3b1c38474d441p-3, 0x1.0fbe478771f40p-3, 0x1.0c06cf14ca68dp-3};
    const uint64_t b = bits_of(x), sqrt_half = 0x3fe6a09e667f3bcdu;
    const uint64_t e = (b - sqrt_half + ((uint64_t)1023 << 52)) >> 52; /* biased by 1023 */
    const double m = from_bits(b - (e << 52) + ((uint64_t)1023 << 52));
    const double n = from_bits(e | bits_of(0x1p52)) - (0x1p52 + 1023);
    const double s = (m - 1) / (m + 1), z = s * s;
    const double p = horner(level, c, sizeof c / sizeof *c, z);
    const double value = mul_add(level, n, 0x1.62e42fefa39efp-1, mul_add(level, z * s, p, s + s));
    return x > 0 && x < 0x1p128 ? value : from_bits((uint64_t)0x7ff8 << 48); /* NaN: for cr_one */
}
static double log_fast(int level, double x) { return log_body(level, x); }

/* tanh x: for a = |x| < 0.4 the odd polynomial x (1 + x^2 P(x^2)), degree 8, relative error 2^-52; else (1-t)/(1+t), t = e^-2a. */
ISA_BODY double tanh_body(int level, double x) {
    static const double c[9] = {-0x1.5555555555555p-2, 0x1.1111111110b9fp-3,  -0x1.ba1ba1b938326p-5,  0x1.664f48104c0c9p-6, -0x1.226e1871fc56dp-7,
                                0x1.d6cb933d4b726p-9,  -0x1.7cf1caf964e29p-10, 0x1.2c872c4b77e9dp-11, -0x1.7925184d2a534p-13};
    const double a = x < 0 ? -x : x, z = x * x, t = exp_any(level, -2 * a), far = (1 - t) / (1 + t);
    const double p = horner(level, c, sizeof c / sizeof *c, z);
    const double near = x * mul_add(level, z, p, 1); /* keeps the sign of a zero */
    return a < 0.4 ? near : x < 0 ? -far : far;
}

/* x Phi(x): Phi(-a) = e^(-a^2/2) M(u), u = (a-4)/(a+4), polynomial of degree 18 on 0 <= a <= 15, relative error 2^-47.9. Below
 * -15 the result rounds to -0, above 15 to x. */
ISA_BODY double gelu_body(int level, double x) {
    static const double c[19] = {0x1.82b4bb8c94dcap-4,   -0x1.5cf97b0ae881ap-3,  0x1.fd751a1fba8dfp-4,  -0x1.25b6aa9658a65p-4,  0x1.f9b05f0eb749ap-6,
                                 -0x1.1644dc2f86849p-7,  0x1.0a1bd4ca1175bp-11,  0x1.4eec25a09f763p-11, -0x1.888de4a5183efp-13, -0x1.7e25317238cbep-15,
                                 0x1.e0a77f86d7edap-16,  0x1.36febf0ba7572p-18,  -0x1.20e31a82270fcp-18, -0x1.c23bbe3f2d721p-21, 0x1.60a26616bef9bp-21,
                                 0x1.d93b37bc77d5fp-23,  -0x1.442015bd2efa1p-24, -0x1.dca30d8e41abbp-25, -0x1.47cd682a5e1fdp-27};
    const double low = x < -15 ? -15 : x, a = low > 15 ? 15 : low < 0 ? -low : low, u = (a - 4) / (a + 4);
    const double m = horner(level, c, sizeof c / sizeof *c, u);
    const double tail = m * exp_fast(level, -0.5 * (a * a));
    return low * (low > 0 ? 1 - tail : tail);
}

/* x / (1 + e^-w) = x e^w / (1 + e^w), the form without overflow, with the relative accuracy of the smaller power. */
ISA_BODY double logistic(int level, double x, double w) {
    const double t = exp_any(level, w > 0 ? -w : w);
    return x * ((w > 0 ? 1 : t) / (1 + t));
}

/* w = x (2 sqrt(2/pi) + 2 sqrt(2/pi) 0.044715 x^2); below -12 the result rounds to -0. */
ISA_BODY double gelu_new_body(int level, double x) {
    const double low = x < -12 ? -12 : x, b = low > 12 ? 12 : low;
    return logistic(level, low, b * mul_add(level, b * b, 0x1.2444f2a4d8b4bp-4, 0x1.9884533d43651p+0));
}

/* Below -110 the result rounds to -0. */
ISA_BODY double silu_body(int level, double x) {
    const double low = x < -110 ? -110 : x;
    return logistic(level, low, low);
}

/* tanh' x = 4t / (1+t)^2, t = e^-2|x|; beyond 55 it rounds to 0. */
ISA_BODY double d_tanh_body(int level, double x) {
    const double a = x < 0 ? -x : x, t = exp_fast(level, -2 * (a > 55 ? 55 : a));
    return 4 * t / ((1 + t) * (1 + t));
}

/* f'(x) from low = f'(-|x|), for the f with f(x) - f(-x) = x. Each low has a zero, at -(zero.hi + zero.lo); so that its relative error stays small
 * there, the polynomial gives low / (zero - |x|). */
ISA_BODY double either_side(double x, double low) { return x > 0 ? 1 - low : low; }

/* GELU'(-a) = Phi(-a) - a phi(a) = e^(-a^2/2) (zero - a) Q(u), u = (a-4)/(a+4). Degree 17 on 0 <= a <= 15, relative error 2^-50.5; beyond, it rounds to -0. */
ISA_BODY double d_gelu_body(int level, double x) {
    static const double c[18] = {0x1.d94de78425462p-2,  -0x1.a763001ac696ap-4,  0x1.ef4ff80137df1p-5,  -0x1.cc1e2623b4bf2p-6, 0x1.37754d81601dbp-7,
                                 -0x1.d4c822691a287p-10, -0x1.443f64d741113p-13, 0x1.8599b3d89c0b4p-13, -0x1.2537562574617p-16, -0x1.2e97fdcd53c5bp-16,
                                 0x1.dac6bb68bfdddp-19, 0x1.29f1214aa8882p-19,  -0x1.04a1ed2ec670bp-21, -0x1.7a22bc6a9ab91p-22, 0x1.4a98fec55f57ep-25,
                                 0x1.f0a430be8b9f0p-25, 0x1.4e73702839e97p-27,  -0x1.4dec53b493c70p-31};
    const double size = x < 0 ? -x : x, a = size > 15 ? 15 : size, u = (a - 4) / (a + 4);
    const double from_zero = (0x1.80ead197f00b4p-1 - a) - 0x1.13e74c58cada8p-56;
    const double q = horner(level, c, sizeof c / sizeof *c, u);
    return either_side(x, exp_fast(level, -0.5 * (a * a)) * (from_zero * q));
}

/* GELU_NEW'(-a) = t/(1+t)^2 G, G = 1 + t - a w', t = e^-w; within 1/2 of its zero G = (zero - a) Q(a - zero), degree 12, relative error 2^-47. Beyond
 * 12 it rounds to -0. */
ISA_BODY double d_gelu_new_body(int level, double x) {
    static const double c[13] = {0x1.3af6cd05624f6p+1,   0x1.993cd34bfc19ep-4,   0x1.9a0ef5cdf29c9p-2,  -0x1.3720c65fb3568p-4, 0x1.f37b8322a7417p-6,
                                 -0x1.721f43af6a96dp-7,  0x1.e3b480806cedap-9,   -0x1.2e3d77e67f647p-10, 0x1.75d5c04f31e01p-12, -0x1.afbe990688d23p-14,
                                 0x1.d69e004ff5604p-16,  -0x1.0d7064ccee0dbp-17, 0x1.1b15309934f6ep-19};
    const double size = x < 0 ? -x : x, a = size > 12 ? 12 : size, square = a * a;
    const double from_zero = (0x1.81429f9e97e4dp-1 - a) + 0x1.4f523ed77dbdcp-55;
    const double t = exp_fast(level, -a * mul_add(level, square, 0x1.2444f2a4d8b4bp-4, 0x1.9884533d43651p+0));
    const double slope = mul_add(level, square, 0x1.b6676bf7450f0p-3, 0x1.9884533d43651p+0);
    const double q = horner(level, c, sizeof c / sizeof *c, -from_zero);
    const double g = from_zero > -0.5 && from_zero < 0.5 ? from_zero * q : 1 + t - a * slope;
    return either_side(x, t / ((1 + t) * (1 + t)) * g);
}

/* SILU'(-a) in the same way, w = a: degree 10, relative error 2^-51.5. Beyond 110 it rounds to -0. */
ISA_BODY double d_silu_body(int level, double x) {
    static const double c[11] = {0x1.474973c84120bp+0,  -0x1.1d25cf210490bp-3, 0x1.7c3269815b5d6p-5,  -0x1.7c326981166e0p-7, 0x1.3028546767156p-9, -0x1.958b1bf595cdbp-12,
                                 0x1.cf7a68b2d7ebap-15, -0x1.cf78af640f010p-18, 0x1.9bf9f8256bc45p-21, -0x1.4b4e207373444p-24, 0x1.e183412435856p-28};
    const double size = x < 0 ? -x : x, a = size > 110 ? 110 : size, t = exp_fast(level, -a);
    const double from_zero = (0x1.474973c84120bp+0 - a) + 0x1.f8d74bc9ac154p-54;
    const double q = horner(level, c, sizeof c / sizeof *c, -from_zero);
    const double g = from_zero > -0.5 && from_zero < 0.5 ? from_zero * q : 1 + t - a;
    return either_side(x, t / ((1 + t) * (1 + t)) * g);
}

/* ---- blocks: fast, then mended ---- */

enum { BLOCK = 256 };

/* All ones if rounding z to float32 may be wrong: z is within 2^-41 relative of a midpoint (the 29 bits that rounding cuts off are within 2^12
 * of one half), is a subnormal float32, overflows, or is NaN. What is below 2^-151 rounds to 0 without doubt. */
ISA_BODY uint64_t doubtful(double z) {
    const int64_t magnitude = (int64_t)(bits_of(z) & 0x7fffffffffffffffu), window = 1 << 12, half = 1 << 28;
    const bool close = ((magnitude - half + window) & 0x1fffffff) <= 2 * window;
    const bool normal = magnitude >= (int64_t)897 << 52 && magnitude < 0x47efffffe0000000;
    const bool zero = magnitude < (int64_t)872 << 52;
    return zero ? 0 : close || !normal ? ~(uint64_t)0 : 0;
}

/* z = fast(x) for one block; *doubts becomes nonzero if any result is doubtful. */
#define BLOCK_OF(NAME, FAST)                                                                             \
    ISA_BODY void NAME##_block_body(int level, double *restrict z, const float *restrict x, uint64_t *doubts) { \
        uint64_t any = 0;                                                                                \
        _Pragma("omp simd") for (size_t i = 0; i < BLOCK; i++) z[i] = FAST(level, (double)x[i]);         \
        _Pragma("omp simd reduction(| : any)") for (size_t i = 0; i < BLOCK; i++) any |= doubtful(z[i]); \
        *doubts = any;                                                                                   \
    }                                                                                                    \
    ISA_CLONES(NAME##_block, (double *z, const float *x, uint64_t *doubts), z, x, doubts)
BLOCK_OF(exp, exp_any)
BLOCK_OF(log, log_body)
BLOCK_OF(tanh, tanh_body)
BLOCK_OF(gelu, gelu_body)
BLOCK_OF(gelu_new, gelu_new_body)
BLOCK_OF(silu, silu_body)
BLOCK_OF(d_tanh, d_tanh_body)
BLOCK_OF(d_gelu, d_gelu_body)
BLOCK_OF(d_gelu_new, d_gelu_new_body)
BLOCK_OF(d_silu, d_silu_body)

ISA_BODY void round_block_body(int level, float *restrict y, const double *restrict z) {
    (void)level;
#pragma omp simd
    for (size_t i = 0; i < BLOCK; i++) y[i] = (float)z[i];
}
ISA_CLONES(round_block, (float *y, const double *z), y, z)

/* One row per function: its name and its block, NULL for RELU and its derivative, which need no rounding. */
static const struct {
    const char *name;
    void (*block)(double *z, const float *x, uint64_t *doubts);
    float harmless; /* an argument to fill a block up with */
} functions[CR_FUNCTIONS] = {
    {"exp", exp_block, 0},   {"log", log_block, 1},           {"tanh", tanh_block, 0}, {"gelu", gelu_block, 0},
    {"gelu_new", gelu_new_block, 0}, {"silu", silu_block, 0}, {"relu", NULL, 0},
    {"d_tanh", d_tanh_block, 0}, {"d_gelu", d_gelu_block, 0}, {"d_gelu_new", d_gelu_new_block, 0}, {"d_silu", d_silu_block, 0}, {"d_relu", NULL, 0}};

const char *cr_name(CrFunction f) { return functions[f].name; }
CrFunction cr_derivative(CrFunction f) { return (CrFunction)(CR_D_TANH + (f - CR_TANH)); }

static void map_block(CrFunction f, float *y, const float *x) {
    double z[BLOCK];
    uint64_t doubts;
    functions[f].block(z, x, &doubts);
    if (doubts) {
        for (size_t i = 0; i < BLOCK; i++)
            if (doubtful(z[i])) z[i] = (double)cr_one(f, x[i]);
    }
    round_block(y, z);
}

void cr_map(CrFunction f, float *y, const float *x, size_t n) {
    if (!functions[f].block) {
        for (size_t i = 0; i < n; i++) y[i] = cr_one(f, x[i]);
        return;
    }
    for (; n >= BLOCK; n -= BLOCK, x += BLOCK, y += BLOCK) map_block(f, y, x);
    if (n == 0) return;
    float part[BLOCK];
    for (size_t i = 0; i < BLOCK; i++) part[i] = i < n ? x[i] : functions[f].harmless;
    map_block(f, part, part);
    memcpy(y, part, n * sizeof *y);
}
