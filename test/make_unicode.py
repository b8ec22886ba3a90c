"""unicode.c: what the tokenizers need to know of each code point, found by asking the reference libraries themselves, one code point at a time,
so that their Unicode version is ours. usage: python3 test/make_unicode.py > unicode.c      needs tokenizers, regex; Python for \\w and \\d
"""
import struct
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

LETTER, NUMBER, SPACE, PUNCTUATION, CONTROL, MARK, WORD, DIGIT = (1 << i for i in range(8))
ALL = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]


def matches(pattern):
    """The code points that `tokenizers` isolates by this regular expression."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    return {c for c in ALL if not split.pre_tokenize_str(chr(c))}


def classes():
    flags = [0] * 0x110000
    clean = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    strip = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False)
    bert = pre_tokenizers.BertPreTokenizer()
    spaces = pre_tokenizers.WhitespaceSplit()
    for c in ALL:
        s = chr(c)
        if clean.normalize_str(s) == "":
            flags[c] |= CONTROL
        if strip.normalize_str("a" + s) == "a":
            flags[c] |= MARK
        if not spaces.pre_tokenize_str(s):
            flags[c] |= SPACE
        elif [p for p, _ in bert.pre_tokenize_str("a" + s + "b")] == ["a", s, "b"]:
            flags[c] |= PUNCTUATION
        if s.isalnum() or s == "_":
            flags[c] |= WORD
        if unicodedata.category(s) == "Nd":
            flags[c] |= DIGIT
    for bit, pattern in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}")):
        for c in matches(pattern):
            flags[c] |= bit
    return flags


def maps():
    """{code point: its lower case} and {code point: its canonical decomposition}, where it has one (Hangul is computed)."""
    lower, nfd = normalizers.Lowercase(), normalizers.NFD()
    lowered = {c: lower.normalize_str(chr(c)) for c in ALL if lower.normalize_str(chr(c)) != chr(c)}
    decomposed = {c: nfd.normalize_str(chr(c)) for c in ALL if not 0xAC00 <= c <= 0xD7A3 and nfd.normalize_str(chr(c)) != chr(c)}
    return lowered, decomposed


CLUSTERS = ["OTHER", "CONTROL", "EXTEND", "MARK", "ZWJ", "SPACING", "PREPEND", "PICTOGRAPH", "CONSONANT", "LINKER", "L", "V", "T"]


def clusters():
    """{code point: class} for grapheme clusters, from the package regex, corrected and checked by asking `tokenizers`: a normalisation map whose keys
    are all single bytes turns each cluster of at most 5 bytes into one Y, so that Y counts clusters."""
    import regex
    kinds = (("CONTROL", r"[\p{GCB=Control}\r\n]"), ("LINKER", r"\p{InCB=Linker}"), ("ZWJ", "\u200d"), ("EXTEND", r"\p{InCB=Extend}"), ("MARK", r"\p{GCB=Extend}"),
             ("SPACING", r"\p{GCB=SpacingMark}"), ("PREPEND", r"\p{GCB=Prepend}"), ("PICTOGRAPH", r"\p{Extended_Pictographic}"),
             ("CONSONANT", r"\p{InCB=Consonant}"), ("L", r"\p{GCB=L}"), ("V", r"\p{GCB=V}"), ("T", r"\p{GCB=T}"))
    out = {}
    for name, pattern in kinds:
        for c in ALL:
            if c not in out and regex.match(pattern, chr(c)):
                out[c] = CLUSTERS.index(name)
    unit = lambda label, at, to, leaf: label | (at ^ to) << 10 | leaf << 8
    units = [unit(0, 0, 256, 0)] + [0] * 255 + [unit(at ^ 256, at, 512, 1) for at in range(256, 512)] + [1 << 31] + [0] * 255
    y = normalizers.Precompiled(struct.pack("<I", 4 * len(units)) + struct.pack("<%dI" % len(units), *units) + b"Y\0")
    extends = {CLUSTERS.index(n) for n in ("EXTEND", "MARK", "ZWJ", "SPACING", "LINKER")}
    for c in ALL:
        if not 0 < c:
            continue
        after, before = y.normalize_str("a" + chr(c)) == "Y", y.normalize_str(chr(c) + "a") == "Y"
        if after != (out.get(c) in extends) or before != (out.get(c) == CLUSTERS.index("PREPEND")):
            sys.stderr.write("U+%04X: class %s of regex is not that of tokenizers (%d %d)\n" % (c, CLUSTERS[out.get(c, 0)], after, before))
            out[c] = CLUSTERS.index("EXTEND" if after else "PREPEND" if before else "OTHER")
    return out


def ranges(numbers):
    out = []
    for n in sorted(numbers):
        if out and out[-1][1] == n - 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return out


def array(kind, name, values, width=20):
    print("%s %s[%d] = {" % (kind, name, len(values)))
    for i in range(0, len(values), width):
        print("    " + ", ".join(map(str, values[i:i + width])) + ",")
    print("};\n")


def mapping(name, table):
    """Sorted code points, ends of their replacements, and the replacements."""
    keys = sorted(table)
    ends, text = [], []
    for key in keys:
        text += [ord(c) for c in table[key]]
        ends.append(len(text))
    array("static const uint32_t", name + "_key", keys, 16)
    array("static const uint16_t", name + "_end", ends)
    array("static const uint32_t", name + "_text", text, 16)


def main():
    flags = classes()
    lowered, decomposed = maps()
    blocks, index = [], []
    for start in range(0, 0x110000, 256):
        block = flags[start:start + 256]
        if block not in blocks:
            blocks.append(block)
        index.append(blocks.index(block))
    print("/* unicode.c - see unicode.h. Made by test/make_unicode.py with tokenizers %s and Python %s (Unicode %s for \\w and \\d). */" % (
        tokenizers.__version__, sys.version.split()[0], unicodedata.unidata_version))
    print('#include "unicode.h"\n\n/* Two-stage table: flags of code point c are block[index[c / 256]][c % 256]. */')
    assert len(blocks) < 256
    array("static const uint8_t", "block_index", index, 32)
    array("static const uint8_t", "block_flags", [f for b in blocks for f in b], 32)
    mapping("lower", lowered)
    mapping("nfd", decomposed)
    found = clusters()
    spans = []
    for kind in sorted(set(found.values())):
        spans += [(low, high, kind) for low, high in ranges(c for c in found if found[c] == kind)]
    array("static const uint32_t", "cluster", [n for span in sorted(spans) for n in span], 15)
    print("""unsigned unicode_flags(uint32_t code) {
    return code < 0x110000 ? block_flags[(size_t)block_index[code >> 8] * 256 + (code & 255)] : 0;
}

/* The replacement of a code point in one of the sorted tables; NULL if it has none. */
static const uint32_t *replacement(const uint32_t *key, const uint16_t *end, const uint32_t *text, size_t n, uint32_t code, size_t *len) {
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (key[middle] < code) low = middle + 1;
        else high = middle;
    }
    if (low == n || key[low] != code) return NULL;
    size_t start = low ? end[low - 1] : 0;
    *len = end[low] - start;
    return text + start;
}

const uint32_t *unicode_lower(uint32_t code, size_t *len) {
    return replacement(lower_key, lower_end, lower_text, sizeof lower_key / sizeof *lower_key, code, len);
}

const uint32_t *unicode_nfd(uint32_t code, size_t *len) {
    return replacement(nfd_key, nfd_end, nfd_text, sizeof nfd_key / sizeof *nfd_key, code, len);
}

UnicodeCluster unicode_cluster(uint32_t code) {
    if (code >= 0xAC00 && code <= 0xD7A3) return (code - 0xAC00) % 28 ? CLUSTER_LVT : CLUSTER_LV;
    size_t low = 0, high = sizeof cluster / sizeof *cluster / 3; /* triples first, last, class */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (cluster[3 * middle + 1] < code) low = middle + 1;
        else high = middle;
    }
    return low < sizeof cluster / sizeof *cluster / 3 && cluster[3 * low] <= code ? (UnicodeCluster)cluster[3 * low + 2] : CLUSTER_OTHER;
}""")


main()
