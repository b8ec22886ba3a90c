"""Make the small random GPT-2, T5 and MEND checkpoints that the tests of mend run on. Standard library alone: every machine makes the same bytes.

usage: python3 test/make_mend_models.py FOLDER [NAME...]      writes FOLDER/NAME/{config.json, weights, tokenizer files}

Each is a Hugging Face directory with a real tokenizer (from ../shared/assets) and random weights. The odd widths are meant: no head, row or
hidden layer is a multiple of a vector's length. Embeddings and heads are scaled so that the logits deviate by some 1.5 to 2 and change from
one position to the next, and queries and keys so that attention is neither flat nor a single peak: an error anywhere shows in the numbers.
A `mend-` directory is the distiller's own configuration and tokenizer beside the weights that the released training code saves: every key
under `hypernet.`. Its code saves no config.json with them; it is here so that one directory can be both arguments of export.py.
A directory that is there and carries the same recipe is left as it is.
"""
import json
import os
import shutil
import struct
import sys
import zipfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_models import ASSETS, uniform, write_json, write_safetensors  # noqa: E402

RECIPE = 1  # raise it when the weights of a name change, so that cached directories are made anew

# GPT-2: C n_embd, H heads, L layers, F hidden layer of the MLP (None: 4 C, as config.json's null says).
# T5: C d_model, K d_kv (its heads need not add up to C), H heads, L encoder layers, D decoder layers, F d_ff, gated: v1.1.
# MEND: v rows of init_prompt_weight; llm: the width of the LLM, with adap_pooler if it differs from C.
MODELS = {
    "gpt2-tiny": dict(kind="gpt2", architecture="GPT2LMHeadModel", prefix="transformer.", C=20, H=5, L=3, F=None),
    "gpt2-base-tiny": dict(kind="gpt2", architecture="GPT2Model", prefix="", C=12, H=3, L=2, F=29),
    "t5-tiny": dict(kind="t5", architecture="T5ForConditionalGeneration", C=24, K=5, H=3, L=2, D=3, F=33, gated=False),
    "t5-gated-tiny": dict(kind="t5", architecture="T5ForConditionalGeneration", C=20, K=7, H=4, L=2, D=2, F=26, gated=True),
    "t5-encoder-tiny": dict(kind="t5", architecture="T5EncoderModel", C=20, K=7, H=4, L=2, D=2, F=26, gated=True),
    "mend-tiny": dict(kind="gpt2", architecture="GPT2Model", prefix="hypernet.", C=12, H=3, L=2, F=None, v=7, llm=20, pickle=True, buffers=True),
    "mend-same": dict(kind="gpt2", architecture="GPT2Model", prefix="hypernet.", C=20, H=5, L=2, F=None, v=100, llm=20),
    "mend-t5-tiny": dict(kind="t5", architecture="T5EncoderModel", prefix="hypernet.", C=20, K=7, H=4, L=2, D=2, F=26, gated=True, v=9, llm=24,
                         pickle=True),
}
GPT2_ROWS, GPT2_POSITIONS, T5_ROWS, T5_BUCKETS = 50257, 1024, 32128, 32
LOGITS = 1.75  # their deviation


# ==== tensors: (name, shape, values) in the checkpoint's own names and layouts ====

class Draw:
    """Random tensors of one checkpoint: the bits depend on the checkpoint's and the tensor's name."""

    def __init__(self, seed):
        self.seed = seed

    def matrix(self, name, rows, width, deviation):
        return name, [rows, width], uniform(self.seed + " " + name, rows * width, deviation)

    def vector(self, name, width, deviation, mean=0.0):
        return name, [width], uniform(self.seed + " " + name, width, deviation, mean)


def gpt2_tensors(name, spec):
    """A GPT-2. Its matrices are [in, out]; the head is wte, so that wte's deviation makes the logits': C products of numbers of size 1."""
    draw, at, C, F = Draw(name), spec["prefix"], spec["C"], spec["F"] or 4 * spec["C"]
    yield draw.matrix(at + "wte.weight", GPT2_ROWS, C, LOGITS / C ** 0.5)
    yield draw.matrix(at + "wpe.weight", GPT2_POSITIONS, C, 0.3)
    for layer in range(spec["L"]):
        block = at + "h.%d." % layer
        for part, width, out, deviation in (("attn.c_attn", C, 3 * C, 1.3), ("attn.c_proj", C, C, 1.0), ("mlp.c_fc", C, F, 1.0), ("mlp.c_proj", F, C, 1.0)):
            if part in ("attn.c_attn", "mlp.c_fc"):
                norm = block + ("ln_1" if part == "attn.c_attn" else "ln_2")
                yield draw.vector(norm + ".weight", C, 0.1, 1.0)
                yield draw.vector(norm + ".bias", C, 0.1)
            yield draw.matrix(block + part + ".weight", width, out, deviation / width ** 0.5)
            yield draw.vector(block + part + ".bias", out, 0.1)
    yield draw.vector(at + "ln_f.weight", C, 0.1, 1.0)
    yield draw.vector(at + "ln_f.bias", C, 0.1)


def t5_tensors(name, spec):
    """A T5, its matrices [out, in]. Scores are not divided by sqrt(d_kv): the queries' weights are small instead. A tied head multiplies its
    input by C^-1/2, an untied one does not."""
    draw, at, C, F, inner = Draw(name), spec.get("prefix", ""), spec["C"], spec["F"], spec["H"] * spec["K"]
    decoder = spec["architecture"] == "T5ForConditionalGeneration"
    tied = not spec["gated"]
    yield draw.matrix(at + "shared.weight", T5_ROWS, C, LOGITS if tied else 1.0)

    def attention(block, bias):
        for part in "qkv":
            yield draw.matrix(block + "%s.weight" % part, inner, C, (1.5 / spec["K"] ** 0.5 if part == "q" else 1.0) / C ** 0.5)
        yield draw.matrix(block + "o.weight", C, inner, 1.0 / inner ** 0.5)
        if bias:
            yield draw.matrix(block + "relative_attention_bias.weight", T5_BUCKETS, spec["H"], 1.0)

    for side, layers in (("encoder", spec["L"]), ("decoder", spec["D"])) if decoder else (("encoder", spec["L"]),):
        for layer in range(layers):
            part = at + "%s.block.%d.layer." % (side, layer)
            yield from attention(part + "0.SelfAttention.", layer == 0)
            yield draw.vector(part + "0.layer_norm.weight", C, 0.1, 1.0)
            if side == "decoder":
                # The old T5 checkpoints carry a bias table here that no version of the model reads.
                yield from attention(part + "1.EncDecAttention.", layer == 0 and tied)
                yield draw.vector(part + "1.layer_norm.weight", C, 0.1, 1.0)
            part += "%d." % (2 if side == "decoder" else 1)
            for matrix in ("wi_0", "wi_1") if spec["gated"] else ("wi",):
                yield draw.matrix(part + "DenseReluDense.%s.weight" % matrix, F, C, 1.0 / C ** 0.5)
            yield draw.matrix(part + "DenseReluDense.wo.weight", C, F, 1.0 / F ** 0.5)
            yield draw.vector(part + "layer_norm.weight", C, 0.1, 1.0)
        yield draw.vector(at + side + ".final_layer_norm.weight", C, 0.1, 1.0)
    if decoder and not tied:
        yield draw.matrix(at + "lm_head.weight", T5_ROWS, C, LOGITS / C ** 0.5)


def tensors(name, spec):
    yield from (gpt2_tensors if spec["kind"] == "gpt2" else t5_tensors)(name, spec)
    if "v" not in spec:
        return
    draw, C = Draw(name), spec["C"]
    # As large as the word embeddings that the released code starts it from.
    yield draw.matrix("hypernet.init_prompt_weight", spec["v"], C, LOGITS / C ** 0.5 if spec["kind"] == "gpt2" else 1.0)
    if spec["llm"] != C:
        yield draw.matrix("hypernet.adap_pooler.dense.weight", spec["llm"], C, 1.0 / C ** 0.5)
        yield draw.vector("hypernet.adap_pooler.dense.bias", spec["llm"], 0.1)
    if spec.get("buffers"):
        # GPT-2 of older transformers saves its causal mask as if it were weights.
        mask = b"".join(b"\1" * (i + 1) + b"\0" * (GPT2_POSITIONS - 1 - i) for i in range(GPT2_POSITIONS))
        for layer in range(spec["L"]):
            yield "hypernet.h.%d.attn.bias" % layer, [1, 1, GPT2_POSITIONS, GPT2_POSITIONS], mask


# ==== pytorch_model.bin ====

def opcode_text(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def opcode_number(n):
    return b"J" + struct.pack("<i", n)


def opcode_tuple(items):
    return b"(" + b"".join(items) + b"t"


def write_pickle(path, items):
    """What torch.save makes of {name: tensor}: a zip of the storages' bytes and of data.pkl, whose opcodes (protocol 2) are written out here."""
    ordered = b"ccollections\nOrderedDict\n)R"
    stream, storages = [b"\x80\x02" + ordered + b"("], []
    for name, shape, values in items:
        if isinstance(values, bytes):
            storage, data, count = b"ctorch\nBoolStorage\n", values, len(values)
        else:
            if sys.byteorder == "big":
                values.byteswap()
            storage, data, count = b"ctorch\nFloatStorage\n", values.tobytes(), len(values)
        strides = [1]
        for size in shape[:0:-1]:
            strides.insert(0, strides[0] * size)
        key = opcode_text(str(len(storages)))
        where = opcode_tuple([opcode_text("storage"), storage, key, opcode_text("cpu"), opcode_number(count)]) + b"Q"
        parts = [where, opcode_number(0), opcode_tuple(map(opcode_number, shape)), opcode_tuple(map(opcode_number, strides)), b"\x89", ordered]
        stream.append(opcode_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + opcode_tuple(parts) + b"R")
        storages.append(data)
    stream.append(b"u.")
    with zipfile.ZipFile(path, "w") as file:
        for name, data in [("data.pkl", b"".join(stream)), ("version", b"3\n"), ("byteorder", b"little")] + [
                ("data/%d" % i, data) for i, data in enumerate(storages)]:
            file.writestr(zipfile.ZipInfo("pytorch_model/" + name), data)


# ==== whole checkpoints ====

def config(spec):
    """config.json as transformers writes it."""
    common = {"architectures": [spec["architecture"]], "dtype": "float32", "transformers_version": "5.24.0", "use_cache": True}
    if spec["kind"] == "gpt2":
        return dict(common, model_type="gpt2", activation_function="gelu_new", add_cross_attention=False, attn_pdrop=0.1, bos_token_id=50256,
                    embd_pdrop=0.1, eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-5, n_embd=spec["C"], n_head=spec["H"],
                    n_inner=spec["F"], n_layer=spec["L"], n_positions=GPT2_POSITIONS, pad_token_id=None, reorder_and_upcast_attn=False,
                    resid_pdrop=0.1, scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True, summary_activation=None,
                    summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
                    tie_word_embeddings=True, vocab_size=GPT2_ROWS)
    gated = spec["gated"]
    return dict(common, model_type="t5", classifier_dropout=0.0, d_ff=spec["F"], d_kv=spec["K"], d_model=spec["C"], decoder_start_token_id=0,
                dense_act_fn="gelu_new" if gated else "relu", dropout_rate=0.1, eos_token_id=1,
                feed_forward_proj="gated-gelu" if gated else "relu", initializer_factor=1.0, is_encoder_decoder=spec["architecture"] != "T5EncoderModel",
                is_gated_act=gated, layer_norm_epsilon=1e-6, num_decoder_layers=spec["D"], num_heads=spec["H"], num_layers=spec["L"],
                pad_token_id=0, relative_attention_max_distance=128, relative_attention_num_buckets=T5_BUCKETS, tie_word_embeddings=not gated,
                vocab_size=T5_ROWS)


def write_tokenizer(folder, kind):
    if kind == "gpt2":
        for file in ("vocab.json", "merges.txt"):
            shutil.copyfile(os.path.join(ASSETS, "gpt2-tokenizer", file), os.path.join(folder, file))
        write_json(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, "add_prefix_space": False,
                                                     "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    else:
        shutil.copyfile(os.path.join(ASSETS, "t5-tokenizer", "tokenizer.json"), os.path.join(folder, "tokenizer.json"))
        write_json(folder, "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 100,
                                                     "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"})


def make(folder, name):
    """Write one checkpoint to folder/name, whole or not at all; returns its path."""
    path, spec = os.path.join(folder, name), MODELS[name]
    stamp = json.dumps([RECIPE, spec], sort_keys=True)
    try:
        with open(os.path.join(path, "recipe.json"), encoding="utf-8") as f:
            if f.read() == stamp:
                return path
    except OSError:
        pass
    draft = path + ".part%d" % os.getpid()
    os.makedirs(draft)
    write_tokenizer(draft, spec["kind"])
    write_json(draft, "config.json", config(spec))
    if spec.get("pickle"):
        write_pickle(os.path.join(draft, "pytorch_model.bin"), tensors(name, spec))
    else:
        write_safetensors(os.path.join(draft, "model.safetensors"), tensors(name, spec))
    with open(os.path.join(draft, "recipe.json"), "w", encoding="utf-8") as f:
        f.write(stamp)
    shutil.rmtree(path, ignore_errors=True)
    os.rename(draft, path)
    return path


def main():
    if len(sys.argv) < 2 or any(name not in MODELS for name in sys.argv[2:]):
        sys.exit("usage: python3 test/make_mend_models.py FOLDER [NAME...]\nnames: " + " ".join(MODELS))
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for name in sys.argv[2:] or MODELS:
        print(make(sys.argv[1], name))


if __name__ == "__main__":
    main()
