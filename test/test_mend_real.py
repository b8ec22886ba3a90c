"""A trained model that the project did not make: the small GPT-2 of ../shared/assets/gpt2-nano-sort, which sorts three kinds of letters, comes with every
intermediate tensor of a batch of three. Exported, it must give each of them, and sort. Standard library alone; skipped where the files are not there."""
import array
import base64
import itertools
import json
import os
import struct
import subprocess
import sys
import tempfile

from checks import check, finish, skip

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MEND, MODEL = os.path.join(ROOT, "mend"), os.path.join(ROOT, "..", "shared", "assets", "gpt2-nano-sort")
# Their numbers are float32 of another program, which rounds at other places than ours, over three layers: PyTorch, computing them anew, is off by 2e-6.
NEAR = 5e-6


def load(name):
    """{tensor: (shape, numbers)} and the configuration."""
    with open(os.path.join(MODEL, name), encoding="utf-8") as f:
        whole = json.load(f)
    tensors = {}
    for key, value in whole.items():
        if key == "config":
            continue
        numbers = array.array("f", base64.b64decode(value["data"]))
        if sys.byteorder == "big":
            numbers.byteswap()
        tensors[key] = (value["shape"], numbers)
    return tensors, whole["config"]


def transposed(shape, x):
    rows, cols = shape
    return [cols, rows], array.array("f", (x[r * cols + c] for c in range(cols) for r in range(rows)))


def checkpoint(folder):
    """Hugging Face's layout: linear weights [in, out], no mask among the tensors."""
    tensors, config = load("gpt-nano-sort-model.json")
    header, data = {}, b""
    for name, (shape, x) in tensors.items():
        if name.endswith(".attn.bias"):
            continue
        if len(shape) == 2 and ".h." in name:
            shape, x = transposed(shape, x)
        if sys.byteorder == "big":
            x.byteswap()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(x)]}
        data += x.tobytes()
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": config["n_embd"], "n_head": config["n_head"], "n_layer": config["n_layer"],
                   "n_positions": config["block_size"], "vocab_size": config["vocab_size"], "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}, f)
    flat = os.path.join(folder, "flat.safetensors")
    subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), folder, "-o", flat], check=True, stderr=subprocess.DEVNULL)
    return flat


def run(*arguments):
    return subprocess.run([MEND, *arguments, "--threads", "1", "-q"], check=True, stdout=subprocess.PIPE).stdout


def read_trace(path):
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    header, found = json.loads(raw[8:8 + n]), {}
    for name, t in header.items():
        if name != "__metadata__" and t["dtype"] == "F32":
            a, b = t["data_offsets"]
            found[name] = (t["shape"], struct.unpack("<%df" % ((b - a) // 4), raw[8 + n + a:8 + n + b]))
    return found


def intermediate(flat, folder):
    """What the first block computes on the way, what each block gives, and the end, for each of three sequences."""
    theirs, _ = load("gpt-nano-sort-t0-partials.json")
    (B, T), ids = theirs["idx"]
    names = {"wte": "tok_emb", "embeddings": "x", "h.0.ln_1": "ln1", "h.0.attn.c_attn": "qkv", "h.0.attn.probs": "attSm", "h.0.attn.ctx": "y", "h.0.attn.c_proj": "yProj",
             "h.0.resid_mid": "attnResid", "h.0.ln_2": "ln2", "h.0.mlp.c_fc": "fc", "h.0.mlp.act": "gelu", "h.0.mlp.c_proj": "mlp", "h.0.resid_out": "block0",
             "h.1.resid_out": "block1", "h.2.resid_out": "block2", "ln_f": "ln_f", "lm_head": "lm_head"}
    for mode in ("fast", "reference"):
        for b in range(B):
            sequence = [int(i) for i in ids[b * T:(b + 1) * T]]
            run("trace", "-l", flat, "--ids", ",".join(map(str, sequence)), "-o", os.path.join(folder, "run"), "--math", mode)
            ours = read_trace(os.path.join(folder, "run.safetensors"))
            for name, their_name in names.items():
                shape, x = theirs[their_name]
                count = len(x) // B
                want, got = x[b * count:(b + 1) * count], ours[name][1]
                check(len(want) == len(got), "%s: %d numbers for %d" % (name, len(got), count))
                apart = max(abs(g - w) / max(1, abs(w)) for g, w in zip(got, want))
                check(apart <= NEAR, "%s, sequence %d, %s: off by %.2g" % (name, b, mode, apart))
            lp = json.loads(run("logprob", "-l", flat, "--json", "--ids", ",".join(map(str, sequence)), "--math", mode))["logprob"]
            shape, p = theirs["probs"]
            for i, got in enumerate(lp):
                want = p[(b * T + i) * 3 + sequence[i + 1]]
                check(abs(2.718281828459045 ** got - want) <= NEAR, "p of piece %d of sequence %d: %g for %g" % (i + 1, b, 2.718281828459045 ** got, want))


def sorts(flat):
    """Six letters in, the same six sorted out: every eleventh of the 729 texts."""
    right = wrong = 0
    for letters in itertools.islice(itertools.product(range(3), repeat=6), 0, None, 11):
        made = json.loads(run("generate", "-l", flat, "--json", "--ids", ",".join(map(str, letters)), "-n", "6"))["ids"]
        right, wrong = right + (made == sorted(letters)), wrong + (made != sorted(letters))
    check(right == 67 and not wrong, "%d of %d are sorted" % (right, right + wrong))


def main():
    if not os.path.isdir(MODEL):
        skip("no ../shared/assets/gpt2-nano-sort")
    else:
        with tempfile.TemporaryDirectory() as folder:
            flat = checkpoint(folder)
            intermediate(flat, folder)
            sorts(flat)
    return finish()


sys.exit(main())
