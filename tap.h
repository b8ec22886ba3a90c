/* tap.h - names for what a forward pass, and a backward pass behind it, computes on its way.
 *
 * Right of each op stands the name of its result, by the module's path in the checkpoint: TAP(y, N, C, "h.%zu.ln_1", l). While nobody listens that is
 * one test of a pointer. A listener (trace.h) sees every result in the order of execution, and may put another in its place: the ops
 * behind it then go on from that.
 *
 * Once the listener says that the backward pass has begun, gradients alone are heard: what that pass computes anew of the forward pass had its turn.
 */
#ifndef TAP_H
#define TAP_H

#include "base.h"
#include "tensor.h"

typedef struct Taps {
    /* A result that is ready: its name, its numbers, its shape. */
    void (*hear)(struct Taps *t, const char *name, float *x, const size_t *shape, size_t dims);
    bool replaces;     /* hear may change x: attention is then computed in steps, so that each goes on from the one before */
    bool backward;     /* the forward pass is over */
    const char *scope; /* put before every result's name; NULL: nothing */
} Taps;

/* Who listens, or NULL. Not for use while other threads compute. */
extern Taps *taps;

#define TAP(...) (taps && !taps->backward ? tap(__VA_ARGS__) : (void)0)
#define TAP_ATTENTION(...) (taps && !taps->backward ? tap_attention(__VA_ARGS__) : (void)0)
#define TAP_LOSS(...) (taps && taps->backward ? tap_loss(__VA_ARGS__) : (void)0)
#define TAP_GRADIENT(...) (taps && taps->backward ? tap_gradient(__VA_ARGS__) : (void)0)

/* x [rows, cols]; the name as printf makes it. */
void tap(float *x, size_t rows, size_t cols, const char *format, ...) PRINTF_LIKE(4, 5);

/* After attention(head, n), n heads of equal sizes: NAME.scores and NAME.probs [n,Tq,Tk], by their definitions. Positions not attended to
 * hold -infinity and +0. */
void tap_attention(const Attention *head, size_t n, const char *format, ...) PRINTF_LIKE(3, 4);

/* The loss, or a part of it: a scalar, NAME. */
void tap_loss(double x, const char *name);
/* The gradient of the loss by the result that TAP names so: d.NAME, of its shape. */
void tap_gradient(float *dx, size_t rows, size_t cols, const char *format, ...) PRINTF_LIKE(4, 5);
/* The gradient of the loss by a parameter: grad.NAME. Not asked whether anybody listens. */
void tap_parameter(float *g, const size_t *shape, size_t dims, const char *name);

#endif
