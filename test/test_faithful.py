"""`lingua2 compress` in the faithful mode: what it promises on generated and real texts in twelve scripts, numbers and names of real texts, and its options one by
one. Standard library alone, on the embedded default."""
import glob
import json
import os
import random
import re
import subprocess
import sys

from checks import check, finish

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import faithful
from faithful import ROOT, ask



def real(pattern="*"):
    for path in sorted(glob.glob(os.path.join(ROOT, "data", "distill", pattern + ".jsonl"))):
        for line in open(path, encoding="utf-8"):
            yield json.loads(line)["origin"]


def properties():
    dice = random.Random(7)
    texts = ["", " ", "\n\n", "hello", "\U0001F642\U0001F642", ".", "\u200d", "a" * 3000, "\u4e00" * 1500, "( " * 500, "a,b" * 300, "\u0e01\u0e34" * 400]
    texts += [faithful.generated(dice) for _ in range(200)] + dice.sample(list(real("p5")), 30)
    texts = texts[::int(os.environ.get("TEST_STRIDE", "1"))]  # test/run.py
    faithful.check_texts(check, texts, baseline="random")
    faithful.check_texts(check, [text[:300] for text in dice.sample(texts, min(40, len(texts) // 4))])  # by the model
    faithful.check_texts(check, texts[::6], count="words", baseline="random")
    faithful.check_texts(check, texts[1::6], count="model", baseline="random")


# What a reader takes for one number, one name, one negation.
WHOLE = re.compile(r"(?<![\w.,:/-])(?:"
                   r"-?\d+(?:[.,:/-]\d+)+%?|-?\d+%|\d+|"  # 1,250,000  0.21  10:30  3/4  2021-05-04  12%  42
                   r"[A-Za-z]+(?:[0-9]+[A-Za-z]*)+|[A-Za-z]+(?:[_/.@-][A-Za-z0-9]+)+|"  # a1b2  foo_bar  src/a.c  x@y.com  state-of-the-art
                   r"\w+n['\u2019]t|\w+['\u2019]\w+"  # don't  Brandt's
                   r")(?![\w%])")


def whole_words():
    """Numbers, names and negations of real texts: each lies in one word, so none is split or half kept."""
    cases = bad = 0
    texts = list(real())
    for text, r in zip(texts, ask([{"context": t, "baseline": "random", "return_word_label": True} for t in texts])):
        source = text.encode()
        words = [(w["start"], w["end"]) for w in r["words"]]
        for match in WHOLE.finditer(text):
            start = len(text[:match.start()].encode())
            end = start + len(match.group().encode())
            cases += 1
            if not any(a <= start and end <= b for a, b in words):
                bad += 1
                check(False, "%r is no word: %r" % (match.group(), [source[a:b].decode() for a, b in words if a < end and b > start]))
    check(cases >= 500, "%d cases" % cases)
    check(bad == 0, "%d of %d split" % (bad, cases))
    print("%d numbers, names and negations, none split" % (cases - bad))


def words_of(text, **more):
    r = ask([{"context": text, "baseline": "head", "return_word_label": True, **more}])[0]
    return [text.encode()[w["start"]:w["end"]].decode() for w in r["words"]]


def segmentation():
    for text, words in (
            ("I don't, you'll; it\u2019s 'so'", ["I", "don't", ",", "you'll", ";", "it\u2019s", "'", "so", "'"]),
            ("0.21 1,250,000 10:30 -5 .5 3/4 12% 1e-5 1e+5 1\u202f250\u202f000 2021-05-04", ["0.21", "1,250,000", "10:30", "-5", ".5", "3/4", "12%", "1e-5", "1e+5", "1\u202f250\u202f000", "2021-05-04"]),
            ("a1b2 foo_bar src/a.c /usr/lib ~/x ../y state-of-the-art std::list C:\\dir", ["a1b2", "foo_bar", "src/a.c", "/usr/lib", "~/x", "../y", "state-of-the-art", "std::list", "C", ":", "\\", "dir"]),
            ("See (https://a.org/x_(y)?q=1&r=%20#z), www.b.de/c. Or me+you@mail.example.com!", ["See", "(", "https://a.org/x_(y)?q=1&r=%20#z", ")", ",", "www.b.de/c", ".", "Or", "me+you@mail.example.com", "!"]),
            ("f(x)!=y--z x.y. end", ["f", "(", "x", ")", "!", "=", "y", "-", "-", "z", "x.y", ".", "end"]),
            ("\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e\u0964", ["\u0928\u092e\u0938\u094d\u0924\u0947", "\u0926\u0941\u0928\u093f\u092f\u093e", "\u0964"]),
            ("\U0001F468\u200d\U0001F469\u200d\U0001F467\U0001F1E9\U0001F1EA\U0001F44D\U0001F3FD!", ["\U0001F468\u200d\U0001F469\u200d\U0001F467", "\U0001F1E9\U0001F1EA", "\U0001F44D\U0001F3FD", "!"]),
            ("2024\u5e745\u6708", ["2024", "\u5e74", "5", "\u6708"]),
            ("\u05e6\u05d4\u05f4\u05dc \u0663\u066b\u0665 e\u0301t\u0065\u0301", ["\u05e6\u05d4\u05f4\u05dc", "\u0663\u066b\u0665", "e\u0301te\u0301"]),
            ("[SEP] </s> <|endoftext|>", ["[", "SEP", "]", "<", "/", "s", ">", "<", "|", "endoftext", "|", ">"])):
        check(words_of(text) == words, "words of %r: %s" % (text, words_of(text)))


def kept(text, **more):
    return ask([{"context": text, "baseline": "tail", **more}])[0].get("compressed_prompt")


def options():
    text = "One two.\nThree four five?\n\nSix 7 eight (nine) ten."
    check(kept(text, rate=0.2) == ") ten.", "tail: %r" % kept(text, rate=0.2))
    check(kept(text, rate=0.2, baseline="head") == "One two.", "head: %r" % kept(text, rate=0.2, baseline="head"))
    check(kept("The cat and the hat", target_token=2, baseline="stopwords") == "cat hat", "stop words: %r" % kept("The cat and the hat", target_token=2, baseline="stopwords"))
    check(kept(text, baseline="random", rate=0.4) == kept(text, baseline="random", rate=0.4), "random is not the same twice")
    check(kept(text, rate=1) == text and kept(text, target_token=1000) == text and kept(text, threshold=0) == text, "all of it")
    check(kept(text, threshold=1, baseline="head") == "One", "one word stays: %r" % kept(text, threshold=1, baseline="head"))
    check(kept(text, rate=0.3, force_tokens=["\n"]) == "\n\n\n) ten.", "line breaks: %r" % kept(text, rate=0.3, force_tokens=["\n"]))
    check(kept(text, rate=0.3, force_tokens=["\n"], drop_consecutive=True) == "\n) ten.", "repeated: %r" % kept(text, rate=0.3, force_tokens=["\n"], drop_consecutive=True))
    check(kept("a ?? b ?! c ?", target_token=3, force_tokens=["?"], drop_consecutive=True) == "?! c ?", "repeated marks: %r" % kept("a ?? b ?! c ?", target_token=3, force_tokens=["?"], drop_consecutive=True))
    check(kept("New York is not New Yorker town", rate=0.6, force_tokens=["New", "New York"]) == "New York New Yorker", "longest first, whole words: %r" % kept("New York is not New Yorker town", rate=0.6, force_tokens=["New", "New York"]))
    check(kept("a b2 \u0663c d", rate=0.6, force_reserve_digit=True) == "b2 \u0663c", "digits: %r" % kept("a b2 \u0663c d", rate=0.6, force_reserve_digit=True))
    marked = "Run `a b` then\n```c\nint x;\n  y();\n```\nSee https://a.org/b?c=d or \"the quoted one\" for $5, say, and then quite a few more words of no use"
    for kind, parts in (("code", ["`a b`", "```c\nint x;\n  y();\n```"]), ("urls", ["https://a.org/b?c=d"]), ("numbers", ["$5"]), ("quotes", ["\"the quoted one\""])):
        out = kept(marked, rate=0.55, keep=kind)
        check(all(p in out for p in parts) and len(out) < len(marked), "keep %s: %r" % (kind, out))
    out = kept(marked, rate=0.01, keep="code,urls,numbers,quotes")
    check(out == "`a b`\n```c\nint x;\n  y();\n```\nhttps://a.org/b?c=d \"the quoted one\" $5", "what is to be kept stays past the budget: %r" % out)
    check(kept("x", rate=0.5) == "x" and kept("", rate=0.5) == "" and kept("a b", rate=0.1) == "b", "short texts")
    check(kept("a,b;c d-e f", target_token=3, baseline="head") == "a,b;c", "marks between words stay: %r" % kept("a,b;c d-e f", target_token=3, baseline="head"))
    r = ask([{"context": "a b", "baseline": "tail", "force_tokens": ["a", "b"], "rate": 0.4, "only_if_smaller": True}])[0]
    check(r["compressed_prompt"] == "a b" and r["rate"] == 1.0, "only if smaller: %s" % r)
    r = ask([{"context": ["One two three.", "", "Four five six."], "baseline": "tail", "rate": 0.5}])[0]
    check(r["compressed_prompt"] == "Four five six." and r["compressed_prompt_list"] == ["", "", "Four five six."], "contexts: %s" % r)
    r = ask([{"context": ["a b", "c d", "e f"], "baseline": "tail", "rate": 0.9, "use_context_level_filter": True, "target_context": 1, "force_context_ids": [0]}])[0]
    check(r["compressed_prompt_list"] == ["a b", "e f"], "context filter: %s" % r)
    for bad in ({"rate": 0}, {"rate": 1.5}, {"target_token": 0}, {"threshold": 2}, {"count": "gpt2"}, {"keep": "code;urls"}, {"baseline": "x"}, {"force_tokens": [""]}, {"token_to_word": "last"}):
        check("error" in ask([{"context": "a b", **bad}])[0], "accepted: %s" % bad)
    labels = ask([{"context": "Hello there.", "return_word_label": True, "word_sep": "|", "label_sep": "="}])[0]["fn_labeled_original_prompt"]
    check(re.fullmatch(r"Hello=[01]\|there=[01]\|\.=[01]", labels) is not None, "labels: %r" % labels)
    for given, want in ((b"a b\n", b"a b\n"), (b"a b", b"a b"), (b" a\r\n", b" a\r\n"), (b"", b"")):
        out = subprocess.run([os.path.join(ROOT, "lingua2"), "compress", "--rate", "1"], input=given, stdout=subprocess.PIPE).stdout
        check(out == want, "rate 1 of %r: %r" % (given, out))


properties()
whole_words()
segmentation()
options()
sys.exit(finish())
