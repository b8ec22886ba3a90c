/* lingua2_stream.c - JSON lines through a warm model: one request a line, one result a line, in order, for as long as lines come.
 *
 * Lines that are already there go through the encoder together, so that its matrices are large; none is waited for: where the input pauses, what came is
 * answered at once. Memory is that of one batch, however many lines there are. SIGINT and SIGTERM end it after the batch under way, no line being cut.
 */
#include "lingua2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "posix.h"

enum { BATCH_LINES = 64, BATCH_BYTES = 1 << 16 };

static volatile sig_atomic_t interrupted; /* the signal */

static void interrupt(int signal_number) { interrupted = signal_number; }

/* ---- lines ---- */

typedef enum { LINE_READ, LINE_LATER, LINE_END } LineState;

typedef struct {
    int fd, error; /* errno of what ended it, or 0 */
    Bytes buffer;
    size_t from, seen; /* lines begin at `from`; no line ends before `seen` */
    bool end;
} Lines;

/* Read once more. */
static void lines_fill(Lines *l) {
    enum { BLOCK = 1 << 16 };
    if (l->from) {
        memmove(l->buffer.at, l->buffer.at + l->from, l->buffer.len -= l->from);
        l->seen -= l->from;
        l->from = 0;
    }
    char block[BLOCK];
    const ssize_t n = read(l->fd, block, sizeof block);
    if (n > 0) bytes_add(&l->buffer, block, (size_t)n);
    else if (n == 0 || errno != EINTR) {
        l->end = true;
        l->error = n < 0 ? errno : 0;
    }
}

/* The next line, without its end, valid until the next call. LINE_LATER, unless told to wait: none is there yet. */
static LineState lines_next(Lines *l, bool wait, Slice *line) {
    for (;;) {
        const char *newline = l->buffer.len > l->seen ? memchr(l->buffer.at + l->seen, '\n', l->buffer.len - l->seen) : NULL;
        l->seen = l->buffer.len;
        if (newline || (l->end && l->from < l->buffer.len)) {
            const size_t end = newline ? (size_t)(newline - l->buffer.at) : l->buffer.len;
            *line = (Slice){l->buffer.at + l->from, end - l->from};
            l->from = l->seen = newline ? end + 1 : end;
            return LINE_READ;
        }
        if (l->end || interrupted) return LINE_END;
        struct pollfd more = {.fd = l->fd, .events = POLLIN};
        if (!wait && poll(&more, 1, 0) == 0) return LINE_LATER;
        lines_fill(l);
    }
}

/* ---- requests and results ---- */

typedef struct {
    Json json[BATCH_LINES];
    Request request[BATCH_LINES];
    Result result[BATCH_LINES];
    Error error[BATCH_LINES];
    bool parsed[BATCH_LINES], ok[BATCH_LINES];
    size_t n;
} Requests;

/* The command line's options hold where the line says nothing. */
static void add_request(Requests *b, const Request *options, bool compat, Slice line) {
    const size_t i = b->n++;
    b->json[i] = (Json){0};
    b->result[i] = (Result){0};
    b->request[i] = request_copy(options);
    b->parsed[i] = json_parse(line.at, line.len, &b->json[i], &b->error[i]);
    b->ok[i] = b->parsed[i] && request_read(&b->json[i], compat, &b->request[i], &b->error[i]);
}

/* The requests that could be read through the classifier together; the package's way, and texts with tags, go one by one. */
static void compress_requests(Requests *b, const Model *m, const Tokenizer *counter, bool compat) {
    Request *r = mem_new(b->n, sizeof *r);
    Result *result = mem_new(b->n, sizeof *result);
    Error *err = mem_new(b->n, sizeof *err);
    bool *ok = mem_new(b->n, sizeof *ok);
    bool alone[BATCH_LINES];
    size_t n = 0;
    for (size_t i = 0; i < b->n; i++) {
        alone[i] = compat || b->request[i].structured;
        if (!b->ok[i]) continue;
        if (compat) b->ok[i] = compress_compat(m, counter, &b->request[i], &b->result[i], &b->error[i]);
        else if (alone[i]) b->ok[i] = compress_tags(m, counter, &b->request[i], &b->result[i], &b->error[i]);
        else r[n++] = b->request[i];
    }
    compress_batch(m, counter, r, n, result, err, ok);
    for (size_t i = 0, k = 0; i < b->n; i++) {
        if (!b->ok[i] || alone[i]) continue;
        b->ok[i] = ok[k];
        if (ok[k]) b->result[i] = result[k];
        else b->error[i] = err[k];
        k++;
    }
    free(r);
    free(result);
    free(err);
    free(ok);
}

static void put_answer(const Requests *b, size_t i, bool compat, Bytes *out) {
    const Json *id = b->parsed[i] ? json_get(&b->json[i], "id") : NULL;
    bytes_text(out, "{");
    if (id || !b->ok[i]) {
        bytes_text(out, "\"id\": ");
        if (id) json_put(out, id);
        else bytes_text(out, "null");
        bytes_text(out, ", ");
    }
    if (b->ok[i]) put_result(&b->request[i], &b->result[i], compat, out);
    else {
        const char *text = b->error[i].text;
        size_t bad, len = strlen(text);
        while (!utf8_valid(text, len, &bad)) len = bad; /* a message cut in the middle of a character */
        bytes_text(out, "\"error\": ");
        json_put_string(out, text, len);
    }
    bytes_text(out, "}\n");
}

/* Answer all, in order, and empty the batch; the number of errors. */
static size_t answer(Requests *b, const Model *m, const Tokenizer *counter, bool compat, Bytes *out) {
    size_t bad = 0;
    compress_requests(b, m, counter, compat);
    out->len = 0;
    for (size_t i = 0; i < b->n; i++) {
        put_answer(b, i, compat, out);
        bad += !b->ok[i];
        json_free(&b->json[i]);
        request_free(&b->request[i]);
        result_free(&b->result[i]);
    }
    b->n = 0;
    return bad;
}

/* Batch after batch to the end of the input. */
static bool answer_lines(Lines *l, const Model *m, const Tokenizer *counter, const Request *options, bool compat, size_t *lines, size_t *bad, Error *err) {
    Requests *b = mem_new(1, sizeof *b);
    Bytes out = {0};
    LineState state = LINE_READ;
    bool ok = true;
    while (ok && state != LINE_END) {
        Slice line;
        size_t bytes = 0;
        while (b->n < BATCH_LINES && bytes < BATCH_BYTES && (state = lines_next(l, b->n == 0, &line)) == LINE_READ) {
            ++*lines;
            bytes += line.len;
            while (line.len && (line.at[0] == ' ' || line.at[0] == '\t' || line.at[0] == '\r')) line.at++, line.len--;
            if (line.len) add_request(b, options, compat, line);
        }
        *bad += answer(b, m, counter, compat, &out);
        ok = print_out(&out, err);
    }
    bytes_free(&out);
    free(b);
    return ok;
}

bool compress_lines(const Common *c, const Model *m, const Tokenizer *counter, const Request *options, bool compat) {
    const char *path = c->file.n ? c->file.at[0].at : "-";
    if (c->file.n > 1) return fail(c->err, BAD_USAGE, "--jsonl reads one file or standard input, not %zu files", c->file.n);
    Lines l = {.fd = strcmp(path, "-") ? open(path, O_RDONLY) : STDIN_FILENO};
    if (l.fd < 0) return fail(c->err, BAD_INPUT, "%s: cannot be opened: %s", path, strerror(errno));
    struct sigaction stop = {.sa_handler = interrupt, .sa_flags = (int)SA_RESETHAND}; /* a second signal ends it at once */
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGTERM, &stop, NULL);
    size_t lines = 0, bad = 0;
    bool ok = answer_lines(&l, m, counter, options, compat, &lines, &bad, c->err);
    if (ok && l.error) ok = fail(c->err, BAD_SYSTEM, "%s: cannot be read: %s", path, strerror(l.error));
    if (l.fd != STDIN_FILENO) close(l.fd);
    bytes_free(&l.buffer);
    if (interrupted) raise(interrupted); /* as who waits for it expects */
    if (ok && bad) ok = fail(c->err, BAD_INPUT, "%zu of %zu lines had an error", bad, lines);
    return ok;
}
