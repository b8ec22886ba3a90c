/* plain.h - what test_tensor.c, test_backward.c and test_bits.c share: random numbers that no library makes, comparisons of bits at every
 * setting, and the row ops as their definitions say. */
#ifndef PLAIN_H
#define PLAIN_H

#include <math.h>
#include <string.h>

#include "check.h"
#include "isa.h"
#include "tensor.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* ---- numbers ---- */

static uint64_t state = 1;

static uint32_t noise_bits(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}
static inline size_t below(size_t n) { return noise_bits() % n; }

static float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline uint32_t to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Wide: 24 random bits, sign, exponent -12..11, so that every addition rounds. One draw a statement: C leaves the order within one open. */
static inline float random_float(void) {
    const uint32_t bits = noise_bits() & 0x807fffffu;
    return from_bits(bits | (uint32_t)(115 + below(24)) << 23);
}

/* Any pattern of bits, often an edge: zeros, subnormals, the least and greatest normals, infinities, NaN. */
static inline float random_edge(void) {
    static const uint32_t edge[] = {0,          0x80000000u, 1,          0x80000001u, 0x7fffff,    0x800000,   0x807fffffu, 0x3f800000,
                                    0xbf800000u, 0x3f800001, 0x7f7fffff, 0xff7fffffu, 0x7f800000, 0xff800000u, 0x7fc00000,  0x33800000};
    return below(3) ? from_bits(edge[below(COUNT(edge))]) : from_bits(noise_bits());
}

static inline float *fill(size_t n, float (*number)(void)) {
    float *x = mem_new(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = number();
    return x;
}

/* The first index where a and b differ, n if none does. */
static inline size_t first_difference(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (to_bits(a[i]) != to_bits(b[i]) && !(isnan(a[i]) && isnan(b[i]))) return i;
    return n;
}

/* ---- bits, everywhere ---- */

static inline const char *math_name(void) { return tensor_math() == MATH_FAST ? "fast" : "reference"; }

/* Where and how two results differ, ahead of the failed check's own line. */
static inline void tell(size_t at, float got, float want) {
    if (check_failed < 20)
        printf("%s, %s, %d threads, element %zu: %08x, not %08x\n", math_name(), isa_name(isa_level), tensor_threads(), at,
               (unsigned)to_bits(got), (unsigned)to_bits(want));
}
#define SAME(got, want, n, ...)                                      \
    do {                                                             \
        const size_t at_ = first_difference(got, want, n);           \
        if (at_ < (n)) tell(at_, (got)[at_], (want)[at_]);           \
        CHECK(at_ == (n), __VA_ARGS__);                              \
    } while (0)

static inline void start(Math m, int threads, int level) {
    Error err;
    CHECK(tensor_start(m, threads, &err), "%s", err.text);
    isa_set(level);
}

/* What follows runs in arithmetic m at every instruction set, each time with one of the thread counts by turns. */
static inline int next_threads(void) {
    static const int counts[] = {1, 2, 3, 7};
    static size_t at;
    return counts[at++ % COUNT(counts)];
}
#define EVERYWHERE(m) \
    for (int level_ = isa_detect(); level_ >= 0; level_--) \
        if (start(m, next_threads(), level_), 1)

/* ---- row ops, by their definitions ---- */

static inline void layernorm_plain(float *y, const float *x, const float *g, const float *b, double eps, size_t C) {
    double u = 0, v = 0;
    for (size_t c = 0; c < C; c++) u += (double)x[c];
    u /= (double)C;
    for (size_t c = 0; c < C; c++) {
        const double d = (double)x[c] - u;
        v += d * d;
    }
    const double r = 1 / sqrt(v / (double)C + eps);
    for (size_t c = 0; c < C; c++) y[c] = (float)((((double)x[c] - u) * r) * (double)g[c] + (double)b[c]);
}

static inline void rmsnorm_plain(float *y, const float *x, const float *g, double eps, size_t C) {
    double s64 = 0;
    float s32 = 0;
    for (size_t c = 0; c < C; c++) {
        s64 += (double)x[c] * (double)x[c];
        s32 = fmaf(x[c], x[c], s32);
    }
    const double r = 1 / sqrt((tensor_math() == MATH_FAST ? (double)s32 : s64) / (double)C + eps);
    for (size_t c = 0; c < C; c++) y[c] = (float)(((double)x[c] * r) * (double)g[c]);
}

/* m and Z of a row; the terms go to e. */
static inline double softmax_terms(float *e, float *m, const float *x, size_t T) {
    double Z = 0;
    *m = x[0];
    for (size_t t = 0; t < T; t++)
        if (x[t] > *m) *m = x[t];
    for (size_t t = 0; t < T; t++) Z += (double)(e[t] = cr_one(CR_EXP, x[t] - *m));
    return Z;
}

#endif
