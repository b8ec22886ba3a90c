"""Make the golden losses and gradients of MEND's training by the released code on the small models of make_mend_models.py.

usage: python3 test/make_mend_train_golden.py MODELS RELEASED      writes test/golden/mend-train.json.gz (arguments as of make_mend_golden.py)

The released DistillModel computes the loss in float64 and PyTorch differentiates it; dropout is set to 0 everywhere (the released training leaves
GPT-2's 0.1 on, in the frozen LLM too). Loss and gradients are checked against the re-statement of make_mend_golden.py to 1e-9 of the
gradient's norm. MEND for T5 is not in the released code: transformers' T5, our reading.

The file is gzipped JSON: {"header": {...}, "cases": [...]}; numbers are float64 as strings of 17 digits. Kinds of cases:
  loss        llm, mend, demos (one group), labels, separated, x, y, lambda, tau, parts ("ce", "kl" or both). Teacher: [demos ; x ; y], student:
              [S ; x ; y]. ce: mean over y's tokens of -log p. kl: sum over the vocabulary of p_T (log p_T - log p_Q), both at temperature tau,
              mean over the rows of all of x y: the row before x's first token is out, the row of y's last token is in. loss = ce + lambda kl.
  t5-loss     the same behind an encoder: teacher's encoder [demos ; x], student's [S ; x], decoder 0 + y; ce over y, kl over all the decoder's rows
  steps       training on `examples` in turn: AdamW (0.9, 0.999, 1e-8), no weight decay, gradient clipped to norm 1, learning rate falling
              linearly from `rate` to 0 over the steps. loss.T before step T; norm.T of the gradient before clipping; row.R: vectors after the last step.
gradients are those of the distiller's tensors, by name without "hypernet.", in the checkpoint's own layouts: "norm" (Euclidean), and "at": {flat index:
value} of the largest and of evenly spread entries that are not zero. "vectors" is the gradient of S itself. "f32" is
|gradient in float32 - gradient| / |gradient|, or for numbers the difference.
"""
import gzip
import json
import math
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from make_mend_golden import Restated, Suite, draw_demos, draw_ids, exact_t5_norm, rows_of, versions  # noqa: E402


def cases():
    draw = random.Random("mend train")
    for mend, n, x, y, separated, weight, tau, parts in (
            ("mend-tiny", 40, 12, 3, None, 1.0, 1.0, ["ce", "kl"]), ("mend-tiny", 40, 12, 3, None, 1.0, 1.0, ["ce"]), ("mend-tiny", 90, 30, 2, None, 1.0, 1.0, ["kl"]),
            ("mend-tiny", 200, 60, 1, None, 0.5, 2.0, ["ce", "kl"]), ("mend-tiny", 1, 1, 1, None, 1.0, 1.0, ["ce", "kl"]),
            ("mend-tiny", 50, 20, 4, dict(label_rows=3, both=True), 1.0, 1.0, ["ce", "kl"]), ("mend-same", 64, 25, 5, None, 1.0, 1.0, ["ce", "kl"]),
            ("mend-same", 300, 100, 2, dict(label_rows=40, both=False), 2.0, 0.7, ["ce", "kl"])):
        demos, labels = draw_demos(draw, (n,), 50257)
        yield {"kind": "loss", "llm": "gpt2-tiny", "mend": mend, "demos": demos, "labels": labels, "separated": separated, "x": draw_ids(draw, x, 50257),
               "y": draw_ids(draw, y, 50257), "lambda": weight, "tau": tau, "parts": parts}
    for parts in (["ce"], ["kl"], ["ce", "kl"]):
        demos, _ = draw_demos(draw, (70,), 32100)
        yield {"kind": "t5-loss", "llm": "t5-tiny", "mend": "mend-t5-tiny", "demos": demos, "x": draw_ids(draw, 20, 32100), "y": draw_ids(draw, 5, 32100),
               "lambda": 1.0, "tau": 1.0, "parts": parts}
    for mend, steps, rate in (("mend-tiny", 8, 1e-2), ("mend-same", 5, 1e-3)):
        examples = []
        for _ in range(3):
            demos, labels = draw_demos(draw, (draw.randint(20, 60),), 50257)
            examples.append({"demos": demos, "labels": labels, "x": draw_ids(draw, draw.randint(5, 30), 50257), "y": draw_ids(draw, draw.randint(1, 6), 50257)})
        yield {"kind": "steps", "llm": "gpt2-tiny", "mend": mend, "examples": examples, "steps": steps, "rate": rate, "separated": None, "lambda": 1.0, "tau": 1.0,
               "parts": ["ce", "kl"]}


class Trainer:
    """Losses with gradients, by the released code or transformers, in one type."""

    def __init__(self, suite):
        import torch
        self.torch, self.suite = torch, suite
        for model in suite.models.values():
            model.requires_grad_(False)

    def released(self, case):
        flags = dict(is_query_kl_loss="kl" in case["parts"], is_only_auxiliary_loss="ce" not in case["parts"], loss_lambda=case["lambda"], temperature=case["tau"])
        model = self.suite.distiller(case["mend"], case["separated"], 1, **flags)
        model.train()
        model.hypernet.requires_grad_(True)
        for module in model.modules():
            if isinstance(module, self.torch.nn.Dropout):
                module.p = 0.0
        return model

    def loss(self, model, case):
        """The released loss of one example."""
        x, y, demos = case["x"], case["y"], case["demos"][0]
        ids, teacher = x + y, demos + x + y
        item = dict(input_ids=ids, attention_mask=[1] * len(ids), token_type_ids=[0] * len(x) + [1] * len(y), teacher_input_ids=teacher,
                    teacher_attention_mask=[1] * len(teacher), teacher_token_type_ids=[0] * len(demos + x) + [1] * len(y),
                    demo_ids=[demos], demo_attention_mask=[[1] * len(demos)], demo_token_type_ids=[case["labels"][0]], task_idx=[0],
                    teacher_demo_token_type_ids=[1] * len(demos) + [0] * len(ids), s_demo_count=[1])
        return model(**self.suite.released.collate([item], t_tokenizer=None, is_fp16=False)).loss

    def case(self, case):
        """{name: number} and {tensor's name: gradient}."""
        return getattr(self, "run_" + case["kind"].replace("-", "_"))(case)

    def run_loss(self, case):
        model, kept = self.released(case), []

        def keep(module, inputs, output):
            # The vectors are the last thing made before the LLM: the pooler's output, or the hypernet's first.
            vectors = output[0] if isinstance(output, tuple) else output
            vectors.retain_grad()
            kept.append(vectors)
        hook = (model.hypernet if model.hypernet.adap_pooler is None else model.hypernet.adap_pooler).register_forward_hook(keep)
        model.zero_grad()
        loss = self.loss(model, case)
        loss.backward()
        hook.remove()
        gradients = {name: p.grad.clone() for name, p in model.hypernet.named_parameters()}
        return {"loss": [loss.detach()]}, dict(gradients, vectors=kept[0].grad[0])

    def run_steps(self, case):
        self.suite.distillers.clear()  # its weights change here
        torch, model, found = self.torch, self.released(case), {}
        parameters = list(model.hypernet.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=case["rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, foreach=False)
        for t in range(case["steps"]):
            optimizer.param_groups[0]["lr"] = case["rate"] * (1 - t / case["steps"])
            optimizer.zero_grad()
            loss = self.loss(model, dict(case, **case["examples"][t % len(case["examples"])]))
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            found["loss.%d" % t], found["norm.%d" % t] = [loss.detach()], [norm]
        with torch.no_grad():
            demos = case["examples"][0]["demos"]
            vectors, _ = model.hypernet(input_ids=self.suite.ids(demos[0]), attention_mask=self.suite.ids([1] * len(demos[0])), demo_token_type_ids=None)
            if model.hypernet.adap_pooler is not None:
                vectors = model.hypernet.adap_pooler(vectors)
        self.suite.distillers.clear()
        found.update({"row.%d" % r: vectors[0, r] for r in rows_of(vectors.shape[1], 4)})
        return found, {}

    def run_t5_loss(self, case):
        torch, suite, model = self.torch, self.suite, self.suite.models[case["llm"]]
        encoder, w = suite.models[case["mend"]], suite.t5_mend
        encoder.requires_grad_(True)
        encoder.zero_grad()
        leaves = {name: w[name].detach().requires_grad_(True) for name in ("init_prompt_weight", "adap_pooler.dense.weight", "adap_pooler.dense.bias")}
        demos, x, y = case["demos"][0], case["x"], case["y"]
        rows = encoder(inputs_embeds=torch.cat([encoder.shared.weight[demos], leaves["init_prompt_weight"]])[None]).last_hidden_state[0, len(demos):]
        vectors = torch.tanh(rows @ leaves["adap_pooler.dense.weight"].T + leaves["adap_pooler.dense.bias"])
        vectors.retain_grad()
        shared = model.get_input_embeddings()
        decoder = suite.ids([0] + y)
        with torch.no_grad():
            t = model(input_ids=suite.ids(demos + x), decoder_input_ids=decoder, use_cache=False).logits[0]
        s = model(inputs_embeds=torch.cat([vectors, shared(suite.ids(x))[0]])[None], decoder_input_ids=decoder, use_cache=False).logits[0]
        loss = combine(torch, case, s, t, torch.tensor(y), s[:len(y)])
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in encoder.named_parameters()}
        gradients.update({name: p.grad for name, p in leaves.items()}, vectors=vectors.grad)
        encoder.requires_grad_(False)
        return {"loss": [loss.detach()]}, gradients


def combine(torch, case, s, t, y, rows):
    """The loss from logits: s, t of the student's and the teacher's query rows; rows: those that predict y."""
    loss = 0
    if "ce" in case["parts"]:
        loss = loss - torch.log_softmax(rows, -1)[torch.arange(len(y)), y].mean()
    if "kl" in case["parts"]:
        p, q = torch.log_softmax(t / case["tau"], -1), torch.log_softmax(s / case["tau"], -1)
        loss = loss + case["lambda"] * (p.exp() * (p - q)).sum(-1).mean()
    return loss


def restate(restated, case):
    """Loss and gradients of a "loss" case once more."""
    torch, mend, llm = restated.torch, case["mend"], case["llm"]
    weights = restated.weights[mend]
    leaves = {name: t.detach().clone().requires_grad_(True) for name, t in weights.items()}
    restated.weights[mend] = leaves
    vectors = restated.vectors(case)
    vectors.retain_grad()
    restated.weights[mend] = weights
    x, y, demos = case["x"], case["y"], case["demos"][0]
    head = restated.weights[llm]["wte.weight"].T
    n, v = len(x + y), len(vectors)
    with torch.no_grad():
        t = (restated.run(llm, restated.embed(llm, demos + x + y)) @ head)[len(demos):]
    s = restated.run(llm, torch.cat([vectors, restated.embed(llm, x + y)])) @ head
    loss = combine(torch, case, s[v:], t, torch.tensor(y), s[v + len(x) - 1:v + n - 1])
    loss.backward()
    return loss.detach(), dict({name: t.grad for name, t in leaves.items()}, vectors=vectors.grad)


def entries(gradient):
    """Flat index: value, of the largest entry and of others that are not zero, evenly spread."""
    flat = gradient.reshape(-1)
    there = flat.nonzero()[:, 0]
    if not len(there):
        return {}
    chosen = {int(flat.abs().argmax())} | {int(there[r]) for r in rows_of(len(there), 5)}
    return {str(i): "%.17g" % float(flat[i]) for i in sorted(chosen)}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, clones = map(os.path.abspath, sys.argv[1:])
    os.chdir(os.path.dirname(HERE))
    import make_mend_models
    import mend_released
    for name in make_mend_models.MODELS:
        make_mend_models.make(folder, name)
    released = mend_released.load(clones)
    import torch
    torch.set_num_threads(1)
    plan, undo = list(cases()), exact_t5_norm()
    suite = Suite(folder, released, torch.float64)
    restated, trainer, worst = Restated(suite), Trainer(suite), 0.0
    exact = [trainer.case(case) for case in plan]
    for case, (found, gradients) in zip(plan, exact):
        if case["kind"] != "loss":
            continue
        loss, again = restate(restated, case)
        assert abs(float(loss) - float(found["loss"][0])) < 1e-10 and set(again) == set(gradients), set(again) ^ set(gradients)
        for name in again:
            apart = float((again[name] - gradients[name]).norm() / gradients[name].norm())
            assert apart < 1e-9, (case["mend"], name, apart)
            worst = max(worst, apart)
    undo()
    trainer = Trainer(Suite(folder, released, torch.float32))
    lines = []
    for case, (found, gradients) in zip(plan, exact):
        single, rough = trainer.case(case)
        line = dict(case, values={k: ["%.17g" % float(x) for x in v] for k, v in found.items()})
        line["f32"] = {k: "%.2e" % max(abs(float(a) - float(b)) for a, b in zip(v, single[k])) for k, v in found.items()}
        line["gradients"] = {name: {"norm": "%.17g" % float(g.norm()), "at": entries(g), "f32": "%.2e" % (float((g - rough[name].double()).norm() / g.norm()) if g.norm() else 0)}
                             for name, g in gradients.items()}
        lines.append(line)
    header = {"header": "losses and gradients of MEND's training in float64", "versions": versions(), "released": mend_released.COMMITS}
    path = os.path.join(HERE, "golden", "mend-train.json.gz")
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=9) as f:
        body = ",\n".join(json.dumps(line, sort_keys=True) for line in lines)
        f.write(('{"header": %s, "cases": [\n%s\n]}\n' % (json.dumps(header, sort_keys=True), body)).encode())
    assert all(math.isfinite(float(x)) for line in lines for v in line["values"].values() for x in v)
    print("%d cases, %d bytes; restated to %.1e" % (len(lines), os.path.getsize(path), worst))


if __name__ == "__main__":
    main()
