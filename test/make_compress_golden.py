"""Make the golden results of compatible mode by running the reference package, llmlingua 0.2.2, on the small models of make_models.py.

usage: python3 test/make_compress_golden.py MODELS [NAME...]             writes test/golden/compress-NAME.jsonl.gz for each model
       python3 test/make_compress_golden.py --directory DIR --name NAME [--text FILE...] [--few]
                     the same for any checkpoint in Hugging Face form: DIR's path must hold bert-base-multilingual-cased or xlm-roberta-large

Needs the packages of test/requirements.txt and ../shared/assets (tokenizers, cl100k_base). A golden file is gzipped JSON lines. The first
line is the header: versions, model, and the texts by name. Each other line is a case: method, keyword arguments, context (names of texts; a
single name where the method was given a string), and the result, or error where the package raised. `margin` is the least distance between two
different word probabilities around any threshold of the run: float32 arithmetic of another order moves a probability by some 1e-7, so a case
is only stored if its margin is at least MARGIN, and a difference from the package is then a bug and no tie. For some cases `words` lists
every word with its probability, chunk by chunk, as the package had them.
"""
import gzip
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ASSETS = os.path.join(HERE, "..", "..", "shared", "assets")
DATA = os.path.join(HERE, "..", "..", "shared", "data")
CL100K = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"  # the name under which tiktoken caches cl100k_base

# Two float32 evaluations differ by about 1e-7 in a probability; interpolating between neighbours d apart gives steps of d/100, which
# must stay above the spacing of float32 numbers below 1, 6e-8.
MARGIN = 1e-5
# Rows of [NEWi] that the package makes up itself (checkpoint without them) are the mean row plus noise of relative size 3e-5.
MARGIN_MADE_ROWS = 2e-3


# ==== texts ====

ODD_TEXTS = {
    "empty": "", "blank": " ", "blanks": " \n\t \n ", "one": "hello", "one-rare": "Zyzzyva", "letter": "a", "stop": ".", "digit": "7",
    "short": "The quick brown fox doesn't jump. Over 21 lazy dogs, he said! And so on; really?",
    "three": "One two three four.",
    "five": "Five six, seven!",
    "eight": "Eight nine.",
    "numbers": "On 2024-03-15 at 10:30 we paid $1,250,000.75 (3.5% of 12e9) for 7 items, v2.0.1, a1b2c3, x86_64 and 0.21; room 404.",
    "digits": "Arabic ٠١٢٣٤, Devanagari १२३, full width １２３, Thai ๑๒, Roman Ⅷ, super x² y³, half ½, circled ①, kanji 四十二, math 𝟙𝟚.",
    "contractions": "Don't say it's can't or won't; they'd've known. The dogs' owner isn't here, y'all. rock 'n' roll",
    "newyork": "New York is big. New Yorkers love New York\n\nNew York City, new york, NEW YORK. The walking king is singing in Beijing.",
    "lines": "First line\nsecond line\n\nthird line after a gap\r\nfourth with return\n\n\n\nlast one.\n",
    "spaces": "  leading   and    many\tspaces\u00a0no-break\u3000ideographic\u2003em \u200bzero\u200bwidth  trailing   ",
    "emoji": "I 🙂 like 🎉🎉 pizza 🍕! 👨‍👩‍👧‍👦 family, 🇩🇪 flag, thumbs 👍🏽 up ❤️.",
    "only-emoji": "🙂🙂", "only-unknown": "\ue000 \ue001", "punctuation": "?!... --- ((())) [] {} <> ; : ' \" , . / \\ | ` ~ @ # $ % ^ & * _ + =",
    "specials-bert": "one two [SEP] three [CLS] four [PAD] five [MASK] six [UNK] seven [sep] eight. [PAD] [PAD] nine",
    "specials-xlmr": "one two </s> three <s> four <pad> five <mask> six <unk> seven </S> eight. <pad><pad> nine",
    "new": "a [NEW0] b[NEW1]c [NEW7] d [NEW99] e [NEW100] f [new0] g",
    "end-of-text": "before <|endoftext|> after", "fim": "x <|fim_prefix|> y <|endofprompt|>",
    "sharps": "# title ## section ##ing #hash a#b C# ### F## # # text",
    "metaspace": "a▁b ▁c▁ d ▁▁ e _f_ g",
    "code": "def f(x, y=0):\n    \"\"\"Return x+y.\"\"\"\n    if x >= 1 and y != 2:  # check\n        return {'a': [x, y], \"b\": x**2}\n"
            "    for i in range(10):\n        print(f\"{i:>3}\", end='')\n    return a->b && c || !d;\n#include <stdio.h>\n"
            "int main(void) { return 0; } // end\nx == y; z -= 1; p++; q--; r := s; t <= u; v => w; a...b; path/to/file.c; \\n",
    "json": "{\"id\": 17, \"name\": \"Ann O'Neil\", \"tags\": [\"a\", \"b\"], \"ok\": true, \"ratio\": -0.5e-3, \"none\": null}",
    "chinese": "今天天气很好，我们去公园散步。他说：“你好！”然后买了3个苹果，花了12元。", "japanese": "東京は日本の首都です。私は昨日カレーを食べました！ﾊﾝｶｸとＡＢＣ。",
    "korean": "안녕하세요. 오늘은 날씨가 좋네요! 서울에서 2023년에 만났습니다.", "arabic": "مرحبا بالعالم! هذا نَصٌّ عربي، فيه ٣ كلمات؟ نعم.",
    "hindi": "नमस्ते दुनिया। यह एक परीक्षण है, जिसमें १२ शब्द हैं?", "hebrew": "שלום עולם! זהו טקסט בעברית, עם 5 מילים.",
    "thai": "สวัสดีชาวโลก วันนี้อากาศดีมาก", "greek-russian": "Καλημέρα κόσμε. Привет, мир! Ёлка и йод; 100 рублей.",
    "accents": "naïve café Ångström façade résumé e\u0301 cafe\u0301 Zoe\u0308 İstanbul ẞtraße ﬁne ﬂow ﷺ ℃ № ½",
    "marks": "a\u0300\u0301\u0302b \u0915\u094d\u0937 \u202eabc\u202c x\u00ady \ufeffz", "control": "a\x01b\x02 c\x7fd \x1be tab\tend",
    "long-word": "x" * 150 + " " + "supercalifragilisticexpialidocious" * 3 + " end. " + "ab" * 60,
    "url": "See https://example.com/path?q=1&r=two#frag or mail first.last+tag@example.co.uk, ftp://x.y/z; C:\\dir\\file.txt",
    "repeat": "go go go. go? go! yes yes, yes; no no no no. Why? Why? Why? " * 3,
    "dashes": "well-known state-of-the-art world--fox — em–en … dots... etc.; a/b // c == d >= e",
    "upper": "THE UNITED NATIONS MET IN GENEVA. NATO AND THE EU AGREED ON NOTHING AT ALL.",
    "questions": "What? Who?? Where??? When! How?\nYes?\n?\n? ? ok.",
}


def read_texts():
    """Every text by name: the odd ones above, real ones from the distillation set (CC0) and Project Gutenberg (public domain)."""
    texts = dict(ODD_TEXTS)
    rows = {}
    for part in range(1, 10):
        with open(os.path.join(DATA, "distill", "p%d.jsonl" % part), encoding="utf-8") as f:
            rows.update((row["id"], row) for row in map(json.loads, f))
    for key in ("p1-1", "p2-10", "p2-30", "p3-20", "p4-50"):
        if key in rows:
            texts["distill-" + key] = rows[key]["origin"]
    by_language = {}
    for key in sorted(rows):
        row = rows[key]
        by_language.setdefault(row["lang"], []).append(row["origin"])
        by_language.setdefault("domain " + row["domain"], []).append(row["origin"])
    for language in ("zh", "ja", "hi", "ar", "ru", "es", "de", "fr", "pt"):
        texts["lang-" + language] = by_language[language][0]
    for domain in ("meeting", "docs", "code-explained", "reasoning", "finance", "chat", "transcript", "log-report"):
        texts["domain-" + domain] = by_language["domain " + domain][0]
    texts["two-chunks"] = "\n\n".join(by_language["domain meeting"][1:4])
    texts["mixed-languages"] = "\n".join(by_language[language][1] for language in ("zh", "es", "ar", "ja", "de", "hi", "ru"))
    with open(os.path.join(DATA, "text", "gutenberg", "carroll-alice.txt"), encoding="utf-8") as f:
        alice = f.read().replace("\r\n", "\n")
    start = alice.index("CHAPTER I.")
    texts["alice-long"] = alice[start:start + 24000]
    texts["alice-1500"] = alice[start + 30000:start + 35800]
    texts["no-end"] = "".join(c for c in alice[start:start + 6000] if c not in ".\n" or c == " ").replace("\n", " ")
    texts["no-end-commas"] = "word, " * 600
    texts["dense-ends"] = "x. y! " * 300
    texts["long-chinese"] = "".join(t.replace("\n", "") for t in by_language["zh"][2:7])
    texts["edge-510"], texts["edge-511"], texts["edge-512"] = ("a b " * 255).strip(), "a b " * 255 + "c", "a b " * 256
    texts["edge-stop-first"] = ". " + "a b " * 300
    return texts


# ==== cases ====

FORCE_LISTS = [
    ["."], ["?", "!", "."], ["\n"], ["\n", "?"], ["\n", "\n\n"], ["\n\n", "\n"], ["ing"], ["New York"], ["New York", "\n", "New"],
    ["York", "New York"], ["the", "a", "of"], ["The"], ["go", "yes", "no"], ["#", "##"], ["##ing"], ["▁the", "▁The"], ["unused-token-zzz"],
    [".", ".", "."], ["New York", "New York"], ["é", "ï", "🙂"], ["。", "，"], ["Why?", "Why"], ["[SEP]", "</s>"], ["[PAD]", "<pad>"], ["[NEW1]", "b"],
    ["b", "[NEW0]"], ["one two", "two three"], [" "], [", "], ["'"], ["-", "--"], ["٣", "3"], ["\t", "  "],
]


def explicit_cases():
    """(context, arguments[, method]) that reach every option and every odd corner; a context is a name or a list of names."""
    yield from (("short", {"rate": rate}) for rate in (
        0.001, 0.01, 0.1, 0.2, 0.25, 0.33, 0.34, 0.4, 0.45, 0.5, 0.55, 0.56, 0.6, 0.67, 0.68, 0.7, 0.75, 0.78, 0.8, 0.81, 0.89, 0.9, 0.93,
        0.95, 0.98, 0.99, 0.999, 1.0, 1, 1.5, 2, 0, -1, 0.0))
    yield from (("domain-meeting", {"rate": rate, "return_word_label": True}) for rate in (0.33, 0.34, 0.5, 0.55, 0.67, 0.68, 0.8, 0.98, 1.0))
    for name in ODD_TEXTS:
        yield name, {"return_word_label": True}
        yield name, {"rate": 0.7, "force_reserve_digit": True, "force_tokens": ["\n", "?", "ing"]}
        yield name, {"rate": 1.0, "return_word_label": True, "word_sep": "|", "label_sep": "~", "force_tokens": ["New York", "\n"]}
    for name in ("lang-zh", "lang-ja", "lang-hi", "lang-ar", "lang-ru", "lang-es", "lang-de", "lang-fr", "lang-pt", "domain-docs",
                 "domain-code-explained", "domain-reasoning", "domain-finance", "domain-chat", "domain-log-report", "mixed-languages"):
        yield name, {"rate": 0.6}
        yield name, {"rate": 0.4, "force_tokens": ["\n", "?", ".", ","], "drop_consecutive": True, "return_word_label": True}
        yield name, {"rate": 0.5, "token_to_word": "first", "force_reserve_digit": True}
    for name in ("two-chunks", "alice-1500", "alice-long", "no-end", "no-end-commas", "dense-ends", "long-chinese", "edge-510", "edge-511",
                 "edge-512", "edge-stop-first"):
        yield name, {}
        yield name, {"rate": 1.0}
        yield name, {"rate": 0.33, "force_tokens": ["\n", ".", "Alice"], "return_word_label": True}
    yield "alice-1500", {"chunk_end_tokens": [",", "."]}
    yield "alice-1500", {"chunk_end_tokens": ["\n"], "force_tokens": ["\n"]}
    yield "alice-1500", {"chunk_end_tokens": ["\n"]}
    yield "alice-1500", {"chunk_end_tokens": ["said Alice", "the"], "force_tokens": ["said Alice"]}
    yield "alice-1500", {"chunk_end_tokens": []}
    yield "alice-1500", {"chunk_end_tokens": ["Alice", "##ing", "ing", "▁the"]}
    yield "alice-1500", {"use_token_level_filter": False, "rate": 0.3, "return_word_label": True}
    yield "alice-long", {"target_token": 1000, "force_tokens": ["!"]}
    for target in (1, 5, 12, 22, 23, 24, 1000, 0, -3, 3.5, 7.25):
        yield "short", {"target_token": target}
    for force in FORCE_LISTS:
        for drop in (False, True):
            yield ("newyork" if len(force) % 2 else "lines"), {"force_tokens": force, "drop_consecutive": drop, "return_word_label": True}
        yield ["repeat", "questions", "sharps", "new"], {"force_tokens": force, "drop_consecutive": True, "rate": 0.4}
    yield "alice-1500", {"force_tokens": ["\n", ",", "the", "and"], "drop_consecutive": True, "rate": 0.2}
    yield "short", {"force_tokens": [""]}
    yield "short", {"force_tokens": ["x%d y" % i for i in range(101)]}
    yield "short", {"force_tokens": ["x%d y" % i for i in range(99)] + ["lazy dogs"]}
    yield "short", {"token_to_word": "max"}
    yield "short", {"token_to_word": "max", "rate": 1.0}
    yield "short", {"word_sep": "", "label_sep": "", "return_word_label": True}
    yield "short", {"word_sep": "\n", "label_sep": "\t", "return_word_label": True, "rate": 0.9}
    several = ["three", "five", "eight"]
    many = ["domain-meeting", "short", "lang-es", "newyork", "domain-chat", "code", "lang-zh", "numbers"]
    for contexts in (several, many):
        yield contexts, {}
        yield contexts, {"rate": 1.0}
        yield contexts, {"target_token": 8}
        for extra in ({}, {"rate": 0.3}, {"rate": 0.98}, {"rate": 1.0}, {"rate": 1.5}, {"target_token": 6}, {"target_token": 0},
                      {"target_token": 60}, {"target_token": 4, "use_token_level_filter": False}, {"rate": 0.6, "use_token_level_filter": False},
                      {"target_context": 1}, {"target_context": 2, "rate": 0.7}, {"target_context": 0}, {"target_context": 99}, {"context_level_rate": 0.5},
                      {"context_level_rate": 0.34}, {"context_level_rate": 0.0}, {"context_level_rate": -0.5}, {"context_level_rate": 1.5},
                      {"context_level_target_token": 5}, {"context_level_target_token": 0}, {"context_level_target_token": 9, "target_context": 1},
                      {"force_context_ids": [0]}, {"force_context_ids": [1, 2, 2, 77, -1], "target_context": 1}, {"force_context_ids": None},
                      {"force_context_ids": [0, 1, 2, 3, 4, 5, 6, 7]}, {"return_word_label": True, "target_context": 1},
                      {"return_word_label": True, "force_tokens": ["seven!", "\n", "two three"], "token_to_word": "first", "rate": 0.45},
                      {"return_word_label": True, "use_token_level_filter": False, "context_level_rate": 0.5}, {"rate": 0}, {"rate": -1}):
            yield contexts, dict(extra, use_context_level_filter=True)
    yield ["two-chunks", "alice-1500", "long-chinese"], {"use_context_level_filter": True, "rate": 0.5, "force_tokens": ["\n"]}
    yield ["two-chunks", "alice-1500", "long-chinese"], {"use_context_level_filter": True, "target_token": 300, "force_reserve_digit": True}
    yield ["lines", "newyork", "questions"], {"use_context_level_filter": True, "target_token": 30, "force_tokens": ["\n", "New York"]}
    yield ["empty"], {}
    yield ["empty", "empty"], {}
    yield ["three", "empty", "eight", "blank"], {"return_word_label": True}
    yield ["three", "empty", "eight"], {"use_context_level_filter": True}
    yield ["empty"], {"target_token": 5}
    yield ["empty", "three"], {"target_token": 2}
    yield [], {}
    yield [], {"target_token": 5}
    yield [], {"use_context_level_filter": True}
    yield ["short"], {"use_context_level_filter": True}
    yield ["short", "only-emoji"], {}
    yield ["short", "only-emoji"], {"rate": 1.0}
    yield ["short", "end-of-text"], {"rate": 1.0}
    for arguments in ({}, {"rate": 0.4}, {"target_token": 9}, {"use_context_level_filter": False}, {"question": "Why?", "instruction": "Do this."}):
        yield several, arguments, "compress_prompt"
        yield "short", arguments, "compress_prompt"


def random_case(draw, names):
    """One case of random options on random texts; draw is a random.Random."""
    arguments = {}
    context = draw.sample(names, draw.choice((1, 1, 1, 2, 3, 4)))
    if draw.random() < 0.85:
        arguments["rate"] = draw.choice((round(draw.uniform(0.02, 1.0), 2), round(draw.uniform(0.05, 1.0), 3), draw.uniform(0.05, 1.0)))
    if draw.random() < 0.2:
        arguments["target_token"] = draw.randint(1, 300)
    if draw.random() < 0.5:
        pool = sorted({token for force in FORCE_LISTS for token in force} | {"and", "to", "in", "said", "s", "t", "er", ":", "said the", "de", "的"})
        arguments["force_tokens"] = draw.sample(pool, draw.randint(1, 8))
    for flag in ("force_reserve_digit", "drop_consecutive", "return_word_label"):
        if draw.random() < 0.4:
            arguments[flag] = True
    if draw.random() < 0.25:
        arguments["token_to_word"] = draw.choice(("mean", "first"))
    if draw.random() < 0.2:
        arguments["chunk_end_tokens"] = draw.choice((["."], [".", "\n"], [",", ";", "."], [], ["the"], ["\n", "?", "!"]))
    if draw.random() < 0.1:
        arguments["use_token_level_filter"] = False
    if len(context) > 1 and draw.random() < 0.6:
        arguments["use_context_level_filter"] = True
        kind = draw.randint(0, 3)
        if kind == 1:
            arguments["target_context"] = draw.randint(1, len(context))
        elif kind == 2:
            arguments["context_level_rate"] = round(draw.uniform(0.1, 1.0), 2)
        elif kind == 3:
            arguments["context_level_target_token"] = draw.randint(1, 400)
        if draw.random() < 0.3:
            arguments["force_context_ids"] = draw.sample(range(len(context)), 1)
    return context, arguments


# ==== running the package ====

class Oracle:
    """The package on one model, offline, with its thresholds and word probabilities watched."""

    def __init__(self, directory):
        cache = tempfile.mkdtemp()
        shutil.copyfile(os.path.join(ASSETS, "tiktoken", "cl100k_base.tiktoken"), os.path.join(cache, CL100K))
        os.environ.update(TIKTOKEN_CACHE_DIR=cache, HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false",
                          HF_HUB_DISABLE_PROGRESS_BARS="1")
        import warnings
        warnings.filterwarnings("ignore")
        import torch
        torch.set_num_threads(1)
        import transformers
        transformers.utils.logging.disable_progress_bar()
        from llmlingua import prompt_compressor
        self.package = prompt_compressor
        self.compressor = prompt_compressor.PromptCompressor(directory, device_map="cpu", use_llmlingua2=True)
        shutil.rmtree(cache)
        self.made_rows = json.load(open(os.path.join(directory, "config.json")))["vocab_size"] < len(self.compressor.tokenizer)
        self.calls, self.words = [], []
        self._watch()

    def _watch(self):
        oracle, numpy, merge = self, self.package.np, self.compressor._PromptCompressor__merge_token_to_word
        to_word = self.compressor._PromptCompressor__token_prob_to_word_prob

        class Numpy:
            def __getattr__(self, name):
                return getattr(numpy, name)

            def percentile(self, values, q):
                threshold = numpy.percentile(values, q)
                oracle.calls.append((sorted(float(v) for v in values), float(threshold)))
                return threshold

        def merged(*args, **kwargs):
            result = merge(*args, **kwargs)
            oracle.words.append([list(result[0]), None])
            return result

        def probabilities(*args, **kwargs):
            result = to_word(*args, **kwargs)
            oracle.words[-1][1] = [float(p) for p in result]
            return result

        self.package.np = Numpy()
        self.compressor._PromptCompressor__merge_token_to_word = merged
        self.compressor._PromptCompressor__token_prob_to_word_prob = probabilities

    @staticmethod
    def gap(values, threshold):
        """The least distance between two different values next to the threshold: two at or below it, two above."""
        distinct = sorted(set(values))
        below = [v for v in distinct if v <= threshold][-2:]
        near = below + [v for v in distinct if v > threshold][:2]
        return min((b - a for a, b in zip(near, near[1:])), default=1.0)

    def run(self, context, arguments, method="compress_prompt_llmlingua2"):
        """Run the package; returns {"result" or "error", "margin"}, words left in self.words."""
        self.calls, self.words = [], []
        case = {}
        try:
            case["result"] = getattr(self.compressor, method)(context, **json.loads(json.dumps(arguments)))
        except Exception as problem:  # the package's own choice of type is part of the record
            case["error"] = "%s: %s" % (type(problem).__name__, str(problem).split("\n")[0])
        case["margin"] = float("%.3g" % min((self.gap(*call) for call in self.calls), default=1.0))
        return case

    def safe(self, case, arguments):
        """Whether another float32 arithmetic must give the same text."""
        return case["margin"] >= (MARGIN_MADE_ROWS if self.made_rows and arguments.get("force_tokens") else MARGIN)


def versions():
    from importlib.metadata import version
    found = {name: version(name) for name in ("llmlingua", "transformers", "tokenizers", "torch", "numpy", "tiktoken")}
    return dict(found, python="%d.%d.%d" % sys.version_info[:3])


def make(name, directory, texts, cases, path):
    """Run all cases, write the golden file; returns (kept, changed): a case with too small a margin has its rate moved a little."""
    oracle = Oracle(directory)
    with open(os.path.join(directory, "model.safetensors"), "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    lines, used, moved, dropped = [], set(), 0, 0
    for number, (context, arguments, *method) in enumerate(cases):
        method = method[0] if method else "compress_prompt_llmlingua2"
        for attempt in range(8):
            given = texts[context] if isinstance(context, str) else [texts[key] for key in context]
            case = oracle.run(given, arguments, method)
            if "error" in case or oracle.safe(case, arguments):
                break
            arguments = dict(arguments, rate=round(arguments.get("rate", 0.5) + (0.01 if arguments.get("rate", 0.5) < 0.9 else -0.07), 6))
            if "target_token" in arguments:
                arguments["target_token"] += 1
            moved += attempt == 0
        else:
            dropped += 1
            continue
        used.update([context] if isinstance(context, str) else context)
        line = {"id": number, "method": method, "args": arguments, "context": context, **case}
        if number % 9 == 0 and sum(len(w) for w, _ in oracle.words) < 200:
            line["words"] = [[word, float("%.7g" % p)] for ws, ps in oracle.words for word, p in zip(ws, ps or [])]
        lines.append(line)
    header = {"header": "results of compatible mode", "model": name, "model_sha256": digest, "versions": versions(), "margin": MARGIN,
              "texts": {key: texts[key] for key in sorted(used)}}
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=9) as f:
        for line in [header] + lines:
            f.write(json.dumps(line, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass") + b"\n")
    errors = sum("error" in line for line in lines)
    print("%-42s %4d cases (%d errors), %d moved off a near-tie, %d left out, %d bytes" %
          (name, len(lines), errors, moved, dropped, os.path.getsize(path)), flush=True)


def cases_for(name, texts, few):
    """The explicit cases, thinned for the lesser models, and random ones with a seed of the model's name."""
    draw = random.Random(name)
    explicit = list(explicit_cases())
    if few:
        explicit = draw.sample(explicit, 60)
    names = sorted(key for key in texts if key not in ("end-of-text", "fim", "alice-long"))
    return explicit + [random_case(draw, names) for _ in range(30 if few else 120)]


def main():
    arguments = sys.argv[1:]
    golden = os.path.join(HERE, "golden")
    if arguments and arguments[0] == "--directory":
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("--directory", required=True)
        parser.add_argument("--name", required=True)
        parser.add_argument("--few", action="store_true")
        given = parser.parse_args(arguments)
        texts = read_texts()
        make(given.name, given.directory, texts, cases_for(given.name, texts, given.few), os.path.join(golden, "compress-%s.jsonl.gz" % given.name))
        return
    if not arguments:
        sys.exit(__doc__)
    sys.path.insert(0, HERE)
    import make_models
    folder = os.path.abspath(arguments[0])
    texts = read_texts()
    os.chdir(os.path.dirname(HERE))
    for name in arguments[1:] or make_models.MODELS:
        directory = make_models.make(folder, name, make_models.MODELS[name])
        few = not name.endswith("-tiny")
        make(name, directory, texts, cases_for(name, texts, few), os.path.join(golden, "compress-%s.jsonl.gz" % name))


if __name__ == "__main__":
    main()
