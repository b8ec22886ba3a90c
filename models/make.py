"""Make the files under models/ again, and run the experiments behind docs/RESULTS.md. All training is done by the two C programs; standard library alone, but for the
compressor's start, which comes out of a Python package (models/train_default.py).

usage: python3 models/make.py models     the trained files of models/ and the demo's, by way of build/models       (make models)
       python3 models/make.py results    the experiments, then docs/RESULTS.md and its curves                      (make results)

What is there already is not made again: a run that was stopped goes on. As many trainings run side by side as there are cores, each on one thread: the bits do not depend on that.
"""
import concurrent.futures
import functools
import glob
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = os.path.join(ROOT, "build", "models")
DATA = os.path.join(WORK, "tasks")
LM = os.path.join(WORK, "lm.safetensors")

# The language model's. k: the query behind 32 demonstrations stands where the 33rd stood.
LANGUAGE = dict(stage="lm", data=["families", "lists"], steps=1000, batch=64, threads=os.cpu_count(), k=36, rate=1e-3)
# A distiller's way: stages one after another. The two for tasks begin with few demonstrations of two labels, without which nothing is learned (docs/RESULTS.md).
PRETRAIN = dict(stage="pretrain", data=["lists"], rate=1e-3, length=40)
TWO = dict(stage="finetune", data=["two"], rate=1e-3, k=4)
TASKS = dict(stage="finetune", data=["tasks"], rate=1e-3, k=16)
MORE = dict(stage="finetune", data=["tasks"], rate=5e-4, k=32)
COMMON = {"beta2": 0.98, "decay": 0.01, "warmup": 50, "seed": 1}


# ---- running ----

def say(text):
    print("%s %s" % (time.strftime("%H:%M:%S"), text), flush=True)


def run(arguments, log=os.devnull):
    with open(log, "a", encoding="utf-8") as out:
        subprocess.run([str(a) for a in arguments], check=True, stdout=out, cwd=ROOT)


def lines(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def mend_train(name, llm, distiller, stage, steps, batch, data, threads=1, **options):
    """One stage: build/models/NAME.safetensors and NAME.jsonl, its log. Returns the model's path."""
    path, log = (os.path.join(WORK, name + end) for end in (".safetensors", ".jsonl"))
    if [line["step"] for line in lines(log)[-1:]] == [steps] and os.path.exists(path):
        return path
    begun = time.time()
    arguments = ["./mend", "train", "-q", "--threads", threads, "--stage", stage, "--steps", steps, "--batch", batch, "--every", 100, "-o", path]
    for option, model in (("-l", llm), ("-m", distiller)):
        arguments += [option, model] if model else []
    for file in data:
        arguments += ["--data", os.path.join(DATA, file + ".jsonl")]
    for key, value in {**COMMON, **options}.items():
        arguments += ["--" + key, value]
    saved = os.path.exists(path + ".last")
    if saved:
        arguments.append("--resume")
    with open(log, "a+", encoding="utf-8") as file:  # without the steps behind the last checkpoint, which come again
        file.seek(0)
        known = file.readlines()
        last = max((i for i, line in enumerate(known) if "since" in line), default=-1) if saved else -1
        file.truncate(sum(map(len, known[:last + 1])))
    run(arguments, log)
    os.remove(path + ".last")
    say("%s: %d steps in %.0f s" % (name, steps, time.time() - begun))
    return path


def chain(name, stages, rows):
    """A distiller of the language model LM with this many vectors, stage by stage."""
    path = LM
    for i, stage in enumerate(stages):
        path = mend_train("%s-%d" % (name, i), LM, path, **({"rows": rows} if i == 0 else {}), **stage)
    return path


# ---- the models ----

def tasks():
    if not os.path.exists(os.path.join(DATA, "demo")):
        run([sys.executable, "models/mend_tasks.py", DATA])
    run([sys.executable, "export.py", os.path.join(DATA, "start"), "-o", os.path.join(WORK, "start.safetensors")])


def language_model():
    tasks()
    mend_train("lm", os.path.join(WORK, "start.safetensors"), None, **LANGUAGE)


def distiller(threads=1):
    stages = dict(PRETRAIN, steps=300), dict(TWO, steps=800), dict(TASKS, steps=1200), dict(MORE, steps=500)
    return chain("mend", [dict(s, batch=64, threads=threads) for s in stages], 16)


def distill_examples():
    return [e for part in sorted(glob.glob(os.path.join(ROOT, "data", "distill", "*.jsonl"))) for e in lines(part)]


def ask(arguments, examples):
    """A command's standard output, these examples being its input."""
    return subprocess.run(arguments, input="".join(json.dumps(e) + "\n" for e in examples).encode(), stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout.decode()


def compressor_start():
    folder, flat = os.path.join(WORK, "compressor-start"), os.path.join(WORK, "compressor-start.safetensors")
    if not os.path.exists(flat):
        run([sys.executable, "models/train_default.py", "start", folder])
        run([sys.executable, "export.py", folder, "-o", flat])
    return flat


def compressor(start, name="compressor", keep=lambda example: True, threads=1):
    """Trained on the English pairs of data/distill that `keep` wants, from `start`."""
    folder = os.path.join(WORK, name)
    if not os.path.exists(os.path.join(folder, "best.safetensors")):
        begun = time.time()
        with open(folder + ".jsonl", "w", encoding="utf-8") as file:
            file.write(ask(["./lingua2", "annotate", "-q", "-"], [e for e in distill_examples() if e["lang"] == "en" and keep(e)]))
        run(["./lingua2", "train", "-q", "--threads", threads, "-m", start, "-o", folder, folder + ".jsonl"])
        say("%s: %.0f s" % (name, time.time() - begun))
    return os.path.join(folder, "best.safetensors")


# ---- experiments: MEND ----

HALF = [dict(PRETRAIN, steps=200, batch=32), dict(TWO, steps=500, batch=32), dict(TASKS, steps=500, batch=32)]
NO_KD = [HALF[0], *(dict(s, **{"lambda": 0}) for s in HALF[1:])]
GROUPS = 4
SIZES = (2, 4, 8, 16, 32)
VARIANTS = {  # name: stages, rows
    "1 vector": (HALF, 1),
    **{"%d vectors" % v: (HALF, v) for v in SIZES},
    "16 vectors, no pretraining": (HALF[1:], 16), "16 vectors, no KD": (NO_KD, 16), "16 vectors, neither": (NO_KD[1:], 16),
    "16 vectors in 4 groups (FiD)": ([dict(s, groups=GROUPS) for s in HALF], 4),
    "16 vectors, no curriculum": ([HALF[0], dict(TASKS, steps=1000, batch=32)], 16)}
KINDS = ("seen-category", "held-category")
ABLATIONS = ("none", "no-input", "no-label", "random-label", "wrong-label")


def task_names(kind):
    with open(os.path.join(DATA, "eval", "tasks.json"), encoding="utf-8") as file:
        return json.load(file)[kind]


class Accuracies:
    """Of one setting: kind of task -> seed -> mean over the kind's tasks."""

    def __init__(self, results):
        self.of = {}
        for r in results:
            self.of.setdefault(r["task"].rsplit("-", 1)[0], {}).setdefault(r["seed"], []).append(r["value"])

    def seeds(self, kind):
        return [statistics.mean(v) for _, v in sorted(self.of[kind].items())]


def evaluate(name, method, kinds, k=16, ablation="none", llm=LM, distiller_=None, groups=1, vectors=None, tasks_=None, seeds=()):
    path = os.path.join(WORK, "eval-%s.jsonl" % name.replace(" ", "-").replace(",", ""))
    arguments = ["./mend", "eval", "-q", "--threads", 1, "-l", llm, "--data", os.path.join(DATA, "eval"), "--method", method, "--ablation", ablation, "-k", k, "--groups", groups, "-o", path]
    for option, value in (("-m", distiller_), ("-v", vectors)):
        arguments += [option, value] if value else []
    for task in tasks_ or [t for kind in kinds for t in task_names(kind)]:
        arguments += ["--task", task]
    for seed in seeds:
        arguments += ["--seed", seed]
    run(arguments)
    return list({(r["task"], r["seed"]): r for r in lines(path) if r["method"] == method and r["ablation"] == ablation}.values())


def prompt_tuning(pool):
    """The vectors of each task and seed learn from the demonstrations that the other methods read."""
    def one(task, seed):
        path = os.path.join(WORK, "prompt-%s-%d.safetensors" % (task, seed))
        if not os.path.exists(path):
            run(["./mend", "train", "-q", "--threads", 1, "--stage", "prompt", "-l", LM, "--rows", 16, "--data", os.path.join(DATA, "eval", task, "%s_16_%d_train.jsonl" % (task, seed)),
                 "--steps", 150, "--batch", 16, "--rate", 0.03, "--seed", 1, "-o", path + ".new"])
            os.replace(path + ".new", path)
        return evaluate("prompt-%s-%d" % (task, seed), "prompt", (), tasks_=[task], seeds=[seed], vectors=path)
    jobs = [pool.submit(one, task, seed) for kind in KINDS for task in task_names(kind) for seed in (100, 13, 21, 42, 87)]
    return [r for job in jobs for r in job.result()]


# ---- experiments: the compressor ----

TALK = ("meeting", "council", "interview", "transcript", "lecture", "planning", "speech")
RATES = (0.25, 0.33, 0.5, 0.67)


def bucket(example):
    return int(hashlib.sha256(example["id"].encode()).hexdigest(), 16) % 10


def answers_kept(model, examples, rate):
    return {r["method"]: r["answers_kept"] for r in json.loads(ask(["./lingua2", "eval", "-q", "--json", "-m", model, "--rate", str(rate)], examples))["results"]}


@functools.lru_cache(None)
def verdicts(model, text, labelled):
    """Words kept rightly, kept wrongly, dropped wrongly. labelled: (where the word begins, whether it is to be kept) of each."""
    words = json.loads(subprocess.run(["./lingua2", "label", "-q", "--json", "-m", model, "-"], input=text.encode(), stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout)["words"]
    p = {w["start"]: w["p"] for w in words}
    says = [(p.get(begin, 0) > 0.5, label) for begin, label in labelled]
    return says.count((True, True)), says.count((True, False)), says.count((False, True))


def f1(model, examples):
    """Of the label keep over the words: kept where p > 0.5."""
    counts = []
    for line in ask(["./lingua2", "annotate", "-q", "-"], examples).splitlines():
        e = json.loads(line)
        counts.append(verdicts(model, e["origin"], tuple((begin, label) for (begin, _), label in zip(e["spans"], e["labels"]))))
    true, false, missed = map(sum, zip(*counts))
    return 2 * true / (2 * true + false + missed)


# ---- the report ----

COLOURS = ("#1f5fa8", "#c2452d", "#2d8a4e", "#8a5fb0", "#b8860b", "#555555")


def curve(path, title, across, up, series, low=0.0, high=None):
    """An SVG of lines: {name: [(x, y)]}; x at even distances where it is a list of a few settings."""
    values = sorted({x for points in series.values() for x, _ in points})
    even = len(values) <= 8
    place = {x: i / max(1, len(values) - 1) if even else (x - values[0]) / (values[-1] - values[0]) for i, x in enumerate(values)}
    high = high or max(y for points in series.values() for _, y in points)
    at = lambda x, y: "%.1f,%.1f" % (60 + 460 * place[x], 250 - 210 * (min(y, high) - low) / (high - low))
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 300" font-family="sans-serif" font-size="12">', '<rect width="720" height="300" fill="white"/>',
           '<text x="60" y="20" font-size="14">%s</text>' % title, '<text x="290" y="290" text-anchor="middle">%s</text>' % across, '<text x="60" y="35" fill="#555">%s</text>' % up]
    for i in range(5):
        y = low + (high - low) * i / 4
        out.append('<path d="M60,%.1f H520" stroke="#ddd"/><text x="52" y="%.1f" text-anchor="end">%.3g</text>' % (250 - 52.5 * i, 254 - 52.5 * i, y))
    for x in values if even else (values[0], values[len(values) // 2], values[-1]):
        out.append('<text x="%.1f" y="268" text-anchor="middle">%g</text>' % (60 + 460 * place[x], x))
    for i, (name, points) in enumerate(series.items()):
        out.append('<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>' % (COLOURS[i], " ".join(at(x, y) for x, y in points)))
        out.append('<text x="530" y="%d" fill="%s">%s</text>' % (60 + 18 * i, COLOURS[i], name))
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n</svg>\n")


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|"] + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def spread(values):
    return "%.3f ± %.3f" % (statistics.mean(values), statistics.pstdev(values))


def recovered(mend, zero, icl):
    """Of the way from nothing before the query to all demonstrations, seed by seed."""
    return [(m - z) / (i - z) for m, z, i in zip(mend, zero, icl)]


def mend_report(pool):
    default, out = pool.submit(distiller), []
    chains = {name: pool.submit(chain, name.replace(" ", "-").replace(",", "").replace("(", "").replace(")", ""), stages, rows) for name, (stages, rows) in VARIANTS.items()}
    zero, icl = Accuracies(evaluate("zero", "zero", KINDS)), Accuracies(evaluate("icl", "icl", KINDS))
    by_chance = pool.submit(mend_train, "lm-by-chance", None, None, **{**LANGUAGE, "threads": 1, "config": os.path.join(DATA, "start", "config.json"), "tokenizer": os.path.join(WORK, "start.safetensors")})
    rows = {"nothing before the query": zero, "prompt tuning, 16 vectors per task": Accuracies(prompt_tuning(pool)), "all 16 demonstrations": icl}
    for name, job in chains.items():
        groups = GROUPS if "groups" in name else 1
        rows["MEND, " + name] = Accuracies(evaluate("mend-" + name, "mend", KINDS, distiller_=job.result(), groups=groups))
    rows["all 16 demonstrations, language model not wired"] = Accuracies(evaluate("icl-by-chance", "icl", KINDS, llm=by_chance.result()))
    default = default.result()
    rows["MEND, the model of models/"] = Accuracies(evaluate("mend-default", "mend", KINDS, distiller_=default))
    cells = lambda a: [c for kind in KINDS for c in (spread(a.seeds(kind)), "%.0f %%" % (100 * statistics.mean(recovered(a.seeds(kind), zero.seeds(kind), icl.seeds(kind)))))]
    out += ["### Methods and sizes\n", "16 demonstrations of 4 labels; accuracy, chance 0.250: mean and deviation over five seeds of demonstrations and queries, 4 tasks each, 50 queries a task and seed.",
            "*Recovered*: how much of the way from nothing to all demonstrations.\n",
            table(["", "new bindings", "recovered", "held-out categories", "recovered"], [[name, *cells(a)] for name, a in rows.items()])]
    sizes = {1: "1 vector", **{v: "%d vectors" % v for v in SIZES}}
    curve(os.path.join(ROOT, "docs", "mend-vectors.svg"), "Accuracy by the number of vectors", "vectors", "accuracy",
          {label: [(v, statistics.mean(rows["MEND, " + name].seeds(kind))) for v, name in sizes.items()] for kind, label in zip(KINDS, ("new bindings", "held-out categories"))} |
          {"all demonstrations": [(v, statistics.mean(icl.seeds(KINDS[0]))) for v in sizes], "nothing": [(v, statistics.mean(zero.seeds(KINDS[0]))) for v in sizes]}, high=1.0)
    out += ["![accuracy by the number of vectors](mend-vectors.svg)\n", long_prompts(default), ablations(default), families(default), learning()]
    return out


def long_prompts(default):
    """32 demonstrations: what the vectors save."""
    setting = dict(k=32)
    zero, icl = Accuracies(evaluate("zero", "zero", KINDS)), Accuracies(evaluate("icl-32", "icl", KINDS, **setting))
    mend = Accuracies(evaluate("mend-default-32", "mend", KINDS, distiller_=default, **setting))
    queries = os.path.join(DATA, "eval", task_names(KINDS[1])[0], task_names(KINDS[1])[0] + "_16_100_%s.jsonl")
    bill = json.loads(ask(["./mend", "cost", "--json", "--threads", "1", "-l", LM, "-m", default, "-d", queries % "train"], lines(queries % "test")))["methods"]
    rows = [[b["method"], "%.2f" % (b["flops_once"] / 1e6), "%.2f" % (b["flops_per_query"] / 1e6)] for b in bill]
    kinds = [[kind, spread(zero.seeds(kind)), spread(icl.seeds(kind)), spread(mend.seeds(kind)), spread(recovered(mend.seeds(kind), zero.seeds(kind), icl.seeds(kind)))] for kind in KINDS]
    return "\n".join(["### 32 demonstrations in 16 vectors\n", table(["the model of models/", "nothing", "32 demonstrations", "16 vectors", "recovered"], kinds),
                      "What it costs (`mend cost`, one task of the held-out categories), millions of operations:\n", table(["", "once", "a query"], rows)])


def ablations(default):
    rows = []
    for ablation in ABLATIONS:
        both = [Accuracies(evaluate(method + "-default", method, KINDS, ablation=ablation, distiller_=default if method == "mend" else None)) for method in ("icl", "mend")]
        rows.append([ablation, *(spread(a.seeds(kind)) for kind in KINDS for a in both)])
    return "\n".join(["### Demonstrations spoilt\n", "What the method reads has no inputs, no labels, labels by chance, or other labels than the right ones.\n",
                      table(["", "new bindings, all 16", "16 vectors", "held-out, all 16", "16 vectors"], rows)])


def families(default):
    kinds = ["%s-%s" % (where, family) for family in ("category", "first", "last", "word") for where in ("seen", "held")]
    methods = [Accuracies(evaluate("families", method, kinds, k=32, distiller_=default if method == "mend" else None)) for method in ("zero", "icl", "mend")]
    return "\n".join(["### Families the distiller never saw\n", "The language model learned all four families, the distiller *category* alone; 32 demonstrations.\n",
                      table(["", "nothing", "32 demonstrations", "16 vectors"], [[kind, *(spread(m.seeds(kind)) for m in methods)] for kind in kinds])])


def smooth(rows, key, n=25):
    return [(rows[i]["step"], statistics.mean(r[key] for r in rows[i:i + n])) for i in range(0, len(rows) - n, n)]


def learning():
    stages = {"4 demonstrations": "mend-1", "16 demonstrations": "mend-2", "32 demonstrations": "mend-3"}
    series, offset = {}, 0
    for label, name in stages.items():
        log = [r for r in lines(os.path.join(WORK, name + ".jsonl")) if "ce" in r]
        series["CE, " + label] = [(offset + x, y) for x, y in smooth(log, "ce")]
        offset += len(log)
    curve(os.path.join(ROOT, "docs", "mend-learning.svg"), "The distiller of models/ as it learns", "steps of its task stages", "cross entropy of the label and the pieces of the query", series)
    return "![the distiller as it learns](mend-learning.svg)\n"


def compressor_report(pool):
    everything = distill_examples()
    held = [e for e in everything if e["lang"] == "en" and bucket(e) == 0]
    talk = lambda e: e["domain"] in TALK
    start = compressor_start()
    models = {"all domains": pool.submit(compressor, start), "talk alone": pool.submit(compressor, start, "compressor-talk", talk)}
    models = {name: job.result() for name, job in models.items()}
    pytorch = os.path.join(WORK, "pytorch.safetensors")  # python3 models/train_default.py train DIRECTORY fit; python3 export.py DIRECTORY -o build/models/pytorch.safetensors
    if os.path.exists(pytorch):
        models["all domains, trained by PyTorch"] = pytorch
    default = models["all domains"]
    kept = {(name, rate): answers_kept(model, held, rate) for name, model in models.items() for rate in RATES}
    rules = [[rule, "", *("%.3f" % kept["all domains", rate][rule] for rate in RATES)] for rule in ("random", "head", "tail", "stopwords")]
    rows = [["%s, %s" % (name, mode), "%.3f" % f1(model, held), *("%.3f" % kept[name, rate][mode] for rate in RATES)] for name, model in models.items() for mode in ("faithful", "compatible")]
    part = [[name, *("%.3f / %.3f" % (f1(model, group), answers_kept(model, group, 0.5)["faithful"]) for group in ([e for e in held if talk(e)], [e for e in held if not talk(e)]))]
            for name, model in models.items()]
    domains = sorted({e["domain"] for e in held})
    by_domain = []
    for domain in domains:
        group = [e for e in held if e["domain"] == domain]
        at_half = answers_kept(default, group, 0.5)
        by_domain.append([domain, str(len(group)), "%.3f" % f1(default, group), "%.2f" % at_half["faithful"], "%.2f" % max(at_half[r] for r in ("random", "head", "tail", "stopwords"))])
    languages = sorted({e["lang"] for e in everything})
    by_language = []
    for language in languages:
        group = held if language == "en" else [e for e in everything if e["lang"] == language]
        by_language.append([language, str(len(group)), "%.3f" % f1(default, group), "%.2f" % answers_kept(default, group, 0.5)["faithful"]])
    curve(os.path.join(ROOT, "docs", "lingua2-answers.svg"), "Answers kept by the share of tokens kept", "rate", "share of answers",
          {m: [(rate, kept["all domains", rate][m]) for rate in RATES] for m in ("faithful", "compatible", "stopwords", "tail", "head", "random")}, high=1.0)
    log = [r for r in lines(os.path.join(WORK, "compressor", "log.jsonl")) if "norm" in r]
    curve(os.path.join(ROOT, "docs", "lingua2-learning.svg"), "The compressor as it learns", "step", "cross entropy", {"training": smooth(log, "loss", 10)})
    return ["### Against rules, by rate\n", "%d held-out English texts, %d questions; F1 of the label keep over words, and the share of answers that are left at each rate, counts of tokens being equal.\n" % (
                len(held), sum(len(e["qa"]) for e in held)), table(["", "F1", *("%.2f" % r for r in RATES)], rows + rules), "![answers kept](lingua2-answers.svg)\n", "![loss](lingua2-learning.svg)\n",
            "### Trained on one kind of text\n", "F1 / answers kept at 0.5; talk: %s. The paper's own model was trained on meetings alone.\n" % ", ".join(TALK), table(["trained on", "talk", "the rest"], part),
            "### Domains\n", table(["domain", "texts", "F1", "answers at 0.5", "best rule"], by_domain),
            "### Languages\n", "The model is English; what it does elsewhere is its limit, shown.\n", table(["language", "texts", "F1", "answers at 0.5"], by_language)]


def results():
    language_model()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        mend, lingua2 = mend_report(pool), compressor_report(pool)
    with open(os.path.join(ROOT, "models", "findings.md"), encoding="utf-8") as file:
        findings = file.read()
    text = "# Results\n\nMade by `make results` (models/make.py): every number and curve below is what its trainings and tests gave.\n\n" + findings + "\n## MEND at our scale\n\n" + \
        "\n".join(mend) + "\n## LLMLingua-2 at our scale\n\n" + "\n".join(lingua2)
    with open(os.path.join(ROOT, "docs", "RESULTS.md"), "w", encoding="utf-8") as file:
        file.write(text)


def models():
    language_model()
    for name, made in (("mend-lm", LM), ("mend-distiller", distiller(threads=os.cpu_count())), ("default", compressor(compressor_start(), threads=os.cpu_count()))):
        shutil.copyfile(made, os.path.join(ROOT, "models", name + ".safetensors"))
        with open(made, "rb") as file:
            say("models/%s.safetensors: sha256 %s" % (name, hashlib.sha256(file.read()).hexdigest()))
    for file in ("demonstrations.jsonl", "queries.jsonl"):
        shutil.copyfile(os.path.join(DATA, "demo", file), os.path.join(ROOT, "demo", file))


def main():
    os.makedirs(WORK, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    {"models": models, "results": results}[sys.argv[1]]()


if __name__ == "__main__":
    main()
