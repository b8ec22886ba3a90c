"""Make the small random checkpoints that the compression tests run on. Standard library alone: every machine makes the same bytes.

usage: python3 test/make_models.py FOLDER [NAME...]      writes FOLDER/NAME/{config.json, model.safetensors, tokenizer files}

Each is a Hugging Face directory with a real tokenizer (from ../shared/assets) and random weights: its words get probabilities all over
(0, 1), so that a wrong piece, a wrong position or a wrong threshold shows in the text that comes out. The names hold the words by which
the reference package chooses its algorithm. A directory that is there and carries the same recipe is left as it is.
Two rules keep near-ties rare: LayerNorm makes activations of size 1, and the classifier spreads the logits to a deviation of about 1.5.
"""
import array
import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys

ASSETS = os.path.join("..", "shared", "assets")
RECIPE = 1  # raise it when the weights of a name change, so that cached directories are made anew

# hidden C, heads H, layers L, intermediate F; rows: "new" keeps room for [NEW0]..[NEW99], "bare" does not (the package then makes the
# rows at load); logit_scale: 1 spreads probabilities, 40 saturates the softmax to exactly 0 and 1; positions: rows of that table.
MODELS = {
    "bert-base-multilingual-cased-tiny":
        dict(tokenizer="mbert", rows="new", C=36, H=3, L=2, F=52, seed="mbert a"),
    "bert-base-multilingual-cased-bare":
        dict(tokenizer="mbert", rows="bare", C=16, H=1, L=1, F=20, seed="mbert b"),
    "bert-base-multilingual-cased-uncased":
        dict(tokenizer="bert-uncased", rows="new", C=35, H=5, L=3, F=41, seed="uncased", json=True),
    "bert-base-multilingual-cased-saturated":
        dict(tokenizer="bert-cased", rows="new", C=20, H=2, L=1, F=24, seed="saturated", logit_scale=400.0),
    "xlm-roberta-large-tiny":
        dict(tokenizer="xlmr", rows="new", C=20, H=5, L=2, F=28, seed="xlmr a"),
    "xlm-roberta-large-bare":
        dict(tokenizer="xlmr", rows="bare", C=12, H=3, L=1, F=17, seed="xlmr b"),
}
VOCABULARIES = {
    "mbert": "mbert-tokenizer/vocab.txt",
    "bert-uncased": "bert-base-tokenizers/bert-base-uncased.vocab.txt",
    "bert-cased": "bert-base-tokenizers/bert-base-cased.vocab.txt",
    "xlmr": "xlmr-tokenizer/tokenizer.rebuilt.json",
}
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


# ==== random tensors ====

def uniform(name, count, deviation, mean=0.0):
    """count float32 values, uniform around mean with this standard deviation; the bits are SHAKE-256 of the name, 16 a value."""
    table = [mean + deviation * math.sqrt(12.0) * ((i + 0.5) / 65536.0 - 0.5) for i in range(65536)]
    draws = array.array("H", hashlib.shake_256(name.encode()).digest(2 * count))
    if sys.byteorder == "big":
        draws.byteswap()
    return array.array("f", map(table.__getitem__, draws))


def tensors(prefix, spec, rows, positions, types):
    """Yield (name, shape, values) of a token classifier in the checkpoint's own names and [out, in] layout."""
    C, F = spec["C"], spec["F"]

    def weight(name, out, width, deviation):
        return name, [out, width], uniform(spec["seed"] + name, out * width, deviation)

    def vector(name, width, deviation, mean=0.0):
        return name, [width], uniform(spec["seed"] + name, width, deviation, mean)

    yield weight(prefix + ".embeddings.word_embeddings.weight", rows, C, 1.0)
    yield weight(prefix + ".embeddings.position_embeddings.weight", positions, C, 0.3)
    yield weight(prefix + ".embeddings.token_type_embeddings.weight", types, C, 0.2)
    yield vector(prefix + ".embeddings.LayerNorm.weight", C, 0.1, 1.0)
    yield vector(prefix + ".embeddings.LayerNorm.bias", C, 0.1)
    for layer in range(spec["L"]):
        at = "%s.encoder.layer.%d." % (prefix, layer)
        for part in ("query", "key", "value"):
            yield weight(at + "attention.self.%s.weight" % part, C, C, 1.5 / math.sqrt(C))
            yield vector(at + "attention.self.%s.bias" % part, C, 0.1)
        for part, out, width in (("attention.output", C, C), ("intermediate", F, C), ("output", C, F)):
            yield weight(at + part + ".dense.weight", out, width, 1.0 / math.sqrt(width))
            yield vector(at + part + ".dense.bias", out, 0.1)
            if part != "intermediate":
                yield vector(at + part + ".LayerNorm.weight", C, 0.1, 1.0)
                yield vector(at + part + ".LayerNorm.bias", C, 0.1)
    yield weight("classifier.weight", 2, C, spec.get("logit_scale", 1.5) / math.sqrt(2 * C))
    yield vector("classifier.bias", 2, 0.1)


def write_safetensors(path, items):
    """A safetensors file: 8-byte header length, JSON header, raw little-endian float32."""
    header, data, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, shape, values in items:
        if sys.byteorder == "big":
            values.byteswap()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + 4 * len(values)]}
        offset += 4 * len(values)
        data.append(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for values in data:
            f.write(values.tobytes())


# ==== tokenizer files ====

def bert_tokenizer_json(vocabulary, lower):
    """tokenizer.json as the hub's BERT checkpoints carry it."""
    at = {piece: i for i, piece in enumerate(vocabulary)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    cls, sep = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [dict(id=at[s], content=s, **flags) for s in sorted(BERT_SPECIALS, key=at.get)],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": lower},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing", "single": [cls, {"Sequence": {"id": "A", "type_id": 0}}, sep],
            "pair": [cls, {"Sequence": {"id": "A", "type_id": 0}}, sep, {"Sequence": {"id": "B", "type_id": 1}},
                     {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {s: {"id": s, "ids": [at[s]], "tokens": [s]} for s in ("[CLS]", "[SEP]")}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": at},
    }


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False)


def write_tokenizer(folder, spec):
    """Copy or build the tokenizer files; returns the vocabulary's size without the added tokens."""
    source = os.path.join(ASSETS, VOCABULARIES[spec["tokenizer"]])
    if spec["tokenizer"] == "xlmr":
        shutil.copyfile(source, os.path.join(folder, "tokenizer.json"))
        write_json(folder, "tokenizer_config.json", {
            "tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512, "clean_up_tokenization_spaces": True, "bos_token": "<s>",
            "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "cls_token": "<s>", "pad_token": "<pad>",
            "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False, "normalized": True,
                           "single_word": False}})
        return 250002
    with open(source, encoding="utf-8") as f:
        vocabulary = f.read().split("\n")
    if vocabulary[-1] == "":
        vocabulary.pop()
    lower = spec["tokenizer"] == "bert-uncased"
    shutil.copyfile(source, os.path.join(folder, "vocab.txt"))
    if spec.get("json"):
        write_json(folder, "tokenizer.json", bert_tokenizer_json(vocabulary, lower))
    write_json(folder, "tokenizer_config.json", {
        "tokenizer_class": "BertTokenizer", "do_lower_case": lower, "model_max_length": 512, "clean_up_tokenization_spaces": True,
        "tokenize_chinese_chars": True, "strip_accents": None, "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]",
        "cls_token": "[CLS]", "mask_token": "[MASK]"})
    return len(vocabulary)


# ==== whole checkpoints ====

def config(spec, rows, positions, types):
    xlmr = spec["tokenizer"] == "xlmr"
    common = {
        "hidden_size": spec["C"], "num_attention_heads": spec["H"], "num_hidden_layers": spec["L"], "intermediate_size": spec["F"],
        "vocab_size": rows, "max_position_embeddings": positions, "type_vocab_size": types, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
        "position_embedding_type": "absolute", "torch_dtype": "float32"}
    if xlmr:
        return dict(common, architectures=["XLMRobertaForTokenClassification"], model_type="xlm-roberta", pad_token_id=1, bos_token_id=0,
                    eos_token_id=2, layer_norm_eps=1e-5)
    return dict(common, architectures=["BertForTokenClassification"], model_type="bert", pad_token_id=0, layer_norm_eps=1e-12)


def make(folder, name, spec):
    """Write one checkpoint to folder/name, whole or not at all; returns its path."""
    path = os.path.join(folder, name)
    stamp = json.dumps([RECIPE, spec], sort_keys=True)
    try:
        with open(os.path.join(path, "recipe.json"), encoding="utf-8") as f:
            if f.read() == stamp:
                return path
    except OSError:
        pass
    draft = path + ".part%d" % os.getpid()
    os.makedirs(draft)
    xlmr = spec["tokenizer"] == "xlmr"
    rows = write_tokenizer(draft, spec) + (100 if spec["rows"] == "new" else 0)
    positions, types = (514, 1) if xlmr else (512, 2)
    write_json(draft, "config.json", config(spec, rows, positions, types))
    write_safetensors(os.path.join(draft, "model.safetensors"), tensors("roberta" if xlmr else "bert", spec, rows, positions, types))
    with open(os.path.join(draft, "recipe.json"), "w", encoding="utf-8") as f:
        f.write(stamp)
    shutil.rmtree(path, ignore_errors=True)
    os.rename(draft, path)
    return path


def flat_file(name):
    """The flat file of a model, made in build/test-models if it is not there or older than its makers."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folder = os.path.join(root, "build", "test-models")
    path = os.path.join(folder, name + ".safetensors")
    makers = [os.path.join(root, f) for f in ("export.py", "export_tokenizer.py", "test/make_models.py")]
    if not os.path.exists(path) or os.path.getmtime(path) < max(map(os.path.getmtime, makers)):
        subprocess.run([sys.executable, "test/make_models.py", folder, name], cwd=root, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, "export.py", os.path.join(folder, name), "-o", path], cwd=root, check=True, stderr=subprocess.DEVNULL)
    return path


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: python3 test/make_models.py FOLDER [NAME...]\nnames: " + " ".join(MODELS))
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for name in sys.argv[2:] or MODELS:
        print(make(sys.argv[1], name, MODELS[name]))


if __name__ == "__main__":
    main()
