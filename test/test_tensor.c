/* test_tensor.c - every op against its definition, bit for bit, on shapes that no vector, tile or block divides.
 *
 * The definitions come from three places: linear_plain and attention_plain, the few lines of scalar code in plain.h, and golden vectors that
 * a script computed with exact fractions (test/golden/tensor.txt, made by test/make_tensor_golden.py). Bits are compared as bits; NaN equals NaN.
 */
#include "check.h"

#include <fenv.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "isa.h"
#include "plain.h"
#include "tensor.h"

/* ---- linear ---- */

static void check_linear(Math m, size_t N, size_t C, size_t O, float (*number)(void)) {
    float *x = fill(N * C, number), *w = fill(C * O, number), *b = below(4) ? fill(O, number) : NULL;
    float *want = mem_new(N * O, sizeof *want), *y = mem_new(N * O + 1, sizeof *y);
    start(m, 1, ISA_BASE);
    linear_plain(want, x, w, b, N, C, O);
    EVERYWHERE(m) {
        for (size_t i = 0; i <= N * O; i++) y[i] = 77;
        linear(y, x, w, b, N, C, O);
        SAME(y, want, N * O, "linear N=%zu C=%zu O=%zu bias=%d", N, C, O, b != NULL);
        CHECK(y[N * O] == 77, "linear N=%zu C=%zu O=%zu wrote past its end", N, C, O);
    }
    free(x), free(w), free(b), free(want), free(y);
}

static void test_linear(Math m) {
    static const size_t Cs[] = {0, 1, 2, 3, 7, 15, 16, 17, 31, 63, 65, 129, 255, 257, 513, 1025};
    for (size_t N = 1; N <= 20; N++) check_linear(m, N, 1 + below(17), 1 + below(70), random_float);
    for (size_t i = 0; i < COUNT(Cs); i++) check_linear(m, 1 + below(20), Cs[i], 1 + below(40), random_float);
    for (size_t O = 1; O <= 70; O++) check_linear(m, 1 + below(14), 1 + below(17), O, random_float);
    check_linear(m, 67, 65, 129, random_float);
    check_linear(m, 67, 1025, 2, random_float);
    check_linear(m, 3, 40, 4500, random_float);  /* few rows: more than one range of columns */
    check_linear(m, 1, 40, 4500, random_float);  /* one row: the same */
    check_linear(m, 771, 5, 19, random_float);   /* more than one pass */
    for (int i = 0; i < 4; i++) check_linear(m, 25, 600, 330, random_float); /* blocks of k, strips of panels, threads */
    check_linear(m, 0, 3, 3, random_float);
    check_linear(m, 3, 3, 0, random_float);
    for (int i = 0; i < 40; i++) check_linear(m, 1 + below(20), 1 + below(6), 1 + below(70), random_edge);
}

/* A row's result must not depend on the rows computed with it. */
static void test_row_alone(Math m) {
    const size_t N = 23, C = 300, O = 77;
    float *x = fill(N * C, random_float), *w = fill(C * O, random_float), *b = fill(O, random_float);
    float *all = mem_new(N * O, sizeof *all), *one = mem_new(N * O, sizeof *one);
    EVERYWHERE(m) {
        linear(all, x, w, b, N, C, O);
        for (size_t n = 0; n < N; n++) linear(one + n * O, x + n * C, w, b, 1, C, O);
        SAME(one, all, N * O, "rows one at a time");
    }
    free(x), free(w), free(b), free(all), free(one);
}

/* ---- the fused multiply-add in software ---- */

/* fmaf(a,b,s) through the kernel, 8 columns (b, s) for each a: S of (1,a).(s,b), whose first step gives s (+0 for a zero s). */
static void check_fma(const float *a, const float *b, const float *s, size_t n) {
    float *want = mem_new(n, sizeof *want), *y = mem_new(n, sizeof *y);
    for (size_t i = 0; i < n; i++) want[i] = fmaf(a[i], b[i], s[i] == 0 ? 0 : s[i]);
    for (int level = isa_detect(); level >= 0; level--) {
        start(MATH_FAST, 1, level);
        for (size_t i = 0; i < n; i += 8) {
            const float x[2] = {1, a[i]};
            float w[16];
            memcpy(w, s + i, 8 * sizeof *w);
            memcpy(w + 8, b + i, 8 * sizeof *w);
            linear(y + i, x, w, NULL, 1, 2, 8);
        }
        SAME(y, want, n, "fused multiply-add");
    }
    free(want), free(y);
}

static void test_fma(void) {
    enum { N = 1 << 14 };
    float *a = mem_new(N, sizeof *a), *b = mem_new(N, sizeof *b), *s = mem_new(N, sizeof *s);
    for (int kind = 0; kind < 6; kind++) {
        for (size_t i = 0; i < N; i++) {
            const uint32_t sign = noise_bits() & 0x80000000u;
            a[i] = i % 8 ? a[i - 1] : kind == 0 ? random_edge() : random_float();
            b[i] = kind == 0 ? random_edge() : random_float();
            if (kind == 0) s[i] = random_edge();
            if (kind == 1) s[i] = random_float();
            if (kind == 2) s[i] = -(a[i] * b[i]) * (1 + (float)below(3) * 0x1p-23f); /* cancellation */
            if (kind == 3) { /* a product that is just off the midpoint between s and its neighbour */
                b[i] = from_bits(0x33800000u | sign) / a[i];
                s[i] = from_bits(0x3f800000u | (noise_bits() & 15));
            }
            if (kind == 4) { /* results around the least normal and below */
                b[i] = from_bits((to_bits(b[i]) & 0x807fffffu) | (uint32_t)(1 + below(30)) << 23) / a[i];
                s[i] = from_bits((noise_bits() & 0x80ffffffu) >> (below(2) ? 0 : 1 + below(20)) | sign);
            }
            if (kind == 5) { /* around the largest */
                b[i] = from_bits((to_bits(b[i]) & 0x807fffffu) | 0x7e800000u) / (a[i] == 0 ? 1 : a[i]);
                s[i] = from_bits((noise_bits() & 0x807fffffu) | 0x7f000000u);
            }
        }
        check_fma(a, b, s, N);
    }
    free(a), free(b), free(s);
}

/* ---- attention ---- */

typedef struct {
    size_t Tq, Tk, D, H, pad;
    bool causal, bias;
} Shape;

static void check_attention(Math m, Shape t, float (*number)(void)) {
    const size_t ld = t.H * t.D + t.pad;
    float *q = fill(t.Tq * ld, number), *k = fill(t.Tk * ld, number), *v = fill(t.Tk * ld, number);
    float *bias = fill((t.Tq + 1) * (t.Tk + 3), number), *ctx = mem_new(t.Tq * ld, sizeof *ctx), *want = mem_new(t.Tq * ld, sizeof *want);
    Attention *head = mem_new(t.H, sizeof *head);
    for (size_t h = 0; h < t.H; h++) {
        const size_t D = t.D;
        head[h] = (Attention){.q = q + h * D, .k = k + h * D, .v = v + h * D, .bias = t.bias ? bias : NULL, .ctx = want + h * D,
                              .Tq = t.Tq, .Tk = t.Tk, .D = D, .ldq = ld, .ldk = ld, .ldv = ld, .ldc = ld,
                              .ldbias = t.causal ? (ptrdiff_t)t.Tk + 3 : -1, .scale = 1 / sqrt((double)(D ? D : 1)), .causal = t.causal};
        if (t.bias && !t.causal) head[h].bias += t.Tq - 1; /* by j - i alone */
    }
    start(m, 1, ISA_BASE);
    attention_plain(head, t.H);
    for (size_t h = 0; h < t.H; h++) head[h].ctx = ctx + h * t.D;
    EVERYWHERE(m) {
        memset(ctx, 0, t.Tq * ld * sizeof *ctx);
        attention(head, t.H);
        SAME(ctx, want, t.Tq * ld, "attention Tq=%zu Tk=%zu D=%zu H=%zu causal=%d bias=%d", t.Tq, t.Tk, t.D, t.H, t.causal, t.bias);
    }
    for (size_t Tp = 1; Tp <= t.Tk; Tp += 1 + t.Tk / 5) { /* the first Tp keys elsewhere */
        for (size_t h = 0; h < t.H; h++) {
            Attention *a = &head[h];
            *a = (Attention){.q = a->q, .k = k + Tp * ld + h * t.D, .v = v + Tp * ld + h * t.D, .past_k = k + h * t.D, .past_v = v + h * t.D,
                             .bias = a->bias, .ctx = ctx + h * t.D, .Tq = t.Tq, .Tk = t.Tk, .Tp = Tp, .D = t.D, .ldq = ld, .ldk = ld, .ldv = ld,
                             .ldp = ld, .ldc = ld, .ldbias = a->ldbias, .scale = a->scale, .causal = t.causal};
        }
        memset(ctx, 0, t.Tq * ld * sizeof *ctx);
        attention(head, t.H);
        SAME(ctx, want, t.Tq * ld, "attention with a past of %zu of %zu keys, D=%zu H=%zu", Tp, t.Tk, t.D, t.H);
    }
    free(q), free(k), free(v), free(bias), free(ctx), free(want), free(head);
}

static void test_attention(Math m) {
    static const Shape fixed[] = {{1, 1, 1, 1, 0, 0, 0},   {1, 1, 64, 12, 0, 1, 0}, {33, 33, 64, 2, 0, 0, 0}, {70, 70, 32, 3, 5, 1, 0},
                                  {5, 40, 16, 2, 0, 1, 0}, {40, 5, 8, 2, 0, 1, 0},  {64, 131, 65, 1, 1, 0, 1}, {97, 97, 20, 2, 3, 1, 1},
                                  {1, 200, 64, 4, 0, 1, 0}, {0, 5, 4, 2, 0, 0, 0},   {3, 0, 4, 1, 0, 0, 0},  {1, 0, 4, 2, 0, 0, 0},
                                  {1, 90, 69, 2, 3, 0, 1},  {1, 47, 128, 2, 0, 1, 1}, {1, 13, 3, 9, 2, 1, 1}};
    for (size_t i = 0; i < COUNT(fixed); i++) check_attention(m, fixed[i], random_float);
    for (int i = 0; i < 25; i++) {
        const Shape t = {1 + below(50), 1 + below(80), 1 + below(70), 1 + below(4), below(4), below(2), below(2)};
        check_attention(m, t, i % 5 ? random_float : random_edge);
    }
}

/* ---- row ops ---- */

static void check_rows(Math m, size_t N, size_t C, float (*number)(void)) {
    float *x = fill(N * C, number), *z = fill(N * C, number), *g = fill(C, number), *b = fill(C, number);
    float *y = mem_new(N * C, sizeof *y), *want = mem_new(7 * N * C, sizeof *want), lse[64] = {0}, want_lse[64], want_nll[64], top;
    float *layer = want, *rms = want + N * C, *soft = want + 2 * N * C, *logp = want + 3 * N * C, *plus = want + 4 * N * C;
    float *gelu = want + 5 * N * C, *gated = want + 6 * N * C;
    size_t target[64];
    double loss = 0, kl = 0;
    start(m, 1, ISA_BASE);
    for (size_t n = 0; n < N; n++) {
        const float *row = x + n * C;
        layernorm_plain(layer + n * C, row, g, b, 1e-5, C);
        rmsnorm_plain(rms + n * C, row, g, 1e-6, C);
        const double Z = softmax_terms(soft + n * C, &top, row, C);
        want_lse[n] = top + cr_one(CR_LOG, (float)Z);
        target[n] = below(C);
        want_nll[n] = want_lse[n] - row[target[n]];
        loss += (double)want_nll[n];
        for (size_t c = 0; c < C; c++) {
            soft[n * C + c] = (float)((double)soft[n * C + c] / Z);
            logp[n * C + c] = row[c] - want_lse[n];
        }
    }
    for (size_t i = 0; i < N * C; i++) {
        plus[i] = x[i] + z[i];
        gelu[i] = cr_one(CR_GELU, x[i]);
        gated[i] = cr_one(CR_SILU, x[i]) * z[i];
        kl += (double)x[i] * ((double)z[i] - (double)logp[i]);
    }
    EVERYWHERE(m) {
        layernorm(y, x, g, b, 1e-5, N, C);
        SAME(y, layer, N * C, "layernorm N=%zu C=%zu", N, C);
        rmsnorm(y, x, g, 1e-6, N, C);
        SAME(y, rms, N * C, "rmsnorm N=%zu C=%zu", N, C);
        memcpy(y, x, N * C * sizeof *y); /* in place */
        softmax(y, y, N, C);
        SAME(y, soft, N * C, "softmax N=%zu T=%zu", N, C);
        logsumexp(lse, x, N, C);
        SAME(lse, want_lse, N, "logsumexp N=%zu V=%zu", N, C);
        memcpy(y, x, N * C * sizeof *y);
        logprob(y, y, N, C);
        SAME(y, logp, N * C, "logprob N=%zu V=%zu", N, C);
        const float mean = cross_entropy(lse, x, target, N, C), want_mean = (float)(loss / (double)N);
        SAME(lse, want_nll, N, "nll N=%zu V=%zu", N, C);
        SAME(&mean, &want_mean, (size_t)1, "cross_entropy N=%zu V=%zu", N, C);
        const float total = kl_divergence(x, z, logp, N, C), want_total = (float)kl;
        SAME(&total, &want_total, (size_t)1, "kl_divergence N=%zu V=%zu", N, C);
        residual(y, x, z, N * C);
        SAME(y, plus, N * C, "residual n=%zu", N * C);
        activation(CR_GELU, y, x, N * C);
        SAME(y, gelu, N * C, "activation n=%zu", N * C);
        memcpy(y, z, N * C * sizeof *y);
        activation_gated(CR_SILU, y, x, y, N * C);
        SAME(y, gated, N * C, "activation_gated n=%zu", N * C);
    }
    free(x), free(z), free(g), free(b), free(y), free(want);
}

static void test_rows(Math m) {
    for (size_t N = 1; N <= 19; N++) check_rows(m, N, 1 + below(90), random_float);
    check_rows(m, 9, 1025, random_float);
    check_rows(m, 64, 300, random_float); /* enough for threads */
    for (int i = 0; i < 12; i++) check_rows(m, 1 + below(18), 1 + below(40), random_edge);
    for (size_t C = 1; C < 40; C++) {
        float *a = fill(4 * C, random_float), *y = mem_new(C, sizeof *y), *want = mem_new(C, sizeof *want);
        for (size_t c = 0; c < C; c++) want[c] = (float)((double)a[c] + (double)a[C + c] + (double)a[2 * C + c]);
        embedding_sum(y, a, a + C, a + 2 * C, C);
        SAME(y, want, C, "embedding_sum of three");
        for (size_t c = 0; c < C; c++) want[c] = (float)((double)a[c] + (double)a[C + c]);
        embedding_sum(y, a, a + C, NULL, C);
        SAME(y, want, C, "embedding_sum of two");
        free(a), free(y), free(want);
    }
}

/* ---- the self-check must refuse a process that cannot compute ---- */

static void check_refused(const char *what, const char *word) {
    Error err = {0, ""};
    const bool ok = tensor_start(MATH_FAST, 1, &err);
    CHECK(!ok && err.code == BAD_SYSTEM && strstr(err.text, word), "%s: started=%d, message \"%s\"", what, ok, err.text);
}

static void test_self_check(void) {
    Error err;
#if defined(FE_UPWARD)
    static const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    for (size_t i = 0; i < COUNT(modes); i++) {
        fesetround(modes[i]);
        check_refused("rounding mode", "nearest");
        fesetround(FE_TONEAREST);
    }
#else
    SKIP("this system has no rounding modes to set");
#endif
#if defined(__SSE2__)
    const unsigned control = _mm_getcsr();
    _mm_setcsr(control | 0x8000u);
    check_refused("flush to zero", "FTZ");
    _mm_setcsr(control | 0x0040u);
    check_refused("denormals are zero", "DAZ");
    _mm_setcsr(control);
#else
    SKIP("FTZ and DAZ are set on x86 alone");
#endif
    CHECK(tensor_start(MATH_FAST, 1, &err), "%s", err.text);
}

/* ---- golden vectors from exact fractions ---- */

/* One line "NAME hex hex ..." into out; returns the count. "NAME -" is none. */
static size_t read_numbers(FILE *f, const char *name, float *out, size_t room) {
    char word[64];
    size_t n = 0;
    unsigned bits;
    if (fscanf(f, "%63s", word) != 1 || strcmp(word, name) != 0) {
        CHECK(0, "golden file: %s expected, found %s", name, word);
        return 0;
    }
    long next = ftell(f); /* numbers have 8 digits, "-" is none, another word begins what follows */
    while (n < room && fscanf(f, "%63s", word) == 1 && (strlen(word) == 8 || strcmp(word, "-") == 0)) {
        if (sscanf(word, "%8x", &bits) == 1) out[n++] = from_bits((uint32_t)bits);
        next = ftell(f);
    }
    CHECK(fseek(f, next, SEEK_SET) == 0, "golden file: cannot go back");
    return n;
}

/* Run one golden case; x [N,C], w: weights, gains or second operand, b: bias or third. */
static void run_case(const char *op, float *y, const float *x, const float *w, const float *b, size_t N, size_t C, size_t O) {
    if (!strcmp(op, "linear")) linear(y, x, w, b, N, C, O);
    else if (!strcmp(op, "layernorm")) layernorm(y, x, w, b, 1e-5, N, C);
    else if (!strcmp(op, "rmsnorm")) rmsnorm(y, x, w, 1e-6, N, C);
    else if (!strcmp(op, "softmax")) softmax(y, x, N, C);
    else if (!strcmp(op, "logsumexp")) logsumexp(y, x, N, C);
    else if (!strcmp(op, "logprob")) logprob(y, x, N, C);
    else if (!strcmp(op, "embedding_sum")) embedding_sum(y, x, w, b, C);
    else if (!strcmp(op, "kl_divergence")) *y = kl_divergence(x, w, b, N, C);
    else if (!strcmp(op, "attention")) { /* x: q [N,C], w: k, b: v, both [O,C] */
        Attention h = {.q = x, .k = w, .v = b, .ctx = y, .Tq = N, .Tk = O, .D = C, .ldq = C, .ldk = C, .ldv = C, .ldc = C,
                       .scale = 1 / sqrt((double)C)};
        attention(&h, 1);
    } else CHECK(0, "golden file: unknown op %s", op);
}

static void test_golden(void) {
    enum { ROOM = 1 << 14 };
    FILE *f = fopen("test/golden/tensor.txt", "r");
    CHECK(f != NULL, "test/golden/tensor.txt is missing: run from the project root");
    if (!f) return;
    float *x = mem_new(ROOM, sizeof *x), *w = mem_new(ROOM, sizeof *w), *b = mem_new(ROOM, sizeof *b), *want = mem_new(ROOM, sizeof *want);
    float *y = mem_new(ROOM, sizeof *y);
    char op[32], arithmetic[16], detects[256];
    size_t N, C, O, cases = 0;
    while (fscanf(f, " #%*[^\n]") == 0 && fscanf(f, " case %31s %15s %zu %zu %zu %255s", op, arithmetic, &N, &C, &O, detects) == 6) {
        (void)read_numbers(f, "x", x, ROOM);
        (void)read_numbers(f, "w", w, ROOM);
        const size_t bs = read_numbers(f, "b", b, ROOM), ys = read_numbers(f, "y", want, ROOM);
        CHECK(ys > 0, "golden case %zu has no result", cases);
        EVERYWHERE(strcmp(arithmetic, "fast") ? MATH_REFERENCE : MATH_FAST) {
            run_case(op, y, x, w, bs ? b : NULL, N, C, O);
            SAME(y, want, ys, "golden case %zu, %s, which detects: %s", cases, op, detects);
        }
        cases++;
    }
    CHECK(cases >= 100, "only %zu golden cases were read", cases);
    fclose(f);
    free(x), free(w), free(b), free(want), free(y);
}

int main(void) {
    test_self_check();
    test_fma();
    for (Math m = MATH_FAST; m <= MATH_REFERENCE; m++) {
        test_linear(m);
        test_row_alone(m);
        test_attention(m);
        test_rows(m);
    }
    test_golden();
    return check_end();
}
