"""lingua2 label: every form says the same as `compress`; hostile text does no harm on a terminal or in a page; the page's slider holds what `compress` would
keep at each rate. Standard library alone, on the embedded default."""
import html
import html.parser
import json
import os
import pty
import re
import subprocess
import sys
import tempfile

from checks import check, finish

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, "lingua2")
MEETING = ("Speaker 4: Thank you. And can we do the functions for content? Items I believe are 11, three, 14, 16 and 28, I believe.\n\nMayor Hollis: Okay, good evening everybody. "
           "Item four is the crosswalk on Birch Street; staff came back with an estimate of $48,500, which isn't in the budget.\n")
HOSTILE = ("</script><script>alert(1)</script> \"quoted\" 'single' & &amp; <b onclick=x>bold</b>\r\nA \u202ereversed\u202c text, \x00 NUL \x1b[31mred\x1b[0m, bell \x07, \x7f del, \x85 nel, "
           "a\tb.\u2028line <!-- comment --> ]]> \u2067x\u2069. \u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3002 \U0001f642\U0001f469\u200d\U0001f52c")
STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def run(arguments, text, code=0, **more):
    done = subprocess.run([PROGRAM, arguments[0], "--threads", "1"] + arguments[1:], input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=600, **more)
    check(done.returncode == code, "%s: exit %d: %r" % (arguments, done.returncode, done.stderr[:300]))
    return done.stdout.decode()


def shown(text):
    """What a person sees in place of characters that steer."""
    def picture(match):
        code = ord(match[0])
        return chr(0x2421 if code == 0x7F else 0x2400 + code) if code < 0x80 else "[U+%04X]" % code
    return STEERING.sub(picture, text.replace("\r\n", "\n"))


def compress(text, *options):
    return json.loads(run(["compress", "--json", "--return-word-label", *options], text))


def forms(text, *options):
    """Lines, JSON and compress agree on each word, and each word is its bytes."""
    wanted = compress(text, *options)
    told = json.loads(run(["label", "--json", *options], text))
    check(told["words"] == wanted["words"] and told["compressed_tokens"] == wanted["compressed_tokens"], "label --json is not compress's %s" % (options,))
    source = text.encode()
    check(all(source[w["start"]:w["end"]].decode() == w["word"] for w in told["words"]), "words are not their bytes")
    lines = run(["label", *options], text).split("\n")
    check(lines.pop() == "" and len(lines) == len(told["words"]), "%d lines for %d words" % (len(lines), len(told["words"])))
    for line, w in zip(lines, told["words"]):
        p, verdict, start, end, word = line.split("\t")
        check((abs(float(p) - w["p"]) < 1e-6, verdict, int(start), int(end), word) == (True, "keep" if w["kept"] else "drop", w["start"], w["end"], shown(w["word"]).replace("\n", " ").replace("\t", " ")),
              "line %r for %s" % (line, w))
    return told


class Page(html.parser.HTMLParser):
    """The words of a page, what is dropped, the text of its articles, and all that could load something."""

    def __init__(self, page):
        super().__init__()
        self.words, self.articles, self.loads, self.inside, self.scripts = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.loads += [v for k, v in attributes if k in ("src", "href", "action", "data", "style") or k.startswith("on")]
        if tag in ("link", "img", "iframe", "object", "base"):
            self.loads.append(tag)
        if tag == "article":
            self.articles.append("")
        if tag == "span":
            self.words.append(["", named["title"], named.get("class") != "dropped"])
        if tag not in ("meta", "input", "br"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        check(self.inside and self.inside.pop() == tag, "the page closes a <%s> that is not open" % tag)

    def handle_data(self, data):
        if "article" in self.inside:
            self.articles[-1] += data
        if self.inside[-1:] == ["span"]:
            self.words[-1][0] += data
        if self.inside[-1:] == ["script"]:
            self.scripts.append(data)


def page(folder, texts, *options):
    paths = [os.path.join(folder, "%d.txt" % i) for i in range(len(texts))]
    for path, text in zip(paths, texts):
        open(path, "w", encoding="utf-8", newline="").write(text)
    target = os.path.join(folder, "page.html")
    check(run(["label", "--html", target, *options] + paths, "") == "", "--html prints something")
    source = open(target, encoding="utf-8", newline="").read()
    wanted = json.loads(run(["compress", "--json", "--return-word-label", *options] + paths, ""))
    made = Page(source)
    check(made.articles == [shown(t) for t in texts], "the articles are not the texts: %r" % made.articles)
    check([(w, t, k) for w, t, k in made.words] == [(shown(w["word"]), "%.3f%s" % (w["p"], ", forced" if w["forced"] else ""), w["kept"]) for w in wanted["words"]], "the page's words are not compress's")
    escaped = [html.escape(shown(w["word"])).replace("&#x27;", "&#39;") for w in wanted["words"]]
    check(re.findall(r'<span title="[^"]*"(?: class=dropped)?>(.*?)</span>', source, re.S) == escaped, "words are not escaped")
    check(not made.loads and "Content-Security-Policy" in source and "default-src 'none'" in source, "the page could load %s" % made.loads)
    check(not STEERING.search(source) and len(made.scripts) <= 1, "the page holds characters that steer, or more than its own script")
    check("%d of %d tokens" % (wanted["compressed_tokens"], wanted["origin_tokens"]) in source, "the page's counts are not compress's")
    return paths, made


def slider(paths, made, rates, *options):
    held = {name: json.loads(numbers) for name, numbers in re.findall(r"^const (step|at|tokens)=(\[.*?\]);$", made.scripts[0], re.M)}
    check(len(held["step"]) == len(made.words) and len(held["at"]) == len(held["tokens"]) == 101, "the slider's numbers")
    texts = [open(path, encoding="utf-8", newline="").read() for path in paths]
    requests = "".join(json.dumps({"context": texts, "rate": p / 100, "return_word_label": True}) + "\n" for p in rates)
    for p, line in zip(rates, run(["compress", "--jsonl", *options], requests).split("\n")):
        wanted = json.loads(line)
        kept = [step <= held["at"][p] for step in held["step"]]
        check(kept == [w["kept"] for w in wanted["words"]] and held["tokens"][p] == wanted["compressed_tokens"], "the slider at %d percent" % p)


def terminal(arguments, text, **environment):
    """What the program writes when its standard output is a terminal."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        master, slave = pty.openpty()
        process = subprocess.Popen([PROGRAM] + arguments + [file.name], stdout=slave, env={**{k: v for k, v in os.environ.items() if k != "NO_COLOR"}, "TERM": "xterm", **environment})
        os.close(slave)
        out = b""
        while True:
            try:
                block = os.read(master, 65536)
            except OSError: # the other end is closed
                break
            out += block
            if not block:
                break
        process.wait()
        os.close(master)
        return out.decode().replace("\r\n", "\n")


def colours():
    bare = run(["label", "--ansi"], MEETING)
    check("\x1b" not in bare and re.sub(r"\[-(.*?)-\]", r"\1", bare, flags=re.S) == MEETING, "without a terminal: %r" % bare)
    on = terminal(["label", "--ansi"], MEETING)
    check("\x1b[2;31m" in on and "\x1b[1m" in on and re.sub("\x1b\\[[0-9;]*m", "", on) == MEETING, "on a terminal: %r" % on)
    check(terminal(["label", "--ansi"], MEETING, NO_COLOR="1") == bare, "NO_COLOR is not respected")
    check(terminal(["label", "--ansi"], MEETING, NO_COLOR="") == on, "an empty NO_COLOR means nothing")
    check(terminal(["label", "--ansi"], MEETING, TERM="dumb") == bare, "a dumb terminal gets colours")
    check(not STEERING.search(run(["label", "--ansi"], HOSTILE)) and not STEERING.search(run(["label"], HOSTILE)), "characters that steer reach the terminal")
    left = re.sub("\x1b\\[(2;31|1|0)m", "", terminal(["label", "--ansi"], HOSTILE))
    check(not STEERING.search(left) and left == shown(HOSTILE) + "\n", "on a terminal, hostile: %r" % left)


def wrong_use(folder):
    for arguments, words in ((["--json", "--ansi"], "one form"), (["--structured"], "--structured"), (["--rate", "0"], "--rate"), (["--count", "bytes"], "count")):
        done = subprocess.run([PROGRAM, "label"] + arguments, input=b"x", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        check(done.returncode == 2 and words in done.stderr.decode() and not done.stdout, "label %s: %d %r" % (arguments, done.returncode, done.stderr))
    done = subprocess.run([PROGRAM, "label", "--html", os.path.join(folder, "no", "page.html")], input=b"x", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check(done.returncode == 4, "a page that cannot be written: %d" % done.returncode)


with tempfile.TemporaryDirectory() as temporary:
    for text in (HOSTILE, "", "\U0001f642\U0001f642"):
        forms(text)
    forms(MEETING, "--rate", "0.3", "--force-token", "believe", "--force-reserve-digit")
    forms(MEETING, "--threshold", "0.5", "--count", "words")
    paths, made = page(temporary, [MEETING, HOSTILE])
    slider(paths, made, (1, 25, 50, 58, 75, 99, 100))
    paths, made = page(temporary, [MEETING], "--force-token", "believe", "--drop-consecutive", "--count", "words", "--target-token", "20")
    slider(paths, made, (3, 40, 100), "--force-token", "believe", "--drop-consecutive", "--count", "words")
    paths, made = page(temporary, ["a9" * 700 + " x " + "\u65e5\u672c" * 100])
    slider(paths, made, (20, 60))
    page(temporary, ["", " \n", HOSTILE], "--force-token", "</script><script>alert(1)</script>", "--force-token", "<b onclick=x>")
    check(not page(temporary, [MEETING, "Another text."], "--use-context-level-filter")[1].scripts, "a page whose rate does not decide alone has no slider")
    colours()
    wrong_use(temporary)
sys.exit(finish())
