"""Hugging Face checkpoint -> one flat float32 file that lingua2 and mend read in place (docs/FORMAT.md). Python standard library alone.

usage: python3 export.py SOURCE -o FILE [-v]      SOURCE: a directory, or a hub id such as microsoft/llmlingua-2-xlm-roberta-large-meetingbank
       python3 export.py SOURCE --mend CKPT -o FILE [-v]      SOURCE: the distiller's base model, for its configuration and tokenizer; CKPT: the
                                                              MEND checkpoint (a file or its directory), whose tensors are named hypernet.*

Takes token classifiers (BERT, XLM-RoBERTa), GPT-2, T5 (whole or encoder) and MEND distillers of GPT-2 and T5.
Reads config.json; model.safetensors, sharded safetensors, pytorch_model.bin (zip and legacy) and its shards; the tokenizer files. A hub id is
downloaded with progress, resumed where it broke off, into $XDG_CACHE_HOME/lingua2; HF_ENDPOINT and HF_TOKEN are honoured. Pickles are read by a
reader that can make tensors and nothing else. F16 and BF16 widen exactly; F64 is taken only where float32 holds it exactly.
Exit 0 done, 1 bad input, 2 wrong usage, 4 input or output failed.
"""
import argparse
import array
import collections
import glob
import hashlib
import http.client
import io
import json
import mmap
import os
import pickle
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib

from export_tokenizer import tokenizer_tensors

NEW_TOKENS = 100
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish")


class Refused(Exception):
    """The source cannot be exported: the message says what is wrong and where."""


# What Python's readers of JSON, zip and pickle raise on damaged files.
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError, OverflowError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)


def damaged(path, why):
    return "%s: damaged: %s: %s" % (path, type(why).__name__, why)


# ---- what the flat file holds: (flat name, shape in letters, stored transposed), one table per architecture ----
# A checkpoint's Linear weights are [out, in] and are stored [in, out]; GPT-2's are [in, out] already. A matrix that is embedding and output
# head in one is stored [C, V], so that the head streams it.

def weight_and_bias(name, shape, transposed):
    return [(name + ".weight", shape, transposed), (name + ".bias", shape[:1] if transposed else shape[-1:], False)]


def classifier_table(L, **_):
    rows = [("embeddings.word_embeddings.weight", "VC", False), ("embeddings.position_embeddings.weight", "PC", False),
            ("embeddings.token_type_embeddings.weight", "YC", False)] + weight_and_bias("embeddings.LayerNorm", "C", False)
    for i in range(L):
        for name, shape in (("attention.self.query", "CC"), ("attention.self.key", "CC"), ("attention.self.value", "CC"), ("attention.output.dense", "CC"),
                            ("attention.output.LayerNorm", "C"), ("intermediate.dense", "FC"), ("output.dense", "CF"), ("output.LayerNorm", "C")):
            rows += weight_and_bias("encoder.layer.%d.%s" % (i, name), shape, len(shape) == 2)
    return rows + weight_and_bias("classifier", "KC", True)


def gpt2_table(L, tied, **_):
    rows = [("wte.weight", "VC", tied), ("wpe.weight", "PC", False)]
    for i in range(L):
        for name, shape in (("ln_1", "C"), ("attn.c_attn", "CQ"), ("attn.c_proj", "CC"), ("ln_2", "C"), ("mlp.c_fc", "CF"), ("mlp.c_proj", "FC")):
            rows += weight_and_bias("h.%d.%s" % (i, name), shape, False)
    return rows + weight_and_bias("ln_f", "C", False) + ([] if tied else [("lm_head.weight", "VC", True)])


def t5_attention(name):
    return [("%s.%s.weight" % (name, part), "CE" if part == "o" else "EC", True) for part in "qkvo"]


def t5_stack(stack, L, gated, cross):
    rows = [(stack + ".block.0.layer.0.SelfAttention.relative_attention_bias.weight", "RH", False)]
    for i in range(L):
        layer = "%s.block.%d.layer." % (stack, i)
        rows += t5_attention(layer + "0.SelfAttention") + [(layer + "0.layer_norm.weight", "C", False)]
        if cross:
            rows += t5_attention(layer + "1.EncDecAttention") + [(layer + "1.layer_norm.weight", "C", False)]
        last = layer + ("2" if cross else "1")
        rows += [(last + ".DenseReluDense.%s.weight" % w, "FC", True) for w in (("wi_0", "wi_1") if gated else ("wi",))]
        rows += [(last + ".DenseReluDense.wo.weight", "CF", True), (last + ".layer_norm.weight", "C", False)]
    return rows + [(stack + ".final_layer_norm.weight", "C", False)]


def t5_table(L, M, gated, tied, **_):
    head = [] if tied else [("lm_head.weight", "VC", True)]
    return [("shared.weight", "VC", tied)] + t5_stack("encoder", L, gated, False) + t5_stack("decoder", M, gated, True) + head


def t5_encoder_table(L, gated, **_):
    return [("shared.weight", "VC", False)] + t5_stack("encoder", L, gated, False)


# architecture: (table, prefix of its tensors in the checkpoint)
TABLES = {"BertForTokenClassification": (classifier_table, "bert."), "XLMRobertaForTokenClassification": (classifier_table, "roberta."),
          "GPT2LMHeadModel": (gpt2_table, "transformer."), "GPT2Model": (gpt2_table, ""), "T5ForConditionalGeneration": (t5_table, ""),
          "T5EncoderModel": (t5_encoder_table, "")}
WORDS = ("embeddings.word_embeddings.weight", "wte.weight", "shared.weight")  # the one that says how many pieces there are


def tensor_table(architecture, letters, sources, mend):
    """[(flat name, name in the checkpoint, shape, transposed)]; puts V, and v of a distiller, into letters."""
    make, prefix = TABLES[architecture]
    if mend:
        make, prefix = t5_encoder_table if make is t5_table else make, "hypernet."
    elif prefix and not any(name.startswith(prefix) for name in sources):
        prefix = ""
    rows = []
    for flat, shape, transposed in make(**letters):
        name = flat if flat.split(".")[0] in ("classifier", "lm_head") else prefix + flat
        if flat in WORDS:
            if name not in sources and prefix + "encoder.embed_tokens.weight" in sources:
                name = prefix + "encoder.embed_tokens.weight"
            found = sources[name].shape if name in sources else ()
            letters["V"] = found[0] if len(found) == 2 else 0
        rows.append((flat, name, tuple(letters[c] for c in shape), transposed))
    if mend:
        prompt, pooler = sources.get(prefix + "init_prompt_weight"), sources.get(prefix + "adap_pooler.dense.weight")
        v = prompt.shape[0] if prompt and len(prompt.shape) == 2 else 0
        rows.append(("init_prompt_weight", prefix + "init_prompt_weight", (v, letters["C"]), False))
        if pooler:
            out = pooler.shape[0] if len(pooler.shape) == 2 else 0
            rows += [("adap_pooler.dense.weight", prefix + "adap_pooler.dense.weight", (out, letters["C"]), True),
                     ("adap_pooler.dense.bias", prefix + "adap_pooler.dense.bias", (out,), False)]
    return rows


# ---- source tensors: each a name, dtype, shape and a way to get its little-endian bytes in C order ----

Source = collections.namedtuple("Source", "dtype shape read")
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def elements(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def safetensors_file(path):
    """{name: Source} of one safetensors file, mapped, every offset checked."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 8:
            raise Refused("%s: too short for a safetensors file" % path)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    n, = struct.unpack("<Q", data[:8])
    if n > size - 8 or n > 100 << 20:
        raise Refused("%s: the header's length %d does not fit the file" % (path, n))
    try:
        header = json.loads(data[8:8 + n].decode("utf-8"))
        header.pop("__metadata__", None)
        out, at = {}, 0
        for name, t in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = t["data_offsets"]
            if any(type(v) is not int or v < 0 for v in (start, end, *t["shape"])) or start != at or not start <= end <= size - 8 - n:
                raise Refused("%s: tensor %s: its offsets overlap another's, leave a gap or reach beyond the file" % (path, name))
            if t["dtype"] in SIZES and end - start != elements(t["shape"]) * SIZES[t["dtype"]]:
                raise Refused("%s: tensor %s: its offsets do not fit its shape" % (path, name))
            out[name], at = Source(t["dtype"], tuple(t["shape"]), lambda a=8 + n + start, b=8 + n + end: data[a:b]), end
        if at != size - 8 - n:
            raise Refused("%s: %d bytes follow the last tensor" % (path, size - 8 - n - at))
        return out
    except DAMAGED as why:
        raise Refused(damaged(path, why))


STORAGES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64", "IntStorage": "I32",
            "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL"}


class Storage:
    """Where a pickled tensor's numbers are: filled in once known."""
    def __init__(self, dtype, key, count):
        self.dtype, self.key, self.count, self.read = dtype, key, count, None


class StorageType:
    def __init__(self, dtype):
        self.dtype = dtype


def rebuild_tensor(storage, offset, size, stride, *rest):
    """torch._utils._rebuild_tensor_v2: a view of a storage, gathered into C order when read."""
    if not isinstance(storage, Storage) or not all(isinstance(v, int) and v >= 0 for v in (offset, *size, *stride)) or len(size) != len(stride):
        raise Refused("a pickled tensor with impossible sizes")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride)) if elements(size) else offset
    if elements(size) and last >= storage.count:
        raise Refused("a pickled tensor that reaches beyond its storage")

    def read():
        data, width = storage.read(), SIZES[storage.dtype]
        if len(data) < storage.count * width:
            raise Refused("a storage shorter than the pickle says")
        contiguous, expected = True, 1
        for n, s in zip(reversed(size), reversed(stride)):
            contiguous, expected = contiguous and (n == 1 or s == expected), expected * n
        if contiguous:
            return data[offset * width:(offset + elements(size)) * width]
        out = bytearray()

        def walk(depth, at):
            if depth == len(size):
                out.extend(data[at * width:(at + 1) * width])
                return
            for i in range(size[depth]):
                walk(depth + 1, at + i * stride[depth])
        walk(0, offset)
        return bytes(out)
    return Source(storage.dtype, tuple(size), read)


class TensorReader(pickle.Unpickler):
    """Builds dictionaries of tensors. Any other global that the pickle names ends it: nothing of the file's choosing is ever called."""
    def __init__(self, file, storages):
        super().__init__(file)
        self.storages = storages

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return lambda data, *rest: data
        if module in ("torch", "torch.storage") and name in STORAGES:
            return StorageType(STORAGES[name])
        raise Refused("the pickle wants %s.%s, which is no tensor: refused, nothing was run" % (module, name))

    def persistent_load(self, saved):
        if not isinstance(saved, tuple) or len(saved) < 5 or saved[0] != "storage" or not isinstance(saved[1], StorageType) or not isinstance(saved[4], int) or any(saved[5:]):
            raise Refused("the pickle names a storage in an unknown way")
        key = str(saved[2])
        if key not in self.storages:
            self.storages[key] = Storage(saved[1].dtype, key, saved[4])
        return self.storages[key]


def state_dict(value, path):
    for _ in range(4):  # no more, for a dictionary can hold itself
        if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
            value = value["state_dict"]
    if not isinstance(value, dict):
        raise Refused("%s: holds no dictionary of tensors" % path)
    return {k: v for k, v in value.items() if isinstance(v, Source)}


def zip_file(path):
    """torch.save since 1.6: a zip of data.pkl and one stored member per storage."""
    archive = zipfile.ZipFile(path)
    pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused("%s: a zip file without data.pkl" % path)
    root, storages = pickles[0][:-len("data.pkl")], {}
    if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
        raise Refused("%s: saved on a big-endian machine" % path)
    tensors = state_dict(TensorReader(io.BytesIO(archive.read(pickles[0])), storages).load(), path)
    for s in storages.values():
        s.read = lambda member=root + "data/" + s.key: archive.read(member)
    return tensors


def legacy_file(path):
    """torch.save before 1.6: pickles of magic, protocol, system, the object, the storage keys; then each storage's length and bytes."""
    with open(path, "rb") as file:
        storages = {}
        magic, protocol, system = (TensorReader(file, {}).load() for _ in range(3))
        if magic != 0x1950a86a20f9469cfc6c or protocol != 1001 or not isinstance(system, dict) or not system.get("little_endian"):
            raise Refused("%s: no PyTorch file of a little-endian machine" % path)
        tensors = state_dict(TensorReader(file, storages).load(), path)
        for key in TensorReader(file, {}).load():
            s = storages.get(str(key))
            count, = struct.unpack("<q", file.read(8))
            at = file.tell()
            if s is None or count < 0:
                raise Refused("%s: an unexpected storage" % path)
            s.read = lambda a=at, n=count * SIZES[s.dtype]: read_at(path, a, n)
            file.seek(count * SIZES[s.dtype], 1)
    return tensors


def read_at(path, at, n):
    with open(path, "rb") as file:
        file.seek(at)
        return file.read(n)


def weight_files(directory):
    """The files that hold the weights: safetensors before pickles, whole before sharded."""
    for whole, index in (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        if os.path.exists(os.path.join(directory, whole)):
            return [os.path.join(directory, whole)]
        if os.path.exists(os.path.join(directory, index)):
            with open(os.path.join(directory, index), encoding="utf-8") as file:
                names = sorted(set(json.load(file)["weight_map"].values()))
            if any(os.path.basename(n) != n for n in names):
                raise Refused("%s: names a shard outside of the directory" % index)
            return [os.path.join(directory, n) for n in names]
    raise Refused("%s: no model.safetensors, pytorch_model.bin or index of shards" % directory)


def load_sources(files):
    out = {}
    for path in files:
        if path.endswith(".safetensors"):
            out.update(safetensors_file(path))
            continue
        try:
            out.update(zip_file(path) if zipfile.is_zipfile(path) else legacy_file(path))
        except DAMAGED as why:
            raise Refused(damaged(path, why))
    return out


# ---- numbers ----

def half_table():
    """The float32 bits of every float16."""
    table = array.array("I")
    for h in range(65536):
        sign, exponent, fraction = h >> 15 << 31, h >> 10 & 31, h & 1023
        if exponent == 31:
            bits = 255 << 23 | fraction << 13
        elif exponent:
            bits = exponent + 112 << 23 | fraction << 13
        elif fraction:
            shift = 11 - fraction.bit_length()
            bits = 113 - shift << 23 | (fraction << shift & 1023) << 13
        else:
            bits = 0
        table.append(sign | bits)
    return table


HALF = []


def little(values):
    if sys.byteorder == "big":
        values.byteswap()
    return values


def float32(name, source):
    """The tensor as array('f'), exactly."""
    data = source.read()
    if source.dtype == "F32":
        return little(array.array("f", data))
    if source.dtype in ("F16", "BF16"):
        if not HALF:
            HALF.append(half_table())
        shorts = little(array.array("H", data))
        bits = array.array("I", map(HALF[0].__getitem__, shorts) if source.dtype == "F16" else (s << 16 for s in shorts))
        return array.array("f", bits.tobytes())
    if source.dtype == "F64":
        doubles = little(array.array("d", data))
        try:
            floats = array.array("f", doubles)
        except OverflowError:
            floats = None
        if floats is None or any(a != b and a == a for a, b in zip(floats, doubles)):
            raise Refused("tensor %s is F64 and float32 cannot hold it exactly" % name)
        return floats
    raise Refused("tensor %s has dtype %s: F32, F16, BF16 and exact F64 are taken" % (name, source.dtype))


def transpose(values, rows, cols):
    """[rows, cols] -> [cols, rows]"""
    out = array.array("f", bytes(4 * len(values)))
    for r in range(rows):
        out[r::rows] = values[r * cols:(r + 1) * cols]
    return out


def mean_row(values, rows, cols):
    return array.array("f", [sum(values[c::cols]) / rows for c in range(cols)])


# ---- the export ----

def architecture_of(config):
    names = config.get("architectures") or []
    for name in names:
        if name in TABLES:
            return name
    raise Refused("config.json: architecture %s; possible are %s" % (names or "is missing", ", ".join(TABLES)))


def sizes(config, *keys):
    for key in keys:
        if not isinstance(config.get(key), int) or isinstance(config[key], bool) or config[key] < 1:
            raise Refused("config.json: %s is missing or no positive whole number" % key)
    return [config[key] for key in keys]


def demand(config, key, default, possible):
    value = config.get(key, default)
    if value not in possible:
        raise Refused("config.json: %s %r; possible: %s" % (key, value, ", ".join(map(str, possible))))


def classifier_letters(config):
    config.setdefault("hidden_act", "gelu")
    config.setdefault("layer_norm_eps", 1e-12)
    L, C, _, F, P, Y = sizes(config, "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings", "type_vocab_size")
    demand(config, "hidden_act", "gelu", ACTIVATIONS)
    demand(config, "position_embedding_type", "absolute", ("absolute",))
    labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    if labels != 2:
        raise Refused("config.json: %d labels; LLMLingua-2 has two, drop and keep" % labels)
    if config.get("is_decoder"):
        raise Refused("config.json: a decoder; the encoder must look both ways")
    return dict(L=L, C=C, F=F, P=P, Y=Y, K=2)


def gpt2_letters(config):
    if config.get("n_inner") is None:
        config["n_inner"] = 4 * sizes(config, "n_embd")[0]
    config.setdefault("activation_function", "gelu_new")
    config.setdefault("layer_norm_epsilon", 1e-5)
    config.setdefault("tie_word_embeddings", True)
    L, C, _, F, P = sizes(config, "n_layer", "n_embd", "n_head", "n_inner", "n_positions")
    demand(config, "activation_function", "gelu_new", ACTIVATIONS)
    demand(config, "scale_attn_weights", True, (True,))
    demand(config, "scale_attn_by_inverse_layer_idx", False, (False,))
    demand(config, "add_cross_attention", False, (False,))
    return dict(L=L, C=C, F=F, P=P, Q=3 * C, tied=bool(config["tie_word_embeddings"]))


def t5_letters(config):
    config.setdefault("num_decoder_layers", config.get("num_layers"))
    config.setdefault("feed_forward_proj", "relu")
    config.setdefault("relative_attention_num_buckets", 32)
    config.setdefault("relative_attention_max_distance", 128)
    config.setdefault("layer_norm_epsilon", 1e-6)
    config.setdefault("tie_word_embeddings", True)
    config.setdefault("decoder_start_token_id", 0)
    config.setdefault("scale_decoder_outputs", bool(config["tie_word_embeddings"]))  # transformers 5 names what was read off the tie before
    L, M, C, D, H, F, R, _ = sizes(config, "num_layers", "num_decoder_layers", "d_model", "d_kv", "num_heads", "d_ff", "relative_attention_num_buckets",
                                   "relative_attention_max_distance")
    demand(config, "feed_forward_proj", "relu", ("relu", "gated-gelu"))
    return dict(L=L, M=M, C=C, E=H * D, H=H, F=F, R=R, gated=config["feed_forward_proj"].startswith("gated"), tied=bool(config["tie_word_embeddings"]))


def letters_of(architecture, config):
    """The sizes, by letter; fills in what the configuration leaves to the reference's defaults."""
    return (gpt2_letters if architecture.startswith("GPT2") else t5_letters if architecture.startswith("T5") else classifier_letters)(config)


def family_of(name, architecture):
    """The package chooses its rules by the model's name; where that says nothing the architecture does."""
    if "bert-base-multilingual-cased" in name:
        return "bert"
    if "xlm-roberta-large" in name:
        return "xlm-roberta"
    return "bert" if architecture.startswith("Bert") else "xlm-roberta"


def sha256_of(files):
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def mend_files(path):
    return weight_files(path) if os.path.isdir(path) else [path]


def export(directory, name, out, mend, verbose):
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    if not isinstance(config, dict):
        raise Refused("config.json: no JSON object")
    architecture = architecture_of(config)
    letters = letters_of(architecture, config)
    if mend and TABLES[architecture][0] is classifier_table:
        raise Refused("config.json: a MEND distiller is a GPT-2 or a T5, not %s" % architecture)
    files = mend_files(mend) if mend else weight_files(directory)
    sources = load_sources(files)
    words = [source for source in sources if source.endswith(("wte.weight", "shared.weight"))]
    if mend or architecture == "GPT2Model":
        letters["tied"] = True  # no head of its own
    elif letters.get("tied") and words and "lm_head.weight" in sources and sources["lm_head.weight"].read() != sources[words[0]].read():
        letters["tied"] = config["tie_word_embeddings"] = False  # transformers 5 writes true whether they are tied or not
    table = tensor_table(architecture, letters, sources, mend)
    missing = [source for _, source, _, _ in table if source not in sources]
    if missing:
        raise Refused("the checkpoint lacks %d tensors: %s%s" % (len(missing), ", ".join(missing[:8]), ", ..." if len(missing) > 8 else ""))
    ignored = sorted(set(sources) - {source for _, source, _, _ in table})
    tokenizer, settings, why = tokenizer_tensors(directory)
    if why:
        sys.stderr.write("warning: no tokenizer: %s; the programs will need --ids\n" % why)
    rows = letters["V"]
    if rows == 0:
        raise Refused("tensor %s has shape %s, two dimensions are wanted" % (table[0][1], list(sources[table[0][1]].shape)))
    classifier = TABLES[architecture][0] is classifier_table
    base = rows
    if tokenizer:
        base = max([len(tokenizer["tokenizer.piece_ends"]) // 4] + [a["id"] + 1 for a in settings["added"] if not a["text"].startswith("[NEW")])
        settings["added"] = [a for a in settings["added"] if a["id"] < base]
        if rows < base:
            raise Refused("the tokenizer has %d pieces, the embedding %d rows" % (base, rows))
    new_rows = max(0, base + NEW_TOKENS - rows) if classifier else 0
    plan, at = [], 0
    for flat, source, shape, transposed in table:
        if tuple(sources[source].shape) != shape:
            raise Refused("tensor %s has shape %s, the configuration wants %s" % (source, list(sources[source].shape), list(shape)))
        if classifier and flat in WORDS:
            shape = (rows + new_rows, shape[1])
        plan.append((flat, source, transposed, shape[::-1] if transposed else shape, at))
        at += 4 * elements(shape)
    if mend:
        architecture = "MendGPT2" if architecture.startswith("GPT2") else "MendT5"
    header = {"__metadata__": {"format": "prompt-flat-1", "architecture": architecture, "config": json.dumps(config), "source_sha256": sha256_of(files),
                               "content_sha256": "0" * 64}}
    if classifier:
        header["__metadata__"].update(family=family_of(name, architecture), new_token_base=str(base))
    if tokenizer:
        header["__metadata__"]["tokenizer"] = json.dumps(settings)
    for flat, _, _, shape, start in plan:
        header[flat] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, start + 4 * elements(shape)]}
    for flat, data in (tokenizer or {}).items():
        header[flat] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    write(out, header, plan, sources, tokenizer or {}, new_rows, verbose)
    if ignored:
        sys.stderr.write("ignored: %s\n" % ", ".join(ignored[:20]))
    if new_rows:
        sys.stderr.write("the checkpoint lacks %d of the rows [NEW0]..[NEW%d]: each became the mean of all others\n" % (new_rows, NEW_TOKENS - 1))
    sys.stderr.write("%s: %s, %d tensors, %.1f MB\n" % (out, architecture, len(header) - 1, os.path.getsize(out) / 1e6))


def encode_header(header):
    text = json.dumps(header).encode("utf-8")
    return text + b" " * (-(len(text) + 8) % 64)


def write(out, header, plan, sources, tokenizer, new_rows, verbose):
    """To a temporary name, tensor by tensor; the content hash is put into the header's place last."""
    out = os.path.realpath(out)
    if os.path.exists(out) and not os.path.isfile(out):
        raise OSError("%s: is no regular file, so it cannot be replaced by the model" % out)
    temporary, digest = "%s.tmp.%d" % (out, os.getpid()), hashlib.sha256()
    try:
        with open(temporary, "wb") as file:
            text = encode_header(header)
            file.write(struct.pack("<Q", len(text)) + text)

            def put(data):
                digest.update(data)
                file.write(data)
            for flat, source, transposed, shape, _ in plan:
                values = float32(source, sources[source])
                if transposed:
                    values = transpose(values, shape[1], shape[0])
                if flat == "embeddings.word_embeddings.weight" and new_rows:
                    values.extend(mean_row(values, shape[0] - new_rows, shape[1]) * new_rows)
                put(little(values).tobytes())
                if verbose:
                    sys.stderr.write("%-56s %-14s from %s %s\n" % (flat, list(shape), source, sources[source].dtype))
            for data in tokenizer.values():
                put(data)
            header["__metadata__"]["content_sha256"] = digest.hexdigest()
            file.seek(8)
            file.write(encode_header(header))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


# ---- download ----

class SameHostRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed; the token goes to no other host and not from https to http."""
    def redirect_request(self, request, file, code, message, headers, url):
        new = super().redirect_request(request, file, code, message, headers, url)
        if new is not None and urllib.parse.urlparse(url)[:2] != urllib.parse.urlparse(request.full_url)[:2]:
            new.headers.pop("Authorization", None)
        return new


def fetch(url, path, optional):
    """Download to path, going on where an earlier try broke off. False if it is not there and optional."""
    part, opener, broken = path + ".part", urllib.request.build_opener(SameHostRedirect), 0
    while True:
        have = before = os.path.getsize(part) if os.path.exists(part) else 0
        request = urllib.request.Request(url, headers={"Range": "bytes=%d-" % have} if have else {})
        if os.environ.get("HF_TOKEN"):
            request.add_header("Authorization", "Bearer " + os.environ["HF_TOKEN"])
        try:
            with opener.open(request, timeout=60) as answer:
                if have and answer.status != 206:
                    have = 0
                total = have + int(answer.headers.get("Content-Length") or 0)
                with open(part, "ab" if have else "wb") as file:
                    while True:
                        block = answer.read(1 << 20)
                        if not block:
                            break
                        file.write(block)
                        have += len(block)
                        if sys.stderr.isatty():
                            sys.stderr.write("\r%s %d of %d MB" % (os.path.basename(path), have >> 20, total >> 20))
                if have < total:
                    raise ConnectionError("the connection broke off at byte %d of %d" % (have, total))
            if sys.stderr.isatty():
                sys.stderr.write("\n")
            os.replace(part, path)
            return True
        except urllib.error.HTTPError as why:
            if why.code == 416 and have and why.headers.get("Content-Range") == "bytes */%d" % have:
                os.replace(part, path)  # all of it was there
                return True
            if why.code == 416 and have:
                os.unlink(part)  # of another file
                continue
            if why.code == 404 and optional:
                return False
            hint = "; set HF_TOKEN if the model is not public" if why.code in (401, 403) else "; is the name right?" if why.code == 404 else ""
            raise Refused("%s: %d %s%s" % (url, why.code, why.reason, hint))
        except (OSError, http.client.HTTPException) as why:
            broken = broken + 1 if have <= before else 1
            if broken == 5:
                raise OSError("%s: cannot be downloaded: %s; run the command again to go on where it stopped" % (url, why))
            time.sleep(0.2 * broken)


def download(hub_id):
    """The files of a hub id, into the cache; returns the directory."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    directory = os.path.join(cache, "lingua2", hub_id.replace("/", "--"))
    os.makedirs(directory, exist_ok=True)

    def get(name, optional=True):
        path = os.path.join(directory, name)
        return os.path.exists(path) or fetch("%s/%s/resolve/main/%s" % (endpoint, hub_id, name), path, optional)
    get("config.json", optional=False)
    if not get("tokenizer.json"):
        for name in ("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model"):
            get(name)
    get("tokenizer_config.json")
    if not get("model.safetensors"):
        for index, whole in (("model.safetensors.index.json", "pytorch_model.bin"), ("pytorch_model.bin.index.json", None)):
            if get(index):
                for path in weight_files(directory):
                    get(os.path.basename(path), optional=False)
                break
            if whole and get(whole):
                break
        else:
            raise Refused("%s: has no model.safetensors, pytorch_model.bin or shards" % hub_id)
    return directory


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", metavar="SOURCE")
    arguments.add_argument("-o", "--output", metavar="FILE", required=True)
    arguments.add_argument("--mend", metavar="CKPT", help="the MEND checkpoint; SOURCE is then its base model")
    arguments.add_argument("-v", "--verbose", action="store_true", help="list every tensor")
    args = arguments.parse_args()
    try:
        is_hub_id = not os.path.exists(args.source) and args.source.count("/") <= 1 and not args.source.startswith((".", "/"))
        if not is_hub_id and not os.path.isdir(args.source):
            raise Refused("%s: no directory" % args.source)
        directory = download(args.source) if is_hub_id else args.source
        export(directory, args.source if is_hub_id else os.path.abspath(directory), args.output, args.mend, args.verbose)
    except Refused as why:
        sys.stderr.write("export.py: %s\n" % why)
        return 1
    except OSError as why:
        sys.stderr.write("export.py: %s\n" % why)
        return 1 if isinstance(why, FileNotFoundError) and os.path.isdir(os.path.dirname(os.path.realpath(args.output))) else 4
    except DAMAGED as why:
        sys.stderr.write("export.py: %s\n" % damaged(args.source, why))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
