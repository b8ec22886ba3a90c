/* decode.c - a language model warm in memory, timed, for bench/compare.py.
 *
 * usage: decode MODEL TOKENS NEW fast|reference THREADS
 * For each line on standard input: TOKENS ids are read (by a T5's encoder), then NEW pieces follow, always the most probable one; prints the
 * seconds of both. */
#include "../mend.c"
#include "warm.h"

int main(int argc, char **argv) {
    Error err;
    Model m;
    if (argc != 6 || !start_as(argv[4], argv[5], &err) ||
        !model_open(&m, argv[1], LANGUAGE_MODEL, &err)) {
        fprintf(stderr, "%s\n", argc == 6 ? err.text : "usage: decode MODEL TOKENS NEW fast|reference THREADS");
        return BAD_USAGE;
    }
    const size_t T = strtoul(argv[2], NULL, 10), n = strtoul(argv[3], NULL, 10), V = m.size[LETTER_V];
    uint32_t *id = mem_new(T, sizeof *id);
    float *l = mem_new(V, sizeof *l);
    for (size_t i = 0; i < T; i++) id[i] = (uint32_t)(((uint64_t)i * 2654435761u) % 30000 + 1000);
    while (next_round()) {
        State s = state_new(&m);
        const double start = now();
        float *x = embed(&m, id, T);
        bool ok = m.kind == T5 ? state_encode(&m, &s, x, T, &err) : state_read(&m, &s, x, T, &err);
        free(x);
        const double read = now();
        for (size_t i = 0; ok && i < n; i++) {
            ok = logits(&m, s.last, 1, l, &err);
            const uint32_t next = choose(l, V, &(Sampling){0}, i);
            ok = ok && state_read_ids(&m, &s, &next, 1, &err);
        }
        if (!ok) return fprintf(stderr, "%s\n", err.text), err.code;
        printf("%.6f %.6f\n", read - start, now() - read);
        state_free(&s);
    }
    free(id), free(l);
    model_close(&m);
    return DONE;
}
