/* test_training.c - training gives the same weights everywhere: a GPT-2 and a distiller, a few numbers large, after 50 steps each, at every thread count and
 * instruction set, in both arithmetics.
 *
 * The hashes are constants: compilers, optimisation, processors and byte orders must all come to them (slow_bits.sh builds this file with all that it finds). */
#include "../mend.c"
#include "../mend_train.h"
#include "check.h"
#include "isa.h"
#include "posix.h"

enum { STEPS = 50, LESSONS = 3 };

/* Built with gcc -O0 for x86-64 without OpenMP. */
static const char *const expected[] = {"dfaba42909b731a3 8ede054cb2ab5d7e", "6122a1bda6d9dad8 3fa8fea4d703c86a"};

static char LLM[64], MEND_FILE[64]; /* of this process: builds are tested side by side */

static uint64_t count; /* numbers drawn so far */
static double chance(void) { return uniform(1, count++); }

/* Numbers of this deviation, evenly from an interval. */
static float *drawn(size_t n, double deviation, double mean) {
    float *x = mem_new(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)(mean + (chance() - 0.5) * 3.5 * deviation);
    return x;
}

/* A GPT-2, with U a distiller for a model O wide. */
static void write_model(const char *path, size_t C, size_t H, size_t U, size_t O) {
    enum { L = 2, P = 40, V = 97, F = 20 };
    const struct { const char *name; size_t rows, cols; double deviation, mean; } part[] = {
        {"h.%zu.ln_1.weight", C, 0, 0.1, 1}, {"h.%zu.ln_1.bias", C, 0, 0.1, 0}, {"h.%zu.attn.c_attn.weight", C, 3 * C, 0.4, 0}, {"h.%zu.attn.c_attn.bias", 3 * C, 0, 0.1, 0},
        {"h.%zu.attn.c_proj.weight", C, C, 0.3, 0}, {"h.%zu.attn.c_proj.bias", C, 0, 0.1, 0}, {"h.%zu.ln_2.weight", C, 0, 0.1, 1}, {"h.%zu.ln_2.bias", C, 0, 0.1, 0},
        {"h.%zu.mlp.c_fc.weight", C, F, 0.3, 0}, {"h.%zu.mlp.c_fc.bias", F, 0, 0.1, 0}, {"h.%zu.mlp.c_proj.weight", F, C, 0.3, 0}, {"h.%zu.mlp.c_proj.bias", C, 0, 0.1, 0},
        {"wte.weight", C, V, 0.4, 0}, {"wpe.weight", P, C, 0.1, 0}, {"ln_f.weight", C, 0, 0.1, 1}, {"ln_f.bias", C, 0, 0.1, 0}, {"init_prompt_weight", U, C, 0.4, 0},
        {"adap_pooler.dense.weight", C, O, 0.3, 0}, {"adap_pooler.dense.bias", O, 0, 0.1, 0}};
    Tensor tensor[60];
    Bytes name[60] = {{0}}, config = {0};
    Error err;
    size_t n = 0;
    for (size_t i = 0; i < sizeof part / sizeof *part - (U ? 0 : 3); i++)
        for (size_t l = 0; l < (i < 12 ? L : 1); l++, n++) {
            weights_row_name(&(TensorRow){part[i].name, 0, 0, 0}, l, &name[n]);
            const size_t size = part[i].rows * (part[i].cols ? part[i].cols : 1);
            tensor[n] = (Tensor){name[n].at, DTYPE_F32, part[i].cols ? 2 : 1, {part[i].rows, part[i].cols}, size, drawn(size, part[i].deviation, part[i].mean)};
        }
    bytes_printf(&config, "{\"n_layer\": 2, \"n_head\": %zu, \"n_embd\": %zu, \"n_positions\": 40, \"n_inner\": 20, \"layer_norm_epsilon\": 1e-5, \"activation_function\": \"gelu_new\"}", H, C);
    const char *const meta[] = {"format", "prompt-flat-1", "architecture", U ? "MendGPT2" : "GPT2LMHeadModel", "config", config.at};
    CHECK(weights_write(path, tensor, n, meta, 3, &err), "%s", err.text);
    for (size_t i = 0; i < n; i++) free((void *)tensor[i].data), bytes_free(&name[i]);
    bytes_free(&config);
}

static Ids drawn_ids(size_t n) {
    Ids ids = {0};
    for (size_t i = 0; i < n; i++) ids_add(&ids, &(uint32_t){(uint32_t)(chance() * 97)}, 1);
    return ids;
}

/* Lessons of different lengths; without groups the text alone. */
static void draw_lessons(Lesson *lesson, size_t groups) {
    for (size_t b = 0; b < LESSONS; b++) {
        lesson[b] = (Lesson){.groups = groups, .demos = mem_new(groups, sizeof(Ids)), .is_label = mem_new(groups, sizeof(Bytes)), .before = drawn_ids(groups ? 9 : 0), .x = drawn_ids(groups ? b : 0),
                             .y = drawn_ids(groups ? 4 : 17 + b)};
        for (size_t g = 0; g < groups; g++) {
            lesson[b].demos[g] = drawn_ids(5 + 2 * b + g);
            for (size_t i = 0; i < lesson[b].demos[g].n; i++) bytes_add(&lesson[b].is_label[g], i % 3 ? "\0" : "\1", 1);
        }
    }
}

/* The weights' hash after the steps. */
static void train_model(bool distiller, char hash[65]) {
    Model lm = {0}, mend = {0};
    Parameters p = {0};
    Error err;
    Lesson lesson[LESSONS];
    CHECK(model_open(&lm, LLM, LANGUAGE_MODEL, &err) && (!distiller || model_open(&mend, MEND_FILE, DISTILLER, &err)) && parameters_open(&p, distiller ? mend.weights : lm.weights, &err), "%s", err.text);
    count = 1000000;
    draw_lessons(lesson, distiller ? 2 : 0);
    Trainer t = {.lm = &lm, .mend = distiller ? &mend : NULL, .trained = &p, .how = {2, distiller ? 1 : 0, true}, .objective = {true, distiller, 0.5, 1.5}};
    AdamW o = {.recipe = {.rate = 1e-2, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .decay = 0.01, .clip = 1, .warmup = 5, .steps = STEPS}};
    Loss first = {0}, loss = {0};
    double norm;
    for (size_t s = 0; s < STEPS; s++) {
        CHECK(lessons_loss(&t, lesson, LESSONS, true, NULL, &loss, &err) && adamw_step(&o, &p, &norm, &err), "%s", err.text);
        if (s == 0) first = loss;
    }
    CHECK(loss.loss < 0.8 * first.loss, "the loss went from %g to %g", first.loss, loss.loss); /* it learns three lessons by heart */
    Tensor *tensor = mem_new(p.n, sizeof *tensor);
    for (size_t i = 0; i < p.n; i++) tensor[i] = (Tensor){p.at[i].name, DTYPE_F32, 1, {p.at[i].n}, p.at[i].n, p.at[i].w};
    weights_sha256(tensor, p.n, hash);
    free(tensor);
    for (size_t b = 0; b < LESSONS; b++) lesson_free(&lesson[b]);
    trainer_free(&t);
    parameters_free(&p);
    model_close(&lm), model_close(&mend);
}

int main(void) {
    const struct { int threads, level; } setting[] = {{1, isa_detect()}, {3, isa_detect()}, {2, ISA_BASE}};
    Error err;
    CHECK(tensor_start(MATH_FAST, 1, &err), "%s", err.text);
    snprintf(LLM, sizeof LLM, "test_training.%ld.llm.tmp", (long)getpid());
    snprintf(MEND_FILE, sizeof MEND_FILE, "test_training.%ld.mend.tmp", (long)getpid());
    write_model(LLM, 12, 3, 0, 0);
    write_model(MEND_FILE, 8, 2, 3, 12);
    for (int reference = 0; reference < 2; reference++)
        for (size_t s = 0; s < sizeof setting / sizeof *setting; s++) {
            char hash[2][65], both[34];
            CHECK(tensor_start(reference ? MATH_REFERENCE : MATH_FAST, setting[s].threads, &err), "%s", err.text);
            isa_set(setting[s].level);
            for (int distiller = 0; distiller < 2; distiller++) train_model(distiller != 0, hash[distiller]);
            snprintf(both, sizeof both, "%.16s %.16s", hash[0], hash[1]);
            CHECK(strcmp(both, expected[reference]) == 0, "%s, %s, %d threads: \"%s\"", reference ? "reference" : "fast", isa_name(isa_level), tensor_threads(), both);
        }
    remove(LLM), remove(MEND_FILE);
    return check_end();
}
