/* tokenize_lines.c - the tokenizers under a loop, for comparisons and timing against the reference packages.
 *
 * usage: tokenize_lines MODEL plain|added < records      a record: u32 length (little-endian), bytes
 * Writes per record u32 n, then n times u32 id, start, end; n = 0xffffffff where the text was refused. */
#include <stdio.h>
#include <string.h>

#include "../tokenizer.h"

static void put(uint32_t x) {
    unsigned char b[4] = {(unsigned char)x, (unsigned char)(x >> 8), (unsigned char)(x >> 16), (unsigned char)(x >> 24)};
    fwrite(b, 1, 4, stdout);
}

int main(int argc, char **argv) {
    Weights *w = NULL;
    Tokenizer *t = NULL;
    Error err;
    Pieces p = {0};
    Bytes text = {0};
    unsigned char head[4];
    if (argc != 3 || !weights_open(&w, argv[1], &err) || !tokenizer_open(&t, w, &err)) {
        fprintf(stderr, "%s\n", argc == 3 ? err.text : "usage: tokenize_lines MODEL plain|added");
        return 2;
    }
    const unsigned flags = strcmp(argv[2], "added") == 0 ? TOK_ADDED : TOK_PLAIN;
    while (fread(head, 1, 4, stdin) == 4) {
        size_t len = (size_t)head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
        text.at = mem_resize(text.at, len + 1, 1);
        if (fread(text.at, 1, len, stdin) != len) return 1;
        p.n = 0;
        if (!tokenizer_encode(t, text.at, len, flags, &p, &err)) {
            put(0xffffffffu);
            continue;
        }
        put((uint32_t)p.n);
        for (size_t i = 0; i < p.n; i++) put(p.id[i]), put((uint32_t)p.start[i]), put((uint32_t)p.end[i]);
    }
    pieces_free(&p);
    bytes_free(&text);
    tokenizer_close(t);
    weights_close(w);
    return 0;
}
