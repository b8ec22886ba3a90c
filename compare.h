/* compare.h - two runs side by side: where they part, and by how much. And replay: one run's results as inputs to each of our ops.
 *
 * Both print one line per tap, then the first difference, a histogram, and a sentence; and both end with
 *   0 equal to the bit   1 within tolerance   2 beyond it   3 a run that cannot be read
 * Or, with --json, one object per tap and one of the whole (docs/FORMAT.md).
 * Numbers are compared by bits (every NaN is the same); ulps are those of float32, a float64 number rounded to it first.
 */
#ifndef COMPARE_H
#define COMPARE_H

#include "program.h"
#include "trace.h"

enum { ULP_CLASSES = 34 };

typedef struct {
    double tolerance; /* rms(a-b)/rms(b) at most; with a truth r: rms(a-r)/rms(b-r) at most 1 */
    bool has_truth, json;
    Bytes table;
    size_t equal, within, beyond, only_a, only_b;
    char lone[200], first[500];      /* the first name that one side lacks; where and what the first difference is */
    size_t histogram[ULP_CLASSES];   /* numbers that are 0, 1, 2-3, 4-7, ... ulps apart; the last class: one of two is a NaN */
} Comparison;

/* What --help of both says. */
#define COMPARE_JSON                                                                                                                    \
    "--json: an object per tap, {\"tap\", \"shape\", \"verdict\": equal, within or beyond, \"unequal\" of \"numbers\", \"ulp\", \"max\", \"rms\"}, then one of the whole; docs/FORMAT.md."

/* `lingua2 compare`, `mend compare`. */
bool command_compare(Common *c, int argc, char **argv);

/* ---- replay ---- */

typedef struct {
    Taps taps;
    Run run;
    Comparison comparison;
    bool *seen; /* [run.n] */
} Replay;
/* Read RUN and set the arithmetic it was made with. Errors: as run_open. */
bool replay_open(Replay *r, const Common *c, const char *path, Error *err);
/* The ids that RUN holds under a name, to be freed. Errors: BAD_INPUT if there are none. */
bool replay_ids(const Replay *r, const char *name, uint32_t **id, size_t *n, Error *err);
/* Listen from now on: each result is compared with RUN's, then replaced by it. */
void replay_begin(Replay *r);
/* Stop listening and, if all went well so far, print what was found. Errors: with the exit codes above. */
bool replay_end(Replay *r, bool ok, Error *err);

#endif
