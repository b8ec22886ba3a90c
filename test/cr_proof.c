/* cr_proof.c - the correctly rounded functions against mathematics, over every float32 there is. Needs MPFR; not part of `make test`.
 *
 * usage: cr_proof [STRIDE [FUNCTION]]      every STRIDE-th of the 2^32 bit patterns (default 1: all), of one function or all
 *
 * The judge shares nothing with crmath.c. For each input the C library's float64 functions give an estimate whose relative error is
 * below 2^-43 (they claim a few ulp of 2^-52; arguments and formulas add the rest). Where the estimate is farther than that from every
 * midpoint of float32 neighbours, it rounds to the right answer; else, and for subnormal results, MPFR decides with 200 bits.
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

static double estimate(CrFunction f, double x) {
    switch (f) {
    case CR_EXP: return exp(x);
    case CR_LOG: return log(x);
    case CR_TANH: return tanh(x);
    case CR_GELU: return x < 0 ? 0.5 * x * erfc(-x * 0.70710678118654752440) : x * (1 - 0.5 * erfc(x * 0.70710678118654752440));
    case CR_GELU_NEW: return x / (1 + exp(-2 * 0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case CR_SILU: return x / (1 + exp(-x));
    default: return x < 0 ? 0 : x;
    }
}

/* y = f(x) to 200 bits. */
static void exact(CrFunction f, mpfr_t y, float x_float, mpfr_t x, mpfr_t t) {
    mpfr_set_flt(x, x_float, MPFR_RNDN);
    switch (f) {
    case CR_EXP: mpfr_exp(y, x, MPFR_RNDN); break;
    case CR_LOG: mpfr_log(y, x, MPFR_RNDN); break;
    case CR_TANH: mpfr_tanh(y, x, MPFR_RNDN); break;
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
                    const double z = estimate((CrFunction)f, (double)x[i]), size = fabs(z);
                    const float low = (float)(z * (1 - 0x1p-42)), high = (float)(z * (1 + 0x1p-42));
                    hard = bits_of(low) != bits_of(high) || !(size >= 0x1p-126) || size > 0x1.fffffep127;
                    if (size < 0x1p-160 && f != CR_TANH) hard = false; /* rounds to a zero of z's sign */
                    if (f == CR_EXP && x[i] > 100) hard = false;       /* z is above 2^140 */
                    want = bits_of((float)z);
                    if (hard) {
                        exact((CrFunction)f, value, x[i], argument, scratch);
                        want = bits_of(mpfr_get_flt(value, MPFR_RNDN));
                        judged++;
                    } else if (size < 0x1p-160) want = signbit(x[i]) && f != CR_EXP ? 0x80000000u : 0;
                }
                const bool also_one = hard || i % 4096 == 0;
                if (bits_of(y[i]) != want || (also_one && bits_of(cr_one((CrFunction)f, x[i])) != want)) {
                    if (wrong++ < 5) printf("%s(%a) = %a, wanted bits %08x\n", cr_name((CrFunction)f), (double)x[i], (double)y[i], (unsigned)want);
                }
            }
            inputs += n;
            mpfr_clears(value, argument, scratch, (mpfr_ptr)NULL);
        }
        printf("%-9s %10llu inputs, %9llu judged by MPFR, %llu wrong, %ld s\n", cr_name((CrFunction)f), (unsigned long long)inputs,
               (unsigned long long)judged, (unsigned long long)wrong, (long)(time(NULL) - start));
        fflush(stdout);
        if (wrong) failed++;
        else passed++;
    }
    printf("%ld passed, %ld failed, 0 skipped\n", passed, failed);
    return failed != 0 || passed == 0;
}
