/* tokenizer.c - see tokenizer.h. Text to pieces by WordPiece, SentencePiece unigram and byte-level BPE, and back.
 *
 * All three stand on one structure, a trie over the vocabulary's strings that export.py builds and the file holds ready for use:
 *   WordPiece  the longest piece that begins here, again and again ("##" is walked first inside a word)
 *   unigram    Viterbi: all pieces that begin at each position, best sum of log probabilities
 *   BPE        single bytes, then the neighbours whose merge has the lowest rank, again and again
 * In front of them stand the reference's normalisers and pre-tokenizers, written out by hand: no regular expressions.
 *
 * Left out on purpose: training vocabularies, byte fallback, dropout, n-best, templates (the models put [CLS] and </s> themselves).
 */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "unicode.h"

/* ---- the model's tables ---- */

typedef struct {
    char *text;
    size_t len;
    uint32_t id;
    bool lstrip, rstrip; /* the match swallows the white space to its left, right */
} Added;

typedef enum { SPLIT_GPT2, SPLIT_CL100K } BpeSplit;
static const char *const roles[] = {"unk", "cls", "sep", "pad", "mask", "bos", "eos"};
enum { ROLES = sizeof roles / sizeof *roles };

/* Tables lie in the flat file, little-endian. The trie is stored breadth first: the children of node i are the nodes first[i] to
 * first[i+1]-1, label[i] is the byte that leads to node i, value[i] is 1 + the id of the piece that ends there, or 0. Node 0 is the root. */
struct Tokenizer {
    TokenizerKind kind;
    const unsigned char *pieces, *piece_ends; /* strings one after another; [n] where each ends */
    size_t n;
    const unsigned char *label, *first, *value;
    size_t nodes;
    uint32_t *wide;     /* [wide_nodes][256] children by byte, 0 if none, of the root and of its children: the nodes that have many */
    size_t wide_nodes;
    const unsigned char *scores;   /* unigram: [n] float64 */
    const unsigned char *charsmap; /* unigram: normalisation trie and strings */
    size_t charsmap_trie, charsmap_len;
    double unknown_score;
    const unsigned char *merges; /* BPE: hash table of [merge_slots][left, right, rank, merged]; NULL: a merge's rank is the merged piece's id */
    size_t merge_slots;
    BpeSplit split;
    bool trim_offsets; /* BPE: a piece's source leaves out the blanks around it */
    bool lowercase, strip_accents, clean_up; /* WordPiece */
    bool split_white_space;                  /* unigram: all white space ends a word, not the blank alone */
    uint32_t continuation; /* WordPiece: the node reached by "##" */
    Added *added;          /* longest first */
    size_t n_added, size;
    bool begins_added[256];
    unsigned char *special; /* [n] 1 for pieces that TOK_PLAIN must not find */
    int64_t role[ROLES];
    char display[256][3]; /* BPE: the printable stand-in of each byte, UTF-8, NUL-terminated */
    int16_t byte_of[512]; /* and back, by code point; -1 if none */
};

static uint32_t le32(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t table32(const unsigned char *table, size_t i) { return le32(table + 4 * i); }

static double table_double(const unsigned char *table, size_t i) {
    uint64_t bits = (uint64_t)le32(table + 8 * i) | (uint64_t)le32(table + 8 * i + 4) << 32;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The child of a node by byte c, 0 if there is none. */
static inline uint32_t child(const Tokenizer *t, uint32_t node, unsigned char c) {
    if (node < t->wide_nodes) return t->wide[(size_t)node * 256 + c];
    const size_t low = table32(t->first, node), high = table32(t->first, (size_t)node + 1);
    if (high - low > 16) {
        const unsigned char *at = memchr(t->label + low, c, high - low);
        return at ? (uint32_t)(at - t->label) : 0;
    }
    for (size_t i = low; i < high && t->label[i] <= c; i++)
        if (t->label[i] == c) return (uint32_t)i;
    return 0;
}

static uint32_t node_value(const Tokenizer *t, uint32_t node) { return table32(t->value, node); }

/* 1 + the id of exactly this string, or 0. */
static uint32_t lookup(const Tokenizer *t, const char *text, size_t len) {
    uint32_t node = 0;
    for (size_t i = 0; i < len; i++)
        if ((node = child(t, node, (unsigned char)text[i])) == 0) return 0;
    return len ? node_value(t, node) : 0;
}

/* ---- loading: nothing in the file is believed ---- */

static bool tables_are_sound(const Tokenizer *t) {
    uint32_t before = 0;
    for (size_t i = 0; i < t->n; i++, before = table32(t->piece_ends, i - 1))
        if (table32(t->piece_ends, i) < before) return false;
    if (t->nodes == 0 || table32(t->first, 0) != 1 || table32(t->first, 1) > 257) return false;
    for (size_t i = 0; i < t->nodes; i++) {
        uint32_t from = table32(t->first, i), to = table32(t->first, i + 1);
        if (from > to || to - from > 256 || to > t->nodes || from <= i || node_value(t, (uint32_t)i) > t->n) return false; /* children come later: no cycle */
    }
    return true;
}

static bool json_flag(const Json *j, const char *key) {
    const Json *v = json_get(j, key);
    return v && v->type == JSON_TRUE;
}

static int by_length(const void *a, const void *b) {
    const Added *x = a, *y = b;
    return x->len != y->len ? (x->len < y->len ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

static void add_token(Tokenizer *t, const char *text, size_t len, uint32_t id, bool lstrip, bool rstrip) {
    t->added = mem_resize(t->added, t->n_added + 1, sizeof *t->added);
    Added *a = &t->added[t->n_added++];
    *a = (Added){mem_new(len + 1, 1), len, id, lstrip, rstrip};
    memcpy(a->text, text, len);
    if (len) t->begins_added[(unsigned char)text[0]] = true;
    if ((size_t)id + 1 > t->size) t->size = (size_t)id + 1;
    if (id < t->n) t->special[id] = 1;
}

void tokenizer_add(Tokenizer *t, const char *text, size_t len, uint32_t id) {
    add_token(t, text, len, id, false, false);
    qsort(t->added, t->n_added, sizeof *t->added, by_length);
}

/* The settings in __metadata__ "tokenizer": see docs/FORMAT.md. */
static bool read_settings(Tokenizer *t, const Json *j, const char *path, Error *err) {
    static const char *const kinds[] = {"wordpiece", "unigram", "bpe"};
    const Json *kind = json_get(j, "kind"), *split = json_get(j, "split"), *added = json_get(j, "added"), *special = json_get(j, "special");
    size_t k = 0, id;
    while (k < 3 && !(kind && kind->type == JSON_STRING && strcmp(kind->text, kinds[k]) == 0)) k++;
    if (k == 3) return fail(err, BAD_MODEL, "%s: a tokenizer of unknown kind; export the model again with export.py", path);
    t->kind = (TokenizerKind)k;
    t->lowercase = json_flag(j, "lowercase");
    t->strip_accents = json_flag(j, "strip_accents");
    t->clean_up = json_flag(j, "clean_up");
    t->trim_offsets = json_flag(j, "trim_offsets");
    t->split_white_space = json_flag(j, "split_white_space");
    t->split = split && split->type == JSON_STRING && strcmp(split->text, "cl100k") == 0 ? SPLIT_CL100K : SPLIT_GPT2;
    for (size_t r = 0; r < ROLES; r++) t->role[r] = json_size(json_get(special, roles[r]), UINT32_MAX - 1, &id) ? (int64_t)id : -1;
    t->special = mem_new(t->n, 1);
    t->size = t->n;
    for (size_t i = 0; added && added->type == JSON_ARRAY && i < added->len; i++) {
        const Json *a = &added->item[i], *text = json_get(a, "text");
        if (!text || text->type != JSON_STRING || text->len == 0 || !json_size(json_get(a, "id"), (size_t)1 << 30, &id))
            return fail(err, BAD_MODEL, "%s: added token %zu of the tokenizer is malformed; export the model again", path, i);
        add_token(t, text->text, text->len, (uint32_t)id, json_flag(a, "lstrip"), json_flag(a, "rstrip"));
    }
    if (t->n_added) qsort(t->added, t->n_added, sizeof *t->added, by_length);
    if (t->kind != TOK_BPE && t->role[0] < 0) return fail(err, BAD_MODEL, "%s: the tokenizer has no unknown piece; export the model again", path);
    return true;
}

static bool load_tables(Tokenizer *t, const Weights *w, Error *err) {
    const char *path = weights_path(w);
    size_t pieces_len, ends_len, label_len, first_len, value_len;
    if (!weights_bytes_tensor(w, "tokenizer.pieces", &t->pieces, &pieces_len, err) ||
        !weights_bytes_tensor(w, "tokenizer.piece_ends", &t->piece_ends, &ends_len, err) ||
        !weights_bytes_tensor(w, "tokenizer.trie_label", &t->label, &label_len, err) ||
        !weights_bytes_tensor(w, "tokenizer.trie_first", &t->first, &first_len, err) ||
        !weights_bytes_tensor(w, "tokenizer.trie_value", &t->value, &value_len, err))
        return false;
    t->n = ends_len / 4;
    t->nodes = label_len;
    if (ends_len % 4 || t->n == 0 || label_len == 0 || first_len % 4 || first_len / 4 != label_len + 1 || value_len % 4 || value_len / 4 != label_len ||
        !tables_are_sound(t) || table32(t->piece_ends, t->n - 1) != pieces_len)
        return fail(err, BAD_MODEL, "%s: the tokenizer's tables do not fit together; export the model again with export.py", path);
    for (size_t i = 0, from = 0, to, bad; i < t->n; i++, from = to) {
        to = table32(t->piece_ends, i);
        if (!utf8_valid((const char *)t->pieces + from, to - from, &bad))
            return fail(err, BAD_MODEL, "%s: piece %zu of the tokenizer is not UTF-8; export the model again with export.py", path, i);
    }
    t->wide_nodes = table32(t->first, 1); /* breadth first: the root's children are the nodes behind it */
    t->wide = mem_new(t->wide_nodes, 256 * sizeof *t->wide);
    for (size_t node = t->wide_nodes; node-- > 0;)
        for (size_t i = table32(t->first, node); i < table32(t->first, node + 1); i++) t->wide[node * 256 + t->label[i]] = (uint32_t)i;
    return true;
}

static bool load_unigram(Tokenizer *t, const Weights *w, Error *err) {
    size_t scores_len;
    if (!weights_bytes_tensor(w, "tokenizer.scores", &t->scores, &scores_len, err) ||
        !weights_bytes_tensor(w, "tokenizer.charsmap", &t->charsmap, &t->charsmap_len, err))
        return false;
    if (scores_len % 8 || scores_len / 8 != t->n || t->charsmap_len < 8 || le32(t->charsmap) > t->charsmap_len - 4 || le32(t->charsmap) % 4 || le32(t->charsmap) < 4)
        return fail(err, BAD_MODEL, "%s: the tokenizer's scores or normalisation map are damaged; export the model again", weights_path(w));
    t->charsmap_trie = le32(t->charsmap) / 4;
    double least = 0;
    for (size_t i = 0; i < t->n; i++) {
        double s = table_double(t->scores, i);
        if (!(s >= -1e9 && s <= 1e9)) return fail(err, BAD_MODEL, "%s: the score of piece %zu is no usable number", weights_path(w), i);
        least = i == 0 || s < least ? s : least;
    }
    t->unknown_score = least - 10; /* the reference's penalty */
    return true;
}

/* The bytes 33-126, 161-172, 174-255 stand for themselves, the others for U+0100 and up in order. */
static void make_display(Tokenizer *t) {
    uint32_t next = 256;
    for (int i = 0; i < 512; i++) t->byte_of[i] = -1;
    for (uint32_t b = 0; b < 256; b++) {
        bool itself = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
        uint32_t code = itself ? b : next++;
        char utf8[4];
        size_t len = utf8_encode(code, utf8);
        memcpy(t->display[b], utf8, len);
        t->byte_of[code] = (int16_t)b;
    }
}

static bool load_bpe(Tokenizer *t, const Weights *w, Error *err) {
    size_t len;
    make_display(t);
    for (int b = 0; b < 256; b++)
        if (t->wide[b] == 0 || node_value(t, t->wide[b]) == 0)
            return fail(err, BAD_MODEL, "%s: the vocabulary lacks a piece for byte %d; export the model again", weights_path(w), b);
    if (!weights_find(w, "tokenizer.merges")) return true;
    if (!weights_bytes_tensor(w, "tokenizer.merges", &t->merges, &len, err)) return false;
    t->merge_slots = len / 16;
    if (len % 16 || t->merge_slots == 0 || (t->merge_slots & (t->merge_slots - 1)))
        return fail(err, BAD_MODEL, "%s: the table of merges is damaged; export the model again", weights_path(w));
    return true;
}

bool tokenizer_open(Tokenizer **out, const Weights *w, Error *err) {
    const char *settings = weights_meta(w, "tokenizer");
    Json j = {0};
    *out = NULL;
    if (!settings)
        return fail(err, BAD_MODEL, "%s: holds no tokenizer; export it from a directory with tokenizer files, or give ids with --ids", weights_path(w));
    Tokenizer *t = mem_new(1, sizeof *t);
    Error detail;
    bool ok = json_parse(settings, strlen(settings), &j, &detail);
    if (!ok) fail(err, BAD_MODEL, "%s: the tokenizer's settings are no JSON (%.200s); export the model again", weights_path(w), detail.text);
    ok = ok && load_tables(t, w, err) && read_settings(t, &j, weights_path(w), err);
    json_free(&j);
    if (ok && t->kind == TOK_UNIGRAM) ok = load_unigram(t, w, err);
    if (ok && t->kind == TOK_BPE) ok = load_bpe(t, w, err);
    if (!ok) {
        tokenizer_close(t);
        return false;
    }
    uint32_t hash = t->wide['#'];
    t->continuation = hash ? child(t, hash, '#') : 0;
    *out = t;
    return true;
}

void tokenizer_close(Tokenizer *t) {
    if (!t) return;
    for (size_t i = 0; i < t->n_added; i++) free(t->added[i].text);
    free(t->added);
    free(t->special);
    free(t->wide);
    free(t);
}

/* ---- pieces ---- */

TokenizerKind tokenizer_kind(const Tokenizer *t) { return t->kind; }
size_t tokenizer_size(const Tokenizer *t) { return t->size; }

const char *tokenizer_piece(const Tokenizer *t, uint32_t id, size_t *len) {
    for (size_t i = 0; i < t->n_added; i++)
        if (t->added[i].id == id && id >= t->n) {
            *len = t->added[i].len;
            return t->added[i].text;
        }
    if (id >= t->n) return NULL;
    size_t start = id ? table32(t->piece_ends, id - 1) : 0;
    *len = table32(t->piece_ends, id) - start;
    return (const char *)t->pieces + start;
}

/* The bytes that a byte-level piece stands for; false if a character stands for none. */
static bool piece_bytes(const Tokenizer *t, const char *piece, size_t len, Bytes *out) {
    const size_t before = out->len;
    for (size_t i = 0; i < len;) {
        uint32_t code;
        size_t n = utf8_decode(piece + i, len - i, &code);
        if (n == 0 || code >= 512 || t->byte_of[code] < 0) {
            out->len = before;
            return false;
        }
        char byte = (char)t->byte_of[code];
        bytes_add(out, &byte, 1);
        i += n;
    }
    return true;
}

int64_t tokenizer_id(const Tokenizer *t, const char *piece, size_t len) {
    for (size_t i = 0; i < t->n_added; i++)
        if (t->added[i].len == len && memcmp(t->added[i].text, piece, len) == 0) return t->added[i].id;
    uint32_t value = 0;
    if (t->kind == TOK_BPE) {
        Bytes raw = {0};
        if (piece_bytes(t, piece, len, &raw)) value = lookup(t, raw.at ? raw.at : "", raw.len);
        bytes_free(&raw);
    } else value = lookup(t, piece, len);
    return (int64_t)value - 1;
}

int64_t tokenizer_special(const Tokenizer *t, const char *role) {
    for (size_t r = 0; r < ROLES; r++)
        if (strcmp(role, roles[r]) == 0) return t->role[r];
    return -1;
}

struct Unknown {
    size_t piece, end; /* which piece; where its string ends in unknown_text */
};

void pieces_free(Pieces *p) {
    free(p->id);
    free(p->start);
    free(p->end);
    free(p->unknown);
    bytes_free(&p->unknown_text);
    *p = (Pieces){0};
}

/* Note that the last piece stands for this text. */
static void note_unknown(Pieces *p, const char *text, size_t len) {
    if (p->n_unknown == p->cap_unknown) {
        p->cap_unknown = p->cap_unknown ? p->cap_unknown * 2 : 16;
        p->unknown = mem_resize(p->unknown, p->cap_unknown, sizeof *p->unknown);
    }
    bytes_add(&p->unknown_text, text, len);
    p->unknown[p->n_unknown++] = (struct Unknown){p->n - 1, p->unknown_text.len};
}

/* Forget what was noted of pieces that the caller has dropped. */
static void drop_unknown(Pieces *p) {
    while (p->n_unknown && p->unknown[p->n_unknown - 1].piece >= p->n) p->n_unknown--;
    p->unknown_text.len = p->n_unknown ? p->unknown[p->n_unknown - 1].end : 0;
}

Slice pieces_string(const Pieces *p, const Tokenizer *t, size_t i) {
    size_t low = 0, high = p->n_unknown;
    Slice s = {NULL, 0};
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (p->unknown[middle].piece < i) low = middle + 1;
        else high = middle;
    }
    if (low < p->n_unknown && p->unknown[low].piece == i) {
        size_t from = low ? p->unknown[low - 1].end : 0;
        return (Slice){p->unknown_text.at + from, p->unknown[low].end - from};
    }
    s.at = tokenizer_piece(t, p->id[i], &s.len);
    return s;
}

static void push(Pieces *p, uint32_t id, size_t start, size_t end) {
    if (p->n == p->cap) {
        p->cap = p->cap ? p->cap * 2 : 64;
        p->id = mem_resize(p->id, p->cap, sizeof *p->id);
        p->start = mem_resize(p->start, p->cap, sizeof *p->start);
        p->end = mem_resize(p->end, p->cap, sizeof *p->end);
    }
    p->id[p->n] = id;
    p->start[p->n] = start;
    p->end[p->n++] = end;
}

/* ---- one word under way: normalised bytes, and for each the source bytes it came from ---- */

typedef struct {
    const Tokenizer *t;
    bool plain;
    Pieces *out;
    char *at;
    size_t *start, *end;
    size_t len, cap, chars;
    /* unigram: normalised characters so far, how many of them up to the last that is no white space, how many to take */
    size_t seen, solid, limit;
    bool blank, strip; /* unigram: a blank came before; white space that is no blank has come */
    size_t blank_start, blank_end;
    /* scratch of Viterbi and of BPE, kept from word to word */
    double *score;
    size_t *from;
    uint32_t *id;
    size_t scratch;
} Encoder;

static void encoder_free(Encoder *e) {
    free(e->at);
    free(e->start);
    free(e->end);
    free(e->score);
    free(e->from);
    free(e->id);
}

static void append(Encoder *e, const char *bytes, size_t n, size_t start, size_t end) {
    if (e->cap - e->len < n) {
        e->cap = e->cap * 2 + n + 256;
        e->at = mem_resize(e->at, e->cap, 1);
        e->start = mem_resize(e->start, e->cap, sizeof *e->start);
        e->end = mem_resize(e->end, e->cap, sizeof *e->end);
    }
    for (size_t i = 0; i < n; i++) {
        e->at[e->len + i] = bytes[i];
        e->start[e->len + i] = start;
        e->end[e->len + i] = end;
    }
    e->len += n;
    e->chars++;
}

static void append_code(Encoder *e, uint32_t code, size_t start, size_t end) {
    char utf8[4];
    append(e, utf8, utf8_encode(code, utf8), start, end);
}

static void need_scratch(Encoder *e, size_t n) {
    if (n <= e->scratch) return;
    e->scratch = n * 2;
    e->score = mem_resize(e->score, e->scratch, sizeof *e->score);
    e->from = mem_resize(e->from, e->scratch, sizeof *e->from);
    e->id = mem_resize(e->id, e->scratch, sizeof *e->id);
}

static size_t char_length(unsigned char lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

/* ---- WordPiece: BERT's normaliser and pre-tokenizer, then longest match first ---- */

static void wordpiece_word(Encoder *e) {
    const Tokenizer *t = e->t;
    const size_t before = e->out->n;
    bool known = e->chars <= 100; /* the reference's max_input_chars_per_word */
    for (size_t i = 0; known && i < e->len;) {
        uint32_t node = i ? t->continuation : 0, best = 0;
        size_t best_end = i;
        for (size_t j = i; j < e->len && (i == 0 || t->continuation); j++) {
            if ((node = child(t, node, (unsigned char)e->at[j])) == 0) break;
            uint32_t value = node_value(t, node);
            if (value) best = value, best_end = j + 1;
        }
        known = best != 0;
        if (known) push(e->out, best - 1, e->start[i], e->end[best_end - 1]);
        i = best_end;
    }
    if (!known) {
        e->out->n = before;
        push(e->out, (uint32_t)t->role[0], e->start[0], e->end[e->len - 1]);
    }
}

static void end_wordpiece(Encoder *e) {
    if (e->len) wordpiece_word(e);
    e->len = e->chars = 0;
}

static bool is_cjk(uint32_t c) {
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
           (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

static void wordpiece_char(Encoder *e, uint32_t code, size_t start, size_t end) {
    if (unicode_flags(code) & UNICODE_PUNCTUATION) {
        end_wordpiece(e);
        append_code(e, code, start, end);
        end_wordpiece(e);
    } else append_code(e, code, start, end);
}

static void wordpiece_lower(Encoder *e, uint32_t code, size_t start, size_t end) {
    size_t n = 0;
    const uint32_t *lower = e->t->lowercase ? unicode_lower(code, &n) : NULL;
    if (!lower) wordpiece_char(e, code, start, end);
    for (size_t i = 0; i < n; i++) wordpiece_char(e, lower[i], start, end);
}

/* Canonical decomposition without the marks. */
static void wordpiece_strip(Encoder *e, uint32_t code, size_t start, size_t end) {
    enum { S = 0xAC00, L = 0x1100, V = 0x1161, T = 0x11A7, TS = 28, VT = 588 }; /* Hangul syllables, Unicode 3.12 */
    size_t n = 0;
    if (code >= S && code < S + 11172) {
        uint32_t s = code - S;
        wordpiece_lower(e, L + s / VT, start, end);
        wordpiece_lower(e, V + s % VT / TS, start, end);
        if (s % TS) wordpiece_lower(e, T + s % TS, start, end);
        return;
    }
    const uint32_t *parts = unicode_nfd(code, &n);
    if (!parts) parts = &code, n = 1;
    for (size_t i = 0; i < n; i++)
        if (!(unicode_flags(parts[i]) & UNICODE_MARK)) wordpiece_lower(e, parts[i], start, end);
}

static void encode_wordpiece(Encoder *e, const char *text, size_t len, size_t base) {
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t code;
        n = utf8_decode(text + i, len - i, &code);
        const unsigned flags = unicode_flags(code);
        const size_t start = base + i, end = start + n;
        const bool cjk = is_cjk(code);
        if (flags & UNICODE_CONTROL) continue;
        if (cjk || (flags & UNICODE_SPACE)) end_wordpiece(e);
        if (flags & UNICODE_SPACE) continue;
        if (e->t->strip_accents) wordpiece_strip(e, code, start, end);
        else wordpiece_lower(e, code, start, end);
        if (cjk) end_wordpiece(e);
    }
    end_wordpiece(e);
}

/* ---- unigram: normalisation map, words begun by U+2581, Viterbi ---- */

enum { SPACE_MARK = 0x2581 };

/* The replacement of the shortest key of the map that begins text, as the reference takes it; false if there is none. The map is a
 * double-array trie (darts-clone): a unit holds label, offset, and whether a leaf follows. */
static bool charsmap_find(const Tokenizer *t, const char *text, size_t len, const char **to, size_t *to_len) {
    const unsigned char *units = t->charsmap + 4;
    size_t node = 0;
    uint32_t unit = table32(units, 0);
    node ^= (size_t)(unit >> 10) << ((unit & 512) >> 6);
    for (size_t i = 0; i < len && text[i]; i++) {
        node ^= (unsigned char)text[i];
        if (node >= t->charsmap_trie) return false;
        unit = table32(units, node);
        if ((unit & 0x800000ffu) != (unsigned char)text[i]) return false;
        node ^= (size_t)(unit >> 10) << ((unit & 512) >> 6);
        if (unit >> 8 & 1) {
            if (node >= t->charsmap_trie) return false;
            size_t at = 4 + 4 * t->charsmap_trie + (table32(units, node) & 0x7fffffffu);
            if (at >= t->charsmap_len) return false;
            const unsigned char *end = memchr(t->charsmap + at, 0, t->charsmap_len - at);
            *to = (const char *)t->charsmap + at;
            *to_len = end ? (size_t)(end - (t->charsmap + at)) : t->charsmap_len - at;
            return true;
        }
    }
    return false;
}

/* Best segmentation of the word: score[j] = max over pieces [i,j) of score[i] + log p(piece); the first found wins ties. */
static void unigram_word(Encoder *e) {
    const Tokenizer *t = e->t;
    const size_t n = e->len;
    enum { NOWHERE = -1 };
    need_scratch(e, n + 1);
    for (size_t j = 0; j <= n; j++) e->from[j] = (size_t)NOWHERE;
    e->score[0] = 0;
    for (size_t i = 0, step; i < n; i += step) {
        uint32_t node = 0;
        bool alone = false; /* a piece of exactly this character was found */
        step = char_length((unsigned char)e->at[i]);
        for (size_t j = i; j < n; j++) {
            if ((node = child(t, node, (unsigned char)e->at[j])) == 0) break;
            uint32_t value = node_value(t, node);
            if (!value || (e->plain && t->special[value - 1])) continue;
            double s = e->score[i] + table_double(t->scores, value - 1);
            if (e->from[j + 1] == (size_t)NOWHERE || s > e->score[j + 1]) e->score[j + 1] = s, e->from[j + 1] = i, e->id[j + 1] = value - 1;
            alone |= j + 1 - i == step;
        }
        if (!alone) {
            size_t j = i + step;
            double s = e->score[i] + t->unknown_score;
            if (e->from[j] == (size_t)NOWHERE || s > e->score[j]) e->score[j] = s, e->from[j] = i, e->id[j] = (uint32_t)t->role[0];
        }
    }
    /* Turn the chain of starts round, then go along it; neighbouring unknown pieces become one. */
    size_t next = (size_t)NOWHERE;
    for (size_t j = n; j != (size_t)NOWHERE;) {
        const size_t i = j ? e->from[j] : (size_t)NOWHERE;
        e->from[j] = next; /* now: where the piece that starts at j ends */
        next = j;
        j = i;
    }
    const uint32_t unknown = (uint32_t)t->role[0];
    for (size_t i = 0, j; i < n; i = j) {
        j = e->from[i];
        const uint32_t id = e->id[j];
        while (id == unknown && j < n && e->id[e->from[j]] == unknown) j = e->from[j];
        push(e->out, id, e->start[i], e->end[j - 1]);
        if (id == unknown) note_unknown(e->out, e->at + i, j - i);
    }
}

static void end_unigram(Encoder *e) {
    if (e->len) unigram_word(e);
    e->len = e->chars = 0;
}

/* One normalised character from source [start,end): blanks end a word, each word begins with U+2581, which comes from the blank before it
 * where the blank alone splits, else from the word's first character. */
static void unigram_char(Encoder *e, const char *text, size_t n, uint32_t code, size_t start, size_t end) {
    const bool white = code == ' ' || (unicode_flags(code) & UNICODE_SPACE);
    if (e->seen++ == e->limit) e->seen = e->limit;
    if (e->seen == e->limit) return;
    if (!white) e->solid = e->seen;
    if (code == ' ' || (white && e->t->split_white_space)) {
        end_unigram(e);
        e->blank = !e->t->split_white_space;
        e->blank_start = start;
        e->blank_end = end;
        return;
    }
    if (white) e->strip = true;
    if (e->blank) append_code(e, SPACE_MARK, e->blank_start, e->blank_end);
    e->blank = false;
    if (code == SPACE_MARK) end_unigram(e);
    else if (e->len == 0) append_code(e, SPACE_MARK, start, end);
    append(e, text, n, start, end);
}

/* The source characters of text become the characters of `to`, one for one as far as both go; what is left over of `to` counts as coming from the
 * last of them. */
static void unigram_replace(Encoder *e, const char *text, size_t len, size_t base, const char *to, size_t to_len) {
    size_t at = 0, size = char_length((unsigned char)text[0]), n;
    uint32_t code;
    for (size_t i = 0; i < to_len && (n = utf8_decode(to + i, to_len - i, &code)) > 0; i += n) {
        unigram_char(e, to + i, n, code, base + at, base + at + size);
        if (at + size < len) {
            at += size;
            size = char_length((unsigned char)text[at]);
        }
    }
}

/* Whether a grapheme cluster goes on between a character and the next one (UAX #29). */
typedef struct {
    UnicodeCluster last;
    bool pictograph; /* a pictograph and what extends it came before last */
    bool conjunct, linked; /* an Indic consonant and what extends it, with a linker among it */
} Cluster;

bool cluster_extends(UnicodeCluster c) {
    return c == CLUSTER_EXTEND || c == CLUSTER_MARK || c == CLUSTER_ZWJ || c == CLUSTER_SPACING || c == CLUSTER_LINKER;
}

static bool cluster_goes_on(const Cluster *c, UnicodeCluster next) {
    const UnicodeCluster last = c->last;
    if (last == CLUSTER_CONTROL || next == CLUSTER_CONTROL) return false;
    if (cluster_extends(next) || last == CLUSTER_PREPEND) return true;
    if (last == CLUSTER_L) return next == CLUSTER_L || next == CLUSTER_V || next == CLUSTER_LV || next == CLUSTER_LVT;
    if (last == CLUSTER_LV || last == CLUSTER_V) return next == CLUSTER_V || next == CLUSTER_T;
    if (last == CLUSTER_LVT || last == CLUSTER_T) return next == CLUSTER_T;
    if (next == CLUSTER_PICTOGRAPH) return c->pictograph && last == CLUSTER_ZWJ;
    return next == CLUSTER_CONSONANT && c->linked;
}

static void cluster_step(Cluster *c, UnicodeCluster next) {
    const bool joins = next == CLUSTER_EXTEND || next == CLUSTER_ZWJ || next == CLUSTER_LINKER;
    c->pictograph = next == CLUSTER_PICTOGRAPH || (c->pictograph && (joins || next == CLUSTER_MARK));
    c->conjunct = next == CLUSTER_CONSONANT || (c->conjunct && joins);
    c->linked = c->conjunct && next != CLUSTER_CONSONANT && (c->linked || next == CLUSTER_LINKER);
    c->last = next;
}

size_t cluster_length(const char *text, size_t len, size_t i) {
    Cluster c = {0};
    uint32_t code;
    const unsigned char first = (unsigned char)text[i];
    if (first >= ' ' && first < 0x7F && (i + 1 == len || (unsigned char)text[i + 1] < 0x80)) return 1; /* nothing ASCII extends ASCII */
    if (first == '\r' && i + 1 < len && text[i + 1] == '\n') return 2;
    size_t end = i + utf8_decode(text + i, len - i, &code);
    cluster_step(&c, unicode_cluster(code));
    while (end < len) {
        const size_t n = utf8_decode(text + end, len - end, &code);
        const UnicodeCluster next = unicode_cluster(code);
        if (!cluster_goes_on(&c, next)) break;
        cluster_step(&c, next);
        end += n;
    }
    return end - i;
}

/* The reference looks a grapheme cluster of at most 5 bytes up as a whole first, then, as for longer ones, each character. */
static void unigram_text(Encoder *e, const char *text, size_t len, size_t base) {
    const char *to;
    size_t to_len;
    for (size_t i = 0, size; i < len; i += size) {
        size = cluster_length(text, len, i);
        if (size < 6 && charsmap_find(e->t, text + i, size, &to, &to_len)) {
            unigram_replace(e, text + i, size, base + i, to, to_len);
            continue;
        }
        for (size_t j = i, n; j < i + size; j += n) {
            n = char_length((unsigned char)text[j]);
            if (!charsmap_find(e->t, text + j, n, &to, &to_len)) to = text + j, to_len = n;
            unigram_replace(e, text + j, n, base + j, to, to_len);
        }
    }
    end_unigram(e);
}

/* Where only the blank splits, other white space is part of a word, but not at the end of the text: there we stop short, the second time. */
static void encode_unigram(Encoder *e, const char *text, size_t len, size_t base) {
    const size_t before = e->out->n;
    e->limit = SIZE_MAX;
    e->blank = e->strip = false;
    e->seen = e->solid = 0;
    unigram_text(e, text, len, base);
    if (!e->strip || e->solid == e->seen) return;
    e->out->n = before;
    drop_unknown(e->out);
    e->limit = e->solid + 1;
    e->blank = false;
    e->seen = 0;
    unigram_text(e, text, len, base);
}

/* ---- byte-level BPE: pre-tokenizers by hand, merges by rank ---- */

#define NO_RANK 0xffffffffu

/* The rank of merging pieces a and b; *merged is the new piece. Where ranks are ids, *node goes from a's place in the trie along text, b's bytes. */
static uint32_t merge_rank(const Tokenizer *t, uint32_t a, uint32_t b, uint32_t *node, const char *text, size_t len, uint32_t *merged) {
    if (!t->merges) {
        for (size_t i = 0; i < len; i++)
            if ((*node = child(t, *node, (unsigned char)text[i])) == 0) return NO_RANK;
        *merged = node_value(t, *node) - 1;
        return *merged; /* no piece: value 0, and 0 - 1 is NO_RANK */
    }
    uint32_t h = a * 2654435761u + b * 2246822519u;
    h ^= h >> 15;
    for (size_t probe = 0; probe < t->merge_slots; probe++) {
        const unsigned char *slot = t->merges + 16 * ((h + probe) & (t->merge_slots - 1));
        uint32_t left = le32(slot);
        if (left == NO_RANK) return NO_RANK;
        if (left == a && le32(slot + 4) == b) {
            *merged = le32(slot + 12);
            return *merged < t->n ? le32(slot + 8) : NO_RANK;
        }
    }
    return NO_RANK;
}

/* A piece of bytes [start,end) of the text comes from the whole characters that these touch. */
static void push_bytes(Encoder *e, uint32_t id, const char *text, size_t len, size_t base, size_t start, size_t end) {
    if (e->t->trim_offsets)
        while (start < end && text[start] == ' ') start++;
    if (e->t->trim_offsets)
        while (end > start && text[end - 1] == ' ') end--;
    while (((unsigned char)text[start < len ? start : 0] & 0xC0) == 0x80) start--;
    while (end < len && ((unsigned char)text[end] & 0xC0) == 0x80) end++;
    push(e->out, id, base + start, base + end);
}

static uint32_t byte_piece(const Tokenizer *t, char c) { return node_value(t, t->wide[(unsigned char)c]) - 1; }

/* Short words: look at all neighbours for each merge. `from` holds starts, `id` pieces; rank and merged are kept per neighbour. */
enum { SHORT_WORD = 48 };
static void bpe_short(Encoder *e, const char *text, size_t len, size_t base) {
    struct { uint32_t rank, merged, node; } pair[SHORT_WORD]; /* of piece i and the next */
    uint32_t id[SHORT_WORD], node[SHORT_WORD];
    size_t start[SHORT_WORD + 1], n = len;
    for (size_t i = 0; i < n; i++) id[i] = byte_piece(e->t, text[i]), node[i] = e->t->wide[(unsigned char)text[i]], start[i] = i;
    start[n] = len;
#define OFFER(i)                                                                                                                    \
    pair[i].node = node[i],                                                                                                         \
    pair[i].rank = merge_rank(e->t, id[i], id[(i) + 1], &pair[i].node, text + start[(i) + 1], start[(i) + 2] - start[(i) + 1], &pair[i].merged)
    for (size_t i = 0; i + 1 < n; i++) OFFER(i);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (pair[i].rank < pair[best].rank) best = i;
        if (pair[best].rank == NO_RANK) break;
        id[best] = pair[best].merged;
        node[best] = pair[best].node;
        n--;
        memmove(id + best + 1, id + best + 2, (n - best - 1) * sizeof *id);
        memmove(node + best + 1, node + best + 2, (n - best - 1) * sizeof *node);
        memmove(start + best + 1, start + best + 2, (n - best) * sizeof *start);
        memmove(pair + best, pair + best + 1, (n - best - 1) * sizeof *pair);
        if (best + 1 < n) OFFER(best);
        if (best > 0) OFFER(best - 1);
    }
#undef OFFER
    for (size_t i = 0; i < n; i++) push_bytes(e, id[i], text, len, base, start[i], start[i + 1]);
}

/* Long words: a heap of neighbours by (rank, position) and a doubly linked list of pieces; n log n. A popped neighbour whose pieces have
 * changed since is stale and skipped. */
typedef struct {
    uint32_t rank, left, right, merged;
    size_t at;
} Neighbour;

typedef struct {
    Neighbour *item;
    size_t n, cap;
} Heap;

static bool before(const Neighbour *a, const Neighbour *b) { return a->rank != b->rank ? a->rank < b->rank : a->at < b->at; }

static void heap_push(Heap *h, Neighbour x) {
    if (h->n == h->cap) {
        h->cap = h->cap ? h->cap * 2 : 256;
        h->item = mem_resize(h->item, h->cap, sizeof *h->item);
    }
    size_t i = h->n++;
    for (; i > 0 && before(&x, &h->item[(i - 1) / 2]); i = (i - 1) / 2) h->item[i] = h->item[(i - 1) / 2];
    h->item[i] = x;
}

static Neighbour heap_pop(Heap *h) {
    Neighbour top = h->item[0], x = h->item[--h->n];
    size_t i = 0, c;
    while ((c = 2 * i + 1) < h->n) {
        if (c + 1 < h->n && before(&h->item[c + 1], &h->item[c])) c++;
        if (!before(&h->item[c], &x)) break;
        h->item[i] = h->item[c];
        i = c;
    }
    if (h->n) h->item[i] = x;
    return top;
}

/* Pieces are named by where they start; next[i] is where the following one starts (len: none). */
typedef struct {
    uint32_t *id;
    size_t *next, *last; /* last[i]: where the piece before i starts */
} Chain;

static void offer(const Tokenizer *t, Heap *h, const Chain *c, const char *text, size_t len, size_t i) {
    Neighbour x = {0, c->id[i], 0, 0, i};
    uint32_t node = 0;
    if (c->next[i] >= len) return;
    x.right = c->id[c->next[i]];
    x.rank = merge_rank(t, x.left, x.right, &node, text + i, c->next[c->next[i]] - i, &x.merged);
    if (x.rank != NO_RANK) heap_push(h, x);
}

static void bpe_long(Encoder *e, const char *text, size_t len, size_t base) {
    Chain c = {mem_new(len, sizeof *c.id), mem_new(len, sizeof *c.next), mem_new(len, sizeof *c.last)};
    Heap h = {0};
    for (size_t i = 0; i < len; i++) {
        c.id[i] = byte_piece(e->t, text[i]);
        c.next[i] = i + 1;
        c.last[i] = i ? i - 1 : 0;
    }
    for (size_t i = 0; i < len; i++) offer(e->t, &h, &c, text, len, i);
    while (h.n) {
        const Neighbour x = heap_pop(&h);
        const size_t i = x.at, j = c.next[i];
        if (j == 0 || j >= len || c.id[i] != x.left || c.id[j] != x.right) continue; /* next 0: swallowed by the piece before */
        c.id[i] = x.merged;
        c.next[i] = c.next[j];
        c.next[j] = 0;
        if (c.next[i] < len) c.last[c.next[i]] = i;
        offer(e->t, &h, &c, text, len, i);
        if (i) offer(e->t, &h, &c, text, len, c.last[i]);
    }
    for (size_t i = 0; i < len; i = c.next[i]) push_bytes(e, c.id[i], text, len, base, i, c.next[i]);
    free(h.item);
    free(c.id);
    free(c.next);
    free(c.last);
}

static void bpe_word(Encoder *e, const char *text, size_t len, size_t base) {
    uint32_t whole = e->t->merges && len > 1 ? 0 : lookup(e->t, text, len);
    if (whole) push_bytes(e, whole - 1, text, len, base, 0, len);
    else if (len <= SHORT_WORD) bpe_short(e, text, len, base);
    else bpe_long(e, text, len, base);
}

/* A cursor over characters for the pre-tokenizers: class and length of the character at i; class END behind the text. */
typedef enum { END, LETTER, NUMBER, BLANK, OTHER } Class;
static Class class_at(const char *text, size_t len, size_t i, size_t *n) {
    *n = 0;
    if (i >= len) return END;
    const unsigned char c = (unsigned char)text[i];
    if (c < 0x80) { /* most text: spare the tables */
        *n = 1;
        return (c | 32u) - (unsigned)'a' < 26u ? LETTER : c - (unsigned)'0' < 10u ? NUMBER : c == ' ' || c - 9u < 5u ? BLANK : OTHER;
    }
    uint32_t code;
    *n = utf8_decode(text + i, len - i, &code);
    const unsigned flags = unicode_flags(code);
    return flags & UNICODE_LETTER ? LETTER : flags & UNICODE_NUMBER ? NUMBER : flags & UNICODE_SPACE ? BLANK : OTHER;
}

/* Where the run of characters of this class that starts at i ends, or after `most` of them. */
static size_t run(const char *text, size_t len, size_t i, Class class, size_t most) {
    size_t n;
    for (; most > 0 && class_at(text, len, i, &n) == class; most--) i += n;
    return i;
}

static bool letter_is(const char *text, size_t len, size_t i, char lower, bool any_case) {
    return i < len && (text[i] == lower || (any_case && text[i] == lower - 32));
}

/* The length of 's 't 'm 'd 'll 've 're at i, 0 if none; any_case also takes capitals, and U+017F for s as case folding does. */
static size_t contraction(const char *text, size_t len, size_t i, bool any_case) {
    if (text[i] != '\'') return 0;
    for (const char *c = "stmd"; *c; c++)
        if (letter_is(text, len, i + 1, *c, any_case)) return 2;
    if (any_case && len - i > 2 && memcmp(text + i + 1, "\xC5\xBF", 2) == 0) return 3;
    static const char pairs[3][2] = {{'l', 'l'}, {'v', 'e'}, {'r', 'e'}};
    for (int p = 0; p < 3; p++)
        if (letter_is(text, len, i + 1, pairs[p][0], any_case) && letter_is(text, len, i + 2, pairs[p][1], any_case)) return 3;
    return 0;
}

/* White space from i: all of it at the end of the text; else all but its last character, which may belong to what follows; one alone stays. */
static size_t blanks(const char *text, size_t len, size_t i) {
    const size_t end = run(text, len, i, BLANK, SIZE_MAX);
    if (end == len) return end;
    size_t last = end;
    while (last > i && ((unsigned char)text[--last] & 0xC0) == 0x80) {}
    return last > i ? last : end;
}

/* '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t split_gpt2(const char *text, size_t len, size_t i) {
    size_t n = contraction(text, len, i, false), skip = text[i] == ' ' ? 1 : 0;
    if (n) return i + n;
    const Class class = class_at(text, len, i + skip, &n);
    return class == END || class == BLANK ? blanks(text, len, i) : run(text, len, i + skip, class, SIZE_MAX);
}

static bool is_line_break(const char *text, size_t len, size_t i) { return i < len && (text[i] == '\n' || text[i] == '\r'); }

/* '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s */
static size_t split_cl100k(const char *text, size_t len, size_t i) {
    size_t n, m, end = contraction(text, len, i, true);
    if (end) return i + end;
    const Class class = class_at(text, len, i, &n);
    if (class == LETTER) return run(text, len, i, LETTER, SIZE_MAX);
    if (class == NUMBER) return run(text, len, i, NUMBER, 3);
    if (!is_line_break(text, len, i) && class_at(text, len, i + n, &m) == LETTER) return run(text, len, i + n, LETTER, SIZE_MAX);
    const size_t skip = text[i] == ' ' ? 1 : 0;
    if (class_at(text, len, i + skip, &m) == OTHER) {
        for (end = run(text, len, i + skip, OTHER, SIZE_MAX); is_line_break(text, len, end);) end++;
        return end;
    }
    end = run(text, len, i, BLANK, SIZE_MAX);
    if (end == len) return end;
    for (size_t j = end; j > i; j--)
        if (is_line_break(text, len, j - 1)) return j;
    return blanks(text, len, i);
}

static void encode_bpe(Encoder *e, const char *text, size_t len, size_t base) {
    for (size_t i = 0, end; i < len; i = end) {
        end = e->t->split == SPLIT_CL100K ? split_cl100k(text, len, i) : split_gpt2(text, len, i);
        bpe_word(e, text + i, end - i, base + i);
    }
}

/* ---- encoding: added tokens first, the text between them by kind ---- */

/* The longest added token that begins exactly at i, or NULL. */
static const Added *added_at(const Tokenizer *t, const char *text, size_t len, size_t i) {
    if (!t->begins_added[(unsigned char)text[i]]) return NULL;
    for (size_t a = 0; a < t->n_added; a++)
        if (t->added[a].len <= len - i && memcmp(t->added[a].text, text + i, t->added[a].len) == 0) return &t->added[a];
    return NULL;
}

bool tokenizer_find_added(const Tokenizer *t, const char *text, size_t len, size_t *at, Slice *token) {
    for (size_t i = 0; i < len; i++) {
        const Added *a = added_at(t, text, len, i);
        if (a) return *at = i, *token = (Slice){a->text, a->len}, true;
    }
    return false;
}

static void encode_between(Encoder *e, const char *text, size_t from, size_t to) {
    if (from >= to) return;
    if (e->t->kind == TOK_WORDPIECE) encode_wordpiece(e, text + from, to - from, from);
    else if (e->t->kind == TOK_UNIGRAM) encode_unigram(e, text + from, to - from, from);
    else encode_bpe(e, text + from, to - from, from);
}

static size_t blank_before(const char *text, size_t from, size_t i) {
    while (i > from) {
        size_t j = i - 1, n;
        while (j > from && ((unsigned char)text[j] & 0xC0) == 0x80) j--;
        if (class_at(text, i, j, &n) != BLANK) break;
        i = j;
    }
    return i;
}

bool tokenizer_encode(const Tokenizer *t, const char *text, size_t len, unsigned flags, Pieces *out, Error *err) {
    size_t bad, done = 0;
    if (!utf8_valid(text, len, &bad)) return fail(err, BAD_INPUT, "the text is not UTF-8: byte %zu", bad);
    drop_unknown(out);
    Encoder e = {.t = t, .plain = !(flags & TOK_ADDED), .out = out};
    for (size_t i = 0; !e.plain && i < len;) {
        const Added *a = added_at(t, text, len, i);
        if (!a) {
            i++;
            continue;
        }
        const size_t start = a->lstrip ? blank_before(text, done, i) : i;
        size_t end = i + a->len;
        if (a->rstrip) end = run(text, len, end, BLANK, SIZE_MAX);
        encode_between(&e, text, done, start);
        push(out, a->id, start, end);
        i = done = end;
    }
    encode_between(&e, text, done, len);
    encoder_free(&e);
    return true;
}

bool tokenizer_count(const Tokenizer *t, const char *text, size_t len, size_t *n, Error *err) {
    Pieces p = {0};
    bool ok = tokenizer_encode(t, text, len, TOK_PLAIN, &p, err);
    *n = p.n;
    pieces_free(&p);
    return ok;
}

/* ---- back to text ---- */

static void replace_all(Bytes *b, size_t from, const char *what, const char *with) {
    const size_t n = strlen(what), m = strlen(with); /* never longer than `what` */
    size_t out = from;
    for (size_t i = from; i < b->len;) {
        bool here = b->len - i >= n && memcmp(b->at + i, what, n) == 0;
        memmove(b->at + out, here ? with : b->at + i, here ? m : 1);
        out += here ? m : 1;
        i += here ? n : 1;
    }
    b->len = out;
}

/* BERT's decoder: a blank before each piece but the first, "##" glued; with clean-up, English spacing mended within each piece. */
static void join_wordpiece(const Tokenizer *t, const Slice *piece, size_t n, Bytes *out) {
    static const char *const mend[][2] = {{" .", "."},     {" ?", "?"},     {" !", "!"},          {" ,", ","},   {" ' ", "'"},  {" n't", "n't"},
                                          {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (size_t i = 0; i < n; i++) {
        const size_t from = out->len;
        const bool glued = i && piece[i].len >= 2 && memcmp(piece[i].at, "##", 2) == 0;
        if (i && !glued) bytes_add(out, " ", 1);
        bytes_add(out, piece[i].at + (glued ? 2 : 0), piece[i].len - (glued ? 2 : 0));
        for (size_t m = 0; t->clean_up && m < sizeof mend / sizeof *mend; m++) replace_all(out, from, mend[m][0], mend[m][1]);
    }
}

/* U+2581 is a blank, in the first piece nothing. */
static void join_unigram(const Slice *piece, size_t n, Bytes *out) {
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < piece[i].len;) {
            const bool mark = piece[i].len - j >= 3 && memcmp(piece[i].at + j, "\xE2\x96\x81", 3) == 0;
            if (!mark) bytes_add(out, piece[i].at + j, 1);
            else if (i) bytes_add(out, " ", 1);
            j += mark ? 3 : 1;
        }
}

/* How many bytes of a broken sequence make one U+FFFD: as many as could still have become a character (Unicode 3.9, maximal subpart). */
static size_t broken_length(const char *text, size_t len) {
    const unsigned char *s = (const unsigned char *)text;
    const size_t need = s[0] >= 0xC2 && s[0] < 0xF5 ? char_length(s[0]) : 1;
    size_t n = 1;
    for (; n < need && n < len; n++) {
        const unsigned low = n > 1 ? 0x80 : s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
        const unsigned high = n > 1 ? 0xBF : s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
        if (s[n] < low || s[n] > high) break;
    }
    return n;
}

static void join_bpe(const Tokenizer *t, const Slice *piece, size_t n, Bytes *out) {
    Bytes raw = {0};
    for (size_t i = 0; i < n; i++)
        if (!piece_bytes(t, piece[i].at, piece[i].len, &raw)) bytes_add(&raw, piece[i].at, piece[i].len);
    for (size_t i = 0; i < raw.len;) {
        uint32_t code;
        size_t m = utf8_decode(raw.at + i, raw.len - i, &code);
        if (m) bytes_add(out, raw.at + i, m);
        else bytes_text(out, "\xEF\xBF\xBD");
        i += m ? m : broken_length(raw.at + i, raw.len - i);
    }
    bytes_free(&raw);
}

void tokenizer_join(const Tokenizer *t, const Slice *piece, size_t n, Bytes *out) {
    bytes_add(out, "", 0);
    if (t->kind == TOK_WORDPIECE) join_wordpiece(t, piece, n, out);
    else if (t->kind == TOK_UNIGRAM) join_unigram(piece, n, out);
    else join_bpe(t, piece, n, out);
    out->at[out->len] = 0;
}

bool tokenizer_decode(const Tokenizer *t, const uint32_t *id, size_t n, Bytes *out, Error *err) {
    Slice *piece = mem_new(n, sizeof *piece);
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++) {
        piece[i].at = tokenizer_piece(t, id[i], &piece[i].len);
        if (!piece[i].at) ok = fail(err, BAD_INPUT, "there is no piece %lu: the vocabulary has %zu", (unsigned long)id[i], t->size);
    }
    if (ok) tokenizer_join(t, piece, n, out);
    free(piece);
    return ok;
}
