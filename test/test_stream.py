"""JSON lines through a warm `lingua2 compress --jsonl`: answers in order and at once where the input pauses, whatever way lines arrive; a reader that leaves, a signal.
Standard library alone, on the embedded default."""
import json
import os
import select
import signal
import subprocess
import sys
import time

from checks import check, finish

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMMAND = [os.path.join(ROOT, "lingua2"), "compress", "--jsonl"]
PATIENCE = 120  # seconds: far more than an answer takes on a busy machine, and an end to a test that hangs


def line(number, text="One two three four five six seven."):
    return json.dumps({"id": number, "context": text, "baseline": "head"}).encode() + b"\n"


def start():
    return subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


def answers(process, n):
    """The next n lines, as far as they come in time."""
    data, end = b"", time.time() + PATIENCE
    while data.count(b"\n") < n and time.time() < end and select.select([process.stdout], [], [], end - time.time())[0]:
        more = process.stdout.read(1 << 16)
        if not more:
            break
        data += more
    return [json.loads(x) for x in data.split(b"\n")[:-1]]


def pauses():
    process = start()
    for number in range(3):  # an answer before the next question
        process.stdin.write(line(number))
        check([r.get("id") for r in answers(process, 1)] == [number], "line %d was not answered at once" % number)
    process.stdin.write(line(3) + line(4) + line(5)[:20])  # half a line is no line yet
    check([r.get("id") for r in answers(process, 2)] == [3, 4], "two lines and a half")
    process.stdin.write(line(5)[20:-1])
    process.stdin.close()  # the last line need not end
    check([r.get("id") for r in answers(process, 1)] == [5] and process.wait(PATIENCE) == 0, "the last line")


def order():
    """More lines than a batch holds, long and short, good and bad, blank ones between."""
    lines = [line(n, "word " * (n * 7 % 500)) if n % 10 else b'{"id": %d}\n' % n for n in range(300)]
    done = subprocess.run(COMMAND, input=b"\n  \n\r\n".join(lines), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    results = [json.loads(x) for x in done.stdout.split(b"\n")[:-1]]
    check([r["id"] for r in results] == list(range(300)), "order: %s" % [r["id"] for r in results][:20])
    check([n for n, r in enumerate(results) if "error" in r] == list(range(0, 300, 10)) and done.returncode == 1, "errors: exit %d" % done.returncode)
    single = [json.loads(subprocess.run(COMMAND, input=lines[n], stdout=subprocess.PIPE).stdout) for n in (1, 77, 299)]
    check(single == [results[n] for n in (1, 77, 299)], "alone and in a batch")


def signals():
    for number, code in ((signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)):
        process = start()
        process.stdin.write(line(0))
        first = answers(process, 1)
        process.send_signal(number)
        rest = process.stdout.read()
        check(len(first) == 1 and rest == b"" and process.wait(PATIENCE) == code, "signal %d while it waits: %r, %s" % (number, rest, process.returncode))
    process = start()
    os.set_blocking(process.stdin.fileno(), False)
    process.stdin.write(b"".join(line(n) for n in range(500)))  # as many as the pipe takes
    answers(process, 1)
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    check(rest == b"" or rest.endswith(b"}\n"), "a signal under way cut a line: %r" % rest[-80:])
    check(process.wait(PATIENCE) == -signal.SIGINT, "a signal under way: %s" % process.returncode)
    process = start()
    process.stdout.close()
    process.stdin.write(line(0))
    process.stdin.close()
    message = process.stderr.read()
    check(process.wait(PATIENCE) == 4 and message.count(b"\n") == 1 and b"cannot be written" in message, "a reader that left: %s %r" % (process.returncode, message))


pauses()
order()
signals()
sys.exit(finish())
