/* tokenize_lines.c - the tokenizers under a loop, for comparisons and timing against the reference packages.
 *
 * usage: tokenize_lines MODEL encode|added|time|crc|decode|join < records > answers
 *   a record: u32 length, bytes; all numbers are u32, little-endian
 *   encode, added  text as plain text, or with added tokens matched -> u32 n, n times: id, start, end, length, string; n = 0xffffffff: refused
 *   crc            CRC-32 of what `added` answers
 *   time           the text of all records n times over, nothing written but the pieces and seconds of the best of 5 runs, as text
 *   decode         ids -> u32 length, text
 *   join           pieces, each u32 length and bytes -> u32 length, text */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../tokenizer.h"

static void add32(Bytes *b, size_t x) {
    const unsigned char four[4] = {(unsigned char)x, (unsigned char)(x >> 8), (unsigned char)(x >> 16), (unsigned char)(x >> 24)};
    bytes_add(b, four, 4);
}

static uint32_t get32(const char *at) {
    const unsigned char *p = (const unsigned char *)at;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* CRC-32 as in zlib, four bits at a time. */
static uint32_t crc32(const char *at, size_t len) {
    uint32_t table[16], crc = 0xffffffffu;
    for (uint32_t i = 0; i < 16; i++) {
        table[i] = i;
        for (int bit = 0; bit < 4; bit++) table[i] = table[i] & 1 ? table[i] >> 1 ^ 0xedb88320u : table[i] >> 1;
    }
    for (size_t i = 0; i < len; i++) {
        crc ^= (unsigned char)at[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

static void encode(const Tokenizer *t, const Bytes *text, unsigned flags, Pieces *p, Bytes *answer) {
    Error err;
    p->n = 0;
    if (!tokenizer_encode(t, text->at, text->len, flags, p, &err)) {
        add32(answer, 0xffffffffu);
        return;
    }
    add32(answer, p->n);
    for (size_t i = 0; i < p->n; i++) {
        const Slice s = pieces_string(p, t, i);
        add32(answer, p->id[i]);
        add32(answer, p->start[i]);
        add32(answer, p->end[i]);
        add32(answer, s.len);
        bytes_add(answer, s.at, s.len);
    }
}

static void decode(const Tokenizer *t, const Bytes *record, Bytes *text) {
    Error err;
    uint32_t *id = mem_new(record->len / 4, sizeof *id);
    for (size_t i = 0; i < record->len / 4; i++) id[i] = get32(record->at + 4 * i);
    if (!tokenizer_decode(t, id, record->len / 4, text, &err)) bytes_text(text, err.text);
    free(id);
}

static void join(const Tokenizer *t, const Bytes *record, Bytes *text) {
    Slice *piece = mem_new(record->len / 4, sizeof *piece);
    size_t n = 0;
    for (size_t i = 0; i < record->len; i += 4 + piece[n++].len) piece[n] = (Slice){record->at + i + 4, get32(record->at + i)};
    tokenizer_join(t, piece, n, text);
    free(piece);
}

static bool next_record(Bytes *record) {
    char head[4];
    if (fread(head, 1, 4, stdin) != 4) return false;
    record->len = get32(head);
    if (record->len + 1 > record->cap) record->at = mem_resize(record->at, record->cap = 2 * record->len + 64, 1);
    record->at[record->len] = 0;
    return fread(record->at, 1, record->len, stdin) == record->len;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void time_all(const Tokenizer *t) {
    Bytes record = {0}, all = {0};
    size_t n = 0, *end = NULL, pieces = 0;
    double best = 1e9;
    for (; next_record(&record); n++) {
        bytes_add(&all, record.at, record.len);
        if ((n & (n + 1)) == 0) end = mem_resize(end, 2 * n + 2, sizeof *end);
        end[n] = all.len;
    }
    for (int run = 0; run < 5; run++) {
        Pieces p = {0};
        Error err;
        const double start = seconds();
        pieces = 0;
        for (size_t i = 0; i < n; i++) {
            const size_t from = i ? end[i - 1] : 0;
            p.n = 0;
            tokenizer_encode(t, all.at + from, end[i] - from, TOK_ADDED, &p, &err);
            pieces += p.n;
        }
        const double took = seconds() - start;
        if (took < best) best = took;
        pieces_free(&p);
    }
    printf("%zu %.6f\n", pieces, best);
    bytes_free(&record);
    bytes_free(&all);
    free(end);
}

int main(int argc, char **argv) {
    Weights *w = NULL;
    Tokenizer *t = NULL;
    Error err;
    Pieces p = {0};
    Bytes record = {0}, answer = {0}, text = {0};
    if (argc != 3 || !weights_open(&w, argv[1], &err) || !tokenizer_open(&t, w, &err)) {
        fprintf(stderr, "%s\n", argc == 3 ? err.text : "usage: tokenize_lines MODEL encode|added|time|crc|decode|join");
        return 2;
    }
    const char mode = argv[2][0];
    if (mode == 't') time_all(t);
    while (mode != 't' && next_record(&record)) {
        answer.len = text.len = 0;
        if (mode == 'd' || mode == 'j') {
            if (mode == 'd') decode(t, &record, &text);
            else join(t, &record, &text);
            add32(&answer, text.len);
            bytes_add(&answer, text.at, text.len);
        } else encode(t, &record, mode == 'e' ? TOK_PLAIN : TOK_ADDED, &p, &answer);
        if (mode == 'c') {
            const uint32_t crc = crc32(answer.at, answer.len);
            answer.len = 0;
            add32(&answer, crc);
        }
        fwrite(answer.at, 1, answer.len, stdout);
    }
    pieces_free(&p);
    bytes_free(&record);
    bytes_free(&answer);
    bytes_free(&text);
    tokenizer_close(t);
    weights_close(w);
    return fflush(stdout) != 0;
}
