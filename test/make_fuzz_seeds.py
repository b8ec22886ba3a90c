"""Small sound flat files for test/fuzz_model.c and test/fuzz_mend.c to damage: each kind of tokenizer, with a tiny model around it and alone; each
kind of language model and distiller, and vectors. Standard library alone.

usage: python3 test/make_fuzz_seeds.py FOLDER      writes FOLDER/{wordpiece,unigram,bpe}.model, FOLDER/{wordpiece,unigram,bpe,cl100k}.tokenizer,
                                                   FOLDER/{gpt2,t5,t5-gated,mend-gpt2,mend-t5}.model, FOLDER/vectors
"""
import base64
import hashlib
import json
import os
import struct
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import export
import export_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
C, H, L, F, P = 4, 2, 2, 6, 64
ROWS, WIDTH = 3, C  # a distiller's rows of P, and the hidden size of the language model that its pooler makes vectors for


def double_array(replacements):
    """{key: replacement} as SentencePiece stores its normalisation map: a darts-clone trie of 32-bit units, then the replacements, NUL-ended."""
    strings, units, taken = b"", {}, {0}
    root = {}
    for key, replacement in replacements.items():
        node = root
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(strings)
        strings += replacement.encode() + b"\0"

    def place(node, at, label):
        base = next(b for b in range(1, 1 << 20) if all(b ^ byte not in taken for byte in node))
        taken.update(base ^ byte for byte in node)
        units[at] = (at ^ base) << 10 | (256 if 0 in node else 0) | label
        for byte, child in node.items():
            if byte:
                place(child, base ^ byte, byte)
            else:
                units[base] = 1 << 31 | child
    place(root, 0, 0)
    array = struct.pack("<%dI" % (max(units) + 1), *[units.get(i, 0) for i in range(max(units) + 1)])
    return struct.pack("<I", len(array)) + array + strings


def wordpiece_files():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + c for c in LETTERS), "the", "##es", "fox", "run", ".", ",", "!", "1", "##2", "\u6f22"]
    return {"vocab.txt": "\n".join(pieces) + "\n"}, len(pieces)


def unigram_files():
    pieces = [[p, 0.0] for p in ("<s>", "<pad>", "</s>", "<unk>")] + [[p, -1.5 - i / 8] for i, p in enumerate(["\u2581", "\u2581the", "es", "\u2581fox", ".", ",", *LETTERS])] + [["<mask>", 0.0]]
    charsmap = double_array({"\uff21": "a", "\ufb01": "fi", "\u00a0": " ", "e\u0301": "e", "\t": " ", "\u2122": ""})
    added = [{"id": i, "content": pieces[i][0], "special": True, "lstrip": pieces[i][0] == "<mask>"} for i in (0, 1, 2, 3, len(pieces) - 1)]
    tokenizer = {"added_tokens": added, "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}, "pre_tokenizer": {"type": "Metaspace"},
                 "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces}}
    return {"tokenizer.json": json.dumps(tokenizer)}, len(pieces)


def byte_level():
    pieces, merges = list(export_tokenizer.byte_characters().values()), [("h", "e"), ("t", "he"), ("o", "x"), ("f", "ox"), ("\u0120", "the"), ("e", "s"), ("1", "2")]
    return pieces + [a + b for a, b in merges], merges


def bpe_files():
    pieces, merges = byte_level()
    pieces += ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return {"vocab.json": json.dumps({p: i for i, p in enumerate(pieces)}), "merges.txt": "#version: 0.2\n" + "".join("%s %s\n" % m for m in merges)}, len(pieces)


def model_tensors(config, rows, mend):
    """A checkpoint that has what export.py asks for, by its own table."""
    architecture = config["architectures"][0]
    prefix = "hypernet." if mend else export.TABLES[architecture][1]
    known = dict({name: (rows, C) for name in export.WORDS}, **({"init_prompt_weight": (ROWS, C), "adap_pooler.dense.weight": (WIDTH, C)} if mend else {}))
    sources = {prefix + name: export.Source("F32", shape, None) for name, shape in known.items()}
    header, data = {}, b""
    for flat, source, shape, _ in export.tensor_table(architecture, export.letters_of(architecture, dict(config)), sources, mend):
        raw = b"".join(struct.pack("<f", (b - 128) / 64) for b in hashlib.shake_256(flat.encode()).digest(export.elements(shape)))
        header[source] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def make(folder, name, files, rows, config, mend=False):
    source = os.path.join(folder, name)
    os.makedirs(source, exist_ok=True)
    for file_name, content in {**files, "config.json": json.dumps(config)}.items():
        with open(os.path.join(source, file_name), "w", encoding="utf-8") as file:
            file.write(content)
    weights = os.path.join(source, "model.safetensors")
    with open(weights, "wb") as file:
        file.write(model_tensors(config, rows, mend))
    subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), source, *(["--mend", weights] if mend else []), "-o", source + ".model"], check=True, stderr=subprocess.DEVNULL)
    return source


def make_classifier(folder, name, files, rows, architecture, model_type):
    config = {"architectures": [architecture], "model_type": model_type, "hidden_size": C, "num_attention_heads": H, "num_hidden_layers": L, "intermediate_size": F, "max_position_embeddings": P, "type_vocab_size": 1, "pad_token_id": 1}
    source = make(folder, name, files, rows, config)
    subprocess.run([sys.executable, os.path.join(ROOT, "export_tokenizer.py"), source, "-o", source + ".tokenizer"], check=True, stderr=subprocess.DEVNULL)


def gpt2(architecture):
    return {"architectures": [architecture], "model_type": "gpt2", "n_embd": C, "n_head": H, "n_layer": L, "n_positions": P, "n_inner": F, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}


def t5(architecture, gated):
    return {"architectures": [architecture], "model_type": "t5", "d_model": C, "d_kv": 3, "num_heads": H, "num_layers": L, "num_decoder_layers": L, "d_ff": F, "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16, "feed_forward_proj": "gated-gelu" if gated else "relu", "tie_word_embeddings": not gated, "decoder_start_token_id": 0, "layer_norm_epsilon": 1e-6}


def make_vectors(folder):
    """What `mend distill` writes for the GPT-2 here."""
    raw = b"".join(struct.pack("<f", (b - 128) / 64) for b in hashlib.shake_256(b"vectors").digest(ROWS * C))
    meta = {"format": "mend-vectors-1", "demonstrations_sha256": "0" * 64, "distiller_sha256": "0" * 64, "llm_sha256": "any"}
    text = export.encode_header({"__metadata__": meta, "vectors": {"dtype": "F32", "shape": [ROWS, C], "data_offsets": [0, len(raw)]}})
    with open(os.path.join(folder, "vectors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + raw)


def make_cl100k(folder):
    """Merges by the ids of what they make, and the other pre-tokenizer: what cl100k_base has, with few pieces."""
    pieces, _ = byte_level()
    tensors, settings = export_tokenizer.bpe(pieces, None, "cl100k", [export_tokenizer.added_token("<|endoftext|>", len(pieces))], {"eos": len(pieces)})
    header, at = {"__metadata__": {"format": "prompt-flat-1", "tokenizer": json.dumps(settings)}}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = export.encode_header(header)
    with open(os.path.join(folder, "cl100k.tokenizer"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(tensors.values()))


def main():
    folder = sys.argv[1]
    make_classifier(folder, "wordpiece", *wordpiece_files(), "BertForTokenClassification", "bert")
    make_classifier(folder, "unigram", *unigram_files(), "XLMRobertaForTokenClassification", "xlm-roberta")
    make_classifier(folder, "bpe", *bpe_files(), "XLMRobertaForTokenClassification", "roberta")
    make(folder, "gpt2", *bpe_files(), gpt2("GPT2LMHeadModel"))
    make(folder, "t5", *unigram_files(), t5("T5ForConditionalGeneration", False))
    make(folder, "t5-gated", *unigram_files(), t5("T5ForConditionalGeneration", True))
    make(folder, "mend-gpt2", *bpe_files(), gpt2("GPT2Model"), mend=True)
    make(folder, "mend-t5", *unigram_files(), t5("T5EncoderModel", True), mend=True)
    make_vectors(folder)
    make_cl100k(folder)


main()
