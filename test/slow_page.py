"""The page of `lingua2 label --html` in headless Chromium: its slider moved, by script and by keys, what it shows compared with `lingua2 compress --rate`, what it
is without JavaScript, that it loads nothing, and that no text gets out of its words. Speaks WebDriver to chromedriver; skipped where that is not installed."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request

from checks import check, finish, skip

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, "lingua2")
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-extensions "
         "--window-size=900,900").split()
RATES = [100, 1, 50, 33, 67, 10, 90, 58, 99, 2]
HOSTILE = ("</script><script>document.title='out'</script><img src=x onerror=\"document.title='out'\"> &lt;b&gt; \u202ereversed\u202c \x00 \x1b[31m \x07 <!-- x --> ]]> "
           "</article></body> `${document.title='out'}` \u65e5\u672c\u8a9e \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \U0001f642")
KEPT = "return [...document.querySelectorAll('article span')].map(w=>getComputedStyle(w).color==getComputedStyle(document.body).color)"


class Browser:
    """One session of chromedriver. Local calls alone."""

    def __init__(self, folder):
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
        for line in self.driver.stdout:
            port = re.search(r"started successfully on port (\d+)", line)
            if port:
                break
        self.base = "http://127.0.0.1:%s/session" % port[1]
        options = {"binary": shutil.which("chromium"), "args": FLAGS + ["--user-data-dir=" + os.path.join(folder, "profile")]}
        capabilities = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self.base += "/" + self.ask("", {"capabilities": capabilities})["sessionId"]

    def ask(self, path, data=None, method=None):
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.base + path, body, {"Content-Type": "application/json"}, method=method)
        return json.load(urllib.request.urlopen(request, timeout=600))["value"]

    def run(self, script, *arguments):
        return self.ask("/execute/sync", {"script": script, "args": list(arguments)})

    def open(self, path):
        self.ask("/url", {"url": "file://" + path})

    def type_into(self, selector, keys):
        element = next(iter(self.ask("/element", {"using": "css selector", "value": selector}).values()))
        self.ask("/element/%s/value" % element, {"text": keys})

    def log(self):
        return self.ask("/se/log", {"type": "browser"})

    def close(self):
        try:
            self.ask("", method="DELETE")
        finally:
            self.driver.terminate()
            self.driver.wait()


def lay_out(folder, name, texts, options):
    paths = []
    for i, text in enumerate(texts):
        paths.append(os.path.join(folder, "%s.%d.txt" % (name, i)))
        open(paths[-1], "w", encoding="utf-8", newline="").write(text)
    page = os.path.join(folder, name + ".html")
    subprocess.run([PROGRAM, "label", "--html", page, *options] + paths, check=True)
    requests = "".join(json.dumps({"context": texts, "rate": p / 100, "return_word_label": True}) + "\n" for p in RATES)
    lines = subprocess.run([PROGRAM, "compress", "--jsonl", *options], input=requests.encode(), stdout=subprocess.PIPE, check=True).stdout.decode().split("\n")
    return page, {p: json.loads(line) for p, line in zip(RATES, lines)}


def compare(browser, name, p, wanted):
    kept, line = browser.run(KEPT), browser.run("return document.querySelector('output').textContent")
    check(kept == [w["kept"] for w in wanted["words"]], "%s at %d percent shows other words than compress keeps" % (name, p))
    counts = "rate %.2f: %d of %d tokens, %d of %d words" % (p / 100, wanted["compressed_tokens"], wanted["origin_tokens"], sum(w["kept"] for w in wanted["words"]), len(wanted["words"]))
    check(line == counts, "%s at %d percent says %r, not %r" % (name, p, line, counts))


def drive(browser, name, page, wanted):
    browser.open(page)
    compare(browser, name + ", as it opens,", 50, wanted[50])
    check(browser.run("return document.querySelector('input').hidden") is False, "%s: no slider" % name)
    for p in RATES:
        browser.run("const s=document.querySelector('input');s.value=arguments[0];s.dispatchEvent(new Event('input'))", str(p))
        compare(browser, name, p, wanted[p])
    browser.type_into("input", "\ue010") # End
    compare(browser, name + ", by keys,", 100, wanted[100])
    browser.type_into("input", "\ue012") # one to the left
    compare(browser, name + ", by keys,", 99, wanted[99])
    check(browser.run("return performance.getEntriesByType('resource').length") == 0, "%s: the page loads something" % name)
    check(browser.run("return document.title") == "What lingua2 keeps", "%s: a text became a script" % name)
    check(browser.run("return document.querySelectorAll('script').length") == 1 and browser.run("return document.images.length") == 0, "%s: a text became markup" % name)
    check(browser.log() == [], "%s: the console says %s" % (name, browser.log()))
    hover = browser.run("return [...document.querySelectorAll('article span')].map(w=>w.title)")
    check(hover == ["%.3f%s" % (w["p"], ", forced" if w["forced"] else "") for w in wanted[50]["words"]], "%s: what hovering shows" % name)


def without_script(browser, page, wanted):
    browser.ask("/goog/cdp/execute", {"cmd": "Emulation.setScriptExecutionDisabled", "params": {"value": True}})
    browser.open(page)
    check(browser.run("return document.querySelector('input').hidden"), "without JavaScript a slider stands there that does nothing")
    compare(browser, "without JavaScript", 50, wanted[50])


if not (shutil.which("chromium") and shutil.which("chromedriver")):
    skip("chromium or chromedriver is not installed")
    sys.exit(finish())
texts = [json.loads(line)["origin"] for path in sorted(glob.glob(os.path.join(ROOT, "data", "distill", "*.jsonl")))[:4] for line in open(path, encoding="utf-8").readlines()[:1]]
cases = {"meetings": (texts, []), "hostile": ([HOSTILE, "", HOSTILE], ["--count", "words", "--force-token", HOSTILE[:33], "--force-token", HOSTILE[42:90]]), "forced": ([texts[0]], ["--force-token", "\\n", "--drop-consecutive", "--keep", "numbers"]),
         "long": (["9a" * 700 + " end. " + "\u65e5\u672c\u8a9e" * 60], [])}
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    browser = Browser(folder)
    try:
        for name, (texts, options) in cases.items():
            page, wanted = lay_out(folder, name, texts, options)
            drive(browser, name, page, wanted)
        without_script(browser, page, wanted)
    finally:
        browser.close()
sys.exit(finish())
