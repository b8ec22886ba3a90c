"""lingua2 chunk, collect, annotate, filter: labels, rates and thresholds against the authors' scripts (test/make_distill_golden.py) on all of data/distill, the
words and lemmas of our own, requests and answers, and every way in which a line can be bad. Standard library alone."""
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile

from checks import check, finish

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from distill_words import ROOT, compressions, pairs, words

PROGRAM = os.path.join(ROOT, "lingua2")


def run(arguments, stdin=""):
    done = subprocess.run([PROGRAM] + arguments, input=stdin if isinstance(stdin, bytes) else stdin.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode("utf-8", "replace")


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parsed(text):
    return [json.loads(line) for line in text.splitlines()]


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def golden():
    with gzip.open(os.path.join(ROOT, "test", "golden", "distill.json.gz")) as file:
        sets = json.load(file)["sets"]
    for want in sets:
        what = "%s, window %d" % (want["kind"], want["window"])
        texts = compressions(want["kind"])
        lines = jsonl({"origin": o, "comp": c, "origin_words": words(o), "comp_words": words(c)} for o, c in texts)
        code, out, err = run(["annotate", "--window", str(want["window"])], lines)
        rows = parsed(out)
        check(code == 0 and err == "" and len(rows) == len(texts), "%s: exit %d, %d lines, %s" % (what, code, len(rows), err))
        for i, row in enumerate(rows):
            rates = repr([row[k] for k in ("comp_rate", "variation_rate", "hitting_rate", "matching_rate", "alignment_gap")])
            check(digest("".join("01"[v] for v in row["labels"])) == want["labels"][i], "%s: labels of text %d" % (what, i))
            check(digest(rates) == want["rates"][i], "%s: rates of text %d: %s" % (what, i, rates))
        code, kept, err = run(["filter"], out)
        report = json.loads(err)
        check(code == 0 and report["variation_rate"] == want["variation_rate"], "%s: threshold %s, wanted %r" % (what, err, want["variation_rate"]))
        if "kept" in want:
            check(report["alignment_gap"] == want["alignment_gap"], "%s: threshold %s, wanted %r" % (what, err, want["alignment_gap"]))
            check(digest("\n".join(row["origin"] for row in parsed(kept))) == want["kept"], "%s: other texts kept" % what)


def own_words():
    """Our words are slices of the text, nothing but white space lies between them, and they give the labels that the same words as lists give."""
    texts = pairs()
    _, out, _ = run(["annotate"], jsonl({"origin": o, "comp": c} for o, c in texts))
    _, comps, _ = run(["annotate"], jsonl({"origin": c, "comp": c} for _, c in texts))
    rows, comps = parsed(out), [row["words"] for row in parsed(comps)]
    _, again, _ = run(["annotate"], jsonl({**row, "origin_words": row["words"], "comp_words": c} for row, c in zip(rows, comps)))
    for i, ((origin, _), row, given) in enumerate(zip(texts, rows, parsed(again))):
        source, last, gaps = origin.encode(), 0, ""
        for start, end in row["spans"]:
            gaps, last = gaps + source[last:start].decode(), end
        check((gaps + source[last:].decode()).strip() == "" and len(row["spans"]) == len(row["words"]), "text %d: spans %s" % (i, row["spans"][:20]))
        check(given["labels"] == row["labels"] and "spans" not in given, "text %d: labels from lists differ" % i)
    row = parsed(run(["annotate"], jsonl([{"id": [1], "origin": "Don't pay $1,250.50, a-b: naïve_x 東京へ e.g. 10:30!", "comp": "DON'T 1,250.50"}]))[1])[0]
    check(row["words"] == ["Don't", "pay", "$", "1,250.50", ",", "a-b", ":", "naïve_x", "東", "京", "へ", "e.g", ".", "10:30", "!"] and row["id"] == [1], "words: %s" % row["words"])
    check([w for w, v in zip(row["words"], row["labels"]) if v] == ["Don't", "1,250.50"], "labels: %s" % row["labels"])


LEMMAS = """cities city|boxes box|houses house|classes class|buses buse|analysis analysis|is be|was be|went go|children child|studied study|tied tie|stopped stop|running run
making make|hoped hope|called call|controlled control|passed pass|changing change|bringing bring|handled handle|updated update|heated heat|argued argue|realized realize
thing thing|something something|morning morning|need need|hundred hundred|Anna's Anna|used use|judged judge|opened open|explained explain|defined define|us us|gas gas|news news"""


def lemmas():
    forms = [pair.rsplit(" ", 1) for pair in LEMMAS.replace("\n", "|").split("|")]
    row = parsed(run(["annotate"], jsonl([{"origin": " ".join(form for form, _ in forms), "comp": ""}]))[1])[0]
    for (form, want), got in zip(forms, row["words"]):
        check(got == want or got.lower() == want.lower() == form.lower()[:len(want)], "lemma of %s: %s, wanted %s" % (form, got, want))
    check(row["variation_rate"] == 1.0 and not any(row["labels"]), "an empty compression keeps nothing: %s" % row["variation_rate"])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "lemmas.tsv")
        pair = [{"origin": "Geese were running ΟΔΟΣ", "comp": "goose run οδος"}]
        open(path, "w").write("geese\tgoose\r\nrunning\trun\n\n")
        row = parsed(run(["annotate", "--lemmas", path], jsonl(pair))[1])[0]
        check(row["words"] == ["goose", "were", "run", "ΟΔΟΣ"] and row["labels"] == [True, False, True, True], "with --lemmas: %s" % row)
        for content, words_ in (("a b\n", ["line 1", "tab"]), ("x\ty\na\t\n", ["line 2"]), ("a\tb\tc\n", ["line 1"]), ("a\tb\na\tc\n", ["twice"])):
            open(path, "w").write(content)
            code, out, err = run(["annotate", "--lemmas", path], jsonl(pair))
            check(code == 1 and out == "" and all(w in err for w in words_), "lemmas %r: %d %s" % (content, code, err))


def chunks():
    with tempfile.TemporaryDirectory() as folder:
        paths, texts = [], []
        for name, text in (("talk.txt", "\n\n".join(o for o, _ in pairs()[:30])), ("no ends", "word " * 3000 + "x" * 900), ("one.md", "Pi is 3.14 and e is 2.72. " * 60 + "  \n"), ("東.txt", "東京。" * 700)):
            paths.append(os.path.join(folder, name))
            texts.append(text)
            open(paths[-1], "w", encoding="utf-8").write(text)
        for limit in (512, 40):
            code, out, err = run(["chunk", "--tokens", str(limit), "--llm", "some-model"] + paths)
            rows = parsed(out)
            check(code == 0 and err == "", "chunk: %d %s" % (code, err))
            users = [(r["custom_id"], r["body"]["messages"][-1]["content"]) for r in rows]
            check(len({i for i, _ in users}) == len(users), "custom_ids repeat")
            check(all(r["body"]["model"] == "some-model" and r["body"]["messages"][0]["role"] == "system" and r["url"] == "/v1/chat/completions" for r in rows), "requests: %s" % rows[0])
            for path, text in zip(paths, texts):
                mine = [(i, chunk) for i, chunk in users if i.startswith(path + "#")]
                check("".join(chunk for _, chunk in mine) == text and [i for i, _ in mine] == ["%s#%d" % (path, n) for n in range(len(mine))], "%s: chunks are not the text" % path)
                count = len(json.loads(run(["tokenize", "--vocab", "cl100k_base", "--json"], mine[0][1])[1])["ids"])
                check(limit // 2 < count <= limit, "%s: %s tokens for at most %d" % (path, count, limit))
                ends = {chunk[-1] for _, chunk in mine[:-1]}
                check(ends <= {".", "\n", "。"} or limit == 40 or path.endswith("no ends"), "%s: chunks end in %s" % (path, ends))
                check(not any(chunk.endswith(("Pi is 3.", "e is 2.")) for _, chunk in mine), "a chunk ends inside of a number")
        for text in ("", " \n\n "):
            check(run(["chunk"], text) == (0, "", ""), "a blank text gives no requests: %s" % (run(["chunk"], text),))
        code, out, err = run(["chunk"], "One line.")
        check(json.loads(out)["custom_id"] == "stdin#0" and json.loads(out)["body"]["messages"][-1]["content"] == "One line.", out)
        check(run(["chunk", paths[0], paths[0]])[0] == 2 and run(["chunk", "--tokens", "3"])[0] == 2 and run(["chunk"], b"a\xff")[0] == 1, "wrong use")


def answer(custom_id, content="short", **changes):
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}], **changes.pop("body", {})}
    return {"id": "batch_req_1", "custom_id": custom_id, "response": {"status_code": 200, "request_id": "r", "body": body}, "error": None, **changes}


def collect():
    with tempfile.TemporaryDirectory() as folder:
        requests = os.path.join(folder, "requests.jsonl")
        texts = ["Text number %d. It has an end." % i for i in range(14)]
        rows = []
        for i, text in enumerate(texts):
            row = json.loads(run(["chunk"], text)[1])
            rows.append({**row, "custom_id": "t#%d" % i})
        open(requests, "w").write(jsonl(rows))
        good = [answer("t#2", " two words \n"), answer("t#0", [{"type": "text", "text": "zero "}, {"type": "text", "text": "parts"}]),
                {"custom_id": "t#1", "response": {"choices": [{"text": "one", "finish_reason": "stop"}]}}, {"custom_id": "t#3", "choices": [{"message": {"content": "three"}}]}]
        bad = [(answer("t#4", error={"message": "too busy"}), "too busy"), (answer("t#5", response={"status_code": 429, "body": {"error": {"message": "slow down"}}}), "429: slow down"),
               (answer("t#6", body={"choices": [{"message": {"content": "cut"}, "finish_reason": "length"}]}), "length"), (answer("t#7", body={"choices": []}), "choices"),
               (answer("t#8", None), "no text"), (answer("t#9", " \n"), "empty"), (answer("nobody"), "nobody"), (answer("t#0"), "second answer"), ({"id": 1}, "custom_id"),
               (answer(7), "custom_id"), (answer("t#10", error="plainly wrong"), "plainly wrong"), ("not JSON", "line"), ([1], "custom_id")]
        lines = jsonl(good) + "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row, _ in bad)
        code, out, err = run(["collect", "--requests", requests], lines)
        got = parsed(out)
        check(code == 1 and [(r["id"], r["origin"], r["comp"]) for r in got] == [("t#0", texts[0], "zero parts"), ("t#1", texts[1], "one"), ("t#2", texts[2], "two words"), ("t#3", texts[3], "three")],
              "collect: %d %s" % (code, got))
        said = err.splitlines()
        for i, (_, word) in enumerate(bad):
            check(any(("line %d:" % (len(good) + i + 1)) in line and word in line for line in said), "no message about line %d with %s: %s" % (len(good) + i + 1, word, err))
        check(all(any('answer to "t#%d"' % i in line and "usable" in line for line in said) for i in range(4, 14)) and "13 of 17 lines" in said[-1], "unanswered: %s" % err)
        code, out, err = run(["collect", "--requests", requests], jsonl(answer("t#%d" % i, "w") for i in reversed(range(14))))
        check(code == 0 and err == "" and [r["id"] for r in parsed(out)] == ["t#%d" % i for i in range(14)], "all answered: %d %s" % (code, err))
        check(run(["collect"])[0] == 2, "collect without requests")
        open(requests, "a").write(jsonl(rows[:1]))
        check(run(["collect", "--requests", requests])[0] == 1 and "t#0" in run(["collect", "--requests", requests])[2], "a custom_id twice")
        open(requests, "w").write('{"custom_id": "a", "body": {"messages": [{"role": "system", "content": "x"}]}}\n')
        check("line 1" in run(["collect", "--requests", requests])[2], "a request without a text")


def bad_lines():
    fine = {"id": "a", "origin": "One two three.", "comp": "two"}
    bad = [("{", "byte"), ('{"origin": "x"}', "comp"), ('{"origin": 1, "comp": "x"}', "number"), ('{"origin": " ", "comp": "x"}', "no words"), ("[]", "origin"), ('{"origin": "x", "comp": "\udcff"}', "UTF-8"),
           ('{"origin": "x", "comp": "x", "comp_words": ["x"]}', "together"), ('{"origin": "x", "comp": "x", "origin_words": ["x"], "comp_words": [1]}', "strings"),
           ('{"origin": "x", "comp": "x", "origin_words": "x", "comp_words": ["x"]}', "array"), ('{"origin": "x", "comp": "x", "origin_words": [], "comp_words": []}', "no words")]
    lines = jsonl([fine]).encode() + b"\n" + b"\n".join(b.encode("utf-8", "surrogateescape") for b, _ in bad) + b"\n" + jsonl([fine]).encode()
    code, out, err = run(["annotate"], lines)
    check(code == 1 and len(parsed(out)) == 2 and parsed(out)[0] == parsed(out)[1], "annotate goes on: %d %s" % (code, out))
    for i, (_, word) in enumerate(bad):
        check(any("line %d:" % (i + 3) in line and word in line for line in err.splitlines()), "line %d, %s: %s" % (i + 3, word, err))
    check("%d of %d lines" % (len(bad), len(bad) + 2) in err.splitlines()[-1], err)
    code, out, err = run(["filter"], out + '{"variation_rate": 0.5}\n')
    check(code == 1 and out == "" and "line 3" in err and "alignment_gap" in err, "filter stops: %d %s" % (code, err))
    check(run(["filter"])[0] == 1, "nothing to filter")
    rows = [{"variation_rate": v, "alignment_gap": 0, "n": i} for i, v in enumerate([0, 0, 0, 0.25, 0])]
    code, out, err = run(["filter"], jsonl(rows))
    check(code == 0 and [r["n"] for r in parsed(out)] == [0, 1, 2, 4], "what has no fault stays: %s %s" % (out, err))
    check(run(["annotate", "no such file"])[0] == 1 and run(["annotate", ROOT])[0] == 1 and run(["annotate", "--window", "0"])[0] == 2, "wrong use")
    check(run(["filter", "-q"], jsonl(rows))[2] == "", "-q")


def document():
    """The commands of docs/DISTILL.md as they stand there, with a language model that keeps the words of more than three letters."""
    lines = open(os.path.join(ROOT, "docs", "DISTILL.md"), encoding="utf-8").read().splitlines()
    commands = [line.strip() for line in lines if line.startswith("    ./lingua2 ")]
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(PROGRAM, os.path.join(folder, "lingua2"))
        for name, texts in (("talk.txt", pairs()[:20]), ("news.txt", pairs()[100:120])):
            open(os.path.join(folder, name), "w", encoding="utf-8").write("\n\n".join(origin for origin, _ in texts))
        for command in commands:
            done = subprocess.run(["sh", "-c", command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            check(done.returncode == 0, "%s: exit %d: %s" % (command, done.returncode, done.stderr.decode()))
            if " chunk " in command:
                requests = parsed(open(os.path.join(folder, "requests.jsonl"), encoding="utf-8").read())
                kept = [" ".join(w for w in r["body"]["messages"][1]["content"].split() if len(w) > 3) for r in requests]
                open(os.path.join(folder, "answers.jsonl"), "w", encoding="utf-8").write(jsonl(answer(r["custom_id"], k) for r, k in zip(requests, kept)))
        labels = parsed(open(os.path.join(folder, "labels.jsonl"), encoding="utf-8").read())
        check(len(commands) >= 4 and len(labels) >= 5 and all(set(row) >= {"id", "words", "spans", "labels"} for row in labels), "%d commands, %d labelled chunks" % (len(commands), len(labels)))


golden()
document()
own_words()
lemmas()
chunks()
collect()
bad_lines()
sys.exit(finish())
