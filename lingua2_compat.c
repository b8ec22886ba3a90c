/* lingua2_compat.c - compression as the Python package llmlingua 0.2.2 does it, to the character: its quirks are reproduced one by one, and what
 * it raises is an error here. Function names are the package's where it has one.
 *
 *   text -> force tokens as [NEWi] -> chunks, as text again -> pieces -> encoder -> words -> percentile per chunk -> the tokenizer's own decoder
 */
#include "lingua2.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unicode.h"

/* ==== words and thresholds, as the package has them ================================================================================ */

/* str.replace(what, with), an empty `what` standing between all characters. */
static void replace(Bytes *text, const Bytes *what, const Bytes *with) {
    size_t at = what->len ? find(text->at, text->len, 0, what->at, what->len) : 0, done = 0;
    if (what->len && at == text->len) return;
    Bytes out = {0};
    while (at < text->len) {
        const unsigned char lead = (unsigned char)text->at[at];
        bytes_add(&out, text->at + done, at - done);
        bytes_add(&out, with->at, with->len);
        done = at + what->len;
        at = what->len ? find(text->at, text->len, done, what->at, what->len) : at + (lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4);
    }
    bytes_add(&out, text->len > done ? text->at + done : "", text->len - done);
    if (what->len == 0) bytes_add(&out, with->at, with->len);
    bytes_free(text);
    *text = out;
}


/* What the package does before it compresses: [NEW0]..[NEW99] become pieces. */
void add_new_tokens(Model *m) {
    for (uint32_t i = 0; m->tokenizer && i < NEW_TOKENS; i++) {
        char name[16];
        int len = snprintf(name, sizeof name, "[NEW%lu]", (unsigned long)i);
        tokenizer_add(m->tokenizer, name, (size_t)len, m->new_token_base + i);
    }
}
/* token_map: force tokens that are not exactly one piece stand in the text as [NEWi], i their index in the list. */
typedef struct {
    Texts from, to;
} TokenMap;

static void token_map_free(TokenMap *map) {
    texts_free(&map->from);
    texts_free(&map->to);
}

static bool token_map_make(const Model *m, const Texts *force, TokenMap *map, Error *err) {
    if (force->n > NEW_TOKENS) return fail(err, BAD_INPUT, "%zu force tokens: at most %d are possible", force->n, NEW_TOKENS);
    for (size_t i = 0; i < force->n; i++) {
        Pieces p = {0};
        const Bytes *t = &force->at[i];
        bool ok = tokenizer_encode(m->tokenizer, t->len ? t->at : "", t->len, TOK_ADDED, &p, err);
        const size_t pieces = p.n;
        pieces_free(&p);
        if (!ok) return false;
        if (pieces == 1) continue;
        char name[16];
        int len = snprintf(name, sizeof name, "[NEW%zu]", i);
        size_t at = 0;
        while (at < map->from.n && !bytes_are(&map->from.at[at], t->at, t->len)) at++;
        if (at == map->from.n) {
            texts_add(&map->from, t->at, t->len);
            texts_add(&map->to, name, (size_t)len);
        } else { /* a repeated force token: the last index counts */
            bytes_free(&map->to.at[at]);
            bytes_add(&map->to.at[at], name, (size_t)len);
        }
    }
    return true;
}

static void map_back(const TokenMap *map, Bytes *text) {
    for (size_t i = 0; i < map->from.n; i++) replace(text, &map->to.at[i], &map->from.at[i]);
}

/* A probability as Python has it: np.float32, or float (1.0 of a forced piece, 0.0 of a repeated word). It decides the type that
 * thresholds are computed in. */
typedef struct {
    double value;
    bool python;
} Probability;

typedef struct {
    Bytes text;
    Probability p;
    float free_p; /* without forcing */
} MergedWord;

typedef struct {
    MergedWord *at;
    size_t n, cap;
} MergedWords;

static void words_free(MergedWords *w) {
    for (size_t i = 0; i < w->n; i++) bytes_free(&w->at[i].text);
    free(w->at);
    *w = (MergedWords){0};
}

/* sum(p) / len(p): float32 steps from the first np.float32 on; a list of Python floats alone stays one (and is all ones here).
 * Without forcing, the package counts the word's first piece again for each further one: prob_no_force is set where a word begins. */
typedef struct {
    float sum, free_sum, first, first_free;
    size_t n;
    bool python, first_python;
} Mean;

static void mean_add(Mean *mean, float p, bool forced) {
    const float value = forced ? 1 : p;
    if (mean->n++ == 0) *mean = (Mean){value, p, value, p, 1, forced, forced};
    else {
        mean->sum += value;
        mean->free_sum += mean->first_free; /* the package adds the word's first piece again, not this one */
        mean->python = mean->python && forced;
    }
}

static void mean_close(const Mean *mean, bool first, MergedWord *word) {
    const float n = (float)mean->n;
    word->p = first ? (Probability){(double)mean->first, mean->first_python} : (Probability){(double)(mean->sum / n), mean->python};
    word->free_p = first ? mean->first_free : mean->free_sum / n;
}

/* get_pure_token: BERT's lstrip("##") takes all leading '#', XLM-R's all leading U+2581. */
static Slice pure_token(Family family, Slice t) {
    const char *mark = family == FAMILY_BERT ? "#" : "\xE2\x96\x81";
    const size_t n = strlen(mark);
    while (t.len >= n && memcmp(t.at, mark, n) == 0) t.at += n, t.len -= n;
    return t;
}

/* is_begin_of_new_word. XLM-R's test for punctuation is `token in string.punctuation`: any stretch of that string. */
static bool begins_word(Family family, Slice t, const Request *r, const TokenMap *map) {
    static const char punctuation[] = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
    const Slice test = family == FAMILY_BERT ? pure_token(family, t) : t;
    if (texts_hold(&r->force_tokens, test.at, test.len) || texts_hold(&map->to, test.at, test.len)) return true;
    if (family == FAMILY_BERT) return !(t.len >= 2 && memcmp(t.at, "##", 2) == 0);
    for (size_t i = 0; i + t.len < sizeof punctuation; i++)
        if (memcmp(punctuation + i, t.at, t.len) == 0) return true;
    return t.len >= 3 && memcmp(t.at, "\xE2\x96\x81", 3) == 0;
}

/* self.special_tokens: those named in the tokenizer's special_tokens_map. "[PAD]" is not among BERT's (its id 0 counts as missing). */
static bool is_special(const Model *m, uint32_t id) {
    static const char *const bert[] = {"unk", "cls", "sep", "mask"}, *const xlmr[] = {"unk", "cls", "sep", "mask", "pad", "bos", "eos"};
    const bool b = m->family == FAMILY_BERT;
    for (size_t i = 0; i < (b ? 4u : 7u); i++)
        if (tokenizer_special(m->tokenizer, b ? bert[i] : xlmr[i]) == (int64_t)id) return true;
    return false;
}

/* __merge_token_to_word and __token_prob_to_word_prob. */
static bool merge_words(const Model *m, const Chunk *c, const Request *r, const TokenMap *map, MergedWords *words, Error *err) {
    const bool first = bytes_are(&r->token_to_word, "first", 5);
    Mean mean = {0};
    if (!first && !bytes_are(&r->token_to_word, "mean", 4)) return fail(err, BAD_INPUT, "token_to_word is '%.50s': mean and first are possible", r->token_to_word.at);
    for (size_t i = 0; i < c->T; i++) {
        Slice t;
        t.at = tokenizer_piece(m->tokenizer, c->id[i], &t.len);
        if (!t.at || is_special(m, c->id[i])) continue;
        const Slice pure = pure_token(m->family, t);
        const bool digit = r->force_reserve_digit;
        if (begins_word(m->family, t, r, map)) {
            Bytes text = {0};
            bytes_add(&text, t.at, t.len);
            map_back(map, &text);
            if (words->n) mean_close(&mean, first, &words->at[words->n - 1]);
            if (words->n == words->cap) {
                words->cap = words->cap ? words->cap * 2 : 64;
                words->at = mem_resize(words->at, words->cap, sizeof *words->at);
            }
            const bool forced = texts_hold(&r->force_tokens, pure.at, pure.len) || texts_hold(&map->to, pure.at, pure.len);
            words->at[words->n++] = (MergedWord){.text = text};
            mean = (Mean){0};
            mean_add(&mean, c->p[i], forced || (digit && has_digit(text.at, text.len)));
        } else {
            if (words->n == 0) return fail(err, BAD_INPUT, "a chunk begins with the piece '%.*s', which begins no word: the package fails here too", (int)t.len, t.at);
            bytes_add(&words->at[words->n - 1].text, pure.at, pure.len);
            mean_add(&mean, c->p[i], digit && has_digit(t.at, t.len));
        }
    }
    if (words->n) mean_close(&mean, first, &words->at[words->n - 1]);
    return true;
}

/* The threshold over words, each repeated as often as `weight` says (NULL: once). q: Python's int(...) of a rate. */
static bool word_threshold(const MergedWords *words, const size_t *weight, double q, double *threshold, Error *err) {
    size_t n = 0, at = 0;
    bool single = true;
    if (!(q >= 0 && q <= 100)) return fail(err, BAD_INPUT, "a rate must be above 0: this one asks for percentile %.0f, possible are 0 to 100", q);
    for (size_t i = 0; i < words->n; i++) n += weight ? weight[i] : 1;
    if (n == 0) return fail(err, BAD_INPUT, "a chunk of the text has no word that the vocabulary knows, so there is no threshold");
    double *value = mem_new(n, sizeof *value);
    for (size_t i = 0; i < words->n; i++)
        for (size_t c = weight ? weight[i] : 1; c > 0; c--) {
            value[at++] = words->at[i].p.value;
            single = single && !words->at[i].p.python;
        }
    *threshold = percentile(value, n, (int)q, single);
    free(value);
    return true;
}

/* ==== compression, as the package does it ========================================================================================= */

/* What a compression works with. */
typedef struct {
    const Model *m;
    const Tokenizer *counter; /* cl100k_base */
    const Request *r;
    TokenMap map;
} Job;

/* Chunks of all contexts as text, and where each context's begin. */
typedef struct {
    Texts text;
    size_t *first; /* [n + 1] */
    size_t n;
} Chunks;

static void chunks_free(Chunks *c) {
    texts_free(&c->text);
    free(c->first);
    *c = (Chunks){0};
}

/* len(encoding.encode(text)), which refuses special tokens in the text. */
static bool count_tokens(const Tokenizer *counter, const Bytes *text, size_t *n, Error *err) {
    size_t at, count;
    Slice token;
    if (tokenizer_find_added(counter, text->len ? text->at : "", text->len, &at, &token))
        return fail(err, BAD_INPUT, "byte %zu: '%.*s' is a special token of cl100k_base, which the package refuses to count", at, (int)token.len, token.at);
    if (!tokenizer_count(counter, text->len ? text->at : "", text->len, &count, err)) return false;
    *n += count;
    return true;
}

/* The string of piece i as the reference's tokenize() gives it: an added token that swallowed white space ("<mask>" of XLM-R) has it in its

 * name, which the vocabulary then lacks. */
Slice piece_string(const Tokenizer *t, const Bytes *text, const Pieces *p, size_t i) {
    const Slice s = pieces_string(p, t, i);
    const size_t len = p->end[i] - p->start[i];
    if (len > s.len && (int64_t)p->id[i] == tokenizer_special(t, "mask")) return (Slice){text->at + p->start[i], len};
    return s;
}

/* __chunk_context: at most 511 pieces, cut after the last chunk-end piece (never the first of the chunk). */
static bool chunk_context(const Job *job, const Bytes *context, const Texts *ends, Texts *out, Error *err) {
    enum { MAX_LEN = MAX_PIECES - 2 };
    const Tokenizer *t = job->m->tokenizer;
    Pieces p = {0};
    if (!tokenizer_encode(t, context->at, context->len, TOK_ADDED, &p, err)) return pieces_free(&p), false;
    Slice *piece = mem_new(p.n, sizeof *piece);
    for (size_t i = 0; i < p.n; i++) piece[i] = piece_string(t, context, &p, i);
    for (size_t st = 0; st < p.n;) {
        size_t ed = p.n - 1;
        if (st + MAX_LEN <= p.n - 1) {
            ed = st + MAX_LEN;
            for (size_t e = ed; e > st; e--)
                if (texts_hold(ends, piece[e].at, piece[e].len)) {
                    ed = e;
                    break;
                }
        }
        Bytes chunk = {0};
        tokenizer_join(t, piece + st, ed + 1 - st, &chunk);
        texts_add(out, chunk.at, chunk.len);
        bytes_free(&chunk);
        st = ed + 1;
    }
    free(piece);
    pieces_free(&p);
    return true;
}

/* Count each context's tokens, put [NEWi] for the mapped force tokens, cut into chunks. */
static bool chunk_all(const Job *job, Chunks *chunks, size_t *origin_tokens, Error *err) {
    const Request *r = job->r;
    Texts ends = {0};
    bool ok = true;
    for (size_t i = 0; i < r->chunk_end_tokens.n; i++) texts_add(&ends, r->chunk_end_tokens.at[i].at, r->chunk_end_tokens.at[i].len);
    for (size_t i = 0; i < ends.n; i++) /* grows as it goes, as the package's list does */
        for (size_t k = 0; k < job->map.from.n; k++)
            if (bytes_are(&job->map.from.at[k], ends.at[i].at, ends.at[i].len) && !texts_hold(&ends, job->map.to.at[k].at, job->map.to.at[k].len))
                texts_add(&ends, job->map.to.at[k].at, job->map.to.at[k].len);
    chunks->n = r->context.n;
    chunks->first = mem_new(chunks->n + 1, sizeof *chunks->first);
    for (size_t i = 0; ok && i < r->context.n; i++) {
        Bytes text = {0};
        ok = count_tokens(job->counter, &r->context.at[i], origin_tokens, err);
        bytes_add(&text, r->context.at[i].at, r->context.at[i].len);
        for (size_t k = 0; k < job->map.from.n; k++) replace(&text, &job->map.from.at[k], &job->map.to.at[k]);
        ok = ok && chunk_context(job, &text, &ends, &chunks->text, err);
        chunks->first[i + 1] = chunks->text.n;
        bytes_free(&text);
    }
    texts_free(&ends);
    return ok;
}

/* TokenClfDataset: [CLS] pieces [SEP], cut at 512; "[PAD]" in the text is masked by its name. For XLM-R the package asks for BERT's names
 * too, which its vocabulary lacks: all of them are <unk>. */
static bool dataset_item(const Model *m, const Bytes *text, Chunk *c, Error *err) {
    const int64_t unknown = tokenizer_special(m->tokenizer, "unk"), pad = tokenizer_id(m->tokenizer, "[PAD]", 5);
    const int64_t cls = tokenizer_id(m->tokenizer, "[CLS]", 5), sep = tokenizer_id(m->tokenizer, "[SEP]", 5);
    Pieces p = {0};
    if (!tokenizer_encode(m->tokenizer, text->len ? text->at : "", text->len, TOK_ADDED, &p, err)) return pieces_free(&p), false;
    for (size_t i = 0; i < p.n; i++) {
        const Slice name = piece_string(m->tokenizer, text, &p, i);
        if (name.len > pieces_string(&p, m->tokenizer, i).len) p.id[i] = (uint32_t)unknown;
    }
    const size_t all = p.n + 2 > MAX_PIECES ? MAX_PIECES : p.n + 2;
    c->id = mem_new(all, sizeof *c->id);
    c->T = all;
    for (size_t i = 0; i < all; i++) c->id[i] = i == 0 ? (uint32_t)(cls < 0 ? unknown : cls) : i <= p.n ? p.id[i - 1] : (uint32_t)(sep < 0 ? unknown : sep);
    pieces_free(&p);
    if (!chunk_positions(m, c, err)) return false;
    size_t kept = 0;
    for (size_t i = 0; i < all; i++)
        if (pad < 0 || c->id[i] != (uint32_t)pad) {
            c->id[kept] = c->id[i];
            c->position[kept++] = c->position[i];
        }
    c->T = kept;
    return true;
}

/* The words of the chunks from..to, with their probabilities: word[i] belongs to chunk from + i. */
static bool words_of_chunks(const Job *job, const Chunks *chunks, size_t from, size_t to, MergedWords *word, Error *err) {
    Chunk *c = mem_new(to - from, sizeof *c);
    bool ok = true;
    for (size_t i = from; ok && i < to; i++) ok = dataset_item(job->m, &chunks->text.at[i], &c[i - from], err);
    ok = ok && classify_chunks(job->m, c, to - from, err);
    for (size_t i = from; ok && i < to; i++) ok = merge_words(job->m, &c[i - from], job->r, &job->map, &word[i - from], err);
    for (size_t i = from; i < to; i++) chunk_free(&c[i - from]);
    free(c);
    return ok;
}

/* drop_consecutive, before the threshold: a forced word equal to the forced word before it, nothing above the percentile between them, gets 0. */
static bool zero_repeated(const Job *job, MergedWords *words, double reduce_rate, Error *err) {
    double threshold;
    bool between = false;
    const Bytes *prev = NULL;
    if (!word_threshold(words, NULL, trunc(100 * reduce_rate), &threshold, err)) return false;
    for (size_t i = 0; i < words->n; i++) {
        MergedWord *w = &words->at[i];
        if (texts_hold(&job->r->force_tokens, w->text.at, w->text.len)) {
            if (between) between = false;
            else if (prev && bytes_are(prev, w->text.at, w->text.len)) w->p = (Probability){0, true};
            prev = &w->text;
        } else between = between || w->p.value > threshold;
    }
    return true;
}

/* Keep the words above the chunk's percentile; keep[i] for each word. */
static bool choose_words(const Job *job, MergedWords *words, double reduce_rate, bool *keep, Error *err) {
    const bool consecutive = job->r->drop_consecutive;
    if (consecutive && !zero_repeated(job, words, reduce_rate, err)) return false;
    size_t *weight = mem_new(words->n, sizeof *weight);
    double threshold = 0;
    bool ok = true;
    for (size_t i = 0; ok && i < words->n; i++) ok = count_tokens(job->counter, &words->at[i].text, &weight[i], err);
    ok = ok && word_threshold(words, weight, trunc(100 * reduce_rate + 1), &threshold, err);
    free(weight);
    const Bytes *last = NULL;
    for (size_t i = 0; ok && i < words->n; i++) {
        const MergedWord *w = &words->at[i];
        keep[i] = w->p.value > threshold || (threshold == 1 && w->p.value == threshold);
        if (keep[i] && consecutive && last && texts_hold(&job->r->force_tokens, w->text.at, w->text.len) && bytes_are(last, w->text.at, w->text.len)) keep[i] = false;
        if (keep[i]) last = &w->text;
    }
    return ok;
}

/* "word label", joined by word_sep; XLM-R's words without their leading U+2581. */
static void add_label(const Job *job, Bytes *labels, bool *any, Slice word, bool kept) {
    if (!job->r->return_word_label) return;
    if (*any) bytes_add(labels, job->r->word_sep.at, job->r->word_sep.len);
    *any = true;
    bytes_add(labels, word.at, word.len);
    bytes_add(labels, job->r->label_sep.at, job->r->label_sep.len);
    bytes_add(labels, kept ? "1" : "0", 1);
}

static Slice label_of(const Job *job, const Bytes *word) {
    const Slice s = {word->at, word->len};
    return job->m->family == FAMILY_XLMR ? pure_token(FAMILY_XLMR, s) : s;
}

/* One context through the token filter; its labels are appended. */
static bool compress_context(const Job *job, const Chunks *chunks, size_t context, double reduce_rate, Bytes *out, Bytes *labels, bool *any, Error *err) {
    const size_t from = chunks->first[context], to = chunks->first[context + 1];
    MergedWords *word = mem_new(to - from, sizeof *word);
    bool ok = words_of_chunks(job, chunks, from, to, word, err);
    for (size_t c = 0; ok && c < to - from; c++) {
        bool *keep = mem_new(word[c].n, sizeof *keep);
        Slice *kept = mem_new(word[c].n, sizeof *kept);
        size_t n = 0;
        ok = choose_words(job, &word[c], reduce_rate, keep, err);
        for (size_t i = 0; ok && i < word[c].n; i++) {
            if (keep[i]) kept[n++] = (Slice){word[c].at[i].text.at, word[c].at[i].text.len};
            add_label(job, labels, any, label_of(job, &word[c].at[i].text), keep[i]);
        }
        if (ok) tokenizer_join(job->m->tokenizer, kept, n, out);
        free(keep);
        free(kept);
    }
    for (size_t c = 0; c < to - from; c++) words_free(&word[c]);
    free(word);
    return ok;
}

/* re.findall(r'\b\w+\b|[<>=/!@#$%^&*()?":{}|\\`~;_+-]', text), each labelled as kept: the package's labels where nothing is dropped. */
static void label_all(const Job *job, const Bytes *text, Bytes *labels, bool *any) {
    for (size_t i = 0, n; i < text->len; i += n) {
        uint32_t code;
        size_t m;
        n = utf8_decode(text->at + i, text->len - i, &code);
        if (unicode_flags(code) & UNICODE_WORD)
            while (i + n < text->len && (m = utf8_decode(text->at + i + n, text->len - i - n, &code)) && (unicode_flags(code) & UNICODE_WORD)) n += m;
        else if (code == 0 || code >= 128 || !strchr("<>=/!@#$%^&*()?\":{}|\\`~;_+-", (char)code)) continue;
        add_label(job, labels, any, (Slice){text->at + i, n}, true);
    }
}

/* __compress of one context; reduce_rate 0 gives the chunks back as they are. */
static bool compress_one(const Job *job, const Chunks *chunks, size_t context, double reduce_rate, Result *out, bool *any, Error *err) {
    Bytes text = {0};
    bool ok = true;
    bytes_add(&text, "", 0);
    if (reduce_rate > 0) ok = compress_context(job, chunks, context, reduce_rate, &text, &out->labels, any, err);
    else
        for (size_t c = chunks->first[context]; c < chunks->first[context + 1]; c++) {
            Bytes chunk = {0};
            bytes_add(&chunk, chunks->text.at[c].at, chunks->text.at[c].len);
            map_back(&job->map, &chunk);
            label_all(job, &chunk, &out->labels, any);
            bytes_add(&text, chunk.at, chunk.len);
            bytes_free(&chunk);
        }
    if (ok) texts_add(&out->context, text.at, text.len);
    bytes_free(&text);
    return ok;
}

/* __get_context_prob: a context's score is the float32 mean of its words' probabilities without forcing. words[i]: of all its chunks. */
static bool context_score(const Job *job, const Chunks *chunks, size_t context, double *score, Texts *words, Error *err) {
    const size_t from = chunks->first[context], to = chunks->first[context + 1];
    MergedWords *word = mem_new(to - from, sizeof *word);
    bool ok = words_of_chunks(job, chunks, from, to, word, err);
    float sum = 0;
    size_t n = 0;
    for (size_t c = 0; c < to - from; c++) {
        for (size_t i = 0; ok && i < word[c].n; i++, n++) {
            const Slice label = label_of(job, &word[c].at[i].text);
            sum += word[c].at[i].free_p;
            texts_add(words, label.at, label.len);
        }
        words_free(&word[c]);
    }
    free(word);
    if (ok && n == 0) return fail(err, BAD_INPUT, "context %zu has no word that the vocabulary knows, so the context filter cannot score it", context);
    *score = (double)(sum / (float)n);
    return ok;
}

/* reserve[i]: contexts at or above the percentile of the scores, and the forced ones. words[i]: the words of each. */
static bool filter_contexts(const Job *job, const Chunks *chunks, size_t origin_tokens, bool *reserve, Texts *words, Error *err) {
    const double q = trunc(100 * (1 - context_rate(job->r, origin_tokens)));
    double *score = mem_new(chunks->n, sizeof *score), *sorted = mem_new(chunks->n, sizeof *sorted);
    bool ok = (origin_tokens > 0) || fail(err, BAD_INPUT, "the contexts hold no tokens");
    for (size_t i = 0; ok && i < chunks->n; i++) ok = context_score(job, chunks, i, &score[i], &words[i], err);
    if (ok && !(q >= 0 && q <= 100)) ok = fail(err, BAD_INPUT, "the context filter's rate must be from 0 to 1: this one asks for percentile %.0f", q);
    if (ok) {
        memcpy(sorted, score, chunks->n * sizeof *score);
        const double threshold = percentile(sorted, chunks->n, (int)q, true);
        for (size_t i = 0; i < chunks->n; i++) reserve[i] = score[i] >= threshold || is_forced_context(job->r, i);
    }
    free(score);
    free(sorted);
    return ok;
}

/* target_token as a rate of `tokens`. */
static bool target_rate(double target, size_t tokens, double *rate, Error *err) {
    if (tokens == 0) return fail(err, BAD_INPUT, "target_token is set, and the text has no tokens to reach it from");
    *rate = fmin(target / (double)tokens, 1);
    return true;
}

static bool compress_reserved(const Job *job, const Chunks *chunks, const bool *reserve, const Texts *words, double rate, Result *out, Error *err) {
    const double reduce_rate = job->r->use_token_level_filter && rate < 1 ? 1 - rate : 0; /* max(0, 1 - rate) */
    bool ok = true, any = false;
    for (size_t i = 0; ok && i < chunks->n; i++) {
        if (reserve[i]) ok = compress_one(job, chunks, i, reduce_rate, out, &any, err);
        else
            for (size_t k = 0; k < words[i].n; k++) add_label(job, &out->labels, &any, (Slice){words[i].at[k].at, words[i].at[k].len}, false);
    }
    for (size_t i = 0; ok && i < out->context.n; i++) ok = count_tokens(job->counter, &out->context.at[i], &out->compressed_tokens, err);
    if (ok && out->origin_tokens == 0 && out->compressed_tokens > 0) ok = fail(err, BAD_INPUT, "a text of no tokens became one of some: the package divides by zero here");
    return ok;
}

/* compress_prompt_llmlingua2. Errors: BAD_INPUT wherever the package raises, before or after work was done. */
bool compress_compat(const Model *m, const Tokenizer *counter, const Request *r, Result *out, Error *err) {
    Job job = {.m = m, .counter = counter, .r = r};
    Chunks chunks = {0};
    const bool filter = r->use_context_level_filter && r->context.n != 1;
    double rate = r->rate;
    *out = (Result){.has_labels = r->return_word_label};
    bool ok = m->tokenizer != NULL;
    if (!ok) *err = m->no_tokenizer;
    ok = ok && token_map_make(m, &r->force_tokens, &job.map, err) && chunk_all(&job, &chunks, &out->origin_tokens, err);
    bool *reserve = mem_new(r->context.n, sizeof *reserve);
    Texts *words = mem_new(r->context.n, sizeof *words);
    size_t reserved_tokens = 0;
    if (filter) {
        ok = ok && filter_contexts(&job, &chunks, out->origin_tokens, reserve, words, err);
        for (size_t i = 0; ok && i < r->context.n; i++)
            for (size_t c = chunks.first[i]; ok && reserve[i] && c < chunks.first[i + 1]; c++) ok = count_tokens(counter, &chunks.text.at[c], &reserved_tokens, err);
        if (ok && r->target_token >= 0) ok = target_rate(r->target_token, reserved_tokens, &rate, err);
    } else {
        for (size_t i = 0; i < r->context.n; i++) reserve[i] = true;
        if (ok && r->target_token > 0) ok = target_rate(r->target_token, out->origin_tokens, &rate, err);
    }
    ok = ok && compress_reserved(&job, &chunks, reserve, words, rate, out, err);
    for (size_t i = 0; i < r->context.n; i++) texts_free(&words[i]);
    free(words);
    free(reserve);
    chunks_free(&chunks);
    token_map_free(&job.map);
    if (!ok) result_free(out);
    return ok;
}
