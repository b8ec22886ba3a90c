/* test_optimizer.c - AdamW's bits against its definition, rates, what stops training, and checkpoints that go on to the same bits. */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "optimizer.h"
#include "plain.h"

static const char PATH[] = "test_optimizer.tmp";

static float unit(void) { return (float)(int32_t)noise_bits() * 0x1p-31f; }

/* A small model file: two matrices, a vector, bytes. */
static void write_model(void) {
    float *a = fill(7 * 30, unit), *b = fill(11, unit), *c = fill(300 * 250, unit);
    const Tensor tensor[] = {{"a", DTYPE_F32, 2, {7, 30}, 210, a}, {"tokenizer", DTYPE_U8, 1, {3}, 3, "xyz"}, {"b", DTYPE_F32, 1, {11}, 11, b}, {"c", DTYPE_F32, 2, {300, 250}, 75000, c}};
    const char *const meta[] = {"format", "prompt-flat-1", "content_sha256", "old", "config", "{}"};
    Error err;
    CHECK(weights_write(PATH, tensor, 4, meta, 3, &err), "%s", err.text);
    free(a), free(b), free(c);
}

static void draw_gradients(const Parameters *p, uint64_t seed) {
    state = seed;
    for (size_t i = 0; i < p->n; i++)
        for (size_t k = 0; k < p->at[i].n; k++) p->at[i].g[k] = unit() * 0.01f;
}

/* ---- the definition ---- */

static double norm_plain(const Parameters *p) {
    double sum = 0;
    for (size_t i = 0; i < p->n; i++)
        for (size_t b = 0; b < p->at[i].n; b += 65536) {
            float s32 = 0;
            double s64 = 0;
            for (size_t k = b; k < p->at[i].n && k < b + 65536; k++) {
                const float g = p->at[i].g[k];
                s32 = fmaf(g, g, s32);
                s64 += (double)g * (double)g;
            }
            sum += tensor_math() == MATH_FAST ? (double)s32 : s64;
        }
    return sqrt(sum);
}

/* w, m, v [all] after step t (from 1) with gradients g. */
static void adamw_plain(const Recipe *r, const Parameters *p, size_t t, double norm, float *w, float *m, float *v) {
    double P1 = 1, P2 = 1;
    for (size_t i = 0; i < t; i++) P1 *= r->beta1, P2 *= r->beta2;
    for (size_t i = 0, at = 0; i < p->n; i++)
        for (size_t k = 0; k < p->at[i].n; k++, at++) {
            double g = (double)p->at[i].g[k];
            if (norm > r->clip) g = (double)(float)(g * (r->clip / (norm + 1e-6)));
            m[at] = (float)(r->beta1 * (double)m[at] + (1 - r->beta1) * g);
            v[at] = (float)(r->beta2 * (double)v[at] + ((1 - r->beta2) * g) * g);
            const double decay = i == 1 ? 0 : r->decay; /* b is a vector */
            w[at] = (float)((double)w[at] - rate_at(r, t - 1) * (((double)m[at] / (1 - P1)) / (sqrt((double)v[at] / (1 - P2)) + r->eps) + decay * (double)w[at]));
        }
}

static const Recipe recipe = {.rate = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = 0.1, .clip = 1, .warmup = 2, .steps = 9};

static bool open_model(Weights **w, Parameters *p) {
    Error err;
    const bool ok = weights_open(w, PATH, &err) && parameters_open(p, *w, &err);
    CHECK(ok, "%s", err.text);
    return ok;
}

static void test_steps(Math m) {
    enum { STEPS = 4 };
    Weights *w;
    Parameters p;
    EVERYWHERE(m) {
        if (!open_model(&w, &p)) return;
        AdamW o = {.recipe = recipe};
        CHECK(p.n == 3 && p.all == 75221 && p.at[0].matrix && !p.at[1].matrix, "%zu parameters, %zu numbers", p.n, p.all);
        float *want = mem_new(3 * p.all, sizeof *want);
        for (size_t i = 0, at = 0; i < p.n; at += p.at[i++].n) memcpy(want + at, p.at[i].w, p.at[i].n * sizeof *want);
        for (size_t t = 1; t <= STEPS; t++) {
            double norm;
            Error err;
            draw_gradients(&p, t);
            const double plain = norm_plain(&p);
            adamw_plain(&recipe, &p, t, plain, want, want + p.all, want + 2 * p.all);
            CHECK(adamw_step(&o, &p, &norm, &err), "%s", err.text);
            CHECK(norm == plain && (t != 1 || norm > 1), "norm %.17g, not %.17g", norm, plain);
            for (size_t i = 0, at = 0; i < p.n; at += p.at[i++].n) {
                SAME(p.at[i].w, want + at, p.at[i].n, "%s after step %zu", p.at[i].name, t);
                SAME(p.at[i].m, want + p.all + at, p.at[i].n, "the mean of %s", p.at[i].name);
                SAME(p.at[i].v, want + 2 * p.all + at, p.at[i].n, "the square of %s", p.at[i].name);
                CHECK(p.at[i].g[0] == 0 && p.at[i].g[p.at[i].n - 1] == 0, "the gradient of %s is not zero again", p.at[i].name);
            }
        }
        free(want);
        parameters_free(&p);
        weights_close(w);
    }
}

static void test_rates(void) {
    static const double want[] = {0, 0.005, 0.01, 0.01 * (6.0 / 7), 0.01 * (5.0 / 7)};
    for (size_t t = 0; t < COUNT(want); t++) CHECK(rate_at(&recipe, t) == want[t], "rate %.17g of step %zu", rate_at(&recipe, t), t);
    CHECK(rate_at(&recipe, 9) == 0 && rate_at(&recipe, 100) == 0, "the end");
    CHECK(rate_at(&(Recipe){.rate = 3, .steps = 4}, 0) == 3 && rate_at(&(Recipe){.rate = 3, .steps = 4}, 3) == 0.75, "without a warm-up");
}

static void test_stops(void) {
    Weights *w;
    Parameters p;
    Error err;
    double norm;
    if (!open_model(&w, &p)) return;
    AdamW o = {.recipe = recipe, .step = 6};
    const float before = p.at[0].w[0];
    p.at[2].g[70001] = (float)NAN;
    CHECK(!adamw_step(&o, &p, &norm, &err) && err.code == BAD_INPUT && strstr(err.text, "step 7") && strstr(err.text, " c ") && strstr(err.text, "70001"), "%s", err.text);
    CHECK(o.step == 6 && p.at[0].w[0] == before, "it changed something");
    CHECK(gradient_of(&p, p.at[1].w) == p.at[1].g && !gradient_of(&p, NULL) && !gradient_of(NULL, p.at[1].w) && !gradient_of(&p, &before), "where gradients are");
    parameters_free(&p);
    weights_close(w);
}

/* Four steps at once, and two, a checkpoint, two. */
static void test_resume(void) {
    static const char *const paths[] = {"test_optimizer.whole.tmp", "test_optimizer.half.tmp"};
    Bytes file[2] = {{0}, {0}};
    Error err;
    double norm;
    for (int halves = 0; halves < 2; halves++) {
        Weights *w;
        Parameters p;
        if (!open_model(&w, &p)) return;
        AdamW o = {.recipe = recipe};
        for (size_t t = 1; t <= 4; t++) {
            draw_gradients(&p, t);
            CHECK(adamw_step(&o, &p, &norm, &err), "%s", err.text);
            if (!halves || t != 2) continue;
            CHECK(checkpoint_write(paths[1], w, &p, &o, "2", &err), "%s", err.text);
            parameters_free(&p);
            weights_close(w);
            CHECK(weights_open(&w, paths[1], &err) && parameters_open(&p, w, &err) && checkpoint_resume(&p, w, &err), "%s", err.text);
            CHECK(p.n == 3 && strcmp(weights_meta(w, "training"), "2") == 0 && weights_find(w, "tokenizer") && strcmp(weights_meta(w, "content_sha256"), "old") != 0, "what it holds");
            o = (AdamW){.recipe = recipe, .step = 2};
        }
        CHECK(checkpoint_write(paths[halves], w, &p, &o, "4", &err) && file_read(paths[halves], &file[halves], &err), "%s", err.text);
        CHECK(checkpoint_write(PATH, w, &p, NULL, NULL, &err), "%s", err.text);
        parameters_free(&p);
        weights_close(w);
        if (open_model(&w, &p)) {
            CHECK(!checkpoint_resume(&p, w, &err) && err.code == BAD_MODEL && !weights_meta(w, "training"), "a model alone has no state");
            parameters_free(&p);
            weights_close(w);
        }
        state = 1;
        write_model();
    }
    CHECK(file[0].len == file[1].len && memcmp(file[0].at, file[1].at, file[0].len) == 0, "stopped and resumed is not the same");
    for (int i = 0; i < 2; i++) unlink(paths[i]), bytes_free(&file[i]);
}

int main(void) {
    start(MATH_FAST, 2, isa_detect());
    state = 1;
    write_model();
    test_steps(MATH_FAST);
    test_steps(MATH_REFERENCE);
    start(MATH_FAST, 2, isa_detect());
    test_rates();
    test_stops();
    test_resume();
    unlink(PATH);
    return check_end();
}
