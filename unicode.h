/* unicode.h - what the tokenizers must know of a code point. The tables (unicode.c) are made by test/make_unicode.py. */
#ifndef UNICODE_H
#define UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    UNICODE_LETTER = 1,      /* \p{L} */
    UNICODE_NUMBER = 2,      /* \p{N} */
    UNICODE_SPACE = 4,       /* White_Space */
    UNICODE_PUNCTUATION = 8, /* what BERT splits off: \p{P} and ASCII's $+<=>^`|~ */
    UNICODE_CONTROL = 16,    /* what BERT removes: \p{C} without tab, line feed, carriage return; NUL; U+FFFD */
    UNICODE_MARK = 32,       /* \p{Mn}: what stripping accents removes */
    UNICODE_WORD = 64,       /* \w of Python's re */
    UNICODE_DIGIT = 128      /* \d of Python's re */
};
unsigned unicode_flags(uint32_t code);

/* The full lower case (1 to 3 code points) or canonical decomposition of a code point; NULL if it maps to itself. Hangul syllables,
 * which decompose by arithmetic, are not in unicode_nfd's table. */
const uint32_t *unicode_lower(uint32_t code, size_t *len);
const uint32_t *unicode_nfd(uint32_t code, size_t *len);

/* What decides where grapheme clusters end (UAX #29): control characters; marks that extend a cluster: EXTEND, in Indic conjuncts too, MARK, not
 * there, ZWJ, SPACING and LINKER; PREPEND; emoji; Indic consonants; Hangul L, V, T, LV, LVT. Regional indicators are OTHER: no use of ours
 * depends on their pairing. */
typedef enum {
    CLUSTER_OTHER, CLUSTER_CONTROL, CLUSTER_EXTEND, CLUSTER_MARK, CLUSTER_ZWJ, CLUSTER_SPACING, CLUSTER_PREPEND, CLUSTER_PICTOGRAPH, CLUSTER_CONSONANT,
    CLUSTER_LINKER, CLUSTER_L, CLUSTER_V, CLUSTER_T, CLUSTER_LV, CLUSTER_LVT
} UnicodeCluster;
UnicodeCluster unicode_cluster(uint32_t code);

#endif
