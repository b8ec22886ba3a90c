/* tensor.c - see tensor.h. Every forward op of a transformer, to the bit, and fast.
 *
 * The rule behind all of it: a sum is one chain in a fixed order, so speed comes from computing many sums at once (columns in vectors,
 * rows in turn, tiles in threads) and never from cutting one sum in pieces. Each fast form stands beside
 * its plain definition: linear_plain, attention_plain; the row ops are short enough to be their own definition.
 *
 * Left out on purpose: other float formats, other memory orders, intrinsics, assembly, BLAS. The kernel is C that the compiler
 * turns into vectors, compiled for several instruction sets (isa.h), in tensor_kernel.h.
 */
#include "tensor.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor_step.h"

/* ---- settings and the self-check ---- */

static Math math = MATH_FAST;
static int threads = 1;
static double flops = 0;

Math tensor_math(void) { return math; }
int tensor_threads(void) { return threads; }
double tensor_flops(void) { return flops; }

enum { HEALTHY, WRONG_ROUNDING, NO_SUBNORMAL_RESULTS, NO_SUBNORMAL_OPERANDS, CONTRACTED, ROUNDED_TWICE, WRONG_FMA };

/* The first thing that is wrong in this thread at this instruction set. Volatile operands: the compiler must not work it out. */
ISA_BODY void self_check_body(int level, int *fault) {
    volatile double one = 1, half_ulp = 0x1p-53, bit = 0x1p-78, up = 1 + 0x1p-30, down = 1 - 0x1p-30, minus_one = -1;
    volatile float one_f = 1, half_ulp_f = 0x1p-24f, up_f = 1 + 0x1p-13f, down_f = 1 - 0x1p-13f, minus_one_f = -1;
    volatile float least = FLT_MIN, subnormal = 0x1p-149f, big = 0x1p100f, half = 0.5f, third = 1 + 0x1p-12f, fused = -(1 + 0x1p-11f);
    volatile double least_d = DBL_MIN, subnormal_d = 0x1p-1074, big_d = 0x1p100;
    const double a = up, b = down, c = minus_one;
    const float a_f = up_f, b_f = down_f, c_f = minus_one_f;
    volatile double product_sum = a * b + c;
    volatile float product_sum_f = a_f * b_f + c_f;
    *fault = HEALTHY;
    if (one + half_ulp != 1 || -one - half_ulp != -1 || one + 3 * half_ulp != 1 + 0x1p-51 || one_f + half_ulp_f != 1 ||
        one_f + 3 * half_ulp_f != 1 + 0x1p-22f || -one_f - 3 * half_ulp_f != -1 - 0x1p-22f)
        *fault = WRONG_ROUNDING;
    else if (subnormal * big != 0x1p-49f || subnormal_d * big_d != 0x1p-974) *fault = NO_SUBNORMAL_OPERANDS;
    else if (least * half != 0x1p-127f || least_d * half != 0x1p-1023) *fault = NO_SUBNORMAL_RESULTS;
    else if (product_sum != 0 || product_sum_f != 0) *fault = CONTRACTED;
    else if (one + (half_ulp + bit) != 1 + 0x1p-52) *fault = ROUNDED_TWICE;
    else if (fma_float(level, third, third, fused) != 0x1p-24f) *fault = WRONG_FMA;
}
ISA_CLONES(self_check, (int *fault), fault)

static const char *const fault_text[] = {
    "", "does not round to nearest: something called fesetround, or set the processor's control register; set it back",
    "flushes subnormal results to zero (FTZ): a library built with -ffast-math was loaded, or set it; build or run without it",
    "takes subnormal operands for zero (DAZ): a library built with -ffast-math was loaded, or set it; build or run without it",
    "contracts a*b+c into one rounding: compile with -ffp-contract=off",
    "rounds twice (x87): compile with -msse2 -mfpmath=sse",
    "has a fused multiply-add that rounds twice: report the system, its results cannot be trusted"};

bool tensor_start(Math arithmetic, int thread_count, Error *err) {
    int worst = HEALTHY;
    isa_set(isa_detect());
    math = arithmetic;
#if defined(_OPENMP)
    threads = thread_count > 0 ? thread_count : omp_get_num_procs();
#else
    (void)thread_count;
#endif
#pragma omp parallel num_threads(threads) reduction(max : worst)
    self_check(&worst);
    if (worst) return fail(err, BAD_SYSTEM, "this process cannot compute exactly: its floating-point arithmetic %s", fault_text[worst]);
    return true;
}

/* ---- scratch memory ---- */

/* Scratch memory of at least this many bytes, aligned to a page, kept from call to call (fresh pages cost more than packing). */
static void *workspace(size_t bytes) {
    static char *memory;
    static size_t capacity;
    if (bytes > capacity) {
        free(memory);
        capacity = bytes;
        memory = mem_new(bytes + 4096, 1);
    }
    return memory + (4096 - (uintptr_t)memory % 4096) % 4096;
}

/* ---- the matrix kernel, twice ---- */

enum {
    TILE_ROWS = 6,         /* 6 rows of 4 AVX-512 or 2 AVX2 vectors fill the registers with sums */
    PANEL_BYTES_MAX = 256, /* 4 vectors of 64 bytes */
    PASS_ROWS = 768,       /* rows packed at once: bounds the scratch memory */
    BLOCK_K = 384,         /* k of one block; between blocks the sums go to memory and back, which costs more than a panel read from the second-level cache */
    GROUP_CACHE = 114688,  /* bytes of the tiles, at most, that pass over each panel of a strip in turn: they stay in the second-level cache */
    STRIP_COLS = 192,      /* columns packed together, whole cache lines of w */
    AHEAD = 64,            /* columns ahead of use that few rows ask memory for */
    LANES = 32,            /* queries of one attention block */
    ONE_KEYS = 12          /* keys side by side where there is one query */
};

/* Bytes of a panel's row: what the registers of this level hold beside 6 rows of sums. */
ISA_BODY size_t panel_bytes(int level) { return level == ISA_AVX512 ? 256 : ISA_HAS_FMA(level) ? 64 : 32; }

/* Columns a panel with this many valid ones is given: all NR, a half or a quarter. */
static inline size_t panel_width(size_t valid, size_t NR) { return valid > NR / 2 ? NR : valid > NR / 4 ? NR / 2 : NR / 4; }

/* y[N,O] = x[N,C] w[C,O] + b[O], and how it is cut up. */
typedef struct {
    float *y;
    const float *x, *w, *b;
    size_t N, C, O;
    size_t block; /* k of one block */
    size_t group; /* tiles that pass together */
    size_t strip; /* panels packed together */
    size_t range; /* panels whose sums wait together between blocks */
    size_t groups; /* groups of panels, a job each, */
    size_t parts;  /* or as many jobs, by rows */
} Linear;

/* Many rows: one block of a panel of w stays in the caches while all rows pass. Few rows: w is read once, as it
 * lies, a few long streams at a time, so that memory is the only limit. */
static void linear_plan(Linear *l, size_t number_size) {
    const size_t bytes = panel_bytes(isa_level), panel = bytes / number_size, panels = divide_up(l->O, panel), T = (size_t)threads;
    const bool few = l->N <= 2 * TILE_ROWS;
    l->block = few ? 16 : BLOCK_K;
    l->group = GROUP_CACHE / (TILE_ROWS * l->block * number_size);
    l->strip = few ? 1 : divide_up(STRIP_COLS, panel);
    l->range = few ? 4096 / panel : l->strip;
    l->groups = min_size(round_up(divide_up(panels, l->range), T), panels);
    l->range = min_size(l->range, divide_up(panels, l->groups));
    l->strip = min_size(l->strip, l->range);
    l->parts = l->groups % T == 0 ? 1 : min_size(T, divide_up(l->N, TILE_ROWS));
}

/* Ask memory for one of `shares` parts of the rows k < K, columns o < O of w that begin at `at`, while something else is computed. */
static inline void prefetch_share(const float *w, size_t size, size_t at, size_t ldw, size_t K, size_t O, size_t share, size_t shares) {
#if defined(__GNUC__)
    enum { LINE = 64 / sizeof *w };
    for (size_t k = K * share / shares; k < K * (share + 1) / shares; k++)
        for (size_t o = 0; o < O; o += LINE)
            if (at + k * ldw + o < size) __builtin_prefetch(w + at + k * ldw + o, 0, 2);
#else
    (void)w, (void)size, (void)at, (void)ldw, (void)K, (void)O, (void)share, (void)shares;
#endif
}

/* In place, st [Tk, LANES]: e = EXP(RN32(s - m)), m the maximum of the keys[i] first of lane i; +0 after them. Z = Sum(e).
 * A +0 added to a sum of numbers >= +0 does not change it, so lanes need not end together. */
ISA_BODY void max_lanes_body(int level, float *restrict st, const size_t *restrict keys, size_t Tk) {
    (void)level;
    float m[LANES];
    size_t common = Tk;
    for (size_t i = 0; i < LANES; i++) {
        m[i] = st[i];
        common = min_size(common, keys[i]);
    }
    for (size_t j = 1; j < common; j++) {
#pragma omp simd
        for (size_t i = 0; i < LANES; i++) m[i] = st[j * LANES + i] > m[i] ? st[j * LANES + i] : m[i];
    }
    for (size_t j = common; j < Tk; j++)
        for (size_t i = 0; i < LANES; i++)
            if (j < keys[i] && st[j * LANES + i] > m[i]) m[i] = st[j * LANES + i];
    for (size_t j = 0; j < common; j++) {
#pragma omp simd
        for (size_t i = 0; i < LANES; i++) st[j * LANES + i] -= m[i];
    }
    for (size_t j = common; j < Tk; j++)
        for (size_t i = 0; i < LANES; i++) st[j * LANES + i] = j < keys[i] ? st[j * LANES + i] - m[i] : -(float)INFINITY;
}
ISA_CLONES(max_lanes, (float *st, const size_t *keys, size_t Tk), st, keys, Tk)

ISA_BODY void sum_lanes_body(int level, double *restrict Z, const float *restrict e, size_t Tk) {
    (void)level;
    double sum[LANES] = {0};
    for (size_t j = 0; j < Tk; j++) {
#pragma omp simd
        for (size_t i = 0; i < LANES; i++) sum[i] += (double)e[j * LANES + i];
    }
    memcpy(Z, sum, sizeof sum);
}
ISA_CLONES(sum_lanes, (double *Z, const float *e, size_t Tk), Z, e, Tk)

static void exp_lanes(float *st, double *Z, const size_t *keys, size_t Tk) {
    if (Tk) max_lanes(st, keys, Tk);
    cr_map(CR_EXP, st, st, Tk * LANES);
    sum_lanes(Z, st, Tk);
}

static void softmax_group(float *y, const float *x, size_t rows, size_t T);

#define T float
#define TN(name) name##_f32
#define BODY(name) name##_f32_body
#define MAC fma_float
#include "tensor_kernel.h"
#undef T
#undef TN
#undef BODY
#undef MAC
#define T double
#define TN(name) name##_f64
#define BODY(name) name##_f64_body
#define MAC fma_double
#include "tensor_kernel.h"
#undef T
#undef TN
#undef BODY
#undef MAC

/* ---- linear ---- */

void linear(float *y, const float *x, const float *w, const float *b, size_t N, size_t C, size_t O) {
    flops += 2 * (double)N * (double)C * (double)O;
    const size_t rows = N ? round_up(divide_up(N, divide_up(N, PASS_ROWS)), TILE_ROWS) : 1; /* passes of one size: w is packed for each */
    for (size_t n = 0; n < N && O > 0; n += rows) {
        Linear l = {y + n * O, x + n * C, w, b, min_size(rows, N - n), C, O, 0, 0, 0, 0, 0, 0};
        linear_plan(&l, math == MATH_FAST ? sizeof(float) : sizeof(double));
        if (math == MATH_FAST) linear_pass_f32(&l);
        else linear_pass_f64(&l);
    }
}

double dot_plain(const float *a, size_t da, const float *b, size_t db, size_t n) {
    float s32 = 0;
    double s64 = 0;
    for (size_t k = 0; k < n; k++) {
        if (math == MATH_FAST) s32 = fma_float(ISA_BASE, a[k * da], b[k * db], s32);
        else s64 += (double)a[k * da] * (double)b[k * db];
    }
    return math == MATH_FAST ? (double)s32 : s64;
}

void linear_plain(float *y, const float *x, const float *w, const float *b, size_t N, size_t C, size_t O) {
    for (size_t n = 0; n < N; n++)
        for (size_t o = 0; o < O; o++) {
            const double s = dot_plain(x + n * C, 1, w + o, O, C);
            y[n * O + o] = (float)(b ? s + (double)b[o] : s);
        }
}

/* ---- sums of rows, several rows at once ---- */

enum { GROUP = 8 }; /* rows summed side by side: one chain of additions alone leaves the adders idle */

/* z[r] += Sum over t < n of e[r,t], of its square, or of (e[r,t]-u_r)^2, t ascending, for R rows. */
typedef enum { PLAIN_SUM, SQUARES, DEVIATIONS } Term;
ISA_BODY void sum_rows_of(const size_t R, const Term term, double *restrict z, const double *u, const float *e, size_t ld, size_t n) {
    double s[GROUP];
    for (size_t r = 0; r < R; r++) s[r] = z[r];
    for (size_t t = 0; t < n; t++)
        for (size_t r = 0; r < R; r++) {
            const double a = term == DEVIATIONS ? (double)e[r * ld + t] - u[r] : (double)e[r * ld + t];
            s[r] += term == PLAIN_SUM ? a : a * a;
        }
    for (size_t r = 0; r < R; r++) z[r] = s[r];
}
ISA_BODY void sum_term(const Term term, double *z, const double *u, const float *e, size_t ld, size_t rows, size_t n) {
    if (rows == GROUP) sum_rows_of(GROUP, term, z, u, e, ld, n);
    else
        for (size_t r = 0; r < rows; r++) sum_rows_of(1, term, z + r, u + r, e + r * ld, ld, n);
}
ISA_BODY void sum_rows_body(int level, Term term, double *z, const double *u, const float *e, size_t ld, size_t rows, size_t n) {
    (void)level;
    if (term == PLAIN_SUM) sum_term(PLAIN_SUM, z, u, e, ld, rows, n);
    else if (term == SQUARES) sum_term(SQUARES, z, u, e, ld, rows, n);
    else sum_term(DEVIATIONS, z, u, e, ld, rows, n);
}
ISA_CLONES(sum_rows, (Term term, double *z, const double *u, const float *e, size_t ld, size_t rows, size_t n),
           term, z, u, e, ld, rows, n)

/* The maximum of n > 0 numbers. Of +0 and -0 it may give either: every use here subtracts it or adds a LOG to it, with equal bits. */
ISA_BODY void max_row_body(int level, float *restrict m, const float *restrict x, size_t n) {
    enum { WIDTH = 32 };
    (void)level;
    float best[WIDTH];
    size_t t = 0;
    for (size_t i = 0; i < WIDTH; i++) best[i] = x[0];
    for (; t + WIDTH <= n; t += WIDTH) {
#pragma omp simd
        for (size_t i = 0; i < WIDTH; i++) best[i] = x[t + i] > best[i] ? x[t + i] : best[i];
    }
    for (; t < n; t++) best[0] = x[t] > best[0] ? x[t] : best[0];
    *m = best[0];
    for (size_t i = 1; i < WIDTH; i++) *m = best[i] > *m ? best[i] : *m;
}
ISA_CLONES(max_row, (float *m, const float *x, size_t n), m, x, n)

ISA_BODY void subtract_body(int level, float *y, const float *x, float m, size_t n) {
    (void)level;
#pragma omp simd
    for (size_t t = 0; t < n; t++) y[t] = x[t] - m;
}
ISA_CLONES(subtract, (float *y, const float *x, float m, size_t n), y, x, m, n)

/* ---- normalisation ---- */

ISA_BODY void scale_row_body(int level, float *y, const float *x, const float *g, const float *b, double u, double r, size_t C) {
    (void)level;
    if (b) {
#pragma omp simd
        for (size_t c = 0; c < C; c++) y[c] = (float)((((double)x[c] - u) * r) * (double)g[c] + (double)b[c]);
    } else {
#pragma omp simd
        for (size_t c = 0; c < C; c++) y[c] = (float)(((double)x[c] * r) * (double)g[c]);
    }
}
ISA_CLONES(scale_row, (float *y, const float *x, const float *g, const float *b, double u, double r, size_t C), y, x, g, b, u, r, C)

static void layernorm_group(float *y, const float *x, const float *g, const float *b, double eps, size_t rows, size_t C) {
    double u[GROUP] = {0}, v[GROUP] = {0};
    sum_rows(PLAIN_SUM, u, u, x, C, rows, C);
    for (size_t r = 0; r < rows; r++) u[r] /= (double)C;
    sum_rows(DEVIATIONS, v, u, x, C, rows, C);
    for (size_t r = 0; r < rows; r++) scale_row(y + r * C, x + r * C, g, b, u[r], 1 / sqrt(v[r] / (double)C + eps), C);
}

void layernorm(float *y, const float *x, const float *g, const float *b, double eps, size_t N, size_t C) {
#pragma omp parallel for num_threads(threads) schedule(static) if (worth_threads(N * C))
    for (size_t n = 0; n < N; n += GROUP) layernorm_group(y + n * C, x + n * C, g, b, eps, min_size(GROUP, N - n), C);
}

/* s[r] = S(x_r, x_r) of MATH_FAST for R rows. */
ISA_BODY void squares_of(int level, const size_t R, double *restrict s, const float *restrict x, size_t C) {
    float sum[GROUP] = {0};
    for (size_t c = 0; c < C; c++)
        for (size_t r = 0; r < R; r++) sum[r] = fma_float(level, x[r * C + c], x[r * C + c], sum[r]);
    for (size_t r = 0; r < R; r++) s[r] = (double)sum[r];
}
ISA_BODY void squares_body(int level, double *s, const float *x, size_t rows, size_t C) {
    if (rows == GROUP) squares_of(level, GROUP, s, x, C);
    else
        for (size_t r = 0; r < rows; r++) squares_of(level, 1, s + r, x + r * C, C);
}
ISA_CLONES(squares, (double *s, const float *x, size_t rows, size_t C), s, x, rows, C)

static void rmsnorm_group(float *y, const float *x, const float *g, double eps, size_t rows, size_t C) {
    double s[GROUP] = {0};
    if (math == MATH_REFERENCE) sum_rows(SQUARES, s, s, x, C, rows, C);
    else squares(s, x, rows, C);
    for (size_t r = 0; r < rows; r++) scale_row(y + r * C, x + r * C, g, NULL, 0, 1 / sqrt(s[r] / (double)C + eps), C);
}

void rmsnorm(float *y, const float *x, const float *g, double eps, size_t N, size_t C) {
#pragma omp parallel for num_threads(threads) schedule(static) if (worth_threads(N * C))
    for (size_t n = 0; n < N; n += GROUP) rmsnorm_group(y + n * C, x + n * C, g, eps, min_size(GROUP, N - n), C);
}

/* ---- softmax and its relatives ---- */

ISA_BODY void divide_body(int level, float *y, double Z, size_t n) {
    (void)level;
#pragma omp simd
    for (size_t t = 0; t < n; t++) y[t] = (float)((double)y[t] / Z);
}
ISA_CLONES(divide, (float *y, double Z, size_t n), y, Z, n)

static void softmax_group(float *y, const float *x, size_t rows, size_t T) {
    double Z[GROUP] = {0};
    for (size_t r = 0; r < rows; r++) {
        float m;
        max_row(&m, x + r * T, T);
        subtract(y + r * T, x + r * T, m, T);
    }
    cr_map(CR_EXP, y, y, rows * T);
    sum_rows(PLAIN_SUM, Z, Z, y, T, rows, T);
    for (size_t r = 0; r < rows; r++) divide(y + r * T, Z[r], T);
}

void softmax(float *y, const float *x, size_t N, size_t T) {
#pragma omp parallel for num_threads(threads) schedule(static) if (worth_threads(N * T))
    for (size_t n = 0; n < N; n += GROUP)
        if (T) softmax_group(y + n * T, x + n * T, min_size(GROUP, N - n), T);
}

/* The definition of softmax for one row. */
static void softmax_plain(float *y, const float *x, size_t T) {
    float m = T ? x[0] : 0;
    double Z = 0;
    for (size_t t = 1; t < T; t++) m = x[t] > m ? x[t] : m;
    for (size_t t = 0; t < T; t++) y[t] = cr_one(CR_EXP, x[t] - m);
    for (size_t t = 0; t < T; t++) Z += (double)y[t];
    for (size_t t = 0; t < T; t++) y[t] = (float)((double)y[t] / Z);
}

/* In blocks of columns, so that no copy of the row is needed. */
static void logsumexp_group(float *lse, const float *l, size_t rows, size_t V) {
    enum { BLOCK = 512 };
    float e[GROUP * BLOCK], m[GROUP];
    double Z[GROUP] = {0};
    for (size_t r = 0; r < rows; r++) max_row(&m[r], l + r * V, V);
    for (size_t v = 0; v < V; v += BLOCK) {
        const size_t n = min_size(BLOCK, V - v);
        for (size_t r = 0; r < rows; r++) subtract(e + r * n, l + r * V + v, m[r], n);
        cr_map(CR_EXP, e, e, rows * n);
        sum_rows(PLAIN_SUM, Z, Z, e, n, rows, n);
    }
    for (size_t r = 0; r < rows; r++) lse[r] = m[r] + cr_one(CR_LOG, (float)Z[r]);
}

void logsumexp(float *lse, const float *l, size_t N, size_t V) {
#pragma omp parallel for num_threads(threads) schedule(static) if (worth_threads(N * V))
    for (size_t n = 0; n < N; n += GROUP)
        if (V) logsumexp_group(lse + n, l + n * V, min_size(GROUP, N - n), V);
}

void logprob(float *y, const float *l, size_t N, size_t V) {
#pragma omp parallel for num_threads(threads) schedule(static) if (worth_threads(N * V))
    for (size_t n = 0; n < N; n += GROUP) {
        float lse[GROUP];
        const size_t rows = min_size(GROUP, N - n);
        if (V) logsumexp_group(lse, l + n * V, rows, V);
        for (size_t r = 0; r < rows && V; r++) subtract(y + (n + r) * V, l + (n + r) * V, lse[r], V);
    }
}

float cross_entropy(float *nll, const float *l, const size_t *target, size_t N, size_t V) {
    double sum = 0;
    logsumexp(nll, l, N, V);
    for (size_t n = 0; n < N; n++) {
        nll[n] = nll[n] - l[n * V + target[n]];
        sum += (double)nll[n];
    }
    return (float)(sum / (double)N);
}

float kl_divergence(const float *p, const float *lp, const float *lq, size_t N, size_t V) {
    double sum = 0;
    for (size_t i = 0; i < N * V; i++) sum += (double)p[i] * ((double)lp[i] - (double)lq[i]);
    return (float)sum;
}

/* ---- attention ---- */

/* Heads are cut into parts of whole blocks of queries when there are too few heads for the threads. */
void attention(const Attention *head, size_t n) {
    size_t room = 0, blocks = 0;
    const size_t size = math == MATH_FAST ? sizeof(float) : sizeof(double), NR = panel_bytes(isa_level) / size;
    for (size_t i = 0; i < n; i++) {
        const size_t numbers = head[i].Tk * (head[i].D + round_up(head[i].D, NR) + 2 * LANES) + head[i].D * LANES + TILE_ROWS * NR;
        for (size_t q = 0; q < head[i].Tq; q++) flops += 4 * (double)head[i].D * (double)keys_of(&head[i], q);
        if (numbers > room) room = numbers;
        if (divide_up(head[i].Tq, LANES) > blocks) blocks = divide_up(head[i].Tq, LANES);
    }
    if (!blocks) return;
    const size_t parts = min_size(blocks, divide_up(4 * (size_t)threads, n)), own = round_up(room * size, 4096);
    char *scratch = workspace(own * (size_t)threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (worth_threads(room * blocks * n))
    for (size_t job = 0; job < n * parts; job++) {
        const Attention *h = head + job / parts;
        const size_t b = divide_up(h->Tq, LANES), part = job % parts;
        const size_t i0 = b * part / parts * LANES, i1 = min_size(b * (part + 1) / parts * LANES, h->Tq);
        if (i0 >= i1) continue;
        if (math == MATH_FAST) attention_job_f32(h, (float *)(void *)(scratch + own * thread_index()), i0, i1);
        else attention_job_f64(h, (double *)(void *)(scratch + own * thread_index()), i0, i1);
    }
}

/* A head whose past lies elsewhere, with past and present in one place: room [2, Tk, D]. */
static Attention join_past(const Attention *h, float *room) {
    Attention j = *h;
    if (h->Tp == 0) return j;
    float *k = room, *v = room + h->Tk * h->D;
    for (size_t t = 0; t < h->Tk; t++) {
        const bool past = t < h->Tp;
        memcpy(k + t * h->D, past ? h->past_k + t * h->ldp : h->k + (t - h->Tp) * h->ldk, h->D * sizeof *k);
        memcpy(v + t * h->D, past ? h->past_v + t * h->ldp : h->v + (t - h->Tp) * h->ldv, h->D * sizeof *v);
    }
    j.k = k, j.v = v;
    j.ldk = j.ldv = h->D;
    j.Tp = 0;
    return j;
}

void attention_scores_plain(const Attention *h, float *s) {
    float *room = mem_new(h->Tk, 2 * h->D * sizeof *room);
    const Attention a = join_past(h, room);
    for (size_t i = 0; i < a.Tq; i++)
        for (size_t j = 0; j < a.Tk; j++) {
            s[i * a.Tk + j] = -(float)INFINITY;
            if (j >= keys_of(&a, i)) continue;
            const double dot = dot_plain(a.q + i * a.ldq, 1, a.k + j * a.ldk, 1, a.D) * a.scale;
            s[i * a.Tk + j] = (float)(a.bias ? dot + (double)a.bias[(ptrdiff_t)i * a.ldbias + (ptrdiff_t)j] : dot);
        }
    free(room);
}

void attention_context_plain(const Attention *h, const float *p) {
    float *room = mem_new(h->Tk, 2 * h->D * sizeof *room);
    const Attention a = join_past(h, room);
    for (size_t i = 0; i < a.Tq; i++)
        for (size_t d = 0; d < a.D; d++) a.ctx[i * a.ldc + d] = (float)dot_plain(p + i * a.Tk, 1, a.v + d, a.ldv, keys_of(&a, i));
    free(room);
}

void attention_plain(const Attention *head, size_t n) {
    for (; n > 0; head++, n--) {
        float *p = mem_new(head->Tq, head->Tk * sizeof *p); /* s, then p */
        attention_scores_plain(head, p);
        for (size_t i = 0; i < head->Tq; i++) softmax_plain(p + i * head->Tk, p + i * head->Tk, keys_of(head, i));
        attention_context_plain(head, p);
        free(p);
    }
}

/* ---- element by element ---- */

void embedding_sum(float *y, const float *a, const float *b, const float *c, size_t C) {
    for (size_t i = 0; i < C; i++) y[i] = (float)(c ? (double)a[i] + (double)b[i] + (double)c[i] : (double)a[i] + (double)b[i]);
}

enum { PIECE = 1 << 12 }; /* elements a thread takes at a time */

ISA_BODY void add_body(int level, float *y, const float *x, const float *z, size_t n) {
    (void)level;
#pragma omp simd
    for (size_t i = 0; i < n; i++) y[i] = x[i] + z[i];
}
ISA_CLONES(add, (float *y, const float *x, const float *z, size_t n), y, x, z, n)

ISA_BODY void times_body(int level, float *y, const float *x, const float *z, size_t n) {
    (void)level;
#pragma omp simd
    for (size_t i = 0; i < n; i++) y[i] = x[i] * z[i];
}
ISA_CLONES(times, (float *y, const float *x, const float *z, size_t n), y, x, z, n)

void residual(float *y, const float *x, const float *z, size_t n) {
#pragma omp parallel for num_threads(threads) schedule(static) if (worth_threads(n))
    for (size_t i = 0; i < n; i += PIECE) add(y + i, x + i, z + i, min_size(PIECE, n - i));
}

void activation(CrFunction f, float *y, const float *x, size_t n) {
#pragma omp parallel for num_threads(threads) schedule(static) if (worth_threads(n))
    for (size_t i = 0; i < n; i += PIECE) cr_map(f, y + i, x + i, min_size(PIECE, n - i));
}

void activation_gated(CrFunction f, float *y, const float *x, const float *z, size_t n) {
#pragma omp parallel for num_threads(threads) schedule(static) if (worth_threads(n))
    for (size_t i = 0; i < n; i += PIECE) {
        float a[PIECE]; /* y may be z as well */
        const size_t piece = min_size(PIECE, n - i);
        cr_map(f, a, x + i, piece);
        times(y + i, a, z + i, piece);
    }
}
