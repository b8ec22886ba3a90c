/* compare.c - see compare.h. */
#include "compare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor.h"

/* What the commands end with. */
enum { WITHIN = 1, BEYOND = 2, UNREADABLE = 3 };

/* ---- two numbers ---- */

/* float32 numbers in order, as whole numbers without gaps; +0 and -0 are one. */
static int64_t place_of(double x) {
    const float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits >> 31 ? -(int64_t)(bits & INT32_MAX) : (int64_t)bits;
}

static bool same_number(double a, double b) { return (a != a && b != b) || (a == b && signbit(a) == signbit(b)); }

/* What lies between: 0 for equal numbers, infinite ones too. */
static double distance(double a, double b) { return same_number(a, b) ? 0 : a - b; }

static size_t ulp_class(double a, double b) {
    size_t n = 0;
    if (a != a || b != b) return a != a && b != b ? 0 : ULP_CLASSES - 1;
    for (int64_t d = llabs(place_of(a) - place_of(b)); d > 0; d >>= 1) n++;
    return n;
}

/* ---- two taps ---- */

typedef struct {
    size_t unequal, first; /* numbers that differ; the first of them */
    int64_t ulp;           /* the most, -1: a NaN against a number */
    double most, rms;      /* |a-b|; rms(a-b)/rms(b) */
    double truth, truth_most; /* rms(a-r)/rms(b-r), max|a-r|/max|b-r| */
} Difference;

static double ratio(double a, double b) { return a == 0 ? 0 : a / b; }

static Difference difference(const Tensor *a, const Tensor *b, const Tensor *truth, size_t histogram[ULP_CLASSES]) {
    Difference d = {.first = a->count};
    double square = 0, square_b = 0, truth_a = 0, truth_b = 0, most_a = 0, most_b = 0;
    for (size_t i = 0; i < a->count; i++) {
        const double x = number_at(a, i), y = number_at(b, i), e = distance(x, y);
        const size_t class = ulp_class(x, y);
        histogram[class]++;
        if (!same_number(x, y) && d.unequal++ == 0) d.first = i;
        if (class == ULP_CLASSES - 1) d.ulp = -1;
        else if (d.ulp >= 0 && x == x && llabs(place_of(x) - place_of(y)) > d.ulp) d.ulp = llabs(place_of(x) - place_of(y));
        if (!(fabs(e) <= d.most)) d.most = fabs(e);
        square += e * e;
        if (isfinite(y)) square_b += y * y;
        if (!truth) continue;
        const double ea = distance(x, number_at(truth, i)), eb = distance(y, number_at(truth, i));
        truth_a += ea * ea;
        truth_b += eb * eb;
        if (!(fabs(ea) <= most_a)) most_a = fabs(ea);
        if (!(fabs(eb) <= most_b)) most_b = fabs(eb);
    }
    d.rms = sqrt(ratio(square, square_b));
    d.truth = sqrt(ratio(truth_a, truth_b));
    d.truth_most = ratio(most_a, most_b);
    return d;
}

/* The same shape, axes of one at the front apart. */
static bool same_shape(const Tensor *a, const Tensor *b) {
    size_t i = 0, j = 0;
    while (i < a->dims && a->shape[i] == 1) i++;
    while (j < b->dims && b->shape[j] == 1) j++;
    return a->dims - i == b->dims - j && memcmp(a->shape + i, b->shape + j, (a->dims - i) * sizeof *a->shape) == 0;
}

/* "[3, 17]": element i of a tensor. */
static void put_index(const Tensor *t, size_t i, Bytes *out) {
    size_t rest = t->count;
    for (size_t d = 0; d < t->dims; d++) {
        rest /= t->shape[d];
        bytes_printf(out, "%s%zu", d ? ", " : "[", i / rest);
        i %= rest;
    }
    bytes_text(out, t->dims ? "]" : "[]");
}

static void put_number(const Tensor *t, size_t i, Bytes *out) {
    const double x = number_at(t, i);
    const float f = (float)x;
    uint32_t low;
    uint64_t bits;
    memcpy(&low, &f, sizeof low);
    memcpy(&bits, &x, sizeof bits);
    if (t->dtype == DTYPE_F32) bytes_printf(out, "%08lx %.9g", (unsigned long)low, x);
    else if (t->dtype == DTYPE_F64) bytes_printf(out, "%016llx %.17g", (unsigned long long)bits, x);
    else bytes_printf(out, "%.0f", x);
}

static void note_first(Comparison *c, const Tap *a, const Tap *b, size_t i) {
    Bytes text = {0};
    if (c->first[0]) return;
    bytes_text(&text, a->t.name);
    if (i < a->t.count) {
        put_index(&a->t, i, &text);
        bytes_text(&text, ": ");
        put_number(&a->t, i, &text);
        bytes_text(&text, " against ");
        put_number(&b->t, i, &text);
    }
    snprintf(c->first, sizeof c->first, "%s", text.at);
    bytes_free(&text);
}

/* ---- two runs ---- */

/* One line of the table, or one JSON object. */
typedef struct {
    const Tap *a, *b;
    const char *words, *verdict; /* words: instead of numbers, for two that cannot be compared number by number */
    Difference d;
    bool has_truth;
} Line;

static void put_head(Comparison *c) {
    bytes_printf(&c->table, "%-58s %-12s %17s %10s %10s %10s", "tap", "shape", "unequal", "ulp", "max |a-b|", "rms rel");
    bytes_printf(&c->table, c->has_truth ? " %10s %10s\n" : "\n", "rms ratio", "max ratio");
}

static void put_line(Comparison *c, const Line *l) {
    const Difference *d = &l->d;
    Bytes shape = {0};
    if (!c->table.len) put_head(c);
    shape_text(&l->a->t, &shape);
    bytes_printf(&c->table, "%-58s %-12s ", l->a->t.name, shape.at);
    if (l->words) bytes_text(&c->table, l->words);
    else bytes_printf(&c->table, "%8zu/%-8zu %10lld %10.3g %10.3g", d->unequal, l->a->t.count, (long long)d->ulp, d->most, d->rms);
    if (!l->words && l->has_truth) bytes_printf(&c->table, " %10.4g %10.4g", d->truth, d->truth_most);
    bytes_text(&c->table, "\n");
    bytes_free(&shape);
}

static void put_string(Bytes *out, const char *key, const char *text) {
    bytes_printf(out, "\"%s\": ", key);
    json_put_string(out, text, strlen(text));
}

static void put_line_json(Comparison *c, const Line *l) {
    const Difference *d = &l->d;
    Bytes *out = &c->table;
    bytes_text(out, "{"), put_string(out, "tap", l->a->t.name);
    bytes_text(out, ", \"shape\": [");
    for (size_t i = 0; i < l->a->t.dims; i++) bytes_printf(out, "%s%zu", i ? ", " : "", l->a->t.shape[i]);
    bytes_text(out, "], "), put_string(out, "verdict", l->verdict);
    if (l->words) bytes_text(out, ", "), put_string(out, "words", l->words);
    else {
        bytes_printf(out, ", \"unequal\": %zu, \"numbers\": %zu, \"ulp\": %lld, \"max\": ", d->unequal, l->a->t.count, (long long)d->ulp), json_put_double(out, d->most);
        bytes_text(out, ", \"rms\": "), json_put_double(out, d->rms);
    }
    if (!l->words && l->has_truth) {
        bytes_text(out, ", \"rms_ratio\": "), json_put_double(out, d->truth);
        bytes_text(out, ", \"max_ratio\": "), json_put_double(out, d->truth_most);
    }
    bytes_text(out, "}\n");
}

static void comparison_add(Comparison *c, const Tap *a, const Tap *b, const Tap *truth) {
    const bool numbers = a->t.data && b->t.data, fits = same_shape(&a->t, &b->t) && (!truth || same_shape(&b->t, &truth->t));
    Line l = {.a = a, .b = b, .has_truth = c->has_truth && truth};
    size_t *count = &c->beyond, first = a->t.count;
    if (!fits) l.words = "the shapes differ";
    else if (!numbers && strcmp(a->hash, b->hash) == 0 && a->t.dtype == b->t.dtype) l.words = "equal", count = &c->equal;
    else if (!numbers) l.words = "the hashes differ";
    else {
        l.d = difference(&a->t, &b->t, truth && truth->t.data ? &truth->t : NULL, c->histogram);
        first = l.d.first;
        if (l.d.unequal == 0) count = &c->equal;
        else if (l.has_truth ? l.d.truth <= 1 : l.d.rms <= c->tolerance) count = &c->within;
    }
    ++*count;
    if (count != &c->equal) note_first(c, a, b, first);
    l.verdict = count == &c->equal ? "equal" : count == &c->within ? "within" : "beyond";
    if (c->json) put_line_json(c, &l);
    else put_line(c, &l);
}

static void note_lone(Comparison *c, const char *name, bool of_a) {
    if (of_a) c->only_a++;
    else c->only_b++;
    if (!c->lone[0]) snprintf(c->lone, sizeof c->lone, "%s", name);
}

static void put_end(Comparison *c, size_t taps_compared) {
    if (c->first[0]) bytes_printf(&c->table, "first difference: %s\n", c->first);
    bytes_text(&c->table, "ulps apart:");
    for (size_t i = 0; i < ULP_CLASSES; i++) {
        if (!c->histogram[i]) continue;
        if (i == ULP_CLASSES - 1) bytes_printf(&c->table, "  NaN against a number: %zu", c->histogram[i]);
        else if (i < 2) bytes_printf(&c->table, "  %zu: %zu", i, c->histogram[i]);
        else bytes_printf(&c->table, "  %llu-%llu: %zu", 1ull << (i - 1), (1ull << i) - 1, c->histogram[i]);
    }
    bytes_printf(&c->table, "\n%zu taps: %zu equal, %zu within tolerance, %zu beyond; %zu in the first run alone, %zu in the second alone%s%s\n", taps_compared, c->equal, c->within,
                 c->beyond, c->only_a, c->only_b, c->lone[0] ? ", first " : "", c->lone);
}

static void put_end_json(Comparison *c, size_t taps_compared) {
    Bytes *out = &c->table;
    bytes_printf(out, "{\"taps\": %zu, \"equal\": %zu, \"within\": %zu, \"beyond\": %zu, \"first_alone\": %zu, \"second_alone\": %zu", taps_compared, c->equal, c->within, c->beyond,
                 c->only_a, c->only_b);
    if (c->lone[0]) bytes_text(out, ", "), put_string(out, "alone", c->lone);
    if (c->first[0]) bytes_text(out, ", "), put_string(out, "difference", c->first);
    bytes_text(out, ", \"ulps\": [");
    for (size_t i = 0; i < ULP_CLASSES; i++) bytes_printf(out, "%s%zu", i ? ", " : "", c->histogram[i]);
    bytes_text(out, "]}\n");
}

/* The lines below the table, and the verdict. Errors: what the commands end with. */
static bool comparison_end(Comparison *c, Error *err) {
    const size_t taps_compared = c->equal + c->within + c->beyond;
    if (c->json) put_end_json(c, taps_compared);
    else put_end(c, taps_compared);
    if (!print_out(&c->table, err)) return false;
    if (taps_compared == 0) return fail(err, UNREADABLE, "the two runs have no tap in common");
    if (c->beyond) return fail(err, BEYOND, "%zu of %zu taps are beyond the tolerance; the first difference: %.400s", c->beyond, taps_compared, c->first);
    return !c->within || fail(err, WITHIN, "%zu of %zu taps differ, all within the tolerance; the first difference: %.400s", c->within, taps_compared, c->first);
}

/* In the order of the second run. */
static void compare_runs(Comparison *c, const Run *a, const Run *b, const Run *truth) {
    for (size_t i = 0; i < b->n; i++) {
        const Tap *of_a = run_find(a, b->tap[i].t.name);
        if (of_a) comparison_add(c, of_a, &b->tap[i], run_find(truth, b->tap[i].t.name));
        else note_lone(c, b->tap[i].t.name, false);
    }
    for (size_t i = 0; i < a->n; i++)
        if (!run_find(b, a->tap[i].t.name)) note_lone(c, a->tap[i].t.name, true);
}

/* Float32 programs that add up in another order are 1e-7 to 1e-6 apart by this measure; a wrong constant or a lost bias is above 1e-4. */
#define TOLERANCE 1e-5

bool command_compare(Common *c, int argc, char **argv) {
    Bytes truth_path = {0}, usage = {0};
    Comparison comparison = {.tolerance = TOLERANCE};
    Run a = {0}, b = {0}, truth = {0};
    bool done = false;
    const CliOption own[] = {{"truth", "R", CLI_TEXT, &truth_path, 0, 0, "a run in float64: A is within tolerance if its error is at most B's"},
                             {"tolerance", "X", CLI_NUMBER, &comparison.tolerance, 0, 1, "without it: rms(A-B)/rms(B) at most X (default 1e-5)"}};
    bytes_printf(&usage, "usage: %s compare [options] A B\nTwo runs tap by tap: *.safetensors, *.taps, or folders of .npy files. Exit code 0: equal, 1: within tolerance, 2: beyond, 3: unreadable.\n" COMPARE_JSON,
                 c->program->about.name);
    bool ok = command_start(c, usage.at, own, 2, argc, argv, &done);
    if (ok && !done && c->file.n != 2) ok = fail(c->err, BAD_USAGE, "compare takes two runs");
    if (ok && !done) {
        comparison.has_truth = truth_path.len > 0;
        comparison.json = c->json;
        ok = run_open(&a, c->file.at[0].at, c->err) && run_open(&b, c->file.at[1].at, c->err) && (!truth_path.len || run_open(&truth, truth_path.at, c->err));
        if (!ok && c->err->code == BAD_INPUT) c->err->code = UNREADABLE;
        if (ok) compare_runs(&comparison, &a, &b, &truth);
        ok = ok && comparison_end(&comparison, c->err);
    }
    run_free(&a);
    run_free(&b);
    run_free(&truth);
    bytes_free(&truth_path);
    bytes_free(&usage);
    bytes_free(&comparison.table);
    return ok;
}

/* ---- replay ---- */

bool replay_open(Replay *r, const Common *c, const char *path, Error *err) {
    *r = (Replay){.comparison = {.tolerance = TOLERANCE, .json = c->json}};
    if (!run_open(&r->run, path, err)) return err->code = UNREADABLE, false;
    r->seen = mem_new(r->run.n, sizeof *r->seen);
    if (c->math.len || !r->run.arithmetic.len) return true;
    return tensor_start(strcmp(r->run.arithmetic.at, "fast") ? MATH_REFERENCE : MATH_FAST, (int)c->threads, err);
}

bool replay_ids(const Replay *r, const char *name, uint32_t **id, size_t *n, Error *err) {
    const Tap *tap = run_find(&r->run, name);
    if (!tap || tap->t.dtype != DTYPE_I64 || !tap->t.data) return fail(err, UNREADABLE, "the run holds no %s (I64); a manifest alone cannot be replayed", name);
    *id = mem_new(*n = tap->t.count, sizeof **id);
    for (size_t i = 0; i < *n; i++) {
        const int64_t value = ((const int64_t *)tap->t.data)[i];
        if (value < 0 || value > UINT32_MAX) return fail(err, UNREADABLE, "%s[%zu] is no piece id", name, i);
        (*id)[i] = (uint32_t)value;
    }
    return true;
}

static void replay_tap(Taps *taps_of, const char *name, float *x, const size_t *shape, size_t dims) {
    Replay *r = (Replay *)(void *)taps_of;
    Tap ours = {.t = {.name = name, .dtype = DTYPE_F32, .dims = dims, .count = 1, .data = x}};
    for (size_t d = 0; d < dims; d++) ours.t.count *= ours.t.shape[d] = shape[d];
    const Tap *theirs = run_find(&r->run, name);
    if (!theirs || !theirs->t.data) {
        note_lone(&r->comparison, name, true);
        return;
    }
    r->seen[theirs - r->run.tap] = true;
    comparison_add(&r->comparison, &ours, theirs, NULL);
    for (size_t i = 0; same_shape(&ours.t, &theirs->t) && i < ours.t.count; i++) x[i] = (float)number_at(&theirs->t, i);
}

void replay_begin(Replay *r) {
    r->taps = (Taps){.hear = replay_tap, .replaces = true};
    taps = &r->taps;
}

bool replay_end(Replay *r, bool ok, Error *err) {
    taps = NULL;
    for (size_t i = 0; ok && i < r->run.n; i++)
        if (!r->seen[i] && r->run.tap[i].t.dtype != DTYPE_I64) note_lone(&r->comparison, r->run.tap[i].t.name, false);
    ok = ok && comparison_end(&r->comparison, err);
    run_free(&r->run);
    bytes_free(&r->comparison.table);
    free(r->seen);
    return ok;
}
