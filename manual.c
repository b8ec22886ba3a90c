/* manual.c - see manual.h. A value's name in the tables says how it is completed: FILE and DIR are paths, words in small letters with '|'
 * between them ("fast|reference") are a choice, anything else ("N", "TEXT", "1,2,3") only the user knows.
 */
#include "manual.h"

#include <stdlib.h>
#include <string.h>

void pages_free(Page *page, size_t n) {
    for (size_t i = 0; i < n; i++) {
        bytes_free(&page[i].usage);
        free(page[i].option);
    }
}

/* Append text, each character that `special` holds with `before` in front of it. */
static void put_escaped(Bytes *out, const char *text, size_t len, const char *special, const char *before) {
    for (size_t i = 0; i < len; i++) {
        if (strchr(special, text[i])) bytes_text(out, before);
        bytes_add(out, text + i, 1);
    }
}

/* ---- the manual page ---- */

/* Text of a man page: no character of it is a command, and "-" is the minus that can be pasted into a shell. */
static void put_roff(Bytes *out, const char *text, size_t len) {
    if (len && (text[0] == '.' || text[0] == '\'')) bytes_text(out, "\\&");
    for (size_t i = 0; i < len; i++)
        if (text[i] == '\\') bytes_text(out, "\\e");
        else if (text[i] == '-') bytes_text(out, "\\-");
        else bytes_add(out, text + i, 1);
}

/* A macro and its argument on a line, in quotes. */
static void put_macro(Bytes *out, const char *macro, const char *text, size_t len) {
    Bytes quoted = {0};
    put_escaped(&quoted, text, len, "\"", "\"");
    bytes_printf(out, "%s \"", macro);
    put_roff(out, quoted.len ? quoted.at : "", quoted.len);
    bytes_text(out, "\"\n");
    bytes_free(&quoted);
}

/* The line that begins at *at, without its end; *at moves behind it. */
static size_t take_line(const char **at, const char **line) {
    const size_t len = strcspn(*line = *at, "\n");
    *at += len + ((*at)[len] == '\n');
    return len;
}

static void put_options(Bytes *out, const CliOption *option, size_t n) {
    for (size_t i = 0; i < n; i++) {
        char letter;
        const char *name = cli_long_name(&option[i], &letter);
        Bytes left = {0};
        if (letter) bytes_printf(&left, "\\fB-%c\\fR, ", letter);
        bytes_printf(&left, "\\fB--%s\\fR", name);
        bytes_text(out, ".TP\n");
        put_escaped(out, left.at, left.len, "-", "\\");
        if (option[i].value) {
            bytes_text(out, " \\fI");
            put_roff(out, option[i].value, strlen(option[i].value));
            bytes_text(out, "\\fR");
        }
        bytes_text(out, "\n");
        put_roff(out, option[i].help, strlen(option[i].help));
        bytes_text(out, "\n");
        bytes_free(&left);
    }
}

static void put_command(Bytes *out, const Page *page) {
    const char *at = page->usage.at + strlen("usage: "), *line;
    Bytes title = {0};
    bytes_printf(&title, "%s - %s", page->name, page->help);
    put_macro(out, ".SS", title.at, title.len);
    bytes_free(&title);
    size_t len = take_line(&at, &line);
    put_macro(out, ".B", line, len);
    if (*at) bytes_text(out, ".PP\n");
    while (*at) {
        len = take_line(&at, &line);
        put_roff(out, line, len);
        bytes_text(out, "\n");
    }
    put_options(out, page->option, page->own);
}

static void put_paragraphs(Bytes *out, const char *at) {
    for (const char *line, *first = at; *at;) {
        if (at != first) bytes_text(out, ".PP\n");
        const size_t len = take_line(&at, &line);
        put_roff(out, line, len);
        bytes_text(out, "\n");
    }
}

static void put_examples(Bytes *out, const char *at) {
    for (const char *what, *command, *first = at; *at;) {
        if (at != first) bytes_text(out, ".PP\n");
        const size_t what_len = take_line(&at, &what), len = take_line(&at, &command);
        put_roff(out, what, what_len);
        bytes_text(out, "\n.PP\n.RS 4\n.nf\n");
        put_roff(out, command, len);
        bytes_text(out, "\n.fi\n.RE\n");
    }
}

void manual_page(const About *about, const Page *page, size_t n, Bytes *out) {
    static const char codes[] = ".SH EXIT STATUS\n.TP\n0\nDone.\n.TP\n1\nBad input: a text, a request or a file of data.\n.TP\n2\nWrong usage.\n.TP\n3\nA bad model file.\n"
                                ".TP\n4\nMemory, or input and output.\n";
    bytes_text(out, ".TH ");
    for (const char *c = about->name; *c; c++) bytes_add(out, (char[]){*c >= 'a' && *c <= 'z' ? (char)(*c - 'a' + 'A') : *c}, 1);
    bytes_text(out, " 1\n.SH NAME\n");
    bytes_printf(out, "%s \\- ", about->name);
    put_roff(out, about->title, strlen(about->title));
    bytes_printf(out, "\n.SH SYNOPSIS\n.B %s\n.I COMMAND\n[options]\n.SH DESCRIPTION\n", about->name);
    put_paragraphs(out, about->about);
    bytes_text(out, ".SH COMMANDS\n");
    for (size_t i = 0; i < n; i++) put_command(out, &page[i]);
    bytes_text(out, ".SH OPTIONS OF EVERY COMMAND\n");
    put_options(out, page[0].option + page[0].own, page[0].n - page[0].own);
    bytes_text(out, codes);
    bytes_text(out, ".SH EXAMPLES\n");
    put_examples(out, about->examples);
    bytes_printf(out, ".SH SEE ALSO\n%s\n", about->see);
}

/* ---- completions ---- */

static bool is_choice(const CliOption *o) { return o->value && o->value[0] >= 'a' && o->value[0] <= 'z'; }
static bool is_path(const CliOption *o) { return o->value && (strcmp(o->value, "FILE") == 0 || strcmp(o->value, "DIR") == 0); }

/* The words of a choice with blanks between them. */
static void put_choice(Bytes *out, const char *value) {
    for (const char *c = value; *c; c++) bytes_add(out, *c == '|' ? " " : c, 1);
}

static void put_commands(Bytes *out, const Page *page, size_t n) {
    for (size_t i = 0; i < n; i++) bytes_printf(out, "%s%s", i ? " " : "", page[i].name);
}

/* After an option that takes a value: its choices, the names of files, or nothing. */
static void put_bash_values(Bytes *out, const Page *page) {
    for (size_t i = 0; i < page->n; i++) {
        const CliOption *o = &page->option[i];
        char letter;
        const char *name = cli_long_name(o, &letter);
        if (!o->value) continue;
        bytes_printf(out, "        %s:--%s", page->name, name);
        if (letter) bytes_printf(out, "|%s:-%c", page->name, letter);
        if (is_choice(o)) {
            bytes_text(out, ") words='");
            put_choice(out, o->value);
            bytes_text(out, "' ;;\n");
        } else bytes_text(out, is_path(o) ? ") return ;;\n" : ") compopt +o default 2>/dev/null; return ;;\n");
    }
}

static void put_bash_options(Bytes *out, const Page *page) {
    bytes_printf(out, "            %s:-*) words='", page->name);
    for (size_t i = 0; i < page->n; i++) {
        char letter;
        bytes_printf(out, "--%s ", cli_long_name(&page->option[i], &letter));
    }
    bytes_text(out, "--help' ;;\n");
}

void completion_bash(const About *about, const Page *page, size_t n, Bytes *out) {
    bytes_printf(out, "# bash completion for %s. Where no word is offered, the names of files are.\n_%s() {\n", about->name, about->name);
    bytes_text(out, "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words=\n    COMPREPLY=()\n"
                    "    if [[ $current == = ]]; then current=; elif [[ $before == = ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
                    "    if ((COMP_CWORD == 1)); then\n        words='");
    put_commands(out, page, n);
    bytes_text(out, " --help'\n    else\n        case $command:$before in\n");
    for (size_t i = 0; i < n; i++) put_bash_values(out, &page[i]);
    bytes_text(out, "        *)\n            case $command:$current in\n");
    for (size_t i = 0; i < n; i++) put_bash_options(out, &page[i]);
    bytes_text(out, "            help:*) words='");
    put_commands(out, page, n);
    bytes_printf(out, "' ;;\n            esac ;;\n        esac\n    fi\n    COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n}\ncomplete -o default -F _%s %s\n", about->name,
                 about->name);
}

/* Help in single quotes, for zsh's _arguments and _describe: a quote ends the quoting for a moment, brackets and colons are the syntax's. */
static void put_zsh_text(Bytes *out, const char *text) {
    for (; *text; text++)
        if (*text == '\'') bytes_text(out, "'\\''");
        else put_escaped(out, text, 1, "[]:\\", "\\");
}

/* '(-m --model)'{-m,--model=}'[help]:FILE:_files' */
static void put_zsh_option(Bytes *out, const CliOption *o) {
    char letter;
    const char *name = cli_long_name(o, &letter), *repeat = o->kind == CLI_TEXTS || o->kind == CLI_WHOLES ? "*" : "", *equals = o->value ? "=" : "";
    if (letter) bytes_printf(out, "            '%s(-%c --%s)'{-%c,--%s%s}'[", repeat, letter, name, letter, name, equals);
    else bytes_printf(out, "            '%s--%s%s[", repeat, name, equals);
    put_zsh_text(out, o->help);
    bytes_text(out, "]");
    if (o->value) {
        bytes_text(out, ":");
        put_zsh_text(out, o->value);
        bytes_text(out, is_path(o) ? ":_files" : is_choice(o) ? ":(" : ": ");
        if (is_choice(o)) {
            put_choice(out, o->value);
            bytes_text(out, ")");
        }
    }
    bytes_text(out, "' \\\n");
}

void completion_zsh(const About *about, const Page *page, size_t n, Bytes *out) {
    bytes_printf(out, "#compdef %s\n_%s() {\n    local -a commands=(\n", about->name, about->name);
    for (size_t i = 0; i < n; i++) {
        bytes_printf(out, "        '%s:", page[i].name);
        put_zsh_text(out, page[i].help);
        bytes_text(out, "'\n");
    }
    bytes_text(out, "    )\n    if ((CURRENT == 2)); then\n        _describe command commands\n        return\n    fi\n    shift words\n    ((CURRENT--))\n    case $words[1] in\n");
    for (size_t i = 0; i < n; i++) {
        bytes_printf(out, "    %s)\n        _arguments \\\n", page[i].name);
        for (size_t k = 0; k < page[i].n; k++) put_zsh_option(out, &page[i].option[k]);
        bytes_printf(out, "            '--help[what the command takes]' \\\n            '*:%s ;;\n", strcmp(page[i].name, "help") ? "file:_files'" : "command:{_describe command commands}'");
    }
    bytes_printf(out, "    esac\n}\n_%s \"$@\"\n", about->name);
}

static void put_fish_text(Bytes *out, const char *text) {
    bytes_text(out, "'");
    put_escaped(out, text, strlen(text), "'\\", "\\");
    bytes_text(out, "'");
}

static void put_fish_option(Bytes *out, const char *program, const char *command, const CliOption *o) {
    char letter;
    const char *name = cli_long_name(o, &letter);
    bytes_printf(out, "complete -c %s -n '__fish_seen_subcommand_from %s' -l %s", program, command, name);
    if (letter) bytes_printf(out, " -s %c", letter);
    if (is_path(o)) bytes_text(out, " -r -F");
    else if (o->value) bytes_text(out, " -x");
    if (is_choice(o)) {
        bytes_text(out, " -a '");
        put_choice(out, o->value);
        bytes_text(out, "'");
    }
    bytes_text(out, " -d ");
    put_fish_text(out, o->help);
    bytes_text(out, "\n");
}

void completion_fish(const About *about, const Page *page, size_t n, Bytes *out) {
    bytes_printf(out, "# fish completion for %s\n", about->name);
    for (size_t i = 0; i < n; i++) {
        bytes_printf(out, "complete -c %s -n __fish_use_subcommand -f -a %s -d ", about->name, page[i].name);
        put_fish_text(out, page[i].help);
        bytes_text(out, "\n");
    }
    bytes_printf(out, "complete -c %s -n '__fish_seen_subcommand_from help' -f -a '", about->name);
    put_commands(out, page, n);
    bytes_text(out, "'\n");
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < page[i].n; k++) put_fish_option(out, about->name, page[i].name, &page[i].option[k]);
}
