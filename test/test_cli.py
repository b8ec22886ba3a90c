"""The command line under wrong use and bad input: exit code and the words of the message. Standard library alone, on the embedded default."""
import json
import os
import struct
import subprocess
import sys
import tempfile

from checks import check, finish

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM, DEFAULT = os.path.join(ROOT, "lingua2"), os.path.join(ROOT, "models", "default.safetensors")


def run(arguments, stdin=b"", stdout=subprocess.PIPE):
    return subprocess.run([PROGRAM] + arguments, input=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=60)


def expect(code, words, arguments, stdin=b"Some text."):
    """Exit code, nothing on stdout, one line on stderr that holds all the words."""
    done = run(arguments, stdin)
    message = done.stderr.decode("utf-8", "replace")
    shown = "%s -> %d %r" % (arguments, done.returncode, message[:200])
    check(done.returncode == code, "wanted exit %d: %s" % (code, shown))
    check(all(w in message for w in words) and message.count("\n") == 1, "wanted %s in one line: %s" % (words, shown))
    check(done.stdout == b"", "something on standard output: %s" % shown)


def usage():
    compress = ["compress", "--compat"]
    expect(2, ["which command"], [])
    expect(2, ["no command 'shorten'", "compress"], ["shorten"])
    for option, value in (("--count", "gpt2"), ("--keep", "code,links"), ("--baseline", "best"), ("--threshold", "1.5"), ("--threshold", "-0.1")):
        expect(2, [option[2:]], ["compress", option, value])
        expect(2, [], compress + [option, value])
    expect(2, ["--compat"], compress + ["--keep", "code"])
    expect(2, ["empty"], ["compress", "--force-token", ""])
    for rate in ("0", "2", "nan", "-1", "inf", "", "0.5x", "1e999", "0x1"):
        expect(2, ["--rate"], compress + ["--rate", rate])
    expect(2, ["--rate", "twice"], compress + ["--rate", "0.5", "--rate", "0.4"])
    expect(2, ["--rate needs a value"], compress + ["--rate"])
    expect(2, ["--rats"], compress + ["--rats", "0.5"])
    expect(2, ["--json takes no value"], compress + ["--json=1"])
    expect(2, ["--token-to-word"], compress + ["--token-to-word", "last"])
    expect(2, ["--target-token"], compress + ["--target-token", "1.5"])
    expect(2, ["--math"], compress + ["--math", "exact"])
    expect(2, ["--threads"], compress + ["--threads", "0"])
    expect(2, ["--force-token", "escape"], compress + ["--force-token", "\\q"])
    expect(2, ["--ids"], ["classify", "--ids", "1,,2"])
    expect(2, ["--ids"], ["classify", "--ids", ""])
    expect(2, ["one text"], ["classify", DEFAULT, DEFAULT])
    expect(2, ["--vocab"], ["tokenize", "--vocab", "o200k_base"])
    for command in ([], ["compress"], ["classify"], ["tokenize"], ["info"]):
        done = run(command + ["--help"])
        check(done.returncode == 0 and b"usage: lingua2" in done.stdout and done.stderr == b"", "%s --help" % command)


def bad_input():
    compress = ["compress", "--compat"]
    expect(1, ["no-such-file", "cannot be opened"], compress + ["no-such-file"])
    expect(1, ["byte 3", "UTF-8"], compress, b"abc\xff")
    expect(1, ["byte 1", "UTF-8"], compress, b"a\xed\xa0\x80")
    expect(1, ["at most 100"], compress + sum((["--force-token", "w%d" % i] for i in range(101)), []))
    expect(1, ["<|endoftext|>", "byte 2"], compress, b"a <|endoftext|>")
    expect(1, ["target_token"], compress + ["--target-token", "5"], b"")
    expect(1, ["positions"], ["classify", "--ids", ",".join(["7"] * 513)])
    expect(1, ["no piece 999999"], ["classify", "--ids", "999999"])
    done = run(compress + ["--rate", "0.5"], b"")
    check(done.returncode == 0 and done.stdout == b"\n", "empty text: %d %r" % (done.returncode, done.stdout))
    with open("/dev/full", "wb") as full:
        for command in (compress, ["classify"], ["tokenize"], ["info"], ["--help"]):
            done = run(command, b"Some text." if command != ["info"] else b"", stdout=full)
            check(done.returncode == 4 and b"cannot be written" in done.stderr, "%s > /dev/full: %d %r" % (command, done.returncode, done.stderr))


def lines():
    requests = [b'{"id": "a", "context": "One two three. Four five six seven."}', b'{"id": 2, "context": 3}', b"not json", b"", b'{"id": [1, {"k": null}], "context": ["A b c.", "D e f."]}',
                b'{"context": "x", "rate": 0}', b'{"context": "x", "rates": 1}', b'{"context": "a b c", "rate": 2}', b'{"id": "\xff", "context": "x"}', b'[1]']
    done = run(["compress", "--compat", "--jsonl"], b"\n".join(requests))
    results = [json.loads(line) for line in done.stdout.decode().splitlines()]
    check(done.returncode == 1 and b"6 of" in done.stderr, "JSON lines: exit %d %r" % (done.returncode, done.stderr))
    check(["error" in r for r in results] == [False, True, True, False, True, True, False, True, True], "JSON lines: %s" % [r.get("error") for r in results])
    check([r.get("id") for r in results[:4]] == ["a", 2, None, [1, {"k": None}]], "JSON lines: ids %s" % [r.get("id") for r in results])
    check(results[6].get("compressed_prompt") == "a b c", "rate above 1 compresses nothing, as in the package: %s" % results[6])


def with_file(content, code, words):
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        for command in (["info", file.name], ["classify", "-m", file.name]):
            if code is not None:
                expect(code, words, command)


def flat(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def bad_models():
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    with_file(b"", 3, [])
    with_file(b"abc", 3, [])
    with_file(struct.pack("<Q", 1 << 62) + b"{}", 3, ["header"])
    with_file(flat(b"{"), 3, [])
    with_file(flat({"a": tensor}), 3, [])
    with_file(flat({"a": {**tensor, "data_offsets": [0, 1 << 60]}}, b"12345678"), 3, [])
    with_file(flat({"a": tensor, "b": tensor}, b"12345678"), 3, [])
    with_file(flat({"a": {**tensor, "shape": [1 << 40, 1 << 40]}}, b"12345678"), 3, [])
    with_file(flat({"a": {**tensor, "dtype": "F13"}}, b"12345678"), 3, [])
    with_file(flat({"a": {**tensor, "shape": [-2]}}, b"12345678"), 3, [])
    original = open(DEFAULT, "rb").read()
    with_file(original[:-1], 3, [])
    with_file(original + b"x", 3, [])
    for old, new, words in ((b'num_attention_heads\\": 12', b'num_attention_heads\\": 0 ', ["num_attention_heads"]), (b'num_attention_heads\\": 12', b'num_attention_heads\\": 11', ["divide"]),
                            (b'hidden_size\\": 384', b'hidden_size\\": 372', ["shape"]), (b'num_hidden_layers\\": 4', b'num_hidden_layers\\": 5', ["encoder.layer.4"]),
                            (b'hidden_act\\": \\"gelu', b'hidden_act\\": \\"golu', ["hidden_act"]), (b'"bert"', b'"brrt"', ["family"])):
        check(old in original, "the default's header holds no %r" % old)
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            file.write(original.replace(old, new, 1))
            file.flush()
            expect(3, words, ["classify", "-m", file.name])


usage()
bad_input()
lines()
bad_models()
sys.exit(finish())
