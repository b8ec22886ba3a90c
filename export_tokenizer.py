"""Tokenizer files of a Hugging Face directory -> the U8 tensors and settings that tokenizer.c reads in place (docs/FORMAT.md). Standard library alone.

Reads tokenizer.json (WordPiece, Unigram, byte-level BPE), vocab.txt, vocab.json + merges.txt, SentencePiece *.model, *.tiktoken. What it does
not understand it names in a warning; it never guesses.

usage: python3 export_tokenizer.py SOURCE -o FILE     a flat file that holds the tokenizer alone; SOURCE: a directory or a *.tiktoken file
"""
import base64
import glob
import hashlib
import json
import os
import struct
import sys

CL100K_SPECIALS = {"<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276}
# The unigram models whose words transformers 5 ends at all white space, whatever tokenizer.json says; others end them at blanks alone.
SPLIT_AT_WHITE_SPACE = ("xlm-roberta", "t5")


class NotUnderstood(Exception):
    """A tokenizer of a kind that tokenizer.c has not: the message names what."""


# ---- tables ----

def u32(values):
    return struct.pack("<%dI" % len(values), *values)


def trie(ids):
    """ids: {bytes: id}. The trie breadth first: label, first, value as tokenizer.c documents them."""
    keys = sorted(ids)
    label, first, value, nodes = bytearray([0]), [], [0], [(0, len(keys), 0)]
    for low, high, depth in nodes:  # grows while we walk it
        first.append(len(nodes))
        if low < high and len(keys[low]) == depth:
            low += 1
        while low < high:
            byte, end = keys[low][depth], low + 1
            while end < high and keys[end][depth] == byte:
                end += 1
            label.append(byte)
            value.append(ids[keys[low]] + 1 if len(keys[low]) == depth + 1 else 0)
            nodes.append((low, end, depth + 1))
            low = end
    first.append(len(nodes))
    return {"tokenizer.trie_label": bytes(label), "tokenizer.trie_first": u32(first), "tokenizer.trie_value": u32(value)}


def piece_table(pieces):
    """pieces: list of str by id."""
    raw = [p.encode("utf-8") for p in pieces]
    ends, total = [], 0
    for r in raw:
        total += len(r)
        ends.append(total)
    return {"tokenizer.pieces": b"".join(raw), "tokenizer.piece_ends": u32(ends)}


def merge_table(merges):
    """merges: [(left id, right id, merged id)] by rank. Open addressing, at most half full; the hash is tokenizer.c's."""
    slots = 1
    while slots < 2 * len(merges) + 2:
        slots *= 2
    table = [(0xFFFFFFFF, 0, 0, 0)] * slots
    for rank, (left, right, merged) in enumerate(merges):
        h = (left * 2654435761 + right * 2246822519) & 0xFFFFFFFF
        h ^= h >> 15
        while table[h & (slots - 1)][0] != 0xFFFFFFFF:
            h += 1
        table[h & (slots - 1)] = (left, right, rank, merged)
    return {"tokenizer.merges": b"".join(struct.pack("<4I", *entry) for entry in table)}


def byte_characters():
    """The printable stand-in of each byte in byte-level vocabularies."""
    itself = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in itself]
    return {**{b: chr(b) for b in itself}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def by_id(vocabulary):
    """{piece: id} -> list of pieces; ids must run without gaps."""
    pieces = [None] * len(vocabulary)
    for piece, i in vocabulary.items():
        if not isinstance(i, int) or not 0 <= i < len(pieces) or pieces[i] is not None:
            raise NotUnderstood("a vocabulary whose ids do not run from 0 without gaps (%r: %r)" % (piece, i))
        pieces[i] = piece
    return pieces


# ---- the three kinds ----

def wordpiece(vocabulary, settings, added, roles):
    pieces = vocabulary if isinstance(vocabulary, list) else by_id(vocabulary)
    ids = {}
    for i, piece in enumerate(pieces):  # of pieces that occur twice the last counts, as in a dictionary
        if piece:
            ids[piece.encode("utf-8")] = i
    return {**piece_table(pieces), **trie(ids)}, {"kind": "wordpiece", "clean_up": True, **settings, "added": added, "special": roles}


def unigram(vocabulary, charsmap, added, roles, split_white_space):
    """vocabulary: [(piece, score)] by id; split_white_space: XLM-R as transformers 5 builds it, where all white space ends a word, not the blank alone."""
    ids = {}
    for i, (piece, _) in enumerate(vocabulary):
        ids.setdefault(piece.encode("utf-8"), i)
    ids.pop(b"", None)
    tensors = {**piece_table([p for p, _ in vocabulary]), **trie(ids), "tokenizer.charsmap": charsmap}
    tensors["tokenizer.scores"] = struct.pack("<%dd" % len(vocabulary), *[s for _, s in vocabulary])
    return tensors, {"kind": "unigram", "split_white_space": split_white_space, "added": added, "special": roles}


def bpe(pieces, merges, split, added, roles, trim_offsets=False):
    """pieces: byte-level strings by id; merges: [(left, right)] strings, or None where a merge's rank is the merged piece's id."""
    byte_of = {c: b for b, c in byte_characters().items()}
    special = {a["text"] for a in added}
    ids, index = {}, {}
    for i, piece in enumerate(pieces):
        index[piece] = i
        if piece not in special:
            try:
                ids[bytes(byte_of[c] for c in piece)] = i
            except KeyError:
                raise NotUnderstood("a BPE vocabulary that is not byte-level (piece %r)" % piece)
    ids.pop(b"", None)
    tensors = {**piece_table(pieces), **trie(ids)}
    if merges is not None:
        try:
            tensors.update(merge_table([(index[a], index[b], index[a + b]) for a, b in merges]))
        except KeyError as missing:
            raise NotUnderstood("a merge of pieces that the vocabulary lacks (%s)" % missing)
    return tensors, {"kind": "bpe", "split": split, "trim_offsets": trim_offsets, "added": added, "special": roles}


# ---- files ----

def load_json(directory, name):
    path = os.path.join(directory, name)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def added_token(text, i, lstrip=False, rstrip=False):
    return {"id": i, "text": text, "lstrip": lstrip, "rstrip": rstrip}


def added_tokens(tokenizer):
    out = []
    for a in tokenizer.get("added_tokens") or []:
        if a.get("single_word") or (a.get("normalized") and not a.get("special") and a["content"].strip() != a["content"]):
            raise NotUnderstood("the added token %r with single_word or normalized" % a["content"])
        out.append(added_token(a["content"], a["id"], bool(a.get("lstrip")), bool(a.get("rstrip"))))
    return out


def role_ids(find):
    """{role: id}: the usual names of each role, the first that `find` knows."""
    names = {"unk": ("[UNK]", "<unk>"), "cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>"), "pad": ("[PAD]", "<pad>"), "mask": ("[MASK]", "<mask>"),
             "bos": ("<s>", "<|endoftext|>"), "eos": ("</s>", "<|endoftext|>")}
    out = {}
    for role, candidates in names.items():
        found = [find(c) for c in candidates if find(c) is not None]
        if found:
            out[role] = found[0]
    return out


def from_tokenizer_json(tokenizer, model_type):
    model, added = tokenizer.get("model") or {}, added_tokens(tokenizer)
    normalizer, splitter = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    kind = model.get("type") or ("WordPiece" if "continuing_subword_prefix" in model and "merges" not in model else "BPE" if "merges" in model else None)
    in_added = {a["text"]: a["id"] for a in added}
    if kind == "WordPiece":
        if normalizer.get("type") != "BertNormalizer" or splitter.get("type") != "BertPreTokenizer":
            raise NotUnderstood("WordPiece with normalizer %s and pre-tokenizer %s" % (normalizer.get("type"), splitter.get("type")))
        if not normalizer.get("clean_text") or not normalizer.get("handle_chinese_chars") or model.get("continuing_subword_prefix", "##") != "##" or \
                model.get("max_input_chars_per_word", 100) != 100:
            raise NotUnderstood("WordPiece with settings other than BERT's")
        strip = normalizer.get("strip_accents")
        settings = {"lowercase": bool(normalizer["lowercase"]), "strip_accents": bool(normalizer["lowercase"] if strip is None else strip),
                    "clean_up": bool((tokenizer.get("decoder") or {}).get("cleanup", True))}
        vocabulary = model["vocab"]
        return wordpiece(vocabulary, settings, added, role_ids(lambda c: in_added.get(c, vocabulary.get(c))))
    if kind == "Unigram":
        parts = normalizer.get("normalizers", [normalizer])
        splits = splitter.get("pretokenizers", [splitter])
        maps = [p["precompiled_charsmap"] for p in parts if p.get("type") == "Precompiled"]
        known = {"Precompiled", "Strip", "Replace"}
        if len(maps) != 1 or any(p.get("type") not in known for p in parts) or any(s.get("type") not in ("Metaspace", "WhitespaceSplit") for s in splits):
            raise NotUnderstood("Unigram with normalizer %s and pre-tokenizer %s" % ([p.get("type") for p in parts], [s.get("type") for s in splits]))
        if model.get("byte_fallback") or any(s.get("prepend_scheme", "always") != "always" or s.get("add_prefix_space") is False for s in splits):
            raise NotUnderstood("Unigram with byte fallback or without the leading blank")
        vocabulary = [(p, float(s)) for p, s in model["vocab"]]
        index = {p: i for i, (p, _) in enumerate(vocabulary)}
        roles = role_ids(lambda c: in_added.get(c, index.get(c)))
        roles["unk"] = model["unk_id"]
        return unigram(vocabulary, base64.b64decode(maps[0]), added, roles, model_type in SPLIT_AT_WHITE_SPACE or any(s.get("type") == "WhitespaceSplit" for s in splits))
    if kind == "BPE":
        if splitter.get("type") != "ByteLevel" or splitter.get("add_prefix_space") or splitter.get("use_regex") is False or normalizer:
            raise NotUnderstood("BPE with pre-tokenizer %s" % splitter.get("type"))
        if model.get("byte_fallback") or model.get("dropout") or model.get("ignore_merges"):
            raise NotUnderstood("BPE with byte fallback, dropout or ignored merges")
        merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        vocabulary = dict(model["vocab"])
        trim = bool((tokenizer.get("post_processor") or {}).get("trim_offsets"))
        return bpe(by_id(vocabulary), merges, "gpt2", added, role_ids(lambda c: in_added.get(c, vocabulary.get(c))), trim)
    raise NotUnderstood("a tokenizer.json with model type %r" % kind)


def from_vocab_txt(directory):
    with open(os.path.join(directory, "vocab.txt"), encoding="utf-8") as file:
        pieces = file.read().split("\n")
    if pieces and pieces[-1] == "":
        pieces.pop()
    pieces = [p[:-1] if p.endswith("\r") else p for p in pieces]
    config = load_json(directory, "tokenizer_config.json") or {}
    lower, strip = bool(config.get("do_lower_case", True)), config.get("strip_accents")
    if config.get("tokenize_chinese_chars") is False:
        raise NotUnderstood("WordPiece that does not split Chinese characters")
    index = {p: i for i, p in enumerate(pieces)}
    added = [added_token(p, index[p]) for p in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if p in index]
    return wordpiece(pieces, {"lowercase": lower, "strip_accents": lower if strip is None else bool(strip)}, added, role_ids(index.get))


def from_gpt2_files(directory):
    vocabulary = load_json(directory, "vocab.json")
    with open(os.path.join(directory, "merges.txt"), encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(m) != 2 for m in merges):
        raise NotUnderstood("a merges.txt whose lines are not pairs")
    roberta = "<mask>" in vocabulary
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if roberta else ("<|endoftext|>",)
    added = [added_token(n, vocabulary[n]) for n in names if n in vocabulary]  # <mask> takes the blank before it only where tokenizer.json says so
    return bpe(by_id(vocabulary), merges, "gpt2", added, role_ids(vocabulary.get), trim_offsets=roberta)


def protobuf(data):
    """(field number, value) of one message: bytes for strings and messages, int otherwise. Bounded by the data."""
    def varint(at):
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise NotUnderstood("a damaged SentencePiece model")
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value, at
    at = 0
    while at < len(data):
        key, at = varint(at)
        wire = key & 7
        if wire == 0:
            value, at = varint(at)
        else:
            size, at = (8, at) if wire == 1 else (4, at) if wire == 5 else varint(at) if wire == 2 else (None, at)
            if size is None or size > len(data) - at:
                raise NotUnderstood("a damaged SentencePiece model")
            value, at = data[at:at + size], at + size
        yield key >> 3, value


def from_sentencepiece(path, model_type):
    with open(path, "rb") as file:
        data = file.read()
    pieces, charsmap = [], None
    for field, value in protobuf(data):
        if field == 1:
            parts = dict(protobuf(value))
            pieces.append((parts[1].decode("utf-8"), struct.unpack("<f", parts[2])[0] if 2 in parts else 0.0))
        elif field == 3:
            charsmap = dict(protobuf(value)).get(2)
    if not charsmap:
        raise NotUnderstood("a SentencePiece model without a normalisation map")
    if model_type == "xlm-roberta":  # fairseq's ids: <s> <pad> </s> <unk>, the pieces behind their own first three, <mask>
        pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + pieces[3:] + [("<mask>", 0.0)]
        specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(pieces) - 1}
        added = [added_token(p, i) for p, i in specials.items()]
    elif model_type == "t5":
        specials = {"<pad>": 0, "</s>": 1, "<unk>": 2}
        added = [added_token(p, i) for p, i in specials.items()]
        extra = [("<extra_id_%d>" % i, 0.0) for i in reversed(range(100))]
        added += [added_token(p, len(pieces) + i) for i, (p, _) in enumerate(extra)]
        pieces += extra
    else:
        raise NotUnderstood("a SentencePiece model of model_type %r" % model_type)
    return unigram(pieces, charsmap, added, role_ids(specials.get), model_type in SPLIT_AT_WHITE_SPACE)


def from_tiktoken(path):
    characters, pieces = byte_characters(), {}
    with open(path, "rb") as file:
        for line in file.read().splitlines():
            if line:
                text, rank = line.split()
                pieces["".join(characters[b] for b in base64.b64decode(text))] = int(rank)
    if len(pieces) != 100256:
        raise NotUnderstood("a tiktoken vocabulary of %d pieces: cl100k_base has 100256" % len(pieces))
    added = [added_token(text, i) for text, i in CL100K_SPECIALS.items()]
    return bpe(by_id(pieces), None, "cl100k", added, {"eos": CL100K_SPECIALS["<|endoftext|>"]})


def tokenizer_tensors(source):
    """(tensors {name: bytes}, settings, None), or (None, None, why not). source: a directory or a *.tiktoken file."""
    try:
        if source.endswith(".tiktoken"):
            return from_tiktoken(source) + (None,)
        models = sorted(glob.glob(os.path.join(source, "*.model")))
        model_type = (load_json(source, "config.json") or {}).get("model_type")
        whole = load_json(source, "tokenizer.json")
        if whole is not None:
            return from_tokenizer_json(whole, model_type) + (None,)
        if os.path.exists(os.path.join(source, "vocab.txt")):
            return from_vocab_txt(source) + (None,)
        if os.path.exists(os.path.join(source, "vocab.json")) and os.path.exists(os.path.join(source, "merges.txt")):
            return from_gpt2_files(source) + (None,)
        if models:
            return from_sentencepiece(models[0], model_type) + (None,)
        return None, None, "%s: no tokenizer.json, vocab.txt, vocab.json + merges.txt or *.model" % source
    except NotUnderstood as why:
        return None, None, "%s: %s" % (source, why)
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as why:
        return None, None, "%s: damaged tokenizer files: %s: %s" % (source, type(why).__name__, why)


def main():
    if len(sys.argv) != 4 or sys.argv[2] != "-o":
        sys.stderr.write("usage: python3 export_tokenizer.py SOURCE -o FILE\n")
        return 2
    tensors, settings, why = tokenizer_tensors(sys.argv[1])
    if why:
        sys.stderr.write(why + "\n")
        return 1
    header, at = {"__metadata__": {"format": "prompt-flat-1", "architecture": "tokenizer", "tokenizer": json.dumps(settings)}}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    body = b"".join(tensors.values())
    header["__metadata__"]["content_sha256"] = hashlib.sha256(body).hexdigest()
    head = json.dumps(header).encode("utf-8")
    head += b" " * (-len(head) % 64 + 56)
    temporary = "%s.tmp.%d" % (sys.argv[3], os.getpid())
    try:
        with open(temporary, "wb") as file:
            file.write(struct.pack("<Q", len(head)) + head + body)
        os.replace(temporary, sys.argv[3])
    except OSError as why:
        sys.stderr.write("%s: cannot be written: %s\n" % (sys.argv[3], why))
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
