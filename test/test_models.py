"""models/mend_tasks.py writes what the embedded language model began with, and the demo's files. Standard library alone."""
import hashlib
import json
import os
import subprocess
import sys
import tempfile

from checks import check, finish

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def metadata(name):
    data = read(ROOT, "models", name)
    return json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["__metadata__"]


with tempfile.TemporaryDirectory() as out:
    subprocess.run([sys.executable, os.path.join(ROOT, "models", "mend_tasks.py"), out], check=True)
    begun = hashlib.sha256(read(out, "start", "model.safetensors")).hexdigest()
    for name in ("mend-lm.safetensors", "mend-distiller.safetensors"):
        check(metadata(name)["source_sha256"] == begun, "models/%s began with other weights than mend_tasks.py writes" % name)
    for name in ("demonstrations.jsonl", "queries.jsonl"):
        check(read(out, "demo", name) == read(ROOT, "demo", name), "demo/%s is not what mend_tasks.py writes" % name)
    shown = {json.loads(line)["output"] for line in read(out, "demo", "demonstrations.jsonl").splitlines()}
    check(shown == set(json.loads(read(out, "demo", "queries.jsonl").splitlines()[0])["options"]), "not every label of the demo is demonstrated")
    plain, families = ({word for line in read(out, name).decode().splitlines() for word in json.loads(line)["input"].split()} for name in ("tasks.jsonl", "families.jsonl"))
    lists = [set(line.split()[1:]) for line in read(ROOT, "models", "categories.txt").decode().splitlines()]
    for words in lists[-8:]:
        check(not words & (plain | families), "a held-out category is in a task for training: %s" % sorted(words & (plain | families)))
sys.exit(finish())
