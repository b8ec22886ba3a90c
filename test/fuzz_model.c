/* fuzz_model.c - damaged model files: each is opened, and if it opens, a text is encoded and compressed with it. Whatever the file holds, the program must
 * end in a result or an error: no crash, no hang, no leak, nothing the sanitizers object to.
 *
 * usage: fuzz_model FOLDER COUNT [FIRST]      cases FIRST (0) to FIRST+COUNT-1, each drawn from its own number; FOLDER: what make_fuzz_seeds.py wrote
 *
 * Cases run in children, a batch each; a batch that ends badly is run again case by case to name those that do. `fuzz_model FOLDER 1 N` runs
 * case N in this process and leaves its file in FOLDER/case.
 */
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "../lingua2.c"
#include "../lingua2_cli.c"
#include "../lingua2_compat.c"

enum { BATCH = 50, SECONDS = 5 };
#define COUNT_OF(a) (sizeof(a) / sizeof *(a))

static const char *const seed_names[] = {"wordpiece.model", "unigram.model", "bpe.model", "wordpiece.tokenizer", "unigram.tokenizer", "bpe.tokenizer", "cl100k.tokenizer"};
static const int seed_weight[] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 4, 5, 6}; /* models more often */

typedef struct {
    Bytes bytes;
    size_t header;             /* bytes of it */
    size_t begin[128], end[128], n; /* tensors, offsets into the file */
} Seed;

static Seed seeds[COUNT_OF(seed_names)];
static Weights *counter_weights;
static Tokenizer *counter;
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

/* A number in the header: its place and its length, 0 if none was met. */
static size_t find_number(const Bytes *b, size_t header, size_t *at) {
    for (int tries = 0; tries < 50; tries++) {
        size_t i = 8 + below(header), n = 0;
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
                                        "tokenizer.merges", "tokenizer.pieces", "tokenizer.trie_first", "tokenizer.trie_value", "tokenizer.scores", "tokenizer.charsmap", "new_token_base", "[MASK]", "<mask>"};
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

/* ---- what is done with a file ---- */

static const char *const texts[] = {
    "The foxes run, the fox ran. 12 do not!\nA \xEF\xBC\xA1 \xEF\xAC\x81 \xE2\x84\xA2 e\xCC\x81 [MASK] <mask> </s>", "", "   ", "xx", "\xF0\x9F\x99\x82\xF0\x9F\x8F\xBD \xE6\xBC\xA2\xE5\xAD\x97 a\xE2\x80\x8D\xCC\x88 \xC2\xA0 the", "the[NEW3]fox[SEP]es. \xED\x95\x9C\xEA\xB5\xAD \t\r\n 's 'll <|endoftext|>",
};

static void use_tokenizer(const Tokenizer *t) {
    Error err;
    Bytes out = {0};
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        const size_t len = strlen(texts[i]);
        for (unsigned flags = TOK_PLAIN; flags <= TOK_ADDED; flags++) {
            Pieces p = {0};
            Slice token;
            size_t at, n;
            if (tokenizer_encode(t, texts[i], len, flags, &p, &err)) {
                const Bytes text = {(char *)(uintptr_t)texts[i], len, 0};
                put_pieces(t, &text, &p, true, &out);
                out.len = 0;
                (void)tokenizer_decode(t, p.id, p.n, &out, &err);
            }
            pieces_free(&p);
            (void)tokenizer_find_added(t, texts[i], len, &at, &token);
            (void)tokenizer_count(t, texts[i], len, &n, &err);
        }
    }
    (void)tokenizer_id(t, "the", 3);
    for (uint32_t id = 0; id < 400; id++) {
        out.len = 0;
        (void)tokenizer_decode(t, &id, 1, &out, &err);
    }
    bytes_free(&out);
}

static void use_model(Model *m) {
    Error err;
    Bytes out = {0};
    Chunk whole = {0};
    add_new_tokens(m);
    if (m->tokenizer) use_tokenizer(m->tokenizer);
    const Bytes text = {(char *)(uintptr_t)texts[0], strlen(texts[0]), 0};
    if (encode_whole(m, &text, &whole, &err) && chunk_positions(m, &whole, &err) && classify_chunks(m, &whole, 1, &err)) put_probabilities(m, &whole, true, &out);
    chunk_free(&whole);
    for (int variant = 0; variant < 3; variant++) {
        Request r = request_new();
        Result result;
        default_ends(&r);
        for (size_t i = 0; i < (variant == 1 ? COUNT_OF(texts) - 1 : 1); i++) texts_add(&r.context, texts[i], strlen(texts[i]));
        texts_add(&r.force_tokens, "the fox", 7);
        texts_add(&r.force_tokens, "!", 1);
        r.drop_consecutive = r.force_reserve_digit = variant == 0;
        r.use_context_level_filter = variant == 1;
        r.return_word_label = variant != 0;
        r.rate = variant == 2 ? 1 : 0.6;
        if (compress_compat(m, counter, &r, &result, &err)) {
            put_result(&result, &out);
            result_free(&result);
        }
        request_free(&r);
    }
    bytes_free(&out);
}

static void run_case(size_t n) {
    Bytes b = make_case(n), info = {0};
    Error err = {0};
    Model m;
    Weights *w;
    Tokenizer *t;
    (void)remove(case_path); /* and written anew without file_write, which waits for the disk */
    FILE *f = fopen(case_path, "wb");
    const bool written = f && fwrite(b.at, 1, b.len, f) == b.len;
    if (f) fclose(f);
    if (!written) printf("%s cannot be written\n", case_path), exit(1);
    bytes_free(&b);
    alarm(SECONDS);
    if (model_open(&m, case_path, &err)) {
        use_model(&m);
        model_close(&m);
    } else if (err.code == DONE || !err.text[0]) abort(); /* an error must say something */
    if (weights_open(&w, case_path, &err)) {
        put_info(w, true, &info);
        bytes_free(&info);
        if (tokenizer_open(&t, w, &err)) use_tokenizer(t);
        tokenizer_close(t);
        weights_close(w);
    }
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

static void open_counting(const char *folder) {
    Bytes path = {0};
    Error err;
    bytes_printf(&path, "%s/cl100k.tokenizer", folder);
    if (!weights_open(&counter_weights, path.at, &err) || !tokenizer_open(&counter, counter_weights, &err)) printf("%s\n", err.text), exit(1);
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

int main(int argc, char **argv) {
    if (argc < 3) return printf("usage: fuzz_model FOLDER COUNT [FIRST]\n"), 2;
    const size_t count = strtoul(argv[2], NULL, 10), first = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
    size_t failed = 0;
    for (size_t i = 0; i < COUNT_OF(seeds); i++) load_seed(&seeds[i], argv[1], seed_names[i]);
    open_counting(argv[1]);
    snprintf(case_path, sizeof case_path, "%s/case", argv[1]);
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
    tokenizer_close(counter);
    weights_close(counter_weights);
    (void)commands, (void)put_commands;
    if (count > 1) (void)remove(case_path);
    printf("%zu passed, %zu failed\n", count - failed, failed);
    return failed != 0;
}
