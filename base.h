/* base.h - what every other file stands on: errors that say what to do, sizes that cannot wrap, memory,
 * growable bytes, UTF-8, and whole files in and out.
 *
 * Conventions of all headers here:
 *   - A function that can fail on bad input returns bool and takes an Error *last*; on false the Error is filled
 *     and every output is left empty. Nothing prints, nothing exits, except mem_new/mem_resize (below).
 *   - Text is bytes with a length, UTF-8, not NUL-terminated unless said; offsets count bytes.
 *   - Sizes are size_t, and products of sizes that come from outside go through size_mul.
 */
#ifndef BASE_H
#define BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PRINTF_LIKE(at, first) __attribute__((format(printf, at, first)))
#else
#define PRINTF_LIKE(at, first)
#endif

/* The programs' exit codes; an Error carries the one it should end in. */
enum { DONE = 0, BAD_INPUT = 1, BAD_USAGE = 2, BAD_MODEL = 3, BAD_SYSTEM = 4 };

typedef struct {
    int code;        /* one of the exit codes above */
    char text[1000]; /* what happened, where, what to do; one line, no final full stop or newline */
} Error;

/* Fill *err and return false, so that a check reads: if (n > limit) return fail(err, BAD_INPUT, "...", n); */
bool fail(Error *err, int code, const char *format, ...) PRINTF_LIKE(3, 4);

/* *out = a * b (a + b); false if the result does not fit a size_t. */
bool size_mul(size_t a, size_t b, size_t *out);
bool size_add(size_t a, size_t b, size_t *out);

/* Zeroed memory for count items of the given size, to be released with free(). There is nothing sensible to do
 * without memory, so these two end the program: a message on stderr and exit code 4. count 0 gives a valid pointer.
 * mem_resize does not zero what it adds. */
void *mem_new(size_t count, size_t size);
void *mem_resize(void *old, size_t count, size_t size);

/* Growable bytes. Start from {0}; `at` is always followed by a NUL once anything was added. */
typedef struct {
    char *at;
    size_t len, cap;
} Bytes;
void bytes_add(Bytes *b, const void *data, size_t len);
void bytes_text(Bytes *b, const char *text);
void bytes_printf(Bytes *b, const char *format, ...) PRINTF_LIKE(2, 3);
void bytes_free(Bytes *b); /* back to {0} */

/* Decode the code point at text[0..len), len > 0. Returns its length 1..4, or 0 if the bytes are not UTF-8
 * (overlong forms, surrogates and values above U+10FFFF are not). */
size_t utf8_decode(const char *text, size_t len, uint32_t *code);
/* Encode a code point (0..0x10FFFF) into out[4]; returns the length 1..4. */
size_t utf8_encode(uint32_t code, char out[4]);
/* True if all is UTF-8; else false with the offset of the first bad byte in *bad. */
bool utf8_valid(const char *text, size_t len, size_t *bad);

/* Read a whole file, "-" meaning standard input. Errors: BAD_INPUT if it cannot be opened or is a directory, BAD_SYSTEM if reading fails. */
bool file_read(const char *path, Bytes *out, Error *err);

/* Replace the file at path by what is put into a FileWriter, or leave it as it was. A regular or new file (the target, if path is a
 * symbolic link) is written as path.tmp.PID beside it, flushed to the disk, checked, given the old file's permissions and renamed;
 * anything else (/dev/stdout, a pipe) is written straight. file_put keeps the first error for file_end, so a caller need not look after
 * each. file_begin that failed leaves nothing to end; otherwise exactly one file_end (or file_abandon: as if nothing had been written).
 * Errors: BAD_SYSTEM. */
typedef struct {
    void *stream;    /* the FILE */
    char *path;      /* as given, for messages */
    char *target;    /* what will be replaced */
    char *temporary; /* what is written now; NULL if target itself is */
    int error;       /* errno of the first failure, or 0 */
} FileWriter;
bool file_begin(FileWriter *f, const char *path, Error *err);
void file_put(FileWriter *f, const void *data, size_t len);
bool file_end(FileWriter *f, Error *err);
void file_abandon(FileWriter *f);

/* All three at once, for bytes that are already there. */
bool file_write(const char *path, const void *data, size_t len, Error *err);

/* SHA-256 (FIPS 180-4) in hexadecimal, NUL after it; of bytes that come part by part, and of all at once. */
typedef struct {
    uint32_t h[8];
    unsigned char block[64];
    uint64_t len;
} Sha256;
void sha256_begin(Sha256 *s);
void sha256_add(Sha256 *s, const void *data, size_t len);
void sha256_end(Sha256 *s, char hex[65]);
void sha256_hex(const void *data, size_t len, char hex[65]);

#endif
