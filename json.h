/* json.h - JSON values, in and out (RFC 8259), for model headers, requests and results.
 *
 * The parser trusts nothing: UTF-8 is checked, nesting is limited to 128, a repeated key or anything after the value is an error, and
 * each error names the byte offset. Values live in one tree, freed as one.
 */
#ifndef JSON_H
#define JSON_H

#include "base.h"

typedef enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } JsonType;

typedef struct Json {
    JsonType type;
    char *text;         /* string: its bytes, decoded, NUL after them; number: as written */
    size_t len;         /* string: bytes; array, object: items */
    double number;      /* number */
    char **key;         /* object: len keys, NUL-terminated, in file order */
    size_t *key_len;    /* a key may hold NUL bytes */
    struct Json *item;  /* array, object: len values */
} Json;

/* Parse exactly one value (white space around it). Errors: BAD_INPUT, "byte N: ...". Release with json_free. */
bool json_parse(const char *text, size_t len, Json *out, Error *err);
void json_free(Json *j);

/* The value under a key, or NULL; also NULL if j is NULL or no object. */
const Json *json_get(const Json *j, const char *key);
/* True and *out set if j is a number that is an integer 0..max (1e3 and 2.0 are not: integers are digits alone). */
bool json_size(const Json *j, size_t max, size_t *out);
const char *json_type_name(JsonType t);

/* Append to b: a string in quotes, escaped as Python's json.dumps(ensure_ascii=False) does (the control characters escaped, the rest as is);
 * a double as Python's repr (shortest that reads back; 1.0, 1e-05, nan as NaN). text must be UTF-8. */
void json_put_string(Bytes *b, const char *text, size_t len);
void json_put_double(Bytes *b, double x);
void json_put_doubles(Bytes *b, const double *x, size_t n); /* [x, ...] */
/* A value as it was parsed; numbers as they were written. */
void json_put(Bytes *b, const Json *j);

#endif
