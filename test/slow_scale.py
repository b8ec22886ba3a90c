"""The commands of docs/SCALE.md, run as they stand there: a process that stays, xargs, GNU parallel, and a Spark pipe stage on this machine. All ways of
compressing the same requests give the same bytes. Spark is installed into this Python if it is not there; what cannot be had is a line "skipped: ..."."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

from checks import check, finish, skip

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYSPARK = "pyspark==4.3.0"  # wants Java 17 or later


def blocks():
    """The code blocks of the page by the heading they stand under."""
    text = open(os.path.join(ROOT, "docs", "SCALE.md"), encoding="utf-8").read()
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```", section, re.M | re.S):
            yield section.split("\n")[0], language, code


def run(language, code, folder):
    command = ["sh", "-c", code] if language == "sh" else [sys.executable, "-c", code]
    environment = {**os.environ, "PATH": ROOT + os.pathsep + os.environ["PATH"], "HOME": folder, "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, universal_newlines=True)
    check(done.returncode == 0, "exit %d of\n%s%s" % (done.returncode, code, done.stderr[-2000:]))
    return done.stdout


def have_spark():
    """Java, and pyspark in this Python or installed into it."""
    version = re.search(r'version "(\d+)', subprocess.run(["java", "-version"], stderr=subprocess.PIPE, universal_newlines=True).stderr) if shutil.which("java") else None
    if not version or int(version[1]) < 17:
        return skip("Spark: no Java 17 or later")
    if subprocess.run([sys.executable, "-c", "import pyspark"], stderr=subprocess.DEVNULL).returncode and \
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", PYSPARK], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        return skip("Spark: pip cannot install " + PYSPARK)
    return True


def lines(path):
    return open(path, encoding="utf-8").read().splitlines()


def lay_out(folder):
    """Requests of all kinds from the project's own texts, and a folder of notes."""
    paths = sorted(glob.glob(os.path.join(ROOT, "data", "distill", "*.jsonl")))
    texts = [json.loads(line)["origin"][:400] for path in paths for line in open(path, encoding="utf-8").readlines()[:6]]
    with open(os.path.join(folder, "requests.jsonl"), "w", encoding="utf-8") as out:
        for i, text in enumerate(texts):
            out.write(json.dumps({"id": i, "context": text, **({"rate": 0.3} if i % 7 == 0 else {})}, ensure_ascii=i % 2 == 0) + "\n")
    for i, text in enumerate(texts[:6]):
        name = os.path.join(folder, "notes", "a folder" if i % 2 else "b", "%d it's \"%d\".txt" % (i, i))
        os.makedirs(os.path.dirname(name), exist_ok=True)
        open(name, "w", encoding="utf-8").write(text)
    return texts


def kept_open(output):
    counts = [len(line.split()) for line in output.splitlines()]
    check(len(counts) == 3 and counts[0] > counts[1] > counts[2] > 0, "the process that stays answers %r" % output)


def notes(folder, texts):
    written = glob.glob(os.path.join(folder, "notes", "*", "*.short"))
    check(len(written) == 6, "xargs wrote %s" % written)
    for path in written:
        wanted = subprocess.run([os.path.join(ROOT, "lingua2"), "compress", "--rate", "0.5", path[:-len(".short")]], stdout=subprocess.PIPE).stdout
        check(wanted == open(path, "rb").read() and wanted.strip(), "xargs: %s differs" % path)


with tempfile.TemporaryDirectory() as folder:
    texts = lay_out(folder)
    for heading, language, code in blocks():
        if heading.startswith("One process"):
            kept_open(run(language, code, folder))
        elif heading.startswith("A file of requests over"):
            if not shutil.which("parallel"):
                skip("GNU parallel is not installed")
                continue
            run(language, code, folder)
            check(lines(folder + "/results.parallel.jsonl") == lines(folder + "/results.jsonl"), "parallel: other results than one process's")
        elif heading.startswith("A file of requests"):
            run(language, code, folder)
            results = [json.loads(line) for line in lines(folder + "/results.jsonl")]
            check([r["id"] for r in results] == list(range(len(texts))) and all(r["compressed_prompt"] for r in results), "results are not the requests' in order")
        elif heading.startswith("A folder"):
            run(language, code, folder)
            notes(folder, texts)
        elif have_spark():
            run(language, code, folder)
            parts = [line for path in sorted(glob.glob(folder + "/results.spark/part-*")) for line in lines(path)]
            check(len(glob.glob(folder + "/results.spark/part-*")) >= 2 and parts == lines(folder + "/results.jsonl"), "Spark: other results than one process's")
sys.exit(finish())
