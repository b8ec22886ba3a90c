"""What the small language model and its distiller learn from and are tested on, and the model that training begins with. Standard library alone.

usage: python3 models/mend_tasks.py OUT

A task binds C categories of words (categories.txt: 48 of 12) to C labels drawn by chance; nothing but demonstrations says which label is whose. Families differ in what counts:
  category   both words are of the label's category          first, last   that one is, the other word is any word          word   one certain word stands among others
The last 8 categories are held out: no task for training has them, only the lists of words do; so are whole tasks of the other categories, their bindings being new.

OUT/lists.jsonl      words of one category in a row, of all 48
OUT/two.jsonl        tasks of 2 labels; OUT/tasks.jsonl: of 2 to 4 labels, family category; OUT/families.jsonl: of all families
OUT/eval             MetaICL's layout: TASK/TASK_16_SEED_train.jsonl (32 demonstrations), TASK_16_SEED_test.jsonl (50 queries); seen-FAMILY-N, held-FAMILY-N; OUT/eval/tasks.json: their names
OUT/demo             what `make demo` shows: 32 demonstrations of one binding of 4 labels, 40 queries
OUT/start            a Hugging Face folder: a GPT-2 of 4 layers x 128 whose attention is wired to look back (`wire`), everything else by chance
"""
import json
import math
import os
import random
import struct
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CATEGORIES = [line.split()[1:] for line in open(os.path.join(ROOT, "models", "categories.txt"), encoding="utf-8")]
LABELS = """dax wug blick fep toma zorp kiki bouba snarf glim plonk quib vash drel mub trell yorp zint corl bim frab glorp hask jeeb klom lirp morf
nask osk plim quon rell skib tulp urm vint welp xan yim zeb""".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + sorted({w for c in CATEGORIES for w in c} | set(LABELS))
HELD_OUT, FAMILIES, SEEDS = 8, ("category", "first", "last", "word"), (100, 13, 21, 42, 87)
SEEN, HELD = CATEGORIES[:-HELD_OUT], CATEGORIES[-HELD_OUT:]
L, C, H, P = 4, 128, 4, 160


# ---- tasks ----

class Task:
    """C labels bound to C categories by chance."""

    def __init__(self, name, family, classes, categories, dice):
        self.name, self.family, self.categories, self.dice = name, family, categories, dice
        self.labels, self.bound = dice.sample(LABELS, classes), dice.sample(categories, classes)
        self.word = [dice.choice(c) for c in self.bound]

    def example(self, label):
        dice, own = self.dice, self.bound[label]
        two, other = dice.sample(own, 2), dice.choice(dice.choice(self.categories))
        if self.family == "first":
            two[1] = other
        elif self.family == "last":
            two[0] = other
        elif self.family == "word":
            two = dice.sample([self.word[label], other], 2)
        return {"task": self.name, "input": " ".join(two), "output": self.labels[label], "options": self.labels}

    def even(self, n):
        """n examples, each label as often as the others."""
        order = [i % len(self.labels) for i in range(n)]
        self.dice.shuffle(order)
        return [self.example(i) for i in order]


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")


def training(out, dice):
    write_lines(os.path.join(out, "lists.jsonl"), ({"text": " ".join(dice.choices(dice.choice(CATEGORIES), k=40))} for _ in range(6000)))
    for file, families, classes in (("two", ("category",), (2,)), ("tasks", ("category",), (2, 3, 4)), ("families", FAMILIES, (2, 3, 4))):
        tasks = [Task("%s-%d" % (file, i), families[i % len(families)], dice.choice(classes), SEEN, dice) for i in range(4000)]
        write_lines(os.path.join(out, file + ".jsonl"), (e for t in tasks for e in t.even(48)))


def evaluation(out, dice, tasks=4, demonstrations=32, queries=50):
    os.makedirs(out, exist_ok=True)
    names = {}
    for where, categories in (("seen", SEEN), ("held", HELD)):
        for family in FAMILIES:
            for i in range(tasks):
                task = Task("%s-%s-%d" % (where, family, i), family, 4, categories, dice)
                names.setdefault("%s-%s" % (where, family), []).append(task.name)
                os.makedirs(os.path.join(out, task.name), exist_ok=True)
                for seed in SEEDS:
                    for part, n in (("train", demonstrations), ("test", queries)):
                        write_lines(os.path.join(out, task.name, "%s_16_%d_%s.jsonl" % (task.name, seed, part)), task.even(n))
    with open(os.path.join(out, "tasks.json"), "w", encoding="utf-8") as file:
        json.dump(names, file, indent=1)


def demo(out, dice):
    os.makedirs(out, exist_ok=True)
    task = Task("categories", "category", 4, SEEN, dice)
    write_lines(os.path.join(out, "demonstrations.jsonl"), task.even(32))
    write_lines(os.path.join(out, "queries.jsonl"), task.even(40))


# ---- the model to begin with ----

def zeros(rows, columns):
    return [[0.0] * columns for _ in range(rows)]


def normal(dice, rows, columns, deviation):
    """Nearly normal numbers, by sums alone: the same on every machine."""
    return [[(sum(dice.random() for _ in range(12)) - 6) * deviation for _ in range(columns)] for _ in range(rows)]


def rotation(dice, n):
    """A random orthogonal matrix: rows made orthogonal one after another."""
    rows = []
    for row in normal(dice, n, n, 1):
        for other in rows:
            along = sum(a * b for a, b in zip(row, other))
            row = [a - along * b for a, b in zip(row, other)]
        length = math.sqrt(sum(a * a for a in row))
        rows.append([a / length for a in row])
    return rows


def wire(t, dice):
    """Begin where a plateau of training ends. Layer 0 looks one and two rows back; layer 1 compares the words seen there with the words before each label, and copies
    that label: an induction head. Positions begin as waves in 32 dimensions, words in the other 96. All of it is trained."""
    W, half = 32, 16
    angle = [0.1 + i * 2.9 / (half - 1) for i in range(half)]
    t["wpe.weight"] = [[0.3 * f(p * a) for f in (math.sin, math.cos) for a in angle] + [0.0] * (C - W) for p in range(P)]
    t["wte.weight"] = [[0.0] * W + [6 * x for x in row[W:]] for row in t["wte.weight"]]
    first, first_out, second, second_out = (t["h.%d.attn.%s.weight" % (i, m)] for i in (0, 1) for m in ("c_attn", "c_proj"))
    for h in range(H):
        q, k, v = (part * C + W * h for part in range(3))  # the columns of this head
        turn, back, seen, label = 1 + h % 2, rotation(dice, C - W), W + 32 * (h // 2), W + 32 * (h % 3)
        for i in range(C):
            for j in range(W):
                first[i][v + j] = float(i - seen == j)
                if i < W:
                    first[i][k + j] = float(i == j)
                    same, sine, cosine = i % half == j % half, math.sin(turn * angle[i % half]), math.cos(turn * angle[i % half])
                    first[i][q + j] = 0.0 if not same else cosine if i // half == j // half else sine if j >= half else -sine  # sin(a - s) = sin a cos s - cos a sin s
                else:
                    second[i][k + j] += 2 * back[j][i - W]
                if i - seen == j:
                    second[i][q + j] += 2
                if i - label == j:
                    second[i][v + j] += 1
        for j in range(W):
            first_out[W * h + j] = [0.0] * W + [0.25 * x for x in back[j]]
            second_out[W * h + j][label + j] += 2


def start(out, dice):
    t = {"wte.weight": normal(dice, len(VOCABULARY), C, 0.02), "ln_f.weight": [[1.0] * C], "ln_f.bias": zeros(1, C)}
    for i in range(L):
        for name, rows, columns in (("attn.c_attn", C, 3 * C), ("attn.c_proj", C, C), ("mlp.c_fc", C, 4 * C), ("mlp.c_proj", 4 * C, C)):
            t["h.%d.%s.weight" % (i, name)] = normal(dice, rows, columns, 0.02 / (math.sqrt(2 * L) if name.endswith("c_proj") else 1))
            t["h.%d.%s.bias" % (i, name)] = zeros(1, columns)
        for name in ("ln_1", "ln_2"):
            t["h.%d.%s.weight" % (i, name)], t["h.%d.%s.bias" % (i, name)] = [[1.0] * C], zeros(1, C)
    wire(t, dice)
    os.makedirs(out, exist_ok=True)
    header, data = {}, b""
    for name, rows in t.items():
        shape = [len(rows[0])] if "ln" in name or name.endswith("bias") else [len(rows), len(rows[0])]
        bytes_ = b"".join(struct.pack("<%df" % len(row), *row) for row in rows)
        header["transformer." + name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(bytes_)]}
        data += bytes_
    text = json.dumps(header).encode()
    with open(os.path.join(out, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
    with open(os.path.join(out, "vocab.txt"), "w", encoding="utf-8") as file:
        file.write("".join(w + "\n" for w in VOCABULARY))
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": len(VOCABULARY), "n_positions": P, "n_embd": C, "n_layer": L, "n_head": H, "n_inner": 4 * C,
              "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    with open(os.path.join(out, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1)


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    training(out, random.Random(1))
    evaluation(os.path.join(out, "eval"), random.Random(2))
    start(os.path.join(out, "start"), random.Random(3))
    demo(os.path.join(out, "demo"), random.Random(4))


main()
