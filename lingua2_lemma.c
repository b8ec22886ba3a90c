/* lingua2_lemma.c - see lingua2.h: the lemma of an English word by a few rules and two lists, so that `costs` in a compression finds `cost` in its
 * original. It need not be a linguist's: two forms of a word must come out equal, and different words mostly different.
 *
 *   possessive 's; plural -s -es -ies; -ing -ed -ied, with the doubled consonant or the lost -e put right; a list of irregular forms
 *
 * Left out on purpose: comparatives, derivations, other languages. `--lemmas FILE` takes what a better tool says.
 */
#include "lingua2.h"

#include <stdlib.h>
#include <string.h>

/* Form and lemma, sorted by the form. A form that stands for itself is one that the rules would spoil. */
static const char *const irregular[][2] = {
    {"according", "according"}, {"across", "across"}, {"afterwards", "afterwards"}, {"aged", "age"}, {"aging", "age"}, {"always", "always"}, {"am", "be"},
    {"are", "be"}, {"ate", "eat"}, {"became", "become"}, {"been", "be"}, {"began", "begin"}, {"begun", "begin"}, {"being", "be"}, {"besides", "besides"},
    {"best", "good"}, {"better", "good"}, {"bought", "buy"}, {"broke", "break"}, {"broken", "break"}, {"brought", "bring"}, {"built", "build"}, {"came", "come"},
    {"caught", "catch"}, {"ceiling", "ceiling"}, {"children", "child"}, {"chose", "choose"}, {"chosen", "choose"}, {"christmas", "christmas"}, {"darling", "darling"},
    {"dealt", "deal"}, {"did", "do"}, {"does", "do"}, {"doing", "do"}, {"done", "do"}, {"downstairs", "downstairs"}, {"drawn", "draw"}, {"drew", "draw"},
    {"driven", "drive"}, {"drove", "drive"}, {"during", "during"}, {"dying", "die"}, {"eaten", "eat"}, {"embed", "embed"}, {"evening", "evening"}, {"fallen", "fall"},
    {"feet", "foot"}, {"fell", "fall"}, {"felt", "feel"}, {"flew", "fly"}, {"flown", "fly"}, {"forgot", "forget"}, {"forgotten", "forget"}, {"fought", "fight"},
    {"found", "find"}, {"gave", "give"}, {"given", "give"}, {"goes", "go"}, {"going", "go"}, {"gone", "go"}, {"got", "get"}, {"gotten", "get"}, {"grew", "grow"},
    {"grown", "grow"}, {"had", "have"}, {"has", "have"}, {"heard", "hear"}, {"held", "hold"}, {"hid", "hide"}, {"hidden", "hide"}, {"hundred", "hundred"}, {"is", "be"},
    {"kept", "keep"}, {"knew", "know"}, {"known", "know"}, {"laid", "lay"}, {"led", "lead"}, {"left", "leave"}, {"lent", "lend"}, {"lost", "lose"}, {"lying", "lie"},
    {"made", "make"}, {"meant", "mean"}, {"men", "man"}, {"met", "meet"}, {"mice", "mouse"}, {"morning", "morning"}, {"news", "news"}, {"onwards", "onwards"},
    {"ourselves", "ourselves"}, {"owed", "owe"}, {"owing", "owe"}, {"paid", "pay"}, {"perhaps", "perhaps"}, {"ran", "run"}, {"risen", "rise"}, {"rose", "rise"},
    {"said", "say"}, {"sang", "sing"}, {"sat", "sit"}, {"saw", "see"}, {"seen", "see"}, {"sent", "send"}, {"series", "series"}, {"shoes", "shoe"}, {"shown", "show"},
    {"sibling", "sibling"}, {"slept", "sleep"}, {"sold", "sell"}, {"sometimes", "sometimes"}, {"sought", "seek"}, {"species", "species"}, {"spent", "spend"},
    {"spoke", "speak"}, {"spoken", "speak"}, {"stole", "steal"}, {"stolen", "steal"}, {"stood", "stand"}, {"sung", "sing"}, {"sworn", "swear"}, {"taken", "take"},
    {"taught", "teach"}, {"teeth", "tooth"}, {"themselves", "themselves"}, {"thought", "think"}, {"threw", "throw"}, {"thrown", "throw"}, {"told", "tell"},
    {"took", "take"}, {"torn", "tear"}, {"towards", "towards"}, {"tying", "tie"}, {"understood", "understand"}, {"upstairs", "upstairs"}, {"was", "be"},
    {"wedding", "wedding"}, {"went", "go"}, {"were", "be"}, {"whereas", "whereas"}, {"woke", "wake"}, {"women", "woman"}, {"won", "win"}, {"wore", "wear"},
    {"worn", "wear"}, {"worse", "bad"}, {"worst", "bad"}, {"written", "write"}, {"wrote", "write"}, {"yes", "yes"}, {"yourselves", "yourselves"},
};

/* What is left of a verb without -ing or -ed, where the ending does not tell whether an -e was lost. */
static const char *const with_e[] = {"compet", "complet", "creat", "delet", "denot", "devot", "excit", "explor", "ignit", "ignor", "invit", "past", "promot", "restor", "tast", "unit", "wast"};
static const char *const without_e[] = {"bang", "bias", "combat", "enroll", "focus", "fulfill", "hang", "input", "install", "murmur", "output", "recall", "refill"};

static bool is_vowel(char c) { return c && strchr("aeiouy", c); }
static bool listed(const char *const *list, size_t n, const char *word) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i], word) == 0) return true;
    return false;
}

static bool ends_in(const char *w, size_t len, const char *end) {
    const size_t n = strlen(end);
    return len > n && memcmp(w + len - n, end, n) == 0;
}

/* Groups of neighbouring vowels: about the number of syllables. */
static size_t vowel_groups(const char *w, size_t len) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++) n += is_vowel(w[i]) && (i == 0 || !is_vowel(w[i - 1]));
    return n;
}

/* Did this stem lose an -e? hop(ing): a short word with one vowel would have doubled its consonant; mov(ed), chang(ed), handl(ed), updat(ed): by its ending. */
static bool lost_e(const char *w, size_t len) {
    static const char *const always[] = {"c", "v", "z", "u", "s", "dg", "rg", "ag", "eg", "ig", "ang", "eng", "iat", "uat", "ced", "phon"};
    static const char *const behind_consonant[] = {"ad", "ak", "am", "ap", "ar", "at", "ib", "id", "ik", "il", "in", "ir", "od", "ok", "om", "ud", "ul", "um", "ur", "ut"};
    if (listed(with_e, sizeof with_e / sizeof *with_e, w)) return true;
    if (listed(without_e, sizeof without_e / sizeof *without_e, w) || ends_in(w, len, "ss")) return false;
    if (len >= 3 && vowel_groups(w, len) == 1 && is_vowel(w[len - 2]) && !is_vowel(w[len - 1]) && !is_vowel(w[len - 3]) && !strchr("wx", w[len - 1])) return true;
    for (size_t i = 0; i < sizeof always / sizeof *always; i++)
        if (ends_in(w, len, always[i])) return true;
    for (size_t i = 0; i < sizeof behind_consonant / sizeof *behind_consonant; i++)
        if (ends_in(w, len, behind_consonant[i]) && !is_vowel(w[len - 3])) return true;
    return ends_in(w, len, "l") && !is_vowel(w[len - 2]) && !strchr("lrw", w[len - 2]);
}

/* The verb behind a stem that -ing or -ed was taken from. */
static size_t mend_stem(char *w, size_t len) {
    const char last = w[len - 1];
    const bool doubled = len > 3 && last == w[len - 2] && !is_vowel(last) && !strchr("sfz", last);
    w[len] = 0;
    if (doubled && (last != 'l' || (vowel_groups(w, len) > 1 && !listed(without_e, sizeof without_e / sizeof *without_e, w)))) len--;
    else if (!doubled && lost_e(w, len)) w[len++] = 'e';
    w[len] = 0;
    return len;
}

static size_t without_s(char *w, size_t len) {
    if (ends_in(w, len, "ies")) return len > 4 ? (w[len - 3] = 'y', len - 2) : len - 1;
    if (ends_in(w, len, "sses") || ends_in(w, len, "xes") || ends_in(w, len, "ches") || ends_in(w, len, "shes") || ends_in(w, len, "oes")) return len - 2;
    if (ends_in(w, len, "ss") || ends_in(w, len, "us") || ends_in(w, len, "is")) return len;
    return len > 3 && ends_in(w, len, "s") ? len - 1 : len;
}

static size_t without_ending(char *w, size_t len) {
    const size_t ing = len > 3 ? len - 3 : 0, ed = len > 2 ? len - 2 : 0;
    if (ends_in(w, len, "ied")) return len > 4 ? (w[len - 3] = 'y', len - 2) : len - 1;
    if (ends_in(w, len, "ing") && !ends_in(w, len, "thing") && ing >= 2 && vowel_groups(w, ing)) return mend_stem(w, ing);
    if (ends_in(w, len, "ed") && !ends_in(w, len, "eed") && ed >= 2 && vowel_groups(w, ed)) return mend_stem(w, ed);
    return without_s(w, len);
}

static int by_form(const void *key, const void *row) { return strcmp(key, *(const char *const *)row); }

void lemma_english(Bytes *word) {
    if (word->len > 2 && (ends_in(word->at, word->len, "'s") || ends_in(word->at, word->len, "\xE2\x80\x99s"))) word->len -= word->at[word->len - 2] == '\'' ? 2 : 4;
    bytes_add(word, "e", 1); /* room for an -e */
    word->at[--word->len] = 0;
    const char *const *row = bsearch(word->at, irregular, sizeof irregular / sizeof *irregular, sizeof *irregular, by_form);
    if (row) bytes_set(word, row[1], strlen(row[1]));
    else if (word->len > 2 && strspn(word->at, "abcdefghijklmnopqrstuvwxyz") == word->len) word->len = without_ending(word->at, word->len);
    word->at[word->len] = 0;
}
