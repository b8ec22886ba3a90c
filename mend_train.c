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
    const bool ok = loss_of(&t->objective, m, t->trained, graded, B, B, x, teacher, N, dx, out, err);
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
    ok = ok && loss_of(&t->objective, m, t->trained, &graded, 1, B, x, teacher, N, dx, out, err);
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
