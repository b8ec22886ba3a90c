"""Tokenizers on this machine: our library against one Python call of `tokenizers` or tiktoken per line, both on one thread.

usage: python3 bench/tokenizer.py [mbert] [xlmr] [gpt2] [cl100k]     (default: all)

The text is 10 MB of real lines: ../shared/data/text, or data/distill over and over. Runs alternate; each side's best time counts. The last column is
how many times as fast ours is; the pieces of both are counted and must be as many.
"""
import glob
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "test"))
import slow_tokenizer  # noqa: E402
import tokenizer_models as models  # noqa: E402

BYTES, ROUNDS = 10_000_000, 2


def lines():
    """10 MB of lines, none empty."""
    paths = sorted(glob.glob(os.path.join(models.DATA, "text", "**", "*.txt"), recursive=True))
    if paths:
        text = "\n".join(open(path, encoding="utf-8", errors="ignore").read() for path in paths)
    else:
        text = "\n".join(json.loads(line)["origin"] for path in sorted(glob.glob(os.path.join(ROOT, "data", "distill", "*.jsonl")))
                         for line in open(path, encoding="utf-8"))
    out, size = [], 0
    while size < BYTES:
        for line in text.split("\n"):
            if line and size < BYTES:
                out.append(line)
                size += len(line.encode("utf-8"))
    return out, size


def main():
    names = sys.argv[1:] or ["mbert", "xlmr", "gpt2", "cl100k"]
    texts, size = lines()
    data = models.records(texts)
    print("tokenizer: %.1f MB in %d lines, one thread" % (size / 1e6, len(texts)))
    print("  %-8s %10s %8s %12s %8s %8s" % ("", "theirs, s", "MB/s", "ours, s", "MB/s", "faster"))
    with tempfile.TemporaryDirectory() as folder:
        program = models.build_driver(folder, "-O3")
        for name in names:
            path = os.path.join(models.ASSETS, "tiktoken", "cl100k_base.tiktoken") if name == "cl100k" else models.make_directory(name, folder)
            model = models.export(path, os.path.join(folder, name + ".safetensors"))
            theirs = slow_tokenizer.reference(name, path)
            if name == "cl100k":
                encode = lambda line: len(theirs.encoding.encode(line, allowed_special="all"))  # noqa: E731
            else:
                encode = lambda line: len(theirs.fast.encode(line, add_special_tokens=False).ids)  # noqa: E731
            best = [1e9, 1e9]
            for _ in range(ROUNDS):
                start = time.perf_counter()
                pieces = sum(map(encode, texts))
                best[0] = min(best[0], time.perf_counter() - start)
                ours, seconds = subprocess.run([program, model, "time"], input=data, stdout=subprocess.PIPE, check=True).stdout.split()
                best[1] = min(best[1], float(seconds))
            print("  %-8s %10.3f %8.2f %12.3f %8.2f %7.1fx%s" % (name, best[0], size / 1e6 / best[0], best[1], size / 1e6 / best[1], best[0] / best[1],
                                                            "" if int(ours) == pieces else "  PIECES DIFFER: %d, not %d" % (int(ours), pieces)), flush=True)


main()
