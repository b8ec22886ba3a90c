/* test_lingua2.c - the parts of lingua2 that stand alone, without a model: command lines. */
#include "../lingua2.c"
#include "check.h"

static Bytes text_of(const char *text) {
    Bytes b = {0};
    bytes_text(&b, text);
    return b;
}

static void test_escapes(void) {
    static const struct {
        const char *text, *want;
        size_t len;
    } cases[] = {{"a\\nb", "a\nb", 3}, {"\\t\\\\", "\t\\", 2}, {"\\u00e9\\U0001F642", "\xC3\xA9\xF0\x9F\x99\x82", 6}, {"\\xC3\\xA9", "\xC3\xA9", 2}, {"\\101", "A", 1},
                 {"\\0", "\0", 1}, {"\\x4g", "\x04g", 2}, {"", "", 0}, {"\\q", NULL, 0}, {"\\", NULL, 0}, {"\\xff", NULL, 0}, {"\\ud800", NULL, 0}, {"\\777", NULL, 0},
                 {"\\u", NULL, 0}, {"\\U00110000", NULL, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Bytes b = text_of(cases[i].text);
        Error err = {0};
        const bool ok = cli_unescape(&b, "--x", &err);
        CHECK(ok == (cases[i].want != NULL) && (!ok || bytes_are(&b, cases[i].want, cases[i].len)), "%s", cases[i].text);
        CHECK(ok || (err.code == BAD_USAGE && strstr(err.text, "--x")), "%s: %s", cases[i].text, err.text);
        bytes_free(&b);
    }
}

static void test_numbers(void) {
    static const struct {
        const char *text;
        bool ok;
        double want;
    } cases[] = {{"0.5", true, 0.5}, {"1e3", true, 1000}, {"-2", true, -2}, {".5", true, 0.5}, {"", false, 0}, {" 1", false, 0}, {"1 ", false, 0}, {"nan", false, 0}, {"inf", false, 0},
                 {"0x10", false, 0}, {"1e999", false, 0}, {"1.2.3", false, 0}, {"--1", false, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double got = 0;
        const bool ok = cli_number(cases[i].text, strlen(cases[i].text), &got);
        CHECK(ok == cases[i].ok && (!ok || got == cases[i].want), "'%s': %d %g", cases[i].text, ok, got);
    }
}

int main(void) {
    test_escapes();
    test_numbers();
    return check_end();
}
