/* program.h - what the commands of both programs share: the common options, standard input and output, the files of models/, the
 * configuration in a model file, and main itself. A command is a function that fills *c->err and returns false when it fails. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include "cli.h"
#include "crmath.h"
#include "json.h"
#include "manual.h"
#include "tokenizer.h"
#include "weights.h"

#include <stdio.h>
#include <time.h>

typedef struct Program Program;

typedef struct {
    const char *called; /* argv[0] */
    const Program *program;
    Page *page; /* set: the command is only to tell what it takes */
    Bytes model, math;
    double threads;
    bool quiet, json;
    Texts file; /* operands */
    Error *err;
} Common;

typedef struct {
    const char *name;
    bool (*run)(Common *c, int argc, char **argv);
    const char *help;
} Command;

struct Program {
    About about;
    const Command *command;
    size_t commands;
};

/* Find the command argv[1] names, or `help`, and run it; the exit code. */
int program_main(const Program *program, int argc, char **argv);

/* Parse a command's own options (at most MAX_OWN_OPTIONS) and the common ones, and start the arithmetic; prints the help if asked (*done).
 * usage: "usage: " and a line, then what the command does; the texts of the tables live as long as the program. */
enum { MAX_OWN_OPTIONS = 32 };
bool command_start(Common *c, const char *usage, const CliOption *own, size_t n, int argc, char **argv, bool *done);

/* Write to standard output; a full disk or a closed pipe is an error, never a silent loss. */
bool print_out(const Bytes *text, Error *err);
/* "done of all, so many seconds left" on a terminal, unless quiet. */
void show_progress(const Common *c, const char *what, size_t done, size_t all, time_t begun);
/* A whole file ("-": standard input) that must be UTF-8. Errors: BAD_INPUT with the byte offset. */
bool read_text(const char *path, Bytes *text, Error *err);
/* Lines of a stream one by one, however long; false at the end. */
bool next_line(FILE *f, Bytes *line);
/* "1,2,3" to *id [*n], to be freed. Errors: BAD_USAGE. */
bool parse_ids(const Bytes *text, uint32_t **id, size_t *n, Error *err);

/* The path of a file of models/: beside the program, else in the prefix it is installed in, else in the one it was built for. */
void models_path(const Common *c, const char *name, Bytes *path);
bool open_tokenizer_file(const char *path, Weights **w, Tokenizer **t, Error *err);
/* What a model file holds: append it, or print it. */
void put_info(const Weights *w, bool json, Bytes *out);
bool print_info(const char *path, bool json, Error *err);

/* The JSON under `config`; the file's path is named in what follows. Errors: BAD_MODEL. */
bool config_open(const Weights *w, Json *config, Error *err);
/* A whole number 1..MAX_CONFIG. */
enum { MAX_CONFIG = 1 << 24 };
bool config_size(const Json *config, const char *key, const char *path, size_t *out, Error *err);
/* A number from 0 to below 1. */
bool config_epsilon(const Json *config, const char *key, const char *path, double *out, Error *err);
bool config_activation(const Json *config, const char *key, const char *path, CrFunction *act, Error *err);

#endif
