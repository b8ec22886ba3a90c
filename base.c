/* base.c - see base.h. Depends on libc alone. */
#include "base.h"

#include "posix.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Take a half character off the end of a text that was cut at len bytes. */
static void cut_character(char *text, size_t len) {
    size_t start = len;
    uint32_t code;
    while (start > 0 && len - start < 3 && ((unsigned char)text[start - 1] & 0xC0) == 0x80) start--;
    if (start > 0 && ((unsigned char)text[start - 1] & 0x80) && utf8_decode(text + start - 1, len - start + 1, &code) == 0) text[start - 1] = 0;
}

bool fail(Error *err, int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    err->code = code;
    int len = vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    if (len < 0) err->text[0] = 0;
    for (char *c = err->text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7F) *c = '?'; /* names out of hostile files: one line, no terminal codes */
    if (len >= (int)sizeof err->text) cut_character(err->text, sizeof err->text - 1);
    return false;
}

/* ---- sizes and memory ---- */

bool size_mul(size_t a, size_t b, size_t *out) {
    if (b != 0 && a > SIZE_MAX / b) return false;
    *out = a * b;
    return true;
}

bool size_add(size_t a, size_t b, size_t *out) {
    if (a > SIZE_MAX - b) return false;
    *out = a + b;
    return true;
}

static void *or_die(void *p, size_t count, size_t size) {
    if (p) return p;
    fprintf(stderr, "out of memory: %zu x %zu bytes were asked for; give the program less input or more memory\n", count, size);
    exit(BAD_SYSTEM);
}

void *mem_new(size_t count, size_t size) {
    if (count == 0 || size == 0) count = size = 1;
    return or_die(calloc(count, size), count, size);
}

void *mem_resize(void *old, size_t count, size_t size) {
    size_t total;
    if (!size_mul(count, size, &total)) return or_die(NULL, count, size);
    return or_die(realloc(old, total ? total : 1), count, size);
}

/* ---- growable bytes ---- */

static void bytes_room(Bytes *b, size_t more) {
    size_t need, twice;
    if (!size_add(b->len, more, &need) || !size_add(need, 1, &need)) or_die(NULL, b->len, 1);
    if (need <= b->cap) return;
    twice = b->cap <= SIZE_MAX / 2 ? b->cap * 2 : need;
    b->cap = twice > need ? twice : need;
    b->at = mem_resize(b->at, b->cap, 1);
}

void bytes_add(Bytes *b, const void *data, size_t len) {
    bytes_room(b, len);
    if (len) memcpy(b->at + b->len, data, len);
    b->len += len;
    b->at[b->len] = 0;
}

void bytes_text(Bytes *b, const char *text) { bytes_add(b, text, strlen(text)); }

void bytes_printf(Bytes *b, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (len > 0) {
        bytes_room(b, (size_t)len);
        vsnprintf(b->at + b->len, (size_t)len + 1, format, again);
        b->len += (size_t)len;
    }
    va_end(again);
}

void bytes_free(Bytes *b) {
    free(b->at);
    *b = (Bytes){0};
}

/* ---- UTF-8 ---- */

size_t utf8_decode(const char *text, size_t len, uint32_t *code) {
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) {
        *code = s[0];
        return 1;
    }
    size_t need = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || need > len) return 0;
    uint32_t c = s[0] & (0x7Fu >> need);
    for (size_t i = 1; i < need; i++) {
        if ((s[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3Fu);
    }
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (c < least[need] || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) return 0;
    *code = c;
    return need;
}

size_t utf8_encode(uint32_t code, char out[4]) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t len = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = len - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80u | (code & 0x3Fu));
    out[0] = (char)(lead[len] | code);
    return len;
}

bool utf8_valid(const char *text, size_t len, size_t *bad) {
    uint32_t code;
    for (size_t i = 0; i < len;) {
        size_t n = utf8_decode(text + i, len - i, &code);
        if (n == 0) {
            *bad = i;
            return false;
        }
        i += n;
    }
    return true;
}

/* ---- whole files ---- */

bool file_read(const char *path, Bytes *out, Error *err) {
    bool standard_input = strcmp(path, "-") == 0;
    FILE *f = standard_input ? stdin : fopen(path, "rb");
    *out = (Bytes){0};
    if (!f) return fail(err, BAD_INPUT, "%s: cannot be opened: %s", path, strerror(errno));
    char block[1 << 16];
    for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;) bytes_add(out, block, n);
    bool broken = ferror(f) != 0;
    int why = errno;
    if (!standard_input) fclose(f);
    if (broken) {
        bytes_free(out);
        return fail(err, why == EISDIR ? BAD_INPUT : BAD_SYSTEM, "%s: cannot be read: %s", path, strerror(why));
    }
    if (!out->at) bytes_add(out, "", 0);
    return true;
}

static char *joined(const char *a, const char *b) {
    Bytes s = {0};
    bytes_text(&s, a);
    bytes_text(&s, b);
    return s.at;
}

/* The file that path leads to through symbolic links, which need not exist. An endless circle of links ends in open()'s own error. */
static char *follow_links(const char *path) {
    char *at = joined(path, ""), to[4096];
    for (int hops = 0; hops < 40; hops++) {
        ssize_t len = readlink(at, to, sizeof to - 1);
        if (len < 0) break;
        to[len] = 0;
        char *slash = to[0] == '/' ? NULL : strrchr(at, '/');
        if (slash) slash[1] = 0; /* relative to the link's own directory */
        char *next = slash ? joined(at, to) : joined(to, "");
        free(at);
        at = next;
    }
    return at;
}

static void writer_free(FileWriter *f) {
    free(f->path);
    free(f->target);
    free(f->temporary);
    *f = (FileWriter){0};
}

static bool writer_failed(FileWriter *f, int why, Error *err) {
    fail(err, BAD_SYSTEM, "%s: cannot be written: %s%s", f->path, strerror(why), f->temporary ? "; the file is as it was" : "");
    writer_free(f);
    return false;
}

bool file_begin(FileWriter *f, const char *path, Error *err) {
    struct stat old;
    bool there = stat(path, &old) == 0, direct = there && !S_ISREG(old.st_mode);
    char suffix[32];
    *f = (FileWriter){.path = joined(path, ""), .target = follow_links(path)};
    snprintf(suffix, sizeof suffix, ".tmp.%ld", (long)getpid());
    if (!direct) f->temporary = joined(f->target, suffix);
    if (there && !direct && access(f->target, W_OK) != 0) return writer_failed(f, errno, err); /* a rename would not ask */
    int fd = direct ? open(path, O_WRONLY) : open(f->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0666);
    if (fd < 0) return writer_failed(f, errno, err);
    if (there && !direct) (void)fchmod(fd, old.st_mode & 07777); /* the file keeps its permissions where that can be done */
    f->stream = fdopen(fd, "wb");
    if (f->stream) return true;
    int why = errno;
    close(fd);
    return writer_failed(f, why, err);
}

void file_put(FileWriter *f, const void *data, size_t len) {
    if (f->error == 0 && len > 0 && fwrite(data, 1, len, f->stream) != len) f->error = errno ? errno : EIO;
}

/* Keep the first error only. */
static void note(FileWriter *f, bool ok) {
    if (!ok && f->error == 0) f->error = errno ? errno : EIO;
}

bool file_end(FileWriter *f, Error *err) {
    note(f, fflush(f->stream) == 0);
    if (f->temporary) note(f, fsync(fileno(f->stream)) == 0);
    note(f, fclose(f->stream) == 0);
    if (f->temporary && f->error == 0) note(f, rename(f->temporary, f->target) == 0);
    if (f->temporary && f->error != 0) (void)remove(f->temporary);
    if (f->error != 0) return writer_failed(f, f->error, err);
    writer_free(f);
    return true;
}

void file_abandon(FileWriter *f) {
    (void)fclose(f->stream);
    if (f->temporary) (void)remove(f->temporary);
    writer_free(f);
}

bool file_write(const char *path, const void *data, size_t len, Error *err) {
    FileWriter f;
    if (!file_begin(&f, path, err)) return false;
    file_put(&f, data, len);
    return file_end(&f, err);
}

/* ---- SHA-256 ---- */

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(uint32_t h[8], const unsigned char *data) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64], s[8];
    for (int t = 0; t < 16; t++) w[t] = (uint32_t)data[4 * t] << 24 | (uint32_t)data[4 * t + 1] << 16 | (uint32_t)data[4 * t + 2] << 8 | data[4 * t + 3];
    for (int t = 16; t < 64; t++)
        w[t] = (rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10) + w[t - 7] + (rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3) + w[t - 16];
    memcpy(s, h, sizeof s);
    for (int t = 0; t < 64; t++) {
        const uint32_t a = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[t] + w[t];
        const uint32_t b = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        for (int i = 7; i > 0; i--) s[i] = s[i - 1]; /* a call to memmove would take as long as the rest */
        s[4] += a;
        s[0] = a + b;
    }
    for (int i = 0; i < 8; i++) h[i] += s[i];
}

void sha256_begin(Sha256 *s) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    *s = (Sha256){.len = 0};
    memcpy(s->h, start, sizeof start);
}

void sha256_add(Sha256 *s, const void *data, size_t len) {
    const unsigned char *at = data;
    for (size_t held = s->len % 64, n; len > 0; held = 0, at += n, len -= n) {
        s->len += n = len < 64 - held ? len : 64 - held;
        if (n == 64) sha256_block(s->h, at);
        else memcpy(s->block + held, at, n);
        if (n < 64 && held + n == 64) sha256_block(s->h, s->block);
    }
}

void sha256_end(Sha256 *s, char hex[65]) {
    static const unsigned char mark[64] = {0x80};
    const uint64_t bits = s->len * 8;
    unsigned char length[8];
    sha256_add(s, mark, s->len % 64 < 56 ? 56 - s->len % 64 : 120 - s->len % 64);
    for (int i = 0; i < 8; i++) length[7 - i] = (unsigned char)(bits >> 8 * i);
    sha256_add(s, length, sizeof length);
    for (int i = 0; i < 8; i++) snprintf(hex + 8 * i, 9, "%08lx", (unsigned long)s->h[i]);
}

void sha256_hex(const void *data, size_t len, char hex[65]) {
    Sha256 s;
    sha256_begin(&s);
    sha256_add(&s, data, len);
    sha256_end(&s, hex);
}
