/* lingua2.c - LLMLingua-2 in plain C: a prompt goes in, a shorter one comes out.
 *
 * The idea (Pan et al. 2024, arXiv 2403.12968): a small bidirectional encoder looks at a text once and gives each piece of it a probability of being
 * worth keeping. It learned that from a large language model's own extractive compressions. Words are kept or dropped whole; nothing is reworded.
 *
 *   text -> chunks of at most 512 pieces -> encoder -> p(keep) per piece -> p per word -> the words above a percentile -> text
 *
 * This file, top to bottom: the model (one table of tensors), the encoder (one straight forward pass for BERT and XLM-RoBERTa), words and
 * thresholds, compression as the Python package llmlingua 0.2.2 does it (function names as there), requests and results as JSON, commands.
 *
 * Letters: N rows (pieces of all chunks, one after another, no padding), B chunks, T pieces of a chunk, C hidden size, H heads, D = C/H,
 * F intermediate size, L layers, K = 2 labels, V P Y rows of the word, position and type embeddings.
 *
 * Left out on purpose: GPUs, quantised weights, padding.
 */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "program.h"
#include "tensor.h"
#include "tokenizer.h"
#include "unicode.h"
#include "weights.h"

/* ==== the model ===================================================================================================================
 * What a flat file of a token classifier holds, checked before use. */

typedef enum { FAMILY_BERT, FAMILY_XLMR } Family; /* which rules of the package apply */
enum { LETTER_V, LETTER_P, LETTER_Y, LETTER_C, LETTER_F, LETTER_K, LETTERS };
enum { MAX_PIECES = 512, NEW_TOKENS = 100, MAX_LAYERS = 1000 };

typedef struct {
    const float *q_w, *q_b, *k_w, *k_b, *v_w, *v_b; /* [C,C], [C] */
    const float *o_w, *o_b, *ln1_g, *ln1_b;         /* [C,C], [C], [C], [C] */
    const float *up_w, *up_b, *down_w, *down_b;     /* [C,F], [F], [F,C], [C] */
    const float *ln2_g, *ln2_b;                     /* [C] */
} Layer;

typedef struct {
    const float *wte, *wpe, *wye;       /* [V,C], [P,C], [Y,C] */
    const float *ln_g, *ln_b;           /* [C] */
    const float *head_w, *head_b;       /* [C,K], [K] */
    Layer *layer;                       /* [L] */
    size_t size[LETTERS], L, H;
    double eps;
    CrFunction act;
    size_t first_position; /* row of wpe for the first piece: 0 for BERT, padding id + 1 for XLM-R */
    uint32_t pad_id;
    Family family;
    Weights *weights;
    Tokenizer *tokenizer; /* NULL if the file holds none */
    Error no_tokenizer;   /* then: why */
    uint32_t new_token_base;
} Model;

static const TensorRow model_table[] = {
    {"embeddings.word_embeddings.weight", LETTER_V, LETTER_C, offsetof(Model, wte)},
    {"embeddings.position_embeddings.weight", LETTER_P, LETTER_C, offsetof(Model, wpe)},
    {"embeddings.token_type_embeddings.weight", LETTER_Y, LETTER_C, offsetof(Model, wye)},
    {"embeddings.LayerNorm.weight", LETTER_C, -1, offsetof(Model, ln_g)},
    {"embeddings.LayerNorm.bias", LETTER_C, -1, offsetof(Model, ln_b)},
    {"classifier.weight", LETTER_C, LETTER_K, offsetof(Model, head_w)},
    {"classifier.bias", LETTER_K, -1, offsetof(Model, head_b)},
};
static const TensorRow layer_table[] = {
    {"encoder.layer.%zu.attention.self.query.weight", LETTER_C, LETTER_C, offsetof(Layer, q_w)},
    {"encoder.layer.%zu.attention.self.query.bias", LETTER_C, -1, offsetof(Layer, q_b)},
    {"encoder.layer.%zu.attention.self.key.weight", LETTER_C, LETTER_C, offsetof(Layer, k_w)},
    {"encoder.layer.%zu.attention.self.key.bias", LETTER_C, -1, offsetof(Layer, k_b)},
    {"encoder.layer.%zu.attention.self.value.weight", LETTER_C, LETTER_C, offsetof(Layer, v_w)},
    {"encoder.layer.%zu.attention.self.value.bias", LETTER_C, -1, offsetof(Layer, v_b)},
    {"encoder.layer.%zu.attention.output.dense.weight", LETTER_C, LETTER_C, offsetof(Layer, o_w)},
    {"encoder.layer.%zu.attention.output.dense.bias", LETTER_C, -1, offsetof(Layer, o_b)},
    {"encoder.layer.%zu.attention.output.LayerNorm.weight", LETTER_C, -1, offsetof(Layer, ln1_g)},
    {"encoder.layer.%zu.attention.output.LayerNorm.bias", LETTER_C, -1, offsetof(Layer, ln1_b)},
    {"encoder.layer.%zu.intermediate.dense.weight", LETTER_C, LETTER_F, offsetof(Layer, up_w)},
    {"encoder.layer.%zu.intermediate.dense.bias", LETTER_F, -1, offsetof(Layer, up_b)},
    {"encoder.layer.%zu.output.dense.weight", LETTER_F, LETTER_C, offsetof(Layer, down_w)},
    {"encoder.layer.%zu.output.dense.bias", LETTER_C, -1, offsetof(Layer, down_b)},
    {"encoder.layer.%zu.output.LayerNorm.weight", LETTER_C, -1, offsetof(Layer, ln2_g)},
    {"encoder.layer.%zu.output.LayerNorm.bias", LETTER_C, -1, offsetof(Layer, ln2_b)},
};

static bool read_config(Model *m, const Json *config, Error *err) {
    const char *path = weights_path(m->weights), *family = weights_meta(m->weights, "family");
    static const struct { const char *key; int letter; } sizes[] = {{"max_position_embeddings", LETTER_P}, {"type_vocab_size", LETTER_Y},
                                                                   {"hidden_size", LETTER_C}, {"intermediate_size", LETTER_F}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!config_size(config, sizes[i].key, path, &m->size[sizes[i].letter], err)) return false;
    if (!config_size(config, "num_hidden_layers", path, &m->L, err) || !config_size(config, "num_attention_heads", path, &m->H, err) ||
        !config_activation(config, "hidden_act", path, &m->act, err))
        return false;
    if (m->L > MAX_LAYERS) return fail(err, BAD_MODEL, "%s: %zu layers: at most %d are taken", path, m->L, MAX_LAYERS);
    if (m->size[LETTER_C] % m->H)
        return fail(err, BAD_MODEL, "%s: %zu heads do not divide the hidden size %zu", path, m->H, m->size[LETTER_C]);
    const Tensor *words = weights_find(m->weights, "embeddings.word_embeddings.weight");
    m->size[LETTER_V] = words && words->dims == 2 ? words->shape[0] : 0; /* the configuration may lack the [NEWi] rows */
    m->size[LETTER_K] = 2;
    const Json *pad = json_get(config, "pad_token_id");
    if (!config_epsilon(config, "layer_norm_eps", path, &m->eps, err)) return false;
    if (!family || (strcmp(family, "bert") && strcmp(family, "xlm-roberta")))
        return fail(err, BAD_MODEL, "%s: family is neither bert nor xlm-roberta; export the model again with export.py", path);
    m->family = strcmp(family, "bert") ? FAMILY_XLMR : FAMILY_BERT;
    const char *architecture = weights_meta(m->weights, "architecture");
    size_t pad_id = 1;
    m->pad_id = UINT32_MAX; /* BERT counts positions whatever the ids */
    if (architecture && strncmp(architecture, "XLMRoberta", 10) == 0) {
        if (pad && pad->type != JSON_NULL && !json_size(pad, MAX_CONFIG, &pad_id))
            return fail(err, BAD_MODEL, "%s: pad_token_id in the configuration is no id", path);
        m->pad_id = (uint32_t)pad_id;
        m->first_position = pad_id + 1;
    }
    if (m->first_position >= m->size[LETTER_P])
        return fail(err, BAD_MODEL, "%s: positions begin at row %zu of %zu", path, m->first_position, m->size[LETTER_P]);
    return true;
}

static void model_close(Model *m) {
    free(m->layer);
    tokenizer_close(m->tokenizer);
    weights_close(m->weights);
    *m = (Model){0};
}

/* The tokenizer, and where the rows of [NEW0]..[NEW99] begin. */
static bool open_tokenizer(Model *m, Error *err) {
    const char *base = weights_meta(m->weights, "new_token_base");
    double first;
    if (!weights_meta(m->weights, "tokenizer")) return tokenizer_open(&m->tokenizer, m->weights, &m->no_tokenizer), true;
    if (!tokenizer_open(&m->tokenizer, m->weights, err)) return false;
    if (!base || !cli_number(base, strlen(base), &first) || !(first >= 0 && first + NEW_TOKENS <= (double)m->size[LETTER_V]))
        return fail(err, BAD_MODEL, "%s: lacks the %d rows of [NEW0]..[NEW%d]; export the model again with export.py", weights_path(m->weights), NEW_TOKENS, NEW_TOKENS - 1);
    m->new_token_base = (uint32_t)first;
    if (tokenizer_size(m->tokenizer) > m->size[LETTER_V])
        return fail(err, BAD_MODEL, "%s: the tokenizer has %zu pieces, the embedding %zu rows; export the model again", weights_path(m->weights),
                    tokenizer_size(m->tokenizer), m->size[LETTER_V]);
    return true;
}

static bool model_open(Model *m, const char *path, Error *err) {
    *m = (Model){0};
    Json config = {0};
    if (!weights_open(&m->weights, path, err)) return false;
    bool ok = config_open(m->weights, &config, err) && read_config(m, &config, err) && weights_bind(m->weights, model_table, sizeof model_table / sizeof *model_table, m->size, 0, m, err);
    json_free(&config);
    if (ok) m->layer = mem_new(m->L, sizeof *m->layer);
    for (size_t l = 0; ok && l < m->L; l++) ok = weights_bind(m->weights, layer_table, sizeof layer_table / sizeof *layer_table, m->size, l, &m->layer[l], err);
    ok = ok && open_tokenizer(m, err);
    if (!ok) model_close(m);
    return ok;
}

/* What the package does before it compresses: [NEW0]..[NEW99] become pieces. */
static void add_new_tokens(Model *m) {
    for (uint32_t i = 0; m->tokenizer && i < NEW_TOKENS; i++) {
        char name[16];
        int len = snprintf(name, sizeof name, "[NEW%lu]", (unsigned long)i);
        tokenizer_add(m->tokenizer, name, (size_t)len, m->new_token_base + i);
    }
}

/* ==== the encoder =================================================================================================================
 * Devlin et al. 2018 (BERT), Conneau et al. 2019 (XLM-R): L times attention and feed-forward, each added to its input and normalised after. */

/* Rows of several sequences: ids and positions [N], sequence b is the rows start[b]..start[b+1]-1. */
typedef struct {
    const uint32_t *id;
    const size_t *position;
    size_t N, B;
    const size_t *start; /* [B+1] */
} Batch;

/* Working memory for N rows, one allocation. */
typedef struct {
    float *memory;
    float *x, *q, *k, *v, *ctx, *y; /* [N,C] */
    float *h;                       /* [N,F] */
    Attention *head;                /* [B*H] */
} Activations;

static Activations activations_new(const Model *m, size_t N, size_t B) {
    const size_t C = m->size[LETTER_C], F = m->size[LETTER_F];
    Activations a = {0};
    size_t row, total;
    if (!size_mul(6, C, &row) || !size_add(row, F, &row) || !size_mul(row, N, &total)) total = SIZE_MAX; /* mem_new says so and ends */
    a.memory = mem_new(total, sizeof *a.memory);
    float *at = a.memory;
    float **part[] = {&a.x, &a.q, &a.k, &a.v, &a.ctx, &a.y};
    for (size_t i = 0; i < 6; i++, at += N * C) *part[i] = at;
    a.h = at;
    a.head = mem_new(B * m->H, sizeof *a.head);
    return a;
}

static void activations_free(Activations *a) {
    free(a->memory);
    free(a->head);
}

/* x [N,C] = LayerNorm(word + type 0 + position) */
static void embed(const Model *m, const Batch *b, float *x) {
    const size_t C = m->size[LETTER_C];
    for (size_t n = 0; n < b->N; n++) embedding_sum(x + n * C, m->wte + b->id[n] * C, m->wye, m->wpe + b->position[n] * C, C);
    layernorm(x, x, m->ln_g, m->ln_b, m->eps, b->N, C);
}

/* ctx [N,C] = softmax(q k^T / sqrt(D)) v, for each head over each sequence alone. */
static void attend(const Model *m, const Batch *b, const Activations *a) {
    const size_t C = m->size[LETTER_C], D = C / m->H;
    for (size_t s = 0; s < b->B; s++)
        for (size_t h = 0; h < m->H; h++) {
            const size_t T = b->start[s + 1] - b->start[s], at = b->start[s] * C + h * D;
            a->head[s * m->H + h] = (Attention){.q = a->q + at, .k = a->k + at, .v = a->v + at, .ctx = a->ctx + at, .Tq = T, .Tk = T, .D = D,
                                                .ldq = C, .ldk = C, .ldv = C, .ldc = C, .scale = 1 / sqrt((double)D)};
        }
    attention(a->head, b->B * m->H);
}

static bool all_finite(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* logits [N,K]. With `where`, each result is looked through and the first that holds a NaN or infinity is named. */
static void encoder_forward(const Model *m, const Batch *b, const Activations *a, float *logits, char where[64]) {
    const size_t N = b->N, C = m->size[LETTER_C], F = m->size[LETTER_F], K = m->size[LETTER_K];
    embed(m, b, a->x);
    if (where && !all_finite(a->x, N * C)) snprintf(where, 64, "embeddings");
    for (size_t l = 0; l < m->L && !(where && where[0]); l++) {
        const Layer *w = &m->layer[l];
        linear(a->q, a->x, w->q_w, w->q_b, N, C, C);
        linear(a->k, a->x, w->k_w, w->k_b, N, C, C);
        linear(a->v, a->x, w->v_w, w->v_b, N, C, C);
        attend(m, b, a);
        linear(a->y, a->ctx, w->o_w, w->o_b, N, C, C);
        residual(a->x, a->y, a->x, N * C);
        layernorm(a->x, a->x, w->ln1_g, w->ln1_b, m->eps, N, C);
        linear(a->h, a->x, w->up_w, w->up_b, N, C, F);
        activation(m->act, a->h, a->h, N * F);
        linear(a->y, a->h, w->down_w, w->down_b, N, F, C);
        residual(a->x, a->y, a->x, N * C);
        layernorm(a->x, a->x, w->ln2_g, w->ln2_b, m->eps, N, C);
        if (where && !all_finite(a->x, N * C)) snprintf(where, 64, "encoder.layer.%zu", l);
    }
    linear(logits, a->x, m->head_w, m->head_b, N, C, K);
    if (where && !where[0]) snprintf(where, 64, "classifier");
}

/* p [N]: the probability that a piece is worth keeping, softmax(logits)[1]. Errors: BAD_MODEL for weights that give NaN or infinity. */
static bool keep_probabilities(const Model *m, const Batch *b, float *p, Error *err) {
    const size_t K = m->size[LETTER_K];
    Activations a = activations_new(m, b->N, b->B);
    float *logits = mem_new(b->N * K, sizeof *logits);
    encoder_forward(m, b, &a, logits, NULL);
    bool ok = all_finite(logits, b->N * K);
    if (!ok) {
        char where[64] = "";
        encoder_forward(m, b, &a, logits, where);
        fail(err, BAD_MODEL, "%s: the weights give NaN or infinity, first in %s; the file is damaged or was trained to that", weights_path(m->weights), where);
    }
    softmax(logits, logits, b->N, K);
    for (size_t n = 0; n < b->N; n++) p[n] = logits[n * K + 1];
    free(logits);
    activations_free(&a);
    return ok;
}

/* ==== chunks through the classifier =============================================================================================== */

/* Pieces of one chunk as the model sees them, special tokens included. */
typedef struct {
    uint32_t *id;
    size_t *position;
    float *p;
    size_t T;
} Chunk;

static void chunk_free(Chunk *c) {
    free(c->id);
    free(c->position);
    free(c->p);
    *c = (Chunk){0};
}

/* Positions: BERT counts 0, 1, ...; XLM-R counts from padding id + 1 over the pieces that are not padding, which stay at the padding id. */
static bool chunk_positions(const Model *m, Chunk *c, Error *err) {
    size_t next = m->first_position;
    c->position = mem_new(c->T, sizeof *c->position);
    c->p = mem_new(c->T, sizeof *c->p);
    for (size_t i = 0; i < c->T; i++) {
        c->position[i] = c->id[i] == m->pad_id ? m->pad_id : next++;
        if (c->id[i] >= m->size[LETTER_V]) return fail(err, BAD_INPUT, "there is no piece %lu: the model has %zu", (unsigned long)c->id[i], m->size[LETTER_V]);
    }
    if (next <= m->size[LETTER_P]) return true;
    return fail(err, BAD_INPUT, "%zu pieces are too many: the model has positions for %zu", c->T, m->size[LETTER_P] - m->first_position);
}

/* Fill p of each chunk: as many chunks at once as rows fit in one batch, so that memory stays bounded and matrices large. */
static bool classify_chunks(const Model *m, Chunk *chunk, size_t n, Error *err) {
    enum { BATCH_ROWS = 2048 };
    bool ok = true;
    for (size_t first = 0, last; ok && first < n; first = last) {
        size_t N = 0;
        for (last = first; last < n && (last == first || N + chunk[last].T <= BATCH_ROWS); last++) N += chunk[last].T;
        uint32_t *id = mem_new(N, sizeof *id);
        size_t *position = mem_new(N, sizeof *position), *start = mem_new(last - first + 1, sizeof *start), row = 0;
        float *p = mem_new(N, sizeof *p);
        for (size_t c = first; c < last; c++) {
            memcpy(id + row, chunk[c].id, chunk[c].T * sizeof *id);
            memcpy(position + row, chunk[c].position, chunk[c].T * sizeof *position);
            start[c - first + 1] = row += chunk[c].T;
        }
        const Batch b = {id, position, N, last - first, start};
        ok = keep_probabilities(m, &b, p, err);
        for (size_t c = first; ok && c < last; c++) memcpy(chunk[c].p, p + start[c - first], chunk[c].T * sizeof *p);
        free(id);
        free(position);
        free(start);
        free(p);
    }
    return ok;
}

/* ==== requests and results ======================================================================================================== */

/* The keyword arguments of PromptCompressor.compress_prompt_llmlingua2, with its defaults. Numbers are float64 as Python's are. */
typedef struct {
    Texts context;
    double rate, target_token, target_context, context_level_rate, context_level_target_token;
    bool use_context_level_filter, use_token_level_filter, return_word_label, force_reserve_digit, drop_consecutive;
    Texts force_context_ids, force_tokens, chunk_end_tokens;
    Bytes word_sep, label_sep, token_to_word;
} Request;

/* The dict it returns. */
typedef struct {
    Texts context;                      /* compressed_prompt_list */
    size_t origin_tokens, compressed_tokens;
    Bytes labels;                       /* fn_labeled_original_prompt */
    bool has_labels;
} Result;

static void put_text(Bytes *b, const char *text) {
    bytes_text(b, text);
    bytes_add(b, "", 0);
}

static Request request_new(void) {
    Request r = {.rate = 0.5, .target_token = -1, .target_context = -1, .context_level_rate = 1, .context_level_target_token = -1,
                 .use_token_level_filter = true};
    put_text(&r.word_sep, "\t\t|\t\t");
    put_text(&r.label_sep, " ");
    put_text(&r.token_to_word, "mean");
    return r;
}

static void request_free(Request *r) {
    texts_free(&r->context);
    texts_free(&r->force_context_ids);
    texts_free(&r->force_tokens);
    texts_free(&r->chunk_end_tokens);
    bytes_free(&r->word_sep);
    bytes_free(&r->label_sep);
    bytes_free(&r->token_to_word);
}

static void result_free(Result *r) {
    texts_free(&r->context);
    bytes_free(&r->labels);
}

/* ==== words and thresholds, as the package has them ================================================================================ */

static bool same(const Bytes *a, const char *text, size_t len) { return a->len == len && (len == 0 || memcmp(a->at, text, len) == 0); }

/* The first place at or after `from` where `what` (not empty) stands in text, or text->len. */
static size_t find(const Bytes *text, size_t from, const char *what, size_t len) {
    while (len <= text->len && from <= text->len - len) {
        const char *at = memchr(text->at + from, what[0], text->len - len - from + 1);
        if (!at) break;
        if (memcmp(at, what, len) == 0) return (size_t)(at - text->at);
        from = (size_t)(at - text->at) + 1;
    }
    return text->len;
}

/* str.replace(what, with), an empty `what` standing between all characters. */
static void replace(Bytes *text, const Bytes *what, const Bytes *with) {
    size_t at = what->len ? find(text, 0, what->at, what->len) : 0, done = 0;
    if (what->len && at == text->len) return;
    Bytes out = {0};
    while (at < text->len) {
        const unsigned char lead = (unsigned char)text->at[at];
        bytes_add(&out, text->at + done, at - done);
        bytes_add(&out, with->at, with->len);
        done = at + what->len;
        at = what->len ? find(text, done, what->at, what->len) : at + (lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4);
    }
    bytes_add(&out, text->len > done ? text->at + done : "", text->len - done);
    if (what->len == 0) bytes_add(&out, with->at, with->len);
    bytes_free(text);
    *text = out;
}

/* token_map: force tokens that are not exactly one piece stand in the text as [NEWi], i their index in the list. */
typedef struct {
    Texts from, to;
} TokenMap;

static void token_map_free(TokenMap *map) {
    texts_free(&map->from);
    texts_free(&map->to);
}

static bool token_map_make(const Model *m, const Texts *force, TokenMap *map, Error *err) {
    if (force->n > NEW_TOKENS) return fail(err, BAD_INPUT, "%zu force tokens: at most %d are possible", force->n, NEW_TOKENS);
    for (size_t i = 0; i < force->n; i++) {
        Pieces p = {0};
        const Bytes *t = &force->at[i];
        bool ok = tokenizer_encode(m->tokenizer, t->len ? t->at : "", t->len, TOK_ADDED, &p, err);
        const size_t pieces = p.n;
        pieces_free(&p);
        if (!ok) return false;
        if (pieces == 1) continue;
        char name[16];
        int len = snprintf(name, sizeof name, "[NEW%zu]", i);
        size_t at = 0;
        while (at < map->from.n && !same(&map->from.at[at], t->at, t->len)) at++;
        if (at == map->from.n) {
            texts_add(&map->from, t->at, t->len);
            texts_add(&map->to, name, (size_t)len);
        } else { /* a repeated force token: the last index counts */
            bytes_free(&map->to.at[at]);
            bytes_add(&map->to.at[at], name, (size_t)len);
        }
    }
    return true;
}

static void map_back(const TokenMap *map, Bytes *text) {
    for (size_t i = 0; i < map->from.n; i++) replace(text, &map->to.at[i], &map->from.at[i]);
}

/* A probability as Python has it: np.float32, or float (1.0 of a forced piece, 0.0 of a repeated word). It decides the type that
 * thresholds are computed in. */
typedef struct {
    double value;
    bool python;
} Probability;

typedef struct {
    Bytes text;
    Probability p;
    float free_p; /* without forcing */
} Word;

typedef struct {
    Word *at;
    size_t n, cap;
} Words;

static void words_free(Words *w) {
    for (size_t i = 0; i < w->n; i++) bytes_free(&w->at[i].text);
    free(w->at);
    *w = (Words){0};
}

/* sum(p) / len(p): float32 steps from the first np.float32 on; a list of Python floats alone stays one (and is all ones here).
 * Without forcing, the package counts the word's first piece again for each further one: prob_no_force is set where a word begins. */
typedef struct {
    float sum, free_sum, first, first_free;
    size_t n;
    bool python, first_python;
} Mean;

static void mean_add(Mean *mean, float p, bool forced) {
    const float value = forced ? 1 : p;
    if (mean->n++ == 0) *mean = (Mean){value, p, value, p, 1, forced, forced};
    else {
        mean->sum += value;
        mean->free_sum += mean->first_free; /* the package adds the word's first piece again, not this one */
        mean->python = mean->python && forced;
    }
}

static void mean_close(const Mean *mean, bool first, Word *word) {
    const float n = (float)mean->n;
    word->p = first ? (Probability){(double)mean->first, mean->first_python} : (Probability){(double)(mean->sum / n), mean->python};
    word->free_p = first ? mean->first_free : mean->free_sum / n;
}

static bool has_digit(const char *text, size_t len) {
    uint32_t code;
    for (size_t i = 0, n; i < len && (n = utf8_decode(text + i, len - i, &code)) > 0; i += n)
        if (unicode_flags(code) & UNICODE_DIGIT) return true;
    return false;
}

/* get_pure_token: BERT's lstrip("##") takes all leading '#', XLM-R's all leading U+2581. */
static Slice pure_token(Family family, Slice t) {
    const char *mark = family == FAMILY_BERT ? "#" : "\xE2\x96\x81";
    const size_t n = strlen(mark);
    while (t.len >= n && memcmp(t.at, mark, n) == 0) t.at += n, t.len -= n;
    return t;
}

/* is_begin_of_new_word. XLM-R's test for punctuation is `token in string.punctuation`: any stretch of that string. */
static bool begins_word(Family family, Slice t, const Request *r, const TokenMap *map) {
    static const char punctuation[] = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
    const Slice test = family == FAMILY_BERT ? pure_token(family, t) : t;
    if (texts_hold(&r->force_tokens, test.at, test.len) || texts_hold(&map->to, test.at, test.len)) return true;
    if (family == FAMILY_BERT) return !(t.len >= 2 && memcmp(t.at, "##", 2) == 0);
    for (size_t i = 0; i + t.len < sizeof punctuation; i++)
        if (memcmp(punctuation + i, t.at, t.len) == 0) return true;
    return t.len >= 3 && memcmp(t.at, "\xE2\x96\x81", 3) == 0;
}

/* self.special_tokens: those named in the tokenizer's special_tokens_map. "[PAD]" is not among BERT's (its id 0 counts as missing). */
static bool is_special(const Model *m, uint32_t id) {
    static const char *const bert[] = {"unk", "cls", "sep", "mask"}, *const xlmr[] = {"unk", "cls", "sep", "mask", "pad", "bos", "eos"};
    const bool b = m->family == FAMILY_BERT;
    for (size_t i = 0; i < (b ? 4u : 7u); i++)
        if (tokenizer_special(m->tokenizer, b ? bert[i] : xlmr[i]) == (int64_t)id) return true;
    return false;
}

/* __merge_token_to_word and __token_prob_to_word_prob. */
static bool merge_words(const Model *m, const Chunk *c, const Request *r, const TokenMap *map, Words *words, Error *err) {
    const bool first = same(&r->token_to_word, "first", 5);
    Mean mean = {0};
    if (!first && !same(&r->token_to_word, "mean", 4)) return fail(err, BAD_INPUT, "token_to_word is '%.50s': mean and first are possible", r->token_to_word.at);
    for (size_t i = 0; i < c->T; i++) {
        Slice t;
        t.at = tokenizer_piece(m->tokenizer, c->id[i], &t.len);
        if (!t.at || is_special(m, c->id[i])) continue;
        const Slice pure = pure_token(m->family, t);
        const bool digit = r->force_reserve_digit;
        if (begins_word(m->family, t, r, map)) {
            Bytes text = {0};
            bytes_add(&text, t.at, t.len);
            map_back(map, &text);
            if (words->n) mean_close(&mean, first, &words->at[words->n - 1]);
            if (words->n == words->cap) {
                words->cap = words->cap ? words->cap * 2 : 64;
                words->at = mem_resize(words->at, words->cap, sizeof *words->at);
            }
            const bool forced = texts_hold(&r->force_tokens, pure.at, pure.len) || texts_hold(&map->to, pure.at, pure.len);
            words->at[words->n++] = (Word){.text = text};
            mean = (Mean){0};
            mean_add(&mean, c->p[i], forced || (digit && has_digit(text.at, text.len)));
        } else {
            if (words->n == 0) return fail(err, BAD_INPUT, "a chunk begins with the piece '%.*s', which begins no word: the package fails here too", (int)t.len, t.at);
            bytes_add(&words->at[words->n - 1].text, pure.at, pure.len);
            mean_add(&mean, c->p[i], digit && has_digit(t.at, t.len));
        }
    }
    if (words->n) mean_close(&mean, first, &words->at[words->n - 1]);
    return true;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* np.percentile(value, q), method "linear", of n values in type float32 (single) or float64; sorts value. In float32 each step is rounded. */
static double percentile(double *value, size_t n, int q, bool single) {
    qsort(value, n, sizeof *value, by_value);
    const double index = (double)(n - 1) * ((double)q / 100.0), low = floor(index), t = index - low;
    if (index >= (double)(n - 1)) return value[n - 1];
    const double a = value[(size_t)low], b = value[(size_t)low + 1];
    if (!single) {
        const double d = b - a;
        return t < 0.5 ? a + d * t : b - d * (1 - t);
    }
    const float d = (float)b - (float)a;
    return (double)(t < 0.5 ? (float)a + d * (float)t : (float)b - d * (float)(1 - t));
}

/* The threshold over words, each repeated as often as `weight` says (NULL: once). q: Python's int(...) of a rate. */
static bool word_threshold(const Words *words, const size_t *weight, double q, double *threshold, Error *err) {
    size_t n = 0, at = 0;
    bool single = true;
    if (!(q >= 0 && q <= 100)) return fail(err, BAD_INPUT, "a rate must be above 0: this one asks for percentile %.0f, possible are 0 to 100", q);
    for (size_t i = 0; i < words->n; i++) n += weight ? weight[i] : 1;
    if (n == 0) return fail(err, BAD_INPUT, "a chunk of the text has no word that the vocabulary knows, so there is no threshold");
    double *value = mem_new(n, sizeof *value);
    for (size_t i = 0; i < words->n; i++)
        for (size_t c = weight ? weight[i] : 1; c > 0; c--) {
            value[at++] = words->at[i].p.value;
            single = single && !words->at[i].p.python;
        }
    *threshold = percentile(value, n, (int)q, single);
    free(value);
    return true;
}

/* ==== compression, as the package does it ========================================================================================= */

/* What a compression works with. */
typedef struct {
    const Model *m;
    const Tokenizer *counter; /* cl100k_base */
    const Request *r;
    TokenMap map;
} Job;

/* Chunks of all contexts as text, and where each context's begin. */
typedef struct {
    Texts text;
    size_t *first; /* [n + 1] */
    size_t n;
} Chunks;

static void chunks_free(Chunks *c) {
    texts_free(&c->text);
    free(c->first);
    *c = (Chunks){0};
}

/* len(encoding.encode(text)), which refuses special tokens in the text. */
static bool count_tokens(const Tokenizer *counter, const Bytes *text, size_t *n, Error *err) {
    size_t at, count;
    Slice token;
    if (tokenizer_find_added(counter, text->len ? text->at : "", text->len, &at, &token))
        return fail(err, BAD_INPUT, "byte %zu: '%.*s' is a special token of cl100k_base, which the package refuses to count", at, (int)token.len, token.at);
    if (!tokenizer_count(counter, text->len ? text->at : "", text->len, &count, err)) return false;
    *n += count;
    return true;
}

/* The string of piece i as the reference's tokenize() gives it: an added token that swallowed white space ("<mask>" of XLM-R) has it in its
 * name, which the vocabulary then lacks. */
static Slice piece_string(const Tokenizer *t, const Bytes *text, const Pieces *p, size_t i) {
    const Slice s = pieces_string(p, t, i);
    const size_t len = p->end[i] - p->start[i];
    if (len > s.len && (int64_t)p->id[i] == tokenizer_special(t, "mask")) return (Slice){text->at + p->start[i], len};
    return s;
}

/* __chunk_context: at most 511 pieces, cut after the last chunk-end piece (never the first of the chunk). */
static bool chunk_context(const Job *job, const Bytes *context, const Texts *ends, Texts *out, Error *err) {
    enum { MAX_LEN = MAX_PIECES - 2 };
    const Tokenizer *t = job->m->tokenizer;
    Pieces p = {0};
    if (!tokenizer_encode(t, context->at, context->len, TOK_ADDED, &p, err)) return pieces_free(&p), false;
    Slice *piece = mem_new(p.n, sizeof *piece);
    for (size_t i = 0; i < p.n; i++) piece[i] = piece_string(t, context, &p, i);
    for (size_t st = 0; st < p.n;) {
        size_t ed = p.n - 1;
        if (st + MAX_LEN <= p.n - 1) {
            ed = st + MAX_LEN;
            for (size_t e = ed; e > st; e--)
                if (texts_hold(ends, piece[e].at, piece[e].len)) {
                    ed = e;
                    break;
                }
        }
        Bytes chunk = {0};
        tokenizer_join(t, piece + st, ed + 1 - st, &chunk);
        texts_add(out, chunk.at, chunk.len);
        bytes_free(&chunk);
        st = ed + 1;
    }
    free(piece);
    pieces_free(&p);
    return true;
}

/* Count each context's tokens, put [NEWi] for the mapped force tokens, cut into chunks. */
static bool chunk_all(const Job *job, Chunks *chunks, size_t *origin_tokens, Error *err) {
    const Request *r = job->r;
    Texts ends = {0};
    bool ok = true;
    for (size_t i = 0; i < r->chunk_end_tokens.n; i++) texts_add(&ends, r->chunk_end_tokens.at[i].at, r->chunk_end_tokens.at[i].len);
    for (size_t i = 0; i < ends.n; i++) /* grows as it goes, as the package's list does */
        for (size_t k = 0; k < job->map.from.n; k++)
            if (same(&job->map.from.at[k], ends.at[i].at, ends.at[i].len) && !texts_hold(&ends, job->map.to.at[k].at, job->map.to.at[k].len))
                texts_add(&ends, job->map.to.at[k].at, job->map.to.at[k].len);
    chunks->n = r->context.n;
    chunks->first = mem_new(chunks->n + 1, sizeof *chunks->first);
    for (size_t i = 0; ok && i < r->context.n; i++) {
        Bytes text = {0};
        ok = count_tokens(job->counter, &r->context.at[i], origin_tokens, err);
        bytes_add(&text, r->context.at[i].at, r->context.at[i].len);
        for (size_t k = 0; k < job->map.from.n; k++) replace(&text, &job->map.from.at[k], &job->map.to.at[k]);
        ok = ok && chunk_context(job, &text, &ends, &chunks->text, err);
        chunks->first[i + 1] = chunks->text.n;
        bytes_free(&text);
    }
    texts_free(&ends);
    return ok;
}

/* TokenClfDataset: [CLS] pieces [SEP], cut at 512; "[PAD]" in the text is masked by its name. For XLM-R the package asks for BERT's names
 * too, which its vocabulary lacks: all of them are <unk>. */
static bool dataset_item(const Model *m, const Bytes *text, Chunk *c, Error *err) {
    const int64_t unknown = tokenizer_special(m->tokenizer, "unk"), pad = tokenizer_id(m->tokenizer, "[PAD]", 5);
    const int64_t cls = tokenizer_id(m->tokenizer, "[CLS]", 5), sep = tokenizer_id(m->tokenizer, "[SEP]", 5);
    Pieces p = {0};
    if (!tokenizer_encode(m->tokenizer, text->len ? text->at : "", text->len, TOK_ADDED, &p, err)) return pieces_free(&p), false;
    for (size_t i = 0; i < p.n; i++) {
        const Slice name = piece_string(m->tokenizer, text, &p, i);
        if (name.len > pieces_string(&p, m->tokenizer, i).len) p.id[i] = (uint32_t)unknown;
    }
    const size_t all = p.n + 2 > MAX_PIECES ? MAX_PIECES : p.n + 2;
    c->id = mem_new(all, sizeof *c->id);
    c->T = all;
    for (size_t i = 0; i < all; i++) c->id[i] = i == 0 ? (uint32_t)(cls < 0 ? unknown : cls) : i <= p.n ? p.id[i - 1] : (uint32_t)(sep < 0 ? unknown : sep);
    pieces_free(&p);
    if (!chunk_positions(m, c, err)) return false;
    size_t kept = 0;
    for (size_t i = 0; i < all; i++)
        if (pad < 0 || c->id[i] != (uint32_t)pad) {
            c->id[kept] = c->id[i];
            c->position[kept++] = c->position[i];
        }
    c->T = kept;
    return true;
}

/* The words of the chunks from..to, with their probabilities: word[i] belongs to chunk from + i. */
static bool words_of_chunks(const Job *job, const Chunks *chunks, size_t from, size_t to, Words *word, Error *err) {
    Chunk *c = mem_new(to - from, sizeof *c);
    bool ok = true;
    for (size_t i = from; ok && i < to; i++) ok = dataset_item(job->m, &chunks->text.at[i], &c[i - from], err);
    ok = ok && classify_chunks(job->m, c, to - from, err);
    for (size_t i = from; ok && i < to; i++) ok = merge_words(job->m, &c[i - from], job->r, &job->map, &word[i - from], err);
    for (size_t i = from; i < to; i++) chunk_free(&c[i - from]);
    free(c);
    return ok;
}

/* drop_consecutive, before the threshold: a forced word equal to the forced word before it, nothing above the percentile between them, gets 0. */
static bool zero_repeated(const Job *job, Words *words, double reduce_rate, Error *err) {
    double threshold;
    bool between = false;
    const Bytes *prev = NULL;
    if (!word_threshold(words, NULL, trunc(100 * reduce_rate), &threshold, err)) return false;
    for (size_t i = 0; i < words->n; i++) {
        Word *w = &words->at[i];
        if (texts_hold(&job->r->force_tokens, w->text.at, w->text.len)) {
            if (between) between = false;
            else if (prev && same(prev, w->text.at, w->text.len)) w->p = (Probability){0, true};
            prev = &w->text;
        } else between = between || w->p.value > threshold;
    }
    return true;
}

/* Keep the words above the chunk's percentile; keep[i] for each word. */
static bool choose_words(const Job *job, Words *words, double reduce_rate, bool *keep, Error *err) {
    const bool consecutive = job->r->drop_consecutive;
    if (consecutive && !zero_repeated(job, words, reduce_rate, err)) return false;
    size_t *weight = mem_new(words->n, sizeof *weight);
    double threshold = 0;
    bool ok = true;
    for (size_t i = 0; ok && i < words->n; i++) ok = count_tokens(job->counter, &words->at[i].text, &weight[i], err);
    ok = ok && word_threshold(words, weight, trunc(100 * reduce_rate + 1), &threshold, err);
    free(weight);
    const Bytes *last = NULL;
    for (size_t i = 0; ok && i < words->n; i++) {
        const Word *w = &words->at[i];
        keep[i] = w->p.value > threshold || (threshold == 1 && w->p.value == threshold);
        if (keep[i] && consecutive && last && texts_hold(&job->r->force_tokens, w->text.at, w->text.len) && same(last, w->text.at, w->text.len)) keep[i] = false;
        if (keep[i]) last = &w->text;
    }
    return ok;
}

/* "word label", joined by word_sep; XLM-R's words without their leading U+2581. */
static void add_label(const Job *job, Bytes *labels, bool *any, Slice word, bool kept) {
    if (!job->r->return_word_label) return;
    if (*any) bytes_add(labels, job->r->word_sep.at, job->r->word_sep.len);
    *any = true;
    bytes_add(labels, word.at, word.len);
    bytes_add(labels, job->r->label_sep.at, job->r->label_sep.len);
    bytes_add(labels, kept ? "1" : "0", 1);
}

static Slice label_of(const Job *job, const Bytes *word) {
    const Slice s = {word->at, word->len};
    return job->m->family == FAMILY_XLMR ? pure_token(FAMILY_XLMR, s) : s;
}

/* One context through the token filter; its labels are appended. */
static bool compress_context(const Job *job, const Chunks *chunks, size_t context, double reduce_rate, Bytes *out, Bytes *labels, bool *any, Error *err) {
    const size_t from = chunks->first[context], to = chunks->first[context + 1];
    Words *word = mem_new(to - from, sizeof *word);
    bool ok = words_of_chunks(job, chunks, from, to, word, err);
    for (size_t c = 0; ok && c < to - from; c++) {
        bool *keep = mem_new(word[c].n, sizeof *keep);
        Slice *kept = mem_new(word[c].n, sizeof *kept);
        size_t n = 0;
        ok = choose_words(job, &word[c], reduce_rate, keep, err);
        for (size_t i = 0; ok && i < word[c].n; i++) {
            if (keep[i]) kept[n++] = (Slice){word[c].at[i].text.at, word[c].at[i].text.len};
            add_label(job, labels, any, label_of(job, &word[c].at[i].text), keep[i]);
        }
        if (ok) tokenizer_join(job->m->tokenizer, kept, n, out);
        free(keep);
        free(kept);
    }
    for (size_t c = 0; c < to - from; c++) words_free(&word[c]);
    free(word);
    return ok;
}

/* re.findall(r'\b\w+\b|[<>=/!@#$%^&*()?":{}|\\`~;_+-]', text), each labelled as kept: the package's labels where nothing is dropped. */
static void label_all(const Job *job, const Bytes *text, Bytes *labels, bool *any) {
    for (size_t i = 0, n; i < text->len; i += n) {
        uint32_t code;
        size_t m;
        n = utf8_decode(text->at + i, text->len - i, &code);
        if (unicode_flags(code) & UNICODE_WORD)
            while (i + n < text->len && (m = utf8_decode(text->at + i + n, text->len - i - n, &code)) && (unicode_flags(code) & UNICODE_WORD)) n += m;
        else if (code == 0 || code >= 128 || !strchr("<>=/!@#$%^&*()?\":{}|\\`~;_+-", (char)code)) continue;
        add_label(job, labels, any, (Slice){text->at + i, n}, true);
    }
}

/* __compress of one context; reduce_rate 0 gives the chunks back as they are. */
static bool compress_one(const Job *job, const Chunks *chunks, size_t context, double reduce_rate, Result *out, bool *any, Error *err) {
    Bytes text = {0};
    bool ok = true;
    bytes_add(&text, "", 0);
    if (reduce_rate > 0) ok = compress_context(job, chunks, context, reduce_rate, &text, &out->labels, any, err);
    else
        for (size_t c = chunks->first[context]; c < chunks->first[context + 1]; c++) {
            Bytes chunk = {0};
            bytes_add(&chunk, chunks->text.at[c].at, chunks->text.at[c].len);
            map_back(&job->map, &chunk);
            label_all(job, &chunk, &out->labels, any);
            bytes_add(&text, chunk.at, chunk.len);
            bytes_free(&chunk);
        }
    if (ok) texts_add(&out->context, text.at, text.len);
    bytes_free(&text);
    return ok;
}

/* __get_context_prob: a context's score is the float32 mean of its words' probabilities without forcing. words[i]: of all its chunks. */
static bool context_score(const Job *job, const Chunks *chunks, size_t context, double *score, Texts *words, Error *err) {
    const size_t from = chunks->first[context], to = chunks->first[context + 1];
    Words *word = mem_new(to - from, sizeof *word);
    bool ok = words_of_chunks(job, chunks, from, to, word, err);
    float sum = 0;
    size_t n = 0;
    for (size_t c = 0; c < to - from; c++) {
        for (size_t i = 0; ok && i < word[c].n; i++, n++) {
            const Slice label = label_of(job, &word[c].at[i].text);
            sum += word[c].at[i].free_p;
            texts_add(words, label.at, label.len);
        }
        words_free(&word[c]);
    }
    free(word);
    if (ok && n == 0) return fail(err, BAD_INPUT, "context %zu has no word that the vocabulary knows, so the context filter cannot score it", context);
    *score = (double)(sum / (float)n);
    return ok;
}

/* The context filter's rate, from the five arguments that can set it. */
static double context_rate(const Request *r, size_t origin_tokens) {
    double rate = r->context_level_rate, target = r->context_level_target_token;
    if (r->target_context <= 0 && rate >= 1 && target <= 0) {
        if (r->target_token < 0 && r->rate < 1) rate = r->use_token_level_filter ? (r->rate + 1) / 2 : r->rate;
        if (r->target_token >= 0) target = r->use_token_level_filter ? r->target_token * 2 : r->target_token;
    }
    if (r->target_context >= 0) rate = fmin(r->target_context / (double)r->context.n, 1);
    if (target >= 0) rate = fmin(target / (double)origin_tokens, 1);
    return rate;
}

static bool is_forced_context(const Request *r, size_t i) {
    for (size_t k = 0; k < r->force_context_ids.n; k++)
        if (strtod(r->force_context_ids.at[k].at, NULL) == (double)i) return true;
    return false;
}

/* reserve[i]: contexts at or above the percentile of the scores, and the forced ones. words[i]: the words of each. */
static bool filter_contexts(const Job *job, const Chunks *chunks, size_t origin_tokens, bool *reserve, Texts *words, Error *err) {
    const double q = trunc(100 * (1 - context_rate(job->r, origin_tokens)));
    double *score = mem_new(chunks->n, sizeof *score), *sorted = mem_new(chunks->n, sizeof *sorted);
    bool ok = (origin_tokens > 0) || fail(err, BAD_INPUT, "the contexts hold no tokens");
    for (size_t i = 0; ok && i < chunks->n; i++) ok = context_score(job, chunks, i, &score[i], &words[i], err);
    if (ok && !(q >= 0 && q <= 100)) ok = fail(err, BAD_INPUT, "the context filter's rate must be from 0 to 1: this one asks for percentile %.0f", q);
    if (ok) {
        memcpy(sorted, score, chunks->n * sizeof *score);
        const double threshold = percentile(sorted, chunks->n, (int)q, true);
        for (size_t i = 0; i < chunks->n; i++) reserve[i] = score[i] >= threshold || is_forced_context(job->r, i);
    }
    free(score);
    free(sorted);
    return ok;
}

/* target_token as a rate of `tokens`. */
static bool target_rate(double target, size_t tokens, double *rate, Error *err) {
    if (tokens == 0) return fail(err, BAD_INPUT, "target_token is set, and the text has no tokens to reach it from");
    *rate = fmin(target / (double)tokens, 1);
    return true;
}

static bool compress_reserved(const Job *job, const Chunks *chunks, const bool *reserve, const Texts *words, double rate, Result *out, Error *err) {
    const double reduce_rate = job->r->use_token_level_filter && rate < 1 ? 1 - rate : 0; /* max(0, 1 - rate) */
    bool ok = true, any = false;
    for (size_t i = 0; ok && i < chunks->n; i++) {
        if (reserve[i]) ok = compress_one(job, chunks, i, reduce_rate, out, &any, err);
        else
            for (size_t k = 0; k < words[i].n; k++) add_label(job, &out->labels, &any, (Slice){words[i].at[k].at, words[i].at[k].len}, false);
    }
    for (size_t i = 0; ok && i < out->context.n; i++) ok = count_tokens(job->counter, &out->context.at[i], &out->compressed_tokens, err);
    if (ok && out->origin_tokens == 0 && out->compressed_tokens > 0) ok = fail(err, BAD_INPUT, "a text of no tokens became one of some: the package divides by zero here");
    return ok;
}

/* compress_prompt_llmlingua2. Errors: BAD_INPUT wherever the package raises, before or after work was done. */
static bool compress(const Model *m, const Tokenizer *counter, const Request *r, Result *out, Error *err) {
    Job job = {.m = m, .counter = counter, .r = r};
    Chunks chunks = {0};
    const bool filter = r->use_context_level_filter && r->context.n != 1;
    double rate = r->rate;
    *out = (Result){.has_labels = r->return_word_label};
    bool ok = m->tokenizer != NULL;
    if (!ok) *err = m->no_tokenizer;
    ok = ok && token_map_make(m, &r->force_tokens, &job.map, err) && chunk_all(&job, &chunks, &out->origin_tokens, err);
    bool *reserve = mem_new(r->context.n, sizeof *reserve);
    Texts *words = mem_new(r->context.n, sizeof *words);
    size_t reserved_tokens = 0;
    if (filter) {
        ok = ok && filter_contexts(&job, &chunks, out->origin_tokens, reserve, words, err);
        for (size_t i = 0; ok && i < r->context.n; i++)
            for (size_t c = chunks.first[i]; ok && reserve[i] && c < chunks.first[i + 1]; c++) ok = count_tokens(counter, &chunks.text.at[c], &reserved_tokens, err);
        if (ok && r->target_token >= 0) ok = target_rate(r->target_token, reserved_tokens, &rate, err);
    } else {
        for (size_t i = 0; i < r->context.n; i++) reserve[i] = true;
        if (ok && r->target_token > 0) ok = target_rate(r->target_token, out->origin_tokens, &rate, err);
    }
    ok = ok && compress_reserved(&job, &chunks, reserve, words, rate, out, err);
    for (size_t i = 0; i < r->context.n; i++) texts_free(&words[i]);
    free(words);
    free(reserve);
    chunks_free(&chunks);
    token_map_free(&job.map);
    if (!ok) result_free(out);
    return ok;
}

/* ==== requests in, results out as JSON ============================================================================================ */

/* One row per keyword argument: its name in Python and in JSON, its option, its kind and place, what --help says. */
typedef struct {
    const char *key, *option, *value;
    CliKind kind;
    size_t slot;
    double least, most;
    const char *help;
} Keyword;
#define SLOT(member) offsetof(Request, member)
static const Keyword keywords[] = {
    {"rate", "rate", "R", CLI_NUMBER, SLOT(rate), 1e-9, 1, "the share of tokens to keep (default 0.5)"},
    {"target_token", "target-token", "N", CLI_WHOLE, SLOT(target_token), 1, 1e15, "how many tokens to keep, instead of a rate"},
    {"force_tokens", "force-token", "S", CLI_TEXTS, SLOT(force_tokens), 0, 0, "always keep this text; C escapes; repeatable"},
    {"force_reserve_digit", "force-reserve-digit", NULL, CLI_FLAG, SLOT(force_reserve_digit), 0, 0, "keep pieces that hold a digit"},
    {"drop_consecutive", "drop-consecutive", NULL, CLI_FLAG, SLOT(drop_consecutive), 0, 0, "drop a forced text repeated with nothing kept between"},
    {"token_to_word", "token-to-word", "mean|first", CLI_TEXT, SLOT(token_to_word), 0, 0, "a word's probability from its pieces (default mean)"},
    {"chunk_end_tokens", "chunk-end-token", "S", CLI_TEXTS, SLOT(chunk_end_tokens), 0, 0, "chunks end at these pieces (default . and \\n); repeatable"},
    {"use_token_level_filter", "no-token-level-filter", NULL, CLI_NO_FLAG, SLOT(use_token_level_filter), 0, 0, "drop whole contexts only"},
    {"use_context_level_filter", "use-context-level-filter", NULL, CLI_FLAG, SLOT(use_context_level_filter), 0, 0, "drop whole contexts first"},
    {"context_level_rate", "context-level-rate", "R", CLI_NUMBER, SLOT(context_level_rate), 0, 1, "the share of contexts to keep"},
    {"context_level_target_token", "context-level-target-token", "N", CLI_WHOLE, SLOT(context_level_target_token), 0, 1e15, "tokens to keep by dropping contexts"},
    {"target_context", "target-context", "N", CLI_WHOLE, SLOT(target_context), 0, 1e15, "how many contexts to keep"},
    {"force_context_ids", "force-context-id", "I", CLI_WHOLES, SLOT(force_context_ids), 0, 1e15, "keep this context (from 0); repeatable"},
    {"return_word_label", "return-word-label", NULL, CLI_FLAG, SLOT(return_word_label), 0, 0, "add every word with its label to --json"},
    {"word_sep", "word-sep", "S", CLI_ESCAPED, SLOT(word_sep), 0, 0, "what stands between labelled words"},
    {"label_sep", "label-sep", "S", CLI_ESCAPED, SLOT(label_sep), 0, 0, "what stands between a word and its label"},
};
enum { KEYWORDS = sizeof keywords / sizeof *keywords };

static bool wrong_type(const char *key, const char *wanted, const Json *j, Error *err) {
    return fail(err, BAD_INPUT, "%s must be %s, not %s", key, wanted, json_type_name(j->type));
}

static bool take_texts(const char *key, const Json *j, Texts *out, bool numbers, Error *err) {
    const JsonType wanted = numbers ? JSON_NUMBER : JSON_STRING;
    texts_free(out);
    if (numbers && j->type == JSON_NULL) return true;
    if (j->type != JSON_ARRAY) return wrong_type(key, "a list", j, err);
    for (size_t i = 0; i < j->len; i++) {
        if (j->item[i].type != wanted) return wrong_type(key, numbers ? "a list of numbers" : "a list of texts", &j->item[i], err);
        texts_add(out, j->item[i].text, j->item[i].len);
    }
    return true;
}

static bool take_keyword(const Keyword *k, const Json *j, Request *r, Error *err) {
    void *to = (char *)r + k->slot;
    if (k->kind == CLI_TEXTS || k->kind == CLI_WHOLES) return take_texts(k->key, j, to, k->kind == CLI_WHOLES, err);
    if (k->kind == CLI_FLAG || k->kind == CLI_NO_FLAG) {
        if (j->type != JSON_TRUE && j->type != JSON_FALSE) return wrong_type(k->key, "true or false", j, err);
        return *(bool *)to = j->type == JSON_TRUE, true;
    }
    if (k->kind == CLI_NUMBER || k->kind == CLI_WHOLE) {
        if (j->type != JSON_NUMBER || !isfinite(j->number)) return wrong_type(k->key, "a finite number", j, err);
        return *(double *)to = j->number, true;
    }
    if (j->type != JSON_STRING) return wrong_type(k->key, "a text", j, err);
    bytes_free(to);
    bytes_add(to, j->text, j->len);
    return true;
}

static bool take_context(const Json *j, Request *r, Error *err) {
    if (!j) return fail(err, BAD_INPUT, "the request has no \"context\"");
    if (j->type == JSON_STRING) return texts_add(&r->context, j->text, j->len), true;
    return take_texts("context", j, &r->context, false, err);
}

static void default_ends(Request *r) {
    if (r->chunk_end_tokens.n) return;
    texts_add(&r->chunk_end_tokens, ".", 1);
    texts_add(&r->chunk_end_tokens, "\n", 1);
}

/* {"id": ..., "context": ..., keyword: ...} */
static bool read_request(const Json *j, Request *r, Error *err) {
    if (j->type != JSON_OBJECT) return fail(err, BAD_INPUT, "a request is a JSON object, not %s", json_type_name(j->type));
    for (size_t i = 0; i < j->len; i++) {
        size_t k = 0;
        if (strcmp(j->key[i], "id") == 0 || strcmp(j->key[i], "context") == 0) continue;
        while (k < KEYWORDS && strcmp(keywords[k].key, j->key[i])) k++;
        if (k == KEYWORDS) return fail(err, BAD_INPUT, "there is no keyword \"%.100s\"", j->key[i]);
        if (!take_keyword(&keywords[k], &j->item[i], r, err)) return false;
    }
    return take_context(json_get(j, "context"), r, err);
}

/* Append the dict's items, without braces; its numbers are formatted as the package does. */
static void put_result(const Result *r, Bytes *out) {
    const double origin = (double)r->origin_tokens, left = (double)r->compressed_tokens, ratio = r->compressed_tokens ? origin / left : 1;
    Bytes joined = {0};
    for (size_t i = 0; i < r->context.n; i++) {
        if (i) bytes_add(&joined, "\n\n", 2);
        bytes_add(&joined, r->context.at[i].at, r->context.at[i].len);
    }
    bytes_text(out, "\"compressed_prompt\": ");
    json_put_string(out, joined.at ? joined.at : "", joined.len);
    bytes_text(out, ", \"compressed_prompt_list\": [");
    for (size_t i = 0; i < r->context.n; i++) {
        if (i) bytes_text(out, ", ");
        json_put_string(out, r->context.at[i].at, r->context.at[i].len);
    }
    bytes_printf(out, "], \"origin_tokens\": %zu, \"compressed_tokens\": %zu, \"ratio\": \"%.1fx\", \"rate\": \"%.1f%%\"", r->origin_tokens,
                 r->compressed_tokens, ratio, 1 / ratio * 100);
    bytes_printf(out, ", \"saving\": \", Saving $%.1f in GPT-4.\"", (origin - left) * 0.06 / 1000);
    if (r->has_labels) {
        bytes_text(out, ", \"fn_labeled_original_prompt\": ");
        json_put_string(out, r->labels.at ? r->labels.at : "", r->labels.len);
    }
    bytes_free(&joined);
}

/* ==== commands ==================================================================================================================== */

static bool open_default(const Common *c, Model *m) {
    Bytes path = {0};
    if (c->model.len) bytes_add(&path, c->model.at, c->model.len);
    else models_path(c, "default.safetensors", &path);
    bool ok = model_open(m, path.at, c->err);
    bytes_free(&path);
    return ok;
}

static bool open_counter(const Common *c, Weights **w, Tokenizer **t) {
    Bytes path = {0};
    models_path(c, "cl100k_base.safetensors", &path);
    bool ok = open_tokenizer_file(path.at, w, t, c->err);
    bytes_free(&path);
    return ok;
}

/* A request of its own with the same keywords, no context. */
static Request request_copy(const Request *from) {
    Request r = *from;
    r.context = r.force_context_ids = r.force_tokens = r.chunk_end_tokens = (Texts){0};
    r.word_sep = r.label_sep = r.token_to_word = (Bytes){0};
    texts_copy(&r.force_context_ids, &from->force_context_ids);
    texts_copy(&r.force_tokens, &from->force_tokens);
    texts_copy(&r.chunk_end_tokens, &from->chunk_end_tokens);
    bytes_set(&r.word_sep, from->word_sep.at, from->word_sep.len);
    bytes_set(&r.label_sep, from->label_sep.at, from->label_sep.len);
    bytes_set(&r.token_to_word, from->token_to_word.at, from->token_to_word.len);
    return r;
}

/* One line of requests -> one line of results. The command line's options hold where the line says nothing. */
static bool answer_line(const Model *m, const Tokenizer *counter, const Request *options, const Bytes *line, Bytes *out) {
    Json j = {0};
    Request r = request_copy(options);
    Result result = {0};
    Error err;
    const bool parsed = json_parse(line->at ? line->at : "", line->len, &j, &err);
    bool ok = parsed && read_request(&j, &r, &err) && compress(m, counter, &r, &result, &err);
    const Json *id = parsed ? json_get(&j, "id") : NULL;
    bytes_text(out, "{");
    if (id || !ok) {
        bytes_text(out, "\"id\": ");
        if (id) json_put(out, id);
        else bytes_text(out, "null");
        bytes_text(out, ", ");
    }
    if (ok) put_result(&result, out);
    else {
        size_t bad, len = strlen(err.text);
        while (!utf8_valid(err.text, len, &bad)) len = bad; /* a message cut in the middle of a character */
        bytes_text(out, "\"error\": ");
        json_put_string(out, err.text, len);
    }
    bytes_text(out, "}\n");
    json_free(&j);
    request_free(&r);
    result_free(&result);
    return ok;
}

static bool compress_lines(const Common *c, const Model *m, const Tokenizer *counter, const Request *options) {
    const char *path = c->file.n ? c->file.at[0].at : "-";
    if (c->file.n > 1) return fail(c->err, BAD_USAGE, "--jsonl reads one file or standard input, not %zu files", c->file.n);
    FILE *f = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    if (!f) return fail(c->err, BAD_INPUT, "%s: cannot be opened: %s", path, strerror(errno));
    Bytes line = {0}, out = {0};
    size_t lines = 0, bad = 0;
    bool ok = true;
    while (ok && next_line(f, &line)) {
        lines++;
        if (strspn(line.at ? line.at : "", " \t\r") == line.len) continue;
        out.len = 0;
        bad += !answer_line(m, counter, options, &line, &out);
        ok = print_out(&out, c->err);
    }
    if (ok && ferror(f)) ok = fail(c->err, BAD_SYSTEM, "%s: cannot be read: %s", path, strerror(errno));
    if (f != stdin) fclose(f);
    bytes_free(&line);
    bytes_free(&out);
    if (ok && bad) ok = fail(c->err, BAD_INPUT, "%zu of %zu lines had an error", bad, lines);
    return ok;
}

static bool compress_files(const Common *c, const Model *m, const Tokenizer *counter, Request *r) {
    Result result = {0};
    Bytes out = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < (c->file.n ? c->file.n : 1); i++) {
        Bytes text = {0};
        ok = read_text(c->file.n ? c->file.at[i].at : "-", &text, c->err);
        if (ok) texts_add(&r->context, text.at, text.len);
        bytes_free(&text);
    }
    ok = ok && compress(m, counter, r, &result, c->err);
    if (ok && c->json) {
        bytes_text(&out, "{");
        put_result(&result, &out);
        bytes_text(&out, "}\n");
    } else if (ok) {
        for (size_t i = 0; i < result.context.n; i++) {
            if (i) bytes_add(&out, "\n\n", 2);
            bytes_add(&out, result.context.at[i].at, result.context.at[i].len);
        }
        bytes_add(&out, "\n", 1);
    }
    ok = ok && print_out(&out, c->err);
    if (ok && !c->quiet && isatty(STDERR_FILENO)) fprintf(stderr, "%zu tokens -> %zu\n", result.origin_tokens, result.compressed_tokens);
    bytes_free(&out);
    result_free(&result);
    return ok;
}

static bool command_compress(Common *c, int argc, char **argv) {
    Request r = request_new();
    bool jsonl = false, compat = false, done = false;
    CliOption own[KEYWORDS + 3] = {
        {"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model, made by export.py (default: the embedded one)"},
        {"compat", NULL, CLI_FLAG, &compat, 0, 0, "what the Python package llmlingua 0.2.2 returns, to the character"},
        {"jsonl", NULL, CLI_FLAG, &jsonl, 0, 0, "one JSON request a line, one result a line"},
    };
    for (size_t k = 0; k < KEYWORDS; k++)
        own[3 + k] = (CliOption){keywords[k].option, keywords[k].value, keywords[k].kind, (char *)&r + keywords[k].slot, keywords[k].least, keywords[k].most, keywords[k].help};
    bool ok = command_start(c, "usage: lingua2 compress --compat [options] [FILE...|-]\nEach file is one context; the compressed text goes to standard output.", own,
                    KEYWORDS + 3, argc, argv, &done);
    if (ok && !done && !compat) ok = fail(c->err, BAD_USAGE, "compress works in compatible mode only: give --compat (the result of the Python package llmlingua 0.2.2)");
    if (ok && !done && !same(&r.token_to_word, "mean", 4) && !same(&r.token_to_word, "first", 5))
        ok = fail(c->err, BAD_USAGE, "--token-to-word is mean or first, not '%.50s'", r.token_to_word.at);
    if (ok && !done) {
        Model m = {0};
        Weights *w = NULL;
        Tokenizer *counter = NULL;
        default_ends(&r);
        ok = open_default(c, &m) && open_counter(c, &w, &counter);
        if (ok) add_new_tokens(&m);
        ok = ok && (jsonl ? compress_lines(c, &m, counter, &r) : compress_files(c, &m, counter, &r));
        tokenizer_close(counter);
        weights_close(w);
        model_close(&m);
    }
    request_free(&r);
    return ok;
}

/* The whole text between the model's own first and last special token. */
static bool encode_whole(const Model *m, const Bytes *text, Chunk *c, Error *err) {
    Pieces p = {0};
    if (!m->tokenizer) return *err = m->no_tokenizer, false;
    int64_t cls = tokenizer_special(m->tokenizer, "cls"), sep = tokenizer_special(m->tokenizer, "sep");
    if (!tokenizer_encode(m->tokenizer, text->at, text->len, TOK_ADDED, &p, err)) return pieces_free(&p), false;
    c->id = mem_new(p.n + 2, sizeof *c->id);
    if (cls >= 0) c->id[c->T++] = (uint32_t)cls;
    if (p.n) memcpy(c->id + c->T, p.id, p.n * sizeof *c->id);
    c->T += p.n;
    if (sep >= 0) c->id[c->T++] = (uint32_t)sep;
    pieces_free(&p);
    return true;
}

static void put_probabilities(const Model *m, const Chunk *c, bool json, Bytes *out) {
    for (size_t i = 0; i < c->T; i++) {
        size_t len = 0;
        const char *piece = m->tokenizer ? tokenizer_piece(m->tokenizer, c->id[i], &len) : NULL;
        if (json) {
            bytes_printf(out, "%s{\"id\": %lu, \"piece\": ", i ? ", " : "[", (unsigned long)c->id[i]);
            if (piece) json_put_string(out, piece, len);
            else bytes_text(out, "null");
            bytes_text(out, ", \"p\": ");
            json_put_double(out, (double)c->p[i]);
            bytes_text(out, "}");
        } else bytes_printf(out, "%.6f\t%lu\t%.*s\n", (double)c->p[i], (unsigned long)c->id[i], (int)len, piece ? piece : "");
    }
    if (json) bytes_text(out, c->T ? "]\n" : "[]\n");
}

static bool command_classify(Common *c, int argc, char **argv) {
    Bytes ids = {0}, text = {0}, out = {0};
    bool done = false;
    const CliOption own[] = {{"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model, made by export.py (default: the embedded one)"},
                             {"ids", "1,2,3", CLI_TEXT, &ids, 0, 0, "these piece ids instead of a text, special tokens included"}};
    Model m = {0};
    Chunk chunk = {0};
    bool ok = command_start(c, "usage: lingua2 classify [options] [FILE|-]\nThe probability of being kept for each piece of one text, without chunks; special tokens included.",
                    own, 2, argc, argv, &done);
    if (ok && !done && (c->file.n > 1 || (ids.len && c->file.n))) ok = fail(c->err, BAD_USAGE, "classify takes one text: a file, standard input, or --ids");
    if (ok && !done) {
        ok = open_default(c, &m);
        if (ok && ids.at) ok = parse_ids(&ids, &chunk.id, &chunk.T, c->err);
        else ok = ok && read_text(c->file.n ? c->file.at[0].at : "-", &text, c->err) && encode_whole(&m, &text, &chunk, c->err);
        ok = ok && chunk_positions(&m, &chunk, c->err) && classify_chunks(&m, &chunk, chunk.T ? 1 : 0, c->err);
        if (ok) put_probabilities(&m, &chunk, c->json, &out);
        ok = ok && print_out(&out, c->err);
    }
    chunk_free(&chunk);
    model_close(&m);
    bytes_free(&ids);
    bytes_free(&text);
    bytes_free(&out);
    return ok;
}

/* Strings as the reference's tokenize() gives them. */
static void put_pieces(const Tokenizer *t, const Bytes *text, const Pieces *p, bool json, Bytes *out) {
    for (size_t i = 0; !json && i < p->n; i++) {
        const Slice piece = piece_string(t, text, p, i);
        bytes_printf(out, "%lu\t%zu\t%zu\t", (unsigned long)p->id[i], p->start[i], p->end[i]);
        bytes_add(out, piece.at, piece.len);
        bytes_add(out, "\n", 1);
    }
    if (!json) return;
    bytes_text(out, "{\"ids\": [");
    for (size_t i = 0; i < p->n; i++) bytes_printf(out, "%s%lu", i ? ", " : "", (unsigned long)p->id[i]);
    bytes_text(out, "], \"pieces\": [");
    for (size_t i = 0; i < p->n; i++) {
        const Slice piece = piece_string(t, text, p, i);
        if (i) bytes_text(out, ", ");
        json_put_string(out, piece.at, piece.len);
    }
    bytes_text(out, "], \"offsets\": [");
    for (size_t i = 0; i < p->n; i++) bytes_printf(out, "%s[%zu, %zu]", i ? ", " : "", p->start[i], p->end[i]);
    bytes_text(out, "]}\n");
}

static bool command_tokenize(Common *c, int argc, char **argv) {
    Bytes vocab = {0}, text = {0}, path = {0}, out = {0};
    bool done = false;
    const CliOption own[] = {{"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "any exported model (default: the embedded one)"},
                             {"vocab", "cl100k_base", CLI_TEXT, &vocab, 0, 0, "the counting vocabulary instead of a model's; text is only text"}};
    Weights *w = NULL;
    Tokenizer *t = NULL;
    Pieces p = {0};
    bool ok = command_start(c, "usage: lingua2 tokenize [options] [FILE|-]\nIds, pieces and byte offsets of one text; no special tokens are added.", own, 2, argc, argv, &done);
    if (ok && !done && c->file.n > 1) ok = fail(c->err, BAD_USAGE, "tokenize takes one text: a file or standard input");
    if (ok && !done && vocab.at && (!same(&vocab, "cl100k_base", 11) || c->model.len))
        ok = fail(c->err, BAD_USAGE, "--vocab is cl100k_base, and goes without --model; not '%.50s'", vocab.at);
    if (ok && !done) {
        if (vocab.at || !c->model.len) models_path(c, vocab.at ? "cl100k_base.safetensors" : "default.safetensors", &path);
        else bytes_add(&path, c->model.at, c->model.len);
        ok = open_tokenizer_file(path.at, &w, &t, c->err) && read_text(c->file.n ? c->file.at[0].at : "-", &text, c->err) &&
             tokenizer_encode(t, text.at, text.len, vocab.at ? TOK_PLAIN : TOK_ADDED, &p, c->err);
        if (ok) put_pieces(t, &text, &p, c->json, &out);
        ok = ok && print_out(&out, c->err);
    }
    pieces_free(&p);
    tokenizer_close(t);
    if (t) weights_close(w);
    bytes_free(&vocab);
    bytes_free(&text);
    bytes_free(&path);
    bytes_free(&out);
    return ok;
}

static bool command_info(Common *c, int argc, char **argv) {
    Bytes path = {0};
    bool done = false;
    bool ok = command_start(c, "usage: lingua2 info [options] [MODEL]\nWhat a model file holds.", NULL, 0, argc, argv, &done);
    if (ok && !done && c->file.n > 1) ok = fail(c->err, BAD_USAGE, "info takes one model file");
    if (c->file.n) bytes_set(&path, c->file.at[0].at, c->file.at[0].len);
    else models_path(c, "default.safetensors", &path);
    ok = ok && (done || print_info(path.at, c->json, c->err));
    bytes_free(&path);
    return ok;
}

static const Command commands[] = {
    {"compress", command_compress, "shorten a text, keeping what matters"},
    {"classify", command_classify, "the probability of being kept, piece by piece"},
    {"tokenize", command_tokenize, "ids, pieces and byte offsets of a text"},
    {"info", command_info, "what a model file holds"},
};

static const Program program = {
    {"lingua2", "make prompts shorter, keeping what matters",
     "lingua2 is LLMLingua-2: a small encoder looks at a text once and says of each word how much it is worth keeping; the words worth most stay, in their order. Nothing is reworded.\n"
     "A model is one file made by export.py; an English one and the counting vocabulary cl100k_base come with the program, in models/ beside it or in the share/lingua2/models of its install prefix.\n"
     "Results go to standard output, everything else to standard error. They do not depend on the number of threads, the compiler or the processor.",
     "Half of a text:\nlingua2 compress --compat --rate 0.5 notes.txt\n"
     "From a pipe, to a count of tokens:\ncat notes.txt | lingua2 compress --compat --target-token 200 -\n"
     "One request a line, one result a line:\nlingua2 compress --compat --jsonl <requests.jsonl\n",
     "mend(1)"},
    commands, sizeof commands / sizeof *commands};

#ifndef TESTING
int main(int argc, char **argv) { return program_main(&program, argc, argv); }
#endif
