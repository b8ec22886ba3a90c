/* lingua2.c - LLMLingua-2 in plain C: a prompt goes in, a shorter one comes out.
 *
 * The idea (Pan et al. 2024, arXiv 2403.12968): a small bidirectional encoder looks at a text once and gives each piece of it a probability of being
 * worth keeping. It learned that from a large language model's own extractive compressions. Words are kept or dropped whole; nothing is reworded.
 *
 *   text -> pieces, words -> chunks of at most 512 pieces -> encoder -> p(keep) per piece -> p per word -> the best words that fit a budget -> text
 *
 * This file, top to bottom: the model (one table of tensors), the encoder (one straight forward pass for BERT and XLM-RoBERTa), chunks through it; then
 * the faithful mode: the words of a text and which of them must stay, their probabilities, words taken one by one while the text that they make fits the
 * budget, whole contexts, documents; main. lingua2_compat.c has the other mode, compression as the Python package llmlingua 0.2.2 does it. lingua2.h lists
 * the other parts and says what they share.
 *
 * The faithful mode in full. The output is cut out of the source, byte for byte:
 *   - Kept words stand in order. Neighbours keep the white space between them. Where words were left out, one blank, line break or blank line stands for the white
 *     space that was there, whichever is most; none if there was none; none before a closing mark that the source attaches to the word before it.
 *   - A mark that keeps two kept words from running into one comes with them: of "10-20" never stays "1020".
 *   - The budget is floor(rate x tokens of the source), for all contexts together, counted on the text that comes out. Words are taken by probability, then
 *     position, until the next would pass it; at least one is taken. A rate of 1 gives the source back.
 *   - Forced words (force tokens, digits, kept kinds) are taken first and stay even past the budget.
 *
 * Letters: N rows (pieces of all chunks, one after another, no padding), B chunks, T pieces of a chunk, C hidden size, H heads, D = C/H,
 * F intermediate size, L layers, K = 2 labels, V P Y rows of the word, position and type embeddings.
 *
 * Left out on purpose: GPUs, quantised weights, padding.
 */
#include "lingua2.h"
#include "compare.h"
#include "random.h"
#include "tap.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unicode.h"

#define NONE SIZE_MAX /* no word */

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

bool all_finite(const float *x, size_t n) {
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

/* ==== the words of a text =========================================================================================================
 * A word is a slice of the source: a run of letters, digits and marks with what binds them inside ("don't", "0.21", "src/a.c", an address); each other
 * symbol is a word of its own; in scripts without spaces each piece is one. White space is between words. */

typedef enum { SPACE, LETTER, UNSPACED, SYMBOL } Kind;

static bool among(uint32_t code, const uint32_t (*range)[2], size_t n) {
    for (size_t i = 0; i < n && code >= range[i][0]; i++)
        if (code <= range[i][1]) return true;
    return false;
}

/* What a character is; LETTER: also digits, marks and "_". */
static Kind kind_of(uint32_t code) {
    /* Thai and Lao; Myanmar; Khmer; Tai Le, New Tai Lue, Tai Tham; CJK radicals, kana, bopomofo, ideographs, Yi; Myanmar and Tai Viet again; halfwidth kana */
    static const uint32_t unspaced[][2] = {{0x0E00, 0x0EFF}, {0x1000, 0x109F}, {0x1780, 0x17FF}, {0x1950, 0x1AAF}, {0x2E80, 0x2FDF}, {0x3005, 0x3007}, {0x3021, 0x312F}, {0x31A0, 0x31FF},
                                           {0x3400, 0x4DBF}, {0x4E00, 0xA4CF}, {0xA9E0, 0xA9FF}, {0xAA60, 0xAADF}, {0xF900, 0xFAFF}, {0xFF66, 0xFF9F}, {0x1AFF0, 0x1B16F}, {0x20000, 0x3FFFF}};
    const unsigned flags = unicode_flags(code);
    if (flags & UNICODE_SPACE) return SPACE;
    if (!(flags & (UNICODE_LETTER | UNICODE_NUMBER | UNICODE_MARK)) && code != '_' && !cluster_extends(unicode_cluster(code))) return SYMBOL;
    return !(flags & UNICODE_DIGIT) && among(code, unspaced, sizeof unspaced / sizeof *unspaced) ? UNSPACED : LETTER;
}

/* The character at i, or the one that ends there; a blank outside the text. */
static uint32_t code_at(const char *text, size_t end, size_t i) {
    uint32_t code = ' ';
    if (i < end) utf8_decode(text + i, end - i, &code);
    return code;
}

static uint32_t code_before(const char *text, size_t begin, size_t i) {
    size_t at = i;
    while (at > begin && ((unsigned char)text[--at] & 0xC0) == 0x80) {}
    return code_at(text, i, at);
}

/* The grapheme cluster at i, two regional indicators being one, and its kind. */
static size_t symbol_at(const char *text, size_t end, size_t i, Kind *kind) {
    const uint32_t code = code_at(text, end, i);
    const bool flag = code >= 0x1F1E6 && code <= 0x1F1FF && code_at(text, end, i + 4) >= 0x1F1E6 && code_at(text, end, i + 4) <= 0x1F1FF;
    *kind = kind_of(code);
    if (*kind == SPACE) return text[i] == '\r' ? 1 : utf8_encode(code, (char[4]){0}); /* marks behind it are not white space */
    return flag ? 8 : cluster_length(text, end, i);
}

static bool is_digit(uint32_t code) { return unicode_flags(code) & UNICODE_DIGIT; }
static bool is_latin(uint32_t code) { return code < 128 && ((code | 32) >= 'a' && (code | 32) <= 'z'); }

bool has_digit(const char *text, size_t len) {
    uint32_t code;
    for (size_t i = 0, n; i < len && (n = utf8_decode(text + i, len - i, &code)) > 0; i += n)
        if (is_digit(code)) return true;
    return false;
}

/* "+" binds in an exponent (1e+5) and in an e-mail address (a+b@c.d). */
static bool plus_binds(const char *text, size_t begin, size_t end, size_t i) {
    size_t at = i + 1;
    if (i >= begin + 2 && (text[i - 1] | 32) == 'e' && is_digit(code_before(text, begin, i - 1)) && is_digit(code_at(text, end, at))) return true;
    while (at < end && at - i < 64 && (is_latin((unsigned char)text[at]) || is_digit((unsigned char)text[at]) || (text[at] && strchr(".-_+", text[at])))) at++;
    return at < end && text[at] == '@' && kind_of(code_at(text, end, at + 1)) == LETTER;
}

/* The bytes of the mark at i if it binds the word begin..i to what follows, else 0. */
static size_t binder(const char *text, size_t begin, size_t end, size_t i) {
    uint32_t mark;
    size_t n = utf8_decode(text + i, end - i, &mark);
    if (mark == ':' && code_at(text, end, i + 1) == ':') n = 2; /* std::string */
    const uint32_t before = code_before(text, begin, i), next = code_at(text, end, i + n);
    const bool digits = is_digit(before) && is_digit(next);
    if (kind_of(next) != LETTER) return 0;
    switch (mark) {
    case '\'': case 0x2019: case 0xFF07: case 0x5F3: case 0x5F4:          /* apostrophes, geresh */
    case '-': case 0x2010: case 0x2011: case 0xAD:                        /* hyphens */
    case '.': case '/': case '\\': case '@': case 0xB7: return n;
    case ':': return digits || n == 2 ? n : 0;
    case ',': case 0x66B: case 0x66C: return digits ? n : 0;              /* separators within numbers */
    case 0xA0: case 0x2007: case 0x2009: case 0x202F: {                   /* blanks between groups of three digits */
        bool three = digits;
        for (size_t k = 0; k < 3; k++) three = three && is_digit(code_at(text, end, i + n + k));
        return three && !is_digit(code_at(text, end, i + n + 3)) ? n : 0;
    }
    case '+': return plus_binds(text, begin, end, i) ? n : 0;
    default: return 0;
    }
}

/* The bytes of what belongs to the word that follows it: a sign, a decimal point, the start of a path or of an option. Else 0. */
static size_t prefix(const char *text, size_t begin, size_t end, size_t i) {
    const uint32_t before = i > begin ? code_before(text, begin, i) : ' ';
    const size_t left = end - i;
    size_t n = 0;
    if (kind_of(before) != SPACE && !(before < 128 && strchr("([{\"'`=,:|", (char)before)) && before != 0x201C && before != 0x2018) return 0;
    if (left > 1 && memcmp(text + i, "~/", 2) == 0) n = 2;
    else if (left > 2 && memcmp(text + i, "../", 3) == 0) n = 3;
    else if (left > 1 && memcmp(text + i, "./", 2) == 0) n = 2;
    else if (left > 1 && memcmp(text + i, "--", 2) == 0) n = 2;
    else if (text[i] == '/' || text[i] == '.') n = 1;
    else if (text[i] == '-') n = left > 2 && text[i + 1] == '.' && is_digit((unsigned char)text[i + 2]) ? 2 : 1;
    else if (left > 3 && memcmp(text + i, "\xE2\x88\x92", 3) == 0 && is_digit(code_at(text, end, i + 3))) n = 3; /* U+2212, minus */
    return n && kind_of(code_at(text, end, i + n)) == LETTER ? n : 0;
}

/* The bytes of an address at i, where a word begins: letters, "://", then all that may stand in one but the punctuation at its end. Else 0. */
static size_t address(const char *text, size_t end, size_t i) {
    size_t at = i, scheme, open = 0;
    while (at < end && (is_latin((unsigned char)text[at]) || (at > i && (is_digit((unsigned char)text[at]) || text[at] == '+')))) at++;
    if (at > i && end - at > 3 && memcmp(text + at, "://", 3) == 0) at += 3;
    else if (end - i > 4 && memcmp(text + i, "www.", 4) == 0) at = i + 4;
    else return 0;
    for (scheme = at; at < end;) {
        Kind kind;
        const size_t n = symbol_at(text, end, at, &kind);
        if (kind != LETTER && !(kind == SYMBOL && n == 1 && text[at] && strchr("-._~:/?#[]@!$&'()*+,;=%", text[at]))) break;
        if (text[at] == '(') open++;
        if (text[at] == ')' && open-- == 0) break; /* one that was opened before the address */
        at += n;
    }
    while (at > scheme && strchr(".,;:!?'\"*_~", text[at - 1])) at--;
    return at > scheme ? at - i : 0;
}

/* The end of the word at i; begins[k]: a piece begins at byte begin + k. Without pieces (NULL) each character of a script without spaces is a word. */
static size_t word_end(const char *text, size_t begin, size_t end, size_t i, const unsigned char *begins) {
    Kind kind;
    size_t at = i, n = symbol_at(text, end, i, &kind), lead = kind == SYMBOL ? prefix(text, begin, end, i) : 0;
    if (kind == SYMBOL && lead == 0) return i + n;
    if (kind == UNSPACED) {
        do at += n;
        while (at < end && begins && !begins[at - begin] && (n = symbol_at(text, end, at, &kind), kind == UNSPACED));
        return at;
    }
    n = address(text, end, i);
    if (n) return i + n;
    for (at += lead; at < end;) {
        n = symbol_at(text, end, at, &kind);
        if (kind != LETTER) n = binder(text, i, end, at);
        if (n == 0) break;
        at += n;
    }
    const uint32_t last = code_before(text, i, at), next = code_at(text, end, at);
    if (is_digit(last) && (next == '%' || next == 0x2030 || next == 0xFF05 || next == 0x66A)) at += symbol_at(text, end, at, &kind);
    return at;
}

bool next_word(const char *text, size_t len, size_t at, Span *word) {
    Kind kind = SPACE;
    for (size_t n; at < len; at += n) {
        n = symbol_at(text, len, at, &kind);
        if (kind == SPACE) continue;
        *word = (Span){at, word_end(text, 0, len, at, NULL)};
        return true;
    }
    return false;
}

static uint32_t first_character(const Document *d, size_t w) { return code_at(d->text.at, d->word[w].end, d->word[w].start); }
static uint32_t last_character(const Document *d, size_t w) { return code_before(d->text.at, d->word[w].start, d->word[w].end); }

/* Append a word, or, where it overlaps the last one, make that one larger; either being forced, both are. */
static void add_word(Document *d, size_t *cap, Word w) {
    Word *last = d->n ? &d->word[d->n - 1] : NULL;
    if (last && last->context == w.context && w.start < last->end) {
        if (w.end > last->end) last->end = w.end;
        last->forced = last->forced || w.forced;
        last->listed = last->listed || w.listed;
        return;
    }
    if (d->n == *cap) d->word = mem_resize(d->word, *cap = *cap ? *cap * 2 : 64, sizeof *d->word);
    d->word[d->n++] = w;
}

/* ---- what must stay: force tokens, code, quotations, addresses, numbers ---- */

typedef struct {
    Span *at;
    size_t n, cap;
} Spans;

static void span_add(Spans *s, size_t start, size_t end) {
    if (s->n == s->cap) s->at = mem_resize(s->at, s->cap = s->cap ? s->cap * 2 : 16, sizeof *s->at);
    s->at[s->n++] = (Span){start, end};
}

static int by_start(const void *a, const void *b) {
    const Span *x = a, *y = b;
    return (x->start > y->start) - (x->start < y->start);
}

static int by_length(const void *a, const void *b) {
    const Bytes *x = *(const Bytes *const *)a, *y = *(const Bytes *const *)b;
    return x->len != y->len ? (x->len < y->len ? 1 : -1) : (x > y) - (x < y);
}

size_t find(const char *text, size_t end, size_t from, const char *what, size_t len) {
    while (len <= end && from <= end - len) {
        const char *at = memchr(text + from, what[0], end - len - from + 1);
        if (!at) break;
        if (memcmp(at, what, len) == 0) return (size_t)(at - text);
        from = (size_t)(at - text) + 1;
    }
    return end;
}

/* Where the force tokens stand between two bytes, the longest first, none over another. */
static void find_forced(const Document *d, size_t from, size_t to, Spans *out) {
    const Texts *force = &d->r->force_tokens;
    unsigned char *taken = mem_new(to - from, 1);
    const Bytes **token = mem_new(force->n, sizeof *token);
    for (size_t i = 0; i < force->n; i++) token[i] = &force->at[i];
    qsort(token, force->n, sizeof *token, by_length);
    for (size_t i = 0; i < force->n; i++)
        for (size_t len = token[i]->len, at = from; len && (at = find(d->text.at, to, at, token[i]->at, len)) < to;) {
            const unsigned char *before = memchr(taken + (at - from), 1, len);
            if (before) at = from + (size_t)(before - taken) + 1;
            else {
                span_add(out, at, at + len);
                memset(taken + (at - from), 1, len);
                at += len;
            }
        }
    if (out->n) qsort(out->at, out->n, sizeof *out->at, by_start);
    free(token);
    free(taken);
}

/* Nothing but blanks is before i in its line. */
static bool begins_line(const char *text, size_t begin, size_t i) {
    while (i > begin && (text[i - 1] == ' ' || text[i - 1] == '\t')) i--;
    return i == begin || text[i - 1] == '\n';
}

/* The end of the code that begins at i: a fence of three or more ` or ~ at the start of a line, to the fence that ends it or the end of the text; or `code`
 * within a paragraph. Else i. */
static size_t code_end(const char *text, size_t begin, size_t end, size_t i) {
    size_t n = 0;
    while (i + n < end && text[i + n] == text[i]) n++;
    const bool fence = n >= 3 && begins_line(text, begin, i);
    if (!fence && text[i] != '`') return i;
    for (size_t at = i + n, m; at < end; at += m ? m : 1) {
        for (m = 0; at + m < end && text[at + m] == text[i];) m++;
        if (!fence && m == n) return at + m;
        if (fence && m >= n && begins_line(text, i, at)) return at + m;
        if (!fence && text[at] == '\n' && at + 1 < end && text[at + 1] == '\n') break;
    }
    return fence ? end : i;
}

/* The end of the quotation that begins at i and ends in the same paragraph, not far away; else i. */
static size_t quote_end(const char *text, size_t begin, size_t end, size_t i) {
    static const uint32_t pair[][2] = {{'"', '"'}, {0xAB, 0xBB}, {0x201C, 0x201D}, {0x201E, 0x201C}, {0x2039, 0x203A}, {0x300C, 0x300D}, {0x300E, 0x300F}};
    const uint32_t open = code_at(text, end, i);
    size_t k = 0;
    while (k < sizeof pair / sizeof *pair && pair[k][0] != open) k++;
    if (k == sizeof pair / sizeof *pair || (open == '"' && i > begin && kind_of(code_before(text, begin, i)) == LETTER)) return i;
    uint32_t code;
    size_t n = utf8_decode(text + i, end - i, &code);
    for (size_t at = i + n; at < end && at - i < 4096; at += n) {
        n = utf8_decode(text + at, end - at, &code);
        if (code == pair[k][1] || (open == 0x201E && code == 0x201D)) return at + n;
        if (code == '\n' && at + 1 < end && text[at + 1] == '\n') break;
    }
    return i;
}

/* Code and quotations between two bytes, as far as they are to be kept. */
static void find_kept(const Document *d, size_t from, size_t to, Spans *out) {
    const char *text = d->text.at;
    const bool code = d->keep & KEEP_CODE, quotes = d->keep & KEEP_QUOTES;
    for (size_t i = from, stop; (code || quotes) && i < to; i = stop > i ? stop : i + 1) {
        stop = i;
        if (code && (text[i] == '`' || text[i] == '~')) {
            stop = code_end(text, from, to, i);
            if (stop == i)
                while (stop < to && text[stop] == text[i]) stop++; /* no code: not a shorter run of the same mark either */
            else span_add(out, i, stop);
        } else if (quotes && ((unsigned char)text[i] & 0xC0) != 0x80 && (stop = quote_end(text, from, to, i)) > i) span_add(out, i, stop);
    }
}

/* A currency sign and its like, kept with the number that it touches. */
static bool is_unit(uint32_t code) {
    static const uint32_t unit[][2] = {{'#', '%'}, {0xA2, 0xA5}, {0xB0, 0xB1}, {0x58F, 0x58F}, {0x60B, 0x60B}, {0x9F2, 0x9F3}, {0xE3F, 0xE3F}, {0x20A0, 0x20CF}, {0x2103, 0x2103},
                                       {0x2109, 0x2109}, {0x2116, 0x2116}, {0xFF04, 0xFF04}, {0xFFE0, 0xFFE1}, {0xFFE5, 0xFFE6}};
    return among(code, unit, sizeof unit / sizeof *unit);
}

static bool is_address(const char *text, size_t len) {
    return find(text, len, 0, "://", 3) < len || (len > 4 && memcmp(text, "www.", 4) == 0) || (find(text, len, 0, "@", 1) < len && find(text, len, 0, ".", 1) < len && len > 4);
}

/* Force the words from `first` on that hold digits, are addresses or units, or lie in one of the spans, as far as these are to be kept. */
static void force_words(Document *d, size_t first, const Spans *kept) {
    const char *text = d->text.at;
    const bool digits = d->r->force_reserve_digit || (d->keep & KEEP_NUMBERS);
    for (size_t i = first, k = 0; i < d->n; i++) {
        Word *w = &d->word[i];
        const size_t len = w->end - w->start;
        while (k < kept->n && kept->at[k].end <= w->start) k++;
        w->forced = w->forced || (k < kept->n && kept->at[k].start < w->end) || (digits && has_digit(text + w->start, len)) ||
                    ((d->keep & KEEP_URLS) && is_address(text + w->start, len));
    }
    for (size_t i = first; (d->keep & KEEP_NUMBERS) && i < d->n; i++) {
        Word *w = &d->word[i];
        if (!is_unit(code_at(text, w->end, w->start))) continue;
        const Word *before = i > first ? w - 1 : NULL, *next = i + 1 < d->n ? w + 1 : NULL;
        w->forced = w->forced || (before && before->end == w->start && has_digit(text + before->start, before->end - before->start)) ||
                    (next && next->start == w->end && has_digit(text + next->start, next->end - next->start));
    }
}

/* The words of context c, whose pieces are piece..d->piece.n-1. */
static void find_words(Document *d, size_t c, size_t piece, size_t *cap) {
    const size_t from = d->context[c].start, to = d->context[c].end, first = d->n;
    Spans forced = {0}, kept = {0};
    unsigned char *begins = mem_new(to - from + 1, 1);
    for (size_t i = piece; i < d->piece.n; i++) begins[d->piece.start[i] - from] = 1;
    find_forced(d, from, to, &forced);
    find_kept(d, from, to, &kept);
    size_t k = 0;
    for (size_t i = from, end; i < to; i = end) {
        Kind kind;
        end = i + symbol_at(d->text.at, to, i, &kind);
        if (kind != SPACE) {
            end = word_end(d->text.at, from, to, i, begins);
            add_word(d, cap, (Word){.start = i, .end = end, .context = c});
        }
        for (; k < forced.n && forced.at[k].start < end; k++) add_word(d, cap, (Word){.start = forced.at[k].start, .end = forced.at[k].end, .context = c, .forced = true, .listed = true});
    }
    force_words(d, first, &kept);
    free(begins);
    free(forced.at);
    free(kept.at);
}

/* ---- words through the classifier ---- */

/* Is the cut before piece i of a context at a sentence's end (2), at a word's end (1), or inside a word (0)? word[i]: the word piece i lies in, from its
 * start. A sentence ends at a chunk-end token, or if none is asked for at a full stop of any script or a line break. */
static int cut_quality(const Document *d, const size_t *word, size_t i) {
    static const uint32_t stops[][2] = {{'!', '!'}, {'.', '.'}, {'?', '?'}, {0x589, 0x589}, {0x61F, 0x61F}, {0x6D4, 0x6D4}, {0x700, 0x702}, {0x964, 0x965}, {0x104A, 0x104B}, {0x1362, 0x1362},
                                        {0x1367, 0x1368}, {0x17D4, 0x17D5}, {0x2026, 0x2026}, {0x203C, 0x203D}, {0x2047, 0x2049}, {0x3002, 0x3002}, {0xFF01, 0xFF01}, {0xFF0E, 0xFF0E},
                                        {0xFF1F, 0xFF1F}, {0xFF61, 0xFF61}};
    const char *text = d->text.at;
    const size_t last = d->piece.end[i - 1], next = d->piece.start[i];
    const Texts *ends = &d->r->chunk_end_tokens;
    if (next < last || word[i] == word[i - 1]) return 0;
    for (size_t k = 0; k < ends->n; k++) {
        const Bytes *t = &ends->at[k];
        if (t->len && ((last >= t->len && memcmp(text + last - t->len, t->at, t->len) == 0) || find(text, next, last, t->at, t->len) < next)) return 2;
    }
    if (ends->n) return 1;
    return among(code_before(text, 0, last), stops, sizeof stops / sizeof *stops) || memchr(text + last, '\n', next - last) ? 2 : 1;
}

/* Cut the pieces first..d->piece.n-1 of a context into chunks of at most `most`, each between the model's own first and last special token. */
static bool make_chunks(Document *d, size_t first, size_t most, size_t first_word, Error *err) {
    const int64_t cls = tokenizer_special(d->m->tokenizer, "cls"), sep = tokenizer_special(d->m->tokenizer, "sep");
    const size_t n = d->piece.n;
    size_t *word = mem_new(n - first, sizeof *word), w = first_word;
    bool ok = true;
    for (size_t i = first; i < n; i++) {
        while (w < d->n && d->word[w].end <= d->piece.start[i]) w++;
        word[i - first] = w;
    }
    for (size_t at = first, end; ok && at < n; at = end) {
        end = n - at > most ? at + most : n;
        size_t best = end;
        int quality = end == n ? 2 : 0;
        for (size_t e = end; e > at && quality < 2; e--) {
            const int q = cut_quality(d, word - first, e);
            if (q > quality) quality = q, best = e;
        }
        end = best;
        d->chunk = mem_resize(d->chunk, d->chunks + 1, sizeof *d->chunk);
        Chunk *c = &d->chunk[d->chunks++];
        *c = (Chunk){.id = mem_new(end - at + 2, sizeof *c->id)};
        if (cls >= 0) c->id[c->T++] = (uint32_t)cls;
        memcpy(c->id + c->T, d->piece.id + at, (end - at) * sizeof *c->id);
        c->T += end - at;
        if (sep >= 0) c->id[c->T++] = (uint32_t)sep;
        ok = chunk_positions(d->m, c, err);
    }
    free(word);
    return ok;
}

/* Each word's probability: the mean (or first) of those of the pieces that overlap it; 0 if none does. p: of all pieces. */
static void word_probabilities(Document *d, const float *p) {
    const bool first = bytes_are(&d->r->token_to_word, "first", 5);
    for (size_t w = 0, from = 0; w < d->n; w++) {
        Word *word = &d->word[w];
        double sum = 0;
        size_t n = 0;
        while (from < d->piece.n && d->piece.end[from] <= word->start) from++;
        for (size_t i = from; i < d->piece.n && d->piece.start[i] < word->end && !(first && n); i++)
            if (d->piece.end[i] > word->start) sum += (double)p[i], n++;
        word->p = n ? (float)(sum / (double)n) : 0;
    }
}

/* ---- what the classifier has to beat ---- */

/* Words from 0 (left out first) to 1 by a rule that needs no model: random, head, tail, or stopwords (these and marks before all others, each in random
 * order). Random numbers depend on the text alone. */
static void baseline_probabilities(Document *d) {
    static const char stop[] = " a about after all also am an and any are as at be because been before being but by can could did do does for from had has have he her here hers him his how i if in into "
                               "is it its just like me more most my of off on only or other our ours out over own same she should so some such than that the their them then there these they this those "
                               "through to too um uh under until up very was we were what when where which while who whom why will with would you your yours ";
    const Bytes *rule = &d->r->baseline;
    const bool head = bytes_are(rule, "head", 4), tail = bytes_are(rule, "tail", 4), stops = bytes_are(rule, "stopwords", 9);
    uint64_t seed = 0xCBF29CE484222325u;
    for (size_t i = 0; i < d->text.len; i++) seed = (seed ^ (unsigned char)d->text.at[i]) * 0x100000001B3u; /* FNV-1a */
    for (size_t i = 0; i < d->n; i++) {
        Word *w = &d->word[i];
        char key[20] = " ";
        const size_t len = w->end - w->start;
        w->p = (float)uniform(seed, i);
        if (head) w->p = 1 - (float)i / (float)d->n;
        if (tail) w->p = (float)(i + 1) / (float)d->n;
        if (!stops) continue;
        for (size_t k = 0; k < len && k < 17; k++) key[k + 1] = (char)(is_latin((unsigned char)d->text.at[w->start + k]) ? d->text.at[w->start + k] | 32 : d->text.at[w->start + k]);
        if (len < 17) key[len + 1] = ' ';
        w->p = w->p / 2 + (kind_of(first_character(d, i)) == SYMBOL || strstr(stop, key) ? 0 : 0.5f);
    }
}

/* ==== one budget for the document =================================================================================================
 * Words are taken by (forced, probability, position), and the tokens of the text that they make are counted after each: so a budget of any size is a place
 * in one fixed sequence, and a smaller budget never keeps what a larger one drops. */

/* Sets of small numbers, with the greatest member below a given one: bits, and above them bits that say which 64 of them are not all zero. */
enum { LEVELS = 6 }; /* 64^6 members */
typedef struct {
    uint64_t *bit[LEVELS];
} Set;

static Set set_new(size_t n) {
    Set s = {0};
    for (size_t l = 0; l < LEVELS; l++) s.bit[l] = mem_new(n = n / 64 + 1, sizeof *s.bit[l]);
    return s;
}

static void set_free(Set *s) {
    for (size_t l = 0; l < LEVELS; l++) free(s->bit[l]);
}

static void set_add(Set *s, size_t i) {
    for (size_t l = 0; l < LEVELS; l++, i /= 64) s->bit[l][i / 64] |= (uint64_t)1 << i % 64;
}

static size_t highest(uint64_t bits) {
    size_t at = 0;
    for (size_t half = 32; half; half /= 2)
        if (bits >> half) bits >>= half, at += half;
    return at;
}

static size_t set_below(const Set *s, size_t i) {
    for (size_t l = 0; l < LEVELS; l++, i /= 64) {
        const uint64_t below = s->bit[l][i / 64] & (((uint64_t)1 << i % 64) - 1);
        if (!below) continue;
        i = i / 64 * 64 + highest(below);
        while (l-- > 0) i = i * 64 + highest(s->bit[l][i]);
        return i;
    }
    return NONE;
}

/* ---- what stands between two kept words ---- */

/* White space: none, some, a line break, a blank line. */
static unsigned char space_class(const char *text, size_t from, size_t to) {
    unsigned char breaks = 0;
    for (size_t i = from; i < to && breaks < 2; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c == '\n' || (c == '\r' && !(i + 1 < to && text[i + 1] == '\n'))) breaks++;
        if (c == 0xE2 && to - i > 2 && (unsigned char)text[i + 1] == 0x80 && ((unsigned char)text[i + 2] & 0xFE) == 0xA8) breaks = (unsigned char)(breaks + 1 + ((unsigned char)text[i + 2] & 1)); /* U+2028, U+2029 */
    }
    return from == to ? 0 : (unsigned char)(1 + (breaks > 2 ? 2 : breaks));
}

bool is_closing(uint32_t code) {
    static const uint32_t closing[][2] = {{'!', '"'}, {'\'', '\''}, {')', ')'}, {',', ','}, {'.', '.'}, {':', ';'}, {'?', '?'}, {']', ']'}, {'}', '}'}, {0xBB, 0xBB}, {0x589, 0x589}, {0x60C, 0x60C}, {0x61B, 0x61B},
                                          {0x61F, 0x61F}, {0x6D4, 0x6D4}, {0x964, 0x965}, {0x104A, 0x104B}, {0x1361, 0x1368}, {0x17D4, 0x17D6}, {0x2019, 0x2019}, {0x201D, 0x201D}, {0x2026, 0x2026}, {0x203A, 0x203A},
                                          {0x203C, 0x203D}, {0x2047, 0x2049}, {0x3001, 0x3002}, {0x3009, 0x3009}, {0x300B, 0x300B}, {0x300D, 0x300D}, {0x300F, 0x300F}, {0x3011, 0x3011}, {0x3015, 0x3015},
                                          {0x3017, 0x3017}, {0xFF01, 0xFF01}, {0xFF09, 0xFF09}, {0xFF0C, 0xFF0C}, {0xFF0E, 0xFF0E}, {0xFF1A, 0xFF1B}, {0xFF1F, 0xFF1F}, {0xFF3D, 0xFF3D}, {0xFF5D, 0xFF5D},
                                          {0xFF60, 0xFF61}, {0xFF63, 0xFF64}};
    return among(code, closing, sizeof closing / sizeof *closing);
}

/* A forced token of white space, or one with white space at its beginning or end. */
static bool has_space(const Document *d, size_t w) { return kind_of(first_character(d, w)) == SPACE || kind_of(last_character(d, w)) == SPACE; }
static bool is_blank(const Document *d, size_t w) { return kind_of(first_character(d, w)) == SPACE && kind_of(last_character(d, w)) == SPACE; }

/* What is written between the kept words a and b, a before b, none kept between; a NONE: what is before the first kept word, b d->n: behind the last. */
static Slice joint(const Document *d, size_t a, size_t b) {
    static const char *const gap[] = {"", " ", "\n", "\n\n"};
    const size_t from = a == NONE ? 0 : d->word[a].end, to = b == d->n ? d->text.len : d->word[b].start;
    if (b == (a == NONE ? 0 : a + 1)) return (Slice){d->text.at + from, to - from};
    if (a == NONE || b == d->n || has_space(d, a) || has_space(d, b) || (d->space[b] == 0 && is_closing(first_character(d, b)))) return (Slice){"", 0};
    int class = 3;
    while (class > 0 && d->spaces[class][b + 1] == d->spaces[class][a + 1]) class--;
    return (Slice){gap[class], strlen(gap[class])};
}

/* ---- the tokens of the text so far ---- */

/* The kept words as a list. */
typedef struct {
    Document *d;
    Set kept;
    size_t *next, *before; /* by word, next[d->n]: the first kept one; before[d->n]: the last */
    size_t tokens;
    Bytes text; /* scratch */
} Taking;

bool document_tokens(const Document *d, const char *text, size_t len, size_t *n, Error *err) {
    if (d->counting == COUNT_WORDS) return *n = 0, true;
    return tokenizer_count(d->counting == COUNT_MODEL ? d->m->tokenizer : d->counter, text, len, n, err);
}

/* Does a token surely begin where word b, or the end of the text, follows word a? cl100k_base ends one where letters or digits end, and begins one at a
 * blank; the models' tokenizers begin one at white space. */
static bool begins_token(const Document *d, size_t a, size_t b) {
    const Slice between = joint(d, a, b);
    const uint32_t last = last_character(d, a), next = between.len ? code_at(between.at, between.len, 0) : b == d->n ? '\n' : first_character(d, b);
    const unsigned class = unicode_flags(last) & (UNICODE_LETTER | UNICODE_NUMBER);
    if (d->counting == COUNT_MODEL) return kind_of(last) != SPACE && kind_of(next) == SPACE;
    if (class) return !(unicode_flags(next) & class);
    return kind_of(last) != SPACE && (next == ' ' || next == '\t');
}

/* Append what the list holds behind `from` (NONE: from the start) up to the word `stop` (d->n: to the end of the text). */
static void append_kept(Taking *t, size_t from, size_t stop) {
    const Document *d = t->d;
    for (size_t w = from; w != stop;) {
        const size_t next = t->next[w == NONE ? d->n : w];
        const Slice between = joint(d, w, next);
        bytes_add(&t->text, between.at, between.len);
        if (next == d->n) break;
        bytes_add(&t->text, d->text.at + d->word[next].start, d->word[next].end - d->word[next].start);
        w = next;
    }
}

static bool count_kept(Taking *t, size_t from, size_t stop, size_t *n, Error *err) {
    t->text.len = 0;
    append_kept(t, from, stop);
    return document_tokens(t->d, t->text.at ? t->text.at : "", t->text.len, n, err);
}

/* Put word w into the list in this step. Tokens change near it alone: those from the last sure beginning of a token before it to the first behind it are counted
 * before and after. Where none is near, in long runs without any, the count is a guess: document_choose then counts whole texts. */
static bool take_word(Taking *t, size_t w, size_t step, Error *err) {
    enum { NEAR = 128 }; /* bytes */
    Document *d = t->d;
    const size_t n = d->n, a = set_below(&t->kept, w), b = t->next[a == NONE ? n : a];
    size_t from = a, to = b, old, new;
    const bool left = a == NONE || (begins_token(d, a, b) && begins_token(d, a, w));
    while (!left && from != NONE && d->word[a].end - d->word[from].start < NEAR) {
        const size_t before = t->before[from];
        const bool begins = before == NONE || begins_token(d, before, from);
        from = before;
        if (begins) break;
    }
    d->guessed = d->guessed || (!left && from != NONE && d->word[a].end - d->word[from].start >= NEAR);
    const Slice was = joint(d, a, b), is = joint(d, w, b);
    const bool right = a != NONE && b != n && begins_token(d, a, b) && begins_token(d, w, b) && was.len == is.len && memcmp(was.at, is.at, is.len) == 0;
    while (!right && to != n && d->word[to].end - d->word[b].start < NEAR && (t->next[to] == n || !begins_token(d, to, t->next[to]))) to = t->next[to];
    d->guessed = d->guessed || (!right && to != n && d->word[to].end - d->word[b].start >= NEAR);
    if (!count_kept(t, from, right ? a : to, &old, err)) return false;
    t->next[a == NONE ? n : a] = t->before[b] = w;
    t->before[w] = a;
    t->next[w] = b;
    if (!count_kept(t, from, right ? w : to, &new, err)) return false;
    t->tokens += d->counting == COUNT_WORDS ? !is_blank(d, w) : new - old; /* new < old wraps, and wraps back */
    d->word[w].step = step;
    set_add(&t->kept, w);
    return true;
}

/* The word that has to stand between the kept words a and b so that they do not run together into one: the first behind a. NONE if none has to. */
static size_t divider(const Document *d, size_t a, size_t b) {
    const bool meet = a != NONE && b != d->n && b > a + 1 && joint(d, a, b).len == 0 && kind_of(last_character(d, a)) == LETTER && kind_of(first_character(d, b)) == LETTER;
    return meet ? a + 1 : NONE;
}

/* Put word w into the list, with the words that have to stand between it and its neighbours. */
static bool take(Taking *t, size_t w, size_t step, Error *err) {
    bool ok = take_word(t, w, step, err);
    for (size_t x; ok && (x = divider(t->d, t->before[w], w)) != NONE;) ok = take_word(t, x, step, err);
    for (size_t a = w, x; ok && (x = divider(t->d, a, t->next[a])) != NONE; a = x) ok = take_word(t, x, step, err);
    return ok;
}

static bool same_word(const Document *d, size_t a, size_t b) {
    const Word *x = &d->word[a], *y = &d->word[b];
    return x->end - x->start == y->end - y->start && memcmp(d->text.at + x->start, d->text.at + y->start, x->end - x->start) == 0;
}

/* Step 0: the forced words. With drop_consecutive those that repeat the one before are left out; held[i]: the first of these at or behind word i. */
static bool take_forced(Taking *t, size_t *held, Error *err) {
    Document *d = t->d;
    bool ok = true;
    size_t last = NONE;
    for (size_t w = 0; ok && w < d->n; w++) {
        const Word *word = &d->word[w];
        held[w] = NONE;
        if (!word->forced || !d->reserve[word->context]) continue;
        if (d->r->drop_consecutive && word->listed && last != NONE && d->word[last].listed && same_word(d, last, w)) held[w] = w;
        else if (word->step == NONE) ok = take(t, last = w, 0, err);
    }
    held[d->n] = d->n;
    for (size_t w = d->n; w-- > 0;)
        if (held[w] == NONE) held[w] = held[w + 1];
    return ok;
}

typedef struct {
    float p;
    size_t word;
} Candidate;

static int by_probability(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p ? 1 : -1) : (x->word > y->word) - (x->word < y->word);
}

/* Fill step of the words and the table of steps, as far as the first step with more than `most` tokens. */
static bool take_all(Document *d, size_t most, Error *err) {
    Taking t = {.d = d, .kept = set_new(d->n), .next = mem_new(d->n + 1, sizeof *t.next), .before = mem_new(d->n + 1, sizeof *t.before)};
    Candidate *free_word = mem_new(d->n, sizeof *free_word);
    size_t *held = mem_new(d->n + 1, sizeof *held), n = 0;
    t.next[d->n] = d->n;
    t.before[d->n] = NONE;
    bool ok = take_forced(&t, held, err);
    for (size_t w = 0; w < d->n; w++)
        if (!d->word[w].forced && d->reserve[d->word[w].context]) free_word[n++] = (Candidate){d->word[w].p, w};
    qsort(free_word, n, sizeof *free_word, by_probability);
    d->step = mem_new(n + 1, sizeof *d->step);
    d->step[0] = (Step){t.tokens, 1};
    for (size_t i = 0; ok && i < n && !(d->steps > 0 && t.tokens > most && !d->guessed); i++) {
        const size_t w = free_word[i].word;
        if (d->word[w].step != NONE) continue;
        ok = take(&t, w, ++d->steps, err);
        const size_t again = held[w];
        if (ok && again < t.next[w]) ok = take(&t, again, d->steps, err); /* something is kept now between it and the one it repeats */
        d->step[d->steps] = (Step){t.tokens, free_word[i].p};
    }
    set_free(&t.kept);
    bytes_free(&t.text);
    free(t.next);
    free(t.before);
    free(free_word);
    free(held);
    return ok;
}

/* ==== whole contexts ============================================================================================================== */

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double percentile(double *value, size_t n, int q, bool single) {
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

/* The context filter's rate, from the five arguments that can set it. */
double context_rate(const Request *r, size_t origin_tokens) {
    double rate = r->context_level_rate, target = r->context_level_target_token;
    if (r->target_context <= 0 && rate >= 1 && target <= 0) {
        if (r->target_token < 0 && r->rate < 1) rate = r->use_token_level_filter ? (r->rate + 1) / 2 : r->rate;
        if (r->target_token >= 0) target = r->use_token_level_filter ? r->target_token * 2 : r->target_token;
    }
    if (r->target_context >= 0) rate = fmin(r->target_context / (double)r->context.n, 1);
    if (target >= 0) rate = fmin(target / (double)origin_tokens, 1);
    return rate;
}

bool is_forced_context(const Request *r, size_t i) {
    for (size_t k = 0; k < r->force_context_ids.n; k++)
        if (strtod(r->force_context_ids.at[k].at, NULL) == (double)i) return true;
    return false;
}

/* reserve[c]: the contexts whose words' mean probability, forcing aside, is at or above the percentile, and the forced ones. */
static bool reserve_contexts(Document *d, Error *err) {
    const double q = trunc(100 * (1 - context_rate(d->r, d->origin_tokens)));
    double *score = mem_new(d->contexts, sizeof *score), *sorted = mem_new(d->contexts, sizeof *sorted);
    size_t *words = mem_new(d->contexts, sizeof *words);
    for (size_t w = 0; w < d->n; w++) score[d->word[w].context] += (double)d->word[w].p, words[d->word[w].context]++;
    for (size_t c = 0; c < d->contexts; c++) sorted[c] = score[c] = words[c] ? score[c] / (double)words[c] : 0;
    const bool ok = (q >= 0 && q <= 100) || fail(err, BAD_INPUT, "the context filter's rate must be from 0 to 1: this one asks for percentile %.0f", q);
    const double threshold = ok ? percentile(sorted, d->contexts, (int)q, false) : 0;
    for (size_t c = 0; ok && c < d->contexts; c++) d->reserve[c] = score[c] >= threshold || is_forced_context(d->r, c);
    free(score);
    free(sorted);
    free(words);
    return ok;
}

/* ==== a document under compression ================================================================================================ */

void result_free(Result *r) {
    texts_free(&r->context);
    bytes_free(&r->labels);
    bytes_free(&r->prompt);
    free(r->word);
}

static bool has_filter(const Document *d) { return d->r->use_context_level_filter && d->contexts > 1; }

bool request_check(const Request *r, Counting *counting, unsigned *keep, Error *err) {
    static const char *const countings[] = {"cl100k", "model", "words"}, *const kinds[] = {"code", "urls", "numbers", "quotes"};
    static const char *const baselines[] = {"", "random", "head", "tail", "stopwords"};
    size_t k = 0, b = 0;
    while (k < 3 && !bytes_are(&r->count, countings[k], strlen(countings[k]))) k++;
    if (k == 3) return fail(err, BAD_INPUT, "count is '%.50s': cl100k, model and words are possible", r->count.at);
    *counting = (Counting)k;
    *keep = 0;
    for (size_t at = 0, len; at < r->keep.len; at += len + 1) {
        len = find(r->keep.at, r->keep.len, at, ",", 1) - at;
        for (k = 0; k < 4 && !(strlen(kinds[k]) == len && memcmp(kinds[k], r->keep.at + at, len) == 0);) k++;
        if (k == 4) return fail(err, BAD_INPUT, "keep is '%.50s': code, urls, numbers and quotes are possible, with commas between them", r->keep.at);
        *keep |= 1u << k;
    }
    while (b < 5 && !bytes_are(&r->baseline, baselines[b], strlen(baselines[b]))) b++;
    if (b == 5) return fail(err, BAD_INPUT, "baseline is '%.50s': random, head, tail and stopwords are possible", r->baseline.at);
    if (!bytes_are(&r->token_to_word, "mean", 4) && !bytes_are(&r->token_to_word, "first", 5))
        return fail(err, BAD_INPUT, "token_to_word is '%.50s': mean and first are possible", r->token_to_word.at);
    if (!(r->rate > 0 && r->rate <= 1)) return fail(err, BAD_INPUT, "a rate is above 0 and at most 1, not %g", r->rate);
    if (!(r->target_token >= 1 || r->target_token == -1)) return fail(err, BAD_INPUT, "target_token is at least 1, not %g", r->target_token);
    if (!(r->threshold <= 1)) return fail(err, BAD_INPUT, "a threshold is a probability, from 0 to 1, not %g", r->threshold);
    for (size_t i = 0; i < r->force_tokens.n; i++)
        if (r->force_tokens.at[i].len == 0) return fail(err, BAD_INPUT, "force token %zu is empty", i);
    return true;
}

static void join_contexts(Document *d) {
    const Texts *context = &d->r->context;
    bytes_add(&d->text, "", 0);
    d->contexts = context->n;
    d->context = mem_new(d->contexts, sizeof *d->context);
    d->reserve = mem_new(d->contexts, sizeof *d->reserve);
    for (size_t c = 0; c < d->contexts; c++) {
        if (c) bytes_text(&d->text, "\n\n");
        const size_t start = d->text.len;
        bytes_add(&d->text, context->at[c].at, context->at[c].len);
        d->context[c] = (Span){start, d->text.len};
        d->reserve[c] = true;
    }
}

/* Words and chunks of context c. */
static bool read_context(Document *d, size_t c, size_t most, size_t *cap, Error *err) {
    const size_t first = d->piece.n, first_word = d->n, start = d->context[c].start;
    if (!tokenizer_encode(d->m->tokenizer, d->text.at + start, d->context[c].end - start, TOK_PLAIN, &d->piece, err)) return false;
    for (size_t i = first; i < d->piece.n; i++) d->piece.start[i] += start, d->piece.end[i] += start;
    find_words(d, c, first, cap);
    return make_chunks(d, first, most, first_word, err);
}

/* White space before each word, and how often there is at least so much before word i. */
static void measure_spaces(Document *d) {
    d->space = mem_new(d->n + 1, 1);
    for (int class = 1; class < 4; class++) d->spaces[class] = mem_new(d->n + 2, sizeof *d->spaces[class]);
    for (size_t w = 0; w <= d->n; w++) {
        d->space[w] = space_class(d->text.at, w ? d->word[w - 1].end : 0, w < d->n ? d->word[w].start : d->text.len);
        for (int class = 1; class < 4; class++) d->spaces[class][w + 1] = d->spaces[class][w] + (d->space[w] >= class);
    }
}

/* The tokens of a text that holds the words taken by this step. */
static bool count_all(const Document *d, const Bytes *text, size_t step, size_t *n, Error *err) {
    if (d->counting != COUNT_WORDS) return document_tokens(d, text->at, text->len, n, err);
    *n = 0;
    for (size_t w = 0; w < d->n; w++) *n += d->word[w].step <= step && !is_blank(d, w);
    return true;
}

bool document_open(const Model *m, const Tokenizer *counter, const Request *r, Document *d, Error *err) {
    *d = (Document){.m = m, .counter = counter, .r = r};
    if (!m->tokenizer) return *err = m->no_tokenizer, false;
    join_contexts(d);
    const size_t rows = m->size[LETTER_P] - m->first_position, most = (rows < MAX_PIECES ? rows : MAX_PIECES) - 2;
    size_t cap = 0;
    bool ok = request_check(r, &d->counting, &d->keep, err) && (rows > 2 || fail(err, BAD_MODEL, "%s: has positions for %zu pieces, special tokens included", weights_path(m->weights), rows));
    for (size_t c = 0; ok && c < d->contexts; c++) ok = read_context(d, c, most, &cap, err);
    ok = ok && count_all(d, &d->text, NONE, &d->origin_tokens, err);
    if (ok) measure_spaces(d);
    else document_close(d);
    return ok;
}

void document_close(Document *d) {
    for (size_t c = 0; c < d->chunks; c++) chunk_free(&d->chunk[c]);
    for (int class = 1; class < 4; class++) free(d->spaces[class]);
    bytes_free(&d->text);
    pieces_free(&d->piece);
    free(d->context);
    free(d->reserve);
    free(d->word);
    free(d->chunk);
    free(d->space);
    free(d->step);
    *d = (Document){0};
}

size_t document_budget(const Document *d) {
    const double n = (double)d->origin_tokens, most = d->r->target_token >= 1 ? d->r->target_token : d->r->rate * n;
    return most >= n ? d->origin_tokens : (size_t)most;
}

float *document_probabilities(const Document *d) {
    const size_t before = tokenizer_special(d->m->tokenizer, "cls") >= 0, behind = tokenizer_special(d->m->tokenizer, "sep") >= 0;
    float *p = mem_new(d->piece.n, sizeof *p);
    size_t at = 0;
    for (size_t c = 0; c < d->chunks; at += d->chunk[c++].T - before - behind) memcpy(p + at, d->chunk[c].p + before, (d->chunk[c].T - before - behind) * sizeof *p);
    return p;
}

bool document_rank(Document *d, size_t most, Error *err) {
    float *own = d->r->baseline.len || d->given ? NULL : document_probabilities(d);
    if (d->r->baseline.len) baseline_probabilities(d);
    else word_probabilities(d, d->given ? d->given : own);
    free(own);
    for (size_t w = 0; w < d->n; w++) d->word[w].step = NONE;
    return (!has_filter(d) || reserve_contexts(d, err)) && take_all(d, most, err);
}

size_t document_steps(const Document *d, size_t budget) {
    size_t k = d->step[0].tokens == 0 && d->steps > 0; /* at least one word */
    if (!d->r->use_token_level_filter) return d->steps;
    if (d->r->threshold >= 0)
        while (k < d->steps && (double)d->step[k + 1].p >= d->r->threshold) k++;
    else
        while (k < d->steps && d->step[k + 1].tokens <= budget) k++;
    return k;
}

/* Append the text of the words first..last-1, which stand between two bytes of the source, that are taken by the given step. */
static void append_words(const Document *d, size_t first, size_t last, Span all, size_t step, Bytes *out) {
    size_t before = NONE;
    for (size_t w = first; w < last; w++) {
        const Word *word = &d->word[w];
        if (word->step > step) continue;
        if (before != NONE) {
            const Slice between = joint(d, before, w);
            bytes_add(out, between.at, between.len);
        } else if (w == first) bytes_add(out, d->text.at + all.start, word->start - all.start);
        bytes_add(out, d->text.at + word->start, word->end - word->start);
        before = w;
    }
    if (before != NONE && before + 1 == last) bytes_add(out, d->text.at + d->word[before].end, all.end - d->word[before].end);
}

void document_text(const Document *d, size_t step, Bytes *out) {
    bytes_add(out, "", 0);
    append_words(d, 0, d->n, (Span){0, d->text.len}, step, out);
}

/* ---- from requests to results ---- */

/* The source comes back as it is: all of it fits, and nothing else asks for less. */
static bool is_whole(const Document *d) {
    return d->r->threshold < 0 && !has_filter(d) && (document_budget(d) == d->origin_tokens || !d->r->use_token_level_filter);
}

bool document_needs_model(const Document *d) { return d->r->baseline.len == 0 && (!is_whole(d) || d->r->return_word_label); }

Label document_label(const Document *d, size_t i, size_t step) {
    const Word *w = &d->word[i];
    const size_t from = d->context[w->context].start;
    return (Label){w->start - from, w->end - from, w->context, w->forced ? 1 : w->p, w->forced, w->step <= step};
}

static void add_labels(const Document *d, size_t step, bool whole, Result *out) {
    out->has_labels = true;
    out->words = d->n;
    out->word = mem_new(d->n, sizeof *out->word);
    for (size_t i = 0; i < d->n; i++) {
        Label *l = &out->word[i];
        *l = document_label(d, i, step);
        l->kept = l->kept || whole;
        if (i) bytes_add(&out->labels, d->r->word_sep.at, d->r->word_sep.len);
        bytes_add(&out->labels, d->text.at + d->word[i].start, d->word[i].end - d->word[i].start);
        bytes_add(&out->labels, d->r->label_sep.at, d->r->label_sep.len);
        bytes_text(&out->labels, l->kept ? "1" : "0");
    }
}

/* The text after a step, and its exact count. */
static bool try_step(const Document *d, size_t step, Bytes *text, size_t *tokens, Error *err) {
    text->len = 0;
    document_text(d, step, text);
    return count_all(d, text, step, tokens, err);
}

bool document_choose(const Document *d, size_t budget, size_t *step, Bytes *text, size_t *tokens, Error *err) {
    size_t low = *step = document_steps(d, budget), high = low;
    if (d->guessed && d->r->threshold < 0 && d->r->use_token_level_filter) low = document_steps(d, 0), high = d->steps;
    while (low < high) {
        const size_t middle = high - (high - low) / 2;
        if (!try_step(d, middle, text, tokens, err)) return false;
        if (*tokens <= budget) low = middle;
        else high = middle - 1;
    }
    return try_step(d, *step = low, text, tokens, err);
}

bool document_compress(Document *d, Result *out, Error *err) {
    bool whole = is_whole(d);
    const size_t budget = document_budget(d);
    size_t step = 0, first = 0;
    *out = (Result){.origin_tokens = d->origin_tokens, .budget = budget};
    if ((!whole || d->r->return_word_label) && !document_rank(d, whole || d->r->threshold >= 0 ? SIZE_MAX : budget, err)) return false;
    if (!whole && !document_choose(d, budget, &step, &out->prompt, &out->compressed_tokens, err)) return result_free(out), false;
    whole = whole || (d->r->only_if_smaller && out->compressed_tokens >= out->origin_tokens);
    for (size_t c = 0; c < d->contexts; c++) {
        Bytes text = {0};
        size_t last = first;
        while (last < d->n && d->word[last].context == c) last++;
        bytes_add(&text, "", 0);
        if (whole) bytes_add(&text, d->text.at + d->context[c].start, d->context[c].end - d->context[c].start);
        else append_words(d, first, last, d->context[c], step, &text);
        if (whole || d->reserve[c]) texts_add(&out->context, text.at, text.len);
        bytes_free(&text);
        first = last;
    }
    if (whole) {
        bytes_set(&out->prompt, d->text.at, d->text.len);
        out->compressed_tokens = out->origin_tokens;
    }
    if (d->r->return_word_label) add_labels(d, step, whole, out);
    return true;
}

void compress_batch(const Model *m, const Tokenizer *counter, const Request *r, size_t n, Result *out, Error *err, bool *ok) {
    Document *d = mem_new(n, sizeof *d);
    Chunk *chunk = NULL;
    size_t chunks = 0;
    for (size_t i = 0; i < n; i++) {
        ok[i] = document_open(m, counter, &r[i], &d[i], &err[i]);
        if (!ok[i] || !document_needs_model(&d[i])) continue;
        chunk = mem_resize(chunk, chunks + d[i].chunks, sizeof *chunk);
        if (d[i].chunks) memcpy(chunk + chunks, d[i].chunk, d[i].chunks * sizeof *chunk); /* the memory that they point to is the document's */
        chunks += d[i].chunks;
    }
    Error bad;
    const bool classified = classify_chunks(m, chunk, chunks, &bad);
    for (size_t i = 0; i < n; i++) {
        if (ok[i] && document_needs_model(&d[i]) && !classified) err[i] = bad, ok[i] = false;
        ok[i] = ok[i] && document_compress(&d[i], &out[i], &err[i]);
        document_close(&d[i]);
    }
    free(chunk);
    free(d);
}

/* ==== commands ==================================================================================================================== */

#ifndef TESTING

static const Command commands[] = {
    {"compress", command_compress, "shorten a text, keeping what matters"},
    {"label", command_label, "every word with its probability and verdict: lines, JSON, colours, a page"},
    {"classify", command_classify, "the probability of being kept, piece by piece"},
    {"tokenize", command_tokenize, "ids, pieces and byte offsets of a text"},
    {"chunk", command_chunk, "texts to requests for a language model that shortens them"},
    {"collect", command_collect, "its answers to pairs of original and compression"},
    {"annotate", command_annotate, "pairs to words with labels"},
    {"filter", command_filter, "annotated lines without the worst"},
    {"train", command_train, "a model from annotated lines"},
    {"eval", command_eval, "answers kept by the model and by rules that need none"},
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
     "Half of a text:\nlingua2 compress --rate 0.5 notes.txt\n"
     "From a pipe, to a count of tokens:\ncat notes.txt | lingua2 compress --target-token 200 -\n"
     "See what is dropped, on a page with a slider:\nlingua2 label --html notes.html notes.txt\n"
     "One request a line, one result a line:\nlingua2 compress --jsonl <requests.jsonl\n",
     "mend(1)"},
    commands, sizeof commands / sizeof *commands};

int main(int argc, char **argv) { return program_main(&program, argc, argv); }
#endif
