/* test_crmath.c - the correctly rounded functions on golden bits made by mpmath (test/make_crmath_golden.py), at every instruction set, in place, at
 * odd lengths. All 2^32 inputs are walked by test/slow_crmath.sh. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../crmath.h"
#include "../isa.h"
#include "check.h"

enum { MOST = 20000 };
static float x[MOST], y[MOST + 1];
static uint32_t want[MOST];

static uint32_t bits_of(float f) {
    uint32_t b;
    memcpy(&b, &f, sizeof b);
    return b;
}

static void check_function(CrFunction f, size_t n) {
    for (size_t i = 0; i < n; i++) CHECK(bits_of(cr_one(f, x[i])) == want[i], "cr_one %s(%a): %08x, wanted %08x", cr_name(f), (double)x[i], bits_of(cr_one(f, x[i])), want[i]);
    for (int level = ISA_BASE; level <= isa_detect(); level++) {
        isa_set(level);
        cr_map(f, y + 1, x, n);
        for (size_t i = 0; i < n; i++) CHECK(bits_of(y[i + 1]) == want[i], "cr_map %s %s(%a): %08x, wanted %08x", isa_name(level), cr_name(f), (double)x[i], bits_of(y[i + 1]), want[i]);
        for (size_t len = 0; len < 70 && len < n; len++) {
            memcpy(y, x, sizeof x);
            cr_map(f, y + 1, y + 1, len); /* in place, from an odd address */
            size_t wrong = 0;
            for (size_t i = 1; i < 80 && i < n; i++) wrong += bits_of(y[i]) != (i <= len ? want[i] : bits_of(x[i]));
            CHECK(wrong == 0, "%s %s in place, length %zu: %zu wrong", isa_name(level), cr_name(f), len, wrong);
        }
    }
}

int main(void) {
    FILE *file = fopen("test/golden/crmath.txt", "r");
    char name[16], last[16] = "";
    unsigned long in, out;
    size_t n = 0;
    bool more = file != NULL;
    CHECK(more, "test/golden/crmath.txt cannot be opened: run this from the project's root");
    while (more) {
        more = fscanf(file, "%15s %lx %lx", name, &in, &out) == 3;
        if (n && (!more || strcmp(name, last) != 0)) {
            int f = 0;
            while (f < CR_FUNCTIONS && strcmp(cr_name((CrFunction)f), last) != 0) f++;
            CHECK(f < CR_FUNCTIONS, "no function %s", last);
            if (f < CR_FUNCTIONS) check_function((CrFunction)f, n);
            n = 0;
        }
        if (!more || n == MOST) break;
        const uint32_t pattern = (uint32_t)in;
        memcpy(&x[n], &pattern, sizeof pattern);
        want[n++] = (uint32_t)out;
        memcpy(last, name, sizeof last);
    }
    if (file) fclose(file);
    return check_end();
}
