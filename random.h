/* random.h - random numbers by counting: number `count` of a seed is a function of the two, so that nothing needs to be kept, no order matters, and every
 * machine has the same. SplitMix64 (Steele, Lea, Flood 2014).
 */
#ifndef RANDOM_H
#define RANDOM_H

#include "base.h"

/* Output number `count` of the generator with this seed; also a seed for another use of the same seed. */
uint64_t random_bits(uint64_t seed, uint64_t count);
/* Its 24 highest bits as a number in [0,1). */
double uniform(uint64_t seed, uint64_t count);

/* A random order of the numbers below n, to be freed. */
size_t *random_order(uint64_t seed, size_t n);

/* Dropout: x[i] = 0 if uniform(seed, i) < p, else RN32(x[i] / (1 - p)). The gradient by x is the same function of the gradient by its result. */
void dropout(float *x, size_t n, double p, uint64_t seed);

#endif
