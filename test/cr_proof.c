/* cr_proof.c - the correctly rounded functions against mathematics, over every float32 there is. Needs MPFR; not part of `make test`.
 *
 * usage: cr_proof [STRIDE [FUNCTION]]      every STRIDE-th of the 2^32 bit patterns (default 1: all), of one function or all
 *
 * The judge shares nothing with crmath.c. For each input the C library's float64 functions give an estimate whose relative error is
 * below 2^-43 (they claim a few ulp of 2^-52; arguments and formulas add the rest). Where the estimate is farther than that from every
 * midpoint of float32 neighbours, it rounds to the right answer; else, and for subnormal results, MPFR decides with 200 bits. A derivative that
 * goes through 0 is a factor times a difference: near its zero the difference's own terms, not the result, say how large the error may be.
 * cr_one is compared too: on every input that MPFR judged (the hard ones) and on every 4096th of the others.
 */
#include <math.h>
#include <mpfr.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../crmath.h"
#include "../isa.h"

enum { CHUNK = 1 << 16, BITS = 200 };

static uint32_t bits_of(float x) {
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

/* s (1 - a w' (1-s)), s = 1/(1 + e^w), at -a; 1 less that at a > 0. *terms: the size of what is subtracted. */
static double logistic_slope(double x, double w, double dw, double *terms) {
    const double a = fabs(x), t = exp(-w), low = t / (1 + t) * (1 - a * dw / (1 + t));
    *terms = t / (1 + t) * (1 + a * dw);
    return x > 0 ? 1 - low : low;
}

/* *terms: the size of the terms of a difference, 0 if the result's own size is what matters. */
static double estimate(CrFunction f, double x, double *terms) {
    const double a = fabs(x), k = 2 * 0.79788456080286535588;
    *terms = 0;
    switch (f) {
    case CR_D_TANH: return 4 * exp(-2 * a) / ((1 + exp(-2 * a)) * (1 + exp(-2 * a)));
    case CR_D_GELU: {
        const double tail = 0.5 * erfc(a * 0.70710678118654752440), density = 0.39894228040143267794 * exp(-0.5 * a * a), low = tail - a * density;
        *terms = tail + a * density;
        return x > 0 ? 1 - low : low;
    }
    case CR_D_GELU_NEW: return logistic_slope(x, k * (a + 0.044715 * a * a * a), k * (1 + 3 * 0.044715 * a * a), terms);
    case CR_D_SILU: return logistic_slope(x, a, 1, terms);
    case CR_D_RELU: return x > 0;
    case CR_EXP: return exp(x);
    case CR_LOG: return log(x);
    case CR_TANH: return tanh(x);
    case CR_GELU: return x < 0 ? 0.5 * x * erfc(-x * 0.70710678118654752440) : x * (1 - 0.5 * erfc(x * 0.70710678118654752440));
    case CR_GELU_NEW: return x / (1 + exp(-2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case CR_SILU: return x / (1 + exp(-x));
    default: return x < 0 ? 0 : x;
    }
}

/* y = s (1 + x w' (1-s)), s = 1/(1 + e^-w); x and t are used up. */
static void exact_logistic_slope(CrFunction f, mpfr_t y, mpfr_t x, mpfr_t t) {
    mpfr_t dw, rest;
    mpfr_inits2(BITS, dw, rest, (mpfr_ptr)NULL);
    mpfr_set(t, x, MPFR_RNDN);
    mpfr_set_ui(dw, 1, MPFR_RNDN);
    if (f == CR_D_GELU_NEW) { /* w = sqrt(8/pi) (x + c x^3), w' = sqrt(8/pi) (1 + 3 c x^2) */
        mpfr_sqr(t, x, MPFR_RNDN);
        mpfr_mul_ui(t, t, 44715, MPFR_RNDN);
        mpfr_div_ui(t, t, 1000000, MPFR_RNDN);
        mpfr_mul_ui(dw, t, 3, MPFR_RNDN);
        mpfr_add_ui(dw, dw, 1, MPFR_RNDN);
        mpfr_add_ui(t, t, 1, MPFR_RNDN);
        mpfr_mul(t, t, x, MPFR_RNDN);
        mpfr_const_pi(y, MPFR_RNDN);
        mpfr_ui_div(y, 8, y, MPFR_RNDN);
        mpfr_sqrt(y, y, MPFR_RNDN);
        mpfr_mul(t, t, y, MPFR_RNDN);
        mpfr_mul(dw, dw, y, MPFR_RNDN);
    }
    mpfr_exp(rest, t, MPFR_RNDN); /* 1-s = 1/(1 + e^w) */
    mpfr_add_ui(rest, rest, 1, MPFR_RNDN);
    mpfr_neg(t, t, MPFR_RNDN);
    mpfr_exp(t, t, MPFR_RNDN);
    mpfr_add_ui(t, t, 1, MPFR_RNDN);
    mpfr_mul(x, x, dw, MPFR_RNDN);
    mpfr_div(x, x, rest, MPFR_RNDN);
    mpfr_add_ui(x, x, 1, MPFR_RNDN);
    mpfr_div(y, x, t, MPFR_RNDN);
    mpfr_clears(dw, rest, (mpfr_ptr)NULL);
}

/* y = f(x) to 200 bits. */
static void exact(CrFunction f, mpfr_t y, float x_float, mpfr_t x, mpfr_t t) {
    mpfr_set_flt(x, x_float, MPFR_RNDN);
    switch (f) {
    case CR_EXP: mpfr_exp(y, x, MPFR_RNDN); break;
    case CR_LOG: mpfr_log(y, x, MPFR_RNDN); break;
    case CR_TANH: mpfr_tanh(y, x, MPFR_RNDN); break;
    case CR_D_TANH: /* 1 / cosh^2 */
        mpfr_cosh(t, x, MPFR_RNDN);
        mpfr_sqr(t, t, MPFR_RNDN);
        mpfr_ui_div(y, 1, t, MPFR_RNDN);
        break;
    case CR_D_GELU: /* erfc(-x / sqrt 2) / 2 + x e^(-x^2/2) / sqrt(2 pi) */
        mpfr_sqrt_ui(t, 2, MPFR_RNDN);
        mpfr_div(t, x, t, MPFR_RNDN);
        mpfr_neg(t, t, MPFR_RNDN);
        mpfr_erfc(y, t, MPFR_RNDN);
        mpfr_div_ui(y, y, 2, MPFR_RNDN);
        mpfr_sqr(t, t, MPFR_RNDN);
        mpfr_neg(t, t, MPFR_RNDN);
        mpfr_exp(t, t, MPFR_RNDN);
        mpfr_mul(x, x, t, MPFR_RNDN);
        mpfr_const_pi(t, MPFR_RNDN);
        mpfr_mul_ui(t, t, 2, MPFR_RNDN);
        mpfr_sqrt(t, t, MPFR_RNDN);
        mpfr_div(x, x, t, MPFR_RNDN);
        mpfr_add(y, y, x, MPFR_RNDN);
        break;
    case CR_D_GELU_NEW:
    case CR_D_SILU: exact_logistic_slope(f, y, x, t); break;
    case CR_GELU: /* x erfc(-x / sqrt 2) / 2 */
        mpfr_sqrt_ui(t, 2, MPFR_RNDN);
        mpfr_div(t, x, t, MPFR_RNDN);
        mpfr_neg(t, t, MPFR_RNDN);
        mpfr_erfc(t, t, MPFR_RNDN);
        mpfr_mul(y, x, t, MPFR_RNDN);
        mpfr_div_ui(y, y, 2, MPFR_RNDN);
        break;
    default: /* x / (1 + e^-w) */
        if (f == CR_GELU_NEW) {
            mpfr_sqr(t, x, MPFR_RNDN);
            mpfr_mul_ui(t, t, 44715, MPFR_RNDN);
            mpfr_div_ui(t, t, 1000000, MPFR_RNDN);
            mpfr_add_ui(t, t, 1, MPFR_RNDN);
            mpfr_mul(t, t, x, MPFR_RNDN);
            mpfr_const_pi(y, MPFR_RNDN);
            mpfr_ui_div(y, 8, y, MPFR_RNDN); /* 2 sqrt(2/pi) = sqrt(8/pi) */
            mpfr_sqrt(y, y, MPFR_RNDN);
            mpfr_mul(t, t, y, MPFR_RNDN);
            mpfr_neg(t, t, MPFR_RNDN);
        } else mpfr_neg(t, x, MPFR_RNDN);
        mpfr_exp(t, t, MPFR_RNDN);
        mpfr_add_ui(t, t, 1, MPFR_RNDN);
        mpfr_div(y, x, t, MPFR_RNDN);
    }
}

/* What the special values must give; true if x is one. */
static bool special(CrFunction f, float x, uint32_t *want) {
    const float inf = (float)HUGE_VAL;
    const bool times_x = f == CR_GELU || f == CR_GELU_NEW || f == CR_SILU;
    if (x != x || (f == CR_LOG && x < 0)) return *want = 0x7fc00000u, true;
    if (f == CR_RELU) return *want = bits_of(x < 0 ? 0.0f : x), true;
    if (f == CR_D_RELU) return *want = bits_of(x > 0 ? 1.0f : 0.0f), true;
    if (f == CR_D_TANH && (x == 0 || isinf(x))) return *want = bits_of(x == 0 ? 1.0f : 0.0f), true;
    if (f > CR_D_TANH && (x == 0 || isinf(x))) return *want = bits_of(x == 0 ? 0.5f : x > 0 ? 1.0f : -0.0f), true;
    if (x == 0) return *want = f == CR_EXP ? bits_of(1) : f == CR_LOG ? bits_of(-inf) : bits_of(x), true;
    if (x == inf) return *want = bits_of(f == CR_TANH ? 1 : inf), true;
    if (x == -inf) return *want = f == CR_EXP ? 0 : times_x ? 0x80000000u : bits_of(-1), true;
    return false;
}

int main(int argc, char **argv) {
    const uint64_t stride = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    long passed = 0, failed = 0;
    isa_set(isa_detect());
    for (int f = 0; f < CR_FUNCTIONS; f++) {
        if (argc > 2 && strcmp(argv[2], cr_name((CrFunction)f)) != 0) continue;
        const time_t start = time(NULL);
        uint64_t wrong = 0, judged = 0, inputs = 0;
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic) reduction(+ : wrong, judged, inputs)
#endif
        for (uint64_t chunk = 0; chunk < ((uint64_t)1 << 32); chunk += CHUNK * stride) {
            float x[CHUNK], y[CHUNK];
            size_t n = 0;
            mpfr_t value, argument, scratch;
            mpfr_inits2(BITS, value, argument, scratch, (mpfr_ptr)NULL);
            for (uint64_t b = chunk; n < CHUNK && b < ((uint64_t)1 << 32); b += stride, n++) {
                const uint32_t pattern = (uint32_t)b;
                memcpy(&x[n], &pattern, sizeof pattern);
            }
            cr_map((CrFunction)f, y, x, n);
            for (size_t i = 0; i < n; i++) {
                uint32_t want;
                bool hard = false;
                if (!special((CrFunction)f, x[i], &want)) {
                    double terms;
                    const double z = estimate((CrFunction)f, (double)x[i], &terms), size = fabs(z), slack = size * 0x1p-42 + terms * 0x1p-48;
                    const float low = (float)(z - slack), high = (float)(z + slack);
                    hard = bits_of(low) != bits_of(high) || !(size >= 0x1p-126) || size > 0x1.fffffep127;
                    if (size < 0x1p-160 && f != CR_TANH && (f < CR_D_TANH || fabs((double)x[i]) > 10)) hard = false; /* rounds to a zero of z's sign */
                    if (f == CR_EXP && x[i] > 100) hard = false;       /* z is above 2^140 */
                    want = bits_of((float)z);
                    if (hard) {
                        exact((CrFunction)f, value, x[i], argument, scratch);
                        want = bits_of(mpfr_get_flt(value, MPFR_RNDN));
                        judged++;
                    } else if (size < 0x1p-160) want = signbit(x[i]) && f != CR_EXP && f != CR_D_TANH ? 0x80000000u : 0;
                }
                const bool also_one = hard || i % 4096 == 0;
                if (bits_of(y[i]) != want || (also_one && bits_of(cr_one((CrFunction)f, x[i])) != want)) {
                    if (wrong++ < 5) printf("%s(%a) = %a, wanted bits %08x\n", cr_name((CrFunction)f), (double)x[i], (double)y[i], (unsigned)want);
                }
            }
            inputs += n;
            mpfr_clears(value, argument, scratch, (mpfr_ptr)NULL);
        }
        printf("%-10s %10llu inputs, %9llu judged by MPFR, %llu wrong, %ld s\n", cr_name((CrFunction)f), (unsigned long long)inputs,
               (unsigned long long)judged, (unsigned long long)wrong, (long)(time(NULL) - start));
        fflush(stdout);
        if (wrong) failed++;
        else passed++;
    }
    printf("%ld passed, %ld failed, 0 skipped\n", passed, failed);
    return failed != 0 || passed == 0;
}
