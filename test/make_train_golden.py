"""Make the golden losses, gradients and training steps of whole language models: transformers' GPT-2 and T5 in float64, differentiated by PyTorch, on the
small models of make_mend_models.py.

usage: python3 test/make_train_golden.py MODELS      writes test/golden/lm-train.json.gz; MODELS: a folder for the models

The file is gzipped JSON: {"header": {...}, "cases": [...]}; numbers are float64 as strings of 17 digits. Kinds of cases:
  lm      llm, texts: y (T5: and x, which its encoder reads), counted (or none): which pieces are targets. The loss is the mean over the texts of
          the mean over the targets of -log p; GPT-2's first piece is no target.
  steps   the same texts in turn, one a step: AdamW (0.9, 0.999, 1e-8), decay 0.1 on matrices alone, the gradient clipped to norm 1, the rate rising from 0
          for `warmup` steps and then falling linearly to 0. loss.T before step T, norm.T of its gradient before clipping.
gradients: "norm", "at" {flat index in the checkpoint's own layout: value}, "f32" what float32 misses, as in make_mend_train_golden.py.
"""
import gzip
import json
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from make_mend_golden import draw_ids, exact_t5_norm, versions  # noqa: E402
from make_mend_train_golden import entries  # noqa: E402


def cases():
    draw = random.Random("lm train")
    for llm, V in (("gpt2-tiny", 50257), ("gpt2-base-tiny", 50257), ("t5-tiny", 32100), ("t5-gated-tiny", 32100)):
        t5 = llm.startswith("t5")
        text = lambda n: dict(y=draw_ids(draw, n, V), **({"x": draw_ids(draw, draw.randint(1, 40), V)} if t5 else {}))
        texts = [text(n) for n in (40, 7, 23)]
        texts[1]["y"][3] = texts[1]["y"][5] = texts[0]["y"][2]
        yield {"kind": "lm", "llm": llm, "texts": texts}
        marked = text(60)
        marked["counted"] = [int(draw.random() < 0.3) for _ in marked["y"]]
        yield {"kind": "lm", "llm": llm, "texts": [marked]}
        yield {"kind": "steps", "llm": llm, "texts": texts, "steps": 10, "rate": 1e-2, "warmup": 3, "decay": 0.1}


class Language:
    def __init__(self, folder, dtype):
        import torch
        import transformers
        self.torch, self.folder, self.dtype, self.transformers = torch, folder, dtype, transformers

    def load(self, name):
        cls = self.transformers.T5ForConditionalGeneration if name.startswith("t5") else self.transformers.GPT2LMHeadModel
        return cls.from_pretrained(os.path.join(self.folder, name), attn_implementation="eager").to(self.dtype).eval()

    def loss(self, model, texts):
        torch, total = self.torch, 0
        for text in texts:
            y = torch.tensor(text["y"])
            if "x" in text:
                logits = model(input_ids=torch.tensor([text["x"]]), decoder_input_ids=torch.tensor([[0] + text["y"]]), use_cache=False).logits[0, :-1]
            else:
                logits, y = model(input_ids=y[None], use_cache=False).logits[0, :-1], y[1:]
            nll = -torch.log_softmax(logits, -1)[torch.arange(len(y)), y]
            if "counted" in text:
                nll = nll[torch.tensor(text["counted"][-len(y):]) > 0]
            total = total + nll.mean()
        return total / len(texts)

    def run(self, case):
        torch, model = self.torch, self.load(case["llm"])
        if case["kind"] == "lm":
            loss = self.loss(model, case["texts"])
            loss.backward()
            strip = lambda name: name.removeprefix("transformer.")
            return {"loss": loss.detach()}, {strip(name): p.grad.clone() for name, p in model.named_parameters()}
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW([{"params": [p for p in parameters if p.dim() > 1], "weight_decay": case["decay"]},
                                       {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}], lr=case["rate"], foreach=False)
        found = {}
        for t in range(case["steps"]):
            rate = case["rate"] * (t / case["warmup"] if t < case["warmup"] else (case["steps"] - t) / (case["steps"] - case["warmup"]))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss = self.loss(model, [case["texts"][t % len(case["texts"])]])
            loss.backward()
            found["norm.%d" % t] = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            found["loss.%d" % t] = loss.detach()
            optimizer.step()
        return found, {}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = os.path.abspath(sys.argv[1])
    os.chdir(os.path.dirname(HERE))
    import make_mend_models
    import torch
    torch.set_num_threads(1)
    plan = list(cases())
    for name in {case["llm"] for case in plan}:
        make_mend_models.make(folder, name)
    undo = exact_t5_norm()
    exact = [Language(folder, torch.float64).run(case) for case in plan]
    undo()
    lines = []
    for case, (found, gradients) in zip(plan, exact):
        single, rough = Language(folder, torch.float32).run(case)
        line = dict(case, values={k: "%.17g" % float(v) for k, v in found.items()}, f32={k: "%.2e" % abs(float(v) - float(single[k])) for k, v in found.items()})
        line["gradients"] = {name: {"norm": "%.17g" % float(g.norm()), "at": entries(g), "f32": "%.2e" % (float((g - rough[name].double()).norm() / g.norm()) if g.norm() else 0)}
                             for name, g in gradients.items()}
        lines.append(line)
    header = {"header": "losses and gradients of language models in float64", "versions": versions()}
    path = os.path.join(HERE, "golden", "lm-train.json.gz")
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=9) as f:
        f.write(('{"header": %s, "cases": [\n%s\n]}\n' % (json.dumps(header, sort_keys=True), ",\n".join(json.dumps(line, sort_keys=True) for line in lines))).encode())
    print("%d cases, %d bytes" % (len(lines), os.path.getsize(path)))


if __name__ == "__main__":
    main()
