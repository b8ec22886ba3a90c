/* warm.h - what the timed programs share: a clock, the arithmetic and threads of the command line, and rounds that begin with a line on standard input. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../tensor.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool start_as(const char *math, const char *threads, Error *err) {
    return tensor_start(strcmp(math, "reference") == 0 ? MATH_REFERENCE : MATH_FAST, atoi(threads), err);
}

/* Whether there is another line. What was printed before is seen by then. */
static bool next_round(void) {
    fflush(stdout);
    for (int c; (c = getchar()) != EOF;)
        if (c == '\n') return true;
    return false;
}
