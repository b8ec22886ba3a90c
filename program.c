/* program.c - see program.h. */
#include "program.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "posix.h"
#include "tensor.h"

/* ---- in and out ---- */

bool print_out(const Bytes *text, Error *err) {
    if (text->len && (fwrite(text->at, 1, text->len, stdout) != text->len || fflush(stdout) != 0))
        return fail(err, BAD_SYSTEM, "standard output cannot be written: %s", strerror(errno));
    return true;
}

void show_progress(const Common *c, const char *what, size_t done, size_t all, time_t begun) {
    if (c->quiet || !isatty(STDERR_FILENO)) return;
    const double spent = difftime(time(NULL), begun);
    fprintf(stderr, "\r%s %zu of %zu, %.0f s left   %s", what, done, all, done ? spent / (double)done * (double)(all - done) : 0, done == all ? "\n" : "");
}

bool read_text(const char *path, Bytes *text, Error *err) {
    size_t bad;
    if (!file_read(path, text, err)) return false;
    if (utf8_valid(text->at, text->len, &bad)) return true;
    bytes_free(text);
    return fail(err, BAD_INPUT, "%s: byte %zu: the text is not UTF-8", path, bad);
}

bool next_line(FILE *f, Bytes *line) {
    line->len = 0;
    int c;
    while ((c = getc(f)) != EOF && c != '\n') {
        char byte = (char)c;
        bytes_add(line, &byte, 1);
    }
    return c != EOF || line->len > 0;
}

bool parse_ids(const Bytes *text, uint32_t **id, size_t *n, Error *err) {
    const char *at = text->at;
    *id = mem_new(text->len / 2 + 1, sizeof **id);
    for (;;) {
        size_t digits = strspn(at, "0123456789");
        if (digits == 0 || digits > 9) return fail(err, BAD_USAGE, "--ids takes whole numbers with commas between them, not '%.50s'", at);
        (*id)[(*n)++] = (uint32_t)strtoul(at, NULL, 10);
        at += digits;
        if (*at == 0) return true;
        if (*at++ != ',') return fail(err, BAD_USAGE, "--ids takes whole numbers with commas between them, not '%.50s'", at - 1);
    }
}

/* ---- model files ---- */

#ifndef SHARE
#define SHARE "/usr/local/share/lingua2" /* where `make install` puts models/ */
#endif

void models_path(const Common *c, const char *name, Bytes *path) {
    static const char *const beside[] = {"models", "../share/lingua2/models"}; /* of the program in its source tree; of the program in PREFIX/bin */
    char self[4096];
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    if (len < 0) len = snprintf(self, sizeof self, "%s", c->called);
    if (len >= (ssize_t)sizeof self) len = 0;
    self[len] = 0;
    const char *slash = strrchr(self, '/');
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
        path->len = 0;
        bytes_printf(path, "%.*s/%s/%s", slash ? (int)(slash - self) : 1, slash ? self : ".", beside[i], name);
        if (access(path->at, R_OK) == 0) return;
    }
    path->len = 0;
    bytes_printf(path, "%s/models/%s", SHARE, name);
}

bool open_tokenizer_file(const char *path, Weights **w, Tokenizer **t, Error *err) {
    if (!weights_open(w, path, err)) return false;
    if (tokenizer_open(t, *w, err)) return true;
    weights_close(*w);
    return false;
}

static void put_shape(const Tensor *t, Bytes *out) {
    bytes_text(out, "[");
    for (size_t d = 0; d < t->dims; d++) bytes_printf(out, "%s%zu", d ? ", " : "", t->shape[d]);
    bytes_text(out, "]");
}

static size_t parameters(const Weights *w) {
    size_t n = 0;
    for (size_t i = 0; i < weights_count(w); i++) n += weights_at(w, i)->dtype == DTYPE_F32 ? weights_at(w, i)->count : 0;
    return n;
}

/* Everything as it stands in the file. */
static void put_info_json(const Weights *w, Bytes *out) {
    static const char *const meta[] = {"format", "architecture", "family", "config", "tokenizer", "new_token_base", "source_sha256", "content_sha256", "demonstrations_sha256", "distiller_sha256",
                                       "llm_sha256"};
    bytes_text(out, "{\"metadata\": {");
    for (size_t i = 0, shown = 0; i < sizeof meta / sizeof *meta; i++) {
        const char *value = weights_meta(w, meta[i]);
        if (!value) continue;
        bytes_printf(out, "%s\"%s\": ", shown++ ? ", " : "", meta[i]);
        json_put_string(out, value, strlen(value));
    }
    bytes_text(out, "}, \"tensors\": [");
    for (size_t i = 0; i < weights_count(w); i++) {
        const Tensor *t = weights_at(w, i);
        bytes_printf(out, "%s{\"name\": ", i ? ", " : "");
        json_put_string(out, t->name, strlen(t->name));
        bytes_printf(out, ", \"dtype\": \"%s\", \"shape\": ", dtype_name(t->dtype));
        put_shape(t, out);
        bytes_text(out, "}");
    }
    bytes_printf(out, "], \"parameters\": %zu, \"bytes\": %zu}\n", parameters(w), weights_bytes(w));
}

/* A line of those keys of a JSON object that are there and hold something plain. */
static void put_keys(const char *label, const Json *j, const char *const *key, size_t n, Bytes *out) {
    bool shown = false;
    for (size_t i = 0; i < n; i++) {
        const Json *value = json_get(j, key[i]);
        if (!value || value->type == JSON_NULL || value->type == JSON_ARRAY || value->type == JSON_OBJECT) continue;
        if (shown) bytes_printf(out, ", %s ", key[i]);
        else bytes_printf(out, "%-16s %s ", label, key[i]);
        json_put(out, value);
        shown = true;
    }
    if (shown) bytes_text(out, "\n");
}

/* The sizes of the model and what its vocabulary is. */
static void put_settings(const Weights *w, Bytes *out) {
    static const char *const sizes[] = {"num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "max_position_embeddings", "hidden_act", "n_layer", "n_head", "n_embd",
                                        "n_inner", "n_positions", "activation_function", "num_layers", "num_decoder_layers", "num_heads", "d_model", "d_kv", "d_ff", "feed_forward_proj",
                                        "relative_attention_num_buckets", "relative_attention_max_distance", "tie_word_embeddings"};
    static const char *const kinds[] = {"kind", "split", "lowercase", "strip_accents"}, *const roles[] = {"unk", "cls", "sep", "pad", "mask", "bos", "eos"};
    const char *config = weights_meta(w, "config"), *tokenizer = weights_meta(w, "tokenizer");
    const Tensor *ends = weights_find(w, "tokenizer.piece_ends");
    Json j = {0};
    Error unread; /* opening the model says what is wrong with it */
    if (config && json_parse(config, strlen(config), &j, &unread)) put_keys("sizes", &j, sizes, sizeof sizes / sizeof *sizes, out);
    json_free(&j);
    if (tokenizer && json_parse(tokenizer, strlen(tokenizer), &j, &unread)) {
        put_keys("vocabulary", &j, kinds, sizeof kinds / sizeof *kinds, out);
        if (ends) bytes_printf(out, "%-16s %zu\n", "pieces", ends->count / 4);
        put_keys("special pieces", json_get(&j, "special"), roles, sizeof roles / sizeof *roles, out);
    }
    json_free(&j);
}

/* A tensor's name with N for the number of its layer, its type and its shape. */
static void put_kind(const Tensor *t, Bytes *out) {
    Bytes name = {0};
    const char *at = t->name, *dot = at;
    while ((dot = strchr(dot, '.')) && !(dot[1] >= '0' && dot[1] <= '9')) dot++;
    if (dot) bytes_add(&name, at, (size_t)(dot + 1 - at)), bytes_text(&name, "N"), at = dot + 1 + strspn(dot + 1, "0123456789");
    bytes_text(&name, at);
    bytes_printf(out, "%-64s %s ", name.at, dtype_name(t->dtype));
    put_shape(t, out);
    bytes_free(&name);
}

/* A line for all tensors that differ in the number of their layer alone. */
static void put_tensors(const Weights *w, Bytes *out) {
    Texts kind = {0};
    size_t *count = mem_new(weights_count(w), sizeof *count);
    for (size_t i = 0; i < weights_count(w); i++) {
        Bytes text = {0};
        size_t k = 0;
        put_kind(weights_at(w, i), &text);
        while (k < kind.n && strcmp(kind.at[k].at, text.at)) k++;
        if (k == kind.n) texts_add(&kind, text.at, text.len);
        count[k]++;
        bytes_free(&text);
    }
    for (size_t k = 0; k < kind.n; k++) {
        bytes_text(out, kind.at[k].at);
        if (count[k] > 1) bytes_printf(out, ", %zu times", count[k]);
        bytes_text(out, "\n");
    }
    texts_free(&kind);
    free(count);
}

void put_info(const Weights *w, bool json, Bytes *out) {
    static const struct { const char *key, *label; } meta[] = {{"architecture", "architecture"}, {"family", "family"}, {"format", "format"}, {"content_sha256", "content sha256"},
        {"source_sha256", "source sha256"}, {"demonstrations_sha256", "demonstrations"}, {"distiller_sha256", "distiller"}, {"llm_sha256", "language model"}};
    if (json) {
        put_info_json(w, out);
        return;
    }
    for (size_t i = 0; i < sizeof meta / sizeof *meta; i++)
        if (weights_meta(w, meta[i].key)) bytes_printf(out, "%-16s %s\n", meta[i].label, weights_meta(w, meta[i].key));
    put_settings(w, out);
    put_tensors(w, out);
    bytes_printf(out, "%zu parameters, %zu bytes\n", parameters(w), weights_bytes(w));
}

bool print_info(const char *path, bool json, Error *err) {
    Weights *w = NULL;
    Bytes out = {0};
    bool ok = weights_open(&w, path, err);
    if (ok) put_info(w, json, &out);
    ok = ok && print_out(&out, err);
    weights_close(w);
    bytes_free(&out);
    return ok;
}

/* ---- configuration ---- */

bool config_open(const Weights *w, Json *config, Error *err) {
    const char *text = weights_meta(w, "config");
    Error detail;
    if (!text) return fail(err, BAD_MODEL, "%s: holds no model configuration (a tokenizer alone?); make model files with export.py", weights_path(w));
    if (json_parse(text, strlen(text), config, &detail)) return true;
    return fail(err, BAD_MODEL, "%s: the configuration is no JSON: %.300s", weights_path(w), detail.text);
}

bool config_size(const Json *config, const char *key, const char *path, size_t *out, Error *err) {
    if (json_size(json_get(config, key), MAX_CONFIG, out) && *out > 0) return true;
    return fail(err, BAD_MODEL, "%s: %s in the configuration is missing or no whole number from 1 to %d; export the model again", path, key, MAX_CONFIG);
}

bool config_epsilon(const Json *config, const char *key, const char *path, double *out, Error *err) {
    const Json *eps = json_get(config, key);
    if (!eps || eps->type != JSON_NUMBER || !(eps->number >= 0 && eps->number < 1))
        return fail(err, BAD_MODEL, "%s: %s in the configuration is no number from 0 to 1", path, key);
    *out = eps->number;
    return true;
}

bool config_activation(const Json *config, const char *key, const char *path, CrFunction *act, Error *err) {
    static const struct { const char *name; CrFunction f; } known[] = {{"gelu", CR_GELU}, {"gelu_new", CR_GELU_NEW}, {"gelu_pytorch_tanh", CR_GELU_NEW},
                                                                      {"relu", CR_RELU}, {"silu", CR_SILU}, {"swish", CR_SILU}};
    const Json *name = json_get(config, key);
    for (size_t i = 0; name && name->type == JSON_STRING && i < sizeof known / sizeof *known; i++)
        if (strcmp(name->text, known[i].name) == 0) return *act = known[i].f, true;
    return fail(err, BAD_MODEL, "%s: %s in the configuration is none of gelu, gelu_new, gelu_pytorch_tanh, relu, silu", path, key);
}

/* ---- commands ---- */

/* What a command takes, to be written down instead of run. */
static void fill_page(Page *page, const char *usage, const CliOption *option, size_t own, size_t n) {
    bytes_text(&page->usage, usage);
    page->own = own;
    page->n = n;
    page->option = mem_new(n, sizeof *option);
    memcpy(page->option, option, n * sizeof *option);
}

bool command_start(Common *c, const char *usage, const CliOption *own, size_t n, int argc, char **argv, bool *done) {
    const CliOption common[] = {
        {"json", NULL, CLI_FLAG, &c->json, 0, 0, "print JSON"},
        {"math", "fast|reference", CLI_TEXT, &c->math, 0, 0, "float32 or float64 sums (default fast)"},
        {"threads", "N", CLI_WHOLE, &c->threads, 1, 1024, "how many threads (default: the cores)"},
        {"-q, quiet", NULL, CLI_FLAG, &c->quiet, 0, 0, "say nothing but errors on standard error"},
    };
    enum { COMMON = sizeof common / sizeof *common };
    CliOption all[MAX_OWN_OPTIONS + COMMON];
    for (size_t i = 0; i < n; i++) all[i] = own[i];
    for (size_t i = 0; i < COMMON; i++) all[n + i] = common[i];
    if (c->page) return fill_page(c->page, usage, all, n, n + COMMON), *done = true;
    bool help = false;
    if (!cli_parse(all, n + COMMON, argc, argv, &c->file, &help, c->err)) return false;
    *done = help;
    if (help) {
        Bytes out = {0};
        bytes_printf(&out, "%s\n\n", usage);
        cli_help(all, n + COMMON, &out);
        bool ok = print_out(&out, c->err);
        bytes_free(&out);
        return ok;
    }
    const bool reference = c->math.len && strcmp(c->math.at, "reference") == 0;
    if (c->math.len && !reference && strcmp(c->math.at, "fast")) return fail(c->err, BAD_USAGE, "--math is fast or reference, not '%.50s'", c->math.at);
    return tensor_start(reference ? MATH_REFERENCE : MATH_FAST, (int)c->threads, c->err);
}

static void common_free(Common *c) {
    texts_free(&c->file);
    bytes_free(&c->model);
    bytes_free(&c->math);
}

static bool command_help(Common *c, int argc, char **argv);

/* Command i; the last is `help`, which every program has. */
static Command command_at(const Program *p, size_t i) {
    return i < p->commands ? p->command[i] : (Command){"help", command_help, "what a command takes; the manual page; completion for a shell"};
}

static void put_names(const Program *p, Bytes *out) {
    for (size_t i = 0; i <= p->commands; i++) bytes_printf(out, "%s%s", i == 0 ? "" : i == p->commands ? " and " : ", ", command_at(p, i).name);
}

static bool find_command(const Program *p, const char *name, Command *command, Error *err) {
    for (size_t i = 0; i <= p->commands; i++)
        if (*command = command_at(p, i), strcmp(name, command->name) == 0) return true;
    Bytes names = {0};
    put_names(p, &names);
    fail(err, BAD_USAGE, "there is no command '%.50s': %s exist", name, names.at);
    bytes_free(&names);
    return false;
}

static bool print_commands(const Common *c) {
    const char *name = c->program->about.name;
    Bytes out = {0};
    bytes_printf(&out, "usage: %s COMMAND [options]      %s COMMAND --help tells each one's options\n\n", name, name);
    for (size_t i = 0; i <= c->program->commands; i++) bytes_printf(&out, "  %-10s %s\n", command_at(c->program, i).name, command_at(c->program, i).help);
    const bool ok = print_out(&out, c->err);
    bytes_free(&out);
    return ok;
}

/* The manual page (shell NULL) or the completion of a shell, from what each command says of itself. */
static bool print_manual(const Common *c, const char *shell) {
    static const struct { const char *name; void (*put)(const About *, const Page *, size_t, Bytes *); } known[] = {{"bash", completion_bash}, {"zsh", completion_zsh}, {"fish", completion_fish}};
    void (*put)(const About *, const Page *, size_t, Bytes *) = shell ? NULL : manual_page;
    for (size_t i = 0; shell && i < sizeof known / sizeof *known; i++)
        if (strcmp(shell, known[i].name) == 0) put = known[i].put;
    if (!put) return fail(c->err, BAD_USAGE, "--completion is bash, zsh or fish, not '%.50s'", shell);
    const size_t n = c->program->commands + 1;
    Page *page = mem_new(n, sizeof *page);
    Bytes out = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        const Command command = command_at(c->program, i);
        Common asked = {.called = c->called, .program = c->program, .err = c->err, .page = &page[i]};
        char *no_arguments[] = {NULL};
        page[i] = (Page){.name = command.name, .help = command.help};
        ok = command.run(&asked, 0, no_arguments);
        common_free(&asked);
    }
    if (ok) put(&c->program->about, page, n, &out);
    ok = ok && print_out(&out, c->err);
    bytes_free(&out);
    pages_free(page, n);
    free(page);
    return ok;
}

static bool command_help(Common *c, int argc, char **argv) {
    Bytes shell = {0}, usage = {0};
    bool man = false, done = false;
    const CliOption own[] = {{"man", NULL, CLI_FLAG, &man, 0, 0, "the manual page, for man -l"},
                             {"completion", "bash|zsh|fish", CLI_TEXT, &shell, 0, 0, "completion of commands, options and values for this shell"}};
    Command command;
    bytes_printf(&usage, "usage: %s help [COMMAND | --man | --completion bash|zsh|fish]\nAll of it comes from the tables that read the command line.", c->program->about.name);
    bool ok = command_start(c, usage.at, own, 2, argc, argv, &done);
    if (ok && !done && c->file.n + man + (shell.at != NULL) > 1) ok = fail(c->err, BAD_USAGE, "help takes a command, --man or --completion");
    if (ok && !done && c->file.n) {
        char *asking[] = {c->file.at[0].at, (char[]){"--help"}, NULL};
        ok = find_command(c->program, asking[0], &command, c->err) && command.run(c, 2, asking);
    } else if (ok && !done) ok = man || shell.at ? print_manual(c, shell.at) : print_commands(c);
    bytes_free(&shell);
    bytes_free(&usage);
    return ok;
}

static bool run_command(Common *c, int argc, char **argv) {
    Command command;
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) return print_commands(c);
    if (argc > 1) return find_command(c->program, argv[1], &command, c->err) && command.run(c, argc - 1, argv + 1);
    Bytes names = {0};
    put_names(c->program, &names);
    fail(c->err, BAD_USAGE, "which command? %s exist; --help tells more", names.at);
    bytes_free(&names);
    return false;
}

int program_main(const Program *program, int argc, char **argv) {
    Error err = {0};
    Common c = {.called = argv[0], .program = program, .err = &err};
    signal(SIGPIPE, SIG_IGN); /* a reader that left is an error of writing, with a message and exit code 4 */
    const bool ok = run_command(&c, argc, argv);
    common_free(&c);
    if (ok) return DONE;
    fprintf(stderr, "%s: %s\n", program->about.name, err.text);
    return err.code;
}
