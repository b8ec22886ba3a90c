/* train_step.c - warm training steps of a language model, timed, for bench/train.py.
 *
 * usage: train_step MODEL TEXTS PIECES fast|reference THREADS
 * For each line on standard input: TEXTS texts of PIECES pieces, spread over the vocabulary by a multiplicative hash, forward, backward and one step of
 * AdamW; prints the seconds and the loss. */
#include "../mend.c"
#include "../mend_train.h"
#include "warm.h"

int main(int argc, char **argv) {
    Error err;
    Model m;
    Parameters p;
    if (argc != 6 || !start_as(argv[4], argv[5], &err) ||
        !model_open(&m, argv[1], LANGUAGE_MODEL, &err) || !parameters_open(&p, m.weights, &err)) {
        fprintf(stderr, "%s\n", argc == 6 ? err.text : "usage: train_step MODEL TEXTS PIECES fast|reference THREADS");
        return BAD_USAGE;
    }
    const size_t B = strtoul(argv[2], NULL, 10), T = strtoul(argv[3], NULL, 10);
    Lesson *lesson = mem_new(B, sizeof *lesson);
    for (size_t i = 0; i < B * T; i++) ids_add(&lesson[i / T].y, &(uint32_t){(uint32_t)(((uint64_t)i * 2654435761u) % m.size[LETTER_V])}, 1);
    Trainer t = {.lm = &m, .trained = &p, .objective = {.ce = true, .lambda = 1, .tau = 1}};
    AdamW o = {.recipe = {.rate = 1e-4, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .clip = 1, .steps = 1000000}};
    while (next_round()) {
        Loss loss;
        double norm;
        const double start = now();
        if (!lessons_loss(&t, lesson, B, true, NULL, &loss, &err) || !adamw_step(&o, &p, &norm, &err)) return fprintf(stderr, "%s\n", err.text), err.code;
        printf("%.6f %.9g\n", now() - start, loss.loss);
    }
    for (size_t b = 0; b < B; b++) lesson_free(&lesson[b]);
    free(lesson);
    trainer_free(&t);
    parameters_free(&p);
    model_close(&m);
    return DONE;
}
