/* optimizer.h - what training changes and how: parameters with their gradients, AdamW, and checkpoints that training goes on from to the bit.
 *
 * AdamW (Loshchilov and Hutter 2019), every operation float64, in this order, for step t = 1, 2, ... and P1, P2 = beta1^t, beta2^t by repeated product:
 *   m = RN32(beta1*m + (1-beta1)*g)      v = RN32(beta2*v + ((1-beta2)*g)*g)
 *   w = RN32(w - rate*((m/(1-P1)) / (sqrt(v/(1-P2)) + eps) + decay*w))      decay: of matrices alone
 * norm = sqrt(Sum of S(g,g) over blocks of 65,536 numbers), tensors in the order of the file. If it is over `clip`, g is first RN32(g*(clip/(norm+1e-6))).
 */
#ifndef OPTIMIZER_H
#define OPTIMIZER_H

#include "weights.h"

typedef struct {
    const char *name;
    float *w, *g, *m, *v; /* value, gradient, AdamW's two means, [n] each */
    size_t n;
    bool matrix;
} Parameter;

typedef struct {
    Parameter *at;
    size_t n;
    float *memory; /* of g, m, v: the gradients of all come first, one behind the other */
    size_t all;    /* numbers in all parameters */
} Parameters;

/* All F32 tensors of an open model file, in its order; the model's own pointers see what training makes of them, the file does not. Tensors whose
 * names begin with "adam." are a checkpoint's state, no parameters. Errors: BAD_SYSTEM. */
bool parameters_open(Parameters *p, Weights *w, Error *err);
/* One tensor that lies elsewhere. */
void parameters_alone(Parameters *p, const char *name, float *w, size_t rows, size_t cols);
void parameters_free(Parameters *p);
/* Where the gradient of the tensor at w goes: NULL for w NULL, and for a model that is not trained (p NULL). */
float *gradient_of(const Parameters *p, const float *w);

typedef struct {
    double rate, beta1, beta2, eps, decay, clip; /* clip 0: none */
    size_t warmup, steps;
} Recipe;
/* The rate of step 0, 1, ...: up from 0 over `warmup` steps, then down to 0 at `steps`, both linearly. */
double rate_at(const Recipe *r, size_t step);

typedef struct {
    Recipe recipe;
    size_t step; /* done so far */
} AdamW;

/* One step with the gradients, which are zero afterwards; *norm is theirs. Errors: BAD_INPUT naming step and tensor if a gradient is NaN or infinity;
 * then nothing has changed. */
bool adamw_step(AdamW *o, const Parameters *p, double *norm, Error *err);

/* Write a model file with these parameters in the place of `model`'s own, everything else as it is there. o (or NULL): AdamW's means are added, and
 * `progress` under the metadata's "training", so that training can go on. Whole or not at all. */
bool checkpoint_write(const char *path, const Weights *model, const Parameters *p, const AdamW *o, const char *progress, Error *err);
/* The means of a checkpoint that is open as `model`. Errors: BAD_MODEL if it has none. */
bool checkpoint_resume(const Parameters *p, const Weights *model, Error *err);

#endif
