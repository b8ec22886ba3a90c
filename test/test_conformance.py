"""The conformance pack, the ports and the commands trace, compare, replay. Standard library alone; Node's port is skipped where there is no node.

What must hold: `make conformance` gives the committed bytes; our programs, contract.py and contract.js give the committed manifests, in both arithmetics
(the ports those of the forward pass); gradients are those that differences of the loss show; an error put into a run on purpose is found by the commands, in its place.
"""
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

from checks import check, finish, skip

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, "test"), os.path.join(ROOT, "test", "ports")]
import contract  # noqa: E402
import make_conformance  # noqa: E402

PACK = os.path.join(ROOT, "conformance")
EQUAL, WITHIN, BEYOND, UNREADABLE = range(4)


def compared_lines(text):
    """A manifest without comments and without the fields that are for the eye."""
    return ["\t".join(line.split("\t")[:6]) for line in text.splitlines() if not line.startswith("#")]


def read(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def committed(name, arithmetic):
    return compared_lines(read(PACK, "%s.%s.taps" % (name, arithmetic)).decode())


# ==== the pack ====

def test_rebuilt(folder):
    make_conformance.make(folder)
    for at, _, files in os.walk(folder):
        for name in files:
            ours = os.path.join(PACK, os.path.relpath(os.path.join(at, name), folder))
            check(os.path.exists(ours) and read(ours) == read(at, name), os.path.relpath(ours, ROOT), "is not what `make conformance` makes")


def test_threads(folder):
    for name, program, *rest in make_conformance.manifests(PACK):
        out = os.path.join(folder, name)
        code, _, error = run("./" + program, *rest, "--threads", "3", "--hash-only", "-o", out)
        check(code == 0 and read(out + ".taps") == read(PACK, name + ".taps"), name, "on three threads", error)
    # the embedded model is large enough that threads share out its work
    made, text = [], os.path.join(folder, "text")
    with open(text, "wb") as f:
        f.write(read(ROOT, "demo", "transcript.txt")[:800])
    for threads in "123":
        code, _, error = run("./lingua2", "trace", "--backward", "--hash-only", "--threads", threads, "-o", os.path.join(folder, threads), text)
        made.append(code == 0 and read(folder, threads + ".taps"))
    check(made[0] and made[0] == made[1] == made[2], "the embedded model's gradients on 1, 2 and 3 threads", error)


def test_python_port():
    for name, run_of in make_conformance.RUNS.items():
        for m in (contract.Fast, contract.Reference):
            check(list(contract.compute(PACK, run_of, m).manifest()) == committed(name, m.name), "contract.py:", name, m.name)
    check(contract.check_vectors(PACK) == 0, "contract.py: vectors")
    with open(os.path.join(ROOT, "test", "golden", "crmath.txt")) as f:
        lines = [line.split() for line in f if not line.startswith("d_")]
    wrong = [line for line in lines if contract.bits(contract.function(line[0], struct.unpack(">f", bytes.fromhex(line[1]))[0])) != line[2]]
    check(lines and not wrong, "contract.py:", len(wrong), "of", len(lines), "golden values of functions, first", wrong[:1])


def test_javascript_port():
    if not shutil.which("node"):
        return skip("contract.js: no node")
    port = os.path.join(ROOT, "test", "ports", "contract.js")
    for i, name in enumerate(make_conformance.RUNS):
        arithmetic = ("fast", "reference")[i % 2]
        code, out, error = run("node", port, PACK, name, arithmetic)
        check(code == 0 and out.splitlines() == committed(name, arithmetic), "contract.js:", name, arithmetic, error[:300])
    code, out, _ = run("node", port, PACK, "vectors")
    check(code == 0, "contract.js:", out)


# ==== a prefix of a run is the run of the prefix ====

def numbers(path):
    """{name: (shape, flat)} of a run."""
    raw = read(path)
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__")
    return {name: (t["shape"], raw[8 + length + t["data_offsets"][0]:8 + length + t["data_offsets"][1]]) for name, t in header.items() if t["dtype"] == "F32"}


def first_rows(shape, raw, rows, keys):
    """The bytes of the first rows of [N,C]; of [H,T,keys] those of the first rows and keys."""
    if len(shape) == 2:
        return raw[:4 * shape[1] * rows]
    H, T, K = shape
    return b"".join(raw[4 * (h * T + t) * K:][:4 * min(keys, K)] for h in range(H) for t in range(rows))


def test_prefix(folder):
    for name in ("gpt2", "mend", "t5", "t5_gated"):
        for arithmetic in ("fast", "reference"):
            whole = make_conformance.RUNS[name]
            for part, run_of in (("whole", whole), ("prefix", dict(whole, ids=whole["ids"][:-2]))):
                program, *rest = make_conformance.command(run_of, PACK)
                code, _, error = run("./" + program, *rest, "--math", arithmetic, "-o", os.path.join(folder, part))
                check(code == 0, error)
            a, b = (numbers(os.path.join(folder, part + ".safetensors")) for part in ("whole", "prefix"))
            for tap, (shape, raw) in b.items():
                if "relative_attention_bias" in tap or tap.startswith("hypernet"):
                    continue
                rows, keys = shape[-2], shape[-1]
                same = raw == a[tap][1] if shape == a[tap][0] else first_rows(*a[tap], rows, keys) == first_rows(shape, raw, rows, keys)
                check(same, "prefix:", name, arithmetic, tap)


# ==== the backward pass ====

def backward(name, folder, *more, change=lambda command: command):
    """{name: (shape, flat)} of a run in the reference arithmetic."""
    out, (program, *rest) = os.path.join(folder, "back"), change(make_conformance.command(make_conformance.RUNS[name], PACK, True))
    code, _, error = run("./" + program, *rest, "--math", "reference", "-o", out, *more)
    check(code == 0, "backward:", name, error)
    return numbers(out + ".safetensors")


def floats(raw):
    return struct.unpack("<%df" % (len(raw) // 4), raw)


def test_backward_names(folder):
    """Every gradient has the shape of what it is the gradient of, every parameter has one, and nothing of the forward pass has changed."""
    for name, run_of in make_conformance.RUNS.items():
        taps = backward(name, folder)
        learns = "mend" if "mend" in run_of else run_of["model"] if "model" in run_of else run_of["llm"]
        scope, parameters = "hypernet." if "mend" in run_of else "", numbers(os.path.join(PACK, "models", learns + ".safetensors"))
        check([t[5:] for t in taps if t.startswith("grad.")] == [scope + p for p in parameters], "backward:", name, "parameters")
        check(all(taps["grad." + scope + p][0] == shape for p, (shape, _) in parameters.items()), "backward:", name, "shapes of parameters")
        check(all(taps[t][0] == taps[t[2:]][0] for t in taps if t.startswith("d.") and t != "d.lm_head"), "backward:", name, "shapes of gradients")
        if "lm_head" in taps:
            rows = taps["lm_head" if "lambda" in run_of else "logprob"][0][0]
            check(taps["d.lm_head"][0] == [rows, taps["lm_head"][0][1]], "backward:", name, "rows of d.lm_head", taps["d.lm_head"][0])
            nll = [-x for x in floats(taps["logprob"][1])]
            ce = struct.pack("<f", contract.Sum(nll) / len(nll))
            check(ce == taps["loss.ce" if "lambda" in run_of else "loss"][1], "backward:", name, "the loss is not the mean of -logprob")
        for arithmetic in ("fast", "reference"):
            forward, both = committed(name, arithmetic), committed(name + ".backward", arithmetic)
            check([line.split("\t")[1:] for line in forward] == [line.split("\t")[1:] for line in both if line.split("\t")[1] not in ("input.labels", "input.lambda")][:len(forward)],
                  "backward:", name, arithmetic, "the forward pass")


STEP = 2.0 ** -8


def test_backward_differences(folder):
    """The greatest element of each parameter's gradient against (loss(w + h) - loss(w - h)) / 2h."""
    for name, run_of in make_conformance.RUNS.items():
        taps, key = backward(name, folder), "mend" if "mend" in run_of else "model" if "model" in run_of else "llm"
        model, moved = (os.path.join(*at) for at in ((PACK, "models", run_of[key] + ".safetensors"), (folder, "moved.safetensors")))
        for tap in taps:
            if not tap.startswith("grad."):
                continue
            gradient, losses = floats(taps[tap][1]), []
            i = max(range(len(gradient)), key=lambda at: abs(gradient[at]))
            for h in (STEP, -STEP):
                damaged(model, moved, tap[5:].replace("hypernet.", ""), lambda raw: raw[:4 * i] + struct.pack("<f", floats(raw)[i] + h) + raw[4 * i + 4:])
                loss = backward(name, folder, "--only", "loss", change=lambda command: [moved if part == model else part for part in command])
                losses.append(floats(loss["loss"][1])[0])
            slope = (losses[0] - losses[1]) / (2 * STEP)
            check(abs(slope - gradient[i]) < 0.03 * abs(gradient[i]) + 3e-4, "backward:", name, tap, "is", gradient[i], "the loss says", slope)


def test_backward_options(folder):
    def at(name):
        return os.path.join(folder, name)

    def lingua2(*arguments):
        return run(os.path.join(ROOT, "lingua2"), "trace", "-m", os.path.join(PACK, "models", "xlmr.safetensors"), "-o", at("x"), *arguments)
    ids = ["--ids", ",".join(map(str, make_conformance.RUNS["xlmr"]["ids"]))]
    check(lingua2(*ids, "--backward", "--math", "fast")[0] == 0 and read(at("x.taps")) == read(PACK, "xlmr.backward.fast.taps"), "the labels by default")
    for code, arguments in ((2, ["--labels", "0,1"]), (2, ["--backward", "--labels", "0,2"]), (2, ["--backward", "--labels", "0,"]), (2, ["--backward", "--labels="]),
                            (1, ["--backward", "--labels", "0,1"]), (1, ["--backward", "--labels=" + ",".join(["-1"] * 10)])):
        check(lingua2(*ids, *arguments)[0] == code, "lingua2 trace", arguments)
    llm, distiller = (["-" + letter, os.path.join(PACK, "models", name)] for letter, name in (("l", "gpt2.safetensors"), ("m", "mend.safetensors")))
    for code, arguments in ((2, [*distiller, "--demonstration-ids", "1,2"]), (2, [*llm, "--ids", "1,2", "--lambda", "1"]), (1, [*llm, "--ids", "1"]),
                            (1, [*llm, *distiller, "--ids", ",".join(["1"] * 25), "--demonstration-ids", ",".join(["2"] * 9), "--lambda", "1"])):
        check(mend("trace", "--backward", "-o", at("x"), *arguments)[0] == code, "mend trace", arguments)
    taps = backward("mend", folder, "--only", "grad.*.ln_?.bias", "--npy", at("npy"))
    check(sorted(os.listdir(at("npy"))) == sorted(t + ".npy" for t in taps) and len(taps) == 5, "trace --backward --only --npy", list(taps))
    backward("gpt2", folder)
    code, out, error = mend("replay", *llm, at("back.safetensors"))
    check(code == EQUAL and "30 equal, 0 within tolerance, 0 beyond; 0 in the first run alone, 48 in the second alone, first loss" in out, "replay of a backward run", code, out[-200:], error)
    check(mend("compare", at("back.safetensors"), os.path.join(PACK, "gpt2.backward.reference.taps"))[0] == EQUAL, "compare of backward runs")


# ==== the commands ====

def mend(*arguments):
    return run(os.path.join(ROOT, "mend"), *arguments)


def damaged(source, target, name, change):
    """A copy of a run with the bytes of one tensor changed."""
    raw = bytearray(read(source))
    (length,) = struct.unpack_from("<Q", raw)
    begin, end = json.loads(raw[8:8 + length])[name]["data_offsets"]
    raw[8 + length + begin:8 + length + end] = change(bytes(raw[8 + length + begin:8 + length + end]))
    with open(target, "wb") as f:
        f.write(raw)


def one_ulp(raw, i=37):
    value = struct.unpack_from("<I", raw, 4 * i)[0] + 1
    return raw[:4 * i] + struct.pack("<I", value) + raw[4 * i + 4:]


def scaled(raw):
    values = struct.unpack("<%df" % (len(raw) // 4), raw)
    return struct.pack("<%df" % len(values), *(1.01 * x for x in values))


def test_commands(folder):
    def at(name):
        return os.path.join(folder, name)
    gpt2, llm = make_conformance.RUNS["gpt2"], os.path.join(PACK, "models", "gpt2.safetensors")
    trace = make_conformance.command(gpt2, PACK)[1:]
    for arithmetic in ("fast", "reference"):
        code, _, error = mend(*trace, "--math", arithmetic, "-o", at(arithmetic), "--npy", at(arithmetic))
        check(code == 0, "trace", error)
    for a, b in (("fast.safetensors", "fast.safetensors"), ("fast.safetensors", "fast.taps"), ("fast", "fast.safetensors"), ("fast", "fast.taps")):
        code, out, error = mend("compare", at(a), at(b))
        check(code == EQUAL and "31 equal, 0 within tolerance, 0 beyond; 0 in the first run alone, 0 in the second alone" in out, "compare", a, b, code, out[-200:], error)
    code, out, error = mend("compare", at("fast.safetensors"), at("reference.safetensors"))
    check(code == WITHIN and "first difference: h.0.attn.c_attn[0, 2]" in out, "compare fast reference", code, error)
    check(mend("compare", at("fast.safetensors"), at("reference.safetensors"), "--tolerance", "1e-9")[0] == BEYOND, "compare --tolerance")
    check(mend("compare", at("fast.taps"), at("reference.taps"))[0] == BEYOND, "compare of two manifests")
    code, out, _ = mend("compare", at("reference.safetensors"), at("fast.safetensors"), "--truth", at("reference.safetensors"))
    check(code == WITHIN and "rms ratio" in out, "compare --truth", code)
    check(mend("compare", at("fast.safetensors"), at("reference.safetensors"), "--truth", at("reference.safetensors"))[0] == BEYOND, "compare --truth, the worse one first")

    damaged(at("fast.safetensors"), at("ulp.safetensors"), "h.1.mlp.c_fc", one_ulp)
    code, out, error = mend("compare", at("ulp.safetensors"), at("fast.safetensors"))
    check(code == WITHIN and "first difference: h.1.mlp.c_fc[1, 0]" in out and "30 equal, 1 within" in out and "  1: 1\n" in out, "compare after one ulp", code, out[-300:])
    damaged(at("fast.safetensors"), at("wrong.safetensors"), "h.0.mlp.act", scaled)
    check(mend("compare", at("wrong.safetensors"), at("fast.safetensors"))[0] == BEYOND, "compare after 1%")

    code, out, error = mend("replay", "-l", llm, at("fast.safetensors"))
    check(code == EQUAL and "30 equal, 0 within tolerance, 0 beyond; 0 in the first" in out, "replay", code, out[-200:], error)
    check(mend("replay", "-l", llm, at("reference.safetensors"))[0] == EQUAL, "replay takes the run's arithmetic")
    code, out, error = mend("replay", "-l", llm, at("wrong.safetensors"))
    check(code == BEYOND and "first difference: h.0.mlp.act[0, 0]" in out, "replay of a wrong op", code, out[-300:])

    test_options(at, trace)
    test_json(at, llm)
    with open(at("short.safetensors"), "wb") as f:
        f.write(read(at("fast.safetensors"))[:-4])
    with open(at("bad.taps"), "w") as f:
        f.write("0\tx\tF32\n")
    for bad in ("short.safetensors", "bad.taps", "none.safetensors"):
        code, out, error = mend("compare", at(bad), at("fast.safetensors"))
        check(code == UNREADABLE and bad in error and not out, "compare", bad, code, error)
    check(mend("replay", "-l", llm, at("fast.taps"))[0] == UNREADABLE, "replay of a manifest")
    check(mend("replay", "-l", llm, at("none"))[0] == UNREADABLE, "replay of nothing")


def test_options(at, trace):
    check(mend(*trace, "--only", "h.1.*", "-o", at("only"))[0] == 0, "trace --only")
    names = [line.split("\t")[1] for line in compared_lines(read(at("only.taps")).decode())]
    check(len(names) == 12 and all(name.startswith("h.1.") for name in names), "trace --only gives", names)
    check(mend(*trace, "--only", "h.?.ln_*", "--hash-only", "-o", at("hash"))[0] == 0 and not os.path.exists(at("hash.safetensors")), "trace --hash-only")
    check(len(compared_lines(read(at("hash.taps")).decode())) == 4, "trace --only h.?.ln_*")
    check(mend("trace", "-o", at("x"))[0] == 2, "trace without a model")
    check(mend(*trace[:-1], "66,99999", "-o", at("x"))[0] == 1, "trace of an id that does not exist")
    check(mend(*trace)[0] == 2, "trace without -o")
    # a NaN among the weights: named, and the files are there
    damaged(os.path.join(PACK, "models", "gpt2.safetensors"), at("nan.safetensors"), "h.1.mlp.c_fc.bias", lambda raw: struct.pack("<f", float("nan")) + raw[4:])
    code, _, error = mend("trace", "-l", at("nan.safetensors"), *trace[3:], "-o", at("nan"))
    check(code == 3 and "h.1.mlp.c_fc holds a NaN" in error and os.path.exists(at("nan.taps")), "trace of a NaN", code, error)


def test_json(at, llm):
    """An object per tap and one of the whole say what the table says."""
    def objects(*command):
        code, out, _ = mend(*command, "--json")
        *lines, end = map(json.loads, out.splitlines())
        return code, {line["tap"]: line for line in lines}, end
    code, taps, end = objects("compare", at("ulp.safetensors"), at("fast.safetensors"))
    check(code == WITHIN and list(taps) == [line.split("\t")[1] for line in compared_lines(read(at("fast.taps")).decode())], "compare --json: taps", code)
    one = taps["h.1.mlp.c_fc"]
    check(one["verdict"] == "within" and (one["unequal"], one["numbers"], one["ulp"]) == (1, 13 * 37, 1) and one["shape"] == [13, 37] and 0 < one["rms"] < one["max"] < 1e-6, "compare --json:", one)
    check(taps["ln_f"]["verdict"] == "equal" and taps["ln_f"]["max"] == 0, "compare --json:", taps["ln_f"])
    check((end["taps"], end["equal"], end["within"], end["beyond"], end["first_alone"], end["second_alone"]) == (31, 30, 1, 0, 0, 0) and end["ulps"][1] == 1, "compare --json:", end)
    check(end["difference"].startswith("h.1.mlp.c_fc[1, 0]: ") and "alone" not in end, "compare --json:", end)
    _, taps, _ = objects("compare", at("reference.safetensors"), at("fast.safetensors"), "--truth", at("reference.safetensors"))
    check(taps["ln_f"]["rms_ratio"] == taps["ln_f"]["max_ratio"] == 0, "compare --json --truth:", taps["ln_f"])
    code, taps, _ = objects("compare", at("fast.taps"), at("reference.taps"))
    check(code == BEYOND and taps["wte"]["words"] == "equal" and taps["ln_f"]["words"] == "the hashes differ", "compare --json of manifests", code)
    code, taps, end = objects("replay", "-l", llm, at("wrong.safetensors"))
    check(code == BEYOND and [tap for tap in taps if taps[tap]["verdict"] == "beyond"] == ["h.0.mlp.act", "h.0.mlp.c_proj"][:end["beyond"]], "replay --json", end)


MISTAKE = ("r = 1 / Math.sqrt(v + eps);", "r = 1 / (Math.sqrt(v) + eps);")


def test_as_a_port_author(folder):
    """One op written wrongly in the JavaScript port: replay names it alone, in one command."""
    if not shutil.which("node"):
        return skip("a mistake in contract.js: no node")
    port, out = os.path.join(folder, "wrong.js"), os.path.join(folder, "mine")
    source = read(ROOT, "test", "ports", "contract.js").decode()
    check(source.count(MISTAKE[0]) == 1, "the line to spoil is there")
    with open(port, "w") as f:
        f.write(source.replace(*MISTAKE))
    code, _, error = run("node", port, PACK, "gpt2", "fast", out)
    check(code == 0, "the spoilt port runs", error[:300])
    code, table, _ = mend("replay", "-l", os.path.join(PACK, "models", "gpt2.safetensors"), out + ".safetensors")
    wrong = [line.split()[0] for line in table.splitlines() if "/" in line and int(line.split()[2].split("/")[0]) > 0]
    check(code in (WITHIN, BEYOND) and wrong == ["h.0.ln_1", "h.0.ln_2", "h.1.ln_1", "h.1.ln_2", "ln_f"], "replay names", wrong, code)


def main():
    with tempfile.TemporaryDirectory() as folder:
        for part, test in (("pack", test_rebuilt), ("threads", test_threads), ("prefix", test_prefix), ("names", test_backward_names), ("differences", test_backward_differences),
                           ("options", test_backward_options), ("commands", test_commands), ("author", test_as_a_port_author)):
            os.mkdir(os.path.join(folder, part))
            test(os.path.join(folder, part))
    test_python_port()
    test_javascript_port()
    return finish()


if __name__ == "__main__":
    sys.exit(main())
