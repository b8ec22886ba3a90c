/* lingua2_distill.c - LLMLingua-2's data distillation: from plain text to words labelled keep or drop (Pan et al. 2024, sections 3 and 4.1).
 *
 * A large language model is asked to shorten texts by leaving words out. Its answers become labels: a word of the original that stands in the
 * answer is worth keeping. What the compressor learns from (lingua2_train.c) is those labels.
 *
 *   texts -chunk-> requests -(any OpenAI-style batch service)-> answers -collect-> originals and compressions -annotate-> labels -filter-> the better ones
 *
 * Every step reads and writes JSON lines (docs/DISTILL.md has the keys). A line that cannot be used is named on standard error; collect and
 * annotate go on and end with exit code 1, filter stops, because a percentile over part of a file would be another one.
 */
#include "lingua2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unicode.h"

/* ==== JSON lines ================================================================================================================== */

/* What each_line does with every line. */
typedef struct {
    const char *path;
    size_t number; /* of the line in its file */
    bool go_on;
    TakeLine take;
    void *to;
    size_t lines, bad; /* of all files */
} Reading;

static bool take_text(Reading *r, const Bytes *text, Error *err) {
    Json line;
    Error detail = {0};
    if (strspn(text->at ? text->at : "", " \t\r") == text->len) return true;
    r->lines++;
    const bool parsed = json_parse(text->at, text->len, &line, &detail), ok = parsed && r->take(r->to, &line, text, &detail);
    if (parsed) json_free(&line);
    if (ok) return true;
    r->bad++;
    if (!r->go_on || detail.code != BAD_INPUT) return fail(err, detail.code, "%s: line %zu: %.900s", r->path, r->number, detail.text);
    fprintf(stderr, "lingua2: %s: line %zu: %s\n", r->path, r->number, detail.text);
    return true;
}

static bool take_file(Reading *r, Error *err) {
    FILE *f = strcmp(r->path, "-") ? fopen(r->path, "rb") : stdin;
    Bytes text = {0};
    bool ok = true;
    if (!f) return fail(err, BAD_INPUT, "%s: cannot be opened: %s", r->path, strerror(errno));
    for (r->number = 1; ok && next_line(f, &text); r->number++) ok = take_text(r, &text, err);
    if (ok && ferror(f)) ok = fail(err, errno == EISDIR ? BAD_INPUT : BAD_SYSTEM, "%s: cannot be read: %s", r->path, strerror(errno));
    if (f != stdin) fclose(f);
    bytes_free(&text);
    return ok;
}

bool each_line(const Texts *file, bool go_on, TakeLine take, void *to, Error *err) {
    Reading r = {.go_on = go_on, .take = take, .to = to};
    for (size_t i = 0; i < (file->n ? file->n : 1); i++) {
        r.path = file->n ? file->at[i].at : "-";
        if (!take_file(&r, err)) return false;
    }
    return !r.bad || fail(err, BAD_INPUT, "%zu of %zu lines could not be used", r.bad, r.lines);
}

bool need_text(const Json *line, const char *key, Slice *out, Error *err) {
    const Json *j = json_get(line, key);
    if (!j || j->type != JSON_STRING) return fail(err, BAD_INPUT, "\"%s\" is %s, wanted a string", key, j ? json_type_name(j->type) : "missing");
    *out = (Slice){j->text, j->len};
    return true;
}

static void put_key(Bytes *out, const char *key) { bytes_printf(out, "%s\"%s\": ", out->len && out->at[out->len - 1] != '{' ? ", " : "", key); }

static void put_text(Bytes *out, const char *key, Slice text) {
    put_key(out, key);
    json_put_string(out, text.at, text.len);
}

/* ==== chunk: texts to requests =====================================================================================================
 * At most `limit` cl100k tokens each, as short of that as it takes to end at a full stop or a line's end. One after another they are the text. */

static const char instruction[] =
    "You shorten texts by leaving words out. You are given a text; give back a shorter one in which every word is copied from it.\n"
    "- Leave out what a reader can do without: fillers, courtesies, repetitions, articles, words that the rest implies.\n"
    "- Keep names, numbers, dates, units, negations, conditions, decisions, and whatever a question about the text might ask for.\n"
    "- The words that you keep stay in their order and are spelled as they are: none is changed, abbreviated, translated, moved or put in place of another.\n"
    "- Nothing is added: no word, mark or symbol that the text does not have, and no remark of yours.\n"
    "Leave out as much as you can while every fact of the text can still be told from what remains. Answer with the shortened text alone.";

static bool white(const Bytes *text, size_t at) {
    uint32_t code;
    return at == text->len || (utf8_decode(text->at + at, text->len - at, &code) && (unicode_flags(code) & UNICODE_SPACE));
}

/* Does a sentence or a line end right before `at`? Scripts that write no blank after their full stop need none. */
static bool sentence_ends(const Bytes *text, size_t at) {
    static const char *const wide[] = {"\n", "\xE3\x80\x82", "\xE0\xA5\xA4", "\xDB\x94"}; /* line feed, ideographic, Devanagari, Arabic full stop */
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) {
        const size_t n = strlen(wide[i]);
        if (at >= n && memcmp(text->at + at - n, wide[i], n) == 0) return true;
    }
    return at && text->at[at - 1] == '.' && white(text, at);
}

static bool word_ends(const Bytes *text, size_t at) { return white(text, at); }
static bool character_ends(const Bytes *text, size_t at) { return at == text->len || ((unsigned char)text->at[at] & 0xC0) != 0x80; }

/* Where the chunk that begins with token `first` ends: the best kind of end that there is, as late as it is. */
static size_t chunk_end(const Bytes *text, const Pieces *p, size_t first, size_t limit) {
    static bool (*const kinds[])(const Bytes *, size_t) = {sentence_ends, word_ends, character_ends};
    if (p->n - first <= limit) return p->n;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t end = first + limit; end > first; end--)
            if (kinds[k](text, p->end[end - 1])) return end;
    return first + limit;
}

static void put_request(const char *path, size_t number, const char *llm, Slice chunk, Bytes *out) {
    Bytes id = {0};
    bytes_printf(&id, "%s#%zu", strcmp(path, "-") ? path : "stdin", number);
    bytes_text(out, "{");
    put_text(out, "custom_id", (Slice){id.at, id.len});
    bytes_text(out, ", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {");
    put_text(out, "model", (Slice){llm, strlen(llm)});
    bytes_text(out, ", \"temperature\": 0, \"messages\": [{\"role\": \"system\"");
    put_text(out, "content", (Slice){instruction, sizeof instruction - 1});
    bytes_text(out, "}, {\"role\": \"user\"");
    put_text(out, "content", chunk);
    bytes_text(out, "}]}}\n");
    bytes_free(&id);
}

static bool chunk_text(const Tokenizer *counter, const char *path, size_t limit, const char *llm, Error *err) {
    Bytes text = {0}, out = {0};
    Pieces p = {0};
    bool ok = read_text(path, &text, err) && tokenizer_encode(counter, text.at, text.len, TOK_PLAIN, &p, err);
    for (size_t first = 0, end, number = 0; ok && first < p.n; first = end) {
        end = chunk_end(&text, &p, first, limit);
        size_t from = p.start[first], to = p.end[end - 1], seen = from;
        while (seen < to && white(&text, seen)) seen += (size_t)utf8_decode(text.at + seen, to - seen, &(uint32_t){0});
        if (seen < to) put_request(path, number++, llm, (Slice){text.at + from, to - from}, &out);
    }
    ok = ok && print_out(&out, err);
    pieces_free(&p);
    bytes_free(&text);
    bytes_free(&out);
    return ok;
}

/* ==== collect: answers to originals and compressions =============================================================================== */

typedef struct {
    Bytes id, origin, comp;
    size_t order; /* place among the requests */
} Pair;

typedef struct {
    Pair *at; /* sorted by id once all requests are read */
    size_t n, cap;
} Pairs;

static void pairs_free(Pairs *p) {
    for (size_t i = 0; i < p->n; i++) {
        bytes_free(&p->at[i].id);
        bytes_free(&p->at[i].origin);
        bytes_free(&p->at[i].comp);
    }
    free(p->at);
}

static int order_of(const Bytes *a, const Bytes *b) {
    const int order = memcmp(a->at, b->at, a->len < b->len ? a->len : b->len);
    return order ? order : (a->len > b->len) - (a->len < b->len);
}
static int by_id(const void *a, const void *b) { return order_of(&((const Pair *)a)->id, &((const Pair *)b)->id); }
static int by_order(const void *a, const void *b) { return ((const Pair *)a)->order < ((const Pair *)b)->order ? -1 : 1; }

/* A request as `chunk` writes it: the original is what the user says last. */
static bool take_request(void *to, const Json *line, const Bytes *text, Error *err) {
    Pairs *p = to;
    Slice id = {0}, origin = {0};
    const Json *messages = json_get(json_get(line, "body"), "messages");
    (void)text;
    if (!need_text(line, "custom_id", &id, err)) return false;
    for (size_t i = 0; messages && messages->type == JSON_ARRAY && i < messages->len; i++) {
        const Json *role = json_get(&messages->item[i], "role");
        if (role && role->type == JSON_STRING && strcmp(role->text, "user") == 0 && !need_text(&messages->item[i], "content", &origin, err)) return false;
    }
    if (!origin.at) return fail(err, BAD_INPUT, "\"body\" has no message of the user, so there is no original");
    if (p->n == p->cap) p->at = mem_resize(p->at, p->cap = p->cap ? p->cap * 2 : 64, sizeof *p->at);
    p->at[p->n] = (Pair){.order = p->n};
    bytes_add(&p->at[p->n].id, id.at, id.len);
    bytes_add(&p->at[p->n++].origin, origin.at, origin.len);
    return true;
}

static bool sort_requests(Pairs *p, const char *path, Error *err) {
    if (p->n) qsort(p->at, p->n, sizeof *p->at, by_id);
    for (size_t i = 1; i < p->n; i++)
        if (by_id(&p->at[i - 1], &p->at[i]) == 0) return fail(err, BAD_INPUT, "%s: two requests have the custom_id \"%.200s\"", path, p->at[i].id.at);
    return true;
}

/* What a service says went wrong: a string, or an object with a message. */
static bool service_error(const Json *error, const char *what, Error *err) {
    const Json *message = error && error->type == JSON_OBJECT ? json_get(error, "message") : error;
    const bool told = message && message->type == JSON_STRING;
    return fail(err, BAD_INPUT, "the service reports %s%s%.300s", what, told ? ": " : "", told ? message->text : "");
}

/* The text of a message: a string, or an array of parts whose texts follow one another. */
static bool message_text(const Json *content, Bytes *out) {
    if (content && content->type == JSON_STRING) return bytes_add(out, content->text, content->len), true;
    if (!content || content->type != JSON_ARRAY) return false;
    for (size_t i = 0; i < content->len; i++) {
        const Json *text = json_get(&content->item[i], "text");
        if (text && text->type == JSON_STRING) bytes_add(out, text->text, text->len);
    }
    return out->len > 0;
}

/* The answer in a line of batch output: in response.body as OpenAI writes it, or in response or the line itself as some servers do; the first of
 * its choices, as a chat's message or a completion's text. */
static bool answer_text(const Json *line, Bytes *out, Error *err) {
    const Json *error = json_get(line, "error"), *response = json_get(line, "response"), *body = json_get(response, "body"), *status = json_get(response, "status_code");
    if (error && error->type != JSON_NULL) return service_error(error, "an error", err);
    if (!body || body->type != JSON_OBJECT) body = response && response->type == JSON_OBJECT ? response : line;
    if (status && status->type == JSON_NUMBER && status->number != 200) {
        char what[40];
        snprintf(what, sizeof what, "status %.0f", status->number);
        return service_error(json_get(body, "error"), what, err);
    }
    const Json *choices = json_get(body, "choices");
    if (!choices || choices->type != JSON_ARRAY || !choices->len) return fail(err, BAD_INPUT, "there are no \"choices\" in the answer");
    const Json *choice = &choices->item[0], *reason = json_get(choice, "finish_reason"), *content = json_get(json_get(choice, "message"), "content");
    if (reason && reason->type == JSON_STRING && strcmp(reason->text, "stop"))
        return fail(err, BAD_INPUT, "the answer is not whole: its finish_reason is \"%.50s\"", reason->text);
    if (!message_text(content ? content : json_get(choice, "text"), out)) return fail(err, BAD_INPUT, "the answer's message has no text");
    return true;
}

static bool take_answer(void *to, const Json *line, const Bytes *text, Error *err) {
    const Pairs *p = to;
    Slice id = {0};
    Bytes answer = {0};
    (void)text;
    if (!need_text(line, "custom_id", &id, err)) return false;
    Pair key = {0};
    bytes_add(&key.id, id.at, id.len);
    Pair *pair = p->n ? bsearch(&key, p->at, p->n, sizeof *p->at, by_id) : NULL;
    bytes_free(&key.id);
    if (!pair) return fail(err, BAD_INPUT, "no request has the custom_id \"%.200s\"", id.at);
    if (pair->comp.at) return fail(err, BAD_INPUT, "a second answer to \"%.200s\"", id.at);
    bool ok = answer_text(line, &answer, err);
    size_t from = 0, end = answer.len;
    while (from < end && white(&answer, from)) from++;
    while (end > from && strchr(" \t\r\n", answer.at[end - 1])) end--;
    if (ok && from == end) ok = fail(err, BAD_INPUT, "the answer to \"%.200s\" is empty", id.at);
    if (ok) bytes_add(&pair->comp, answer.at + from, end - from);
    bytes_free(&answer);
    return ok;
}

/* In the order of the requests. */
static bool put_pairs(Pairs *p, Error *err) {
    Bytes out = {0};
    size_t unanswered = 0;
    if (p->n) qsort(p->at, p->n, sizeof *p->at, by_order);
    for (size_t i = 0; i < p->n; i++) {
        const Pair *pair = &p->at[i];
        if (!pair->comp.at) {
            fprintf(stderr, "lingua2: no usable answer to \"%.200s\"\n", pair->id.at);
            unanswered++;
            continue;
        }
        bytes_text(&out, "{");
        put_text(&out, "id", (Slice){pair->id.at, pair->id.len});
        put_text(&out, "origin", (Slice){pair->origin.at, pair->origin.len});
        put_text(&out, "comp", (Slice){pair->comp.at, pair->comp.len});
        bytes_text(&out, "}\n");
    }
    bool ok = print_out(&out, err);
    bytes_free(&out);
    return ok && (!unanswered || fail(err, BAD_INPUT, "%zu of %zu requests have no usable answer", unanswered, p->n));
}

/* ==== words and lemmas ============================================================================================================= */

/* A word: its lemma, and the bytes of the text it stands at. */
typedef struct {
    Bytes lemma;
    size_t start, end;
} Lemma;

typedef struct {
    Lemma *at;
    size_t n, cap;
    bool placed; /* start and end are known */
} Lemmas;

static void lemmas_free(Lemmas *w) {
    for (size_t i = 0; i < w->n; i++) bytes_free(&w->at[i].lemma);
    free(w->at);
    *w = (Lemmas){0};
}

static Lemma *lemmas_add(Lemmas *w, size_t start, size_t end) {
    if (w->n == w->cap) w->at = mem_resize(w->at, w->cap = w->cap ? w->cap * 2 : 256, sizeof *w->at);
    w->at[w->n] = (Lemma){.start = start, .end = end};
    return &w->at[w->n++];
}

/* str.lower(), but that a sigma is a sigma at the end of a word too: forms that Python calls equal are equal here. */
static void lower_text(Slice text, Bytes *out) {
    uint32_t code;
    for (size_t i = 0, n; i < text.len && (n = utf8_decode(text.at + i, text.len - i, &code)) > 0; i += n) {
        size_t len = 1;
        char utf8[4];
        const uint32_t *lower = unicode_lower(code, &len);
        for (size_t k = 0; k < len; k++) {
            const uint32_t c = lower ? lower[k] : code;
            bytes_add(out, utf8, utf8_encode(c == 0x3C2 ? 0x3C3 : c, utf8));
        }
    }
}

/* A table of forms and lemmas from a file: "form TAB lemma" a line. */
typedef struct {
    Bytes form, lemma;
} Entry;

typedef struct {
    Entry *at; /* sorted by form */
    size_t n;
} Lexicon;

static int by_entry(const void *a, const void *b) { return order_of(&((const Entry *)a)->form, &((const Entry *)b)->form); }

static void lexicon_free(Lexicon *l) {
    for (size_t i = 0; i < l->n; i++) {
        bytes_free(&l->at[i].form);
        bytes_free(&l->at[i].lemma);
    }
    free(l->at);
}

static bool lexicon_read(Lexicon *l, const char *path, Error *err) {
    Bytes text = {0};
    size_t cap = 0, number = 0;
    if (!read_text(path, &text, err)) return false;
    bool ok = true;
    for (char *at = text.at, *end = text.at + text.len, *next; ok && at < end; at = next + 1) {
        next = memchr(at, '\n', (size_t)(end - at));
        if (!next) next = end;
        size_t len = (size_t)(next - at);
        if (len && at[len - 1] == '\r') len--;
        const char *tab = memchr(at, '\t', len);
        number++;
        if (!len) continue;
        if (!tab || tab == at || tab == at + len - 1 || memchr(tab + 1, '\t', len - (size_t)(tab + 1 - at))) {
            ok = fail(err, BAD_INPUT, "%s: line %zu: wanted a form, a tab and its lemma", path, number);
            break;
        }
        if (l->n == cap) l->at = mem_resize(l->at, cap = cap ? cap * 2 : 1024, sizeof *l->at);
        Entry *e = &l->at[l->n++];
        *e = (Entry){0};
        bytes_add(&e->form, at, (size_t)(tab - at));
        bytes_add(&e->lemma, tab + 1, (size_t)(at + len - tab - 1));
    }
    bytes_free(&text);
    if (ok && l->n) qsort(l->at, l->n, sizeof *l->at, by_entry);
    for (size_t i = 1; ok && i < l->n; i++)
        if (order_of(&l->at[i - 1].form, &l->at[i].form) == 0) ok = fail(err, BAD_INPUT, "%s: the form '%.100s' is there twice", path, l->at[i].form.at);
    return ok;
}

/* The lemma of a word: as the lexicon has the word or its lower case; a word that it lacks is its own lemma. Without a lexicon, English;
 * a word that stays as it is keeps its capitals (a name, say). */
static void find_lemma(const Lexicon *l, Slice word, Bytes *out) {
    Entry key = {0};
    const Entry *e = NULL;
    if (l) {
        bytes_add(&key.form, word.at, word.len);
        e = l->n ? bsearch(&key, l->at, l->n, sizeof *l->at, by_entry) : NULL;
    }
    bytes_free(&key.form);
    lower_text(word, &key.form);
    if (l && l->n && !e) e = bsearch(&key, l->at, l->n, sizeof *l->at, by_entry);
    if (e) bytes_add(out, e->lemma.at, e->lemma.len);
    else if (l) bytes_add(out, word.at, word.len);
    else {
        bytes_add(out, key.form.at, key.form.len);
        lemma_english(out);
        if (order_of(out, &key.form) == 0) bytes_set(out, word.at, word.len);
    }
    bytes_free(&key.form);
}

static void split_words(Slice text, const Lexicon *l, Lemmas *out) {
    out->placed = true;
    for (Span w = {0}; next_word(text.at, text.len, w.end, &w);) find_lemma(l, (Slice){text.at + w.start, w.end - w.start}, &lemmas_add(out, w.start, w.end)->lemma);
}

/* Words that the line brings itself, split and lemmatised by another tool. */
static bool given_words(const Json *list, const char *key, Lemmas *out, Error *err) {
    if (list->type != JSON_ARRAY) return fail(err, BAD_INPUT, "\"%s\" is %s, wanted an array of strings", key, json_type_name(list->type));
    for (size_t i = 0; i < list->len; i++) {
        const Json *word = &list->item[i];
        if (word->type != JSON_STRING) return fail(err, BAD_INPUT, "\"%s\" holds %s, wanted strings alone", key, json_type_name(word->type));
        bytes_add(&lemmas_add(out, 0, 0)->lemma, word->text, word->len);
    }
    return true;
}

/* ==== annotate: which words of the original stand in the compression ================================================================
 * The same labels as the authors' script gives for the same words. */

/* Label each word of the compression's in the original: the nearest free equal word, forward before backward at each distance below the window, from
 * where the last one was found. After a step forward of more than half a window the search moves half a window only. */
static void label_words(const size_t *origin, size_t n, const size_t *comp, size_t k, size_t window, bool *label) {
    for (size_t c = 0, previous = 0; c < k; c++)
        for (size_t i = 0; i < window; i++) {
            const size_t forward = previous + i < n ? previous + i : n - 1, backward = previous > i ? previous - i : 0;
            if (origin[forward] == comp[c] && !label[forward]) {
                label[forward] = true;
                previous = forward > previous + window / 2 ? previous + window / 2 : forward;
                break;
            }
            if (origin[backward] == comp[c] && !label[backward]) {
                label[backward] = true;
                previous = backward;
                break;
            }
        }
}

/* Words that are equal in lower case get the same number. */
typedef struct {
    Bytes lower;
    size_t place;
} Form;
static int by_lower(const void *a, const void *b) { return order_of(&((const Form *)a)->lower, &((const Form *)b)->lower); }

static size_t *number_words(const Lemmas *origin, const Lemmas *comp) {
    const size_t n = origin->n, all = n + comp->n;
    Form *form = mem_new(all, sizeof *form);
    size_t *number = mem_new(all, sizeof *number), next = 0;
    for (size_t i = 0; i < all; i++) {
        const Bytes *lemma = i < n ? &origin->at[i].lemma : &comp->at[i - n].lemma;
        lower_text((Slice){lemma->at, lemma->len}, &form[i].lower);
        bytes_add(&form[i].lower, "", 0);
        form[i].place = i;
    }
    if (all) qsort(form, all, sizeof *form, by_lower);
    for (size_t i = 0; i < all; i++) {
        next += i && by_lower(&form[i - 1], &form[i]) != 0;
        number[form[i].place] = next;
    }
    for (size_t i = 0; i < all; i++) bytes_free(&form[i].lower);
    free(form);
    return number;
}

typedef struct {
    bool *label; /* [n], a word of the original is worth keeping */
    double comp_rate, variation_rate, hitting_rate, matching_rate, alignment_gap;
} Annotation;

static Annotation annotate(const Lemmas *origin, const Lemmas *comp, size_t window) {
    const size_t n = origin->n, k = comp->n;
    Annotation a = {.label = mem_new(n, sizeof *a.label)};
    size_t *number = number_words(origin, comp), found = 0, labelled = 0;
    bool *there = mem_new(n + k, sizeof *there);
    for (size_t i = 0; i < n; i++) there[number[i]] = true;
    for (size_t i = n; i < n + k; i++) found += there[number[i]];
    label_words(number, n, number + n, k, window, a.label);
    for (size_t i = 0; i < n; i++) labelled += a.label[i];
    a.comp_rate = (double)k / (double)n;
    a.variation_rate = 1 - (k ? (double)found / (double)k : 0);
    a.hitting_rate = (double)found / (double)n;
    a.matching_rate = (double)labelled / (double)n;
    a.alignment_gap = a.hitting_rate - a.matching_rate;
    free(number);
    free(there);
    return a;
}

static void put_number(Bytes *out, const char *key, double x) {
    put_key(out, key);
    json_put_double(out, x);
}

/* What the line brought, then what we found. */
static void put_annotation(const Json *line, const Lemmas *words, const Annotation *a, Bytes *out) {
    static const char *const ours[] = {"origin_words", "comp_words", "words", "spans", "labels", "comp_rate", "variation_rate", "hitting_rate", "matching_rate", "alignment_gap"};
    bytes_text(out, "{");
    for (size_t i = 0; i < line->len; i++) {
        size_t k = 0;
        while (k < sizeof ours / sizeof *ours && strcmp(ours[k], line->key[i])) k++;
        if (k < sizeof ours / sizeof *ours) continue;
        if (i) bytes_text(out, ", ");
        json_put_string(out, line->key[i], line->key_len[i]);
        bytes_text(out, ": ");
        json_put(out, &line->item[i]);
    }
    put_key(out, "words");
    for (size_t i = 0; i < words->n; i++) {
        bytes_text(out, i ? ", " : "[");
        json_put_string(out, words->at[i].lemma.at, words->at[i].lemma.len);
    }
    bytes_text(out, "]");
    if (words->placed) {
        put_key(out, "spans");
        for (size_t i = 0; i < words->n; i++) bytes_printf(out, "%s[%zu, %zu]", i ? ", " : "[", words->at[i].start, words->at[i].end);
        bytes_text(out, "]");
    }
    put_key(out, "labels");
    for (size_t i = 0; i < words->n; i++) bytes_printf(out, "%s%s", i ? ", " : "[", a->label[i] ? "true" : "false");
    bytes_text(out, "]");
    put_number(out, "comp_rate", a->comp_rate);
    put_number(out, "variation_rate", a->variation_rate);
    put_number(out, "hitting_rate", a->hitting_rate);
    put_number(out, "matching_rate", a->matching_rate);
    put_number(out, "alignment_gap", a->alignment_gap);
    bytes_text(out, "}\n");
}

typedef struct {
    const Lexicon *lexicon; /* NULL: English by rules */
    size_t window;
} Annotator;

static bool take_pair(void *to, const Json *line, const Bytes *text, Error *err) {
    const Annotator *how = to;
    const Json *origin_list = json_get(line, "origin_words"), *comp_list = json_get(line, "comp_words");
    Slice origin = {0}, comp = {0};
    Lemmas origin_words = {0}, comp_words = {0};
    Bytes out = {0};
    (void)text;
    if (!need_text(line, "origin", &origin, err) || !need_text(line, "comp", &comp, err)) return false;
    if (!origin_list != !comp_list) return fail(err, BAD_INPUT, "\"origin_words\" and \"comp_words\" come together or not at all");
    bool ok = true;
    if (origin_list) ok = given_words(origin_list, "origin_words", &origin_words, err) && given_words(comp_list, "comp_words", &comp_words, err);
    else {
        split_words(origin, how->lexicon, &origin_words);
        split_words(comp, how->lexicon, &comp_words);
    }
    if (ok && !origin_words.n) ok = fail(err, BAD_INPUT, "the original has no words");
    if (ok) {
        const Annotation a = annotate(&origin_words, &comp_words, how->window);
        put_annotation(line, &origin_words, &a, &out);
        free(a.label);
        ok = print_out(&out, err);
    }
    bytes_free(&out);
    lemmas_free(&origin_words);
    lemmas_free(&comp_words);
    return ok;
}

/* ==== filter: without the worst tenth, twice ======================================================================================= */

typedef struct {
    Texts line;
    double *variation, *gap;
    size_t cap;
} Annotated;

static bool need_number(const Json *line, const char *key, double *out, Error *err) {
    const Json *j = json_get(line, key);
    if (!j || j->type != JSON_NUMBER) return fail(err, BAD_INPUT, "\"%s\" is %s, wanted a number, as annotate writes it", key, j ? json_type_name(j->type) : "missing");
    *out = j->number;
    return true;
}

static bool take_annotated(void *to, const Json *line, const Bytes *text, Error *err) {
    Annotated *a = to;
    double variation = 0, gap = 0;
    if (!need_number(line, "variation_rate", &variation, err) || !need_number(line, "alignment_gap", &gap, err)) return false;
    if (a->line.n == a->cap) {
        a->cap = a->cap ? a->cap * 2 : 256;
        a->variation = mem_resize(a->variation, a->cap, sizeof *a->variation);
        a->gap = mem_resize(a->gap, a->cap, sizeof *a->gap);
    }
    a->variation[a->line.n] = variation;
    a->gap[a->line.n] = gap;
    texts_add(&a->line, text->at, text->len);
    return true;
}

/* Keep those whose value is below the 90th percentile of the values of all that are kept so far; returns it. A text without fault (value 0) stays even
 * where the percentile is 0: the authors' script, made for data that is never that good, would drop it and everything else. */
static double drop_worst(const double *value, bool *keep, size_t n) {
    double *sorted = mem_new(n, sizeof *sorted), threshold = 0;
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (keep[i]) sorted[kept++] = value[i];
    if (kept) threshold = percentile(sorted, kept, 90, false);
    for (size_t i = 0; i < n; i++) keep[i] = keep[i] && (value[i] < threshold || value[i] <= 0);
    free(sorted);
    return threshold;
}

static size_t count_true(const bool *b, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += b[i];
    return count;
}

static bool put_kept(const Annotated *a, bool quiet, Error *err) {
    const size_t n = a->line.n;
    bool *keep = mem_new(n, sizeof *keep);
    Bytes out = {0}, report = {0};
    for (size_t i = 0; i < n; i++) keep[i] = true;
    bytes_text(&report, "{");
    put_number(&report, "variation_rate", drop_worst(a->variation, keep, n));
    bytes_printf(&report, ", \"below\": %zu", count_true(keep, n));
    put_number(&report, "alignment_gap", drop_worst(a->gap, keep, n));
    bytes_printf(&report, ", \"kept\": %zu, \"of\": %zu}\n", count_true(keep, n), n);
    for (size_t i = 0; i < n; i++) {
        if (!keep[i]) continue;
        bytes_add(&out, a->line.at[i].at, a->line.at[i].len);
        bytes_text(&out, "\n");
    }
    bool ok = print_out(&out, err);
    if (ok && !quiet) fputs(report.at, stderr);
    bytes_free(&out);
    bytes_free(&report);
    free(keep);
    return ok;
}

/* ==== commands ==================================================================================================================== */

bool command_chunk(Common *c, int argc, char **argv) {
    Bytes llm = {0}, path = {0};
    double tokens = 512;
    bool done = false;
    const CliOption own[] = {{"tokens", "N", CLI_WHOLE, &tokens, 16, 1e6, "cl100k tokens of a chunk at most (default 512)"},
                             {"llm", "NAME", CLI_TEXT, &llm, 0, 0, "the language model that the requests name (default gpt-4o)"}};
    Weights *w = NULL;
    Tokenizer *counter = NULL;
    bool ok = command_start(c, "usage: lingua2 chunk [options] [FILE...|-]\nTexts to requests for a language model that shortens them: JSON lines for an OpenAI-style batch service.", own, 2,
                            argc, argv, &done);
    for (size_t i = 0; ok && !done && i < c->file.n; i++)
        for (size_t k = 0; ok && k < i; k++)
            if (strcmp(c->file.at[i].at, c->file.at[k].at) == 0) ok = fail(c->err, BAD_USAGE, "%s is there twice: its requests would have the same custom_id", c->file.at[i].at);
    if (ok && !done) {
        models_path(c, "cl100k_base.safetensors", &path);
        ok = open_tokenizer_file(path.at, &w, &counter, c->err);
        for (size_t i = 0; ok && i < (c->file.n ? c->file.n : 1); i++)
            ok = chunk_text(counter, c->file.n ? c->file.at[i].at : "-", (size_t)tokens, llm.at ? llm.at : "gpt-4o", c->err);
    }
    tokenizer_close(counter);
    if (counter) weights_close(w);
    bytes_free(&llm);
    bytes_free(&path);
    return ok;
}

bool command_collect(Common *c, int argc, char **argv) {
    Bytes path = {0};
    bool done = false;
    const CliOption own[] = {{"requests", "FILE", CLI_TEXT, &path, 0, 0, "what chunk wrote (needed)"}};
    Pairs pairs = {0};
    Texts requests = {0};
    bool ok = command_start(c, "usage: lingua2 collect --requests FILE [options] [ANSWERS...|-]\nThe answers of a batch service, matched with their requests: JSON lines with id, origin, comp.", own, 1,
                            argc, argv, &done);
    if (ok && !done && !path.at) ok = fail(c->err, BAD_USAGE, "collect needs --requests FILE, the requests that were answered");
    if (ok && !done) {
        texts_add(&requests, path.at, path.len);
        ok = each_line(&requests, false, take_request, &pairs, c->err) && sort_requests(&pairs, path.at, c->err);
        if (ok) {
            const bool all = each_line(&c->file, true, take_answer, &pairs, c->err);
            Error missing = {0};
            ok = all || c->err->code == BAD_INPUT;
            ok = ok && put_pairs(&pairs, all ? c->err : &missing) && all;
        }
    }
    pairs_free(&pairs);
    texts_free(&requests);
    bytes_free(&path);
    return ok;
}

bool command_annotate(Common *c, int argc, char **argv) {
    Bytes path = {0};
    double window = 150;
    bool done = false;
    const CliOption own[] = {{"lemmas", "FILE", CLI_TEXT, &path, 0, 0, "lemmas of words, \"form TAB lemma\" a line (default: English, by rules)"},
                             {"window", "N", CLI_WHOLE, &window, 1, 1e6, "how far from the last match a word is looked for (default 150)"}};
    Lexicon lexicon = {0};
    bool ok = command_start(c, "usage: lingua2 annotate [options] [FILE...|-]\nJSON lines with origin and comp -> the same with words, labels and how well the two fit.", own, 2, argc, argv, &done);
    if (ok && !done) {
        Annotator how = {path.at ? &lexicon : NULL, (size_t)window};
        ok = (!path.at || lexicon_read(&lexicon, path.at, c->err)) && each_line(&c->file, true, take_pair, &how, c->err);
    }
    lexicon_free(&lexicon);
    bytes_free(&path);
    return ok;
}

bool command_filter(Common *c, int argc, char **argv) {
    Annotated a = {0};
    bool done = false;
    bool ok = command_start(c, "usage: lingua2 filter [options] [FILE...|-]\nAnnotated lines without the worst: first by variation rate, then by alignment gap, each below its 90th percentile.", NULL, 0,
                            argc, argv, &done);
    if (ok && !done) ok = each_line(&c->file, false, take_annotated, &a, c->err);
    if (ok && !done) ok = a.line.n ? put_kept(&a, c->quiet, c->err) : fail(c->err, BAD_INPUT, "there are no lines to filter");
    texts_free(&a.line);
    free(a.variation);
    free(a.gap);
    return ok;
}
