/* step.c - warm training steps of the encoder, timed, for bench/step.py.
 *
 * usage: step MODEL SEQUENCES TOKENS fast|reference THREADS
 * For each line on standard input one step on SEQUENCES times TOKENS ids: loss, gradient, AdamW; prints the seconds and the loss. */
#include "../lingua2.c"
#include "../lingua2_backward.c"
#include "warm.h"

int main(int argc, char **argv) {
    Error err;
    Model m;
    Parameters p;
    if (argc != 6 || !start_as(argv[4], argv[5], &err) || !model_open(&m, argv[1], &err) ||
        !parameters_open(&p, m.weights, &err)) {
        fprintf(stderr, "%s\n", argc == 6 ? err.text : "usage: step MODEL SEQUENCES TOKENS fast|reference THREADS");
        return BAD_USAGE;
    }
    const size_t B = strtoul(argv[2], NULL, 10), T = strtoul(argv[3], NULL, 10), N = B * T;
    uint32_t *id = mem_new(N, sizeof *id);
    size_t *position = mem_new(N, sizeof *position), *start = mem_new(B + 1, sizeof *start), *keys = mem_new(B, sizeof *keys);
    int8_t *label = mem_new(N, sizeof *label);
    for (size_t n = 0; n < N; n++) {
        id[n] = (uint32_t)(((uint64_t)n * 2654435761u) % (m.size[LETTER_V] - 1000) + 500);
        position[n] = m.first_position + n % T;
        label[n] = (int8_t)(n * 7 % 3 == 0);
    }
    for (size_t s = 0; s < B; s++) start[s + 1] = start[s] + T, keys[s] = T;
    const LabelledBatch b = {{id, position, N, B, start}, keys, label, SIZE_MAX};
    const Dropout none = {0};
    AdamW o = {.recipe = {.rate = 1e-5, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = 0.01, .steps = SIZE_MAX}};
    Tape tape = {0};
    double norm;
    while (next_round()) {
        const double begun = now();
        const double loss = (double)encoder_loss(&m, &p, &b, &none, &tape);
        if (!adamw_step(&o, &p, &norm, &err)) return err.code;
        printf("%.6f %.9g\n", now() - begun, loss);
    }
    tape_free(&tape);
    parameters_free(&p);
    model_close(&m);
    free(id), free(position), free(start), free(keys), free(label);
    return DONE;
}
