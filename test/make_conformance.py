"""Make the conformance pack: conformance/{models,runs,...}. Standard library alone; every machine makes the same bytes.

usage: python3 test/make_conformance.py [FOLDER]      default: conformance; needs ./lingua2 and ./mend
       python3 test/make_conformance.py --commands    the command line of every run: NAME.ARITHMETIC PROGRAM trace ...

models/NAME.safetensors     six tiny models in the flat format (docs/FORMAT.md), their weights cut out of SHAKE-256
runs.json                   what each model is given
NAME.{fast,reference}.taps  the manifests of those runs
NAME.backward.*.taps        the same with the loss and its gradients behind it
vectors.jsonl               one op each, on inputs that show one mistake each (make_vectors.py)
No width is a multiple of a vector, ids repeat, one id is the padding's, and the T5s are long enough for logarithmic buckets.
"""
import hashlib
import json
import math
import os
import struct
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "test"))
import make_vectors  # noqa: E402
from make_models import uniform  # noqa: E402

LOGITS = 1.75  # their deviation

BERT = {"hidden_size": 15, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 22, "max_position_embeddings": 24,
        "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, "vocab_size": 61}
XLMR = {"hidden_size": 14, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 19, "max_position_embeddings": 26,
        "type_vocab_size": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "pad_token_id": 1, "vocab_size": 53}
GPT2 = {"n_embd": 15, "n_head": 3, "n_layer": 2, "n_inner": 37, "n_positions": 32, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "vocab_size": 67}
T5 = {"d_model": 13, "d_kv": 5, "num_heads": 3, "num_layers": 2, "num_decoder_layers": 2, "d_ff": 21, "feed_forward_proj": "relu", "layer_norm_epsilon": 1e-6,
      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "tie_word_embeddings": True, "scale_decoder_outputs": True,
      "decoder_start_token_id": 0, "vocab_size": 59}
T5_GATED = dict(T5, d_model=12, d_kv=7, num_heads=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False, scale_decoder_outputs=False, decoder_start_token_id=2)
MEND = dict(GPT2, n_embd=9, n_inner=26)  # 5 virtual rows; the language model is gpt2, so the pooler is 9 wide at one end and 15 at the other

RUNS = {
    "bert": {"program": "lingua2", "model": "bert", "ids": [2, 17, 60, 5, 5, 33, 0, 41, 28, 9, 3], "labels": [-1, 1, 1, 0, 1, 0, 0, 1, 0, 0, -1]},
    "xlmr": {"program": "lingua2", "model": "xlmr", "ids": [0, 44, 12, 1, 52, 7, 12, 30, 1, 2], "labels": [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]},
    "gpt2": {"program": "mend", "llm": "gpt2", "ids": [66, 3, 3, 18, 40, 0, 25, 51, 9, 62, 18, 7, 31]},
    "t5": {"program": "mend", "llm": "t5", "encoder_ids": [8, 57, 8, 21, 30, 2, 44, 13, 5, 39, 27, 50, 16, 33, 1], "ids": [22, 6, 6, 47, 58, 11, 34, 9, 1]},
    "t5_gated": {"program": "mend", "llm": "t5_gated", "encoder_ids": [29, 4, 51, 18, 4, 36, 45, 7, 23, 55, 12, 40, 1], "ids": [31, 19, 3, 48, 19, 10, 1]},
    "mend": {"program": "mend", "llm": "gpt2", "mend": "mend", "ids": [12, 44, 5, 30, 61, 2], "demonstration_ids": [7, 19, 33, 60, 2, 2, 41, 58, 14, 26], "lambda": 0.5},
}


# ==== models ====

class Draw:
    """Tensors of one model in the flat file's own layout: matrices input-major."""

    def __init__(self, name):
        self.name, self.items = name, []

    def matrix(self, name, rows, columns, deviation):
        self.items.append((name, [rows, columns], uniform("conformance " + self.name + " " + name, rows * columns, deviation)))

    def vector(self, name, width, deviation, mean=0.0):
        self.items.append((name, [width], uniform("conformance " + self.name + " " + name, width, deviation, mean)))

    def norm(self, name, width):
        self.vector(name + ".weight", width, 0.1, 1.0)
        self.vector(name + ".bias", width, 0.1)

    def dense(self, name, width, out, gain=1.0):
        self.matrix(name + ".weight", width, out, gain / math.sqrt(width))
        self.vector(name + ".bias", out, 0.1)


def encoder(name, c):
    d, C, F = Draw(name), c["hidden_size"], c["intermediate_size"]
    d.matrix("embeddings.word_embeddings.weight", c["vocab_size"], C, 1.0)
    d.matrix("embeddings.position_embeddings.weight", c["max_position_embeddings"], C, 0.3)
    d.matrix("embeddings.token_type_embeddings.weight", c["type_vocab_size"], C, 0.2)
    d.norm("embeddings.LayerNorm", C)
    for layer in range(c["num_hidden_layers"]):
        at = "encoder.layer.%d." % layer
        for part in ("query", "key", "value"):
            d.dense(at + "attention.self." + part, C, C, 1.5)
        d.dense(at + "attention.output.dense", C, C)
        d.norm(at + "attention.output.LayerNorm", C)
        d.dense(at + "intermediate.dense", C, F)
        d.dense(at + "output.dense", F, C)
        d.norm(at + "output.LayerNorm", C)
    d.dense("classifier", C, 2, LOGITS)
    return d


def gpt2(name, c):
    d, C, F = Draw(name), c["n_embd"], c["n_inner"]
    d.matrix("wte.weight", C, c["vocab_size"], LOGITS / math.sqrt(C))
    d.matrix("wpe.weight", c["n_positions"], C, 0.3)
    for layer in range(c["n_layer"]):
        at = "h.%d." % layer
        d.norm(at + "ln_1", C)
        d.dense(at + "attn.c_attn", C, 3 * C, 1.3)
        d.dense(at + "attn.c_proj", C, C)
        d.norm(at + "ln_2", C)
        d.dense(at + "mlp.c_fc", C, F)
        d.dense(at + "mlp.c_proj", F, C)
    d.norm("ln_f", C)
    return d


def mend(name, c):
    d = gpt2(name, c)
    d.matrix("init_prompt_weight", 5, c["n_embd"], 0.6)
    d.dense("adap_pooler.dense", c["n_embd"], GPT2["n_embd"])
    return d


def t5(name, c):
    d, C, E, F = Draw(name), c["d_model"], c["num_heads"] * c["d_kv"], c["d_ff"]
    tied = c["tie_word_embeddings"]
    d.matrix("shared.weight", *((C, c["vocab_size"]) if tied else (c["vocab_size"], C)), LOGITS)
    if not tied:
        d.matrix("lm_head.weight", C, c["vocab_size"], LOGITS / math.sqrt(C))

    def attention(at, norm):
        for part, gain in (("q", 0.8), ("k", 1.0), ("v", 1.0)):
            d.matrix("%s.%s.weight" % (at, part), C, E, gain / math.sqrt(C))
        d.matrix(at + ".o.weight", E, C, 1.0 / math.sqrt(E))
        d.vector(norm + ".layer_norm.weight", C, 0.1, 1.0)
    for side, layers in (("encoder", c["num_layers"]), ("decoder", c["num_decoder_layers"])):
        d.matrix(side + ".block.0.layer.0.SelfAttention.relative_attention_bias.weight", c["relative_attention_num_buckets"], c["num_heads"], 0.7)
        for layer in range(layers):
            at = "%s.block.%d.layer." % (side, layer)
            attention(at + "0.SelfAttention", at + "0")
            if side == "decoder":
                attention(at + "1.EncDecAttention", at + "1")
            last = at + ("2" if side == "decoder" else "1")
            for part in (("wi_0", "wi_1") if c["feed_forward_proj"] == "gated-gelu" else ("wi",)):
                d.matrix("%s.DenseReluDense.%s.weight" % (last, part), C, F, 1.0 / math.sqrt(C))
            d.matrix(last + ".DenseReluDense.wo.weight", F, C, 1.0 / math.sqrt(F))
            d.vector(last + ".layer_norm.weight", C, 0.1, 1.0)
        d.vector(side + ".final_layer_norm.weight", C, 0.1, 1.0)
    return d


MODELS = {
    "bert": (encoder, BERT, "BertForTokenClassification"),
    "xlmr": (encoder, XLMR, "XLMRobertaForTokenClassification"),
    "gpt2": (gpt2, GPT2, "GPT2LMHeadModel"),
    "t5": (t5, T5, "T5ForConditionalGeneration"),
    "t5_gated": (t5, T5_GATED, "T5ForConditionalGeneration"),
    "mend": (mend, MEND, "MendGPT2"),
}


def write_flat(path, items, config, architecture):
    """docs/FORMAT.md, "The flat file"."""
    header, data = {}, b""
    for name, shape, values in items:
        if sys.byteorder == "big":
            values.byteswap()
        raw = values.tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    meta = {"format": "prompt-flat-1", "architecture": architecture, "config": json.dumps(config), "content_sha256": hashlib.sha256(data).hexdigest()}
    if "ForTokenClassification" in architecture:
        meta["family"] = "bert" if architecture.startswith("Bert") else "xlm-roberta"
    text = json.dumps({"__metadata__": meta, **header}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


# ==== manifests ====

def command(run, folder, backward=False):
    """A program and its arguments for one run; labels and lambda are for the backward pass."""
    out = [run["program"], "trace"]
    for key, option in (("model", "-m"), ("llm", "-l"), ("mend", "-m")):
        if key in run:
            out += [option, folder + "/models/" + run[key] + ".safetensors"]
    for key in ("ids", "encoder_ids", "demonstration_ids"):
        if key in run:
            out += ["--" + key.replace("_", "-"), ",".join(map(str, run[key]))]
    if backward:
        out += ["--backward"]
        if "labels" in run:
            out += ["--labels=" + ",".join(map(str, run["labels"]))]
        if "lambda" in run:
            out += ["--lambda", str(run["lambda"])]
    return out


def manifests(folder):
    """(name of the manifest, program, arguments) of every run, forward alone and with the way back, in both arithmetics."""
    for name, run in RUNS.items():
        for backward in (False, True):
            for arithmetic in ("fast", "reference"):
                yield (("%s.backward.%s" if backward else "%s.%s") % (name, arithmetic), *command(run, folder, backward), "--math", arithmetic)


def make(folder):
    os.makedirs(os.path.join(folder, "models"), exist_ok=True)
    for name, (make, config, architecture) in MODELS.items():
        write_flat(os.path.join(folder, "models", name + ".safetensors"), make(name, config).items, config, architecture)
    with open(os.path.join(folder, "runs.json"), "w") as f:
        f.write("{\n" + ",\n".join("%s: %s" % (json.dumps(name), json.dumps(run)) for name, run in RUNS.items()) + "\n}\n")
    make_vectors.write(os.path.join(folder, "vectors.jsonl"))
    for name, program, *rest in manifests(folder):
        subprocess.run([os.path.join(ROOT, program), *rest, "--threads", "1", "--hash-only", "-o", os.path.join(folder, name)], check=True)


if __name__ == "__main__" and sys.argv[1:] == ["--commands"]:
    for run in manifests("conformance"):
        print(*run)
elif __name__ == "__main__":
    make(sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "conformance"))
