"""export.py on checkpoints that torch and transformers write, its files read back by safetensors: every tensor equal bit for bit.

usage: PYTHON test/slow_export.py      PYTHON with torch, transformers and safetensors (test/requirements.txt)
"""
import os
import subprocess
import sys
import tempfile

from checks import check, finish

import numpy
import safetensors
import safetensors.numpy
import torch
import transformers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NEW = 100


def bits(array):
    return numpy.ascontiguousarray(array).view(numpy.uint32)


def wanted_tensors(state, prefix):
    """What docs/FORMAT.md says of a checkpoint: its names without the prefix, matrices of linear layers turned round, float32."""
    out = {}
    for name, tensor in state.items():
        flat = name[len(prefix):] if name.startswith(prefix) else name
        if flat.startswith("pooler.") or flat.endswith("position_ids"):
            continue
        value = tensor.float().numpy()
        out[flat] = value.T if value.ndim == 2 and not flat.startswith("embeddings.") else value
    return out


def compare(what, directory, state, prefix, pieces):
    """Export the directory, open the flat file by both of safetensors' readers; pieces: rows of the embedding that the vocabulary names."""
    path = os.path.join(directory, "flat.safetensors")
    done = subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), directory, "-o", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    check(done.returncode == 0, "%s: exit %d: %s" % (what, done.returncode, done.stderr.decode()[-300:]))
    if done.returncode:
        return
    found, wanted = safetensors.numpy.load_file(path), wanted_tensors(state, prefix)
    with safetensors.safe_open(path, "pt") as file:
        check(sorted(file.keys()) == sorted(found) and file.metadata()["format"] == "prompt-flat-1", "%s: safe_open sees other names" % what)
        base = int(file.metadata()["new_token_base"])
    check(base == pieces, "%s: [NEW0] is row %d, wanted %d" % (what, base, pieces))
    model = {k: v for k, v in found.items() if not k.startswith("tokenizer.")}
    check(set(model) == set(wanted), "%s: names differ: %s" % (what, sorted(set(model) ^ set(wanted))[:6]))
    for name, value in wanted.items():
        if name in model:
            got = model[name]
            if name == "embeddings.word_embeddings.weight":
                mean = numpy.mean(value.astype(numpy.float64), 0)
                check(got.shape[0] == max(value.shape[0], base + NEW), "%s: %d rows" % (what, got.shape[0]))
                check(numpy.allclose(got[value.shape[0]:], mean, rtol=1e-6, atol=1e-8), "%s: the added rows are not the mean" % what)
                got = got[:value.shape[0]]
            check(got.dtype == numpy.float32 and got.shape == value.shape and numpy.array_equal(bits(got), bits(value)), "%s: %s differs" % (what, name))
    os.unlink(path)


def save(kind, model, directory):
    """The checkpoint's weights in one of the ways that people have them."""
    if kind == "safetensors":
        model.save_pretrained(directory)
    elif kind == "sharded safetensors":
        model.save_pretrained(directory, max_shard_size="1KB")
        check(os.path.exists(os.path.join(directory, "model.safetensors.index.json")), "save_pretrained made no shards")
    else:
        model.config.save_pretrained(directory)
        state = model.state_dict()
        if kind == "zip of columns":
            state = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in state.items()}
        if kind == "zip of parameters":
            state = {k: torch.nn.Parameter(v) for k, v in state.items()}
        if kind == "zip in one storage":
            whole, at = torch.cat([v.flatten() for v in state.values()]), 0
            for k, v in state.items():
                state[k], at = whole[at:at + v.numel()].view(v.shape), at + v.numel()
        if kind == "zip, nested":
            state = {"epoch": 3, "state_dict": state}
        torch.save(state, os.path.join(directory, "pytorch_model.bin"), _use_new_zipfile_serialization=kind != "legacy")


KINDS = ["safetensors", "sharded safetensors", "zip", "legacy", "zip of columns", "zip of parameters", "zip in one storage", "zip, nested"]
# hidden C, heads H, layers L, intermediate F, positions P, rows beyond the vocabulary's
SIZES = [(6, 3, 1, 11, 23, 0), (35, 5, 3, 41, 37, 100), (13, 1, 2, 7, 16, 31)]


def bert(C, H, L, F, P, more):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + ["w%d" % i for i in range(58)]
    config = transformers.BertConfig(vocab_size=len(vocabulary) + more, hidden_size=C, num_attention_heads=H, num_hidden_layers=L, intermediate_size=F, max_position_embeddings=P, num_labels=2)
    return transformers.BertForTokenClassification(config), "bert.", len(vocabulary), lambda directory: open(os.path.join(directory, "vocab.txt"), "w").write("\n".join(vocabulary) + "\n")


def xlmr(C, H, L, F, P, more):
    config = transformers.XLMRobertaConfig(vocab_size=71 + more, hidden_size=C, num_attention_heads=H, num_hidden_layers=L, intermediate_size=F, max_position_embeddings=P, num_labels=2, type_vocab_size=1)
    return transformers.XLMRobertaForTokenClassification(config), "roberta.", 71 + more, lambda directory: None


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(7)
    for make in (bert, xlmr):
        for sizes in SIZES:
            for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
                model, prefix, pieces, vocabulary = make(*sizes)
                for parameter in model.parameters():
                    torch.nn.init.normal_(parameter, 0, 2)
                model = model.to(dtype)
                state = {k: v.clone() for k, v in model.state_dict().items()}
                for kind in KINDS:
                    with tempfile.TemporaryDirectory() as directory:
                        save(kind, model, directory)
                        vocabulary(directory)
                        compare("%s %s %s %s" % (make.__name__, sizes, dtype, kind), directory, state, prefix, pieces)
    return finish()


sys.exit(main())
