/* lingua2_label.c - seeing what was dropped: every word of a text with its probability and verdict, as lines, as JSON, in colours on a terminal, and as a page.
 *
 * The page is one file that asks nothing of the network. For each place of its slider it holds how far the budget of that rate goes, and for each word how far
 * a budget must go to reach it: so it shows exactly the words that `lingua2 compress --rate` keeps.
 *
 * The text may come from anywhere. Nothing in it is markup, a terminal's command, or a change of writing direction: such characters are shown, not sent.
 */
#include "lingua2.h"

#include <stdlib.h>
#include <string.h>

#include "posix.h"

/* ==== text that cannot do harm ==================================================================================================== */

/* The characters that steer a terminal or the direction of writing. */
static bool steers(uint32_t code) {
    return (code < 32 && code != '\n' && code != '\t') || (code >= 0x7F && code < 0xA0) || code == 0x61C || code == 0x200E || code == 0x200F || (code >= 0x202A && code <= 0x202E) ||
           (code >= 0x2066 && code <= 0x2069);
}

/* Append text with a picture (of U+0000 to U+001F and U+007F) or the number (U+202E) in place of what steers, and in HTML with its five characters escaped. */
static void put_harmless(Bytes *out, const char *text, size_t len, bool html) {
    uint32_t code;
    for (size_t i = 0, n; i < len; i += n) {
        n = utf8_decode(text + i, len - i, &code);
        const char *escape = !html ? NULL : code == '&' ? "&amp;" : code == '<' ? "&lt;" : code == '>' ? "&gt;" : code == '"' ? "&quot;" : code == '\'' ? "&#39;" : NULL;
        char picture[4];
        if (escape) bytes_text(out, escape);
        else if (!steers(code)) bytes_add(out, text + i, n);
        else if (code == '\r' && i + 1 < len && text[i + 1] == '\n') continue;
        else if (code < 0x80) bytes_add(out, picture, utf8_encode(code == 0x7F ? 0x2421 : 0x2400 + code, picture));
        else bytes_printf(out, "[U+%04lX]", (unsigned long)code);
    }
}

/* ==== the page ==================================================================================================================== */

static const char page_style[] =
    ":root{color-scheme:light dark;--faint:#aaa}\n"
    "@media(prefers-color-scheme:dark){:root{--faint:#666}}\n"
    "body{max-width:46em;margin:0 auto;padding:0 1em 4em;font:1.05em/1.6 Georgia,serif;background:Canvas;color:CanvasText}\n"
    "header{position:sticky;top:0;padding:.8em 0;background:Canvas;border-bottom:1px solid var(--faint);font:.85em/1.5 system-ui,sans-serif}\n"
    "input{width:100%;margin:.5em 0 0}\n"
    "article{white-space:pre-wrap;overflow-wrap:anywhere;padding:1em 0}\n"
    "article+article{border-top:1px solid var(--faint)}\n"
    ".dropped{color:var(--faint)}\n"
    "span:hover{outline:1px solid}\n"
    "@media print{header{position:static}input{display:none}body{color:#000}.dropped{color:#777;text-decoration:line-through}}\n";

/* step[i]: how far a budget must go to keep word i; at[p]: how far it goes at p percent, making so many tokens. */
static const char page_script[] =
    "const words=[...document.querySelectorAll('article span')],slider=document.querySelector('input');\n"
    "slider.hidden=false;\n"
    "slider.oninput=()=>{\n"
    " const p=Number(slider.value);\n"
    " let kept=0;\n"
    " words.forEach((word,i)=>{const keep=step[i]<=at[p];kept+=keep;word.classList.toggle('dropped',!keep)});\n"
    " document.querySelector('output').textContent=`rate ${(p/100).toFixed(2)}: ${tokens[p]} of ${tokens[100]} tokens, ${kept} of ${words.length} words`;\n"
    "};\n";

enum { PLACES = 101 }; /* of the slider: 0 percent, which nobody may ask for, to 100 */

/* Numbers with commas between them; SIZE_MAX is beyond all. */
static void put_numbers(Bytes *out, const char *name, const size_t *number, size_t n) {
    bytes_printf(out, "const %s=[", name);
    for (size_t i = 0; i < n; i++) {
        if (i) bytes_text(out, ",");
        if (number[i] == SIZE_MAX) bytes_text(out, "1e99");
        else bytes_printf(out, "%zu", number[i]);
    }
    bytes_text(out, "];\n");
}

/* What `compress` would choose at each place. d: ranked as a whole, for the request r, whose rate changes. */
static bool put_places(const Document *d, Request *r, Bytes *out, Error *err) {
    size_t at[PLACES] = {0}, tokens[PLACES] = {0}, *step = mem_new(d->n, sizeof *step);
    Bytes text = {0};
    bool ok = true;
    for (size_t p = 1; ok && p < PLACES; p++) {
        r->rate = (double)p / 100;
        const size_t budget = document_budget(d);
        if (budget == d->origin_tokens) at[p] = SIZE_MAX, tokens[p] = budget;
        else ok = document_choose(d, budget, &at[p], &text, &tokens[p], err);
    }
    for (size_t i = 0; i < d->n; i++) step[i] = d->word[i].step;
    put_numbers(out, "step", step, d->n);
    put_numbers(out, "at", at, PLACES);
    put_numbers(out, "tokens", tokens, PLACES);
    bytes_free(&text);
    free(step);
    return ok;
}

/* The slider's script, from the probabilities of the document that was labelled. */
static bool put_script(const Document *labelled, Bytes *out, Error *err) {
    Request r = request_copy(labelled->r);
    Document d = {0};
    r.threshold = r.target_token = -1;
    for (size_t c = 0; c < labelled->r->context.n; c++) texts_add(&r.context, labelled->r->context.at[c].at, labelled->r->context.at[c].len);
    float *p = document_probabilities(labelled);
    bool ok = document_open(labelled->m, labelled->counter, &r, &d, err);
    d.given = p;
    bytes_text(out, "<script>\n");
    ok = ok && document_rank(&d, SIZE_MAX, err) && put_places(&d, &r, out, err);
    bytes_text(out, page_script);
    bytes_text(out, "</script>");
    document_close(&d);
    request_free(&r);
    free(p);
    return ok;
}

static void put_article(Bytes *out, const Bytes *text, const Label *word, size_t n) {
    size_t at = 0;
    bytes_text(out, "<article dir=\"auto\">");
    for (size_t i = 0; i < n; i++) {
        put_harmless(out, text->at + at, word[i].start - at, true);
        bytes_printf(out, "<span title=\"%.3f%s\"%s>", (double)word[i].p, word[i].forced ? ", forced" : "", word[i].kept ? "" : " class=dropped");
        put_harmless(out, text->at + word[i].start, word[i].end - word[i].start, true);
        bytes_text(out, "</span>");
        at = word[i].end;
    }
    put_harmless(out, text->len ? text->at + at : "", text->len - at, true);
    bytes_text(out, "</article>\n");
}

/* The words of context c are word[*first..last-1]; *first moves on. */
static size_t context_words(const Result *result, size_t c, const Label **first) {
    size_t n = 0;
    const Label *end = result->word + result->words;
    while (*first + n < end && (*first)[n].context == c) n++;
    *first += n;
    return n;
}

/* With the context filter, or none for words, the rate does not decide alone, so there is no slider. */
static bool put_page(const Document *d, const Result *result, Bytes *out, Error *err) {
    const Request *r = d->r;
    const bool slider = !(r->use_context_level_filter && r->context.n > 1) && r->use_token_level_filter;
    const double rate = result->origin_tokens ? (double)result->compressed_tokens / (double)result->origin_tokens : 1;
    const bool by_rate = r->threshold < 0 && r->target_token < 1;
    size_t kept = 0;
    for (size_t i = 0; i < result->words; i++) kept += result->word[i].kept;
    bytes_text(out, "<!doctype html>\n<html><head><meta charset=\"utf-8\"><title>What lingua2 keeps</title>\n"
                    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
                    "<meta name=\"viewport\" content=\"width=device-width\">\n<style>\n");
    bytes_text(out, page_style);
    bytes_printf(out, "</style></head>\n<body><header><output>rate %.2f: %zu of %zu tokens, %zu of %zu words</output>\n", by_rate ? r->rate : rate, result->compressed_tokens, result->origin_tokens, kept,
                 result->words);
    if (slider) bytes_printf(out, "<input hidden type=\"range\" min=\"1\" max=\"100\" value=\"%.0f\" aria-label=\"rate, percent\">", 100 * (by_rate ? r->rate : rate));
    bytes_text(out, "</header>\n");
    const Label *word = result->word;
    for (size_t c = 0; c < r->context.n; c++) {
        const Label *first = word;
        const size_t n = context_words(result, c, &word);
        put_article(out, &r->context.at[c], first, n);
    }
    const bool ok = !slider || put_script(d, out, err);
    bytes_text(out, "</body></html>\n");
    return ok;
}

/* ==== lines, JSON, a terminal ===================================================================================================== */

/* Probability, verdict, first byte and the byte behind the last, word. */
static void put_lines(const Request *r, const Result *result, Bytes *out) {
    for (size_t i = 0; i < result->words; i++) {
        const Label *w = &result->word[i];
        Bytes word = {0};
        if (i && w->context != w[-1].context) bytes_text(out, "\n");
        bytes_printf(out, "%.6f\t%s\t%zu\t%zu\t", (double)w->p, w->kept ? "keep" : "drop", w->start, w->end);
        put_harmless(&word, r->context.at[w->context].at + w->start, w->end - w->start, false);
        for (size_t k = 0; k < word.len; k++) bytes_add(out, word.at[k] == '\n' || word.at[k] == '\t' ? " " : word.at + k, 1);
        bytes_text(out, "\n");
        bytes_free(&word);
    }
}

static void put_json(const Request *r, const Result *result, Bytes *out) {
    bytes_printf(out, "{\"origin_tokens\": %zu, \"compressed_tokens\": %zu, ", result->origin_tokens, result->compressed_tokens);
    put_words(r, result, out);
    bytes_text(out, "}\n");
}

/* The text with what is dropped between two marks, and what is kept between two others. */
static void put_runs(const Bytes *text, const Label *word, size_t n, const char *const mark[2][2], Bytes *out) {
    size_t at = 0;
    for (size_t i = 0, last; i < n; i = last) {
        for (last = i + 1; last < n && word[last].kept == word[i].kept;) last++;
        put_harmless(out, text->at + at, word[i].start - at, false);
        bytes_text(out, mark[word[i].kept][0]);
        put_harmless(out, text->at + word[i].start, word[last - 1].end - word[i].start, false);
        bytes_text(out, mark[word[i].kept][1]);
        at = word[last - 1].end;
    }
    put_harmless(out, text->len ? text->at + at : "", text->len - at, false);
}

/* no-color.org: colours unless the variable is set and not empty; none where nobody looks. */
static bool in_colours(void) {
    const char *no = getenv("NO_COLOR"), *terminal = getenv("TERM");
    return isatty(STDOUT_FILENO) && !(no && *no) && !(terminal && strcmp(terminal, "dumb") == 0);
}

static void put_coloured(const Request *r, const Result *result, Bytes *out) {
    static const char *const colours[2][2] = {{"\x1b[2;31m", "\x1b[0m"}, {"\x1b[1m", "\x1b[0m"}}, *const plain[2][2] = {{"[-", "-]"}, {"", ""}};
    const bool coloured = in_colours();
    const Label *word = result->word;
    for (size_t c = 0; c < r->context.n; c++) {
        const Bytes *text = &r->context.at[c];
        const Label *first = word;
        const size_t n = context_words(result, c, &word);
        if (c) bytes_text(out, "\n");
        put_runs(text, first, n, coloured ? colours : plain, out);
        if (text->len && text->at[text->len - 1] != '\n') bytes_text(out, "\n");
    }
}

/* ==== the command ================================================================================================================= */

static bool label(const Common *c, const Model *m, const Tokenizer *counter, const Request *r, bool ansi, const Bytes *html) {
    Document d = {0};
    Result result = {0};
    Bytes out = {0};
    bool ok = document_open(m, counter, r, &d, c->err) && (!document_needs_model(&d) || classify_chunks(m, d.chunk, d.chunks, c->err)) && document_compress(&d, &result, c->err);
    if (ok && html->len) ok = put_page(&d, &result, &out, c->err);
    else if (ok && c->json) put_json(r, &result, &out);
    else if (ok && ansi) put_coloured(r, &result, &out);
    else if (ok) put_lines(r, &result, &out);
    ok = ok && (html->len ? file_write(html->at, out.at, out.len, c->err) : print_out(&out, c->err));
    document_close(&d);
    result_free(&result);
    bytes_free(&out);
    return ok;
}

bool command_label(Common *c, int argc, char **argv) {
    Request r = request_new();
    Bytes html = {0};
    bool ansi = false, done = false;
    CliOption own[KEYWORDS + 3] = {
        {"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model, made by export.py (default: the embedded one)"},
        {"ansi", NULL, CLI_FLAG, &ansi, 0, 0, "the text, what is dropped in faint red; not on a terminal, or with NO_COLOR set, in [- -]"},
        {"html", "FILE", CLI_TEXT, &html, 0, 0, "a page with a slider for other rates"},
    };
    request_options(&r, own + 3);
    bool ok = command_start(c, "usage: lingua2 label [options] [FILE...|-]\nEvery word of the text with its probability, whether compress keeps it, and the bytes where it stands. Characters that\n"
                               "steer a terminal or the direction of writing are shown as pictures or numbers, except in JSON.", own, KEYWORDS + 3, argc, argv, &done);
    Counting counting;
    unsigned keep;
    if (ok && !done && !request_check(&r, &counting, &keep, c->err)) ok = false, c->err->code = BAD_USAGE;
    if (ok && !done && r.structured) ok = fail(c->err, BAD_USAGE, "label shows one rate for the whole text: it takes no --structured");
    if (ok && !done && c->json + ansi + (html.len > 0) > 1) ok = fail(c->err, BAD_USAGE, "label prints one form: --json, --ansi or --html");
    if (ok && !done) {
        Model m = {0};
        Weights *w = NULL;
        Tokenizer *counter = NULL;
        r.return_word_label = true;
        ok = open_default(c, &m) && open_counter(c, &w, &counter) && read_contexts(c, &r) && label(c, &m, counter, &r, ansi, &html);
        tokenizer_close(counter);
        weights_close(w);
        model_close(&m);
    }
    bytes_free(&html);
    request_free(&r);
    return ok;
}
