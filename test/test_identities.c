/* test_identities.c - what follows from the contract, on the tiny models of conformance/: a batch gives the bits of its members in any order and any
 * company, and a key that is masked out gives the bits of a key that is not there. (Reading in parts, caches, shared prefixes: test_mend.py, test_conformance.py.) */
#include "../lingua2.c"
#include "check.h"
#include "plain.h"

enum { TEXTS = 5, LONGEST = 20 };
static const size_t lengths[TEXTS] = {11, 1, 19, 7, 11};

/* Text i of every model: ids without a pattern, the last text a copy of the first. */
static Chunk text_of(const Model *m, size_t i) {
    Chunk c = {.id = mem_new(LONGEST, sizeof *c.id), .T = lengths[i]};
    Error err;
    for (size_t t = 0; t < c.T; t++) c.id[t] = (uint32_t)((7 + 13 * (i % 4) + t * t * 5 + 3 * t) % m->size[LETTER_V]);
    CHECK(chunk_positions(m, &c, &err), "%s", err.text);
    return c;
}

/* p of the texts `order`, n of them, in one call of classify_chunks, against p of each alone. */
static void check_batch(const Model *m, const Chunk *alone, const size_t *order, size_t n, const char *what) {
    Chunk *c = mem_new(n, sizeof *c);
    Error err;
    for (size_t i = 0; i < n; i++) c[i] = text_of(m, order[i]);
    CHECK(classify_chunks(m, c, n, &err), "%s", err.text);
    for (size_t i = 0; i < n; i++) {
        const size_t at = first_difference(c[i].p, alone[order[i]].p, c[i].T);
        CHECK(at == c[i].T, "%s: text %zu of %zu, piece %zu: %08lx, alone %08lx", what, i, n, at, (unsigned long)to_bits(c[i].p[at]), (unsigned long)to_bits(alone[order[i]].p[at]));
        chunk_free(&c[i]);
    }
    free(c);
}

static void check_model(const char *path, Math math, int thread_count) {
    Model m;
    Chunk alone[TEXTS];
    Error err;
    size_t many[400];
    CHECK(tensor_start(math, thread_count, &err) && model_open(&m, path, &err), "%s", err.text);
    for (size_t i = 0; i < TEXTS; i++) {
        alone[i] = text_of(&m, i);
        CHECK(classify_chunks(&m, &alone[i], 1, &err), "%s", err.text);
    }
    CHECK(first_difference(alone[0].p, alone[4].p, lengths[0]) == lengths[0], "equal texts differ");
    check_batch(&m, alone, (const size_t[]){0, 1, 2, 3, 4}, 5, "a batch");
    check_batch(&m, alone, (const size_t[]){4, 2, 0, 3, 1}, 5, "a batch in another order");
    check_batch(&m, alone, (const size_t[]){2, 2, 2}, 3, "a batch of copies");
    for (size_t i = 0; i < COUNT(many); i++) many[i] = (i * i + i / 3) % TEXTS;
    check_batch(&m, alone, many, COUNT(many), "texts over several batches"); /* more rows than one batch takes */
    for (size_t i = 0; i < TEXTS; i++) chunk_free(&alone[i]);
    model_close(&m);
}

/* Attention over n keys, of which the first `there` count: the others masked by -infinity, or left out. */
static void check_masked_keys(Math math) {
    enum { D = 7, QUERIES = 37, KEYS = 41, THERE = 23 };
    Error err;
    float *q = fill(QUERIES * D, random_float), *k = fill(KEYS * D, random_float), *v = fill(KEYS * D, random_float), *bias = mem_new(QUERIES, KEYS * sizeof *bias);
    float *masked = mem_new(QUERIES, D * sizeof *masked), *left_out = mem_new(QUERIES, D * sizeof *left_out);
    for (size_t i = 0; i < QUERIES * KEYS; i++) bias[i] = i % KEYS < THERE ? 0 : -(float)INFINITY;
    for (size_t i = 0; i < QUERIES * D; i++) q[i] *= 0x1p-9f; /* scores that leave more than one key a share */
    Attention a = {.q = q, .k = k, .v = v, .bias = bias, .ctx = masked, .Tq = QUERIES, .Tk = KEYS, .D = D, .ldq = D, .ldk = D, .ldv = D, .ldc = D, .ldbias = KEYS, .scale = 1 / sqrt(7)};
    CHECK(tensor_start(math, 2, &err), "%s", err.text);
    attention(&a, 1);
    a.Tk = THERE, a.bias = NULL, a.ctx = left_out;
    attention(&a, 1);
    const size_t at = first_difference(masked, left_out, QUERIES * D);
    CHECK(at == QUERIES * D, "masked keys: element %zu is %08lx, without them %08lx", at, (unsigned long)to_bits(masked[at]), (unsigned long)to_bits(left_out[at]));
    free(q), free(k), free(v), free(bias), free(masked), free(left_out);
}

int main(void) {
    for (Math math = MATH_FAST; math <= MATH_REFERENCE; math++) {
        for (int thread_count = 1; thread_count <= 3; thread_count += 2) {
            check_model("conformance/models/bert.safetensors", math, thread_count);
            check_model("conformance/models/xlmr.safetensors", math, thread_count);
        }
        check_masked_keys(math);
    }
    return check_end();
}
