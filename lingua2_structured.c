/* lingua2_structured.c - texts whose parts have rates of their own: <llmlingua> tags in a text, and JSON with a rate for each key.
 *
 *   This goes, <llmlingua, rate=0.3>this goes mostly</llmlingua>, <llmlingua, compress=False>this stays byte for byte</llmlingua>.
 *
 * Both become a context and its segments, which stand in it side by side from its first byte to its last. The classifier reads the context whole, so that
 * every word is judged in the light of all others; each segment then has a budget of its own. What is in no tag, or in a tag without a rate, has
 * the request's rate.
 */
#include "lingua2.h"

#include <stdlib.h>
#include <string.h>

/* ==== tags ======================================================================================================================== */

static const char opening[] = "<llmlingua", closing[] = "</llmlingua";

static bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static size_t skip_blanks(const Bytes *text, size_t at) {
    while (at < text->len && is_blank(text->at[at])) at++;
    return at;
}

/* The length of `name` if a tag of that name begins at text[at] ("<llmlinguas" is text), else 0. */
static size_t tag_at(const Bytes *text, size_t at, const char *name) {
    const size_t len = strlen(name);
    if (text->len - at < len || memcmp(text->at + at, name, len)) return 0;
    const char next = at + len < text->len ? text->at[at + len] : '>';
    return next == ',' || next == '>' || is_blank(next) ? len : 0;
}

/* What the attribute at text[at..end) says; the name ends at `equals`. */
static bool read_attribute(const Bytes *text, size_t at, size_t equals, size_t end, bool seen[2], double *rate, bool *compress, Error *err) {
    static const char *const name[] = {"rate", "compress"};
    size_t name_end = equals, value = skip_blanks(text, equals + 1), which = 0;
    while (name_end > at && is_blank(text->at[name_end - 1])) name_end--;
    while (end > value && is_blank(text->at[end - 1])) end--;
    while (which < 2 && !(strlen(name[which]) == name_end - at && memcmp(name[which], text->at + at, name_end - at) == 0)) which++;
    const Slice v = {text->at + value, end > value ? end - value : 0};
    if (which == 2) return fail(err, BAD_INPUT, "byte %zu: a <llmlingua> tag has rate and compress, no '%.*s'", at, (int)(name_end - at > 50 ? 50 : name_end - at), text->at + at);
    if (seen[which]) return fail(err, BAD_INPUT, "byte %zu: %s stands twice in this <llmlingua> tag", at, name[which]);
    seen[which] = true;
    if (which == 1) {
        *compress = v.len == 4;
        if ((v.len == 4 && (memcmp(v.at, "True", 4) == 0 || memcmp(v.at, "true", 4) == 0)) || (v.len == 5 && (memcmp(v.at, "False", 5) == 0 || memcmp(v.at, "false", 5) == 0))) return true;
        return fail(err, BAD_INPUT, "byte %zu: compress is True or False", value);
    }
    Bytes digits = {0};
    bytes_add(&digits, v.at, v.len);
    const bool ok = cli_number(digits.at, digits.len, rate) && *rate > 0 && *rate <= 1;
    bytes_free(&digits);
    return ok || fail(err, BAD_INPUT, "byte %zu: rate is a number above 0, at most 1; to drop a text leave it out, to keep it say compress=False", value);
}

/* The attributes of the opening tag at text[at], from behind its name; *end is behind its ">". */
static bool read_opening(const Bytes *text, size_t at, size_t *end, Segment *s, Error *err) {
    bool seen[2] = {false, false}, compress = true;
    size_t i = at + strlen(opening);
    s->rate = -1;
    while ((i = skip_blanks(text, i)) < text->len && text->at[i] != '>') {
        if (text->at[i] != ',') return fail(err, BAD_INPUT, "byte %zu: a comma stands before each attribute of a tag: <llmlingua, rate=0.5>", i);
        const size_t from = skip_blanks(text, i + 1);
        size_t equals = from;
        while (equals < text->len && !strchr("=,<>", text->at[equals])) equals++;
        if (equals == text->len || text->at[equals] != '=') return fail(err, BAD_INPUT, "byte %zu: an attribute of a tag is rate=NUMBER or compress=True or False", from);
        for (i = equals + 1; i < text->len && !strchr("=,<>", text->at[i]); i++) {}
        if (!read_attribute(text, from, equals, i, seen, &s->rate, &compress, err)) return false;
    }
    if (i >= text->len) return fail(err, BAD_INPUT, "byte %zu: this <llmlingua> tag has no '>'", at);
    if (!compress) s->rate = 1;
    *end = i + 1;
    return true;
}

static void add_segment(Segments *s, size_t start, size_t end, size_t origin, double rate) {
    if (start == end) return;
    if (s->n == s->cap) s->at = mem_resize(s->at, s->cap = s->cap ? s->cap * 2 : 8, sizeof *s->at);
    s->at[s->n++] = (Segment){start, end, origin, rate};
}

void segments_free(Segments *s) {
    free(s->at);
    *s = (Segments){0};
}

/* The next tag at or behind text[at], text->len if there is none; *name is its kind. */
static size_t next_tag(const Bytes *text, size_t at, const char **name) {
    for (; at < text->len; at++) {
        if (text->at[at] != '<') continue;
        if (tag_at(text, at, *name = opening) || tag_at(text, at, *name = closing)) break;
    }
    return at;
}

bool tags_read(const Bytes *text, Bytes *plain, Segments *segments, Error *err) {
    Segment open = {.rate = -1};
    size_t opened = SIZE_MAX, done = 0;
    bool ok = true;
    bytes_add(plain, "", 0);
    while (ok) {
        const char *name = NULL;
        const size_t tag = next_tag(text, done, &name), start = plain->len;
        bytes_add(plain, text->len ? text->at + done : "", tag - done);
        add_segment(segments, start, plain->len, done, opened == SIZE_MAX ? -1 : open.rate);
        if (tag == text->len) break;
        if (name == opening) {
            if (opened != SIZE_MAX) ok = fail(err, BAD_INPUT, "byte %zu: a <llmlingua> tag inside the one that begins at byte %zu; they do not nest", tag, opened);
            ok = ok && read_opening(text, tag, &done, &open, err);
            opened = tag;
        } else {
            const size_t end = skip_blanks(text, tag + strlen(closing));
            if (opened == SIZE_MAX) ok = fail(err, BAD_INPUT, "byte %zu: </llmlingua> closes nothing", tag);
            else if (end == text->len || text->at[end] != '>') ok = fail(err, BAD_INPUT, "byte %zu: this </llmlingua> tag has no '>'", tag);
            opened = SIZE_MAX;
            done = end + 1;
        }
    }
    if (ok && opened != SIZE_MAX) ok = fail(err, BAD_INPUT, "byte %zu: this <llmlingua> tag is never closed by </llmlingua>", opened);
    if (!ok) {
        bytes_free(plain);
        segments_free(segments);
    }
    return ok;
}

/* ==== segments under compression ==================================================================================================
 * Each segment is a document of its own, but for its probabilities: those are the whole's. */

/* What the segments of a context have made so far. */
typedef struct {
    const Document *whole; /* all contexts, through the classifier */
    const float *p;        /* [whole->piece.n] */
    size_t context;
    size_t end; /* in the whole's text, where the last kept word ends; SIZE_MAX: none is kept yet */
    Bytes text;
} Assembly;

/* p [part->piece.n]: a piece of the part has the probability of the piece of the whole that stands at its first byte. */
static float *lend_probabilities(const Assembly *a, size_t from, const Document *part) {
    const Pieces *all = &a->whole->piece;
    float *p = mem_new(part->piece.n, sizeof *p);
    for (size_t i = 0, k = 0; i < part->piece.n; i++) {
        while (k + 1 < all->n && all->end[k] <= from + part->piece.start[i]) k++;
        p[i] = all->n ? a->p[k] : 0;
    }
    return p;
}

/* Append what a segment made of itself; its first kept word stands at `next` of the whole's text. White space is left between kept words as within a
 * segment, unless one side has it already. */
static void append_part(Assembly *a, size_t next, const Bytes *text) {
    const char *source = a->whole->text.at;
    size_t blanks = 0, breaks = 0;
    uint32_t first = 0;
    utf8_decode(source + next, a->whole->text.len - next, &first);
    const bool own = a->end == SIZE_MAX || is_blank(a->text.at[a->text.len - 1]) || is_blank(text->at[0]) || (next > a->end && is_closing(first) && !is_blank(source[next - 1]));
    for (size_t i = a->end; !own && i < next; i++) blanks += is_blank(source[i]), breaks += source[i] == '\n';
    if (blanks) bytes_text(&a->text, breaks > 1 ? "\n\n" : breaks ? "\n" : " ");
    bytes_add(&a->text, text->at, text->len);
}

/* Append a segment's words to all, at their place in the text that came in. */
static void append_words(const Assembly *a, const Segment *s, const Result *part, Result *all) {
    all->word = mem_resize(all->word, all->words + part->words, sizeof *all->word);
    for (size_t i = 0; i < part->words; i++) {
        Label *l = &all->word[all->words++];
        *l = part->word[i];
        l->start += s->origin;
        l->end += s->origin;
        l->context = a->context;
    }
}

/* The words as one text, as the request wants them. */
static void put_labels(const Request *r, Result *out) {
    for (size_t i = 0; out->has_labels && i < out->words; i++) {
        const Label *l = &out->word[i];
        if (i) bytes_add(&out->labels, r->word_sep.at, r->word_sep.len);
        bytes_add(&out->labels, r->context.at[l->context].at + l->start, l->end - l->start);
        bytes_add(&out->labels, r->label_sep.at, r->label_sep.len);
        bytes_text(&out->labels, l->kept ? "1" : "0");
    }
}

/* Compress a segment, by the request r that holds it alone. */
static bool add_part(Assembly *a, const Request *r, const Segment *s, Result *all, Texts *parts, Error *err) {
    const size_t from = a->whole->context[a->context].start + s->start;
    Document d = {0};
    Result part = {0};
    float *p = NULL;
    bool ok = document_open(a->whole->m, a->whole->counter, r, &d, err);
    if (ok) d.given = p = lend_probabilities(a, from, &d);
    ok = ok && document_compress(&d, &part, err);
    size_t first = SIZE_MAX, end = 0;
    for (size_t i = 0; i < part.words; i++) {
        if (!part.word[i].kept) continue;
        if (first == SIZE_MAX) first = part.word[i].start;
        end = part.word[i].end;
    }
    if (ok) {
        if (first != SIZE_MAX) append_part(a, from + first, &part.prompt), a->end = from + end;
        else bytes_add(&a->text, part.prompt.at, part.prompt.len); /* white space, kept as it is, or nothing */
        append_words(a, s, &part, all);
        all->budget += part.budget;
        all->compressed_tokens += part.compressed_tokens;
        if (parts) texts_add(parts, part.prompt.at, part.prompt.len);
    }
    free(p);
    document_close(&d);
    result_free(&part);
    return ok;
}

/* The request for a segment alone. */
static Request part_request(const Request *r, const Segment *s, Slice text, size_t origin_tokens) {
    Request q = request_copy(r);
    texts_add(&q.context, text.at, text.len);
    q.return_word_label = true;
    q.use_context_level_filter = q.only_if_smaller = false;
    q.target_token = -1;
    if (s->rate >= 0) q.rate = s->rate, q.threshold = -1;
    else if (r->target_token >= 1) q.rate = r->target_token < (double)origin_tokens ? r->target_token / (double)origin_tokens : 1;
    return q;
}

/* Context c's segments. parts: the text of each, or NULL. */
static bool compress_context(Assembly *a, const Request *r, const Segments *s, Result *all, Texts *parts, Error *err) {
    const size_t start = a->whole->context[a->context].start;
    bool ok = true;
    bytes_add(&a->text, "", 0);
    for (size_t i = 0; ok && i < s->n; i++) {
        Request q = part_request(r, &s->at[i], (Slice){a->whole->text.at + start + s->at[i].start, s->at[i].end - s->at[i].start}, a->whole->origin_tokens);
        ok = add_part(a, &q, &s->at[i], all, parts, err);
        request_free(&q);
    }
    return ok;
}

/* The contexts of r, segment by segment; s [contexts]. parts: the text of each segment, empty in contexts that the context filter drops (kept[c] false). */
static bool compress_segments(const Model *m, const Tokenizer *counter, const Request *r, const Segments *s, Result *out, Texts *parts, bool *kept, Error *err) {
    Document whole = {0};
    *out = (Result){.has_labels = r->return_word_label};
    bool ok = document_open(m, counter, r, &whole, err) && (r->baseline.len || classify_chunks(m, whole.chunk, whole.chunks, err)) && document_rank(&whole, 0, err);
    float *p = ok ? document_probabilities(&whole) : NULL;
    bytes_add(&out->prompt, "", 0);
    for (size_t c = 0; ok && c < whole.contexts; c++) {
        Assembly a = {.whole = &whole, .p = p, .context = c, .end = SIZE_MAX};
        if (kept) kept[c] = whole.reserve[c];
        if (whole.reserve[c]) ok = compress_context(&a, r, &s[c], out, parts, err);
        else
            for (size_t i = 0; parts && i < s[c].n; i++) texts_add(parts, "", 0);
        if (ok && whole.reserve[c]) {
            if (out->context.n) bytes_text(&out->prompt, "\n\n");
            bytes_add(&out->prompt, a.text.at, a.text.len);
            texts_add(&out->context, a.text.at, a.text.len);
        }
        bytes_free(&a.text);
    }
    out->origin_tokens = whole.origin_tokens;
    if (ok && whole.counting != COUNT_WORDS) ok = document_tokens(&whole, out->prompt.at, out->prompt.len, &out->compressed_tokens, err);
    free(p);
    document_close(&whole);
    if (!ok) result_free(out), *out = (Result){0};
    return ok;
}

/* The contexts as they came. */
static void give_back(const Request *r, Result *out) {
    texts_copy(&out->context, &r->context);
    out->prompt.len = 0;
    for (size_t c = 0; c < r->context.n; c++) {
        if (c) bytes_text(&out->prompt, "\n\n");
        bytes_add(&out->prompt, r->context.at[c].at, r->context.at[c].len);
    }
    for (size_t i = 0; i < out->words; i++) out->word[i].kept = true;
    out->compressed_tokens = out->origin_tokens;
}

bool compress_tags(const Model *m, const Tokenizer *counter, const Request *r, Result *out, Error *err) {
    Request plain = request_copy(r);
    Segments *s = mem_new(r->context.n, sizeof *s);
    bool ok = true;
    for (size_t c = 0; ok && c < r->context.n; c++) {
        Bytes text = {0};
        Error detail;
        ok = tags_read(&r->context.at[c], &text, &s[c], &detail);
        if (ok) texts_add(&plain.context, text.at, text.len);
        else if (r->context.n == 1) *err = detail;
        else fail(err, detail.code, "context %zu: %.900s", c, detail.text);
        bytes_free(&text);
    }
    ok = ok && compress_segments(m, counter, &plain, s, out, NULL, NULL, err);
    if (ok && r->only_if_smaller && out->compressed_tokens >= out->origin_tokens) give_back(&plain, out);
    if (ok) put_labels(r, out);
    for (size_t c = 0; c < r->context.n; c++) segments_free(&s[c]);
    free(s);
    request_free(&plain);
    return ok;
}

/* ==== JSON ========================================================================================================================
 * Each pair of the object is a context: its key, and what its value says, the strings of the value being segments. So the classifier sees no braces and no
 * escapes, and whatever becomes of a string, the document around it stays JSON. */

/* A string of the document and the segment it became. */
typedef struct {
    Json *string;
    size_t part;
} Leaf;

typedef struct {
    Request request;    /* a context for each pair */
    Segments *segments; /* [pairs] */
    Leaf *leaf;
    size_t leaves, cap, parts;
} Plan;

/* What is to become of one key. */
typedef struct {
    double rate;
    bool removable;
} Treatment;

static const struct {
    const char *name, *means;
} value_types[] = {{"str", "s"}, {"string", "s"}, {"int", "i"}, {"integer", "i"}, {"float", "n"}, {"number", "n"}, {"bool", "b"}, {"boolean", "b"},
                   {"list", "a"}, {"List", "a"}, {"tuple", "a"}, {"set", "a"}, {"dict", "o"}, {"dictionary", "o"}};

/* Is the value of this type? null is of every type. */
static bool has_type(const Json *value, char type) {
    switch (value->type) {
    case JSON_NULL: return true;
    case JSON_STRING: return type == 's';
    case JSON_NUMBER: return type == 'n' || (type == 'i' && strspn(value->text, "-0123456789") == value->len);
    case JSON_ARRAY: return type == 'a';
    case JSON_OBJECT: return type == 'o';
    default: return type == 'b';
    }
}

static bool read_rate(const char *key, const Json *j, double *rate, Error *err) {
    if (!j || j->type == JSON_NULL) return true;
    if (j->type != JSON_NUMBER || !(j->number > 0 && j->number <= 1)) return fail(err, BAD_INPUT, "key \"%.100s\": rate is a number above 0, at most 1", key);
    return *rate = j->number, true;
}

static bool read_flag(const char *key, const char *name, const Json *j, bool *flag, Error *err) {
    if (!j) return true;
    if (j->type != JSON_TRUE && j->type != JSON_FALSE) return fail(err, BAD_INPUT, "key \"%.100s\": %s is true or false", key, name);
    return *flag = j->type == JSON_TRUE, true;
}

static bool read_type(const char *key, const Json *j, const Json *value, Error *err) {
    size_t i = 0;
    if (!j) return true;
    while (i < sizeof value_types / sizeof *value_types && !(j->type == JSON_STRING && strcmp(j->text, value_types[i].name) == 0)) i++;
    if (i == sizeof value_types / sizeof *value_types) return fail(err, BAD_INPUT, "key \"%.100s\": value_type is str, int, float, bool, list, tuple, set or dict", key);
    return has_type(value, value_types[i].means[0]) || fail(err, BAD_INPUT, "key \"%.100s\": value_type is %s, but the value is %s", key, j->text, json_type_name(value->type));
}

static bool read_treatment(const Json *config, const char *key, const Json *value, Treatment *t, Error *err) {
    const Json *entry = json_get(config, key);
    bool compress = true;
    *t = (Treatment){.rate = -1};
    if (!entry) return fail(err, BAD_INPUT, "key \"%.100s\" has no entry in the configuration; to leave its value as it is: {\"compress\": false}", key);
    if (entry->type != JSON_OBJECT) return fail(err, BAD_INPUT, "key \"%.100s\": its entry in the configuration is %s, not an object", key, json_type_name(entry->type));
    for (size_t i = 0; i < entry->len; i++)
        if (strcmp(entry->key[i], "rate") && strcmp(entry->key[i], "compress") && strcmp(entry->key[i], "value_type") && strcmp(entry->key[i], "pair_remove"))
            return fail(err, BAD_INPUT, "key \"%.100s\": \"%.100s\" is none of rate, compress, value_type, pair_remove", key, entry->key[i]);
    const bool ok = read_rate(key, json_get(entry, "rate"), &t->rate, err) && read_flag(key, "compress", json_get(entry, "compress"), &compress, err) &&
                    read_flag(key, "pair_remove", json_get(entry, "pair_remove"), &t->removable, err) && read_type(key, json_get(entry, "value_type"), value, err);
    if (!compress) t->rate = 1;
    return ok;
}

/* Append what a value says: strings as they are, items a line each, "key: " before the values of keys. */
static void put_value(Plan *plan, Segments *s, Bytes *text, Json *value, double rate) {
    const size_t start = text->len;
    if (value->type == JSON_STRING) {
        bytes_add(text, value->text, value->len);
        add_segment(s, start, text->len, start, rate);
        if (text->len == start) return;
        if (plan->leaves == plan->cap) plan->leaf = mem_resize(plan->leaf, plan->cap = plan->cap ? plan->cap * 2 : 16, sizeof *plan->leaf);
        plan->leaf[plan->leaves++] = (Leaf){value, plan->parts++};
        return;
    }
    if (value->type != JSON_ARRAY && value->type != JSON_OBJECT) json_put(text, value);
    add_segment(s, start, text->len, start, 1);
    plan->parts += text->len > start;
    for (size_t i = 0; (value->type == JSON_ARRAY || value->type == JSON_OBJECT) && i < value->len; i++) {
        const size_t from = text->len;
        if (i) bytes_text(text, "\n");
        if (value->type == JSON_OBJECT) bytes_printf(text, "%s: ", value->key[i]);
        add_segment(s, from, text->len, from, 1);
        plan->parts += text->len > from;
        put_value(plan, s, text, &value->item[i], rate);
    }
}

static bool plan_make(Plan *plan, const Request *r, const Json *config, Json *document, Error *err) {
    *plan = (Plan){.request = request_copy(r), .segments = mem_new(document->len, sizeof *plan->segments)};
    bool ok = true;
    for (size_t i = 0; ok && i < document->len; i++) {
        Treatment t;
        Bytes text = {0};
        char number[24];
        ok = read_treatment(config, document->key[i], &document->item[i], &t, err);
        bytes_printf(&text, "%s: ", document->key[i]);
        add_segment(&plan->segments[i], 0, text.len, 0, 1);
        plan->parts++;
        if (ok) put_value(plan, &plan->segments[i], &text, &document->item[i], t.rate);
        texts_add(&plan->request.context, text.at, text.len);
        if (!t.removable) texts_add(&plan->request.force_context_ids, number, (size_t)snprintf(number, sizeof number, "%zu", i));
        bytes_free(&text);
    }
    return ok;
}

static void plan_free(Plan *plan, size_t pairs) {
    for (size_t i = 0; i < pairs; i++) segments_free(&plan->segments[i]);
    free(plan->segments);
    free(plan->leaf);
    request_free(&plan->request);
}

/* The document without the pairs that are not kept. */
static void put_pairs(const Json *document, const bool *kept, Bytes *out) {
    bool any = false;
    bytes_text(out, "{");
    for (size_t i = 0; i < document->len; i++) {
        if (!kept[i]) continue;
        if (any) bytes_text(out, ", ");
        any = true;
        json_put_string(out, document->key[i], document->key_len[i]);
        bytes_text(out, ": ");
        json_put(out, &document->item[i]);
    }
    bytes_text(out, "}");
}

/* Count the document's tokens as JSON, before and after. */
static bool count_json(const Model *m, const Tokenizer *counter, const Request *r, const Bytes *json, size_t *n, Error *err) {
    if (bytes_are(&r->count, "words", 5)) return true;
    return tokenizer_count(bytes_are(&r->count, "model", 5) ? m->tokenizer : counter, json->at, json->len, n, err);
}

static bool compress_json(const Model *m, const Tokenizer *counter, const Request *r, const Json *config, Json *document, Result *out, Error *err) {
    if (config->type != JSON_OBJECT) return fail(err, BAD_INPUT, "the configuration is %s, not an object: {\"key\": {\"rate\": 0.5, \"compress\": true, \"value_type\": \"str\", \"pair_remove\": false}}", json_type_name(config->type));
    if (document->type != JSON_OBJECT) return fail(err, BAD_INPUT, "the document is %s, not an object", json_type_name(document->type));
    Plan plan;
    Texts parts = {0};
    Bytes before = {0};
    bool *kept = mem_new(document->len, sizeof *kept);
    json_put(&before, document);
    bool ok = plan_make(&plan, r, config, document, err) && compress_segments(m, counter, &plan.request, plan.segments, out, &parts, kept, err);
    for (size_t i = 0; ok && i < plan.leaves; i++) {
        Json *string = plan.leaf[i].string;
        const Bytes *text = &parts.at[plan.leaf[i].part];
        string->text = mem_resize(string->text, text->len + 1, 1);
        memcpy(string->text, text->at, text->len + 1);
        string->len = text->len;
    }
    if (ok) {
        out->prompt.len = 0;
        put_pairs(document, kept, &out->prompt);
        out->json = true;
        ok = count_json(m, counter, r, &before, &out->origin_tokens, err) && count_json(m, counter, r, &out->prompt, &out->compressed_tokens, err);
        if (ok && r->only_if_smaller && out->compressed_tokens >= out->origin_tokens) {
            bytes_set(&out->prompt, before.at, before.len);
            out->compressed_tokens = out->origin_tokens;
        }
        if (!ok) result_free(out);
    }
    plan_free(&plan, document->len);
    texts_free(&parts);
    bytes_free(&before);
    free(kept);
    return ok;
}

/* A JSON value in a file. */
static bool read_json(const char *path, Json *out, Error *err) {
    Bytes text = {0};
    Error detail;
    bool ok = read_text(path, &text, err);
    if (ok && !json_parse(text.at ? text.at : "", text.len, out, &detail)) ok = fail(err, detail.code, "%s: %.900s", path, detail.text);
    bytes_free(&text);
    return ok;
}

bool compress_json_file(const Model *m, const Tokenizer *counter, const Request *r, const char *config_path, const char *path, Result *out, Error *err) {
    Json config = {0}, document = {0};
    bool ok = read_json(config_path, &config, err) && read_json(path, &document, err) && compress_json(m, counter, r, &config, &document, out, err);
    json_free(&config);
    json_free(&document);
    return ok;
}
