/* tensor_step.h - what tensor.c and tensor_backward.c are made of: one step of a sum in both arithmetics, sizes of tiles, threads. */
#ifndef TENSOR_STEP_H
#define TENSOR_STEP_H

#include <float.h>
#include <string.h>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "isa.h"
#include "tensor.h"

#if defined(__FAST_MATH__)
#error "-ffast-math (or -Ofast) changes results: compile without it"
#endif
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "float and double must be computed in their own precision: compile for 32-bit x86 with -msse2 -mfpmath=sse, for s390x with -fexcess-precision=fast"
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

/* ---- fused multiply-add ---- */

/* RN32(a*b + s) without the instruction. The product is exact in float64; TwoSum gives the sum's rounding error exactly;
 * forcing the last bit of an inexact sum to 1 (round to odd, towards the exact value's side) makes the second rounding, to float32, right, for
 * subnormal results too. Infinities and NaN make the error NaN, which compares as neither and leaves the sum alone. */
ISA_BODY float soft_fma(float a, float b, float s) {
    const double p = (double)a * (double)b, c = (double)s;
    double sum = p + c;
    const double back = sum - p, error = (p - (sum - back)) + (c - back), side = error * sum;
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    bits = (bits - (side < 0 ? 1u : 0u)) | (side < 0 ? 1u : 0u) | (side > 0 ? 1u : 0u);
    memcpy(&sum, &bits, sizeof bits);
    return (float)sum;
}

#if defined(__GNUC__)
ISA_BODY float fma_float(int level, float a, float b, float s) {
    return ISA_HAS_FMA(level) ? __builtin_fmaf(a, b, s) : soft_fma(a, b, s);
}
/* float64 sums of float32 products: the product is exact, so fused or not is the same. */
ISA_BODY double fma_double(int level, double a, double b, double s) {
    return ISA_HAS_FMA(level) ? __builtin_fma(a, b, s) : s + a * b;
}
#else
ISA_BODY float fma_float(int level, float a, float b, float s) { return (void)level, soft_fma(a, b, s); }
ISA_BODY double fma_double(int level, double a, double b, double s) { return (void)level, s + a * b; }
#endif

/* S of n pairs, a at stride da, b at stride db, as float64 (which holds a float32 sum exactly). */
double dot_plain(const float *a, size_t da, const float *b, size_t db, size_t n);

/* ---- small helpers ---- */

static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t divide_up(size_t a, size_t b) { return a / b + (a % b != 0); }
static inline size_t round_up(size_t a, size_t b) { return divide_up(a, b) * b; }

/* Keys query i of a head attends to: all, or j <= i + (Tk - Tq). */
static inline size_t keys_of(const Attention *h, size_t i) {
    if (!h->causal) return h->Tk;
    return h->Tk + i + 1 > h->Tq ? min_size(h->Tk + i + 1 - h->Tq, h->Tk) : 0;
}

/* Waking threads takes as long as some ten thousand steps of work. */
static inline bool worth_threads(size_t steps) { return steps > 1 << 14; }

static inline size_t thread_index(void) {
#if defined(_OPENMP)
    return (size_t)omp_get_thread_num();
#else
    return 0;
#endif
}

#endif
