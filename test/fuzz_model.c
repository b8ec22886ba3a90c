/* fuzz_model.c - damaged model files of lingua2: each is opened, and if it opens, a text is encoded and compressed with it (fuzz.h). */
#include "../lingua2.c"
#include "../lingua2_cli.c"
#include "../lingua2_compat.c"

static const char *const seed_names[] = {"wordpiece.model", "unigram.model", "bpe.model", "wordpiece.tokenizer", "unigram.tokenizer", "bpe.tokenizer", "cl100k.tokenizer"};
static const int seed_weight[] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 4, 5, 6}; /* models more often */

#include "fuzz.h"

static Weights *counter_weights;
static Tokenizer *counter;

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
            put_result(&r, &result, true, &out);
            result_free(&result);
        }
        bool ok;
        compress_batch(m, counter, &r, 1, &result, &err, &ok);
        if (ok) {
            put_result(&r, &result, false, &out);
            result_free(&result);
        }
        request_free(&r);
    }
    bytes_free(&out);
}

static void use_file(const char *path) {
    Bytes info = {0};
    Error err = {0};
    Model m;
    Weights *w;
    Tokenizer *t;
    if (model_open(&m, path, &err)) {
        use_model(&m);
        model_close(&m);
    } else if (err.code == DONE || !err.text[0]) abort(); /* an error must say something */
    if (weights_open(&w, path, &err)) {
        put_info(w, true, &info);
        bytes_free(&info);
        if (tokenizer_open(&t, w, &err)) use_tokenizer(t);
        tokenizer_close(t);
        weights_close(w);
    }
}

static void open_counting(const char *folder) {
    Bytes path = {0};
    Error err;
    bytes_printf(&path, "%s/cl100k.tokenizer", folder);
    if (!weights_open(&counter_weights, path.at, &err) || !tokenizer_open(&counter, counter_weights, &err)) printf("%s\n", err.text), exit(1);
    bytes_free(&path);
}

int main(int argc, char **argv) {
    if (argc < 3) return printf("usage: fuzz_model FOLDER COUNT [FIRST]\n"), 2;
    open_counting(argv[1]);
    const int code = fuzz(argv[1], strtoul(argv[2], NULL, 10), argc > 3 ? strtoul(argv[3], NULL, 10) : 0);
    tokenizer_close(counter);
    weights_close(counter_weights);
    return code;
}
