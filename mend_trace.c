/* mend_trace.c - `mend trace` and `mend replay`: one forward pass of a language model, a distiller, or both, with every result named.
 *
 *   -l GPT-2 --ids 1,2,3                        the ids through the model
 *   -l T5 --encoder-ids 4,5 --ids 1,2,3         4,5 on the encoder's side; the decoder reads its start piece, then the ids
 *   -m MEND --demonstration-ids 6,7             the ids and P through the distiller (names begin with hypernet.)
 *   -m MEND --demonstration-ids 6,7 -l ...      and the language model reads the vectors first (a T5: on the encoder's side)
 */
#include "compare.h"
#include "mend.h"
#include "tap.h"
#include "trace.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    Bytes lm_path, mend_path, lists[3]; /* as the options give them */
    Model lm, mend;
    Ids ids, source, demos;
} Tracing;

static const char *const input_names[] = {"input.ids", "input.encoder_ids", "input.demonstration_ids"};
enum { INPUTS = 3 };

static Ids *input_of(Tracing *t, size_t i) { return i == 0 ? &t->ids : i == 1 ? &t->source : &t->demos; }

/* Rows of S, then of pieces, to be freed. */
static float *rows_of(const Model *m, const Vectors *s, const Ids *ids) {
    const size_t C = m->size[LETTER_C];
    float *x = mem_new(s->n + ids->n, C * sizeof *x);
    if (s->n) memcpy(x, s->at, s->n * C * sizeof *x);
    for (size_t i = 0; i < ids->n; i++) embed_piece(m, ids->at[i], x + (s->n + i) * C);
    return x;
}

/* From hidden states [n,C]: logits, their logarithmic sums, and log p of what stands behind each row. */
static void read_head(const Model *m, const float *x, const uint32_t *target, size_t n, size_t targets) {
    const size_t V = m->size[LETTER_V];
    float *l = mem_new(n, V * sizeof *l), *lse = mem_new(n, sizeof *lse), *lp = mem_new(targets, sizeof *lp);
    Error unsound; /* a NaN is the recorder's to report */
    (void)logits(m, x, n, l, &unsound);
    logsumexp(lse, l, n, V);
    TAP(lse, n, 1, "lse");
    for (size_t i = 0; i < targets; i++) lp[i] = l[i * V + target[i]] - lse[i];
    TAP(lp, targets, 1, "logprob");
    free(l), free(lse), free(lp);
}

static void read_gpt2(const Model *m, const Vectors *s, const Ids *ids) {
    const size_t N = s->n + ids->n, start[] = {0, N};
    Cache none = {.E = m->size[LETTER_E], .L = m->L};
    float *x = rows_of(m, s, ids);
    gpt2_forward(m, &(Batch){N, 1, start}, &none, false, NULL, x);
    read_head(m, x + s->n * m->size[LETTER_C], ids->at + 1, ids->n, ids->n - 1);
    free(x);
}

static void read_t5(const Model *m, const Vectors *s, const Ids *source, const Ids *ids) {
    const size_t N = s->n + source->n, start[] = {0, N}, out[] = {0, ids->n};
    Ids before = {0}; /* the start piece and all ids but the last */
    Cache none = {.E = m->size[LETTER_E], .L = m->encoder.L};
    float *x = rows_of(m, s, source);
    t5_forward(m, &m->encoder, &(Batch){N, 1, start}, &none, false, NULL, NULL, x);
    Cache cross = cross_cache(m, x, N);
    ids_add(&before, &m->start_id, 1);
    ids_add(&before, ids->at, ids->n - 1);
    float *y = rows_of(m, &(Vectors){0}, &before);
    none.L = m->decoder.L;
    t5_forward(m, &m->decoder, &(Batch){ids->n, 1, out}, &none, false, &cross, NULL, y);
    read_head(m, y, ids->at, ids->n, ids->n);
    cache_free(&cross);
    ids_free(&before);
    free(x), free(y);
}

/* The whole pass, heard by whoever listens. */
static bool forward(Tracing *t, Error *err) {
    const Bytes no_labels = {0};
    Vectors s = {0};
    bool ok = true;
    if (t->mend_path.len) {
        s = (Vectors){mem_new(t->mend.size[LETTER_U], t->mend.size[LETTER_O] * sizeof *s.at), t->mend.size[LETTER_U], t->mend.size[LETTER_O]};
        taps->scope = "hypernet.";
        ok = distill_group(&t->mend, &(Distilling){.groups = 1}, &t->demos, &no_labels, s.at, err);
        taps->scope = NULL;
    }
    if (ok && t->lm_path.len && t->lm.kind == GPT2) read_gpt2(&t->lm, &s, &t->ids);
    else if (ok && t->lm_path.len) read_t5(&t->lm, &s, &t->source, &t->ids);
    free(s.at);
    return ok;
}

static bool check_ids(const Model *m, const Ids *ids, const char *name, Error *err) {
    for (size_t i = 0; i < ids->n; i++)
        if (ids->at[i] >= m->size[LETTER_V]) return fail(err, BAD_INPUT, "%s: there is no piece %lu: the model has %zu", name, (unsigned long)ids->at[i], m->size[LETTER_V]);
    return true;
}

static bool open_models(Tracing *t, Error *err) {
    if (!t->lm_path.len && !t->mend_path.len) return fail(err, BAD_USAGE, "which model? -l, -m or both");
    return (!t->lm_path.len || model_open(&t->lm, t->lm_path.at, LANGUAGE_MODEL, err)) && (!t->mend_path.len || model_open(&t->mend, t->mend_path.at, DISTILLER, err));
}

/* That the models and the inputs go together. */
static bool check_inputs(const Tracing *t, Error *err) {
    const bool lm = t->lm_path.len > 0, mend = t->mend_path.len > 0;
    const size_t U = mend ? t->mend.size[LETTER_U] : 0, P = t->lm.size[LETTER_P];
    if (lm != (t->ids.n > 0)) return fail(err, BAD_USAGE, "-l and --ids go together");
    if (mend != (t->demos.n > 0)) return fail(err, BAD_USAGE, "-m and --demonstration-ids go together");
    if (lm && mend && t->mend.size[LETTER_O] != t->lm.size[LETTER_C])
        return fail(err, BAD_MODEL, "the distiller's vectors are %zu wide, %s reads %zu: it was made for another", t->mend.size[LETTER_O], t->lm_path.at, t->lm.size[LETTER_C]);
    if (lm && t->lm.kind == T5 && U + t->source.n == 0) return fail(err, BAD_USAGE, "a T5 needs --encoder-ids, or vectors from -m");
    if (!(lm && t->lm.kind == T5) && t->source.n) return fail(err, BAD_USAGE, "--encoder-ids go with a T5");
    if (lm && t->lm.kind == GPT2 && U + t->ids.n > P) return fail(err, BAD_INPUT, "%zu rows are too many: the model has %zu positions", U + t->ids.n, P);
    return check_ids(&t->lm, &t->ids, "--ids", err) && check_ids(&t->lm, &t->source, "--encoder-ids", err) && check_ids(&t->mend, &t->demos, "--demonstration-ids", err);
}

static void tracing_free(Tracing *t) {
    bytes_free(&t->lm_path), bytes_free(&t->mend_path);
    for (size_t i = 0; i < INPUTS; i++) bytes_free(&t->lists[i]), ids_free(input_of(t, i));
    model_close(&t->lm), model_close(&t->mend);
}

static bool parse_lists(Tracing *t, Error *err) {
    for (size_t i = 0; i < INPUTS; i++) {
        Ids *ids = input_of(t, i);
        if (t->lists[i].len && !parse_ids(&t->lists[i], &ids->at, &ids->n, err)) return false;
        ids->cap = ids->n;
    }
    return true;
}

#define MODEL_OPTIONS(t)                                                                                       \
    {"-l, llm", "FILE", CLI_TEXT, &(t).lm_path, 0, 0, "the language model, a GPT-2 or T5 made by export.py"}, \
    {"-m, mend", "FILE", CLI_TEXT, &(t).mend_path, 0, 0, "the distiller"}

bool command_trace(Common *c, int argc, char **argv) {
    Tracing t = {0};
    TraceOptions o = {0};
    CliOption own[5 + TRACE_OPTIONS] = {MODEL_OPTIONS(t),
                                        {"ids", "1,2,3", CLI_TEXT, &t.lists[0], 0, 0, "what the language model reads"},
                                        {"encoder-ids", "1,2,3", CLI_TEXT, &t.lists[1], 0, 0, "what a T5's encoder reads"},
                                        {"demonstration-ids", "1,2,3", CLI_TEXT, &t.lists[2], 0, 0, "what the distiller reads"}};
    bool done = false;
    trace_options(&o, own + 5);
    bool ok = command_start(c, "usage: mend trace [-l LLM --ids 1,2,3] [-m MEND --demonstration-ids 4,5,6] -o RUN\nOne forward pass with every result named and written; docs/NUMERICS.md tells what each is.",
                            own, 5 + TRACE_OPTIONS, argc, argv, &done);
    if (ok && !done && (c->file.n || !o.output.len)) ok = fail(c->err, BAD_USAGE, "trace takes -o RUN and options alone");
    if (ok && !done) {
        Recorder r;
        Bytes models = {0};
        ok = open_models(&t, c->err) && parse_lists(&t, c->err) && check_inputs(&t, c->err);
        if (ok) bytes_printf(&models, "%s%s%s", t.mend_path.len ? model_hash(&t.mend) : "", t.lm_path.len && t.mend_path.len ? "+" : "", t.lm_path.len ? model_hash(&t.lm) : "");
        record_begin(&r, &o, ok ? models.at : "");
        for (size_t i = 0; i < INPUTS; i++)
            if (input_of(&t, i)->n) record_ids(&r, input_names[i], input_of(&t, i)->at, input_of(&t, i)->n);
        ok = ok && forward(&t, c->err);
        ok = record_end(&r, ok, c->err);
        bytes_free(&models);
    }
    trace_options_free(&o);
    tracing_free(&t);
    return ok;
}

bool command_replay(Common *c, int argc, char **argv) {
    Tracing t = {0};
    const CliOption own[] = {MODEL_OPTIONS(t)};
    bool done = false;
    bool ok = command_start(c, "usage: mend replay [-l LLM] [-m MEND] RUN\nEach op of ours on the inputs that RUN gives it, against RUN's result: one wrong op shows as one wrong tap. Exit codes as compare's.",
                            own, sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && c->file.n != 1) ok = fail(c->err, BAD_USAGE, "replay takes one run");
    if (ok && !done && open_models(&t, c->err)) {
        Replay r;
        ok = replay_open(&r, c, c->file.at[0].at, c->err);
        for (size_t i = 0; ok && i < INPUTS; i++) {
            Ids *ids = input_of(&t, i);
            if (run_find(&r.run, input_names[i])) ok = replay_ids(&r, input_names[i], &ids->at, &ids->n, c->err);
            ids->cap = ids->n;
        }
        ok = ok && check_inputs(&t, c->err);
        replay_begin(&r);
        ok = ok && forward(&t, c->err);
        ok = replay_end(&r, ok, c->err);
    } else if (!done) ok = false;
    tracing_free(&t);
    return ok;
}
