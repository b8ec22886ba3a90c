"""mend eval and mend cost end to end, on the small models of models/: what eval prints is what `mend score`, asked task by task, and Python's own
statistics say; a run that was cut short goes on where it stopped; cost's operations are those of a count by hand. Standard library alone."""
import collections
import json
import math
import os
import random
import statistics
import sys
import tempfile

from checks import finish

import test_mend as t
from test_mend import ASSETS, ROOT, ask, check, expect, flat, lines, output

LM, DISTILLER = (os.path.join(ROOT, "models", "mend-%s.safetensors" % name) for name in ("lm", "distiller"))
SEEDS, TASKS = ("100", "13"), ("alpha", "beta")
ABLATIONS = ("none", "no-input", "no-label", "random-label", "wrong-label", "itself", "shuffled")[::t.STRIDE]  # (test/run.py)
# Sums of at most five numbers up to 1 round by 1e-16 each time.
SAME = 1e-14


def examples(name):
    with open(os.path.join(ROOT, "demo", name + ".jsonl"), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


class Data:
    """Two tasks in MetaICL's layout: alpha has its test file for one seed alone, beta one for each."""

    def __init__(self, folder):
        self.path, self.scratch, self.known = os.path.join(folder, "data"), os.path.join(folder, "scratch.jsonl"), {}
        demos, queries, self.train, self.test = examples("demonstrations"), examples("queries"), {}, {}
        for task in TASKS:
            os.makedirs(os.path.join(self.path, task))
            for i, seed in enumerate(SEEDS):
                self.train[task, seed] = random.Random(task + seed).sample(demos, 16)
                self.test[task, seed] = queries[:9] if task == "alpha" else queries[10 + 7 * i:17 + 7 * i]
                self.put(task, seed, "train", self.train[task, seed])
                if task == "beta" or i == 0:
                    self.put(task, seed, "test", self.test[task, seed])

    def put(self, task, seed, split, content):
        with open(os.path.join(self.path, task, "%s_16_%s_%s.jsonl" % (task, seed, split)), "wb") as f:
            f.write(lines(content))

    def answers(self, method, demos, queries):
        """The options that `mend score` takes."""
        with open(self.scratch, "wb") as f:
            f.write(lines(demos))
        more = {"zero": [], "icl": ["-d", self.scratch], "mend": ["-d", self.scratch, "-m", DISTILLER]}[method]
        key = (method != "zero" and lines(demos), method, lines(queries))
        if key not in self.known:
            got = [json.loads(line)["prediction"] for line in output("score", "-l", LM, "--json", *more, stdin=lines(queries)).splitlines()]
            self.known[key] = [q["options"][i] for q, i in zip(queries, got)]
        return self.known[key]


# ==== what must come out, said again in Python ====

def uniform(seed, count):
    mask = (1 << 64) - 1
    z = (seed + (count + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return ((z ^ z >> 31) >> 40) / (1 << 24)


def shown(data, task, seed, ablation, K):
    """The demonstrations that an ablation leaves."""
    demos, count = [dict(d) for d in data.train[task, seed]], 0

    def draw(n):
        nonlocal count
        count += 1
        return int(uniform(int(seed), count - 1) * n)
    if K < len(demos) or ablation == "shuffled":
        for i in range(min(K, len(demos) - 1)):
            j = i + draw(len(demos) - i)
            demos[i], demos[j] = demos[j], demos[i]
    for d in demos[:K]:
        if ablation in ("random-label", "wrong-label"):
            labels = [o for o in d["options"] if ablation == "random-label" or o != d["output"]]
            d["output"] = labels[draw(len(labels))]
    return demos[:K]


def pieces(question):
    return ask([dict({"do": "prompt", "llm": LM, "limits": [1024, 1024], "query": {"input": "x", "options": ["x"]}, "demos": []}, **question)])[0]


def half_answers(method, demos, half, queries):
    """Answers from demonstrations of which the inputs (half 1) or labels (half 0) are left."""
    ids = []
    for got in map(lambda d: pieces({"demos": [d]}), demos):
        ids += [i for i, label in zip(got["demos"], got["labels"]) if label == str(half)]
    asked = []
    for q in queries:
        got = pieces({"query": q})
        asked.append({"do": "scores", "llm": LM, "x": got["x"], "options": got["options"], "demos": [ids], **({"icl": True} if method == "icl" else {"mend": DISTILLER})})
    return [q["options"][max(range(len(s)), key=lambda i: (s[i], -i))] for q, s in zip(queries, ask(asked, "fast"))]


def macro_f1(right, said):
    scores = []
    for label in set(right) | set(said):
        hits = sum(r == s == label for r, s in zip(right, said))
        scores.append(2 * hits / (right.count(label) + said.count(label)))
    return statistics.fmean(scores)


def value(data, task, seed, method, ablation, K):
    queries = data.test[task, seed]
    demos = shown(data, task, seed, ablation, K)
    if method == "zero":
        said = data.answers("zero", [], queries)
    elif ablation in ("no-input", "no-label"):
        said = half_answers(method, demos, 1 if ablation == "no-input" else 0, queries)
    elif ablation == "itself":
        said = [data.answers(method, [q] * K, [q])[0] for q in queries]
    else:
        said = data.answers(method, demos, queries)
    right = [q["output"] for q in queries]
    return macro_f1(right, said) if task == "alpha" else statistics.fmean(r == s for r, s in zip(right, said))


# ==== eval ====

def arguments(data, *more):
    partitions = os.path.join(os.path.dirname(data.path), "partitions.json")
    with open(partitions, "w", encoding="utf-8") as f:
        json.dump({"some": {"train": ["gamma"], "test": list(TASKS)}, "classification": ["alpha"]}, f)
    return ["eval", "-l", LM, "-m", DISTILLER, "--data", data.path, "--partitions", partitions, "--partition", "some", *[a for s in SEEDS for a in ("--seed", s)], *more]


def evaluate(data, *more):
    """{(task, method, ablation): (seeds, mean, deviation)} from --json, once the table was seen to say the same."""
    command = arguments(data, *more)
    results = {(r["task"], r["method"], r["ablation"]): (r["seeds"], r["mean"], r["deviation"]) for r in json.loads(output(*command, "--json"))["results"]}
    rows = output(*command).decode().splitlines()
    check(rows[0].split() == ["task", "method", "ablation", "seeds", "mean", "deviation"] and len(rows) == len(results) + 1, "table: %s" % rows)
    for row, (key, (seeds, mean, deviation)) in zip(rows[1:], results.items()):
        want = "%-40s %-8s %-14s %6d %10.4f" % (*key, seeds, mean) + ("" if deviation is None else " %10.4f" % deviation)
        check(row == want, "table: %r for %s" % (row, (key, seeds, mean, deviation)))
    return results


def table(data):
    for K, ablations, methods in ((16, ABLATIONS, ("zero", "icl", "mend")), (5, ("none", "shuffled"), ("icl", "mend"))):
        got = evaluate(data, "-k", K, *[x for a in ablations for x in ("--ablation", a)], *[x for m in methods for x in ("--method", m)])
        check(len(got) == 3 * len(methods) * len(ablations), "%d rows" % len(got))
        spread = collections.Counter()
        for method in methods:
            for ablation in ablations:
                means = []
                for task in TASKS:
                    values = [value(data, task, seed, method, ablation, K) for seed in SEEDS]
                    seeds, mean, deviation = got[task, method, ablation]
                    check(seeds == len(SEEDS) and abs(mean - statistics.fmean(values)) <= SAME and abs(deviation - statistics.pstdev(values)) <= SAME,
                          "%s %s %s, %d demonstrations: %s +- %s for %s" % (task, method, ablation, K, mean, deviation, values))
                    means.append(mean)
                    spread[method] += len(set(values)) > 1
                check(abs(got["mean over tasks", method, ablation][1] - statistics.fmean(means)) <= SAME, "mean over tasks, %s %s" % (method, ablation))
        check(t.STRIDE > 1 or (spread["icl"] and spread["mend"]), "no seed makes a difference: %s" % spread)
    check(len({got[k] for k in got}) > 4, "all results are the same: %s" % got)


def prompts(data):
    """The method prompt answers from a vectors file, as mend score does."""
    vectors = os.path.join(os.path.dirname(data.path), "prompt.safetensors")
    output("distill", "-m", DISTILLER, "-l", LM, "-d", os.path.join(data.path, "beta", "beta_16_13_train.jsonl"), "-o", vectors)
    got = json.loads(output(*arguments(data, "--method", "prompt", "-v", vectors, "--json")))["results"]
    for task, (_, want) in zip(TASKS, ((macro_f1, None), (None, None))):
        values = []
        for seed in SEEDS:
            queries = data.test[task, seed]
            said = [q["options"][json.loads(line)["prediction"]] for q, line in zip(queries, output("score", "-l", LM, "-v", vectors, "--json", stdin=lines(queries)).splitlines())]
            right = [q["output"] for q in queries]
            values.append(macro_f1(right, said) if task == "alpha" else statistics.fmean(r == s for r, s in zip(right, said)))
        mean = [r["mean"] for r in got if r["task"] == task]
        check(len(mean) == 1 and abs(mean[0] - statistics.fmean(values)) <= SAME, "%s from vectors: %s for %s" % (task, mean, values))


def read(path):
    with open(path, "rb") as f:
        return f.read().splitlines(True)


def resume(data):
    """What is in the results file stays, byte for byte, and is not computed again; what is missing is added."""
    file, command = os.path.join(os.path.dirname(data.path), "results.jsonl"), arguments(data, "--method", "icl", "--method", "zero", "-k", 3)
    whole = output(*command)
    hidden = os.path.join(data.path, "beta", "beta_16_13_train.jsonl")
    os.rename(hidden, hidden + ".away")
    expect(1, ["beta_16_13_train.jsonl"], [*command, "-o", file])
    first = read(file)
    check(len(first) == 5, "the run that failed left %d results" % len(first))  # alpha: zero, icl, icl; beta: zero of the seed 100, icl
    os.rename(hidden + ".away", hidden)
    check(output(*command, "-o", file) == whole, "a run in two parts gives another table")
    second = read(file)
    check(second[:len(first)] == first and len(second) == 7, "%d results, the first of them %s" % (len(second), second[:len(first)] == first))
    for line in second:
        r = json.loads(line)
        check(set(r) == {"key", "task", "seed", "method", "ablation", "queries", "metric", "value", "seconds"} and r["queries"] == len(data.test[r["task"], r["seed"]]) and
              r["metric"] == ("macro-f1" if r["task"] == "alpha" else "accuracy"), "line %s" % r)
    # Another number in the file is what the table shows: nothing was computed again.
    tampered = [dict(json.loads(line), value=0.125 * i) for i, line in enumerate(second)]
    with open(file, "wb") as f:
        f.write(lines(tampered))
    got = {(r["task"], r["method"]): r for r in json.loads(output(*command, "-o", file, "--json"))["results"]}
    for task in TASKS:
        values = [r["value"] for r in tampered if r["task"] == task and r["method"] == "icl"]
        check(abs(got[task, "icl"]["mean"] - statistics.fmean(values)) <= SAME and abs(got[task, "icl"]["deviation"] - statistics.pstdev(values)) <= SAME,
              "%s from the file: %s for %s" % (task, got[task, "icl"], values))
    check(read(file) == [lines([r]) for r in tampered], "a run with nothing to do changed the file")
    # Other settings are other results: each leaves those before it and takes none of them.
    for n, more in enumerate((["-k", 4], ["--channel"], ["--math", "reference"], ["--split", "train"])):
        part = arguments(data, "--method", "icl", *more, *([] if "-k" in more else ["-k", 3]))
        check(output(*part, "-o", file) == output(*part), "%s: the table takes other settings' results" % more)
        check(read(file)[:7] == [lines([r]) for r in tampered] and len(read(file)) > 7 + n, "%s: the file lost results" % more)


def bad_calls(data):
    folder = os.path.dirname(data.path)
    command = arguments(data)
    results = os.path.join(folder, "bad.jsonl")
    for text, words in ((b'{"key": "k", "value": 1}\n{', ["line 2", "byte"]), (b"[]\n", ["line 1", "no result"]), (b'{"key": null, "value": 1}\n', ["line 1", "no result"]),
                        (b'{"key": "k", "value": "1"}\n', ["line 1", "no result"]), (b'{"value": 1}\n', ["line 1", "no result"]), (b"\n", ["line 1"]), (b"\xff\n", ["UTF-8"])):
        with open(results, "wb") as f:
            f.write(text)
        expect(1, ["bad.jsonl"] + words, [*command, "-o", results])
        check(b"".join(read(results)) == text, "a file that is no list of results was changed")
    expect(2, ["--method", "icl", "'icl2'"], [*command, "--method", "icl2"])
    expect(2, ["--ablation", "wrong-label", "'wrong'"], [*command, "--ablation", "wrong"])
    expect(2, ["--data"], ["eval", "-l", LM])
    expect(2, ["no task"], ["eval", "-l", LM, "--data", data.path])
    expect(2, ["--method mend", "-m"], ["eval", "-l", LM, "--data", data.path, "--task", "alpha", "--method", "mend"])
    expect(2, ["--method prompt", "-v"], ["eval", "-l", LM, "--data", data.path, "--task", "alpha", "--method", "prompt"])
    expect(2, ["--partitions"], ["eval", "-l", LM, "--data", data.path, "--partition", "some"])
    expect(2, ["options alone"], [*command, "extra"])
    expect(1, ["partitions.json", "'none'"], [*command[:-6], "--partition", "none"])
    expect(1, ["alpha_16_100_train.jsonl", "17 demonstrations", "16 are there"], [*command, "-k", 17])
    expect(1, ["alpha_16_7_train.jsonl"], [*command[:-4], "--seed", 7])
    expect(1, ["gamma_16_100_train.jsonl"], ["eval", "-l", LM, "--data", data.path, "--task", "gamma", "--method", "icl"])
    data.put("alpha", "100", "odd", [{"input": "x", "output": "a", "options": ["a", "b"]}, {"input": "y", "output": "a", "options": []}])
    expect(1, ["alpha_16_100_odd.jsonl", "query 2", "no options"], [*command, "--split", "odd"])


def partitions():
    """data/partitions.json has MetaICL's seven partitions, as its own configuration has them."""
    with open(os.path.join(ROOT, "data", "partitions.json"), encoding="utf-8") as f:
        ours = json.load(f)
    names = {"class_to_class", "non_class_to_class", "non_nli_to_nli", "non_qa_to_qa", "qa_to_qa", "non_paraphrase_to_paraphrase", "hr_to_lr"}
    check(set(ours) == names | {"classification"}, "partitions: %s" % sorted(ours))
    for name in names:
        check(all(ours[name][part] and len(set(ours[name][part])) == len(ours[name][part]) for part in ("train", "test")), "%s: tasks are missing or named twice" % name)
        shared = set(ours[name]["train"]) & set(ours[name]["test"])
        check(shared <= {"sick"} if name == "non_nli_to_nli" else not shared, "%s: trained and tested on %s" % (name, shared))
        path = os.path.join(ASSETS, "..", "data", "metaicl", "_config", name + ".json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                theirs = json.load(f)
            check(all(sorted(ours[name][part]) == sorted(theirs[part]) for part in ("train", "test")), "%s: other tasks than MetaICL's" % name)


# ==== cost ====

def sizes(path):
    """C, F, L, V and positions of a GPT-2, and the distiller's U."""
    info = json.loads(output("info", "--json", path))
    config, shapes = json.loads(info["metadata"]["config"]), {x["name"]: x["shape"] for x in info["tensors"]}
    return config["n_embd"], config["n_inner"], config["n_layer"], shapes["wte.weight"][1], shapes.get("init_prompt_weight", [0])[0], "adap_pooler.dense.weight" in shapes


def cost_by_hand(demos, queries, groups):
    """[(once, per query)] of zero-shot, in context without and with a cache, and MEND: twice the multiply-adds."""
    C, F, L, V, _, _ = sizes(LM)
    DC, DF, DL, _, U, pooled = sizes(DISTILLER)

    def read(n, past, C=C, F=F, L=L):
        attended = sum(past + i + 1 for i in range(n))
        return L * (n * 2 * C * (3 * C + C + F + F) + attended * 2 * 2 * C)
    K = len(pieces({"demos": demos})["demos"])
    bounds = [math.ceil(g * len(demos) / groups) for g in range(groups + 1)]
    distiller = sum(read(len(pieces({"llm": DISTILLER, "demos": demos[a:b]})["demos"]) + U, 0, DC, DF, DL) for a, b in zip(bounds, bounds[1:]))
    distiller += groups * pooled * 2 * U * DC * C
    bills = [[0, 0], [0, 0], [read(K, 0), 0], [distiller + read(groups * U, 0), 0]]
    for q in queries:
        got = pieces({"query": q})
        x, options = len(got["x"]), list(map(len, got["options"]))
        for bill, before in ((0, 0), (2, K), (3, groups * U)):
            bills[bill][1] += read(x, before) + sum(read(o - 1, before + x) for o in options) + (1 + sum(o - 1 for o in options)) * 2 * C * V
        bills[1][1] += sum(read(K + x + o - 1, 0) + o * 2 * C * V for o in options)
    return [(once, query / len(queries)) for once, query in bills]


def cost(folder):
    demos, queries = examples("demonstrations"), examples("queries")[:6]
    d, q = os.path.join(folder, "d.jsonl"), os.path.join(folder, "q.jsonl")
    for n, groups in ((16, 1), (16, 3), (4, 3), (1, 1)):
        for path, content in ((d, demos[:n]), (q, queries)):
            with open(path, "wb") as f:
                f.write(lines(content))
        command = ["cost", "-l", LM, "-m", DISTILLER, "-d", d, "--groups", groups, q]
        result = json.loads(output(*command, "--json"))
        bills, want = result["methods"], cost_by_hand(demos[:n], queries, groups)
        check(result["queries"] == len(queries) and [b["method"] for b in bills] == ["zero-shot", "in context, nothing cached", "in context, cached", "MEND, distiller included"],
              "methods: %s" % bills)
        for b, (once, query) in zip(bills, want):
            check(b["flops_once"] == once and abs(b["flops_per_query"] - query) <= 1e-12 * query, "%s, %d in %d groups: %s, by hand %s" % (b["method"], n, groups, b, (once, query)))
            check(b["seconds_per_query"] > 0 and (b["seconds_once"] > 0 or b["flops_once"] == 0), "%s takes no time: %s" % (b["method"], b))
        break_even(bills, want)
        rows = output(*command).decode().splitlines()[1:]
        for row, (once, query), b in zip(rows, want, bills):
            even = b["mend_cheaper_after_queries"]
            shown = [row[28:].split()[i] for i in (0, 2, 4)] + [" ".join(row[28:].split()[5:])]
            check(row.startswith(b["method"]) and shown == ["%.4f" % (once / 1e9), "%.4f" % (query / 1e9), "%.3f" % ((once + query * len(queries)) / 1e9),
                                                            "" if b is bills[3] else "never" if even is None else "%d queries" % even], "table: %r for %s" % (row, b))
    for missing in (["-m", DISTILLER, "-d", d], ["-l", LM, "-d", d], ["-l", LM, "-m", DISTILLER]):
        expect(2, ["cost wants", "-l LLM", "-m MEND", "-d DEMOS"], ["cost", *missing, q])
    with open(q, "ab") as f:
        f.write(lines([{"input": "", "output": "xan", "options": ["xan"]}]))
    expect(1, ["query 7", "input is empty"], ["cost", "-l", LM, "-m", DISTILLER, "-d", d, q])
    if os.path.isdir(ASSETS):  # the program itself holds what it counts against what it does
        for llm, mend in (("t5-tiny", "mend-t5-tiny"), ("gpt2-tiny", "mend-same"), ("gpt2-tiny", "mend-tiny")):
            got = json.loads(output("cost", "-l", flat(llm), "-m", flat(mend), "-d", d, "--groups", 1, "--json", stdin=lines(queries[:2])))["methods"]
            check(len(got) == (3 if llm == "t5-tiny" else 4) and all(b["flops_per_query"] > 0 for b in got), "%s: %s" % (llm, got))


def break_even(bills, want):
    """From this many queries on MEND has cost less in all, and one query before it has not."""
    once, query = want[3]
    for b, (other_once, other_query) in zip(bills, want[:3]):
        even = b["mend_cheaper_after_queries"]
        if even is None:
            check(query >= other_query and (once, query) != (other_once, other_query), "%s is never dearer than MEND: %s" % (b["method"], b))
            continue
        check(once + even * query <= other_once + even * other_query, "after %s queries %s is still cheaper" % (even, b["method"]))
        check(even == 0 or once + (even - 1) * query > other_once + (even - 1) * other_query, "MEND is cheaper than %s before %s queries" % (b["method"], even))


def main():
    with tempfile.TemporaryDirectory() as folder:
        data = Data(folder)
        for part in (table, prompts, resume, bad_calls):
            part(data)
        cost(folder)
    partitions()
    return finish()


sys.exit(main())
