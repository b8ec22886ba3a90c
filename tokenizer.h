/* tokenizer.h - text to pieces and back, equal to the reference tokenizers: WordPiece (BERT), SentencePiece unigram (XLM-R, T5),
 * byte-level BPE (GPT-2, RoBERTa, cl100k_base).
 *
 * A tokenizer is read from the U8 tensors and metadata that export.py stores in a flat file (docs/FORMAT.md), used in place.
 * It is immutable once loaded: any number of threads may encode with it.
 */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "base.h"
#include "unicode.h"
#include "weights.h"

typedef enum { TOK_WORDPIECE, TOK_UNIGRAM, TOK_BPE } TokenizerKind;
typedef struct Tokenizer Tokenizer;

/* A stretch of text that belongs to somebody else. */
typedef struct {
    const char *at;
    size_t len;
} Slice;

/* Pieces of a text: id, and the bytes of the source it came from, [start, end). Start from {0}; release with pieces_free. To use it again,
 * set n to 0. Strings of unigram pieces that the vocabulary lacks are kept as well: the text, normalised, for which the unknown piece stands. */
typedef struct {
    uint32_t *id;
    size_t *start, *end;
    size_t n, cap;
    struct Unknown *unknown; /* in order of pieces */
    size_t n_unknown, cap_unknown;
    Bytes unknown_text;
} Pieces;
void pieces_free(Pieces *p);

/* Errors: BAD_MODEL (no tokenizer in the file: says to export with one or to use --ids; or a damaged one). w must outlive it. */
bool tokenizer_open(Tokenizer **out, const Weights *w, Error *err);
void tokenizer_close(Tokenizer *t);

TokenizerKind tokenizer_kind(const Tokenizer *t);
size_t tokenizer_size(const Tokenizer *t); /* highest id + 1, added tokens included */

/* Add a token that is matched in text before anything else (as the reference's added tokens: leftmost, longest),
 * e.g. "[NEW0]". Not special: no stripping around it. Before encoding starts; not thread-safe. */
void tokenizer_add(Tokenizer *t, const char *text, size_t len, uint32_t id);

enum {
    TOK_PLAIN = 0,      /* text is only text: added and special tokens in it mean nothing */
    TOK_ADDED = 1,      /* added tokens and specials ("[SEP]", "</s>", "[NEW0]") are matched in the text, as the reference's tokenize() does */
};
/* Append the pieces of text (no [CLS], </s> or the like is put around). Errors: BAD_INPUT with the byte offset if not UTF-8. */
bool tokenizer_encode(const Tokenizer *t, const char *text, size_t len, unsigned flags, Pieces *out, Error *err);

/* The number of pieces in plain text. */
bool tokenizer_count(const Tokenizer *t, const char *text, size_t len, size_t *n, Error *err);

/* The bytes of the grapheme cluster at text[i] (UAX #29), i < len; two regional indicators count as two. */
size_t cluster_length(const char *text, size_t len, size_t i);
/* A mark that never begins one but at the start of a text. */
bool cluster_extends(UnicodeCluster c);

/* The first added or special token that stands in the text, if any: its offset and its string. */
bool tokenizer_find_added(const Tokenizer *t, const char *text, size_t len, size_t *at, Slice *token);

/* The string of piece i of a text as the reference's tokenize() gives it: tokenizer_piece, but for unknown unigram pieces the text that they
 * stand for. Valid until the pieces change. */
Slice pieces_string(const Pieces *p, const Tokenizer *t, size_t i);

/* A piece's string as convert_ids_to_tokens gives it ("##ing", U+2581 "the", "Ġthe"); NULL if no such id. Valid as long as t. */
const char *tokenizer_piece(const Tokenizer *t, uint32_t id, size_t *len);
/* The id of a piece string, added tokens included, or -1. */
int64_t tokenizer_id(const Tokenizer *t, const char *piece, size_t len);
/* The ids of the named specials, or -1: "unk", "cls", "sep", "pad", "mask", "bos", "eos". */
int64_t tokenizer_special(const Tokenizer *t, const char *role);

/* What the reference's convert_tokens_to_string makes of piece *strings* (which need not be in the vocabulary): the decoder of
 * `tokenizers` on the list; with clean_up also the clean-up step of decode() where the tokenizer has one. */
void tokenizer_join(const Tokenizer *t, const Slice *piece, size_t n, Bytes *out);
/* ids -> text, as the reference's decode(skip_special_tokens=False, clean_up_tokenization_spaces=False). Errors: BAD_INPUT (no such id). */
bool tokenizer_decode(const Tokenizer *t, const uint32_t *id, size_t n, Bytes *out, Error *err);

#endif
