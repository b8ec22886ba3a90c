/* forward.c - warm forward passes of the encoder, timed, for bench/compare.py.
 *
 * usage: forward MODEL TOKENS fast|reference THREADS
 * For each line on standard input: TOKENS ids, spread over the vocabulary by a multiplicative hash, through encoder and classifier once;
 * prints the seconds. */
#include "../lingua2.c"
#include "warm.h"

int main(int argc, char **argv) {
    Error err;
    Model m;
    if (argc != 5 || !start_as(argv[3], argv[4], &err) || !model_open(&m, argv[1], &err)) {
        fprintf(stderr, "%s\n", argc == 5 ? err.text : "usage: forward MODEL TOKENS fast|reference THREADS");
        return BAD_USAGE;
    }
    Chunk c = {.T = (size_t)strtoul(argv[2], NULL, 10)};
    c.id = mem_new(c.T, sizeof *c.id);
    for (size_t i = 0; i < c.T; i++) c.id[i] = (uint32_t)(((uint64_t)i * 2654435761u) % 100000 + 1000);
    while (next_round()) {
        const double start = now();
        if (!c.position && !chunk_positions(&m, &c, &err)) return BAD_INPUT;
        if (!classify_chunks(&m, &c, 1, &err)) return err.code;
        printf("%.6f\n", now() - start);
    }
    chunk_free(&c);
    model_close(&m);
    return DONE;
}
