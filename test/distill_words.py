"""What test_distill.py and make_distill_golden.py both need: the texts of data/distill, compressions spoiled in known ways, and word lists that stand in
for those of spaCy. All by plain rules, so that every Python makes the same."""
import glob
import json
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SETS = [("as it is", 150), ("as it is", 400), ("spoiled", 20), ("spoiled", 150)]  # compressions and search window


def pairs():
    """[(origin, comp)] of all of data/distill."""
    lines = [json.loads(line) for path in sorted(glob.glob(os.path.join(ROOT, "data", "distill", "*.jsonl"))) for line in open(path, encoding="utf-8")]
    return [(e["origin"], e["comp"]) for e in lines]


def spoil(comp, number):
    """Every so many words one is foreign, one is there twice, one is capitalised; in some texts the halves change places."""
    words, out = comp.split(), []
    for i, word in enumerate(words):
        out.append("foreign%d" % i if i % (5 + number % 23) == 3 else word.upper() if i % 4 == 1 else word)
        if i % (6 + number % 17) == 2:
            out += [word] * (1 + number % 3)
    if number % 5 == 0:
        out = out[len(out) // 2:] + out[:len(out) // 2]
    return " ".join(out)


def compressions(kind):
    return [(origin, comp if kind == "as it is" else spoil(comp, i)) for i, (origin, comp) in enumerate(pairs())]


def words(text):
    """Words without commas; a plural s is cut off, so that lemmas differ from forms."""
    return [w[:-1] if len(w) > 3 and w.endswith("s") else w for w in re.findall(r"[^\s.,;:!?()\"]+|[.;:!?()\"]", text)]
