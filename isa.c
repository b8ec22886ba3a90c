/* isa.c - see isa.h. Asks the processor, and through it the operating system, which vector registers may be used. */
#include "isa.h"

#include <stdbool.h>

int isa_level = ISA_BASE;

int isa_detect(void) {
#if defined(ISA_TARGET_AVX2)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                __builtin_cpu_supports("bmi2");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd");
    return avx512 ? ISA_AVX512 : avx2 ? ISA_AVX2 : ISA_BASE;
#else
    return ISA_BASE;
#endif
}

void isa_set(int level) {
    int best = isa_detect();
    isa_level = level < ISA_BASE ? ISA_BASE : level > best ? best : level;
}

const char *isa_name(int level) { return level == ISA_AVX512 ? "avx512" : level == ISA_AVX2 ? "avx2" : "base"; }
