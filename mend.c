/* mend.c - MEND in plain C: demonstrations go in once, a few vectors come out, and a frozen language model reads those in their place.
 *
 * The idea (Li et al. 2024, arXiv 2403.06914): in-context learning puts K demonstrations before each query, and the language model pays for all
 * of them every time. A small model, the distiller, reads them once and gives v vectors S; the language model then reads [S ; x].
 *
 *   demonstrations -> tokens -> [E(demos) ; P] -> distiller -> its last v rows -> S      once
 *   [S ; x] -> language model -> log p(option) for each option, or text                   for each query
 *
 * This file, top to bottom: the models (one table of tensors each), GPT-2, T5, a language model's state (what it has read), prompts from
 * MetaICL's examples, distillation, scores and texts. Letters for shapes and what the parts share: mend.h. Evaluation and cost: mend_eval.c.
 *
 * The half for T5 is our reading of the paper: the authors released the distiller for GPT-2 alone.
 * Left out on purpose: beam search, GPUs, quantised weights.
 */
#include "mend.h"
#include "compare.h"
#include "tap.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ==== the models ==================================================================================================================
 * What a flat file of a GPT-2, a T5 or a distiller holds, checked before use. */

static const TensorRow gpt2_tied_table[] = {{"wte.weight", LETTER_C, LETTER_V, offsetof(Model, wte)}};
static const TensorRow gpt2_words_table[] = {{"wte.weight", LETTER_V, LETTER_C, offsetof(Model, wte)}};
static const TensorRow head_table[] = {{"lm_head.weight", LETTER_C, LETTER_V, offsetof(Model, head)}};
static const TensorRow gpt2_table[] = {
    {"wpe.weight", LETTER_P, LETTER_C, offsetof(Model, wpe)},
    {"ln_f.weight", LETTER_C, -1, offsetof(Model, ln_g)},
    {"ln_f.bias", LETTER_C, -1, offsetof(Model, ln_b)},
};
static const TensorRow gpt2_layer_table[] = {
    {"h.%zu.ln_1.weight", LETTER_C, -1, offsetof(Gpt2Layer, ln1_g)},
    {"h.%zu.ln_1.bias", LETTER_C, -1, offsetof(Gpt2Layer, ln1_b)},
    {"h.%zu.attn.c_attn.weight", LETTER_C, LETTER_Q, offsetof(Gpt2Layer, qkv_w)},
    {"h.%zu.attn.c_attn.bias", LETTER_Q, -1, offsetof(Gpt2Layer, qkv_b)},
    {"h.%zu.attn.c_proj.weight", LETTER_C, LETTER_C, offsetof(Gpt2Layer, o_w)},
    {"h.%zu.attn.c_proj.bias", LETTER_C, -1, offsetof(Gpt2Layer, o_b)},
    {"h.%zu.ln_2.weight", LETTER_C, -1, offsetof(Gpt2Layer, ln2_g)},
    {"h.%zu.ln_2.bias", LETTER_C, -1, offsetof(Gpt2Layer, ln2_b)},
    {"h.%zu.mlp.c_fc.weight", LETTER_C, LETTER_F, offsetof(Gpt2Layer, up_w)},
    {"h.%zu.mlp.c_fc.bias", LETTER_F, -1, offsetof(Gpt2Layer, up_b)},
    {"h.%zu.mlp.c_proj.weight", LETTER_F, LETTER_C, offsetof(Gpt2Layer, down_w)},
    {"h.%zu.mlp.c_proj.bias", LETTER_C, -1, offsetof(Gpt2Layer, down_b)},
};
static const TensorRow t5_tied_table[] = {{"shared.weight", LETTER_C, LETTER_V, offsetof(Model, wte)}};
static const TensorRow t5_words_table[] = {{"shared.weight", LETTER_V, LETTER_C, offsetof(Model, wte)}};
#define T5_STACK_ROWS(stack)                                                                                                              \
    {stack ".block.0.layer.0.SelfAttention.relative_attention_bias.weight", LETTER_R, LETTER_H, offsetof(T5Stack, position_w)},           \
    {stack ".final_layer_norm.weight", LETTER_C, -1, offsetof(T5Stack, ln_g)}
#define T5_ATTENTION_ROWS(name, norm, member)                                       \
    {name ".q.weight", LETTER_C, LETTER_E, offsetof(T5Layer, member.q)},            \
    {name ".k.weight", LETTER_C, LETTER_E, offsetof(T5Layer, member.k)},            \
    {name ".v.weight", LETTER_C, LETTER_E, offsetof(T5Layer, member.v)},            \
    {name ".o.weight", LETTER_E, LETTER_C, offsetof(T5Layer, member.o)},            \
    {norm ".layer_norm.weight", LETTER_C, -1, offsetof(T5Layer, member.ln_g)}
#define T5_OUTPUT_ROWS(layer)                                                                  \
    {layer ".DenseReluDense.wo.weight", LETTER_F, LETTER_C, offsetof(T5Layer, down)},          \
    {layer ".layer_norm.weight", LETTER_C, -1, offsetof(T5Layer, ln_g)}
#define T5_RELU_ROWS(layer) {layer ".DenseReluDense.wi.weight", LETTER_C, LETTER_F, offsetof(T5Layer, up)}
#define T5_GATED_ROWS(layer)                                                                   \
    {layer ".DenseReluDense.wi_0.weight", LETTER_C, LETTER_F, offsetof(T5Layer, up)},          \
    {layer ".DenseReluDense.wi_1.weight", LETTER_C, LETTER_F, offsetof(T5Layer, gate)}
static const TensorRow encoder_table[] = {T5_STACK_ROWS("encoder")}, decoder_table[] = {T5_STACK_ROWS("decoder")};
static const TensorRow encoder_layer_table[] = {
    T5_ATTENTION_ROWS("encoder.block.%zu.layer.0.SelfAttention", "encoder.block.%zu.layer.0", self), T5_OUTPUT_ROWS("encoder.block.%zu.layer.1")};
static const TensorRow encoder_relu_table[] = {T5_RELU_ROWS("encoder.block.%zu.layer.1")}, encoder_gated_table[] = {T5_GATED_ROWS("encoder.block.%zu.layer.1")};
static const TensorRow decoder_layer_table[] = {
    T5_ATTENTION_ROWS("decoder.block.%zu.layer.0.SelfAttention", "decoder.block.%zu.layer.0", self),
    T5_ATTENTION_ROWS("decoder.block.%zu.layer.1.EncDecAttention", "decoder.block.%zu.layer.1", cross), T5_OUTPUT_ROWS("decoder.block.%zu.layer.2")};
static const TensorRow decoder_relu_table[] = {T5_RELU_ROWS("decoder.block.%zu.layer.2")}, decoder_gated_table[] = {T5_GATED_ROWS("decoder.block.%zu.layer.2")};
static const TensorRow prompt_table[] = {{"init_prompt_weight", LETTER_U, LETTER_C, offsetof(Model, prompt)}};
static const TensorRow pooler_table[] = {{"adap_pooler.dense.weight", LETTER_C, LETTER_O, offsetof(Model, pool_w)},
                                         {"adap_pooler.dense.bias", LETTER_O, -1, offsetof(Model, pool_b)}};
#define BIND(table, layer, base) weights_bind(m->weights, table, sizeof(table) / sizeof *(table), m->size, layer, base, err)

/* Sizes by their key in the configuration. */
typedef struct {
    const char *key;
    size_t *to;
} Size;
static bool read_sizes(const Model *m, const Json *config, const Size *size, size_t n, Error *err) {
    for (size_t i = 0; i < n; i++)
        if (!config_size(config, size[i].key, weights_path(m->weights), size[i].to, err)) return false;
    return true;
}

/* The number of rows (axis 0) or columns (1) a matrix has in the file, 0 if it is not there. */
static size_t extent(const Model *m, const char *name, size_t axis) {
    const Tensor *t = weights_find(m->weights, name);
    return t && t->dims == 2 ? t->shape[axis] : 0;
}

static bool read_gpt2(Model *m, const Json *config, Error *err) {
    size_t *size = m->size;
    const Size sizes[] = {{"n_layer", &m->L}, {"n_head", &m->H}, {"n_embd", &size[LETTER_C]}, {"n_positions", &size[LETTER_P]}, {"n_inner", &size[LETTER_F]}};
    const char *path = weights_path(m->weights);
    if (!read_sizes(m, config, sizes, sizeof sizes / sizeof *sizes, err) || !config_epsilon(config, "layer_norm_epsilon", path, &m->eps, err) ||
        !config_activation(config, "activation_function", path, &m->act, err))
        return false;
    if (m->L > MAX_LAYERS) return fail(err, BAD_MODEL, "%s: %zu layers: at most %d are taken", path, m->L, MAX_LAYERS);
    if (size[LETTER_C] % m->H) return fail(err, BAD_MODEL, "%s: %zu heads do not divide the hidden size %zu", path, m->H, size[LETTER_C]);
    m->kind = GPT2;
    m->D = size[LETTER_C] / m->H;
    size[LETTER_E] = size[LETTER_C];
    size[LETTER_Q] = 3 * size[LETTER_C];
    m->wte_is_head = !weights_find(m->weights, "lm_head.weight");
    size[LETTER_V] = extent(m, "wte.weight", m->wte_is_head ? 1 : 0);
    if (!(m->wte_is_head ? BIND(gpt2_tied_table, 0, m) : BIND(gpt2_words_table, 0, m) && BIND(head_table, 0, m)) || !BIND(gpt2_table, 0, m)) return false;
    m->gpt2 = mem_new(m->L, sizeof *m->gpt2);
    for (size_t l = 0; l < m->L; l++)
        if (!BIND(gpt2_layer_table, l, &m->gpt2[l])) return false;
    return true;
}

static bool read_stack(Model *m, T5Stack *s, bool decoder, bool gated, Error *err) {
    s->decoder = decoder;
    s->layer = mem_new(s->L, sizeof *s->layer);
    if (!(decoder ? BIND(decoder_table, 0, s) : BIND(encoder_table, 0, s))) return false;
    for (size_t l = 0; l < s->L; l++) {
        T5Layer *w = &s->layer[l];
        if (!(decoder ? BIND(decoder_layer_table, l, w) && (gated ? BIND(decoder_gated_table, l, w) : BIND(decoder_relu_table, l, w))
                      : BIND(encoder_layer_table, l, w) && (gated ? BIND(encoder_gated_table, l, w) : BIND(encoder_relu_table, l, w))))
            return false;
    }
    return true;
}

static bool read_t5(Model *m, const Json *config, bool whole, Error *err) {
    size_t *size = m->size, start = 0;
    const Size sizes[] = {{"num_layers", &m->encoder.L}, {"num_decoder_layers", &m->decoder.L}, {"num_heads", &m->H}, {"d_model", &size[LETTER_C]},
                          {"d_kv", &m->D}, {"d_ff", &size[LETTER_F]}, {"relative_attention_num_buckets", &size[LETTER_R]},
                          {"relative_attention_max_distance", &m->max_distance}};
    const char *path = weights_path(m->weights);
    const Json *ffn = json_get(config, "feed_forward_proj"), *tie = json_get(config, "tie_word_embeddings"), *id = json_get(config, "decoder_start_token_id"),
               *scale = json_get(config, "scale_decoder_outputs");
    if (!read_sizes(m, config, sizes, sizeof sizes / sizeof *sizes, err) || !config_epsilon(config, "layer_norm_epsilon", path, &m->eps, err)) return false;
    if (m->encoder.L > MAX_LAYERS || m->decoder.L > MAX_LAYERS) return fail(err, BAD_MODEL, "%s: more than %d layers", path, MAX_LAYERS);
    const bool gated = ffn && ffn->type == JSON_STRING && strcmp(ffn->text, "gated-gelu") == 0;
    if (!gated && !(ffn && ffn->type == JSON_STRING && strcmp(ffn->text, "relu") == 0))
        return fail(err, BAD_MODEL, "%s: feed_forward_proj in the configuration is neither relu nor gated-gelu", path);
    if (size[LETTER_R] < 4 || m->max_distance <= size[LETTER_R] / 2)
        return fail(err, BAD_MODEL, "%s: %zu buckets of relative positions up to a distance of %zu are impossible", path, size[LETTER_R], m->max_distance);
    if (!whole) m->decoder.L = 0;
    m->kind = T5;
    m->act = gated ? CR_GELU_NEW : CR_RELU;
    m->wte_is_head = whole && !(tie && tie->type == JSON_FALSE);
    m->scale_head = whole && scale && scale->type == JSON_TRUE;
    size[LETTER_H] = m->H;
    if (!size_mul(m->H, m->D, &size[LETTER_E]) || size[LETTER_E] > MAX_CONFIG) return fail(err, BAD_MODEL, "%s: %zu heads of %zu are too many", path, m->H, m->D);
    size[LETTER_V] = extent(m, "shared.weight", m->wte_is_head ? 1 : 0);
    if (whole && id && id->type != JSON_NULL && (!json_size(id, UINT32_MAX, &start) || start >= size[LETTER_V]))
        return fail(err, BAD_MODEL, "%s: decoder_start_token_id in the configuration is no id of the model", path);
    m->start_id = (uint32_t)start;
    if (!(m->wte_is_head ? BIND(t5_tied_table, 0, m) : BIND(t5_words_table, 0, m)) || !read_stack(m, &m->encoder, false, gated, err)) return false;
    return !whole || (read_stack(m, &m->decoder, true, gated, err) && (m->wte_is_head || BIND(head_table, 0, m)));
}

/* P, and the pooler if the distiller's width is not the language model's. */
static bool read_distiller(Model *m, Error *err) {
    m->size[LETTER_U] = extent(m, "init_prompt_weight", 0);
    m->size[LETTER_O] = extent(m, "adap_pooler.dense.weight", 1);
    if (m->size[LETTER_U] == 0) return fail(err, BAD_MODEL, "%s: init_prompt_weight is missing or empty; export the MEND checkpoint again", weights_path(m->weights));
    if (!BIND(prompt_table, 0, m)) return false;
    if (weights_find(m->weights, "adap_pooler.dense.weight")) return BIND(pooler_table, 0, m);
    m->size[LETTER_O] = m->size[LETTER_C];
    return true;
}

void model_close(Model *m) {
    free(m->gpt2);
    free(m->encoder.layer);
    free(m->decoder.layer);
    tokenizer_close(m->tokenizer);
    weights_close(m->weights);
    *m = (Model){0};
}

static bool read_model(Model *m, const Json *config, Role role, Error *err) {
    static const struct { const char *name; Kind kind; bool lm, mend; } known[] = {
        {"GPT2LMHeadModel", GPT2, true, false}, {"GPT2Model", GPT2, true, false}, {"T5ForConditionalGeneration", T5, true, false},
        {"T5EncoderModel", T5, false, false},   {"MendGPT2", GPT2, false, true},  {"MendT5", T5, false, true}};
    const char *name = weights_meta(m->weights, "architecture"), *path = weights_path(m->weights);
    for (size_t i = 0; name && i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i].name)) continue;
        if (role == LANGUAGE_MODEL && !known[i].lm) return fail(err, BAD_MODEL, "%s: %s is no language model; give a GPT-2 or T5 (-l)", path, name);
        if (role == DISTILLER && !known[i].mend) return fail(err, BAD_MODEL, "%s: %s is no distiller; give a MEND checkpoint exported with --mend (-m)", path, name);
        if (!(known[i].kind == GPT2 ? read_gpt2(m, config, err) : read_t5(m, config, known[i].lm, err))) return false;
        if (known[i].lm && m->wte_is_head) m->head = m->wte;
        return !known[i].mend || read_distiller(m, err);
    }
    return fail(err, BAD_MODEL, "%s: architecture %s is not known to mend: GPT-2, T5 and MEND checkpoints are", path, name ? name : "(none)");
}

bool model_open(Model *m, const char *path, Role role, Error *err) {
    *m = (Model){0};
    Json config = {0};
    if (!weights_open(&m->weights, path, err)) return false;
    bool ok = config_open(m->weights, &config, err) && read_model(m, &config, role, err);
    json_free(&config);
    if (ok && !weights_meta(m->weights, "tokenizer")) tokenizer_open(&m->tokenizer, m->weights, &m->no_tokenizer);
    else if (ok) ok = tokenizer_open(&m->tokenizer, m->weights, err);
    if (ok && m->tokenizer && tokenizer_size(m->tokenizer) > m->size[LETTER_V])
        ok = fail(err, BAD_MODEL, "%s: the tokenizer has %zu pieces, the embedding %zu rows; export the model again", path, tokenizer_size(m->tokenizer),
                  m->size[LETTER_V]);
    if (!ok) model_close(m);
    return ok;
}

const char *model_hash(const Model *m) {
    const char *hash = weights_meta(m->weights, "content_sha256");
    return hash ? hash : "unknown";
}

/* ==== one forward pass ============================================================================================================
 * Rows of B sequences one after another. Each sequence may go on from a past that all share: keys and values of rows read earlier. */

/* Room for more rows; at first for `expected` in all: memory that nothing was written to yet costs nothing, moving what was read does. */
static void cache_grow(Cache *c, size_t more, size_t expected) {
    if (c->n + more <= c->room) return;
    const size_t twice = 2 * c->room > expected ? 2 * c->room : expected, room = c->n + more > twice ? c->n + more : twice, E = c->E;
    size_t numbers;
    if (!size_mul(c->L * room, E, &numbers)) numbers = SIZE_MAX;
    float **part[] = {&c->k, &c->v};
    for (size_t p = 0; p < 2; p++) {
        float *to = mem_new(numbers, sizeof *to);
        for (size_t l = 0; c->n && l < c->L; l++) memcpy(to + l * room * E, *part[p] + l * c->room * E, c->n * E * sizeof *to);
        free(*part[p]);
        *part[p] = to;
    }
    c->room = room;
}

void cache_free(Cache *c) {
    free(c->k);
    free(c->v);
    *c = (Cache){0};
}

/* Rows of layer l that will be counted once all layers have theirs. */
static void cache_put(Cache *c, size_t l, const float *k, size_t ldk, const float *v, size_t ldv, size_t rows) {
    for (size_t t = 0; t < rows; t++) {
        memcpy(c->k + (l * c->room + c->n + t) * c->E, k + t * ldk, c->E * sizeof *k);
        memcpy(c->v + (l * c->room + c->n + t) * c->E, v + t * ldv, c->E * sizeof *v);
    }
}

Attention *heads_of(const Model *m, const Batch *b, const Heads *h, const Cache *past, size_t l) {
    const size_t D = m->D, E = m->size[LETTER_E], Tp = past ? past->n : 0;
    Attention *head = mem_new(b->B * m->H, sizeof *head);
    for (size_t s = 0; s < b->B; s++)
        for (size_t i = 0; i < m->H; i++) {
            const size_t row = b->start[s], T = b->start[s + 1] - row;
            Attention *a = &head[s * m->H + i];
            *a = (Attention){.q = h->q + row * h->ldq + i * D, .k = h->k + row * h->ldk + i * D, .v = h->v + row * h->ldk + i * D,
                             .ctx = h->ctx + row * E + i * D, .Tq = T, .Tk = Tp + T, .Tp = Tp, .D = D, .ldq = h->ldq, .ldk = h->ldk, .ldv = h->ldk,
                             .ldp = E, .ldc = E, .bias = h->bias ? h->bias + i * h->head_bias : NULL, .ldbias = h->ldbias, .scale = h->scale,
                             .causal = h->causal};
            if (Tp) a->past_k = past->k + l * past->room * E + i * D, a->past_v = past->v + l * past->room * E + i * D;
        }
    return head;
}

/* ctx = softmax(scale q k^T + bias) v for every head of every sequence, the past of layer l before it (or NULL). name: the layer's, for its taps. */
static void attend(const Model *m, const Batch *b, const Heads *h, const Cache *past, size_t l, const char *name) {
    Attention *head = heads_of(m, b, h, past, l);
    attention(head, b->B * m->H);
    TAP_ATTENTION(head, b->B * m->H, name, l);
    free(head);
}

Attention *cross_heads_of(const Model *m, const Batch *b, const float *q, float *ctx, const Cache *cross, size_t l) {
    const size_t D = m->D, E = m->size[LETTER_E];
    Attention *head = mem_new(m->H, sizeof *head);
    for (size_t i = 0; i < m->H; i++) {
        const size_t at = l * cross->room * E + i * D;
        head[i] = (Attention){.q = q + i * D, .k = cross->k + at, .v = cross->v + at, .ctx = ctx + i * D, .Tq = b->N, .Tk = cross->n, .D = D, .ldq = E,
                              .ldk = E, .ldv = E, .ldc = E, .scale = 1};
    }
    return head;
}

/* The same over the encoder's keys and values alone. */
static void attend_cross(const Model *m, const Batch *b, const float *q, float *ctx, const Cache *cross, size_t l) {
    Attention *head = cross_heads_of(m, b, q, ctx, cross, l);
    attention(head, m->H);
    TAP_ATTENTION(head, m->H, "decoder.block.%zu.layer.1.EncDecAttention", l);
    free(head);
}

/* The embedding of one piece: a row of [V,C], or a column of the head [C,V]. */
void embed_piece(const Model *m, uint32_t id, float *x) {
    const size_t C = m->size[LETTER_C], V = m->size[LETTER_V];
    for (size_t c = 0; c < C; c++) x[c] = m->wte_is_head ? m->wte[c * V + id] : m->wte[id * C + c];
}

/* ==== GPT-2 =======================================================================================================================
 * Radford et al. 2019: L times attention to what came before and feed-forward, each normalised before and added to its input. */

Heads gpt2_heads(const Model *m, const Batch *b, const Gpt2Rows *r, const float *mask) {
    const size_t C = m->size[LETTER_C];
    return (Heads){.q = r->qkv, .k = r->qkv + C, .v = r->qkv + 2 * C, .ldq = 3 * C, .ldk = 3 * C, .ctx = r->ctx, .scale = 1 / sqrt((double)m->D), .causal = true,
                   .bias = mask, .ldbias = (ptrdiff_t)b->N};
}

void gpt2_layer(const Model *m, const Batch *b, size_t l, const Gpt2Rows *r, const float *x, Cache *past, bool keep, const float *mask) {
    const size_t N = b->N, C = m->size[LETTER_C], F = m->size[LETTER_F];
    const Gpt2Layer *w = &m->gpt2[l];
    const Heads heads = gpt2_heads(m, b, r, mask);
    layernorm(r->ln1, x, w->ln1_g, w->ln1_b, m->eps, N, C);           TAP(r->ln1, N, C, "h.%zu.ln_1", l);
    linear(r->qkv, r->ln1, w->qkv_w, w->qkv_b, N, C, 3 * C);          TAP(r->qkv, N, 3 * C, "h.%zu.attn.c_attn", l);
    if (keep) cache_put(past, l, heads.k, heads.ldk, heads.v, heads.ldk, N);
    attend(m, b, &heads, past, l, "h.%zu.attn");                      TAP(r->ctx, N, C, "h.%zu.attn.ctx", l);
    linear(r->proj, r->ctx, w->o_w, w->o_b, N, C, C);                 TAP(r->proj, N, C, "h.%zu.attn.c_proj", l);
    residual(r->mid, r->proj, x, N * C);                              TAP(r->mid, N, C, "h.%zu.resid_mid", l);
    layernorm(r->ln2, r->mid, w->ln2_g, w->ln2_b, m->eps, N, C);      TAP(r->ln2, N, C, "h.%zu.ln_2", l);
    linear(r->up, r->ln2, w->up_w, w->up_b, N, C, F);                 TAP(r->up, N, F, "h.%zu.mlp.c_fc", l);
    activation(m->act, r->act, r->up, N * F);                         TAP(r->act, N, F, "h.%zu.mlp.act", l);
    linear(r->proj, r->act, w->down_w, w->down_b, N, F, C);           TAP(r->proj, N, C, "h.%zu.mlp.c_proj", l);
    residual(r->out, r->proj, r->mid, N * C);                         TAP(r->out, N, C, "h.%zu.resid_out", l);
}

void add_positions(const Model *m, const Batch *b, size_t past, float *x) {
    const size_t C = m->size[LETTER_C];
    for (size_t s = 0; s < b->B; s++)
        for (size_t n = b->start[s]; n < b->start[s + 1]; n++) embedding_sum(x + n * C, x + n * C, m->wpe + (past + n - b->start[s]) * C, NULL, C);
}

void gpt2_forward(const Model *m, const Batch *b, Cache *past, bool keep, const float *mask, float *x) {
    const size_t N = b->N, C = m->size[LETTER_C], F = m->size[LETTER_F];
    float *y = mem_new(N, C * sizeof *y), *qkv = mem_new(N, 3 * C * sizeof *y), *ctx = mem_new(N, C * sizeof *y), *h = mem_new(N, F * sizeof *y);
    const Gpt2Rows rows = {.ln1 = y, .qkv = qkv, .ctx = ctx, .proj = y, .mid = x, .ln2 = y, .up = h, .act = h, .out = x};
    if (keep) cache_grow(past, N, m->size[LETTER_P]);
    TAP(x, N, C, "wte");
    add_positions(m, b, past->n, x);
    TAP(x, N, C, "embeddings");
    for (size_t l = 0; l < m->L; l++) gpt2_layer(m, b, l, &rows, x, past, keep, mask);
    layernorm(x, x, m->ln_g, m->ln_b, m->eps, N, C);                  TAP(x, N, C, "ln_f");
    if (keep) past->n += N;
    free(y), free(qkv), free(ctx), free(h);
}

/* ==== T5 ==========================================================================================================================
 * Raffel et al. 2020: an encoder and a decoder; no biases, RMS norms, positions as a learned bias on the scores by distance. */

/* The bucket of a key at distance d = j - i: half of the buckets exact, the others up to max_distance logarithmic. The reference computes the
 * logarithm in float32, also in a float64 model; so do we, correctly rounded. */
size_t position_bucket(const Model *m, ptrdiff_t d, bool decoder) {
    size_t buckets = m->size[LETTER_R], first = 0, distance;
    if (!decoder) {
        buckets /= 2;
        first = d > 0 ? buckets : 0;
        distance = (size_t)(d < 0 ? -d : d);
    } else distance = d < 0 ? (size_t)-d : 0;
    const size_t exact = buckets / 2;
    if (distance < exact) return first + distance;
    const float log_distance = cr_one(CR_LOG, (float)distance / (float)exact), log_range = cr_one(CR_LOG, (float)m->max_distance / (float)exact);
    const size_t bucket = exact + (size_t)(log_distance / log_range * (float)(buckets - exact));
    return first + (bucket < buckets ? bucket : buckets - 1);
}

/* bias [H][2*reach]: for each head the bias at distance d is element d + reach, -reach <= d < reach. */
float *position_bias(const Model *m, const T5Stack *s, size_t reach) {
    const size_t H = m->H;
    float *bias = mem_new(H * 2, reach * sizeof *bias);
    for (size_t i = 0; i < 2 * reach; i++) {
        const size_t bucket = position_bucket(m, (ptrdiff_t)i - (ptrdiff_t)reach, s->decoder);
        for (size_t h = 0; h < H; h++) bias[h * 2 * reach + i] = s->position_w[bucket * H + h];
    }
    return bias;
}

size_t longest(const Batch *b) {
    size_t T = 0;
    for (size_t s = 0; s < b->B; s++) T = b->start[s + 1] - b->start[s] > T ? b->start[s + 1] - b->start[s] : T;
    return T;
}

Heads t5_heads(const Model *m, const T5Stack *stack, const Batch *b, const T5Rows *r, const float *bias, size_t reach, size_t past) {
    const size_t E = m->size[LETTER_E], N = b->N;
    Heads h = {.q = r->q, .k = r->k, .v = r->v, .ldq = E, .ldk = E, .ctx = r->ctx, .scale = 1, .causal = stack->decoder, .bias = bias, .ldbias = (ptrdiff_t)N, .head_bias = N * N};
    if (reach) h.bias = bias + (reach - past), h.ldbias = -1, h.head_bias = 2 * reach; /* query i stands at past + i */
    return h;
}

void t5_layer(const Model *m, const T5Stack *stack, const Batch *b, size_t l, const T5Rows *r, const Heads *self, float *x, Cache *past, bool keep, const Cache *cross) {
    const size_t N = b->N, C = m->size[LETTER_C], E = m->size[LETTER_E], F = m->size[LETTER_F];
    const T5Layer *w = &stack->layer[l];
    const char *side = stack->decoder ? "decoder" : "encoder", *heads = stack->decoder ? "decoder.block.%zu.layer.0.SelfAttention" : "encoder.block.%zu.layer.0.SelfAttention";
    const int last = stack->decoder ? 2 : 1; /* number of the feed-forward layer in its block */
    rmsnorm(r->ln1, x, w->self.ln_g, m->eps, N, C);                   TAP(r->ln1, N, C, "%s.block.%zu.layer.0.layer_norm", side, l);
    linear(r->q, r->ln1, w->self.q, NULL, N, C, E);                   TAP(r->q, N, E, "%s.block.%zu.layer.0.SelfAttention.q", side, l);
    linear(r->k, r->ln1, w->self.k, NULL, N, C, E);                   TAP(r->k, N, E, "%s.block.%zu.layer.0.SelfAttention.k", side, l);
    linear(r->v, r->ln1, w->self.v, NULL, N, C, E);                   TAP(r->v, N, E, "%s.block.%zu.layer.0.SelfAttention.v", side, l);
    if (keep) cache_put(past, l, r->k, E, r->v, E, N);
    attend(m, b, self, past, l, heads);                               TAP(r->ctx, N, E, "%s.block.%zu.layer.0.SelfAttention.ctx", side, l);
    linear(r->proj, r->ctx, w->self.o, NULL, N, E, C);                TAP(r->proj, N, C, "%s.block.%zu.layer.0.SelfAttention.o", side, l);
    residual(r->mid, r->proj, x, N * C);                              TAP(r->mid, N, C, "%s.block.%zu.layer.0.residual", side, l);
    if (stack->decoder) {
        rmsnorm(r->cross_ln, r->mid, w->cross.ln_g, m->eps, N, C);    TAP(r->cross_ln, N, C, "%s.block.%zu.layer.1.layer_norm", side, l);
        linear(r->cross_q, r->cross_ln, w->cross.q, NULL, N, C, E);   TAP(r->cross_q, N, E, "%s.block.%zu.layer.1.EncDecAttention.q", side, l);
        attend_cross(m, b, r->cross_q, r->cross_ctx, cross, l);       TAP(r->cross_ctx, N, E, "%s.block.%zu.layer.1.EncDecAttention.ctx", side, l);
        linear(r->proj, r->cross_ctx, w->cross.o, NULL, N, E, C);     TAP(r->proj, N, C, "%s.block.%zu.layer.1.EncDecAttention.o", side, l);
        residual(r->cross_mid, r->proj, r->mid, N * C);               TAP(r->cross_mid, N, C, "%s.block.%zu.layer.1.residual", side, l);
    }
    const float *mid = stack->decoder ? r->cross_mid : r->mid;
    rmsnorm(r->ln2, mid, w->ln_g, m->eps, N, C);                      TAP(r->ln2, N, C, "%s.block.%zu.layer.%d.layer_norm", side, l, last);
    linear(r->up, r->ln2, w->up, NULL, N, C, F);                      TAP(r->up, N, F, "%s.block.%zu.layer.%d.DenseReluDense.%s", side, l, last, w->gate ? "wi_0" : "wi");
    if (w->gate) {
        linear(r->gate, r->ln2, w->gate, NULL, N, C, F);              TAP(r->gate, N, F, "%s.block.%zu.layer.%d.DenseReluDense.wi_1", side, l, last);
        activation_gated(m->act, r->act, r->up, r->gate, N * F);
    } else activation(m->act, r->act, r->up, N * F);
    TAP(r->act, N, F, "%s.block.%zu.layer.%d.DenseReluDense.act", side, l, last);
    linear(r->proj, r->act, w->down, NULL, N, F, C);                  TAP(r->proj, N, C, "%s.block.%zu.layer.%d.DenseReluDense.wo", side, l, last);
    residual(r->out, r->proj, mid, N * C);                            TAP(r->out, N, C, "%s.block.%zu.layer.%d.residual", side, l, last);
}

float *masked_bias(const Model *m, const float *bias, size_t reach, const float *mask, size_t N) {
    float *masked = mem_new(m->H * N, N * sizeof *masked);
    for (size_t i = 0; i < m->H * N * N; i++) {
        const size_t head = i / (N * N), row = i / N % N, key = i % N;
        masked[i] = mask[row * N + key] + bias[head * 2 * reach + reach + key - row];
    }
    return masked;
}

void t5_forward(const Model *m, const T5Stack *stack, const Batch *b, Cache *past, bool keep, const Cache *cross, const float *mask, float *x) {
    const size_t N = b->N, C = m->size[LETTER_C], E = m->size[LETTER_E], F = m->size[LETTER_F], reach = past->n + longest(b);
    float *y = mem_new(N, C * sizeof *y), *q = mem_new(N, E * sizeof *y), *k = mem_new(N, E * sizeof *y), *v = mem_new(N, E * sizeof *y);
    float *ctx = mem_new(N, E * sizeof *y), *h = mem_new(N, F * sizeof *y), *g = mem_new(N, F * sizeof *y), *bias = position_bias(m, stack, reach);
    float *masked = mask ? masked_bias(m, bias, reach, mask, N) : NULL;
    const T5Rows rows = {.ln1 = y, .q = q, .k = k, .v = v, .ctx = ctx, .proj = y, .mid = x, .cross_ln = y, .cross_q = q, .cross_ctx = ctx, .cross_mid = x, .ln2 = y,
                         .up = h, .gate = g, .act = h, .out = x};
    const Heads self = mask ? t5_heads(m, stack, b, &rows, masked, 0, 0) : t5_heads(m, stack, b, &rows, bias, reach, past->n);
    TAP(bias, m->H, 2 * reach, "%s.block.0.layer.0.SelfAttention.relative_attention_bias", stack->decoder ? "decoder" : "encoder");
    if (keep) cache_grow(past, N, 0);
    TAP(x, N, C, "%s.embed_tokens", stack->decoder ? "decoder" : "encoder");
    for (size_t l = 0; l < stack->L; l++) t5_layer(m, stack, b, l, &rows, &self, x, past, keep, cross);
    rmsnorm(x, x, stack->ln_g, m->eps, N, C);                         TAP(x, N, C, "%s.final_layer_norm", stack->decoder ? "decoder" : "encoder");
    if (keep) past->n += N;
    free(y), free(q), free(k), free(v), free(ctx), free(h), free(g), free(bias), free(masked);
}

Cache cross_cache(const Model *m, const float *e, size_t N) {
    const size_t C = m->size[LETTER_C], E = m->size[LETTER_E];
    Cache c = {.E = E, .L = m->decoder.L};
    cache_grow(&c, N, N);
    for (size_t l = 0; l < c.L; l++) {
        linear(c.k + l * c.room * E, e, m->decoder.layer[l].cross.k, NULL, N, C, E);
        TAP(c.k + l * c.room * E, N, E, "decoder.block.%zu.layer.1.EncDecAttention.k", l);
        linear(c.v + l * c.room * E, e, m->decoder.layer[l].cross.v, NULL, N, C, E);
        TAP(c.v + l * c.room * E, N, E, "decoder.block.%zu.layer.1.EncDecAttention.v", l);
    }
    c.n = N;
    return c;
}

/* ==== a language model that reads =================================================================================================
 * What it has read so far, and log p of what may come next. A text read in parts gives the bits of the text read at once. */

State state_new(const Model *m) {
    State s = {.self = {.E = m->size[LETTER_E], .L = m->kind == GPT2 ? m->L : m->decoder.L}};
    s.last = mem_new(m->size[LETTER_C], sizeof *s.last);
    return s;
}

void state_free(State *s) {
    cache_free(&s->self);
    cache_free(&s->cross);
    free(s->last);
    *s = (State){0};
}

float *embed(const Model *m, const uint32_t *id, size_t n) {
    const size_t C = m->size[LETTER_C];
    float *x = mem_new(n, C * sizeof *x);
    for (size_t i = 0; i < n; i++) embed_piece(m, id[i], x + i * C);
    return x;
}

static bool room_for(const Model *m, size_t have, size_t more, Error *err) {
    const size_t P = m->size[LETTER_P];
    if (m->kind == T5 || (have <= P && more <= P - have)) return true;
    return fail(err, BAD_INPUT, "%s: the prompt is too long: %zu rows read and %zu to come, the model has %zu positions", weights_path(m->weights), have, more, P);
}

/* Rows through the decoder: in embeddings, out hidden states. */
static void decode(const Model *m, const Batch *b, Cache *past, bool keep, const Cache *cross, float *x) {
    if (m->kind == GPT2) gpt2_forward(m, b, past, keep, NULL, x);
    else t5_forward(m, &m->decoder, b, past, keep, cross, NULL, x);
}

bool state_read(const Model *m, State *s, float *x, size_t n, Error *err) {
    const size_t start[] = {0, n}, C = m->size[LETTER_C];
    if (n == 0) return true;
    if (!room_for(m, s->self.n, n, err)) return false;
    decode(m, &(Batch){n, 1, start}, &s->self, true, &s->cross, x);
    memcpy(s->last, x + (n - 1) * C, C * sizeof *x);
    return true;
}

bool state_read_ids(const Model *m, State *s, const uint32_t *id, size_t n, Error *err) {
    float *x = embed(m, id, n);
    const bool ok = state_read(m, s, x, n, err);
    free(x);
    return ok;
}

bool state_encode(const Model *m, State *s, float *x, size_t n, Error *err) {
    const size_t start[] = {0, n};
    if (n == 0) return fail(err, BAD_INPUT, "the encoder of a T5 has nothing to read: give demonstrations (-d), vectors (-v), or --encoder-input");
    Cache none = {.E = m->size[LETTER_E], .L = m->encoder.L};
    t5_forward(m, &m->encoder, &(Batch){n, 1, start}, &none, false, NULL, NULL, x);
    cache_free(&s->cross);
    s->cross = cross_cache(m, x, n);
    s->self.n = 0;
    return state_read_ids(m, s, &m->start_id, 1, err);
}

static bool all_finite(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

bool logits(const Model *m, const float *x, size_t n, float *l, Error *err) {
    const size_t C = m->size[LETTER_C], V = m->size[LETTER_V];
    float *scaled = NULL;
    if (m->scale_head) {
        const double scale = 1 / sqrt((double)C);
        scaled = mem_new(n, C * sizeof *scaled);
        for (size_t i = 0; i < n * C; i++) scaled[i] = (float)((double)x[i] * scale);
    }
    if (scaled) TAP(scaled, n, C, "decoder.scaled");
    linear(l, scaled ? scaled : x, m->head, NULL, n, C, V);
    TAP(l, n, V, "lm_head");
    free(scaled);
    if (all_finite(l, n * V)) return true;
    return fail(err, BAD_MODEL, "%s: the weights give NaN or infinity; the file is damaged or was trained to that", weights_path(m->weights));
}

/* lp[i] = log p(target[i]) after the hidden state number row[i] of x [N,C], i < n. In blocks of rows, so that memory stays bounded. */
static bool row_logprobs(const Model *m, const float *x, size_t N, const size_t *row, const uint32_t *target, size_t n, float *lp, Error *err) {
    enum { ROWS = 96 };
    const size_t C = m->size[LETTER_C], V = m->size[LETTER_V];
    float *l = mem_new(N < ROWS ? N : ROWS, V * sizeof *l), lse[ROWS];
    bool ok = true;
    for (size_t from = 0; ok && from < N; from += ROWS) {
        const size_t rows = N - from < ROWS ? N - from : ROWS;
        ok = logits(m, x + from * C, rows, l, err);
        if (ok) logsumexp(lse, l, rows, V);
        for (size_t i = 0; ok && i < n; i++)
            if (row[i] >= from && row[i] - from < rows) lp[i] = l[(row[i] - from) * V + target[i]] - lse[row[i] - from];
    }
    free(l);
    return ok;
}

bool target_logprobs(const Model *m, const float *x, const uint32_t *target, size_t n, float *lp, Error *err) {
    size_t *row = mem_new(n, sizeof *row);
    for (size_t i = 0; i < n; i++) row[i] = i;
    const bool ok = row_logprobs(m, x, n, row, target, n, lp, err);
    free(row);
    return ok;
}

/* ==== prompts =====================================================================================================================
 * MetaICL's data format and rules (Min et al. 2022): examples to pieces, pairs one behind the other, what is cut and where. */

void ids_add(Ids *ids, const uint32_t *id, size_t n) {
    if (ids->n + n > ids->cap) ids->at = mem_resize(ids->at, ids->cap = 2 * (ids->n + n), sizeof *ids->at);
    if (n) memcpy(ids->at + ids->n, id, n * sizeof *id);
    ids->n += n;
}

void ids_free(Ids *ids) {
    free(ids->at);
    *ids = (Ids){0};
}

void example_free(Example *e) {
    bytes_free(&e->task);
    bytes_free(&e->input);
    bytes_free(&e->output);
    texts_free(&e->options);
}

void examples_free(Examples *e) {
    for (size_t i = 0; i < e->n; i++) example_free(&e->at[i]);
    free(e->at);
    *e = (Examples){0};
}

Format format_of(const Model *m, size_t limit, bool channel, bool encoder_input) {
    const size_t P = m->size[LETTER_P];
    const bool small = m->kind == GPT2 && P < limit;
    return (Format){channel, encoder_input, small ? P / 4 : EXAMPLE_LIMIT, small ? P : limit, false, false};
}

static size_t budget(const Format *f) { return f->limit > f->per_example + 1 ? f->limit - f->per_example - 1 : 0; }

bool pieces_of(const Model *m, const Bytes *text, bool blank, Ids *out, Error *err) {
    Bytes with = {0};
    Pieces p = {0};
    if (!m->tokenizer) return *err = m->no_tokenizer, false;
    if (blank) bytes_add(&with, " ", 1);
    bytes_add(&with, text->at ? text->at : "", text->len);
    const bool ok = tokenizer_encode(m->tokenizer, with.at, with.len, TOK_ADDED, &p, err);
    if (ok) ids_add(out, p.id, p.n);
    pieces_free(&p);
    bytes_free(&with);
    return ok;
}

/* Cut an example so that two more pieces than its own fit: x loses its end. MetaICL's tasks with instructions (their names begin with inst:) have
 * long outputs; there it is y if it is the longer, and in two of them both. */
static void cut_example(const Bytes *task, Ids *x, Ids *y, const Format *f) {
    const char *name = task->at ? task->at : "";
    const size_t most = f->per_example > 2 ? f->per_example - 2 : 0, half = f->per_example / 2;
    const bool inst = strncmp(name, "inst:", 5) == 0, both = strncmp(name, "inst:piqa", 9) == 0 || strncmp(name, "inst:yahoo_answers_topics", 25) == 0;
    if (x->n + y->n <= most) return;
    if (both) x->n = x->n < half ? x->n : half, y->n = y->n < most - half ? y->n : most - half;
    else if (inst && x->n < y->n) y->n = x->n < most ? most - x->n : 0;
    else x->n = y->n < most ? most - y->n : 0;
}

/* The pieces of one demonstration. Errors: BAD_INPUT. */
bool demonstration(const Model *m, const Example *e, const Format *f, Ids *x, Ids *y, Error *err) {
    x->n = y->n = 0;
    if (!pieces_of(m, &e->input, false, x, err) || !pieces_of(m, &e->output, true, y, err)) return false;
    cut_example(&e->task, x, y, f);
    if (y->n + 2 > f->per_example) return fail(err, BAD_INPUT, "the output of a demonstration has %zu pieces; %zu are possible", y->n, f->per_example - 2);
    if (f->no_input) x->n = 0;
    if (f->no_label) y->n = 0;
    return true;
}

bool demonstrations(const Model *m, const Examples *d, size_t from, size_t to, const Format *f, Ids *out, Bytes *is_label, Error *err) {
    Ids x = {0}, y = {0}, *first = f->channel ? &y : &x, *second = f->channel ? &x : &y;
    const size_t most = budget(f);
    bool ok = true, full = false;
    for (size_t i = from; ok && !full && i < to; i++) {
        ok = demonstration(m, &d->at[i], f, &x, &y, err);
        if (!ok) break;
        full = out->n + x.n + y.n >= most;
        if (full && out->n + second->n >= most) break;
        if (full) first->n = most - 1 - out->n - second->n;
        ids_add(out, first->at, first->n);
        ids_add(out, second->at, second->n);
        for (size_t t = 0; is_label && t < first->n + second->n; t++) bytes_add(is_label, t < first->n ? "\0" : "\1", 1);
    }
    ids_free(&x);
    ids_free(&y);
    return ok;
}

/* One line of a JSON lines file. Errors: BAD_INPUT without the place. */
static bool read_example(const Bytes *line, Example *e, Error *err) {
    Json j = {0};
    if (!json_parse(line->at ? line->at : "", line->len, &j, err)) return false;
    const Json *task = json_get(&j, "task"), *input = json_get(&j, "input"), *output = json_get(&j, "output"), *options = json_get(&j, "options");
    bool ok = true;
    if (j.type != JSON_OBJECT) ok = fail(err, BAD_INPUT, "an object with input, output and options is wanted, not %s", json_type_name(j.type));
    else if (!input || input->type != JSON_STRING) ok = fail(err, BAD_INPUT, "\"input\" is missing or no text");
    else if (output && output->type != JSON_STRING) ok = fail(err, BAD_INPUT, "\"output\" is no text");
    else if (options && options->type != JSON_ARRAY) ok = fail(err, BAD_INPUT, "\"options\" is no array");
    for (size_t i = 0; ok && options && i < options->len; i++) {
        if (options->item[i].type != JSON_STRING) ok = fail(err, BAD_INPUT, "option %zu is no text", i);
        else if (texts_hold(&e->options, options->item[i].text, options->item[i].len)) ok = fail(err, BAD_INPUT, "option %zu stands there twice", i);
        else texts_add(&e->options, options->item[i].text, options->item[i].len);
    }
    if (ok) {
        bytes_set(&e->input, input->text, input->len);
        bytes_set(&e->output, output ? output->text : "", output ? output->len : 0);
        e->has_output = output != NULL;
        if (task && task->type == JSON_STRING) bytes_set(&e->task, task->text, task->len);
    }
    json_free(&j);
    return ok;
}

bool read_examples(const char *path, bool need_output, Examples *out, Error *err) {
    Bytes text = {0}, line = {0};
    size_t number = 0, at = 0;
    bool ok = read_text(path, &text, err);
    while (ok && at < text.len) {
        const char *end = memchr(text.at + at, '\n', text.len - at);
        const size_t len = end ? (size_t)(end - text.at) - at : text.len - at;
        Example e = {0};
        Error detail;
        number++;
        bytes_set(&line, text.at + at, len);
        at += len + 1;
        if (strspn(line.at, " \t\r") == line.len) continue;
        ok = read_example(&line, &e, &detail) || fail(err, BAD_INPUT, "%s: line %zu: %.800s", path, number, detail.text);
        if (ok && need_output && !e.has_output) ok = fail(err, BAD_INPUT, "%s: line %zu: a demonstration needs an \"output\"", path, number);
        if (!ok) example_free(&e);
        else {
            if (out->n == out->cap) out->at = mem_resize(out->at, out->cap = out->cap ? 2 * out->cap : 16, sizeof *out->at);
            out->at[out->n++] = e;
        }
    }
    if (ok && out->n == 0) ok = fail(err, BAD_INPUT, "%s: holds no example", path);
    bytes_free(&text);
    bytes_free(&line);
    if (!ok) examples_free(out);
    return ok;
}

/* ==== distillation ================================================================================================================
 * [E(demos) ; P] through the distiller, the last U rows, the pooler if the widths differ (section 3.2 of the paper; MyGPT2 in the release). */

/* [N,N]: -infinity where row i must not look at row j. Label rows see label pieces and label rows; the other rows of P, if separated, the others. */
float *separation(const Distilling *d, const char *is_label, size_t n, size_t U) {
    const size_t N = n + U, labels = N - d->label_rows;
    float *mask = mem_new(N, N * sizeof *mask);
    for (size_t i = n; i < N; i++)
        for (size_t j = 0; j < N; j++) {
            const bool of_label = j < n ? is_label[j] != 0 : j >= labels;
            if (i >= labels ? !of_label : d->separate_input && of_label) mask[i * N + j] = -(float)INFINITY;
        }
    return mask;
}

bool distill_group(const Model *m, const Distilling *d, const Ids *demos, const Bytes *is_label, float *s, Error *err) {
    const size_t C = m->size[LETTER_C], U = m->size[LETTER_U], O = m->size[LETTER_O], n = demos->n, N = n + U, start[] = {0, N};
    if (!room_for(m, n, U, err)) return false;
    const Batch b = {N, 1, start};
    Cache none = {.E = m->size[LETTER_E], .L = m->kind == GPT2 ? m->L : m->encoder.L};
    float *x = mem_new(N, C * sizeof *x), *mask = d->label_rows ? separation(d, is_label->at ? is_label->at : "", n, U) : NULL;
    for (size_t i = 0; i < n; i++) embed_piece(m, demos->at[i], x + i * C);
    memcpy(x + n * C, m->prompt, U * C * sizeof *x);
    if (m->kind == GPT2) gpt2_forward(m, &b, &none, false, mask, x);
    else t5_forward(m, &m->encoder, &b, &none, false, NULL, mask, x);
    if (m->pool_w) {
        linear(s, x + n * C, m->pool_w, m->pool_b, U, C, O);          TAP(s, U, O, "adap_pooler.dense");
        activation(CR_TANH, s, s, U * O);                             TAP(s, U, O, "adap_pooler.act");
    } else memcpy(s, x + n * C, U * C * sizeof *s);
    free(x);
    free(mask);
    return all_finite(s, U * O) || fail(err, BAD_MODEL, "%s: the weights give NaN or infinity; the file is damaged or was trained to that", weights_path(m->weights));
}

size_t group_start(const Distilling *d, size_t n, size_t g) { return (g * n + d->groups - 1) / d->groups; }

bool distill(const Model *m, const Examples *demos, const Distilling *d, const Format *as, Vectors *out, Error *err) {
    const size_t U = m->size[LETTER_U], O = m->size[LETTER_O];
    Format f = format_of(m, DISTILLER_LIMIT, as->channel, false);
    f.no_input = as->no_input, f.no_label = as->no_label;
    bool ok = true;
    if (d->label_rows > U) return fail(err, BAD_USAGE, "--label-rows %zu: the distiller has %zu rows", d->label_rows, U);
    if (d->groups > demos->n) return fail(err, BAD_USAGE, "--groups %zu: there are %zu demonstrations", d->groups, demos->n);
    *out = (Vectors){mem_new(d->groups * U, O * sizeof *out->at), 0, O};
    for (size_t g = 0; ok && g < d->groups; g++) {
        Ids ids = {0};
        Bytes is_label = {0};
        ok = demonstrations(m, demos, group_start(d, demos->n, g), group_start(d, demos->n, g + 1), &f, &ids, &is_label, err) && distill_group(m, d, &ids, &is_label, out->at + out->n * O, err);
        if (ok) out->n += U;
        ids_free(&ids);
        bytes_free(&is_label);
    }
    if (!ok) free(out->at), *out = (Vectors){0};
    return ok;
}

/* ==== scores ======================================================================================================================
 * score(o) = mean over the pieces of o of log p(piece | prefix, the pieces of o before it); the highest wins, of equals the first. */

void context_free(Context *c) {
    ids_free(&c->demos);
    free(c->vectors.at);
    state_free(&c->state);
}

/* Embeddings of what stands before a query, then of more pieces; *n rows. */
static float *context_rows(const Context *c, const Ids *more, size_t *n) {
    const size_t C = c->lm->size[LETTER_C], U = c->vectors.n, K = c->demos.n, M = more ? more->n : 0;
    *n = U + K + M;
    float *x = mem_new(*n, C * sizeof *x);
    if (U) memcpy(x, c->vectors.at, U * C * sizeof *x);
    for (size_t i = 0; i < K; i++) embed_piece(c->lm, c->demos.at[i], x + (U + i) * C);
    for (size_t i = 0; i < M; i++) embed_piece(c->lm, more->at[i], x + (U + K + i) * C);
    return x;
}

/* A T5's encoder reads at most TEACHER_LIMIT pieces, the last are cut; vectors are not. */
static size_t encoder_rows(const Context *c, size_t n) { return c->vectors.n || n < TEACHER_LIMIT ? n : TEACHER_LIMIT; }

bool context_begin(Context *c, Error *err) {
    size_t n;
    bool ok = true;
    c->state = state_new(c->lm);
    float *x = context_rows(c, NULL, &n);
    if (c->vectors.n && c->vectors.O != c->lm->size[LETTER_C])
        ok = fail(err, BAD_MODEL, "the vectors are %zu wide, the model %s reads %zu: they were made for another", c->vectors.O, weights_path(c->lm->weights),
                  c->lm->size[LETTER_C]);
    else if (c->lm->kind == GPT2) ok = state_read(c->lm, &c->state, x, n, err);
    else if (!c->format.encoder_input) ok = state_encode(c->lm, &c->state, x, encoder_rows(c, n), err);
    free(x);
    return ok;
}

/* score[b] of `after[b]` pieces given the state and then `before[b]` pieces, B sequences in one batch. */
static bool score_batch(const Model *m, const State *s, const Ids *before, const Ids *after, size_t B, double *score, Error *err) {
    const size_t C = m->size[LETTER_C];
    size_t *start = mem_new(B + 1, sizeof *start), targets = 0, most = 0;
    for (size_t b = 0; b < B; b++) {
        const size_t n = before[b].n + after[b].n;
        start[b + 1] = start[b] + (n ? n - 1 : 0); /* nothing follows the last piece */
        targets += after[b].n;
        most = n > most ? n : most;
    }
    float *x = mem_new(start[B], C * sizeof *x), *rows = mem_new(targets + 1, C * sizeof *rows), *lp = mem_new(targets, sizeof *lp);
    uint32_t *target = mem_new(targets, sizeof *target);
    size_t *row = mem_new(targets, sizeof *row), N = 0, last = SIZE_MAX; /* the state's last row is there once for all that follow it at once */
    bool ok = room_for(m, s->self.n, most, err);
    for (size_t b = 0; b < B; b++)
        for (size_t i = 0; i < start[b + 1] - start[b]; i++)
            embed_piece(m, i < before[b].n ? before[b].at[i] : after[b].at[i - before[b].n], x + (start[b] + i) * C);
    if (ok && start[B]) decode(m, &(Batch){start[B], B, start}, (Cache *)&s->self, false, &s->cross, x);
    size_t t = 0;
    for (size_t b = 0; ok && b < B; b++)
        for (size_t i = 0; i < after[b].n; i++, t++) {
            const size_t at = before[b].n + i; /* predicted by the row before it */
            if (at == 0 && s->self.n == 0) ok = fail(err, BAD_INPUT, "the first piece of an option has nothing before it: the input is empty");
            target[t] = after[b].at[i];
            row[t] = at == 0 && last < N ? last : N;
            if (row[t] < N) continue;
            memcpy(rows + N * C, at ? x + (start[b] + at - 1) * C : s->last, C * sizeof *rows);
            if (at == 0) last = N;
            N++;
        }
    ok = ok && row_logprobs(m, rows, N, row, target, targets, lp, err);
    t = 0;
    for (size_t b = 0; ok && b < B; b++) {
        double sum = 0;
        for (size_t i = 0; i < after[b].n; i++) sum += (double)lp[t++];
        score[b] = sum / (double)after[b].n;
    }
    free(start), free(x), free(rows), free(lp), free(target), free(row);
    return ok;
}

/* T5 with x on the encoder's side: [context ; x] to the encoder, then the other half of the pair is scored. */
static bool score_encoded(Context *c, const Ids *x, const Ids *option, size_t B, double *score, Error *err) {
    const Ids nothing = {0};
    bool ok = true;
    for (size_t b = 0; ok && b < (c->format.channel ? B : 1); b++) {
        size_t n;
        float *rows = context_rows(c, c->format.channel ? &option[b] : x, &n);
        ok = state_encode(c->lm, &c->state, rows, encoder_rows(c, n), err);
        free(rows);
        if (ok && c->format.channel) ok = score_batch(c->lm, &c->state, &nothing, x, 1, score + b, err);
    }
    Ids *empty = mem_new(B, sizeof *empty);
    if (ok && !c->format.channel) ok = score_batch(c->lm, &c->state, empty, option, B, score, err);
    free(empty);
    return ok;
}

/* A GPT-2 prompt of pieces that is longer than the limit loses pieces on the left; then nothing is shared between options. */
static bool score_cut(const Context *c, const Ids *x, const Ids *option, size_t B, double *score, Error *err) {
    bool ok = true;
    for (size_t b = 0; ok && b < B; b++) {
        const Ids *first = c->format.channel ? &option[b] : x, *second = c->format.channel ? x : &option[b];
        Ids all = {0};
        State s = state_new(c->lm);
        ids_add(&all, c->demos.at, c->demos.n);
        ids_add(&all, first->at, first->n);
        const size_t room = c->format.limit > second->n ? c->format.limit - second->n : 0, cut = all.n > room ? all.n - room : 0;
        const Ids before = {all.at + cut, all.n - cut, 0};
        ok = score_batch(c->lm, &s, &before, second, 1, score + b, err);
        state_free(&s);
        ids_free(&all);
    }
    return ok;
}

/* Read x after the shared state, score the options from there, and forget x again. */
static bool score_shared(Context *c, const Ids *x, const Ids *option, size_t B, double *score, Error *err) {
    const size_t before = c->state.self.n, C = c->lm->size[LETTER_C];
    float *last = mem_new(C, sizeof *last);
    Ids *none = mem_new(B, sizeof *none), *same = mem_new(B, sizeof *same);
    for (size_t b = 0; b < B; b++) same[b] = *x;
    memcpy(last, c->state.last, C * sizeof *last);
    bool ok;
    if (c->format.channel) ok = score_batch(c->lm, &c->state, option, same, B, score, err);
    else ok = state_read_ids(c->lm, &c->state, x->at, x->n, err) && score_batch(c->lm, &c->state, none, option, B, score, err);
    c->state.self.n = before;
    memcpy(c->state.last, last, C * sizeof *last);
    free(last), free(none), free(same);
    return ok;
}

bool query_is_cut(const Context *c, const Ids *x, const Ids *option, size_t B) {
    size_t most = 0;
    for (size_t b = 0; b < B; b++) most = option[b].n > most ? option[b].n : most;
    return c->lm->kind == GPT2 && c->vectors.n == 0 && c->demos.n + x->n + most > c->format.limit;
}

/* A T5 that reads everything anew for each option. */
static bool score_anew(Context *c, const Ids *x, const Ids *option, size_t B, double *score, Error *err) {
    bool ok = true;
    for (size_t b = 0; ok && b < B; b++) {
        state_free(&c->state);
        ok = context_begin(c, err) && score_shared(c, x, &option[b], 1, score + b, err);
    }
    return ok;
}

bool score_pieces(Context *c, const Ids *x, const Ids *option, size_t B, double *score, Error *err) {
    if (c->lm->kind == T5 && c->format.encoder_input) return score_encoded(c, x, option, B, score, err);
    if (c->lm->kind == T5 && c->alone) return score_anew(c, x, option, B, score, err);
    if (query_is_cut(c, x, option, B) || (c->lm->kind == GPT2 && c->vectors.n == 0 && c->alone))
        return score_cut(c, x, option, B, score, err);
    return score_shared(c, x, option, B, score, err);
}

bool query_pieces(const Context *c, const Example *q, Ids *x, Ids *option, Error *err) {
    const size_t B = q->options.n;
    Ids output = {0};
    size_t most = 0;
    bool ok = B > 0 || fail(err, BAD_INPUT, "there are no options to score");
    ok = ok && pieces_of(c->lm, &q->input, false, x, err);
    for (size_t b = 0; ok && b < B; b++) {
        if (q->options.at[b].len == 0) ok = fail(err, BAD_INPUT, "option %zu is empty", b);
        ok = ok && pieces_of(c->lm, &q->options.at[b], true, &option[b], err);
        if (ok && option[b].n == 0) ok = fail(err, BAD_INPUT, "option %zu has no pieces", b);
        most = option[b].n > most ? option[b].n : most;
    }
    if (ok && q->has_output) ok = pieces_of(c->lm, &q->output, true, &output, err); /* the reference cuts x for the right answer's length */
    if (ok) cut_example(&q->task, x, q->has_output ? &output : &(Ids){.n = most}, &c->format);
    if (ok && c->format.channel && x->n == 0) ok = fail(err, BAD_INPUT, "the channel method scores the input, which is empty");
    ids_free(&output);
    return ok;
}

bool score_query(Context *c, const Example *q, double *score, Error *err) {
    const size_t B = q->options.n;
    Ids x = {0}, *option = mem_new(B, sizeof *option);
    const bool ok = query_pieces(c, q, &x, option, err) && score_pieces(c, &x, option, B, score, err);
    for (size_t b = 0; b < B; b++) ids_free(&option[b]);
    free(option);
    ids_free(&x);
    return ok;
}

size_t best(const double *score, size_t n) {
    size_t at = 0;
    for (size_t i = 1; i < n; i++) at = score[i] > score[at] ? i : at;
    return at;
}

/* ==== vectors in a file =========================================================================================================== */

bool write_vectors(const char *path, const Vectors *v, const Model *distiller, const Model *llm, const char *demos_hash, Error *err) {
    const Tensor t = {"vectors", DTYPE_F32, 2, {v->n, v->O}, v->n * v->O, v->at};
    const char *const meta[] = {"format", "mend-vectors-1", "demonstrations_sha256", demos_hash, "distiller_sha256", model_hash(distiller),
                                "llm_sha256", llm ? model_hash(llm) : "any"};
    return weights_write(path, &t, 1, meta, sizeof meta / sizeof *meta / 2, err);
}

bool read_vectors(const char *path, const Model *llm, Vectors *v, Error *err) {
    Weights *w = NULL;
    if (!weights_open(&w, path, err)) return false;
    const Tensor *t = weights_find(w, "vectors");
    const char *made_for = weights_meta(w, "llm_sha256");
    const size_t C = llm->size[LETTER_C];
    bool ok = true;
    if (!t || t->dims != 2 || t->dtype != DTYPE_F32 || t->shape[0] == 0) ok = fail(err, BAD_MODEL, "%s: holds no vectors; make them with mend distill", path);
    else if (t->shape[1] != C)
        ok = fail(err, BAD_MODEL, "%s: the vectors are %zu wide, %s reads %zu: they were made for another language model", path, t->shape[1],
                  weights_path(llm->weights), C);
    else if (made_for && strcmp(made_for, "any") && strcmp(made_for, model_hash(llm)))
        ok = fail(err, BAD_MODEL, "%s: made for the language model with hash %.64s, %s has %.64s", path, made_for, weights_path(llm->weights), model_hash(llm));
    else if (!all_finite(t->data, t->count)) ok = fail(err, BAD_MODEL, "%s: holds NaN or infinity", path);
    if (ok) {
        *v = (Vectors){mem_new(t->count, sizeof *v->at), t->shape[0], t->shape[1]};
        memcpy(v->at, t->data, t->count * sizeof *v->at);
    }
    weights_close(w);
    return ok;
}

/* ==== text ======================================================================================================================== */

typedef struct {
    float p;
    uint32_t id;
} Choice;

/* Most probable first, of equals the lower id. */
static int by_probability(const void *a, const void *b) {
    const Choice *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

/* One piece from logits l [V], which are changed: softmax at the temperature, of that the smallest set that holds top_p, from it one by chance. */
uint32_t choose(float *l, size_t V, const Sampling *s, uint64_t count) {
    size_t top = 0, kept = 0;
    for (size_t v = 1; v < V; v++) top = l[v] > l[top] ? v : top;
    if (s->temperature == 0) return (uint32_t)top;
    for (size_t v = 0; v < V; v++) l[v] = (float)((double)l[v] / s->temperature);
    softmax(l, l, 1, V);
    Choice *c = mem_new(V, sizeof *c);
    for (size_t v = 0; v < V; v++) c[v] = (Choice){l[v], (uint32_t)v};
    qsort(c, V, sizeof *c, by_probability);
    double mass = 0, sum = 0;
    while (kept < V && (kept == 0 || mass < s->top_p)) mass += (double)c[kept++].p;
    const double u = uniform(s->seed, count) * mass;
    size_t i = 0;
    while (i + 1 < kept && (sum += (double)c[i].p) <= u) i++;
    const uint32_t id = c[i].id;
    free(c);
    return id;
}

bool generate(Context *c, const Ids *prompt, size_t n, const Sampling *s, Ids *out, Error *err) {
    const Model *m = c->lm;
    const int64_t eos = m->tokenizer ? tokenizer_special(m->tokenizer, "eos") : -1;
    float *l = mem_new(m->size[LETTER_V], sizeof *l);
    bool ok = true;
    if (m->kind == T5 && c->format.encoder_input) {
        size_t rows;
        float *x = context_rows(c, prompt, &rows);
        ok = state_encode(m, &c->state, x, rows, err);
        free(x);
    } else ok = state_read_ids(m, &c->state, prompt->at, prompt->n, err);
    if (ok && c->state.self.n == 0) ok = fail(err, BAD_INPUT, "there is nothing to go on from: the prompt is empty");
    for (size_t i = 0; ok && i < n; i++) {
        ok = logits(m, c->state.last, 1, l, err);
        if (!ok) break;
        const uint32_t id = choose(l, m->size[LETTER_V], s, i);
        ids_add(out, &id, 1);
        if ((int64_t)id == eos) break;
        if (i + 1 < n) ok = state_read_ids(m, &c->state, &id, 1, err);
    }
    free(l);
    return ok;
}

bool logprobs(const Model *m, const Ids *ids, const Ids *source, float *lp, Error *err) {
    State s = state_new(m);
    const Ids first = {ids->at, 1, 0}, rest = {ids->at + 1, ids->n - 1, 0};
    const size_t C = m->size[LETTER_C];
    bool ok = true;
    float *x = NULL;
    if (m->kind == T5) {
        float *e = embed(m, source->at, source->n);
        ok = state_encode(m, &s, e, source->n, err);
        free(e);
        x = mem_new(ids->n, C * sizeof *x);
        memcpy(x, s.last, C * sizeof *x);
        float *y = embed(m, ids->at, ids->n - 1);
        ok = ok && state_read(m, &s, y, ids->n - 1, err);
        memcpy(x + C, y, (ids->n - 1) * C * sizeof *x);
        free(y);
        ok = ok && target_logprobs(m, x, ids->at, ids->n, lp, err);
    } else {
        x = embed(m, ids->at, first.n + rest.n);
        ok = state_read(m, &s, x, ids->n, err) && target_logprobs(m, x, rest.at, rest.n, lp, err);
    }
    free(x);
    state_free(&s);
    return ok;
}

/* ==== commands ==================================================================================================================== */

#ifndef TESTING

static const Command commands[] = {
    {"distill", command_distill, "demonstrations to vectors, once"},
    {"score", command_score, "which option a language model takes: zero-shot, in context, or from vectors"},
    {"generate", command_generate, "text that follows a prompt"},
    {"logprob", command_logprob, "log p of each piece of a text"},
    {"eval", command_eval, "tasks, seeds and methods of MetaICL's kind"},
    {"train", command_train, "a distiller, vectors or a language model"},
    {"cost", command_cost, "what each method costs, and where MEND breaks even"},
    {"trace", command_trace, "every named result of one forward pass, in files"},
    {"compare", command_compare, "two runs tap by tap: where they part, and by how much"},
    {"replay", command_replay, "each op on a run's own inputs: which one is wrong"},
    {"info", command_info, "what a file holds"},
};

static const Program program = {
    {"mend", "turn demonstrations into a few vectors that a language model reads in their place",
     "mend is MEND: a small model, the distiller, reads demonstrations once and writes vectors; a frozen GPT-2 or T5 that reads these before a query answers much as if it had read the demonstrations.\n"
     "Models are files made by export.py. Demonstrations and queries are JSON lines: {\"input\": \"...\", \"output\": \"...\", \"options\": [\"...\", \"...\"]}.\n"
     "Results go to standard output, everything else to standard error. They do not depend on the number of threads, the compiler or the processor.",
     "Demonstrations to vectors, once:\nmend distill -m distiller.safetensors -d demos.jsonl -o vectors.safetensors\n"
     "Which option the language model takes, for each query:\nmend score -l gpt2-large.safetensors -v vectors.safetensors --json queries.jsonl\n"
     "The same with the demonstrations themselves:\nmend score -l gpt2-large.safetensors -d demos.jsonl queries.jsonl\n",
     "lingua2(1)"},
    commands, sizeof commands / sizeof *commands};

int main(int argc, char **argv) { return program_main(&program, argc, argv); }
#endif
