/* isa.h - one function in plain C, compiled for several instruction-set levels in one binary, chosen at run time.
 *
 * The body of a hot loop is written once, as an always-inlined function NAME_body(int level, ...). ISA_CLONES compiles
 * it once per level and defines static NAME(...), which calls the best one this processor has. The results must
 * not depend on the level: a body may use `level` only to choose between two ways to the same bits (a hardware fused
 * multiply-add, or the same done in software).
 *
 * Levels: 0 what the compiler was asked for; 1 = AVX2 and FMA (x86-64-v3); 2 = AVX-512 (x86-64-v4).
 */
#ifndef ISA_H
#define ISA_H

enum { ISA_BASE = 0, ISA_AVX2 = 1, ISA_AVX512 = 2 };

/* The level in use. isa_detect() gives the highest this processor and operating system offer; isa_set lowers it
 * (tests and benchmarks), never above what is there. Not for use while other threads compute. */
extern int isa_level;
int isa_detect(void);
void isa_set(int level);
const char *isa_name(int level); /* "base", "avx2", "avx512" */

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed" /* a loop that stays scalar (at -O0, say) is slower and no less right */
#endif

#if defined(__TINYC__)
#define _Pragma(text) /* tcc 0.9.27 has neither this operator of C11 nor the vectors that it asks for */
#endif

/* Unroll the loop that follows, whose count is a constant, before vectors are made of the loop around it; clang heeds only its own word for that. */
#if defined(__clang__)
#define ISA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ISA_UNROLL _Pragma("GCC unroll 20")
#endif

#if defined(__GNUC__)
#define ISA_BODY static inline __attribute__((always_inline))
#else
#define ISA_BODY static inline
#endif

#if defined(__GNUC__) && defined(__x86_64__)
#define ISA_TARGET_AVX2 __attribute__((target("avx2,fma,bmi,bmi2,lzcnt")))
#if defined(__clang__)
#define ISA_TARGET_AVX512 \
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512cd,avx2,fma,bmi,bmi2,lzcnt"), min_vector_width(512)))
#else
#define ISA_TARGET_AVX512 \
    __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512cd,avx2,fma,bmi,bmi2,lzcnt,prefer-vector-width=512")))
#endif
#endif

/* PARAMS: the parameter list in parentheses; ...: the arguments, in order. NAME may itself be a macro: it is expanded first. */
#define ISA_CLONES(NAME, PARAMS, ...) ISA_CLONES_OF(NAME, PARAMS, __VA_ARGS__)
#if defined(ISA_TARGET_AVX2)
#define ISA_CLONES_OF(NAME, PARAMS, ...)                                                         \
    static void NAME##_base PARAMS { NAME##_body(ISA_BASE, __VA_ARGS__); }                       \
    ISA_TARGET_AVX2 static void NAME##_avx2 PARAMS { NAME##_body(ISA_AVX2, __VA_ARGS__); }       \
    ISA_TARGET_AVX512 static void NAME##_avx512 PARAMS { NAME##_body(ISA_AVX512, __VA_ARGS__); } \
    static void NAME PARAMS {                                                                    \
        if (isa_level == ISA_AVX512) NAME##_avx512(__VA_ARGS__);                                 \
        else if (isa_level == ISA_AVX2) NAME##_avx2(__VA_ARGS__);                                \
        else NAME##_base(__VA_ARGS__);                                                           \
    }
#else
#define ISA_CLONES_OF(NAME, PARAMS, ...) \
    static void NAME PARAMS { NAME##_body(ISA_BASE, __VA_ARGS__); }
#endif

/* True where a fused multiply-add is one instruction at this level. */
#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__)
#define ISA_HAS_FMA(level) ((void)(level), 1)
#else
#define ISA_HAS_FMA(level) ((level) > ISA_BASE)
#endif

#endif
