"""mend against transformers in float64 on the same random weights: log probabilities, distilled vectors, option scores, greedy text.

usage: python3 test/slow_mend.py      needs the packages of test/requirements.txt

Errors are measured as rms over everything a case gives, and compared with those of PyTorch in float32 on the same weights: `reference` at most
1 times, `fast` at most 3 times theirs. A tiny model gives few numbers, so the cases of one model are taken together.
"""
import json
import math
import os
import subprocess
import sys
import tempfile

import torch
import transformers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MEND = os.path.join(ROOT, "mend")
passed = failed = 0


def check(condition, message):
    global passed, failed
    passed, failed = passed + bool(condition), failed + (not condition)
    if not condition:
        print("failed: " + message)


def run(*arguments, text=None):
    done = subprocess.run([MEND, *arguments], input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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


def main():
    transformers.logging.set_verbosity_error()
    torch.manual_seed(5)
    G, T = transformers.GPT2Config, transformers.T5Config
    t5 = dict(vocab_size=211, decoder_start_token_id=0, pad_token_id=0)
    with tempfile.TemporaryDirectory() as folder:
        for name, model, lengths in (
                ("gpt2 20/5/3", transformers.GPT2LMHeadModel(G(n_embd=20, n_head=5, n_layer=3, vocab_size=307, n_positions=600)), (1, 2, 17, 130, 600)),
                ("gpt2 49/7/2 n_inner 31", transformers.GPT2LMHeadModel(G(n_embd=49, n_head=7, n_layer=2, vocab_size=211, n_positions=129, n_inner=31)), (2, 3, 129)),
                ("gpt2 64/1/4 relu", transformers.GPT2LMHeadModel(G(n_embd=64, n_head=1, n_layer=4, vocab_size=97, activation_function="relu")), (5, 300)),
                ("gpt2 192/3/2", transformers.GPT2LMHeadModel(G(n_embd=192, n_head=3, n_layer=2, vocab_size=1001)), (40, 257)),
                ("t5 v1.0 24/3x5", transformers.T5ForConditionalGeneration(T(d_model=24, d_kv=5, num_heads=3, d_ff=33, num_layers=2, num_decoder_layers=3, **t5)), (1, 2, 17, 130, 300)),
                ("t5 v1.1 20/4x7", transformers.T5ForConditionalGeneration(T(d_model=20, d_kv=7, num_heads=4, d_ff=26, num_layers=3, feed_forward_proj="gated-gelu",
                                                                            tie_word_embeddings=False, **t5)), (1, 4, 33, 200)),
                ("t5 v1.1 buckets 12/50", transformers.T5ForConditionalGeneration(T(d_model=32, d_kv=8, num_heads=4, d_ff=40, num_layers=2, feed_forward_proj="gated-gelu",
                                                                                   tie_word_embeddings=False, relative_attention_num_buckets=12,
                                                                                   relative_attention_max_distance=50, **t5)), (90,))):
            compare(name, spread(model), lengths, folder)
        untied(folder)
    print("%d passed, %d failed" % (passed, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
