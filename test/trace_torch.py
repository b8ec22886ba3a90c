"""The taps of docs/NUMERICS.md from transformers on PyTorch, by hooks and autograd: what `compare` reads as the other side, or in float64 as the truth.

usage: python3 test/trace_torch.py CHECKPOINT --ids 1,2,3 [--encoder-ids 4,5] [--backward [--labels=0,1,-1]] [--float64] -o RUN.safetensors
CHECKPOINT: a Hugging Face directory of a BERT or XLM-R token classifier, a GPT-2 or a T5, the one that export.py read.
The gradient of a classifier's word embeddings lacks the rows that export.py adds.
"""
import argparse
import json
import math
import re
import struct

import torch
import transformers
from torch.nn.functional import cross_entropy

NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


# What goes straight into a sum has the sum's gradient, and no tap of its own.
SUMMANDS = (".output.dense", ".c_proj", ".o", ".wo", "wte")


class Taps:
    """Results by name, in the order in which the hooks fire; the batch's axis of one is taken off."""

    def __init__(self):
        self.items, self.live, self.scope = {}, {}, ""

    def put(self, name, x, batched=False):
        name = self.scope + name
        self.items[name] = (x[0] if batched else x).detach().clone()
        if x.requires_grad and not name.endswith(SUMMANDS):
            x.retain_grad()
            self.live[name] = x, batched

    def out(self, module, name):
        module.register_forward_hook(lambda _, __, y: self.put(name, y[0] if isinstance(y, tuple) else y, batched=True))

    def into(self, module, name):
        module.register_forward_pre_hook(lambda _, x: self.put(name, x[0], batched=True))

    def backward(self, loss, parameters):
        """parameters: (name, tensor, is it transposed in the flat file)."""
        self.items["loss"] = loss.detach().clone()
        parameters = list(parameters)
        for _, weight, _ in parameters:
            weight.grad = None
        loss.backward()
        for name, (x, batched) in self.live.items():
            if x.grad is not None:
                self.items["d." + name] = x.grad[0] if batched else x.grad
        for name, weight, transposed in parameters:
            self.items["grad." + name] = weight.grad.T if transposed else weight.grad

    def attention(self, name, q, k, heads, scale, causal=False, bias=None):
        """Scores and probabilities as the eager attention of transformers computes them from its own q and k."""
        def split(x):
            return x.view(x.shape[0], heads, -1).transpose(0, 1)
        scores = split(q) @ split(k).transpose(1, 2) * scale
        if bias is not None:
            scores = scores + bias
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -math.inf)
        self.put(name + ".scores", scores)
        self.put(name + ".probs", torch.softmax(scores, -1))

    def write(self, path):
        header, data = {"__metadata__": {"format": "trace-1"}}, b""
        for name, x in self.items.items():
            raw = x.contiguous().numpy().tobytes()
            header[name] = {"dtype": NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        text = json.dumps(header).encode()
        with open(path, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + data)


def flat_parameters(model, head=None):
    """As export.py names and lays them out; head: the weight that is output head, and embedding too if the two are tied."""
    seen = set()
    for path, module in model.named_modules():
        for part, weight in module.named_parameters(recurse=False):
            if id(weight) not in seen:
                seen.add(id(weight))
                yield re.sub("^(bert|roberta|transformer)[.]", "", path + "." + part), weight, weight.dim() == 2 and isinstance(module, torch.nn.Linear) or weight is head


def put_head(taps, logits, target):
    taps.put("lm_head", logits)
    taps.put("lse", torch.logsumexp(logits, -1, keepdim=True))
    rows = logits[:len(target)]
    taps.put("logprob", torch.log_softmax(rows, -1).gather(1, torch.tensor(target)[:, None]))
    return cross_entropy(rows, torch.tensor(target))


def head_backward(taps, loss, model, targets):
    taps.backward(loss, flat_parameters(model, model.get_output_embeddings().weight))
    taps.items["d.lm_head"] = taps.items["d.lm_head"][:targets]


# ==== BERT and XLM-R ====

def encoder(model, ids, labels):
    """labels: -1 is not counted; None: no backward pass."""
    taps, body = Taps(), model.base_model
    taps.into(body.embeddings.LayerNorm, "embeddings.sum"), taps.out(body.embeddings.LayerNorm, "embeddings.LayerNorm")
    for n, layer in enumerate(body.encoder.layer):
        at, self = "encoder.layer.%d." % n, layer.attention.self
        for part in ("query", "key", "value"):
            taps.out(getattr(self, part), at + "attention.self." + part)
        taps.into(layer.attention.output.dense, at + "attention.self.ctx")
        for module, name in ((layer.attention.output, "attention.output"), (layer.output, "output")):
            taps.out(module.dense, at + name + ".dense"), taps.into(module.LayerNorm, at + name + ".residual"), taps.out(module.LayerNorm, at + name + ".LayerNorm")
        taps.out(layer.intermediate.dense, at + "intermediate.dense"), taps.into(layer.output.dense, at + "intermediate.act")
    taps.out(model.classifier, "classifier")
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    for n in range(len(body.encoder.layer)):
        name = "encoder.layer.%d.attention.self" % n
        taps.attention(name, taps.items[name + ".query"], taps.items[name + ".key"], heads, 1 / math.sqrt(width // heads))
    taps.put("probs", torch.softmax(taps.items["classifier"], -1))
    if labels:
        taps.backward(cross_entropy(logits, torch.tensor(labels), ignore_index=-1), flat_parameters(model))
    return taps


# ==== GPT-2 and MEND ====

def gpt2_body(body, rows, taps):
    taps.put("wte", rows)
    taps.out(body.drop, "embeddings")
    for n, block in enumerate(body.h):
        at = "h.%d." % n
        for path in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.act", "mlp.c_proj"):
            taps.out(block.get_submodule(path), at + path)
        taps.into(block.attn.c_proj, at + "attn.ctx"), taps.into(block.ln_2, at + "resid_mid"), taps.out(block, at + "resid_out")
    taps.out(body.ln_f, "ln_f")
    hidden = body(inputs_embeds=rows[None]).last_hidden_state[0]
    heads, width = body.config.n_head, body.config.n_embd
    for n in range(len(body.h)):
        q, k, _ = taps.items[taps.scope + "h.%d.attn.c_attn" % n].split(width, -1)
        taps.attention("h.%d.attn" % n, q, k, heads, 1 / math.sqrt(width // heads), causal=True)
    return hidden


def gpt2_head(model, ids, vectors, taps):
    """Logits and loss."""
    rows = model.transformer.wte(torch.tensor(ids))
    hidden = gpt2_body(model.transformer, rows if vectors is None else torch.cat([vectors, rows]), taps)
    logits = model.lm_head(hidden[len(hidden) - len(ids):])
    return logits, put_head(taps, logits, ids[1:])


def gpt2(model, ids, backward):
    taps = Taps()
    _, loss = gpt2_head(model, ids, None, taps)
    if backward:
        head_backward(taps, loss, model, len(ids) - 1)
    return taps


def mend(distiller, prompt, pooler, model, demonstrations, ids, weight):
    """distiller: a GPT2Model; prompt [U,C]; pooler: Linear. The loss is CE + weight * KL from the model that reads the demonstrations."""
    taps = Taps()
    with torch.no_grad():
        teacher = torch.log_softmax(model(input_ids=torch.tensor([demonstrations + ids])).logits[0][-len(ids):], -1)
    taps.scope = "hypernet."
    s = gpt2_body(distiller, torch.cat([distiller.wte(torch.tensor(demonstrations)), prompt]), taps)[-len(prompt):]
    dense = pooler(s)
    s = torch.tanh(dense)
    taps.put("adap_pooler.dense", dense), taps.put("adap_pooler.act", s)
    taps.scope = ""
    logits, ce = gpt2_head(model, ids, s, taps)
    kl = (teacher.exp() * (teacher - torch.log_softmax(logits, -1))).sum() / len(ids)
    own = [*flat_parameters(distiller, distiller.wte.weight), ("init_prompt_weight", prompt, False), ("adap_pooler.dense.weight", pooler.weight, True),
           ("adap_pooler.dense.bias", pooler.bias, False)]
    taps.backward(ce + weight * kl, [("hypernet." + name, *rest) for name, *rest in own])
    taps.items.update({"loss.ce": ce.detach(), "loss.kl": kl.detach()})
    return taps


# ==== T5 ====

def t5_stack(stack, side, taps):
    blocks = stack.block
    taps.out(stack.embed_tokens, side + ".embed_tokens")
    for n, block in enumerate(blocks):
        at = side + ".block.%d.layer." % n
        for i, layer in enumerate(block.layer[:-1]):
            name = "SelfAttention" if i == 0 else "EncDecAttention"
            attention = getattr(layer, name)
            for part in "qkvo":
                taps.out(getattr(attention, part), at + "%d.%s.%s" % (i, name, part))
            taps.into(attention.o, at + "%d.%s.ctx" % (i, name))
        last = block.layer[-1].DenseReluDense
        for part in ("wi", "wi_0", "wi_1", "wo"):
            if hasattr(last, part):
                taps.out(getattr(last, part), at + "%d.DenseReluDense.%s" % (len(block.layer) - 1, part))
        taps.into(last.wo, at + "%d.DenseReluDense.act" % (len(block.layer) - 1))
        for i, layer in enumerate(block.layer):
            taps.out(layer.layer_norm, at + "%d.layer_norm" % i), taps.out(layer, at + "%d.residual" % i)
    taps.out(stack.final_layer_norm, side + ".final_layer_norm")


def t5_attention(model, stack, side, T, taps):
    """Position bias by distance, scores and probabilities."""
    first, heads = stack.block[0].layer[0].SelfAttention, model.config.num_heads
    table = first.compute_bias(T + 1, T + 1)[0]
    taps.put(side + ".block.0.layer.0.SelfAttention.relative_attention_bias", torch.cat([table[:, T, :T], table[:, 0, :T]], 1))
    for n, block in enumerate(stack.block):
        for i in range(len(block.layer) - 1):
            name = side + ".block.%d.layer.%d." % (n, i) + ("SelfAttention" if i == 0 else "EncDecAttention")
            taps.attention(name, taps.items[name + ".q"], taps.items[name + ".k"], heads, 1.0, causal=side == "decoder" and i == 0, bias=None if i else table[:, :T, :T])


def norm_in_full(self, x):
    """T5LayerNorm without its cast to float32, which a float64 model has too: the truth must not be rounded on the way."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def t5(model, ids, encoder_ids, backward):
    taps, start = Taps(), model.config.decoder_start_token_id
    if model.dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__ == "T5LayerNorm":
                module.forward = norm_in_full.__get__(module)
    for stack, side in ((model.encoder, "encoder"), (model.decoder, "decoder")):
        t5_stack(stack, side, taps)
    if getattr(model.config, "scale_decoder_outputs", model.config.tie_word_embeddings):
        taps.into(model.lm_head, "decoder.scaled")
    logits = model(input_ids=torch.tensor([encoder_ids]), decoder_input_ids=torch.tensor([[start] + ids[:-1]]), use_cache=False).logits[0]
    t5_attention(model, model.encoder, "encoder", len(encoder_ids), taps), t5_attention(model, model.decoder, "decoder", len(ids), taps)
    loss = put_head(taps, logits, ids)
    if backward:
        head_backward(taps, loss, model, len(ids))
    return taps


def trace(model, ids, encoder_ids=None, backward=False, labels=None):
    """labels: of a classifier, by default 0, 1, 0, 1, ..."""
    with torch.set_grad_enabled(backward):
        kind = type(model).__name__
        if "TokenClassification" in kind:
            return encoder(model, ids, backward and (labels or [i % 2 for i in range(len(ids))]))
        return gpt2(model, ids, backward) if "GPT2" in kind else t5(model, ids, encoder_ids, backward)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--ids", required=True)
    parser.add_argument("--encoder-ids")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--labels")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("-o", "--output", required=True)
    a = parser.parse_args()
    architecture = transformers.AutoConfig.from_pretrained(a.checkpoint).architectures[0]
    model = getattr(transformers, architecture).from_pretrained(a.checkpoint, attn_implementation="eager").to(torch.float64 if a.float64 else torch.float32).eval()
    ids, encoder_ids, labels = ([int(i) for i in text.split(",")] if text else None for text in (a.ids, a.encoder_ids, a.labels))
    taps = trace(model, ids, encoder_ids, a.backward, labels)
    taps.put("input.ids", torch.tensor(ids))
    taps.write(a.output)


if __name__ == "__main__":
    main()
