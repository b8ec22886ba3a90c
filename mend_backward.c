/* mend_backward.c - the gradients of GPT-2, T5 and the distiller, and of MEND's loss.
 *
 * Each function undoes one of the forward pass, line by line from its end, with the gradient ops of tensor_backward.h. A layer's results are
 * computed anew from its input where keeping all would take too much memory; that costs a third of the time and no bit.
 */
#include "mend_train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tap.h"
#include "tensor_backward.h"

enum { KEEP_FLOATS = 1 << 28 }; /* results of all layers are kept if they are not more than this */

/* ==== memory of a pass ============================================================================================================ */

/* The next n floats of a block. */
static float *take(float **at, size_t n) {
    float *here = *at;
    *at += n;
    return here;
}

/* Floats per row of one layer's results. */
static size_t layer_width(const Model *m, const T5Stack *stack) {
    const size_t C = m->size[LETTER_C], E = m->size[LETTER_E], F = m->size[LETTER_F];
    if (!stack) return 9 * C + 2 * F;
    return 5 * C + 4 * E + 3 * F + (stack->decoder ? 2 * C + 2 * E : 0);
}

/* Where layer l's results lie: in one place for all layers, if they are not kept. */
static float *layer_memory(const Pass *p, size_t l) {
    const size_t N = p->b.N, L = p->stack ? p->stack->L : p->m->L;
    return p->x + (L + 1) * N * p->m->size[LETTER_C] + (p->kept ? l : 0) * N * layer_width(p->m, p->stack);
}

static Gpt2Rows gpt2_rows(const Pass *p, size_t l) {
    const size_t C = p->b.N * p->m->size[LETTER_C], F = p->b.N * p->m->size[LETTER_F];
    float *at = layer_memory(p, l);
    Gpt2Rows r = {.ln1 = take(&at, C), .qkv = take(&at, 3 * C), .ctx = take(&at, C), .proj = take(&at, C), .mid = take(&at, C), .ln2 = take(&at, C),
                  .up = take(&at, F), .act = take(&at, F)};
    r.out = p->x + (l + 1) * C;
    return r;
}

static T5Rows t5_rows(const Pass *p, size_t l) {
    const size_t N = p->b.N, C = N * p->m->size[LETTER_C], E = N * p->m->size[LETTER_E], F = N * p->m->size[LETTER_F];
    float *at = layer_memory(p, l);
    T5Rows r = {.ln1 = take(&at, C), .q = take(&at, E), .k = take(&at, E), .v = take(&at, E), .ctx = take(&at, E), .proj = take(&at, C), .mid = take(&at, C),
                .ln2 = take(&at, C), .up = take(&at, F), .gate = take(&at, F), .act = take(&at, F)};
    if (p->stack->decoder) r.cross_ln = take(&at, C), r.cross_q = take(&at, E), r.cross_ctx = take(&at, E), r.cross_mid = take(&at, C);
    r.out = p->x + (l + 1) * C;
    return r;
}

static void pass_begin(Pass *p, const Model *m, const T5Stack *stack, const Batch *b, const float *mask, const Cache *cross) {
    const size_t N = b->N, C = m->size[LETTER_C], L = stack ? stack->L : m->L, width = N * layer_width(m, stack);
    p->m = m, p->stack = stack, p->mask = mask, p->cross = cross;
    p->start = mem_resize(p->start, b->B + 1, sizeof *p->start);
    memcpy(p->start, b->start, (b->B + 1) * sizeof *p->start);
    p->b = (Batch){N, b->B, p->start};
    p->kept = width <= KEEP_FLOATS / L;
    const size_t need = (L + 1) * N * C + (p->kept ? L : 1) * width;
    if (need > p->room) {
        free(p->memory);
        p->memory = mem_new(need, sizeof *p->memory);
        p->room = need;
    }
    p->x = p->memory;
    free(p->bias), free(p->masked);
    p->bias = p->masked = NULL;
    if (!stack) return;
    p->reach = longest(b);
    p->bias = position_bias(m, stack, p->reach);
    if (mask) p->masked = masked_bias(m, p->bias, p->reach, mask, N);
}

void pass_free(Pass *p) {
    free(p->start), free(p->bias), free(p->masked), free(p->memory);
    *p = (Pass){0};
}

/* ==== forward, kept =============================================================================================================== */

static Heads t5_self(const Pass *p, const T5Rows *r) {
    return p->mask ? t5_heads(p->m, p->stack, &p->b, r, p->masked, 0, 0) : t5_heads(p->m, p->stack, &p->b, r, p->bias, p->reach, 0);
}

static void layer_forward(const Pass *p, size_t l) {
    float *x = p->x + l * p->b.N * p->m->size[LETTER_C];
    if (!p->stack) {
        const Gpt2Rows r = gpt2_rows(p, l);
        gpt2_layer(p->m, &p->b, l, &r, x, NULL, false, p->mask);
    } else {
        const T5Rows r = t5_rows(p, l);
        const Heads self = t5_self(p, &r);
        t5_layer(p->m, p->stack, &p->b, l, &r, &self, x, NULL, false, p->cross);
    }
}

void pass_forward(Pass *p, const Model *m, const T5Stack *stack, const Batch *b, const float *mask, const Cache *cross, float *x) {
    const size_t N = b->N, C = m->size[LETTER_C], L = stack ? stack->L : m->L;
    pass_begin(p, m, stack, b, mask, cross);
    if (!stack) add_positions(m, b, 0, x);
    TAP(x, N, C, stack ? stack->decoder ? "decoder.embed_tokens" : "encoder.embed_tokens" : "embeddings");
    memcpy(p->x, x, N * C * sizeof *x);
    for (size_t l = 0; l < L; l++) layer_forward(p, l);
    if (stack) rmsnorm(x, p->x + L * N * C, stack->ln_g, m->eps, N, C);
    else layernorm(x, p->x + L * N * C, m->ln_g, m->ln_b, m->eps, N, C);
    TAP(x, N, C, stack ? stack->decoder ? "decoder.final_layer_norm" : "encoder.final_layer_norm" : "ln_f");
}

/* ==== GPT-2, backward ============================================================================================================= */

/* The gradients of q, k and v [N,E] each, at row stride ld, through the heads of one layer. dbias [B*H][...] or NULL, as the heads' bias. */
static void heads_backward(const Pass *p, const Heads *h, const float *dctx, float *dq, float *dk, float *dv, size_t ld, float *dbias) {
    const size_t H = p->m->H, D = p->m->D, E = p->m->size[LETTER_E];
    Attention *head = heads_of(p->m, &p->b, h, NULL, 0);
    AttentionBackward *back = mem_new(p->b.B * H, sizeof *back);
    for (size_t i = 0; i < p->b.B * H; i++) {
        const size_t at = p->b.start[i / H] * ld + i % H * D;
        back[i] = (AttentionBackward){.of = head[i], .dctx = dctx + p->b.start[i / H] * E + i % H * D, .dq = dq + at, .dk = dk + at, .dv = dv + at,
                                      .lddctx = E, .lddq = ld, .lddk = ld, .lddv = ld};
        if (dbias) back[i].dbias = dbias + i * h->head_bias + (h->bias - (p->mask ? p->masked : p->bias));
    }
    attention_backward(back, p->b.B * H);
    free(head), free(back);
}

/* Scratch of a backward pass: gradients of one layer's results. */
typedef struct {
    float *rows, *wide, *inner, *heads, *bias; /* [N,C], [N,C] or [N,3E], [N,F] twice, [N,E] three times */
} Scratch;

/* d, the gradient by what layer l reads, by its name. */
static void tap_input(const Pass *p, float *d, size_t l) {
    const size_t N = p->b.N, C = p->m->size[LETTER_C];
    const char *side = p->stack && p->stack->decoder ? "decoder" : "encoder";
    const int last = p->stack && p->stack->decoder ? 2 : 1;
    if (!p->stack && l > 0) TAP_GRADIENT(d, N, C, "h.%zu.resid_out", l - 1);
    else if (!p->stack) TAP_GRADIENT(d, N, C, "embeddings");
    else if (l > 0) TAP_GRADIENT(d, N, C, "%s.block.%zu.layer.%d.residual", side, l - 1, last);
    else TAP_GRADIENT(d, N, C, "%s.embed_tokens", side);
}

/* d [N,C]: in the gradient of layer l's output, out that of its input x. */
static void gpt2_layer_backward(const Pass *p, const Parameters *g, size_t l, float *d, const Scratch *s) {
    const Model *m = p->m;
    const size_t N = p->b.N, C = m->size[LETTER_C], F = m->size[LETTER_F];
    const Gpt2Layer *w = &m->gpt2[l];
    const Gpt2Rows r = gpt2_rows(p, l);
    const Heads heads = gpt2_heads(m, &p->b, &r, p->mask);
    float *dy = s->rows, *dh = s->inner, *dqkv = s->wide, *dctx = s->heads;
    /* out = mid + down(act(up(ln_2(mid)))) */
    linear_backward(dh, gradient_of(g, w->down_w), gradient_of(g, w->down_b), d, r.act, w->down_w, N, F, C);
    TAP_GRADIENT(dh, N, F, "h.%zu.mlp.act", l);
    activation_backward(m->act, dh, dh, r.up, N * F);
    TAP_GRADIENT(dh, N, F, "h.%zu.mlp.c_fc", l);
    linear_backward(dy, gradient_of(g, w->up_w), gradient_of(g, w->up_b), dh, r.ln2, w->up_w, N, C, F);
    TAP_GRADIENT(dy, N, C, "h.%zu.ln_2", l);
    layernorm_backward(dy, gradient_of(g, w->ln2_g), gradient_of(g, w->ln2_b), dy, r.mid, w->ln2_g, m->eps, N, C);
    residual(d, d, dy, N * C);
    TAP_GRADIENT(d, N, C, "h.%zu.resid_mid", l);
    /* mid = x + o(attention(qkv(ln_1(x)))) */
    linear_backward(dctx, gradient_of(g, w->o_w), gradient_of(g, w->o_b), d, r.ctx, w->o_w, N, C, C);
    TAP_GRADIENT(dctx, N, C, "h.%zu.attn.ctx", l);
    heads_backward(p, &heads, dctx, dqkv, dqkv + C, dqkv + 2 * C, 3 * C, NULL);
    TAP_GRADIENT(dqkv, N, 3 * C, "h.%zu.attn.c_attn", l);
    linear_backward(dy, gradient_of(g, w->qkv_w), gradient_of(g, w->qkv_b), dqkv, r.ln1, w->qkv_w, N, C, 3 * C);
    TAP_GRADIENT(dy, N, C, "h.%zu.ln_1", l);
    layernorm_backward(dy, gradient_of(g, w->ln1_g), gradient_of(g, w->ln1_b), dy, p->x + l * N * C, w->ln1_g, m->eps, N, C);
    residual(d, d, dy, N * C);
    tap_input(p, d, l);
}

/* Positions are looked up like pieces. */
static void positions_backward(const Pass *p, const Parameters *g, const float *d) {
    float *dw = gradient_of(g, p->m->wpe);
    if (!dw) return;
    uint32_t *position = mem_new(p->b.N, sizeof *position);
    for (size_t s = 0; s < p->b.B; s++)
        for (size_t n = p->b.start[s]; n < p->b.start[s + 1]; n++) position[n] = (uint32_t)(n - p->b.start[s]);
    embedding_backward(dw, position, d, p->b.N, p->m->size[LETTER_C], p->m->size[LETTER_C], 1);
    free(position);
}

/* ==== T5, backward ================================================================================================================ */

/* The table's gradient from the bias of every head of every sequence: dbias [B*H][2*reach] by distance, or [H][N,N] where there is a mask. */
static void position_bias_backward(const Pass *p, const Parameters *g, const float *dbias) {
    const Model *m = p->m;
    const size_t H = m->H, R = m->size[LETTER_R], N = p->b.N, size = p->mask ? N * N : 2 * p->reach;
    float *dw = gradient_of(g, p->stack->position_w);
    if (!dw) return;
    double *sum = mem_new(R * H, sizeof *sum);
    for (size_t s = 0; s < p->b.B * H; s++)
        for (size_t i = 0; i < size; i++) {
            const ptrdiff_t d = p->mask ? (ptrdiff_t)(i % N) - (ptrdiff_t)(i / N) : (ptrdiff_t)i - (ptrdiff_t)p->reach;
            sum[position_bucket(m, d, p->stack->decoder) * H + s % H] += (double)dbias[s * size + i];
        }
    for (size_t i = 0; i < R * H; i++) dw[i] = dw[i] + (float)sum[i];
    free(sum);
}

static void feed_forward_backward(const Pass *p, const Parameters *g, size_t l, const T5Rows *r, float *d, const Scratch *s) {
    const Model *m = p->m;
    const size_t N = p->b.N, C = m->size[LETTER_C], F = m->size[LETTER_F];
    const T5Layer *w = &p->stack->layer[l];
    const bool decoder = p->stack->decoder;
    const char *side = decoder ? "decoder" : "encoder";
    const int last = decoder ? 2 : 1; /* number of the feed-forward layer in its block */
    float *dy = s->rows, *dz = s->wide, *dh = s->inner, *dgate = s->inner + N * F;
    /* out = mid + down(act(up(norm(mid))) [* gate(norm(mid))]) */
    linear_backward(dh, gradient_of(g, w->down), NULL, d, r->act, w->down, N, F, C);
    TAP_GRADIENT(dh, N, F, "%s.block.%zu.layer.%d.DenseReluDense.act", side, l, last);
    if (w->gate) activation_gated_backward(m->act, dh, dgate, dh, r->up, r->gate, N * F);
    else activation_backward(m->act, dh, dh, r->up, N * F);
    TAP_GRADIENT(dh, N, F, "%s.block.%zu.layer.%d.DenseReluDense.%s", side, l, last, w->gate ? "wi_0" : "wi");
    linear_backward(dy, gradient_of(g, w->up), NULL, dh, r->ln2, w->up, N, C, F);
    if (w->gate) {
        TAP_GRADIENT(dgate, N, F, "%s.block.%zu.layer.%d.DenseReluDense.wi_1", side, l, last);
        linear_backward(dz, gradient_of(g, w->gate), NULL, dgate, r->ln2, w->gate, N, C, F);
        residual(dy, dy, dz, N * C);
    }
    TAP_GRADIENT(dy, N, C, "%s.block.%zu.layer.%d.layer_norm", side, l, last);
    rmsnorm_backward(dy, gradient_of(g, w->ln_g), dy, decoder ? r->cross_mid : r->mid, w->ln_g, m->eps, N, C);
    residual(d, d, dy, N * C);
    TAP_GRADIENT(d, N, C, "%s.block.%zu.layer.%d.residual", side, l, last - 1);
}

static void cross_backward(const Pass *p, const Parameters *g, size_t l, const T5Rows *r, float *d, const Scratch *s, const Cache *dcross) {
    const Model *m = p->m;
    const size_t N = p->b.N, C = m->size[LETTER_C], E = m->size[LETTER_E], H = m->H, D = m->D;
    const T5Attention *w = &p->stack->layer[l].cross;
    float *dy = s->rows, *dctx = s->heads, *dq = s->wide;
    linear_backward(dctx, gradient_of(g, w->o), NULL, d, r->cross_ctx, w->o, N, E, C);
    TAP_GRADIENT(dctx, N, E, "decoder.block.%zu.layer.1.EncDecAttention.ctx", l);
    Attention *head = cross_heads_of(m, &p->b, r->cross_q, r->cross_ctx, p->cross, l);
    AttentionBackward *back = mem_new(H, sizeof *back);
    for (size_t h = 0; h < H; h++) {
        const size_t at = l * dcross->room * E + h * D;
        back[h] = (AttentionBackward){.of = head[h], .dctx = dctx + h * D, .dq = dq + h * D, .dk = dcross->k + at, .dv = dcross->v + at, .lddctx = E, .lddq = E,
                                      .lddk = E, .lddv = E};
    }
    attention_backward(back, H);
    free(head), free(back);
    TAP_GRADIENT(dq, N, E, "decoder.block.%zu.layer.1.EncDecAttention.q", l);
    TAP_GRADIENT(dcross->k + l * dcross->room * E, dcross->n, E, "decoder.block.%zu.layer.1.EncDecAttention.k", l);
    TAP_GRADIENT(dcross->v + l * dcross->room * E, dcross->n, E, "decoder.block.%zu.layer.1.EncDecAttention.v", l);
    linear_backward(dy, gradient_of(g, w->q), NULL, dq, r->cross_ln, w->q, N, C, E);
    TAP_GRADIENT(dy, N, C, "decoder.block.%zu.layer.1.layer_norm", l);
    rmsnorm_backward(dy, gradient_of(g, w->ln_g), dy, r->mid, w->ln_g, m->eps, N, C);
    residual(d, d, dy, N * C);
    TAP_GRADIENT(d, N, C, "decoder.block.%zu.layer.0.residual", l);
}

static void self_backward(const Pass *p, const Parameters *g, size_t l, const T5Rows *r, float *d, const Scratch *s) {
    const Model *m = p->m;
    const size_t N = p->b.N, C = m->size[LETTER_C], E = m->size[LETTER_E];
    const T5Attention *w = &p->stack->layer[l].self;
    const Heads heads = t5_self(p, r);
    const char *side = p->stack->decoder ? "decoder" : "encoder";
    float *dy = s->rows, *dctx = s->heads, *dq = s->heads + N * E, *dk = s->heads + 2 * N * E, *dv = s->heads + 3 * N * E;
    linear_backward(dctx, gradient_of(g, w->o), NULL, d, r->ctx, w->o, N, E, C);
    TAP_GRADIENT(dctx, N, E, "%s.block.%zu.layer.0.SelfAttention.ctx", side, l);
    memset(s->bias, 0, p->b.B * m->H * heads.head_bias * sizeof *s->bias);
    heads_backward(p, &heads, dctx, dq, dk, dv, E, s->bias);
    TAP_GRADIENT(dq, N, E, "%s.block.%zu.layer.0.SelfAttention.q", side, l);
    TAP_GRADIENT(dk, N, E, "%s.block.%zu.layer.0.SelfAttention.k", side, l);
    TAP_GRADIENT(dv, N, E, "%s.block.%zu.layer.0.SelfAttention.v", side, l);
    position_bias_backward(p, g, s->bias);
    linear_backward(dy, gradient_of(g, w->q), NULL, dq, r->ln1, w->q, N, C, E);
    linear_backward(s->wide, gradient_of(g, w->k), NULL, dk, r->ln1, w->k, N, C, E);
    residual(dy, dy, s->wide, N * C);
    linear_backward(s->wide, gradient_of(g, w->v), NULL, dv, r->ln1, w->v, N, C, E);
    residual(dy, dy, s->wide, N * C);
    TAP_GRADIENT(dy, N, C, "%s.block.%zu.layer.0.layer_norm", side, l);
    rmsnorm_backward(dy, gradient_of(g, w->ln_g), dy, p->x + l * N * C, w->ln_g, m->eps, N, C);
    residual(d, d, dy, N * C);
    tap_input(p, d, l);
}

static void t5_layer_backward(const Pass *p, const Parameters *g, size_t l, float *d, const Scratch *s, const Cache *dcross) {
    const T5Rows r = t5_rows(p, l);
    feed_forward_backward(p, g, l, &r, d, s);
    if (p->stack->decoder) cross_backward(p, g, l, &r, d, s, dcross);
    self_backward(p, g, l, &r, d, s);
}

/* ==== a whole stack, backward ===================================================================================================== */

void pass_backward(const Pass *p, const Parameters *g, float *d, const Cache *dcross) {
    const Model *m = p->m;
    const size_t N = p->b.N, C = m->size[LETTER_C], E = m->size[LETTER_E], F = m->size[LETTER_F], L = p->stack ? p->stack->L : m->L;
    const size_t biases = !p->stack ? 0 : p->b.B * m->H * (p->mask ? N * N : 2 * p->reach);
    float *memory = mem_new(N * (C + (C > 3 * E ? C : 3 * E) + 2 * F + 4 * E) + biases, sizeof *memory), *at = memory;
    const Scratch s = {take(&at, N * C), take(&at, N * (C > 3 * E ? C : 3 * E)), take(&at, 2 * N * F), take(&at, 4 * N * E), take(&at, biases)};
    TAP_GRADIENT(d, N, C, p->stack ? p->stack->decoder ? "decoder.final_layer_norm" : "encoder.final_layer_norm" : "ln_f");
    if (p->stack) rmsnorm_backward(d, gradient_of(g, p->stack->ln_g), d, p->x + L * N * C, p->stack->ln_g, m->eps, N, C);
    else layernorm_backward(d, gradient_of(g, m->ln_g), gradient_of(g, m->ln_b), d, p->x + L * N * C, m->ln_g, m->eps, N, C);
    tap_input(p, d, L);
    for (size_t l = L; l-- > 0;) {
        if (!p->kept) layer_forward(p, l);
        if (p->stack) t5_layer_backward(p, g, l, d, &s, dcross);
        else gpt2_layer_backward(p, g, l, d, &s);
    }
    if (!p->stack) positions_backward(p, g, d);
    free(memory);
}

/* ==== a language model ============================================================================================================ */

void reading_forward(Reading *r, const Model *m, const Batch *b, float *x, const float *e, size_t n) {
    r->m = m;
    if (m->kind == GPT2) {
        pass_forward(&r->decoder, m, NULL, b, NULL, NULL, x);
        return;
    }
    const size_t start[] = {0, n}, C = m->size[LETTER_C];
    r->encoded = mem_resize(r->encoded, n, C * sizeof *r->encoded);
    memcpy(r->encoded, e, n * C * sizeof *e);
    pass_forward(&r->encoder, m, &m->encoder, &(Batch){n, 1, start}, NULL, NULL, r->encoded);
    cache_free(&r->cross);
    r->cross = cross_cache(m, r->encoded, n);
    pass_forward(&r->decoder, m, &m->decoder, b, NULL, &r->cross, x);
}

void reading_backward(Reading *r, const Parameters *g, float *dx, float *de) {
    const Model *m = r->m;
    if (m->kind == GPT2) {
        pass_backward(&r->decoder, g, dx, NULL);
        return;
    }
    const size_t n = r->encoder.b.N, C = m->size[LETTER_C], E = m->size[LETTER_E], L = m->decoder.L;
    Cache dcross = {.k = mem_new(L * n, E * sizeof(float)), .v = mem_new(L * n, E * sizeof(float)), .n = n, .room = n, .E = E, .L = L};
    float *part = mem_new(n, C * sizeof *part);
    pass_backward(&r->decoder, g, dx, &dcross);
    memset(de, 0, n * C * sizeof *de);
    for (size_t l = L; l-- > 0;) { /* every layer of the decoder reads what the encoder gave */
        const T5Attention *w = &m->decoder.layer[l].cross;
        linear_backward(part, gradient_of(g, w->k), NULL, dcross.k + l * n * E, r->encoded, w->k, n, C, E);
        residual(de, de, part, n * C);
        linear_backward(part, gradient_of(g, w->v), NULL, dcross.v + l * n * E, r->encoded, w->v, n, C, E);
        residual(de, de, part, n * C);
    }
    pass_backward(&r->encoder, g, de, NULL);
    free(part);
    cache_free(&dcross);
}

void reading_free(Reading *r) {
    pass_free(&r->encoder);
    pass_free(&r->decoder);
    cache_free(&r->cross);
    free(r->encoded);
    *r = (Reading){0};
}

void logits_backward(const Model *m, const Parameters *g, float *dx, const float *dl, const float *x, size_t n) {
    const size_t C = m->size[LETTER_C], V = m->size[LETTER_V];
    const double scale = 1 / sqrt((double)C);
    float *scaled = m->scale_head ? mem_new(n, C * sizeof *scaled) : NULL;
    for (size_t i = 0; scaled && i < n * C; i++) scaled[i] = (float)((double)x[i] * scale);
    linear_backward(dx, gradient_of(g, m->head), NULL, dl, scaled ? scaled : x, m->head, n, C, V);
    if (scaled) TAP_GRADIENT(dx, n, C, "decoder.scaled");
    for (size_t i = 0; scaled && i < n * C; i++) dx[i] = (float)((double)dx[i] * scale);
    free(scaled);
}

void embed_backward(const Model *m, const Parameters *g, const float *dx, const uint32_t *id, size_t n) {
    const size_t C = m->size[LETTER_C], V = m->size[LETTER_V];
    float *dw = gradient_of(g, m->wte);
    if (dw) embedding_backward(dw, id, dx, n, C, m->wte_is_head ? 1 : C, m->wte_is_head ? V : 1);
}

/* ==== the distiller =============================================================================================================== */

/* The rows of group i: pieces, then P. */
static size_t group_rows(const Distillation *d, size_t i) { return d->demos[i].n + d->m->size[LETTER_U]; }

/* Embeddings of the groups [from,to), one behind the other, x; to be freed. start [to-from+1] gets where each begins. */
static float *group_embeddings(const Distillation *d, size_t from, size_t to, size_t *start) {
    const Model *m = d->m;
    const size_t C = m->size[LETTER_C], U = m->size[LETTER_U];
    for (size_t i = from; i < to; i++) start[i - from + 1] = start[i - from] + group_rows(d, i);
    float *x = mem_new(start[to - from], C * sizeof *x);
    for (size_t i = from; i < to; i++) {
        float *row = x + start[i - from] * C;
        for (size_t t = 0; t < d->demos[i].n; t++) embed_piece(m, d->demos[i].at[t], row + t * C);
        memcpy(row + d->demos[i].n * C, m->prompt, U * C * sizeof *x);
    }
    return x;
}

/* Room for n groups in so many passes; a pass keeps its memory. */
static void distillation_begin(Distillation *d, const Model *m, const Ids *demos, size_t n, size_t passes) {
    const size_t C = m->size[LETTER_C], U = m->size[LETTER_U], O = m->size[LETTER_O];
    if (d->passes != passes) {
        distillation_free(d);
        d->pass = mem_new(passes, sizeof *d->pass), d->mask = mem_new(passes, sizeof *d->mask);
        d->passes = passes;
    }
    d->m = m, d->n = n;
    d->demos = mem_resize(d->demos, n, sizeof *d->demos);
    memcpy(d->demos, demos, n * sizeof *demos);
    d->last = mem_resize(d->last, n * U, C * sizeof *d->last), d->pooled = mem_resize(d->pooled, n * U, O * sizeof *d->pooled);
}

bool distillation_forward(Distillation *d, const Model *m, const Distilling *how, const Ids *demos, const Bytes *is_label, size_t n, float *s, Error *err) {
    const size_t C = m->size[LETTER_C], U = m->size[LETTER_U], O = m->size[LETTER_O], passes = how->label_rows ? n : 1;
    distillation_begin(d, m, demos, n, passes);
    for (size_t i = 0; i < n; i++)
        if (m->kind == GPT2 && group_rows(d, i) > m->size[LETTER_P])
            return fail(err, BAD_INPUT, "%s: %zu pieces of demonstrations and %zu rows are more than the %zu positions", weights_path(m->weights), demos[i].n, U, m->size[LETTER_P]);
    size_t *start = mem_new(n + 1, sizeof *start);
    for (size_t p = 0; p < passes; p++) {
        const size_t from = how->label_rows ? p : 0, to = how->label_rows ? p + 1 : n;
        float *x = group_embeddings(d, from, to, start);
        free(d->mask[p]);
        d->mask[p] = NULL;
        if (how->label_rows) d->mask[p] = separation(how, is_label[p].at ? is_label[p].at : "", demos[p].n, U);
        pass_forward(&d->pass[p], m, m->kind == T5 ? &m->encoder : NULL, &(Batch){start[to - from], to - from, start}, d->mask[p], NULL, x);
        for (size_t i = from; i < to; i++) memcpy(d->last + i * U * C, x + (start[i - from] + demos[i].n) * C, U * C * sizeof *x);
        free(x);
    }
    free(start);
    if (m->pool_w) {
        linear(d->pooled, d->last, m->pool_w, m->pool_b, n * U, C, O);
        activation(CR_TANH, s, d->pooled, n * U * O);
    } else memcpy(s, d->last, n * U * C * sizeof *s);
    return true;
}

/* P stands behind the pieces of each group. */
static void prompt_backward(const Distillation *d, const Parameters *g, const Pass *p, size_t from, const float *dx) {
    const size_t C = d->m->size[LETTER_C], U = d->m->size[LETTER_U], B = p->b.B;
    float *dprompt = gradient_of(g, d->m->prompt), *rows = mem_new(B * U, C * sizeof *rows);
    uint32_t *id = mem_new(B * U, sizeof *id);
    for (size_t i = 0; i < B * U; i++) {
        id[i] = (uint32_t)(i % U);
        memcpy(rows + i * C, dx + (p->b.start[i / U] + d->demos[from + i / U].n + i % U) * C, C * sizeof *rows);
    }
    if (dprompt) embedding_backward(dprompt, id, rows, B * U, C, C, 1);
    free(rows), free(id);
}

void distillation_backward(Distillation *d, const Parameters *g, float *ds) {
    const Model *m = d->m;
    const size_t C = m->size[LETTER_C], U = m->size[LETTER_U], O = m->size[LETTER_O], n = d->n;
    float *dlast = ds;
    if (m->pool_w) {
        dlast = mem_new(n * U, C * sizeof *dlast);
        TAP_GRADIENT(ds, n * U, O, "adap_pooler.act");
        activation_backward(CR_TANH, ds, ds, d->pooled, n * U * O);
        TAP_GRADIENT(ds, n * U, O, "adap_pooler.dense");
        linear_backward(dlast, gradient_of(g, m->pool_w), gradient_of(g, m->pool_b), ds, d->last, m->pool_w, n * U, C, O);
    }
    for (size_t p = 0, from = 0; p < d->passes; from += d->pass[p++].b.B) {
        const Batch *b = &d->pass[p].b;
        float *dx = mem_new(b->N, C * sizeof *dx);
        for (size_t i = 0; i < b->B; i++) memcpy(dx + (b->start[i] + d->demos[from + i].n) * C, dlast + (from + i) * U * C, U * C * sizeof *dx);
        pass_backward(&d->pass[p], g, dx, NULL);
        prompt_backward(d, g, &d->pass[p], from, dx);
        Ids all = {0}; /* the pieces of all groups of this pass, and their rows */
        float *rows = mem_new(b->N, C * sizeof *rows);
        for (size_t i = 0; i < b->B; i++) {
            memcpy(rows + all.n * C, dx + b->start[i] * C, d->demos[from + i].n * C * sizeof *rows);
            ids_add(&all, d->demos[from + i].at, d->demos[from + i].n);
        }
        embed_backward(m, g, rows, all.at, all.n);
        ids_free(&all);
        free(rows), free(dx);
    }
    if (m->pool_w) free(dlast);
}

void distillation_free(Distillation *d) {
    for (size_t p = 0; p < d->passes; p++) {
        pass_free(&d->pass[p]);
        free(d->mask[p]);
    }
    free(d->pass), free(d->mask), free(d->demos), free(d->last), free(d->pooled);
    *d = (Distillation){0};
}

/* ==== the loss ==================================================================================================================== */

/* y = RN32(x / tau). */
static void heat(float *y, const float *x, double tau, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = (float)((double)x[i] / tau);
}

/* KL of n rows, mean over them, from the student's logits l and the teacher's t (changed), of one of B texts; its gradient is added to dl (or NULL). */
static double kl_of(const Objective *o, const float *l, float *t, float *dl, size_t n, size_t V, size_t B) {
    float *p = mem_new(n, V * sizeof *p), *q = mem_new(n, V * sizeof *q), *lq = mem_new(n, V * sizeof *lq);
    heat(t, t, o->tau, n * V);
    heat(lq, l, o->tau, n * V);
    softmax(p, t, n, V);
    softmax(q, lq, n, V);
    logprob(t, t, n, V);
    logprob(lq, lq, n, V);
    const double kl = (double)kl_divergence(p, t, lq, n, V) / (double)n;
    if (dl) {
        kl_backward(q, q, p, o->lambda / (o->tau * (double)n * (double)B), n * V);
        residual(dl, dl, q, n * V);
    }
    free(p), free(q), free(lq);
    return kl;
}

/* CE of n of the rows l [..,V], mean over them, of one of B texts; its gradient is added to dl (or NULL). */
static double ce_of(const float *l, const size_t *row, const uint32_t *target, float *dl, size_t n, size_t V, size_t B) {
    size_t *y = mem_new(n, sizeof *y);
    float *nll = mem_new(n, sizeof *nll), *d = mem_new(n, V * sizeof *d);
    for (size_t i = 0; i < n; i++) {
        y[i] = target[i];
        memcpy(d + i * V, l + row[i] * V, V * sizeof *d);
    }
    const double ce = (double)cross_entropy(nll, d, y, n, V);
    if (dl) cross_entropy_backward(d, d, y, (double)n * (double)B, n, V);
    for (size_t i = 0; dl && i < n; i++) residual(dl + row[i] * V, dl + row[i] * V, d + i * V, V);
    free(y), free(nll), free(d);
    return ce;
}

/* The rows of one text whose logits are wanted, among those of all texts. */
typedef struct {
    size_t *from;          /* [n]: rows of the student */
    size_t n, at, teacher; /* they are rows at.. of all; the teacher's are teacher.. */
    size_t *ce, kl;        /* where in `from` the CE's rows are, [targets], and where the KL's begin */
} Asked;

static Asked asked_of(const Objective *o, const Graded *text) {
    const size_t targets = o->ce ? text->targets : 0;
    Asked a = {.from = mem_new(targets + text->n, sizeof *a.from), .ce = mem_new(targets, sizeof *a.ce)};
    for (size_t i = 0; i < targets; i++) {
        if (o->kl && text->row[i] >= text->first) continue; /* one of KL's */
        a.ce[i] = a.n;
        a.from[a.n++] = text->row[i];
    }
    a.kl = a.n;
    for (size_t i = 0; o->kl && i < text->n; i++) a.from[a.n++] = text->first + i;
    for (size_t i = 0; o->kl && i < targets; i++)
        if (text->row[i] >= text->first) a.ce[i] = a.kl + (text->row[i] - text->first);
    return a;
}

bool loss_of(const Objective *o, const Model *m, const Parameters *g, const Graded *text, size_t n, size_t B, const float *x, const float *t, size_t N, float *dx,
             Loss *out, Error *err) {
    const size_t C = m->size[LETTER_C], V = m->size[LETTER_V];
    Asked *ask = mem_new(n, sizeof *ask);
    size_t R = 0, teachers = 0;
    for (size_t b = 0; b < n; b++) {
        ask[b] = asked_of(o, &text[b]);
        ask[b].at = R, ask[b].teacher = teachers;
        R += ask[b].n;
        teachers += o->kl ? text[b].n : 0;
    }
    float *rows = mem_new(R, C * sizeof *rows), *l = mem_new(R, V * sizeof *l), *dl = dx ? mem_new(R, V * sizeof *dl) : NULL;
    float *teacher = mem_new(teachers, C * sizeof *rows), *lt = mem_new(teachers, V * sizeof *lt);
    for (size_t b = 0; b < n; b++) {
        for (size_t i = 0; i < ask[b].n; i++) memcpy(rows + (ask[b].at + i) * C, x + ask[b].from[i] * C, C * sizeof *rows);
        if (o->kl) memcpy(teacher + ask[b].teacher * C, t + text[b].teacher * C, text[b].n * C * sizeof *rows);
    }
    Loss part = {0};
    bool ok = logits(m, rows, R, l, err) && (!teachers || logits(m, teacher, teachers, lt, err));
    for (size_t b = 0; ok && b < n; b++) {
        const Asked *a = &ask[b];
        const size_t at = a->at * V, kl = (a->at + a->kl) * V;
        if (o->ce) part.ce += ce_of(l + at, a->ce, text[b].target, dl ? dl + at : NULL, text[b].targets, V, B) / (double)B;
        if (o->kl) part.kl += kl_of(o, l + kl, lt + a->teacher * V, dl ? dl + kl : NULL, text[b].n, V, B) / (double)B;
    }
    out->ce += part.ce, out->kl += part.kl;
    out->loss += part.ce + o->lambda * part.kl;
    TAP_LOSS(part.ce + o->lambda * part.kl, "loss");
    if (o->kl) TAP_LOSS(part.ce, "loss.ce"), TAP_LOSS(part.kl, "loss.kl");
    if (ok && dx) {
        TAP_GRADIENT(dl, R, V, "lm_head");
        logits_backward(m, g, rows, dl, rows, R);
        memset(dx, 0, N * C * sizeof *dx);
        for (size_t b = 0; b < n; b++)
            for (size_t i = 0; i < ask[b].n; i++) memcpy(dx + ask[b].from[i] * C, rows + (ask[b].at + i) * C, C * sizeof *dx);
    }
    for (size_t b = 0; b < n; b++) free(ask[b].from), free(ask[b].ce);
    free(ask), free(rows), free(l), free(dl), free(teacher), free(lt);
    return ok;
}
