/* mend_trace.c - `mend trace` and `mend replay`: one forward pass of a language model, a distiller, or both, and the way back, with every result named.
 *
 *   -l GPT-2 --ids 1,2,3                        the ids through the model
 *   -l T5 --encoder-ids 4,5 --ids 1,2,3         4,5 on the encoder's side; the decoder reads its start piece, then the ids
 *   -m MEND --demonstration-ids 6,7             the ids and P through the distiller (names begin with hypernet.)
 *   -m MEND --demonstration-ids 6,7 -l ...      and the language model reads the vectors first (a T5: on the encoder's side)
 *
 * The loss is the mean of -log p over what `logprob` names. It is the distiller that learns, where there is one, else the language model.
 */
#include "compare.h"
#include "mend_train.h"
#include "tap.h"
#include "trace.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    Bytes lm_path, mend_path, lists[3]; /* as the options give them */
    Model lm, mend;
    Ids ids, source, demos;
    bool back;
    double lambda;
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

/* Hidden states, to be freed, of the vectors and the ids behind them. */
static float *gpt2_states(const Model *m, const Vectors *s, const Ids *ids) {
    const size_t N = s->n + ids->n, start[] = {0, N};
    Cache none = {.E = m->size[LETTER_E], .L = m->L};
    float *x = rows_of(m, s, ids);
    gpt2_forward(m, &(Batch){N, 1, start}, &none, false, NULL, x);
    return x;
}

/* What a T5's decoder reads: its start piece and all ids but the last. */
static Ids decoder_ids(const Model *m, const Ids *ids) {
    Ids before = {0};
    ids_add(&before, &m->start_id, 1);
    ids_add(&before, ids->at, ids->n - 1);
    return before;
}

/* Hidden states, to be freed, of the decoder's pieces, the vectors and `source` on the encoder's side. */
static float *t5_states(const Model *m, const Vectors *s, const Ids *source, const Ids *ids) {
    const size_t N = s->n + source->n, start[] = {0, N}, out[] = {0, ids->n};
    Ids before = decoder_ids(m, ids);
    Cache none = {.E = m->size[LETTER_E], .L = m->encoder.L};
    float *x = rows_of(m, s, source);
    t5_forward(m, &m->encoder, &(Batch){N, 1, start}, &none, false, NULL, NULL, x);
    Cache cross = cross_cache(m, x, N);
    float *y = rows_of(m, &(Vectors){0}, &before);
    none.L = m->decoder.L;
    t5_forward(m, &m->decoder, &(Batch){ids->n, 1, out}, &none, false, &cross, NULL, y);
    cache_free(&cross);
    ids_free(&before);
    free(x);
    return y;
}

static void read_lm(const Tracing *t, const Vectors *s) {
    const Model *m = &t->lm;
    const bool gpt2 = m->kind == GPT2;
    float *x = gpt2 ? gpt2_states(m, s, &t->ids) : t5_states(m, s, &t->source, &t->ids);
    if (gpt2) read_head(m, x + s->n * m->size[LETTER_C], t->ids.at + 1, t->ids.n, t->ids.n - 1);
    else read_head(m, x, t->ids.at, t->ids.n, t->ids.n);
    free(x);
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
    if (ok && t->lm_path.len) read_lm(t, &s);
    free(s.at);
    return ok;
}

/* ---- the backward pass ---- */

/* Hidden states, to be freed, of the language model that reads the demonstrations, the ids' from row *first on. */
static float *teacher_states(const Tracing *t, size_t *first) {
    const bool gpt2 = t->lm.kind == GPT2;
    const Ids *after = gpt2 ? &t->ids : &t->source;
    Ids all = {0};
    ids_add(&all, t->demos.at, t->demos.n);
    ids_add(&all, after->at, after->n);
    float *x = gpt2 ? gpt2_states(&t->lm, &(Vectors){0}, &all) : t5_states(&t->lm, &(Vectors){0}, &all, &t->ids);
    *first = gpt2 ? t->demos.n : 0;
    ids_free(&all);
    return x;
}

/* The loss of the language model's rows x [N,C], `first` of them before the ids', and dx. False: NaN or infinity, which the forward pass has shown. */
static bool grade(const Tracing *t, const Parameters *g, size_t first, const float *x, size_t N, float *dx) {
    const Model *m = &t->lm;
    const size_t next = m->kind == GPT2 ? 1 : 0, n = t->ids.n; /* a GPT-2's row i predicts id i+1, a T5's id i */
    const Objective o = {.ce = true, .kl = t->lambda > 0, .lambda = t->lambda, .tau = 1};
    size_t *row = mem_new(n, sizeof *row);
    for (size_t i = 0; i < n; i++) row[i] = first + i;
    Graded text = {.first = first, .n = n, .row = row, .target = t->ids.at + next, .targets = n - next};
    float *teacher = o.kl ? teacher_states(t, &text.teacher) : NULL;
    Loss loss = {0};
    Error unsound;
    const bool ok = loss_of(&o, m, g, &text, 1, 1, x, teacher, N, dx, &loss, &unsound);
    free(row), free(teacher);
    return ok;
}

/* Through the language model: ds, and the gradients of its parameters if it learns (g). */
static bool lm_backward(const Tracing *t, const Parameters *g, const Vectors *s, float *ds) {
    const Model *m = &t->lm;
    const bool gpt2 = m->kind == GPT2;
    const Vectors none = {0};
    Ids before = gpt2 ? (Ids){0} : decoder_ids(m, &t->ids);
    const Ids *read = gpt2 ? &t->ids : &before;
    const size_t C = m->size[LETTER_C], first = gpt2 ? s->n : 0, N = first + read->n, M = gpt2 ? 0 : s->n + t->source.n, start[] = {0, N};
    float *x = rows_of(m, gpt2 ? s : &none, read), *e = rows_of(m, gpt2 ? &none : s, &t->source), *dx = mem_new(N, C * sizeof *dx), *de = mem_new(M, C * sizeof *de);
    Reading r = {0};
    reading_forward(&r, m, &(Batch){N, 1, start}, x, e, M);
    const bool ok = grade(t, g, first, x, N, dx);
    if (ok) {
        reading_backward(&r, g, dx, de);
        memcpy(ds, gpt2 ? dx : de, s->n * C * sizeof *ds);
        embed_backward(m, g, dx + first * C, read->at, read->n);
        if (!gpt2) embed_backward(m, g, de + s->n * C, t->source.at, t->source.n);
    }
    reading_free(&r);
    ids_free(&before);
    free(x), free(e), free(dx), free(de);
    return ok;
}

static bool backward(Tracing *t, Recorder *r, Error *err) {
    const Bytes no_labels = {0};
    const bool distils = t->mend_path.len > 0;
    const Model *learns = distils ? &t->mend : &t->lm;
    Distillation d = {0};
    Vectors s = {.n = distils ? t->mend.size[LETTER_U] : 0, .O = t->lm.size[LETTER_C]};
    Parameters p;
    if (!parameters_open(&p, learns->weights, err)) return false;
    s.at = mem_new(s.n, s.O * sizeof *s.at);
    float *ds = mem_new(s.n, s.O * sizeof *ds);
    record_backward(r);
    const bool ok = !distils || distillation_forward(&d, &t->mend, &(Distilling){.groups = 1}, &t->demos, &no_labels, 1, s.at, err);
    if (ok && lm_backward(t, distils ? NULL : &p, &s, ds)) {
        taps->scope = distils ? "hypernet." : NULL;
        if (distils) distillation_backward(&d, &p, ds);
        record_gradients(&p, learns->weights);
        taps->scope = NULL;
    }
    distillation_free(&d);
    parameters_free(&p);
    free(s.at), free(ds);
    return ok;
}

/* ---- inputs ---- */

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
    if (t->back && !lm) return fail(err, BAD_USAGE, "--backward goes with -l: the loss is a language model's");
    if (t->back && t->lm.kind == GPT2 && t->ids.n < 2) return fail(err, BAD_INPUT, "--backward: two ids at least: a GPT-2 predicts each from the ones before it");
    if (t->lambda > 0 && !(t->back && mend)) return fail(err, BAD_USAGE, "--lambda goes with --backward, -l and -m");
    if (t->lambda > 0 && t->lm.kind == GPT2 && t->demos.n + t->ids.n > P) return fail(err, BAD_INPUT, "%zu ids are too many for the teacher: the model has %zu positions", t->demos.n + t->ids.n, P);
    if (t->lambda > 0 && !check_ids(&t->lm, &t->demos, "--lambda: --demonstration-ids", err)) return false;
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
    CliOption own[7 + TRACE_OPTIONS] = {MODEL_OPTIONS(t),
                                        {"ids", "1,2,3", CLI_TEXT, &t.lists[0], 0, 0, "what the language model reads"},
                                        {"encoder-ids", "1,2,3", CLI_TEXT, &t.lists[1], 0, 0, "what a T5's encoder reads"},
                                        {"demonstration-ids", "1,2,3", CLI_TEXT, &t.lists[2], 0, 0, "what the distiller reads"},
                                        {"backward", NULL, CLI_FLAG, &t.back, 0, 0, "also the mean cross entropy of the ids, and its gradients"},
                                        {"lambda", "X", CLI_NUMBER, &t.lambda, 0, 1e6, "with -m: plus X times the KL from -l that reads the demonstrations"}};
    bool done = false;
    trace_options(&o, own + 7);
    bool ok = command_start(c, "usage: mend trace [-l LLM --ids 1,2,3] [-m MEND --demonstration-ids 4,5,6] -o RUN\nOne forward pass with every result named and written; docs/NUMERICS.md tells what each is.",
                            own, 7 + TRACE_OPTIONS, argc, argv, &done);
    if (ok && !done && (c->file.n || !o.output.len)) ok = fail(c->err, BAD_USAGE, "trace takes -o RUN and options alone");
    if (ok && !done) {
        Recorder r;
        Bytes models = {0};
        ok = open_models(&t, c->err) && parse_lists(&t, c->err) && check_inputs(&t, c->err);
        if (ok) bytes_printf(&models, "%s%s%s", t.mend_path.len ? model_hash(&t.mend) : "", t.lm_path.len && t.mend_path.len ? "+" : "", t.lm_path.len ? model_hash(&t.lm) : "");
        record_begin(&r, &o, ok ? models.at : "");
        for (size_t i = 0; i < INPUTS; i++)
            if (input_of(&t, i)->n) record_ids(&r, input_names[i], input_of(&t, i)->at, input_of(&t, i)->n);
        if (t.lambda > 0) record_number(&r, "input.lambda", t.lambda);
        ok = ok && forward(&t, c->err) && (!t.back || backward(&t, &r, c->err));
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
    bool ok = command_start(c, "usage: mend replay [-l LLM] [-m MEND] RUN\nEach op of ours on the inputs that RUN gives it, against RUN's result: one wrong op shows as one wrong tap. The forward pass alone. Exit codes as compare's.\n" COMPARE_JSON,
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
