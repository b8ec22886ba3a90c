"""mend on small random models: its numbers against golden ones of transformers and the released code (test/make_mend_golden.py), its prompts
against those of the released data code (test/make_mend_prompts.py), properties that hold to the bit, and the command line.
Standard library alone; the models are made here (test/make_mend_models.py, export.py) and need the tokenizers of ../shared/assets, else all is skipped.
What the command line cannot be asked goes to the test program of test/test_mend.c."""
import collections
import gzip
import hashlib
import json
import math
import os
import struct
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
MODELS = os.path.join(BUILD, "test-models")
MEND, ANSWER, BERT = os.path.join(ROOT, "mend"), os.path.join(BUILD, "test_mend"), os.path.join(ROOT, "models", "default.safetensors")
ASSETS = os.path.join(ROOT, "..", "shared", "assets")
# PyTorch's float32 misses float64 by so much; our float32 with float64 sums rounds at fewer places and must be at least as near.
# `fast` adds up in float32 one product after another, where PyTorch adds up in blocks: as many roundings in a longer chain.
AT_MOST = {"reference": 1.0, "fast": 3.0}
passed = failed = skipped = 0


def check(condition, message):
    global passed, failed
    passed, failed = passed + bool(condition), failed + (not condition)
    if not condition and failed <= 20:
        print("failed: " + message)


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


def run(arguments, stdin=b"", **more):
    return subprocess.run([MEND] + [str(a) for a in arguments], input=stdin, stdout=more.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE, timeout=600, **more)


def output(*arguments, stdin=b""):
    """Standard output of a call that must succeed."""
    if "--threads" not in arguments:
        arguments += ("--threads", "1")
    done = run(list(arguments), stdin)
    check(done.returncode == 0, "mend %s: exit %d %s" % (" ".join(map(str, arguments))[:200], done.returncode, done.stderr[:300]))
    return done.stdout


def ask(questions, math="reference", threads=1):
    """The answers of test_mend.c."""
    lines = "".join(json.dumps(q) + "\n" for q in questions)
    done = subprocess.run([ANSWER, "answer", math, str(threads)], input=lines.encode(), stdout=subprocess.PIPE, timeout=600)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    check(done.returncode == 0 and len(answers) == len(questions), "%d answers to %d questions, exit %d" % (len(answers), len(questions), done.returncode))
    return answers + [{"error": "no answer"}] * (len(questions) - len(answers))


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


def command_logprobs(case, math):
    """The same numbers as a user gets them."""
    more = ["--ids", commas(case["ids"])] if case["kind"] == "gpt2" else ["--ids", commas(case["decoder"][1:]), "--encoder-ids", commas(case["encoder"])]
    return json.loads(output("logprob", "-l", flat(case["model"]), "--json", "--math", math, *more))["logprob"]


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


def numbers():
    cases = json.loads(golden("mend-numbers.json.gz"))["cases"]
    plan = [(case, *q) for case in cases for q in questions_of(case)]
    for mode in ("reference", "fast"):
        misses = Misses()
        for (case, group, keys, question), got in zip(plan, ask([q for *_, q in plan], mode)):
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
        for case in cases:
            if case["kind"] in ("gpt2", "t5") and case["values"]["logprob"]:
                misses.add(case, "logprob", command_logprobs(case, mode), [float(x) for x in case["values"]["logprob"]])
        misses.compare(mode)
        greedy([c for c in cases if c["kind"] == "greedy"], mode)
    whole(plan)
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


def whole(plan):
    """Options that share what was read score as each by itself in one forward pass, to the bit; and generating goes on as if read at once."""
    scores = [q for _, group, _, q in plan if group == "score"]
    for mode in ("reference", "fast"):
        shared, whole, alone = (ask([dict(q, **{more: True}) for q in scores], mode) for more in ("shared", "whole", "alone"))
        for q, a, b, c in zip(scores, shared, whole, alone):
            check("error" not in a and a == b == c, "%s: together %s, each in one pass %s, alone %s" % ({k: q[k] for k in ("channel", "encoder_input")}, a, b, c))
    ids = list(range(1000, 1300))
    for llm in ("gpt2-tiny", "gpt2-base-tiny"):
        parts = [{"do": "greedy", "llm": flat(llm), "ids": ids, "n": 12, "cuts": cuts} for cuts in ([], [1], [299], [7, 8, 130], list(range(1, 300, 13)))]
        for mode in ("reference", "fast"):
            made = ask(parts, mode)
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
    overflowing = [t for t in tasks if t[4]]
    tasks = overflowing[:12] + [t for t in tasks if not t[4]][:16]
    check(len(overflowing) >= 12, "%d tasks are longer than the limit" % len(overflowing))
    scores = ask([dict(q, score=True) for q, *_ in tasks], "fast")
    for (question, pairs, demos, limit, over), got in zip(tasks, scores):
        alone = []
        for a, b in pairs:
            if question["llm"] == flat("t5-tiny"):
                alone.append({"do": "scores", "whole": True, "llm": question["llm"], "icl": True, "demos": [demos], "x": a, "options": [b]})
            else:
                ids = (demos + a + b)[-limit:]
                alone.append({"do": "scores", "whole": True, "llm": question["llm"], "x": ids[:-len(b)], "options": [b]})
        one = [s[0] if isinstance(s, list) else s for s in ask(alone, "fast")]
        order = list(dict.fromkeys(question["query"]["options"]))
        check("error" not in got and set(got["scores"]) == set(one) and len(got["scores"]) == len(order),
              "scores %s, of the sequences as the released code has them %s" % (got.get("scores", got), one))


def main():
    if not os.path.isdir(ASSETS):
        global skipped
        skipped += 1
        print("skipped: no ../shared/assets, so no real tokenizers to make the models with")
    else:
        for part in sys.argv[1:] or ("numbers", "prompts"):
            globals()[part]()
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
