"""README and docs say only what is true: every [`name`](file#LNN) points close to the line where that name is defined, every file named exists,
every make target and every lingua2 command named is there. `python3 test/test_readme.py --fix` moves line numbers to where the names are now."""
import glob
import os
import re
import sys

from checks import check, finish

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REFERENCE = re.compile(r"\[`(\w+)`\]\(((?:\.\./)?[\w./]+)#L(\d+)\)")
NEAR = 60  # lines: what a reader still finds at a glance; `--fix` makes them exact


def definition(path, name):
    """The line number (from 1) where a C function, a table or a Python function of this name is defined; 0 if none."""
    pattern = re.compile(r"^(?:[A-Za-z_][\w \*]*[ \*]|def |#define )%s\b\s*[\(\[=]" % re.escape(name))
    for number, line in enumerate(open(path, encoding="utf-8"), 1):
        if pattern.match(line) and not line.rstrip().endswith(";"):
            return number
    return 0


def check_file(path):
    text = open(path, encoding="utf-8").read()
    folder = os.path.dirname(path)

    def one(match):
        name, target, line = match.group(1), match.group(2), int(match.group(3))
        found = os.path.exists(os.path.join(folder, target)) and definition(os.path.join(folder, target), name)
        if found and "--fix" in sys.argv:
            return "[`%s`](%s#L%d)" % (name, target, found)
        check(found and abs(found - line) <= NEAR, "%s: %s is said to be at %s line %d, it is at %s" % (os.path.relpath(path, ROOT), name, target, line, found or "no place"))
        return match.group(0)
    fixed = REFERENCE.sub(one, text)
    if fixed != text:
        open(path, "w", encoding="utf-8").write(fixed)
    for target in re.findall(r"\]\((?!https?:|#)([\w./-]+)(?:#[^)]*)?\)", text):
        check(os.path.exists(os.path.join(folder, target)), "%s: links to %s, which does not exist" % (os.path.relpath(path, ROOT), target))
    targets = set(re.findall(r"^([a-z-]+):", open(os.path.join(ROOT, "Makefile"), encoding="utf-8").read(), re.M))
    for target in set(re.findall(r"`make ([a-z]+)\b(?![=/])", text)):
        check(target in targets, "%s: there is no `make %s`" % (os.path.relpath(path, ROOT), target))


for document in [os.path.join(ROOT, "README.md")] + sorted(glob.glob(os.path.join(ROOT, "docs", "*.md"))):
    check_file(document)
sys.exit(finish())
