"""The tokenizers that the tests compare: directories as a user would have them, made from ../shared/assets, and texts. Standard library alone."""
import glob
import json
import os
import random
import shutil
import struct
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ASSETS = os.path.join(ROOT, "..", "shared", "assets")
DATA = os.path.join(ROOT, "..", "shared", "data")

# name: (model_type of config.json or None for no config.json, {file in the directory: file of the assets}, tokenizer_config.json)
CASED, LOWER = {"do_lower_case": False}, None
DIRECTORIES = {
    "mbert": ("bert", {"vocab.txt": "mbert-tokenizer/vocab.txt"}, CASED),
    "bert-uncased": ("bert", {"vocab.txt": "bert-base-tokenizers/bert-base-uncased.vocab.txt"}, LOWER),
    "bert-cased": ("bert", {"vocab.txt": "bert-base-tokenizers/bert-base-cased.vocab.txt"}, CASED),
    "bert-strip": ("bert", {"vocab.txt": "mbert-tokenizer/vocab.txt"}, {"do_lower_case": False, "strip_accents": True}),
    "xlmr": ("xlm-roberta", {"tokenizer.json": "xlmr-tokenizer/tokenizer.rebuilt.json"}, None),
    "xlmr-model": ("xlm-roberta", {"sentencepiece.bpe.model": "xlmr-tokenizer/sentencepiece.bpe.rebuilt.model"}, None),
    "xlmr-file": (None, {"tokenizer.json": "xlmr-tokenizer/tokenizer.rebuilt.json"}, None),
    "t5": ("t5", {"tokenizer.json": "t5-tokenizer/tokenizer.json"}, None),
    "t5-model": ("t5", {"spiece.model": "t5-tokenizer/spiece.model"}, None),
    "t5-file": (None, {"tokenizer.json": "t5-tokenizer/tokenizer.json"}, None),
    "gpt2": ("gpt2", {"vocab.json": "gpt2-tokenizer/vocab.json", "merges.txt": "gpt2-tokenizer/merges.txt"}, None),
    "roberta": ("roberta", {"vocab.json": "roberta-tokenizer/vocab.json", "merges.txt": "roberta-tokenizer/merges.txt"}, None),
}


def make_directory(name, folder):
    """The directory of tokenizer `name` under folder; its path."""
    model_type, files, config = DIRECTORIES[name]
    path = os.path.join(folder, name)
    os.makedirs(path, exist_ok=True)
    for target, source in files.items():
        shutil.copyfile(os.path.join(ASSETS, source), os.path.join(path, target))
    for target, content in (("config.json", {"model_type": model_type} if model_type else None), ("tokenizer_config.json", config)):
        if content is not None:
            with open(os.path.join(path, target), "w") as file:
                json.dump(content, file)
    return path


def build_driver(folder, *flags):
    """Compile test/tokenize_lines.c; the path of the program."""
    program = os.path.join(folder, "tokenize_lines")
    sources = [os.path.join(ROOT, s) for s in ("test/tokenize_lines.c", "tokenizer.c", "unicode.c", "weights.c", "json.c", "base.c")]
    command = [os.environ.get("CC", "cc"), "-std=c11", "-O2", "-D_XOPEN_SOURCE=700", "-I", ROOT, *flags, *sources, "-o", program]
    subprocess.run(command, check=True)
    return program


def export(source, target):
    """Our flat file of a tokenizer; raises if the exporter refuses."""
    subprocess.run([sys.executable, os.path.join(ROOT, "export_tokenizer.py"), source, "-o", target], check=True)
    return target


def records(texts):
    """Texts (str or bytes) as the driver reads them."""
    raw = [t if isinstance(t, bytes) else t.encode("utf-8") for t in texts]
    return b"".join(struct.pack("<I", len(r)) + r for r in raw)


def drive(program, model, mode, data):
    return subprocess.run([program, model, mode], input=data, stdout=subprocess.PIPE, check=True).stdout


def parse(answer):
    """The driver's answers to encode and added, one at a time: [(id, start, end, string)]."""
    at = 0
    while at < len(answer):
        (n,) = struct.unpack_from("<I", answer, at)
        at += 4
        pieces = []
        for _ in range(n):
            i, start, end, size = struct.unpack_from("<4I", answer, at)
            pieces.append((i, start, end, answer[at + 16:at + 16 + size]))
            at += 16 + size
        yield pieces


# ---- texts ----

POOLS = ["\U0001F642\U0001F3FD\U0001F468\u200d\U0001F469\u200d\U0001F467\U0001F1E9\U0001F1EA\u2764\ufe0f\u2620", "\u00e9e\u0301\u00f1a\u0308o\u0308u\u0308\u00df\u0133\u01c6\ufb01",
         "\u0301\u0308\u0327\u0323\u20e3\ufe0f\u200d\u200b\u00ad\u0600\u093e", "\x01\x7f\x85\xa0\u2028\u2029\u3000\t\r\n  \ufeff\u202e", "\uff41\uff42\uff23\uff11\uff12\uff01\uff1f\uff1cs\uff1e",
         "\u6f22\u5b57\u304b\u306a\u4ea4\u3058\u308a\u6587\ud55c\uad6d\uc5b4\uc870\uc120\ub9d0\u1112\u1161\u11ab\u30ab\u3099", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0641\u0627\u0631\u0633\u06cc \u05e2\u05d1\u05e8\u05d9\u05ea\u064b",
         "\u0939\u093f\u0928\u094d\u0926\u0940 \u0926\u0947\u0935\u0928\u093e\u0917\u0930\u0940 \u09ac\u09be\u0982\u09b2\u09be \u0b95\u0bcd\u0958\u093c", "\u0e44\u0e17\u0e22\u0e20\u0e32\u0e29\u0e32\u0e33\u0e49",
         "\u20ac$\u00a3%^&*()_+-=[]{}|;':\",./<>?`~\u2014\u201c\u201d\u2026", "0123456789\u0660\u0661\u0662\u0967\u0968\u00bd\u2163", "abcdefg hijk LMNOP qrs 's 't 'LL 've 'RE '\u017f don't do not n't ",
         "\u00aa\u00ba\u00bc\u00bd\u2163\u2178\u24b6\u3231\u3300\u2103\ufdfa\u2122\u00a9\u212b", "\u03a3\u03c3\u03c2 \u0130\u0131\u015e\u015f \u1e9e\u00df \u0149 \u01f0", "<s></s><unk>\u2581_##[SEP]", "x\U00013000y\u02b1\ufffd\ue000\U000e0041"]
SPECIALS = ["[SEP]", "[MASK]", "<mask>", "</s>", "<s>", "<pad>", "<unk>", "<extra_id_7>", "<|endoftext|>", "[NEW1]", "[UNK]"]
HAND = ["", " ", "  ", "a", "\u2581", "\u2581\u2581a", "  a", "a  ", "a  b", "a\u00a0\u00a0b", "\n", "a\n\nb", "\u00a9\u200d\u2122\u0308", "\u0600e\u0308", "\u0915\u094d\u0958\u0300", "\u302e\U0001d165a", "e\u0323\u0301\u302e",
        "a\r\nb", "\u200d", "\u0308", " \u0308", "x" * 100, "x" * 101, "\u00e9" * 100, "e\u0301" * 51, "\U0001F642" * 40, "https://example.org/a/b?c=d&e=%20f#g", "IT'S we'LL 'tis", "    def f(x):\n        return x  # y\n\n\n",
        "\uff1cs\uff1e \uff1cunk\uff1e", "<s>x</s>", "a <mask> b", " <extra_id_1> \n b", "word<extra_id_0>word", "[SEP][SEP]", "tab\there", "\x00\x01a\x00", "\u0b95\u0bcb", "fi\ufb01", "1234567 12 1 1,234.5", "\t \n \t x", "'" * 30, "\u0130stanbul"]


def texts():
    """Some 4,000 lines: real text in nine languages, code, and random mixtures of what tokenizers stumble over. Needs ../shared/data."""
    out = list(HAND)
    for path in sorted(glob.glob(os.path.join(DATA, "distill", "*.jsonl"))):
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file):
                text = json.loads(line)["origin"]
                out += [part for part in text.split("\n") if part][number % 3::5][:4]
                if "p5" in path or number < 3:
                    out.append(text)
    for path in sorted(glob.glob(os.path.join(DATA, "text", "**", "*.txt"), recursive=True)):
        with open(path, encoding="utf-8", errors="ignore") as file:
            out += file.read().split("\n")[200:2200:50]
    for name in ("tensor.c", "base.c", "export_tokenizer.py", "test/run.py"):
        with open(os.path.join(ROOT, name), encoding="utf-8") as file:
            out += file.read().split("\n")[:120]
    return out + mixtures(2000, 5)


def mixtures(count, seed):
    draw, out = random.Random(seed), []
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 30)):
            if draw.random() < 0.04:
                parts.append(draw.choice(["", " "]) + draw.choice(SPECIALS) + draw.choice(["", "  "]))
            parts.append("".join(draw.choice(draw.choice(POOLS)) for _ in range(draw.randint(1, 4))))
        out.append("".join(parts))
    return out


CODES = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
SWEEPS = {"alone": CODES, "between": ["a%sb" % c for c in CODES], "spaced": ["x %s" % c for c in CODES]}
