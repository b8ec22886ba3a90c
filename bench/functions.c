/* functions.c - nanoseconds per element of the correctly rounded functions, at each instruction set, beside the C library's where it has one.
 *
 * usage: functions */
#include <math.h>

#include "../crmath.h"
#include "../isa.h"
#include "warm.h"

enum { N = 1 << 16, RUNS = 40 };
static float x[N], y[N];

static float library(CrFunction f, float a) {
    switch (f) {
    case CR_EXP: return expf(a);
    case CR_LOG: return logf(a);
    case CR_TANH: return tanhf(a);
    case CR_GELU: return 0.5f * a * (1 + erff(a * 0.70710678f));
    case CR_GELU_NEW: return 0.5f * a * (1 + tanhf(0.79788456f * (a + 0.044715f * a * a * a)));
    case CR_SILU: return a / (1 + expf(-a));
    default: return a > 0 ? a : 0;
    }
}

int main(void) {
    printf("%-10s %10s", "ns/element", "libm");
    for (int level = ISA_BASE; level <= isa_detect(); level++) printf(" %10s", isa_name(level));
    printf("\n");
    for (int f = 0; f < CR_D_TANH; f++) {
        unsigned state = 1;
        for (int i = 0; i < N; i++) { /* EXP as in a softmax, LOG of positive numbers, activations around 0 */
            state = state * 1664525u + 1013904223u;
            float u = (float)(state >> 8) * 0x1p-24f;
            x[i] = f == CR_EXP ? -20 * u : f == CR_LOG ? 100 * u + 1e-3f : 8 * u - 4;
        }
        double best = 1e9;
        for (int run = 0; run < RUNS; run++) {
            double start = now();
            for (int i = 0; i < N; i++) y[i] = library((CrFunction)f, x[i]);
            double t = now() - start;
            best = t < best ? t : best;
        }
        printf("%-10s %10.2f", cr_name((CrFunction)f), 1e9 * best / N);
        for (int level = ISA_BASE; level <= isa_detect(); level++) {
            isa_set(level);
            best = 1e9;
            for (int run = 0; run < RUNS; run++) {
                double start = now();
                cr_map((CrFunction)f, y, x, N);
                double t = now() - start;
                best = t < best ? t : best;
            }
            printf(" %10.2f", 1e9 * best / N);
        }
        printf("\n");
    }
    return 0;
}
