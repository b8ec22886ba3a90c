/* test_backward.c - the gradient of every op: its bits against its definition, and the definition against the mathematics.
 *
 * Bits: linear_backward_plain, attention_backward_plain and the few lines of scalar code here, at every instruction set and several thread
 * counts. Mathematics: the op as a function of float64 numbers, differentiated by central differences.
 */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "plain.h"
#include "tensor_backward.h"

/* Around 1 in size, so that central differences are smooth. */
static float unit(void) { return (float)(int32_t)noise_bits() * 0x1p-31f; }

/* ---- bits ---- */

static void test_linear_bits(Math m) {
    static const size_t shape[][3] = {{1, 1, 1}, {5, 3, 7}, {7, 65, 33}, {70, 17, 130}, {33, 100, 9}, {67, 800, 41}, {2, 120, 45000}, {0, 3, 2}, {3, 0, 2}, {3, 2, 0}};
    for (size_t i = 0; i < COUNT(shape); i++) {
        const size_t N = shape[i][0], C = shape[i][1], O = shape[i][2], all = N * C + C * O + O;
        if (m == MATH_REFERENCE && O > 1000) continue;
        float *x = fill(N * C, random_float), *w = fill(C * O, random_float), *dy = fill(N * O, random_float), *old = fill(all, random_float);
        float *want = mem_new(all, sizeof *want), *got = mem_new(all, sizeof *got);
        start(m, 1, ISA_BASE);
        memcpy(want, old, all * sizeof *want);
        linear_backward_plain(want, want + N * C, want + N * C + C * O, dy, x, w, N, C, O);
        EVERYWHERE(m) {
            memcpy(got, old, all * sizeof *got);
            linear_backward(got, got + N * C, got + N * C + C * O, dy, x, w, N, C, O);
            SAME(got, want, all, "linear N=%zu C=%zu O=%zu", N, C, O);
        }
        free(x), free(w), free(dy), free(old), free(want), free(got);
    }
}

typedef struct {
    size_t Tq, Tk, D, H;
    bool causal;
    ptrdiff_t ldbias; /* 0: no bias */
} Shape;

static void test_attention_bits(Math m) {
    static const Shape shape[] = {{1, 1, 1, 1, false, 0}, {1, 1, 3, 1, true, 0},  {13, 13, 5, 3, true, 0},  {40, 40, 64, 2, true, 0},  {37, 37, 20, 2, true, -1},
                                  {9, 31, 7, 2, false, 0}, {31, 9, 7, 2, false, -1}, {20, 33, 16, 1, true, 40}, {33, 20, 17, 1, true, 21}, {26, 26, 4, 5, false, 26},
                                  {0, 4, 3, 1, false, 0},  {4, 0, 3, 1, false, 0},  {70, 70, 33, 2, false, -1}};
    for (size_t s = 0; s < COUNT(shape); s++) {
        const Shape t = shape[s];
        const size_t E = t.D * t.H + 2, biases = t.ldbias > 0 ? t.Tq * (size_t)t.ldbias : t.Tq + t.Tk + 1, all = (t.Tq + 2 * t.Tk) * E + t.H * biases;
        float *q = fill(t.Tq * E, unit), *k = fill(t.Tk * E, unit), *v = fill(t.Tk * E, unit), *bias = fill(t.H * biases, unit), *dctx = fill(t.Tq * E, random_float);
        float *want = mem_new(all, sizeof *want), *got = mem_new(all, sizeof *got);
        AttentionBackward *head = mem_new(t.H, sizeof *head);
        for (int plain = 1; plain >= 0; plain--) {
            float *out = plain ? want : got;
            for (size_t h = 0; h < t.H; h++) {
                const size_t D = t.D, first = t.ldbias < 0 && t.Tq ? t.Tq - 1 : 0;
                head[h] = (AttentionBackward){.of = {.q = q + h * D, .k = k + h * D, .v = v + h * D, .bias = t.ldbias ? bias + h * biases + first : NULL, .Tq = t.Tq,
                                                     .Tk = t.Tk, .D = D, .ldq = E, .ldk = E, .ldv = E, .ldbias = t.ldbias, .scale = 1 / sqrt((double)D), .causal = t.causal},
                                              .dctx = dctx + h * D, .lddctx = E, .dq = out + h * D, .dk = out + t.Tq * E + h * D, .dv = out + (t.Tq + t.Tk) * E + h * D,
                                              .dbias = t.ldbias ? out + (t.Tq + 2 * t.Tk) * E + h * biases + first : NULL, .lddq = E, .lddk = E, .lddv = E};
            }
            if (plain) start(m, 1, ISA_BASE), attention_backward_plain(head, t.H);
            else
                EVERYWHERE(m) {
                    memset(got, 0, all * sizeof *got);
                    attention_backward(head, t.H);
                    SAME(got, want, all, "attention Tq=%zu Tk=%zu D=%zu causal=%d bias=%td", t.Tq, t.Tk, t.D, t.causal, t.ldbias);
                }
        }
        free(q), free(k), free(v), free(bias), free(dctx), free(want), free(got), free(head);
    }
}

/* ---- row ops, by their definitions ---- */

static double dot(Math m, const float *a, const float *b, size_t n) {
    double s64 = 0;
    float s32 = 0;
    for (size_t i = 0; i < n; i++) s64 += (double)a[i] * (double)b[i], s32 = fmaf(a[i], b[i], s32);
    return m == MATH_FAST ? (double)s32 : s64;
}

/* dx [N,C], then dg [C] and db [C], which are added to. */
static void norm_plain(Math m, bool mean, float *out, const float *dy, const float *x, const float *g, double eps, size_t N, size_t C) {
    float *dg = out + N * C, *db = dg + C;
    double *sum = mem_new(2 * C, sizeof *sum);
    for (size_t n = 0; n < N; n++) {
        const float *row = x + n * C, *d = dy + n * C;
        double u = 0, v = 0, A = 0, B = 0;
        for (size_t c = 0; c < C && mean; c++) u += (double)row[c];
        u /= (double)C;
        for (size_t c = 0; c < C; c++) v += ((double)row[c] - u) * ((double)row[c] - u);
        const double r = 1 / sqrt((mean ? v : dot(m, row, row, C)) / (double)C + eps);
        for (size_t c = 0; c < C; c++) {
            const double a = (double)d[c] * (double)g[c], h = ((double)row[c] - u) * r;
            A += a, B += a * h, sum[c] += (double)d[c] * h, sum[C + c] += (double)d[c];
        }
        A = mean ? A / (double)C : 0, B /= (double)C;
        for (size_t c = 0; c < C; c++) out[n * C + c] = (float)((((double)d[c] * (double)g[c] - A) - (((double)row[c] - u) * r) * B) * r);
    }
    for (size_t c = 0; c < C; c++) dg[c] = dg[c] + (float)sum[c];
    for (size_t c = 0; c < C && mean; c++) db[c] = db[c] + (float)sum[C + c];
    free(sum);
}

static void softmax_plain_backward(Math m, float *dx, const float *dy, const float *y, size_t N, size_t C) {
    for (size_t n = 0; n < N; n++) {
        const double t = dot(m, dy + n * C, y + n * C, C);
        for (size_t c = 0; c < C; c++) dx[n * C + c] = (float)((double)y[n * C + c] * ((double)dy[n * C + c] - t));
    }
}

static void test_row_bits(Math m) {
    static const size_t shape[][2] = {{1, 1}, {3, 7}, {8, 33}, {21, 65}, {67, 300}, {9, 130}};
    for (size_t s = 0; s < COUNT(shape); s++) {
        const size_t N = shape[s][0], C = shape[s][1], all = N * C + 2 * C;
        float *x = fill(N * C, unit), *dy = fill(N * C, random_float), *g = fill(C, unit), *y = mem_new(N * C, sizeof *y), *old = fill(all, random_float);
        float *want[3], *got = mem_new(all, sizeof *got);
        for (int i = 0; i < 3; i++) want[i] = mem_new(all, sizeof *want[i]), memcpy(want[i], old, all * sizeof *old);
        start(m, 1, ISA_BASE);
        softmax(y, x, N, C);
        norm_plain(m, true, want[0], dy, x, g, 1e-5, N, C);
        norm_plain(m, false, want[1], dy, x, g, 1e-6, N, C);
        softmax_plain_backward(m, want[2], dy, y, N, C);
        EVERYWHERE(m) {
            memcpy(got, old, all * sizeof *old);
            layernorm_backward(got, got + N * C, got + N * C + C, dy, x, g, 1e-5, N, C);
            SAME(got, want[0], all, "layernorm N=%zu C=%zu", N, C);
            memcpy(got, old, all * sizeof *old);
            memcpy(got, dy, N * C * sizeof *got);
            rmsnorm_backward(got, got + N * C, got, x, g, 1e-6, N, C); /* in place */
            SAME(got, want[1], all, "rmsnorm N=%zu C=%zu", N, C);
            memcpy(got, dy, N * C * sizeof *got);
            softmax_backward(got, got, y, N, C);
            SAME(got, want[2], N * C, "softmax N=%zu C=%zu", N, C);
        }
        free(x), free(dy), free(g), free(y), free(old), free(got);
        for (int i = 0; i < 3; i++) free(want[i]);
    }
}

static void test_element_bits(Math m) {
    static const CrFunction functions[] = {CR_TANH, CR_GELU, CR_GELU_NEW, CR_SILU, CR_RELU};
    enum { N = 9000 };
    float *x = fill(N, random_float), *z = fill(N, random_float), *dy = fill(N, random_float), *want = mem_new(3 * N, sizeof *want), *got = mem_new(2 * N, sizeof *got);
    for (size_t f = 0; f < COUNT(functions); f++) {
        for (size_t i = 0; i < N; i++) {
            const float slope = cr_one(cr_derivative(functions[f]), x[i]), inner = dy[i] * z[i];
            want[i] = slope * dy[i];
            want[N + i] = slope * inner;
            want[2 * N + i] = cr_one(functions[f], x[i]) * dy[i];
        }
        EVERYWHERE(m) {
            activation_backward(functions[f], got, dy, x, N);
            SAME(got, want, N, "%s", cr_name(functions[f]));
            activation_gated_backward(functions[f], got, got + N, dy, x, z, N);
            SAME(got, want + N, 2 * N, "gated %s", cr_name(functions[f]));
        }
    }
    CHECK(cr_one(CR_D_RELU, 1) == 1 && cr_one(CR_D_RELU, 0) == 0 && cr_one(CR_D_RELU, -1) == 0, "the derivative of RELU");
    free(x), free(z), free(dy), free(want), free(got);
}

static void test_lookup_bits(Math m) {
    enum { V = 11, C = 13, N = 40 };
    float *dy = fill(N * C, random_float), *old = fill(V * C, random_float), want[V * C], got[V * C];
    uint32_t id[N];
    for (size_t n = 0; n < N; n++) id[n] = (uint32_t)below(V - 2);
    for (size_t v = 0; v < V; v++)
        for (size_t c = 0; c < C; c++) {
            double sum = 0;
            bool met = false;
            for (size_t n = 0; n < N; n++)
                if (id[n] == v) sum += (double)dy[n * C + c], met = true;
            want[v * C + c] = met ? old[v * C + c] + (float)sum : old[v * C + c];
        }
    EVERYWHERE(m) {
        float turned[V * C];
        for (size_t i = 0; i < V * C; i++) got[i] = old[i], turned[i % C * V + i / C] = old[i];
        embedding_backward(got, id, dy, N, C, C, 1);
        SAME(got, want, V * C, "rows of a table");
        embedding_backward(turned, id, dy, N, C, 1, V);
        for (size_t i = 0; i < V * C; i++) got[i] = turned[i % C * V + i / C];
        SAME(got, want, V * C, "columns of a table");
    }
    free(dy), free(old);
}

static void test_loss_bits(Math m) {
    enum { N = 9, V = 401 };
    float *l = fill(N * V, unit), *p = mem_new(N * V, sizeof *p), *q = mem_new(N * V, sizeof *q), *want = mem_new(2 * N * V, sizeof *want), *got = mem_new(N * V, sizeof *got);
    size_t target[N];
    start(m, 1, ISA_BASE);
    softmax(p, l, N, V);
    for (size_t i = 0; i < N * V; i++) q[i] = unit();
    softmax(q, q, N, V);
    for (size_t n = 0; n < N; n++) target[n] = below(V);
    for (size_t i = 0; i < N * V; i++) {
        want[i] = (float)(((double)p[i] - (target[i / V] == i % V ? 1 : 0)) / 7.0);
        want[N * V + i] = (float)(((double)q[i] - (double)p[i]) * (1 / 3.0));
    }
    EVERYWHERE(m) {
        memcpy(got, l, N * V * sizeof *l);
        cross_entropy_backward(got, got, target, 7, N, V);
        SAME(got, want, N * V, "cross entropy");
        kl_backward(got, q, p, 1 / 3.0, N * V);
        SAME(got, want + N * V, N * V, "KL");
    }
    free(l), free(p), free(q), free(want), free(got);
}

/* ---- mathematics ---- */

enum { T = 6, D = 5, C = T * D, V = 8 };

/* Scalar functions of float64 numbers x [C], weighed with `by`; the ops in their textbook form. */
typedef double (*Textbook)(const double *x, const float *by);

static double book_layernorm(const double *x, const float *by) { /* x: a row, g the second half of `by` */
    double u = 0, v = 0, sum = 0;
    for (size_t c = 0; c < C; c++) u += x[c] / C;
    for (size_t c = 0; c < C; c++) v += (x[c] - u) * (x[c] - u) / C;
    for (size_t c = 0; c < C; c++) sum += (double)by[c] * ((x[c] - u) / sqrt(v + 1e-5)) * (double)by[C + c];
    return sum;
}
static double book_rmsnorm(const double *x, const float *by) {
    double v = 0, sum = 0;
    for (size_t c = 0; c < C; c++) v += x[c] * x[c] / C;
    for (size_t c = 0; c < C; c++) sum += (double)by[c] * (x[c] / sqrt(v + 1e-6)) * (double)by[C + c];
    return sum;
}
static double book_gelu(const double *x, const float *by) {
    double sum = 0;
    for (size_t c = 0; c < C; c++) sum += (double)by[c] * 0.5 * x[c] * erfc(-x[c] / sqrt(2.0));
    return sum;
}
static double book_gelu_new(const double *x, const float *by) {
    double sum = 0;
    for (size_t c = 0; c < C; c++) sum += (double)by[c] * 0.5 * x[c] * (1 + tanh(0.79788456080286535588 * (x[c] + 0.044715 * x[c] * x[c] * x[c])));
    return sum;
}
static double book_silu(const double *x, const float *by) {
    double sum = 0;
    for (size_t c = 0; c < C; c++) sum += (double)by[c] * x[c] / (1 + exp(-x[c]));
    return sum;
}
static double book_tanh(const double *x, const float *by) {
    double sum = 0;
    for (size_t c = 0; c < C; c++) sum += (double)by[c] * tanh(x[c]);
    return sum;
}

/* Causal attention of T queries and keys with a bias by distance; which of q, k, v, bias the numbers x replace is `part`. */
static const float *book_q, *book_k, *book_v, *book_bias;
static int book_part;
static double book_attention(const double *x, const float *by) {
    double value = 0;
    for (size_t i = 0; i < T; i++) {
        double s[T], Z = 0;
        for (size_t j = 0; j <= i; j++) {
            s[j] = book_part == 3 ? x[T - 1 + j - i] : (double)book_bias[T - 1 + j - i];
            for (size_t d = 0; d < D; d++)
                s[j] += 0.5 * (book_part == 0 ? x[i * D + d] : (double)book_q[i * D + d]) * (book_part == 1 ? x[j * D + d] : (double)book_k[j * D + d]);
            Z += exp(s[j]);
        }
        for (size_t j = 0; j <= i; j++)
            for (size_t d = 0; d < D; d++) value += (double)by[i * D + d] * exp(s[j]) / Z * (book_part == 2 ? x[j * D + d] : (double)book_v[j * D + d]);
    }
    return value;
}

/* Cross entropy of the first V numbers with target 3, and KL from the distribution by[V..2V) scaled to 1. */
static double book_cross_entropy(const double *x, const float *by) {
    double Z = 0;
    (void)by;
    for (size_t v = 0; v < V; v++) Z += exp(x[v]);
    return log(Z) - x[3];
}
static double book_kl(const double *x, const float *by) {
    double Z = 0, sum = 0;
    for (size_t v = 0; v < V; v++) Z += exp(x[v] / 2);
    for (size_t v = 0; v < V; v++) sum += (double)by[v] * (log((double)by[v]) - (x[v] / 2 - log(Z))); /* temperature 2 */
    return sum;
}

/* Central differences leave h^2/6 times a third derivative and 2^-53/h of rounding, 1e-9 in all; the float32 result has some 2^-24 of its terms. */
static void check_slope(const char *what, Textbook f, const float *x, const float *by, const float *slope, size_t n) {
    double at[2 * C], worst = 0, size = 0;
    for (size_t i = 0; i < n; i++) at[i] = (double)x[i];
    for (size_t i = 0; i < n; i++) {
        const double h = 1e-4;
        at[i] = (double)x[i] + h;
        const double up = f(at, by);
        at[i] = (double)x[i] - h;
        const double d = (up - f(at, by)) / (2 * h);
        at[i] = (double)x[i];
        size = fabs(d) > size ? fabs(d) : size;
        if (!(fabs(d - (double)slope[i]) <= worst)) worst = fabs(d - (double)slope[i]);
    }
    CHECK(worst <= 2e-6 * size && size > 1e-3, "%s, %s: the slope is off by %g of %g", what, math_name(), worst, size);
}

static void test_slopes(Math m) {
    float *x = fill(C, unit), *by = fill(2 * C, unit), *dx = mem_new(C, sizeof *dx), *p = mem_new(V, sizeof *p), *q = mem_new(V, sizeof *q);
    float *k = fill(C, unit), *v = fill(C, unit), *bias = fill(2 * T, unit), *out = mem_new(4 * C, sizeof *out);
    const size_t target = 3;
    start(m, 2, isa_detect());
    layernorm_backward(dx, NULL, NULL, by, x, by + C, 1e-5, 1, C);
    check_slope("layernorm", book_layernorm, x, by, dx, C);
    rmsnorm_backward(dx, NULL, by, x, by + C, 1e-6, 1, C);
    check_slope("rmsnorm", book_rmsnorm, x, by, dx, C);
    activation_backward(CR_GELU, dx, by, x, C);
    check_slope("gelu", book_gelu, x, by, dx, C);
    activation_backward(CR_GELU_NEW, dx, by, x, C);
    check_slope("gelu_new", book_gelu_new, x, by, dx, C);
    activation_backward(CR_SILU, dx, by, x, C);
    check_slope("silu", book_silu, x, by, dx, C);
    activation_backward(CR_TANH, dx, by, x, C);
    check_slope("tanh", book_tanh, x, by, dx, C);
    cross_entropy_backward(dx, x, &target, 1, 1, V);
    check_slope("cross entropy", book_cross_entropy, x, by, dx, V);
    for (size_t i = 0; i < V; i++) q[i] = x[i] / 2;
    softmax(p, k, 1, V);
    softmax(q, q, 1, V);
    kl_backward(dx, q, p, 0.5, V);
    check_slope("KL", book_kl, x, p, dx, V);
    book_q = x, book_k = k, book_v = v, book_bias = bias;
    attention_backward(&(AttentionBackward){.of = {.q = x, .k = k, .v = v, .bias = bias + T - 1, .Tq = T, .Tk = T, .D = D, .ldq = D, .ldk = D, .ldv = D,
                                                   .ldbias = -1, .scale = 0.5, .causal = true},
                                            .dctx = by, .lddctx = D, .dq = out, .dk = out + C, .dv = out + 2 * C, .dbias = out + 3 * C + T - 1, .lddq = D, .lddk = D, .lddv = D}, 1);
    const float *const input[] = {x, k, v, bias};
    static const char *const names[] = {"queries", "keys", "values", "the bias"};
    for (book_part = 0; book_part < 4; book_part++) {
        char what[40];
        snprintf(what, sizeof what, "attention's %s", names[book_part]);
        check_slope(what, book_attention, input[book_part], by, out + (size_t)book_part * C, book_part == 3 ? 2 * T - 1 : C);
    }
    free(x), free(by), free(dx), free(p), free(q), free(k), free(v), free(bias), free(out);
}

int main(void) {
    for (int reference = 0; reference < 2; reference++) {
        const Math m = reference ? MATH_REFERENCE : MATH_FAST;
        test_linear_bits(m);
        test_attention_bits(m);
        test_row_bits(m);
        test_element_bits(m);
        test_lookup_bits(m);
        test_loss_bits(m);
        test_slopes(m);
    }
    return check_end();
}
