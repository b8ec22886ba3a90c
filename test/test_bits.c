/* test_bits.c - the same bits everywhere: every op in both arithmetics, at every thread count and instruction set, against its plain definition.
 *
 * usage: test_bits [plain]      plain: the definitions alone, no kernel; prints the same hash
 *
 * Ends with the line "hash XXXXXXXX" over all results. It is a constant of the contract: compilers, optimisation, processors and byte orders
 * must all print it (slow_bits.sh builds this file with all that it finds). Shapes are odd, larger than one block, panel, tile and strip of
 * the kernel, large enough to wake the threads, and small enough for an emulator.
 */
#include "check.h"

#include <stdlib.h>
#include <string.h>

#include "isa.h"
#include "plain.h"
#include "tensor.h"

/* Printed by `build/test_bits plain`, built with gcc -O0 for x86-64 without OpenMP: the definitions, nothing vectorised, nothing shared out. */
static const uint32_t EXPECTED = 0xfbe7d3f6;

typedef enum { LINEAR, ATTENTION, LAYERNORM, RMSNORM, SOFTMAX, LOGPROB, RESIDUAL, ACTIVATION } Op;

/* linear: x [N,C], w [C,O], b [O] if `more`. attention: N queries and O keys of `more` heads of C. The others: x [N,C]; activation: function `more`. */
typedef struct {
    Op op;
    size_t N, C, O, more;
    bool causal, edge; /* edge: inputs are infinities, NaN, zeros, subnormals and the like */
} Case;

static const Case cases[] = {
    {LINEAR, 1, 1, 1, 1, 0, 0},      {LINEAR, 7, 5, 3, 0, 0, 0},       {LINEAR, 1, 67, 131, 1, 0, 0},     {LINEAR, 3, 40, 1031, 1, 0, 0},
    {LINEAR, 13, 1041, 19, 1, 0, 0}, {LINEAR, 13, 523, 37, 0, 0, 0},   {LINEAR, 31, 17, 333, 1, 0, 0},    {LINEAR, 775, 3, 21, 1, 0, 0},
    {LINEAR, 67, 65, 129, 1, 0, 0},  {LINEAR, 17, 6, 45, 1, 0, 1},     {LINEAR, 5, 3, 70, 0, 0, 1},       {ATTENTION, 1, 9, 1, 3, 0, 0},
    {ATTENTION, 33, 15, 33, 2, 0, 0}, {ATTENTION, 41, 21, 41, 3, 1, 0}, {ATTENTION, 67, 67, 35, 1, 0, 0}, {ATTENTION, 5, 33, 77, 5, 1, 0},
    {ATTENTION, 19, 4, 23, 2, 0, 1}, {LAYERNORM, 1, 1, 0, 0, 0, 0},    {LAYERNORM, 83, 203, 0, 0, 0, 0},  {LAYERNORM, 11, 9, 0, 0, 0, 1},
    {RMSNORM, 83, 203, 0, 0, 0, 0},  {SOFTMAX, 1, 1, 0, 0, 0, 0},      {SOFTMAX, 83, 203, 0, 0, 0, 0},    {SOFTMAX, 13, 7, 0, 0, 0, 1},
    {LOGPROB, 35, 523, 0, 0, 0, 0},  {RESIDUAL, 83, 203, 0, 0, 0, 0},  {RESIDUAL, 9, 11, 0, 0, 0, 1},     {ACTIVATION, 31, 127, 0, CR_EXP, 0, 0},
    {ACTIVATION, 7, 127, 0, CR_LOG, 0, 1}, {ACTIVATION, 31, 127, 0, CR_TANH, 0, 0}, {ACTIVATION, 131, 127, 0, CR_GELU, 0, 0},
    {ACTIVATION, 31, 127, 0, CR_GELU_NEW, 0, 0}, {ACTIVATION, 31, 127, 0, CR_SILU, 0, 0}, {ACTIVATION, 7, 127, 0, CR_RELU, 0, 1}, {ACTIVATION, 7, 127, 0, CR_GELU, 0, 1},
};
static const char *const names[] = {"linear", "attention", "layernorm", "rmsnorm", "softmax", "logprob", "residual", "activation"};

/* From 1/16 to 4: scores whose softmax is more than a single one, and inputs where GELU and TANH bend. */
static float random_near(void) {
    const uint32_t bits = noise_bits() & 0x807fffffu;
    return from_bits(bits | (uint32_t)(123 + below(6)) << 23);
}

static uint32_t hash = 2166136261u;

/* FNV-1a over the little-endian bytes; every NaN counts as 7fc00000, since its sign and payload are the processor's. */
static void add_to_hash(const float *y, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = y[i] == y[i] ? to_bits(y[i]) : 0x7fc00000u;
        for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ (bits >> shift & 255u)) * 16777619u;
    }
}

static size_t outputs(const Case *c) { return c->op == LINEAR ? c->N * c->O : c->op == ATTENTION ? c->N * c->C * c->more : c->N * c->C; }

static void heads(const Case *c, float *y, const float *x, const float *w, const float *b, bool plain) {
    const size_t D = c->C, ld = D * c->more;
    Attention *head = mem_new(c->more, sizeof *head);
    for (size_t h = 0; h < c->more; h++)
        head[h] = (Attention){.q = x + h * D, .k = w + h * D, .v = b + h * D, .ctx = y + h * D, .Tq = c->N, .Tk = c->O, .D = D, .ldq = ld, .ldk = ld,
                              .ldv = ld, .ldc = ld, .scale = 1 / sqrt((double)D), .causal = c->causal};
    if (plain) attention_plain(head, c->more);
    else attention(head, c->more);
    free(head);
}

/* The definitions of the ops that work row by row. */
static void row_plain(const Case *c, float *y, const float *x, const float *w, const float *b) {
    float top;
    double Z;
    switch (c->op) {
    case LAYERNORM: layernorm_plain(y, x, w, b, 1e-5, c->C); break;
    case RMSNORM: rmsnorm_plain(y, x, w, 1e-6, c->C); break;
    case SOFTMAX:
        Z = softmax_terms(y, &top, x, c->C);
        for (size_t i = 0; i < c->C; i++) y[i] = (float)((double)y[i] / Z);
        break;
    case LOGPROB:
        Z = softmax_terms(y, &top, x, c->C);
        for (size_t i = 0; i < c->C; i++) y[i] = x[i] - (top + cr_one(CR_LOG, (float)Z));
        break;
    case RESIDUAL:
        for (size_t i = 0; i < c->C; i++) y[i] = x[i] + w[i];
        break;
    default:
        for (size_t i = 0; i < c->C; i++) y[i] = cr_one((CrFunction)c->more, x[i]);
    }
}

static void compute(const Case *c, float *y, const float *x, const float *w, const float *b, bool plain) {
    const size_t N = c->N, C = c->C;
    if (c->op == ATTENTION) heads(c, y, x, w, b, plain);
    else if (c->op == LINEAR) (plain ? linear_plain : linear)(y, x, w, c->more ? b : NULL, N, C, c->O);
    else if (plain)
        for (size_t n = 0; n < N; n++) row_plain(c, y + n * C, x + n * C, c->op == RESIDUAL ? w + n * C : w, b);
    else if (c->op == LAYERNORM) layernorm(y, x, w, b, 1e-5, N, C);
    else if (c->op == RMSNORM) rmsnorm(y, x, w, 1e-6, N, C);
    else if (c->op == SOFTMAX) softmax(y, x, N, C);
    else if (c->op == LOGPROB) logprob(y, x, N, C);
    else if (c->op == RESIDUAL) residual(y, x, w, N * C);
    else activation((CrFunction)c->more, y, x, N * C);
}

/* One case at every thread count and level; its bits go into the hash once. */
static void check_case(Math m, const Case *c, bool plain_only) {
    static const int thread_counts[] = {1, 2, 3, 7};
    float (*number)(void) = c->edge ? random_edge : c->op == LINEAR || c->op == LAYERNORM ? random_float : random_near;
    const size_t heads_of = c->op == ATTENTION ? c->more : 1, n = outputs(c);
    float *x = fill(c->N * c->C * heads_of, number);
    float *w = fill(c->op == LINEAR || c->op == ATTENTION ? c->C * c->O * heads_of : c->N * c->C, number);
    float *b = fill(c->op == LINEAR ? c->O : c->op == ATTENTION ? c->C * c->O * heads_of : c->C, number);
    float *want = mem_new(n, sizeof *want), *y = mem_new(n, sizeof *y);
    Error err;
    CHECK(tensor_start(m, 1, &err), "%s", err.text);
    isa_set(ISA_BASE);
    compute(c, want, x, w, b, true);
    if (plain_only) add_to_hash(want, n);
    bool hashed = plain_only;
    for (size_t i = 0; i < COUNT(thread_counts) && !plain_only; i++)
        for (int level = isa_detect(); level >= ISA_BASE; level--) {
            CHECK(tensor_start(m, thread_counts[i], &err), "%s", err.text);
            if (tensor_threads() != thread_counts[i]) continue; /* no OpenMP: one thread */
            isa_set(level);
            memset(y, 0x55, n * sizeof *y);
            compute(c, y, x, w, b, false);
            const size_t at = first_difference(y, want, n);
            CHECK(at == n, "%s, %s N=%zu C=%zu O=%zu, %s, %d threads: element %zu is %08x, not %08x", m == MATH_FAST ? "fast" : "reference",
                  names[c->op], c->N, c->C, c->O, isa_name(level), tensor_threads(), at, (unsigned)to_bits(y[at % n]), (unsigned)to_bits(want[at % n]));
            if (!hashed) add_to_hash(y, n);
            hashed = true;
        }
    free(x), free(w), free(b), free(want), free(y);
}

int main(int argc, char **argv) {
    const bool plain_only = argc > 1 && strcmp(argv[1], "plain") == 0;
    for (Math m = MATH_FAST; m <= MATH_REFERENCE; m++)
        for (size_t i = 0; i < COUNT(cases); i++) check_case(m, &cases[i], plain_only);
    CHECK(hash == EXPECTED, "hash %08x, not %08x; where no other check failed, the definitions or the inputs changed", (unsigned)hash, (unsigned)EXPECTED);
    printf("hash %08x\n", (unsigned)hash);
    return check_end();
}
