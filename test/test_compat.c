/* test_compat.c - the parts of lingua2_compat.c that stand alone, without a model: thresholds, word means, replacing, word beginnings.
 * Values of thresholds and means are those of numpy 2.4.6 (np.percentile, sum(p)/len(p) over np.float32), as bits. */
#include "../lingua2.c"
#include "../lingua2_compat.c"
#include "check.h"

static void test_percentile(void) {
    static const struct {
        bool single;
        int q;
        size_t n;
        double value[11], want;
    } cases[] = {
        {true, 0, 1, {0x1.3eecf8p-1}, 0x1.3eecf8p-1},
        {false, 1, 2, {1, 0x1.97239cp-1}, 0x1.98300da3d70a4p-1},
        {true, 21, 3, {0x1.e288d8p-1, 0x1.7ad3fcp-1, 0x1.d83afcp-1}, 0x1.a20e9ap-1},
        {false, 50, 5, {1, 0x1.dccc3p-2, 0x1.e2ffa6p-1, 0x1.4c4664p-1, 0x1.cd42d4p-1}, 0x1.cd42d4p-1},
        {true, 67, 7, {0x1.cfb10ep-4, 0x1.e053a2p-2, 0x1.f8fb2ep-3, 0x1.1667d2p-1, 0x1.25db9ep-1, 0x1.adb9ccp-7, 0x1.bbdcd6p-3}, 0x1.e1db3cp-2},
        {false, 0, 2, {1, 0x1.30e1bap-3}, 0x1.30e1bap-3},
        {true, 1, 3, {0x1.60db7ep-1, 0x1.fe52fap-1, 0x1.4acff6p-3}, 0x1.606cb8p-3},
        {false, 21, 5, {1, 0x1.f930ap-1, 0x1.112afp-1, 0x1.9fa11cp-2, 0x1.e610bcp-3}, 0x1.84038cf5c28f6p-2},
        {true, 50, 7, {0x1.301b8ep-1, 0x1.a71034p-1, 0x1.d299ep-2, 0x1.afe124p-2, 0x1.c85a88p-5, 0x1.d5070ap-1, 0x1.0c0d6p-5}, 0x1.d299ep-2},
        {false, 67, 11, {1, 0x1.ad469ap-1, 0x1.0b693ep-3, 0x1.769cb8p-1, 0x1.e64cp-1, 0x1.42c3b2p-1, 0x1.9375fcp-1, 0x1.b4c24cp-4, 0x1.bcfc0ap-2, 0x1.31a78cp-3, 0x1.b080f6p-1}, 0x1.a588043333333p-1},
        {true, 43, 3, {0x1.4f04a2p-5, 0x1.1bc956p-1, 0x1.3bb98ep-1}, 0x1.edf9bcp-2},
        {true, 68, 5, {0x1.0dd1cap-1, 0x1.25d300p-1, 0x1.4881d4p-1, 0x1.979d04p-1, 0x1.c13dacp-1}, 0x1.8176aep-1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double value[11];
        memcpy(value, cases[i].value, sizeof value);
        const double got = percentile(value, cases[i].n, cases[i].q, cases[i].single);
        CHECK(memcmp(&got, &cases[i].want, sizeof got) == 0, "case %zu: %a, numpy has %a", i, got, cases[i].want);
    }
}

static void test_mean(void) {
    static const float p[3] = {0.1f, 0.7f, 0.3f};
    const struct {
        bool forced[3], first;
        double want;
        bool python;
    } cases[] = {{{false, false, false}, false, 0x1.777778p-2, false},
                 {{false, true, false}, false, 0x1.ddddep-2, false},
                 {{true, true, true}, false, 1, true},
                 {{true, false, false}, true, 1, true},
                 {{false, true, true}, true, (double)0.1f, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Mean mean = {0};
        MergedWord word = {0};
        for (size_t k = 0; k < 3; k++) mean_add(&mean, p[k], cases[i].forced[k]);
        mean_close(&mean, cases[i].first, &word);
        CHECK(word.p.value == cases[i].want && word.p.python == cases[i].python, "case %zu: %a, python float %d", i, word.p.value, word.p.python);
        CHECK(word.free_p == (cases[i].first ? 0.1f : (0.1f + 0.1f + 0.1f) / 3), "case %zu: without forcing %a", i, (double)word.free_p);
    }
}

static Bytes text_of(const char *text) {
    Bytes b = {0};
    bytes_text(&b, text);
    return b;
}

static void test_replace(void) {
    static const char *const cases[][4] = {{"a\nb\n", "\n", "[NEW0]", "a[NEW0]b[NEW0]"}, {"aaaa", "aa", "b", "bb"}, {"abc", "", "-", "-a-b-c-"},
                                           {"", "", "-", "-"}, {"", "a", "-", ""}, {"h\xC3\xA9", "", ".", ".h.\xC3\xA9."}, {"abab", "ab", "", ""},
                                           {"xaab", "aab", "y", "xy"}, {"ab", "abc", "y", "ab"}, {"aab", "ab", "", "a"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Bytes text = text_of(cases[i][0]), what = text_of(cases[i][1]), with = text_of(cases[i][2]);
        replace(&text, &what, &with);
        CHECK(bytes_are(&text, cases[i][3], strlen(cases[i][3])), "case %zu: \"%s\"", i, text.at ? text.at : "");
        bytes_free(&text);
        bytes_free(&what);
        bytes_free(&with);
    }
}

static void test_words(void) {
    static const struct {
        Family family;
        const char *piece;
        bool begins;
    } cases[] = {{FAMILY_BERT, "fox", true}, {FAMILY_BERT, "##es", false}, {FAMILY_BERT, "##ing", true}, {FAMILY_BERT, "#", true}, {FAMILY_BERT, "[NEW1]", true},
                 {FAMILY_XLMR, "\xE2\x96\x81" "fox", true}, {FAMILY_XLMR, "es", false}, {FAMILY_XLMR, "ing", true}, {FAMILY_XLMR, "()", true}, {FAMILY_XLMR, "./", true},
                 {FAMILY_XLMR, "--", false}, {FAMILY_XLMR, "...", false}, {FAMILY_XLMR, "'t", false}, {FAMILY_XLMR, "[NEW1]", true}, {FAMILY_XLMR, "[NEW2]", false}};
    Request r = request_new();
    TokenMap map = {0};
    texts_add(&r.force_tokens, "ing", 3);
    texts_add(&map.from, "New York", 8);
    texts_add(&map.to, "[NEW1]", 6);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const Slice piece = {cases[i].piece, strlen(cases[i].piece)};
        CHECK(begins_word(cases[i].family, piece, &r, &map) == cases[i].begins, "%s", cases[i].piece);
    }
    CHECK(pure_token(FAMILY_BERT, (Slice){"###a", 4}).len == 1 && pure_token(FAMILY_XLMR, (Slice){"\xE2\x96\x81\xE2\x96\x81" "a", 7}).len == 1, "leading marks");
    CHECK(has_digit("a\xD9\xA3", 3) && has_digit("x1", 2) && !has_digit("\xC2\xBD", 2) && !has_digit("ab", 2), "\\d: Arabic-Indic yes, one half no");
    token_map_free(&map);
    request_free(&r);
}

static void test_context_rate(void) {
    Request r = request_new();
    for (int i = 0; i < 4; i++) texts_add(&r.context, "x", 1);
    CHECK(context_rate(&r, 100) == 0.75, "rate 0.5 keeps (1 + rate) / 2 of the contexts: %g", context_rate(&r, 100));
    r.target_token = 10;
    CHECK(context_rate(&r, 100) == 0.2, "target_token 10 of 100 asks for 20: %g", context_rate(&r, 100));
    r.target_context = 3;
    CHECK(context_rate(&r, 100) == 0.75, "3 contexts of 4: %g", context_rate(&r, 100));
    r.context_level_target_token = 500;
    CHECK(context_rate(&r, 100) == 1, "at most all: %g", context_rate(&r, 100));
    request_free(&r);
}

int main(void) {
    test_percentile();
    test_mean();
    test_replace();
    test_words();
    test_context_rate();
    return check_end();
}
