/* weights.c - see weights.h. The flat file, mapped and checked once, then used in place.
 *
 * Left out on purpose: other dtypes than the four we write, lazy loading, and defence against a file that another process cuts
 * short while it is mapped (the system ends the program then). Depends on POSIX for mmap.
 */
#include "weights.h"

#include "json.h"
#include "posix.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HEADER = 100000000, DATA_ALIGN = 64 }; /* the header limit of the safetensors format; where we let data start */

typedef struct {
    const char *name; /* as in the header's tree */
    size_t index;     /* into Weights.tensor */
} NameEntry;

struct Weights {
    char *path;
    unsigned char *map; /* the whole file, NULL if not mapped */
    size_t map_len;
    size_t data;        /* offset of the data part: 8 + header length */
    Json header;        /* owns the names and the metadata */
    Tensor *tensor;     /* n of them, in order of offset */
    size_t *begin;      /* n: offset of each in the data part */
    NameEntry *by_name; /* n, sorted: a sorted table cannot be made slow by chosen names, as a hash table can */
    void **copy;        /* n: the aligned or swapped copy of a tensor, or NULL */
    size_t n;
};

/* ---- dtypes and byte order ---- */

static const struct {
    const char *name;
    size_t size;
} dtype_info[] = {[DTYPE_F32] = {"F32", 4}, [DTYPE_U8] = {"U8", 1}, [DTYPE_I64] = {"I64", 8}, [DTYPE_F64] = {"F64", 8}};
enum { DTYPES = sizeof dtype_info / sizeof *dtype_info };

static bool machine_is_big_endian(void) {
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    return first == 0;
}

/* to[i] = from[i] with its bytes in the opposite order, count elements of `size` bytes. */
static void copy_swapped(unsigned char *to, const unsigned char *from, size_t count, size_t size) {
    for (size_t i = 0; i < count * size; i += size)
        for (size_t k = 0; k < size; k++) to[i + k] = from[i + size - 1 - k];
}

/* ---- opening: the file ---- */

static bool unsound(const Weights *w, Error *err, const char *what) {
    return fail(err, BAD_MODEL, "%s: %s; make the model file with export.py", w->path, what);
}

/* What a file that is no flat file most likely is, from its first bytes. */
static const char *guess(const unsigned char *at, size_t len) {
    if (len >= 4 && memcmp(at, "PK\3\4", 4) == 0) return "this is a PyTorch checkpoint (zip), not a flat model file";
    if (len >= 2 && at[0] == 0x80 && at[1] >= 2 && at[1] <= 5) return "this is a PyTorch checkpoint (pickle), not a flat model file";
    if (len >= 4 && memcmp(at, "GGUF", 4) == 0) return "this is a GGUF file, not a flat model file";
    return "this is no safetensors file, or it was cut short: its header would not fit in it";
}

static bool map_file(Weights *w, Error *err) {
    struct stat info;
    int fd = open(w->path, O_RDONLY | O_NONBLOCK); /* so that a named pipe is refused instead of waited for */
    if (fd < 0) return fail(err, BAD_INPUT, "%s: cannot be opened: %s", w->path, strerror(errno));
    bool ok = fstat(fd, &info) == 0;
    if (!ok) fail(err, BAD_SYSTEM, "%s: cannot be read: %s", w->path, strerror(errno));
    else if (S_ISDIR(info.st_mode)) ok = fail(err, BAD_INPUT, "%s: is a directory; a model is one file, made by export.py", w->path);
    else if (!S_ISREG(info.st_mode)) ok = fail(err, BAD_INPUT, "%s: is no regular file, so it cannot be mapped", w->path);
    else if (info.st_size == 0) ok = unsound(w, err, "the file is empty");
    else if ((uintmax_t)info.st_size > SIZE_MAX) ok = fail(err, BAD_SYSTEM, "%s: is too large for this machine", w->path);
    if (ok) {
        w->map_len = (size_t)info.st_size;
        void *map = mmap(NULL, w->map_len, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) ok = fail(err, BAD_SYSTEM, "%s: cannot be mapped: %s", w->path, strerror(errno));
        else w->map = map;
    }
    close(fd);
    return ok;
}

/* ---- opening: the header ---- */

static bool read_header(Weights *w, Error *err) {
    uint64_t len = 0;
    Error inner;
    if (w->map_len < 8) return unsound(w, err, "the file is shorter than the 8 bytes that begin one");
    for (int i = 7; i >= 0; i--) len = len << 8 | w->map[i];
    if (len > w->map_len - 8) return unsound(w, err, guess(w->map, w->map_len));
    if (len > MAX_HEADER) return unsound(w, err, "the header is longer than the 100 MB that the format allows");
    if (len == 0 || w->map[8] != '{') return unsound(w, err, "the header does not begin with '{'");
    w->data = 8 + (size_t)len;
    if (!json_parse((const char *)w->map + 8, (size_t)len, &w->header, &inner))
        return fail(err, BAD_MODEL, "%s: the header is no sound JSON: %s", w->path, inner.text);
    return true;
}

static bool check_meta(const Weights *w, Error *err) {
    const Json *meta = json_get(&w->header, "__metadata__");
    if (!meta) return true;
    if (meta->type != JSON_OBJECT) return unsound(w, err, "__metadata__ is no object");
    for (size_t i = 0; i < meta->len; i++)
        if (meta->item[i].type != JSON_STRING)
            return fail(err, BAD_MODEL, "%s: __metadata__ \"%.200s\" is a %s, wanted a string", w->path, meta->key[i],
                        json_type_name(meta->item[i].type));
    return true;
}

static bool bad_tensor(const Weights *w, const char *name, Error *err, const char *what) {
    return fail(err, BAD_MODEL, "%s: tensor '%.200s': %s", w->path, name, what);
}

static bool parse_dtype(const Weights *w, const Json *j, Tensor *t, Error *err) {
    if (!j || j->type != JSON_STRING) return bad_tensor(w, t->name, err, "\"dtype\" must be a string");
    for (int d = 0; d < DTYPES; d++) {
        t->dtype = (Dtype)d;
        if (strcmp(j->text, dtype_info[d].name) == 0 && strlen(j->text) == j->len) return true;
    }
    return fail(err, BAD_MODEL, "%s: tensor '%.200s': dtype %.40s is not one of F32, U8, I64, F64; export the model with export.py",
                w->path, t->name, j->text);
}

static bool parse_shape(const Weights *w, const Json *j, Tensor *t, Error *err) {
    if (!j || j->type != JSON_ARRAY) return bad_tensor(w, t->name, err, "\"shape\" must be an array");
    if (j->len > WEIGHTS_MAX_DIMS) return bad_tensor(w, t->name, err, "more than 8 dimensions");
    t->dims = j->len;
    t->count = 1;
    for (size_t i = 0; i < j->len; i++) {
        if (!json_size(&j->item[i], SIZE_MAX, &t->shape[i])) return bad_tensor(w, t->name, err, "a dimension is no whole number 0 or more");
        if (!size_mul(t->count, t->shape[i], &t->count)) return bad_tensor(w, t->name, err, "the shape is too large for this machine");
    }
    return true;
}

/* "data_offsets": [begin, end), inside the data part, and exactly as long as the shape needs. */
static bool parse_offsets(const Weights *w, const Json *j, const Tensor *t, size_t *begin, Error *err) {
    size_t end, bytes = SIZE_MAX, room = w->map_len - w->data;
    bool two = j && j->type == JSON_ARRAY && j->len == 2;
    if (!two || !json_size(&j->item[0], SIZE_MAX, begin) || !json_size(&j->item[1], SIZE_MAX, &end) || *begin > end)
        return bad_tensor(w, t->name, err, "\"data_offsets\" must be two whole numbers, begin <= end");
    if (end > room)
        return fail(err, BAD_MODEL, "%s: tensor '%.200s' ends at byte %zu of the data, but the file holds only %zu; it was cut short",
                    w->path, t->name, end, room);
    if (!size_mul(t->count, dtype_info[t->dtype].size, &bytes) || bytes != end - *begin)
        return fail(err, BAD_MODEL, "%s: tensor '%.200s': its offsets span %zu bytes, its shape and dtype need %s", w->path, t->name,
                    end - *begin, bytes > end - *begin ? "more" : "fewer");
    return true;
}

/* ---- opening: the table of tensors ---- */

typedef struct {
    Tensor t;
    size_t begin;
} Placed;

static int compare_placed(const void *va, const void *vb) {
    const Placed *a = va, *b = vb;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if ((a->t.count != 0) != (b->t.count != 0)) return a->t.count != 0 ? 1 : -1; /* empty tensors before the one that starts there */
    return strcmp(a->t.name, b->t.name);
}

static int compare_names(const void *a, const void *b) { return strcmp(((const NameEntry *)a)->name, ((const NameEntry *)b)->name); }

static bool parse_tensor(const Weights *w, const char *name, size_t name_len, const Json *j, Placed *out, Error *err) {
    *out = (Placed){.t = {.name = name}};
    if (strlen(name) != name_len) return bad_tensor(w, name, err, "the name holds a NUL character");
    if (j->type != JSON_OBJECT) return bad_tensor(w, name, err, "its entry in the header is no object");
    return parse_dtype(w, json_get(j, "dtype"), &out->t, err) && parse_shape(w, json_get(j, "shape"), &out->t, err)
        && parse_offsets(w, json_get(j, "data_offsets"), &out->t, &out->begin, err);
}

/* The tensors fill the data part: each begins where the one before ended, and the last ends with the file. */
static bool check_layout(const Weights *w, const Placed *placed, Error *err) {
    size_t at = 0, room = w->map_len - w->data;
    for (size_t i = 0; i < w->n; i++) {
        const Tensor *t = &placed[i].t;
        if (placed[i].begin != at)
            return fail(err, BAD_MODEL, "%s: tensor '%.200s' %s at byte %zu of the data", w->path, t->name,
                        placed[i].begin < at ? "overlaps another" : "leaves a gap before it", placed[i].begin);
        at += t->count * dtype_info[t->dtype].size;
    }
    if (at == room) return true;
    return fail(err, BAD_MODEL, "%s: %zu bytes follow the last tensor; the file is damaged", w->path, room - at);
}

static bool read_table(Weights *w, Error *err) {
    Placed *placed = mem_new(w->header.len, sizeof *placed);
    bool ok = true;
    for (size_t i = 0; ok && i < w->header.len; i++) {
        const char *name = w->header.key[i];
        if (w->header.key_len[i] == strlen("__metadata__") && strcmp(name, "__metadata__") == 0) continue;
        ok = parse_tensor(w, name, w->header.key_len[i], &w->header.item[i], &placed[w->n], err);
        w->n += ok;
    }
    qsort(placed, w->n, sizeof *placed, compare_placed);
    ok = ok && check_layout(w, placed, err);
    w->tensor = mem_new(w->n, sizeof *w->tensor);
    w->begin = mem_new(w->n, sizeof *w->begin);
    w->by_name = mem_new(w->n, sizeof *w->by_name);
    w->copy = mem_new(w->n, sizeof *w->copy);
    for (size_t i = 0; i < w->n; i++) {
        w->tensor[i] = placed[i].t;
        w->begin[i] = placed[i].begin;
        w->by_name[i] = (NameEntry){placed[i].t.name, i};
    }
    qsort(w->by_name, w->n, sizeof *w->by_name, compare_names);
    free(placed);
    return ok;
}

/* ---- opening: the data ---- */

/* The system reads ahead by default, which suits matrices that are streamed. From an embedding only the rows of the text's own tokens
 * are needed, so reading ahead there would fetch gigabytes for nothing. */
static void advise(const Weights *w, size_t i) {
    const Tensor *t = &w->tensor[i];
    if (t->dtype != DTYPE_F32 || t->dims != 2 || !strstr(t->name, "embeddings.")) return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), begin = w->data + w->begin[i], end = begin + t->count * sizeof(float);
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
    if (begin < end) (void)posix_madvise(w->map + begin, end - begin, POSIX_MADV_RANDOM); /* advice only: a failure changes nothing */
}

/* Point each tensor at its data: in the mapping, or in a copy where the mapping is misaligned or in the other byte order. */
static void place_data(Weights *w) {
    bool swap = machine_is_big_endian();
    for (size_t i = 0; i < w->n; i++) {
        Tensor *t = &w->tensor[i];
        size_t size = dtype_info[t->dtype].size;
        const unsigned char *data = w->map + w->data + w->begin[i];
        t->data = data;
        if (size > 1 && (swap || (uintptr_t)data % size != 0)) {
            t->data = w->copy[i] = mem_new(t->count, size);
            if (swap) copy_swapped(w->copy[i], data, t->count, size);
            else memcpy(w->copy[i], data, t->count * size);
        }
        advise(w, i);
    }
}

bool weights_open(Weights **out, const char *path, Error *err) {
    Weights *w = mem_new(1, sizeof *w);
    w->path = mem_new(strlen(path) + 1, 1);
    strcpy(w->path, path);
    *out = NULL;
    if (!map_file(w, err) || !read_header(w, err) || !check_meta(w, err) || !read_table(w, err)) {
        weights_close(w);
        return false;
    }
    place_data(w);
    *out = w;
    return true;
}

bool weights_writable(Weights *w, Error *err) {
    if (mprotect(w->map, w->map_len, PROT_READ | PROT_WRITE) == 0) return true;
    return fail(err, BAD_SYSTEM, "%s: its memory cannot be made writable: %s", w->path, strerror(errno));
}

void weights_close(Weights *w) {
    if (!w) return;
    for (size_t i = 0; w->copy && i < w->n; i++) free(w->copy[i]);
    if (w->map) munmap(w->map, w->map_len);
    json_free(&w->header);
    free(w->path);
    free(w->tensor);
    free(w->begin);
    free(w->by_name);
    free(w->copy);
    free(w);
}

/* ---- looking things up ---- */

size_t weights_count(const Weights *w) { return w->n; }
const Tensor *weights_at(const Weights *w, size_t i) { return &w->tensor[i]; }
const char *weights_path(const Weights *w) { return w->path; }
size_t weights_bytes(const Weights *w) { return w->map_len; }
const char *dtype_name(Dtype d) { return dtype_info[d].name; }

const Tensor *weights_find(const Weights *w, const char *name) {
    NameEntry key = {name, 0};
    const NameEntry *found = bsearch(&key, w->by_name, w->n, sizeof key, compare_names);
    return found ? &w->tensor[found->index] : NULL;
}

size_t weights_meta_count(const Weights *w) {
    const Json *meta = json_get(&w->header, "__metadata__");
    return meta ? meta->len : 0;
}

const char *weights_meta_key(const Weights *w, size_t i) { return json_get(&w->header, "__metadata__")->key[i]; }

const char *weights_meta(const Weights *w, const char *key) {
    const Json *value = json_get(json_get(&w->header, "__metadata__"), key);
    return value ? value->text : NULL;
}

void weights_row_name(const TensorRow *row, size_t layer, Bytes *out) {
    const char *mark = strstr(row->name, "%zu");
    if (!mark) bytes_text(out, row->name);
    else bytes_printf(out, "%.*s%zu%s", (int)(mark - row->name), row->name, layer, mark + 3);
}

static void put_shape(Bytes *b, const size_t *shape, size_t dims) {
    bytes_text(b, "[");
    for (size_t i = 0; i < dims; i++) bytes_printf(b, "%s%zu", i ? ", " : "", shape[i]);
    bytes_text(b, "]");
}

static bool wrong_shape(const Weights *w, const Tensor *t, size_t dims, const size_t *shape, Error *err) {
    Bytes has = {0}, wanted = {0};
    put_shape(&has, t->shape, t->dims);
    put_shape(&wanted, shape, dims);
    fail(err, BAD_MODEL, "%s: tensor '%s' has shape %s, wanted %s; export the model again with export.py", w->path, t->name, has.at,
         wanted.at);
    bytes_free(&has);
    bytes_free(&wanted);
    return false;
}

static const Tensor *find_wanted(const Weights *w, const char *name, Dtype dtype, Error *err) {
    const Tensor *t = weights_find(w, name);
    if (!t) {
        fail(err, BAD_MODEL, "%s: tensor '%s' is missing; export the model again with export.py", w->path, name);
    } else if (t->dtype != dtype) {
        fail(err, BAD_MODEL, "%s: tensor '%s' is %s, wanted %s; export the model again with export.py", w->path, name, dtype_name(t->dtype),
             dtype_name(dtype));
        t = NULL;
    }
    return t;
}

static bool bind_row(const Weights *w, const TensorRow *row, const size_t *size, size_t layer, void *base, Error *err) {
    const size_t dims = row->cols < 0 ? 1 : 2, shape[2] = {size[row->rows], row->cols < 0 ? 0 : size[row->cols]};
    Bytes name = {0};
    weights_row_name(row, layer, &name);
    const Tensor *t = find_wanted(w, name.at, DTYPE_F32, err);
    bytes_free(&name);
    if (!t) return false;
    bool same = t->dims == dims;
    for (size_t i = 0; same && i < dims; i++) same = t->shape[i] == shape[i];
    if (!same) return wrong_shape(w, t, dims, shape, err);
    const float *data = t->data;
    memcpy((char *)base + row->slot, &data, sizeof data);
    return true;
}

bool weights_bind(const Weights *w, const TensorRow *row, size_t rows, const size_t *size, size_t layer, void *base, Error *err) {
    for (size_t i = 0; i < rows; i++)
        if (!bind_row(w, &row[i], size, layer, base, err)) return false;
    return true;
}

bool weights_bytes_tensor(const Weights *w, const char *name, const unsigned char **data, size_t *len, Error *err) {
    const Tensor *t = find_wanted(w, name, DTYPE_U8, err);
    *data = t ? t->data : NULL;
    *len = t ? t->count : 0;
    return t != NULL;
}

/* ---- writing ---- */

static void put_header(Bytes *b, const Tensor *tensor, size_t n, const char *const *meta, size_t n_meta) {
    size_t at = 0;
    bytes_text(b, "{\"__metadata__\":{");
    for (size_t i = 0; i < n_meta; i++) {
        if (i) bytes_text(b, ",");
        json_put_string(b, meta[2 * i], strlen(meta[2 * i]));
        bytes_text(b, ":");
        json_put_string(b, meta[2 * i + 1], strlen(meta[2 * i + 1]));
    }
    bytes_text(b, "}");
    for (size_t i = 0; i < n; i++) {
        size_t bytes = tensor[i].count * dtype_info[tensor[i].dtype].size;
        bytes_text(b, ",");
        json_put_string(b, tensor[i].name, strlen(tensor[i].name));
        bytes_printf(b, ":{\"dtype\":\"%s\",\"shape\":", dtype_name(tensor[i].dtype));
        put_shape(b, tensor[i].shape, tensor[i].dims);
        bytes_printf(b, ",\"data_offsets\":[%zu,%zu]}", at, at + bytes);
        at += bytes;
    }
    bytes_text(b, "}");
    while ((b->len + 8) % DATA_ALIGN != 0) bytes_text(b, " ");
}

/* Give the tensor's bytes, as they are in a file, to `take`. */
static void each_block(const Tensor *t, void (*take)(void *to, const void *data, size_t len), void *to) {
    const size_t size = dtype_info[t->dtype].size;
    if (size == 1 || !machine_is_big_endian()) {
        take(to, t->data, t->count * size);
        return;
    }
    unsigned char block[4096];
    const size_t per = sizeof block / size;
    for (size_t i = 0; i < t->count; i += per) {
        const size_t k = t->count - i < per ? t->count - i : per;
        copy_swapped(block, (const unsigned char *)t->data + i * size, k, size);
        take(to, block, k * size);
    }
}

static void take_into_file(void *to, const void *data, size_t len) { file_put(to, data, len); }
static void take_into_hash(void *to, const void *data, size_t len) { sha256_add(to, data, len); }

void weights_sha256(const Tensor *tensor, size_t n, char hex[65]) {
    Sha256 s;
    sha256_begin(&s);
    for (size_t i = 0; i < n; i++) each_block(&tensor[i], take_into_hash, &s);
    sha256_end(&s, hex);
}

bool weights_write(const char *path, const Tensor *tensor, size_t n, const char *const *meta, size_t n_meta, Error *err) {
    Bytes header = {0};
    FileWriter f;
    if (!file_begin(&f, path, err)) return false;
    put_header(&header, tensor, n, meta, n_meta);
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)header.len >> (8 * i));
    file_put(&f, length, sizeof length);
    file_put(&f, header.at, header.len);
    for (size_t i = 0; i < n; i++) each_block(&tensor[i], take_into_file, &f);
    bytes_free(&header);
    return file_end(&f, err);
}
