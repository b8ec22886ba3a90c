/* fuzz.h - damaged files: how they are made from sound ones, and the loop that tries them. A fuzzer defines seed_names, seed_weight and
 * use_file, in which whatever the file holds must end in a result or an error: no crash, no hang, no leak, nothing the sanitizers object to.
 *
 * usage: fuzz_NAME FOLDER COUNT [FIRST]      cases FIRST (0) to FIRST+COUNT-1, each drawn from its own number; FOLDER: what make_fuzz_seeds.py wrote
 *
 * Cases run in children, a batch each; a batch that ends badly is run again case by case to name those that do. `fuzz_NAME FOLDER 1 N` runs
 * case N in this process and leaves its file in FOLDER/case.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "json.h"

enum { BATCH = 50, SECONDS = 5 };
#define COUNT_OF(a) (sizeof(a) / sizeof *(a))

static void use_file(const char *path); /* open it as what it may be, and use what opened */

typedef struct {
    Bytes bytes;
    size_t header;             /* bytes of it */
    size_t begin[128], end[128], n; /* tensors, offsets into the file */
} Seed;

static Seed seeds[COUNT_OF(seed_names)];
static char case_path[512];

/* ---- drawing ---- */

static uint64_t state;

static size_t below(size_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return n ? (size_t)(state >> 33) % n : 0;
}

/* ---- damage ---- */

static void splice(Bytes *b, size_t at, size_t cut, const char *text, size_t len) {
    Bytes out = {0};
    bytes_add(&out, b->at, at);
    bytes_add(&out, text, len);
    bytes_add(&out, b->at + at + cut, b->len - at - cut);
    bytes_free(b);
    *b = out;
}

/* Replace header bytes; mostly the length before the header follows, so that the damage is not all in that. */
static void splice_header(Bytes *b, size_t *header, size_t at, size_t cut, const char *text, size_t len) {
    splice(b, at, cut, text, len);
    *header = *header - cut + len;
    if (below(8))
        for (size_t i = 0; i < 8; i++) b->at[i] = (char)(unsigned char)((uint64_t)*header >> (8 * i));
}

/* Where the model's configuration begins in the header, or the header itself. */
static size_t find_config(const Bytes *b, size_t header) {
    for (size_t i = 8; i + 8 < 8 + header; i++)
        if (memcmp(b->at + i, "\"config\"", 8) == 0) return i;
    return 8;
}

/* A number in the header: its place and its length, 0 if none was met. Most stand in the tensors' shapes and offsets, so half are looked for in
 * the configuration. */
static size_t find_number(const Bytes *b, size_t header, size_t *at) {
    const size_t config = find_config(b, header), most = 8 + header - config;
    for (int tries = 0; tries < 50; tries++) {
        size_t i = below(2) ? config + below(most < 500 ? most : 500) : 8 + below(header), n = 0;
        while (i < 8 + header && !(b->at[i] >= '0' && b->at[i] <= '9')) i++;
        while (i > 8 && b->at[i - 1] >= '0' && b->at[i - 1] <= '9') i--;
        while (i + n < 8 + header && b->at[i + n] >= '0' && b->at[i + n] <= '9') n++;
        if (n) return *at = i, n;
    }
    return 0;
}

static void change_number(Bytes *b, size_t *header) {
    static const char *const odd[] = {"0", "1", "-1", "2", "3", "4", "8", "255", "512", "65536", "2147483647", "2147483648", "4294967295", "4294967296", "1073741824", "16777216", "9223372036854775807", "9223372036854775808",
                                      "18446744073709551615", "18446744073709551616", "1e3", "1e308", "0.5", "1e999", "null", "\"1\"", "[]", "{}", "true", "", "00"};
    size_t at, n = find_number(b, *header, &at);
    char text[64];
    if (!n) return;
    const unsigned long long old = strtoull(b->at + at, NULL, 10);
    const size_t how = below(8);
    if (how < 4) snprintf(text, sizeof text, "%s", odd[below(COUNT_OF(odd))]);
    else if (how == 4) snprintf(text, sizeof text, "%llu", old + 1);
    else if (how == 5) snprintf(text, sizeof text, "%llu", old - 1);
    else if (how == 6) snprintf(text, sizeof text, "%llu", old * 2);
    else snprintf(text, sizeof text, "%zu", below(below(2) ? 6 : 1000));
    splice_header(b, header, at, n, text, strlen(text));
}

/* One number in the place of another: offsets that overlap, shapes turned round. */
static void copy_number(Bytes *b, size_t *header) {
    size_t from, to, n = find_number(b, *header, &from), m = find_number(b, *header, &to);
    if (!n || !m) return;
    char text[64];
    snprintf(text, sizeof text, "%.*s", (int)(n < 60 ? n : 60), b->at + from);
    splice_header(b, header, to, m, text, strlen(text));
}

static void change_word(Bytes *b, size_t *header) {
    static const char *const words[] = {"bert", "xlm-roberta", "wordpiece", "unigram", "bpe", "gpt2", "cl100k", "gelu", "relu", "silu", "gelu_new", "true", "false", "null", "F32", "U8", "I64", "F64", "BertForTokenClassification",
                                        "XLMRobertaForTokenClassification", "tokenizer", "config", "lowercase", "split_white_space", "clean_up", "trim_offsets", "unk", "cls", "sep", "pad", "mask", "id", "text", "lstrip", "added", "special",
                                        "tokenizer.merges", "tokenizer.pieces", "tokenizer.trie_first", "tokenizer.trie_value", "tokenizer.scores", "tokenizer.charsmap", "new_token_base", "[MASK]", "<mask>", "GPT2LMHeadModel", "GPT2Model", "MendGPT2", "MendT5",
                                        "T5ForConditionalGeneration", "T5EncoderModel", "gated-gelu", "wte.weight", "wpe.weight", "shared.weight", "lm_head.weight", "init_prompt_weight",
                                        "adap_pooler.dense.weight", "encoder.block.0", "decoder.block.0", "SelfAttention", "EncDecAttention", "vectors", "llm_sha256"};
    for (int tries = 0; tries < 60; tries++) {
        const char *word = words[below(COUNT_OF(words))], *other = words[below(COUNT_OF(words))];
        const size_t len = strlen(word);
        size_t at = 8 + below(*header);
        while (at + len <= 8 + *header && memcmp(b->at + at, word, len)) at++;
        if (at + len > 8 + *header) continue;
        splice_header(b, header, at, len, other, strlen(other));
        return;
    }
}

/* Bytes of the header taken out, put in twice, or strewn with what JSON is made of. */
static void change_text(Bytes *b, size_t *header) {
    static const char *const bits[] = {"{", "}", "[", "]", ",", ":", "\"", "\\", "\\\\", "\\u0000", "\\ud800", "\xC3", "\xFF", " ", "-", "e", "[[[[[[[[", "\\\"", "null"};
    const size_t at = 8 + below(*header), most = 8 + *header - at, n = below(most < 40 ? most : 40), how = below(3);
    char copy[40];
    memcpy(copy, b->at + at, n);
    if (how == 0) splice_header(b, header, at, n, "", 0);
    else if (how == 1) splice_header(b, header, at, 0, copy, n);
    else {
        const char *bit = bits[below(COUNT_OF(bits))];
        splice_header(b, header, at, below(2) ? strlen(bit) <= most ? strlen(bit) : 0 : 0, bit, strlen(bit));
    }
}

static void flip_bits(Bytes *b, size_t from, size_t to) {
    for (size_t n = 1 + below(8); n > 0 && from < to; n--) {
        const size_t at = from + below(to - from);
        b->at[at] = (char)(b->at[at] ^ (1 << below(8)));
    }
}

/* Garbage in one tensor: single words, a stretch of one byte, or all of it. Most tensors of a model are weights, so half the time one of the last, the tokenizer's. */
static void change_tensor(Bytes *b, const Seed *seed) {
    static const uint32_t odd[] = {0, 1, 2, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FC00000, 0x7F800000, 0xFF800000, 0x00000001, 0x7F7FFFFF, 0x3F800000, 0x10000, 0x40000000};
    const size_t late = seed->n < 9 ? seed->n : 9, t = below(2) ? seed->n - 1 - below(late) : below(seed->n), from = seed->begin[t], size = seed->end[t] - from;
    if (size == 0 || seed->end[t] > b->len) return;
    const size_t how = below(4);
    if (how == 0) flip_bits(b, from, from + size);
    else if (how == 1) {
        const size_t at = below(size), n = 1 + below(size - at);
        memset(b->at + from + at, (int)below(256), n);
    } else {
        for (size_t n = how == 2 ? 1 + below(4) : size / 4; n > 0 && size >= 4; n--) {
            const size_t at = from + 4 * below(size / 4);
            const size_t kind = below(4);
            uint32_t word = 0;
            for (size_t i = 4; i > 0; i--) word = word << 8 | (unsigned char)b->at[at + i - 1];
            word = kind == 0 ? odd[below(COUNT_OF(odd))] : kind == 1 ? (uint32_t)below((size_t)1 << below(31)) : kind == 2 ? (uint32_t)below(100) : word + (uint32_t)below(3) - 1;
            for (size_t i = 0; i < 4; i++, word >>= 8) b->at[at + i] = (char)(unsigned char)word;
        }
    }
}

/* Case number n: a seed and one to three kinds of damage. */
static Bytes make_case(size_t n) {
    state = n * 0x9E3779B97F4A7C15u + 12345;
    for (int i = 0; i < 4; i++) below(2);
    const Seed *seed = &seeds[seed_weight[below(COUNT_OF(seed_weight))]];
    Bytes b = {0};
    size_t header = seed->header;
    bytes_add(&b, seed->bytes.at, seed->bytes.len);
    bool moved = false; /* after damage to the header the tensors lie elsewhere */
    for (size_t k = 1 + below(2) + (below(4) == 0); k > 0; k--) {
        const size_t how = below(18);
        const size_t before = header;
        if ((how < 6 || how > 15) && !moved) change_tensor(&b, seed);
        else if (how < 9) change_number(&b, &header);
        else if (how == 9) copy_number(&b, &header);
        else if (how < 12) change_word(&b, &header);
        else if (how == 12) change_text(&b, &header);
        else if (how == 13) flip_bits(&b, 8, 8 + header);
        else if (how == 14 && !below(4)) flip_bits(&b, 0, 8);
        else if (how == 15 && !below(4)) {
            b.len = below(b.len + 1);
            break;
        }
        moved = moved || header != before;
        if (b.len < 8 + header) break;
    }
    return b;
}

/* ---- one case ---- */

static void run_case(size_t n) {
    Bytes b = make_case(n);
    (void)remove(case_path); /* and written anew without file_write, which waits for the disk */
    FILE *f = fopen(case_path, "wb");
    const bool written = f && fwrite(b.at, 1, b.len, f) == b.len;
    if (f) fclose(f);
    if (!written) printf("%s cannot be written\n", case_path), exit(1);
    bytes_free(&b);
    alarm(SECONDS);
    use_file(case_path);
    alarm(0);
}

/* ---- seeds and batches ---- */

static void load_seed(Seed *s, const char *folder, const char *name) {
    Bytes path = {0};
    Error err;
    Json header;
    bytes_printf(&path, "%s/%s", folder, name);
    if (!file_read(path.at, &s->bytes, &err)) printf("%s\n", err.text), exit(1);
    for (size_t i = 0; i < 8; i++) s->header |= (size_t)(unsigned char)s->bytes.at[i] << (8 * i);
    if (!json_parse(s->bytes.at + 8, s->header, &header, &err)) printf("%s: %s\n", path.at, err.text), exit(1);
    for (size_t i = 0; i < header.len && s->n < COUNT_OF(s->begin); i++) {
        const Json *offsets = json_get(&header.item[i], "data_offsets");
        if (!offsets) continue;
        s->begin[s->n] = 8 + s->header + (size_t)offsets->item[0].number;
        s->end[s->n++] = 8 + s->header + (size_t)offsets->item[1].number;
    }
    json_free(&header);
    bytes_free(&path);
}

/* How a child that ran cases first..last-1 ended; 0 is well. */
static int run_child(size_t first, size_t last) {
    int status = 0;
    fflush(stdout);
    const pid_t child = fork();
    if (child < 0) printf("no child process\n"), exit(1);
    if (child == 0) {
        for (size_t n = first; n < last; n++) run_case(n);
        exit(0);
    }
    while (waitpid(child, &status, 0) < 0) {}
    return status;
}

static int fuzz(const char *folder, size_t count, size_t first) {
    size_t failed = 0;
    for (size_t i = 0; i < COUNT_OF(seeds); i++) load_seed(&seeds[i], folder, seed_names[i]);
    snprintf(case_path, sizeof case_path, "%s/case", folder);
    if (count == 1) run_case(first);
    for (size_t n = first, next; count > 1 && n < first + count; n = next) {
        next = n + BATCH < first + count ? n + BATCH : first + count;
        if (run_child(n, next) == 0) continue;
        size_t bad = 0;
        for (size_t k = n; k < next; k++) {
            const int status = run_child(k, k + 1);
            if (status == 0) continue;
            bad++;
            printf("case %zu: %s %d\n", k, WIFSIGNALED(status) ? "signal" : "exit code", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        }
        if (bad == 0) printf("cases %zu to %zu end badly together, each alone does not\n", n, next - 1);
        failed += bad ? bad : 1;
    }
    for (size_t i = 0; i < COUNT_OF(seeds); i++) bytes_free(&seeds[i].bytes);
    if (count > 1) (void)remove(case_path);
    printf("%zu passed, %zu failed\n", count - failed, failed);
    return failed != 0;
}
