"""lingua2 train: from texts to a compressor in one go, the same bits stopped and resumed or with other threads, both recipes against PyTorch
(test/make_lingua2_recipe_golden.py), and what must stop it. Standard library alone."""
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

from checks import check, finish, skip

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_models import flat_file
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
PROGRAM = os.path.join(ROOT, "lingua2")
TINY = ["-q", "--fresh", "--layers", "1", "--hidden", "32", "--heads", "2", "--feed-forward", "64"]


def run(arguments, stdin=""):
    done = subprocess.run([PROGRAM] + arguments, input=stdin if isinstance(stdin, bytes) else stdin.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)
    return done.returncode, done.stdout.decode(), done.stderr.decode("utf-8", "replace")


def parsed(text):
    return [json.loads(line) for line in text.splitlines()]


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def write(text, *path):
    with open(os.path.join(*path), "w", encoding="utf-8") as file:
        file.write(text)
    return os.path.join(*path)


def origins(part, n):
    return [json.loads(line)["origin"] for line in read(ROOT, "data", "distill", part).decode().splitlines()[:n]]


def end_to_end(folder):
    """Texts -> chunk -> answers -> collect -> annotate -> filter -> train -> compress. The language model keeps the words of more than three letters: a rule
    that a tiny encoder learns in seconds."""
    texts = write("\n\n".join(origins("p1.jsonl", 70)), folder, "texts.txt")
    code, requests, _ = run(["chunk", "--tokens", "64", texts])
    answers = []
    for row in parsed(requests):
        words = row["body"]["messages"][1]["content"].split()
        answers.append({"custom_id": row["custom_id"], "response": {"body": {"choices": [{"message": {"content": " ".join(w for w in words if len(w) > 3)}}]}}})
    requests = write(requests, folder, "requests.jsonl")
    code, pairs, err = run(["collect", "--requests", requests], "".join(json.dumps(a) + "\n" for a in answers))
    check(code == 0 and len(parsed(pairs)) == len(answers) > 150, "collect: %d %s" % (code, err))
    annotated = run(["annotate"], pairs)[1]
    code, labels, err = run(["filter"], annotated)
    check(code == 0 and len(parsed(labels)) > 100, "filter: %s" % err)
    labels = write(labels, folder, "labels.jsonl")
    out = os.path.join(folder, "model")
    code, _, err = run(["train", "-o", out] + TINY + ["--epochs", "4", "--rate", "0.01", "--dropout", "0", "--threads", "1", labels])
    log = parsed(read(out, "log.jsonl").decode())
    epochs, steps = [r for r in log if "accuracy" in r], [r for r in log if "loss" in r]
    check(code == 0 and len(epochs) == 4 and [r["step"] for r in steps] == list(range(1, len(steps) + 1)), "train: %d %s" % (code, err))
    check(epochs[-1]["accuracy"] > 0.9 and epochs[-1]["f1"] > 0.9, "it did not learn the rule: %s" % epochs)
    code, text, err = run(["compress", "--compat", "-m", os.path.join(out, "best.safetensors"), "--rate", "0.5"], "We had to go to the station because everything else was full of people.")
    check(code == 0 and "station" in text and "everything" in text and "to" not in text.split(), "compress with it: %d %s %s" % (code, text, err))
    return labels


def same_bits(folder, labels):
    """Whole; on one thread; stopped in the middle of an epoch and at the end of one, and resumed: one and the same."""
    options = TINY + ["--epochs", "2", "--rate", "0.003", "--batch", "16"]
    whole, parts = os.path.join(folder, "whole"), os.path.join(folder, "parts")
    check(run(["train", "-o", whole] + options + [labels])[0] == 0, "whole")
    per_epoch = [r["step"] for r in parsed(read(whole, "log.jsonl").decode()) if "accuracy" in r][0]
    check(run(["train", "-o", parts, "--steps", "3", "--threads", "1"] + options + [labels])[0] == 0, "three steps")
    check(run(["train", "-o", parts, "--steps", "%d" % per_epoch, "--threads", "3", "--resume"] + options + [labels])[0] == 0, "to the end of the epoch")
    write(read(parts, "log.jsonl").decode() + '{"step": 999, "loss": 0}\n{"st', parts, "log.jsonl")  # as if it had gone on and been killed while it wrote
    check(run(["train", "-o", parts, "--resume"] + options + [labels])[0] == 0, "to the end")
    for name in ("best.safetensors", "last.safetensors", "log.jsonl", "start.safetensors"):
        check(read(whole, name) == read(parts, name), "%s: other bits after resuming" % name)
    other = os.path.join(folder, "other")
    run(["train", "-o", other, "--seed", "2"] + options + [labels])
    check(read(whole, "best.safetensors") != read(other, "best.safetensors"), "another seed, the same bits")
    code, _, err = run(["train", "-o", whole] + options + [labels])
    check(code == 1 and "--resume" in err, "a training is not written over: %d %s" % (code, err))
    for change in (["--rate", "0.004"], ["--seed", "2"], ["--recipe", "paper"], ["--math", "reference"]):
        changed = [o for o in options if not (o in ("--rate", "0.003") and change[0] == "--rate")] + change
        code, _, err = run(["train", "-o", whole, "--resume"] + changed + [labels])
        check(code == 1 and "another training" in err, "resumed with %s: %d %s" % (change, code, err))
    write("".join(json.dumps(r) + "\n" for r in parsed(read(labels).decode())[1:]), folder, "fewer.jsonl")
    code, _, err = run(["train", "-o", whole, "--resume"] + options + [os.path.join(folder, "fewer.jsonl")])
    check(code == 1 and "another training" in err, "resumed with other texts: %d %s" % (code, err))


def interrupted(folder, labels):
    out = os.path.join(folder, "interrupted")
    process = subprocess.Popen([PROGRAM, "train", "-o", out] + TINY + ["--threads", "1", "--epochs", "1000", labels], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = os.path.join(out, "log.jsonl")
    for _ in range(600):
        if os.path.exists(log) and read(log).count(b"\n") > 40:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1].decode()
    check(process.returncode == 4 and "--resume" in err, "SIGINT: exit %d %s" % (process.returncode, err))
    step = json.loads(read(log).decode().splitlines()[-1])["step"]
    check(("after step %d " % step) in err, "the last step is in the log: %d, %s" % (step, err))
    process = subprocess.Popen([PROGRAM, "train", "-o", out, "--resume"] + TINY + ["--threads", "1", "--epochs", "1000", labels], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(600):
        if read(log).count(b"\n") > step + 40:
            break
        time.sleep(0.05)
    process.kill()
    process.communicate()
    for name in ("best.safetensors", "last.safetensors"):
        check(run(["info", os.path.join(out, name)])[0] == 0, "killed: %s is not whole" % name)
    code, _, err = run(["train", "-o", out, "--resume", "--steps", "%d" % (step + 1)] + TINY + ["--threads", "1", "--epochs", "1000", labels])
    check(code == 0, "resumed after a kill: %d %s" % (code, err))


def bad(folder, labels):
    rows = read(labels).decode().splitlines()
    good = json.loads(rows[0])
    changes = [({"labels": good["labels"][:-1]}, "labels for"), ({"labels": [1] * len(good["labels"])}, "label 0"), ({"labels": None}, "labels"), ({"spans": [[0, 10 ** 6]] * len(good["labels"])}, "span 0"),
               ({"spans": [[3, 2]] * len(good["labels"])}, "span 0"), ({"spans": [[0, 1]] * len(good["labels"])}, "span 1"), ({"origin": 5}, "origin"), ({"spans": "x"}, "spans")]
    for number, (change, word) in enumerate(changes):
        path = write("\n".join(rows[:2] + [json.dumps({**good, **change})] + rows[2:]) + "\n", folder, "bad.jsonl")
        code, _, err = run(["train", "-o", os.path.join(folder, "none%d" % number)] + TINY + [path])
        check(code == 1 and "line 3" in err and word in err, "%s: %d %s" % (word, code, err))
        check(not os.path.exists(os.path.join(folder, "none%d" % number, "last.safetensors")), "a checkpoint of nothing")
    code, _, err = run(["train", "-o", os.path.join(folder, "words"), "--recipe", "paper"] + TINY + [write(json.dumps({**good, "words": [3] * len(good["labels"])}) + "\n", folder, "bad.jsonl")])
    check(code == 1 and "word 0" in err, "words: %s" % err)
    out = os.path.join(folder, "nan")
    code, _, err = run(["train", "-o", out, "--steps", "2"] + TINY + [labels])
    before = read(out, "last.safetensors")
    check(code == 0, "two steps")
    code, _, err = run(["train", "-o", os.path.join(folder, "nan2"), "--rate", "1e6", "--dropout", "0", "--epochs", "5", "--threads", "1"] + TINY + [labels])
    check(code == 0 or (code == 1 and "step " in err), "a mad rate: %d %s" % (code, err))
    broken = bytearray(read(out, "start.safetensors"))
    place = 8 + int.from_bytes(broken[:8], "little")
    header = json.loads(broken[8:place])
    for name, words in (("encoder.layer.0.output.dense.weight", ["step 1", "encoder.layer.0"]), ("embeddings.LayerNorm.weight", ["step 1", "encoder.layer.0"]), ("classifier.bias", ["step 1", "classifier"])):
        changed, at = bytearray(broken), place + header[name]["data_offsets"][0]
        changed[at:at + 4] = b"\0\0\xc0\x7f"
        open(os.path.join(folder, "broken.safetensors"), "wb").write(changed)
        target = os.path.join(folder, "nan-" + name)
        code, _, err = run(["train", "-o", target, "-m", os.path.join(folder, "broken.safetensors"), labels])
        check(code == 1 and all(w in err for w in words), "NaN in %s: %d %s" % (name, code, err))
        check(not os.path.exists(os.path.join(target, "last.safetensors")), "NaN in %s: a checkpoint" % name)
    check(read(out, "last.safetensors") == before, "another training's checkpoint changed")
    for arguments, word in ((["train", labels], "-o FOLDER"), (["train", "-o", out + "1", "--layers", "2", labels], "--fresh"), (["train", "-o", out + "1", "--recipe", "mine", labels], "--recipe"),
                            (["train", "-o", out + "1", "--fresh", "--heads", "5", labels], "divide"), (["train", "-o", out + "1", "--batch", "0", labels], "--batch")):
        code, _, err = run(arguments)
        check(code == 2 and word in err, "%s: %d %s" % (arguments, code, err))
    check(run(["train", "-o", os.path.join(folder, "no", "where"), labels])[0] == 4 and run(["train", "-o", out + "1", "no such file"])[0] == 1, "what is not there")
    code, _, err = run(["train", "-o", out + "2", "--resume", labels])
    check(code == 1 and "last.safetensors" in err, "nothing to resume: %d %s" % (code, err))
    code, _, err = run(["train", "-o", out + "3", os.path.join(ROOT, "data", "distill", "p1.jsonl")])
    check(code == 1 and "spans" in err and "annotate" in err, "lines that were not annotated: %d %s" % (code, err))


def still(name, folder, lines, *options):
    """The log of one epoch that changes nothing, to the losses' 1e-6."""
    labels, out = write("".join(json.dumps(line) + "\n" for line in lines), folder, "lines.jsonl"), os.path.join(folder, "still-" + options[0] + name)
    code, _, err = run(["train", "-q", "-m", flat_file(name), "-o", out, "--recipe", *options, "--math", "reference", "--rate", "1e-12", "--dropout", "0", "--epochs", "1", labels])
    check(code == 0, "%s: %d %s" % (options, code, err))
    return parsed(read(out, "log.jsonl").decode())


def score_is(what, row, want):
    """The line of an epoch against the labels of several texts."""
    sums = {k: sum(w[k] for w in want) for k in want[0]}
    check(abs(row["choose_loss"] - sums["loss"] / len(want)) <= 1e-6 * (1 + sums["loss"]), "%s: choose_loss %s" % (what, row))
    wrong = sums["labels"] - sums["right"]
    check(row["accuracy"] == sums["right"] / sums["labels"] and row["f1"] == (2 * sums["keep"] / (2 * sums["keep"] + wrong) if sums["keep"] + wrong else 0), "%s: accuracy %s" % (what, row))


def recipes(folder):
    """Paper: two copies of each line, one a step, so that each loss tells its line; the copies that do not come choose. Ours: all lines in one step."""
    with gzip.open(os.path.join(ROOT, "test", "golden", "lingua2-recipe.json.gz")) as file:
        golden = json.load(file)
    for name, want in golden["models"].items():
        *steps, epoch = still(name, folder, golden["cases"] * 2, "paper", "--batch", "1")
        left = [[case["loss"]] * 2 for case in want["paper"]]
        for row in steps:
            near = [losses for losses in left if losses and abs(losses[0] - row["loss"]) <= 1e-6 * (1 + row["loss"])]
            check(len(near) == 1, "%s: no line has the loss %r" % (name, row["loss"]))
            near and near[0].pop()
        check(len(steps) == 14 and sum(map(len, left)) == 4, "%s: %d steps, left %s" % (name, len(steps), left))
        score_is("paper, " + name, epoch, [case for case, losses in zip(want["paper"], left) for _ in losses])
        *steps, epoch = still(name, folder, golden["lines"], "ours", "--batch", "%d" % want["learn"]["sequences"])
        check(len(steps) == 1 and abs(steps[0]["loss"] - want["learn"]["loss"]) <= 1e-6, "ours, %s: %s, wanted %r" % (name, steps, want["learn"]["loss"]))
        score_is("ours, " + name, epoch, [want["choose"]])


with tempfile.TemporaryDirectory() as temporary:
    made = end_to_end(temporary)
    same_bits(temporary, made)
    interrupted(temporary, made)
    bad(temporary, made)
    if os.path.isdir(os.path.join(ROOT, "..", "shared", "assets")):
        recipes(temporary)
    else:
        skip("no ../shared/assets, so no real tokenizers to make the models with")
sys.exit(finish())
