/* random.c - see random.h. */
#include "random.h"

#include "tensor_step.h"

uint64_t random_bits(uint64_t seed, uint64_t count) {
    uint64_t z = seed + (count + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

double uniform(uint64_t seed, uint64_t count) { return (double)(random_bits(seed, count) >> 40) * 0x1p-24; }

/* Fisher and Yates. */
size_t *random_order(uint64_t seed, size_t n) {
    size_t *order = mem_new(n, sizeof *order);
    for (size_t i = 0; i < n; i++) order[i] = i;
    for (size_t i = n; i-- > 1;) {
        const size_t k = (size_t)(uniform(seed, i) * (double)(i + 1)), old = order[i];
        order[i] = order[k];
        order[k] = old;
    }
    return order;
}

void dropout(float *x, size_t n, double p, uint64_t seed) {
#pragma omp parallel for num_threads(tensor_threads()) schedule(static) if (worth_threads(n))
    for (size_t i = 0; i < n; i++) x[i] = uniform(seed, i) < p ? 0 : (float)((double)x[i] / (1 - p));
}
