/* lingua2_cli.c - what stands around lingua2's algorithms: requests and results, as options, as JSON and as JSON lines, and the commands. */
#include "lingua2.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ==== requests and results ======================================================================================================== */

static void put_text(Bytes *b, const char *text) {
    bytes_text(b, text);
    bytes_add(b, "", 0);
}

Request request_new(void) {
    Request r = {.rate = 0.5, .target_token = -1, .target_context = -1, .context_level_rate = 1, .context_level_target_token = -1,
                 .use_token_level_filter = true, .threshold = -1};
    put_text(&r.word_sep, "\t\t|\t\t");
    put_text(&r.label_sep, " ");
    put_text(&r.token_to_word, "mean");
    put_text(&r.count, "cl100k");
    return r;
}

Request request_copy(const Request *from) {
    Request r = *from;
    r.context = r.force_context_ids = r.force_tokens = r.chunk_end_tokens = (Texts){0};
    r.word_sep = r.label_sep = r.token_to_word = r.count = r.keep = r.baseline = (Bytes){0};
    texts_copy(&r.force_context_ids, &from->force_context_ids);
    texts_copy(&r.force_tokens, &from->force_tokens);
    texts_copy(&r.chunk_end_tokens, &from->chunk_end_tokens);
    bytes_set(&r.word_sep, from->word_sep.at, from->word_sep.len);
    bytes_set(&r.label_sep, from->label_sep.at, from->label_sep.len);
    bytes_set(&r.token_to_word, from->token_to_word.at, from->token_to_word.len);
    bytes_set(&r.count, from->count.at, from->count.len);
    bytes_set(&r.keep, from->keep.at, from->keep.len);
    bytes_set(&r.baseline, from->baseline.at, from->baseline.len);
    return r;
}

void request_free(Request *r) {
    texts_free(&r->context);
    texts_free(&r->force_context_ids);
    texts_free(&r->force_tokens);
    texts_free(&r->chunk_end_tokens);
    bytes_free(&r->word_sep);
    bytes_free(&r->label_sep);
    bytes_free(&r->token_to_word);
    bytes_free(&r->count);
    bytes_free(&r->keep);
    bytes_free(&r->baseline);
}

/* ==== requests in, results out as JSON ============================================================================================ */

/* One row per keyword argument: its name in Python and in JSON, its option, its kind and place, what --help says. */
typedef struct {
    const char *key, *option, *value;
    CliKind kind;
    size_t slot;
    double least, most;
    const char *help;
} Keyword;
#define SLOT(member) offsetof(Request, member)
static const Keyword keywords[KEYWORDS] = {
    {"rate", "rate", "R", CLI_NUMBER, SLOT(rate), 1e-9, 1, "the share of tokens to keep (default 0.5)"},
    {"target_token", "target-token", "N", CLI_WHOLE, SLOT(target_token), 1, 1e15, "how many tokens to keep, instead of a rate"},
    {"force_tokens", "force-token", "S", CLI_TEXTS, SLOT(force_tokens), 0, 0, "always keep this text; C escapes; repeatable"},
    {"force_reserve_digit", "force-reserve-digit", NULL, CLI_FLAG, SLOT(force_reserve_digit), 0, 0, "keep words (with --compat: pieces) that hold a digit"},
    {"drop_consecutive", "drop-consecutive", NULL, CLI_FLAG, SLOT(drop_consecutive), 0, 0, "drop a forced text repeated with nothing kept between"},
    {"token_to_word", "token-to-word", "mean|first", CLI_TEXT, SLOT(token_to_word), 0, 0, "a word's probability from its pieces (default mean)"},
    {"chunk_end_tokens", "chunk-end-token", "S", CLI_TEXTS, SLOT(chunk_end_tokens), 0, 0, "chunks end at these texts (default: full stops, line breaks); repeatable"},
    {"use_token_level_filter", "no-token-level-filter", NULL, CLI_NO_FLAG, SLOT(use_token_level_filter), 0, 0, "drop whole contexts only"},
    {"use_context_level_filter", "use-context-level-filter", NULL, CLI_FLAG, SLOT(use_context_level_filter), 0, 0, "drop whole contexts first"},
    {"context_level_rate", "context-level-rate", "R", CLI_NUMBER, SLOT(context_level_rate), 0, 1, "the share of contexts to keep"},
    {"context_level_target_token", "context-level-target-token", "N", CLI_WHOLE, SLOT(context_level_target_token), 0, 1e15, "tokens to keep by dropping contexts"},
    {"target_context", "target-context", "N", CLI_WHOLE, SLOT(target_context), 0, 1e15, "how many contexts to keep"},
    {"force_context_ids", "force-context-id", "I", CLI_WHOLES, SLOT(force_context_ids), 0, 1e15, "keep this context (from 0); repeatable"},
    {"return_word_label", "return-word-label", NULL, CLI_FLAG, SLOT(return_word_label), 0, 0, "add every word with its label to --json"},
    {"word_sep", "word-sep", "S", CLI_ESCAPED, SLOT(word_sep), 0, 0, "what stands between labelled words"},
    {"label_sep", "label-sep", "S", CLI_ESCAPED, SLOT(label_sep), 0, 0, "what stands between a word and its label"},
    /* not the package's */
    {"structured", "structured", NULL, CLI_FLAG, SLOT(structured), 0, 0, "<llmlingua, rate=0.3>, <llmlingua, compress=False> ... </llmlingua> give parts of the text rates"},
    {"threshold", "threshold", "P", CLI_NUMBER, SLOT(threshold), 0, 1, "keep every word at or above this probability, instead of a rate"},
    {"count", "count", "cl100k|model|words", CLI_TEXT, SLOT(count), 0, 0, "what a token is (default cl100k)"},
    {"keep", "keep", "KINDS", CLI_TEXT, SLOT(keep), 0, 0, "always keep code,urls,numbers,quotes, or some of these"},
    {"only_if_smaller", "only-if-smaller", NULL, CLI_FLAG, SLOT(only_if_smaller), 0, 0, "give the text back if the result has no fewer tokens"},
    {"baseline", "baseline", "RULE", CLI_TEXT, SLOT(baseline), 0, 0, "choose by random, head, tail or stopwords instead of the model"},
};

void request_options(Request *r, CliOption option[KEYWORDS]) {
    for (size_t k = 0; k < KEYWORDS; k++)
        option[k] = (CliOption){keywords[k].option, keywords[k].value, keywords[k].kind, (char *)r + keywords[k].slot, keywords[k].least, keywords[k].most, keywords[k].help};
}

static bool wrong_type(const char *key, const char *wanted, const Json *j, Error *err) {
    return fail(err, BAD_INPUT, "%s must be %s, not %s", key, wanted, json_type_name(j->type));
}

static bool take_texts(const char *key, const Json *j, Texts *out, bool numbers, Error *err) {
    const JsonType wanted = numbers ? JSON_NUMBER : JSON_STRING;
    texts_free(out);
    if (numbers && j->type == JSON_NULL) return true;
    if (j->type != JSON_ARRAY) return wrong_type(key, "a list", j, err);
    for (size_t i = 0; i < j->len; i++) {
        if (j->item[i].type != wanted) return wrong_type(key, numbers ? "a list of numbers" : "a list of texts", &j->item[i], err);
        texts_add(out, j->item[i].text, j->item[i].len);
    }
    return true;
}

static bool take_keyword(const Keyword *k, const Json *j, Request *r, Error *err) {
    void *to = (char *)r + k->slot;
    if (k->kind == CLI_TEXTS || k->kind == CLI_WHOLES) return take_texts(k->key, j, to, k->kind == CLI_WHOLES, err);
    if (k->kind == CLI_FLAG || k->kind == CLI_NO_FLAG) {
        if (j->type != JSON_TRUE && j->type != JSON_FALSE) return wrong_type(k->key, "true or false", j, err);
        return *(bool *)to = j->type == JSON_TRUE, true;
    }
    if (k->kind == CLI_NUMBER || k->kind == CLI_WHOLE) {
        if (j->type != JSON_NUMBER || !isfinite(j->number)) return wrong_type(k->key, "a finite number", j, err);
        return *(double *)to = j->number, true;
    }
    if (j->type != JSON_STRING) return wrong_type(k->key, "a text", j, err);
    bytes_free(to);
    bytes_add(to, j->text, j->len);
    return true;
}

static bool take_context(const Json *j, Request *r, Error *err) {
    if (!j) return fail(err, BAD_INPUT, "the request has no \"context\"");
    if (j->type == JSON_STRING) return texts_add(&r->context, j->text, j->len), true;
    return take_texts("context", j, &r->context, false, err);
}

void default_ends(Request *r) {
    if (r->chunk_end_tokens.n) return;
    texts_add(&r->chunk_end_tokens, ".", 1);
    texts_add(&r->chunk_end_tokens, "\n", 1);
}

bool request_read(const Json *j, bool compat, Request *r, Error *err) {
    if (j->type != JSON_OBJECT) return fail(err, BAD_INPUT, "a request is a JSON object, not %s", json_type_name(j->type));
    for (size_t i = 0; i < j->len; i++) {
        const size_t known = compat ? PACKAGE_KEYWORDS : KEYWORDS;
        size_t k = 0;
        if (strcmp(j->key[i], "id") == 0 || strcmp(j->key[i], "context") == 0) continue;
        while (k < known && strcmp(keywords[k].key, j->key[i])) k++;
        if (k == known) return fail(err, BAD_INPUT, "there is no keyword \"%.100s\"", j->key[i]);
        if (!take_keyword(&keywords[k], &j->item[i], r, err)) return false;
    }
    return take_context(json_get(j, "context"), r, err);
}

/* The numbers as the package formats them. */
static void put_package_numbers(const Result *r, Bytes *out) {
    const double ratio = r->compressed_tokens ? (double)r->origin_tokens / (double)r->compressed_tokens : 1;
    bytes_printf(out, ", \"ratio\": \"%.1fx\", \"rate\": \"%.1f%%\"", ratio, 1 / ratio * 100);
}

/* What came out as a number, and what was asked for. */
static void put_numbers(const Request *r, const Result *result, Bytes *out) {
    const double origin = (double)result->origin_tokens, left = (double)result->compressed_tokens;
    bytes_printf(out, ", \"ratio\": \"%.1fx\", \"rate\": ", left > 0 ? origin / left : 1);
    json_put_double(out, origin > 0 ? left / origin : 1);
    bytes_text(out, ", \"asked\": {");
    if (r->threshold >= 0) {
        bytes_text(out, "\"threshold\": ");
        json_put_double(out, r->threshold);
    } else {
        bytes_text(out, r->target_token >= 1 ? "\"target_token\": " : "\"rate\": ");
        json_put_double(out, r->target_token >= 1 ? r->target_token : r->rate);
        if (!result->json) bytes_printf(out, ", \"tokens\": %zu", result->budget); /* in JSON each string has its own */
    }
    bytes_printf(out, ", \"count\": \"%s\"}", r->count.at);
}

void put_words(const Request *r, const Result *result, Bytes *out) {
    bytes_text(out, "\"words\": [");
    for (size_t i = 0; i < result->words; i++) {
        const Label *w = &result->word[i];
        bytes_text(out, i ? ", {\"word\": " : "{\"word\": ");
        json_put_string(out, r->context.at[w->context].at + w->start, w->end - w->start);
        bytes_printf(out, ", \"context\": %zu, \"start\": %zu, \"end\": %zu, \"p\": ", w->context, w->start, w->end);
        json_put_double(out, (double)w->p);
        bytes_printf(out, ", \"forced\": %s, \"kept\": %s}", w->forced ? "true" : "false", w->kept ? "true" : "false");
    }
    bytes_text(out, "]");
}

/* The compressed contexts, a blank line between two. */
static void join_result(const Result *r, Bytes *out) {
    for (size_t i = 0; i < r->context.n; i++) {
        if (i) bytes_add(out, "\n\n", 2);
        bytes_add(out, r->context.at[i].at, r->context.at[i].len);
    }
}

void put_result(const Request *r, const Result *result, bool compat, Bytes *out) {
    Bytes joined = {0};
    if (compat) join_result(result, &joined);
    const Bytes *prompt = compat ? &joined : &result->prompt;
    bytes_text(out, "\"compressed_prompt\": ");
    if (result->json) bytes_add(out, prompt->at, prompt->len);
    else json_put_string(out, prompt->at ? prompt->at : "", prompt->len);
    bytes_text(out, ", \"compressed_prompt_list\": [");
    for (size_t i = 0; i < result->context.n; i++) {
        if (i) bytes_text(out, ", ");
        json_put_string(out, result->context.at[i].at, result->context.at[i].len);
    }
    bytes_printf(out, "], \"origin_tokens\": %zu, \"compressed_tokens\": %zu", result->origin_tokens, result->compressed_tokens);
    if (compat) put_package_numbers(result, out);
    else put_numbers(r, result, out);
    bytes_printf(out, ", \"saving\": \", Saving $%.1f in GPT-4.\"", ((double)result->origin_tokens - (double)result->compressed_tokens) * 0.06 / 1000);
    if (result->has_labels) {
        bytes_text(out, ", \"fn_labeled_original_prompt\": ");
        json_put_string(out, result->labels.at ? result->labels.at : "", result->labels.len);
        if (!compat) bytes_text(out, ", "), put_words(r, result, out);
    }
    bytes_free(&joined);
}

/* ==== commands ==================================================================================================================== */

bool open_default(const Common *c, Model *m) {
    Bytes path = {0};
    if (c->model.len) bytes_add(&path, c->model.at, c->model.len);
    else models_path(c, "default.safetensors", &path);
    bool ok = model_open(m, path.at, c->err);
    bytes_free(&path);
    return ok;
}

bool open_counter(const Common *c, Weights **w, Tokenizer **t) {
    Bytes path = {0};
    models_path(c, "cl100k_base.safetensors", &path);
    bool ok = open_tokenizer_file(path.at, w, t, c->err);
    bytes_free(&path);
    return ok;
}

bool read_contexts(const Common *c, Request *r) {
    bool ok = true;
    for (size_t i = 0; ok && i < (c->file.n ? c->file.n : 1); i++) {
        Bytes text = {0};
        ok = read_text(c->file.n ? c->file.at[i].at : "-", &text, c->err);
        if (ok) texts_add(&r->context, text.at, text.len);
        bytes_free(&text);
    }
    return ok;
}

/* config: of a JSON document, or empty. */
static bool compress_files(const Common *c, const Model *m, const Tokenizer *counter, bool compat, const Bytes *config, Request *r) {
    Result result = {0};
    Bytes out = {0};
    bool ok = config->len || read_contexts(c, r);
    if (ok && config->len) ok = compress_json_file(m, counter, r, config->at, c->file.n ? c->file.at[0].at : "-", &result, c->err);
    else if (ok && compat) ok = compress_compat(m, counter, r, &result, c->err);
    else if (ok && r->structured) ok = compress_tags(m, counter, r, &result, c->err);
    else if (ok) compress_batch(m, counter, r, 1, &result, c->err, &ok);
    if (ok && c->json) {
        bytes_text(&out, "{");
        put_result(r, &result, compat, &out);
        bytes_text(&out, "}\n");
    } else if (ok) {
        if (compat) join_result(&result, &out);
        else bytes_add(&out, result.prompt.at, result.prompt.len);
        const bool whole = !compat && !result.json && result.compressed_tokens == result.origin_tokens; /* then it goes out as it came in */
        if (!whole && !(!compat && out.len && out.at[out.len - 1] == '\n')) bytes_add(&out, "\n", 1);
    }
    ok = ok && print_out(&out, c->err);
    if (ok && !c->quiet && isatty(STDERR_FILENO)) fprintf(stderr, "%zu tokens -> %zu\n", result.origin_tokens, result.compressed_tokens);
    bytes_free(&out);
    result_free(&result);
    return ok;
}

/* The options' texts, and those that do not go together. */
static bool check_options(const Request *r, bool compat, bool jsonl, const Bytes *config, size_t files, Error *err) {
    Counting counting;
    unsigned keep;
    if (!bytes_are(&r->token_to_word, "mean", 4) && !bytes_are(&r->token_to_word, "first", 5))
        return fail(err, BAD_USAGE, "--token-to-word is mean or first, not '%.50s'", r->token_to_word.at);
    if (!request_check(r, &counting, &keep, err)) return err->code = BAD_USAGE, false;
    if (compat && (r->threshold >= 0 || r->only_if_smaller || r->keep.len || r->baseline.len || counting != COUNT_CL100K || r->structured || config->len))
        return fail(err, BAD_USAGE, "--compat is what the Python package does, which has no --threshold, --count, --keep, --only-if-smaller, --baseline, --structured or --structured-json");
    if (config->len && (jsonl || r->structured || r->return_word_label || files > 1))
        return fail(err, BAD_USAGE, "--structured-json takes one JSON document, in a file or from standard input, without --jsonl, --structured and --return-word-label");
    return true;
}

bool command_compress(Common *c, int argc, char **argv) {
    Request r = request_new();
    Bytes config = {0};
    bool jsonl = false, compat = false, done = false;
    CliOption own[KEYWORDS + 4] = {
        {"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model, made by export.py (default: the embedded one)"},
        {"compat", NULL, CLI_FLAG, &compat, 0, 0, "what the Python package llmlingua 0.2.2 returns, to the character"},
        {"jsonl", NULL, CLI_FLAG, &jsonl, 0, 0, "one JSON request a line, one result a line"},
        {"structured-json", "FILE", CLI_TEXT, &config, 0, 0, "the input is a JSON object, FILE says for each key: {\"rate\", \"compress\", \"value_type\", \"pair_remove\"}"},
    };
    request_options(&r, own + 4);
    bool ok = command_start(c, "usage: lingua2 compress [options] [FILE...|-]\nEach file is one context; the compressed text goes to standard output: words of the source, byte for byte, "
                               "as many as the rate allows.", own, KEYWORDS + 4, argc, argv, &done);
    ok = ok && (done || check_options(&r, compat, jsonl, &config, c->file.n, c->err));
    if (ok && !done) {
        Model m = {0};
        Weights *w = NULL;
        Tokenizer *counter = NULL;
        ok = open_default(c, &m) && open_counter(c, &w, &counter);
        if (ok && compat) {
            add_new_tokens(&m);
            default_ends(&r);
        }
        ok = ok && (jsonl ? compress_lines(c, &m, counter, &r, compat) : compress_files(c, &m, counter, compat, &config, &r));
        tokenizer_close(counter);
        weights_close(w);
        model_close(&m);
    }
    bytes_free(&config);
    request_free(&r);
    return ok;
}

/* The whole text between the model's own first and last special token. */
bool encode_whole(const Model *m, const Bytes *text, Chunk *c, Error *err) {
    Pieces p = {0};
    if (!m->tokenizer) return *err = m->no_tokenizer, false;
    int64_t cls = tokenizer_special(m->tokenizer, "cls"), sep = tokenizer_special(m->tokenizer, "sep");
    if (!tokenizer_encode(m->tokenizer, text->at, text->len, TOK_ADDED, &p, err)) return pieces_free(&p), false;
    c->id = mem_new(p.n + 2, sizeof *c->id);
    if (cls >= 0) c->id[c->T++] = (uint32_t)cls;
    if (p.n) memcpy(c->id + c->T, p.id, p.n * sizeof *c->id);
    c->T += p.n;
    if (sep >= 0) c->id[c->T++] = (uint32_t)sep;
    pieces_free(&p);
    return true;
}

static void put_probabilities(const Model *m, const Chunk *c, bool json, Bytes *out) {
    for (size_t i = 0; i < c->T; i++) {
        size_t len = 0;
        const char *piece = m->tokenizer ? tokenizer_piece(m->tokenizer, c->id[i], &len) : NULL;
        if (json) {
            bytes_printf(out, "%s{\"id\": %lu, \"piece\": ", i ? ", " : "[", (unsigned long)c->id[i]);
            if (piece) json_put_string(out, piece, len);
            else bytes_text(out, "null");
            bytes_text(out, ", \"p\": ");
            json_put_double(out, (double)c->p[i]);
            bytes_text(out, "}");
        } else bytes_printf(out, "%.6f\t%lu\t%.*s\n", (double)c->p[i], (unsigned long)c->id[i], (int)len, piece ? piece : "");
    }
    if (json) bytes_text(out, c->T ? "]\n" : "[]\n");
}

bool command_classify(Common *c, int argc, char **argv) {
    Bytes ids = {0}, text = {0}, out = {0};
    bool done = false;
    const CliOption own[] = {{"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model, made by export.py (default: the embedded one)"},
                             {"ids", "1,2,3", CLI_TEXT, &ids, 0, 0, "these piece ids instead of a text, special tokens included"}};
    Model m = {0};
    Chunk chunk = {0};
    bool ok = command_start(c, "usage: lingua2 classify [options] [FILE|-]\nThe probability of being kept for each piece of one text, without chunks; special tokens included.",
                    own, 2, argc, argv, &done);
    if (ok && !done && (c->file.n > 1 || (ids.len && c->file.n))) ok = fail(c->err, BAD_USAGE, "classify takes one text: a file, standard input, or --ids");
    if (ok && !done) {
        ok = open_default(c, &m);
        if (ok && ids.at) ok = parse_ids(&ids, &chunk.id, &chunk.T, c->err);
        else ok = ok && read_text(c->file.n ? c->file.at[0].at : "-", &text, c->err) && encode_whole(&m, &text, &chunk, c->err);
        ok = ok && chunk_positions(&m, &chunk, c->err) && classify_chunks(&m, &chunk, chunk.T ? 1 : 0, c->err);
        if (ok) put_probabilities(&m, &chunk, c->json, &out);
        ok = ok && print_out(&out, c->err);
    }
    chunk_free(&chunk);
    model_close(&m);
    bytes_free(&ids);
    bytes_free(&text);
    bytes_free(&out);
    return ok;
}

/* Strings as the reference's tokenize() gives them. */
static void put_pieces(const Tokenizer *t, const Bytes *text, const Pieces *p, bool json, Bytes *out) {
    for (size_t i = 0; !json && i < p->n; i++) {
        const Slice piece = piece_string(t, text, p, i);
        bytes_printf(out, "%lu\t%zu\t%zu\t", (unsigned long)p->id[i], p->start[i], p->end[i]);
        bytes_add(out, piece.at, piece.len);
        bytes_add(out, "\n", 1);
    }
    if (!json) return;
    bytes_text(out, "{\"ids\": [");
    for (size_t i = 0; i < p->n; i++) bytes_printf(out, "%s%lu", i ? ", " : "", (unsigned long)p->id[i]);
    bytes_text(out, "], \"pieces\": [");
    for (size_t i = 0; i < p->n; i++) {
        const Slice piece = piece_string(t, text, p, i);
        if (i) bytes_text(out, ", ");
        json_put_string(out, piece.at, piece.len);
    }
    bytes_text(out, "], \"offsets\": [");
    for (size_t i = 0; i < p->n; i++) bytes_printf(out, "%s[%zu, %zu]", i ? ", " : "", p->start[i], p->end[i]);
    bytes_text(out, "]}\n");
}

bool command_tokenize(Common *c, int argc, char **argv) {
    Bytes vocab = {0}, text = {0}, path = {0}, out = {0};
    bool done = false;
    const CliOption own[] = {{"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "any exported model (default: the embedded one)"},
                             {"vocab", "cl100k_base", CLI_TEXT, &vocab, 0, 0, "the counting vocabulary instead of a model's; text is only text"}};
    Weights *w = NULL;
    Tokenizer *t = NULL;
    Pieces p = {0};
    bool ok = command_start(c, "usage: lingua2 tokenize [options] [FILE|-]\nIds, pieces and byte offsets of one text; no special tokens are added.", own, 2, argc, argv, &done);
    if (ok && !done && c->file.n > 1) ok = fail(c->err, BAD_USAGE, "tokenize takes one text: a file or standard input");
    if (ok && !done && vocab.at && (!bytes_are(&vocab, "cl100k_base", 11) || c->model.len))
        ok = fail(c->err, BAD_USAGE, "--vocab is cl100k_base, and goes without --model; not '%.50s'", vocab.at);
    if (ok && !done) {
        if (vocab.at || !c->model.len) models_path(c, vocab.at ? "cl100k_base.safetensors" : "default.safetensors", &path);
        else bytes_add(&path, c->model.at, c->model.len);
        ok = open_tokenizer_file(path.at, &w, &t, c->err) && read_text(c->file.n ? c->file.at[0].at : "-", &text, c->err) &&
             tokenizer_encode(t, text.at, text.len, vocab.at ? TOK_PLAIN : TOK_ADDED, &p, c->err);
        if (ok) put_pieces(t, &text, &p, c->json, &out);
        ok = ok && print_out(&out, c->err);
    }
    pieces_free(&p);
    tokenizer_close(t);
    if (t) weights_close(w);
    bytes_free(&vocab);
    bytes_free(&text);
    bytes_free(&path);
    bytes_free(&out);
    return ok;
}

bool command_info(Common *c, int argc, char **argv) {
    Bytes path = {0};
    bool done = false;
    bool ok = command_start(c, "usage: lingua2 info [options] [MODEL]\nWhat a model file holds.", NULL, 0, argc, argv, &done);
    if (ok && !done && c->file.n > 1) ok = fail(c->err, BAD_USAGE, "info takes one model file");
    if (c->file.n) bytes_set(&path, c->file.at[0].at, c->file.at[0].len);
    else models_path(c, "default.safetensors", &path);
    ok = ok && (done || print_info(path.at, c->json, c->err));
    bytes_free(&path);
    return ok;
}
