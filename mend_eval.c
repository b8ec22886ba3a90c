/* mend_eval.c - how well a method answers, and what it costs.
 *
 * Evaluation is MetaICL's protocol (Min et al. 2022): each task with each seed's K demonstrations; the options of every query are scored and the
 * highest is the answer; macro-F1 for classification, else accuracy; mean and deviation over seeds, then the mean over tasks.
 *
 *   zero      x                  icl      demos x             ablations change the demonstrations before icl or mend sees them
 *   mend      S x                prompt   tuned vectors x
 *
 * Cost is counted twice: from the shapes, by the formulas below, and by the products that were really done; both must agree to the last one.
 * Letters: mend.h.
 */
#include "mend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ==== evaluation: demonstrations and measures ===================================================================================== */

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *const method_names[] = {"zero", "icl", "mend", "prompt"};
const char *const ablation_names[] = {"none", "no-input", "no-label", "random-label", "wrong-label", "itself", "shuffled"};

/* 0..n-1 by chance, the next of a sequence. */
static size_t draw(uint64_t seed, uint64_t *count, size_t n) { return (size_t)(uniform(seed, (*count)++) * (double)n); }

/* The first n of the examples in random order. */
void shuffle(Examples *e, size_t n, uint64_t seed, uint64_t *count) {
    for (size_t i = 0; i < n && i + 1 < e->n; i++) {
        const size_t j = i + draw(seed, count, e->n - i);
        const Example swap = e->at[i];
        e->at[i] = e->at[j];
        e->at[j] = swap;
    }
}

void relabel(Examples *e, bool wrong, uint64_t seed, uint64_t *count) {
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

size_t right_option(const Example *q) {
    size_t o = 0;
    while (o < q->options.n && !(q->options.at[o].len == q->output.len && memcmp(q->options.at[o].at, q->output.at, q->output.len) == 0)) o++;
    return o;
}

double macro_f1(const Examples *q, const size_t *prediction) {
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

double accuracy(const Examples *q, const size_t *prediction) {
    double hits = 0;
    for (size_t i = 0; i < q->n; i++) hits += prediction[i] == right_option(&q->at[i]);
    return hits / (double)q->n;
}

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

bool predict(const Setting *s, const Examples *demos, const Examples *queries, size_t *prediction, Error *err) {
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

/* ==== evaluation: tasks, seeds, methods =========================================================================================== */

void evaluation_free(Evaluation *e) {
    bytes_free(&e->data), bytes_free(&e->split), bytes_free(&e->output), bytes_free(&e->results);
    texts_free(&e->task), texts_free(&e->seed), texts_free(&e->done), texts_free(&e->classes);
    free(e->value);
}

static void add_result(Evaluation *e, const char *key, size_t len, double value) {
    texts_add(&e->done, key, len);
    e->value = mem_resize(e->value, e->done.n, sizeof *e->value);
    e->value[e->done.n - 1] = value;
}

static void add_names(const Json *list, Texts *to) {
    for (size_t i = 0; list && list->type == JSON_ARRAY && i < list->len; i++)
        if (list->item[i].type == JSON_STRING && !texts_hold(to, list->item[i].text, list->item[i].len)) texts_add(to, list->item[i].text, list->item[i].len);
}

bool read_partition(Evaluation *e, const char *path, const Bytes *name, Error *err) {
    Bytes text = {0};
    Json j = {0};
    Error detail;
    bool ok = read_text(path, &text, err) && (json_parse(text.at, text.len, &j, &detail) || fail(err, BAD_INPUT, "%s: %.800s", path, detail.text));
    if (ok) add_names(json_get(&j, "classification"), &e->classes);
    if (ok && name->len) {
        const Json *test = json_get(json_get(&j, name->at), "test");
        if (!test || test->type != JSON_ARRAY) ok = fail(err, BAD_INPUT, "%s: there is no partition '%.50s' with a list of \"test\" tasks", path, name->at);
        else add_names(test, &e->task);
    }
    json_free(&j);
    bytes_free(&text);
    return ok;
}

static void put_path(const Evaluation *e, const char *task, const char *seed, const char *split, Bytes *path) {
    path->len = 0;
    bytes_printf(path, "%s/%s/%s_16_%s_%s.jsonl", e->data.at, task, task, seed, split);
}

/* Where the queries are, and for which seed: test data is often there for one seed alone, so another seed's is taken if this one's is missing. */
static const char *query_path(const Evaluation *e, const char *task, const char *seed, Bytes *path) {
    static const char *const others[] = {"100", "13", "21", "42", "87"};
    put_path(e, task, seed, e->split.at, path);
    if (access(path->at, R_OK) == 0) return seed;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        put_path(e, task, others[i], e->split.at, path);
        if (access(path->at, R_OK) == 0) return others[i];
    }
    put_path(e, task, seed, e->split.at, path);
    return seed;
}

static bool by_f1(const Evaluation *e, const Bytes *task) { return texts_hold(&e->classes, task->at, task->len); }

/* One result that may be asked for. */
typedef struct {
    const Bytes *task, *seed;
    Method method;
    Ablation ablation;
} Cell;

static size_t cells(const Evaluation *e) { return e->task.n * e->seed.n * METHODS * ABLATIONS; }

/* Cell i, tasks outermost; whether it is wanted. */
static bool cell(const Evaluation *e, size_t i, Cell *c) {
    const size_t a = i % ABLATIONS, m = i / ABLATIONS % METHODS, s = i / (ABLATIONS * METHODS) % e->seed.n, t = i / (ABLATIONS * METHODS * e->seed.n);
    *c = (Cell){&e->task.at[t], &e->seed.at[s], (Method)m, (Ablation)a};
    return e->method[m] && e->ablation[a];
}

/* All that a result depends on: a file may hold the results of several models, methods and settings. Without demonstrations a seed says no more than
 * which file the queries are in, and there is nothing to ablate. */
static void cell_key(const Evaluation *e, const Cell *c, Bytes *key) {
    const Setting *s = &e->setting;
    const bool demos = c->method == ICL || c->method == MEND;
    Bytes path = {0};
    const char *seed = demos ? c->seed->at : query_path(e, c->task->at, c->seed->at, &path);
    bytes_free(&path);
    key->len = 0;
    bytes_printf(key, "%s|%s|%s|%s|%zu|%s|%s%s|%s|%s|%s", c->task->at, seed, method_names[c->method], ablation_names[demos ? c->ablation : NONE], demos ? e->K : 0, e->split.at,
                 s->format.channel ? "channel" : "direct", s->format.encoder_input ? ", encoder" : "", by_f1(e, c->task) ? "macro-f1" : "accuracy",
                 tensor_math() == MATH_FAST ? "fast" : "reference", model_hash(s->lm));
    if (c->method == MEND)
        bytes_printf(key, "|%s, %zu groups, %zu label rows%s", model_hash(s->mend), s->distilling.groups, s->distilling.label_rows,
                     s->distilling.separate_input ? ", inputs apart" : "");
    if (c->method == PROMPT) {
        char hash[65];
        sha256_hex(s->prompt->at, s->prompt->n * s->prompt->O * sizeof *s->prompt->at, hash);
        bytes_printf(key, "|%s", hash);
    }
}

/* The value of a cell, or NULL. */
static const double *result(const Evaluation *e, const Cell *c) {
    const double *value = NULL;
    Bytes key = {0};
    cell_key(e, c, &key);
    for (size_t i = 0; !value && i < e->done.n; i++)
        if (e->done.at[i].len == key.len && memcmp(e->done.at[i].at, key.at, key.len) == 0) value = &e->value[i];
    bytes_free(&key);
    return value;
}

bool read_results(Evaluation *e, Error *err) {
    Bytes text = {0};
    if (!e->output.len || access(e->output.at, F_OK) != 0) return true;
    bool ok = read_text(e->output.at, &text, err);
    for (size_t at = 0, number = 1; ok && at < text.len; number++) {
        const char *end = memchr(text.at + at, '\n', text.len - at);
        const size_t len = end ? (size_t)(end - text.at) - at : text.len - at;
        Json j = {0};
        Error detail;
        ok = json_parse(text.at + at, len, &j, &detail) || fail(err, BAD_INPUT, "%s: line %zu: %.800s", e->output.at, number, detail.text);
        const Json *key = json_get(&j, "key"), *value = json_get(&j, "value");
        if (ok && !(key && key->type == JSON_STRING && value && value->type == JSON_NUMBER)) ok = fail(err, BAD_INPUT, "%s: line %zu: no result of mend eval", e->output.at, number);
        if (ok) {
            add_result(e, key->text, key->len, value->number);
            bytes_add(&e->results, text.at + at, len);
            bytes_text(&e->results, "\n");
        }
        json_free(&j);
        at += len + 1;
    }
    bytes_free(&text);
    return ok;
}

/* The K demonstrations of a cell, as its ablation wants them. */
static bool cell_demonstrations(const Evaluation *e, const Cell *c, Examples *demos, Error *err) {
    Bytes path = {0};
    uint64_t count = 0;
    const uint64_t seed = strtoull(c->seed->at, NULL, 10);
    put_path(e, c->task->at, c->seed->at, "train", &path);
    bool ok = read_examples(path.at, true, demos, err);
    if (ok && e->K > demos->n) ok = fail(err, BAD_INPUT, "%s: %zu demonstrations are wanted, %zu are there", path.at, e->K, demos->n);
    bytes_free(&path);
    if (!ok) return false;
    if (e->K < demos->n || c->ablation == SHUFFLED) shuffle(demos, e->K, seed, &count);
    for (size_t i = e->K; i < demos->n; i++) example_free(&demos->at[i]);
    demos->n = e->K;
    if (c->ablation == RANDOM_LABEL || c->ablation == WRONG_LABEL) relabel(demos, c->ablation == WRONG_LABEL, seed, &count);
    return true;
}

/* A line of results. */
static void put_result(const Evaluation *e, const Cell *c, const Bytes *key, size_t queries, double value, double time, Bytes *out) {
    bytes_text(out, "{\"key\": "), json_put_string(out, key->at, key->len);
    bytes_text(out, ", \"task\": "), json_put_string(out, c->task->at, c->task->len);
    bytes_printf(out, ", \"seed\": \"%s\", \"method\": \"%s\", \"ablation\": \"%s\", \"queries\": %zu, \"metric\": \"%s\", \"value\": ", c->seed->at,
                 method_names[c->method], ablation_names[c->ablation], queries, by_f1(e, c->task) ? "macro-f1" : "accuracy");
    json_put_double(out, value);
    bytes_text(out, ", \"seconds\": "), json_put_double(out, time);
    bytes_text(out, "}\n");
}

static bool evaluate_cell(Evaluation *e, const Cell *c, Error *err) {
    Examples demos = {0}, queries = {0};
    Bytes path = {0}, key = {0};
    const double begun = seconds();
    query_path(e, c->task->at, c->seed->at, &path);
    bool ok = cell_demonstrations(e, c, &demos, err) && read_examples(path.at, true, &queries, err);
    size_t *prediction = mem_new(queries.n, sizeof *prediction);
    Setting s = e->setting;
    s.method = c->method, s.ablation = c->ablation;
    Error detail;
    ok = ok && (predict(&s, &demos, &queries, prediction, &detail) || fail(err, detail.code, "%s: %.800s", path.at, detail.text));
    if (ok) {
        const double value = by_f1(e, c->task) ? macro_f1(&queries, prediction) : accuracy(&queries, prediction);
        cell_key(e, c, &key);
        add_result(e, key.at, key.len, value);
        put_result(e, c, &key, queries.n, value, seconds() - begun, &e->results);
        if (e->output.len) ok = file_write(e->output.at, e->results.at, e->results.len, err);
    }
    free(prediction);
    bytes_free(&path), bytes_free(&key);
    examples_free(&demos), examples_free(&queries);
    return ok;
}

bool evaluate(Evaluation *e, const Common *c, Error *err) {
    const time_t begun = time(NULL);
    size_t missing = 0, n = 0;
    Cell one;
    bool ok = true;
    for (size_t i = 0; i < cells(e); i++) missing += cell(e, i, &one) && !result(e, &one);
    for (size_t i = 0; ok && i < cells(e); i++) {
        if (!cell(e, i, &one) || result(e, &one)) continue;
        ok = evaluate_cell(e, &one, err);
        if (ok) show_progress(c, "evaluated", ++n, missing, begun);
    }
    return ok;
}

void spread_of(const Evaluation *e, const Bytes *task, Method method, Ablation ablation, double *mean, double *deviation) {
    double sum = 0, squares = 0, *value = mem_new(e->seed.n, sizeof *value);
    for (size_t s = 0; s < e->seed.n; s++) sum += value[s] = *result(e, &(Cell){task, &e->seed.at[s], method, ablation});
    *mean = sum / (double)e->seed.n;
    for (size_t s = 0; s < e->seed.n; s++) squares += (value[s] - *mean) * (value[s] - *mean);
    *deviation = sqrt(squares / (double)e->seed.n);
    free(value);
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

/* Options from a state of p rows: all pieces but each one's last go through the decoder and then the head; the state's last row goes through it once. */
static double options_flops(const Model *m, const Ids *option, size_t B, double p, double e) {
    double sum = head_flops(m, 1);
    for (size_t b = 0; b < B; b++) sum += decoder_flops(m, (double)option[b].n - 1, p, e) + head_flops(m, (double)option[b].n - 1);
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
        const double read = decoder_flops(m, X, 1, n);
        if (!c->alone) return read + options_flops(m, option, B, 1 + X, n);
        for (size_t b = 0; b < B; b++) sum += context_flops(c) + read + options_flops(m, &option[b], 1, 1 + X, n);
        return sum;
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
        if (ok && !query_is_cut(c, &x, option, B)) ok = same_flops(bill->name, tensor_flops() - flops, query_flops(c, &x, option, B), err);
        for (size_t b = 0; b < B; b++) ids_free(&option[b]);
        ids_free(&x);
        free(option), free(score);
    }
    return ok;
}

/* The distiller's part of MEND's bill. */
static bool distil_bill(const Model *mend, const Distilling *d, const Examples *demos, Context *c, Bill *bill, Error *err) {
    const Format f = format_of(mend, DISTILLER_LIMIT, false, false);
    const double begun = seconds(), flops = tensor_flops();
    double counted = 0;
    bool ok = distill(mend, demos, d, &c->format, &c->vectors, err);
    bill->once = tensor_flops() - flops, bill->once_seconds = seconds() - begun;
    for (size_t g = 0; ok && g < d->groups; g++) {
        Ids ids = {0};
        ok = demonstrations(mend, demos, group_start(d, demos->n, g), group_start(d, demos->n, g + 1), &f, &ids, NULL, err);
        counted += distiller_flops(mend, (double)ids.n);
        ids_free(&ids);
    }
    return ok && same_flops("distiller", bill->once, counted, err);
}

bool cost(const Model *lm, const Model *mend, const Distilling *d, const Examples *demos, const Examples *queries, Bill bill[BILLS], size_t *first, Error *err) {
    static const char *const name[BILLS] = {"zero-shot", "in context, nothing cached", "in context, cached", "MEND, distiller included"};
    bool ok = true;
    *first = lm->kind == T5 ? 1 : 0;
    for (size_t i = *first; ok && i < BILLS; i++) {
        Context c = {.lm = lm, .format = format_of(lm, TEACHER_LIMIT, false, false), .alone = i == 1};
        bill[i] = (Bill){.name = name[i]};
        if (i == 1 || i == 2) ok = demonstrations(lm, demos, 0, demos->n, &c.format, &c.demos, NULL, err);
        if (i == 3) ok = distil_bill(mend, d, demos, &c, &bill[i], err);
        ok = ok && run_bill(&c, queries, &bill[i], err);
        context_free(&c);
    }
    return ok;
}

double break_even(const Bill *a, const Bill *b) {
    if (a->once <= b->once && a->query <= b->query) return 0;
    return a->query < b->query ? ceil((a->once - b->once) / (b->query - a->query)) : (double)INFINITY;
}
