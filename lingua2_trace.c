/* lingua2_trace.c - `lingua2 trace` and `lingua2 replay`: one text through the classifier, and back, with every result named. */
#include "compare.h"
#include "lingua2_train.h"
#include "tap.h"
#include "trace.h"

#include <stdlib.h>
#include <string.h>

/* One sequence, heard by whoever listens; a NaN is theirs to report. */
static void forward(const Model *m, const Chunk *c) {
    const size_t start[] = {0, c->T}, K = m->size[LETTER_K];
    Activations a = activations_new(m, c->T, 1);
    float *p = mem_new(c->T, K * sizeof *p);
    encoder_forward(m, &(Batch){c->id, c->position, c->T, 1, start}, &a, p, NULL);
    softmax(p, p, c->T, K);
    TAP(p, c->T, K, "probs");
    free(p);
    activations_free(&a);
}

/* ---- the backward pass ---- */

/* The piece whose embedding does not learn, SIZE_MAX: none. BERT's model does not keep it, since nothing else asks for it. */
static bool read_padding(const Model *m, size_t *padding, Error *err) {
    Json config = {0};
    if (!config_open(m->weights, &config, err)) return false;
    const Json *pad = json_get(&config, "pad_token_id");
    *padding = m->pad_id < UINT32_MAX ? m->pad_id : 0;
    if (m->pad_id == UINT32_MAX && pad && !json_size(pad, MAX_CONFIG, padding)) *padding = SIZE_MAX;
    json_free(&config);
    return true;
}

static bool next_label(const char **at, int8_t *label) {
    *label = strncmp(*at, "-1", 2) == 0 ? -1 : **at == '0' ? 0 : **at == '1' ? 1 : 2;
    if (*label == 2) return false;
    *at += *label < 0 ? 2 : 1;
    return **at == 0 || **at == ',';
}

/* "0,1,-1", a label for each of T pieces; without a text 0, 1, 0, 1, ... */
static bool read_labels(const Bytes *text, int8_t *label, size_t T, Error *err) {
    const char *at = text->at;
    size_t n = 0, counted = 0;
    for (size_t i = 0; !at && i < T; i++) label[i] = i % 2;
    if (!at) return true;
    for (bool more = true; more; n++) {
        int8_t value;
        if (!next_label(&at, &value)) return fail(err, BAD_USAGE, "--labels takes 0, 1 and -1 with commas between them, not '%.50s'", at);
        if (n < T) label[n] = value;
        counted += value >= 0;
        more = *at++ == ',';
    }
    if (n != T) return fail(err, BAD_INPUT, "--labels: %zu labels for %zu pieces, special ones included", n, T);
    return counted || fail(err, BAD_INPUT, "--labels: at least one must be 0 or 1");
}

static bool backward(const Model *m, const Chunk *c, const int8_t *label, Recorder *r, Error *err) {
    const size_t start[] = {0, c->T};
    LabelledBatch b = {{c->id, c->position, c->T, 1, start}, &start[1], label, 0};
    Parameters p = {0};
    Tape tape = {0};
    if (!read_padding(m, &b.padding, err) || !parameters_open(&p, m->weights, err)) return false;
    record_backward(r);
    encoder_loss(m, &p, &b, &(Dropout){0}, &tape);
    record_gradients(&p, m->weights);
    tape_free(&tape);
    parameters_free(&p);
    return true;
}

/* ---- the commands ---- */

static bool read_input(const Common *c, const Model *m, const Bytes *ids, Chunk *chunk) {
    Bytes text = {0};
    const bool ok = (ids->at ? parse_ids(ids, &chunk->id, &chunk->T, c->err)
                             : read_text(c->file.n ? c->file.at[0].at : "-", &text, c->err) && encode_whole(m, &text, chunk, c->err)) &&
                    chunk_positions(m, chunk, c->err);
    bytes_free(&text);
    return ok && (chunk->T || fail(c->err, BAD_INPUT, "there is nothing to trace: the text is empty"));
}

static bool trace(Common *c, const Model *m, const TraceOptions *o, const Bytes *ids, const Bytes *labels, bool back) {
    const char *hash = weights_meta(m->weights, "content_sha256");
    Chunk chunk = {0};
    Recorder r;
    bool ok = read_input(c, m, ids, &chunk);
    int8_t *label = mem_new(chunk.T, sizeof *label);
    ok = ok && (!back || read_labels(labels, label, chunk.T, c->err));
    record_begin(&r, o, hash ? hash : "unknown");
    if (ok) record_ids(&r, "input.ids", chunk.id, chunk.T);
    if (ok && back) record_labels(&r, "input.labels", label, chunk.T);
    if (ok) forward(m, &chunk);
    ok = ok && (!back || backward(m, &chunk, label, &r, c->err));
    ok = record_end(&r, ok, c->err);
    free(label);
    chunk_free(&chunk);
    return ok;
}

bool command_trace(Common *c, int argc, char **argv) {
    Bytes ids = {0}, labels = {0};
    bool back = false, done = false;
    TraceOptions o = {0};
    CliOption own[4 + TRACE_OPTIONS] = {{"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model, made by export.py (default: the embedded one)"},
                                        {"ids", "1,2,3", CLI_TEXT, &ids, 0, 0, "these piece ids instead of a text, special tokens included"},
                                        {"backward", NULL, CLI_FLAG, &back, 0, 0, "also the mean cross entropy of the labels, and its gradients"},
                                        {"labels", "0,1,-1", CLI_TEXT, &labels, 0, 0, "a label for each piece, -1: not counted (default 0,1,0,1,...)"}};
    Model m = {0};
    trace_options(&o, own + 4);
    bool ok = command_start(c, "usage: lingua2 trace [options] -o RUN [FILE|-]\nOne text through the classifier, without chunks, every result named and written; docs/NUMERICS.md tells what each is.", own,
                            4 + TRACE_OPTIONS, argc, argv, &done);
    if (ok && !done && (!o.output.len || c->file.n > 1 || (ids.len && c->file.n))) ok = fail(c->err, BAD_USAGE, "trace takes -o RUN and one text: a file, standard input, or --ids");
    if (ok && !done && labels.len && !back) ok = fail(c->err, BAD_USAGE, "--labels go with --backward");
    if (!done) ok = ok && open_default(c, &m) && trace(c, &m, &o, &ids, &labels, back);
    model_close(&m);
    trace_options_free(&o);
    bytes_free(&ids), bytes_free(&labels);
    return ok;
}

bool command_replay(Common *c, int argc, char **argv) {
    const CliOption own[] = {{"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model, made by export.py (default: the embedded one)"}};
    Model m = {0};
    Chunk chunk = {0};
    bool done = false;
    bool ok = command_start(c, "usage: lingua2 replay [options] RUN\nEach op of ours on the inputs that RUN gives it, against RUN's result: one wrong op shows as one wrong tap. The forward pass alone. Exit codes as compare's.\n" COMPARE_JSON, own, 1,
                            argc, argv, &done);
    if (ok && !done && c->file.n != 1) ok = fail(c->err, BAD_USAGE, "replay takes one run");
    if (ok && !done && open_default(c, &m)) {
        Replay r;
        ok = replay_open(&r, c, c->file.at[0].at, c->err) && replay_ids(&r, "input.ids", &chunk.id, &chunk.T, c->err) && chunk_positions(&m, &chunk, c->err);
        replay_begin(&r);
        if (ok) forward(&m, &chunk);
        ok = replay_end(&r, ok, c->err);
    } else if (!done) ok = false;
    chunk_free(&chunk);
    model_close(&m);
    return ok;
}
