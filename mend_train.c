/* mend_train.c - MEND's training (section 3.3 of the paper): the loss of lessons, the loop around it, and `mend train`.
 *
 *   teacher   [demonstrations ; x ; y] -> language model -> P                          no gradient
 *   student   demonstrations -> distiller -> S,  [S ; x ; y] -> language model -> Q    loss = CE(Q, y) + lambda KL(P || Q)
 *
 * The language model is frozen: gradients pass through it into S, and from there into the distiller. Prompt tuning trains S itself; the stage `lm`
 * trains the language model, without S. Everything is drawn by counting from one seed, so that a run that was stopped goes on to the same bits.
 */
#include "mend_train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tap.h"
#include "tensor_backward.h"

/* ==== the loss of lessons ========================================================================================================= */

void trainer_free(Trainer *t) {
    distillation_free(&t->distillation);
    reading_free(&t->reading);
}

static size_t vectors_of(const Trainer *t, const Lesson *l) { return t->mend ? l->groups * t->mend->size[LETTER_U] : t->U; }

/* S of all lessons: the distiller's, or the tuned vectors once for each. */
static bool vectors_forward(Trainer *t, const Lesson *lesson, size_t B, float *s, Error *err) {
    const size_t O = t->lm->size[LETTER_C];
    for (size_t b = 0; t->vectors && b < B; b++) memcpy(s + b * t->U * O, t->vectors, t->U * O * sizeof *s);
    if (!t->mend) return true;
    size_t n = 0;
    for (size_t b = 0; b < B; b++) n += lesson[b].groups;
    Ids *demos = mem_new(n, sizeof *demos);
    Bytes *is_label = mem_new(n, sizeof *is_label);
    n = 0;
    for (size_t b = 0; b < B; b++)
        for (size_t g = 0; g < lesson[b].groups; g++, n++) demos[n] = lesson[b].demos[g], is_label[n] = lesson[b].is_label[g];
    const bool ok = distillation_forward(&t->distillation, t->mend, &t->how, demos, is_label, n, s, err);
    free(demos), free(is_label);
    return ok;
}

static void vectors_backward(Trainer *t, float *ds, size_t B) {
    const size_t O = t->lm->size[LETTER_C], n = B * t->U;
    float *dvectors = gradient_of(t->trained, t->vectors);
    if (t->mend) distillation_backward(&t->distillation, t->trained, ds);
    if (!dvectors) return;
    uint32_t *id = mem_new(n, sizeof *id);
    for (size_t i = 0; i < n; i++) id[i] = (uint32_t)(i % t->U);
    embedding_backward(dvectors, id, ds, n, O, O, 1);
    free(id);
}

/* Which rows of a lesson predict targets: piece i of y stands in row `before` + i of a text that begins with row `from`, and is predicted by the one above.
 * row and target have room for y. */
static size_t targets_of(const Lesson *l, size_t from, size_t before, size_t *row, uint32_t *target) {
    size_t n = 0;
    for (size_t i = 0; i < l->y.n; i++) {
        if (before + i == 0 || (l->counted.len && !l->counted.at[i])) continue;
        row[n] = from + before + i - 1;
        target[n++] = l->y.at[i];
    }
    return n;
}

/* The teacher's hidden states, to be freed: [before ; x ; y], cut from the left. start [B+1]. */
static float *gpt2_teacher(const Trainer *t, const Lesson *lesson, size_t B, size_t *start) {
    const Model *m = t->lm;
    const size_t C = m->size[LETTER_C], limit = m->size[LETTER_P] < TEACHER_LIMIT ? m->size[LETTER_P] : TEACHER_LIMIT;
    Ids all = {0};
    for (size_t b = 0; b < B; b++) {
        const Lesson *l = &lesson[b];
        const size_t n = l->before.n + l->x.n + l->y.n, cut = n > limit ? n - limit : 0; /* a query alone fits */
        ids_add(&all, l->before.at + cut, l->before.n - cut);
        ids_add(&all, l->x.at, l->x.n);
        ids_add(&all, l->y.at, l->y.n);
        start[b + 1] = all.n;
    }
    float *x = embed(m, all.at, all.n);
    Cache none = {.E = C, .L = m->L};
    gpt2_forward(m, &(Batch){all.n, B, start}, &none, false, NULL, x);
    ids_free(&all);
    return x;
}

/* The student's embeddings [S ; x ; y] of all lessons, to be freed. start [B+1]. */
static float *gpt2_student(const Trainer *t, const Lesson *lesson, size_t B, const float *s, const size_t *start) {
    const size_t C = t->lm->size[LETTER_C];
    float *x = mem_new(start[B], C * sizeof *x), *to = x;
    for (size_t b = 0; b < B; b++) {
        const Lesson *l = &lesson[b];
        const size_t v = vectors_of(t, l);
        memcpy(to, s, v * C * sizeof *x);
        to += v * C, s += v * C;
        for (size_t i = 0; i < l->x.n + l->y.n; i++, to += C) embed_piece(t->lm, i < l->x.n ? l->x.at[i] : l->y.at[i - l->x.n], to);
    }
    return x;
}

/* dx of [S ; x ; y]: the rows of S go to ds, those of the pieces to the embeddings of a model that is trained (which reads no vectors). */
static void gpt2_student_backward(const Trainer *t, const Lesson *lesson, size_t B, const float *dx, const size_t *start, float *ds) {
    const size_t C = t->lm->size[LETTER_C];
    Ids all = {0};
    for (size_t b = 0; b < B; b++) {
        const size_t v = vectors_of(t, &lesson[b]);
        memcpy(ds, dx + start[b] * C, v * C * sizeof *ds);
        ds += v * C;
        ids_add(&all, lesson[b].x.at, lesson[b].x.n);
        ids_add(&all, lesson[b].y.at, lesson[b].y.n);
    }
    if (gradient_of(t->trained, t->lm->wte)) embed_backward(t->lm, t->trained, dx, all.at, all.n);
    ids_free(&all);
}

static bool gpt2_lessons(Trainer *t, const Lesson *lesson, size_t B, const float *s, float *ds, Loss *out, Error *err) {
    const Model *m = t->lm;
    const size_t C = m->size[LETTER_C];
    size_t *start = mem_new(B + 1, sizeof *start), *heard = mem_new(B + 1, sizeof *heard), most = 0;
    for (size_t b = 0; b < B; b++) {
        const size_t n = vectors_of(t, &lesson[b]) + lesson[b].x.n + lesson[b].y.n;
        start[b + 1] = start[b] + n;
        most = n > most ? n : most;
    }
    const size_t N = start[B];
    if (most > m->size[LETTER_P]) {
        free(start), free(heard);
        return fail(err, BAD_INPUT, "%s: vectors and a query of %zu rows are more than the %zu positions", weights_path(m->weights), most, m->size[LETTER_P]);
    }
    float *x = gpt2_student(t, lesson, B, s, start), *teacher = t->objective.kl ? gpt2_teacher(t, lesson, B, heard) : NULL, *dx = ds ? mem_new(N, C * sizeof *dx) : NULL;
    Graded *graded = mem_new(B, sizeof *graded);
    size_t *row = mem_new(N, sizeof *row);
    uint32_t *target = mem_new(N, sizeof *target);
    for (size_t b = 0; b < B; b++) {
        const Lesson *l = &lesson[b];
        const size_t v = vectors_of(t, l), n = l->x.n + l->y.n;
        graded[b] = (Graded){start[b] + v, heard[b + 1] - n, n, row + start[b], target + start[b], 0};
        graded[b].targets = targets_of(l, start[b], v + l->x.n, row + start[b], target + start[b]);
    }
    reading_forward(&t->reading, m, &(Batch){N, B, start}, x, NULL, 0);
    const bool ok = loss_of(&t->objective, m, t->trained, graded, B, t->texts ? t->texts : B, x, teacher, N, dx, out, err);
    if (ok && ds) {
        reading_backward(&t->reading, t->trained, dx, NULL);
        gpt2_student_backward(t, lesson, B, dx, start, ds);
    }
    free(start), free(heard), free(x), free(teacher), free(dx), free(graded), free(row), free(target);
    return ok;
}

/* ---- T5: the encoder reads [S ; x], the decoder its start and y; or x stands before y ---- */

static void t5_pieces(const Trainer *t, const Lesson *l, Ids *encoder, Ids *decoder) {
    if (t->encoder_input) ids_add(encoder, l->x.at, l->x.n);
    ids_add(decoder, &t->lm->start_id, 1);
    if (!t->encoder_input) ids_add(decoder, l->x.at, l->x.n);
    ids_add(decoder, l->y.at, l->y.n);
}

/* The teacher's hidden states for the decoder's pieces, to be freed. Its encoder reads [before ; x], cut from the right. */
static float *t5_teacher(const Trainer *t, const Lesson *l, const Ids *encoder, const Ids *decoder) {
    const Model *m = t->lm;
    const size_t E = m->size[LETTER_E];
    Ids all = {0};
    ids_add(&all, l->before.at, l->before.n);
    ids_add(&all, encoder->at, encoder->n);
    const size_t n = all.n < TEACHER_LIMIT ? all.n : TEACHER_LIMIT, read[] = {0, n}, said[] = {0, decoder->n};
    float *e = embed(m, all.at, n), *x = embed(m, decoder->at, decoder->n);
    Cache none = {.E = E, .L = m->encoder.L}, past = {.E = E, .L = m->decoder.L};
    t5_forward(m, &m->encoder, &(Batch){n, 1, read}, &none, false, NULL, NULL, e);
    Cache cross = cross_cache(m, e, n);
    t5_forward(m, &m->decoder, &(Batch){decoder->n, 1, said}, &past, false, &cross, NULL, x);
    cache_free(&cross);
    ids_free(&all);
    free(e);
    return x;
}

static bool t5_lesson(Trainer *t, const Lesson *l, size_t B, const float *s, float *ds, Loss *out, Error *err) {
    const Model *m = t->lm;
    const size_t C = m->size[LETTER_C], v = vectors_of(t, l);
    Ids encoder = {0}, decoder = {0};
    t5_pieces(t, l, &encoder, &decoder);
    const size_t n = v + encoder.n, N = decoder.n, start[] = {0, N};
    float *teacher = t->objective.kl ? t5_teacher(t, l, &encoder, &decoder) : NULL;
    float *x = embed(m, decoder.at, N), *e = mem_new(n, C * sizeof *e), *dx = ds ? mem_new(N, C * sizeof *dx) : NULL, *de = mem_new(n, C * sizeof *de);
    size_t *row = mem_new(N, sizeof *row);
    uint32_t *target = mem_new(N, sizeof *target);
    memcpy(e, s, v * C * sizeof *e);
    for (size_t i = 0; i < encoder.n; i++) embed_piece(m, encoder.at[i], e + (v + i) * C);
    const Graded graded = {0, 0, N, row, target, targets_of(l, 0, N - l->y.n, row, target)};
    bool ok = n > 0 || fail(err, BAD_INPUT, "the encoder of a T5 has nothing to read");
    if (ok) reading_forward(&t->reading, m, &(Batch){N, 1, start}, x, e, n);
    ok = ok && loss_of(&t->objective, m, t->trained, &graded, 1, t->texts ? t->texts : B, x, teacher, N, dx, out, err);
    if (ok && ds) {
        reading_backward(&t->reading, t->trained, dx, de);
        memcpy(ds, de, v * C * sizeof *ds);
        embed_backward(m, t->trained, dx, decoder.at, N);
        embed_backward(m, t->trained, de + v * C, encoder.at, encoder.n);
    }
    ids_free(&encoder), ids_free(&decoder);
    free(teacher), free(x), free(e), free(dx), free(de), free(row), free(target);
    return ok;
}

bool lessons_loss(Trainer *t, const Lesson *lesson, size_t B, bool gradients, float *ds, Loss *out, Error *err) {
    const size_t O = t->lm->size[LETTER_C];
    size_t rows = 0;
    for (size_t b = 0; b < B; b++) rows += vectors_of(t, &lesson[b]);
    float *s = mem_new(rows, O * sizeof *s), *own = gradients ? mem_new(rows, O * sizeof *own) : NULL;
    *out = (Loss){0};
    bool ok = vectors_forward(t, lesson, B, s, err);
    if (ok && t->lm->kind == GPT2) ok = gpt2_lessons(t, lesson, B, s, own, out, err);
    for (size_t b = 0, at = 0; ok && t->lm->kind == T5 && b < B; at += vectors_of(t, &lesson[b++]) * O)
        ok = t5_lesson(t, &lesson[b], B, s + at, own ? own + at : NULL, out, err);
    if (ok && ds) memcpy(ds, own, rows * O * sizeof *ds);
    if (ok && own) vectors_backward(t, own, B);
    free(s), free(own);
    return ok;
}

/* ==== mend train ================================================================================================================== */

typedef struct {
    Common *c;
    Bytes stage_name, lm_path, mend_path, config, tokenizer, output, last; /* last: output + ".last" */
    Texts data, held_data;
    double steps, batch, micro, rate, warmup, clip, decay, beta2, lambda, tau, K, length, rows, seed, every, held_lessons, groups, label_rows;
    bool channel, encoder_input, separate_input, resume;
    Stage stage;
    Model lm, mend;
    Weights *prompt, *file; /* the tuned vectors'; what is trained: this, lm's or mend's */
    Parameters trained;
    float *total;           /* gradients of micro-batches so far, [trained.all] */
    Corpus corpus, held;
    Trainer trainer;
    AdamW optimizer;
    double best, since; /* lowest loss so far; sum of the losses since the last evaluation */
    size_t first;       /* the step this run began with */
    bool made;          /* this run made the output's first version, to be trained */
} Training;

/* ---- one step ---- */

/* The first result of a forward pass that is not finite. */
typedef struct {
    Taps taps;
    char name[128];
} Search;
static void hear_nan(Taps *t, const char *name, float *x, const size_t *shape, size_t dims) {
    Search *s = (Search *)(void *)t;
    size_t n = 1;
    for (size_t i = 0; i < dims; i++) n *= shape[i];
    for (size_t i = 0; i < n && !s->name[0]; i++)
        if (isnan(x[i]) || x[i] > 3e38f) snprintf(s->name, sizeof s->name, "%s", name); /* -infinity is how a mask looks */
}

/* A loss that is NaN or infinity: say in which step, and where it begins. */
static bool explain_nan(Training *t, const Lesson *lesson, size_t B, Error *err) {
    const size_t step = t->optimizer.step + 1;
    Search search = {.taps = {.hear = hear_nan}};
    Error ignored;
    Loss loss;
    for (size_t i = 0; i < t->trained.n; i++)
        for (size_t k = 0; k < t->trained.at[i].n; k++)
            if (!isfinite(t->trained.at[i].w[k])) return fail(err, BAD_MODEL, "step %zu: the loss is NaN or infinity: %s is so at element %zu", step, t->trained.at[i].name, k);
    taps = &search.taps;
    lessons_loss(&t->trainer, lesson, B, false, NULL, &loss, &ignored);
    taps = NULL;
    return fail(err, BAD_MODEL, "step %zu: the loss is NaN or infinity, first in %s; a lower rate or clipping may help", step, search.name[0] ? search.name : "the loss itself");
}

/* Lessons number, number+1, ... of a corpus, [B]. */
static bool make_lessons(const Training *t, const Corpus *c, uint64_t number, Lesson *lesson, size_t B, Error *err) {
    for (size_t b = 0; b < B; b++)
        if (!lesson_of(c, (uint64_t)t->seed, number + b, &lesson[b], err)) return false;
    return true;
}

static void free_lessons(Lesson *lesson, size_t B) {
    for (size_t b = 0; b < B; b++) lesson_free(&lesson[b]);
    free(lesson);
}

/* The gradients of one micro-batch; with several they wait in total: RN32(old + new), in order. */
static bool micro_batch(Training *t, size_t part, Loss *sum, Error *err) {
    const size_t B = (size_t)t->batch, parts = (size_t)t->micro;
    const uint64_t number = ((uint64_t)t->optimizer.step * parts + part) * B;
    Lesson *lesson = mem_new(B, sizeof *lesson);
    Loss loss;
    Error detail;
    bool ok = make_lessons(t, &t->corpus, number, lesson, B, err);
    if (ok) {
        ok = lessons_loss(&t->trainer, lesson, B, true, NULL, &loss, &detail);
        if (!ok && detail.code != BAD_MODEL) fail(err, detail.code, "step %zu: %.800s", t->optimizer.step + 1, detail.text);
        else if (!ok || !isfinite(loss.loss)) ok = explain_nan(t, lesson, B, err);
    }
    if (ok) sum->ce += loss.ce, sum->kl += loss.kl, sum->loss += loss.loss;
    if (ok && parts > 1) {
        residual(t->total, t->total, t->trained.memory, t->trained.all);
        memset(t->trained.memory, 0, t->trained.all * sizeof(float));
    }
    free_lessons(lesson, B);
    return ok;
}

static bool train_step(Training *t, Loss *loss, double *norm, Error *err) {
    *loss = (Loss){0};
    for (size_t part = 0; part < (size_t)t->micro; part++)
        if (!micro_batch(t, part, loss, err)) return false;
    if (t->micro > 1) {
        memcpy(t->trained.memory, t->total, t->trained.all * sizeof(float));
        memset(t->total, 0, t->trained.all * sizeof(float));
    }
    return adamw_step(&t->optimizer, &t->trained, norm, err);
}

/* ---- evaluation, checkpoints, the log ---- */

/* Mean loss over the held-out lessons, always the same ones. */
static bool evaluate_held(Training *t, Loss *loss, Error *err) {
    const size_t n = (size_t)t->held_lessons, texts = t->trainer.texts;
    *loss = (Loss){0};
    bool ok = true;
    t->trainer.texts = n;
    for (size_t at = 0; ok && at < n; at += (size_t)t->batch) {
        const size_t B = n - at < (size_t)t->batch ? n - at : (size_t)t->batch;
        Lesson *lesson = mem_new(B, sizeof *lesson);
        Loss part;
        ok = make_lessons(t, &t->held, at, lesson, B, err) && lessons_loss(&t->trainer, lesson, B, false, NULL, &part, err);
        if (ok) loss->ce += part.ce, loss->kl += part.kl, loss->loss += part.loss;
        free_lessons(lesson, B);
    }
    t->trainer.texts = texts;
    return ok;
}

static void put_loss(Bytes *out, const Loss *l) {
    bytes_text(out, "\"loss\": "), json_put_double(out, l->loss);
    bytes_text(out, ", \"ce\": "), json_put_double(out, l->ce);
    bytes_text(out, ", \"kl\": "), json_put_double(out, l->kl);
}

/* What training depends on beside the files: a run goes on with the same alone. */
static void put_recipe(const Training *t, Bytes *out) {
    const struct { const char *name; double value; } numbers[] = {
        {"steps", t->steps}, {"batch", t->batch}, {"micro_batches", t->micro}, {"rate", t->rate}, {"warmup", t->warmup}, {"clip", t->clip}, {"decay", t->decay}, {"beta2", t->beta2},
        {"lambda", t->lambda}, {"temperature", t->tau}, {"k", t->K}, {"length", t->length}, {"seed", t->seed}, {"groups", t->groups}, {"label_rows", t->label_rows},
        {"separate_input", t->separate_input}, {"channel", t->channel}, {"encoder_input", t->encoder_input}};
    bytes_printf(out, "{\"stage\": \"%s\", \"math\": \"%s\"", stage_names[t->stage], tensor_math() == MATH_FAST ? "fast" : "reference");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) bytes_printf(out, ", \"%s\": ", numbers[i].name), json_put_double(out, numbers[i].value);
    bytes_text(out, "}");
}

/* The state to go on from, and, if the loss is the lowest so far, the file that was asked for. */
static bool save(Training *t, double loss, bool *is_best, Error *err) {
    Bytes progress = {0}, recipe = {0};
    *is_best = !(loss >= t->best);
    if (*is_best) t->best = loss;
    put_recipe(t, &recipe);
    bytes_printf(&progress, "{\"step\": %zu, \"best\": ", t->optimizer.step);
    json_put_double(&progress, t->best);
    bytes_printf(&progress, ", \"recipe\": %s}", recipe.at);
    const bool ok = (!*is_best || checkpoint_write(t->output.at, t->file, &t->trained, NULL, NULL, err)) &&
                    checkpoint_write(t->last.at, t->file, &t->trained, &t->optimizer, progress.at, err);
    bytes_free(&progress), bytes_free(&recipe);
    return ok;
}

static bool evaluate_and_save(Training *t, size_t steps, Error *err) {
    Loss held = {.loss = t->since / (double)steps};
    bool is_best, ok = !t->held_data.n || evaluate_held(t, &held, err);
    Bytes line = {0};
    ok = ok && save(t, held.loss, &is_best, err);
    if (ok) {
        bytes_printf(&line, "{\"step\": %zu, \"%s\": {", t->optimizer.step, t->held_data.n ? "held_out" : "since");
        if (t->held_data.n) put_loss(&line, &held);
        else bytes_text(&line, "\"loss\": "), json_put_double(&line, held.loss);
        bytes_printf(&line, "}, \"best\": %s}\n", is_best ? "true" : "false");
        ok = print_out(&line, err);
    }
    t->since = 0;
    bytes_free(&line);
    return ok;
}

static bool train(Training *t, Error *err) {
    const time_t begun = time(NULL);
    const size_t all = (size_t)t->steps, every = (size_t)t->every;
    bool ok = true;
    while (ok && t->optimizer.step < all) {
        Loss loss;
        double norm = 0;
        Bytes line = {0};
        char what[64];
        const double rate = rate_at(&t->optimizer.recipe, t->optimizer.step);
        ok = train_step(t, &loss, &norm, err);
        if (ok) {
            bytes_printf(&line, "{\"step\": %zu, ", t->optimizer.step), put_loss(&line, &loss);
            bytes_text(&line, ", \"norm\": "), json_put_double(&line, norm);
            bytes_text(&line, ", \"rate\": "), json_put_double(&line, rate);
            bytes_text(&line, "}\n");
            ok = print_out(&line, err);
            t->since += loss.loss;
        }
        bytes_free(&line);
        const size_t done = t->optimizer.step, since = done % every ? done % every : every;
        if (ok && (done % every == 0 || done == all)) ok = evaluate_and_save(t, since, err);
        snprintf(what, sizeof what, "loss %.4f, step", ok ? loss.loss : 0);
        if (ok) show_progress(t->c, what, done - t->first, all - t->first, begun);
    }
    return ok;
}

/* ---- opening ---- */

static void training_free(Training *t) {
    trainer_free(&t->trainer);
    parameters_free(&t->trained);
    corpus_free(&t->corpus), corpus_free(&t->held);
    model_close(&t->lm), model_close(&t->mend);
    weights_close(t->prompt);
    free(t->total);
    Bytes *const text[] = {&t->stage_name, &t->lm_path, &t->mend_path, &t->config, &t->tokenizer, &t->output, &t->last};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) bytes_free(text[i]);
    texts_free(&t->data), texts_free(&t->held_data);
}

/* The distiller: a file of one, or made of a GPT-2. */
static bool open_distiller(Training *t, Error *err) {
    if (t->resume) return model_open(&t->mend, t->last.at, DISTILLER, err);
    if (!model_open(&t->mend, t->mend_path.at, ANY_MODEL, err)) return false;
    if (t->mend.prompt) return true;
    Model base = t->mend;
    t->mend = (Model){0};
    bool ok = t->rows > 0 || fail(err, BAD_USAGE, "-m %s is a language model: say with --rows how many vectors the distiller that is made of it gives", t->mend_path.at);
    ok = ok && (t->made = make_distiller(t->output.at, &base, &t->lm, (size_t)t->rows, (uint64_t)t->seed, err));
    model_close(&base);
    return ok && model_open(&t->mend, t->output.at, DISTILLER, err);
}

/* The language model that the stage `lm` trains: as it is, or made from a configuration. */
static bool open_language(Training *t, Error *err) {
    Weights *tokenizer = NULL;
    if (t->resume) return model_open(&t->lm, t->last.at, LANGUAGE_MODEL, err);
    if (!t->config.len) return model_open(&t->lm, t->lm_path.at, LANGUAGE_MODEL, err);
    const bool ok = weights_open(&tokenizer, t->tokenizer.at, err) && (t->made = make_gpt2(t->output.at, t->config.at, tokenizer, (uint64_t)t->seed, err));
    weights_close(tokenizer);
    return ok && model_open(&t->lm, t->output.at, LANGUAGE_MODEL, err);
}

static bool open_models(Training *t, Error *err) {
    if (t->stage == LANGUAGE) {
        if (!open_language(t, err)) return false;
        t->file = t->lm.weights;
    } else if (!model_open(&t->lm, t->lm_path.at, LANGUAGE_MODEL, err)) return false;
    if (t->stage == PRETRAIN || t->stage == FINETUNE) {
        if (!open_distiller(t, err)) return false;
        if (t->mend.size[LETTER_O] != t->lm.size[LETTER_C])
            return fail(err, BAD_MODEL, "%s makes vectors %zu wide, %s reads %zu", t->mend_path.at, t->mend.size[LETTER_O], t->lm_path.at, t->lm.size[LETTER_C]);
        if (t->stage == PRETRAIN && t->mend.size[LETTER_V] != t->lm.size[LETTER_V])
            return fail(err, BAD_MODEL, "%s has %zu pieces, %s %zu: they must share them", t->mend_path.at, t->mend.size[LETTER_V], t->lm_path.at, t->lm.size[LETTER_V]);
        t->file = t->mend.weights;
    }
    if (t->stage == TUNE_PROMPT) {
        if (!t->resume && !(t->made = make_prompt(t->output.at, &t->lm, (size_t)t->rows, (uint64_t)t->seed, err))) return false;
        if (!weights_open(&t->prompt, t->resume ? t->last.at : t->output.at, err)) return false;
        t->file = t->prompt;
    }
    return parameters_open(&t->trained, t->file, err);
}

/* What a stopped run was doing. Errors: BAD_MODEL, or BAD_USAGE if it did it otherwise. */
static bool read_progress(Training *t, Error *err) {
    const char *text = weights_meta(t->file, "training");
    Json j = {0};
    Bytes was = {0}, is = {0};
    Error detail;
    bool ok = text && json_parse(text, strlen(text), &j, &detail) && json_size(json_get(&j, "step"), SIZE_MAX, &t->optimizer.step) && json_get(&j, "best") && json_get(&j, "recipe");
    if (!ok) fail(err, BAD_MODEL, "%s: does not say how far training was", t->last.at);
    if (ok) {
        const Json *best = json_get(&j, "best");
        t->best = best->type == JSON_NUMBER ? best->number : (double)INFINITY;
        json_put(&was, json_get(&j, "recipe"));
        put_recipe(t, &is);
        Json now = {0};
        if (json_parse(is.at, is.len, &now, &detail)) is.len = 0, json_put(&is, &now);
        json_free(&now);
        if (strcmp(was.at, is.at)) ok = fail(err, BAD_USAGE, "%s: was trained with other options: %.400s, now %.400s", t->last.at, was.at, is.at);
    }
    json_free(&j);
    bytes_free(&was), bytes_free(&is);
    return ok && checkpoint_resume(&t->trained, t->file, err);
}

static bool check_usage(Training *t, Error *err) {
    size_t s = 0;
    while (s < STAGES && !(t->stage_name.at && strcmp(t->stage_name.at, stage_names[s]) == 0)) s++;
    if (s == STAGES) return fail(err, BAD_USAGE, "--stage: pretrain, finetune, prompt or lm is wanted");
    t->stage = (Stage)s;
    const bool distils = t->stage == PRETRAIN || t->stage == FINETUNE, fresh = t->stage == LANGUAGE && t->config.len;
    static const double rates[STAGES] = {5e-5, 1e-5, 1e-3, 3e-4};
    if (t->c->file.n || !t->output.len || !t->data.n) return fail(err, BAD_USAGE, "train wants --data FILE and -o FILE, and no operands");
    if (t->resume ? t->stage != LANGUAGE && !t->lm_path.len : !fresh && !t->lm_path.len) return fail(err, BAD_USAGE, "-l is missing: which language model?");
    if (distils != (t->mend_path.len > 0) && !t->resume) return fail(err, BAD_USAGE, distils ? "-m is missing: which distiller, or which GPT-2 to make one of?" : "-m goes with the stages pretrain and finetune");
    if (t->config.len && (t->stage != LANGUAGE || !t->tokenizer.len)) return fail(err, BAD_USAGE, "--config goes with --stage lm and --tokenizer");
    if (t->stage == TUNE_PROMPT && !(t->rows > 0)) return fail(err, BAD_USAGE, "--rows is missing: how many vectors?");
    if (t->separate_input && !(t->label_rows > 0)) return fail(err, BAD_USAGE, "--separate-input goes with --label-rows");
    if (t->warmup >= t->steps) return fail(err, BAD_USAGE, "--warmup must be less than --steps");
    if (t->rate < 0) t->rate = rates[t->stage];
    if (t->groups > t->K) return fail(err, BAD_USAGE, "--groups: there are %.0f demonstrations", t->K);
    bytes_set(&t->last, t->output.at, t->output.len);
    bytes_text(&t->last, ".last");
    return true;
}

static Corpus corpus_for(const Training *t) {
    const size_t P = t->lm.kind == GPT2 ? t->lm.size[LETTER_P] : TEACHER_LIMIT, limit = P < TEACHER_LIMIT ? P : TEACHER_LIMIT;
    return (Corpus){.stage = t->stage, .lm = &t->lm, .mend = t->mend.weights ? &t->mend : NULL, .how = t->trainer.how, .channel = t->channel,
                    .encoder_input = t->trainer.encoder_input, .K = (size_t)t->K, .length = t->length > 0 && t->length < (double)limit ? (size_t)t->length : limit};
}

static bool training_open(Training *t, Error *err) {
    if (!check_usage(t, err) || !open_models(t, err)) return false;
    if (t->encoder_input && t->lm.kind != T5) return fail(err, BAD_USAGE, "--encoder-input goes with a T5");
    const bool kl = t->stage == PRETRAIN || (t->stage == FINETUNE && t->lambda > 0);
    t->trainer = (Trainer){.lm = &t->lm, .mend = t->mend.weights ? &t->mend : NULL, .trained = &t->trained, .how = {(size_t)t->groups, (size_t)t->label_rows, t->separate_input},
                           .objective = {t->stage != PRETRAIN, kl, t->lambda, t->tau}, .encoder_input = t->encoder_input || (t->lm.kind == T5 && t->stage == LANGUAGE),
                           .texts = (size_t)(t->batch * t->micro)};
    if (t->prompt) t->trainer.vectors = t->trained.at[0].w, t->trainer.U = t->trained.at[0].n / t->lm.size[LETTER_C];
    t->optimizer = (AdamW){.recipe = {.rate = t->rate, .beta1 = 0.9, .beta2 = t->beta2, .eps = 1e-8, .decay = t->decay, .clip = t->clip, .warmup = (size_t)t->warmup, .steps = (size_t)t->steps}};
    t->best = (double)INFINITY;
    if (t->micro > 1) t->total = mem_new(t->trained.all, sizeof *t->total);
    if (t->resume && !read_progress(t, err)) return false;
    t->first = t->optimizer.step;
    t->corpus = t->held = corpus_for(t);
    return corpus_read(&t->corpus, &t->data, err) && (!t->held_data.n || corpus_read(&t->held, &t->held_data, err));
}

bool command_train(Common *c, int argc, char **argv) {
    Training t = {.c = c, .steps = 30000, .batch = 1, .micro = 1, .rate = -1, .clip = 1, .beta2 = 0.999, .lambda = 1, .tau = 1, .K = 16, .every = 2000, .held_lessons = 100, .groups = 1};
    const CliOption own[] = {
        {"stage", "NAME", CLI_TEXT, &t.stage_name, 0, 0, "pretrain: the distiller, on text; finetune: on tasks; prompt: vectors for one task; lm: a language model"},
        {"-l, llm", "FILE", CLI_TEXT, &t.lm_path, 0, 0, "the language model, frozen but in stage lm"},
        {"-m, mend", "FILE", CLI_TEXT, &t.mend_path, 0, 0, "the distiller to begin with, or a GPT-2 to make one of"},
        {"rows", "N", CLI_WHOLE, &t.rows, 1, 100000, "vectors of a new distiller or prompt"},
        {"config", "FILE", CLI_TEXT, &t.config, 0, 0, "stage lm: a GPT-2's config.json, to begin with chance"},
        {"tokenizer", "FILE", CLI_TEXT, &t.tokenizer, 0, 0, "stage lm: the model file whose tokenizer the new one gets"},
        {"data", "FILE", CLI_TEXTS, &t.data, 0, 0, "text (passages between blank lines), JSON lines {\"text\"}, or JSON lines of examples; repeatable"},
        {"held-out", "FILE", CLI_TEXTS, &t.held_data, 0, 0, "the same, to tell which checkpoint is best; repeatable (default: the training loss tells)"},
        {"-o, output", "FILE", CLI_TEXT, &t.output, 0, 0, "where the best goes; FILE.last holds the latest and what is needed to go on"},
        {"resume", NULL, CLI_FLAG, &t.resume, 0, 0, "go on from FILE.last, with the same options"},
        {"steps", "N", CLI_WHOLE, &t.steps, 1, 1e9, "steps in all (default 30000)"},
        {"batch", "N", CLI_WHOLE, &t.batch, 1, 1e5, "lessons computed together (default 1)"},
        {"micro-batches", "N", CLI_WHOLE, &t.micro, 1, 1e5, "such batches of one step (default 1)"},
        {"rate", "R", CLI_NUMBER, &t.rate, 0, 1e3, "highest learning rate (default 5e-5, 1e-5, 1e-3, 3e-4 by stage), linearly down to 0"},
        {"warmup", "N", CLI_WHOLE, &t.warmup, 0, 1e9, "steps in which it rises from 0 (default 0)"},
        {"clip", "X", CLI_NUMBER, &t.clip, 0, 1e30, "largest norm of the gradient (default 1; 0: any)"},
        {"decay", "X", CLI_NUMBER, &t.decay, 0, 1e3, "weight decay of matrices (default 0)"},
        {"beta2", "X", CLI_NUMBER, &t.beta2, 0, 1, "AdamW's second mean (default 0.999)"},
        {"lambda", "X", CLI_NUMBER, &t.lambda, 0, 1e6, "finetune: weight of the KL to the teacher (default 1; 0: no teacher)"},
        {"temperature", "X", CLI_NUMBER, &t.tau, 1e-3, 1e3, "of both softmaxes in KL (default 1)"},
        {"k", "K", CLI_WHOLE, &t.K, 1, 1000, "demonstrations of a lesson (default 16)"},
        {"length", "N", CLI_WHOLE, &t.length, 8, 1e6, "pieces of a passage or an episode at most (default: what the model reads)"},
        {"groups", "N", CLI_WHOLE, &t.groups, 1, 1000, "distil the demonstrations in N groups (default 1)"},
        {"label-rows", "N", CLI_WHOLE, &t.label_rows, 1, 100000, "the last N rows of the distiller's prompt see labels alone"},
        {"separate-input", NULL, CLI_FLAG, &t.separate_input, 0, 0, "and the others see inputs alone"},
        {"channel", NULL, CLI_FLAG, &t.channel, 0, 0, "pairs are (output, input)"},
        {"encoder-input", NULL, CLI_FLAG, &t.encoder_input, 0, 0, "T5: the input stands on the encoder's side"},
        {"every", "N", CLI_WHOLE, &t.every, 1, 1e9, "evaluate and save every N steps (default 2000)"},
        {"held-out-lessons", "N", CLI_WHOLE, &t.held_lessons, 1, 1e6, "lessons of an evaluation (default 100)"},
        {"seed", "S", CLI_WHOLE, &t.seed, 0, 9007199254740992.0, "of all that is drawn by chance (default 0)"}};
    bool done = false;
    bool ok = command_start(c, "usage: mend train --stage pretrain|finetune|prompt|lm -l LLM [-m MEND] --data FILE -o FILE [options]\n"
                            "Train a distiller against a frozen language model, vectors, or a language model. The log goes to standard output, a JSON object a line.",
                            own, sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done) {
        ok = training_open(&t, c->err);
        if (!ok && t.made) remove(t.output.at); /* nothing was trained */
        ok = ok && train(&t, c->err);
    }
    training_free(&t);
    return ok;
}
