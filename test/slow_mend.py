"""mend against transformers in float64 on the same random weights: log probabilities, distilled vectors, option scores, greedy text.

usage: python3 test/slow_mend.py               small models of odd sizes, then the full sizes of DEFAULT; needs the packages of test/requirements.txt
       python3 test/slow_mend.py NAME...       full sizes alone, any of FULL; gpt2-xl takes 20 GB of disk, 10 GB of memory and some minutes

Errors are measured as rms over everything a case gives, and compared with those of PyTorch in float32 on the same weights: `reference` at most
1 times, `fast` at most 3 times theirs. A tiny model gives few numbers, so the cases of one model are taken together.
"""
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile

from checks import check, finish

import torch
import transformers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "bench"))
from compare import peak_memory  # noqa: E402
MEND = os.path.join(ROOT, "mend")


def run(*arguments):
    """Standard output of a call that must succeed."""
    done = subprocess.run([MEND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit("mend %s: %d %s" % (" ".join(arguments), done.returncode, done.stderr))
    return done.stdout


def export(folder, *more):
    flat = folder + ".safetensors"
    subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), folder, *more, "-o", flat], check=True, stderr=subprocess.PIPE)
    return flat


def rms(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b)) / len(a))


def spread(model):
    """Weights large enough that every part shows in the result."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and "wte" not in name and "shared" not in name and "wpe" not in name:
                p.copy_(torch.randn_like(p) * 1.2 / math.sqrt(p.shape[0] if "c_" in name else p.shape[1]))
            elif p.dim() == 1:
                p.copy_(p + 0.1 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * 0.5)
    return model.eval()


def ids_of(n, V, seed):
    return torch.randint(0, V, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def logprobs(model, ids, source=None):
    """Of each id given those before it."""
    with torch.no_grad():
        if source is None:
            out = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            targets = ids[1:]
        else:
            out = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[model.config.decoder_start_token_id] + ids[:-1]])).logits[0]
            targets = ids
        out = out.log_softmax(-1)
        return [out[i, t].item() for i, t in enumerate(targets)]


def compare(name, model, lengths, folder):
    path = os.path.join(folder, name)
    model.save_pretrained(path)
    flat = export(path)
    is_t5, V = model.config.model_type == "t5", model.config.vocab_size
    double = type(model).from_pretrained(path, dtype=torch.float64).eval()
    truth, single, ours = [], [], {"fast": [], "reference": []}
    for n in lengths:
        ids, source = ids_of(n, V, n), ids_of(n + 3, V, 1000 + n) if is_t5 else None
        if n == 1 and not is_t5:
            continue
        truth += logprobs(double, ids, source)
        single += logprobs(model, ids, source)
        for mode in ours:
            more = ["--encoder-ids", ",".join(map(str, source))] if is_t5 else []
            result = json.loads(run("logprob", "-l", flat, "--json", "--math", mode, "--ids", ",".join(map(str, ids)), *more))
            ours[mode] += result["logprob"]
    theirs = rms(single, truth)
    row = {mode: rms(values, truth) for mode, values in ours.items()}
    print("%-28s torch float32 %.3g, reference %.2f, fast %.2f of it" % (name, theirs, row["reference"] / theirs, row["fast"] / theirs))
    check(row["reference"] <= theirs, "%s: reference %.3g, torch %.3g" % (name, row["reference"], theirs))
    check(row["fast"] <= 3 * theirs, "%s: fast %.3g, torch %.3g" % (name, row["fast"], theirs))
    greedy(name, double, flat, is_t5, V)


def untied(folder):
    """A head of its own, as T5 v1.1's checkpoints have: transformers 5 keeps it where it differs from the embedding."""
    import safetensors.torch
    path = os.path.join(folder, "untied")
    model = spread(transformers.T5ForConditionalGeneration(transformers.T5Config(
        d_model=20, d_kv=7, num_heads=4, d_ff=26, num_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False, vocab_size=211, decoder_start_token_id=0)))
    model.save_pretrained(path)
    tensors = safetensors.torch.load_file(os.path.join(path, "model.safetensors"))
    tensors["lm_head.weight"] = torch.randn(211, 20)
    safetensors.torch.save_file(tensors, os.path.join(path, "model.safetensors"), {"format": "pt"})
    flat, ids, source = export(path), ids_of(20, 211, 3), ids_of(30, 211, 4)
    double = transformers.T5ForConditionalGeneration.from_pretrained(path, dtype=torch.float64).eval()
    with torch.no_grad():
        e = double.encoder(input_ids=torch.tensor([source])).last_hidden_state
        h = double.decoder(input_ids=torch.tensor([[0] + ids[:-1]]), encoder_hidden_states=e).last_hidden_state[0]
        lp = (h @ tensors["lm_head.weight"].double().T).log_softmax(-1)
    got = json.loads(run("logprob", "-l", flat, "--json", "--ids", ",".join(map(str, ids)), "--encoder-ids", ",".join(map(str, source))))["logprob"]
    error = rms(got, [lp[i, t].item() for i, t in enumerate(ids)])
    check(error < 1e-4, "t5 with a head of its own: rms %.3g (float32 gives about 1e-6, a wrong head about 1)" % error)


def greedy(name, double, flat, is_t5, V):
    if is_t5:
        return
    ids = ids_of(9, V, 77)
    got = json.loads(run("generate", "-l", flat, "--json", "--ids", ",".join(map(str, ids)), "-n", "12"))["ids"]
    want = list(ids)
    with torch.no_grad():
        for _ in got:
            want.append(double(input_ids=torch.tensor([want])).logits[0, -1].argmax().item())
    check(got == want[len(ids):], "%s: greedy text %s, transformers %s" % (name, got, want[len(ids):]))


# ==== full size ====

TOKENS = 64
FULL = {"gpt2": dict(n_embd=768, n_layer=12, n_head=12), "gpt2-large": dict(n_embd=1280, n_layer=36, n_head=20), "gpt2-xl": dict(n_embd=1600, n_layer=48, n_head=25),
        "t5-small": dict(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8), "t5-base": dict(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12),
        "t5-large": dict(d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_heads=16),
        "t5-large-lm-adapt": dict(d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16, feed_forward_proj="gated-gelu", tie_word_embeddings=False)}
DEFAULT = ("gpt2", "t5-small")
MOST_GB = {"gpt2-xl": 8}  # of memory, at its peak


def random_model(name):
    """Random weights as the architecture initialises them, but for vectors, which would be all ones and zeros."""
    if name.startswith("gpt2"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**FULL[name]))
    else:
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(decoder_start_token_id=0, pad_token_id=0, **FULL[name]))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def t5_norm(self, x):
    """T5's norm takes its mean square in float32 whatever the model's type; this one does not."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class Double:
    """A float32 model computes in float64, each part of it only while it is at work: a whole copy would not fit the memory."""

    def __init__(self, model):
        self.hooks = []
        for module in model.modules():
            # T5's feed-forward asks for the type of its last matrix before that is at work.
            if list(module.parameters(recurse=False)) or type(module).__name__.startswith("T5Dense"):
                self.hooks.append(module.register_forward_pre_hook(lambda m, inputs: (m.double(), None)[1]))
                self.hooks.append(module.register_forward_hook(lambda m, inputs, output: (m.float(), None)[1]))

    def __enter__(self):
        self.old = transformers.models.t5.modeling_t5.T5LayerNorm.forward
        transformers.models.t5.modeling_t5.T5LayerNorm.forward = t5_norm

    def __exit__(self, *error):
        transformers.models.t5.modeling_t5.T5LayerNorm.forward = self.old
        for hook in self.hooks:
            hook.remove()


def hidden_and_logprobs(model, ids, source):
    """What stands before the head (T5: also what the encoder gives), and log p of each id, as lists."""
    with torch.no_grad():
        if source is None:
            h = model.transformer(input_ids=torch.tensor([ids])).last_hidden_state
            hidden, lp, targets = [h], model.lm_head(h)[0, :-1].log_softmax(-1), ids[1:]
        else:
            out = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[0] + ids[:-1]]), output_hidden_states=True)
            hidden, lp, targets = [out.encoder_last_hidden_state, out.decoder_hidden_states[-1]], out.logits[0].log_softmax(-1), ids
        return torch.cat([h.flatten() for h in hidden]).double(), [lp[i, t].item() for i, t in enumerate(targets)]


def read_taps(path):
    """All numbers of a trace, one tap behind the other."""
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        header, data = json.loads(f.read(n)), f.read()
    taps = [t for name, t in header.items() if t.get("dtype") == "F32"]
    return torch.cat([torch.frombuffer(bytearray(data[t["data_offsets"][0]:t["data_offsets"][1]]), dtype=torch.float32) for t in taps]).double()


def full_size(name, folder):
    model, path = random_model(name), os.path.join(folder, name)
    is_t5, V = model.config.model_type == "t5", model.config.vocab_size
    model.save_pretrained(path)
    flat = export(path)
    shutil.rmtree(path)
    ids, source = ids_of(TOKENS, V, 1), ids_of(TOKENS + 3, V, 2) if is_t5 else None
    single, single_lp = hidden_and_logprobs(model, ids, source)
    with Double(model):
        truth, truth_lp = hidden_and_logprobs(model, ids, source)
    check(truth.dtype == torch.float64 and len(set(truth_lp)) > 1, "%s: no float64" % name)
    del model
    arguments = ["-l", flat, "--ids", ",".join(map(str, ids))] + (["--encoder-ids", ",".join(map(str, source))] if is_t5 else [])
    for mode, most in (("reference", 1), ("fast", 3)):
        trace = os.path.join(folder, "run")
        run("trace", *arguments, "-q", "-o", trace, "--only", "*final_layer_norm" if is_t5 else "ln_f", "--math", mode)
        lp = json.loads(run("logprob", *arguments, "--json", "--math", mode))["logprob"]
        for what, ours, theirs, true in (("hidden states", read_taps(trace + ".safetensors"), single, truth), ("log p", torch.tensor(lp), torch.tensor(single_lp), torch.tensor(truth_lp))):
            error, other = ((x - true).pow(2).mean().sqrt().item() for x in (ours.double(), theirs.double()))
            print("%-28s %-10s %-14s %.2f of torch float32's %.3g" % (name, mode, what, error / other, other), flush=True)
            check(error <= most * other, "%s, %s, %s: %.3g, torch %.3g" % (name, mode, what, error, other))
    peak = peak_memory([MEND, "logprob", *arguments]) / 2 ** 20
    print("%-28s peak memory %.2f GiB, model file %.2f GiB" % (name, peak, os.path.getsize(flat) / 2 ** 30))
    check(name not in MOST_GB or peak <= MOST_GB[name], "%s: %.2f GiB of memory" % (name, peak))
    os.remove(flat)


def main():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(5)
    G, T = transformers.GPT2Config, transformers.T5Config
    t5 = dict(vocab_size=211, decoder_start_token_id=0, pad_token_id=0)
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or DEFAULT:
            full_size(name, folder)
        for name, model, lengths in () if sys.argv[1:] else (
                ("gpt2 20/5/3", transformers.GPT2LMHeadModel(G(n_embd=20, n_head=5, n_layer=3, vocab_size=307, n_positions=600)), (1, 2, 17, 130, 600)),
                ("gpt2 49/7/2 n_inner 31", transformers.GPT2LMHeadModel(G(n_embd=49, n_head=7, n_layer=2, vocab_size=211, n_positions=129, n_inner=31)), (2, 3, 129)),
                ("gpt2 64/1/4 relu", transformers.GPT2LMHeadModel(G(n_embd=64, n_head=1, n_layer=4, vocab_size=97, activation_function="relu")), (5, 300)),
                ("gpt2 33/3/2 own head", transformers.GPT2LMHeadModel(G(n_embd=33, n_head=3, n_layer=2, vocab_size=211, tie_word_embeddings=False)), (2, 70)),
                ("gpt2 192/3/2", transformers.GPT2LMHeadModel(G(n_embd=192, n_head=3, n_layer=2, vocab_size=1001)), (40, 257)),
                ("t5 v1.0 24/3x5", transformers.T5ForConditionalGeneration(T(d_model=24, d_kv=5, num_heads=3, d_ff=33, num_layers=2, num_decoder_layers=3, **t5)), (1, 2, 17, 130, 300)),
                ("t5 v1.1 20/4x7", transformers.T5ForConditionalGeneration(T(d_model=20, d_kv=7, num_heads=4, d_ff=26, num_layers=3, feed_forward_proj="gated-gelu",
                                                                            tie_word_embeddings=False, **t5)), (1, 4, 33, 200)),
                ("t5 v1.1 buckets 12/50", transformers.T5ForConditionalGeneration(T(d_model=32, d_kv=8, num_heads=4, d_ff=40, num_layers=2, feed_forward_proj="gated-gelu",
                                                                                   tie_word_embeddings=False, relative_attention_num_buckets=12,
                                                                                   relative_attention_max_distance=50, **t5)), (90,))):
            compare(name, spread(model), lengths, folder)
        if not sys.argv[1:]:
            untied(folder)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
