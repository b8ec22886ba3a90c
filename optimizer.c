/* optimizer.c - see optimizer.h.
 *
 * Left out on purpose: other optimizers, learning-rate schedules that no paper here uses, means in other places than memory.
 */
#include "optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor_step.h"

static const char STATE[] = "adam.", FIRST[] = "adam.m.", SECOND[] = "adam.v.";

/* ---- parameters ---- */

static bool is_parameter(const Tensor *t) { return t->dtype == DTYPE_F32 && strncmp(t->name, STATE, strlen(STATE)) != 0; }

/* Give g, m and v, zero, to parameters whose sizes are known. */
static void parameters_place(Parameters *p) {
    size_t at = 0;
    for (size_t i = 0; i < p->n; i++) p->all += p->at[i].n;
    const size_t all = p->all;
    p->memory = mem_new(all, 3 * sizeof *p->memory);
    for (size_t i = 0; i < p->n; at += p->at[i++].n) p->at[i].g = p->memory + at, p->at[i].m = p->memory + all + at, p->at[i].v = p->memory + 2 * all + at;
}

bool parameters_open(Parameters *p, Weights *w, Error *err) {
    *p = (Parameters){.at = mem_new(weights_count(w), sizeof *p->at)};
    if (!weights_writable(w, err)) return parameters_free(p), false;
    for (size_t i = 0; i < weights_count(w); i++) {
        const Tensor *t = weights_at(w, i);
        if (is_parameter(t)) p->at[p->n++] = (Parameter){.name = t->name, .w = (float *)t->data, .n = t->count, .matrix = t->dims > 1};
    }
    parameters_place(p);
    return true;
}

void parameters_alone(Parameters *p, const char *name, float *w, size_t rows, size_t cols) {
    *p = (Parameters){.at = mem_new(1, sizeof *p->at), .n = 1};
    p->at[0] = (Parameter){.name = name, .w = w, .n = rows * cols, .matrix = true};
    parameters_place(p);
}

void parameters_free(Parameters *p) {
    free(p->at);
    free(p->memory);
    *p = (Parameters){0};
}

float *gradient_of(const Parameters *p, const float *w) {
    for (size_t i = 0; p && w && i < p->n; i++)
        if (p->at[i].w == w) return p->at[i].g;
    return NULL;
}

/* ---- AdamW ---- */

double rate_at(const Recipe *r, size_t step) {
    if (step < r->warmup) return r->rate * ((double)step / (double)r->warmup);
    return step < r->steps ? r->rate * ((double)(r->steps - step) / (double)(r->steps - r->warmup)) : 0;
}

enum { BLOCK = 1 << 16 };

/* S(g,g). */
ISA_BODY void square_body(int level, double *s, const float *g, size_t n) {
    const bool fast = tensor_math() == MATH_FAST;
    float s32 = 0;
    double s64 = 0;
    for (size_t i = 0; i < n; i++) {
        if (fast) s32 = fma_float(level, g[i], g[i], s32);
        else s64 = fma_double(level, (double)g[i], (double)g[i], s64);
    }
    *s = fast ? (double)s32 : s64;
}
ISA_CLONES(square, (double *s, const float *g, size_t n), s, g, n)

/* Sum over the blocks of one tensor, added to *sum one after another. */
static void add_squares(double *sum, const Parameter *p) {
    const size_t blocks = divide_up(p->n, BLOCK);
    double *part = mem_new(blocks, sizeof *part);
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(p->n))
    for (size_t b = 0; b < blocks; b++) square(&part[b], p->g + b * BLOCK, min_size(BLOCK, p->n - b * BLOCK));
    for (size_t b = 0; b < blocks; b++) *sum += part[b];
    free(part);
}

/* What one step has in common for all numbers. */
typedef struct {
    double clip, beta1, beta2, unbias1, unbias2, rate, eps, decay; /* clip: a factor; unbias: 1 - beta^t */
} Step;

ISA_BODY void update_body(int level, const Step *t, float *restrict w, float *restrict g, float *restrict m, float *restrict v, double decay, size_t n) {
    const Step s = *t;
    (void)level;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        const double d = s.clip < 1 ? (double)(float)((double)g[i] * s.clip) : (double)g[i];
        m[i] = (float)(s.beta1 * (double)m[i] + (1 - s.beta1) * d);
        v[i] = (float)(s.beta2 * (double)v[i] + ((1 - s.beta2) * d) * d);
        w[i] = (float)((double)w[i] - s.rate * (((double)m[i] / s.unbias1) / (sqrt((double)v[i] / s.unbias2) + s.eps) + decay * (double)w[i]));
        g[i] = 0;
    }
}
ISA_CLONES(update, (const Step *s, float *w, float *g, float *m, float *v, double decay, size_t n), s, w, g, m, v, decay, n)

/* beta^t by repeated product. */
static double power(double beta, size_t t) {
    double p = 1;
    while (t-- > 0) p *= beta;
    return p;
}

static bool gradients_finite(const AdamW *o, const Parameters *p, Error *err) {
    for (size_t i = 0; i < p->n; i++)
        for (size_t k = 0; k < p->at[i].n; k++)
            if (!isfinite(p->at[i].g[k]))
                return fail(err, BAD_INPUT, "step %zu: the gradient of %s is NaN or infinity at element %zu; a lower rate or clipping may help", o->step + 1, p->at[i].name, k);
    return fail(err, BAD_INPUT, "step %zu: the gradients' norm is infinity; a lower rate may help", o->step + 1);
}

bool adamw_step(AdamW *o, const Parameters *p, double *norm, Error *err) {
    const Recipe *r = &o->recipe;
    double sum = 0;
    for (size_t i = 0; i < p->n; i++) add_squares(&sum, &p->at[i]);
    *norm = sqrt(sum);
    if (!isfinite(*norm)) return gradients_finite(o, p, err);
    const Step s = {.clip = r->clip > 0 ? r->clip / (*norm + 1e-6) : 1, .beta1 = r->beta1, .beta2 = r->beta2, .unbias1 = 1 - power(r->beta1, o->step + 1),
                    .unbias2 = 1 - power(r->beta2, o->step + 1), .rate = rate_at(r, o->step), .eps = r->eps, .decay = r->decay};
    for (size_t i = 0; i < p->n; i++) {
        const Parameter *q = &p->at[i];
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(q->n))
        for (size_t k = 0; k < q->n; k += BLOCK)
            update(&s, q->w + k, q->g + k, q->m + k, q->v + k, q->matrix ? s.decay : 0, min_size(BLOCK, q->n - k));
    }
    o->step++;
    return true;
}

/* ---- checkpoints ---- */

static const Parameter *parameter_named(const Parameters *p, const char *name) {
    for (size_t i = 0; i < p->n; i++)
        if (strcmp(p->at[i].name, name) == 0) return &p->at[i];
    return NULL;
}

/* The tensors of a checkpoint, [3 * weights_count] of them at most; their number. names: what holds the new names. */
static size_t checkpoint_tensors(Tensor *out, Bytes *names, const Weights *model, const Parameters *p, bool state) {
    size_t n = 0;
    for (size_t i = 0; i < weights_count(model); i++) {
        Tensor t = *weights_at(model, i);
        if (t.dtype == DTYPE_F32 && !is_parameter(&t)) continue;
        const Parameter *q = is_parameter(&t) ? parameter_named(p, t.name) : NULL;
        if (q) t.data = q->w;
        out[n++] = t;
    }
    const size_t kept = n;
    for (size_t mean = 0; state && mean < 2; mean++)
        for (size_t i = 0; i < kept; i++) {
            const Parameter *q = is_parameter(&out[i]) ? parameter_named(p, out[i].name) : NULL;
            if (!q) continue;
            Tensor t = out[i];
            Bytes *name = &names[n];
            bytes_printf(name, "%s%s", mean ? SECOND : FIRST, t.name);
            t.name = name->at;
            t.data = mean ? q->v : q->m;
            out[n++] = t;
        }
    return n;
}

bool checkpoint_write(const char *path, const Weights *model, const Parameters *p, const AdamW *o, const char *progress, Error *err) {
    const size_t most = 3 * weights_count(model), metas = weights_meta_count(model);
    Tensor *tensor = mem_new(most, sizeof *tensor);
    Bytes *names = mem_new(most, sizeof *names);
    const char **meta = mem_new(2 * (metas + 2), sizeof *meta);
    const size_t n = checkpoint_tensors(tensor, names, model, p, o != NULL);
    char hash[65];
    size_t k = 0;
    for (size_t i = 0; i < metas; i++) {
        const char *key = weights_meta_key(model, i);
        if (strcmp(key, "content_sha256") == 0 || strcmp(key, "training") == 0) continue;
        meta[k++] = key, meta[k++] = weights_meta(model, key);
    }
    weights_sha256(tensor, n, hash);
    meta[k++] = "content_sha256", meta[k++] = hash;
    if (progress) meta[k++] = "training", meta[k++] = progress;
    const bool ok = weights_write(path, tensor, n, meta, k / 2, err);
    for (size_t i = 0; i < most; i++) bytes_free(&names[i]);
    free(tensor), free(names), free(meta);
    return ok;
}

bool checkpoint_resume(const Parameters *p, const Weights *model, Error *err) {
    for (size_t i = 0; i < p->n; i++)
        for (int mean = 0; mean < 2; mean++) {
            Bytes name = {0};
            bytes_printf(&name, "%s%s", mean ? SECOND : FIRST, p->at[i].name);
            const Tensor *t = weights_find(model, name.at);
            bytes_free(&name);
            if (!t || t->dtype != DTYPE_F32 || t->count != p->at[i].n)
                return fail(err, BAD_MODEL, "%s: holds no state to go on from (the means of %s are missing); give the file that training wrote last", weights_path(model), p->at[i].name);
            memcpy(mean ? p->at[i].v : p->at[i].m, t->data, t->count * sizeof(float));
        }
    return true;
}
