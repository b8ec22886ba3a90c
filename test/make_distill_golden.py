"""Make test/golden/distill.json.gz with the authors' own scripts: labels, rates and gaps of data_collection/label_word.py, thresholds and choice of filter.py
(microsoft/LLMLingua, experiments/llmlingua2), on all of data/distill and on spoiled compressions, for the word lists of distill_words.py.

usage: python3 test/make_distill_golden.py FOLDER_OF_THE_SCRIPTS        needs numpy and torch

The scripts run unchanged; `datasets` and `spacy`, which they import, are replaced by what gives them our texts and our words. filter.py runs on spoiled
compressions alone: where the 90th percentile is 0, as it is for compressions without fault, it drops every text and ends in an error.
"""
import gzip
import hashlib
import json
import os
import runpy
import sys
import tempfile
import types

import numpy
import torch

from distill_words import ROOT, SETS, compressions, words


def run_script(path, arguments):
    sys.argv = [path] + arguments
    out, sys.stdout = sys.stdout, open(os.devnull, "w")
    try:
        return runpy.run_path(path)
    finally:
        sys.stdout = out


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def annotate(folder, save_path, kind, window):
    """res of label_word.py: {number: {"labels": [...], ...}}."""
    samples = [{"prompt_list": [origin], "compressed_prompt_list": [comp]} for origin, comp in compressions(kind)]
    sys.modules["datasets"] = types.SimpleNamespace(load_dataset=lambda path, split: samples)
    sys.modules["spacy"] = types.SimpleNamespace(load=lambda name: lambda text: [types.SimpleNamespace(lemma_=w) for w in words(text)])
    return run_script(os.path.join(folder, "label_word.py"), ["--window_size", str(window), "--save_path", save_path])["res"]


def thresholds(folder, load_path, save_path):
    """[variation rate, alignment gap] as filter.py computes them, and the originals that it keeps."""
    seen, percentile, load = [], numpy.percentile, torch.load
    numpy.percentile = lambda values, q: seen.append(percentile(values, q)) or seen[-1]
    torch.load = lambda path: load(path, weights_only=False)
    try:
        run_script(os.path.join(folder, "filter.py"), ["--load_path", load_path, "--save_path", save_path])
        return [float(t) for t in seen], torch.load(save_path)["origin"]
    finally:
        numpy.percentile, torch.load = percentile, load


def main():
    folder = sys.argv[1]
    sets = []
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, "labels.json")
        for kind, window in SETS:
            res = annotate(folder, path, kind, window)
            rows = [res[i] for i in range(len(res))]
            rates = [repr([r[k] for k in ("comp_rate", "variation_rate", "hitting_rate", "matching_rate", "alignment_gap")]) for r in rows]
            entry = {"kind": kind, "window": window, "labels": [digest("".join("01"[v] for v in r["labels"])) for r in rows], "rates": [digest(r) for r in rates],
                     "variation_rate": float(numpy.percentile([r["variation_rate"] for r in rows], 90))}
            if kind == "spoiled":
                (_, entry["alignment_gap"]), kept = thresholds(folder, path.replace(".json", ".pt"), os.path.join(temporary, "kept.pt"))
                entry["kept"] = digest("\n".join(kept))
            sets.append(entry)
    with gzip.GzipFile(os.path.join(ROOT, "test", "golden", "distill.json.gz"), "wb", mtime=0) as file:
        file.write(json.dumps({"made with": {"numpy": numpy.__version__, "torch": torch.__version__}, "sets": sets}).encode())


main()
