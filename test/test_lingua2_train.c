/* test_lingua2_train.c - the encoder's backward pass: every parameter's gradient against PyTorch in float64 (test/make_lingua2_train_golden.py) and against
 * differences of the loss. */
#include "../lingua2.c"
#include "../lingua2_backward.c"
#include "check.h"

static const char *const kinds[] = {"bert", "xlmr"};
static const Dropout none = {0};

/* A golden file: the model, the batch, what PyTorch computed. */
typedef struct {
    Model m;
    Parameters p;
    LabelledBatch b;
    uint32_t *id;
    size_t *position, *start, *keys;
    int8_t *label;
} Golden;

static const Tensor *part(const Golden *g, const char *prefix, const char *name) {
    char full[200];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return weights_find(g->m.weights, full);
}

static bool golden_open(Golden *g, const char *kind) {
    char path[100];
    Error err;
    *g = (Golden){0};
    snprintf(path, sizeof path, "test/golden/lingua2-train-%s.safetensors", kind);
    if (!model_open(&g->m, path, &err)) {
        CHECK(false, "%s", err.text);
        return false;
    }
    const Tensor *id = part(g, "batch.", "id"), *label = part(g, "batch.", "label"), *start = part(g, "batch.", "start"), *keys = part(g, "batch.", "keys");
    const size_t N = id->count, B = keys->count;
    g->id = mem_new(N, sizeof *g->id);
    g->position = mem_new(N, sizeof *g->position);
    g->label = mem_new(N, sizeof *g->label);
    g->start = mem_new(B + 1, sizeof *g->start);
    g->keys = mem_new(B, sizeof *g->keys);
    for (size_t i = 0; i <= B; i++) g->start[i] = (size_t)((const int64_t *)start->data)[i];
    for (size_t i = 0; i < B; i++) g->keys[i] = (size_t)((const int64_t *)keys->data)[i];
    for (size_t s = 0; s < B; s++)
        for (size_t n = g->start[s], next = g->m.first_position; n < g->start[s + 1]; n++) {
            g->id[n] = (uint32_t)((const int64_t *)id->data)[n];
            g->label[n] = (int8_t)((const int64_t *)label->data)[n];
            g->position[n] = g->id[n] == g->m.pad_id ? g->m.pad_id : next++;
        }
    g->b = (LabelledBatch){{g->id, g->position, N, B, g->start}, g->keys, g->label, strcmp(kind, "bert") ? 1 : 0};
    if (parameters_open(&g->p, g->m.weights, &err)) return true;
    CHECK(false, "%s", err.text);
    return false;
}

static void golden_close(Golden *g) {
    parameters_free(&g->p);
    model_close(&g->m);
    free(g->id);
    free(g->position);
    free(g->start);
    free(g->keys);
    free(g->label);
}

/* With float64 sums no tensor's gradient is further from the truth than PyTorch's float32 gradient is, up to what one rounding to float32 of numbers of
 * this size does: where PyTorch happens to be lucky in a tensor of twelve numbers we need not be. With float32 sums: within a few times that. */
static void test_gradients(const char *kind, Math math) {
    Golden g;
    Tape a = {0};
    Error err;
    double all = 0, theirs = 0, size = 0;
    CHECK(tensor_start(math, 2, &err), "%s", err.text);
    if (!golden_open(&g, kind)) return;
    const float loss = encoder_loss(&g.m, &g.p, &g.b, &none, &a);
    const double want = *(const double *)part(&g, "loss", "")->data;
    CHECK(fabs((double)loss - want) <= 1e-6, "%s: loss %.9g, PyTorch's %.9g", kind, (double)loss, want);
    for (size_t i = 0; i < g.p.n; i++) {
        const Parameter *p = &g.p.at[i];
        const Tensor *grad = part(&g, "grad.", p->name), *error = part(&g, "error.", p->name);
        double sum = 0, square = 0;
        for (size_t k = 0; k < p->n; k++) {
            const double truth = ((const double *)grad->data)[k], d = (double)p->g[k] - truth;
            sum += d * d;
            square += truth * truth;
        }
        const double ours = sqrt(sum / (double)p->n), pytorch = *(const double *)error->data, rms = sqrt(square / (double)p->n);
        const double most = (math == MATH_REFERENCE ? 1 : 6) * pytorch + 0x1p-24 * rms + 1e-9;
        CHECK(ours <= most, "%s %s: rms error %.3g of gradients of %.3g, PyTorch's in float32 %.3g", kind, p->name, ours, rms, pytorch);
        all += sum, theirs += pytorch * pytorch * (double)p->n, size += square;
    }
    CHECK(sqrt(all) <= (math == MATH_REFERENCE ? 1 : 3) * sqrt(theirs), "%s: error of the whole gradient %.3g, PyTorch's in float32 %.3g", kind, sqrt(all / size), sqrt(theirs / size));
    if (getenv("VERBOSE")) printf("%s %s: relative rms error %.3g, PyTorch's in float32 %.3g\n", kind, math == MATH_FAST ? "fast" : "reference", sqrt(all / size), sqrt(theirs / size));
    tape_free(&a);
    golden_close(&g);
}

/* (loss(w + h d) - loss(w - h d)) / 2h along a direction d of ones and minus ones in one tensor = sum of d * gradient. h is small enough for the cubic
 * term and large enough for a loss of 24 bits: 1e-2 * (that of the third derivative) and 6e-8 / 2h; a missing term is an error of the size of the gradient. */
static void test_differences(const char *kind) {
    Golden g;
    Tape a = {0};
    Error err;
    const float h = 0x1p-9f;
    CHECK(tensor_start(MATH_REFERENCE, 2, &err), "%s", err.text);
    if (!golden_open(&g, kind)) return;
    g.b.padding = SIZE_MAX; /* a gradient that is not kept from padding */
    encoder_loss(&g.m, &g.p, &g.b, &none, &a);
    for (size_t i = 0; i < g.p.n; i++) {
        const Parameter *p = &g.p.at[i];
        float *w = p->w, *old = mem_new(p->n, sizeof *old);
        double slope = 0, loss[2];
        memcpy(old, w, p->n * sizeof *w);
        for (int side = 0; side < 2; side++) {
            for (size_t k = 0; k < p->n; k++) w[k] = old[k] + (p->g[k] < 0 ? -h : h) * (float)(1 - 2 * side);
            loss[side] = (double)encoder_loss(&g.m, NULL, &g.b, &none, &a);
        }
        for (size_t k = 0; k < p->n; k++) slope += fabs((double)p->g[k]);
        const double seen = (loss[0] - loss[1]) / (2 * (double)h);
        CHECK(fabs(seen - slope) <= 0.02 * slope + 1e-4, "%s %s: the loss changes by %.6g, the gradient says %.6g", kind, p->name, seen, slope);
        memcpy(w, old, p->n * sizeof *w);
        free(old);
    }
    tape_free(&a);
    golden_close(&g);
}

/* Without dropout the forward pass that keeps everything is encoder_forward; its gradient does not depend on the threads. */
static void test_bits(const char *kind) {
    Golden g;
    Tape a = {0};
    Error err;
    Dropout d = {0.25, 3};
    float *first = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        CHECK(tensor_start(MATH_FAST, threads, &err), "%s", err.text);
        if (!golden_open(&g, kind)) return;
        for (size_t s = 0; s < g.b.of.B; s++) g.keys[s] = g.start[s + 1] - g.start[s];
        encoder_loss(&g.m, NULL, &g.b, &none, &a);
        Activations plain = activations_new(&g.m, g.b.of.N, g.b.of.B);
        float *logits = mem_new(g.b.of.N * 2, sizeof *logits);
        encoder_forward(&g.m, &g.b.of, &plain, logits, NULL);
        CHECK(memcmp(logits, a.logits, g.b.of.N * 2 * sizeof *logits) == 0, "%s: logits differ from the forward pass's", kind);
        encoder_loss(&g.m, &g.p, &g.b, &d, &a);
        if (!first) first = memcpy(mem_new(g.p.all, sizeof *first), g.p.memory, g.p.all * sizeof *first);
        CHECK(memcmp(first, g.p.memory, g.p.all * sizeof *first) == 0, "%s: the gradient with %d threads", kind, threads);
        activations_free(&plain);
        free(logits);
        golden_close(&g);
    }
    free(first);
    tape_free(&a);
}

/* Ten steps of AdamW with the norm cut: losses within 1e-5 of PyTorch's in float64. */
static void test_steps(const char *kind, Math math) {
    Golden g;
    Tape a = {0};
    Error err;
    CHECK(tensor_start(math, 2, &err), "%s", err.text);
    if (!golden_open(&g, kind)) return;
    const Tensor *loss = part(&g, "loss", "");
    AdamW o = {.recipe = {.rate = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = 0.01, .clip = 0.5, .steps = SIZE_MAX}};
    for (size_t step = 0; step < loss->count; step++) {
        const double ours = (double)encoder_loss(&g.m, &g.p, &g.b, &none, &a), theirs = ((const double *)loss->data)[step];
        double norm;
        CHECK(fabs(ours - theirs) <= 1e-5, "%s: loss %.9g of step %zu, PyTorch's %.9g", kind, ours, step + 1, theirs);
        CHECK(adamw_step(&o, &g.p, &norm, &err), "%s", err.text);
    }
    tape_free(&a);
    golden_close(&g);
}

int main(void) {
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        test_gradients(kinds[k], MATH_REFERENCE);
        test_gradients(kinds[k], MATH_FAST);
        test_differences(kinds[k]);
        test_bits(kinds[k]);
        test_steps(kinds[k], MATH_REFERENCE);
        test_steps(kinds[k], MATH_FAST);
    }
    return check_end();
}
