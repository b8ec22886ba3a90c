"""mend's training on small random models: losses and gradients against golden ones of the released code and transformers in float64
(test/make_mend_train_golden.py, test/make_train_golden.py), gradients against central differences, bits that do not depend on threads, and `mend train` itself.
Standard library alone; the models need the tokenizers of ../shared/assets, else all is skipped."""
import array
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

from checks import finish, skip

import test_mend
from test_mend import ask_all, check, flat, flats, golden


def gradients(path):
    """{name: array of float32} of a safetensors file."""
    with open(path, "rb") as f:
        data = f.read()
    size = struct.unpack("<Q", data[:8])[0]
    found = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            found[name] = array.array("f", data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]])
    return found


def lesson(example):
    if "demos" not in example:
        return {key: example[key] for key in ("x", "y", "counted") if key in example}
    groups = example["demos"]
    return {"demos": groups, "labels": example.get("labels") or [[0] * len(groups[0])], "before": groups[0], "x": example["x"], "y": example["y"]}


def question(case, **more):
    """What test_mend.c is asked for a golden case."""
    asked = {"do": "train", "llm": flat(case["llm"]), "train": "llm", "lessons": [lesson(e) for e in case.get("texts") or case.get("examples") or [case]], "lambda": 1, "tau": 1,
             "ce": True, "kl": False, "encoder_input": case["llm"].startswith("t5")}
    if "mend" in case:
        separated = case.get("separated") or {}
        asked.update({"mend": flat(case["mend"]), "train": "mend", "lambda": case["lambda"], "tau": case["tau"], "ce": "ce" in case["parts"], "kl": "kl" in case["parts"],
                      "label_rows": separated.get("label_rows", 0), "separate_input": separated.get("both", False)})
    asked.update({key: case[key] for key in ("steps", "rate", "warmup", "decay") if key in case})
    return dict(asked, **more)


def turned(name, spec):
    """Whether a matrix is stored transposed: Linear weights, and GPT-2's and a tied T5's embeddings, which are the head too."""
    if spec["kind"] == "gpt2":
        return name in ("wte.weight", "adap_pooler.dense.weight")
    if name == "shared.weight":
        return not spec["gated"]
    return name.endswith("weight") and "norm" not in name and "relative_attention_bias" not in name and name != "init_prompt_weight"


def place(name, spec, count, index):
    """Where the flat file has element `index` of a checkpoint's tensor."""
    if not turned(name, spec):
        return index
    columns = spec["F"] if name.endswith("wo.weight") else spec["H"] * spec["K"] if name.endswith(".o.weight") else spec["C"]
    return index % columns * (count // columns) + index // columns


def gradient_errors(case, spec, found):
    """For each tensor: its name, the error at the golden entries and of the norm, both relative to the norm, and what PyTorch's float32 misses."""
    for name, g in case["gradients"].items():
        mine, norm = found[name], float(g["norm"])
        size = math.sqrt(math.fsum(v * v for v in mine))
        off = math.sqrt(math.fsum((mine[place(name, spec, len(mine), int(i))] - float(v)) ** 2 for i, v in g["at"].items()))
        if norm == 0:
            check(size == 0, "%s has a gradient" % name)
            continue
        yield name, off / norm, abs(size - norm) / norm, float(g["f32"])


def numbers(folder):
    """Losses and every gradient. `reference`: over a case's tensors the rms is at most that of PyTorch's float32, and no tensor misses by more than twice
    what it does (a few entries of one tensor are a small sample). `fast`: float32 sums of up to 300 terms in a row and a tenfold amplification from
    layer to layer: 2e-5 of the norm."""
    import make_mend_models
    cases = [c for file in ("mend-train.json.gz", "lm-train.json.gz") for c in json.loads(golden(file))["cases"] if c["kind"] != "steps"][::test_mend.STRIDE]
    path = [[os.path.join(folder, "%s%d" % (mode, i)) for i in range(len(cases))] for mode in ("fast", "reference")]
    plan = [list(zip(cases, path[0]))[::5], list(zip(cases, path[1]))]
    answers = ask_all([([question(c, file=p) for c, p in asked], mode) for asked, mode in zip(plan, ("fast", "reference"))])
    for asked, mode, answered in zip(plan, ("fast", "reference"), answers):
        for (case, file), got in zip(asked, answered):
            what = "%s, %s %s" % (mode, case["llm"], " ".join(str(case.get(key, "")) for key in ("mend", "parts", "separated")))
            want, miss = case["values"]["loss"], case["f32"]["loss"]
            want, miss = (float(want[0]), float(miss)) if isinstance(want, list) else (float(want), float(miss))
            if isinstance(got, dict):
                check(False, "%s: %s" % (what, got))
                continue
            # A loss is a mean of float32 numbers of size 10, rounded once each: 2^-21 and what the sums below miss.
            check(abs(got[0][0] - want) <= 2e-6 + 2 * miss, "%s: loss %.9g, not %.9g" % (what, got[0][0], want))
            found, ours, theirs = gradients(file), 0.0, 0.0
            extra = set(found) - set(case["gradients"]) - {"vectors"}
            check(not extra and set(case["gradients"]) <= set(found), "%s: other tensors: %s" % (what, extra or set(case["gradients"]) - set(found)))
            for name, off, size_off, single in gradient_errors(case, make_mend_models.MODELS[case.get("mend", case["llm"])], found):
                bound = max(2 * single, 2e-7) if mode == "reference" else 2e-5
                check(off <= bound and size_off <= bound, "%s: %s is off by %.2e, its norm by %.2e, of %.2e" % (what, name, off, size_off, bound))
                ours, theirs = ours + off ** 2, theirs + single ** 2
            check(mode == "fast" or ours <= theirs, "%s: rms %.3g times PyTorch's" % (what, math.sqrt(ours / theirs)))


def steps():
    """Optimizer steps: losses within 1e-5 of PyTorch's in float64, norms within 1e-4 of theirs."""
    cases = [c for file in ("mend-train.json.gz", "lm-train.json.gz") for c in json.loads(golden(file))["cases"] if c["kind"] == "steps"]
    number = lambda v: float(v[0]) if isinstance(v, list) else float(v)
    plan = {"fast": cases[::2], "reference": cases[1::2]}
    for (mode, asked), answered in zip(plan.items(), ask_all([([question(c) for c in asked], mode) for mode, asked in plan.items()])):
        for case, got in zip(asked, answered):
            what = "%s, steps of %s" % (mode, case.get("mend", case["llm"]))
            if isinstance(got, dict):
                check(False, "%s: %s" % (what, got))
                continue
            for t in range(case["steps"]):
                loss, norm = number(case["values"]["loss.%d" % t]), number(case["values"]["norm.%d" % t])
                check(abs(got[t][0] - loss) <= 1e-5 * max(1, loss), "%s: loss %d is %.9g, not %.9g" % (what, t, got[t][0], loss))
                check(abs(got[t][1] - norm) <= 1e-4 * norm, "%s: norm %d is %.9g, not %.9g" % (what, t, got[t][1], norm))
            for key, row in case["values"].items():
                if key.startswith("row."):
                    worst = max(abs(a - float(b)) for a, b in zip(got[-1][int(key[4:])], row))
                    # AdamW turns a gradient near 0 into a step of either sign: vectors agree less well than losses.
                    check(worst <= 2e-3, "%s: vector %s is off by %.2g" % (what, key[4:], worst))


# ==== mend train ====

def write(path, lines):
    with open(path, "w", encoding="utf-8") as f:
        f.write("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def read(path):
    with open(path, "rb") as f:
        return f.read()


TASKS = [{"task": task, "input": "%s thing %d" % (task, (i * 37 + 11) % 50), "output": ("yes", "no")[i * i % 7 % 2], "options": ["yes", "no"]} for task in ("one", "two") for i in range(9)]
TEXT = ["Passage %d: the river rose in the night, and by morning the lower field was under water to the gate.\n\n" % i for i in range(6)]
CONFIG = {"n_layer": 2, "n_head": 2, "n_embd": 6, "n_positions": 48, "n_inner": 10, "vocab_size": 50257, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}


class Folder:
    """Files and models of the commands below."""

    def __init__(self, path):
        self.path = path
        self.tasks, self.text = write(self.at("tasks.jsonl"), TASKS), write(self.at("text.txt"), TEXT)
        self.one, self.json_text = write(self.at("one.jsonl"), TASKS[:9]), write(self.at("text.jsonl"), [{"text": t} for t in TEXT])
        self.config = write(self.at("config.json"), [CONFIG])
        self.gpt2, self.mend, self.t5, self.t5_mend = (flat(n) for n in ("gpt2-tiny", "mend-tiny", "t5-tiny", "mend-t5-tiny"))
        separated = ["--groups", 2, "--label-rows", 2, "--separate-input"]
        self.stages = {
            "pretrain": ["--stage", "pretrain", "-l", self.gpt2, "-m", self.mend, "--data", self.text, "--data", self.json_text, "--length", 30],
            "finetune": ["--stage", "finetune", "-l", self.gpt2, "-m", self.mend, "--data", self.tasks, "--held-out", self.tasks, "--k", 4, "--batch", 2, "--micro-batches", 2, *separated],
            "new": ["--stage", "finetune", "-l", self.gpt2, "-m", self.gpt2, "--rows", 3, "--data", self.tasks, "--k", 3, "--lambda", 0.5, "--temperature", 2],
            "t5": ["--stage", "finetune", "-l", self.t5, "-m", self.t5_mend, "--data", self.tasks, "--k", 3, "--encoder-input", "--channel"],
            "prompt": ["--stage", "prompt", "-l", self.gpt2, "--rows", 4, "--data", self.one, "--batch", 3],
            "lm": ["--stage", "lm", "--config", self.config, "--tokenizer", self.gpt2, "--data", self.text, "--data", self.tasks, "--k", 3, "--batch", 2],
        }

    def at(self, name):
        return os.path.join(self.path, name)

    def train(self, stage, out, *more, steps=4, threads=1):
        return test_mend.run(["train", *self.stages[stage], "-o", out, "--steps", steps, "--every", 2, "--held-out-lessons", 3, "--rate", 0.01, "--warmup", 1, "--decay", 0.01,
                              "--seed", 5, "--threads", threads, *more])


def same_bits(folder):
    """Any number of threads gives the same files and the same log; so does a run that was killed and resumed."""
    for stage in folder.stages:
        made = {}
        for name, threads in (("a", 1), ("b", {"new": 3, "finetune": 2}.get(stage))):
            if not threads:
                continue
            out = folder.at("%s-%s" % (stage, name))
            done = folder.train(stage, out, threads=threads)
            check(done.returncode == 0, "%s, %d threads: exit %d %r" % (stage, threads, done.returncode, done.stderr[-300:]))
            made[name] = (done.stdout, read(out), read(out + ".last"))
        log = [json.loads(line) for line in made["a"][0].splitlines()]
        check([line["step"] for line in log] == [1, 2, 2, 3, 4, 4] and all(math.isfinite(line["loss"]) for line in log if "loss" in line), "%s: log %s" % (stage, log))
        check(made["a"] == made.get("b", made["a"]), "%s: threads change bits" % stage)
        if stage in ("new", "pretrain"): # finetune is as they are
            continue
        stopped = folder.at(stage + "-c")
        killed = stop_after_two(folder, stage, stopped)
        done = folder.train(stage, stopped, "--resume")
        check(done.returncode == 0, "%s: resume: exit %d %r" % (stage, done.returncode, done.stderr[-300:]))
        check(read(stopped + ".last") == made["a"][2] and killed + done.stdout == made["a"][0], "%s: stopped and resumed is not the same" % stage)


def stop_after_two(folder, stage, out):
    """A run that is killed once its log says that step 3 is done; what it wrote up to its checkpoint after step 2."""
    arguments = [test_mend.MEND, "train", *folder.stages[stage], "-o", out, "--steps", 4, "--every", 2, "--held-out-lessons", 3, "--rate", 0.01, "--warmup", 1, "--decay", 0.01,
                 "--seed", 5, "--threads", 1]
    with subprocess.Popen([str(a) for a in arguments], stdout=subprocess.PIPE) as run:
        lines = [run.stdout.readline() for _ in range(4)]
        run.kill()
    check(json.loads(lines[3])["step"] == 3, "%s: %r" % (stage, lines))
    return b"".join(lines[:3])


def usable(folder):
    """What training wrote is opened by the other commands."""
    vectors = folder.at("vectors")
    for stage in ("pretrain", "finetune", "new"):
        test_mend.output("distill", "-m", folder.at(stage + "-a"), "-d", folder.tasks, "-l", folder.gpt2, "-o", vectors, "-q")
        test_mend.output("score", "-l", folder.gpt2, "-v", vectors, folder.tasks)
    test_mend.output("score", "-l", folder.gpt2, "-v", folder.at("prompt-a"), folder.tasks)
    test_mend.output("score", "-l", folder.gpt2, "-v", folder.at("prompt-a.last"), folder.tasks)
    test_mend.output("logprob", "-l", folder.at("lm-a"), "--ids", "5,6,7")
    test_mend.output("info", folder.at("lm-a.last"))
    test_mend.output("score", "-l", folder.t5, "-m", folder.at("t5-a"), "-d", folder.one, "--encoder-input", folder.one)


def damaged(folder, tensor, value):
    """The distiller with element 3 (and, if it is finite, those up to 9) of a tensor changed."""
    data, path = bytearray(read(folder.mend)), folder.at("damaged")
    size = struct.unpack("<Q", data[:8])[0]
    at = 8 + size + json.loads(data[8:8 + size])[tensor]["data_offsets"][0] + 12
    for i in range(1 if math.isnan(value) else 7):
        data[at + 4 * i:at + 4 * i + 4] = struct.pack("<f", value * (-1) ** i)
    with open(path, "wb") as f:
        f.write(data)
    return path


def refused(folder):
    """Bad files, options that do not go together, numbers that explode: exit code and message; the last good checkpoint stays."""
    bad_json = write(folder.at("bad.jsonl"), [*TASKS[:3], "{\"input\": 3}\n"])
    no_output = write(folder.at("no-output.jsonl"), [*TASKS[:2], {"input": "x"}])
    bad_text = write(folder.at("bad-text.jsonl"), [{"text": "fine " * 20}, {"txt": 1}])
    few = write(folder.at("few.jsonl"), TASKS[:3])
    short = write(folder.at("short.txt"), ["too short\n"])
    out = folder.at("refused")
    new, l, m = ["-o", out], ["-l", folder.gpt2], ["-m", folder.mend]
    finetune, pretrain = ["--stage", "finetune", *l, *m, *new], ["--stage", "pretrain", *l, *m, *new]
    for arguments, code, words in (
            ([*finetune, "--data", bad_json], 1, ["bad.jsonl", "line 4"]), ([*finetune, "--data", no_output], 1, ["line 3"]), ([*pretrain, "--data", bad_text], 1, ["line 2", "text"]),
            ([*finetune, "--data", few], 1, ["task one", "3 examples"]), ([*pretrain, "--data", short], 1, ["0 passages"]), ([*pretrain, "--data", folder.tasks], 1, ["2 tasks"]),
            (["--stage", "prompt", *l, "--rows", 2, *new, "--data", folder.tasks], 1, ["2 tasks", "one task"]), ([*finetune, "--data", folder.at("none")], 1, ["none"]),
            (["--stage", "pre", *new, "--data", few], 2, ["--stage"]), (["--stage", "lm", *new, "--data", few], 2, ["-l is missing"]), (["--stage", "finetune", *l, *new, "--data", few], 2, ["-m"]),
            ([*finetune], 2, ["--data"]), ([*finetune, "--data", few, "--steps", 5, "--warmup", 5], 2, ["--warmup"]), (["--stage", "prompt", *l, *new, "--data", few], 2, ["--rows"]),
            (["--stage", "finetune", *l, "-m", folder.gpt2, *new, "--data", folder.tasks], 2, ["--rows"]), (["--stage", "finetune", *l, "-m", folder.t5_mend, *new, "--data", folder.tasks], 3, ["wide"]),
            ([*finetune, "--data", folder.tasks, "--resume"], 1, [".last"]), ([*finetune, "--data", folder.tasks, "--encoder-input"], 2, ["T5"]),
            (["--stage", "lm", "--config", few, "--tokenizer", folder.gpt2, *new, "--data", folder.text], 1, ["few.jsonl"])):
        done = test_mend.run(["train", *arguments])
        check(done.returncode == code and all(w.encode() in done.stderr for w in words), "%s: exit %d %r, wanted %d and %s" % (arguments, done.returncode, done.stderr, code, words))
        check(not os.path.exists(out) and not os.path.exists(out + ".last"), "%s: left a file" % arguments)
    other = folder.train("pretrain", folder.at("pretrain-a"), "--resume", "--clip", 2)
    check(other.returncode == 2 and b"other options" in other.stderr, "resume with other options: %d %r" % (other.returncode, other.stderr))
    for tensor, value, words in (("h.1.mlp.c_fc.weight", math.nan, ["step 1", "h.1.mlp.c_fc.weight", "element 3"]), ("h.0.attn.c_attn.weight", 3e38, ["step 1", "NaN", "first in h.0.attn.c_attn;"])):
        broken = damaged(folder, tensor, value)
        done = test_mend.run(["train", "--stage", "finetune", *l, "-m", broken, *new, "--data", folder.tasks, "--k", 3, "--steps", 2])
        check(done.returncode in (1, 3) and all(w.encode() in done.stderr for w in words), "%s %s: %d %r" % (tensor, value, done.returncode, done.stderr))
        check(not os.path.exists(out + ".last"), "a checkpoint of NaN")
    with open("/dev/full", "wb") as full:
        done = test_mend.run(["train", *folder.stages["prompt"], "-o", folder.at("full"), "--steps", 2], stdout=full)
        check(done.returncode == 4, "> /dev/full: %d" % done.returncode)


def commands(path):
    folder = Folder(path)
    for part in (same_bits, usable, refused):
        part(folder)


def main():
    if not os.path.isdir(test_mend.ASSETS):
        skip("no ../shared/assets, so no real tokenizers to make the models with")
        return finish()
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, test_mend.HERE)
        import make_mend_models
        flats(make_mend_models.MODELS)
        numbers(folder)
        steps()
        commands(folder)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
