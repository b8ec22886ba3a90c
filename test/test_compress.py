"""`lingua2 compress --compat` against the golden results of the Python package llmlingua 0.2.2 (test/make_compress_golden.py): every key of every result.
Standard library alone; the models are made here (test/make_models.py, export.py). Needs ../shared/assets for the real tokenizers, else skips."""
import concurrent.futures
import glob
import gzip
import json
import os
import subprocess
import sys

from checks import check, finish, skip

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_models import flat_file
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STRIDE = int(os.environ.get("TEST_STRIDE", "1"))  # every so many of the cases are taken (test/run.py)
WAYS = (["--threads", "1"], ["--threads", "2", "--math", "reference"])


def request(case, texts, number):
    context = case["context"]
    context = texts[context] if isinstance(context, str) else [texts[c] for c in context]
    arguments = dict(case["args"])
    if case["method"] == "compress_prompt":  # the package's other entry: the same, with the context filter on by default
        arguments.setdefault("use_context_level_filter", True)
        for ignored in ("use_llmlingua2", "instruction", "question"):  # which that entry takes and drops
            arguments.pop(ignored, None)
    return {"id": number, "context": context, **arguments}


def compress(flat, lines, options):
    return subprocess.run([os.path.join(ROOT, "lingua2"), "compress", "--compat", "--jsonl", "-m", flat] + options, input=lines.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def compare(model, cases, done):
    results = [json.loads(line) for line in done.stdout.decode().splitlines()]
    check(len(results) == len(cases), "%s: %d results for %d requests: %s" % (model, len(results), len(cases), done.stderr[:300]))
    check(done.returncode == (1 if any("error" in c for c in cases) else 0), "%s: exit code %d" % (model, done.returncode))
    for number, (case, got) in enumerate(zip(cases, results)):
        what = "%s case %d %s %s" % (model, number, str(case["context"])[:60], str(case["args"])[:200])
        if "error" in case:
            check("error" in got, "%s: the package raises %s, ours gives %s" % (what, case["error"], str(got)[:200]))
            continue
        check(got.get("id") == number and set(got) == set(case["result"]) | {"id"}, "%s: keys %s %s" % (what, sorted(got), str(got)[:200]))
        for key, want in case["result"].items():
            check(got.get(key) == want, "%s: %s is\n    %s, the package's is\n    %s" % (what, key, str(got.get(key))[:300], str(want)[:300]))


def read(path):
    """Model, cases, and a request line for each case."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        header, *cases = [json.loads(line) for line in file]
    cases = cases[::STRIDE]
    return header["model"], cases, "".join(json.dumps(request(c, header["texts"], i)) + "\n" for i, c in enumerate(cases))


def main():
    """Every file of golden results in each way, one process for each, side by side."""
    plan = [read(path) for path in sorted(glob.glob(os.path.join(ROOT, "test", "golden", "compress-*.jsonl.gz")))]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        flats = list(pool.map(flat_file, [model for model, *_ in plan]))
        running = [(model, cases, pool.submit(compress, flat, lines, way)) for (model, cases, lines), flat in zip(plan, flats) for way in WAYS]
        for model, cases, job in running:
            compare(model, cases, job.result())


if os.path.isdir(os.path.join(ROOT, "..", "shared", "assets")):
    main()
else:
    skip("no ../shared/assets, so no real tokenizers to make the models with")
sys.exit(finish())
