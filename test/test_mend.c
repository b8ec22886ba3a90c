/* test_mend.c - the parts of mend.c that stand alone, without a model: cutting, masks, measures, chance.
 *
 * As `test_mend answer MATH THREADS` it answers test_mend.py instead: a JSON object a line, {"do": ...} with piece ids that mend's command line
 * has no way to take, and a line of numbers or {"error"} back. The questions stand at the functions below. */
#include "../mend.c"
#include "../mend_train.h"
#include "check.h"

/* ==== alone ======================================================================================================================= */

static void test_cut_example(void) {
    static const struct { const char *task; size_t x, y, per_example, x_left, y_left; } cases[] = {
        {"t", 253, 1, 256, 253, 1}, {"t", 254, 1, 256, 253, 1}, {"t", 254, 0, 256, 254, 0}, {"t", 255, 0, 256, 254, 0}, {"t", 9, 254, 256, 0, 254}, {"t", 9, 300, 256, 0, 300},
        {"t", 100, 10, 32, 20, 10}, {"t", 0, 0, 0, 0, 0}, {"t", 1, 1, 1, 0, 1}, {"inst:art", 9, 300, 256, 9, 245}, {"inst:art", 300, 9, 256, 245, 9}, {"inst:art", 200, 200, 256, 54, 200},
        {"inst:piqa:x", 9, 300, 256, 9, 126}, {"inst:piqa", 254, 0, 256, 254, 0}, {"inst:yahoo_answers_topics", 300, 9, 256, 128, 9}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Ids x = {.n = cases[i].x}, y = {.n = cases[i].y};
        Bytes task = {0};
        bytes_text(&task, cases[i].task);
        cut_example(&task, &x, &y, &(Format){.per_example = cases[i].per_example});
        CHECK(x.n == cases[i].x_left && y.n == cases[i].y_left, "case %zu: %zu and %zu pieces left", i, x.n, y.n);
        bytes_free(&task);
    }
    CHECK(budget(&(Format){.limit = 900, .per_example = 256}) == 643, "the distiller's");
    CHECK(budget(&(Format){.limit = 256, .per_example = 256}) == 0, "nothing is left");
}

/* Two demonstrations of (input, label) and three rows of P, the last a label row: '.' sees, '-' does not. */
static void test_separation(void) {
    static const char is_label[] = {0, 1, 0, 1}, *const want[2][3] = {{".......", ".......", "-.-.--."}, {".-.-..-", ".-.-..-", "-.-.--."}};
    for (int both = 0; both < 2; both++) {
        float *mask = separation(&(Distilling){1, 1, both != 0}, is_label, 4, 3);
        for (size_t i = 0; i < 7; i++)
            for (size_t j = 0; j < 7; j++) {
                const bool sees = i < 4 || want[both][i - 4][j] == '.';
                CHECK((mask[i * 7 + j] == 0) == sees && (sees || mask[i * 7 + j] < -3e38f), "both %d, row %zu, piece %zu: %g", both, i, j, (double)mask[i * 7 + j]);
            }
        free(mask);
    }
}

static Example query_of(const char *output, const char *const *option, size_t n) {
    Example e = {.has_output = true};
    bytes_text(&e.input, "x");
    bytes_text(&e.output, output);
    for (size_t i = 0; i < n; i++) texts_add(&e.options, option[i], strlen(option[i]));
    return e;
}

/* Right a a b c, said a b b a: a has P 1/2, R 1/2; b has P 1/2, R 1; c is never said. A class that is never right does not count. */
static void test_measures(void) {
    static const char *const option[] = {"a", "b", "c", "d"}, *const right[] = {"a", "a", "b", "c"};
    static const size_t said[] = {0, 1, 1, 0}, wild[] = {3, 3, 3, 3};
    Example e[4];
    for (size_t i = 0; i < 4; i++) e[i] = query_of(right[i], option, 4);
    const Examples q = {e, 4, 0};
    CHECK(macro_f1(&q, said) == (0.5 + 2.0 / 3 + 0) / 3, "macro F1 %.17g", macro_f1(&q, said));
    CHECK(accuracy(&q, said) == 0.5, "accuracy %.17g", accuracy(&q, said));
    CHECK(macro_f1(&q, wild) == 0 && accuracy(&q, wild) == 0, "nothing is right");
    for (size_t i = 0; i < 4; i++) example_free(&e[i]);
}

/* The first two numbers of SplitMix64 from seed 1234567 as published with it, their 24 highest bits. */
static void test_uniform(void) {
    CHECK(uniform(1234567, 0) == (double)(6457827717110365317u >> 40) * 0x1p-24, "%.17g", uniform(1234567, 0));
    CHECK(uniform(1234567, 1) == (double)(3203168211198807973u >> 40) * 0x1p-24, "%.17g", uniform(1234567, 1));
}

/* Each of 5 examples comes first about as often; the same seed gives the same order. The bounds are five standard deviations of 4,000 draws. */
static void test_shuffle(void) {
    enum { N = 5, TIMES = 4000 };
    size_t first[N] = {0}, moved = 0, lost = 0;
    for (uint64_t seed = 0; seed < TIMES; seed++) {
        Example e[N] = {0}, again[N] = {0};
        size_t all = 0;
        for (size_t i = 0; i < N; i++) e[i].options.cap = again[i].options.cap = i;
        uint64_t count = 0;
        shuffle(&(Examples){e, N, 0}, N, seed, &count);
        count = 0;
        shuffle(&(Examples){again, N, 0}, N, seed, &count);
        for (size_t i = 0; i < N; i++) all |= (size_t)1 << e[i].options.cap, moved += e[i].options.cap != again[i].options.cap;
        lost += all != 31;
        first[e[0].options.cap]++;
    }
    CHECK(lost == 0, "%zu of %d seeds lose examples", lost, TIMES);
    CHECK(moved == 0, "the same seed gives another order");
    for (size_t i = 0; i < N; i++) CHECK(first[i] > 800 - 127 && first[i] < 800 + 127, "example %zu comes first %zu times of %d", i, first[i], TIMES);
}

static void test_relabel(void) {
    static const char *const option[] = {"a", "b", "c"};
    size_t seen[2][3] = {{0}};
    for (int wrong = 0; wrong < 2; wrong++)
        for (uint64_t seed = 0; seed < 300; seed++) {
            Example e = query_of("b", option, 3);
            uint64_t count = 0;
            relabel(&(Examples){&e, 1, 0}, wrong != 0, seed, &count);
            seen[wrong][right_option(&e)]++;
            example_free(&e);
        }
    CHECK(seen[0][0] > 60 && seen[0][1] > 60 && seen[0][2] > 60, "random: %zu %zu %zu", seen[0][0], seen[0][1], seen[0][2]);
    CHECK(seen[1][0] > 105 && seen[1][1] == 0 && seen[1][2] > 105, "wrong: %zu %zu %zu", seen[1][0], seen[1][1], seen[1][2]);
}

/* Logits of the probabilities 1/2, 1/4, 1/8, 1/8 in another order. */
static void test_choose(void) {
    static const float p[] = {0.125f, 0.5f, 0.125f, 0.25f}, tie[] = {1, 3, 3, 2};
    static const struct { double temperature, top_p; bool may[4]; } cases[] = {
        {0, 1, {false, true, false, false}}, {1, 0.01, {false, true, false, false}}, {1, 0.6, {false, true, false, true}}, {1, 0.8, {true, true, false, true}}, {1, 1, {true, true, true, true}}};
    float l[4];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t seen[4] = {0};
        for (uint64_t count = 0; count < 4000; count++) {
            for (size_t v = 0; v < 4; v++) l[v] = logf(p[v]);
            seen[choose(l, 4, &(Sampling){cases[i].temperature, cases[i].top_p, 7}, count)]++;
        }
        for (size_t v = 0; v < 4; v++) CHECK((seen[v] > 0) == cases[i].may[v], "case %zu: piece %zu comes %zu times", i, v, seen[v]);
        if (i == 4) CHECK(seen[1] > 1842 && seen[1] < 2158, "one half of 4,000 is %zu", seen[1]); /* five standard deviations */
    }
    memcpy(l, tie, sizeof l);
    CHECK(choose(l, 4, &(Sampling){.top_p = 1}, 0) == 1, "of equals the first");
    CHECK(best((const double[]){-2, -1, -1}, 3) == 1, "of equal options the first");
}

static void test_cache(void) {
    Cache c = {.E = 3, .L = 2};
    float row[6 * 3];
    for (size_t i = 0; i < 18; i++) row[i] = (float)i;
    for (size_t at = 0; at < 6; at += 2) {
        cache_grow(&c, 2, 0);
        for (size_t l = 0; l < 2; l++) cache_put(&c, l, row + at * 3, 3, row + at * 3, 3, 2);
        c.n += 2;
    }
    for (size_t l = 0; l < 2; l++) CHECK(memcmp(c.k + l * c.room * 3, row, sizeof row) == 0 && memcmp(c.v + l * c.room * 3, row, sizeof row) == 0, "layer %zu", l);
    cache_free(&c);
}

/* ==== answers ===================================================================================================================== */

static Model *model_of(const Json *question, const char *key, Error *err) {
    static struct { Bytes path; Model m; } open[16];
    const Json *path = json_get(question, key);
    for (size_t i = 0; path && i < 16; i++) {
        if (open[i].path.at && strcmp(open[i].path.at, path->text) == 0) return &open[i].m;
        if (open[i].path.at) continue;
        if (!model_open(&open[i].m, path->text, ANY_MODEL, err)) return NULL;
        bytes_text(&open[i].path, path->text);
        return &open[i].m;
    }
    fail(err, BAD_USAGE, "the question names no model under %s", key);
    return NULL;
}

static size_t size_of(const Json *question, const char *key) {
    size_t n = 0;
    json_size(json_get(question, key), SIZE_MAX >> 1, &n);
    return n;
}

static bool flag_of(const Json *question, const char *key) {
    const Json *flag = json_get(question, key);
    return flag && flag->type == JSON_TRUE;
}

static Ids ids_of(const Json *list) {
    Ids ids = {0};
    for (size_t i = 0; list && i < list->len; i++) ids_add(&ids, &(uint32_t){(uint32_t)list->item[i].number}, 1);
    return ids;
}

static void put_ids(const Ids *ids, Bytes *out) {
    bytes_text(out, "[");
    for (size_t i = 0; i < ids->n; i++) bytes_printf(out, "%s%lu", i ? ", " : "", (unsigned long)ids->at[i]);
    bytes_text(out, "]");
}

/* Rows [n,C] of x: those listed, or all. */
static void put_rows(const float *x, size_t n, size_t C, const Json *listed, Bytes *out) {
    double *row = mem_new(C, sizeof *row);
    bytes_text(out, "[");
    for (size_t i = 0; i < (listed ? listed->len : n); i++) {
        const size_t at = listed ? (size_t)listed->item[i].number : i;
        for (size_t c = 0; c < C; c++) row[c] = (double)x[at * C + c];
        if (i) bytes_text(out, ", ");
        json_put_doubles(out, row, C);
    }
    bytes_text(out, "]");
    free(row);
}

/* mend, demos (a list of ids per group), labels (likewise, or none), label_rows, separate_input: the vectors of all groups. */
static bool vectors_of(const Json *question, Vectors *v, Error *err) {
    const Model *m = model_of(question, "mend", err);
    const Json *demos = json_get(question, "demos"), *labels = json_get(question, "labels");
    const Distilling d = {1, size_of(question, "label_rows"), flag_of(question, "separate_input")};
    bool ok = m != NULL;
    if (ok) *v = (Vectors){mem_new(demos->len * m->size[LETTER_U], m->size[LETTER_O] * sizeof(float)), demos->len * m->size[LETTER_U], m->size[LETTER_O]};
    for (size_t g = 0; ok && g < demos->len; g++) {
        Ids ids = ids_of(&demos->item[g]);
        Bytes is_label = {0};
        for (size_t i = 0; labels && i < ids.n; i++) bytes_add(&is_label, labels->item[g].item[i].number > 0 ? "\1" : "\0", 1);
        ok = distill_group(m, &d, &ids, &is_label, v->at + g * m->size[LETTER_U] * v->O, err);
        ids_free(&ids);
        bytes_free(&is_label);
    }
    return ok;
}

static bool answer_vectors(const Json *question, Bytes *out, Error *err) {
    Vectors v = {0};
    const bool ok = vectors_of(question, &v, err);
    if (ok) put_rows(v.at, v.n, v.O, NULL, out);
    free(v.at);
    return ok;
}

/* model, ids, rows: hidden states of a GPT-2. model, encoder, rows: of an encoder. */
static bool answer_hidden(const Json *question, Bytes *out, Error *err) {
    const Model *m = model_of(question, "model", err);
    if (!m) return false;
    Ids ids = ids_of(json_get(question, m->kind == GPT2 ? "ids" : "encoder"));
    const size_t start[] = {0, ids.n};
    float *x = embed(m, ids.at, ids.n);
    Cache none = {.E = m->size[LETTER_E]};
    if (m->kind == GPT2) gpt2_forward(m, &(Batch){ids.n, 1, start}, &none, false, NULL, x);
    else t5_forward(m, &m->encoder, &(Batch){ids.n, 1, start}, &none, false, NULL, NULL, x);
    put_rows(x, ids.n, m->size[LETTER_C], json_get(question, "rows"), out);
    free(x);
    ids_free(&ids);
    return true;
}

/* model, encoder, decoder, rows, columns: logits of these columns at these positions of a T5's decoder, one list. */
static bool answer_logits(const Json *question, Bytes *out, Error *err) {
    const Model *m = model_of(question, "model", err);
    if (!m) return false;
    const size_t V = m->size[LETTER_V];
    const Json *rows = json_get(question, "rows"), *columns = json_get(question, "columns");
    Ids source = ids_of(json_get(question, "encoder")), ids = ids_of(json_get(question, "decoder"));
    State s = state_new(m);
    float *e = embed(m, source.at, source.n), *x = embed(m, ids.at, ids.n), *l = mem_new(ids.n, V * sizeof *l), *picked = mem_new(ids.n, columns->len * sizeof *l);
    bool ok = state_encode(m, &s, e, source.n, err);
    s.self.n = 0; /* the question's decoder ids begin with the start piece */
    ok = ok && state_read(m, &s, x, ids.n, err) && logits(m, x, ids.n, l, err);
    for (size_t i = 0; ok && i < ids.n; i++)
        for (size_t c = 0; c < columns->len; c++) picked[i * columns->len + c] = l[i * V + (size_t)columns->item[c].number];
    if (ok) put_rows(picked, ids.n, columns->len, rows, out);
    state_free(&s);
    free(e), free(x), free(l), free(picked);
    ids_free(&source), ids_free(&ids);
    return ok;
}

/* llm, and mend and demos, or with "icl" demos alone, or nothing: a context that has read them. channel, encoder_input, limit, alone. */
static bool context_of(const Json *question, Context *c, Error *err) {
    *c = (Context){.lm = model_of(question, "llm", err), .alone = flag_of(question, "alone")};
    if (!c->lm) return false;
    c->format = format_of(c->lm, TEACHER_LIMIT, flag_of(question, "channel"), flag_of(question, "encoder_input"));
    if (json_get(question, "limit")) c->format.limit = size_of(question, "limit");
    if (flag_of(question, "icl")) c->demos = ids_of(&json_get(question, "demos")->item[0]);
    if (json_get(question, "mend") && !vectors_of(question, &c->vectors, err)) return false;
    return context_begin(c, err);
}

/* The same score from one forward pass over everything, with nothing read before. */
static bool score_whole(const Context *c, const Ids *x, const Ids *option, double *score, Error *err) {
    const Model *m = c->lm;
    const Ids *first = c->format.channel ? option : x, *second = c->format.channel ? x : option;
    const size_t C = m->size[LETTER_C];
    State s = state_new(m);
    Ids after = {0};
    size_t n;
    bool ok = true;
    if (m->kind == T5) {
        float *e = context_rows(c, c->format.encoder_input ? first : NULL, &n);
        ok = state_encode(m, &s, e, n, err);
        s.self.n = 0;
        ids_add(&after, &m->start_id, 1);
        free(e);
    }
    if (!c->format.encoder_input) ids_add(&after, first->at, first->n);
    ids_add(&after, second->at, second->n);
    float *rows = m->kind == T5 ? embed(m, after.at, n = after.n) : context_rows(c, &after, &n), *lp = mem_new(second->n, sizeof *lp);
    ok = ok && state_read(m, &s, rows, n, err) && target_logprobs(m, rows + (n - second->n - 1) * C, second->at, second->n, lp, err);
    *score = 0;
    for (size_t i = 0; ok && i < second->n; i++) *score += (double)lp[i];
    *score /= (double)second->n;
    free(rows), free(lp);
    ids_free(&after);
    state_free(&s);
    return ok;
}

/* A context, x, options: a score for each; whole: each by itself. */
static bool answer_scores(const Json *question, Bytes *out, Error *err) {
    const Json *list = json_get(question, "options");
    const size_t B = list->len;
    Context c;
    Ids x = ids_of(json_get(question, "x")), *option = mem_new(B, sizeof *option);
    double *score = mem_new(B, sizeof *score);
    for (size_t b = 0; b < B; b++) option[b] = ids_of(&list->item[b]);
    bool ok = context_of(question, &c, err);
    if (!flag_of(question, "whole")) ok = ok && score_pieces(&c, &x, option, B, score, err);
    else
        for (size_t b = 0; ok && b < B; b++) ok = score_whole(&c, &x, &option[b], score + b, err);
    if (ok) json_put_doubles(out, score, B);
    for (size_t b = 0; b < B; b++) ids_free(&option[b]);
    free(option), free(score);
    ids_free(&x);
    context_free(&c);
    return ok;
}

/* A context, ids: log p of each after the context and those before it. */
static bool answer_logprob(const Json *question, Bytes *out, Error *err) {
    Context c;
    Ids ids = ids_of(json_get(question, "ids")), *before = mem_new(ids.n, sizeof *before), *after = mem_new(ids.n, sizeof *after);
    double *lp = mem_new(ids.n, sizeof *lp);
    for (size_t i = 0; i < ids.n; i++) before[i] = (Ids){ids.at, i, 0}, after[i] = (Ids){ids.at + i, 1, 0};
    const bool ok = context_of(question, &c, err) && score_batch(c.lm, &c.state, before, after, ids.n, lp, err);
    if (ok) json_put_doubles(out, lp, ids.n);
    free(before), free(after), free(lp);
    ids_free(&ids);
    context_free(&c);
    return ok;
}

/* A context, ids, n, cuts: n pieces that follow; the ids are read in parts that end at the cuts. */
static bool answer_greedy(const Json *question, Bytes *out, Error *err) {
    Context c;
    const Json *cuts = json_get(question, "cuts");
    Ids ids = ids_of(json_get(question, "ids")), made = {0};
    size_t at = 0;
    bool ok = context_of(question, &c, err);
    for (size_t i = 0; ok && cuts && i < cuts->len; i++) {
        const size_t to = (size_t)cuts->item[i].number;
        ok = state_read_ids(c.lm, &c.state, ids.at + at, to - at, err);
        at = to;
    }
    const Ids rest = {ids.at + at, ids.n - at, 0};
    ok = ok && generate(&c, &rest, size_of(question, "n"), &(Sampling){.top_p = 1}, &made, err);
    if (ok) put_ids(&made, out);
    ids_free(&ids), ids_free(&made);
    context_free(&c);
    return ok;
}

/* model, decoder, span: the buckets of the distances -span..span. */
static bool answer_buckets(const Json *question, Bytes *out, Error *err) {
    const Model *m = model_of(question, "model", err);
    const ptrdiff_t span = (ptrdiff_t)size_of(question, "span");
    Ids ids = {0};
    for (ptrdiff_t d = -span; m && d <= span; d++) ids_add(&ids, &(uint32_t){(uint32_t)position_bucket(m, d, flag_of(question, "decoder"))}, 1);
    put_ids(&ids, out);
    ids_free(&ids);
    return m != NULL;
}

/* One example from a JSON value, by way of mend's own reader. */
static bool example_of(const Json *value, Example *e, Error *err) {
    Bytes line = {0};
    json_put(&line, value);
    const bool ok = read_example(&line, e, err);
    bytes_free(&line);
    return ok;
}

/* llm, channel, encoder_input, limits (teacher, distiller), demos, query; score: what the distiller reads and which of it are labels, what the teacher reads
 * before x, x and the options; and if asked the scores in context. */
static bool answer_prompt(const Json *question, Bytes *out, Error *err) {
    const Json *demos = json_get(question, "demos"), *limits = json_get(question, "limits");
    Context c = {.lm = model_of(question, "llm", err)};
    Examples d = {0};
    Example query = {0};
    Ids distiller = {0}, x = {0}, *option = NULL;
    Bytes is_label = {0};
    bool ok = c.lm != NULL;
    if (ok) c.format = format_of(c.lm, TEACHER_LIMIT, flag_of(question, "channel"), flag_of(question, "encoder_input"));
    Format f = c.format;
    c.format.limit = (size_t)limits->item[0].number, f.limit = (size_t)limits->item[1].number;
    d.at = mem_new(demos->len, sizeof *d.at);
    for (; ok && d.n < demos->len; d.n++) ok = example_of(&demos->item[d.n], &d.at[d.n], err);
    ok = ok && example_of(json_get(question, "query"), &query, err) && demonstrations(c.lm, &d, 0, d.n, &f, &distiller, &is_label, err) &&
         demonstrations(c.lm, &d, 0, d.n, &c.format, &c.demos, NULL, err);
    option = mem_new(query.options.n, sizeof *option);
    ok = ok && query_pieces(&c, &query, &x, option, err);
    if (ok) {
        bytes_text(out, "{\"distiller\": "), put_ids(&distiller, out);
        bytes_text(out, ", \"labels\": \"");
        for (size_t i = 0; i < is_label.len; i++) bytes_text(out, is_label.at[i] ? "1" : "0");
        bytes_text(out, "\", \"demos\": "), put_ids(&c.demos, out);
        bytes_text(out, ", \"x\": "), put_ids(&x, out);
        bytes_text(out, ", \"options\": [");
        for (size_t b = 0; b < query.options.n; b++) bytes_text(out, b ? ", " : ""), put_ids(&option[b], out);
        bytes_text(out, "]");
    }
    if (ok && flag_of(question, "score")) {
        double *score = mem_new(query.options.n, sizeof *score);
        ok = context_begin(&c, err) && score_query(&c, &query, score, err);
        bytes_text(out, ", \"scores\": ");
        json_put_doubles(out, score, query.options.n);
        free(score);
    }
    bytes_text(out, "}");
    for (size_t b = 0; b < query.options.n; b++) ids_free(&option[b]);
    free(option);
    example_free(&query);
    examples_free(&d);
    ids_free(&distiller), ids_free(&x);
    bytes_free(&is_label);
    context_free(&c);
    return ok;
}

/* A lesson from {"demos": a list of ids per group, "labels", "before", "x", "y", "counted"}, all but y optional. */
static Lesson lesson_from(const Json *j) {
    const Json *demos = json_get(j, "demos"), *labels = json_get(j, "labels"), *counted = json_get(j, "counted");
    Lesson l = {.groups = demos ? demos->len : 0, .before = ids_of(json_get(j, "before")), .x = ids_of(json_get(j, "x")), .y = ids_of(json_get(j, "y"))};
    l.demos = mem_new(l.groups, sizeof *l.demos), l.is_label = mem_new(l.groups, sizeof *l.is_label);
    for (size_t g = 0; g < l.groups; g++) {
        l.demos[g] = ids_of(&demos->item[g]);
        for (size_t i = 0; labels && i < l.demos[g].n; i++) bytes_add(&l.is_label[g], labels->item[g].item[i].number > 0 ? "\1" : "\0", 1);
    }
    for (size_t i = 0; counted && i < counted->len; i++) bytes_add(&l.counted, counted->item[i].number > 0 ? "\1" : "\0", 1);
    return l;
}

/* Gradients, by the names of the flat file, and "vectors" [n]; 50257 columns are too many for a line of text. */
static bool write_gradients(const char *path, const Parameters *p, const float *ds, size_t n, Error *err) {
    Tensor *t = mem_new(p->n + 1, sizeof *t);
    for (size_t i = 0; i < p->n; i++) t[i] = (Tensor){p->at[i].name, DTYPE_F32, 1, {p->at[i].n}, p->at[i].n, p->at[i].g};
    t[p->n] = (Tensor){"vectors", DTYPE_F32, 1, {n}, n, ds};
    const bool ok = weights_write(path, t, p->n + 1, NULL, 0, err);
    free(t);
    return ok;
}

static void put_weights_hash(const Parameters *p, Bytes *out) {
    Tensor *t = mem_new(p->n, sizeof *t);
    char hash[65];
    for (size_t i = 0; i < p->n; i++) t[i] = (Tensor){p->at[i].name, DTYPE_F32, 1, {p->at[i].n}, p->at[i].n, p->at[i].w};
    weights_sha256(t, p->n, hash);
    bytes_printf(out, ", \"%s\"", hash);
    free(t);
}

/* llm, mend (or none), train ("llm" or "mend"), lessons, lambda, tau, ce, kl, label_rows, separate_input, encoder_input. steps 0: loss of all lessons in one
 * batch, gradients to `file`. Else so many steps at `rate`, with `warmup` and `decay`, clipped to 1, on the lessons
 * in turn: losses and norms, the weights' hash, then the vectors of the first lesson. */
static bool answer_train(const Json *question, Bytes *out, Error *err) {
    const Json *lessons = json_get(question, "lessons"), *which = json_get(question, "train"), *mend_path = json_get(question, "mend");
    const size_t B = lessons->len, steps = size_of(question, "steps");
    Model lm = {0}, mend = {0};
    Parameters p = {0};
    if (!model_open(&lm, json_get(question, "llm")->text, LANGUAGE_MODEL, err) || (mend_path && !model_open(&mend, mend_path->text, DISTILLER, err)) ||
        !parameters_open(&p, strcmp(which->text, "llm") ? mend.weights : lm.weights, err))
        return false;
    Lesson *lesson = mem_new(B, sizeof *lesson);
    for (size_t b = 0; b < B; b++) lesson[b] = lesson_from(&lessons->item[b]);
    Trainer t = {.lm = &lm, .mend = mend_path ? &mend : NULL, .trained = &p, .how = {1, size_of(question, "label_rows"), flag_of(question, "separate_input")},
                 .objective = {flag_of(question, "ce"), flag_of(question, "kl"), json_get(question, "lambda")->number, json_get(question, "tau")->number},
                 .encoder_input = flag_of(question, "encoder_input")};
    AdamW o = {.recipe = {.rate = steps ? json_get(question, "rate")->number : 0, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1, .warmup = size_of(question, "warmup"), .steps = steps}};
    if (json_get(question, "decay")) o.recipe.decay = json_get(question, "decay")->number;
    size_t rows = 0;
    for (size_t b = 0; b < B && mend_path; b++) rows += lesson[b].groups * mend.size[LETTER_U];
    float *ds = mem_new(rows, lm.size[LETTER_C] * sizeof *ds);
    Loss loss;
    double norm = 0;
    bool ok = true;
    bytes_text(out, "[");
    for (size_t s = 0; ok && s < steps; s++) {
        ok = lessons_loss(&t, &lesson[s % B], 1, true, NULL, &loss, err) && adamw_step(&o, &p, &norm, err);
        if (s) bytes_text(out, ", ");
        json_put_doubles(out, (const double[]){loss.loss, norm}, 2);
    }
    if (!steps) {
        ok = lessons_loss(&t, lesson, B, true, ds, &loss, err) && write_gradients(json_get(question, "file")->text, &p, ds, rows * lm.size[LETTER_C], err);
        json_put_doubles(out, (const double[]){loss.loss, loss.ce, loss.kl}, 3);
    } else if (ok) put_weights_hash(&p, out);
    if (ok && steps && mend_path) { /* the vectors of the first lesson now */
        Vectors v = {mem_new(rows, lm.size[LETTER_C] * sizeof(float)), mend.size[LETTER_U], mend.size[LETTER_O]};
        ok = distill_group(&mend, &t.how, &lesson[0].demos[0], &lesson[0].is_label[0], v.at, err);
        bytes_text(out, ", ");
        put_rows(v.at, v.n, v.O, NULL, out);
        free(v.at);
    }
    bytes_text(out, "]");
    for (size_t b = 0; b < B; b++) lesson_free(&lesson[b]);
    free(lesson), free(ds);
    trainer_free(&t);
    parameters_free(&p);
    model_close(&lm), model_close(&mend);
    return ok;
}

static bool answer(const Json *question, Bytes *out, Error *err) {
    static const struct { const char *name; bool (*to)(const Json *, Bytes *, Error *); } known[] = {
        {"vectors", answer_vectors}, {"hidden", answer_hidden}, {"logits", answer_logits}, {"scores", answer_scores},
        {"logprob", answer_logprob}, {"greedy", answer_greedy}, {"buckets", answer_buckets}, {"prompt", answer_prompt}, {"train", answer_train}};
    const Json *what = json_get(question, "do");
    for (size_t i = 0; what && i < sizeof known / sizeof *known; i++)
        if (strcmp(what->text, known[i].name) == 0) return known[i].to(question, out, err);
    return fail(err, BAD_USAGE, "what is to be done?");
}

static int answer_all(const char *math, const char *threads) {
    Bytes line = {0}, out = {0};
    Error err = {0};
    if (!tensor_start(strcmp(math, "reference") ? MATH_FAST : MATH_REFERENCE, atoi(threads), &err)) return fprintf(stderr, "%s\n", err.text), 4;
    while (next_line(stdin, &line)) {
        Json question = {0};
        out.len = 0;
        if (!json_parse(line.at, line.len, &question, &err) || !answer(&question, &out, &err)) {
            out.len = 0;
            bytes_text(&out, "{\"error\": ");
            json_put_string(&out, err.text, strlen(err.text));
            bytes_text(&out, "}");
        }
        bytes_text(&out, "\n");
        fwrite(out.at, 1, out.len, stdout);
        json_free(&question);
    }
    bytes_free(&line), bytes_free(&out);
    return 0;
}

int main(int argc, char **argv) {
    Error err = {0};
    if (argc == 4 && strcmp(argv[1], "answer") == 0) return answer_all(argv[2], argv[3]);
    CHECK(tensor_start(MATH_FAST, 1, &err), "%s", err.text);
    test_cut_example();
    test_separation();
    test_measures();
    test_uniform();
    test_shuffle();
    test_relabel();
    test_choose();
    test_cache();
    return check_end();
}
