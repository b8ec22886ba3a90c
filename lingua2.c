/* lingua2.c - LLMLingua-2 in plain C: a prompt goes in, a shorter one comes out.
 *
 * The idea (Pan et al. 2024, arXiv 2403.12968): a small bidirectional encoder looks at a text once and gives each piece of it a probability of being
 * worth keeping. It learned that from a large language model's own extractive compressions. Words are kept or dropped whole; nothing is reworded.
 *
 *   text -> chunks of at most 512 pieces -> encoder -> p(keep) per piece -> p per word -> the words above a percentile -> text
 *
 * This file, top to bottom: the model (one table of tensors), the encoder (one straight forward pass for BERT and XLM-RoBERTa), chunks through
 * it, main. Its parts: lingua2_compat.c (compression as the Python package llmlingua 0.2.2 does it), lingua2_cli.c (requests and results as
 * JSON, commands); lingua2.h says what they share.
 *
 * Letters: N rows (pieces of all chunks, one after another, no padding), B chunks, T pieces of a chunk, C hidden size, H heads, D = C/H,
 * F intermediate size, L layers, K = 2 labels, V P Y rows of the word, position and type embeddings.
 *
 * Left out on purpose: GPUs, quantised weights, padding.
 */
#include "lingua2.h"
#include "compare.h"
#include "tap.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== the model ===================================================================================================================
 * What a flat file of a token classifier holds, checked before use. */

const TensorRow model_table[MODEL_TENSORS] = {
    {"embeddings.word_embeddings.weight", LETTER_V, LETTER_C, offsetof(Model, wte)},
    {"embeddings.position_embeddings.weight", LETTER_P, LETTER_C, offsetof(Model, wpe)},
    {"embeddings.token_type_embeddings.weight", LETTER_Y, LETTER_C, offsetof(Model, wye)},
    {"embeddings.LayerNorm.weight", LETTER_C, -1, offsetof(Model, ln_g)},
    {"embeddings.LayerNorm.bias", LETTER_C, -1, offsetof(Model, ln_b)},
    {"classifier.weight", LETTER_C, LETTER_K, offsetof(Model, head_w)},
    {"classifier.bias", LETTER_K, -1, offsetof(Model, head_b)},
};
const TensorRow layer_table[LAYER_TENSORS] = {
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

void model_close(Model *m) {
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

bool model_open(Model *m, const char *path, Error *err) {
    *m = (Model){0};
    Json config = {0};
    if (!weights_open(&m->weights, path, err)) return false;
    bool ok = config_open(m->weights, &config, err) && read_config(m, &config, err) && weights_bind(m->weights, model_table, MODEL_TENSORS, m->size, 0, m, err);
    json_free(&config);
    if (ok) m->layer = mem_new(m->L, sizeof *m->layer);
    for (size_t l = 0; ok && l < m->L; l++) ok = weights_bind(m->weights, layer_table, LAYER_TENSORS, m->size, l, &m->layer[l], err);
    ok = ok && open_tokenizer(m, err);
    if (!ok) model_close(m);
    return ok;
}

/* ==== the encoder =================================================================================================================
 * Devlin et al. 2018 (BERT), Conneau et al. 2019 (XLM-R): L times attention and feed-forward, each added to its input and normalised after. */


Activations activations_new(const Model *m, size_t N, size_t B) {
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

void activations_free(Activations *a) {
    free(a->memory);
    free(a->head);
}

/* x [N,C] = LayerNorm(word + type 0 + position) */
static void embed(const Model *m, const Batch *b, float *x) {
    const size_t C = m->size[LETTER_C];
    for (size_t n = 0; n < b->N; n++) embedding_sum(x + n * C, m->wte + b->id[n] * C, m->wye, m->wpe + b->position[n] * C, C);
    TAP(x, b->N, C, "embeddings.sum");
    layernorm(x, x, m->ln_g, m->ln_b, m->eps, b->N, C);                   TAP(x, b->N, C, "embeddings.LayerNorm");
}

/* ctx [N,C] = softmax(q k^T / sqrt(D)) v, for each head over each sequence alone, in layer l. */
static void attend(const Model *m, const Batch *b, const Activations *a, size_t l) {
    const size_t C = m->size[LETTER_C], D = C / m->H;
    for (size_t s = 0; s < b->B; s++)
        for (size_t h = 0; h < m->H; h++) {
            const size_t T = b->start[s + 1] - b->start[s], at = b->start[s] * C + h * D;
            a->head[s * m->H + h] = (Attention){.q = a->q + at, .k = a->k + at, .v = a->v + at, .ctx = a->ctx + at, .Tq = T, .Tk = T, .D = D,
                                                .ldq = C, .ldk = C, .ldv = C, .ldc = C, .scale = 1 / sqrt((double)D)};
        }
    attention(a->head, b->B * m->H);
    TAP_ATTENTION(a->head, b->B * m->H, "encoder.layer.%zu.attention.self", l);
}

static bool all_finite(const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* logits [N,K]. With `where`, each result is looked through and the first that holds a NaN or infinity is named. */
void encoder_forward(const Model *m, const Batch *b, const Activations *a, float *logits, char where[64]) {
    const size_t N = b->N, C = m->size[LETTER_C], F = m->size[LETTER_F], K = m->size[LETTER_K];
    embed(m, b, a->x);
    if (where && !all_finite(a->x, N * C)) snprintf(where, 64, "embeddings");
    for (size_t l = 0; l < m->L && !(where && where[0]); l++) {
        const Layer *w = &m->layer[l];
        linear(a->q, a->x, w->q_w, w->q_b, N, C, C);                      TAP(a->q, N, C, "encoder.layer.%zu.attention.self.query", l);
        linear(a->k, a->x, w->k_w, w->k_b, N, C, C);                      TAP(a->k, N, C, "encoder.layer.%zu.attention.self.key", l);
        linear(a->v, a->x, w->v_w, w->v_b, N, C, C);                      TAP(a->v, N, C, "encoder.layer.%zu.attention.self.value", l);
        attend(m, b, a, l);                                               TAP(a->ctx, N, C, "encoder.layer.%zu.attention.self.ctx", l);
        linear(a->y, a->ctx, w->o_w, w->o_b, N, C, C);                    TAP(a->y, N, C, "encoder.layer.%zu.attention.output.dense", l);
        residual(a->x, a->y, a->x, N * C);                                TAP(a->x, N, C, "encoder.layer.%zu.attention.output.residual", l);
        layernorm(a->x, a->x, w->ln1_g, w->ln1_b, m->eps, N, C);          TAP(a->x, N, C, "encoder.layer.%zu.attention.output.LayerNorm", l);
        linear(a->h, a->x, w->up_w, w->up_b, N, C, F);                    TAP(a->h, N, F, "encoder.layer.%zu.intermediate.dense", l);
        activation(m->act, a->h, a->h, N * F);                            TAP(a->h, N, F, "encoder.layer.%zu.intermediate.act", l);
        linear(a->y, a->h, w->down_w, w->down_b, N, F, C);                TAP(a->y, N, C, "encoder.layer.%zu.output.dense", l);
        residual(a->x, a->y, a->x, N * C);                                TAP(a->x, N, C, "encoder.layer.%zu.output.residual", l);
        layernorm(a->x, a->x, w->ln2_g, w->ln2_b, m->eps, N, C);          TAP(a->x, N, C, "encoder.layer.%zu.output.LayerNorm", l);
        if (where && !all_finite(a->x, N * C)) snprintf(where, 64, "encoder.layer.%zu", l);
    }
    linear(logits, a->x, m->head_w, m->head_b, N, C, K);                  TAP(logits, N, K, "classifier");
    if (where && !where[0]) snprintf(where, 64, "classifier");
}

/* p [N]: the probability that a piece is worth keeping, softmax(logits)[1]. Errors: BAD_MODEL for weights that give NaN or infinity. */
bool keep_probabilities(const Model *m, const Batch *b, float *p, Error *err) {
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

void chunk_free(Chunk *c) {
    free(c->id);
    free(c->position);
    free(c->p);
    *c = (Chunk){0};
}

/* Positions: BERT counts 0, 1, ...; XLM-R counts from padding id + 1 over the pieces that are not padding, which stay at the padding id. */
bool chunk_positions(const Model *m, Chunk *c, Error *err) {
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
bool classify_chunks(const Model *m, Chunk *chunk, size_t n, Error *err) {
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

/* ==== commands ==================================================================================================================== */

#ifndef TESTING

static const Command commands[] = {
    {"compress", command_compress, "shorten a text, keeping what matters"},
    {"classify", command_classify, "the probability of being kept, piece by piece"},
    {"tokenize", command_tokenize, "ids, pieces and byte offsets of a text"},
    {"chunk", command_chunk, "texts to requests for a language model that shortens them"},
    {"collect", command_collect, "its answers to pairs of original and compression"},
    {"annotate", command_annotate, "pairs to words with labels"},
    {"filter", command_filter, "annotated lines without the worst"},
    {"trace", command_trace, "every named result of one pass through the classifier, in files"},
    {"compare", command_compare, "two runs tap by tap: where they part, and by how much"},
    {"replay", command_replay, "each op on a run's own inputs: which one is wrong"},
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

int main(int argc, char **argv) { return program_main(&program, argc, argv); }
#endif
