"""Small sound flat files for test/fuzz_model.c to damage: each kind of tokenizer, with a tiny model around it and alone. Standard library alone.

usage: python3 test/make_fuzz_seeds.py FOLDER      writes FOLDER/{wordpiece,unigram,bpe}.model, FOLDER/{wordpiece,unigram,bpe,cl100k}.tokenizer
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


def model_tensors(architecture, rows):
    config = {"hidden_size": C, "intermediate_size": F, "max_position_embeddings": P, "type_vocab_size": 1, "num_hidden_layers": L}
    header, data = {}, b""
    for flat, source, _ in export.tensor_table(architecture, config):
        shape = export.expected_shape(flat, config, rows)
        raw = b"".join(struct.pack("<f", (b - 128) / 64) for b in hashlib.shake_256(flat.encode()).digest(export.elements(shape)))
        header[source] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def make(folder, kind, files, rows, architecture, model_type):
    source = os.path.join(folder, kind)
    os.makedirs(source, exist_ok=True)
    config = {"architectures": [architecture], "model_type": model_type, "hidden_size": C, "num_attention_heads": H, "num_hidden_layers": L, "intermediate_size": F, "max_position_embeddings": P, "type_vocab_size": 1, "pad_token_id": 1}
    for name, content in {**files, "config.json": json.dumps(config)}.items():
        with open(os.path.join(source, name), "w", encoding="utf-8") as file:
            file.write(content)
    with open(os.path.join(source, "model.safetensors"), "wb") as file:
        file.write(model_tensors(architecture, rows))
    for program, ending in (("export.py", ".model"), ("export_tokenizer.py", ".tokenizer")):
        subprocess.run([sys.executable, os.path.join(ROOT, program), source, "-o", source + ending], check=True, stderr=subprocess.DEVNULL)


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
    make(folder, "wordpiece", *wordpiece_files(), "BertForTokenClassification", "bert")
    make(folder, "unigram", *unigram_files(), "XLMRobertaForTokenClassification", "xlm-roberta")
    make(folder, "bpe", *bpe_files(), "XLMRobertaForTokenClassification", "roberta")
    make_cl100k(folder)


main()
