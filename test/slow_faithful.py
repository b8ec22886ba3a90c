"""What the faithful mode promises on 10,000 generated and real texts in twelve scripts, with three tokenizers; the table of answers kept on the held-out texts of
data/distill; JSON lines against one process for each text; memory over many requests. Needs tiktoken to count tokens independently, and ../shared/assets for the other tokenizers."""
import glob
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time

from checks import check, finish, skip

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import faithful
from faithful import ROOT, ask

PROGRAM = os.path.join(ROOT, "lingua2")


def distill():
    for path in sorted(glob.glob(os.path.join(ROOT, "data", "distill", "*.jsonl"))):
        for line in open(path, encoding="utf-8"):
            yield json.loads(line)


def flat_file(name):
    """A small random model with a real tokenizer (as test_compress.py makes them)."""
    folder = os.path.join(ROOT, "build", "test-models")
    path = os.path.join(folder, name + ".safetensors")
    if not os.path.exists(path):
        subprocess.run([sys.executable, "test/make_models.py", folder, name], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, "export.py", os.path.join(folder, name), "-o", path], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return path


def properties():
    dice = random.Random(11)
    real = [e["origin"][:600] for e in distill()]
    texts = [faithful.generated(dice) for _ in range(9000)] + real
    faithful.check_texts(check, texts, baseline="random")
    faithful.check_texts(check, dice.sample(texts, 100))
    if not os.path.isdir(os.path.join(ROOT, "..", "shared", "assets")):
        return skip("no ../shared/assets, so no XLM-R and mBERT tokenizers")
    for name in ("xlm-roberta-large-tiny", "bert-base-multilingual-cased-tiny"):
        some = dice.sample(texts, 300)
        faithful.check_texts(check, some, flat_file(name))
        faithful.check_texts(check, some[:100], flat_file(name), count="model")


def counts():
    """The tokens reported are those that tiktoken counts."""
    try:
        import tiktoken
        import tiktoken_ext.openai_public as public
    except ImportError:
        return skip("no tiktoken")
    path = os.path.join(ROOT, "..", "shared", "assets", "tiktoken", "cl100k_base.tiktoken")
    if not os.path.exists(path):
        return skip("no ../shared/assets/tiktoken")
    tiktoken.load.read_file_cached = lambda *_: open(path, "rb").read()
    public.load_tiktoken_bpe = lambda *_, **__: tiktoken.load.load_tiktoken_bpe(path)
    encoding = tiktoken.Encoding(**public.cl100k_base())
    dice = random.Random(12)
    texts = [faithful.generated(dice) for _ in range(500)]
    for text, r in zip(texts, ask([{"context": t, "baseline": "random"} for t in texts])):
        want = [len(encoding.encode(t, disallowed_special=())) for t in (text, r["compressed_prompt"])]
        check([r["origin_tokens"], r["compressed_tokens"]] == want, "tokens of %r: %s, tiktoken %s" % (text, r, want))


def answers_kept():
    """Faithful above compatible above every rule that needs no model, at each rate, the counts being equal."""
    lines = "".join(json.dumps(e) + "\n" for e in distill() if e["lang"] == "en" and int(hashlib.sha256(e["id"].encode()).hexdigest(), 16) % 10 == 0)
    out = subprocess.run([PROGRAM, "eval", "--json"], input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout
    result = json.loads(out)
    check(result["answers"] == 3 * result["texts"] and result["texts"] > 90, "%s" % {k: result[k] for k in ("texts", "answers")})
    for rate in (0.33, 0.5, 0.67):
        kept = {r["method"]: r["answers_kept"] for r in result["results"] if r["asked"] == rate}
        rates = {r["method"]: r["rate"] for r in result["results"] if r["asked"] == rate}
        best = max(v for k, v in kept.items() if k not in ("faithful", "compatible"))
        print("rate %.2f: %s" % (rate, ", ".join("%s %.3f" % (k, v) for k, v in kept.items())))
        check(kept["faithful"] > kept["compatible"] > best, "rate %.2f: %s" % (rate, kept))
        # A word more or less of some 300 tokens a text: 0.01 of the tokens.
        check(max(rates.values()) - min(rates.values()) <= 0.01, "counts are not equal: %s" % rates)


def warm():
    """One process for all short texts against one for each."""
    texts = [e["origin"][:100] for e in distill()][:60]
    lines = [json.dumps({"context": t}).encode() + b"\n" for t in texts]
    started = time.time()
    together = subprocess.run([PROGRAM, "compress", "--jsonl"], input=b"".join(lines), stdout=subprocess.PIPE, check=True).stdout
    warm_s, started = time.time() - started, time.time()
    alone = b"".join(subprocess.run([PROGRAM, "compress", "--jsonl"], input=line, stdout=subprocess.PIPE, check=True).stdout for line in lines)
    alone_s = time.time() - started
    check(together == alone, "one process gives other results")
    print("%d texts: %.2f s warm, %.2f s in a process each, %.1f times" % (len(texts), warm_s, alone_s, alone_s / warm_s))
    check(alone_s >= 1.5 * warm_s, "warm is %.2f times as fast, not 1.5" % (alone_s / warm_s))


def peak_kb(n):
    """Peak memory over n short requests, from a file, so that all batches are full."""
    with tempfile.NamedTemporaryFile() as file:
        for i in range(n):
            file.write(b'{"id": "%07d", "context": "Two words."}\n' % i)
        file.flush()
        script = "import resource,subprocess,sys;subprocess.run(sys.argv[1:],check=True);print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", script, PROGRAM, "compress", "--jsonl", file.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True)
    check(done.stdout.count(b"\n") == n, "%d answers of %d" % (done.stdout.count(b"\n"), n))
    return int(done.stderr.split()[-1])


def memory(n):
    few, many = peak_kb(3000), peak_kb(n)  # by 3000 the allocator keeps what it ever will
    print("peak memory: %d kB over 3000 requests, %d kB over %d" % (few, many, n))
    check(many <= few + 2048, "memory grows: %d kB over 3000 requests, %d kB over %d" % (few, many, n))  # 2 MB: two thirds of a kilobyte a request


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if len(sys.argv) > 1:  # so many requests, nothing else
        memory(int(sys.argv[1]))
    else:
        properties()
        counts()
        answers_kept()
        warm()
        memory(6000)
    sys.exit(finish())
