"""export.py on tiny checkpoints that this test writes byte by byte, and against a small hub of its own. Standard library alone.

The same weights in every container (safetensors, zip and legacy pickles; whole and sharded; F32, F16, BF16, F64) must give the same flat tensors; a damaged or
malicious source must end with exit 1 and one line, run nothing and leave nothing behind.
"""
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import zipfile

import checks
from checks import check, finish

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import export

EXPORT, PROGRAM = os.path.join(ROOT, "export.py"), os.path.join(ROOT, "lingua2")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "##es", "run", "s", "a", "."]
C, H, L, F, P, Y, V, NEW = 4, 2, 2, 6, 16, 2, len(PIECES), 100


# ---- weights: few bits each, so that every number type holds them exactly ----

def numbers(name, count):
    return [b % 255 / 64 - 2 for b in hashlib.shake_256(name.encode()).digest(count)]


def weights(prefix="bert.", rows=V, **changed):
    """{name in the checkpoint: (shape, values)}; changed: another shape for the names that end so, dots written as __, or None to leave one out."""
    shapes = {"embeddings.word_embeddings.weight": (rows, C), "embeddings.position_embeddings.weight": (P, C), "embeddings.token_type_embeddings.weight": (Y, C),
              "embeddings.LayerNorm.weight": (C,), "embeddings.LayerNorm.bias": (C,)}
    for layer in range(L):
        at = "encoder.layer.%d." % layer
        parts = {"attention.self.query": (C, C), "attention.self.key": (C, C), "attention.self.value": (C, C), "attention.output.dense": (C, C), "intermediate.dense": (F, C), "output.dense": (C, F)}
        for part, shape in parts.items():
            shapes[at + part + ".weight"], shapes[at + part + ".bias"] = shape, shape[:1]
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[at + part + ".weight"] = shapes[at + part + ".bias"] = (C,)
    shapes = {**{prefix + name: shape for name, shape in shapes.items()}, "classifier.weight": (2, C), "classifier.bias": (2,)}
    for end, shape in changed.items():
        name, = [n for n in shapes if n.endswith(end.replace("__", "."))]
        shapes[name] = shape
    return {name: (shape, numbers(name, elements(shape))) for name, shape in shapes.items() if shape is not None}


def elements(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def packed(values, dtype="F32"):
    if dtype == "BF16":
        return b"".join(struct.pack("<f", v)[2:] for v in values)
    return struct.pack("<%d%s" % (len(values), {"F64": "d", "F32": "f", "F16": "e"}[dtype]), *values)


def flat_tensors(source, prefix, rows=V, kept=0):
    """What docs/FORMAT.md says the flat file holds, {name: (shape, bytes)}; the word embedding has its mean in the rows from rows on, kept of them as they were."""
    out = {}
    for name, (shape, values) in source.items():
        flat = name[len(prefix):] if name.startswith(prefix) else name
        if flat == "embeddings.word_embeddings.weight":
            mean = [sum(values[c::C]) / shape[0] for c in range(C)]
            values, shape = values + mean * (NEW - kept), (shape[0] + NEW - kept, C)
        elif len(shape) == 2 and "embeddings" not in flat:
            values, shape = [values[r * shape[1] + c] for c in range(shape[1]) for r in range(shape[0])], shape[::-1]
        out[flat] = (list(shape), packed(values))
    return out


# ---- containers ----

def safetensors(tensors, dtype="F32", header_change=None):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (shape, values) in tensors.items():
        raw = packed(values, dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    if header_change:
        header = header_change(header) or header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def p_int(n):
    return b"J" + struct.pack("<i", n) if -1 << 31 <= n < 1 << 31 else b"\x8a" + bytes([(n.bit_length() + 8) // 8]) + n.to_bytes((n.bit_length() + 8) // 8, "little", signed=True)


def p_text(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def p_global(module, name):
    return b"c%s\n%s\n" % (module.encode(), name.encode())


def p_tuple(*items):
    return b"(" + b"".join(items) + b"t"


def p_call(function, *arguments):
    return function + p_tuple(*arguments) + b"R"


def p_dict(items, start=b"}"):
    return start + b"(" + b"".join(p_text(k) + v for k, v in items.items()) + b"u"


def p_ordered(items):
    return p_dict(items, p_call(p_global("collections", "OrderedDict")))


def p_list(items):
    return b"](" + b"".join(items) + b"e"


def dump(value):
    return b"\x80\x02" + value + b"."


TORCH = {"F64": "DoubleStorage", "F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}


def p_storage(key, count, dtype="F32", *view):
    return p_tuple(p_text("storage"), p_global("torch", TORCH[dtype]), p_text(key), p_text("cpu"), p_int(count), *view) + b"Q"


def p_tensor(storage, offset, size, stride):
    return p_call(p_global("torch._utils", "_rebuild_tensor_v2"), storage, p_int(offset), p_tuple(*map(p_int, size)), p_tuple(*map(p_int, stride)), b"\x89", p_call(p_global("collections", "OrderedDict")))


def p_parameter(tensor):
    return p_call(p_global("torch._utils", "_rebuild_parameter"), tensor, b"\x88", p_call(p_global("collections", "OrderedDict")))


def strides(shape):
    return [elements(shape[i + 1:]) for i in range(len(shape))]


def plain(tensors, dtype="F32", view=()):
    """One storage a tensor: ({name: pickled tensor}, {key: (count, bytes)})."""
    out, storages = {}, {}
    for i, (name, (shape, values)) in enumerate(tensors.items()):
        storages[str(i)] = (len(values), packed(values, dtype))
        out[name] = p_tensor(p_storage(str(i), len(values), dtype, *view), 0, shape, strides(shape))
    return out, storages


def transposed(tensors, view=()):
    """Matrices lie column by column, with three numbers before them and a column to spare: no tensor of two dimensions is contiguous."""
    out, storages = {}, {}
    for i, (name, (shape, values)) in enumerate(tensors.items()):
        if len(shape) == 2:
            rows, cols = shape
            values = [9.0] * 3 + sum(([values[r * cols + c] for r in range(rows)] + [9.0] for c in range(cols)), [])
            offset, stride = 3, (1, rows + 1)
        else:
            offset, stride = 0, (1,)
        storages[str(i)] = (len(values), packed(values))
        out[name] = p_tensor(p_storage(str(i), len(values), "F32", *view), offset, shape, stride)
    return out, storages


def shared(tensors, view=()):
    """All tensors in one storage."""
    out, values = {}, []
    total = sum(len(v) for _, v in tensors.values())
    for name, (shape, v) in tensors.items():
        out[name] = p_tensor(p_storage("7", total, "F32", *view), len(values), shape, strides(shape))
        values += v
    return out, {"7": (total, packed(values))}


def zipped(pickle, storages, byteorder=b"little", compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        if byteorder:
            archive.writestr("archive/byteorder", byteorder)
        for key, (_, data) in storages.items():
            archive.writestr("archive/data/" + key, data)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


MAGIC = 0x1950a86a20f9469cfc6c


def legacy(pickle, storages, magic=MAGIC, little=b"\x88"):
    system = p_dict({"protocol_version": p_int(1001), "little_endian": little})
    keys = p_list([p_text(k) for k in storages])
    return dump(p_int(magic)) + dump(p_int(1001)) + dump(system) + pickle + dump(keys) + b"".join(struct.pack("<q", n) + data for n, data in storages.values())


# ---- running ----

CONFIG = {"architectures": ["BertForTokenClassification"], "model_type": "bert", "num_hidden_layers": L, "hidden_size": C, "num_attention_heads": H, "intermediate_size": F,
          "max_position_embeddings": P, "type_vocab_size": Y, "vocab_size": V, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0}
folder = tempfile.mkdtemp()
MARK = os.path.join(folder, "mark")  # what malicious pickles try to make
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if not k.startswith("HF_")}, "XDG_CACHE_HOME": os.path.join(folder, "cache"), "NO_PROXY": "*", "no_proxy": "*"}
made = 0


def directory(files, config=CONFIG, vocabulary=PIECES):
    """A new checkpoint directory: files are {name: bytes}."""
    global made
    made += 1
    path = os.path.join(folder, "source%d" % made)
    os.mkdir(path)
    contents = {"config.json": config if isinstance(config, bytes) else json.dumps(config).encode(), **files}
    if vocabulary:
        contents["vocab.txt"] = "\n".join(vocabulary).encode() + b"\n"
    for name, content in contents.items():
        with open(os.path.join(path, name), "wb") as file:
            file.write(content)
    return path


def forked(arguments):
    """export.py in a child of this process, which saves starting Python anew for each of two hundred sources."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as message:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os.dup2(output.fileno(), 1)
            os.dup2(message.fileno(), 2)
            os.chdir(folder)
            sys.argv = ["export.py"] + arguments
            try:
                code = export.main()
            except BaseException:
                code = 1
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        message.seek(0)
        return subprocess.CompletedProcess(arguments, code, output.read(), message.read())


def run(source, out=None, environment=None):
    out = out or os.path.join(folder, "out", "flat.safetensors")
    if environment is None:
        return forked([source, "-o", out])
    command = [sys.executable, EXPORT, source, "-o", out]
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, cwd=folder, env={**ENVIRONMENT, **environment})
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, -1, b"", b"ran over its time")


def read_flat(path):
    with open(path, "rb") as file:
        content = file.read()
    n, = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8:8 + n]), content[8 + n:]
    return header.pop("__metadata__"), {k: (t["shape"], data[slice(*t["data_offsets"])]) for k, t in header.items()}, data


def accept(what, source, wanted=None, said=(), environment=None):
    """The export succeeds and holds exactly `wanted`; returns its content hash."""
    out = os.path.join(folder, "out", "flat.safetensors")
    done = run(source, environment=environment)
    message = done.stderr.decode("utf-8", "replace")
    check(done.returncode == 0 and done.stdout == b"", "%s: exit %d: %s" % (what, done.returncode, message[-500:]))
    check(all(s in message for s in said), "%s: should say %s: %s" % (what, said, message))
    if done.returncode:
        return None
    meta, tensors, data = read_flat(out)
    check(os.listdir(os.path.dirname(out)) == [os.path.basename(out)], "%s: left behind %s" % (what, os.listdir(os.path.dirname(out))))
    check(meta["content_sha256"] == hashlib.sha256(data).hexdigest(), "%s: the content hash is not that of the data" % what)
    if wanted is not None:
        model = {k: v for k, v in tensors.items() if not k.startswith("tokenizer.")}
        wrong = sorted(k for k in set(wanted) | set(model) if wanted.get(k) != model.get(k))
        check(not wrong, "%s: wrong tensors %s" % (what, wrong[:5]))
    return meta["content_sha256"]


def refuse(what, source, *words, code=1, out=None, environment=None):
    """Exit `code`, one line that holds the words, nothing run and nothing written."""
    shutil.rmtree(os.path.join(folder, "out"))
    os.mkdir(os.path.join(folder, "out"))
    done = run(source, out, environment)
    lines = [l for l in done.stderr.decode("utf-8", "replace").splitlines() if not l.startswith("warning: ")]
    shown = "%s: exit %d %s" % (what, done.returncode, lines[-3:])
    check(done.returncode == code, "wanted %d, %s" % (code, shown))
    check(len(lines) == 1 and lines[0].startswith("export.py: ") and all(w in lines[0] for w in words), "wanted one line with %s, %s" % (words, shown))
    check(not os.path.exists(MARK), "%s: code of the file's choosing was run" % what)
    check(os.listdir(os.path.join(folder, "out")) == [], "%s: left behind %s" % (what, os.listdir(os.path.join(folder, "out"))))


# ---- the tests ----

BERT = weights()
INDEX = json.dumps({"metadata": {}, "weight_map": {name: "part-%d.%s" % (i % 3, "%s") for i, name in enumerate(BERT)}})


def shards(kind, pack):
    """The three shards of the weights and their index."""
    files = {"part-%d.%s" % (s, kind): pack({name: t for i, (name, t) in enumerate(BERT.items()) if i % 3 == s}) for s in range(3)}
    return {**files, ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin") + ".index.json": INDEX.replace("%s", kind).encode()}


def containers():
    wanted = flat_tensors(BERT, "bert.")
    nothing = (b"N",)
    tensors, storages = plain(BERT)
    old, old_storages = plain(BERT, view=nothing)
    parameters = {k: p_parameter(v) for k, v in tensors.items()}
    metadata = p_ordered(tensors) + p_dict({"_metadata": p_ordered({"": p_dict({"version": p_int(1)})})}) + b"b"
    sources = {
        "safetensors": {"model.safetensors": safetensors(BERT)},
        "safetensors in another order": {"model.safetensors": safetensors(dict(reversed(BERT.items())))},
        "sharded safetensors": shards("safetensors", safetensors),
        "F16": {"model.safetensors": safetensors(BERT, "F16")},
        "BF16": {"model.safetensors": safetensors(BERT, "BF16")},
        "F64": {"model.safetensors": safetensors(BERT, "F64")},
        "zip": {"pytorch_model.bin": zipped(dump(p_ordered(tensors)), storages)},
        "zip without byteorder": {"pytorch_model.bin": zipped(dump(p_ordered(tensors)), storages, None)},
        "zip with deflated members": {"pytorch_model.bin": zipped(dump(p_ordered(tensors)), storages, b"little", zipfile.ZIP_DEFLATED)},
        "zip, a plain dictionary": {"pytorch_model.bin": zipped(dump(p_dict(tensors)), storages)},
        "zip with _metadata": {"pytorch_model.bin": zipped(dump(metadata), storages)},
        "zip of parameters": {"pytorch_model.bin": zipped(dump(p_ordered(parameters)), storages)},
        "zip, nested": {"pytorch_model.bin": zipped(dump(p_dict({"epoch": p_int(3), "state_dict": p_ordered(tensors)})), storages)},
        "zip, columns first": {"pytorch_model.bin": (lambda t, s: zipped(dump(p_ordered(t)), s))(*transposed(BERT))},
        "zip, one storage": {"pytorch_model.bin": (lambda t, s: zipped(dump(p_ordered(t)), s))(*shared(BERT))},
        "sharded zip": shards("bin", lambda part: (lambda t, s: zipped(dump(p_ordered(t)), s))(*plain(part))),
        "legacy": {"pytorch_model.bin": legacy(dump(p_ordered(old)), old_storages)},
        "legacy, storages in another order": {"pytorch_model.bin": legacy(dump(p_ordered(old)), dict(reversed(old_storages.items())))},
        "legacy of parameters, nested": {"pytorch_model.bin": legacy(dump(p_dict({"state_dict": p_ordered({k: p_parameter(v) for k, v in old.items()})})), old_storages)},
        "legacy, columns first": {"pytorch_model.bin": (lambda t, s: legacy(dump(p_ordered(t)), s))(*transposed(BERT, nothing))},
        "legacy, one storage": {"pytorch_model.bin": (lambda t, s: legacy(dump(p_ordered(t)), s))(*shared(BERT, nothing))},
    }
    for dtype in ("F16", "BF16", "F64"):
        sources["zip " + dtype] = {"pytorch_model.bin": (lambda t, s: zipped(dump(p_ordered(t)), s))(*plain(BERT, dtype))}
    hashes = {what: accept(what, directory(files), wanted) for what, files in sources.items()}
    check(len(set(hashes.values())) == 1, "the content hashes differ: %s" % hashes)
    both = directory({"model.safetensors": safetensors(BERT), "pytorch_model.bin": b"not read"})
    accept("safetensors beside a pickle", both, wanted)


def flat_file():
    path = directory({**shards("safetensors", safetensors)})
    accept("the flat file", path, flat_tensors(BERT, "bert."), ["lacks 100 of the rows"])
    flat = os.path.join(folder, "out", "flat.safetensors")
    meta, tensors, _ = read_flat(flat)
    digest = hashlib.sha256()
    for s in range(3):
        with open(os.path.join(path, "part-%d.safetensors" % s), "rb") as file:
            digest.update(file.read())
    check(meta["source_sha256"] == digest.hexdigest(), "the source's hash is not that of its weight files in name order")
    check(meta["format"] == "prompt-flat-1" and meta["architecture"] == "BertForTokenClassification" and meta["family"] == "bert" and meta["new_token_base"] == str(V), "metadata %s" % meta)
    check(all(json.loads(meta["config"]).get(k) == v for k, v in CONFIG.items()), "the configuration is not whole: %s" % meta["config"])
    check(tensors["tokenizer.pieces"][1] == "".join(PIECES).encode(), "the tokenizer's pieces: %r" % tensors["tokenizer.pieces"][1])
    done = subprocess.run([PROGRAM, "classify", "--json", "-m", flat], input=b"the foxes run.", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check(done.returncode == 0 and [p["piece"] for p in json.loads(done.stdout or b"[]")] == ["[CLS]", "the", "fox", "##es", "run", ".", "[SEP]"], "lingua2 on it: %d %r" % (done.returncode, done.stderr))


def new_rows():
    config = {**CONFIG, "vocab_size": V + NEW}
    for kept in (100, 37, 1, 0):
        source = weights(rows=V + kept)
        accept("%d rows [NEWi]" % kept, directory({"model.safetensors": safetensors(source)}, config), flat_tensors(source, "bert.", V + kept, kept),
               [] if kept == 100 else ["lacks %d of the rows" % (100 - kept)])
    check(read_flat(os.path.join(folder, "out", "flat.safetensors"))[0]["new_token_base"] == str(V), "[NEW0] follows the vocabulary")
    source = weights(rows=V + 200)  # padded
    accept("a padded embedding", directory({"model.safetensors": safetensors(source)}), flat_tensors(source, "bert.", V + 200, 100))
    refuse("fewer rows than pieces", directory({"model.safetensors": safetensors(weights(rows=V - 1))}), "%d pieces" % V, "%d rows" % (V - 1))
    accept("no tokenizer", directory({"model.safetensors": safetensors(BERT)}, vocabulary=None), flat_tensors(BERT, "bert."), ["warning: no tokenizer"])


def xlmr():
    pieces = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u2581the", -1.0], ["\u2581", -2.0], ["f", -3.0], ["ox", -3.0], ["<mask>", 0.0]]
    added = [{"id": i, "content": pieces[i][0], "special": True, "lstrip": i == 8} for i in (0, 1, 2, 3, 8)]
    tokenizer = {"added_tokens": added, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="}, "pre_tokenizer": {"type": "Metaspace"}, "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces}}
    source = weights("roberta.", len(pieces))
    config = {**CONFIG, "architectures": ["XLMRobertaForTokenClassification"], "model_type": "xlm-roberta", "pad_token_id": 1, "vocab_size": len(pieces)}
    wanted = flat_tensors(source, "roberta.")
    t, s = plain(source)
    for files in ({"model.safetensors": safetensors(source)}, {"pytorch_model.bin": zipped(dump(p_ordered(t)), s)}):
        accept("XLM-R", directory({**files, "tokenizer.json": json.dumps(tokenizer).encode()}, config, None), wanted)
    flat = os.path.join(folder, "out", "flat.safetensors")
    check(read_flat(flat)[0]["family"] == "xlm-roberta", "the family of XLM-R")
    done = subprocess.run([PROGRAM, "classify", "--json", "-m", flat], input=b"the fox", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check(done.returncode == 0 and [p["piece"] for p in json.loads(done.stdout or b"[]")] == ["<s>", "\u2581the", "\u2581", "f", "ox", "</s>"], "lingua2 on XLM-R: %d %r %r" % (done.returncode, done.stdout, done.stderr))
    extra = {**BERT, "bert.pooler.dense.weight": ((C, C), numbers("pooler", C * C))}
    accept("a pooler", directory({"model.safetensors": safetensors(extra)}), flat_tensors(BERT, "bert."), ["ignored: bert.pooler.dense.weight"])


def number_types():
    def one(dtype, raw):
        """The weights with the classifier's bias given by its bytes."""
        source = safetensors({**BERT, "classifier.bias": ((0,), [])}, "F32", lambda h: h.update({"classifier.bias": {"dtype": dtype, "shape": [2], "data_offsets": [total, total + len(raw)]}}))
        return directory({"model.safetensors": source + raw})
    total = sum(4 * len(v) for name, (_, v) in BERT.items() if name != "classifier.bias")
    wide = [65504.0, 2.0**-24, -2.0**-14, 0.0, -0.0, float("inf"), 1 + 2.0**-10, 5.5e-8]
    for dtype, raws in (("F16", [struct.pack("<2e", *wide[i:i + 2]) for i in range(0, 8, 2)]), ("BF16", [b"\x80\x7f\x80\xff", b"\x01\x00\x01\x80", b"\xc1\x7f\x7f\x7f"]),
                        ("F64", [struct.pack("<2d", *v) for v in ((2.0**-149, -2.0**127), (1 + 2.0**-23, -0.0), (float("inf"), float("-inf")))])):
        for raw in raws:
            values = struct.unpack("<2e" if dtype == "F16" else "<2d", raw) if dtype != "BF16" else ()
            want = b"".join(b"\0\0" + raw[i:i + 2] for i in (0, 2)) if dtype == "BF16" else struct.pack("<2f", *values)
            accept("%s %r" % (dtype, raw), one(dtype, raw), {**flat_tensors(BERT, "bert."), "classifier.bias": ([2], want)})
    for value in (1e300, 0.1, 2.0**-150, 1 + 2.0**-24, 3.5e38):
        refuse("F64 %g" % value, one("F64", struct.pack("<2d", 1.0, value)), "classifier.bias", "F64", "exactly")
    for dtype, size in (("I64", 8), ("U8", 1), ("F8_E4M3", 1), ("F4", 1)):
        refuse(dtype, one(dtype, bytes(2 * size)), "classifier.bias", dtype)


def changed(**rows):
    """A change of the safetensors header: what the classifier's bias says of itself."""
    return lambda header: header["classifier.bias"].update(rows)


def damaged_safetensors():
    whole = safetensors(BERT)
    n, = struct.unpack("<Q", whole[:8])
    start, end = json.loads(whole[8:8 + n])["classifier.bias"]["data_offsets"]
    cases = {"empty": b"", "7 bytes": whole[:7], "no data": whole[:8 + n], "half a header": whole[:8 + n // 2], "one byte short": whole[:-1], "a byte too many": whole + b"x", "header length 2^63": struct.pack("<Q", 1 << 63) + whole[8:],
             "no JSON": struct.pack("<Q", 4) + b"{{{{", "JSON is a list": struct.pack("<Q", 2) + b"[]", "no UTF-8": struct.pack("<Q", 4) + b"{\"\xff\"", "deep JSON": struct.pack("<Q", 200000) + b"[" * 200000}
    rows = {"offsets beyond the file": changed(data_offsets=[start, end + 4], shape=[3]), "offsets turned round": changed(data_offsets=[end, start]), "negative offsets": changed(data_offsets=[-8, 0]),
            "offsets no numbers": changed(data_offsets=["a", "b"]), "fractions": changed(data_offsets=[start + 0.0, end + 0.0]), "three offsets": changed(data_offsets=[0, 1, 2]), "no offsets": changed(data_offsets=None),
            "offsets shorter than the shape": changed(data_offsets=[start, end - 4]), "a shape beyond any size": changed(shape=[1 << 62, 1 << 62]), "a negative shape": changed(shape=[-1, -2]),
            "a shape of fractions": changed(shape=[2.0]), "a shape of texts": changed(shape="2"), "dtype no text": changed(dtype=[]), "no dtype": lambda h: h["classifier.bias"].pop("dtype") and None,
            "a tensor that is a text": lambda h: h.update({"classifier.bias": "x"}), "a tensor that is a list": lambda h: h.update({"classifier.bias": []})}
    for what, change in rows.items():
        cases[what] = safetensors(BERT, "F32", change)
    cases["overlap"] = safetensors(BERT, "F32", lambda h: h["classifier.bias"].update(data_offsets=[0, 8]))
    for what, content in cases.items():
        refuse("safetensors, " + what, directory({"model.safetensors": content}))


def shapes():
    missing = {k: v for k, v in BERT.items() if k not in ("bert.encoder.layer.1.output.dense.bias", "classifier.weight")}
    refuse("two missing", directory({"model.safetensors": safetensors(missing)}), "lacks 2 tensors", "bert.encoder.layer.1.output.dense.bias", "classifier.weight")
    for end, shape in (("classifier__weight", (3, C)), ("classifier__weight", (2, C + 1)), ("classifier__bias", (2, 1)), ("layer__0__attention__self__query__weight", (C, C + 1)), ("position_embeddings__weight", (P + 1, C)),
                       ("word_embeddings__weight", (V, C + 1)), ("word_embeddings__weight", (V * C,)), ("embeddings__LayerNorm__bias", ()), ("layer__1__intermediate__dense__weight", (C, F))):
        refuse("shape of " + end, directory({"model.safetensors": safetensors(weights(**{end: shape}))}), end.replace("__", "."), "shape %s" % list(shape))


def configurations():
    good = {"model.safetensors": safetensors(BERT)}
    labels = {"0": "drop", "1": "keep", "2": "more"}
    for change, word in (({"id2label": labels}, "3 labels"), ({"num_labels": 5}, "5 labels"), ({"architectures": ["OPTModel"]}, "OPTModel"), ({"architectures": None}, "missing"), ({"hidden_size": 0}, "hidden_size"),
                         ({"hidden_size": "4"}, "hidden_size"), ({"num_hidden_layers": 3}, "lacks 16 tensors"), ({"hidden_act": "mish"}, "mish"), ({"position_embedding_type": "relative_key"}, "relative_key"),
                         ({"is_decoder": True}, "decoder"), ({"id2label": 3}, ""), ({"architectures": 3}, ""), ({"intermediate_size": 7}, "intermediate")):
        refuse("config %s" % change, directory(good, {**CONFIG, **change}), word)
    for text in (b"[]", b"3", b"", b"{", b"\xff\xfe", b"null", b"[" * 100000):
        refuse("config.json %r" % text[:9], directory(good, text))
    refuse("no weights", directory({}), "no model.safetensors")
    refuse("no config", folder, "config.json")
    refuse("no directory", "./not-there", "not-there")
    refuse("index of shards outside", directory({"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}), "outside")
    refuse("index names no file", directory({"model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'}), "x.safetensors")
    for text in (b"[]", b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}', b"{}", b"{"):
        refuse("index %r" % text, directory({"model.safetensors.index.json": text}))


def malicious_pickles():
    tensors, storages = plain(BERT)
    storage = p_storage("new", 4)
    mark = p_text("touch '%s'" % MARK)
    code = p_text("open(%r, 'w')" % MARK)
    global_of = {"os.system": p_call(p_global("os", "system"), mark), "posix.system": p_call(p_global("posix", "system"), mark), "builtins.eval": p_call(p_global("builtins", "eval"), code),
                 "builtins.exec": p_call(p_global("builtins", "exec"), code), "__builtin__.eval": p_call(p_global("__builtin__", "eval"), code), "subprocess": p_call(p_global("subprocess", "call"), p_list([p_text("touch"), p_text(MARK)])),
                 "a nested global": b"\x80\x04" + p_text("torch._utils") + p_text("os.system") + b"\x93" + p_tuple(mark) + b"R", "the way through a module of ours": p_call(p_global("export", "os.system"), mark),
                 "getattr": p_call(p_call(p_global("builtins", "getattr"), p_global("collections", "OrderedDict"), p_text("__subclasses__"))), "a torch class": p_call(p_global("torch.nn.modules.linear", "Linear"), p_int(3)),
                 "INST": b"(" + mark + b"ios\nsystem\n", "OBJ": b"(" + p_global("os", "system") + mark + b"o", "NEWOBJ": p_global("os", "system") + p_tuple(mark) + b"\x81"}
    odd = {"REDUCE of a number": p_int(3) + p_tuple() + b"R", "REDUCE of a text": p_text("os.system") + p_tuple(mark) + b"R", "REDUCE of a storage": p_call(storage, mark), "REDUCE of a storage type": p_call(p_global("torch", "FloatStorage"), p_int(3)),
           "REDUCE of a tensor": p_call(tensors["classifier.bias"], p_int(3)), "a tensor of no storage": p_tensor(p_int(3), 0, (2,), (1,)), "sizes below 0": p_tensor(storage, 0, (-2,), (1,)), "strides below 0": p_tensor(storage, 3, (2,), (-1,)),
           "beyond its storage": p_tensor(storage, 3, (2,), (1,)), "far beyond": p_tensor(storage, 0, (1 << 70,), (1,)), "a stride too many": p_tensor(storage, 0, (2,), (1, 1)), "sizes that are texts": p_call(p_global("torch._utils", "_rebuild_tensor_v2"), storage, p_int(0), p_text("ab"), p_text("cd")),
           "no arguments": p_call(p_global("torch._utils", "_rebuild_tensor_v2")), "BUILD of a function": p_global("torch._utils", "_rebuild_tensor_v2") + p_tuple(b"N", p_dict({"__code__": p_int(3)})) + b"b", "a storage of no type": p_tuple(p_text("storage"), p_int(3), p_text("0"), p_text("cpu"), p_int(4)) + b"Q",
           "a storage in three words": p_tuple(p_text("storage"), p_text("0"), p_int(4)) + b"Q", "a storage's view": p_tensor(p_storage("new", 4, "F32", p_tuple(p_text("1"), p_int(2), p_int(4))), 0, (2,), (1,)), "an extension": b"\x82\x01", "a stack that is empty": b"00000",
           "a memo that is empty": b"h\x05", "an opcode that is none": b"\xff", "a tuple without mark": b"t", "2^60 bytes": b"\x8e" + struct.pack("<Q", 1 << 60), "2^63 bytes": b"\x8e" + struct.pack("<Q", 1 << 63), "a number of 2^31 digits": b"\x8b" + struct.pack("<i", -5)}
    for what, value in {**global_of, **odd}.items():
        pickled = dump(p_dict({**tensors, "x": value}))
        refuse("zip, " + what, directory({"pytorch_model.bin": zipped(pickled, storages)}))
        if what in ("os.system", "builtins.eval", "REDUCE of a number", "INST", "2^60 bytes"):
            refuse("legacy, " + what, directory({"pytorch_model.bin": legacy(pickled, storages)}))
            refuse("legacy, in front, " + what, directory({"pytorch_model.bin": dump(value) + legacy(dump(p_dict(tensors)), storages)}))
            refuse("legacy, as a key, " + what, directory({"pytorch_model.bin": legacy(dump(p_dict(tensors)), {}) [:-len(dump(p_list([])))] + dump(p_list([value]))}))
    refuse("names what it refused", directory({"pytorch_model.bin": zipped(dump(p_dict({"x": global_of["os.system"]})), storages)}), "os.system", "nothing was run")
    refuse("a dictionary in itself", directory({"pytorch_model.bin": zipped(dump(b"}q\x00" + p_text("state_dict") + b"h\x00s"), storages)}))


def damaged_pickles():
    tensors, storages = plain(BERT)
    pickled = dump(p_dict(tensors))
    whole, old = zipped(pickled, storages), legacy(pickled, storages)
    at = whole.index(packed(BERT["classifier.bias"][1])) + 3
    cases = {"empty": b"", "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "half a zip": whole[:len(whole) // 2], "a zip without its end": whole[:-30], "a flipped bit in a storage": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:],
             "big-endian zip": zipped(pickled, storages, b"big"), "a storage is missing": zipped(pickled, {k: v for k, v in storages.items() if k != "3"}), "a storage is short": zipped(pickled, {**storages, "3": (0, b"")}),
             "no dictionary": zipped(dump(p_int(3)), {}), "a damaged pickle": zipped(pickled[:-40], storages), "other magic": legacy(pickled, storages, MAGIC + 1), "big-endian legacy": legacy(pickled, storages, little=b"\x89"),
             "legacy, a storage nobody has": legacy(pickled, {**storages, "999": (1, b"1234")}), "legacy, a storage is missing": legacy(pickled, {k: v for k, v in storages.items() if k != "3"}),
             "legacy, a length below 0": legacy(pickled, {**storages, "0": (-1, b"")}), "legacy, a length beyond the file": legacy(pickled, {**storages, "0": (1 << 62, b"")}), "legacy, a short storage": legacy(pickled, {**storages, "0": (1, b"1234")})}
    for i in range(0, len(old), len(old) // 12):
        cases["legacy cut at %d" % i] = old[:i]
    cases["legacy cut by one"] = old[:-1]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", b"x")
    cases["another zip"] = file.getvalue()
    for what, content in cases.items():
        refuse("pickle, " + what, directory({"pytorch_model.bin": content}))


def outputs():
    source = directory({"model.safetensors": safetensors(BERT)})
    out = os.path.join(folder, "out")
    refuse("a folder that is not there", source, "not-there", code=4, out=os.path.join(out, "not-there", "x"))
    refuse("the output is a directory", source, code=4, out=folder)
    refuse("a folder that is a file", source, code=4, out=os.path.join(source, "config.json", "x"))
    refuse("a device", source, code=4, out="/dev/null")
    check(not os.path.isfile("/dev/null"), "/dev/null was replaced")
    check(sorted(os.listdir(source)) == ["config.json", "model.safetensors", "vocab.txt"], "beside the source: %s" % os.listdir(source))
    check([n for n in os.listdir(folder) if ".tmp" in n] == [], "left behind: %s" % os.listdir(folder))
    target, link = os.path.join(out, "old"), os.path.join(folder, "link")
    with open(target, "w") as file:
        file.write("old")
    os.symlink(target, link)
    done = run(source, link)
    check(done.returncode == 0 and os.path.islink(link) and os.path.getsize(target) > 1000, "through a symbolic link: exit %d" % done.returncode)
    bad = directory({"model.safetensors": safetensors(BERT, "F32", changed(dtype="I64", shape=[1]))})
    before = open(target, "rb").read()
    done = run(bad, target)
    check(done.returncode == 1 and open(target, "rb").read() == before and os.listdir(out) == ["old"], "a failed export leaves the old file: exit %d, %s" % (done.returncode, os.listdir(out)))
    os.unlink(target)
    done = subprocess.run([sys.executable, EXPORT, source], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check(done.returncode == 2 and b"-o" in done.stderr, "without -o: %d" % done.returncode)


# ---- the hub ----

class Hub:
    """An HTTP server on a port of its own. files: {path: bytes}; status: {path: code}; redirect: {path: address}; broken: {path: at how many bytes each of the coming answers breaks off}."""
    def __init__(self):
        self.files, self.status, self.redirect, self.broken, self.ranges, self.log = {}, {}, {}, {}, True, []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                hub.log.append((self.path, dict(self.headers)))
                hub.answer(self)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, to):
        path, content = to.path, self.files.get(to.path)
        code = self.status.get(path, 302 if path in self.redirect else 404 if content is None else 200)
        if code != 200:
            to.send_response(code)
            if code == 302:
                to.send_header("Location", self.redirect[path])
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        wanted, start = re.fullmatch(r"bytes=(\d+)-", to.headers.get("Range") or ""), 0
        if wanted and self.ranges:
            start = int(wanted.group(1))
            if start >= len(content):
                to.send_response(416)
                to.send_header("Content-Range", "bytes */%d" % len(content))
                to.send_header("Content-Length", "0")
                to.end_headers()
                return
            to.send_response(206)
            to.send_header("Content-Range", "bytes %d-%d/%d" % (start, len(content) - 1, len(content)))
        else:
            to.send_response(200)
        to.send_header("Content-Length", str(len(content) - start))
        to.end_headers()
        stop = self.broken.get(path) and self.broken[path].pop(0)
        to.wfile.write(content[start:start + stop] if stop else content[start:])

    def of(self, path):
        """The headers of the requests for a path."""
        return [headers for p, headers in self.log if p.endswith(path)]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


AT = "/org/tiny/resolve/main/"


def hub_of(files):
    hub = Hub()
    hub.files = {AT + "config.json": json.dumps(CONFIG).encode(), AT + "vocab.txt": "\n".join(PIECES).encode(), **{AT + k: v for k, v in files.items()}}
    return hub


def fresh_cache():
    shutil.rmtree(os.path.join(folder, "cache"), ignore_errors=True)


def at(hub, token=None, host="127.0.0.1"):
    return {"HF_ENDPOINT": "http://%s:%d" % (host, hub.port), **({"HF_TOKEN": token} if token else {})}


def downloads():
    wanted, whole = flat_tensors(BERT, "bert."), safetensors(BERT)
    expected = accept("from a directory", directory({"model.safetensors": whole}), wanted)

    def good(what, hub, token=None):
        check(accept(what, "org/tiny", wanted, environment=at(hub, token)) == expected, "%s: another content hash" % what)
        cached = os.listdir(os.path.join(folder, "cache", "lingua2", "org--tiny"))
        check(not [n for n in cached if n.endswith(".part")], "%s: the cache holds %s" % (what, cached))

    fresh_cache()
    hub = hub_of({"model.safetensors": whole})
    good("a hub id", hub)
    check(all("Authorization" not in headers for _, headers in hub.log), "a token was sent that nobody gave")
    seen = len(hub.log)
    good("from the cache", hub)
    check(not [p for p, _ in hub.log[seen:] if p.endswith(("safetensors", "config.json")) and "tokenizer" not in p], "downloaded again: %s" % [p for p, _ in hub.log[seen:]])
    hub.close()

    for kind, files in (("sharded safetensors", shards("safetensors", safetensors)), ("sharded pickles", shards("bin", lambda part: (lambda t, s: zipped(dump(p_ordered(t)), s))(*plain(part)))),
                        ("a pickle", {"pytorch_model.bin": (lambda t, s: zipped(dump(p_ordered(t)), s))(*plain(BERT))})):
        fresh_cache()
        hub = hub_of(files)
        good("hub, " + kind, hub)
        hub.close()

    fresh_cache()  # the token goes to the hub and to no other host or port
    hub, other = hub_of({"model.safetensors": whole}), Hub()
    other.files["/cdn"] = whole
    hub.redirect = {AT + "model.safetensors": "http://127.0.0.1:%d/cdn" % other.port, AT + "vocab.txt": "http://127.0.0.1:%d/moved" % hub.port, AT + "config.json": "http://localhost:%d/config" % hub.port}
    hub.files.update({"/moved": hub.files[AT + "vocab.txt"], "/config": hub.files[AT + "config.json"]})
    good("a redirect", hub, "secret")
    check(all(h.get("Authorization") == "Bearer secret" for p, h in hub.log if p.startswith(AT)) and hub.of("/main/model.safetensors"), "the hub gets the token")
    check(hub.of("/moved") and all(h.get("Authorization") == "Bearer secret" for h in hub.of("/moved")), "a redirect within the hub keeps the token")
    check(hub.of("/config") and not any("Authorization" in h for h in hub.of("/config")), "another host got the token")
    check(other.of("/cdn") and not any("Authorization" in h for h in other.of("/cdn")), "another port got the token")

    fresh_cache()  # redirected, broken off, resumed
    other.log.clear()
    other.broken = {"/cdn": [len(whole) // 2, 100]}
    good("a broken redirect", hub, "secret")
    check([h.get("Range") for h in other.of("/cdn")] == [None, "bytes=%d-" % (len(whole) // 2), "bytes=%d-" % (len(whole) // 2 + 100)], "ranges asked: %s" % other.of("/cdn"))
    hub.close()
    other.close()

    fresh_cache()
    hub = hub_of({"model.safetensors": whole})
    hub.broken = {AT + "model.safetensors": [len(whole) // 3] + [64] * 6}
    good("a line that breaks seven times, each time further on", hub)
    check(len(hub.of("/main/model.safetensors")) == 8, "%d requests" % len(hub.of("/main/model.safetensors")))
    hub.close()

    fresh_cache()
    hub = hub_of({"model.safetensors": whole})
    hub.ranges, hub.broken = False, {AT + "model.safetensors": [len(whole) // 2]}
    good("a server without ranges", hub)
    check([("Range" in h) for h in hub.of("/main/model.safetensors")] == [False, True], "asked with a range: %s" % hub.of("/main/model.safetensors"))
    hub.close()

    for have, what in ((whole, "a download that only lacked its name"), (whole + b"more", "a partial file longer than the file"), (b"", "an empty partial file")):
        fresh_cache()
        cache = os.path.join(folder, "cache", "lingua2", "org--tiny")
        os.makedirs(cache)
        with open(os.path.join(cache, "model.safetensors.part"), "wb") as file:
            file.write(have)
        hub = hub_of({"model.safetensors": whole})
        good(what, hub)
        hub.close()


def failed_downloads():
    whole = safetensors(BERT)
    for code, path, words in ((404, "config.json", ["config.json", "404", "is the name right?"]), (401, "config.json", ["401", "HF_TOKEN"]), (403, "model.safetensors", ["403", "HF_TOKEN", "model.safetensors"]),
                              (500, "model.safetensors", ["500"]), (404, "model.safetensors", ["no model.safetensors"])):
        fresh_cache()
        hub = hub_of({"model.safetensors": whole})
        hub.status[AT + path] = code
        refuse("%d for %s" % (code, path), "org/tiny", *words, environment=at(hub))
        hub.close()
    fresh_cache()
    hub = hub_of({k: v for k, v in shards("safetensors", safetensors).items() if k != "part-1.safetensors"})
    refuse("a shard is not there", "org/tiny", "part-1.safetensors", "404", environment=at(hub))
    hub.close()
    fresh_cache()
    hub = hub_of({"model.safetensors": whole})
    hub.files[AT + "config.json"] = b"<html>"
    refuse("a config that is none", "org/tiny", environment=at(hub))
    environment = at(hub)
    hub.close()
    fresh_cache()
    refuse("nobody listens", "org/tiny", "cannot be downloaded", "again", code=4, environment=environment)


os.mkdir(os.path.join(folder, "out"))
for test in (containers, flat_file, new_rows, xlmr, number_types, damaged_safetensors, shapes, configurations, malicious_pickles, damaged_pickles, outputs, downloads, failed_downloads):
    before = checks.failed
    test()
    if checks.failed > before:
        print("    in " + test.__name__)
shutil.rmtree(folder)
sys.exit(finish())
