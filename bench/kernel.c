/* kernel.c - how much of the machine's multiply-add peak the matrix kernel reaches.
 *
 * The peak is measured, not looked up: independent chains of fused multiply-adds that never leave the registers, on the same
 * threads in the same run. Then linear() on the shapes of XLM-R-large, both arithmetics, each instruction set, best of some runs.
 *
 * usage: kernel [THREADS]      (default: one per core)
 */
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "../isa.h"
#include "../tensor.h"
#include "warm.h"

/* ---- the peak ---- */

enum { STEPS = 1 << 20, CHAINS = 12 };

/* CHAINS vectors of 64 (32) bytes, STEPS multiply-adds each; the result only keeps the compiler from leaving it out. */
#define PEAK(NAME, T, FMA)                                                                    \
    ISA_BODY void NAME##_body(int level, volatile T *io) {                                    \
        enum { WIDE = CHAINS * 64 / sizeof(T), NARROW = CHAINS * 32 / sizeof(T) };            \
        const size_t n = level == ISA_AVX512 ? WIDE : NARROW;                                 \
        const T a = io[0], b = io[1];                                                         \
        T s[WIDE];                                                                            \
        for (size_t j = 0; j < n; j++) s[j] = (T)j;                                           \
        for (size_t i = 0; i < STEPS; i++) {                                                  \
            _Pragma("omp simd") for (size_t j = 0; j < n; j++) s[j] = FMA(a, s[j], b);        \
        }                                                                                     \
        for (size_t j = 0; j < n; j++) io[0] = s[j];                                          \
    }                                                                                         \
    ISA_CLONES(NAME, (volatile T * io), io)
#define BASE_FMA(FUSED, a, s, b) (ISA_HAS_FMA(level) ? FUSED(a, s, b) : (a) * (s) + (b))
#define FMA_F32(a, s, b) BASE_FMA(__builtin_fmaf, a, s, b)
#define FMA_F64(a, s, b) BASE_FMA(__builtin_fma, a, s, b)
PEAK(peak_f32, float, FMA_F32)
PEAK(peak_f64, double, FMA_F64)

/* GFLOP/s of all threads together, the best of 5. */
static double peak(Math m) {
    const double bytes = CHAINS * (isa_level == ISA_AVX512 ? 64.0 : 32.0), count = bytes / (m == MATH_FAST ? 4 : 8);
    double best = 0;
    for (int i = 0; i < 5; i++) {
        const double start = now();
#pragma omp parallel num_threads(tensor_threads())
        {
            volatile float io32[2] = {0.5f, 1};
            volatile double io64[2] = {0.5, 1};
            if (m == MATH_FAST) peak_f32(io32);
            else peak_f64(io64);
        }
        const double rate = 2e-9 * count * STEPS * tensor_threads() / (now() - start);
        if (rate > best) best = rate;
    }
    return best;
}

/* ---- the kernel ---- */

static float *numbers(size_t n) {
    float *x = mem_new(n, sizeof *x);
    uint32_t state = 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (float)(state >> 8) * 0x1p-24f - 0.5f;
    }
    return x;
}

/* Seconds of one linear, the best of some runs. */
static double time_linear(size_t N, size_t C, size_t O, double budget) {
    float *x = numbers(N * C), *w = numbers(C * O), *b = numbers(O), *y = mem_new(N * O, sizeof *y);
    double best = 1e9;
    for (double end = now() + budget; now() < end;) {
        const double start = now();
        linear(y, x, w, b, N, C, O);
        const double took = now() - start;
        if (took < best) best = took;
    }
    free(x);
    free(w);
    free(b);
    free(y);
    return best;
}

static void shapes(Math m, double top) {
    static const size_t shape[][3] = {{512, 1024, 1024}, {512, 1024, 4096}, {512, 4096, 1024}, {512, 384, 1536},
                                      {100, 768, 3072},  {512, 1024, 2},    {1, 1024, 4096},   {8, 1024, 4096}};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
        const size_t N = shape[i][0], C = shape[i][1], O = shape[i][2];
        const double took = time_linear(N, C, O, 0.4), rate = 2e-9 * (double)N * (double)C * (double)O / took;
        printf("  %-9s N=%-4zu C=%-4zu O=%-4zu %8.3f ms %7.1f GFLOP/s  %5.1f %% of peak, weights at %5.1f GB/s\n",
               m == MATH_FAST ? "fast" : "reference", N, C, O, took * 1e3, rate, 100 * rate / top, 4e-9 * (double)(C * O) / took);
    }
}

int main(int argc, char **argv) {
    Error err;
    const int threads = argc > 1 ? atoi(argv[1]) : 0;
    for (int level = isa_detect(); level >= ISA_BASE; level--)
        for (Math m = MATH_FAST; m <= MATH_REFERENCE; m++) {
            if (!tensor_start(m, threads, &err)) {
                fprintf(stderr, "kernel: %s\n", err.text);
                return err.code;
            }
            isa_set(level);
            const double top = peak(m);
            printf("%s, %d threads: multiply-add peak in %s %.1f GFLOP/s\n", isa_name(level), tensor_threads(),
                   m == MATH_FAST ? "float32" : "float64", top);
            shapes(m, top);
        }
    return 0;
}
