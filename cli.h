/* cli.h - command lines: one table of options per command drives parsing, ranges and --help.
 *
 * Accepted: --name VALUE, --name=VALUE, -x VALUE, flags, "--" ends the options, "-" is an operand. An option not marked as repeatable may
 * be given once. Whatever is wrong is an Error with BAD_USAGE that names the option.
 */
#ifndef CLI_H
#define CLI_H

#include "base.h"

/* A growable list of texts. Start from {0}. */
typedef struct {
    Bytes *at;
    size_t n, cap;
} Texts;
void texts_add(Texts *t, const char *text, size_t len);
void texts_copy(Texts *to, const Texts *from); /* what was in `to` is freed */
bool texts_hold(const Texts *t, const char *text, size_t len);
void texts_free(Texts *t);

/* Replace what b holds. Does it hold exactly this? */
void bytes_set(Bytes *b, const char *text, size_t len);
bool bytes_are(const Bytes *b, const char *text, size_t len);

typedef enum {
    CLI_FLAG,    /* bool: set to true */
    CLI_NO_FLAG, /* bool: set to false */
    CLI_NUMBER,  /* double, finite, least..most */
    CLI_WHOLE,   /* double that is a whole number, least..most */
    CLI_TEXT,    /* Bytes */
    CLI_ESCAPED, /* Bytes, with C escapes */
    CLI_TEXTS,   /* Texts, repeatable, with C escapes */
    CLI_WHOLES   /* Texts of whole numbers as written, repeatable */
} CliKind;

typedef struct {
    const char *name;  /* without the dashes; may start with "-x, " for a short form: "-m, model" */
    const char *value; /* what --help calls the value; NULL for flags */
    CliKind kind;
    void *to;
    double least, most;
    const char *help;
} CliOption;

/* Parse argv[1..argc): options to their places, the others to operands. *help is set if --help was met (what stands after it is not looked at).
 * Errors: BAD_USAGE. */
bool cli_parse(const CliOption *option, size_t n, int argc, char **argv, Texts *operands, bool *help, Error *err);

/* An option's name without dashes, and its short letter or 0. */
const char *cli_long_name(const CliOption *o, char *letter);

/* Append the options' help, one a line. */
void cli_help(const CliOption *option, size_t n, Bytes *out);

/* Replace C escapes (\n \t \\ \" \x41 \u00e9 \101 ...) in place. Errors: BAD_USAGE naming `what`. */
bool cli_unescape(Bytes *text, const char *what, Error *err);

/* A finite number in decimal that is the whole text, else false. */
bool cli_number(const char *text, size_t len, double *out);

#endif
