/* test_vectors.c - conformance/vectors.jsonl through our ops, at every instruction set: what is asked of a port is asked of us.
 *
 * usage: test_vectors [FILE]      prints for each vector that is missed what it catches
 */
#include "check.h"

#include <stdlib.h>
#include <string.h>

#include "isa.h"
#include "json.h"
#include "plain.h"
#include "tensor.h"

enum { MAX_NUMBERS = 256 };

typedef struct {
    float at[MAX_NUMBERS];
    size_t n;
} Numbers;

/* "3f800000 40000000" under a key; none if it is not there. */
static Numbers numbers_of(const Json *vector, const char *key) {
    const Json *text = json_get(vector, key);
    Numbers x = {.n = 0};
    for (const char *at = text ? text->text : ""; *at && x.n < MAX_NUMBERS; at += *at == ' ') {
        char *end;
        x.at[x.n++] = from_bits((uint32_t)strtoul(at, &end, 16));
        at = end;
    }
    return x;
}

static CrFunction function_of(const char *name) {
    for (int f = 0; f < CR_FUNCTIONS; f++)
        if (strcmp(cr_name((CrFunction)f), name) == 0) return (CrFunction)f;
    return CR_FUNCTIONS;
}

/* One query x over the keys w and values b. */
static void attend(float *y, const Numbers *x, const Numbers *w, const Numbers *b) {
    const size_t D = x->n;
    attention(&(Attention){.q = x->at, .k = w->at, .v = b->at, .ctx = y, .Tq = 1, .Tk = w->n / D, .D = D, .ldq = D, .ldk = D, .ldv = D, .ldc = D, .scale = 1 / sqrt((double)D)}, 1);
}

static void compute(const Json *vector, float *y, size_t outputs) {
    const char *op = json_get(vector, "op")->text;
    const Numbers x = numbers_of(vector, "x"), w = numbers_of(vector, "w"), b = numbers_of(vector, "b");
    const Json *eps = json_get(vector, "eps"), *f = json_get(vector, "function");
    if (strcmp(op, "linear") == 0) linear(y, x.at, w.at, b.n ? b.at : NULL, 1, x.n, outputs);
    else if (strcmp(op, "embedding_sum") == 0) embedding_sum(y, x.at, w.at, b.n ? b.at : NULL, x.n);
    else if (strcmp(op, "layernorm") == 0) layernorm(y, x.at, w.at, b.at, eps->number, 1, x.n);
    else if (strcmp(op, "rmsnorm") == 0) rmsnorm(y, x.at, w.at, eps->number, 1, x.n);
    else if (strcmp(op, "softmax") == 0) softmax(y, x.at, 1, x.n);
    else if (strcmp(op, "logsumexp") == 0) logsumexp(y, x.at, 1, x.n);
    else if (strcmp(op, "residual") == 0) residual(y, x.at, w.at, x.n);
    else if (strcmp(op, "gated") == 0) activation_gated(function_of(f->text), y, x.at, w.at, x.n);
    else if (strcmp(op, "attention") == 0) attend(y, &x, &w, &b);
    else activation(function_of(op), y, x.at, x.n);
}

static void check_vector(const Json *vector, size_t number) {
    const Json *math = json_get(vector, "math");
    const Numbers want = numbers_of(vector, "y");
    Error err;
    for (int level = isa_detect(); level >= ISA_BASE; level--) {
        Numbers y = {.n = want.n};
        CHECK(tensor_start(math && strcmp(math->text, "fast") == 0 ? MATH_FAST : MATH_REFERENCE, 1, &err), "%s", err.text);
        isa_set(level);
        compute(vector, y.at, want.n);
        const size_t at = first_difference(y.at, want.at, want.n);
        CHECK(at == want.n, "vector %zu, %s, %s: element %zu is %08lx, not %08lx: %s", number, json_get(vector, "op")->text, isa_name(level), at,
              (unsigned long)to_bits(y.at[at % MAX_NUMBERS]), (unsigned long)to_bits(want.at[at % MAX_NUMBERS]), json_get(vector, "catches")->text);
    }
}

int main(int argc, char **argv) {
    Bytes text = {0};
    Error err;
    size_t number = 0;
    const bool there = file_read(argc > 1 ? argv[1] : "conformance/vectors.jsonl", &text, &err);
    CHECK(there, "%s", err.text);
    for (char *line = there ? strtok(text.at, "\n") : NULL; line; line = strtok(NULL, "\n"), number++) {
        Json vector = {0};
        if (json_parse(line, strlen(line), &vector, &err)) check_vector(&vector, number);
        else CHECK(false, "line %zu: %s", number, err.text);
        json_free(&vector);
    }
    CHECK(number > 80, "%zu vectors", number);
    bytes_free(&text);
    return check_end();
}
