/* tensor.h - the numerical contract: every op a transformer forward pass needs, defined to the bit.
 *
 * Notation. Tensors are float32, row-major. RN32, RN64: round to nearest even. Every float64 operation rounds alone,
 * nothing is contracted. Capitals (EXP, GELU) are the correctly rounded functions of crmath.h.
 *
 *   S(a,b)  the dot product, k ascending from s = +0, by one of two arithmetics:
 *             MATH_FAST       s = fmaf(a_k, b_k, s)            float32 accumulator
 *             MATH_REFERENCE  s = RN64(s + a_k * b_k)          float64 accumulator (the product is exact)
 *   Sum(a)  s = RN64(s + a_k), float64, k ascending from +0, in both arithmetics.
 *
 * One rounding to float32 per named result. Threads, tiles and vectors split outputs, never a sum: results do not depend on
 * the thread count, the instruction set, the compiler, or on which other rows are computed in the same call.
 */
#ifndef TENSOR_H
#define TENSOR_H

#include "base.h"
#include "crmath.h"

#define CONTRACT "1" /* the version of all that is defined here; one changed bit would be another */

typedef enum { MATH_FAST, MATH_REFERENCE } Math;

/* Once, before any op: prove by small computations that this process rounds to nearest, keeps subnormals (no FTZ, no DAZ),
 * does not contract a*b+c and does not round twice; then set arithmetic, threads (0: one per core) and instruction set.
 * Errors: BAD_SYSTEM naming what is wrong. May be called again to change the settings. */
bool tensor_start(Math math, int threads, Error *err);
/* Multiply-adds done so far by linear and attention, times two. */
double tensor_flops(void);
Math tensor_math(void);
int tensor_threads(void);

/* y[N,O] = RN32(S(x_n, w_o) + b_o); x [N,C], w [C,O] (input-major), b [O] or NULL (then RN32(S)). y must not overlap x. */
void linear(float *y, const float *x, const float *w, const float *b, size_t N, size_t C, size_t O);

/* The plain definition of linear, five lines of scalar C in either arithmetic: what the fast kernel must equal bit for bit. */
void linear_plain(float *y, const float *x, const float *w, const float *b, size_t N, size_t C, size_t O);

/* y[N,O] as linear, from a matrix stored once as embedding and output head, w [C,O] here being [H,V]. Same function. */

/* y[C] = RN32 of the float64 sum a + b (+ c), in that order; c may be NULL. (word + position + type; HF's order is the caller's.) */
void embedding_sum(float *y, const float *a, const float *b, const float *c, size_t C);

/* u = Sum(x)/C; v = Sum((x-u)*(x-u))/C; r = 1/sqrt(v+eps); y = RN32(((x-u)*r)*g + b); u, v, r float64. [N,C]; y may be x. */
void layernorm(float *y, const float *x, const float *g, const float *b, double eps, size_t N, size_t C);

/* r = 1/sqrt(S(x,x)/C + eps); y = RN32((x*r)*g). [N,C]; y may be x. */
void rmsnorm(float *y, const float *x, const float *g, double eps, size_t N, size_t C);

/* m = max x; d = RN32(x-m); e = EXP(d); Z = Sum(e); y = RN32(e/Z). [N,T]; y may be x. */
void softmax(float *y, const float *x, size_t N, size_t T);

/* One attention head over one sequence. Query i attends to keys j < Tk, or, if causal, to j <= i + (Tk - Tq).
 *   s_ij = RN32(S(q_i, k_j) * scale [+ bias_ij])   p_i = softmax(s_i)   ctx_i = RN32(S(p_i, v)), j ascending
 * q [Tq,D], k and v [Tk-Tp,D], ctx [Tq,D]: rows at strides ldq, ldk, ldv, ldc (floats). The first Tp keys and values, if any, lie
 * elsewhere (a cache): past_k, past_v [Tp,D], stride ldp. scale: float64, 1/sqrt(D), or 1 (T5).
 * bias: element (i,j) at bias[i*ldbias + j], or NULL; ldbias -1 serves a bias that depends on j-i alone. Positions not attended to are not visited. */
typedef struct {
    const float *q, *k, *v, *past_k, *past_v, *bias;
    float *ctx;
    size_t Tq, Tk, Tp, D, ldq, ldk, ldv, ldp, ldc;
    ptrdiff_t ldbias;
    double scale;
    bool causal;
} Attention;
/* n independent heads, shared out over the threads. */
void attention(const Attention *head, size_t n);
void attention_plain(const Attention *head, size_t n);
/* Its two halves for one head, between which p_i = softmax(s_i): s [Tq,Tk] (-infinity where not attended to), and ctx from p [Tq,Tk]. */
void attention_scores_plain(const Attention *head, float *s);
void attention_context_plain(const Attention *head, const float *p);

/* y = RN32(x + z), n elements; y may be x or z. */
void residual(float *y, const float *x, const float *z, size_t n);

/* y = F(x), n elements, shared out over the threads; gated: y = RN32(F(x) * z). y may be x. */
void activation(CrFunction f, float *y, const float *x, size_t n);
void activation_gated(CrFunction f, float *y, const float *x, const float *z, size_t n);

/* lse = m + LOG(RN32(Sum EXP(RN32(l-m)))), as RN32, for each row of l [N,V]; logprob: lp = RN32(l - lse), y may be l. */
void logsumexp(float *lse, const float *l, size_t N, size_t V);
void logprob(float *y, const float *l, size_t N, size_t V);

/* Mean over rows of lse - l[target]: nll = RN32(lse - l_y) per row (nll [N] is filled), mean = RN32(Sum(nll)/N). */
float cross_entropy(float *nll, const float *l, const size_t *target, size_t N, size_t V);

/* RN32 of Sum over rows, then v ascending, of p*(lp - lq), all [N,V] (float64 terms): KL(P || Q) summed over rows. */
float kl_divergence(const float *p, const float *lp, const float *lq, size_t N, size_t V);

#endif
