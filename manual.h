/* manual.h - the manual page and the shell completions of a program, written from the tables that drive its command lines: what they say
 * and what --help says cannot differ. */
#ifndef MANUAL_H
#define MANUAL_H

#include "cli.h"

/* What is said of a program as a whole. */
typedef struct {
    const char *name, *title; /* "lingua2", "make prompts shorter" */
    const char *about;        /* paragraphs, one a line */
    const char *examples;     /* pairs of lines: what is wanted, the command line */
    const char *see;          /* the other programs, "mend(1)" */
} About;

/* What one of its commands takes. */
typedef struct {
    const char *name, *help; /* as the list of commands has them */
    Bytes usage;             /* "usage: " and a line, then what the command does */
    CliOption *option;       /* [n]: its own options, then those of every command; `to` means nothing here */
    size_t own, n;
} Page;
void pages_free(Page *page, size_t n); /* what they hold, not the pages */

/* Append to out. */
void manual_page(const About *about, const Page *page, size_t n, Bytes *out); /* man(7), section 1 */
void completion_bash(const About *about, const Page *page, size_t n, Bytes *out);
void completion_zsh(const About *about, const Page *page, size_t n, Bytes *out);
void completion_fish(const About *about, const Page *page, size_t n, Bytes *out);

#endif
