/* trace.c - see trace.h. */
#include "trace.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "posix.h"
#include "tensor.h"

/* ---- one tap ---- */

static size_t item_size(Dtype d) { return d == DTYPE_F32 ? 4 : d == DTYPE_U8 ? 1 : 8; }

/* The bits of element i, every NaN the same. */
static uint64_t item_bits(const Tensor *t, size_t i) {
    uint32_t low;
    uint64_t bits;
    if (t->dtype == DTYPE_U8) return ((const unsigned char *)t->data)[i];
    if (t->dtype == DTYPE_F32) {
        const float x = ((const float *)t->data)[i];
        memcpy(&low, &x, sizeof low);
        return x == x ? low : 0x7fc00000u;
    }
    memcpy(&bits, (const char *)t->data + 8 * i, sizeof bits);
    return t->dtype == DTYPE_F64 && (bits & INT64_MAX) > 0x7ff0000000000000u ? 0x7ff8000000000000u : bits;
}

double number_at(const Tensor *t, size_t i) {
    if (t->dtype == DTYPE_F32) return (double)((const float *)t->data)[i];
    if (t->dtype == DTYPE_F64) return ((const double *)t->data)[i];
    return t->dtype == DTYPE_U8 ? (double)((const unsigned char *)t->data)[i] : (double)((const int64_t *)t->data)[i];
}

/* Append the little-endian bytes. */
static void put_bytes(const Tensor *t, Bytes *out) {
    const size_t size = item_size(t->dtype);
    for (size_t i = 0; i < t->count; i++) {
        const uint64_t bits = item_bits(t, i);
        char byte[8];
        for (size_t k = 0; k < size; k++) byte[k] = (char)(bits >> 8 * k & 255);
        bytes_add(out, byte, size);
    }
}

static void set_hash(Tap *tap) {
    Bytes b = {0};
    char hex[65];
    put_bytes(&tap->t, &b);
    sha256_hex(b.at ? b.at : "", b.len, hex);
    memcpy(tap->hash, hex, 16);
    tap->hash[16] = 0;
    bytes_free(&b);
}

/* ---- a run in memory ---- */

static void *copy_of(const void *data, size_t len) {
    void *copy = mem_new(len, 1);
    if (len) memcpy(copy, data, len);
    return copy;
}

static Tap *run_room(Run *r) {
    if (r->n == r->cap) r->tap = mem_resize(r->tap, r->cap = r->cap ? 2 * r->cap : 64, sizeof *r->tap);
    r->tap[r->n] = (Tap){0};
    return &r->tap[r->n++];
}

void run_add(Run *r, const char *name, const Tensor *t, bool keep) {
    Tap *tap = run_room(r);
    tap->t = *t;
    set_hash(tap);
    tap->t.name = copy_of(name, strlen(name) + 1);
    tap->t.data = keep ? copy_of(t->data, t->count * item_size(t->dtype)) : NULL;
}

const Tap *run_find(const Run *r, const char *name) {
    for (size_t i = 0; i < r->n; i++)
        if (strcmp(r->tap[i].t.name, name) == 0) return &r->tap[i];
    return NULL;
}

void run_free(Run *r) {
    for (size_t i = 0; !r->weights && i < r->n; i++) {
        free((void *)(uintptr_t)r->tap[i].t.name);
        free((void *)(uintptr_t)r->tap[i].t.data);
    }
    free(r->tap);
    weights_close(r->weights);
    bytes_free(&r->arithmetic);
    bytes_free(&r->model);
    *r = (Run){0};
}

/* ---- the manifest ---- */

enum { FIRST_VALUES = 8 };

void shape_text(const Tensor *t, Bytes *out) {
    for (size_t d = 0; d < t->dims; d++) bytes_printf(out, "%s%zu", d ? "x" : "", t->shape[d]);
    if (t->dims == 0) bytes_text(out, "-");
}

/* seq name dtype shape hash first-values least greatest rms */
static void put_line(const Run *r, const Tensor *t, Bytes *out) {
    const Tap *tap = &r->tap[r->n - 1];
    double least = INFINITY, greatest = -INFINITY, squares = 0;
    bytes_printf(out, "%zu\t%s\t%s\t", r->n - 1, tap->t.name, dtype_name(t->dtype));
    shape_text(t, out);
    bytes_printf(out, "\t%s\t", tap->hash);
    for (size_t i = 0; i < t->count && i < FIRST_VALUES; i++)
        bytes_printf(out, "%s%0*llx", i ? " " : "", (int)(2 * item_size(t->dtype)), (unsigned long long)item_bits(t, i));
    for (size_t i = 0; i < t->count; i++) {
        const double x = number_at(t, i);
        least = x < least ? x : least;
        greatest = x > greatest ? x : greatest;
        squares += x * x;
    }
    bytes_printf(out, "\t%.9g\t%.9g\t%.9g\n", least, greatest, t->count ? sqrt(squares / (double)t->count) : 0);
}

/* The next field of a line, ended by a tab. */
static char *field(char **at) {
    char *start = *at, *tab = start ? strchr(start, '\t') : NULL;
    *at = tab ? tab + 1 : NULL;
    if (tab) *tab = 0;
    return start;
}

static bool parse_shape_text(const char *text, Tensor *t) {
    t->count = 1;
    if (strcmp(text, "-") == 0) return true;
    for (char *end; t->dims < WEIGHTS_MAX_DIMS; text = end + 1) {
        const unsigned long long size = strtoull(text, &end, 10);
        if (end == text || size > SIZE_MAX || !size_mul(t->count, (size_t)size, &t->count)) return false;
        t->shape[t->dims++] = (size_t)size;
        if (*end == 0) return true;
        if (*end != 'x') return false;
    }
    return false;
}

static bool parse_line(Run *r, char *line) {
    static const Dtype dtypes[] = {DTYPE_F32, DTYPE_U8, DTYPE_I64, DTYPE_F64};
    Tap tap = {0};
    field(&line);
    const char *name = field(&line), *dtype = field(&line), *shape = field(&line), *hash = field(&line);
    bool known = false;
    for (size_t d = 0; dtype && d < sizeof dtypes / sizeof *dtypes; d++)
        if (strcmp(dtype, dtype_name(dtypes[d])) == 0) tap.t.dtype = dtypes[d], known = true;
    if (!known || !hash || strlen(hash) != 16 || !parse_shape_text(shape, &tap.t)) return false;
    memcpy(tap.hash, hash, 17);
    tap.t.name = copy_of(name, strlen(name) + 1);
    *run_room(r) = tap;
    return true;
}

/* "# key value" */
static void parse_comment(Run *r, const char *line) {
    if (strncmp(line, "# arithmetic ", 13) == 0) bytes_set(&r->arithmetic, line + 13, strlen(line + 13));
    if (strncmp(line, "# model ", 8) == 0) bytes_set(&r->model, line + 8, strlen(line + 8));
}

static bool open_manifest(Run *r, const char *path, Error *err) {
    Bytes text = {0};
    bool ok = read_text(path, &text, err);
    size_t number = 1;
    for (char *line = ok ? strtok(text.at, "\n") : NULL; ok && line; line = strtok(NULL, "\n"), number++) {
        if (line[0] == '#') parse_comment(r, line);
        else if (!parse_line(r, line)) ok = fail(err, BAD_MODEL, "%s: line %zu: no line of a manifest: sequence, name, dtype, shape, hash, with tabs between", path, number);
    }
    bytes_free(&text);
    return ok;
}

/* ---- safetensors ---- */

static void set_from_meta(const Weights *w, const char *key, Bytes *to) {
    const char *value = weights_meta(w, key);
    if (value) bytes_set(to, value, strlen(value));
}

static bool open_safetensors(Run *r, const char *path, Error *err) {
    if (!weights_open(&r->weights, path, err)) return false;
    set_from_meta(r->weights, "arithmetic", &r->arithmetic);
    set_from_meta(r->weights, "model_sha256", &r->model);
    for (size_t i = 0; i < weights_count(r->weights); i++) {
        Tap *tap = run_room(r);
        tap->t = *weights_at(r->weights, i);
        set_hash(tap);
    }
    return true;
}

/* ---- .npy files ----
 * NumPy's format, version 1 to 3: magic, header length, a Python dict as text, raw data in C order. */

static const struct {
    const char *descr;
    Dtype dtype;
} npy_types[] = {{"<f4", DTYPE_F32}, {"<f8", DTYPE_F64}, {"<i8", DTYPE_I64}, {"|u1", DTYPE_U8}};

/* What follows 'key': in the header, or NULL. */
static const char *npy_value(const char *header, const char *key) {
    const char *at = strstr(header, key);
    return at ? at + strlen(key) + strspn(at + strlen(key), " ") : NULL;
}

static bool npy_shape(const char *at, Tensor *t) {
    t->count = 1;
    if (!at || *at++ != '(') return false;
    for (char *end; *(at += strspn(at, " ,")) != ')'; at = end) {
        const unsigned long long size = strtoull(at, &end, 10);
        if (end == at || t->dims == WEIGHTS_MAX_DIMS || size > SIZE_MAX || !size_mul(t->count, (size_t)size, &t->count)) return false;
        t->shape[t->dims++] = (size_t)size;
    }
    return true;
}

/* A copy of `count` little-endian items, in this machine's order. */
static void *from_little_endian(const unsigned char *data, size_t count, size_t size) {
    unsigned char *out = mem_new(count, size);
    const uint16_t one = 1;
    unsigned char little;
    memcpy(&little, &one, 1);
    for (size_t i = 0; i < count * size; i++) out[i] = data[little ? i : i / size * size + size - 1 - i % size];
    return out;
}

static bool open_npy(Run *r, const char *path, const char *name, Error *err) {
    Bytes file = {0};
    Tap tap = {0};
    if (!file_read(path, &file, err)) return false;
    const unsigned char *b = (const unsigned char *)file.at;
    const size_t start = file.len >= 12 && b[6] > 1 ? 12 : 10;
    size_t len = file.len >= 12 ? b[8] | (size_t)b[9] << 8 | (start == 12 ? (size_t)b[10] << 16 | (size_t)b[11] << 24 : 0) : 0, bytes = 0;
    bool ok = file.len >= 12 && memcmp(b, "\x93NUMPY", 6) == 0 && len > 0 && len <= file.len - start;
    if (ok) {
        file.at[start + len - 1] = 0; /* the header's newline */
        const char *descr = npy_value(file.at + start, "'descr':"), *order = npy_value(file.at + start, "'fortran_order':");
        bool known = false;
        for (size_t i = 0; descr && i < sizeof npy_types / sizeof *npy_types; i++)
            if (strncmp(descr + 1, npy_types[i].descr, 3) == 0) tap.t.dtype = npy_types[i].dtype, known = true;
        ok = known && order && strncmp(order, "False", 5) == 0 && npy_shape(npy_value(file.at + start, "'shape':"), &tap.t) &&
             size_mul(tap.t.count, item_size(tap.t.dtype), &bytes) && bytes == file.len - start - len;
    }
    if (!ok) fail(err, BAD_MODEL, "%s: no .npy file of float32, float64, int64 or uint8 in C order", path);
    else {
        tap.t.data = from_little_endian(b + start + len, tap.t.count, item_size(tap.t.dtype));
        tap.t.name = copy_of(name, strlen(name) + 1);
        set_hash(&tap);
        *run_room(r) = tap;
    }
    bytes_free(&file);
    return ok;
}

static int by_name(const void *a, const void *b) { return strcmp(((const Tap *)a)->t.name, ((const Tap *)b)->t.name); }

static bool ends_with(const char *text, const char *end) { return strlen(text) >= strlen(end) && strcmp(text + strlen(text) - strlen(end), end) == 0; }

static bool open_folder(Run *r, const char *path, DIR *folder, Error *err) {
    bool ok = true;
    for (const struct dirent *entry; ok && (entry = readdir(folder));) {
        if (!ends_with(entry->d_name, ".npy")) continue;
        Bytes file = {0}, name = {0};
        bytes_printf(&file, "%s/%s", path, entry->d_name);
        bytes_add(&name, entry->d_name, strlen(entry->d_name) - 4);
        ok = open_npy(r, file.at, name.at, err);
        bytes_free(&file);
        bytes_free(&name);
    }
    qsort(r->tap, r->n, sizeof *r->tap, by_name); /* a folder keeps no order */
    return ok;
}

bool run_open(Run *r, const char *path, Error *err) {
    *r = (Run){0};
    DIR *folder = opendir(path);
    const bool ok = folder ? open_folder(r, path, folder, err) : ends_with(path, ".taps") ? open_manifest(r, path, err) : open_safetensors(r, path, err);
    if (folder) closedir(folder);
    if (!ok) run_free(r);
    return ok;
}

/* ---- recording ---- */

void trace_options(TraceOptions *o, CliOption out[TRACE_OPTIONS]) {
    const CliOption own[TRACE_OPTIONS] = {
        {"-o, output", "RUN", CLI_TEXT, &o->output, 0, 0, "write RUN.safetensors and RUN.taps"},
        {"only", "PATTERN", CLI_TEXT, &o->only, 0, 0, "only the taps whose names match; * any characters, ? one"},
        {"npy", "DIR", CLI_TEXT, &o->npy, 0, 0, "also one .npy file per tap in this folder"},
        {"hash-only", NULL, CLI_FLAG, &o->hash_only, 0, 0, "write RUN.taps alone"},
    };
    memcpy(out, own, sizeof own);
}

void trace_options_free(TraceOptions *o) {
    bytes_free(&o->output);
    bytes_free(&o->only);
    bytes_free(&o->npy);
}

static bool matches(const char *pattern, const char *name) {
    if (*pattern == 0) return *name == 0;
    if (*pattern == '*') return matches(pattern + 1, name) || (*name && matches(pattern, name + 1));
    return *name && (*pattern == '?' || *pattern == *name) && matches(pattern + 1, name + 1);
}

static void record(Recorder *r, const char *name, const Tensor *t) {
    if (r->options->only.len && !matches(r->options->only.at, name)) return;
    run_add(&r->run, name, t, !r->options->hash_only || r->options->npy.len);
    put_line(&r->run, t, &r->lines);
}

static void record_tap(Taps *taps_of, const char *name, float *x, const size_t *shape, size_t dims) {
    Recorder *r = (Recorder *)(void *)taps_of;
    Tensor t = {.dtype = DTYPE_F32, .dims = dims, .count = 1, .data = x};
    for (size_t d = 0; d < dims; d++) t.count *= t.shape[d] = shape[d];
    bool sound = ends_with(name, ".scores"); /* -infinity where not attended to */
    for (size_t i = 0; !sound && i < t.count && isfinite(x[i]); i++) sound = i + 1 == t.count;
    if (!sound && t.count && !r->unsound[0]) snprintf(r->unsound, sizeof r->unsound, "%s", name);
    record(r, name, &t);
}

void record_begin(Recorder *r, const TraceOptions *o, const char *model) {
    *r = (Recorder){.taps = {.hear = record_tap}, .options = o};
    bytes_set(&r->run.model, model, strlen(model));
    bytes_text(&r->run.arithmetic, tensor_math() == MATH_FAST ? "fast" : "reference");
    taps = &r->taps;
}

static void record_input(Recorder *r, const char *name, const Tensor *t) {
    put_bytes(t, &r->inputs);
    record(r, name, t);
}

/* wide is used up. */
static void record_whole(Recorder *r, const char *name, int64_t *wide, size_t n) {
    record_input(r, name, &(Tensor){.dtype = DTYPE_I64, .dims = 1, .shape = {n}, .count = n, .data = wide});
    free(wide);
}

void record_ids(Recorder *r, const char *name, const uint32_t *id, size_t n) {
    int64_t *wide = mem_new(n, sizeof *wide);
    for (size_t i = 0; i < n; i++) wide[i] = id[i];
    record_whole(r, name, wide, n);
}

void record_labels(Recorder *r, const char *name, const int8_t *label, size_t n) {
    int64_t *wide = mem_new(n, sizeof *wide);
    for (size_t i = 0; i < n; i++) wide[i] = label[i];
    record_whole(r, name, wide, n);
}

void record_number(Recorder *r, const char *name, double x) { record_input(r, name, &(Tensor){.dtype = DTYPE_F64, .count = 1, .data = &x}); }

void record_backward(Recorder *r) { r->taps.backward = true; }

void record_gradients(const Parameters *p, const Weights *w) {
    for (size_t i = 0; i < p->n; i++) {
        const Tensor *t = weights_find(w, p->at[i].name);
        tap_parameter(p->at[i].g, t->shape, t->dims, t->name);
    }
}

static bool write_npy(const char *folder, const Tensor *t, Error *err) {
    Bytes path = {0}, out = {0}, header = {0};
    const char *descr = NULL;
    for (size_t i = 0; i < sizeof npy_types / sizeof *npy_types; i++)
        if (npy_types[i].dtype == t->dtype) descr = npy_types[i].descr;
    bytes_printf(&header, "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
    for (size_t d = 0; d < t->dims; d++) bytes_printf(&header, "%zu, ", t->shape[d]);
    bytes_text(&header, "), }");
    while ((10 + header.len + 1) % 64) bytes_text(&header, " ");
    bytes_text(&header, "\n");
    bytes_add(&out, "\x93NUMPY\1\0", 8);
    bytes_add(&out, (char[]){(char)(header.len & 255), (char)(header.len >> 8)}, 2);
    bytes_add(&out, header.at, header.len);
    put_bytes(t, &out);
    bytes_printf(&path, "%s/%s.npy", folder, t->name);
    const bool ok = file_write(path.at, out.at, out.len, err);
    bytes_free(&path);
    bytes_free(&out);
    bytes_free(&header);
    return ok;
}

static bool write_run(Recorder *r, Error *err) {
    const TraceOptions *o = r->options;
    char input[65];
    Bytes path = {0}, text = {0};
    Tensor *t = mem_new(r->run.n, sizeof *t);
    sha256_hex(r->inputs.at ? r->inputs.at : "", r->inputs.len, input);
    const char *const meta[] = {"format", "trace-1", "contract", CONTRACT, "arithmetic", r->run.arithmetic.at, "model_sha256", r->run.model.at, "input_sha256", input};
    for (size_t i = 0; i < r->run.n; i++) t[i] = r->run.tap[i].t;
    bytes_printf(&path, "%s.taps", o->output.at);
    bytes_printf(&text, "# contract %s\n# arithmetic %s\n# model %s\n# input %s\n", CONTRACT, r->run.arithmetic.at, r->run.model.at, input);
    bytes_add(&text, r->lines.at ? r->lines.at : "", r->lines.len);
    bool ok = file_write(path.at, text.at, text.len, err);
    path.len = 0;
    bytes_printf(&path, "%s.safetensors", o->output.at);
    ok = ok && (o->hash_only || weights_write(path.at, t, r->run.n, meta, sizeof meta / sizeof *meta / 2, err));
    if (ok && o->npy.len && mkdir(o->npy.at, 0777) != 0 && errno != EEXIST) ok = fail(err, BAD_SYSTEM, "%s: cannot be made: %s", o->npy.at, strerror(errno));
    for (size_t i = 0; ok && o->npy.len && i < r->run.n; i++) ok = write_npy(o->npy.at, &t[i], err);
    free(t);
    bytes_free(&path);
    bytes_free(&text);
    return ok;
}

bool record_end(Recorder *r, bool ok, Error *err) {
    taps = NULL;
    ok = ok && write_run(r, err);
    if (ok && r->unsound[0]) ok = fail(err, BAD_MODEL, "%s holds a NaN or infinity, the first that does; the weights are damaged or were trained to that", r->unsound);
    run_free(&r->run);
    bytes_free(&r->lines);
    bytes_free(&r->inputs);
    return ok;
}
