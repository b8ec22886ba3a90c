"""Every tap of five models, forward and backward, against transformers: our error over PyTorch's, both measured from transformers in float64 on the same weights.

usage: python3 test/slow_traces.py [NAME...]      needs torch and transformers; bert, xlmr, gpt2, t5, mend
       python3 test/slow_traces.py --all NAME     the whole table of one model

What must hold for every tap, in rms: --math reference: our error is below PyTorch float32's, or the bits are PyTorch's (the sum of two numbers has one right
answer). --math fast: below 3 times it (one ascending float32 chain against PyTorch's parallel ones); of gradients 6 times: many
are sums that nearly cancel. Where a tap is one or two numbers (a loss, a classifier's bias) PyTorch may be nearer by luck: it is enough to be within 1e-5 of it.
"""
import json
import os
import subprocess
import sys
import tempfile

from checks import check, finish, skip

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "test"))
LIMITS = {"reference": (1.0, 1.0), "fast": (3.0, 6.0)}  # forward, backward
FEW, NEAR = 2, 1e-5
ROWS, T = 331, 61


def sizes(transformers, name):
    """The random models: wide enough that a tap's error is no accident, no width a multiple of a vector."""
    bert = dict(vocab_size=ROWS, hidden_size=93, num_attention_heads=3, num_hidden_layers=3, intermediate_size=205, num_labels=2, attn_implementation="eager")
    gpt = dict(vocab_size=ROWS, n_embd=93, n_head=3, n_layer=3, n_positions=128, n_inner=205, attn_implementation="eager")
    if name == "bert":
        return transformers.BertForTokenClassification(transformers.BertConfig(**bert))
    if name == "xlmr":
        return transformers.XLMRobertaForTokenClassification(transformers.XLMRobertaConfig(**bert, max_position_embeddings=130, type_vocab_size=1, layer_norm_eps=1e-5))
    if name == "t5":
        return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=ROWS, d_model=93, d_kv=17, num_heads=5, num_layers=3, d_ff=205, feed_forward_proj="gated-gelu",
                                                                            decoder_start_token_id=0, tie_word_embeddings=False, attn_implementation="eager"))
    if name == "distiller":
        return transformers.GPT2Model(transformers.GPT2Config(**dict(gpt, n_embd=51, n_inner=None)))
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt))


def scatter(model):
    """Weights that make activations of size 1, so that every rounding shows."""
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.data.normal_(1.0 if "norm" in name.lower() or "ln_" in name and name.endswith("weight") else 0.0, 0.1)
        elif any(word in name for word in ("embed", "wte", "wpe", "shared", "relative")):
            weight.data.normal_(0.0, 0.5)
        else:
            weight.data.normal_(0.0, weight.shape[1 if "Conv1D" not in str(type(model.get_submodule(name.rpartition(".")[0]))) else 0] ** -0.5)
    return model.eval()


def export(folder, model, *more):
    path, flat = os.path.join(folder, "hf"), os.path.join(folder, "flat%d.safetensors" % len(os.listdir(folder)))
    if model is not None:
        model.save_pretrained(path)
    subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), path, *more, "-o", flat], check=True, stderr=subprocess.DEVNULL)
    return flat


def commas(ids):
    return ",".join(map(str, ids))


def build(torch, transformers, name, folder):
    """(command of ours, function that gives the taps in a dtype)"""
    import trace_torch
    ids, more = (torch.randint(2, ROWS, (n,)).tolist() for n in (T, 40))
    model = scatter(sizes(transformers, name))
    if name in ("bert", "xlmr"):
        ids[9], labels = model.config.pad_token_id, [(i * i % 7) % 3 - 1 for i in range(T)]  # the padding's embedding does not learn; -1: not counted

        def classifier_taps(dtype):
            taps = trace_torch.trace(model.to(dtype), ids, backward=True, labels=labels)
            words = "grad.embeddings.word_embeddings.weight"
            taps.items[words] = torch.nn.functional.pad(taps.items[words], (0, 0, 0, 100))  # the rows that export.py adds
            return taps
        return ["lingua2", "trace", "-m", export(folder, model), "--ids", commas(ids), "--labels=" + commas(labels)], classifier_taps
    if name != "mend":
        source = ["--encoder-ids", commas(more)] if name == "t5" else []
        return ["mend", "trace", "-l", export(folder, model), "--ids", commas(ids)] + source, lambda dtype: trace_torch.trace(model.to(dtype), ids, more, backward=True)
    llm = export(folder, model)
    distiller, prompt, pooler = scatter(sizes(transformers, "distiller")), torch.randn(7, 51) * 0.6, torch.nn.Linear(51, 93)
    keys = {"hypernet." + k: v for k, v in distiller.state_dict().items()}
    keys.update({"hypernet.init_prompt_weight": prompt, "hypernet.adap_pooler.dense.weight": pooler.weight.data, "hypernet.adap_pooler.dense.bias": pooler.bias.data})
    torch.save(keys, os.path.join(folder, "mend.pt"))
    distiller.save_pretrained(os.path.join(folder, "hf"))
    flat = export(folder, None, "--mend", os.path.join(folder, "mend.pt"))

    def taps(dtype):
        return trace_torch.mend(distiller.to(dtype), prompt.detach().to(dtype, copy=True).requires_grad_(), pooler.to(dtype), model.to(dtype), more, ids, 0.7)
    return ["mend", "trace", "-l", llm, "-m", flat, "--ids", commas(ids), "--demonstration-ids", commas(more), "--lambda", "0.7"], taps


def compare(folder, arithmetic, whole):
    """What `compare` says of each tap."""
    command = [os.path.join(ROOT, "mend"), "compare", *(os.path.join(folder, name + ".safetensors") for name in (arithmetic, "torch32")), "--truth",
               os.path.join(folder, "torch64.safetensors")]
    if whole:
        subprocess.run(command)
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    *lines, end = map(json.loads, done.stdout.splitlines())
    if end["second_alone"] or not end.get("alone", "input.").startswith("input."):
        sys.exit("one side has taps that the other lacks: %s%s" % (end, done.stderr))
    return lines


def measure(torch, transformers, name, whole):
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(11)
        command, taps = build(torch, transformers, name, folder)
        taps(torch.float32).write(os.path.join(folder, "torch32.safetensors"))
        taps(torch.float64).write(os.path.join(folder, "torch64.safetensors"))
        for arithmetic in LIMITS:
            subprocess.run([os.path.join(ROOT, command[0]), *command[1:], "--backward", "--math", arithmetic, "-o", os.path.join(folder, arithmetic)], check=True)
        return {arithmetic: compare(folder, arithmetic, whole) for arithmetic in LIMITS}


def ratio(line):
    return line["rms_ratio"] if line["unequal"] else 0.0


def is_backward(line):
    return line["tap"].startswith(("d.", "grad.", "loss"))


def is_good(line, arithmetic):
    return ratio(line) < LIMITS[arithmetic][is_backward(line)] or line["numbers"] <= FEW and line["rms"] < NEAR


def show(name, arithmetic, lines):
    for part, chosen in (("forward", [line for line in lines if not is_backward(line)]), ("backward", [line for line in lines if is_backward(line)])):
        order = sorted((line for line in chosen if line["numbers"] > FEW), key=ratio)
        print("%-6s %-10s %-8s %5d %9.3f %9.3f   %s" % (name, arithmetic, part, len(chosen), ratio(order[len(order) // 2]), ratio(order[-1]), order[-1]["tap"]), flush=True)


def main():
    try:
        import torch
        import transformers
    except ImportError as why:
        skip(str(why))
        return finish()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    whole, names = "--all" in sys.argv, [a for a in sys.argv[1:] if a != "--all"]
    print("%-6s %-10s %-8s %5s %9s %9s   %s" % ("model", "arithmetic", "part", "taps", "median", "greatest", "where"))
    for name in names or ("bert", "xlmr", "gpt2", "t5", "mend"):
        for arithmetic, lines in measure(torch, transformers, name, whole).items():
            show(name, arithmetic, lines)
            for line in lines:
                check(is_good(line, arithmetic), "%s, --math %s: %s: %.3f times PyTorch's error" % (name, arithmetic, line["tap"], ratio(line)))
    return finish()


if __name__ == "__main__":
    sys.exit(main())
