/* tap.c - see tap.h. */
#include "tap.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

Taps *taps;

enum { MAX_NAME = 200 };

static void hear(const char *kind, const char *name, const char *part, float *x, const size_t *shape, size_t dims) {
    char whole[2 * MAX_NAME];
    snprintf(whole, sizeof whole, "%s%s%s%s", kind, taps->scope ? taps->scope : "", name, part);
    taps->hear(taps, whole, x, shape, dims);
}

static void hear_matrix(const char *kind, float *x, size_t rows, size_t cols, const char *format, va_list args) {
    char name[MAX_NAME];
    vsnprintf(name, sizeof name, format, args);
    hear(kind, name, "", x, (const size_t[]){rows, cols}, 2);
}

void tap(float *x, size_t rows, size_t cols, const char *format, ...) {
    va_list args;
    va_start(args, format);
    hear_matrix("", x, rows, cols, format, args);
    va_end(args);
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
    hear("", name, ".scores", p, shape, 3);
    softmax(p, p, n * Tq, Tk); /* EXP(-infinity) adds +0: the bits are those of the attended positions alone */
    hear("", name, ".probs", p, shape, 3);
    for (size_t h = 0; taps->replaces && h < n; h++) attention_context_plain(&head[h], p + h * Tq * Tk);
    free(p);
}

void tap_loss(double x, const char *name) {
    float loss = (float)x;
    hear("", name, "", &loss, NULL, 0);
}

void tap_gradient(float *dx, size_t rows, size_t cols, const char *format, ...) {
    va_list args;
    va_start(args, format);
    hear_matrix("d.", dx, rows, cols, format, args);
    va_end(args);
}

void tap_parameter(float *g, const size_t *shape, size_t dims, const char *name) { hear("grad.", name, "", g, shape, dims); }
