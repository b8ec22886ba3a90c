"""Every tokenizer against the reference packages, live: ids, byte offsets, piece strings, decoding; on texts and on every Unicode code point.

Ids, strings and decoded text must be equal. So must offsets, but for the pieces that EXCUSES names: there ours say which bytes a piece came from.

usage: python3 test/slow_tokenizer.py [NAME...] [--lines]      needs tokenizers, transformers, tiktoken, sentencepiece, ../shared; --lines: without the sweeps
TEST_STRIDE=N in the environment: of the code points every N-th.
"""
import collections
import itertools
import os
import random
import struct
import sys
import tempfile
import unicodedata

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tokenizer_models as models  # noqa: E402

sys.path.insert(0, models.ROOT)
from export_tokenizer import byte_characters  # noqa: E402


class Hugging:
    """transformers' tokenizer of a directory, or `tokenizers` alone for one without config.json."""

    def __init__(self, path):
        import tokenizers
        import transformers
        transformers.logging.set_verbosity_error()
        if os.path.exists(os.path.join(path, "config.json")):
            self.fast = transformers.AutoTokenizer.from_pretrained(path).backend_tokenizer
        else:
            self.fast = tokenizers.Tokenizer.from_file(os.path.join(path, "tokenizer.json"))
        self.added = set(self.fast.get_added_tokens_decoder())
        self.drops = {}

    def encode(self, text, plain=False):
        """[(id, start byte, end byte, string)]; the string of an added token is the token, whatever white space it took."""
        self.fast.encode_special_tokens = plain
        e = self.fast.encode(text, add_special_tokens=False)
        at = list(itertools.accumulate((len(c.encode("utf-8")) for c in text), initial=0))
        return [(i, at[a], at[b], (self.fast.id_to_token(i) if i in self.added and s.strip() == self.fast.id_to_token(i) else s).encode("utf-8"))
                for i, (a, b), s in zip(e.ids, e.offsets, e.tokens)]

    def dropped(self, character):
        """Does normalisation leave nothing of it? (Accents that BERT strips are marks of a character that stays.)"""
        if unicodedata.combining(character or " "):
            return False
        if character not in self.drops:
            normalizer = self.fast.normalizer
            self.drops[character] = character and normalizer is not None and normalizer.normalize_str("a%sb" % character) == normalizer.normalize_str("ab")
        return self.drops[character]

    def string(self, i):
        return self.fast.id_to_token(i).encode("utf-8")

    def decode(self, ids):
        return self.fast.decode(ids, skip_special_tokens=False)

    def join(self, pieces):
        return self.fast.decoder.decode(pieces)

    def size(self):
        return self.fast.get_vocab_size()


class Tiktoken:
    """cl100k_base. Offsets and strings by the conventions of `tokenizers`: whole characters, printable stand-ins for bytes."""

    def __init__(self, path):
        import tiktoken
        import tiktoken_ext.openai_public as public
        tiktoken.load.read_file_cached = lambda *_: open(path, "rb").read()
        public.load_tiktoken_bpe = lambda *_, **__: tiktoken.load.load_tiktoken_bpe(path)
        self.encoding = tiktoken.Encoding(**public.cl100k_base())
        self.display = byte_characters()
        self.added = set()

    def dropped(self, character):
        return False

    def encode(self, text, plain=False):
        ids = self.encoding.encode(text, disallowed_special=()) if plain else self.encoding.encode(text, allowed_special="all")
        raw, out, at = text.encode("utf-8"), [], 0
        for i in ids:
            piece = self.encoding.decode_single_token_bytes(i)
            start, end = at, at + len(piece)
            at = end
            while start and raw[start] & 0xC0 == 0x80:
                start -= 1
            while end < len(raw) and raw[end] & 0xC0 == 0x80:
                end += 1
            out.append((i, start, end, piece if i >= 100256 else "".join(self.display[b] for b in piece).encode("utf-8")))
        return out

    def decode(self, ids):
        return self.encoding.decode(ids)

    def size(self):
        return 100256


def reference(name, path):
    return Tiktoken(path) if name == "cl100k" else Hugging(path)


# ---- where offsets may differ, and why ----

class Place:
    """One piece whose offsets differ: the text's stretch that they disagree about, one character wider; where its segment begins."""

    def __init__(self, theirs, raw, want, got, k):
        self.dropped = theirs.dropped
        start, end = min(want[k][1], got[k][1]), max(want[k][2], got[k][2])
        before, inside, after = (part.decode("utf-8", "replace") for part in (raw[:start], raw[start:end], raw[end:]))
        self.around = before[-1:] + inside + after[:1]
        segment = max((got[i][2] for i in range(k) if got[i][0] in theirs.added and got[i][3] == theirs.string(got[i][0])), default=0)
        self.segment = raw[segment:].decode("utf-8", "replace").lstrip()


EXCUSES = {
    # The reference counts a character that normalisation drops to the piece before it, or shifts the pieces of a character that became several.
    "beside a dropped character": lambda p: any(map(p.dropped, p.around)),
    # The reference moves every offset after a dropped first character one character to the left (of the text, or behind an added token).
    "behind a dropped first character": lambda p: p.dropped(p.segment[:1]),
    # Where normalisation reorders marks, the reference loses the end of the word: NFD of the whole is not that of its characters in a row.
    "reordered marks": lambda p: unicodedata.normalize("NFD", p.around) != "".join(unicodedata.normalize("NFD", c) for c in p.around),
}
RARE = 0.03  # the share of texts with an excused piece: the mixtures are made of such characters, other texts lack them


def excuse(theirs, text, want, got):
    """The names of the excuses that cover every difference; None where ids or strings differ or an offset has no excuse."""
    if [(p[0], p[3]) for p in want] != [(p[0], p[3]) for p in got]:
        return None
    names = set()
    for k in range(len(want)):
        if want[k] != got[k]:
            place = Place(theirs, text.encode("utf-8"), want, got, k)
            name = next((n for n, holds in EXCUSES.items() if holds(place)), None)
            if name is None:
                return None
            names.add(name)
    return names


class Count:
    passed = failed = 0

    def check(self, what, total, bad, excused):
        spent = sum(excused.values()) > RARE * total
        self.passed += total - bad - spent
        self.failed += bad + spent
        print("%-12s %-9s %8d, differences %d%s%s" % (*what, total, bad, "".join("; %d offsets %s" % (n, name) for name, n in sorted(excused.items())),
                                                   ": TOO MANY" if spent else ""), flush=True)


def compare(count, what, texts, theirs, ours, excuses=None):
    bad, excused = 0, collections.Counter()
    for text, got in itertools.zip_longest(texts, ours):
        want = theirs(text)
        if want == got:
            continue
        names = excuses(text, want, got) if excuses else None
        excused.update(names or ())
        if names is None:
            bad += 1
            if bad <= 5:
                where = next((k for k, (a, b) in enumerate(zip(want, got)) if a != b), min(len(want), len(got)))
                print("    %r at piece %d: want %r got %r" % (text[:80], where, want[where:where + 3], got[where:where + 3]))
    count.check(what, len(texts), bad, excused)


def decoding(count, name, theirs, program, model, lines):
    """decode() of random ids, and the decoder on arbitrary strings."""
    draw = random.Random(7)
    ids = [[draw.randrange(theirs.size()) for _ in range(draw.randint(0, 12))] for _ in range(3000)]
    answer = models.drive(program, model, "decode", models.records([struct.pack("<%dI" % len(i), *i) for i in ids]))
    compare(count, (name, "decode"), ids, lambda i: theirs.decode(i).encode("utf-8"), strings(answer))
    if hasattr(theirs, "join"):
        words = sorted({w for line in lines for w in line.split(" ")}) + ["##a", "\u2581", "\u2581a", "a\u2581b", "##", "", " do not", ".", "'", "'s", "\u0120x", "\u00c3\u00a9"]
        lists = [[draw.choice(words) for _ in range(draw.randint(0, 9))] for _ in range(3000)]
        answer = models.drive(program, model, "join", models.records([models.records(words_) for words_ in lists]))
        compare(count, (name, "join"), lists, lambda w: theirs.join(w).encode("utf-8"), strings(answer))


def strings(answer):
    at = 0
    while at < len(answer):
        (size,) = struct.unpack_from("<I", answer, at)
        yield answer[at + 4:at + 4 + size]
        at += 4 + size


def main():
    names = [a for a in sys.argv[1:] if a[0] != "-"] or list(models.DIRECTORIES) + ["cl100k"]
    if not os.path.isdir(models.ASSETS):
        print("skipped: ../shared/assets is not here\n0 passed, 0 failed, 1 skipped")
        return 0
    count, lines = Count(), models.texts()
    plain = [t for t in lines if not any(s in t for s in ("<s>", "</s>", "<unk>", "<pad>", "<mask>", "<extra_id", "\uff1c"))]
    with tempfile.TemporaryDirectory() as folder:
        program = models.build_driver(folder)
        for name in names:
            path = os.path.join(models.ASSETS, "tiktoken", "cl100k_base.tiktoken") if name == "cl100k" else models.make_directory(name, folder)
            model = models.export(path, os.path.join(folder, name + ".safetensors"))
            theirs = reference(name, path)

            def excuses(text, want, got):
                return excuse(theirs, text, want, got)
            compare(count, (name, "lines"), lines, theirs.encode, models.parse(models.drive(program, model, "added", models.records(lines))), excuses)
            compare(count, (name, "plain"), plain, lambda s: theirs.encode(s, True), models.parse(models.drive(program, model, "encode", models.records(plain))),
                    excuses)
            decoding(count, name, theirs, program, model, lines)
            for sweep in () if "--lines" in sys.argv else models.SWEEPS:
                texts = models.SWEEPS[sweep][::int(os.environ.get("TEST_STRIDE", 1))]
                compare(count, (name, sweep), texts, theirs.encode, models.parse(models.drive(program, model, "added", models.records(texts))), excuses)
    print("%d passed, %d failed, 0 skipped" % (count.passed, count.failed))
    return count.failed != 0


if __name__ == "__main__":
    sys.exit(main())
