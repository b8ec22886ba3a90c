"""Run every test: the compiled test/test_*.c in the build folder, then test/test_*.py. Standard library alone.

usage: python3 test/run.py BUILD_FOLDER [NAME...]     only the tests whose name holds one of NAME

Each test ends with a line "N passed, N failed, N skipped" and exits 0 if nothing failed; a test that crashes, ends without that line,
counts nothing at all or runs over its time counts as one failure. The last line here is the sum.

TEST_STRIDE=N in the environment: of the cases of test_compress.py, test_default.py, test_faithful.py, test_mend.py and test_mend_eval.py only every N-th, where the same code was tested
on all of them before and only the compiler or its sanitizers are new.
"""
import glob
import os
import re
import subprocess
import sys
import time

LIMIT_S = 1800  # a test under sanitizers and an emulator is slow, one that hangs must end


def run(name, command):
    """Run one test; returns (passed, failed, skipped) and prints its output if it failed or skipped something."""
    start = time.time()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S, stdin=subprocess.DEVNULL)
        output, code = done.stdout.decode("utf-8", "replace"), done.returncode
    except subprocess.TimeoutExpired as late:
        output, code = (late.stdout or b"").decode("utf-8", "replace") + "\nran over %d s" % LIMIT_S, -1
    last = re.findall(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", output, re.M)
    counts = [int(n) for n in last[-1]] if last else [0, 0, 0]
    if (code != 0 and counts[1] == 0) or sum(counts) == 0:
        counts[1] += 1
        output += "\n(exit code %d%s)" % (code, "" if last else ", no closing line")
    print("%-28s %6d passed %4d failed %3d skipped  %6.1f s" % (name, *counts, time.time() - start), flush=True)
    if counts[1]:
        print("    " + output.strip().replace("\n", "\n    "), flush=True)
    else:
        for line in output.splitlines():
            if line.startswith("skipped:"):
                print("    " + line, flush=True)
    return counts


def main():
    build, only = sys.argv[1], sys.argv[2:]
    here = os.path.dirname(os.path.abspath(__file__))
    os.chdir(os.path.dirname(here))
    os.environ["BUILD"] = build  # where a Python test finds the compiled one that it asks
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait for work must not take the cores from the tests beside them
    tests = [(os.path.basename(c)[:-2], [os.path.join(build, os.path.basename(c)[:-2])]) for c in sorted(glob.glob("test/test_*.c"))]
    tests += [(os.path.basename(p), [sys.executable, p]) for p in sorted(glob.glob("test/test_*.py"))]
    total = [0, 0, 0]
    for name, command in tests:
        if not only or any(word in name for word in only):
            total = [a + b for a, b in zip(total, run(name, command))]
    print("%d passed, %d failed, %d skipped" % tuple(total))
    return 1 if total[1] or not total[0] else 0


sys.exit(main())
