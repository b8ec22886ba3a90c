/* mend_cli.c - mend's commands: what each is asked, and how it prints what mend.c and mend_eval.c found. Text or JSON on standard output. */
#include "mend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ==== commands that ask a language model ========================================================================================== */

/* What the commands that ask a language model take, and what they open. */
typedef struct {
    Common *c;
    Bytes lm_path, mend_path, demos_path, vectors_path;
    bool channel, encoder_input, separate_input;
    double groups, label_rows;
    Model lm, mend;
    Examples demos;
    Context context;
} Asking;

#define ASKING_OPTIONS(a)                                                                                                                      \
    {"-l, llm", "FILE", CLI_TEXT, &(a).lm_path, 0, 0, "the language model, a GPT-2 or T5 made by export.py"},                                     \
    {"-d, demonstrations", "FILE", CLI_TEXT, &(a).demos_path, 0, 0, "demonstrations, JSON lines: {\"input\", \"output\", \"options\"}"},             \
    {"-m, mend", "FILE", CLI_TEXT, &(a).mend_path, 0, 0, "the distiller: -d is distilled; without it -d is put before each query"},                 \
    {"-v, vectors", "FILE", CLI_TEXT, &(a).vectors_path, 0, 0, "vectors made by mend distill, in place of -m and -d"},                             \
    {"channel", NULL, CLI_FLAG, &(a).channel, 0, 0, "score p(input | option) instead of p(option | input)"},                                       \
    {"encoder-input", NULL, CLI_FLAG, &(a).encoder_input, 0, 0, "T5: the input stands on the encoder's side"}
#define DISTILLING_OPTIONS(a)                                                                                                                  \
    {"groups", "N", CLI_WHOLE, &(a).groups, 1, 10000, "distil the demonstrations in N groups and concatenate (default 1)"},                         \
    {"label-rows", "N", CLI_WHOLE, &(a).label_rows, 1, 100000, "the last N rows of the distiller's prompt see labels alone"},                       \
    {"separate-input", NULL, CLI_FLAG, &(a).separate_input, 0, 0, "and the others see inputs alone"}

static Distilling distilling_of(const Asking *a) {
    return (Distilling){a->groups > 0 ? (size_t)a->groups : 1, a->label_rows > 0 ? (size_t)a->label_rows : 0, a->separate_input};
}

static void asking_free(Asking *a) {
    context_free(&a->context);
    examples_free(&a->demos);
    model_close(&a->lm);
    model_close(&a->mend);
    bytes_free(&a->lm_path);
    bytes_free(&a->mend_path);
    bytes_free(&a->demos_path);
    bytes_free(&a->vectors_path);
}

/* Open what the options name and read what all queries share. */
static bool asking_begin(Asking *a) {
    Error *err = a->c->err;
    Context *c = &a->context;
    const Distilling d = distilling_of(a);
    if (!a->lm_path.len) return fail(err, BAD_USAGE, "-l is missing: which language model?");
    if (a->vectors_path.len && (a->mend_path.len || a->demos_path.len)) return fail(err, BAD_USAGE, "-v stands for -m and -d: give either");
    if (a->mend_path.len && !a->demos_path.len) return fail(err, BAD_USAGE, "-m distils demonstrations: give them with -d");
    if (!a->mend_path.len && (a->groups > 0 || a->label_rows > 0 || a->separate_input)) return fail(err, BAD_USAGE, "--groups, --label-rows and --separate-input go with -m");
    if (a->separate_input && a->label_rows == 0) return fail(err, BAD_USAGE, "--separate-input goes with --label-rows");
    if (!model_open(&a->lm, a->lm_path.at, LANGUAGE_MODEL, err)) return false;
    if (a->encoder_input && a->lm.kind != T5) return fail(err, BAD_USAGE, "--encoder-input goes with a T5");
    c->lm = &a->lm;
    c->format = format_of(&a->lm, TEACHER_LIMIT, a->channel, a->encoder_input);
    if (a->demos_path.len && !read_examples(a->demos_path.at, true, &a->demos, err)) return false;
    if (a->vectors_path.len && !read_vectors(a->vectors_path.at, &a->lm, &c->vectors, err)) return false;
    if (a->mend_path.len &&
        (!model_open(&a->mend, a->mend_path.at, DISTILLER, err) || !distill(&a->mend, &a->demos, &d, &c->format, &c->vectors, err)))
        return false;
    if (!a->mend_path.len && !demonstrations(&a->lm, &a->demos, 0, a->demos.n, &c->format, &c->demos, NULL, err)) return false;
    return context_begin(c, err);
}

static void put_score(const Example *q, const double *score, bool json, Bytes *out) {
    const size_t B = q->options.n, first = best(score, B);
    if (json) {
        bytes_text(out, "{\"scores\": ");
        json_put_doubles(out, score, B);
        bytes_printf(out, ", \"prediction\": %zu}\n", first);
        return;
    }
    bytes_printf(out, "%zu\t%.*s\t", first, (int)q->options.at[first].len, q->options.at[first].at);
    for (size_t b = 0; b < B; b++) bytes_printf(out, "%s%.6f", b ? " " : "", score[b]);
    bytes_text(out, "\n");
}

bool command_score(Common *c, int argc, char **argv) {
    Asking a = {.c = c};
    Examples queries = {0};
    const CliOption own[] = {ASKING_OPTIONS(a), DISTILLING_OPTIONS(a)};
    const time_t begun = time(NULL);
    bool done = false;
    bool ok = command_start(c, "usage: mend score -l LLM [-v VECTORS | -m MEND -d DEMOS | -d DEMOS] [options] [INPUT.jsonl|-]\n"
                            "The mean log probability of each option of each line, and the index of the highest. Neither -v, -m nor -d: zero-shot.",
                            own, sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && c->file.n > 1) ok = fail(c->err, BAD_USAGE, "score takes one file of queries");
    const char *path = c->file.n ? c->file.at[0].at : "-";
    if (ok && !done) ok = read_examples(path, false, &queries, c->err) && asking_begin(&a);
    for (size_t i = 0; ok && i < queries.n; i++) {
        double *score = mem_new(queries.at[i].options.n, sizeof *score);
        Bytes out = {0};
        Error detail;
        ok = score_query(&a.context, &queries.at[i], score, &detail) || fail(c->err, detail.code, "%s: example %zu: %.800s", path, i + 1, detail.text);
        if (ok) put_score(&queries.at[i], score, c->json, &out);
        ok = ok && print_out(&out, c->err);
        if (ok) show_progress(c, "scored", i + 1, queries.n, begun);
        bytes_free(&out);
        free(score);
    }
    examples_free(&queries);
    asking_free(&a);
    return ok;
}

/* ==== distil, generate, log p ===================================================================================================== */

bool command_distill(Common *c, int argc, char **argv) {
    Asking a = {.c = c};
    Bytes output = {0}, text = {0};
    Vectors v = {0};
    char hash[65];
    const CliOption own[] = {{"-m, mend", "FILE", CLI_TEXT, &a.mend_path, 0, 0, "the distiller, a MEND checkpoint made by export.py --mend"},
                             {"-d, demonstrations", "FILE", CLI_TEXT, &a.demos_path, 0, 0, "demonstrations, JSON lines: {\"input\", \"output\"}"},
                             {"-o, output", "FILE", CLI_TEXT, &output, 0, 0, "where the vectors go, a safetensors file"},
                             {"-l, llm", "FILE", CLI_TEXT, &a.lm_path, 0, 0, "the language model they are for: recorded, and checked when they are used"},
                             {"channel", NULL, CLI_FLAG, &a.channel, 0, 0, "pairs are (output, input)"},
                             DISTILLING_OPTIONS(a)};
    bool done = false;
    bool ok = command_start(c, "usage: mend distill -m MEND -d DEMOS.jsonl -o VECTORS.safetensors [options]\nDemonstrations to vectors, once.", own,
                            sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done) {
        const Distilling d = distilling_of(&a);
        if (c->file.n || !a.mend_path.len || !a.demos_path.len || !output.len) ok = fail(c->err, BAD_USAGE, "distill wants -m MEND, -d DEMOS and -o VECTORS, and nothing else");
        else if (d.separate_input && !d.label_rows) ok = fail(c->err, BAD_USAGE, "--separate-input goes with --label-rows");
        ok = ok && read_text(a.demos_path.at, &text, c->err) && read_examples(a.demos_path.at, true, &a.demos, c->err) &&
             model_open(&a.mend, a.mend_path.at, DISTILLER, c->err) && (!a.lm_path.len || model_open(&a.lm, a.lm_path.at, LANGUAGE_MODEL, c->err));
        if (ok && a.lm_path.len && a.lm.size[LETTER_C] != a.mend.size[LETTER_O])
            ok = fail(c->err, BAD_MODEL, "%s makes vectors %zu wide, %s reads %zu", a.mend_path.at, a.mend.size[LETTER_O], a.lm_path.at, a.lm.size[LETTER_C]);
        ok = ok && distill(&a.mend, &a.demos, &d, &(Format){.channel = a.channel}, &v, c->err);
        if (ok) sha256_hex(text.at, text.len, hash);
        ok = ok && write_vectors(output.at, &v, &a.mend, a.lm_path.len ? &a.lm : NULL, hash, c->err);
        if (ok && !c->quiet) fprintf(stderr, "%s: %zu demonstrations in %zu vectors of %zu\n", output.at, a.demos.n, v.n, v.O);
    }
    free(v.at);
    bytes_free(&text);
    bytes_free(&output);
    asking_free(&a);
    return ok;
}

bool command_generate(Common *c, int argc, char **argv) {
    Asking a = {.c = c};
    Bytes prompt = {0}, out = {0}, id_text = {0};
    Sampling s = {.top_p = 1};
    Ids ids = {0}, made = {0};
    double n = 32, seed = 0;
    const CliOption own[] = {ASKING_OPTIONS(a), DISTILLING_OPTIONS(a),
                             {"prompt", "TEXT", CLI_TEXT, &prompt, 0, 0, "what to go on from"},
                             {"ids", "1,2,3", CLI_TEXT, &id_text, 0, 0, "these piece ids instead"},
                             {"-n, length", "N", CLI_WHOLE, &n, 1, 1e6, "how many pieces at most (default 32)"},
                             {"temperature", "T", CLI_NUMBER, &s.temperature, 0, 1e6, "0, the default: always the most probable piece"},
                             {"top-p", "P", CLI_NUMBER, &s.top_p, 0, 1, "choose among the smallest set of pieces that holds P (default 1)"},
                             {"seed", "S", CLI_WHOLE, &seed, 0, 9007199254740992.0, "of the random numbers (default 0)"}};
    bool done = false;
    bool ok = command_start(c, "usage: mend generate -l LLM [-v VECTORS | -m MEND -d DEMOS | -d DEMOS] --prompt TEXT [options]\nText that follows.", own,
                            sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && (c->file.n || (prompt.at && id_text.at))) ok = fail(c->err, BAD_USAGE, "generate takes --prompt or --ids, and no file");
    if (ok && !done) {
        size_t bad;
        s.seed = (uint64_t)seed;
        if (prompt.at && !utf8_valid(prompt.at, prompt.len, &bad)) ok = fail(c->err, BAD_INPUT, "--prompt: byte %zu: the text is not UTF-8", bad);
        ok = ok && asking_begin(&a) && (id_text.at ? parse_ids(&id_text, &ids.at, &ids.n, c->err) : !prompt.len || pieces_of(&a.lm, &prompt, false, &ids, c->err));
        for (size_t i = 0; ok && i < ids.n; i++)
            if (ids.at[i] >= a.lm.size[LETTER_V]) ok = fail(c->err, BAD_INPUT, "there is no piece %lu: the model has %zu", (unsigned long)ids.at[i], a.lm.size[LETTER_V]);
        ok = ok && generate(&a.context, &ids, (size_t)n, &s, &made, c->err);
        if (ok && c->json) {
            bytes_text(&out, "{\"ids\": [");
            for (size_t i = 0; i < made.n; i++) bytes_printf(&out, "%s%lu", i ? ", " : "", (unsigned long)made.at[i]);
            bytes_text(&out, "]");
        }
        if (ok && a.lm.tokenizer) {
            Bytes text = {0};
            ok = tokenizer_decode(a.lm.tokenizer, made.at, made.n, &text, c->err);
            if (c->json) bytes_text(&out, ", \"text\": "), json_put_string(&out, text.at ? text.at : "", text.len);
            else bytes_add(&out, text.at ? text.at : "", text.len);
            bytes_free(&text);
        } else if (ok && !c->json)
            for (size_t i = 0; i < made.n; i++) bytes_printf(&out, "%s%lu", i ? "," : "", (unsigned long)made.at[i]);
        bytes_text(&out, c->json ? "}\n" : "\n");
        ok = ok && print_out(&out, c->err);
    }
    bytes_free(&prompt), bytes_free(&out), bytes_free(&id_text);
    ids_free(&ids), ids_free(&made);
    asking_free(&a);
    return ok;
}

/* Ids from --name 1,2,3 or the pieces of a text. */
static bool take_ids(const Model *m, const Bytes *list, const Bytes *text, Ids *ids, Error *err) {
    if (list->at ? !parse_ids(list, &ids->at, &ids->n, err) : !pieces_of(m, text, false, ids, err)) return false;
    for (size_t i = 0; i < ids->n; i++)
        if (ids->at[i] >= m->size[LETTER_V]) return fail(err, BAD_INPUT, "there is no piece %lu: the model has %zu", (unsigned long)ids->at[i], m->size[LETTER_V]);
    return ids->n > 0 || fail(err, BAD_INPUT, "the text is empty");
}

static void put_logprobs(const Model *m, const Ids *ids, const float *lp, size_t n, bool json, Bytes *out) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)lp[i];
    const double perplexity = (double)cr_one(CR_EXP, (float)(-sum / (double)n));
    if (!json) {
        for (size_t i = 0; i < n; i++) {
            const uint32_t id = ids->at[ids->n - n + i];
            size_t len = 0;
            const char *piece = m->tokenizer ? tokenizer_piece(m->tokenizer, id, &len) : NULL;
            bytes_printf(out, "%.6f\t%lu\t%.*s\n", (double)lp[i], (unsigned long)id, (int)len, piece ? piece : "");
        }
        if (n) bytes_printf(out, "perplexity %.4f\n", perplexity);
        return;
    }
    bytes_text(out, "{\"ids\": [");
    for (size_t i = 0; i < ids->n; i++) bytes_printf(out, "%s%lu", i ? ", " : "", (unsigned long)ids->at[i]);
    bytes_text(out, "], \"logprob\": [");
    for (size_t i = 0; i < n; i++) {
        if (i) bytes_text(out, ", ");
        json_put_double(out, (double)lp[i]);
    }
    bytes_text(out, "], \"perplexity\": ");
    if (n) json_put_double(out, perplexity);
    else bytes_text(out, "null");
    bytes_text(out, "}\n");
}

bool command_logprob(Common *c, int argc, char **argv) {
    Bytes path = {0}, list = {0}, source_list = {0}, source_text = {0}, text = {0}, out = {0};
    Model m = {0};
    Ids ids = {0}, source = {0};
    const CliOption own[] = {{"-l, llm", "FILE", CLI_TEXT, &path, 0, 0, "the language model, a GPT-2 or T5 made by export.py"},
                             {"ids", "1,2,3", CLI_TEXT, &list, 0, 0, "these piece ids instead of a text"},
                             {"encoder-ids", "1,2,3", CLI_TEXT, &source_list, 0, 0, "T5: what the encoder reads, as ids"},
                             {"encoder-text", "TEXT", CLI_TEXT, &source_text, 0, 0, "T5: what the encoder reads"}};
    bool done = false;
    bool ok = command_start(c, "usage: mend logprob -l LLM [--ids 1,2,3 | FILE|-]\nlog p of each piece given those before it, and the perplexity. GPT-2: the first piece has none before it;\n"
                            "T5: the decoder's start piece stands before the first.", own, sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && (c->file.n > 1 || (list.at && c->file.n) || !path.len)) ok = fail(c->err, BAD_USAGE, "logprob takes -l LLM and one text: a file, standard input, or --ids");
    if (ok && !done) {
        ok = model_open(&m, path.at, LANGUAGE_MODEL, c->err);
        const bool has_source = source_list.at || source_text.at;
        if (ok && has_source != (m.kind == T5)) ok = fail(c->err, BAD_USAGE, m.kind == T5 ? "a T5 needs --encoder-ids or --encoder-text" : "--encoder-ids and --encoder-text go with a T5");
        ok = ok && (list.at || read_text(c->file.n ? c->file.at[0].at : "-", &text, c->err)) && take_ids(&m, &list, &text, &ids, c->err) &&
             (!has_source || take_ids(&m, &source_list, &source_text, &source, c->err));
        const size_t n = ok ? ids.n - (m.kind == T5 ? 0 : 1) : 0;
        float *lp = mem_new(n, sizeof *lp);
        ok = ok && logprobs(&m, &ids, &source, lp, c->err);
        if (ok) put_logprobs(&m, &ids, lp, n, c->json, &out);
        ok = ok && print_out(&out, c->err);
        free(lp);
    }
    bytes_free(&path), bytes_free(&list), bytes_free(&source_list), bytes_free(&source_text), bytes_free(&text), bytes_free(&out);
    ids_free(&ids), ids_free(&source);
    model_close(&m);
    return ok;
}

/* ==== cost and evaluation ========================================================================================================= */

static void put_bills(const Bill *bill, size_t n, size_t queries, bool json, Bytes *out) {
    const Bill *mend = &bill[n - 1];
    if (json) bytes_printf(out, "{\"queries\": %zu, \"methods\": [", queries);
    else bytes_printf(out, "%-28s %14s %10s %14s %12s %14s %22s\n", "", "GFLOP once", "s once", "GFLOP / query", "ms / query", "GFLOP in all", "MEND cheaper after");
    for (size_t i = 0; i < n; i++) {
        const Bill *b = &bill[i];
        const double all = b->once + b->query * (double)queries, even = i + 1 < n ? break_even(mend, b) : 0;
        if (json) {
            bytes_printf(out, "%s{\"method\": \"%s\", \"flops_once\": ", i ? ", " : "", b->name);
            json_put_double(out, b->once);
            bytes_text(out, ", \"seconds_once\": "), json_put_double(out, b->once_seconds);
            bytes_text(out, ", \"flops_per_query\": "), json_put_double(out, b->query);
            bytes_text(out, ", \"seconds_per_query\": "), json_put_double(out, b->query_seconds);
            bytes_text(out, ", \"mend_cheaper_after_queries\": ");
            if (i + 1 == n || isinf(even)) bytes_text(out, "null");
            else json_put_double(out, even);
            bytes_text(out, "}");
            continue;
        }
        bytes_printf(out, "%-28s %14.4f %10.3f %14.4f %12.2f %14.3f", b->name, b->once * 1e-9, b->once_seconds, b->query * 1e-9, b->query_seconds * 1e3, all * 1e-9);
        if (i + 1 == n) bytes_text(out, "\n");
        else if (isinf(even)) bytes_printf(out, " %22s\n", "never");
        else bytes_printf(out, " %14.0f queries\n", even);
    }
    if (json) bytes_text(out, "]}\n");
}

bool command_cost(Common *c, int argc, char **argv) {
    Asking a = {.c = c};
    Examples queries = {0};
    Bytes out = {0};
    Bill bill[BILLS];
    size_t first = 0;
    const CliOption own[] = {{"-l, llm", "FILE", CLI_TEXT, &a.lm_path, 0, 0, "the language model"},
                             {"-m, mend", "FILE", CLI_TEXT, &a.mend_path, 0, 0, "the distiller"},
                             {"-d, demonstrations", "FILE", CLI_TEXT, &a.demos_path, 0, 0, "demonstrations, JSON lines"},
                             {"groups", "N", CLI_WHOLE, &a.groups, 1, 10000, "distil the demonstrations in N groups and concatenate (default 1)"}};
    bool done = false;
    bool ok = command_start(c, "usage: mend cost -l LLM -m MEND -d DEMOS.jsonl [options] [INPUT.jsonl|-]\nWhat the queries of a file cost by each method: operations counted from the shapes and checked against\n"
                            "those done, and seconds; after how many queries MEND, its distiller included, has cost less.", own, sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && (c->file.n > 1 || !a.lm_path.len || !a.mend_path.len || !a.demos_path.len)) ok = fail(c->err, BAD_USAGE, "cost wants -l LLM, -m MEND, -d DEMOS and one file of queries");
    if (ok && !done)
        ok = read_examples(c->file.n ? c->file.at[0].at : "-", false, &queries, c->err) && read_examples(a.demos_path.at, true, &a.demos, c->err) &&
             model_open(&a.lm, a.lm_path.at, LANGUAGE_MODEL, c->err) && model_open(&a.mend, a.mend_path.at, DISTILLER, c->err);
    if (ok && !done) {
        const Distilling d = distilling_of(&a);
        ok = cost(&a.lm, &a.mend, &d, &a.demos, &queries, bill, &first, c->err);
        if (ok) put_bills(bill + first, BILLS - first, queries.n, c->json, &out);
    }
    ok = ok && print_out(&out, c->err);
    bytes_free(&out);
    examples_free(&queries);
    asking_free(&a);
    return ok;
}

/* A row per task, method and ablation, then the mean over tasks of the means over seeds (task: NULL). */
static void put_row(const char *task, Method m, Ablation a, size_t seeds, double mean, double deviation, bool json, Bytes *out) {
    const char *name = task ? task : "mean over tasks";
    if (!json) {
        bytes_printf(out, "%-40s %-8s %-14s %6zu %10.4f", name, method_names[m], ablation_names[a], seeds, mean);
        if (task) bytes_printf(out, " %10.4f", deviation);
        bytes_text(out, "\n");
        return;
    }
    bytes_printf(out, "%s{\"task\": ", out->at[out->len - 1] == '[' ? "" : ", ");
    json_put_string(out, name, strlen(name));
    bytes_printf(out, ", \"method\": \"%s\", \"ablation\": \"%s\", \"seeds\": %zu, \"mean\": ", method_names[m], ablation_names[a], seeds);
    json_put_double(out, mean);
    bytes_text(out, ", \"deviation\": ");
    if (task) json_put_double(out, deviation);
    else bytes_text(out, "null");
    bytes_text(out, "}");
}

static void put_evaluation(const Evaluation *e, bool json, Bytes *out) {
    if (json) bytes_text(out, "{\"results\": [");
    else bytes_printf(out, "%-40s %-8s %-14s %6s %10s %10s\n", "task", "method", "ablation", "seeds", "mean", "deviation");
    for (Method m = 0; m < METHODS; m++)
        for (Ablation a = 0; a < ABLATIONS; a++) {
            if (!e->method[m] || !e->ablation[a]) continue;
            double total = 0, mean, deviation;
            for (size_t t = 0; t < e->task.n; t++) {
                spread_of(e, &e->task.at[t], m, a, &mean, &deviation);
                put_row(e->task.at[t].at, m, a, e->seed.n, mean, deviation, json, out);
                total += mean;
            }
            put_row(NULL, m, a, e->seed.n, total / (double)e->task.n, 0, json, out);
        }
    if (json) bytes_text(out, "]}\n");
}

/* What `mend eval` was asked for beside what Asking holds. */
typedef struct {
    Bytes partition, partitions;
    Texts method, ablation;
    double K;
    Vectors prompt;
} Wishes;

/* Mark the names that are there, or `most` first ones if there are none. */
static bool mark_names(const Texts *list, const char *const *name, size_t n, size_t most, const char *option, bool *mark, Error *err) {
    for (size_t i = 0; list->n == 0 && i < most; i++) mark[i] = true;
    for (size_t i = 0; i < list->n; i++) {
        size_t at = 0;
        while (at < n && strcmp(list->at[i].at, name[at])) at++;
        if (at < n) {
            mark[at] = true;
            continue;
        }
        Bytes all = {0};
        for (size_t k = 0; k < n; k++) bytes_printf(&all, "%s%s", k ? ", " : "", name[k]);
        fail(err, BAD_USAGE, "%s is one of %s, not '%.50s'", option, all.at, list->at[i].at);
        bytes_free(&all);
        return false;
    }
    return true;
}

/* Open the models, complete the lists, read what is there. */
static bool evaluation_begin(Asking *a, Wishes *w, Evaluation *e, Error *err) {
    static const char *const seeds[] = {"100", "13", "21", "42", "87"};
    if (!a->lm_path.len || !e->data.len) return fail(err, BAD_USAGE, "eval wants -l LLM and --data DIR");
    if (!mark_names(&w->method, method_names, METHODS, a->mend_path.len ? MEND + 1 : ICL + 1, "--method", e->method, err) ||
        !mark_names(&w->ablation, ablation_names, ABLATIONS, NONE + 1, "--ablation", e->ablation, err))
        return false;
    if (e->method[MEND] && !a->mend_path.len) return fail(err, BAD_USAGE, "--method mend needs a distiller: -m");
    if (e->method[PROMPT] && !a->vectors_path.len) return fail(err, BAD_USAGE, "--method prompt needs tuned vectors: -v");
    if (w->partition.len && !w->partitions.len) return fail(err, BAD_USAGE, "--partition is looked up in a file: give it with --partitions");
    if (w->partitions.len && !read_partition(e, w->partitions.at, &w->partition, err)) return false;
    if (e->task.n == 0) return fail(err, BAD_USAGE, "no task: give --task, or --partitions FILE and --partition NAME");
    if (!e->split.len) bytes_set(&e->split, "test", 4);
    const bool some = e->seed.n > 0;
    for (size_t i = 0; !some && i < sizeof seeds / sizeof *seeds; i++) texts_add(&e->seed, seeds[i], strlen(seeds[i]));
    e->K = (size_t)w->K;
    if (!model_open(&a->lm, a->lm_path.at, LANGUAGE_MODEL, err) || (a->mend_path.len && !model_open(&a->mend, a->mend_path.at, DISTILLER, err)) ||
        (a->vectors_path.len && !read_vectors(a->vectors_path.at, &a->lm, &w->prompt, err)))
        return false;
    e->setting = (Setting){.lm = &a->lm, .mend = &a->mend, .prompt = &w->prompt, .distilling = distilling_of(a),
                           .format = format_of(&a->lm, TEACHER_LIMIT, a->channel, a->encoder_input)};
    return read_results(e, err);
}

bool command_eval(Common *c, int argc, char **argv) {
    Asking a = {.c = c};
    Wishes w = {.K = 16};
    Evaluation e = {0};
    Bytes out = {0};
    const CliOption own[] = {{"-l, llm", "FILE", CLI_TEXT, &a.lm_path, 0, 0, "the language model"},
                             {"-m, mend", "FILE", CLI_TEXT, &a.mend_path, 0, 0, "the distiller, for the method mend"},
                             {"-v, vectors", "FILE", CLI_TEXT, &a.vectors_path, 0, 0, "tuned vectors, for the method prompt"},
                             {"data", "DIR", CLI_TEXT, &e.data, 0, 0, "MetaICL's layout: DIR/TASK/TASK_16_SEED_train.jsonl"},
                             {"task", "NAME", CLI_TEXTS, &e.task, 0, 0, "a task (repeatable)"},
                             {"partitions", "FILE", CLI_TEXT, &w.partitions, 0, 0, "JSON: partitions, and which tasks are \"classification\" (data/partitions.json)"},
                             {"partition", "NAME", CLI_TEXT, &w.partition, 0, 0, "the test tasks of this partition"},
                             {"seed", "S", CLI_WHOLES, &e.seed, 0, 1e15, "whose demonstrations (repeatable; default 100, 13, 21, 42, 87)"},
                             {"method", "NAME", CLI_TEXTS, &w.method, 0, 0, "zero, icl, mend or prompt (repeatable)"},
                             {"ablation", "NAME", CLI_TEXTS, &w.ablation, 0, 0, "none, no-input, no-label, random-label, wrong-label, itself, shuffled (repeatable)"},
                             {"-k, demonstrations", "K", CLI_WHOLE, &w.K, 1, 10000, "how many demonstrations (default 16)"},
                             {"split", "NAME", CLI_TEXT, &e.split, 0, 0, "which file holds the queries (default test)"},
                             {"-o, output", "FILE", CLI_TEXT, &e.output, 0, 0, "results as JSON lines; those in it already are not computed again"},
                             {"channel", NULL, CLI_FLAG, &a.channel, 0, 0, "score p(input | option)"},
                             {"encoder-input", NULL, CLI_FLAG, &a.encoder_input, 0, 0, "T5: the input stands on the encoder's side"},
                             DISTILLING_OPTIONS(a)};
    bool done = false;
    bool ok = command_start(c, "usage: mend eval -l LLM [-m MEND] --data DIR --task NAME|--partition NAME [options]\nTasks, seeds and methods: macro-F1 of classification tasks, accuracy of others; mean and deviation over seeds.",
                            own, sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && c->file.n) ok = fail(c->err, BAD_USAGE, "eval takes options alone");
    if (ok && !done) {
        ok = evaluation_begin(&a, &w, &e, c->err) && evaluate(&e, c, c->err);
        if (ok) put_evaluation(&e, c->json, &out);
        ok = ok && print_out(&out, c->err);
    }
    bytes_free(&w.partition), bytes_free(&w.partitions), bytes_free(&out);
    texts_free(&w.method), texts_free(&w.ablation);
    free(w.prompt.at);
    evaluation_free(&e);
    asking_free(&a);
    return ok;
}

bool command_info(Common *c, int argc, char **argv) {
    bool done = false;
    bool ok = command_start(c, "usage: mend info [options] MODEL\nWhat a model or vectors file holds.", NULL, 0, argc, argv, &done);
    if (ok && !done && c->file.n != 1) ok = fail(c->err, BAD_USAGE, "info takes one model file");
    return ok && (done || print_info(c->file.at[0].at, c->json, c->err));
}
