/* make_certificates.c - conformance/functions/NAME.txt: what a correctly rounded function gives for all 2^32 float32 inputs, in 512 hashes.
 *
 * usage: make_certificates FUNCTION [STEP] > NAME.txt
 *
 * Line n (0..511) is the hash of block n: the inputs whose first 9 bits, sign and exponent, are n, in the order of their bits. For each result with the bits r,
 * a NaN counting as 7fc00000: h = (h xor r) * 16777619 modulo 2^32, from h = 2166136261. One wrong result always changes h, since each step can be undone.
 * STEP: only every STEP-th block, from block STEP / 2 on.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crmath.h"
#include "isa.h"

enum { BLOCKS = 512, INPUTS = 1 << 23, AT_ONCE = 1 << 12 };

static unsigned long block_hash(CrFunction f, uint32_t block) {
    static float x[AT_ONCE];
    static uint32_t r[AT_ONCE];
    uint32_t h = 2166136261u;
    for (uint32_t first = 0; first < INPUTS; first += AT_ONCE) {
        for (uint32_t i = 0; i < AT_ONCE; i++) r[i] = block << 23 | (first + i);
        memcpy(x, r, sizeof x);
        cr_map(f, x, x, AT_ONCE);
        memcpy(r, x, sizeof r);
        for (uint32_t i = 0; i < AT_ONCE; i++) h = (h ^ r[i]) * 16777619u;
    }
    return h;
}

int main(int argc, char **argv) {
    const uint32_t step = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 1;
    isa_set(isa_detect());
    for (int f = 0; f < CR_FUNCTIONS; f++) {
        if (argc < 2 || step == 0 || strcmp(argv[1], cr_name((CrFunction)f))) continue;
        for (uint32_t block = step / 2; block < BLOCKS; block += step) {
            printf("%lu %08lx\n", (unsigned long)block, block_hash((CrFunction)f, block));
            fflush(stdout);
        }
        return 0;
    }
    fprintf(stderr, "usage: make_certificates FUNCTION [STEP]; the functions are those of crmath.h\n");
    return 2;
}
