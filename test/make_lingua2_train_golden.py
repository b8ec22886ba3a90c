"""Make test/golden/lingua2-train-{bert,xlmr}.safetensors: a tiny random encoder as a flat file, and beside its weights what PyTorch makes of them.

usage: python3 test/make_lingua2_train_golden.py        needs torch, transformers, safetensors

  batch.id, batch.label, batch.start, batch.keys   sequences one after another; a label -1 is not counted; rows from keys on are padding
  grad.NAME (F64)    the gradient of the loss in float64, input-major like the weights
  loss (F64)         losses of STEPS steps in float64: AdamW after the gradient's norm is cut to CLIP
  error.NAME (F64)   rms(gradient in float32 - gradient in float64), PyTorch's both
"""
import os

import torch
import transformers
from safetensors.torch import save_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = dict(vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, max_position_embeddings=24, hidden_dropout_prob=0.0,
             attention_probs_dropout_prob=0.0, num_labels=2)
STEPS, CLIP, RATE, DECAY = 10, 0.5, 1e-2, 0.01
LENGTHS, KEYS = [9, 14, 5], [9, 10, 5]  # the second sequence ends in four rows of padding, whose labels count
KINDS = {
    "bert": (transformers.BertConfig, transformers.BertForTokenClassification, "bert.", dict(type_vocab_size=2, pad_token_id=0, hidden_act="gelu")),
    "xlmr": (transformers.XLMRobertaConfig, transformers.XLMRobertaForTokenClassification, "roberta.", dict(type_vocab_size=1, pad_token_id=1, hidden_act="gelu")),
}


def batch(pad, generator):
    """Padded tensors for PyTorch, and the rows of all sequences one after another for us."""
    longest = max(LENGTHS)
    ids, labels, mask = (torch.full((len(LENGTHS), longest), fill) for fill in (pad, -100, 0))
    for i, (length, keys) in enumerate(zip(LENGTHS, KEYS)):
        ids[i, :keys] = torch.randint(3, SIZES["vocab_size"], (keys,), generator=generator)
        labels[i, :length] = torch.randint(0, 2, (length,), generator=generator)
        labels[i, 0] = labels[i, 3] = -100
        mask[i, :keys] = 1
    rows = lambda x: torch.cat([x[i, :length] for i, length in enumerate(LENGTHS)])
    flat = {"batch.id": rows(ids), "batch.label": rows(labels).clamp(min=-1), "batch.start": torch.tensor([0] + LENGTHS).cumsum(0), "batch.keys": torch.tensor(KEYS)}
    return dict(input_ids=ids, attention_mask=mask, labels=labels), flat


def gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone().double() for name, p in model.named_parameters()}


def losses(model, inputs):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": DECAY}, {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}], lr=RATE)
    seen = []
    for _ in range(STEPS):
        seen.append(gradients(model, inputs)[0])
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    return seen


def make(name):
    config_class, model_class, prefix, more = KINDS[name]
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(8)
    config = config_class(**SIZES, **more)
    config.architectures = [model_class.__name__]
    model = model_class(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # larger than at the start of a training, so that every path has a gradient that can be seen
            p.copy_(torch.randn(p.shape, generator=generator) * (0.4 if p.dim() == 2 else 0.2) + (1.0 if p.dim() == 1 and p.mean() > 0.5 else 0.0))
    inputs, flat = batch(more["pad_token_id"], generator)
    _, single = gradients(model, inputs)
    _, double = gradients(model.double(), inputs)
    matrix = lambda n, x: x.t().contiguous() if x.dim() == 2 and "embeddings" not in n else x.contiguous()
    short = lambda n: n[len(prefix):] if n.startswith(prefix) else n
    tensors = {short(n): matrix(n, p.detach().float()) for n, p in model.named_parameters()}
    tensors.update({"grad." + short(n): matrix(n, g) for n, g in double.items()})
    tensors.update({"error." + short(n): (single[n] - double[n]).square().mean().sqrt()[None] for n in double})
    tensors["loss"] = torch.tensor(losses(model, inputs), dtype=torch.float64)
    tensors.update(flat)
    meta = {"format": "prompt-flat-1", "architecture": model_class.__name__, "family": "bert" if name == "bert" else "xlm-roberta", "config": config.to_json_string(use_diff=False),
            "made with": "torch %s, transformers %s" % (torch.__version__, transformers.__version__)}
    save_file(tensors, os.path.join(ROOT, "test", "golden", "lingua2-train-%s.safetensors" % name), metadata=meta)


for kind in KINDS:
    make(kind)
