/* tensor_backward.h - the backward half of the numerical contract: the gradient of every op of tensor.h, defined to the bit in its notation.
 *
 * dY is the gradient of the loss by Y. Gradients of activations are written; gradients of parameters (dw, db, dg) are added to what is there,
 * RN32(old + new), so that parts of a sum over micro-batches come one after the other: zero them first. A gradient that nobody wants is NULL.
 * Outputs must not overlap inputs unless said. Nothing is kept from the forward pass but what these functions are given.
 */
#ifndef TENSOR_BACKWARD_H
#define TENSOR_BACKWARD_H

#include "tensor.h"

/* y = x w + b: dx[n,c] = RN32(S(dy_n, w_c)), o ascending; dw[c,o] += RN32(S over n ascending of x[n,c] dy[n,o]); db[o] += RN32(Sum over n of dy[n,o]).
 * x may be NULL if dw is, w if dx is. */
void linear_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, size_t N, size_t C, size_t O);
void linear_backward_plain(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, size_t N, size_t C, size_t O);

/* u, r as in layernorm; h = (x-u)*r; a = dy*g; A = Sum(a)/C; B = Sum(a*h)/C; dx = RN32(((a-A) - h*B)*r);
 * dg += RN32(Sum over n of dy*h); db += RN32(Sum over n of dy). dx may be dy or x. */
void layernorm_backward(float *dx, float *dg, float *db, const float *dy, const float *x, const float *g, double eps, size_t N, size_t C);

/* The same without a mean: r as in rmsnorm; h = x*r; dx = RN32((a - h*B)*r); dg += RN32(Sum over n of dy*h). dx may be dy or x. */
void rmsnorm_backward(float *dx, float *dg, const float *dy, const float *x, const float *g, double eps, size_t N, size_t C);

/* y = softmax(x): t = S(dy,y); dx = RN32(y*(dy-t)). [N,T]; dx may be dy. */
void softmax_backward(float *dx, const float *dy, const float *y, size_t N, size_t T);

/* One attention head (Tp 0; ctx is not read). p is computed anew. Sums run over the pairs (i,j) where query i attends to key j:
 *   dp_ij = RN32(S(dctx_i, v_j))   t_i = S(dp_i, p_i)   ds_ij = RN32(p_ij*(dp_ij-t_i))
 *   dq_i = RN32(S over j of ds_ij k_j * scale)   dk_j = RN32(S over i of ds_ij q_i * scale)   dv_j = RN32(S over i of p_ij dctx_i)
 *   dbias, laid out as bias: ldbias -1: RN32(Sum over i ascending of ds_ij) for each j-i; ldbias >= Tk: ds_ij, where attended to. */
typedef struct {
    Attention of;
    const float *dctx;
    float *dq, *dk, *dv, *dbias;
    size_t lddctx, lddq, lddk, lddv; /* rows at these strides, in floats */
} AttentionBackward;
void attention_backward(const AttentionBackward *head, size_t n);
void attention_backward_plain(const AttentionBackward *head, size_t n);

/* y = F(x): dx = RN32(F'(x)*dy). Gated, y = F(x)*z: dz = RN32(F(x)*dy); dx = RN32(F'(x)*RN32(dy*z)). dx may be dy, in the gated form dz too. */
void activation_backward(CrFunction f, float *dx, const float *dy, const float *x, size_t n);
void activation_gated_backward(CrFunction f, float *dx, float *dz, const float *dy, const float *x, const float *z, size_t n);

/* Rows looked up in a table: dw[id,c] += RN32(Sum of dy[n,c] over the n with id[n] = id, ascending). Element (id,c) lies at id*row + c*col. */
void embedding_backward(float *dw, const uint32_t *id, const float *dy, size_t N, size_t C, size_t row, size_t col);

/* Mean of -log p(target) over n rows: dl = RN32((p - [v = target])/n), p = softmax(l). [N,V]; n need not be N; dl may be l. */
void cross_entropy_backward(float *dl, const float *l, const size_t *target, double n, size_t N, size_t V);

/* KL(P || Q) by Q's logits: dl = RN32((q-p)*scale), n elements. scale: 1/rows, over the temperature that Q's logits were divided by, times a weight. */
void kl_backward(float *dl, const float *q, const float *p, double scale, size_t n);

#endif
