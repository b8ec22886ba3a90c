/* cli.c - see cli.h. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

void texts_add(Texts *t, const char *text, size_t len) {
    t->at = mem_resize(t->at, t->n + 1, sizeof *t->at);
    t->at[t->n] = (Bytes){0};
    bytes_add(&t->at[t->n++], text, len);
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

/* A number of up to `most` digits of this base at text[*i]; false if there is no digit. */
static bool escape_number(const Bytes *b, size_t *i, uint32_t base, int most, uint32_t *out) {
    int digits = 0;
    for (*out = 0; digits < most && *i < b->len; digits++, (*i)++) {
        int d = hex_digit(b->at[*i]);
        if (d < 0 || (uint32_t)d >= base) break;
        *out = *out * base + (uint32_t)d;
    }
    return digits > 0;
}

bool cli_unescape(Bytes *text, const char *what, Error *err) {
    static const char letters[] = "abfnrtv\\\"'?0", values[] = "\a\b\f\n\r\t\v\\\"'?\0";
    size_t out = 0, i = 0;
    while (i < text->len) {
        if (text->at[i] != '\\') {
            text->at[out++] = text->at[i++];
            continue;
        }
        const size_t at = i++;
        const char c = i < text->len ? text->at[i] : 0;
        const char *letter = c ? strchr(letters, c) : NULL;
        uint32_t code;
        bool known = true, byte = false;
        if (c >= '0' && c <= '7') known = byte = escape_number(text, &i, 8, 3, &code);
        else if (c == 'x' && ++i) known = byte = escape_number(text, &i, 16, 2, &code);
        else if ((c == 'u' || c == 'U') && ++i) known = escape_number(text, &i, 16, c == 'u' ? 4 : 8, &code) && code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);
        else if (letter && ++i) {
            text->at[out++] = values[letter - letters];
            continue;
        } else known = false;
        if (!known) return fail(err, BAD_USAGE, "%s: byte %zu: a backslash begins no C escape; write \\\\ for a backslash", what, at);
        if (byte) text->at[out++] = (char)code;
        else {
            char utf8[4];
            size_t n = utf8_encode(code, utf8); /* never longer than its escape */
            memcpy(text->at + out, utf8, n);
            out += n;
        }
    }
    text->len = out;
    text->at[out] = 0;
    size_t bad;
    return utf8_valid(text->at, text->len, &bad) || fail(err, BAD_USAGE, "%s: byte %zu: not UTF-8", what, bad);
}

static void put(Bytes *to, const char *text) {
    bytes_free(to);
    bytes_text(to, text);
    bytes_add(to, "", 0);
}

static bool take_value(const CliOption *o, const char *shown, const char *text, Error *err) {
    double number;
    Bytes escaped = {0};
    const bool whole = o->kind == CLI_WHOLE || o->kind == CLI_WHOLES;
    if (o->kind == CLI_NUMBER || whole) {
        if (!cli_number(text, strlen(text), &number) || !(number >= o->least && number <= o->most) || (whole && number != (double)(long long)number))
            return fail(err, BAD_USAGE, "%s takes %s from %.15g to %.15g, not '%.100s'", shown, whole ? "a whole number" : "a number", o->least, o->most, text);
        if (o->kind == CLI_WHOLES) texts_add(o->to, text, strlen(text));
        else *(double *)o->to = number;
        return true;
    }
    if (o->kind == CLI_TEXT) return put(o->to, text), true;
    put(&escaped, text);
    bool ok = cli_unescape(&escaped, shown, err);
    if (ok && o->kind == CLI_TEXTS) texts_add(o->to, escaped.at, escaped.len);
    else if (ok) {
        bytes_free(o->to);
        bytes_add(o->to, escaped.at, escaped.len);
    }
    bytes_free(&escaped);
    return ok;
}

/* ---- parsing ---- */

/* The long name, and the short letter or 0. */
static const char *long_name(const CliOption *o, char *letter) {
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
        const char *name = long_name(&option[i], &letter);
        if (arg[1] == '-' && strlen(name) == len - 2 && memcmp(name, arg + 2, len - 2) == 0) return &option[i];
        if (len == 2 && arg[1] != '-' && arg[1] == letter && letter) return &option[i];
    }
    return NULL;
}

bool cli_parse(const CliOption *option, size_t n, int argc, char **argv, Texts *operands, bool *help, Error *err) {
    bool *seen = mem_new(n, sizeof *seen), ok = true;
    *help = false;
    for (int i = 1; ok && i < argc; i++) {
        const char *arg = argv[i], *value;
        if (arg[0] != '-' || arg[1] == 0) {
            texts_add(operands, arg, strlen(arg));
            continue;
        }
        if (strcmp(arg, "--") == 0) {
            while (++i < argc) texts_add(operands, argv[i], strlen(argv[i]));
            break;
        }
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            *help = true;
            break;
        }
        const CliOption *o = find_option(option, n, arg, &value);
        if (!o) {
            ok = fail(err, BAD_USAGE, "there is no option %.100s; --help lists them", arg);
            break;
        }
        char letter, shown[64] = "--";
        strncat(shown, long_name(o, &letter), sizeof shown - 3);
        const bool flag = o->kind == CLI_FLAG || o->kind == CLI_NO_FLAG, repeatable = o->kind == CLI_TEXTS || o->kind == CLI_WHOLES || flag;
        if (!repeatable && seen[o - option]) ok = fail(err, BAD_USAGE, "%s is given twice", shown);
        else if (flag && value) ok = fail(err, BAD_USAGE, "%s takes no value", shown);
        else if (flag) *(bool *)o->to = o->kind == CLI_FLAG;
        else if (!value && i + 1 >= argc) ok = fail(err, BAD_USAGE, "%s needs a value (%s)", shown, o->value);
        else ok = take_value(o, shown, value ? value : argv[++i], err);
        seen[o - option] = true;
    }
    free(seen);
    return ok;
}

void cli_help(const CliOption *option, size_t n, Bytes *out) {
    for (size_t i = 0; i < n; i++) {
        char letter;
        const char *name = long_name(&option[i], &letter);
        Bytes left = {0};
        if (letter) bytes_printf(&left, "-%c, ", letter);
        bytes_printf(&left, "--%s%s%s", name, option[i].value ? " " : "", option[i].value ? option[i].value : "");
        bytes_printf(out, "  %-36s %s\n", left.at, option[i].help);
        bytes_free(&left);
    }
}
