/* check.h - the few macros our tests need. A failed check prints file, line and what was seen; the count decides the exit code.
 * Write CHECK(!(err <= tol)) the other way round: CHECK(err <= tol, ...) fails for NaN too, because it asks for truth. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>

static long check_passed, check_failed, check_skipped;

#define CHECK(cond, ...)                                             \
    do {                                                             \
        if (cond) check_passed++;                                    \
        else if (check_failed++ < 20) {                              \
            printf("%s:%d: failed: %s: ", __FILE__, __LINE__, #cond); \
            printf(__VA_ARGS__);                                     \
            printf("\n");                                            \
        }                                                            \
    } while (0)

/* One part of the test could not run here (no ../shared, say): counted and said, never silent. */
#define SKIP(...)            \
    do {                     \
        check_skipped++;     \
        printf("skipped: "); \
        printf(__VA_ARGS__); \
        printf("\n");        \
    } while (0)

/* The last line of every test program, and its exit code. */
static inline int check_end(void) {
    printf("%ld passed, %ld failed, %ld skipped\n", check_passed, check_failed, check_skipped);
    return check_failed != 0;
}

#endif
