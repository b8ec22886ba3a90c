/* lingua2_eval.c - what compression keeps of what matters: texts with questions, whose answers stand in them word for word, are shortened by the model and by
 * rules that need none, to equal counts of tokens, and the answers that are left are counted.
 *
 * The counts are those that compatible mode comes out at for the rate: it cannot be told to meet one, the others can. Compatible mode may change case and white
 * space, so answers and texts are compared by their letters and digits alone, for all methods alike.
 */
#include "lingua2.h"

#include <stdlib.h>
#include <string.h>

#include "unicode.h"

enum { FAITHFUL, COMPAT, RANDOM, HEAD, TAIL, STOPWORDS, METHODS, MAX_RATES = 9 };
static const char *const method_name[METHODS] = {"faithful", "compatible", "random", "head", "tail", "stopwords"};

typedef struct {
    size_t answers, words, tokens; /* what is left */
} Score;

typedef struct {
    const Model *m;
    const Tokenizer *counter;
    double rate[MAX_RATES];
    size_t rates, texts;
    Score all, score[MAX_RATES][METHODS];
} Eval;

/* ---- one text ---- */

/* Letters and digits in lower case. */
static void put_letters(const char *text, size_t len, Bytes *out) {
    uint32_t code;
    for (size_t i = 0, n; i < len; i += n) {
        n = utf8_decode(text + i, len - i, &code);
        if (!(unicode_flags(code) & UNICODE_WORD) || code == '_') continue;
        size_t count;
        const uint32_t *lower = unicode_lower(code, &count);
        if (!lower) bytes_add(out, text + i, n);
        for (size_t k = 0; lower && k < count; k++) {
            char utf8[4];
            bytes_add(out, utf8, utf8_encode(lower[k], utf8));
        }
    }
    bytes_add(out, "", 0);
}

/* Add what a text is worth. */
static bool add_score(const Eval *e, const Texts *answer, const Bytes *text, Score *s, Error *err) {
    Request r = request_new();
    Document d;
    Bytes letters = {0};
    bytes_set(&r.count, "words", 5);
    texts_add(&r.context, text->at ? text->at : "", text->len);
    size_t tokens = 0;
    const bool ok = document_open(e->m, e->counter, &r, &d, err) && tokenizer_count(e->counter, d.text.at, d.text.len, &tokens, err);
    if (ok) {
        put_letters(text->at ? text->at : "", text->len, &letters);
        for (size_t i = 0; i < answer->n; i++) s->answers += answer->at[i].len == 0 || find(letters.at, letters.len, 0, answer->at[i].at, answer->at[i].len) < letters.len;
        s->words += d.origin_tokens;
        s->tokens += tokens;
    }
    document_close(&d);
    bytes_free(&letters);
    request_free(&r);
    return ok;
}

/* The text as compatible mode shortens it to a rate, and its tokens. */
static bool package_text(const Eval *e, const Request *text, double rate, Bytes *out, size_t *tokens, Error *err) {
    Request r = request_copy(text);
    Result result = {0};
    texts_copy(&r.context, &text->context);
    r.rate = rate;
    default_ends(&r);
    const bool ok = compress_compat(e->m, e->counter, &r, &result, err);
    if (ok) {
        bytes_set(out, result.context.at[0].at, result.context.at[0].len);
        *tokens = result.compressed_tokens;
        result_free(&result);
    }
    request_free(&r);
    return ok;
}

/* The words ranked by each method but compatible mode, which ranks none. */
static bool open_methods(const Eval *e, Request *r, Document *d, Error *err) {
    bool ok = true;
    for (size_t k = 0; ok && k < METHODS; k++) {
        if (k == COMPAT) continue;
        if (k != FAITHFUL) bytes_set(&r[k].baseline, method_name[k], strlen(method_name[k]));
        ok = document_open(e->m, e->counter, &r[k], &d[k], err) && (k != FAITHFUL || classify_chunks(e->m, d[k].chunk, d[k].chunks, err)) && document_rank(&d[k], SIZE_MAX, err);
    }
    return ok;
}

static bool score_methods(Eval *e, const Request *text, const Document *d, const Texts *answer, Error *err) {
    Bytes out = {0};
    bool ok = add_score(e, answer, &text->context.at[0], &e->all, err);
    for (size_t i = 0; ok && i < e->rates; i++) {
        size_t tokens = 0;
        ok = package_text(e, text, e->rate[i], &out, &tokens, err) && add_score(e, answer, &out, &e->score[i][COMPAT], err);
        for (size_t k = 0; ok && k < METHODS; k++) {
            if (k == COMPAT) continue;
            out.len = 0;
            document_text(&d[k], document_steps(&d[k], tokens), &out);
            ok = add_score(e, answer, &out, &e->score[i][k], err);
        }
    }
    bytes_free(&out);
    return ok;
}

/* {"origin": text, "qa": [[question, answer], ...]} */
static bool take_text(void *to, const Json *line, const Bytes *raw, Error *err) {
    Eval *e = to;
    Slice origin;
    const Json *qa = json_get(line, "qa");
    (void)raw;
    if (!need_text(line, "origin", &origin, err)) return false;
    if (!qa || qa->type != JSON_ARRAY) return fail(err, BAD_INPUT, "\"qa\" must be a list of pairs of question and answer");
    Texts answer = {0};
    Request r[METHODS];
    Document d[METHODS] = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < qa->len; i++) {
        const Json *pair = &qa->item[i];
        Bytes letters = {0};
        ok = (pair->type == JSON_ARRAY && pair->len == 2 && pair->item[1].type == JSON_STRING) || fail(err, BAD_INPUT, "item %zu of \"qa\" is no pair of question and answer", i);
        if (ok) put_letters(pair->item[1].text, pair->item[1].len, &letters);
        if (ok) texts_add(&answer, letters.at, letters.len);
        bytes_free(&letters);
    }
    for (size_t k = 0; k < METHODS; k++) {
        r[k] = request_new();
        texts_add(&r[k].context, origin.at, origin.len);
    }
    ok = ok && open_methods(e, r, d, err) && score_methods(e, &r[COMPAT], d, &answer, err);
    for (size_t k = 0; k < METHODS; k++) {
        document_close(&d[k]);
        request_free(&r[k]);
    }
    texts_free(&answer);
    e->texts += ok;
    return ok;
}

/* ---- all texts ---- */

static double share(size_t part, size_t all) { return all ? (double)part / (double)all : 0; }

static void put_scores(const Eval *e, bool json, Bytes *out) {
    if (json) bytes_printf(out, "{\"texts\": %zu, \"answers\": %zu, \"results\": [", e->texts, e->all.answers);
    else bytes_printf(out, "%zu texts, %zu answers that stand in them\nrate asked  method      answers kept  words kept   rate\n", e->texts, e->all.answers);
    for (size_t i = 0; i < e->rates; i++)
        for (size_t k = 0; k < METHODS; k++) {
            const Score *s = &e->score[i][k];
            const double answers = share(s->answers, e->all.answers), words = share(s->words, e->all.words), rate = share(s->tokens, e->all.tokens);
            if (json) {
                bytes_printf(out, "%s{\"asked\": ", i + k ? ", " : "");
                json_put_double(out, e->rate[i]);
                bytes_printf(out, ", \"method\": \"%s\", \"answers_kept\": ", method_name[k]);
                json_put_double(out, answers);
                bytes_text(out, ", \"words_kept\": ");
                json_put_double(out, words);
                bytes_text(out, ", \"rate\": ");
                json_put_double(out, rate);
                bytes_text(out, "}");
            } else bytes_printf(out, "%10.2f  %-10s  %12.3f  %10.3f  %5.3f\n", e->rate[i], method_name[k], answers, words, rate);
        }
    if (json) bytes_text(out, "]}\n");
}

bool command_eval(Common *c, int argc, char **argv) {
    Eval e = {.rate = {0.33, 0.5, 0.67}, .rates = 3};
    double rate = 0;
    bool done = false;
    const CliOption own[] = {{"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model, made by export.py (default: the embedded one)"},
                             {"rate", "R", CLI_NUMBER, &rate, 1e-9, 1, "this rate alone (default: 0.33, 0.5 and 0.67)"}};
    bool ok = command_start(c, "usage: lingua2 eval [options] [FILE...|-]\nHow many answers survive compression, by the model and by rules that need none, at equal counts of tokens. "
                               "Lines are {\"origin\": text, \"qa\": [[question, answer], ...]}.", own, 2, argc, argv, &done);
    if (ok && !done) {
        Model m = {0};
        Weights *w = NULL;
        Tokenizer *counter = NULL;
        Bytes out = {0};
        if (rate > 0) e.rate[0] = rate, e.rates = 1;
        ok = open_default(c, &m) && open_counter(c, &w, &counter);
        if (ok) add_new_tokens(&m);
        e.m = &m;
        e.counter = counter;
        ok = ok && each_line(&c->file, false, take_text, &e, c->err);
        if (ok) put_scores(&e, c->json, &out);
        ok = ok && print_out(&out, c->err);
        bytes_free(&out);
        tokenizer_close(counter);
        weights_close(w);
        model_close(&m);
    }
    return ok;
}
