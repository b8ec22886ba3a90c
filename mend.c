/* mend.c - MEND in plain C: demonstrations go in once, a few vectors come out, and a frozen language model reads those in their place.
 *
 * The idea (Li et al. 2024, arXiv 2403.06914): in-context learning puts K demonstrations before each query, and the language model pays for all
 * of them every time. A small model, the distiller, reads them once and gives v vectors S; the language model then reads [S ; x].
 *
 *   demonstrations -> tokens -> [E(demos) ; P] -> distiller -> its last v rows -> S      once
 *   [S ; x] -> language model -> log p(option) for each option, or text                   for each query
 *
 * This file, top to bottom: the models (one table of tensors each), GPT-2, T5, a language model's state (what it has read), prompts from
 * MetaICL's examples, distillation, scores and texts, evaluation, cost, commands.
 *
 * Letters: N rows, B sequences, T rows of a sequence, C hidden size, H heads of D, E = H*D, F feed-forward size, L layers, V pieces,
 * P positions, R buckets of relative positions, U virtual rows (the paper's v), O the hidden size of the language model that reads them.
 *
 * The half for T5 is our reading of the paper: the authors released the distiller for GPT-2 alone.
 * Left out on purpose: beam search, GPUs, quantised weights.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "json.h"
#include "program.h"
#include "tensor.h"
#include "tokenizer.h"
#include "weights.h"

/* ==== the models ==================================================================================================================
 * What a flat file of a GPT-2, a T5 or a distiller holds, checked before use. */

typedef enum { GPT2, T5 } Kind;
enum { LETTER_V, LETTER_P, LETTER_C, LETTER_Q, LETTER_F, LETTER_E, LETTER_R, LETTER_H, LETTER_U, LETTER_O, LETTERS };
enum { MAX_LAYERS = 1000 };

typedef struct {
    const float *ln1_g, *ln1_b, *qkv_w, *qkv_b, *o_w, *o_b;     /* [C], [C], [C,3C], [3C], [C,C], [C] */
    const float *ln2_g, *ln2_b, *up_w, *up_b, *down_w, *down_b; /* [C], [C], [C,F], [F], [F,C], [C] */
} Gpt2Layer;

typedef struct {
    const float *q, *k, *v, *o, *ln_g; /* [C,E], [C,E], [C,E], [E,C], [C] */
} T5Attention;

typedef struct {
    T5Attention self, cross;
    const float *up, *gate, *down, *ln_g; /* [C,F], [C,F] or NULL, [F,C], [C] */
} T5Layer;

typedef struct {
    T5Layer *layer; /* [L] */
    size_t L;
    const float *position_w, *ln_g; /* [R,H], [C] */
    bool decoder;
} T5Stack;

typedef struct {
    Kind kind;
    const float *wte, *wpe, *ln_g, *ln_b; /* [C,V] or [V,C], [P,C], [C], [C] */
    const float *head;                    /* [C,V]; NULL: no language model */
    const float *prompt, *pool_w, *pool_b; /* a distiller's P [U,C]; its adap_pooler [C,O], [O], or NULL */
    Gpt2Layer *gpt2;                      /* [L] */
    T5Stack encoder, decoder;
    size_t size[LETTERS], L, H, D;
    double eps;
    CrFunction act;
    bool wte_is_head, scale_head; /* wte is stored as [C,V]; T5: the head takes x * C^-0.5 */
    size_t max_distance;
    uint32_t start_id; /* T5: what the decoder reads first */
    Weights *weights;
    Tokenizer *tokenizer; /* NULL if the file holds none */
    Error no_tokenizer;   /* then: why */
} Model;

static const TensorRow gpt2_table[] = {
    {"wte.weight", LETTER_C, LETTER_V, offsetof(Model, wte)},
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
static const TensorRow t5_head_table[] = {{"lm_head.weight", LETTER_C, LETTER_V, offsetof(Model, head)}};
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
    size[LETTER_V] = extent(m, "wte.weight", 1);
    m->wte_is_head = true;
    if (!BIND(gpt2_table, 0, m)) return false;
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
    return !whole || (read_stack(m, &m->decoder, true, gated, err) && (m->wte_is_head || BIND(t5_head_table, 0, m)));
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

static void model_close(Model *m) {
    free(m->gpt2);
    free(m->encoder.layer);
    free(m->decoder.layer);
    tokenizer_close(m->tokenizer);
    weights_close(m->weights);
    *m = (Model){0};
}

typedef enum { ANY_MODEL, LANGUAGE_MODEL, DISTILLER } Role;

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

static bool model_open(Model *m, const char *path, Role role, Error *err) {
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

/* What says which weights these are: the hash that export.py wrote. */
static const char *model_hash(const Model *m) {
    const char *hash = weights_meta(m->weights, "content_sha256");
    return hash ? hash : "unknown";
}

/* ==== one forward pass ============================================================================================================
 * Rows of B sequences one after another. Each sequence may go on from a past that all share: keys and values of rows read earlier. */

typedef struct {
    size_t N, B;
    const size_t *start; /* [B+1]: sequence b is the rows start[b]..start[b+1]-1 */
} Batch;

/* Keys and values per layer, [L][room][E] each. */
typedef struct {
    float *k, *v;
    size_t n, room, E, L;
} Cache;

static void cache_grow(Cache *c, size_t more) {
    if (c->n + more <= c->room) return;
    const size_t room = c->n + more > 2 * c->room ? c->n + more : 2 * c->room, E = c->E;
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

static void cache_free(Cache *c) {
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

/* What the heads of one layer attend with: q, k, v [N,E] at row strides ldq, ldk; ctx [N,E]. */
typedef struct {
    const float *q, *k, *v;
    size_t ldq, ldk;
    float *ctx;
    double scale;
    bool causal;
    const float *bias;   /* [H][...] or NULL: element (i,j) of head h at bias[h*head_bias + i*ldbias + j] */
    ptrdiff_t ldbias;
    size_t head_bias;
} Heads;

/* ctx = softmax(scale q k^T + bias) v for every head of every sequence, the past of layer l before it (or NULL). */
static void attend(const Model *m, const Batch *b, const Heads *h, const Cache *past, size_t l) {
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
    attention(head, b->B * m->H);
    free(head);
}

/* The same over the encoder's keys and values alone. */
static void attend_cross(const Model *m, const Batch *b, const float *q, float *ctx, const Cache *cross, size_t l) {
    const size_t D = m->D, E = m->size[LETTER_E];
    Attention *head = mem_new(m->H, sizeof *head);
    for (size_t i = 0; i < m->H; i++) {
        const size_t at = l * cross->room * E + i * D;
        head[i] = (Attention){.q = q + i * D, .k = cross->k + at, .v = cross->v + at, .ctx = ctx + i * D, .Tq = b->N, .Tk = cross->n, .D = D, .ldq = E,
                              .ldk = E, .ldv = E, .ldc = E, .scale = 1};
    }
    attention(head, m->H);
    free(head);
}

/* The embedding of one piece: a row of [V,C], or a column of the head [C,V]. */
static void embed_piece(const Model *m, uint32_t id, float *x) {
    const size_t C = m->size[LETTER_C], V = m->size[LETTER_V];
    for (size_t c = 0; c < C; c++) x[c] = m->wte_is_head ? m->wte[c * V + id] : m->wte[id * C + c];
}

/* ==== GPT-2 =======================================================================================================================
 * Radford et al. 2019: L times attention to what came before and feed-forward, each normalised before and added to its input. */

/* x [N,C]: in embeddings (positions not yet added), out ln_f's output. mask [N,N] or NULL: added to the scores, for B = 1 without a past.
 * keep: the past goes on with these rows (B = 1). */
static void gpt2_forward(const Model *m, const Batch *b, Cache *past, bool keep, const float *mask, float *x) {
    const size_t N = b->N, C = m->size[LETTER_C], F = m->size[LETTER_F];
    float *y = mem_new(N, C * sizeof *y), *qkv = mem_new(N, 3 * C * sizeof *y), *ctx = mem_new(N, C * sizeof *y), *h = mem_new(N, F * sizeof *y);
    const Heads heads = {.q = qkv, .k = qkv + C, .v = qkv + 2 * C, .ldq = 3 * C, .ldk = 3 * C, .ctx = ctx, .scale = 1 / sqrt((double)m->D), .causal = true,
                         .bias = mask, .ldbias = (ptrdiff_t)N};
    if (keep) cache_grow(past, N);
    for (size_t s = 0; s < b->B; s++)
        for (size_t n = b->start[s]; n < b->start[s + 1]; n++) embedding_sum(x + n * C, x + n * C, m->wpe + (past->n + n - b->start[s]) * C, NULL, C);
    for (size_t l = 0; l < m->L; l++) {
        const Gpt2Layer *w = &m->gpt2[l];
        layernorm(y, x, w->ln1_g, w->ln1_b, m->eps, N, C);
        linear(qkv, y, w->qkv_w, w->qkv_b, N, C, 3 * C);
        if (keep) cache_put(past, l, heads.k, heads.ldk, heads.v, heads.ldk, N);
        attend(m, b, &heads, past, l);
        linear(y, ctx, w->o_w, w->o_b, N, C, C);
        residual(x, y, x, N * C);
        layernorm(y, x, w->ln2_g, w->ln2_b, m->eps, N, C);
        linear(h, y, w->up_w, w->up_b, N, C, F);
        activation(m->act, h, h, N * F);
        linear(y, h, w->down_w, w->down_b, N, F, C);
        residual(x, y, x, N * C);
    }
    layernorm(x, x, m->ln_g, m->ln_b, m->eps, N, C);
    if (keep) past->n += N;
    free(y), free(qkv), free(ctx), free(h);
}

/* ==== T5 ==========================================================================================================================
 * Raffel et al. 2020: an encoder and a decoder; no biases, RMS norms, positions as a learned bias on the scores by distance. */

/* The bucket of a key at distance d = j - i: half of the buckets exact, the others up to max_distance logarithmic. The reference computes the
 * logarithm in float32, also in a float64 model; so do we, correctly rounded. */
static size_t position_bucket(const Model *m, ptrdiff_t d, bool decoder) {
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

/* bias [H][2*reach]: for each head the bias at distance d is element d + reach - 1, |d| < reach. */
static float *position_bias(const Model *m, const T5Stack *s, size_t reach) {
    const size_t H = m->H;
    float *bias = mem_new(H * 2, reach * sizeof *bias);
    for (size_t i = 0; i + 1 < 2 * reach; i++) {
        const size_t bucket = position_bucket(m, (ptrdiff_t)i - (ptrdiff_t)(reach - 1), s->decoder);
        for (size_t h = 0; h < H; h++) bias[h * 2 * reach + i] = s->position_w[bucket * H + h];
    }
    return bias;
}

static size_t longest(const Batch *b) {
    size_t T = 0;
    for (size_t s = 0; s < b->B; s++) T = b->start[s + 1] - b->start[s] > T ? b->start[s + 1] - b->start[s] : T;
    return T;
}

/* x [N,C]: in embeddings, out the final norm's output. past: what this stack read before (decoder), with keep it goes on; cross: the encoder's
 * keys and values (decoder). mask [N,N] or NULL: -infinity where a query must not look, for an encoder with B = 1. */
static void t5_forward(const Model *m, const T5Stack *stack, const Batch *b, Cache *past, bool keep, const Cache *cross, const float *mask, float *x) {
    const size_t N = b->N, C = m->size[LETTER_C], E = m->size[LETTER_E], F = m->size[LETTER_F], reach = past->n + longest(b);
    float *y = mem_new(N, C * sizeof *y), *q = mem_new(N, E * sizeof *y), *k = mem_new(N, E * sizeof *y), *v = mem_new(N, E * sizeof *y);
    float *ctx = mem_new(N, E * sizeof *y), *h = mem_new(N, F * sizeof *y), *g = mem_new(N, F * sizeof *y), *bias = position_bias(m, stack, reach);
    float *masked = mask ? mem_new(m->H * N, N * sizeof *y) : NULL;
    Heads self = {.q = q, .k = k, .v = v, .ldq = E, .ldk = E, .ctx = ctx, .scale = 1, .causal = stack->decoder, .ldbias = -1, .head_bias = 2 * reach};
    self.bias = bias + (reach - 1 - past->n); /* query i stands at past->n + i */
    for (size_t i = 0; mask && i < m->H * N * N; i++) {
        const size_t head = i / (N * N), row = i / N % N, key = i % N;
        masked[i] = mask[row * N + key] + bias[head * 2 * reach + reach - 1 + key - row];
    }
    if (mask) self.bias = masked, self.ldbias = (ptrdiff_t)N, self.head_bias = N * N;
    if (keep) cache_grow(past, N);
    for (size_t l = 0; l < stack->L; l++) {
        const T5Layer *w = &stack->layer[l];
        rmsnorm(y, x, w->self.ln_g, m->eps, N, C);
        linear(q, y, w->self.q, NULL, N, C, E);
        linear(k, y, w->self.k, NULL, N, C, E);
        linear(v, y, w->self.v, NULL, N, C, E);
        if (keep) cache_put(past, l, k, E, v, E, N);
        attend(m, b, &self, past, l);
        linear(y, ctx, w->self.o, NULL, N, E, C);
        residual(x, y, x, N * C);
        if (stack->decoder) {
            rmsnorm(y, x, w->cross.ln_g, m->eps, N, C);
            linear(q, y, w->cross.q, NULL, N, C, E);
            attend_cross(m, b, q, ctx, cross, l);
            linear(y, ctx, w->cross.o, NULL, N, E, C);
            residual(x, y, x, N * C);
        }
        rmsnorm(y, x, w->ln_g, m->eps, N, C);
        linear(h, y, w->up, NULL, N, C, F);
        if (w->gate) {
            linear(g, y, w->gate, NULL, N, C, F);
            activation_gated(m->act, h, h, g, N * F);
        } else activation(m->act, h, h, N * F);
        linear(y, h, w->down, NULL, N, F, C);
        residual(x, y, x, N * C);
    }
    rmsnorm(x, x, stack->ln_g, m->eps, N, C);
    if (keep) past->n += N;
    free(y), free(q), free(k), free(v), free(ctx), free(h), free(g), free(bias), free(masked);
}

/* Keys and values of the decoder's cross attention from the encoder's output e [N,C]. */
static Cache cross_cache(const Model *m, const float *e, size_t N) {
    const size_t C = m->size[LETTER_C], E = m->size[LETTER_E];
    Cache c = {.E = E, .L = m->decoder.L};
    cache_grow(&c, N);
    for (size_t l = 0; l < c.L; l++) {
        linear(c.k + l * c.room * E, e, m->decoder.layer[l].cross.k, NULL, N, C, E);
        linear(c.v + l * c.room * E, e, m->decoder.layer[l].cross.v, NULL, N, C, E);
    }
    c.n = N;
    return c;
}

/* ==== a language model that reads =================================================================================================
 * What it has read so far, and log p of what may come next. A text read in parts gives the bits of the text read at once. */

typedef struct {
    Cache self, cross; /* cross: T5's encoder side */
    float *last;       /* [C]: hidden state of the last row, if any */
} State;

static State state_new(const Model *m) {
    State s = {.self = {.E = m->size[LETTER_E], .L = m->kind == GPT2 ? m->L : m->decoder.L}};
    s.last = mem_new(m->size[LETTER_C], sizeof *s.last);
    return s;
}

static void state_free(State *s) {
    cache_free(&s->self);
    cache_free(&s->cross);
    free(s->last);
    *s = (State){0};
}

/* Embeddings [n,C] of pieces, to be freed. */
static float *embed(const Model *m, const uint32_t *id, size_t n) {
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

/* Read n rows of embeddings x [n,C]; they become hidden states. Errors: BAD_INPUT if they are more than the positions. */
static bool state_read(const Model *m, State *s, float *x, size_t n, Error *err) {
    const size_t start[] = {0, n}, C = m->size[LETTER_C];
    if (n == 0) return true;
    if (!room_for(m, s->self.n, n, err)) return false;
    decode(m, &(Batch){n, 1, start}, &s->self, true, &s->cross, x);
    memcpy(s->last, x + (n - 1) * C, C * sizeof *x);
    return true;
}

static bool state_read_ids(const Model *m, State *s, const uint32_t *id, size_t n, Error *err) {
    float *x = embed(m, id, n);
    const bool ok = state_read(m, s, x, n, err);
    free(x);
    return ok;
}

/* T5: read n rows on the encoder's side in place of what was there, then the first piece on the decoder's. x becomes the encoder's output. */
static bool state_encode(const Model *m, State *s, float *x, size_t n, Error *err) {
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

/* l [n,V] from hidden states x [n,C]. Errors: BAD_MODEL for weights that give NaN or infinity. */
static bool logits(const Model *m, const float *x, size_t n, float *l, Error *err) {
    const size_t C = m->size[LETTER_C], V = m->size[LETTER_V];
    float *scaled = NULL;
    if (m->scale_head) {
        const double scale = 1 / sqrt((double)C);
        scaled = mem_new(n, C * sizeof *scaled);
        for (size_t i = 0; i < n * C; i++) scaled[i] = (float)((double)x[i] * scale);
    }
    linear(l, scaled ? scaled : x, m->head, NULL, n, C, V);
    free(scaled);
    if (all_finite(l, n * V)) return true;
    return fail(err, BAD_MODEL, "%s: the weights give NaN or infinity; the file is damaged or was trained to that", weights_path(m->weights));
}

/* lp[i] = log p(target[i]) after the hidden state x_i, [n]. In blocks of rows, so that memory stays bounded. */
static bool target_logprobs(const Model *m, const float *x, const uint32_t *target, size_t n, float *lp, Error *err) {
    enum { ROWS = 96 };
    const size_t C = m->size[LETTER_C], V = m->size[LETTER_V];
    float *l = mem_new(n < ROWS ? n : ROWS, V * sizeof *l), lse[ROWS];
    bool ok = true;
    for (size_t i = 0; ok && i < n; i += ROWS) {
        const size_t rows = n - i < ROWS ? n - i : ROWS;
        ok = logits(m, x + i * C, rows, l, err);
        if (ok) logsumexp(lse, l, rows, V);
        for (size_t r = 0; ok && r < rows; r++) lp[i + r] = l[r * V + target[i + r]] - lse[r];
    }
    free(l);
    return ok;
}

/* ==== prompts =====================================================================================================================
 * MetaICL's data format and rules (Min et al. 2022): examples to pieces, pairs one behind the other, what is cut and where. */

typedef struct {
    uint32_t *at;
    size_t n, cap;
} Ids;

static void ids_add(Ids *ids, const uint32_t *id, size_t n) {
    if (ids->n + n > ids->cap) ids->at = mem_resize(ids->at, ids->cap = 2 * (ids->n + n), sizeof *ids->at);
    if (n) memcpy(ids->at + ids->n, id, n * sizeof *id);
    ids->n += n;
}

static void ids_free(Ids *ids) {
    free(ids->at);
    *ids = (Ids){0};
}

typedef struct {
    Bytes task, input, output;
    bool has_output;
    Texts options;
} Example;

typedef struct {
    Example *at;
    size_t n, cap;
} Examples;

static void example_free(Example *e) {
    bytes_free(&e->task);
    bytes_free(&e->input);
    bytes_free(&e->output);
    texts_free(&e->options);
}

static void examples_free(Examples *e) {
    for (size_t i = 0; i < e->n; i++) example_free(&e->at[i]);
    free(e->at);
    *e = (Examples){0};
}

/* How examples become prompts. */
typedef struct {
    bool channel;       /* pairs are (y, x), and p(x | option) is what counts */
    bool encoder_input; /* T5: x stands on the encoder's side */
    size_t per_example; /* pieces of one example at most */
    size_t limit;       /* pieces of a prompt at most */
    bool no_input, no_label; /* demonstrations without one of their halves */
} Format;

enum { TEACHER_LIMIT = 1024, DISTILLER_LIMIT = 900, EXAMPLE_LIMIT = 256 };

/* The reference's limits; a model with fewer positions gives a quarter of them to one example. */
static Format format_of(const Model *m, size_t limit, bool channel, bool encoder_input) {
    const size_t P = m->size[LETTER_P];
    const bool small = m->kind == GPT2 && P < limit;
    return (Format){channel, encoder_input, small ? P / 4 : EXAMPLE_LIMIT, small ? P : limit, false, false};
}

static size_t budget(const Format *f) { return f->limit > f->per_example + 1 ? f->limit - f->per_example - 1 : 0; }

/* Append the pieces of a text, a blank before it for outputs and options. */
static bool pieces_of(const Model *m, const Bytes *text, bool blank, Ids *out, Error *err) {
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
static bool demonstration(const Model *m, const Example *e, const Format *f, Ids *x, Ids *y, Error *err) {
    x->n = y->n = 0;
    if (!pieces_of(m, &e->input, false, x, err) || !pieces_of(m, &e->output, true, y, err)) return false;
    cut_example(&e->task, x, y, f);
    if (y->n + 2 > f->per_example) return fail(err, BAD_INPUT, "the output of a demonstration has %zu pieces; %zu are possible", y->n, f->per_example - 2);
    if (f->no_input) x->n = 0;
    if (f->no_label) y->n = 0;
    return true;
}

/* Append demonstrations [from,to) one behind the other until the budget is used up; of the first pair that does not fit the first half is cut.
 * is_label (or NULL) gets a byte per piece: 1 for the second half of a pair. */
static bool demonstrations(const Model *m, const Examples *d, size_t from, size_t to, const Format *f, Ids *out, Bytes *is_label, Error *err) {
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

/* All examples of a file ("-": standard input). Errors: BAD_INPUT with path and line number. */
static bool read_examples(const char *path, bool need_output, Examples *out, Error *err) {
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

typedef struct {
    size_t groups;       /* the demonstrations are distilled in so many groups and the vectors concatenated (fusion in decoder) */
    size_t label_rows;   /* the last so many rows of P see label pieces alone; 0: no separation */
    bool separate_input; /* then: the other rows of P see input pieces alone */
} Distilling;

typedef struct {
    float *at; /* [n,O] */
    size_t n, O;
} Vectors;

/* [N,N]: -infinity where row i must not look at row j. Label rows see label pieces and label rows; the other rows of P, if separated, the others. */
static float *separation(const Distilling *d, const char *is_label, size_t n, size_t U) {
    const size_t N = n + U, labels = N - d->label_rows;
    float *mask = mem_new(N, N * sizeof *mask);
    for (size_t i = n; i < N; i++)
        for (size_t j = 0; j < N; j++) {
            const bool of_label = j < n ? is_label[j] != 0 : j >= labels;
            if (i >= labels ? !of_label : d->separate_input && of_label) mask[i * N + j] = -(float)INFINITY;
        }
    return mask;
}

/* s [U,O] from the pieces of one group. */
static bool distill_group(const Model *m, const Distilling *d, const Ids *demos, const Bytes *is_label, float *s, Error *err) {
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
        linear(s, x + n * C, m->pool_w, m->pool_b, U, C, O);
        activation(CR_TANH, s, s, U * O);
    } else memcpy(s, x + n * C, U * C * sizeof *s);
    free(x);
    free(mask);
    return all_finite(s, U * O) || fail(err, BAD_MODEL, "%s: the weights give NaN or infinity; the file is damaged or was trained to that", weights_path(m->weights));
}

/* Vectors of all demonstrations, to be freed. */
static bool distill(const Model *m, const Examples *demos, const Distilling *d, const Format *as, Vectors *out, Error *err) {
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
        const size_t from = (g * demos->n + d->groups - 1) / d->groups, to = ((g + 1) * demos->n + d->groups - 1) / d->groups; /* sizes differ by one at most */
        ok = demonstrations(m, demos, from, to, &f, &ids, &is_label, err) && distill_group(m, d, &ids, &is_label, out->at + out->n * O, err);
        if (ok) out->n += U;
        ids_free(&ids);
        bytes_free(&is_label);
    }
    if (!ok) free(out->at), *out = (Vectors){0};
    return ok;
}

/* ==== scores ======================================================================================================================
 * score(o) = mean over the pieces of o of log p(piece | prefix, the pieces of o before it); the highest wins, of equals the first. */

/* What stands before every query. */
typedef struct {
    const Model *lm;
    Format format;
    Ids demos;       /* in-context learning */
    Vectors vectors; /* MEND, or a tuned prompt */
    State state;     /* has read them */
    bool alone;      /* nothing is shared: every option of every query reads all of its prompt, as the reference does */
} Context;

static void context_free(Context *c) {
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

/* Read what all queries share: the demonstrations or vectors; a T5 whose encoder also reads x does that for each query. */
static bool context_begin(Context *c, Error *err) {
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
    float *x = mem_new(start[B], C * sizeof *x), *rows = mem_new(targets, C * sizeof *rows), *lp = mem_new(targets, sizeof *lp);
    uint32_t *target = mem_new(targets, sizeof *target);
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
            memcpy(rows + t * C, at ? x + (start[b] + at - 1) * C : s->last, C * sizeof *rows);
            target[t] = after[b].at[i];
        }
    ok = ok && target_logprobs(m, rows, target, targets, lp, err);
    t = 0;
    for (size_t b = 0; ok && b < B; b++) {
        double sum = 0;
        for (size_t i = 0; i < after[b].n; i++) sum += (double)lp[t++];
        score[b] = sum / (double)after[b].n;
    }
    free(start), free(x), free(rows), free(lp), free(target);
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

static size_t longest_of(const Ids *option, size_t B) {
    size_t most = 0;
    for (size_t b = 0; b < B; b++) most = option[b].n > most ? option[b].n : most;
    return most;
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

static bool score_pieces(Context *c, const Ids *x, const Ids *option, size_t B, double *score, Error *err) {
    if (c->lm->kind == T5 && c->format.encoder_input) return score_encoded(c, x, option, B, score, err);
    if (c->lm->kind == T5 && c->alone) return score_anew(c, x, option, B, score, err);
    if (c->lm->kind == GPT2 && c->vectors.n == 0 && (c->alone || c->demos.n + x->n + longest_of(option, B) > c->format.limit))
        return score_cut(c, x, option, B, score, err);
    return score_shared(c, x, option, B, score, err);
}

/* The pieces of a query: x, cut, and each option [options], all to be freed. Errors: BAD_INPUT. */
static bool query_pieces(const Context *c, const Example *q, Ids *x, Ids *option, Error *err) {
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

/* score [options] of one query. Errors: BAD_INPUT. */
static bool score_query(Context *c, const Example *q, double *score, Error *err) {
    const size_t B = q->options.n;
    Ids x = {0}, *option = mem_new(B, sizeof *option);
    const bool ok = query_pieces(c, q, &x, option, err) && score_pieces(c, &x, option, B, score, err);
    for (size_t b = 0; b < B; b++) ids_free(&option[b]);
    free(option);
    ids_free(&x);
    return ok;
}

static size_t best(const double *score, size_t n) {
    size_t at = 0;
    for (size_t i = 1; i < n; i++) at = score[i] > score[at] ? i : at;
    return at;
}

/* ==== vectors in a file =========================================================================================================== */

/* A safetensors file: "vectors" [n,O], and in its metadata what they were made of and for. llm: NULL if it was not given. */
static bool write_vectors(const char *path, const Vectors *v, const Model *distiller, const Model *llm, const char *demos_hash, Error *err) {
    const Tensor t = {"vectors", DTYPE_F32, 2, {v->n, v->O}, v->n * v->O, v->at};
    const char *const meta[] = {"format", "mend-vectors-1", "demonstrations_sha256", demos_hash, "distiller_sha256", model_hash(distiller),
                                "llm_sha256", llm ? model_hash(llm) : "any"};
    return weights_write(path, &t, 1, meta, sizeof meta / sizeof *meta / 2, err);
}

/* Errors: BAD_MODEL if it is no such file, or was made for a language model of another width or hash; both are named. */
static bool read_vectors(const char *path, const Model *llm, Vectors *v, Error *err) {
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

/* Random numbers by counting: the 24 highest bits of SplitMix64's output number `count`, as a number in [0,1) (Steele et al. 2014). */
static double uniform(uint64_t seed, uint64_t count) {
    uint64_t z = seed + (count + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)((z ^ z >> 31) >> 40) * 0x1p-24;
}

typedef struct {
    float p;
    uint32_t id;
} Choice;

/* Most probable first, of equals the lower id. */
static int by_probability(const void *a, const void *b) {
    const Choice *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

typedef struct {
    double temperature, top_p; /* temperature 0: always the most probable */
    uint64_t seed;
} Sampling;

/* One piece from logits l [V], which are changed: softmax at the temperature, of that the smallest set that holds top_p, from it one by chance. */
static uint32_t choose(float *l, size_t V, const Sampling *s, uint64_t count) {
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

/* Append up to n pieces that follow the prompt; ends after the model's end piece. */
static bool generate(Context *c, const Ids *prompt, size_t n, const Sampling *s, Ids *out, Error *err) {
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

/* lp [n-1]: log p of each piece given those before it. A T5's decoder reads its start piece first, its encoder `source`; then lp is [n]. */
static bool logprobs(const Model *m, const Ids *ids, const Ids *source, float *lp, Error *err) {
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

/* ==== evaluation ==================================================================================================================
 * MetaICL's protocol: each task with each seed's demonstrations; macro-F1 for classification, else accuracy; mean and deviation over seeds. */

typedef enum { ZERO, ICL, MEND, PROMPT, METHODS } Method;
static const char *const method_names[] = {"zero", "icl", "mend", "prompt"};
typedef enum { NONE, NO_INPUT, NO_LABEL, RANDOM_LABEL, WRONG_LABEL, ITSELF, SHUFFLED, ABLATIONS } Ablation;
static const char *const ablation_names[] = {"none", "no-input", "no-label", "random-label", "wrong-label", "itself", "shuffled"};

/* 0..n-1 by chance, the next of a sequence. */
static size_t draw(uint64_t seed, uint64_t *count, size_t n) { return (size_t)(uniform(seed, (*count)++) * (double)n); }

/* The first n of the examples in random order. */
static void shuffle(Examples *e, size_t n, uint64_t seed, uint64_t *count) {
    for (size_t i = 0; i < n && i + 1 < e->n; i++) {
        const size_t j = i + draw(seed, count, e->n - i);
        const Example swap = e->at[i];
        e->at[i] = e->at[j];
        e->at[j] = swap;
    }
}

/* Give each demonstration a label by chance, the right one left out if `wrong`. */
static void relabel(Examples *e, bool wrong, uint64_t seed, uint64_t *count) {
    for (size_t i = 0; i < e->n; i++) {
        Example *d = &e->at[i];
        size_t right = d->options.n;
        for (size_t o = 0; o < d->options.n; o++)
            if (d->options.at[o].len == d->output.len && memcmp(d->options.at[o].at, d->output.at, d->output.len) == 0) right = o;
        const bool skip = wrong && right < d->options.n;
        if (d->options.n < (skip ? 2u : 1u)) continue;
        size_t o = draw(seed, count, d->options.n - (skip ? 1 : 0));
        if (skip && o >= right) o++;
        bytes_set(&d->output, d->options.at[o].at, d->options.at[o].len);
    }
}

/* Which option is the output, or the number of options. */
static size_t right_option(const Example *q) {
    size_t o = 0;
    while (o < q->options.n && !(q->options.at[o].len == q->output.len && memcmp(q->options.at[o].at, q->output.at, q->output.len) == 0)) o++;
    return o;
}

/* Mean of 2PR/(P+R) over the labels that are right or said somewhere (as the release and scikit-learn count them). */
static double macro_f1(const Examples *q, const size_t *prediction) {
    Texts labels = {0};
    double sum = 0;
    for (size_t i = 0; i < q->n; i++)
        for (size_t said = 0; said < 2; said++) {
            const Bytes *label = said ? &q->at[i].options.at[prediction[i]] : &q->at[i].output;
            if (!texts_hold(&labels, label->at, label->len)) texts_add(&labels, label->at, label->len);
        }
    for (size_t l = 0; l < labels.n; l++) {
        double hits = 0, right = 0, said = 0;
        for (size_t i = 0; i < q->n; i++) {
            const Bytes *p = &q->at[i].options.at[prediction[i]], *label = &labels.at[l];
            const bool is = q->at[i].output.len == label->len && memcmp(q->at[i].output.at, label->at, label->len) == 0;
            const bool says = p->len == label->len && memcmp(p->at, label->at, label->len) == 0;
            right += is, said += says, hits += is && says;
        }
        sum += hits > 0 ? 2 * hits / (right + said) : 0; /* P = hits/said, R = hits/right */
    }
    const double f1 = sum / (double)labels.n;
    texts_free(&labels);
    return f1;
}

static double accuracy(const Examples *q, const size_t *prediction) {
    double hits = 0;
    for (size_t i = 0; i < q->n; i++) hits += prediction[i] == right_option(&q->at[i]);
    return hits / (double)q->n;
}

/* One task, seed, method and ablation. */
typedef struct {
    const Model *lm, *mend; /* mend: NULL if there is none */
    const Vectors *prompt;
    Distilling distilling;
    Format format;
    Method method;
    Ablation ablation;
} Setting;

/* A context from the demonstrations by this method. */
static bool setting_begin(const Setting *s, const Examples *demos, Context *c, Error *err) {
    *c = (Context){.lm = s->lm, .format = s->format};
    c->format.no_input = s->ablation == NO_INPUT;
    c->format.no_label = s->ablation == NO_LABEL;
    bool ok = true;
    if (s->method == ICL) ok = demonstrations(s->lm, demos, 0, demos->n, &c->format, &c->demos, NULL, err);
    if (s->method == MEND) ok = distill(s->mend, demos, &s->distilling, &c->format, &c->vectors, err);
    if (s->method == PROMPT) {
        c->vectors = (Vectors){mem_new(s->prompt->n, s->prompt->O * sizeof(float)), s->prompt->n, s->prompt->O};
        memcpy(c->vectors.at, s->prompt->at, s->prompt->n * s->prompt->O * sizeof(float));
    }
    return ok && context_begin(c, err);
}

/* prediction [queries]. With ITSELF each query is its own demonstrations. Errors: BAD_INPUT naming the query. */
static bool predict(const Setting *s, const Examples *demos, const Examples *queries, size_t *prediction, Error *err) {
    Context c = {0};
    bool ok = s->ablation == ITSELF || setting_begin(s, demos, &c, err);
    for (size_t i = 0; ok && i < queries->n; i++) {
        Example *q = &queries->at[i];
        double *score = mem_new(q->options.n, sizeof *score);
        Error detail;
        if (s->ablation == ITSELF) {
            Example *copies = mem_new(demos->n, sizeof *copies);
            for (size_t k = 0; k < demos->n; k++) copies[k] = *q;
            context_free(&c);
            ok = setting_begin(s, &(Examples){copies, demos->n, 0}, &c, err);
            free(copies);
        }
        ok = ok && (score_query(&c, q, score, &detail) || fail(err, detail.code, "query %zu: %.800s", i + 1, detail.text));
        if (ok) prediction[i] = best(score, q->options.n);
        free(score);
    }
    context_free(&c);
    return ok;
}

/* ==== cost ========================================================================================================================
 * Multiply-adds (times two) counted from the shapes; `mend cost` holds them against those that were done. */

/* One stack over n rows after p: `row` per row and layer, and E wide heads over the keys. */
static double stack_flops(double n, double p, bool causal, double L, double row, double E) {
    const double keys = causal ? n * p + n * (n + 1) / 2 : n * (p + n);
    return L * (n * row + 4 * E * keys);
}

static double t5_row(const Model *m, const T5Stack *s) {
    const double C = (double)m->size[LETTER_C], E = (double)m->size[LETTER_E], F = (double)m->size[LETTER_F];
    return 2 * C * (4 * E + (s->layer[0].gate ? 3 : 2) * F) + (s->decoder ? 4 * C * E : 0);
}

/* n rows through the decoder after p rows, e rows on the encoder's side. */
static double decoder_flops(const Model *m, double n, double p, double e) {
    const double C = (double)m->size[LETTER_C], E = (double)m->size[LETTER_E], F = (double)m->size[LETTER_F];
    if (m->kind == GPT2) return stack_flops(n, p, true, (double)m->L, 2 * C * (4 * C + 2 * F), E);
    return stack_flops(n, p, true, (double)m->decoder.L, t5_row(m, &m->decoder), E) + (double)m->decoder.L * 4 * E * n * e;
}

/* n rows through the encoder, and, for a whole T5, their keys and values in the decoder. */
static double encoder_flops(const Model *m, double n) {
    const double C = (double)m->size[LETTER_C], E = (double)m->size[LETTER_E];
    return stack_flops(n, 0, false, (double)m->encoder.L, t5_row(m, &m->encoder), E) + (double)m->decoder.L * 4 * C * E * n;
}

static double head_flops(const Model *m, double n) { return 2 * n * (double)m->size[LETTER_C] * (double)m->size[LETTER_V]; }

/* Options from a state of p rows: all pieces but each one's last go through the decoder, every piece through the head. */
static double options_flops(const Model *m, const Ids *option, size_t B, double p, double e) {
    double sum = 0;
    for (size_t b = 0; b < B; b++) sum += decoder_flops(m, (double)option[b].n - 1, p, e) + head_flops(m, (double)option[b].n);
    return sum;
}

/* What stands before the queries: read at once (GPT-2, or a T5's decoder start behind the encoder). */
static double context_flops(const Context *c) {
    const double n = (double)(c->vectors.n + c->demos.n);
    if (c->lm->kind == GPT2) return n > 0 ? decoder_flops(c->lm, n, 0, 0) : 0;
    return encoder_flops(c->lm, n) + decoder_flops(c->lm, 1, 0, n);
}

/* One query, direct method, x and options as pieces. */
static double query_flops(const Context *c, const Ids *x, const Ids *option, size_t B) {
    const Model *m = c->lm;
    const double n = (double)(c->vectors.n + c->demos.n), X = (double)x->n;
    double sum = 0;
    if (m->kind == T5) {
        const double shared = decoder_flops(m, X, 1, n), all = options_flops(m, option, B, 1 + X, n);
        return c->alone ? (double)B * (context_flops(c) + shared) + all : shared + all;
    }
    if (!c->alone) return (X > 0 ? decoder_flops(m, X, n, 0) : 0) + options_flops(m, option, B, n + X, 0);
    for (size_t b = 0; b < B; b++) sum += decoder_flops(m, n + X + (double)option[b].n - 1, 0, 0) + head_flops(m, (double)option[b].n);
    return sum;
}

/* The distiller over one group of n pieces. */
static double distiller_flops(const Model *m, double n) {
    const double C = (double)m->size[LETTER_C], U = (double)m->size[LETTER_U], O = (double)m->size[LETTER_O], F = (double)m->size[LETTER_F], N = n + U;
    const double body = m->kind == GPT2 ? stack_flops(N, 0, true, (double)m->L, 2 * C * (4 * C + 2 * F), C) : encoder_flops(m, N);
    return body + (m->pool_w ? 2 * U * C * O : 0);
}

/* ==== commands ==================================================================================================================== */

/* What the commands that ask a language model take, and what they open. */
typedef struct {
    Common *c;
    Bytes lm_path, mend_path, demos_path, vectors_path;
    bool channel, encoder_input, separate_input;
    double groups, label_rows;
    Model lm, mend;
    Examples demos;
    Context context;
} Asking;

#define ASKING_OPTIONS(a)                                                                                                                      \
    {"-l, llm", "FILE", CLI_TEXT, &(a).lm_path, 0, 0, "the language model, a GPT-2 or T5 made by export.py"},                                     \
    {"-d, demonstrations", "FILE", CLI_TEXT, &(a).demos_path, 0, 0, "demonstrations, JSON lines: {\"input\", \"output\", \"options\"}"},             \
    {"-m, mend", "FILE", CLI_TEXT, &(a).mend_path, 0, 0, "the distiller: -d is distilled; without it -d is put before each query"},                 \
    {"-v, vectors", "FILE", CLI_TEXT, &(a).vectors_path, 0, 0, "vectors made by mend distill, in place of -m and -d"},                             \
    {"channel", NULL, CLI_FLAG, &(a).channel, 0, 0, "score p(input | option) instead of p(option | input)"},                                       \
    {"encoder-input", NULL, CLI_FLAG, &(a).encoder_input, 0, 0, "T5: the input stands on the encoder's side"}
#define DISTILLING_OPTIONS(a)                                                                                                                  \
    {"groups", "N", CLI_WHOLE, &(a).groups, 1, 10000, "distil the demonstrations in N groups and concatenate (default 1)"},                         \
    {"label-rows", "N", CLI_WHOLE, &(a).label_rows, 1, 100000, "the last N rows of the distiller's prompt see labels alone"},                       \
    {"separate-input", NULL, CLI_FLAG, &(a).separate_input, 0, 0, "and the others see inputs alone"}

static Distilling distilling_of(const Asking *a) {
    return (Distilling){a->groups > 0 ? (size_t)a->groups : 1, a->label_rows > 0 ? (size_t)a->label_rows : 0, a->separate_input};
}

static void asking_free(Asking *a) {
    context_free(&a->context);
    examples_free(&a->demos);
    model_close(&a->lm);
    model_close(&a->mend);
    bytes_free(&a->lm_path);
    bytes_free(&a->mend_path);
    bytes_free(&a->demos_path);
    bytes_free(&a->vectors_path);
}

/* Open what the options name and read what all queries share. */
static bool asking_begin(Asking *a) {
    Error *err = a->c->err;
    Context *c = &a->context;
    const Distilling d = distilling_of(a);
    if (!a->lm_path.len) return fail(err, BAD_USAGE, "-l is missing: which language model?");
    if (a->vectors_path.len && (a->mend_path.len || a->demos_path.len)) return fail(err, BAD_USAGE, "-v stands for -m and -d: give either");
    if (a->mend_path.len && !a->demos_path.len) return fail(err, BAD_USAGE, "-m distils demonstrations: give them with -d");
    if (!a->mend_path.len && (a->groups > 0 || a->label_rows > 0 || a->separate_input)) return fail(err, BAD_USAGE, "--groups, --label-rows and --separate-input go with -m");
    if (a->separate_input && a->label_rows == 0) return fail(err, BAD_USAGE, "--separate-input goes with --label-rows");
    if (!model_open(&a->lm, a->lm_path.at, LANGUAGE_MODEL, err)) return false;
    if (a->encoder_input && a->lm.kind != T5) return fail(err, BAD_USAGE, "--encoder-input goes with a T5");
    c->lm = &a->lm;
    c->format = format_of(&a->lm, TEACHER_LIMIT, a->channel, a->encoder_input);
    if (a->demos_path.len && !read_examples(a->demos_path.at, true, &a->demos, err)) return false;
    if (a->vectors_path.len && !read_vectors(a->vectors_path.at, &a->lm, &c->vectors, err)) return false;
    if (a->mend_path.len &&
        (!model_open(&a->mend, a->mend_path.at, DISTILLER, err) || !distill(&a->mend, &a->demos, &d, &c->format, &c->vectors, err)))
        return false;
    if (!a->mend_path.len && !demonstrations(&a->lm, &a->demos, 0, a->demos.n, &c->format, &c->demos, NULL, err)) return false;
    return context_begin(c, err);
}

/* "done of all" on a terminal, with the time left. */
static void show_progress(const Common *c, const char *what, size_t done, size_t all, time_t begun) {
    if (c->quiet || !isatty(STDERR_FILENO)) return;
    const double spent = difftime(time(NULL), begun);
    fprintf(stderr, "\r%s %zu of %zu, %.0f s left   %s", what, done, all, done ? spent / (double)done * (double)(all - done) : 0, done == all ? "\n" : "");
}

static void put_numbers(const double *x, size_t n, Bytes *out) {
    bytes_text(out, "[");
    for (size_t i = 0; i < n; i++) {
        if (i) bytes_text(out, ", ");
        json_put_double(out, x[i]);
    }
    bytes_text(out, "]");
}

static void put_score(const Example *q, const double *score, bool json, Bytes *out) {
    const size_t B = q->options.n, first = best(score, B);
    if (json) {
        bytes_text(out, "{\"scores\": ");
        put_numbers(score, B, out);
        bytes_printf(out, ", \"prediction\": %zu}\n", first);
        return;
    }
    bytes_printf(out, "%zu\t%.*s\t", first, (int)q->options.at[first].len, q->options.at[first].at);
    for (size_t b = 0; b < B; b++) bytes_printf(out, "%s%.6f", b ? " " : "", score[b]);
    bytes_text(out, "\n");
}

static bool command_score(Common *c, int argc, char **argv) {
    Asking a = {.c = c};
    Examples queries = {0};
    const CliOption own[] = {ASKING_OPTIONS(a), DISTILLING_OPTIONS(a)};
    const time_t begun = time(NULL);
    bool done = false;
    bool ok = command_start(c, "usage: mend score -l LLM [-v VECTORS | -m MEND -d DEMOS | -d DEMOS] [options] [INPUT.jsonl|-]\n"
                            "The mean log probability of each option of each line, and the index of the highest. Neither -v, -m nor -d: zero-shot.",
                            own, sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && c->file.n > 1) ok = fail(c->err, BAD_USAGE, "score takes one file of queries");
    const char *path = c->file.n ? c->file.at[0].at : "-";
    if (ok && !done) ok = read_examples(path, false, &queries, c->err) && asking_begin(&a);
    for (size_t i = 0; ok && i < queries.n; i++) {
        double *score = mem_new(queries.at[i].options.n, sizeof *score);
        Bytes out = {0};
        Error detail;
        ok = score_query(&a.context, &queries.at[i], score, &detail) || fail(c->err, detail.code, "%s: example %zu: %.800s", path, i + 1, detail.text);
        if (ok) put_score(&queries.at[i], score, c->json, &out);
        ok = ok && print_out(&out, c->err);
        if (ok) show_progress(c, "scored", i + 1, queries.n, begun);
        bytes_free(&out);
        free(score);
    }
    examples_free(&queries);
    asking_free(&a);
    return ok;
}

static bool command_distill(Common *c, int argc, char **argv) {
    Asking a = {.c = c};
    Bytes output = {0}, text = {0};
    Vectors v = {0};
    char hash[65];
    const CliOption own[] = {{"-m, mend", "FILE", CLI_TEXT, &a.mend_path, 0, 0, "the distiller, a MEND checkpoint made by export.py --mend"},
                             {"-d, demonstrations", "FILE", CLI_TEXT, &a.demos_path, 0, 0, "demonstrations, JSON lines: {\"input\", \"output\"}"},
                             {"-o, output", "FILE", CLI_TEXT, &output, 0, 0, "where the vectors go, a safetensors file"},
                             {"-l, llm", "FILE", CLI_TEXT, &a.lm_path, 0, 0, "the language model they are for: recorded, and checked when they are used"},
                             {"channel", NULL, CLI_FLAG, &a.channel, 0, 0, "pairs are (output, input)"},
                             DISTILLING_OPTIONS(a)};
    bool done = false;
    bool ok = command_start(c, "usage: mend distill -m MEND -d DEMOS.jsonl -o VECTORS.safetensors [options]\nDemonstrations to vectors, once.", own,
                            sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done) {
        const Distilling d = distilling_of(&a);
        if (c->file.n || !a.mend_path.len || !a.demos_path.len || !output.len) ok = fail(c->err, BAD_USAGE, "distill wants -m MEND, -d DEMOS and -o VECTORS, and nothing else");
        else if (d.separate_input && !d.label_rows) ok = fail(c->err, BAD_USAGE, "--separate-input goes with --label-rows");
        ok = ok && read_text(a.demos_path.at, &text, c->err) && read_examples(a.demos_path.at, true, &a.demos, c->err) &&
             model_open(&a.mend, a.mend_path.at, DISTILLER, c->err) && (!a.lm_path.len || model_open(&a.lm, a.lm_path.at, LANGUAGE_MODEL, c->err));
        if (ok && a.lm_path.len && a.lm.size[LETTER_C] != a.mend.size[LETTER_O])
            ok = fail(c->err, BAD_MODEL, "%s makes vectors %zu wide, %s reads %zu", a.mend_path.at, a.mend.size[LETTER_O], a.lm_path.at, a.lm.size[LETTER_C]);
        ok = ok && distill(&a.mend, &a.demos, &d, &(Format){.channel = a.channel}, &v, c->err);
        if (ok) sha256_hex(text.at, text.len, hash);
        ok = ok && write_vectors(output.at, &v, &a.mend, a.lm_path.len ? &a.lm : NULL, hash, c->err);
        if (ok && !c->quiet) fprintf(stderr, "%s: %zu demonstrations in %zu vectors of %zu\n", output.at, a.demos.n, v.n, v.O);
    }
    free(v.at);
    bytes_free(&text);
    bytes_free(&output);
    asking_free(&a);
    return ok;
}

static bool command_generate(Common *c, int argc, char **argv) {
    Asking a = {.c = c};
    Bytes prompt = {0}, out = {0}, id_text = {0};
    Sampling s = {.top_p = 1};
    Ids ids = {0}, made = {0};
    double n = 32, seed = 0;
    const CliOption own[] = {ASKING_OPTIONS(a), DISTILLING_OPTIONS(a),
                             {"prompt", "TEXT", CLI_TEXT, &prompt, 0, 0, "what to go on from"},
                             {"ids", "1,2,3", CLI_TEXT, &id_text, 0, 0, "these piece ids instead"},
                             {"-n, length", "N", CLI_WHOLE, &n, 1, 1e6, "how many pieces at most (default 32)"},
                             {"temperature", "T", CLI_NUMBER, &s.temperature, 0, 1e6, "0, the default: always the most probable piece"},
                             {"top-p", "P", CLI_NUMBER, &s.top_p, 0, 1, "choose among the smallest set of pieces that holds P (default 1)"},
                             {"seed", "S", CLI_WHOLE, &seed, 0, 9007199254740992.0, "of the random numbers (default 0)"}};
    bool done = false;
    bool ok = command_start(c, "usage: mend generate -l LLM [-v VECTORS | -m MEND -d DEMOS | -d DEMOS] --prompt TEXT [options]\nText that follows.", own,
                            sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && (c->file.n || (prompt.at && id_text.at))) ok = fail(c->err, BAD_USAGE, "generate takes --prompt or --ids, and no file");
    if (ok && !done) {
        size_t bad;
        s.seed = (uint64_t)seed;
        if (prompt.at && !utf8_valid(prompt.at, prompt.len, &bad)) ok = fail(c->err, BAD_INPUT, "--prompt: byte %zu: the text is not UTF-8", bad);
        ok = ok && asking_begin(&a) && (id_text.at ? parse_ids(&id_text, &ids.at, &ids.n, c->err) : !prompt.len || pieces_of(&a.lm, &prompt, false, &ids, c->err));
        for (size_t i = 0; ok && i < ids.n; i++)
            if (ids.at[i] >= a.lm.size[LETTER_V]) ok = fail(c->err, BAD_INPUT, "there is no piece %lu: the model has %zu", (unsigned long)ids.at[i], a.lm.size[LETTER_V]);
        ok = ok && generate(&a.context, &ids, (size_t)n, &s, &made, c->err);
        if (ok && c->json) {
            bytes_text(&out, "{\"ids\": [");
            for (size_t i = 0; i < made.n; i++) bytes_printf(&out, "%s%lu", i ? ", " : "", (unsigned long)made.at[i]);
            bytes_text(&out, "]");
        }
        if (ok && a.lm.tokenizer) {
            Bytes text = {0};
            ok = tokenizer_decode(a.lm.tokenizer, made.at, made.n, &text, c->err);
            if (c->json) bytes_text(&out, ", \"text\": "), json_put_string(&out, text.at ? text.at : "", text.len);
            else bytes_add(&out, text.at ? text.at : "", text.len);
            bytes_free(&text);
        } else if (ok && !c->json)
            for (size_t i = 0; i < made.n; i++) bytes_printf(&out, "%s%lu", i ? "," : "", (unsigned long)made.at[i]);
        bytes_text(&out, c->json ? "}\n" : "\n");
        ok = ok && print_out(&out, c->err);
    }
    bytes_free(&prompt), bytes_free(&out), bytes_free(&id_text);
    ids_free(&ids), ids_free(&made);
    asking_free(&a);
    return ok;
}

/* Ids from --name 1,2,3 or the pieces of a text. */
static bool take_ids(const Model *m, const Bytes *list, const Bytes *text, Ids *ids, Error *err) {
    if (list->at ? !parse_ids(list, &ids->at, &ids->n, err) : !pieces_of(m, text, false, ids, err)) return false;
    for (size_t i = 0; i < ids->n; i++)
        if (ids->at[i] >= m->size[LETTER_V]) return fail(err, BAD_INPUT, "there is no piece %lu: the model has %zu", (unsigned long)ids->at[i], m->size[LETTER_V]);
    return ids->n > 0 || fail(err, BAD_INPUT, "the text is empty");
}

static void put_logprobs(const Model *m, const Ids *ids, const float *lp, size_t n, bool json, Bytes *out) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)lp[i];
    const double perplexity = (double)cr_one(CR_EXP, (float)(-sum / (double)n));
    if (!json) {
        for (size_t i = 0; i < n; i++) {
            const uint32_t id = ids->at[ids->n - n + i];
            size_t len = 0;
            const char *piece = m->tokenizer ? tokenizer_piece(m->tokenizer, id, &len) : NULL;
            bytes_printf(out, "%.6f\t%lu\t%.*s\n", (double)lp[i], (unsigned long)id, (int)len, piece ? piece : "");
        }
        if (n) bytes_printf(out, "perplexity %.4f\n", perplexity);
        return;
    }
    bytes_text(out, "{\"ids\": [");
    for (size_t i = 0; i < ids->n; i++) bytes_printf(out, "%s%lu", i ? ", " : "", (unsigned long)ids->at[i]);
    bytes_text(out, "], \"logprob\": [");
    for (size_t i = 0; i < n; i++) {
        if (i) bytes_text(out, ", ");
        json_put_double(out, (double)lp[i]);
    }
    bytes_text(out, "], \"perplexity\": ");
    if (n) json_put_double(out, perplexity);
    else bytes_text(out, "null");
    bytes_text(out, "}\n");
}

static bool command_logprob(Common *c, int argc, char **argv) {
    Bytes path = {0}, list = {0}, source_list = {0}, source_text = {0}, text = {0}, out = {0};
    Model m = {0};
    Ids ids = {0}, source = {0};
    const CliOption own[] = {{"-l, llm", "FILE", CLI_TEXT, &path, 0, 0, "the language model, a GPT-2 or T5 made by export.py"},
                             {"ids", "1,2,3", CLI_TEXT, &list, 0, 0, "these piece ids instead of a text"},
                             {"encoder-ids", "1,2,3", CLI_TEXT, &source_list, 0, 0, "T5: what the encoder reads, as ids"},
                             {"encoder-text", "TEXT", CLI_TEXT, &source_text, 0, 0, "T5: what the encoder reads"}};
    bool done = false;
    bool ok = command_start(c, "usage: mend logprob -l LLM [--ids 1,2,3 | FILE|-]\nlog p of each piece given those before it, and the perplexity. GPT-2: the first piece has none before it;\n"
                            "T5: the decoder's start piece stands before the first.", own, sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && (c->file.n > 1 || (list.at && c->file.n) || !path.len)) ok = fail(c->err, BAD_USAGE, "logprob takes -l LLM and one text: a file, standard input, or --ids");
    if (ok && !done) {
        ok = model_open(&m, path.at, LANGUAGE_MODEL, c->err);
        const bool has_source = source_list.at || source_text.at;
        if (ok && has_source != (m.kind == T5)) ok = fail(c->err, BAD_USAGE, m.kind == T5 ? "a T5 needs --encoder-ids or --encoder-text" : "--encoder-ids and --encoder-text go with a T5");
        ok = ok && (list.at || read_text(c->file.n ? c->file.at[0].at : "-", &text, c->err)) && take_ids(&m, &list, &text, &ids, c->err) &&
             (!has_source || take_ids(&m, &source_list, &source_text, &source, c->err));
        const size_t n = ok ? ids.n - (m.kind == T5 ? 0 : 1) : 0;
        float *lp = mem_new(n, sizeof *lp);
        ok = ok && logprobs(&m, &ids, &source, lp, c->err);
        if (ok) put_logprobs(&m, &ids, lp, n, c->json, &out);
        ok = ok && print_out(&out, c->err);
        free(lp);
    }
    bytes_free(&path), bytes_free(&list), bytes_free(&source_list), bytes_free(&source_text), bytes_free(&text), bytes_free(&out);
    ids_free(&ids), ids_free(&source);
    model_close(&m);
    return ok;
}

/* One line of the table of `mend cost`: what is paid once, and per query. */
typedef struct {
    const char *name;
    double once, once_seconds, query, query_seconds; /* multiply-adds times two; query: the mean */
} Bill;

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Errors: BAD_SYSTEM if what was done is not what the shapes say. */
static bool same_flops(const char *what, double done, double counted, Error *err) {
    return done == counted || fail(err, BAD_SYSTEM, "%s: %.0f operations were done, the shapes say %.0f: report this", what, done, counted);
}

/* The context's part, then each query; what the distiller did before is in *bill already. */
static bool run_bill(Context *c, const Examples *queries, Bill *bill, Error *err) {
    double begun = seconds(), flops = tensor_flops();
    if (!context_begin(c, err) || (!c->alone && !same_flops(bill->name, tensor_flops() - flops, context_flops(c), err))) return false;
    if (!c->alone) bill->once += tensor_flops() - flops, bill->once_seconds += seconds() - begun;
    bool ok = true;
    for (size_t i = 0; ok && i < queries->n; i++) {
        const size_t B = queries->at[i].options.n;
        Ids x = {0}, *option = mem_new(B, sizeof *option);
        double *score = mem_new(B, sizeof *score);
        Error detail;
        begun = seconds(), flops = tensor_flops();
        ok = (query_pieces(c, &queries->at[i], &x, option, &detail) && score_pieces(c, &x, option, B, score, &detail)) ||
             fail(err, detail.code, "query %zu: %.800s", i + 1, detail.text);
        bill->query += (tensor_flops() - flops) / (double)queries->n;
        bill->query_seconds += (seconds() - begun) / (double)queries->n;
        const bool cut = c->lm->kind == GPT2 && c->demos.n + x.n + longest_of(option, B) > c->format.limit;
        if (ok && !cut) ok = same_flops(bill->name, tensor_flops() - flops, query_flops(c, &x, option, B), err);
        for (size_t b = 0; b < B; b++) ids_free(&option[b]);
        ids_free(&x);
        free(option), free(score);
    }
    return ok;
}

/* The distiller's part of MEND's bill. */
static bool distil_bill(const Asking *a, Context *c, Bill *bill, Error *err) {
    const Distilling d = distilling_of(a);
    const Format f = format_of(&a->mend, DISTILLER_LIMIT, false, false);
    const size_t each = (a->demos.n + d.groups - 1) / d.groups;
    const double begun = seconds(), flops = tensor_flops();
    double counted = 0;
    if (!distill(&a->mend, &a->demos, &d, &c->format, &c->vectors, err)) return false;
    bill->once = tensor_flops() - flops, bill->once_seconds = seconds() - begun;
    for (size_t from = 0; from < a->demos.n; from += each) {
        Ids ids = {0};
        if (!demonstrations(&a->mend, &a->demos, from, from + each < a->demos.n ? from + each : a->demos.n, &f, &ids, NULL, err)) return false;
        counted += distiller_flops(&a->mend, (double)ids.n);
        ids_free(&ids);
    }
    return same_flops("distiller", bill->once, counted, err);
}

/* After how many queries `a` has cost less than `b` in all, or infinity. */
static double break_even(double once_a, double query_a, double once_b, double query_b) {
    if (once_a <= once_b && query_a <= query_b) return 0;
    return query_a < query_b ? ceil((once_a - once_b) / (query_b - query_a)) : (double)INFINITY;
}

static void put_bills(const Bill *bill, size_t n, size_t queries, bool json, Bytes *out) {
    const Bill *mend = &bill[n - 1];
    if (json) bytes_printf(out, "{\"queries\": %zu, \"methods\": [", queries);
    else bytes_printf(out, "%-28s %14s %10s %14s %12s %14s %22s\n", "", "GFLOP once", "s once", "GFLOP / query", "ms / query", "GFLOP in all", "MEND cheaper after");
    for (size_t i = 0; i < n; i++) {
        const Bill *b = &bill[i];
        const double all = b->once + b->query * (double)queries, even = i + 1 < n ? break_even(mend->once, mend->query, b->once, b->query) : 0;
        if (json) {
            bytes_printf(out, "%s{\"method\": \"%s\", \"flops_once\": ", i ? ", " : "", b->name);
            json_put_double(out, b->once);
            bytes_text(out, ", \"seconds_once\": "), json_put_double(out, b->once_seconds);
            bytes_text(out, ", \"flops_per_query\": "), json_put_double(out, b->query);
            bytes_text(out, ", \"seconds_per_query\": "), json_put_double(out, b->query_seconds);
            bytes_text(out, ", \"mend_cheaper_after_queries\": ");
            if (i + 1 == n || isinf(even)) bytes_text(out, "null");
            else json_put_double(out, even);
            bytes_text(out, "}");
            continue;
        }
        bytes_printf(out, "%-28s %14.4f %10.3f %14.4f %12.2f %14.3f", b->name, b->once * 1e-9, b->once_seconds, b->query * 1e-9, b->query_seconds * 1e3, all * 1e-9);
        if (i + 1 == n) bytes_text(out, "\n");
        else if (isinf(even)) bytes_printf(out, " %22s\n", "never");
        else bytes_printf(out, " %14.0f queries\n", even);
    }
    if (json) bytes_text(out, "]}\n");
}

static bool command_cost(Common *c, int argc, char **argv) {
    Asking a = {.c = c};
    Examples queries = {0};
    Bytes out = {0};
    Bill bill[4] = {{.name = "zero-shot"}, {.name = "in context, nothing cached"}, {.name = "in context, cached"}, {.name = "MEND, distiller included"}};
    const CliOption own[] = {{"-l, llm", "FILE", CLI_TEXT, &a.lm_path, 0, 0, "the language model"},
                             {"-m, mend", "FILE", CLI_TEXT, &a.mend_path, 0, 0, "the distiller"},
                             {"-d, demonstrations", "FILE", CLI_TEXT, &a.demos_path, 0, 0, "demonstrations, JSON lines"},
                             {"groups", "N", CLI_WHOLE, &a.groups, 1, 10000, "distil the demonstrations in N groups and concatenate (default 1)"}};
    bool done = false;
    bool ok = command_start(c, "usage: mend cost -l LLM -m MEND -d DEMOS.jsonl [options] [INPUT.jsonl|-]\nWhat the queries of a file cost by each method: operations counted from the shapes and checked against\n"
                            "those done, and seconds; after how many queries MEND, its distiller included, has cost less.", own, sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && (c->file.n > 1 || !a.lm_path.len || !a.mend_path.len || !a.demos_path.len)) ok = fail(c->err, BAD_USAGE, "cost wants -l LLM, -m MEND, -d DEMOS and one file of queries");
    if (ok && !done)
        ok = read_examples(c->file.n ? c->file.at[0].at : "-", false, &queries, c->err) && read_examples(a.demos_path.at, true, &a.demos, c->err) &&
             model_open(&a.lm, a.lm_path.at, LANGUAGE_MODEL, c->err) && model_open(&a.mend, a.mend_path.at, DISTILLER, c->err);
    for (size_t i = ok && !done && a.lm.kind == T5 ? 1 : 0; ok && !done && i < 4; i++) { /* a T5 without demonstrations has nothing to encode */
        Context context = {.lm = &a.lm, .format = format_of(&a.lm, TEACHER_LIMIT, false, false), .alone = i == 1};
        if (i == 1 || i == 2) ok = demonstrations(&a.lm, &a.demos, 0, a.demos.n, &context.format, &context.demos, NULL, c->err);
        if (i == 3) ok = distil_bill(&a, &context, &bill[i], c->err);
        ok = ok && run_bill(&context, &queries, &bill[i], c->err);
        context_free(&context);
    }
    if (ok && !done) put_bills(a.lm.kind == T5 ? bill + 1 : bill, a.lm.kind == T5 ? 3 : 4, queries.n, c->json, &out);
    ok = ok && print_out(&out, c->err);
    bytes_free(&out);
    examples_free(&queries);
    asking_free(&a);
    return ok;
}

/* What `mend eval` was asked for. */
typedef struct {
    Asking asking;
    Bytes data, partition, partition_file, split, output;
    Texts task, seed, method, ablation;
    double K;
    Vectors prompt;
    Json partitions;
    Texts done;       /* keys of results that are there already */
    Texts classes;    /* tasks judged by macro-F1 */
    Bytes results;    /* JSON lines, old and new */
} Evaluation;

static void evaluation_free(Evaluation *e) {
    asking_free(&e->asking);
    bytes_free(&e->data), bytes_free(&e->partition), bytes_free(&e->partition_file), bytes_free(&e->split), bytes_free(&e->output), bytes_free(&e->results);
    texts_free(&e->task), texts_free(&e->seed), texts_free(&e->method), texts_free(&e->ablation), texts_free(&e->done), texts_free(&e->classes);
    free(e->prompt.at);
    json_free(&e->partitions);
}

static bool name_of(const Bytes *text, const char *const *names, size_t n, const char *option, size_t *out, Error *err) {
    for (*out = 0; *out < n; ++*out)
        if (strcmp(text->at, names[*out]) == 0) return true;
    Bytes all = {0};
    for (size_t i = 0; i < n; i++) bytes_printf(&all, "%s%s", i ? ", " : "", names[i]);
    fail(err, BAD_USAGE, "%s is one of %s, not '%.50s'", option, all.at, text->at);
    bytes_free(&all);
    return false;
}

static void add_names(const Json *list, Texts *to) {
    for (size_t i = 0; list && list->type == JSON_ARRAY && i < list->len; i++)
        if (list->item[i].type == JSON_STRING && !texts_hold(to, list->item[i].text, list->item[i].len)) texts_add(to, list->item[i].text, list->item[i].len);
}

/* The test tasks of a partition, and which tasks are classification, from {"NAME": {"train": [], "test": []}, ..., "classification": []}. */
static bool read_partition(Evaluation *e, Error *err) {
    Bytes text = {0};
    Error detail;
    const char *path = e->partition_file.at;
    bool ok = read_text(path, &text, err) && (json_parse(text.at, text.len, &e->partitions, &detail) || fail(err, BAD_INPUT, "%s: %.800s", path, detail.text));
    bytes_free(&text);
    if (!ok) return false;
    add_names(json_get(&e->partitions, "classification"), &e->classes);
    if (!e->partition.len) return true;
    const Json *p = json_get(&e->partitions, e->partition.at), *test = json_get(p, "test");
    if (!test || test->type != JSON_ARRAY) return fail(err, BAD_INPUT, "%s: there is no partition '%.50s' with a list of \"test\" tasks", path, e->partition.at);
    add_names(test, &e->task);
    return true;
}

/* DIR/TASK/TASK_16_SEED_SPLIT.jsonl; test data is often there for one seed alone, so another seed's is taken if this one's is missing. */
static void data_path(const Evaluation *e, const char *task, const char *seed, const char *split, Bytes *path) {
    static const char *const others[] = {"100", "13", "21", "42", "87"};
    for (size_t i = 0; i <= sizeof others / sizeof *others; i++) {
        path->len = 0;
        bytes_printf(path, "%s/%s/%s_16_%s_%s.jsonl", e->data.at, task, task, i ? others[i - 1] : seed, split);
        if (strcmp(split, "train") == 0 || access(path->at, R_OK) == 0) return;
    }
    path->len = 0;
    bytes_printf(path, "%s/%s/%s_16_%s_%s.jsonl", e->data.at, task, task, seed, split);
}

static void result_key(const Bytes *task, const Bytes *seed, const char *method, const char *ablation, const Evaluation *e, Bytes *key) {
    key->len = 0;
    bytes_printf(key, "%s|%s|%s|%s|%.0f|%s|%s|%s|%s", task->at, seed->at, method, ablation, e->K, e->split.at, e->asking.channel ? "channel" : "direct",
                 model_hash(&e->asking.lm), e->asking.mend.weights && strcmp(method, "mend") == 0 ? model_hash(&e->asking.mend) : "");
}

/* Results of an earlier run: their lines are kept and not computed again. */
static bool read_results(Evaluation *e, Error *err) {
    Bytes text = {0};
    if (!e->output.len || access(e->output.at, F_OK) != 0) return true;
    bool ok = read_text(e->output.at, &text, err);
    for (size_t at = 0, number = 1; ok && at < text.len; number++) {
        const char *end = memchr(text.at + at, '\n', text.len - at);
        const size_t len = end ? (size_t)(end - text.at) - at : text.len - at;
        Json j = {0};
        Error detail;
        ok = json_parse(text.at + at, len, &j, &detail) || fail(err, BAD_INPUT, "%s: line %zu: %.800s", e->output.at, number, detail.text);
        const Json *key = json_get(&j, "key");
        if (ok && (!key || key->type != JSON_STRING)) ok = fail(err, BAD_INPUT, "%s: line %zu: no result of mend eval", e->output.at, number);
        if (ok) {
            texts_add(&e->done, key->text, key->len);
            bytes_add(&e->results, text.at + at, len);
            bytes_text(&e->results, "\n");
        }
        json_free(&j);
        at += len + 1;
    }
    bytes_free(&text);
    return ok;
}

/* One task, seed, method and ablation: a line of results. */
static bool evaluate_one(Evaluation *e, const Bytes *task, const Bytes *seed, Method method, Ablation ablation, const Bytes *key, Error *err) {
    const Asking *a = &e->asking;
    Examples demos = {0}, queries = {0};
    Bytes path = {0};
    uint64_t count = 0;
    const uint64_t number = strtoull(seed->at, NULL, 10);
    const double begun = seconds();
    data_path(e, task->at, seed->at, "train", &path);
    bool ok = read_examples(path.at, true, &demos, err);
    const size_t K = (size_t)e->K;
    if (ok && K > demos.n) ok = fail(err, BAD_INPUT, "%s: %zu demonstrations are wanted, %zu are there", path.at, K, demos.n);
    if (ok) {
        if (K < demos.n || ablation == SHUFFLED) shuffle(&demos, K, number, &count);
        for (size_t i = K; i < demos.n; i++) example_free(&demos.at[i]);
        demos.n = K;
        if (ablation == RANDOM_LABEL || ablation == WRONG_LABEL) relabel(&demos, ablation == WRONG_LABEL, number, &count);
        data_path(e, task->at, seed->at, e->split.at, &path);
        ok = read_examples(path.at, true, &queries, err);
    }
    size_t *prediction = mem_new(queries.n, sizeof *prediction);
    const Setting s = {&a->lm, &a->mend, &e->prompt, distilling_of(a), format_of(&a->lm, TEACHER_LIMIT, a->channel, a->encoder_input), method, ablation};
    Error detail;
    ok = ok && (predict(&s, &demos, &queries, prediction, &detail) || fail(err, detail.code, "%s: %.800s", path.at, detail.text));
    if (ok) {
        const bool f1 = texts_hold(&e->classes, task->at, task->len);
        bytes_text(&e->results, "{\"key\": "), json_put_string(&e->results, key->at, key->len);
        bytes_text(&e->results, ", \"task\": "), json_put_string(&e->results, task->at, task->len);
        bytes_printf(&e->results, ", \"seed\": \"%s\", \"method\": \"%s\", \"ablation\": \"%s\", \"queries\": %zu, \"metric\": \"%s\", \"value\": ", seed->at,
                     method_names[method], ablation_names[ablation], queries.n, f1 ? "macro-f1" : "accuracy");
        json_put_double(&e->results, f1 ? macro_f1(&queries, prediction) : accuracy(&queries, prediction));
        bytes_text(&e->results, ", \"seconds\": "), json_put_double(&e->results, seconds() - begun);
        bytes_text(&e->results, "}\n");
        if (e->output.len) ok = file_write(e->output.at, e->results.at, e->results.len, err);
    }
    free(prediction);
    bytes_free(&path);
    examples_free(&demos), examples_free(&queries);
    return ok;
}

/* Everything that was asked for and is not there yet. */
static bool evaluate(Evaluation *e, Error *err) {
    const size_t all = e->task.n * e->seed.n * e->method.n * e->ablation.n;
    const time_t begun = time(NULL);
    size_t n = 0, method, ablation;
    Bytes key = {0};
    bool ok = true;
    for (size_t t = 0; ok && t < e->task.n; t++)
        for (size_t s = 0; ok && s < e->seed.n; s++)
            for (size_t m = 0; ok && m < e->method.n; m++)
                for (size_t b = 0; ok && b < e->ablation.n; b++) {
                    ok = name_of(&e->method.at[m], method_names, METHODS, "--method", &method, err) &&
                         name_of(&e->ablation.at[b], ablation_names, ABLATIONS, "--ablation", &ablation, err);
                    result_key(&e->task.at[t], &e->seed.at[s], e->method.at[m].at, e->ablation.at[b].at, e, &key);
                    if (ok && !texts_hold(&e->done, key.at, key.len))
                        ok = evaluate_one(e, &e->task.at[t], &e->seed.at[s], (Method)method, (Ablation)ablation, &key, err);
                    if (ok) show_progress(e->asking.c, "evaluated", ++n, all, begun);
                }
    bytes_free(&key);
    return ok;
}

/* Mean and deviation (over n, as the reference) of the results that match. */
static size_t spread_of(const Json *lines, size_t n, const char *task, const char *method, const char *ablation, double *mean, double *deviation) {
    double sum = 0, squares = 0;
    size_t found = 0;
    for (size_t pass = 0; pass < 2; pass++) {
        found = 0;
        for (size_t i = 0; i < n; i++) {
            const Json *t = json_get(&lines[i], "task"), *m = json_get(&lines[i], "method"), *b = json_get(&lines[i], "ablation"), *v = json_get(&lines[i], "value");
            if (!t || !m || !b || !v || strcmp(t->text, task) || strcmp(m->text, method) || strcmp(b->text, ablation)) continue;
            found++;
            if (pass == 0) sum += v->number;
            else squares += (v->number - *mean) * (v->number - *mean);
        }
        *mean = sum / (double)found;
    }
    *deviation = sqrt(squares / (double)found);
    return found;
}

/* A row per task, method and ablation, then the mean over tasks of the means over seeds. */
static void put_evaluation(const Evaluation *e, const Json *lines, size_t n, bool json, Bytes *out) {
    if (json) bytes_text(out, "{\"results\": [");
    else bytes_printf(out, "%-40s %-8s %-14s %6s %10s %10s\n", "task", "method", "ablation", "seeds", "mean", "deviation");
    size_t rows = 0;
    for (size_t m = 0; m < e->method.n; m++)
        for (size_t b = 0; b < e->ablation.n; b++) {
            double total = 0, mean = 0, deviation = 0;
            for (size_t t = 0; t <= e->task.n; t++) {
                const bool last = t == e->task.n;
                const size_t seeds = last ? e->seed.n : spread_of(lines, n, e->task.at[t].at, e->method.at[m].at, e->ablation.at[b].at, &mean, &deviation);
                if (last) mean = total / (double)e->task.n;
                else total += mean;
                const char *task = last ? "mean over tasks" : e->task.at[t].at;
                if (!json) {
                    bytes_printf(out, "%-40s %-8s %-14s %6zu %10.4f ", task, e->method.at[m].at, e->ablation.at[b].at, seeds, mean);
                    if (last) bytes_text(out, "\n");
                    else bytes_printf(out, "%10.4f\n", deviation);
                    continue;
                }
                bytes_printf(out, "%s{\"task\": ", rows++ ? ", " : "");
                json_put_string(out, task, strlen(task));
                bytes_printf(out, ", \"method\": \"%s\", \"ablation\": \"%s\", \"seeds\": %zu, \"mean\": ", e->method.at[m].at, e->ablation.at[b].at, seeds);
                json_put_double(out, mean);
                bytes_text(out, ", \"deviation\": ");
                if (last) bytes_text(out, "null");
                else json_put_double(out, deviation);
                bytes_text(out, "}");
            }
        }
    if (json) bytes_text(out, "]}\n");
}

static bool evaluation_table(const Evaluation *e, bool json, Error *err) {
    Bytes out = {0};
    size_t n = 0;
    for (size_t i = 0; i < e->results.len; i++) n += e->results.at[i] == '\n';
    Json *lines = mem_new(n, sizeof *lines);
    bool ok = true;
    size_t at = 0;
    for (size_t i = 0; ok && i < n; i++) {
        const size_t len = (size_t)((char *)memchr(e->results.at + at, '\n', e->results.len - at) - e->results.at) - at;
        ok = json_parse(e->results.at + at, len, &lines[i], err);
        at += len + 1;
    }
    if (ok) put_evaluation(e, lines, n, json, &out);
    ok = ok && print_out(&out, err);
    for (size_t i = 0; i < n; i++) json_free(&lines[i]);
    free(lines);
    bytes_free(&out);
    return ok;
}

static void default_names(Texts *t, const char *const *names, size_t n) {
    if (t->n) return;
    for (size_t i = 0; i < n; i++) texts_add(t, names[i], strlen(names[i]));
}

/* Open the models, complete the lists, read what is there. */
static bool evaluation_begin(Evaluation *e, Error *err) {
    static const char *const seeds[] = {"100", "13", "21", "42", "87"}, *const methods[] = {"zero", "icl", "mend"}, *const none[] = {"none"};
    Asking *a = &e->asking;
    bool ok = true;
    if (!a->lm_path.len || !e->data.len) return fail(err, BAD_USAGE, "eval wants -l LLM and --data DIR");
    if (e->partition.len && !e->partition_file.len) return fail(err, BAD_USAGE, "--partition is looked up in a file: give it with --partitions");
    if (e->partition_file.len && !read_partition(e, err)) return false;
    if (e->task.n == 0) return fail(err, BAD_USAGE, "no task: give --task, or --partitions FILE and --partition NAME");
    if (!e->split.len) bytes_set(&e->split, "test", 4);
    default_names(&e->seed, seeds, 5);
    default_names(&e->ablation, none, 1);
    default_names(&e->method, methods, a->mend_path.len ? 3 : 2);
    for (size_t i = 0; i < e->method.n; i++) {
        if (strcmp(e->method.at[i].at, "mend") == 0 && !a->mend_path.len) return fail(err, BAD_USAGE, "--method mend needs a distiller: -m");
        if (strcmp(e->method.at[i].at, "prompt") == 0 && !a->vectors_path.len) return fail(err, BAD_USAGE, "--method prompt needs tuned vectors: -v");
    }
    ok = model_open(&a->lm, a->lm_path.at, LANGUAGE_MODEL, err) && (!a->mend_path.len || model_open(&a->mend, a->mend_path.at, DISTILLER, err)) &&
         (!a->vectors_path.len || read_vectors(a->vectors_path.at, &a->lm, &e->prompt, err));
    return ok && read_results(e, err);
}

static bool command_eval(Common *c, int argc, char **argv) {
    Evaluation e = {.K = 16};
    Asking *a = &e.asking;
    a->c = c;
    const CliOption own[] = {{"-l, llm", "FILE", CLI_TEXT, &a->lm_path, 0, 0, "the language model"},
                             {"-m, mend", "FILE", CLI_TEXT, &a->mend_path, 0, 0, "the distiller, for the method mend"},
                             {"-v, vectors", "FILE", CLI_TEXT, &a->vectors_path, 0, 0, "tuned vectors, for the method prompt"},
                             {"data", "DIR", CLI_TEXT, &e.data, 0, 0, "MetaICL's layout: DIR/TASK/TASK_16_SEED_train.jsonl"},
                             {"task", "NAME", CLI_TEXTS, &e.task, 0, 0, "a task (repeatable)"},
                             {"partitions", "FILE", CLI_TEXT, &e.partition_file, 0, 0, "JSON: partitions, and which tasks are \"classification\" (data/partitions.json)"},
                             {"partition", "NAME", CLI_TEXT, &e.partition, 0, 0, "the test tasks of this partition"},
                             {"seed", "S", CLI_WHOLES, &e.seed, 0, 1e15, "whose demonstrations (repeatable; default 100, 13, 21, 42, 87)"},
                             {"method", "NAME", CLI_TEXTS, &e.method, 0, 0, "zero, icl, mend or prompt (repeatable)"},
                             {"ablation", "NAME", CLI_TEXTS, &e.ablation, 0, 0, "none, no-input, no-label, random-label, wrong-label, itself, shuffled (repeatable)"},
                             {"-k, demonstrations", "K", CLI_WHOLE, &e.K, 1, 10000, "how many demonstrations (default 16)"},
                             {"split", "NAME", CLI_TEXT, &e.split, 0, 0, "which file holds the queries (default test)"},
                             {"-o, output", "FILE", CLI_TEXT, &e.output, 0, 0, "results as JSON lines; those in it already are not computed again"},
                             {"channel", NULL, CLI_FLAG, &a->channel, 0, 0, "score p(input | option)"},
                             {"encoder-input", NULL, CLI_FLAG, &a->encoder_input, 0, 0, "T5: the input stands on the encoder's side"},
                             DISTILLING_OPTIONS(*a)};
    bool done = false;
    bool ok = command_start(c, "usage: mend eval -l LLM [-m MEND] --data DIR --task NAME|--partition NAME [options]\nTasks, seeds and methods: macro-F1 of classification tasks, accuracy of others; mean and deviation over seeds.",
                            own, sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && c->file.n) ok = fail(c->err, BAD_USAGE, "eval takes options alone");
    ok = ok && (done || (evaluation_begin(&e, c->err) && evaluate(&e, c->err) && evaluation_table(&e, c->json, c->err)));
    evaluation_free(&e);
    return ok;
}

static bool command_info(Common *c, int argc, char **argv) {
    bool done = false;
    bool ok = command_start(c, "usage: mend info [options] MODEL\nWhat a model or vectors file holds.", NULL, 0, argc, argv, &done);
    if (ok && !done && c->file.n != 1) ok = fail(c->err, BAD_USAGE, "info takes one model file");
    return ok && (done || print_info(c->file.at[0].at, c->json, c->err));
}

static const Command commands[] = {
    {"distill", command_distill, "demonstrations to vectors, once"},
    {"score", command_score, "which option a language model takes: zero-shot, in context, or from vectors"},
    {"generate", command_generate, "text that follows a prompt"},
    {"logprob", command_logprob, "log p of each piece of a text"},
    {"eval", command_eval, "tasks, seeds and methods of MetaICL's kind"},
    {"cost", command_cost, "what each method costs, and where MEND breaks even"},
    {"info", command_info, "what a file holds"},
};

#ifndef TESTING
int main(int argc, char **argv) { return program_main("mend", commands, sizeof commands / sizeof *commands, argc, argv); }
#endif
