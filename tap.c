/* tap.c - see tap.h. */
#include "tap.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

Taps *taps;

enum { MAX_NAME = 200 };

static void hear(const char *name, const char *part, float *x, const size_t *shape, size_t dims) {
    char whole[2 * MAX_NAME];
    snprintf(whole, sizeof whole, "%s%s%s", taps->scope ? taps->scope : "", name, part);
    taps->hear(taps, whole, x, shape, dims);
}

void tap(float *x, size_t rows, size_t cols, const char *format, ...) {
    char name[MAX_NAME];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    hear(name, "", x, (const size_t[]){rows, cols}, 2);
}

void tap_attention(const Attention *head, size_t n, const char *format, ...) {
    const size_t Tq = head->Tq, Tk = head->Tk, shape[] = {n, Tq, Tk};
    char name[MAX_NAME];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    float *p = mem_new(n * Tq, Tk * sizeof *p); /* scores, then probabilities */
    for (size_t h = 0; h < n; h++) attention_scores_plain(&head[h], p + h * Tq * Tk);
    hear(name, ".scores", p, shape, 3);
    softmax(p, p, n * Tq, Tk); /* EXP(-infinity) adds +0: the bits are those of the attended positions alone */
    hear(name, ".probs", p, shape, 3);
    for (size_t h = 0; taps->replaces && h < n; h++) attention_context_plain(&head[h], p + h * Tq * Tk);
    free(p);
}
