"""Texts with <llmlingua> tags and JSON documents: each part at its own rate, what is protected byte for byte, what is broken named with its place. Standard
library alone, on the embedded default."""
import json
import os
import subprocess
import sys
import tempfile

from checks import check, finish

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, "lingua2")
FIRST = "The committee met on 3 March and did not approve the new budget of 1,250,000 dollars, because two of its members were absent."
SECOND = "After a short break the chair thanked everybody for coming, and the meeting went on with the report on the bridge over the river."


def run(arguments, text=""):
    done = subprocess.run([PROGRAM, "compress", "--threads", "1"] + arguments, input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=600)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def answers(requests, *options):
    code, out, err = run(["--jsonl", *options], "".join(json.dumps(r) + "\n" for r in requests))
    return [json.loads(line) for line in out.split("\n") if line]


# ---- tags ----

def tag(text, *attributes):
    return "<llmlingua" + "".join(", " + a for a in attributes) + ">" + text + "</llmlingua>"


BROKEN = [  # the text, where it is broken, a word of the message
    ("a <llmlingua, rate=0.5>b", 2, "never closed"),
    ("a</llmlingua>", 1, "closes nothing"),
    (tag("a") + "b</llmlingua>", len(tag("a")) + 1, "closes nothing"),
    ("<llmlingua>a<llmlingua>b</llmlingua></llmlingua>", 12, "inside"),
    ("\u00e9<llmlingua, rate=0.4>" + tag("b") + "</llmlingua>", 23, "inside the one that begins at byte 2"),
    ("<llmlingua, rate=0.5 b</llmlingua>", 17, "rate"),
    ("<llmlingua, rate=.5.>b</llmlingua>", 17, "rate"),
    ("<llmlingua, rate=>b</llmlingua>", 17, "rate"),
    ("<llmlingua, rate=1.5>b</llmlingua>", 17, "rate"),
    ("<llmlingua, rate=0>b</llmlingua>", 17, "rate"),
    ("<llmlingua, rate=-1>b</llmlingua>", 17, "rate"),
    ("<llmlingua, rate=nan>b</llmlingua>", 17, "rate"),
    ("<llmlingua, rate='0.5'>b</llmlingua>", 17, "rate"),
    ("<llmlingua, rate>b</llmlingua>", 12, "attribute"),
    ("<llmlingua, rate=0.5, rate=0.4>b</llmlingua>", 22, "twice"),
    ("<llmlingua, compress=no>b</llmlingua>", 21, "True or False"),
    ("<llmlingua, compress=>b</llmlingua>", 21, "True or False"),
    ("<llmlingua, ratio=0.5>b</llmlingua>", 12, "ratio"),
    ("<llmlingua, Rate=0.5>b</llmlingua>", 12, "Rate"),
    ("<llmlingua rate=0.5>b</llmlingua>", 11, "comma"),
    ("<llmlingua,>b</llmlingua>", 11, "attribute"),
    ("<llmlingua, rate=0.5,>b</llmlingua>", 21, "attribute"),
    ("x <llmlingua", 2, "no '>'"),
    ("x <llmlingua, rate=0.5", 2, "no '>'"),
    ("<llmlingua>b</llmlingua", 12, "no '>'"),
    ("<llmlingua>b</llmlingua x>", 12, "no '>'"),
]


def broken_tags():
    results = answers([{"id": i, "context": text} for i, (text, _, _) in enumerate(BROKEN)], "--structured")
    for (text, at, word), result in zip(BROKEN, results):
        check(("byte %d:" % at) in result.get("error", "") and word in result["error"], "%r: %s" % (text, result))
    code, out, err = run(["--structured"], BROKEN[0][0])
    check(code == 1 and "byte 2:" in err and out == "", "a broken tag ends with %d: %r" % (code, err))


def tags():
    rates = {"context": [tag(FIRST, "rate=0.6") + "\n" + tag(SECOND, "rate=0.3"), tag(FIRST, "compress=False") + SECOND]}
    shapes = [tag(FIRST, "rate=0.4"), tag(FIRST, "rate=0.4", "compress=True"), tag(FIRST, "compress=True", "rate=0.4"), tag(FIRST, "compress=true", "rate = 0.40"),
              "<llmlingua\n,rate\t=0.4 ,  compress = True  >" + FIRST + "</llmlingua >"]
    same = answers([{"context": text, "rate": 0.9} for text in shapes] + [{"context": FIRST, "rate": 0.4}], "--structured")
    check(len({r["compressed_prompt"] for r in same}) == 1, "the same rate written differently: %s" % [r["compressed_prompt"] for r in same])
    alone = answers([{"context": FIRST, "rate": 0.4}])[0]
    check(same[0]["compressed_prompt"] == alone["compressed_prompt"] and same[0]["origin_tokens"] == alone["origin_tokens"], "one tag round the whole is the rate")
    both = answers([rates], "--structured", "--return-word-label")[0]
    for context, source in enumerate(rates["context"]):
        words = [w for w in both["words"] if w["context"] == context]
        check(all(source.encode()[w["start"]:w["end"]].decode() == w["word"] for w in words), "words of a tagged text are not their bytes")
    first, second = both["compressed_prompt_list"]
    check(second.startswith(FIRST) and len(second) < len(FIRST + SECOND), "compress=False: %r" % second)
    one, two = (r["origin_tokens"] for r in answers([{"context": FIRST}, {"context": SECOND}]))
    check(both["asked"]["tokens"] == int(0.6 * one) + int(0.3 * two) + one + int(0.5 * two), "each segment has its own budget: %s of %d, %d" % (both["asked"], one, two))
    check("\n" in first, "a line break between two segments stays one: %r" % first)


PROTECTED = ["x < y && z > 1", "<b>bold</b> <i>", "a </llmlinguas> b", "<llmlinguax>", "\u65e5\u672c\u8a9e < \u30c6", "  two\t blanks \n\n", "[NEW5] </s> <|endoftext|>", "{\"a\": [1, 2]}", "\U0001f642", "<", "llmlingua>"]


def protected_text():
    for text, result in zip(PROTECTED, answers([{"context": SECOND + tag(p, "compress=False") + SECOND, "rate": 0.3} for p in PROTECTED], "--structured", "--baseline", "head")):
        check(text in result.get("compressed_prompt", ""), "%r is not in %s" % (text, result))
    for text, result in zip(PROTECTED, answers([{"context": tag(p, "rate=1") + tag("", "rate=0.1")} for p in PROTECTED], "--structured")):
        check(result.get("compressed_prompt") == text, "%r alone: %s" % (text, result))
    text = tag("kept", "compress=False")
    check(answers([{"context": text, "rate": 1}])[0]["compressed_prompt"] == text and answers([{"context": text, "rate": 1, "structured": True}])[0]["compressed_prompt"] == "kept",
          "a tag is text unless it is asked for")
    whole = answers([{"context": p} for p in ("", " ", "a", tag(""), tag("\n"), tag("a", "rate=0.1"))], "--structured")
    check("error" not in whole[2] and whole[2]["compressed_prompt"] == "a" and whole[5]["compressed_prompt"] == "a" and all("error" not in r for r in whole), "small texts: %s" % whole)


def gaps():
    made = answers([{"context": tag(a, "compress=False") + b + tag(c, "compress=False")} for a, b, c in
                    (("One", " ", "two"), ("One", "", "two"), ("One", "\n\n", "two"), ("One ", "", "two"), ("One", "\n", " two"))], "--structured")
    check([r["compressed_prompt"] for r in made] == ["One two", "Onetwo", "One\n\ntwo", "One two", "One two"], "white space between segments: %s" % [r["compressed_prompt"] for r in made])


def budgets():
    text = tag(FIRST, "rate=0.5") + "\n" + SECOND
    few, many = answers([{"context": text, "target_token": 10}, {"context": text, "target_token": 1000}], "--structured")
    check(few["compressed_tokens"] < 25 and many["compressed_prompt"].endswith(SECOND), "target_token holds for what has no rate: %s, %s" % (few, many))
    above = answers([{"context": tag(FIRST, "rate=0.2") + SECOND, "threshold": 0}], "--structured")[0]
    check(above["compressed_prompt"].endswith(SECOND.lstrip()) and len(above["compressed_prompt"]) < len(FIRST + SECOND), "a threshold holds for what has no rate: %s" % above)
    small = answers([{"context": tag("word", "rate=0.5"), "only_if_smaller": True}, {"context": tag(FIRST, "compress=False"), "count": "words"}], "--structured")
    check(small[0]["compressed_prompt"] == "word" and small[1]["compressed_tokens"] == small[1]["origin_tokens"], "small: %s" % small)


# ---- JSON ----

DOCUMENTS = [  # value, its entry in the configuration
    (FIRST, {}), (FIRST, {"rate": 0.3}), (FIRST, {"rate": 1}), (FIRST, {"compress": False}), (FIRST, {"rate": 0.3, "compress": False}), (FIRST, {"value_type": "str", "rate": None}),
    (FIRST, {"value_type": "string", "pair_remove": True}), ("", {}), ("\n", {"rate": 0.1}), ("word", {"rate": 0.01}), ("a \"quoted\" \\ text\twith\u0001 controls \u2028 and \U0001f642", {"rate": 0.5}),
    ("\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002", {"rate": 0.5}), ("null", {}), ("true", {"value_type": "str"}), (", , ,", {"rate": 0.9}), ("<llmlingua, rate=0.1>x</llmlingua>", {"rate": 0.9}),
    (12, {"value_type": "int"}), (-3, {"value_type": "integer", "rate": 0.1}), (1.50, {"value_type": "float"}), (1e30, {"value_type": "number"}), (0, {}), (True, {"value_type": "bool", "rate": 0.2}),
    (False, {"value_type": "boolean"}), (None, {"value_type": "str"}), (None, {"value_type": "dict"}), ([], {"value_type": "list"}), ([FIRST, SECOND], {"value_type": "list", "rate": 0.3}), (["a", "b", 3, None, True, 1.5], {"value_type": "List", "rate": 0.1}),
    ([[["deep", [FIRST]]]], {"value_type": "tuple", "rate": 0.5}), (["x, y", "z"], {"value_type": "set", "rate": 0.5}), ({}, {"value_type": "dict"}), ({"k": FIRST, "n": 3, "l": [SECOND, {"m": None}]}, {"value_type": "dictionary", "rate": 0.4}),
    ({"a": {"b": {"c": SECOND}}}, {"rate": 0.5}), ({"": ""}, {"rate": 0.5}), ([{"name": "x", "text": SECOND}] * 3, {"rate": 0.4}), ("x" * 600, {"rate": 0.5}), ("a b c. " * 60, {"rate": 0.2}),
]
WRONG = [  # document, configuration, words of the message
    ({"a": "x"}, {}, ["a", "no entry"]), ({"a": "x"}, {"a": 3}, ["a", "not an object"]), ({"a": "x"}, {"a": {"rates": 0.5}}, ["rates"]), ({"a": "x"}, {"a": {"rate": 0}}, ["rate"]),
    ({"a": "x"}, {"a": {"rate": 1.5}}, ["rate"]), ({"a": "x"}, {"a": {"rate": "0.5"}}, ["rate"]), ({"a": "x"}, {"a": {"compress": 1}}, ["compress"]), ({"a": "x"}, {"a": {"pair_remove": "no"}}, ["pair_remove"]),
    ({"a": "x"}, {"a": {"value_type": "text"}}, ["value_type"]), ({"a": "x"}, {"a": {"value_type": "int"}}, ["int", "string"]), ({"a": 1.5}, {"a": {"value_type": "int"}}, ["int"]), ({"a": [1]}, {"a": {"value_type": "dict"}}, ["dict", "array"]),
    (["a"], {}, ["not an object"]), ({"a": "x"}, [], ["not an object"]), ("text", {}, ["not an object"]),
]
RAW = ["", "{", "{\"a\": }", "{\"a\": 1} x", "{\"a\": 1, \"a\": 2}", "{'a': 1}", "{\"a\": \"\\ud800\"}", "[" * 200 + "]" * 200, "nul"]


def same_shape(a, b):
    """Equal but for the text of strings, which may have lost some."""
    if isinstance(a, str):
        letters = iter(a)
        return isinstance(b, str) and all(c in letters for c in b.replace(" ", "").replace("\n", "")) and bool(a.strip()) == bool(b.strip())
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same_shape, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same_shape(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def write(folder, name, value):
    path = os.path.join(folder, name)
    open(path, "w", encoding="utf-8").write(value if isinstance(value, str) and name == "raw" else json.dumps(value, ensure_ascii=False))
    return path


def documents(folder):
    document = {"key %d" % i: value for i, (value, _) in enumerate(DOCUMENTS)}
    config = {"key %d" % i: entry for i, (_, entry) in enumerate(DOCUMENTS)}
    paths = ["--baseline", "stopwords", "--structured-json", write(folder, "config", {**config, "unused": {}}), write(folder, "document", document)]
    code, out, err = run(paths)
    made = json.loads(out)
    check(code == 0 and list(made) == list(document), "a document of all kinds: exit %d %s" % (code, err))
    for (value, entry), result in zip(DOCUMENTS, made.values()):
        check(same_shape(value, result), "%r with %s became %r" % (value, entry, result))
        if entry.get("compress") is False or entry.get("rate") == 1:
            check(result == value, "%r is not as it was: %r" % (value, result))
    check(made["key 1"] != FIRST and len(made["key 1"]) < len(made["key 0"]) < len(FIRST), "a lower rate is shorter")
    check("1e+30" in out or "1e30" in out, "numbers are as they were written")
    code, again, _ = run(paths + ["--json", "--rate", "0.5"])
    told = json.loads(again)
    check(told["compressed_prompt"] == made and told["origin_tokens"] > told["compressed_tokens"] > 0, "--json: %s" % again[:200])


def pairs(folder):
    document = {"keep": FIRST, "filler": "Um, so, you know, I mean, well, that is it.", "number": 5}
    config = {"keep": {"rate": 1, "pair_remove": True}, "filler": {"rate": 1, "pair_remove": True}, "number": {"compress": False}}
    paths = ["--structured-json", write(folder, "config", config), write(folder, "document", document)]
    check(json.loads(run(paths)[1]) == document, "pairs go only where whole contexts may")
    filtered = json.loads(run(paths + ["--use-context-level-filter", "--target-context", "2"])[1])
    check(filtered == {"keep": FIRST, "number": 5}, "pair_remove: %s" % filtered)
    config["filler"]["pair_remove"] = False
    write(folder, "config", config)
    check("filler" in json.loads(run(paths + ["--use-context-level-filter", "--target-context", "1"])[1]), "a pair that may not go stays")


def wrong(folder):
    for document, config, words in WRONG:
        code, out, err = run(["--structured-json", write(folder, "config", config), write(folder, "document", document)])
        check(code == 1 and out == "" and all(w in err for w in words), "%s with %s: exit %d %s" % (document, config, code, err))
    for raw in RAW:
        good, bad = write(folder, "good", {"a": {}}), write(folder, "raw", raw)
        for arguments in ([good, bad], [bad, good]):
            code, out, err = run(["--structured-json", *arguments])
            check(code == 1 and out == "" and "byte" in err and bad in err, "%r: exit %d %s" % (raw[:20], code, err))
    for arguments in (["--structured-json", "x", "a", "b"], ["--structured-json", "x", "--jsonl"], ["--structured-json", "x", "--structured"], ["--structured", "--compat"], ["--structured-json", "x", "--compat"]):
        check(run(arguments)[0] == 2, "%s is wrong use" % arguments)


broken_tags()
tags()
protected_text()
gaps()
budgets()
with tempfile.TemporaryDirectory() as temporary:
    documents(temporary)
    pairs(temporary)
    wrong(temporary)
sys.exit(finish())
