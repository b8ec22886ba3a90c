"""What the faithful mode of `lingua2 compress` promises, checked on texts from outside the program: an independent reading of its definition in Python
works out what must come out of the words, probabilities and verdicts that it reports. Used by test_faithful.py (a few hundred texts) and slow_faithful.py."""
import json
import os
import subprocess
import unicodedata

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RATES = (0.2, 0.5, 0.8)
SCRIPTS = {"Latin": (0x61, 0x7A), "Cyrillic": (0x430, 0x44F), "Greek": (0x3B1, 0x3C9), "Arabic": (0x627, 0x64A), "Hebrew": (0x5D0, 0x5EA), "Devanagari": (0x905, 0x939),
           "Thai": (0xE01, 0xE2E), "Han": (0x4E00, 0x9FA0), "Kana": (0x3041, 0x3093), "Hangul": (0xAC00, 0xD7A3), "Tamil": (0xB95, 0xBB9), "Georgian": (0x10D0, 0x10F0)}
UNSPACED = ("Thai", "Han", "Kana")
MARKS = {"Latin": "\u0301\u0308", "Arabic": "\u064b\u0651", "Hebrew": "\u05b0\u05b7", "Devanagari": "\u093e\u094d\u0902", "Thai": "\u0e34\u0e48", "Tamil": "\u0bbe\u0bcd"}
ENDS = {"Arabic": "\u061f", "Devanagari": "\u0964", "Han": "\u3002", "Kana": "\uff01"}
EXTRAS = ["[NEW5]", "</s>", "<|endoftext|>", "[SEP]", "[UNK]", "<mask>", "don't", "0.21", "1,250,000", "10:30", "a1b2", "foo_bar", "src/a.c", "https://a.org/x?y=(1)&z=2#top", "me+you@mail.example.com",
          "\U0001F642", "\U0001F468\u200d\U0001F469\u200d\U0001F467", "\U0001F1E9\U0001F1EA", "-5", "12%", "$3.50", "C++", "x=f(y)[2]", "a,b;c", "10\u201320", "\u00abno\u00bb", "...", "--help", "==", "\u200b",
          "\x07", "\ufffd", "\u00bd", "\u0665\u066b\u0663", "it\u2019s", "state-of-the-art", "/usr/lib", "`a b`", "\"quoted text\""]
SPACES = [" "] * 12 + ["\n", "\n\n", "  ", "\t", "\r\n", "\u00a0", " \n \n", "\u2028", ""]


def generated(dice):
    """A text of up to 60 words, mostly of one script."""
    name = dice.choice(sorted(SCRIPTS))
    low, high = SCRIPTS[name]
    out = []
    for _ in range(dice.randrange(0, 60)):
        if dice.random() < 0.2:
            out.append(dice.choice(EXTRAS))
        else:
            length = dice.randrange(1, 9)
            letters = [chr(dice.randrange(low, high + 1)) + (dice.choice(MARKS[name]) if name in MARKS and dice.random() < 0.1 else "") for _ in range(length)]
            out.append("".join(letters))
        if dice.random() < 0.2:
            out.append(dice.choice([ENDS.get(name, "."), ",", "!", ":", ")", "\u2026"]))
        out.append("" if name in UNSPACED and dice.random() < 0.8 else dice.choice(SPACES))
    return "".join(out)


def ask(requests, options=(), model=None):
    """Results of `lingua2 compress --jsonl`, one a request."""
    command = [os.path.join(ROOT, "lingua2"), "compress", "--jsonl"] + (["-m", model] if model else []) + list(options)
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in requests)
    done = subprocess.run(command, input=lines.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]


def is_space(char):
    return char.isspace() and char not in "\x1c\x1d\x1e\x1f"  # Python's isspace, without four separators that are no White_Space


def space_class(space):
    """0 none, 1 white space, 2 a line break, 3 a blank line."""
    breaks = space.replace("\r\n", "\n").replace("\r", "\n").replace("\u2029", "\n\n").replace("\u2028", "\n").count("\n")
    return 0 if not space else 1 + min(breaks, 2)


def is_closing(char):
    return char in "!\"'),.:;?]}\u00bb\u2019\u201d\u2026\u203a\u060c\u061b\u061f\u0964\u3001\u3002\uff01" and char != ""


class Text:
    """A text with its words as the program reports them."""

    def __init__(self, text, words):
        self.source, self.words = text.encode(), words
        self.slices = [self.source[w["start"]:w["end"]].decode() for w in words]
        edges = [0] + [w["end"] for w in words], [w["start"] for w in words] + [len(self.source)]
        self.spaces = [self.source[a:b].decode() for a, b in zip(*edges)]

    def joint(self, a, b):
        """What stands between the kept words a and b (-1: the beginning, len(words): the end), none kept between."""
        if b == a + 1:
            return self.spaces[b]
        if a < 0 or b == len(self.words):
            return ""
        if is_space(self.slices[a][-1]) or is_space(self.slices[b][0]) or is_space(self.slices[a][0]) or is_space(self.slices[b][-1]):
            return ""
        if not self.spaces[b] and is_closing(self.slices[b][0]):
            return ""
        return ["", " ", "\n", "\n\n"][max(space_class(s) for s in self.spaces[a + 1:b + 1])]

    def render(self, kept):
        order = sorted(kept)
        if not order:
            return ""
        out = [self.joint(-1, order[0]) if order[0] == 0 else ""]
        for i, w in enumerate(order):
            out.append(self.slices[w])
            following = order[i + 1] if i + 1 < len(order) else len(self.words)
            out.append(self.joint(w, following))
        return "".join(out)

    def dividers(self, kept):
        """Places where two kept words run together."""
        order = sorted(kept)
        return [(a, b) for a, b in zip(order, order[1:]) if b > a + 1 and self.joint(a, b) == "" and is_letter(self.slices[a][-1]) and is_letter(self.slices[b][0])]


def is_letter(char):
    """A letter, digit or mark of a script with spaces, which would run together with another."""
    if unicodedata.category(char)[0] not in "LNM" and char != "_":
        return False
    return unicodedata.category(char) == "Nd" or not any(low <= ord(char) <= high for low, high in (
        (0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0xA4CF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F)))


def check_words(check, text, t):
    """Every byte that is no white space lies in one word, and no word holds white space but between digits."""
    check(all(is_space(c) for s in t.spaces for c in s), "white space between words: %r" % text)
    check(all(w["start"] < w["end"] for w in t.words) and all(a["end"] <= b["start"] for a, b in zip(t.words, t.words[1:])), "words in order: %r" % text)
    check(not any(is_space(c) and c not in "\u00a0\u2007\u2009\u202f" for s in t.slices for c in s), "no white space in words: %r" % text)


def check_texts(check, texts, model=None, count="cl100k", **more):
    """All properties of one text at a time, on all of them. more: further keywords of the requests, as baseline="random", which needs no time for the encoder."""
    requests = [{"context": text, "rate": rate, "return_word_label": True, "count": count, **more} for text in texts for rate in RATES]
    results = ask(requests, ["--threads", "2"], model)
    check(len(results) == len(requests) and not any("error" in r for r in results), "results: %d of %d, %s" % (len(results), len(requests), [r["error"] for r in results if "error" in r][:3]))
    later, asked = [], []  # counts of texts, checked in one go at the end
    for i, text in enumerate(texts):
        before = set()
        for rate, r in zip(RATES, results[3 * i:3 * i + 3]):
            t = Text(text, r["words"])
            what = "rate %g %r -> %r" % (rate, text, r["compressed_prompt"])
            kept = {k for k, w in enumerate(r["words"]) if w["kept"]}
            budget = int(rate * r["origin_tokens"])
            check(r["asked"] == {"rate": rate, "tokens": budget, "count": count}, "asked: %s %s" % (r["asked"], what))
            check(r["compressed_prompt"] == (t.render(kept) if r["origin_tokens"] else text), "rendered %r: %s" % (t.render(kept), what))
            check(r["compressed_tokens"] <= budget or len(kept) <= 1 + len(r["words"]) // 1000, "%d tokens of %d: %s" % (r["compressed_tokens"], budget, what))
            check(before <= kept, "a smaller rate keeps more: %s" % what)
            check(not t.dividers(kept), "words run together: %s %s" % (t.dividers(kept), what))
            check(bool(kept) or not r["words"], "nothing kept: %s" % what)
            order = sorted(range(len(r["words"])), key=lambda k: (-r["words"][k]["p"], k))
            dropped = [k for k in order if k not in kept]
            if dropped:  # what follows it in the order is there as a divider only; and it would not have fitted
                rest = [k for k in order[order.index(dropped[0]):] if k in kept]
                check(all(k > 0 and k - 1 in kept and not t.spaces[k] for k in rest), "not the most probable words: %s" % what)
                longer = kept | {dropped[0]}
                while t.dividers(longer):
                    longer |= {a + 1 for a, _ in t.dividers(longer)}
                later.append(t.render(longer))
                asked.append((budget, True, what))
            if rate == RATES[0]:
                check_words(check, text, t)
            later.append(r["compressed_prompt"])
            asked.append((r["compressed_tokens"], False, what))
            before = kept
    for (n, exceeds, what), text, r in zip(asked, later, ask([{"context": text, "rate": 1, "count": count} for text in later], [], model)):
        check(r["compressed_prompt"] == text, "rate 1 is not the identity: %r" % text)
        if count != "words":
            check(r["origin_tokens"] > n if exceeds else r["origin_tokens"] == n, "%d tokens, %s %d: %s" % (r["origin_tokens"], "one word more than" if exceeds else "reported", n, what))
    some = list(range(0, len(requests), 7))[::-1]  # the same bytes for any thread count and batch
    check(ask([requests[i] for i in some], ["--threads", "1"], model) == [results[i] for i in some], "threads or batch change the result")
