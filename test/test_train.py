"""mend's training on small random models: losses and gradients against golden ones of the released code and transformers in float64
(test/make_mend_train_golden.py, test/make_train_golden.py), gradients against central differences, bits that do not depend on threads, and `mend train` itself.
Standard library alone; the models need the tokenizers of ../shared/assets, else all is skipped."""
import array
import json
import math
import os
import struct
import sys
import tempfile

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
    cases = [c for file in ("mend-train.json.gz", "lm-train.json.gz") for c in json.loads(golden(file))["cases"] if c["kind"] != "steps"]
    path = [[os.path.join(folder, "%s%d" % (mode, i)) for i in range(len(cases))] for mode in ("fast", "reference")]
    answers = ask_all([([question(c, file=p) for c, p in zip(cases, paths)], mode) for paths, mode in zip(path, ("fast", "reference"))])
    for paths, mode, answered in zip(path, ("fast", "reference"), answers):
        for case, file, got in zip(cases, paths, answered):
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
    for mode, answered in zip(("fast", "reference"), ask_all([([question(c) for c in cases], mode) for mode in ("fast", "reference")])):
        for case, got in zip(cases, answered):
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


def main():
    if not os.path.isdir(test_mend.ASSETS):
        print("skipped: no ../shared/assets, so no real tokenizers to make the models with")
        print("0 passed, 0 failed, 1 skipped")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, test_mend.HERE)
        import make_mend_models
        flats(make_mend_models.MODELS)
        numbers(folder)
        steps()
    print("%d passed, %d failed, %d skipped" % (test_mend.passed, test_mend.failed, test_mend.skipped))
    return 1 if test_mend.failed else 0


if __name__ == "__main__":
    sys.exit(main())
