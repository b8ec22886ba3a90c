/* lingua2_backward.c - see lingua2_train.h: the encoder's backward pass, step by step what encoder_forward (lingua2.c) does, from the end to the
 * beginning. The forward pass is here once more because it must keep what it computes; without dropout its bits are encoder_forward's.
 *
 * Letters as in lingua2.c. For a value y, dy is the gradient of the loss by y. G(w) is where the gradient by the tensor w is summed.
 */
#include "lingua2_train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "random.h"
#include "tap.h"

/* ==== room ========================================================================================================================= */

void tape_free(Tape *a) {
    free(a->memory);
    free(a->layer);
    free(a->head);
    free(a->back);
    *a = (Tape){0};
}

/* The floats of one row of all of a tape. */
static size_t tape_row(const Model *m) {
    const size_t C = m->size[LETTER_C], F = m->size[LETTER_F], K = m->size[LETTER_K];
    return m->L * (8 * C + 2 * F) + 8 * C + 2 * K + F;
}

static void tape_fit(Tape *a, const Model *m, size_t N, size_t B) {
    const size_t C = m->size[LETTER_C], F = m->size[LETTER_F], K = m->size[LETTER_K];
    size_t total;
    if (!size_mul(tape_row(m), N, &total)) total = SIZE_MAX; /* mem_new says so and ends */
    if (total > a->room) {
        free(a->memory);
        a->memory = mem_new(total, sizeof *a->memory);
        a->room = total;
    }
    if (!a->layer) a->layer = mem_new(m->L, sizeof *a->layer);
    a->head = mem_resize(a->head, B * m->H, sizeof *a->head);
    a->back = mem_resize(a->back, B * m->H, sizeof *a->back);
    float *at = a->memory;
    for (size_t l = 0; l < m->L; l++) {
        LayerTape *t = &a->layer[l];
        float **wide[] = {&t->x, &t->q, &t->k, &t->v, &t->ctx, &t->sum1, &t->mid, &t->sum2}, **high[] = {&t->up, &t->act};
        for (size_t i = 0; i < 8; i++, at += N * C) *wide[i] = at;
        for (size_t i = 0; i < 2; i++, at += N * F) *high[i] = at;
    }
    float **wide[] = {&a->sum0, &a->x, &a->read, &a->dx, &a->dy, &a->dq, &a->dk, &a->dv};
    for (size_t i = 0; i < 8; i++, at += N * C) *wide[i] = at;
    a->dh = at, at += N * F;
    a->logits = at, at += N * K;
    a->dlogits = at;
}

/* ==== forward ====================================================================================================================== */

/* Where a layer's dropout stands among all of a step's. */
enum { DROP_EMBEDDINGS, DROP_CLASSIFIER, DROP_LAYERS };
static size_t drop_attention(size_t l) { return DROP_LAYERS + 2 * l; }
static size_t drop_feed_forward(size_t l) { return DROP_LAYERS + 2 * l + 1; }

/* y = x with a share of its elements zeroed, in place; its own backward pass. */
static void drop(const Dropout *d, size_t place, float *x, size_t n) {
    if (d->p > 0) dropout(x, n, d->p, random_bits(d->seed, place));
}

/* The heads of a layer, for both passes. */
static void set_heads(const Model *m, const LabelledBatch *b, const Tape *a, const LayerTape *t) {
    const size_t C = m->size[LETTER_C], D = C / m->H;
    for (size_t s = 0; s < b->of.B; s++)
        for (size_t h = 0; h < m->H; h++) {
            const size_t T = b->of.start[s + 1] - b->of.start[s], at = b->of.start[s] * C + h * D;
            const Attention head = {.q = t->q + at, .k = t->k + at, .v = t->v + at, .ctx = t->ctx + at, .Tq = T, .Tk = b->keys[s], .D = D,
                                    .ldq = C, .ldk = C, .ldv = C, .ldc = C, .scale = 1 / sqrt((double)D)};
            a->head[s * m->H + h] = head;
            a->back[s * m->H + h] = (AttentionBackward){.of = head, .dctx = a->dx + at, .dq = a->dq + at, .dk = a->dk + at, .dv = a->dv + at,
                                                        .lddctx = C, .lddq = C, .lddk = C, .lddv = C};
        }
}

static void embed_forward(const Model *m, const LabelledBatch *b, const Dropout *d, const Tape *a, float *x) {
    const size_t N = b->of.N, C = m->size[LETTER_C];
    for (size_t n = 0; n < N; n++) embedding_sum(a->sum0 + n * C, m->wte + b->of.id[n] * C, m->wye, m->wpe + b->of.position[n] * C, C);
    layernorm(x, a->sum0, m->ln_g, m->ln_b, m->eps, N, C);
    drop(d, DROP_EMBEDDINGS, x, N * C);
}

static void layer_forward(const Model *m, const LabelledBatch *b, const Dropout *d, const Tape *a, size_t l, float *x) {
    const size_t N = b->of.N, C = m->size[LETTER_C], F = m->size[LETTER_F];
    const Layer *w = &m->layer[l];
    const LayerTape *t = &a->layer[l];
    linear(t->q, t->x, w->q_w, w->q_b, N, C, C);
    linear(t->k, t->x, w->k_w, w->k_b, N, C, C);
    linear(t->v, t->x, w->v_w, w->v_b, N, C, C);
    set_heads(m, b, a, t);
    attention(a->head, b->of.B * m->H);
    linear(t->sum1, t->ctx, w->o_w, w->o_b, N, C, C);
    drop(d, drop_attention(l), t->sum1, N * C);
    residual(t->sum1, t->sum1, t->x, N * C);
    layernorm(t->mid, t->sum1, w->ln1_g, w->ln1_b, m->eps, N, C);
    linear(t->up, t->mid, w->up_w, w->up_b, N, C, F);
    activation(m->act, t->act, t->up, N * F);
    linear(t->sum2, t->act, w->down_w, w->down_b, N, F, C);
    drop(d, drop_feed_forward(l), t->sum2, N * C);
    residual(t->sum2, t->sum2, t->mid, N * C);
    layernorm(x, t->sum2, w->ln2_g, w->ln2_b, m->eps, N, C);
}

static void forward(const Model *m, const LabelledBatch *b, const Dropout *d, const Tape *a) {
    const size_t N = b->of.N, C = m->size[LETTER_C];
    embed_forward(m, b, d, a, m->L ? a->layer[0].x : a->x);
    for (size_t l = 0; l < m->L; l++) layer_forward(m, b, d, a, l, l + 1 < m->L ? a->layer[l + 1].x : a->x);
    memcpy(a->read, a->x, N * C * sizeof *a->read);
    drop(d, DROP_CLASSIFIER, a->read, N * C);
    linear(a->logits, a->read, m->head_w, m->head_b, N, C, m->size[LETTER_K]);
}

/* ==== backward ===================================================================================================================== */

#define G(w) gradient_of(p, w)

/* dx, the gradient by what layer l reads, by its name. */
static void tap_input(const Model *m, const Tape *a, size_t N, size_t l) {
    const size_t C = m->size[LETTER_C];
    if (l > 0) TAP_GRADIENT(a->dx, N, C, "encoder.layer.%zu.output.LayerNorm", l - 1);
    else TAP_GRADIENT(a->dx, N, C, "embeddings.LayerNorm");
}

/* dx [N,C], the gradient by what the layer gives, becomes the gradient by what it reads. */
static void layer_backward(const Model *m, const Parameters *p, const LabelledBatch *b, const Dropout *d, const Tape *a, size_t l) {
    const size_t N = b->of.N, C = m->size[LETTER_C], F = m->size[LETTER_F];
    const Layer *w = &m->layer[l];
    const LayerTape *f = &a->layer[l];
    /* x' = LayerNorm(sum2); sum2 = drop(down(act(up(mid)))) + mid */
    layernorm_backward(a->dx, G(w->ln2_g), G(w->ln2_b), a->dx, f->sum2, w->ln2_g, m->eps, N, C);
    TAP_GRADIENT(a->dx, N, C, "encoder.layer.%zu.output.residual", l);
    memcpy(a->dy, a->dx, N * C * sizeof *a->dy);
    drop(d, drop_feed_forward(l), a->dy, N * C);
    linear_backward(a->dh, G(w->down_w), G(w->down_b), a->dy, f->act, w->down_w, N, F, C);
    TAP_GRADIENT(a->dh, N, F, "encoder.layer.%zu.intermediate.act", l);
    activation_backward(m->act, a->dh, a->dh, f->up, N * F);
    TAP_GRADIENT(a->dh, N, F, "encoder.layer.%zu.intermediate.dense", l);
    linear_backward(a->dy, G(w->up_w), G(w->up_b), a->dh, f->mid, w->up_w, N, C, F);
    residual(a->dy, a->dy, a->dx, N * C);
    TAP_GRADIENT(a->dy, N, C, "encoder.layer.%zu.attention.output.LayerNorm", l);
    /* mid = LayerNorm(sum1); sum1 = drop(o(ctx)) + x */
    layernorm_backward(a->dy, G(w->ln1_g), G(w->ln1_b), a->dy, f->sum1, w->ln1_g, m->eps, N, C);
    TAP_GRADIENT(a->dy, N, C, "encoder.layer.%zu.attention.output.residual", l);
    memcpy(a->dq, a->dy, N * C * sizeof *a->dq);
    drop(d, drop_attention(l), a->dq, N * C);
    linear_backward(a->dx, G(w->o_w), G(w->o_b), a->dq, f->ctx, w->o_w, N, C, C);
    TAP_GRADIENT(a->dx, N, C, "encoder.layer.%zu.attention.self.ctx", l);
    /* ctx = softmax(q k^T / sqrt(D)) v; rows that are no keys have no gradient as such */
    set_heads(m, b, a, f);
    memset(a->dk, 0, N * C * sizeof *a->dk);
    memset(a->dv, 0, N * C * sizeof *a->dv);
    attention_backward(a->back, b->of.B * m->H);
    TAP_GRADIENT(a->dq, N, C, "encoder.layer.%zu.attention.self.query", l);
    TAP_GRADIENT(a->dk, N, C, "encoder.layer.%zu.attention.self.key", l);
    TAP_GRADIENT(a->dv, N, C, "encoder.layer.%zu.attention.self.value", l);
    /* q, k, v = linear(x); x goes into the sum as well */
    const float *weight[] = {w->q_w, w->k_w, w->v_w}, *bias[] = {w->q_b, w->k_b, w->v_b}, *dout[] = {a->dq, a->dk, a->dv};
    for (size_t i = 0; i < 3; i++) {
        linear_backward(a->dx, G(weight[i]), G(bias[i]), dout[i], f->x, weight[i], N, C, C);
        residual(a->dy, a->dy, a->dx, N * C);
    }
    memcpy(a->dx, a->dy, N * C * sizeof *a->dx);
    tap_input(m, a, N, l);
}

/* x = drop(LayerNorm(word + type 0 + position)) */
static void embed_backward(const Model *m, const Parameters *p, const LabelledBatch *b, const Dropout *d, const Tape *a) {
    const size_t N = b->of.N, C = m->size[LETTER_C];
    uint32_t *row = mem_new(N, sizeof *row);
    drop(d, DROP_EMBEDDINGS, a->dx, N * C);
    layernorm_backward(a->dx, G(m->ln_g), G(m->ln_b), a->dx, a->sum0, m->ln_g, m->eps, N, C);
    TAP_GRADIENT(a->dx, N, C, "embeddings.sum");
    embedding_backward(G(m->wte), b->of.id, a->dx, N, C, C, 1);
    embedding_backward(G(m->wye), row, a->dx, N, C, C, 1);
    for (size_t n = 0; n < N; n++) row[n] = (uint32_t)b->of.position[n];
    embedding_backward(G(m->wpe), row, a->dx, N, C, C, 1);
    if (b->padding < m->size[LETTER_V]) memset(G(m->wte) + b->padding * C, 0, C * sizeof *a->dx);
    if (b->padding < m->size[LETTER_V] && m->pad_id < m->size[LETTER_P]) memset(G(m->wpe) + m->pad_id * C, 0, C * sizeof *a->dx);
    free(row);
}

static void backward(const Model *m, const Parameters *p, const LabelledBatch *b, const Dropout *d, const Tape *a) {
    const size_t N = b->of.N, C = m->size[LETTER_C], K = m->size[LETTER_K];
    TAP_GRADIENT(a->dlogits, N, K, "classifier");
    linear_backward(a->dx, G(m->head_w), G(m->head_b), a->dlogits, a->read, m->head_w, N, C, K);
    drop(d, DROP_CLASSIFIER, a->dx, N * C);
    tap_input(m, a, N, m->L);
    for (size_t l = m->L; l-- > 0;) layer_backward(m, p, b, d, a, l);
    embed_backward(m, p, b, d, a);
}

/* ==== loss ========================================================================================================================= */

/* Mean cross entropy of the labelled rows; dlogits, which are 0 elsewhere. */
static float loss_of(const Model *m, const LabelledBatch *b, const Tape *a) {
    const size_t N = b->of.N, K = m->size[LETTER_K];
    float *logits = mem_new(N * K, sizeof *logits), *nll = mem_new(N, sizeof *nll);
    size_t *target = mem_new(N, sizeof *target), n = 0;
    for (size_t i = 0; i < N; i++) {
        if (b->label[i] < 0) continue;
        memcpy(logits + n * K, a->logits + i * K, K * sizeof *logits);
        target[n++] = (size_t)b->label[i];
    }
    const float loss = cross_entropy(nll, logits, target, n, K);
    cross_entropy_backward(logits, logits, target, (double)n, n, K);
    memset(a->dlogits, 0, N * K * sizeof *a->dlogits);
    for (size_t i = 0, k = 0; i < N; i++)
        if (b->label[i] >= 0) memcpy(a->dlogits + i * K, logits + k++ * K, K * sizeof *logits);
    free(logits);
    free(nll);
    free(target);
    return loss;
}

float encoder_loss(const Model *m, const Parameters *p, const LabelledBatch *b, const Dropout *d, Tape *a) {
    tape_fit(a, m, b->of.N, b->of.B);
    forward(m, b, d, a);
    const float loss = loss_of(m, b, a);
    TAP_LOSS((double)loss, "loss");
    if (p) backward(m, p, b, d, a);
    return loss;
}
