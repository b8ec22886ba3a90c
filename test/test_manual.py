"""The manual pages and the shell completions that the programs write: complete, clean, and of use in real shells. Standard library alone; a shell or formatter
that is not installed is a line "skipped: ..."."""
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time

from checks import check, finish, skip

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAMS = ("lingua2", "mend")


def installed(tool):
    if shutil.which(tool):
        return True
    skip("%s is not installed" % tool)
    return False


def run(command, **more):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, universal_newlines=True, **more)


def told(program, *arguments):
    done = run([os.path.join(ROOT, program), *arguments])
    check(done.returncode == 0, "%s %s ends with %d" % (program, " ".join(arguments), done.returncode))
    return done.stdout


def commands(program):
    return re.findall(r"^  (\w+)", told(program, "--help"), re.M)


def options(program, command):
    """What --help lists: [(short or "", long, value or "")]."""
    return re.findall(r"^  (?:(-\w), )?--([\w-]+) ?(\S*)", told(program, command, "--help"), re.M)


def help_command(program):
    check(told(program, "help") == told(program, "--help"), "%s help is not %s --help" % (program, program))
    for command in commands(program):
        check(told(program, "help", command) == told(program, command, "--help"), "%s help %s is not %s %s --help" % (program, command, program, command))
    for wrong in (["help", "nothing"], ["help", "--completion", "tcsh"], ["help", "--man", "info"], ["help", "--completion", "bash", "--man"]):
        done = run([os.path.join(ROOT, program)] + wrong)
        check(done.returncode == 2 and done.stdout.count("\n") == 1, "%s %s: exit %d: %s" % (program, wrong, done.returncode, done.stdout))


def plain(page):
    """A man page's text: font changes and escapes undone."""
    return re.sub(r"\\f[BIR]|\\&", "", page).replace("\\-", "-").replace("\\e", "\\")


def manual(program, folder):
    page = told(program, "help", "--man")
    text = plain(page)
    check(page.isascii() and all(c == "\n" or c >= " " for c in page), "%s: the manual page holds more than printable ASCII" % program)
    for command in commands(program):
        check(re.search(r'^\.SS "%s - ' % command, text, re.M), "%s: the manual page has no section on %s" % (program, command))
        for short, name, value in options(program, command):
            entry = "%s--%s%s" % (short + ", " if short else "", name, " " + value if value else "")
            check(entry in text.splitlines(), "%s %s: the manual page lacks %r" % (program, command, entry))
    path = os.path.join(folder, program + ".1")
    open(path, "w").write(page)
    if installed("mandoc"): # the page has no date: it belongs to the program that writes it
        complaints = [c for c in run(["mandoc", "-T", "lint", "-W", "warning", path]).stdout.splitlines() if "missing date" not in c]
        check(not complaints, "%s: mandoc: %s" % (program, complaints))
    if installed("man"):
        done = run(["man", "--warnings", "-Tutf8", "-l", path], env={**os.environ, "MAN_KEEP_STDERR": "1", "MANWIDTH": "100"})
        check(done.returncode == 0 and "warning" not in done.stdout and "EXIT STATUS" in re.sub(".\b", "", done.stdout), "%s: man: %s" % (program, done.stdout[:500]))


def wanted_completions(program):
    """(words typed, the last to be completed; some that must be offered)."""
    wanted = [([""], commands(program)), (["inf"], ["info"]), (["help", "inf"], ["info"]), (["help", "--completion", ""], ["bash", "zsh", "fish"])]
    for command in commands(program):
        wanted.append(([command, "--"], ["--" + name for _, name, _ in options(program, command)]))
        for short, name, value in options(program, command):
            if re.fullmatch(r"[a-z_0-9]+(\|[a-z_0-9]+)*", value):
                wanted.append(([command, "--" + name, ""], value.split("|")))
    return wanted


def in_bash(program, folder):
    path = os.path.join(folder, program + ".bash")
    open(path, "w").write(told(program, "help", "--completion", "bash"))
    script = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _%s; printf "%%s\\n" "${COMPREPLY[@]}"' % program

    def offered(words):
        return run(["bash", "--norc", "-c", script, "bash", path, program] + words).stdout.split()
    for words, some in wanted_completions(program):
        check(set(some) <= set(offered(words)), "bash: %s %s offers %s, not %s" % (program, words, offered(words), some))
    check(offered([commands(program)[0], "--math", "=", "f"]) == ["fast"], "bash: --math=f")
    check(offered([commands(program)[0], "--threads", ""]) == [], "bash: a number is not completed")
    check(offered([commands(program)[0], "x"]) == [], "bash: an operand is left to file names")


def in_fish(program, folder):
    path = os.path.join(folder, program + ".fish")
    open(path, "w").write(told(program, "help", "--completion", "fish"))
    wanted = wanted_completions(program)
    asked = "".join("echo =%d; complete -C%s;" % (i, "'%s %s'" % (program, " ".join(words))) for i, (words, _) in enumerate(wanted))
    answers = run(["fish", "--no-config", "-c", "source %s; %s" % (path, asked)], env={**os.environ, "HOME": folder}).stdout
    for (words, some), answer in zip(wanted, re.split(r"^=\d+$", answers, flags=re.M)[1:]):
        check(set(some) <= {line.split("\t")[0] for line in answer.splitlines()}, "fish: %s %s offers %s" % (program, words, answer.split("\n")))
    check(answers.count("=") >= len(wanted), "fish: %s" % answers[:300])


def typed(shell, keys, until):
    """What a shell shows on a terminal after these keys, until it shows `until` or is silent for long."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="dumb", PS1="ready>")
        os.execvp(shell[0], shell)
    shown = b""
    for key in keys:
        os.write(terminal, key.encode())
        late = time.time() + 20
        while time.time() < late and select.select([terminal], [], [], 0.5 if key is not keys[-1] else 20)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError: # the terminal is gone
                break
            if key is keys[-1] and until in shown:
                break
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(terminal)
    return shown.decode("utf-8", "replace")


def in_zsh(program, folder):
    path = os.path.join(folder, "_" + program)
    open(path, "w").write(told(program, "help", "--completion", "zsh"))
    check(run(["zsh", "-n", path]).stdout == "", "zsh does not read its completion")
    start = "fpath=(%s $fpath); autoload -U compinit; compinit -D -u; PS1='ready>'\n" % folder
    for words, until in (("info --ma\t", "--math"), ("info --math=f\t", "--math=fast"), ("help --completion z\t", "zsh"), ("inf\t", "info")):
        shown = typed(["zsh", "-f"], [start, "%s %s" % (program, words)], until.encode())
        check(until in shown, "zsh: %s %r shows %r" % (program, words, shown[-200:]))


with tempfile.TemporaryDirectory() as temporary:
    bash, fish, zsh = installed("bash"), installed("fish"), installed("zsh")
    for name in PROGRAMS:
        help_command(name)
        manual(name, temporary)
        if bash:
            in_bash(name, temporary)
        if fish:
            in_fish(name, temporary)
        if zsh:
            in_zsh(name, temporary)
sys.exit(finish())
