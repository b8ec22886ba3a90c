/* trace.h - a run in files: every named result of a forward pass, and of a backward pass if there is one, recorded and read again.
 *
 *   RUN.safetensors  the inputs and every tap (tap.h), in the order of execution
 *   RUN.taps         the manifest: a line of text per tap with its hash, first values, least, greatest and rms (docs/FORMAT.md)
 */
#ifndef TRACE_H
#define TRACE_H

#include "optimizer.h"
#include "program.h"
#include "tap.h"
#include "weights.h"

/* One named result. */
typedef struct {
    Tensor t;      /* t.data NULL: the hash alone is known */
    char hash[17]; /* the first 16 digits of the SHA-256 of its little-endian bytes, every NaN taken as 7fc00000 (F64: 7ff8000000000000) */
} Tap;

/* The taps of one run in order. Start from {0}. */
typedef struct {
    Tap *tap;
    size_t n, cap;
    Weights *weights;        /* whose the names and numbers are; NULL: the run's own */
    Bytes arithmetic, model; /* "fast" or "reference"; the hash of the model file's contents; empty if unknown */
} Run;

/* Read what this or any other program wrote: a safetensors file, a manifest (*.taps), or a folder of .npy files.
 * Errors: BAD_INPUT, BAD_MODEL. */
bool run_open(Run *r, const char *path, Error *err);
const Tap *run_find(const Run *r, const char *name); /* or NULL */
void run_free(Run *r);

/* Element i of any dtype; the shape as "2x11x11", "-" for a scalar. */
double number_at(const Tensor *t, size_t i);
void shape_text(const Tensor *t, Bytes *out);

/* Add a copy of a tensor, its data (keep) or its hash alone. */
void run_add(Run *r, const char *name, const Tensor *t, bool keep);

/* ---- recording ---- */

typedef struct {
    Bytes output, only, npy; /* RUN; names that match this pattern alone; a folder for .npy files */
    bool hash_only;          /* the manifest alone */
} TraceOptions;
enum { TRACE_OPTIONS = 4 };
void trace_options(TraceOptions *o, CliOption out[TRACE_OPTIONS]); /* the command line's */
void trace_options_free(TraceOptions *o);

typedef struct {
    Taps taps;
    Run run;
    Bytes lines, inputs; /* of the manifest; the bytes of all inputs */
    const TraceOptions *options;
    char unsound[200]; /* the first tap that holds a NaN or infinity */
} Recorder;
/* Listen from now on. model: the hash of the model file's contents. */
void record_begin(Recorder *r, const TraceOptions *o, const char *model);
/* What the model is given, [n]; what the loss is given. */
void record_ids(Recorder *r, const char *name, const uint32_t *id, size_t n);
void record_labels(Recorder *r, const char *name, const int8_t *label, size_t n);
void record_number(Recorder *r, const char *name, double x);
/* From now on the backward pass is heard. At its end: the gradients of the parameters, those of w in its order. */
void record_backward(Recorder *r);
void record_gradients(const Parameters *p, const Weights *w);
/* Stop listening and, if all went well so far, write the files. Errors: BAD_SYSTEM; BAD_MODEL if a tap holds a NaN or infinity (the files
 * are written all the same). */
bool record_end(Recorder *r, bool ok, Error *err);

#endif
