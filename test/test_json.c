/* test_json.c - the JSON parser against texts that it must take and texts that it must refuse, each refusal at the right byte; the writers against Python's. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "json.h"

#define TEXT(literal) literal, sizeof(literal) - 1

/* Parse a copy that ends where the text ends, so that a sanitizer sees the first byte read beyond it. */
static bool parse(const char *text, size_t len, Json *out, Error *err) {
    char *copy = malloc(len ? len : 1);
    if (!copy) return fail(err, BAD_SYSTEM, "no memory");
    if (len) memcpy(copy, text, len);
    *err = (Error){0};
    const bool ok = json_parse(copy, len, out, err);
    free(copy);
    return ok;
}

/* Write a value without blanks, numbers as they were read: parsing what this gives must give the same again. */
static void put(const Json *j, Bytes *out) {
    static const char *const word[] = {"null", "false", "true"};
    if (j->type <= JSON_TRUE) bytes_text(out, word[j->type]);
    if (j->type == JSON_NUMBER) bytes_add(out, j->text, j->len);
    if (j->type == JSON_STRING) json_put_string(out, j->text, j->len);
    if (j->type < JSON_ARRAY) return;
    bytes_text(out, j->type == JSON_ARRAY ? "[" : "{");
    for (size_t i = 0; i < j->len; i++) {
        if (i) bytes_text(out, ",");
        if (j->type == JSON_OBJECT) json_put_string(out, j->key[i], j->key_len[i]), bytes_text(out, ":");
        put(&j->item[i], out);
    }
    bytes_text(out, j->type == JSON_ARRAY ? "]" : "}");
}

static void take(const char *text, size_t len, const char *want) {
    Json j;
    Error err;
    Bytes again = {0};
    const bool ok = parse(text, len, &j, &err);
    CHECK(ok, "%.60s: %s", text, err.text);
    if (!ok) return;
    put(&j, &again);
    CHECK(strcmp(again.at, want) == 0, "%.60s became %.200s", text, again.at);
    bytes_free(&again);
    json_free(&j);
}

static void refuse(const char *text, size_t len, size_t at, const char *word) {
    Json j;
    Error err;
    char place[32];
    memset(&j, 1, sizeof j);
    snprintf(place, sizeof place, "byte %zu: ", at);
    const bool ok = parse(text, len, &j, &err);
    CHECK(!ok, "%.60s was taken", text);
    if (ok) {
        json_free(&j);
        return;
    }
    CHECK(err.code == BAD_INPUT && strncmp(err.text, place, strlen(place)) == 0 && strstr(err.text, word), "%.60s: wanted '%s%s', got '%s'", text, place, word, err.text);
    CHECK(j.type == JSON_NULL && !j.text && !j.item && !j.key && j.len == 0, "%.60s: something is left", text);
}

static void test_values(void) {
    static const struct {
        const char *text;
        size_t len;
        const char *want;
    } cases[] = {
        {TEXT("null"), "null"}, {TEXT(" \t\r\n true \n"), "true"}, {TEXT("false"), "false"}, {TEXT("[]"), "[]"}, {TEXT("{ }"), "{}"}, {TEXT("[1 , 2]"), "[1,2]"},
        {TEXT("{\"a\" : {\"a\":[{}, [] ]}}"), "{\"a\":{\"a\":[{},[]]}}"}, {TEXT("{\"\":0}"), "{\"\":0}"}, {TEXT("\"\""), "\"\""},
        {TEXT("0"), "0"}, {TEXT("-0"), "-0"}, {TEXT("-0.0e-0"), "-0.0e-0"}, {TEXT("123456789012345678901234567890"), "123456789012345678901234567890"}, {TEXT("1E+5"), "1E+5"},
        {TEXT("1.7976931348623157e308"), "1.7976931348623157e308"}, {TEXT("1e-999"), "1e-999"}, {TEXT("5e-324"), "5e-324"},
        {TEXT("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""), "\"\\\"\\\\/\\b\\f\\n\\r\\t\""}, {TEXT("\"\\u0041\\u00e9\\u20AC\\uFFFF\""), "\"A\xC3\xA9\xE2\x82\xAC\xEF\xBF\xBF\""},
        {TEXT("\"\\ud83D\\uDe42\\uDBFF\\uDFFF\\ud800\\udc00\""), "\"\xF0\x9F\x99\x82\xF4\x8F\xBF\xBF\xF0\x90\x80\x80\""}, {TEXT("\"\\u0000\\u001f\x7F\""), "\"\\u0000\\u001f\x7F\""},
        {TEXT("\"\xC2\x80\xDF\xBF\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\""), "\"\xC2\x80\xDF\xBF\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xF0\x90\x80\x80\xF4\x8F\xBF\xBF\""},
        {TEXT("{\"a\":1,\"a\\u0000\":2,\"a\\u0000b\":3,\"A\":4}"), "{\"a\":1,\"a\\u0000\":2,\"a\\u0000b\":3,\"A\":4}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) take(cases[i].text, cases[i].len, cases[i].want);
}

static void test_refusals(void) {
    static const struct {
        const char *text;
        size_t len, at;
        const char *word;
    } cases[] = {
        {TEXT(""), 0, "a value"}, {TEXT("  "), 2, "the end"}, {TEXT("nul"), 0, "null"}, {TEXT("nulL"), 0, "null"}, {TEXT("True"), 0, "'T'"}, {TEXT("null,"), 4, "nothing more"}, {TEXT("1 2"), 2, "nothing more"},
        {TEXT("[] x"), 3, "nothing more"}, {TEXT("{}\0"), 2, "0x00"}, {TEXT("'a'"), 0, "a value"}, {TEXT("// x\n1"), 0, "'/'"},
        /* numbers */
        {TEXT("NaN"), 0, "a value"}, {TEXT("nan"), 0, "null"}, {TEXT("Infinity"), 0, "a value"}, {TEXT("-Infinity"), 1, "a digit"}, {TEXT("inf"), 0, "a value"}, {TEXT("+1"), 0, "'+'"}, {TEXT("-"), 1, "a digit"}, {TEXT("01"), 0, "begin with 0"},
        {TEXT("-01"), 1, "begin with 0"}, {TEXT("00"), 0, "begin with 0"}, {TEXT(".5"), 0, "'.'"}, {TEXT("1."), 2, "decimal point"}, {TEXT("1.e3"), 2, "decimal point"}, {TEXT("1e"), 2, "exponent"}, {TEXT("1e+"), 3, "exponent"}, {TEXT("1e1.5"), 3, "nothing more"},
        {TEXT("0x10"), 1, "nothing more"}, {TEXT("1_000"), 1, "nothing more"}, {TEXT("[1e309]"), 1, "too large"}, {TEXT("-1e999"), 0, "too large"}, {TEXT("--1"), 1, "a digit"}, {TEXT("1,5"), 1, "nothing more"},
        /* strings */
        {TEXT("\""), 0, "closing quote"}, {TEXT("[\"abc"), 1, "closing quote"}, {TEXT("\"\\\""), 0, "closing quote"}, {TEXT("\"\\"), 0, "closing quote"}, {TEXT("\"\\x41\""), 2, "backslash"}, {TEXT("\"\\'\""), 2, "backslash"}, {TEXT("\"\\\0\""), 2, "backslash"},
        {TEXT("\"a\nb\""), 2, "escape"}, {TEXT("\"\x1F\""), 1, "escape"}, {TEXT("\"\0\""), 1, "escape"}, {TEXT("\"\\u12\""), 5, "hex"}, {TEXT("\"\\u12G4\""), 5, "hex"}, {TEXT("\"\\u\""), 3, "hex"}, {TEXT("\"\\u 123\""), 3, "hex"}, {TEXT("\"\\u+123\""), 3, "hex"},
        {TEXT("\"\\uD800\""), 1, "surrogate"}, {TEXT("\"\\uDC00\""), 1, "surrogate"}, {TEXT("\"ab\\uD83Dx\""), 3, "surrogate"}, {TEXT("\"\\uD83D\\n\""), 1, "surrogate"}, {TEXT("\"\\uD83D\\u0041\""), 1, "surrogate"}, {TEXT("\"\\uD83D\\uD83D\""), 1, "surrogate"},
        {TEXT("\"\\uDE42\\uD83D\""), 1, "surrogate"}, {TEXT("\"\\uD83D\\uE000\""), 1, "surrogate"}, {TEXT("\"\\uE000\\uDC00\""), 7, "surrogate"}, {TEXT("\"\\uD83D\\u12\""), 11, "hex"}, {TEXT("\"\\uD83D\\"), 0, "closing quote"}, {TEXT("\"\\uD83D\\\""), 0, "closing quote"},
        /* UTF-8 */
        {TEXT("\"\x80\""), 1, "UTF-8"}, {TEXT("\"\xC0\x80\""), 1, "UTF-8"}, {TEXT("\"\xC1\xBF\""), 1, "UTF-8"}, {TEXT("\"\xE0\x9F\xBF\""), 1, "UTF-8"}, {TEXT("\"\xED\xA0\x80\""), 1, "UTF-8"}, {TEXT("\"\xF0\x8F\xBF\xBF\""), 1, "UTF-8"},
        {TEXT("\"\xF4\x90\x80\x80\""), 1, "UTF-8"}, {TEXT("\"\xF5\x80\x80\x80\""), 1, "UTF-8"}, {TEXT("\"\xFF\""), 1, "UTF-8"}, {TEXT("\"ab\xE2\x82\""), 3, "UTF-8"}, {TEXT("\"a\xF0\x9F\x99"), 2, "UTF-8"}, {TEXT("1 \xC3"), 2, "UTF-8"}, {TEXT("\xEF\xBB\xBF{}"), 0, "byte order mark"},
        /* arrays and objects */
        {TEXT("["), 1, "a value"}, {TEXT("[1"), 2, "','"}, {TEXT("[1,]"), 3, "a value"}, {TEXT("[,1]"), 1, "a value"}, {TEXT("[1 2]"), 3, "','"}, {TEXT("[1}"), 2, "']'"}, {TEXT("]"), 0, "a value"}, {TEXT("{"), 1, "key"}, {TEXT("{a:1}"), 1, "key"}, {TEXT("{1:1}"), 1, "key"},
        {TEXT("{\"a\"}"), 4, "':'"}, {TEXT("{\"a\" 1}"), 5, "':'"}, {TEXT("{\"a\":}"), 5, "a value"}, {TEXT("{\"a\":1,}"), 7, "key"}, {TEXT("{\"a\":1 \"b\":2}"), 7, "','"}, {TEXT("{\"a\":1]"), 6, "'}'"}, {TEXT("{,}"), 1, "key"}, {TEXT("{null:1}"), 1, "key"},
        /* keys that are there twice */
        {TEXT("{\"a\":1,\"a\":1}"), 7, "\"a\""}, {TEXT("{\"b\":1, \"a\":2, \"\\u0061\":3}"), 15, "\"a\""}, {TEXT("{\"\":1,\"\":2}"), 6, "twice"}, {TEXT("[{\"c\":{\"x\":1,\"y\":2,\"x\":3,\"y\":4}}]"), 19, "\"x\""}, {TEXT("{\"a\\u0000\":1,\"a\\u0000\":2}"), 13, "twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) refuse(cases[i].text, cases[i].len, cases[i].at, cases[i].word);
}

static void repeat(Bytes *b, const char *text, size_t times) {
    for (size_t i = 0; i < times; i++) bytes_text(b, text);
}

static void test_depth(void) {
    static const struct {
        const char *open, *middle, *close;
        size_t step;
    } cases[] = {{"[", "1", "]", 1}, {"{\"a\":", "1", "}", 5}, {"[{\"a\":", "null", "}]", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t levels = cases[i].step ? 128 : 64;
        for (size_t more = 0; more < 2; more++) {
            Bytes b = {0};
            repeat(&b, cases[i].open, levels + more);
            bytes_text(&b, cases[i].middle);
            repeat(&b, cases[i].close, levels + more);
            if (more) refuse(b.at, b.len, strlen(cases[i].open) * levels, "nested deeper than 128");
            else take(b.at, b.len, b.at);
            bytes_free(&b);
        }
    }
    Bytes b = {0};
    repeat(&b, "[", 1000000);
    refuse(b.at, b.len, 128, "nested");
    bytes_free(&b);
    repeat(&b, "[[],", 127);
    repeat(&b, "[]", 1);
    repeat(&b, "]", 127);
    take(b.at, b.len, b.at); /* siblings do not add up */
    bytes_free(&b);
}

static void test_huge(void) {
    enum { MANY = 100000 };
    Bytes b = {0};
    bytes_text(&b, "{");
    for (int i = 0; i < MANY; i++) bytes_printf(&b, "%s\"k%d\":%d", i ? "," : "", i, i);
    const size_t end = b.len + 1;
    bytes_text(&b, ",\"k77\":0}");
    refuse(b.at, b.len, end, "\"k77\"");
    b.len = end - 1;
    bytes_text(&b, "}");
    take(b.at, b.len, b.at);
    bytes_free(&b);
    bytes_text(&b, "[");
    repeat(&b, "1,", MANY);
    bytes_text(&b, "1]");
    take(b.at, b.len, b.at);
    bytes_free(&b);
    bytes_text(&b, "\"");
    repeat(&b, "\xE2\x82\xAC\\n", MANY);
    bytes_text(&b, "\"");
    take(b.at, b.len, b.at);
    bytes_free(&b);
    bytes_text(&b, "0.");
    repeat(&b, "3", MANY);
    take(b.at, b.len, b.at);
    b.at[1] = '3', b.at[0] = '3';
    refuse(b.at, b.len, 0, "too large");
    bytes_free(&b);
    bytes_text(&b, "1e");
    repeat(&b, "9", MANY);
    refuse(b.at, b.len, 0, "too large");
    bytes_free(&b);
}

static const char document[] = " {\"text\": \"a\\u00e9\\ud83d\\ude42\\\"\xE2\x82\xAC\", \"list\": [1, -2.5e+3, [], {\"\": {}}, true, false, null], \"o\": {\"a\": [[[0]]]}}";

/* Every beginning of a sound object is refused, and nothing is read beyond it. */
static void test_truncated(void) {
    const size_t len = sizeof document - 1;
    Json j;
    Error err;
    for (size_t n = 0; n < len; n++) {
        const bool ok = parse(document, n, &j, &err);
        CHECK(!ok && err.code == BAD_INPUT && strncmp(err.text, "byte ", 5) == 0 && strtoul(err.text + 5, NULL, 10) <= n, "%zu bytes: %s", n, ok ? "taken" : err.text);
        if (ok) json_free(&j);
    }
    take(document, len, "{\"text\":\"a\xC3\xA9\xF0\x9F\x99\x82\\\"\xE2\x82\xAC\",\"list\":[1,-2.5e+3,[],{\"\":{}},true,false,null],\"o\":{\"a\":[[[0]]]}}");
}

/* Every byte replaced by every other: either refused with a place inside, or a value that writes and reads back the same. */
static void test_replaced(void) {
    char text[sizeof document];
    const size_t len = sizeof document - 1;
    long wrong = 0;
    for (size_t at = 0; at < len; at++)
        for (int byte = 0; byte < 256; byte++) {
            Json j, k;
            Error err;
            Bytes first = {0}, second = {0};
            memcpy(text, document, sizeof text);
            text[at] = (char)byte;
            if (!parse(text, len, &j, &err)) {
                wrong += strncmp(err.text, "byte ", 5) != 0 || strtoul(err.text + 5, NULL, 10) > len;
                continue;
            }
            put(&j, &first);
            json_free(&j);
            if (parse(first.at, first.len, &k, &err)) {
                put(&k, &second);
                json_free(&k);
            }
            wrong += second.len != first.len || memcmp(first.at, second.at, first.len) != 0;
            bytes_free(&first);
            bytes_free(&second);
        }
    CHECK(wrong == 0, "%ld texts", wrong);
}

static void test_lookup(void) {
    static const char text[] = "{\"a\": 1, \"b\": {\"c\": 2}, \"a\\u0000\": 3, \"list\": [5]}";
    Json j;
    Error err;
    const bool ok = parse(text, sizeof text - 1, &j, &err);
    CHECK(ok, "%s", err.text);
    if (!ok) return;
    const Json *c = json_get(json_get(&j, "b"), "c");
    CHECK(c && c->type == JSON_NUMBER && c->number == 2 && strcmp(c->text, "2") == 0, "b.c");
    CHECK(json_get(&j, "a") == &j.item[0] && json_get(&j, "a") != &j.item[2], "a and a NUL are two keys");
    CHECK(!json_get(&j, "B") && !json_get(&j, "") && !json_get(NULL, "a") && !json_get(c, "a") && !json_get(json_get(&j, "list"), "a"), "what is not there");
    json_free(&j);
    CHECK(!j.item && !j.text && j.len == 0, "freed");
    json_free(&j);
}

static void test_sizes(void) {
    char most[32], over[32];
    snprintf(most, sizeof most, "%zu", SIZE_MAX);
    snprintf(over, sizeof over, "%zu", SIZE_MAX);
    over[strlen(over) - 1]++; /* SIZE_MAX ends in 5 */
    const struct {
        const char *text;
        size_t max;
        bool ok;
        size_t want;
    } cases[] = {{"0", 0, true, 0}, {"7", 7, true, 7}, {"8", 7, false, 0}, {most, SIZE_MAX, true, SIZE_MAX}, {over, SIZE_MAX, false, 0}, {"99999999999999999999999", SIZE_MAX, false, 0}, {"-0", 9, false, 0}, {"-1", SIZE_MAX, false, 0},
                 {"1e3", SIZE_MAX, false, 0}, {"2.0", SIZE_MAX, false, 0}, {"\"3\"", 9, false, 0}, {"true", 9, false, 0}, {"[3]", 9, false, 0}, {"null", 9, false, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Json j;
        Error err;
        size_t got = 42;
        if (!parse(cases[i].text, strlen(cases[i].text), &j, &err)) {
            CHECK(false, "%s: %s", cases[i].text, err.text);
            continue;
        }
        const bool ok = json_size(&j, cases[i].max, &got);
        CHECK(ok == cases[i].ok && got == (ok ? cases[i].want : 42), "%s, at most %zu: %d %zu", cases[i].text, cases[i].max, ok, got);
        json_free(&j);
    }
    size_t got = 42;
    CHECK(!json_size(NULL, 9, &got) && got == 42, "no value");
}

static void test_put_string(void) {
    Bytes b = {0};
    char all[256];
    for (int i = 0; i < 128; i++) all[i] = (char)i;
    json_put_string(&b, all, 128);
    Json j;
    Error err;
    const bool ok = parse(b.at, b.len, &j, &err);
    CHECK(ok && j.type == JSON_STRING && j.len == 128 && memcmp(j.text, all, 128) == 0, "ASCII: %s", ok ? j.text : err.text);
    if (ok) json_free(&j);
    bytes_free(&b);
    json_put_string(&b, TEXT("a\"\\\b\f\n\r\t\x01\x7F/\xC3\xA9"));
    CHECK(strcmp(b.at, "\"a\\\"\\\\\\b\\f\\n\\r\\t\\u0001\x7F/\xC3\xA9\"") == 0, "%s", b.at);
    bytes_free(&b);
}

/* What Python's json.dumps writes for these. */
static void test_put_double(void) {
    static const struct {
        double x;
        const char *want;
    } cases[] = {{0.0, "0.0"}, {-0.0, "-0.0"}, {1, "1.0"}, {-1.5, "-1.5"}, {0.1, "0.1"}, {0.1 + 0.2, "0.30000000000000004"}, {100, "100.0"}, {1e15, "1000000000000000.0"}, {9999999999999998.0, "9999999999999998.0"}, {1e16, "1e+16"}, {1.5e16, "1.5e+16"},
                 {123456789012345680.0, "1.2345678901234568e+17"}, {1e22, "1e+22"}, {1e23, "1e+23"}, {0.0001, "0.0001"}, {0.00012345, "0.00012345"}, {0.00001, "1e-05"}, {1.5e-7, "1.5e-07"}, {1e100, "1e+100"}, {DBL_MAX, "1.7976931348623157e+308"},
                 {DBL_MIN, "2.2250738585072014e-308"}, {5e-324, "5e-324"}, {1.1e-322, "1.1e-322"}, {2e-44, "2e-44"}, {9007199254740993.0, "9007199254740992.0"}, {0x1p-1074, "5e-324"}, {0x1p70, "1.1805916207174113e+21"}, {9.5367431640625e-07, "9.5367431640625e-07"},
                 {(double)0.1f, "0.10000000149011612"}, {2.0 / 3, "0.6666666666666666"}, {0x1p-44, "5.684341886080802e-14"}, {0x1p149, "7.1362384635298e+44"}, {0x1p-549, "5.426657103235053e-166"}, {123.456, "123.456"}, {(double)NAN, "NaN"}, {(double)INFINITY, "Infinity"}, {-(double)INFINITY, "-Infinity"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Bytes b = {0};
        json_put_double(&b, cases[i].x);
        CHECK(strcmp(b.at, cases[i].want) == 0, "%a: %s, Python has %s", cases[i].x, b.at, cases[i].want);
        bytes_free(&b);
    }
}

static size_t digits_of(const char *text) {
    size_t n = 0, zeros = 0;
    for (; *text && *text != 'e'; text++) {
        if (*text < '0' || *text > '9' || (n == 0 && *text == '0')) continue;
        n++;
        zeros = *text == '0' ? zeros + 1 : 0;
    }
    return n - zeros;
}

/* Any double reads back, and no shorter decimal does. */
static void test_shortest(void) {
    uint64_t seed = 88172645463325252u;
    long wrong = 0;
    for (int i = 0; i < 50000; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        const uint64_t bits = i % 3 == 0 ? seed & 0xFFF0000000000000u : seed; /* a third of them powers of two */
        double x;
        memcpy(&x, &bits, sizeof x);
        if (!isfinite(x) || x == 0) continue;
        Bytes b = {0};
        char shorter[40];
        json_put_double(&b, x);
        size_t n = digits_of(b.at);
        wrong += strtod(b.at, NULL) != x;
        if (n > 1) snprintf(shorter, sizeof shorter, "%.*e", (int)n - 2, x);
        if (n > 1 && strtod(shorter, NULL) == x && wrong++ < 5) printf("%a: %s is longer than %s\n", x, b.at, shorter);
        bytes_free(&b);
    }
    CHECK(wrong == 0, "%ld doubles", wrong);
}

int main(void) {
    test_values();
    test_refusals();
    test_depth();
    test_huge();
    test_truncated();
    test_replaced();
    test_lookup();
    test_sizes();
    test_put_string();
    test_put_double();
    test_shortest();
    return check_end();
}
