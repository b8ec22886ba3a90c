/* test_weights.c - the reader of flat files on sound ones and on every kind of damage, and the writer. Files of a few hundred bytes in a folder of its own. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "weights.h"

static char folder[] = "/tmp/test_weights.XXXXXX", path[64];

/* A file of these bytes at `path`. */
static void put_file(const void *bytes, size_t len) {
    (void)remove(path); /* a file cut to nothing and written anew is flushed to the disk by some systems, a new one is not */
    FILE *f = fopen(path, "wb");
    const bool ok = f && (len == 0 || fwrite(bytes, 1, len, f) == len);
    if (f) fclose(f);
    if (!ok) printf("%s cannot be written\n", path), exit(1);
}

static void put_length(unsigned char out[8], uint64_t n) {
    for (int i = 0; i < 8; i++) out[i] = (unsigned char)(n >> (8 * i));
}

/* Header length, header, `data` bytes 0, 1, 2, ... */
static Bytes flat(const char *header, size_t header_len, size_t data) {
    Bytes b = {0};
    unsigned char length[8];
    put_length(length, header_len);
    bytes_add(&b, length, 8);
    bytes_add(&b, header, header_len);
    for (size_t i = 0; i < data; i++) {
        const char byte = (char)i;
        bytes_add(&b, &byte, 1);
    }
    return b;
}

/* The file at `path` is refused with this code and a message of one line that names it and holds the word. */
static void refuse(const char *what, int code, const char *word) {
    Weights *w = (Weights *)1;
    Error err = {0};
    const bool ok = weights_open(&w, path, &err);
    CHECK(!ok, "%s: taken", what);
    if (ok) {
        weights_close(w);
        return;
    }
    CHECK(!w && err.code == code && strncmp(err.text, path, strlen(path)) == 0 && strstr(err.text, word) && !strchr(err.text, '\n'), "%s: wanted %d '%s', got %d '%s'", what, code, word, err.code, err.text);
}

static Weights *take(const char *what) {
    Weights *w = NULL;
    Error err = {0};
    CHECK(weights_open(&w, path, &err), "%s: %s", what, err.text);
    return w;
}

static void refuse_header(const char *header, size_t data, const char *word) {
    Bytes b = flat(header, strlen(header), data);
    put_file(b.at, b.len);
    refuse(header, BAD_MODEL, word);
    bytes_free(&b);
}

static Weights *take_header(const char *header, size_t data) {
    Bytes b = flat(header, strlen(header), data);
    put_file(b.at, b.len);
    bytes_free(&b);
    return take(header);
}

/* Five tensors, not in order of offset, those behind the three bytes of "u" misaligned. */
static const char sound[] = "{\"__metadata__\":{\"format\":\"x\",\"k\":\"v\\n\"},"
                            "\"f\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[3,11]},\"u\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
                            "\"d\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[19,27]},\"none\":{\"dtype\":\"F32\",\"shape\":[4,0],\"data_offsets\":[11,11]},"
                            "\"i\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[11,19]}}";
enum { SOUND_DATA = 27 };

static void test_sound(void) {
    static const char *const order[] = {"u", "f", "none", "i", "d"};
    static const size_t alignment[] = {1, 4, 4, 8, 8}, count[] = {3, 2, 0, 1, 1}, dims[] = {1, 2, 2, 0, 1};
    Weights *w = take_header(sound, SOUND_DATA);
    if (!w) return;
    CHECK(weights_count(w) == 5 && weights_bytes(w) == 8 + strlen(sound) + SOUND_DATA && strcmp(weights_path(w), path) == 0, "%zu tensors", weights_count(w));
    for (size_t i = 0; i < 5; i++) {
        const Tensor *t = weights_at(w, i);
        CHECK(strcmp(t->name, order[i]) == 0 && weights_find(w, order[i]) == t, "tensor %zu is %s, wanted %s", i, t->name, order[i]);
        CHECK(t->count == count[i] && t->dims == dims[i] && (uintptr_t)t->data % alignment[i] == 0, "%s: %zu elements, %zu dimensions at %p", t->name, t->count, t->dims, t->data);
    }
    const Tensor *f = weights_find(w, "f"), *i = weights_find(w, "i"), *u = weights_find(w, "u");
    uint32_t bits[2];
    int64_t whole;
    memcpy(bits, f->data, sizeof bits);
    memcpy(&whole, i->data, sizeof whole);
    CHECK(bits[0] == 0x06050403 && bits[1] == 0x0A090807 && whole == 0x1211100F0E0D0C0B && memcmp(u->data, "\0\1\2", 3) == 0, "%lx %lx %llx", (unsigned long)bits[0], (unsigned long)bits[1], (unsigned long long)whole);
    CHECK(f->shape[0] == 2 && f->shape[1] == 1 && strcmp(dtype_name(f->dtype), "F32") == 0 && strcmp(dtype_name(i->dtype), "I64") == 0, "f is %s", dtype_name(f->dtype));
    CHECK(strcmp(weights_meta(w, "k"), "v\n") == 0 && !weights_meta(w, "K") && !weights_meta(w, ""), "metadata");
    CHECK(!weights_find(w, "F") && !weights_find(w, "") && !weights_find(w, "__metadata__") && !weights_find(w, "ff"), "names that are not there");
    weights_close(w);
    weights_close(NULL);
}

static void test_other_sound(void) {
    static const struct {
        const char *header;
        size_t data, tensors;
    } cases[] = {{"{}", 0, 0}, {"{}   ", 0, 0}, {"{\"__metadata__\":{}}", 0, 0}, {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,2],\"data_offsets\":[0,2]}}", 2, 1},
                 {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0,9223372036854775807,9223372036854775807],\"data_offsets\":[0,0]}}", 0, 1}, {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4],\"more\":[1]}}", 4, 1},
                 {"{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"\\u00e9\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]}}", 1, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Weights *w = take_header(cases[i].header, cases[i].data);
        if (w) CHECK(weights_count(w) == cases[i].tensors, "%s: %zu tensors", cases[i].header, weights_count(w));
        weights_close(w);
    }
}

/* A sound file cut at every byte, and made longer by one. */
static void test_truncated(void) {
    Bytes b = flat(sound, strlen(sound), SOUND_DATA + 1);
    char what[32];
    for (size_t n = 0; n <= b.len; n++) {
        if (n + 1 == b.len) continue;
        put_file(b.at, n);
        snprintf(what, sizeof what, "%zu bytes", n);
        refuse(what, BAD_MODEL, n == 0 ? "empty" : n < 8 ? "8 bytes" : n < 8 + strlen(sound) ? "cut short" : n < b.len ? "cut short" : "1 bytes follow");
    }
    bytes_free(&b);
}

/* Each byte of a sound file's first part set to other values: never read out of bounds, and what opens holds what it says. */
static void test_replaced(void) {
    static const unsigned char values[] = {0, 1, 0x7F, 0x80, 0xFF, '"', '{', '}', '[', ']', ',', '0', '9', '-', 'e', '\\'};
    long opened = 0;
    for (size_t at = 0; at < 8 + strlen(sound); at++)
        for (size_t v = 0; v < sizeof values; v++) {
            Bytes b = flat(sound, strlen(sound), SOUND_DATA);
            Weights *w;
            Error err;
            b.at[at] = (char)values[v];
            put_file(b.at, b.len);
            bytes_free(&b);
            if (!weights_open(&w, path, &err)) continue;
            opened++;
            unsigned sum = 0;
            for (size_t i = 0; i < weights_count(w); i++) {
                const Tensor *t = weights_at(w, i);
                const size_t bytes = t->count * (t->dtype == DTYPE_U8 ? 1 : t->dtype == DTYPE_F32 ? 4 : 8);
                for (size_t k = 0; k < bytes; k++) sum += ((const unsigned char *)t->data)[k];
            }
            CHECK(sum == 26 * 27 / 2, "byte %zu as %d: the data sums to %u", at, values[v], sum);
            weights_close(w);
        }
    CHECK(opened > 100, "%ld files opened", opened); /* other names, other metadata */
}

static void test_lengths(void) {
    static const uint64_t lengths[] = {0, 1, 7, UINT64_MAX, UINT64_MAX - 7, UINT64_MAX - 8, 1ull << 63, 1ull << 62, 1ull << 32, 100000001};
    Bytes b = flat(sound, strlen(sound), SOUND_DATA);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char what[64];
        put_length((unsigned char *)b.at, lengths[i]);
        put_file(b.at, b.len);
        snprintf(what, sizeof what, "header length %llu", (unsigned long long)lengths[i]);
        refuse(what, BAD_MODEL, "header");
    }
    put_length((unsigned char *)b.at, strlen(sound) + 1); /* the first byte of the data is a NUL */
    put_file(b.at, b.len);
    refuse("one more", BAD_MODEL, "nothing more");
    put_length((unsigned char *)b.at, strlen(sound) - 1);
    put_file(b.at, b.len);
    refuse("one less", BAD_MODEL, "JSON");
    bytes_free(&b);
    b = flat("{}", 2, 0);
    put_length((unsigned char *)b.at, 100000001);
    put_file(b.at, b.len);
    if (truncate(path, 8 + 100000001) == 0) refuse("a sparse file with a header above the limit", BAD_MODEL, "100 MB");
    bytes_free(&b);
}

#define ONE(dtype, shape, offsets) "{\"a\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(first, second) "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" first "},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" second "}}"

static void test_headers(void) {
    static const struct {
        const char *header;
        size_t data;
        const char *word;
    } cases[] = {
        {"[]", 0, "'{'"}, {" {}", 0, "'{'"}, {"{", 0, "JSON"}, {"{}{}", 0, "JSON"}, {"{\"a\":1}", 0, "no object"}, {"{\"a\":[]}", 0, "no object"}, {"{\"a\":{}}", 0, "\"dtype\""}, {"{\"a\":null}", 0, "no object"}, {"{\"\xFF\":1}", 0, "UTF-8"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "twice"}, {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "NUL"},
        {"{\"__metadata__\":[]}", 0, "__metadata__"}, {"{\"__metadata__\":\"x\"}", 0, "__metadata__"}, {"{\"__metadata__\":{\"k\":1}}", 0, "\"k\" is a number"}, {"{\"__metadata__\":{\"k\":{}}}", 0, "\"k\" is a object"}, {"{\"__metadata__\":{\"k\":null}}", 0, "null"},
        /* dtypes */
        {ONE("\"F16\"", "[2]", "[0,4]"), 4, "F16"}, {ONE("\"f32\"", "[1]", "[0,4]"), 4, "f32"}, {ONE("\"F32 \"", "[1]", "[0,4]"), 4, "dtype"}, {ONE("\"F32\\u0000\"", "[1]", "[0,4]"), 4, "dtype"}, {ONE("\"\"", "[1]", "[0,4]"), 4, "dtype"}, {ONE("4", "[1]", "[0,4]"), 4, "dtype"}, {ONE("null", "[1]", "[0,4]"), 4, "dtype"},
        /* shapes */
        {ONE("\"U8\"", "4", "[0,4]"), 4, "\"shape\""}, {ONE("\"U8\"", "null", "[0,4]"), 4, "\"shape\""}, {ONE("\"U8\"", "[-4]", "[0,4]"), 4, "dimension"}, {ONE("\"U8\"", "[4.0]", "[0,4]"), 4, "dimension"}, {ONE("\"U8\"", "[4e0]", "[0,4]"), 4, "dimension"}, {ONE("\"U8\"", "[\"4\"]", "[0,4]"), 4, "dimension"},
        {ONE("\"U8\"", "[[4]]", "[0,4]"), 4, "dimension"}, {ONE("\"U8\"", "[1,1,1,1,1,1,1,1,4]", "[0,4]"), 4, "8 dimensions"}, {ONE("\"U8\"", "[18446744073709551616]", "[0,4]"), 4, "dimension"}, {ONE("\"U8\"", "[18446744073709551615,2]", "[0,4]"), 4, "too large"},
        {ONE("\"U8\"", "[4294967296,4294967296]", "[0,0]"), 0, "too large"}, {ONE("\"U8\"", "[4294967296,4294967296,4]", "[0,4]"), 4, "too large"}, {ONE("\"F32\"", "[4611686018427387904]", "[0,0]"), 0, "more"}, {ONE("\"F32\"", "[4611686018427387905]", "[0,4]"), 4, "more"}, {ONE("\"F64\"", "[2305843009213693952]", "[0,0]"), 0, "more"},
        {ONE("\"U8\"", "[9223372036854775808,9223372036854775808,0]", "[0,0]"), 0, "too large"}, {ONE("\"U8\"", "[3]", "[0,4]"), 4, "fewer"}, {ONE("\"U8\"", "[5]", "[0,4]"), 4, "more"}, {ONE("\"F32\"", "[2]", "[0,4]"), 4, "more"}, {ONE("\"U8\"", "[]", "[0,4]"), 4, "fewer"},
        /* offsets */
        {ONE("\"U8\"", "[4]", "[0,5]"), 4, "cut short"}, {ONE("\"U8\"", "[4]", "[0,18446744073709551615]"), 4, "cut short"}, {ONE("\"U8\"", "[4]", "[18446744073709551612,18446744073709551615]"), 4, "cut short"}, {ONE("\"U8\"", "[4]", "[4,0]"), 4, "begin <= end"},
        {ONE("\"U8\"", "[4]", "[0]"), 4, "\"data_offsets\""}, {ONE("\"U8\"", "[4]", "[0,4,8]"), 4, "\"data_offsets\""}, {ONE("\"U8\"", "[4]", "[-4,0]"), 4, "\"data_offsets\""}, {ONE("\"U8\"", "[4]", "[0,4.0]"), 4, "\"data_offsets\""}, {ONE("\"U8\"", "[4]", "[0,\"4\"]"), 4, "\"data_offsets\""},
        {ONE("\"U8\"", "[4]", "{}"), 4, "\"data_offsets\""}, {ONE("\"U8\"", "[4]", "null"), 4, "\"data_offsets\""}, {ONE("\"U8\"", "[4]", "[0,18446744073709551620]"), 4, "\"data_offsets\""}, {ONE("\"U8\"", "[4]", "[1,5]"), 5, "gap"}, {ONE("\"U8\"", "[0]", "[4,4]"), 4, "gap"}, {ONE("\"U8\"", "[4]", "[0,4]"), 5, "1 bytes follow"},
        {TWO("[0,4]", "[0,4]"), 4, "overlaps"}, {TWO("[0,4]", "[0,4]"), 8, "overlaps"}, {TWO("[0,4]", "[3,7]"), 8, "overlaps"}, {TWO("[3,7]", "[0,4]"), 7, "overlaps"}, {TWO("[0,4]", "[5,9]"), 9, "gap"}, {TWO("[4,8]", "[0,4]"), 9, "follow"}, {TWO("[4,8]", "[8,12]"), 12, "gap"},
        {"{}", 1, "1 bytes follow"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) refuse_header(cases[i].header, cases[i].data, cases[i].word);
}

static void test_no_flat_file(void) {
    put_file("PK\3\4aaaaaaaaaaaa", 16);
    refuse("a zip", BAD_MODEL, "(zip)");
    put_file("\x80\2aaaaaaaaaaaa", 14);
    refuse("a pickle", BAD_MODEL, "(pickle)");
    put_file("GGUFaaaaaaaaaaaa", 16);
    refuse("GGUF", BAD_MODEL, "GGUF");
    (void)remove(path);
    refuse("nothing", BAD_INPUT, "cannot be opened");
    if (mkdir(path, 0700) == 0) {
        refuse("a directory", BAD_INPUT, "directory");
        (void)rmdir(path);
    }
    if (mkfifo(path, 0600) == 0) {
        refuse("a pipe", BAD_INPUT, "no regular file");
        (void)remove(path);
    }
}

typedef struct {
    const float *a, *b;
} Slots;

static void test_bind(void) {
    Weights *w = take_header("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},\"layer.7.b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[24,32]},\"u\":{\"dtype\":\"U8\",\"shape\":[2,2],\"data_offsets\":[32,36]}}", 36);
    static const size_t size[] = {0, 1, 2, 3, 4, 5, 6}; /* a letter for each number */
    static const struct {
        TensorRow row;
        size_t layer;
        const char *word;
    } cases[] = {{{"a", 2, 3, offsetof(Slots, a)}, 0, NULL}, {{"layer.%zu.b", 2, -1, offsetof(Slots, b)}, 7, NULL}, {{"layer.%zu.b", 2, -1, offsetof(Slots, b)}, 8, "'layer.8.b' is missing"}, {{"A", 2, 3, 0}, 0, "'A' is missing"},
                 {{"a", 3, 2, 0}, 0, "has shape [2, 3], wanted [3, 2]"}, {{"a", 6, -1, 0}, 0, "wanted [6]"}, {{"a", 2, -1, 0}, 0, "wanted [2]"}, {{"layer.7.b", 2, 1, 0}, 0, "wanted [2, 1]"}, {{"layer.7.b", 3, -1, 0}, 0, "wanted [3]"}, {{"u", 2, 2, 0}, 0, "is U8, wanted F32"}};
    if (!w) return;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Slots slots = {NULL, NULL};
        Error err = {0};
        const bool ok = weights_bind(w, &cases[i].row, 1, size, cases[i].layer, &slots, &err);
        CHECK(ok == !cases[i].word, "%s: %d %s", cases[i].row.name, ok, err.text);
        CHECK(ok || (err.code == BAD_MODEL && strstr(err.text, cases[i].word) && strstr(err.text, path) && strstr(err.text, "export.py") && !slots.a && !slots.b), "%s: %d '%s'", cases[i].row.name, err.code, err.text);
        CHECK(!ok || (cases[i].layer ? slots.b == weights_find(w, "layer.7.b")->data && !slots.a : slots.a == weights_find(w, "a")->data && !slots.b), "%s went elsewhere", cases[i].row.name);
    }
    const unsigned char *data;
    size_t len;
    Error err = {0};
    CHECK(weights_bytes_tensor(w, "u", &data, &len, &err) && len == 4 && data[0] == 32, "%s", err.text);
    CHECK(!weights_bytes_tensor(w, "a", &data, &len, &err) && strstr(err.text, "is F32, wanted U8") && !data && len == 0, "%s", err.text);
    CHECK(!weights_bytes_tensor(w, "x", &data, &len, &err) && strstr(err.text, "'x' is missing"), "%s", err.text);
    weights_close(w);
}

static void test_write(void) {
    static const float f[6] = {1.5f, -0.0f, 3e38f, 1e-45f, 0, -7};
    static const unsigned char u[5] = "\0\1\2\xFE\xFF";
    const int64_t whole[2] = {INT64_MIN, 42};
    const double d[1] = {-0.1};
    const Tensor tensor[] = {{"f", DTYPE_F32, 2, {2, 3}, 6, f}, {"u \"\\\xC3\xA9", DTYPE_U8, 1, {5}, 5, u}, {"i", DTYPE_I64, 1, {2}, 2, whole}, {"d", DTYPE_F64, 0, {0}, 1, d}, {"none", DTYPE_F32, 1, {0}, 0, NULL}};
    static const char *const meta[] = {"format", "a\n\"b\"", "k", "v"};
    Error err = {0};
    CHECK(weights_write(path, tensor, 5, meta, 2, &err), "%s", err.text);
    Weights *w = take("what was written");
    Bytes first = {0}, second = {0};
    if (!w) return;
    CHECK(weights_count(w) == 5 && strcmp(weights_meta(w, "format"), meta[1]) == 0, "%zu tensors", weights_count(w));
    for (size_t i = 0; i < 5; i++) {
        static const size_t bytes[] = {24, 5, 16, 8, 0};
        const Tensor *t = weights_find(w, tensor[i].name);
        CHECK(t && t->dtype == tensor[i].dtype && t->dims == tensor[i].dims && t->count == tensor[i].count && (bytes[i] == 0 || memcmp(t->data, tensor[i].data, bytes[i]) == 0), "%s", tensor[i].name);
    }
    weights_close(w);
    CHECK(file_read(path, &first, &err) && (8 + (unsigned char)first.at[0] + 256 * (unsigned char)first.at[1]) % 64 == 0, "the data begins at no multiple of 64");
    CHECK(!weights_write("/dev/full", tensor, 5, meta, 2, &err) && err.code == BAD_SYSTEM, "a full device: %d", err.code);
    Bytes gone = {0};
    bytes_printf(&gone, "%s/not-there/x", folder);
    CHECK(!weights_write(gone.at, tensor, 5, meta, 2, &err) && err.code == BAD_SYSTEM, "a folder that is not there: %d", err.code);
    CHECK(weights_write(path, tensor, 5, meta, 2, &err) && file_read(path, &second, &err) && second.len == first.len && memcmp(first.at, second.at, first.len) == 0, "the same again");
    char content[65], data[65], parts[65];
    weights_sha256(tensor, 5, content);
    uint64_t header = 0;
    for (int i = 8; i-- > 0;) header = header << 8 | (unsigned char)first.at[i];
    sha256_hex(first.at + 8 + header, first.len - 8 - (size_t)header, data);
    CHECK(strcmp(content, data) == 0, "content_sha256 is %s, the file's data have %s", content, data);
    for (size_t n = 0; n < 200 && n < first.len; n++) {
        Sha256 s;
        sha256_begin(&s);
        for (size_t at = 0, part = 1; at < n; at += part, part = part * 7 % 71) sha256_add(&s, first.at + at, part = part < n - at ? part : n - at);
        sha256_end(&s, parts);
        sha256_hex(first.at, n, data);
        CHECK(strcmp(parts, data) == 0, "%zu bytes in parts", n);
    }
    sha256_hex("abc", 3, data);
    CHECK(strcmp(data, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad") == 0, "SHA-256 of abc is %s", data);
    bytes_free(&first);
    bytes_free(&second);
    bytes_free(&gone);
}

int main(void) {
    if (!mkdtemp(folder)) return printf("no folder in /tmp\n"), 1;
    snprintf(path, sizeof path, "%s/model", folder);
    test_sound();
    test_other_sound();
    test_truncated();
    test_replaced();
    test_lengths();
    test_headers();
    test_no_flat_file();
    test_bind();
    test_write();
    (void)remove(path);
    CHECK(rmdir(folder) == 0, "something is left in %s", folder);
    return check_end();
}
