/* weights.h - the flat file: a valid safetensors file holding a whole model, weights (F32), tokenizer (U8 tensors) and config.
 *
 * Layout: 8-byte little-endian header length, JSON header {"__metadata__": {string: string}, name: {"dtype", "shape", "data_offsets"}},
 * raw little-endian data, the tensors without gaps or overlaps to the end of the file. It is mmap'ed and used in place. Nothing in it is believed: lengths, offsets, overlaps,
 * shapes against bytes, and every name the model asks for are checked before use. Big-endian machines get swapped copies.
 */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "base.h"

enum { WEIGHTS_MAX_DIMS = 8 };
typedef enum { DTYPE_F32, DTYPE_U8, DTYPE_I64, DTYPE_F64 } Dtype;

typedef struct {
    const char *name;
    Dtype dtype;
    size_t dims, shape[WEIGHTS_MAX_DIMS];
    size_t count; /* elements */
    const void *data; /* aligned for its dtype */
} Tensor;

typedef struct Weights Weights;

/* Map and check a file. Errors: BAD_INPUT if it cannot be opened, BAD_MODEL if it is not a sound flat file. */
bool weights_open(Weights **out, const char *path, Error *err);
/* Let the numbers be changed in memory; the file stays as it is. Errors: BAD_SYSTEM. */
bool weights_writable(Weights *w, Error *err);
void weights_close(Weights *w); /* NULL is fine; all tensors of it are gone */

size_t weights_count(const Weights *w);
const Tensor *weights_at(const Weights *w, size_t i);         /* in order of offset */
const Tensor *weights_find(const Weights *w, const char *name); /* or NULL */
const char *weights_meta(const Weights *w, const char *key);    /* value of __metadata__, or NULL */
size_t weights_meta_count(const Weights *w);
const char *weights_meta_key(const Weights *w, size_t i); /* in the file's order */
const char *weights_path(const Weights *w);
size_t weights_bytes(const Weights *w); /* of the whole file */
const char *dtype_name(Dtype d);        /* "F32", ... */

/* One row of a model's table of tensors: a name, its shape in the model's own letters, where the pointer goes. */
typedef struct {
    const char *name; /* with one "%zu" for the layer, if per layer */
    int rows, cols;   /* letters: indices into the model's sizes; cols -1 for a vector */
    size_t slot;      /* offsetof(Layer or Model, member), a const float * */
} TensorRow;
/* Find each tensor of a table, demand F32 and exactly this shape, store the pointers at (char *)base + slot. Values are not scanned here: a
 * 2 GB model starts at once, and the programs check what they compute (a NaN is reported where it first shows).
 * Errors: BAD_MODEL naming file, tensor, the shape wanted and the one found, and export.py. */
bool weights_bind(const Weights *w, const TensorRow *row, size_t rows, const size_t *size, size_t layer, void *base, Error *err);
/* A U8 tensor by name. Errors: BAD_MODEL. */
bool weights_bytes_tensor(const Weights *w, const char *name, const unsigned char **data, size_t *len, Error *err);

/* Append the name of a row's tensor, "%zu" replaced by the layer. */
void weights_row_name(const TensorRow *row, size_t layer, Bytes *out);

/* `content_sha256` of a file with these tensors. */
void weights_sha256(const Tensor *tensor, size_t n, char hex[65]);
/* Write a safetensors file (tensors in the order given; meta: n_meta pairs key, value). Through file_write's rules. */
bool weights_write(const char *path, const Tensor *tensor, size_t n, const char *const *meta, size_t n_meta, Error *err);

#endif
