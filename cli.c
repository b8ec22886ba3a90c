/* cli.c - see cli.h. Depends on libc alone.
 *
 * Left out on purpose: abbreviated names, bundled short options, options from the environment or from files.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

/* ---- texts ---- */

void bytes_set(Bytes *b, const char *text, size_t len) {
    b->len = 0;
    bytes_add(b, text, len);
}

bool bytes_are(const Bytes *b, const char *text, size_t len) { return b->len == len && (len == 0 || memcmp(b->at, text, len) == 0); }

void texts_add(Texts *t, const char *text, size_t len) {
    if (t->n == t->cap) t->at = mem_resize(t->at, t->cap = t->cap ? t->cap * 2 : 4, sizeof *t->at);
    t->at[t->n] = (Bytes){0};
    bytes_add(&t->at[t->n++], text, len);
}

void texts_copy(Texts *to, const Texts *from) {
    texts_free(to);
    for (size_t i = 0; i < from->n; i++) texts_add(to, from->at[i].at, from->at[i].len);
}

bool texts_hold(const Texts *t, const char *text, size_t len) {
    for (size_t i = 0; i < t->n; i++)
        if (bytes_are(&t->at[i], text, len)) return true;
    return false;
}

void texts_free(Texts *t) {
    for (size_t i = 0; i < t->n; i++) bytes_free(&t->at[i]);
    free(t->at);
    *t = (Texts){0};
}

/* ---- values ---- */

bool cli_number(const char *text, size_t len, double *out) {
    char *end;
    if (len == 0 || len != strlen(text) || strspn(text, "+-.0123456789eE") != len) return false; /* strtod also takes blanks, nan, 0x */
    *out = strtod(text, &end);
    return end == text + len && *out - *out == 0;
}

static int hex_digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

/* A number of 1 to `most` digits of this base at text[*i], at most `limit`. */
static bool escape_number(const Bytes *b, size_t *i, int base, int most, uint32_t limit, uint32_t *out) {
    int digits = 0;
    for (*out = 0; digits < most && *i < b->len; digits++, (*i)++) {
        const int d = hex_digit(b->at[*i]);
        if (d < 0 || d >= base) break;
        *out = *out * (uint32_t)base + (uint32_t)d;
    }
    return digits > 0 && *out <= limit;
}

/* The escape whose backslash stands before text[*i]: \n \\ ..., \101 and \x41 a byte, \u00e9 and \U0001F642 a character. */
static bool escape(const Bytes *b, size_t *i, Bytes *out) {
    static const char letters[] = "abfnrtv\\\"'?", values[] = "\a\b\f\n\r\t\v\\\"'?";
    const char c = *i < b->len ? b->at[*i] : 0, *letter = c ? strchr(letters, c) : NULL;
    char utf8[4];
    uint32_t code;
    if (letter) return bytes_add(out, values + (letter - letters), 1), ++*i, true;
    if (c >= '0' && c <= '7') {
        if (!escape_number(b, i, 8, 3, 255, &code)) return false;
    } else if (c == 'x') {
        if (!(++*i, escape_number(b, i, 16, 2, 255, &code))) return false;
    } else {
        if ((c != 'u' && c != 'U') || !(++*i, escape_number(b, i, 16, c == 'u' ? 4 : 8, 0x10FFFF, &code)) || (code >= 0xD800 && code <= 0xDFFF)) return false;
        return bytes_add(out, utf8, utf8_encode(code, utf8)), true;
    }
    utf8[0] = (char)code;
    return bytes_add(out, utf8, 1), true;
}

bool cli_unescape(Bytes *text, const char *what, Error *err) {
    Bytes out = {0};
    size_t i = 0, bad;
    bytes_add(&out, "", 0);
    while (i < text->len) {
        const size_t at = i++;
        if (text->at[at] != '\\') bytes_add(&out, text->at + at, 1);
        else if (!escape(text, &i, &out)) {
            bytes_free(&out);
            return fail(err, BAD_USAGE, "%s: byte %zu: no C escape begins here; write \\\\ for a backslash", what, at);
        }
    }
    bytes_free(text);
    *text = out;
    return utf8_valid(out.at, out.len, &bad) || fail(err, BAD_USAGE, "%s: byte %zu: not UTF-8", what, bad);
}

static bool take_number(const CliOption *o, const char *shown, const char *text, double *number, Error *err) {
    const bool is_number = cli_number(text, strlen(text), number), whole = o->kind == CLI_WHOLE || o->kind == CLI_WHOLES;
    if (is_number && *number >= o->least && *number <= o->most && (!whole || *number == (double)(long long)*number)) return true;
    return fail(err, BAD_USAGE, "%s takes a %s from %.15g to %.15g, not '%.100s'", shown, whole ? "whole number" : "number", o->least, o->most, text);
}

static bool take_escaped(const CliOption *o, const char *shown, const char *text, Error *err) {
    Bytes plain = {0};
    bytes_set(&plain, text, strlen(text));
    bool ok = cli_unescape(&plain, shown, err);
    if (ok && o->kind == CLI_TEXTS) texts_add(o->to, plain.at, plain.len);
    else if (ok) bytes_set(o->to, plain.at, plain.len);
    bytes_free(&plain);
    return ok;
}

static bool take_value(const CliOption *o, const char *shown, const char *text, Error *err) {
    const size_t len = text ? strlen(text) : 0; /* NULL for flags */
    double number;
    switch (o->kind) {
    case CLI_NUMBER:
    case CLI_WHOLE: return take_number(o, shown, text, &number, err) && (*(double *)o->to = number, true);
    case CLI_WHOLES: return take_number(o, shown, text, &number, err) && (texts_add(o->to, text, len), true);
    case CLI_TEXT: return bytes_set(o->to, text, len), true;
    case CLI_ESCAPED:
    case CLI_TEXTS: return take_escaped(o, shown, text, err);
    case CLI_FLAG:
    case CLI_NO_FLAG: break;
    }
    return *(bool *)o->to = o->kind == CLI_FLAG, true;
}

/* ---- parsing ---- */

const char *cli_long_name(const CliOption *o, char *letter) {
    const bool has_short = o->name[0] == '-';
    *letter = has_short ? o->name[1] : 0;
    return has_short ? o->name + 4 : o->name;
}

/* The option an argument names; *value its "=VALUE", or NULL. */
static const CliOption *find_option(const CliOption *option, size_t n, const char *arg, const char **value) {
    const char *equals = strchr(arg, '=');
    const size_t len = equals ? (size_t)(equals - arg) : strlen(arg);
    *value = equals ? equals + 1 : NULL;
    for (size_t i = 0; i < n; i++) {
        char letter;
        const char *name = cli_long_name(&option[i], &letter);
        if (arg[1] == '-' && strlen(name) == len - 2 && memcmp(name, arg + 2, len - 2) == 0) return &option[i];
        if (len == 2 && arg[1] != '-' && arg[1] == letter && letter) return &option[i];
    }
    return NULL;
}

/* One option at argv[*i], its value taken from it or from the next argument. */
static bool take_option(const CliOption *option, size_t n, int argc, char **argv, int *i, bool *seen, Error *err) {
    const char *value;
    const CliOption *o = find_option(option, n, argv[*i], &value);
    if (!o) return fail(err, BAD_USAGE, "there is no option %.100s; --help lists them", argv[*i]);
    char letter, shown[64] = "--";
    strncat(shown, cli_long_name(o, &letter), sizeof shown - 3);
    const bool flag = o->kind == CLI_FLAG || o->kind == CLI_NO_FLAG, repeatable = flag || o->kind == CLI_TEXTS || o->kind == CLI_WHOLES;
    if (!repeatable && seen[o - option]) return fail(err, BAD_USAGE, "%s is given twice", shown);
    seen[o - option] = true;
    if (flag && value) return fail(err, BAD_USAGE, "%s takes no value", shown);
    if (!flag && !value && ++*i >= argc) return fail(err, BAD_USAGE, "%s needs a value: %s", shown, o->value);
    return take_value(o, shown, flag || value ? value : argv[*i], err);
}

bool cli_parse(const CliOption *option, size_t n, int argc, char **argv, Texts *operands, bool *help, Error *err) {
    bool *seen = mem_new(n, sizeof *seen), ok = true, only_operands = false;
    *help = false;
    for (int i = 1; ok && !*help && i < argc; i++) {
        const char *arg = argv[i];
        if (only_operands || arg[0] != '-' || arg[1] == 0) texts_add(operands, arg, strlen(arg));
        else if (strcmp(arg, "--") == 0) only_operands = true;
        else if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) *help = true;
        else ok = take_option(option, n, argc, argv, &i, seen, err);
    }
    free(seen);
    return ok;
}

void cli_help(const CliOption *option, size_t n, Bytes *out) {
    for (size_t i = 0; i < n; i++) {
        char letter;
        const char *name = cli_long_name(&option[i], &letter);
        Bytes left = {0};
        if (letter) bytes_printf(&left, "-%c, ", letter);
        bytes_printf(&left, "--%s%s%s", name, option[i].value ? " " : "", option[i].value ? option[i].value : "");
        bytes_printf(out, "  %-36s %s\n", left.at, option[i].help);
        bytes_free(&left);
    }
}
