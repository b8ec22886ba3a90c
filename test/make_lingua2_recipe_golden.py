"""Make test/golden/lingua2-recipe.json.gz: what both recipes of `lingua2 train` make of some lines, as losses and counts of labels of small random models in float64.

usage: python3 test/make_lingua2_recipe_golden.py FOLDER        the folder with utils.py of the authors' model_training (microsoft/LLMLingua); needs torch, transformers

paper: examples are made by the authors' TokenClfDataset, unchanged; `spacy`, which it imports, is replaced by what gives it our words. One line a case.
ours: the text as it stands, by transformers' fast tokenizers; a piece has the label of the first word that it overlaps. All lines in one batch.
"""
import gzip
import hashlib
import json
import os
import random
import sys
import types

import torch
import transformers

from make_models import MODELS, make

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NAMES = ["bert-base-multilingual-cased-uncased", "xlm-roberta-large-tiny"]
TEXT = "Well, the committee's Ümlaut report — 1,250 pages — was (finally) accepted. Nobody, of course, read it: \u6771\u4eac\u3078 moved on!  Next, lunch."


def cases():
    """[(words, labels)]: some words, words with commas and specials, none, and so many that they end at, one before and behind the last of 512 pieces."""
    dice = random.Random(1)
    lists = [TEXT.replace(",", " ,").split(), ["a", ",", "[SEP]", "<mask>", "unbelievable", ","], [], ["the"]]
    lists += [["the"] * n for n in (509, 510, 511, 512, 700)]
    return [(words, [dice.random() < 0.5 for _ in words]) for words in lists]


def lines():
    """Annotated lines whose ids put them into every part, cut into words at blanks; long enough for two windows."""
    dice, rows = random.Random(2), []
    for n, text in enumerate([TEXT, "Second text, short.", TEXT * 9, "x", TEXT.upper(), "To choose by: " + TEXT]):
        spans, at = [], 0
        for word in text.split(" "):
            size = len(word.encode())
            if size and dice.random() < 0.9:  # some characters belong to no word
                spans.append([at, at + size])
            at += size + 1
        id_ = next("t%d" % i for i in range(1000 * n, 10 ** 6) if (bucket("t%d" % i) == 1) == (n == 5) and bucket("t%d" % i) != 0)
        rows.append({"id": id_, "origin": text, "spans": spans, "labels": [dice.random() < 0.5 for _ in spans]})
    return rows


def bucket(text):
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10


def measured(model, ids, mask, labels):
    """The loss; of the labels of real pieces how many there are, how many come out right, and how often keep comes out where it should."""
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, labels=labels)
    counted = (mask == 1) & (labels >= 0)
    keep, right = out.logits.argmax(-1)[counted] == 1, labels[counted] == 1
    return {"loss": out.loss.item(), "labels": int(counted.sum()), "right": int((keep == right).sum()), "keep": int((keep & right).sum())}


def paper(name, model, tokenizer):
    from utils import TokenClfDataset
    results = []
    for words, labels in cases():
        sys.modules["spacy"].words = words
        kept = [label for word, label in zip(words, labels) if word != ","]
        sample = TokenClfDataset([""], [kept], 512, tokenizer=tokenizer, model_name=name)[0]
        results.append(measured(model, *(sample[k][None] for k in ("ids", "mask", "targets"))))
    return results


def ours(model, tokenizer, rows):
    windows = []
    for row in rows:
        encoding = tokenizer(row["origin"], add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], [tuple(len(row["origin"][:end].encode()) for end in pair) for pair in encoding["offset_mapping"]]
        overlap = [[label for (start, end), label in zip(row["spans"], row["labels"]) if start < e and s < end] for s, e in offsets]
        labels = [int(o[0]) if o else -100 for o in overlap]
        for at in range(0, len(ids), 510):
            if max(labels[at:at + 510]) >= 0:
                windows.append(([tokenizer.cls_token_id] + ids[at:at + 510] + [tokenizer.sep_token_id], [-100] + labels[at:at + 510] + [-100]))
    longest = max(len(ids) for ids, _ in windows)
    pad = lambda rows, fill: torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
    result = measured(model, pad([i for i, _ in windows], tokenizer.pad_token_id), pad([[1] * len(i) for i, _ in windows], 0), pad([l for _, l in windows], -100))
    return {**result, "sequences": len(windows)}


def main():
    sys.path.insert(0, os.path.abspath(sys.argv[1]))
    sys.modules["spacy"] = stub = types.SimpleNamespace(load=lambda _: lambda text: [types.SimpleNamespace(lemma_=w) for w in stub.words])
    os.chdir(ROOT)
    golden = {"cases": [{"words": words, "labels": labels} for words, labels in cases()], "lines": lines(), "models": {}, "made with": "torch %s, transformers %s" % (torch.__version__, transformers.__version__)}
    for name in NAMES:
        path = make(os.path.join(ROOT, "build", "test-models"), name, MODELS[name])
        model, tokenizer = transformers.AutoModelForTokenClassification.from_pretrained(path).double().eval(), transformers.AutoTokenizer.from_pretrained(path)
        golden["models"][name] = {"paper": paper(name, model, tokenizer), "learn": ours(model, tokenizer, golden["lines"][:-1]), "choose": ours(model, tokenizer, golden["lines"][-1:])}
    with gzip.GzipFile("test/golden/lingua2-recipe.json.gz", "wb", mtime=0) as file:
        file.write(json.dumps(golden).encode())


main()
