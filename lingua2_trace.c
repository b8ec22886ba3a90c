/* lingua2_trace.c - `lingua2 trace` and `lingua2 replay`: one text through the classifier with every result named. */
#include "compare.h"
#include "lingua2.h"
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

static bool read_input(const Common *c, const Model *m, const Bytes *ids, Chunk *chunk) {
    Bytes text = {0};
    const bool ok = (ids->at ? parse_ids(ids, &chunk->id, &chunk->T, c->err)
                             : read_text(c->file.n ? c->file.at[0].at : "-", &text, c->err) && encode_whole(m, &text, chunk, c->err)) &&
                    chunk_positions(m, chunk, c->err);
    bytes_free(&text);
    return ok && (chunk->T || fail(c->err, BAD_INPUT, "there is nothing to trace: the text is empty"));
}

bool command_trace(Common *c, int argc, char **argv) {
    Bytes ids = {0};
    TraceOptions o = {0};
    CliOption own[2 + TRACE_OPTIONS] = {{"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model, made by export.py (default: the embedded one)"},
                                        {"ids", "1,2,3", CLI_TEXT, &ids, 0, 0, "these piece ids instead of a text, special tokens included"}};
    Model m = {0};
    Chunk chunk = {0};
    bool done = false;
    trace_options(&o, own + 2);
    bool ok = command_start(c, "usage: lingua2 trace [options] -o RUN [FILE|-]\nOne text through the classifier, without chunks, every result named and written; docs/NUMERICS.md tells what each is.", own,
                            2 + TRACE_OPTIONS, argc, argv, &done);
    if (ok && !done && (!o.output.len || c->file.n > 1 || (ids.len && c->file.n))) ok = fail(c->err, BAD_USAGE, "trace takes -o RUN and one text: a file, standard input, or --ids");
    if (ok && !done && open_default(c, &m)) {
        const char *hash = weights_meta(m.weights, "content_sha256");
        Recorder r;
        ok = read_input(c, &m, &ids, &chunk);
        record_begin(&r, &o, hash ? hash : "unknown");
        if (ok) record_ids(&r, "input.ids", chunk.id, chunk.T);
        if (ok) forward(&m, &chunk);
        ok = record_end(&r, ok, c->err);
    } else if (!done) ok = false;
    chunk_free(&chunk);
    model_close(&m);
    trace_options_free(&o);
    bytes_free(&ids);
    return ok;
}

bool command_replay(Common *c, int argc, char **argv) {
    const CliOption own[] = {{"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model, made by export.py (default: the embedded one)"}};
    Model m = {0};
    Chunk chunk = {0};
    bool done = false;
    bool ok = command_start(c, "usage: lingua2 replay [options] RUN\nEach op of ours on the inputs that RUN gives it, against RUN's result: one wrong op shows as one wrong tap. Exit codes as compare's.", own, 1,
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
