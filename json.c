/* json.c - see json.h. RFC 8259 read strictly into a tree, and the two writers that need care: strings and doubles.
 *
 * Left out on purpose: comments, trailing commas, NaN as input, streaming, numbers beyond a double (an error, not infinity).
 * Depends on libc alone. strtod and printf are used for decimal digits; the programs never call setlocale, so the point is a point.
 */
#include "json.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 128 };

typedef struct {
    const char *text;
    size_t len, at; /* at: the next byte to read, at <= len */
    int depth;      /* arrays and objects that are open */
    Error *err;
} Parser;

/* ---- errors: each names the byte offset ---- */

/* What stands at the parser's place, for a message: 'x', byte 0x07, or the end. */
static const char *found(const Parser *p, char out[16]) {
    unsigned char c = p->at < p->len ? (unsigned char)p->text[p->at] : 0;
    if (p->at >= p->len) snprintf(out, 16, "the end");
    else if (c > 0x20 && c < 0x7F) snprintf(out, 16, "'%c'", c);
    else snprintf(out, 16, "byte 0x%02X", c);
    return out;
}

static bool bad(const Parser *p, size_t at, const char *what) { return fail(p->err, BAD_INPUT, "byte %zu: %s", at, what); }

static bool expected(const Parser *p, const char *what) {
    char seen[16];
    return fail(p->err, BAD_INPUT, "byte %zu: expected %s, found %s", p->at, what, found(p, seen));
}

/* ---- reading: white space, words, numbers ---- */

static bool next_is(const Parser *p, char c) { return p->at < p->len && p->text[p->at] == c; }

static bool next_digit(const Parser *p) { return p->at < p->len && p->text[p->at] >= '0' && p->text[p->at] <= '9'; }

static void skip_space(Parser *p) {
    while (next_is(p, ' ') || next_is(p, '\t') || next_is(p, '\n') || next_is(p, '\r')) p->at++;
}

static bool parse_word(Parser *p, const char *word, JsonType type, Json *out) {
    size_t len = strlen(word);
    if (p->len - p->at < len || memcmp(p->text + p->at, word, len) != 0) return bad(p, p->at, "expected null, true or false");
    p->at += len;
    out->type = type;
    return true;
}

static bool digits(Parser *p, const char *where) {
    if (!next_digit(p)) return expected(p, where);
    while (next_digit(p)) p->at++;
    return true;
}

static char *copy_text(const char *text, size_t len) {
    char *copy = mem_new(len + 1, 1);
    memcpy(copy, text, len);
    return copy;
}

/* number = [-] (0 | 1-9 digits) [. digits] [(e|E) [+|-] digits] */
static bool parse_number(Parser *p, Json *out) {
    size_t start = p->at;
    if (next_is(p, '-')) p->at++;
    if (next_is(p, '0')) {
        p->at++;
        if (next_digit(p)) return bad(p, p->at - 1, "a number must not begin with 0");
    } else if (!digits(p, "a digit")) {
        return false;
    }
    if (next_is(p, '.')) {
        p->at++;
        if (!digits(p, "a digit after the decimal point")) return false;
    }
    if (next_is(p, 'e') || next_is(p, 'E')) {
        p->at++;
        if (next_is(p, '+') || next_is(p, '-')) p->at++;
        if (!digits(p, "a digit in the exponent")) return false;
    }
    out->type = JSON_NUMBER;
    out->len = p->at - start;
    out->text = copy_text(p->text + start, out->len);
    out->number = strtod(out->text, NULL);
    return isfinite(out->number) || bad(p, start, "the number is too large");
}

/* ---- reading: strings ---- */

/* The four hex digits of \uXXXX at the parser's place. */
static bool parse_hex4(Parser *p, uint32_t *code) {
    *code = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        char c = p->at < p->len ? p->text[p->at] : 0;
        uint32_t digit = c >= '0' && c <= '9' ? (uint32_t)(c - '0') : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a') + 10
                       : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A') + 10 : 16;
        if (digit == 16) return expected(p, "four hex digits after \\u");
        *code = *code << 4 | digit;
    }
    return true;
}

/* \uXXXX, or the two of a surrogate pair, as UTF-8. `start` is the offset of the backslash. */
static bool parse_unicode(Parser *p, size_t start, char **to) {
    uint32_t code, low;
    if (!parse_hex4(p, &code)) return false;
    if (code >= 0xD800 && code <= 0xDFFF) {
        bool pair = code < 0xDC00 && p->len - p->at >= 2 && p->text[p->at] == '\\' && p->text[p->at + 1] == 'u';
        if (!pair) return bad(p, start, "a lone surrogate is no character; \\ud800..\\udfff come in pairs");
        p->at += 2;
        if (!parse_hex4(p, &low)) return false;
        if (low < 0xDC00 || low > 0xDFFF) return bad(p, start, "a lone surrogate is no character; \\ud800..\\udfff come in pairs");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *to += utf8_encode(code, *to);
    return true;
}

static bool parse_escape(Parser *p, char **to) {
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    size_t start = p->at++;
    char c = p->at < p->len ? p->text[p->at] : 0;
    const char *known = c ? strchr(from, c) : NULL;
    if (c != 'u' && !known) return expected(p, "one of \"\\/bfnrtu after a backslash");
    p->at++;
    if (c == 'u') return parse_unicode(p, start, to);
    *(*to)++ = into[known - from];
    return true;
}

/* The string at the parser's place, decoded. The decoded form is never longer than the written one, so one block is enough. */
static bool parse_string(Parser *p, char **out, size_t *out_len) {
    size_t start = p->at++, end = p->at;
    while (end < p->len && p->text[end] != '"') end += p->text[end] == '\\' ? 2 : 1;
    if (end >= p->len) return bad(p, start, "the string has no closing quote");
    char *text = mem_new(end - p->at + 1, 1), *to = text;
    bool ok = true;
    while (ok && p->at < end) {
        unsigned char c = (unsigned char)p->text[p->at];
        if (c == '\\') ok = parse_escape(p, &to);
        else if (c < 0x20) ok = expected(p, "an escape (control characters are written \\n, \\u0007, ...)");
        else *to++ = p->text[p->at++];
    }
    if (!ok) {
        free(text);
        return false;
    }
    p->at = end + 1;
    *to = 0;
    *out = text;
    *out_len = (size_t)(to - text);
    return true;
}

/* ---- reading: arrays and objects ---- */

typedef struct {
    const char *key;
    size_t len, at; /* at: byte offset in the text */
} KeyPlace;

static int compare_keys(const void *va, const void *vb) {
    const KeyPlace *a = va, *b = vb;
    if (a->len != b->len) return a->len < b->len ? -1 : 1;
    int order = memcmp(a->key, b->key, a->len);
    return order ? order : a->at < b->at ? -1 : 1;
}

static bool same_key(const KeyPlace *a, const KeyPlace *b) { return a->len == b->len && memcmp(a->key, b->key, a->len) == 0; }

/* Sorting, not hashing, finds a repeated key: no choice of keys makes it slow. */
static bool check_repeated_keys(const Parser *p, const Json *object, const size_t *key_at) {
    size_t n = object->len, first = SIZE_MAX, which = 0;
    if (n < 2 || object->type != JSON_OBJECT) return true;
    KeyPlace *place = mem_new(n, sizeof *place);
    for (size_t i = 0; i < n; i++) place[i] = (KeyPlace){object->key[i], object->key_len[i], key_at[i]};
    qsort(place, n, sizeof *place, compare_keys);
    for (size_t i = 1; i < n; i++)
        if (same_key(&place[i - 1], &place[i]) && place[i].at < first) first = place[which = i].at;
    if (first != SIZE_MAX) fail(p->err, BAD_INPUT, "byte %zu: the key \"%.200s\" is there twice", first, place[which].key);
    free(place);
    return first == SIZE_MAX;
}

static bool parse_value(Parser *p, Json *out);

/* Room for one more item (and key); the blocks double, so n items cost O(n). */
static void grow(Json *j, size_t **key_at, size_t *cap) {
    if (j->len < *cap) return;
    *cap = *cap ? *cap * 2 : 4;
    j->item = mem_resize(j->item, *cap, sizeof *j->item);
    if (j->type != JSON_OBJECT) return;
    j->key = mem_resize(j->key, *cap, sizeof *j->key);
    j->key_len = mem_resize(j->key_len, *cap, sizeof *j->key_len);
    *key_at = mem_resize(*key_at, *cap, sizeof **key_at);
}

/* "key" : — the key goes into the next free place, but j->len is raised only with its value. */
static bool parse_key(Parser *p, char **key, size_t *key_len) {
    if (!next_is(p, '"')) return expected(p, "a key in quotes");
    if (!parse_string(p, key, key_len)) return false;
    skip_space(p);
    if (next_is(p, ':')) {
        p->at++;
        return true;
    }
    free(*key);
    return expected(p, "':' after the key");
}

static bool parse_item(Parser *p, Json *j, size_t **key_at, size_t *cap) {
    char *key = NULL;
    size_t key_len = 0, at = p->at;
    if (j->type == JSON_OBJECT && !parse_key(p, &key, &key_len)) return false;
    Json value;
    if (!parse_value(p, &value)) {
        free(key);
        return false;
    }
    grow(j, key_at, cap);
    if (j->type == JSON_OBJECT) {
        j->key[j->len] = key;
        j->key_len[j->len] = key_len;
        (*key_at)[j->len] = at;
    }
    j->item[j->len++] = value;
    return true;
}

/* The items after the opening bracket, to the closing one. */
static bool parse_items(Parser *p, Json *j, char close, size_t **key_at) {
    size_t cap = 0;
    skip_space(p);
    if (next_is(p, close)) {
        p->at++;
        return true;
    }
    for (;;) {
        skip_space(p);
        if (!parse_item(p, j, key_at, &cap)) return false;
        skip_space(p);
        if (next_is(p, close)) {
            p->at++;
            return true;
        }
        if (!next_is(p, ',')) return expected(p, close == ']' ? "',' or ']'" : "',' or '}'");
        p->at++;
    }
}

static bool parse_container(Parser *p, JsonType type, Json *out) {
    size_t *key_at = NULL;
    if (++p->depth > MAX_DEPTH) return bad(p, p->at, "nested deeper than 128");
    p->at++;
    out->type = type;
    bool ok = parse_items(p, out, type == JSON_ARRAY ? ']' : '}', &key_at) && check_repeated_keys(p, out, key_at);
    free(key_at);
    p->depth--;
    return ok;
}

/* One value; on failure nothing is left to free. */
static bool parse_value(Parser *p, Json *out) {
    bool ok;
    *out = (Json){0};
    skip_space(p);
    char c = p->at < p->len ? p->text[p->at] : 0;
    if (c == '{') ok = parse_container(p, JSON_OBJECT, out);
    else if (c == '[') ok = parse_container(p, JSON_ARRAY, out);
    else if (c == '"') out->type = JSON_STRING, ok = parse_string(p, &out->text, &out->len);
    else if (c == '-' || next_digit(p)) ok = parse_number(p, out);
    else if (c == 'n') ok = parse_word(p, "null", JSON_NULL, out);
    else if (c == 't') ok = parse_word(p, "true", JSON_TRUE, out);
    else if (c == 'f') ok = parse_word(p, "false", JSON_FALSE, out);
    else ok = expected(p, "a value");
    if (!ok) json_free(out);
    return ok;
}

/* ---- the tree ---- */

bool json_parse(const char *text, size_t len, Json *out, Error *err) {
    Parser p = {text, len, 0, 0, err};
    size_t where;
    *out = (Json){0};
    if (!utf8_valid(text, len, &where)) return bad(&p, where, "the text is not UTF-8");
    if (len >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) return bad(&p, 0, "a byte order mark is not allowed");
    if (!parse_value(&p, out)) return false;
    skip_space(&p);
    if (p.at == len) return true;
    json_free(out);
    return expected(&p, "nothing more");
}

void json_free(Json *j) {
    for (size_t i = 0; j->item && i < j->len; i++) {
        json_free(&j->item[i]);
        if (j->key) free(j->key[i]);
    }
    free(j->text);
    free(j->item);
    free(j->key);
    free(j->key_len);
    *j = (Json){0};
}

const Json *json_get(const Json *j, const char *key) {
    if (!j || j->type != JSON_OBJECT) return NULL;
    size_t len = strlen(key);
    for (size_t i = 0; i < j->len; i++)
        if (j->key_len[i] == len && memcmp(j->key[i], key, len) == 0) return &j->item[i];
    return NULL;
}

bool json_size(const Json *j, size_t max, size_t *out) {
    if (!j || j->type != JSON_NUMBER) return false;
    size_t n = 0;
    for (size_t i = 0; i < j->len; i++) {
        char c = j->text[i];
        if (c < '0' || c > '9' || !size_mul(n, 10, &n) || !size_add(n, (size_t)(c - '0'), &n)) return false;
    }
    if (n > max) return false;
    *out = n;
    return true;
}

const char *json_type_name(JsonType t) {
    static const char *const name[] = {"null", "false", "true", "number", "string", "array", "object"};
    return name[t];
}

/* ---- writing ---- */

void json_put_string(Bytes *b, const char *text, size_t len) {
    size_t plain = 0; /* text[plain..i) needs no escape and is not written yet */
    bytes_text(b, "\"");
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        bytes_add(b, text + plain, i - plain);
        plain = i + 1;
        const char *short_form = c == '"' ? "\\\"" : c == '\\' ? "\\\\" : c == '\n' ? "\\n" : c == '\r' ? "\\r"
                               : c == '\t' ? "\\t" : c == '\b' ? "\\b" : c == '\f' ? "\\f" : NULL;
        if (short_form) bytes_text(b, short_form);
        else bytes_printf(b, "\\u%04x", c);
    }
    bytes_add(b, text + plain, len - plain);
    bytes_text(b, "\"");
}

/* The decimal d.ddde±xx one unit in the last place further from zero; one of nines alone stays as it is. */
static void next_decimal(char *form) {
    char *c = strchr(form, 'e');
    do c--;
    while (c > form && (*c == '9' || *c == '.'));
    if (*c < '0' || *c > '8') return;
    *c += 1;
    while (*++c != 'e')
        if (*c == '9') *c = '0';
}

/* The shortest d.ddde±xx that reads back as x. Any decimal of up to 15 digits survives the way through a normal double, so if 15 digits
 * read back, they end in the zeros that the shortest form lacks; subnormals have fewer digits and try each length. Below a power of two
 * doubles lie twice as close as above it, so there the nearest 16 digits can miss while the next ones up read back. */
static void shortest_digits(double x, char out[32]) {
    for (int precision = fabs(x) < DBL_MIN ? 0 : 14; precision <= 16; precision++) {
        snprintf(out, 32, "%.*e", precision, x);
        if (strtod(out, NULL) == x) return;
        if (precision == 15) next_decimal(out);
        if (strtod(out, NULL) == x) return;
    }
}

/* Python's repr: digits and point where the decimal exponent is in [-4, 16), else d.ddde±xx. */
void json_put_double(Bytes *b, double x) {
    if (isnan(x)) bytes_text(b, "NaN");
    if (isinf(x)) bytes_text(b, x < 0 ? "-Infinity" : "Infinity");
    if (!isfinite(x)) return;
    char form[32], digit[32];
    shortest_digits(x, form);
    int n = 0, exponent = atoi(strchr(form, 'e') + 1);
    for (const char *c = form; *c != 'e'; c++)
        if (*c >= '0' && *c <= '9') digit[n++] = *c;
    while (n > 1 && digit[n - 1] == '0') n--;
    if (form[0] == '-') bytes_text(b, "-");
    if (exponent >= 16 || exponent < -4) {
        bytes_add(b, digit, 1);
        if (n > 1) bytes_printf(b, ".%.*s", n - 1, digit + 1);
        bytes_printf(b, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    } else if (exponent < 0) {
        bytes_printf(b, "0.%.*s%.*s", -exponent - 1, "000", n, digit);
    } else {
        for (int i = 0; i <= exponent; i++) bytes_add(b, i < n ? &digit[i] : "0", 1);
        if (n > exponent + 1) bytes_printf(b, ".%.*s", n - exponent - 1, digit + exponent + 1);
        else bytes_text(b, ".0");
    }
}

void json_put_doubles(Bytes *out, const double *x, size_t n) {
    bytes_text(out, "[");
    for (size_t i = 0; i < n; i++) {
        if (i) bytes_text(out, ", ");
        json_put_double(out, x[i]);
    }
    bytes_text(out, "]");
}

void json_put(Bytes *out, const Json *j) {
    if (j->type == JSON_STRING) json_put_string(out, j->text, j->len);
    else if (j->type == JSON_NUMBER) bytes_add(out, j->text, j->len);
    else if (j->type != JSON_ARRAY && j->type != JSON_OBJECT) bytes_text(out, j->type == JSON_NULL ? "null" : j->type == JSON_TRUE ? "true" : "false");
    else {
        bytes_text(out, j->type == JSON_ARRAY ? "[" : "{");
        for (size_t i = 0; i < j->len; i++) {
            if (i) bytes_text(out, ", ");
            if (j->type == JSON_OBJECT) {
                json_put_string(out, j->key[i], j->key_len[i]);
                bytes_text(out, ": ");
            }
            json_put(out, &j->item[i]);
        }
        bytes_text(out, j->type == JSON_ARRAY ? "]" : "}");
    }
}
