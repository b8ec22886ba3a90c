/* lingua2_train.h - the classifier as it learns: rows with labels, loss and gradient (lingua2_backward.c). */
#ifndef LINGUA2_TRAIN_H
#define LINGUA2_TRAIN_H

#include "lingua2.h"
#include "optimizer.h"
#include "tensor_backward.h"

/* Sequences with a label for each row: 0 drop, 1 keep, -1 not counted. Queries are all rows of a sequence, keys its first `keys` (padding is no key). */
typedef struct {
    Batch of;
    const size_t *keys;  /* [B] */
    const int8_t *label; /* [N] */
    size_t padding;      /* the piece that pads, whose embedding does not learn; SIZE_MAX: none */
} LabelledBatch;

/* Dropout of hidden values: the share p, and a seed that is each step's own. p 0: none. */
typedef struct {
    double p;
    uint64_t seed;
} Dropout;

/* What the backward pass needs of the forward pass, and room to work in. Start from {0}; it grows as batches ask for. */
typedef struct {
    float *x, *q, *k, *v, *ctx;     /* [N,C]: what a layer reads; what attention reads and gives */
    float *sum1, *mid, *sum2;       /* [N,C]: before and after the first LayerNorm, before the second */
    float *up, *act;                /* [N,F]: before and after the activation */
} LayerTape;

typedef struct {
    float *memory;
    size_t room; /* floats in memory */
    LayerTape *layer;               /* [L] */
    float *sum0, *x, *read;         /* [N,C]: the sum of embeddings; what the last layer gives; what the classifier reads of it */
    float *logits, *dlogits;        /* [N,K] */
    float *dx, *dy, *dq, *dk, *dv;  /* [N,C] */
    float *dh;                      /* [N,F] */
    Attention *head;                /* [B*H] */
    AttentionBackward *back;        /* [B*H] */
} Tape;
void tape_free(Tape *a);

/* The mean cross entropy over the labelled rows. Unless p is NULL its gradient by every tensor is added to the parameters'. The logits stay on the tape. */
float encoder_loss(const Model *m, const Parameters *p, const LabelledBatch *b, const Dropout *d, Tape *a);

#endif
