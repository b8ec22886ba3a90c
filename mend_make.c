/* mend_make.c - new models to be trained: a GPT-2 from a configuration, a distiller from a GPT-2, vectors for prompt tuning. Numbers are drawn by counting
 * from the seed and evenly from an interval, so that every machine makes the same file.
 */
#include "mend_train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The tensors of a new file, in order; what is drawn or computed is kept in `own`. */
typedef struct {
    Tensor *at;
    size_t n;
    Bytes *name;
    float **own;
    uint64_t seed, count;
} Draft;

static void draft_free(Draft *d) {
    for (size_t i = 0; i < d->n; i++) bytes_free(&d->name[i]), free(d->own[i]);
    free(d->at), free(d->name), free(d->own);
}

/* Room for one more; returns its numbers [rows*cols], zero. cols 0: a vector. */
static float *draft_add(Draft *d, const char *name, size_t rows, size_t cols) {
    const size_t i = d->n++, n = rows * (cols ? cols : 1);
    d->at = mem_resize(d->at, d->n, sizeof *d->at);
    d->name = mem_resize(d->name, d->n, sizeof *d->name);
    d->own = mem_resize(d->own, d->n, sizeof *d->own);
    d->name[i] = (Bytes){0};
    bytes_text(&d->name[i], name);
    d->own[i] = mem_new(n, sizeof *d->own[i]);
    d->at[i] = (Tensor){d->name[i].at, DTYPE_F32, cols ? 2 : 1, {rows, cols}, n, d->own[i]};
    return d->own[i];
}

/* A tensor of another file. */
static void draft_copy(Draft *d, const Tensor *t) {
    draft_add(d, t->name, 0, 0);
    const char *name = d->name[d->n - 1].at;
    d->at[d->n - 1] = *t;
    d->at[d->n - 1].name = name;
}

/* Numbers of this deviation, evenly from an interval around 0. */
static void draw_numbers(Draft *d, float *x, size_t n, double deviation) {
    const double width = deviation * sqrt(12.0);
    for (size_t i = 0; i < n; i++) x[i] = (float)((uniform(d->seed, d->count++) - 0.5) * width);
}

static void draft_matrix(Draft *d, const char *name, size_t rows, size_t cols, double deviation) {
    draw_numbers(d, draft_add(d, name, rows, cols), rows * cols, deviation);
}

static void draft_vector(Draft *d, const char *name, size_t n, float value) {
    float *x = draft_add(d, name, n, 0);
    for (size_t i = 0; i < n; i++) x[i] = value;
}

/* Rows of embeddings of pieces by chance, [U,C]. */
static void draft_prompt(Draft *d, const char *name, const Model *m, size_t U) {
    const size_t C = m->size[LETTER_C];
    float *x = draft_add(d, name, U, C);
    for (size_t u = 0; u < U; u++) embed_piece(m, (uint32_t)(uniform(d->seed, d->count++) * (double)m->size[LETTER_V]), x + u * C);
}

/* The metadata of `like`, but for these (n pairs), and the hash of the tensors. */
static bool draft_write(const Draft *d, const char *path, const Weights *like, const char *const *own, size_t n, Error *err) {
    const size_t metas = weights_meta_count(like);
    const char **meta = mem_new(2 * (metas + n + 1), sizeof *meta);
    char hash[65];
    size_t k = 0;
    weights_sha256(d->at, d->n, hash);
    for (size_t i = 0; i < metas; i++) {
        const char *key = weights_meta_key(like, i);
        bool replaced = strcmp(key, "content_sha256") == 0 || strcmp(key, "training") == 0;
        for (size_t o = 0; o < n; o++) replaced = replaced || strcmp(key, own[2 * o]) == 0;
        if (!replaced) meta[k++] = key, meta[k++] = weights_meta(like, key);
    }
    for (size_t o = 0; o < 2 * n; o++) meta[k++] = own[o];
    meta[k++] = "content_sha256", meta[k++] = hash;
    const bool ok = weights_write(path, d->at, d->n, meta, k / 2, err);
    free(meta);
    return ok;
}

/* ==== a GPT-2 ===================================================================================================================== */

enum { SIZES = 6 };
static const char *const size_keys[SIZES] = {"n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "n_inner"};

/* Deviations as the authors of GPT-2 took them: 0.02, what is added to the rows smaller by the root of the number of such additions. */
static void draft_gpt2(Draft *d, const size_t size[SIZES]) {
    const size_t L = size[0], C = size[2], P = size[3], V = size[4], F = size[5];
    const double deviation = 0.02, added = deviation / sqrt(2.0 * (double)L);
    const struct { const char *name; size_t rows, cols; double deviation; } part[] = {
        {"h.%zu.ln_1.weight", C, 0, 1}, {"h.%zu.ln_1.bias", C, 0, 0},
        {"h.%zu.attn.c_attn.weight", C, 3 * C, deviation}, {"h.%zu.attn.c_attn.bias", 3 * C, 0, 0}, {"h.%zu.attn.c_proj.weight", C, C, added}, {"h.%zu.attn.c_proj.bias", C, 0, 0},
        {"h.%zu.ln_2.weight", C, 0, 1}, {"h.%zu.ln_2.bias", C, 0, 0},
        {"h.%zu.mlp.c_fc.weight", C, F, deviation}, {"h.%zu.mlp.c_fc.bias", F, 0, 0}, {"h.%zu.mlp.c_proj.weight", F, C, added}, {"h.%zu.mlp.c_proj.bias", C, 0, 0}};
    draft_matrix(d, "wte.weight", C, V, deviation);
    draft_matrix(d, "wpe.weight", P, C, deviation);
    for (size_t l = 0; l < L; l++)
        for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
            Bytes name = {0};
            weights_row_name(&(TensorRow){part[i].name, 0, 0, 0}, l, &name);
            if (part[i].cols) draft_matrix(d, name.at, part[i].rows, part[i].cols, part[i].deviation);
            else draft_vector(d, name.at, part[i].rows, (float)part[i].deviation);
            bytes_free(&name);
        }
    draft_vector(d, "ln_f.weight", C, 1);
    draft_vector(d, "ln_f.bias", C, 0);
}

bool make_gpt2(const char *path, const char *config_path, const Weights *tokenizer, uint64_t seed, Error *err) {
    Bytes text = {0};
    Json config = {0};
    Error detail;
    size_t size[SIZES];
    if (!read_text(config_path, &text, err)) return false;
    bool ok = json_parse(text.at ? text.at : "", text.len, &config, &detail) || fail(err, BAD_INPUT, "%s: %.800s", config_path, detail.text);
    for (size_t i = 0; ok && i < SIZES; i++) ok = config_size(&config, size_keys[i], config_path, &size[i], err);
    Draft d = {.seed = seed};
    if (ok) {
        for (size_t i = 0; i < weights_count(tokenizer); i++)
            if (strncmp(weights_at(tokenizer, i)->name, "tokenizer.", 10) == 0) draft_copy(&d, weights_at(tokenizer, i));
        draft_gpt2(&d, size);
        const char *const own[] = {"architecture", "GPT2LMHeadModel", "config", text.at, "source_sha256", "none: made by mend train"};
        ok = draft_write(&d, path, tokenizer, own, 3, err);
    }
    draft_free(&d);
    json_free(&config);
    bytes_free(&text);
    return ok;
}

/* ==== a distiller, a prompt ======================================================================================================= */

static double rms(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum / (double)n);
}

bool make_distiller(const char *path, const Model *base, const Model *lm, size_t U, uint64_t seed, Error *err) {
    const size_t C = base->size[LETTER_C], O = lm->size[LETTER_C];
    if (base->kind != GPT2 || lm->kind != GPT2) return fail(err, BAD_USAGE, "a new distiller can be made of a GPT-2 for a GPT-2; for a T5 export one with export.py --mend");
    Draft d = {.seed = seed};
    for (size_t i = 0; i < weights_count(base->weights); i++) {
        const Tensor *t = weights_at(base->weights, i);
        if (strncmp(t->name, "adam.", 5) == 0) continue;
        draft_copy(&d, t);
        if (C != O || strncmp(t->name, "ln_f.", 5)) continue;
        /* The vectors are read where embeddings stand: let them begin as large as these. */
        const double scale = rms(lm->wte, C * lm->size[LETTER_V]) / rms(base->ln_g, C);
        float *x = d.own[d.n - 1] = mem_resize(d.own[d.n - 1], C, sizeof *x);
        for (size_t c = 0; c < C; c++) x[c] = (float)((double)((const float *)t->data)[c] * scale);
        d.at[d.n - 1].data = x;
    }
    draft_prompt(&d, "init_prompt_weight", base, U);
    if (C != O) {
        draft_matrix(&d, "adap_pooler.dense.weight", C, O, rms(lm->wte, O * lm->size[LETTER_V]) / (rms(base->ln_g, C) * sqrt((double)C)));
        draft_vector(&d, "adap_pooler.dense.bias", O, 0);
    }
    const char *const own[] = {"architecture", "MendGPT2"};
    const bool ok = draft_write(&d, path, base->weights, own, 1, err);
    draft_free(&d);
    return ok;
}

bool make_prompt(const char *path, const Model *lm, size_t U, uint64_t seed, Error *err) {
    Draft d = {.seed = seed};
    draft_prompt(&d, "vectors", lm, U);
    const char *const meta[] = {"format", "mend-vectors-1", "demonstrations_sha256", "none: tuned", "distiller_sha256", "none: tuned", "llm_sha256", model_hash(lm)};
    const bool ok = weights_write(path, d.at, d.n, meta, 4, err);
    draft_free(&d);
    return ok;
}
