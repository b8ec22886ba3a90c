/* tensor_backward.c - see tensor_backward.h. The gradient of every op, to the bit, and fast.
 *
 * The rule is tensor.c's: a sum is one chain in a fixed order, speed comes from many sums at once. The two large products of linear's backward
 * pass are linear itself on transposed operands: dx = dy w^T, dw = x^T dy. The plain definitions stand beside the fast forms.
 *
 * Left out on purpose: gradients through a cache of keys and values (training reads a sequence at once), second derivatives.
 */
#include "tensor_backward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor_step.h"

/* ---- small helpers ---- */

/* Scratch memory of at least so many floats, aligned to a cache line, kept from call to call. */
static float *scratch_memory(size_t floats) {
    static float *memory;
    static size_t capacity;
    if (floats > capacity) {
        free(memory);
        capacity = floats;
        memory = mem_new(floats + 16, sizeof *memory);
    }
    return memory + (64 - (uintptr_t)memory % 64) % 64 / sizeof *memory;
}

/* y[c,n] = x[n,c], x [N,C] at row stride ldx. */
static void turn(float *restrict y, const float *restrict x, size_t ldx, size_t N, size_t C) {
    enum { SIDE = 16 };
    for (size_t n0 = 0; n0 < N; n0 += SIDE)
        for (size_t c0 = 0; c0 < C; c0 += SIDE)
            for (size_t c = c0; c < c0 + SIDE && c < C; c++)
                for (size_t n = n0; n < n0 + SIDE && n < N; n++) y[c * N + n] = x[n * ldx + c];
}

/* The same for a large matrix, columns of x shared out over the threads. */
static void transpose(float *y, const float *x, size_t N, size_t C) {
    enum { COLUMNS = 64 };
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(N * C))
    for (size_t c = 0; c < C; c += COLUMNS) turn(y + c * N, x + c, C, N, min_size(COLUMNS, C - c));
}

/* ---- sums over rows ---- */

enum { COLUMN_GROUP = 64 }; /* columns a thread sums at a time */

/* y[c] = RN32(y[c] + RN32(sum[c])). */
ISA_BODY void add_rounded(float *restrict y, const double *restrict sum, size_t C) {
    for (size_t c = 0; c < C; c++) y[c] = y[c] + (float)sum[c];
}

ISA_BODY void add_columns_body(int level, float *y, const float *x, size_t ldx, size_t N, size_t C) {
    (void)level;
    double sum[COLUMN_GROUP] = {0};
    for (size_t n = 0; n < N; n++) {
#pragma omp simd
        for (size_t c = 0; c < C; c++) sum[c] += (double)x[n * ldx + c];
    }
    add_rounded(y, sum, C);
}
ISA_CLONES(add_columns, (float *y, const float *x, size_t ldx, size_t N, size_t C), y, x, ldx, N, C)

/* y[c] += RN32(Sum over n of x[n,c]), x [N,C]. */
static void add_column_sums(float *y, const float *x, size_t N, size_t C) {
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(N * C))
    for (size_t c = 0; c < C; c += COLUMN_GROUP) add_columns(y + c, x + c, C, N, min_size(COLUMN_GROUP, C - c));
}

/* ---- linear ---- */

/* dw += x^T dy, some rows of dw at a time. */
static void add_product(float *dw, const float *dy, const float *x, size_t N, size_t C, size_t O) {
    const size_t most = (1 << 22) / (O ? O : 1), rows = most < 96 ? 96 : min_size(most, 768);
    float *turned = scratch_memory(C * N + min_size(rows, C) * O), *new = turned + C * N;
    transpose(turned, x, N, C);
    for (size_t c = 0; c < C; c += rows) {
        const size_t some = min_size(rows, C - c);
        linear(new, turned + c * N, dy, NULL, some, N, O);
        residual(dw + c * O, dw + c * O, new, some * O);
    }
}

void linear_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, size_t N, size_t C, size_t O) {
    if (db) add_column_sums(db, dy, N, O);
    if (dw) add_product(dw, dy, x, N, C, O);
    if (!dx) return;
    float *turned = scratch_memory(C * O);
    transpose(turned, w, C, O);
    linear(dx, dy, turned, NULL, N, O, C);
}

void linear_backward_plain(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, size_t N, size_t C, size_t O) {
    for (size_t i = 0; dx && i < N * C; i++) dx[i] = (float)dot_plain(dy + i / C * O, 1, w + i % C * O, 1, O);
    for (size_t i = 0; dw && i < C * O; i++) dw[i] = dw[i] + (float)dot_plain(x + i / O, C, dy + i % O, O, N);
    for (size_t o = 0; db && o < O; o++) {
        double sum = 0;
        for (size_t n = 0; n < N; n++) sum += (double)dy[n * O + o];
        db[o] = db[o] + (float)sum;
    }
}

/* ---- several rows at once: one chain of additions alone leaves the adders idle ---- */

enum { ROW_GROUP = 8 };

/* z[r], which holds a sum so far, goes on over t in [from,to) with a[r,t]*b[r,t], by the arithmetic in use. */
ISA_BODY void dot_rows_of(int level, const size_t R, const bool fast, double *restrict z, const float *a, const float *b, size_t ld, size_t from, size_t to) {
    float s32[ROW_GROUP];
    double s64[ROW_GROUP];
    for (size_t r = 0; r < R; r++) s64[r] = z[r], s32[r] = (float)z[r];
    for (size_t t = from; t < to; t++)
        for (size_t r = 0; r < R; r++) {
            if (fast) s32[r] = fma_float(level, a[r * ld + t], b[r * ld + t], s32[r]);
            else s64[r] = fma_double(level, (double)a[r * ld + t], (double)b[r * ld + t], s64[r]);
        }
    for (size_t r = 0; r < R; r++) z[r] = fast ? (double)s32[r] : s64[r];
}
ISA_BODY void dot_rows_body(int level, double *z, const float *a, const float *b, size_t ld, size_t rows, size_t from, size_t to) {
    const bool fast = tensor_math() == MATH_FAST;
    if (rows == ROW_GROUP && fast) dot_rows_of(level, ROW_GROUP, true, z, a, b, ld, from, to);
    else if (rows == ROW_GROUP) dot_rows_of(level, ROW_GROUP, false, z, a, b, ld, from, to);
    else
        for (size_t r = 0; r < rows; r++) dot_rows_of(level, 1, fast, z + r, a + r * ld, b + r * ld, ld, from, to);
}
ISA_CLONES(dot_rows, (double *z, const float *a, const float *b, size_t ld, size_t rows, size_t from, size_t to), z, a, b, ld, rows, from, to)

/* ---- normalisation ---- */

/* What the backward pass of one group of rows needs: u and r of the forward pass, A and B. Without a mean u = A = 0, which changes no bit. */
typedef struct {
    double u[ROW_GROUP], r[ROW_GROUP], A[ROW_GROUP], B[ROW_GROUP];
} Norm;

static void layernorm_moments(Norm *m, const float *x, double eps, size_t rows, size_t C) {
    double v[ROW_GROUP] = {0};
    for (size_t c = 0; c < C; c++)
        for (size_t r = 0; r < rows; r++) m->u[r] += (double)x[r * C + c];
    for (size_t r = 0; r < rows; r++) m->u[r] /= (double)C;
    for (size_t c = 0; c < C; c++)
        for (size_t r = 0; r < rows; r++) {
            const double d = (double)x[r * C + c] - m->u[r];
            v[r] += d * d;
        }
    for (size_t r = 0; r < rows; r++) m->r[r] = 1 / sqrt(v[r] / (double)C + eps);
}

static void rmsnorm_moments(Norm *m, const float *x, double eps, size_t rows, size_t C) {
    double s[ROW_GROUP] = {0};
    dot_rows(s, x, x, C, rows, 0, C);
    for (size_t r = 0; r < rows; r++) m->r[r] = 1 / sqrt(s[r] / (double)C + eps);
}

ISA_BODY void norm_sums_body(int level, Norm *m, const float *dy, const float *x, const float *g, size_t rows, size_t C, bool centred) {
    double A[ROW_GROUP] = {0}, B[ROW_GROUP] = {0};
    (void)level;
    for (size_t c = 0; c < C; c++)
        for (size_t r = 0; r < rows; r++) {
            const double a = (double)dy[r * C + c] * (double)g[c], h = ((double)x[r * C + c] - m->u[r]) * m->r[r];
            A[r] += a;
            B[r] += a * h;
        }
    for (size_t r = 0; r < rows; r++) m->A[r] = centred ? A[r] / (double)C : 0, m->B[r] = B[r] / (double)C;
}
ISA_CLONES(norm_sums, (Norm *m, const float *dy, const float *x, const float *g, size_t rows, size_t C, bool centred), m, dy, x, g, rows, C, centred)

ISA_BODY void norm_row_body(int level, float *dx, const float *dy, const float *x, const float *g, double u, double r, double A, double B, size_t C) {
    (void)level;
#pragma omp simd
    for (size_t c = 0; c < C; c++) {
        const double a = (double)dy[c] * (double)g[c], h = ((double)x[c] - u) * r;
        dx[c] = (float)(((a - A) - h * B) * r);
    }
}
ISA_CLONES(norm_row, (float *dx, const float *dy, const float *x, const float *g, double u, double r, double A, double B, size_t C), dx, dy, x, g, u, r, A, B, C)

/* dg[c] += RN32(Sum over n of dy*h) for a group of columns. */
ISA_BODY void gain_columns_body(int level, float *dg, const float *dy, const float *x, const Norm *m, size_t N, size_t ld, size_t C) {
    (void)level;
    double sum[COLUMN_GROUP] = {0};
    for (size_t n = 0; n < N; n++) {
        const double u = m[n / ROW_GROUP].u[n % ROW_GROUP], r = m[n / ROW_GROUP].r[n % ROW_GROUP];
#pragma omp simd
        for (size_t c = 0; c < C; c++) sum[c] += (double)dy[n * ld + c] * (((double)x[n * ld + c] - u) * r);
    }
    add_rounded(dg, sum, C);
}
ISA_CLONES(gain_columns, (float *dg, const float *dy, const float *x, const Norm *m, size_t N, size_t ld, size_t C), dg, dy, x, m, N, ld, C)

static void norm_backward(float *dx, float *dg, float *db, const float *dy, const float *x, const float *g, double eps, size_t N, size_t C, bool centred) {
    Norm *all = mem_new(divide_up(N, ROW_GROUP), sizeof *all);
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(N * C))
    for (size_t n = 0; n < N; n += ROW_GROUP) {
        const size_t rows = min_size(ROW_GROUP, N - n);
        if (centred) layernorm_moments(&all[n / ROW_GROUP], x + n * C, eps, rows, C);
        else rmsnorm_moments(&all[n / ROW_GROUP], x + n * C, eps, rows, C);
    }
    if (db) add_column_sums(db, dy, N, C);
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(N * C))
    for (size_t c = 0; c < C; c += COLUMN_GROUP)
        if (dg) gain_columns(dg + c, dy + c, x + c, all, N, C, min_size(COLUMN_GROUP, C - c));
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(N * C))
    for (size_t n = 0; n < N; n += ROW_GROUP) {
        Norm *m = &all[n / ROW_GROUP];
        const size_t rows = min_size(ROW_GROUP, N - n);
        if (!dx) continue;
        norm_sums(m, dy + n * C, x + n * C, g, rows, C, centred);
        for (size_t r = 0; r < rows; r++) norm_row(dx + (n + r) * C, dy + (n + r) * C, x + (n + r) * C, g, m->u[r], m->r[r], m->A[r], m->B[r], C);
    }
    free(all);
}

void layernorm_backward(float *dx, float *dg, float *db, const float *dy, const float *x, const float *g, double eps, size_t N, size_t C) {
    norm_backward(dx, dg, db, dy, x, g, eps, N, C, true);
}

void rmsnorm_backward(float *dx, float *dg, const float *dy, const float *x, const float *g, double eps, size_t N, size_t C) {
    norm_backward(dx, dg, NULL, dy, x, g, eps, N, C, false);
}

/* ---- softmax ---- */

/* dx = RN32(y*(dy-t)); dx may be dy. */
ISA_BODY void softmax_row_body(int level, float *dx, const float *dy, const float *y, double t, size_t n) {
    (void)level;
#pragma omp simd
    for (size_t i = 0; i < n; i++) dx[i] = (float)((double)y[i] * ((double)dy[i] - t));
}
ISA_CLONES(softmax_row, (float *dx, const float *dy, const float *y, double t, size_t n), dx, dy, y, t, n)

void softmax_backward(float *dx, const float *dy, const float *y, size_t N, size_t T) {
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(N * T))
    for (size_t n = 0; n < N; n += ROW_GROUP) {
        const size_t rows = min_size(ROW_GROUP, N - n);
        double t[ROW_GROUP] = {0};
        dot_rows(t, dy + n * T, y + n * T, T, rows, 0, T);
        for (size_t r = 0; r < rows; r++) softmax_row(dx + (n + r) * T, dy + (n + r) * T, y + (n + r) * T, t[r], T);
    }
}

/* ---- attention ---- */

enum { HEAD_ROWS = 6, HEAD_PANEL_BYTES_MAX = 256 }; /* a tile of sums, as in tensor.c */
ISA_BODY size_t head_panel_bytes(int level) { return level == ISA_AVX512 ? 256 : ISA_HAS_FMA(level) ? 64 : 32; }

/* Which k row r of a product sums over: all (PAIRS: and of the outputs only those where query r attends to the key are wanted), the keys query r
 * attends to, or the queries that attend to key r. */
typedef enum { PAIRS, KEYS, QUERIES } Span;

/* y[rows,cols] = RN32(S over k of x[r,k] w[k,j] * scale [+ bias]); x[r,k] at r*xr + k*xk, rows of y, w, bias at their strides. */
typedef struct {
    float *y;
    const float *x, *w, *bias;
    size_t ldy, xr, xk, ldw, rows, K, cols;
    ptrdiff_t ldbias;
    double scale;
    const Attention *head;
    Span span;
} Product;

/* The first query that attends to key j. */
static inline size_t first_query(const Attention *h, size_t j) {
    if (!h->causal || j + h->Tq < h->Tk) return 0;
    return min_size(j + h->Tq - h->Tk, h->Tq);
}
static inline size_t span_from(const Product *p, size_t r) { return p->span == QUERIES ? first_query(p->head, r) : 0; }
static inline size_t span_to(const Product *p, size_t r) { return p->span == KEYS ? keys_of(p->head, r) : p->K; }

/* p_i = softmax(s_i) over the keys query i attends to. rows: [ROW_GROUP, Tk]. */
static void softmax_of_head(const Attention *h, float *p, float *rows) {
    for (size_t i = 0; i < h->Tq; i += ROW_GROUP) {
        const size_t n = min_size(ROW_GROUP, h->Tq - i), K = keys_of(h, i + n - 1);
        for (size_t r = 0; r < n; r++)
            for (size_t j = 0; j < K; j++) rows[r * K + j] = j < keys_of(h, i + r) ? p[(i + r) * h->Tk + j] : -(float)INFINITY;
        softmax(rows, rows, n, K);
        for (size_t r = 0; r < n; r++) memcpy(p + (i + r) * h->Tk, rows + r * K, keys_of(h, i + r) * sizeof *p);
    }
}

/* ds_ij = RN32(p_ij*(dp_ij-t_i)) in the place of dp. */
static void scores_gradient(const Attention *h, float *dp, const float *p) {
    for (size_t i = 0; i < h->Tq; i += ROW_GROUP) {
        const size_t n = min_size(ROW_GROUP, h->Tq - i), common = keys_of(h, i), at = i * h->Tk;
        double t[ROW_GROUP] = {0};
        dot_rows(t, dp + at, p + at, h->Tk, n, 0, common);
        for (size_t r = 0; r < n; r++) {
            float *row = dp + at + r * h->Tk;
            const size_t keys = keys_of(h, i + r);
            dot_rows(t + r, row, p + at + r * h->Tk, h->Tk, 1, common, keys);
            softmax_row(row, row, p + at + r * h->Tk, t[r], keys);
        }
    }
}

static void bias_gradient(const AttentionBackward *b, const float *ds) {
    const Attention *h = &b->of;
    if (h->ldbias != -1) {
        for (size_t i = 0; i < h->Tq; i++) memcpy(b->dbias + (ptrdiff_t)i * h->ldbias, ds + i * h->Tk, keys_of(h, i) * sizeof *ds);
        return;
    }
    for (ptrdiff_t far = 1 - (ptrdiff_t)h->Tq; far < (ptrdiff_t)h->Tk; far++) { /* j - i */
        double sum = 0;
        for (size_t i = far < 0 ? (size_t)-far : 0; i < h->Tq && (ptrdiff_t)i + far < (ptrdiff_t)h->Tk; i++)
            if ((size_t)((ptrdiff_t)i + far) < keys_of(h, i)) sum += (double)ds[(ptrdiff_t)(i * h->Tk + i) + far];
        b->dbias[far] = (float)sum;
    }
}

#define T float
#define TN(name) name##_f32
#define BODY(name) name##_f32_body
#define MAC fma_float
#include "tensor_backward_kernel.h"
#undef T
#undef TN
#undef BODY
#undef MAC
#define T double
#define TN(name) name##_f64
#define BODY(name) name##_f64_body
#define MAC fma_double
#include "tensor_backward_kernel.h"
#undef T
#undef TN
#undef BODY
#undef MAC

void attention_backward(const AttentionBackward *head, size_t n) {
    size_t own = 0, work = 0;
    for (size_t i = 0; i < n; i++) {
        const Attention *h = &head[i].of;
        const size_t K = h->Tk > h->Tq ? h->Tk : h->Tq, panel = (K > h->D ? K : h->D) * HEAD_PANEL_BYTES_MAX / sizeof(float);
        const size_t floats = round_up(2 * h->Tq * h->Tk + (h->D + ROW_GROUP) * h->Tk, 16) + round_up(panel, 16);
        if (floats > own) own = floats;
        work += h->Tq * h->Tk * h->D;
    }
    float *scratch = scratch_memory(own * (size_t)tensor_threads());
    (void)work;
#pragma omp parallel for num_threads(tensor_threads()) schedule(dynamic) if (worth_threads(work))
    for (size_t i = 0; i < n; i++) {
        if (tensor_math() == MATH_FAST) backward_head_f32(&head[i], scratch + own * thread_index());
        else backward_head_f64(&head[i], scratch + own * thread_index());
    }
}

/* p and ds of one head, [Tq,Tk] each, +0 where a query does not attend. */
static void attention_gradients_plain(const AttentionBackward *b, float *p, float *ds) {
    const Attention *h = &b->of;
    for (size_t i = 0; i < h->Tq; i++) {
        const size_t keys = keys_of(h, i);
        float *p_i = p + i * h->Tk, *ds_i = ds + i * h->Tk;
        for (size_t j = 0; j < keys; j++) {
            const double s = dot_plain(h->q + i * h->ldq, 1, h->k + j * h->ldk, 1, h->D) * h->scale;
            p_i[j] = (float)(h->bias ? s + (double)h->bias[(ptrdiff_t)i * h->ldbias + (ptrdiff_t)j] : s);
            ds_i[j] = (float)dot_plain(b->dctx + i * b->lddctx, 1, h->v + j * h->ldv, 1, h->D); /* dp */
        }
        softmax(p_i, p_i, 1, keys);
        const double t = dot_plain(ds_i, 1, p_i, 1, keys);
        for (size_t j = 0; j < keys; j++) ds_i[j] = (float)((double)p_i[j] * ((double)ds_i[j] - t));
    }
}

void attention_backward_plain(const AttentionBackward *b, size_t n) {
    for (; n > 0; b++, n--) {
        const Attention *h = &b->of;
        const size_t Tq = h->Tq, Tk = h->Tk;
        float *p = mem_new(Tq * Tk, sizeof *p), *ds = mem_new(Tq * Tk, sizeof *ds);
        attention_gradients_plain(b, p, ds);
        for (size_t d = 0; d < h->D; d++) {
            for (size_t i = 0; b->dq && i < Tq; i++) b->dq[i * b->lddq + d] = (float)(dot_plain(ds + i * Tk, 1, h->k + d, h->ldk, keys_of(h, i)) * h->scale);
            for (size_t j = 0; j < Tk; j++) {
                const size_t i = first_query(h, j);
                if (b->dk) b->dk[j * b->lddk + d] = (float)(dot_plain(ds + i * Tk + j, Tk, h->q + i * h->ldq + d, h->ldq, Tq - i) * h->scale);
                if (b->dv) b->dv[j * b->lddv + d] = (float)dot_plain(p + i * Tk + j, Tk, b->dctx + i * b->lddctx + d, b->lddctx, Tq - i);
            }
        }
        if (b->dbias) bias_gradient(b, ds);
        free(p), free(ds);
    }
}

/* ---- element by element ---- */

enum { PIECE = 1 << 12 }; /* elements a thread takes at a time */

ISA_BODY void times_body(int level, float *y, const float *x, const float *z, size_t n) {
    (void)level;
#pragma omp simd
    for (size_t i = 0; i < n; i++) y[i] = x[i] * z[i];
}
ISA_CLONES(times, (float *y, const float *x, const float *z, size_t n), y, x, z, n)

void activation_backward(CrFunction f, float *dx, const float *dy, const float *x, size_t n) {
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(n))
    for (size_t i = 0; i < n; i += PIECE) {
        float slope[PIECE];
        const size_t piece = min_size(PIECE, n - i);
        cr_map(cr_derivative(f), slope, x + i, piece);
        times(dx + i, slope, dy + i, piece);
    }
}

void activation_gated_backward(CrFunction f, float *dx, float *dz, const float *dy, const float *x, const float *z, size_t n) {
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(n))
    for (size_t i = 0; i < n; i += PIECE) {
        float value[PIECE], slope[PIECE], inner[PIECE];
        const size_t piece = min_size(PIECE, n - i);
        cr_map(f, value, x + i, piece);
        cr_map(cr_derivative(f), slope, x + i, piece);
        times(inner, dy + i, z + i, piece);
        times(dz + i, value, dy + i, piece);
        times(dx + i, slope, inner, piece);
    }
}

typedef struct {
    uint32_t id;
    size_t n;
} Lookup;

static int by_id(const void *a, const void *b) {
    const Lookup *x = a, *y = b;
    return x->id != y->id ? (x->id > y->id ? 1 : -1) : (x->n > y->n) - (x->n < y->n);
}

void embedding_backward(float *dw, const uint32_t *id, const float *dy, size_t N, size_t C, size_t row, size_t col) {
    Lookup *at = mem_new(N, sizeof *at);
    for (size_t n = 0; n < N; n++) at[n] = (Lookup){id[n], n};
    qsort(at, N, sizeof *at, by_id);
    for (size_t n = 0, end; n < N; n = end) {
        for (end = n + 1; end < N && at[end].id == at[n].id;) end++;
        for (size_t c = 0; c < C; c++) {
            double sum = 0;
            for (size_t i = n; i < end; i++) sum += (double)dy[at[i].n * C + c];
            float *to = dw + at[n].id * row + c * col;
            *to = *to + (float)sum;
        }
    }
    free(at);
}

/* ---- losses ---- */

ISA_BODY void scaled_difference_body(int level, float *y, const float *x, const float *z, double scale, size_t n) {
    (void)level;
#pragma omp simd
    for (size_t i = 0; i < n; i++) y[i] = (float)(((double)x[i] - (double)z[i]) * scale);
}
ISA_CLONES(scaled_difference, (float *y, const float *x, const float *z, double scale, size_t n), y, x, z, scale, n)

ISA_BODY void divide_row_body(int level, float *y, double by, size_t n) {
    (void)level;
#pragma omp simd
    for (size_t i = 0; i < n; i++) y[i] = (float)((double)y[i] / by);
}
ISA_CLONES(divide_row, (float *y, double by, size_t n), y, by, n)

void cross_entropy_backward(float *dl, const float *l, const size_t *target, double n, size_t N, size_t V) {
    softmax(dl, l, N, V);
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(N * V))
    for (size_t i = 0; i < N; i++) {
        const float p = dl[i * V + target[i]];
        divide_row(dl + i * V, n, V);
        dl[i * V + target[i]] = (float)(((double)p - 1) / n);
    }
}

void kl_backward(float *dl, const float *q, const float *p, double scale, size_t n) {
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(n))
    for (size_t i = 0; i < n; i += PIECE) scaled_difference(dl + i, q + i, p + i, scale, min_size(PIECE, n - i));
}
