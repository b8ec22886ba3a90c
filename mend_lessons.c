/* mend_lessons.c - what training reads: passages and tasks from files, and from them lessons, drawn by counting. A lesson depends on the seed and its
 * number alone, so training that was stopped goes on with the same ones.
 */
#include "mend_train.h"

#include <stdlib.h>
#include <string.h>

const char *const stage_names[STAGES] = {"pretrain", "finetune", "prompt", "lm"};

enum { DRAWS = 1 << 16 }; /* random numbers set aside for one lesson */

void lesson_free(Lesson *l) {
    for (size_t i = 0; i < l->groups; i++) {
        ids_free(&l->demos[i]);
        bytes_free(&l->is_label[i]);
    }
    free(l->demos), free(l->is_label);
    ids_free(&l->before), ids_free(&l->x), ids_free(&l->y);
    bytes_free(&l->counted);
    *l = (Lesson){0};
}

/* ==== files ======================================================================================================================= */

void corpus_free(Corpus *c) {
    for (size_t i = 0; i < c->passages; i++) ids_free(&c->passage[i]);
    free(c->passage), free(c->task_start);
    examples_free(&c->examples);
    c->passage = NULL, c->task_start = NULL, c->passages = c->tasks = 0;
}

/* One passage; one that is too short to be cut in two is left out. */
static bool add_passage(Corpus *c, const char *text, size_t len, Error *err) {
    Bytes b = {0};
    Ids ids = {0};
    bytes_add(&b, text, len);
    const bool ok = pieces_of(c->lm, &b, false, &ids, err);
    bytes_free(&b);
    if (!ok || ids.n < 8) return ids_free(&ids), ok;
    if ((c->passages & (c->passages - 1)) == 0) c->passage = mem_resize(c->passage, c->passages ? 2 * c->passages : 1, sizeof *c->passage);
    c->passage[c->passages++] = ids;
    return true;
}

/* Text: passages end at blank lines. */
static bool read_passages(Corpus *c, const Bytes *text, Error *err) {
    bool ok = true;
    for (size_t at = 0, end; ok && at < text->len; at = end) {
        for (end = at; end < text->len && !(text->at[end] == '\n' && (end + 1 == text->len || text->at[end + 1] == '\n')); end++) continue;
        ok = end == at || add_passage(c, text->at + at, end - at, err);
        while (end < text->len && text->at[end] == '\n') end++;
    }
    return ok;
}

/* JSON lines with "text". */
static bool read_json_passages(Corpus *c, const char *path, const Bytes *text, Error *err) {
    size_t number = 0, len;
    for (size_t at = 0; at < text->len; at += len + 1) {
        const char *end = memchr(text->at + at, '\n', text->len - at);
        len = end ? (size_t)(end - text->at) - at : text->len - at;
        Json j = {0};
        Error detail;
        number++;
        if (strspn(text->at + at, " \t\r") >= len) continue;
        bool ok = json_parse(text->at + at, len, &j, &detail);
        const Json *passage = ok ? json_get(&j, "text") : NULL;
        if (ok && (!passage || passage->type != JSON_STRING)) ok = fail(&detail, BAD_INPUT, "an object with \"text\" is wanted");
        ok = ok && add_passage(c, passage->text, passage->len, &detail);
        json_free(&j);
        if (!ok) return fail(err, detail.code, "%s: line %zu: %.800s", path, number, detail.text);
    }
    return true;
}

/* What a file holds, by its first line. */
typedef enum { TEXT, JSON_TEXT, TASKS } Content;
static Content content_of(const Bytes *text) {
    const size_t at = strspn(text->at ? text->at : "", " \t\r\n");
    if (!text->len || text->at[at] != '{') return TEXT;
    const char *end = memchr(text->at + at, '\n', text->len - at);
    Json j = {0};
    Error ignored;
    const bool json = json_parse(text->at + at, end ? (size_t)(end - text->at) - at : text->len - at, &j, &ignored);
    const Content c = json && json_get(&j, "text") && !json_get(&j, "input") ? JSON_TEXT : TASKS;
    json_free(&j);
    return c;
}

static bool read_file(Corpus *c, const char *path, Error *err) {
    Bytes text = {0};
    Examples more = {0};
    if (!read_text(path, &text, err)) return false;
    const Content content = content_of(&text);
    const bool ok = content == TEXT ? read_passages(c, &text, err) : content == JSON_TEXT ? read_json_passages(c, path, &text, err) : read_examples(path, true, &more, err);
    bytes_free(&text);
    for (size_t i = 0; ok && i < more.n; i++) {
        Examples *e = &c->examples;
        if (e->n == e->cap) e->at = mem_resize(e->at, e->cap = e->cap ? 2 * e->cap : 16, sizeof *e->at);
        e->at[e->n++] = more.at[i];
    }
    if (ok) free(more.at);
    return ok;
}

static bool same_task(const Example *a, const Example *b) { return a->task.len == b->task.len && (a->task.len == 0 || memcmp(a->task.at, b->task.at, a->task.len) == 0); }

/* The number of an example's task: of first[], the first example of each task, through a hash table of `slots` (a power of two) task numbers + 1. */
static size_t task_of(const Examples *e, size_t i, size_t *first, size_t *tasks, size_t *table, size_t slots) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t k = 0; k < e->at[i].task.len; k++) hash = (hash ^ (unsigned char)e->at[i].task.at[k]) * 1099511628211u;
    size_t slot = (size_t)hash & (slots - 1);
    while (table[slot] && !same_task(&e->at[first[table[slot] - 1]], &e->at[i])) slot = (slot + 1) & (slots - 1);
    if (!table[slot]) first[(*tasks)++] = i, table[slot] = *tasks;
    return table[slot] - 1;
}

/* Put the examples of each task together, tasks and examples in the order of the files. */
static void sort_tasks(Corpus *c) {
    const size_t n = c->examples.n;
    size_t slots = 1;
    while (slots < 2 * n) slots *= 2;
    size_t *table = mem_new(slots, sizeof *table), *first = mem_new(n, sizeof *first), *task = mem_new(n, sizeof *task), *next = mem_new(n, sizeof *next);
    Example *sorted = mem_new(n, sizeof *sorted);
    c->task_start = mem_new(n + 1, sizeof *c->task_start);
    for (size_t i = 0; i < n; i++) c->task_start[(task[i] = task_of(&c->examples, i, first, &c->tasks, table, slots)) + 1]++;
    for (size_t t = 0; t < c->tasks; t++) c->task_start[t + 1] += next[t] = c->task_start[t];
    for (size_t i = 0; i < n; i++) sorted[next[task[i]]++] = c->examples.at[i];
    free(c->examples.at), free(table), free(first), free(task), free(next);
    c->examples = (Examples){sorted, n, n};
}

bool corpus_read(Corpus *c, const Texts *path, Error *err) {
    static const char *const wants[STAGES] = {"text", "tasks", "the examples of one task", "text or tasks"};
    bool ok = true;
    for (size_t i = 0; ok && i < path->n; i++) ok = read_file(c, path->at[i].at, err);
    sort_tasks(c);
    const bool fits = c->stage == PRETRAIN ? c->passages && !c->tasks : c->stage == LANGUAGE ? c->passages || c->tasks : c->stage == FINETUNE ? c->tasks && !c->passages : c->tasks == 1 && !c->passages;
    if (ok && !fits) ok = fail(err, BAD_INPUT, "the files hold %zu passages of text (of 8 pieces or more) and %zu tasks; stage %s takes %s", c->passages, c->tasks, stage_names[c->stage], wants[c->stage]);
    const size_t needs = c->stage == TUNE_PROMPT ? 1 : c->K + (c->stage == FINETUNE ? 1 : 0);
    for (size_t t = 0; ok && t < c->tasks; t++) {
        const Bytes *name = &c->examples.at[c->task_start[t]].task;
        const size_t has = c->task_start[t + 1] - c->task_start[t];
        if (has < needs) ok = fail(err, BAD_INPUT, "task %s has %zu examples; a lesson takes %zu of them (--k)", name->at ? name->at : "(none)", has, needs);
    }
    if (!ok) corpus_free(c);
    return ok;
}

/* ==== lessons ===================================================================================================================== */

/* The random numbers of one lesson. */
typedef struct {
    uint64_t seed, count;
} Chance;
static size_t draw(Chance *c, size_t n) { return (size_t)(uniform(c->seed, c->count++) * (double)n); }

static void lesson_groups(Lesson *l, size_t n) {
    l->groups = n;
    l->demos = mem_new(n, sizeof *l->demos);
    l->is_label = mem_new(n, sizeof *l->is_label);
}

/* A piece of a passage: its first 80 % play the demonstrations, the rest is the query (section 3.3 of the paper). For a language model all is y; a T5's
 * encoder reads the first part. */
static void passage_lesson(const Corpus *c, Chance *chance, Lesson *l) {
    const Ids *p = &c->passage[draw(chance, c->passages)];
    const size_t n = p->n < c->length ? p->n : c->length, from = p->n > n ? draw(chance, p->n - n + 1) : 0, head = n * 8 / 10;
    const uint32_t *at = p->at + from;
    if (c->stage == LANGUAGE) {
        const size_t x = c->lm->kind == T5 ? head : 0;
        ids_add(&l->x, at, x);
        ids_add(&l->y, at + x, n - x);
        return;
    }
    lesson_groups(l, c->how.groups);
    for (size_t g = 0; g < l->groups; g++) {
        const size_t first = group_start(&c->how, head, g), end = group_start(&c->how, head, g + 1);
        ids_add(&l->demos[g], at + first, end - first);
        for (size_t i = first; i < end; i++) bytes_add(&l->is_label[g], "\0", 1);
    }
    ids_add(&l->before, at, head);
    ids_add(&l->y, at + head, n - head);
}

/* n different examples of a task by chance: copies that share the originals' memory. */
static Examples some_examples(const Corpus *c, Chance *chance, size_t task, size_t n) {
    const size_t from = c->task_start[task], has = c->task_start[task + 1] - from;
    Example *e = mem_new(has, sizeof *e);
    memcpy(e, c->examples.at + from, has * sizeof *e);
    for (size_t i = 0; i < n; i++) {
        const size_t j = i + draw(chance, has - i);
        const Example swap = e[i];
        e[i] = e[j], e[j] = swap;
    }
    return (Examples){e, n, has};
}

/* Many examples of one task in a row: a language model learns to give the labels. */
static bool episode(const Corpus *c, const Examples *e, Lesson *l, Error *err) {
    Format f = format_of(c->lm, c->length, c->channel, false);
    f.per_example = f.per_example < f.limit / 4 ? f.per_example : f.limit / 4;
    return demonstrations(c->lm, e, 0, e->n, &f, &l->y, &l->counted, err);
}

/* K demonstrations, and one example more as the query. */
static bool task_lesson(const Corpus *c, const Examples *e, Lesson *l, Error *err) {
    const Format teacher = format_of(c->lm, TEACHER_LIMIT, c->channel, c->encoder_input);
    const size_t K = e->n - 1;
    Ids *first = c->channel ? &l->y : &l->x, *second = c->channel ? &l->x : &l->y;
    if (!demonstration(c->lm, &e->at[K], &teacher, first, second, err)) return false;
    if (l->y.n == 0) return fail(err, BAD_INPUT, "an example has no pieces to predict");
    if (!c->mend) return true;
    const Format distiller = format_of(c->mend, DISTILLER_LIMIT, c->channel, false);
    bool ok = demonstrations(c->lm, e, 0, K, &teacher, &l->before, NULL, err);
    lesson_groups(l, c->how.groups);
    for (size_t g = 0; ok && g < l->groups; g++)
        ok = demonstrations(c->mend, e, group_start(&c->how, K, g), group_start(&c->how, K, g + 1), &distiller, &l->demos[g], &l->is_label[g], err);
    return ok;
}

bool lesson_of(const Corpus *c, uint64_t seed, uint64_t number, Lesson *out, Error *err) {
    Chance chance = {seed, number * DRAWS};
    *out = (Lesson){0};
    if (c->passages && (!c->tasks || number % 2)) {
        passage_lesson(c, &chance, out);
        return true;
    }
    const size_t task = draw(&chance, c->tasks), n = c->stage == LANGUAGE ? c->K : c->stage == FINETUNE ? c->K + 1 : 1;
    Examples e = some_examples(c, &chance, task, n);
    Error detail;
    const bool ok = c->stage == LANGUAGE ? episode(c, &e, out, &detail) : task_lesson(c, &e, out, &detail);
    const Bytes *name = &e.at[0].task;
    if (!ok) fail(err, detail.code, "task %s: %.800s", name->at ? name->at : "(none)", detail.text), lesson_free(out);
    free(e.at);
    return ok;
}
