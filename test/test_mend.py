"""mend on small random models: its numbers against golden ones of transformers and the released code (test/make_mend_golden.py), its prompts
against those of the released data code (test/make_mend_prompts.py), properties that hold to the bit, and the command line.
Standard library alone; the models are made here (test/make_mend_models.py, export.py) and need the tokenizers of ../shared/assets, else all is skipped.
What the command line cannot be asked goes to the test program of test/test_mend.c."""
import collections
import concurrent.futures
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import struct
import resource
import subprocess
import sys
import tempfile

from checks import check, finish, skip

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
MODELS = os.path.join(BUILD, "test-models")
MEND, ANSWER, BERT = os.path.join(ROOT, "mend"), os.path.join(BUILD, "test_mend"), os.path.join(ROOT, "models", "default.safetensors")
ASSETS = os.path.join(ROOT, "..", "shared", "assets")
# PyTorch's float32 misses float64 by so much; our float32 with float64 sums rounds at fewer places and must be at least as near.
# `fast` adds up in float32 one product after another, where PyTorch adds up in blocks: as many roundings in a longer chain.
AT_MOST = {"reference": 1.0, "fast": 3.0}
STRIDE = int(os.environ.get("TEST_STRIDE", "1"))  # of the golden cases of each kind every so many are taken (test/run.py)


# ==== models, programs ====

def flat(name):
    """The model's flat file, made if it is not there or older than its makers."""
    path = os.path.join(MODELS, name + ".safetensors")
    makers = [os.path.join(ROOT, f) for f in ("export.py", "export_tokenizer.py", "test/make_models.py", "test/make_mend_models.py")]
    if not os.path.exists(path) or os.path.getmtime(path) < max(map(os.path.getmtime, makers)):
        subprocess.run([sys.executable, "test/make_mend_models.py", MODELS, name], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        folder = os.path.join(MODELS, name)
        weights = os.path.join(folder, "pytorch_model.bin")
        weights = weights if os.path.exists(weights) else os.path.join(folder, "model.safetensors")
        more = ["--mend", weights] if name.startswith("mend") else []
        subprocess.run([sys.executable, "export.py", folder, *more, "-o", path], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return path


def flats(names):
    """Those models' files, made side by side."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(flat, names))


def run(arguments, stdin=b"", **more):
    return subprocess.run([MEND] + [str(a) for a in arguments], input=stdin, stdout=more.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE, timeout=1500, **more)


def output(*arguments, stdin=b""):
    """Standard output of a call that must succeed."""
    if "--threads" not in arguments:
        arguments += ("--threads", "1")
    done = run(list(arguments), stdin)
    check(done.returncode == 0, "mend %s: exit %d %s" % (" ".join(map(str, arguments))[:200], done.returncode, done.stderr[:300]))
    return done.stdout


def ask(questions, math="reference"):
    """The answers of test_mend.c."""
    return ask_all([(questions, math)])[0]


def ask_all(lists):
    """The answers to each [(questions, arithmetic)], asked side by side."""
    def one(asked):
        lines = "".join(json.dumps(q) + "\n" for q in asked[0])
        return subprocess.run([ANSWER, "answer", asked[1], "1"], input=lines.encode(), stdout=subprocess.PIPE, timeout=1500)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        all_done = list(pool.map(one, lists))
    answers = []
    for (questions, _), done in zip(lists, all_done):
        got = [json.loads(line) for line in done.stdout.splitlines()]
        check(done.returncode == 0 and len(got) == len(questions), "%d answers to %d questions, exit %d" % (len(got), len(questions), done.returncode))
        answers.append(got + [{"error": "no answer"}] * (len(questions) - len(got)))
    return answers


def strided(cases, kind):
    """Every STRIDE-th case of each kind."""
    seen = collections.Counter()
    for case in cases:
        if seen[kind(case)] % STRIDE == 0:
            yield case
        seen[kind(case)] += 1


def commas(ids):
    return ",".join(map(str, ids))


def golden(name):
    with gzip.open(os.path.join(HERE, "golden", name), "rt", encoding="utf-8") as f:
        return f.read()


# ==== numbers ====

def rows_of(case, prefix):
    """The numbers R of the keys prefix.R."""
    return sorted(int(k[len(prefix) + 1:]) for k in case["values"] if k.startswith(prefix + "."))


def context(case):
    """What a question says about what is read first."""
    q = {"llm": flat(case.get("llm", case.get("model"))), "channel": case.get("direction") == "channel", "encoder_input": case.get("encoder_input", False)}
    if case.get("method") == "icl":
        q.update(icl=True, demos=case["demos"])
    elif case.get("mend") and case.get("method", "mend") == "mend":
        q.update(mend=flat(case["mend"]), demos=case["demos"])
    return q


def questions_of(case):
    """Questions about a case, and for each the group of values it gives and their keys."""
    kind = case["kind"]
    if kind in ("gpt2", "t5-encoder", "t5"):
        group = "hidden" if kind == "gpt2" else "encoder"
        rows = rows_of(case, group)
        q = {"do": "hidden", "model": flat(case["model"]), "rows": rows, "ids": case.get("ids"), "encoder": case.get("encoder")}
        yield group, ["%s.%d" % (group, r) for r in rows], q
        if kind == "t5":
            rows = rows_of(case, "logit")
            q = {"do": "logits", "model": flat(case["model"]), "rows": rows, "columns": case["columns"], "encoder": case["encoder"], "decoder": case["decoder"]}
            yield "logit", ["logit.%d" % r for r in rows], q
    elif kind in ("distill", "t5-distill"):
        apart = case.get("separated") or {}
        q = {"do": "vectors", "mend": flat(case["mend"]), "demos": case["demos"], "label_rows": apart.get("label_rows", 0), "separate_input": apart.get("both", False)}
        if "labels" in case:
            q["labels"] = case["labels"]
        yield "row", None, q
    elif kind == "logprob":
        yield "logprob", ["logprob"], dict(context(case), do="logprob", ids=case["ids"])
    elif kind in ("score", "t5-score"):
        yield "score", ["score"], dict(context(case), do="scores", x=case["x"], options=case["options"])


def command_logprobs(cases, math):
    """The same numbers as a user gets them."""
    def one(case):
        more = ["--ids", commas(case["ids"])] if case["kind"] == "gpt2" else ["--ids", commas(case["decoder"][1:]), "--encoder-ids", commas(case["encoder"])]
        return json.loads(output("logprob", "-l", flat(case["model"]), "--json", "--math", math, *more))["logprob"]
    return [one(case) for case in cases]


class Misses:
    """Sums of squares of what we and PyTorch in float32 miss float64 by. The cases of one kind and model are taken together: one alone gives too
    few numbers to compare deviations."""

    def __init__(self):
        self.ours, self.theirs, self.n, self.worst, self.bound = (collections.Counter() for _ in range(5))

    def add(self, case, group, got, want):
        key = (case["kind"], case.get("model") or "%s %s" % (case.get("llm", ""), case["mend"]), group)
        what = "%s %s" % (" ".join(key), str({k: case[k] for k in ("method", "direction", "separated", "encoder_input") if k in case}))
        check(len(got) == len(want), "%s: %d numbers for %d" % (what, len(got), len(want)))
        apart = [a - b for a, b in zip(got, want)]
        self.ours[key] += sum(d * d for d in apart)
        self.theirs[key] += len(want) * float(case["f32"][group]["rms"]) ** 2
        self.n[key] += len(want)
        worst = max(map(abs, apart), default=0)
        # One case against its own kind's deviation: a mistake in one number of one case shows here, whatever the sum of all says.
        check(worst <= 2e-5, "%s: off by %.2g" % (what, worst))

    def compare(self, mode):
        for key, n in self.n.items():
            ours, theirs = (math.sqrt(x[key] / n) for x in (self.ours, self.theirs))
            check(ours <= AT_MOST[mode] * theirs, "%s %s: %.3g from float64, PyTorch's float32 %.3g" % (mode, " ".join(key), ours, theirs))
            if os.environ.get("VERBOSE"):
                print("%-9s %-50s %6d numbers: %.2f of PyTorch's %.2e" % (mode, " ".join(key), n, ours / theirs, theirs))


KIND = ("kind", "model", "llm", "mend", "method", "direction", "encoder_input", "separated")


def numbers():
    cases = list(strided(json.loads(golden("mend-numbers.json.gz"))["cases"], lambda c: str([c.get(k) for k in KIND])))
    plan = [(case, *q) for case in cases for q in questions_of(case)]
    shared, questions = {}, [q for *_, q in plan]
    for mode, answers in zip(AT_MOST, ask_all([(questions, mode) for mode in AT_MOST])):
        misses = Misses()
        shared[mode] = [got for (_, group, _, _), got in zip(plan, answers) if group == "score"]
        for (case, group, keys, question), got in zip(plan, answers):
            if "error" in got:
                check(False, "%s: %s" % (case["kind"], got["error"]))
                continue
            if group == "row":
                rows = rows_of(case, "row")
                check(len(got) == len(case["demos"]) * {"mend-tiny": 7, "mend-same": 100, "mend-t5-tiny": 9}[case["mend"]], "%d vectors of %s" % (len(got), case["mend"]))
                got, keys = [got[r] for r in rows], ["row.%d" % r for r in rows]
            if group == "score":
                check(max(range(len(got)), key=lambda i: (got[i], -i)) == case["prediction"], "%s: prediction of %s" % (case["kind"], got))
            got = [x for row in got for x in row] if got and isinstance(got[0], list) else got
            misses.add(case, group, got, [float(x) for key in keys for x in case["values"][key]])
        asked = [c for c in cases if c["kind"] in ("gpt2", "t5") and c["values"]["logprob"]]
        for case, got in zip(asked, command_logprobs(asked, mode)):
            misses.add(case, "logprob", got, [float(x) for x in case["values"]["logprob"]])
        if STRIDE == 1:  # a few cases alone are too few to compare deviations
            misses.compare(mode)
        greedy([c for c in cases if c["kind"] == "greedy"], mode)
    parts(plan, shared)
    for case in cases:
        if case["kind"] == "t5-buckets":
            got = ask([{"do": "buckets", "model": flat("t5-tiny"), "decoder": not case["bidirectional"], "span": case["span"]}])[0]
            check(got == case["buckets"], "buckets of relative positions, both ways: %s" % case["bidirectional"])


def greedy(cases, mode):
    for case in cases:
        if "mend" in case:
            got = ask([dict(context(case), do="greedy", ids=case["ids"], n=20)], mode)[0]
        else:
            more = ["--ids", commas(case["ids"])] if "ids" in case else ["--encoder-input", "--ids", commas(case["encoder"])]
            got = json.loads(output("generate", "-l", flat(case["model"]), "--json", "--math", mode, "-n", 20, *more))["ids"]
        check(got == case["continuation"], "%s, greedy: %s, transformers %s" % (case["model"], got, case["continuation"]))


def parts(plan, shared):
    """Options that share what was read score as each by itself (`whole`: in one forward pass), to the bit; generating goes on as if read at once."""
    scores = [q for _, group, _, q in plan if group == "score"]
    ways = [(more, mode) for more in ("whole", "alone") for mode in AT_MOST]
    # One arithmetic does not read in parts otherwise than the other: each takes its half of the cases.
    asked = [[i for i, q in enumerate(scores) if (i % 2 == 0) == (mode == "fast") and (more == "whole" or (q["llm"] == flat("gpt2-tiny") and "mend" not in q))]
             for more, mode in ways]
    for (more, mode), some, answers in zip(ways, asked, ask_all([([dict(scores[i], **{more: True}) for i in some], mode) for some, (more, mode) in zip(asked, ways)])):
        for i, got in zip(some, answers):
            check(got == shared[mode][i], "%s: together %s, %s %s" % ({k: scores[i][k] for k in ("channel", "encoder_input")}, shared[mode][i], more, got))
    ids = list(range(1000, 1300))
    for llm in ("gpt2-tiny", "gpt2-base-tiny"):
        questions = [{"do": "greedy", "llm": flat(llm), "ids": ids, "n": 12, "cuts": cuts} for cuts in ([], [1], [299], [7, 8, 130], list(range(1, 300, 13)))]
        for mode in ("reference", "fast"):
            made = ask(questions, mode)
            check(len(made[0]) == 12 and all(m == made[0] for m in made), "%s, read in parts: %s" % (llm, made))


# ==== prompts ====

def text_of(where, texts):
    i, a, b = where
    return texts[i][a:b]


def digest(ids):
    return list(ids) if len(ids) <= 16 else {"n": len(ids), "sha256": hashlib.sha256(struct.pack("<%dI" % len(ids), *ids)).hexdigest(), "first": ids[:8], "last": ids[-8:]}


def runs(mask):
    """Maximal runs of ones."""
    found, start = [], None
    for i, bit in enumerate(mask + "0"):
        if bit == "1" and start is None:
            start = i
        elif bit == "0" and start is not None:
            found.append([start, i])
            start = None
    return found


def prompt_question(task, texts):
    def example(e):
        options = [text_of(o, texts) for o in e.get("options", task.get("options", []))]
        out = options[e["output"]] if isinstance(e["output"], int) else text_of(e["output"], texts)
        unique = list(dict.fromkeys(options))  # a task of ours names each option once
        return {"task": task["task"], "input": text_of(e["input"], texts), "output": out, "options": unique or ["NONE"]}, [unique.index(o) for o in options] or [0]
    demos, (query, order) = [example(d)[0] for d in task["demos"]], example(task["query"])
    return {"do": "prompt", "llm": flat(task["tokenizer"] + "-tiny"), "channel": task["method"] == "channel", "limits": task["limits"], "demos": demos, "query": query}, order


def prompts():
    header, *tasks = [json.loads(line) for line in golden("mend-prompts.jsonl.gz").splitlines()]
    tasks = list(strided(tasks, lambda t: (t["tokenizer"], t["method"])))
    asked = [prompt_question(task, header["texts"]) for task in tasks]
    cut = []
    for number, (task, (question, order), got) in enumerate(zip(tasks, asked, ask([q for q, _ in asked]))):
        expect, what = task["expect"], "task %d %s %s %s" % (number, task["task"], task["method"], task["tokenizer"])
        if task["method"] == "channel" and expect["x"] == []:  # there is nothing to score: the reference divides 0 by 0
            check("the input, which is empty" in got.get("error", ""), "%s: %s" % (what, got))
            continue
        if "error" in got:
            check(False, "%s: %s" % (what, got["error"]))
            continue
        options, x, demos = [got["options"][i] for i in order], got["x"], got["demos"]
        for name, ours, theirs in (("distiller", digest(got["distiller"]), expect["distiller"]["ids"]), ("labels", runs(got["labels"]), expect["distiller"]["labels"]),
                                   ("demonstrations", digest(demos), expect["teacher"]["demos"]), ("x", digest(x), expect["x"]),
                                   ("options", [digest(o) for o in options], expect["options"])):
            check(ours == theirs, "%s: %s: %s, the released code has %s" % (what, name, ours, theirs))
        pairs = [(o, x) if task["method"] == "channel" else (x, o) for o in options]
        if task["tokenizer"] == "gpt2":
            limit, full = task["limits"][0], []
            for a, b in pairs:
                ids = (demos + a + b)[-limit:]
                full.append({"ids": digest(ids), "score": [len(ids) - len(b), len(ids)]})
            check(full == expect["teacher"]["full"], "%s: the teacher's sequences" % what)
            longest = max(len(demos + a + b) for a, b in pairs)
            if demos + x and (longest > limit or number % 100 == 0):
                cut.append((question, pairs, demos, limit, longest > limit))
        elif demos and number % 20 in (2, 5):
            cut.append((question, pairs, demos, task["limits"][0], False))
    scored_as_shown(cut)


def scored_as_shown(tasks):
    """The scores of tasks, above all those that are cut from the left, are those of the released code's sequences, each in one pass."""
    def some(tasks, n):  # the least work first, each method and tokenizer in turn
        kinds = collections.defaultdict(list)
        for task in sorted(tasks, key=lambda t: len(t[1])):
            kinds[task[0]["llm"], task[0]["channel"]].append(task)
        return [task for row in itertools.zip_longest(*kinds.values()) for task in row if task][:n]
    overflowing = [t for t in tasks if t[4]]
    check(STRIDE > 1 or len(overflowing) >= 12, "%d tasks are longer than the limit" % len(overflowing))
    tasks, alone = some(overflowing, 8) + some([t for t in tasks if not t[4]], 8), []
    for question, pairs, demos, limit, _ in tasks:
        for a, b in pairs:
            if question["llm"] == flat("t5-tiny"):
                alone.append({"do": "scores", "whole": True, "llm": question["llm"], "icl": True, "demos": [demos], "x": a, "options": [b]})
            else:
                ids = (demos + a + b)[-limit:]
                alone.append({"do": "scores", "whole": True, "llm": question["llm"], "x": ids[:-len(b)], "options": [b]})
    scores, ones = ask_all([([dict(q, score=True) for q, *_ in tasks], "fast"), (alone, "fast")])
    at = 0
    for (question, pairs, *_), got in zip(tasks, scores):
        one, at = [s[0] if isinstance(s, list) else s for s in ones[at:at + len(pairs)]], at + len(pairs)
        order = list(dict.fromkeys(question["query"]["options"]))
        check("error" not in got and set(got["scores"]) == set(one) and len(got["scores"]) == len(order),
              "scores %s, of the sequences as the released code has them %s" % (got.get("scores", got), one))


# ==== the command line ====

DEMOS = [{"task": "t", "input": "The food was cold and the waiter rude.", "output": "negative", "options": ["negative", "positive"]},
         {"input": "A lovely evening; we will come again!", "output": "positive"},
         {"input": "Never again.\nNot even for free \u2014 ask my caf\u00e9.", "output": "negative"},
         {"input": "", "output": "positive"},
         {"input": "It was " + "very " * 400 + "good.", "output": "positive"}]
QUERIES = [{"input": "The soup was a delight.", "options": ["negative", "positive"]},
           {"input": "Who wrote this?", "output": "a friend", "options": ["nobody knows", "a friend of the cook", "a friend", "x"]},
           {"input": "One two three", "options": ["only this"]},
           {"input": "long " * 70, "options": ["yes", "no", "perhaps, if it " + "so " * 9 + "seems"]}]


def lines(examples):
    return "".join(json.dumps(e) + "\n" for e in examples).encode()


class Folder:
    """A scratch folder whose files are named by what they hold."""

    def __init__(self, path):
        self.path = path

    def put(self, name, content):
        path = os.path.join(self.path, name)
        with open(path, "wb") as f:
            f.write(content if isinstance(content, bytes) else lines(content))
        return path

    def at(self, name):
        return os.path.join(self.path, name)


def read_vectors(path):
    """Rows as bytes, and the metadata, of a vectors file, read by hand."""
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8:8 + n]), raw[8 + n:]
    tensor = header["vectors"]
    rows, width = tensor["shape"]
    check(tensor["dtype"] == "F32" and tensor["data_offsets"] == [0, len(data)] and len(data) == 4 * rows * width and set(header) == {"__metadata__", "vectors"},
          "vectors file: %s" % header)
    return [data[4 * width * r:4 * width * (r + 1)] for r in range(rows)], header["__metadata__"]


def floats(rows):
    return [struct.pack("<%df" % len(row), *row) for row in rows]


def score(*arguments, queries=QUERIES):
    """[scores] of each query."""
    return [json.loads(line)["scores"] for line in output("score", "--json", *arguments, stdin=lines(queries)).splitlines()]


def contexts(folder):
    """Ways to put demonstrations before a query, as arguments."""
    demos = folder.put("demos.jsonl", DEMOS)
    gpt2, t5 = flat("gpt2-tiny"), flat("t5-tiny")
    yield ["-l", gpt2]
    yield ["-l", gpt2, "-d", demos]
    yield ["-l", gpt2, "-d", demos, "--channel"]
    yield ["-l", gpt2, "-d", demos, "-m", flat("mend-tiny")]
    yield ["-l", gpt2, "-d", demos, "-m", flat("mend-same"), "--groups", 2, "--channel"]
    yield ["-l", gpt2, "-d", demos, "-m", flat("mend-tiny"), "--label-rows", 3, "--separate-input"]
    yield ["-l", t5, "-d", demos]
    yield ["-l", t5, "-d", demos, "-m", flat("mend-t5-tiny"), "--encoder-input"]


def bits(folder):
    """What must not change a bit: threads, company, order; and a file between distilling and scoring."""
    for arguments in contexts(folder):
        name = " ".join(os.path.basename(str(a)) for a in arguments)
        one = score(*arguments, "--math", "fast")
        check(all(len(s) == len(q["options"]) for s, q in zip(one, QUERIES)) and len(one) == len(QUERIES), "%s: %s" % (name, one))
        for threads in (2, 3):
            check(score(*arguments, "--threads", threads) == one, "%s: %d threads give other bits" % (name, threads))
        order = [2, 0, 3, 1, 0]
        check(score(*arguments, queries=[QUERIES[i] for i in order]) == [one[i] for i in order], "%s: other bits in another order" % name)
        if "-d" in arguments and "--channel" not in arguments:  # an option that follows the demonstrations at once must not follow the last query
            empty = dict(QUERIES[0], input="")
            check(score(*arguments, queries=[QUERIES[0], empty])[1:] == score(*arguments, queries=[empty]), "%s: an empty input sees the query before it" % name)
        # The input is cut for the longest option, or for the output: the output must be there for options to be taken one by one.
        known = [dict(q, output=q["options"][-1]) for q in QUERIES]
        alone = score(*arguments, queries=[dict(q, options=[o]) for q in known for o in q["options"]])
        check([s for row in score(*arguments, queries=known) for s in row] == [s for row in alone for s in row], "%s: options one by one give other bits" % name)
        plain = output("score", *arguments, stdin=lines(QUERIES)).decode().splitlines()
        for line, scores, query in zip(plain, one, QUERIES):
            first = max(range(len(scores)), key=lambda i: (scores[i], -i))
            check(line == "%d\t%s\t%s" % (first, query["options"][first], " ".join("%.6f" % s for s in scores)), "%s: %r for %s" % (name, line, scores))
        if "-m" in arguments and "--encoder-input" not in arguments:
            vectors, made = folder.at("v.safetensors"), [a for a in arguments if a != "-l"]
            made.remove(arguments[1])
            output("distill", *made, "-l", arguments[1], "-o", vectors)
            check(score("-l", arguments[1], "-v", vectors, *[a for a in arguments if a == "--channel"]) == one, "%s: other bits by way of a file" % name)
    texts = [output("generate", "-l", flat("gpt2-tiny"), "--prompt", "Once upon a time", "--temperature", 0.9, "--top-p", 0.8, "--seed", seed, "--threads", threads)
             for seed, threads in ((1, 1), (1, 2), (1, 3), (2, 1))]
    check(texts[0] == texts[1] == texts[2] != texts[3], "generate: %s" % texts)
    texts = [output("logprob", "-l", flat("gpt2-tiny"), "--threads", threads, stdin=b"Once upon a time there was a dog.") for threads in (1, 2, 3)]
    check(texts[0] == texts[1] == texts[2] and texts[0].count(b"\n") == 9, "logprob: %s" % texts[0])


def distilling(folder):
    """mend distill from text to file: the pieces asked of test_mend.c, their vectors asked of it, and the file. The golden numbers hold those."""
    demos, out = folder.put("demos.jsonl", DEMOS), folder.at("vectors")
    for llm, mend, more in (("gpt2-tiny", "mend-tiny", {}), ("gpt2-tiny", "mend-tiny", {"--label-rows": 3}), ("gpt2-tiny", "mend-tiny", {"--label-rows": 3, "--separate-input": None}),
                            ("gpt2-tiny", "mend-same", {"--channel": None}), ("t5-tiny", "mend-t5-tiny", {"--label-rows": 4, "--separate-input": None})):
        for mode in ("reference", "fast"):
            options = [str(a) for pair in more.items() for a in pair if a is not None]
            output("distill", "-m", flat(mend), "-d", demos, "-o", out, "-l", flat(llm), "--math", mode, *options)
            rows, meta = read_vectors(out)
            prompt = ask([{"do": "prompt", "llm": flat(mend), "channel": "--channel" in more, "limits": [1024, 900], "demos": DEMOS, "query": QUERIES[0]}])[0]
            wanted = ask([{"do": "vectors", "mend": flat(mend), "demos": [prompt["distiller"]], "labels": [list(map(int, prompt["labels"]))],
                           "label_rows": more.get("--label-rows", 0), "separate_input": "--separate-input" in more}], mode)[0]
            check(rows == floats(wanted), "distill %s %s: the file holds other vectors" % (mend, options))
            hashes = {"demonstrations_sha256": hashlib.sha256(lines(DEMOS)).hexdigest(), "distiller_sha256": content_hash(flat(mend)), "llm_sha256": content_hash(flat(llm))}
            check(meta == dict(hashes, format="mend-vectors-1"), "distill %s: metadata %s, wanted %s" % (mend, meta, hashes))
    for ends in ((0, 3, 5), (0, 2, 4, 5), (0, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)):
        output("distill", "-m", flat("mend-tiny"), "-d", demos, "-o", out, "--groups", len(ends) - 1)
        rows, meta = read_vectors(out)
        apart = []
        for a, b in zip(ends, ends[1:]):
            output("distill", "-m", flat("mend-tiny"), "-d", folder.put("part.jsonl", DEMOS[a:b]), "-o", folder.at("part"))
            apart += read_vectors(folder.at("part"))[0]
        check(rows == apart and len(rows) == 7 * (len(ends) - 1), "%d groups are not the vectors of each put together: %d rows" % (len(ends) - 1, len(rows)))
    check(meta["llm_sha256"] == "any", "no language model was given, the file names %s" % meta["llm_sha256"])
    output("distill", "-m", flat("mend-tiny"), "-d", demos, "-o", "/dev/stdout", "-q")


def content_hash(path):
    with open(path, "rb") as f:
        return json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))["__metadata__"]["content_sha256"]


def expect(code, words, arguments, stdin=b"", **more):
    """Exit code, nothing on standard output, one line on standard error that holds all the words."""
    done = run(arguments, stdin, **more)
    message = done.stderr.decode("utf-8", "replace")
    shown = "%s -> %d %r" % (" ".join(map(str, arguments))[:300], done.returncode, message[:300])
    check(done.returncode == code, "wanted exit %d: %s" % (code, shown))
    check(all(str(w) in message for w in words) and message.count("\n") == 1, "wanted %s in one line: %s" % (words, shown))
    check(not done.stdout, "something on standard output: %s" % shown)


def usage(folder):
    demos, gpt2, mend = folder.put("demos.jsonl", DEMOS), flat("gpt2-tiny"), flat("mend-tiny")
    q = lines(QUERIES)
    expect(2, ["which command", "distill"], [])
    expect(2, ["no command 'distil'", "distill"], ["distil"])
    expect(2, ["-l is missing"], ["score"], q)
    expect(2, ["-l is missing"], ["generate", "--prompt", "x"])
    expect(2, ["-l LLM"], ["logprob"], b"text")
    expect(2, ["-m MEND"], ["distill", "-d", demos, "-o", folder.at("o")])
    expect(2, ["-o VECTORS"], ["distill", "-d", demos, "-m", mend])
    expect(2, ["-d DEMOS"], ["distill", "-o", folder.at("o"), "-m", mend])
    expect(2, ["-v", "either"], ["score", "-l", gpt2, "-v", demos, "-d", demos], q)
    expect(2, ["-m", "-d"], ["score", "-l", gpt2, "-m", mend], q)
    expect(2, ["--groups", "go with -m"], ["score", "-l", gpt2, "-d", demos, "--groups", 2], q)
    expect(2, ["--separate-input", "--label-rows"], ["score", "-l", gpt2, "-d", demos, "-m", mend, "--separate-input"], q)
    expect(2, ["--separate-input", "--label-rows"], ["distill", "-m", mend, "-d", demos, "-o", folder.at("o"), "--separate-input"])
    expect(2, ["--encoder-input", "T5"], ["score", "-l", gpt2, "--encoder-input"], q)
    expect(2, ["--groups 6", "5 demonstrations"], ["distill", "-m", mend, "-d", demos, "-o", folder.at("o"), "--groups", 6])
    expect(2, ["--label-rows 8", "7 rows"], ["distill", "-m", mend, "-d", demos, "-o", folder.at("o"), "--label-rows", 8])
    expect(2, ["one file"], ["score", "-l", gpt2, demos, demos])
    expect(2, ["--prompt or --ids"], ["generate", "-l", gpt2, "--prompt", "x", "--ids", 1])
    expect(2, ["--ids"], ["logprob", "-l", gpt2, "--ids", "1,,2"])
    expect(2, ["--ids"], ["logprob", "-l", gpt2, "--ids", ""])
    expect(2, ["a T5 needs --encoder-ids"], ["logprob", "-l", flat("t5-tiny"), "--ids", 5])
    expect(2, ["go with a T5"], ["logprob", "-l", gpt2, "--ids", 5, "--encoder-ids", 5])
    for option, value in (("--top-p", 2), ("--temperature", -1), ("--length", 0), ("--length", 1.5), ("--seed", "x")):
        expect(2, [option], ["generate", "-l", gpt2, "--prompt", "x", option, value])
    expect(2, ["one model file"], ["info"])
    for command in ([], ["distill"], ["score"], ["generate"], ["logprob"], ["info"]):
        done = run(command + ["--help"])
        check(done.returncode == 0 and b"usage: mend" in done.stdout and done.stderr == b"", "%s --help" % command)


def info(folder):
    """What a file holds, for people: sizes, vocabulary and hashes, and one line for the tensors of all layers; --json gives it all as it stands."""
    shown, raw = (output("info", *more, flat("gpt2-tiny")).decode() for more in ([], ["--json"]))
    raw = json.loads(raw)
    for line in ("architecture     GPT2LMHeadModel\n", "\ncontent sha256   %s\n" % content_hash(flat("gpt2-tiny")),
                 "\nsizes            n_layer 3, n_head 5, n_embd 20, n_inner 80, n_positions 1024, activation_function \"gelu_new\"", "\nvocabulary       kind \"bpe\", split \"gpt2\"\n",
                 "\npieces           50257\n", "\nspecial pieces   bos 50256, eos 50256\n", " F32 [20, 60], 3 times\n", " F32 [20, 50257]\n",
                 "\n%d parameters, %d bytes\n" % (raw["parameters"], os.path.getsize(flat("gpt2-tiny")))):
        check(line in shown, "info shows no %r:\n%s" % (line, shown[:2000]))
    names = [re.sub(r"\.\d+\.", ".N.", t["name"], count=1) for t in raw["tensors"]]
    check([line.split()[0] for line in shown.splitlines() if " F32 [" in line or " U8 [" in line] == list(dict.fromkeys(names)), "info lists other tensors")
    check(sum(math.prod(t["shape"]) for t in raw["tensors"] if t["dtype"] == "F32") == raw["parameters"] and json.loads(raw["metadata"]["config"])["n_layer"] == 3, "info --json")
    vectors = folder.at("shown")
    output("distill", "-m", flat("mend-tiny"), "-d", folder.put("demos.jsonl", DEMOS), "-o", vectors, "-l", flat("gpt2-tiny"))
    shown = output("info", vectors).decode()
    check("\nlanguage model   %s\n" % content_hash(flat("gpt2-tiny")) in shown and "F32 [7, 20]\n140 parameters" in shown, "info of vectors: %s" % shown)


def bad_models(folder):
    demos, gpt2, q, out = folder.put("demos.jsonl", DEMOS), flat("gpt2-tiny"), lines(QUERIES), folder.at("o")
    vectors = folder.at("vectors")
    output("distill", "-m", flat("mend-tiny"), "-d", demos, "-o", vectors, "-l", gpt2)
    for wrong, words in ((BERT, ["default.safetensors", "ForTokenClassification", "GPT-2"]), (flat("mend-tiny"), ["mend-tiny", "MendGPT2", "no language model"]),
                         (flat("t5-encoder-tiny"), ["T5EncoderModel", "no language model"]), (folder.put("empty", b""), ["empty"]), (demos, ["demos.jsonl"])):
        expect(3, words, ["score", "-l", wrong], q)
        expect(3, words, ["logprob", "-l", wrong, "--ids", 1, *(["--encoder-ids", 1] if "t5" in wrong else [])])
    expect(3, ["gpt2-tiny", "no distiller", "--mend"], ["distill", "-m", gpt2, "-d", demos, "-o", out])
    expect(3, ["20", "12", "gpt2-base-tiny", "vectors"], ["score", "-l", flat("gpt2-base-tiny"), "-v", vectors], q)
    expect(3, ["20", "12", "gpt2-base-tiny"], ["score", "-l", flat("gpt2-base-tiny"), "-m", flat("mend-tiny"), "-d", demos], q)
    expect(3, ["20", "12", "gpt2-base-tiny", "mend-tiny"], ["distill", "-l", flat("gpt2-base-tiny"), "-m", flat("mend-tiny"), "-d", demos, "-o", out])
    with open(gpt2, "rb") as f:
        raw = f.read()
    other = folder.put("other.safetensors", raw.replace(content_hash(gpt2).encode(), b"0123456789abcdef" * 4, 1))
    expect(3, [content_hash(gpt2), "0123456789abcdef" * 4, "vectors", "other.safetensors"], ["score", "-l", other, "-v", vectors], q)
    expect(3, ["holds no vectors"], ["score", "-l", gpt2, "-v", flat("t5-tiny")], q)
    with open(vectors, "rb") as f:
        raw = f.read()
    expect(3, ["nan: holds NaN"], ["score", "-l", gpt2, "-v", folder.put("nan", raw[:-4] + struct.pack("<f", math.nan))], q)
    expect(3, [], ["score", "-l", gpt2, "-v", folder.put("short", raw[:-1])], q)
    expect(1, ["no-such-file"], ["score", "-l", "no-such-file"], q)
    check(not os.path.exists(out), "a call that failed left %s" % out)


def bad_checkpoints(folder):
    """export.py names what a MEND checkpoint lacks, and the architectures that it takes."""
    source = os.path.join(MODELS, "mend-same")
    with open(os.path.join(source, "model.safetensors"), "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        header, data = json.loads(f.read(n)), f.read()
    for absent in (["hypernet.init_prompt_weight"], ["hypernet.h.1.attn.c_proj.bias", "hypernet.ln_f.weight"]):
        kept, whole = {}, b""
        for name, t in header.items():
            if name not in absent + ["__metadata__"]:
                part = data[slice(*t["data_offsets"])]
                kept[name], whole = dict(t, data_offsets=[len(whole), len(whole) + len(part)]), whole + part
        text = json.dumps(kept).encode()
        path = folder.put("lacking.safetensors", struct.pack("<Q", len(text)) + text + whole)
        done = subprocess.run([sys.executable, "export.py", source, "--mend", path, "-o", folder.at("o")], cwd=ROOT, stderr=subprocess.PIPE)
        check(done.returncode == 1 and all(name.encode() in done.stderr for name in absent), "%s missing: %d %r" % (absent, done.returncode, done.stderr[-300:]))
    other = os.path.join(folder.path, "other")
    os.mkdir(other)
    folder.put("other/config.json", b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    done = subprocess.run([sys.executable, "export.py", other, "-o", folder.at("o")], cwd=ROOT, stderr=subprocess.PIPE)
    check(done.returncode == 1 and b"LlamaForCausalLM" in done.stderr and b"GPT2LMHeadModel" in done.stderr, "unknown architecture: %d %r" % (done.returncode, done.stderr[-300:]))
    check(not os.path.exists(folder.at("o")), "an export that failed left its output")


def bad_input(folder):
    gpt2, t5, mend = flat("gpt2-tiny"), flat("t5-tiny"), flat("mend-tiny")
    good = QUERIES[0]
    good_line = json.dumps(good).encode()
    for line, words in ((b"{", ["byte 1"]), (b'{"input": "x", "options": ["a"]', []), (b"[1]", ["object", "array"]), (b'{"options": ["a"]}', ["input"]), (b'{"input": 3}', ["input"]),
                        (b'{"input": "x", "output": 1}', ["output"]), (b'{"input": "x", "options": "a"}', ["options"]), (b'{"input": "x", "options": ["a", null]}', ["option 1"]),
                        (b'{"input": "x", "options": ["a", "b", "a"]}', ["option 2", "twice"]), (b'{"input": "x", "input": "y"}', ["input"])):
        path = folder.put("bad.jsonl", good_line + b"\n\n" + line + b"\n")
        expect(1, ["bad.jsonl: line 3"] + words, ["score", "-l", gpt2, path])
        expect(1, ["bad.jsonl: line 3" if b"output" not in line else "bad.jsonl: line"], ["score", "-l", gpt2, "-d", path], good_line) if b"output" in line else None
    expect(1, ["line 2", "output"], ["score", "-l", gpt2, "-d", folder.put("d.jsonl", lines(DEMOS[:1]) + good_line)], good_line)
    expect(1, ["line 2", "output"], ["distill", "-m", mend, "-d", folder.at("d.jsonl"), "-o", folder.at("o")])
    for bad, words in (({"input": "x"}, ["no options"]), ({"input": "x", "options": []}, ["no options"]), ({"input": "x", "options": ["a", ""]}, ["option 1", "empty"]),
                       ({"input": "", "options": ["a"]}, ["input is empty"])):
        done = run(["score", "-l", gpt2], lines([good, bad]))
        check(done.returncode == 1 and done.stdout.count(b"\n") == 1 and all(w.encode() in done.stderr for w in words + ["example 2"]), "%s: %d %r" % (bad, done.returncode, done.stderr))
    expect(1, ["channel", "input", "empty"], ["score", "-l", gpt2, "--channel"], lines([{"input": "", "options": ["a"]}]))
    expect(1, ["encoder", "nothing"], ["score", "-l", t5], good_line)
    empty = folder.put("empty.jsonl", b"")
    expect(1, ["empty.jsonl", "no example"], ["score", "-l", gpt2, empty])
    expect(1, ["empty.jsonl", "no example"], ["score", "-l", gpt2, "-d", empty], good_line)
    expect(1, ["blank", "no example"], ["distill", "-m", mend, "-d", folder.put("blank", b"\n \n\r\n"), "-o", folder.at("o")])
    expect(1, ["empty"], ["logprob", "-l", gpt2], b"")
    expect(1, ["prompt is empty"], ["generate", "-l", gpt2, "--prompt", ""])
    latin = folder.put("latin", b'{"input": "caf\xe9", "output": "x", "options": ["a"]}')
    expect(1, ["latin: byte 14", "UTF-8"], ["score", "-l", gpt2, latin])
    expect(1, ["latin: byte 14", "UTF-8"], ["score", "-l", gpt2, "-d", latin], good_line)
    expect(1, ["latin: byte 14", "UTF-8"], ["distill", "-m", mend, "-d", latin, "-o", folder.at("o")])
    expect(1, ["byte 2", "UTF-8"], ["logprob", "-l", gpt2], b"ab\xff")
    expect(1, ["--prompt: byte 2", "UTF-8"], ["generate", "-l", gpt2, "--prompt", os.fsdecode(b"ab\xff")])
    expect(1, ["0 rows", "1025 to come", "1024 positions"], ["logprob", "-l", gpt2, "--ids", commas([7] * 1025)])
    expect(1, ["1024 rows", "1 to come", "1024 positions"], ["generate", "-l", gpt2, "--ids", commas([7] * 1020), "-n", 9])
    long = [{"input": "x", "output": "y", "options": ["no " * 1100]}]
    for more in ([], ["-d", folder.put("demos.jsonl", DEMOS), "-m", mend]):
        expect(1, ["example 1", "too long", "1024 positions"], ["score", "-l", gpt2, *more], lines(long))
    expect(1, ["254 are possible"], ["score", "-l", gpt2, "-d", folder.put("o.jsonl", [{"input": "x", "output": "no " * 300}])], good_line)
    for model, most, more in ((gpt2, 50257, []), (t5, 32128, ["--encoder-ids", 5])):
        expect(1, ["no piece %d" % most, "has %d" % most], ["logprob", "-l", model, "--ids", most, *more])
        done = run(["logprob", "-l", model, "--json", "--ids", most - 1, *more])
        check(done.returncode == 0, "the last piece of %s: %r" % (model, done.stderr))
    expect(1, ["no piece 32128"], ["logprob", "-l", t5, "--ids", 5, "--encoder-ids", 32128])
    expect(1, ["no piece 50257"], ["generate", "-l", gpt2, "--ids", 50257])
    expect(1, ["no-such-file"], ["score", "-l", gpt2, "no-such-file"])
    check(not os.path.exists(folder.at("o")), "a call that failed left its output")


def small_files():
    """The child may write files of 2,048 bytes: what a full disk does, where a test may not fill one. A library for OpenMP may need a kilobyte of
    shared memory, which counts as a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))


def bad_output(folder):
    gpt2, mend = flat("gpt2-tiny"), flat("mend-tiny")
    demos, out = folder.put("demos.jsonl", DEMOS), folder.put("old", b"what was there")
    distill = ["distill", "-m", mend, "-d", demos, "-q", "-o"]
    before = sorted(os.listdir(folder.path))
    expect(4, ["no-such-folder/v"], distill + [folder.at("no-such-folder/v")])
    expect(4, [folder.path], distill + [folder.path])
    expect(4, ["/dev/full"], distill + ["/dev/full"])
    output("distill", "-m", mend, "-d", demos, "--groups", 5, "-o", folder.at("whole"))
    check(os.path.getsize(folder.at("whole")) > 2048, "the vectors' file fits the small disk")
    os.remove(folder.at("whole"))
    expect(4, [out], distill + [out, "--groups", 5], preexec_fn=small_files, restore_signals=False)  # Python ignores the signal, the child then sees an error
    with open(out, "rb") as f:
        check(f.read() == b"what was there", "a write that failed changed the old file")
    check(sorted(os.listdir(folder.path)) == before, "left behind: %s" % (set(os.listdir(folder.path)) - set(before)))
    with open("/dev/full", "wb") as full:
        for command in (["score", "-l", gpt2], ["generate", "-l", gpt2, "--ids", 5], ["logprob", "-l", gpt2, "--ids", "5,6"], ["info", gpt2], ["--help"], ["score", "--help"]):
            done = run(command, lines(QUERIES), stdout=full)
            check(done.returncode == 4 and b"cannot be written" in done.stderr, "%s > /dev/full: %d %r" % (command, done.returncode, done.stderr))


def commands():
    with tempfile.TemporaryDirectory() as path:
        for part in (bits, distilling, usage, info, bad_models, bad_checkpoints, bad_input, bad_output):
            part(Folder(path))


def main():
    if not os.path.isdir(ASSETS):
        skip("no ../shared/assets, so no real tokenizers to make the models with")
    else:
        sys.path.insert(0, HERE)
        import make_mend_models
        flats(make_mend_models.MODELS)
        for part in sys.argv[1:] or ("numbers", "prompts", "commands"):
            globals()[part]()
    return finish()


if __name__ == "__main__":
    sys.exit(main())
