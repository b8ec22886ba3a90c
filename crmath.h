/* crmath.h - correctly rounded functions of one float32.
 *
 * F(x) is the float32 nearest to the real value f(x), ties to even: mathematics, not a polynomial, so any correct
 * implementation in any language gives the same bits. No libm takes part.
 *
 *   CR_EXP e^x   CR_LOG ln x   CR_TANH tanh x   CR_RELU max(x, 0)   CR_SILU x/(1+e^-x)
 *   CR_GELU     x/2 (1 + erf(x/sqrt 2))                                        (BERT, XLM-R)
 *   CR_GELU_NEW x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), constants exact reals (GPT-2, T5 v1.1)
 *   CR_D_TANH, CR_D_GELU, CR_D_GELU_NEW, CR_D_SILU, CR_D_RELU   the derivatives of these; that of RELU is 1 for x > 0, else 0
 *
 * Special values follow the limits (EXP(-inf) = +0, LOG(0) = -inf, LOG(-1) = NaN); a NaN gives the NaN 7fc00000;
 * TANH, GELU, GELU_NEW, SILU keep the sign of a zero, and GELU, GELU_NEW, SILU of -inf are -0, and so are
 * the derivatives of these three (they come to 0 from below); RELU(-0) = -0 (a max whose first index wins).
 */
#ifndef CRMATH_H
#define CRMATH_H

#include <stddef.h>

typedef enum {
    CR_EXP, CR_LOG, CR_TANH, CR_GELU, CR_GELU_NEW, CR_SILU, CR_RELU,
    CR_D_TANH, CR_D_GELU, CR_D_GELU_NEW, CR_D_SILU, CR_D_RELU, CR_FUNCTIONS
} CrFunction;

const char *cr_name(CrFunction f); /* "exp", "log", "tanh", "gelu", "gelu_new", "silu", "relu", "d_tanh", ... */

/* F' of TANH, GELU, GELU_NEW, SILU or RELU. */
CrFunction cr_derivative(CrFunction f);

/* y[i] = F(x[i]) for i < n; y may be x. Fast, vectorised; the same bits as cr_one. */
void cr_map(CrFunction f, float *y, const float *x, size_t n);

/* F(x) by the accurate path alone (double-double): the plain definition beside the fast one. */
float cr_one(CrFunction f, float x);

#endif
