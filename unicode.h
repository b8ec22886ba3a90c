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

/* True if this code point extends the grapheme cluster it follows (Extend, SpacingMark, ZWJ). */
bool unicode_extends(uint32_t code);

#endif
