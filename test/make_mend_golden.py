"""Make the golden numbers of GPT-2, T5 and MEND by running references on the small models of make_mend_models.py.

usage: python3 test/make_mend_golden.py MODELS RELEASED      writes test/golden/mend-numbers.json.gz
       MODELS: where the small models are or are to be made; RELEASED: the folder of the clones that mend_released.py names

Needs the packages of test/requirements.txt. The file is gzipped JSON: {"header": {...}, "cases": [...]}. A case says what goes in, and under
"values" what comes out: lists of float64 numbers as strings of 17 digits. "f32" holds, for each of them, what the same reference in float32
differs by: root mean square and maximum. Where the numbers come from:

- GPT-2 and T5: transformers on PyTorch in float64, eager attention. T5's norm takes its mean square in float32 whatever the model's type; for
  float64 it is replaced by one that does not.
- distilled vectors of GPT-2 and option scores: the released MEND code's own DistillModel (mend_released.py), in float64; MetaICL's own
  run_model where a score is conditioned on the option (channel). Each is checked against the re-statement in torch below, which owes them
  nothing: the two must agree to 1e-10.
- MEND for T5 is not in the released code: transformers' T5 on [embeddings of the demonstrations ; init_prompt_weight].

Kinds of cases ("kind"; all ids are token ids, n of them):
  gpt2         model, ids: hidden.R = row R after the last norm; logprob = log p(ids[i+1] | ids[0..i]), n-1 numbers
  greedy       model, ids: continuation = the 20 most probable next tokens one after another; margin = least lead over the second, in logits.
               With mend and demos: behind the distilled vectors. T5: encoder = its input, decoder starts from id 0.
  distill      mend, demos = one list of ids per group, labels = 1 at the tokens of outputs, separated = null or {label_rows, both}:
               row.R of the vectors in the LLM's width, groups distilled apart and their vectors put one behind the other.
               released.R (two groups or more): what the released code gives on the batch of groups. It pads the shorter groups at their end, so
               that the rows of init_prompt_weight get the positions behind the padding, and then keeps the last group's vectors alone.
  logprob      llm, mend, demos, ids: log p(ids[i] | vectors, ids[0..i-1]), n numbers
  score        llm, mend, demos, x, options, method zero | icl | mend, direct | channel: score.O = mean log p of option O's tokens, for channel
               of x's tokens behind the option. prediction = index of the largest. dropped: with no token in x the released code leaves the first
               token of the option out, although the vectors precede it; `dropped` are its scores, null where nothing is left to average.
  t5           model, encoder, decoder: encoder.R = row R of the encoder's output (after its norm); logit.P = logits of `columns` at decoder
               position P; logprob = log p(decoder[i+1] | decoder[0..i], encoder), n-1 numbers
  t5-encoder   model, encoder: encoder.R
  t5-distill   mend, demos: row.R. Our reading.
  t5-score     llm, mend, demos, x, options, method, encoder_input: x on the encoder's side behind demonstrations or vectors, or on the decoder's
               side before the option. Decoder: 0, then x if it is not on the other side, then the option.
  metrics      truth and predicted, indices of options (-1: free form, none is right): f1 = macro-F1 as the released MEND code has it (scikit-learn: the
               classes are those that occur in either list, an undefined F1 is 0); f1_truth = MetaICL's own (classes of the truth alone);
               accuracy; spread = numpy.std (divides by n) of the accuracies
               over the first 1, 2, ... n of the lists
  t5-buckets   bidirectional: bucket of memory_position - query_position = -span..span, by transformers (float32 logarithms)

Where the released code leaves a choice, the case follows this reading:
- separated attention: causal and separated both hold (mend_released.py says what the code does under no transformers at all). The label rows are
  the last ones. label_rows counts 1..v: with 0 the released slices mean all rows.
- FiD: vectors of the groups in order, without padding; see `released` above.
- positions run on: vectors 0..v-1 and x from v on get the LLM's own position embeddings.
"""
import gzip
import hashlib
import json
import math
import os
import random
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
AGREE = 1e-10  # float64 against float64, numbers of size 1 to 10


# ==== what to compute ====

def draw_ids(draw, n, rows):
    return [draw.randrange(3, rows) for _ in range(n)]


def draw_demos(draw, lengths, rows):
    """Groups of demonstrations: ids, and labels in runs as pairs of input and output make them."""
    demos, labels = [], []
    for n in lengths:
        demos.append(draw_ids(draw, n, rows))
        mask = []
        while len(mask) < n:
            mask += [0] * draw.randint(1, 9) + [1] * draw.randint(1, 3)
        labels.append(mask[:n])
    return demos, labels


def cases():
    """Every case, without its values."""
    draw = random.Random("mend numbers")
    gpt2, t5 = 50257, 32100
    for model in ("gpt2-tiny", "gpt2-base-tiny"):
        for n in (1, 2, 17, 130, 300):
            yield dict(kind="gpt2", model=model, ids=draw_ids(draw, n, gpt2))
    yield dict(kind="gpt2", model="gpt2-tiny", ids=draw_ids(draw, 1024, gpt2))
    for n in (1, 17, 300):
        yield dict(kind="greedy", model="gpt2-tiny", ids=draw_ids(draw, n, gpt2))
    yield dict(kind="greedy", model="gpt2-base-tiny", ids=draw_ids(draw, 40, gpt2))

    for mend in ("mend-tiny", "mend-same"):
        v = {"mend-tiny": 7, "mend-same": 100}[mend]
        half = {"mend-tiny": 3, "mend-same": 50}[mend]
        for lengths in ((1,), (2,), (17,), (130,), (300,), (900,), (40, 40), (60, 23), (5, 90, 31)):
            demos, labels = draw_demos(draw, lengths, gpt2)
            yield dict(kind="distill", mend=mend, demos=demos, labels=labels, separated=None)
        for lengths in ((30,), (200,), (25, 47)):
            demos, labels = draw_demos(draw, lengths, gpt2)
            for rows in (1, half, v):
                for both in (False, True):
                    yield dict(kind="distill", mend=mend, demos=demos, labels=labels, separated=dict(label_rows=rows, both=both))
        demos, labels = draw_demos(draw, (12,), gpt2)
        for labels in ([[0] * 12], [[1] * 12]):  # rows that see nothing but themselves
            yield dict(kind="distill", mend=mend, demos=demos, labels=labels, separated=dict(label_rows=half, both=True))
        for lengths, n in (((20,), 1), ((150,), 40), ((33, 21), 12)):
            demos, labels = draw_demos(draw, lengths, gpt2)
            yield dict(kind="logprob", llm="gpt2-tiny", mend=mend, demos=demos, ids=draw_ids(draw, n, gpt2))
        demos, labels = draw_demos(draw, (64,), gpt2)
        yield dict(kind="greedy", model="gpt2-tiny", mend=mend, demos=demos, ids=draw_ids(draw, 9, gpt2))

    for mend in ("mend-tiny", "mend-same"):
        for lengths, x, options in (((100,), 20, (1, 1)), ((300,), 60, (1, 2, 3)), ((17,), 1, (5, 1, 9, 2)), ((700,), 200, (40, 3)), ((50, 80), 30, (2, 2, 4)),
                                    ((30, 10, 20), 15, (3, 1)), ((90,), 0, (1, 3, 2))):
            demos, labels = draw_demos(draw, lengths, gpt2)
            case = dict(llm="gpt2-tiny", mend=mend, demos=demos, x=draw_ids(draw, x, gpt2), options=[draw_ids(draw, n, gpt2) for n in options])
            for direction in ("direct", "channel"):
                for method in ("zero", "icl", "mend"):
                    # ICL has one group. Without a prefix nothing precedes x or the option.
                    if (method == "icl" and len(demos) > 1) or (x == 0 and (method == "zero" or direction == "channel")):
                        continue
                    if method != "mend" and mend == "mend-same":
                        continue
                    yield dict(case, kind="score", method=method, direction=direction)
    demos, labels = draw_demos(draw, (60,), gpt2)
    x, options = draw_ids(draw, 10, gpt2), [draw_ids(draw, n, gpt2) for n in (1, 2)]
    yield dict(kind="score", llm="gpt2-tiny", mend="mend-tiny", demos=demos, x=x, options=options + options[::-1], method="mend", direction="direct")  # a tie

    for model in ("t5-tiny", "t5-gated-tiny"):
        for n, m in ((1, 1), (2, 2), (17, 17), (130, 40), (300, 5), (40, 150)):
            yield dict(kind="t5", model=model, encoder=draw_ids(draw, n, t5), decoder=[0] + draw_ids(draw, m - 1, t5), columns=sorted(draw.sample(range(32128), 12)))
        for n in (5, 140):
            yield dict(kind="greedy", model=model, encoder=draw_ids(draw, n, t5))
    for n in (1, 2, 17, 130, 300):
        yield dict(kind="t5-encoder", model="t5-encoder-tiny", encoder=draw_ids(draw, n, t5))
    for lengths in ((1,), (17,), (130,), (300,), (20, 45)):
        demos, labels = draw_demos(draw, lengths, t5)
        yield dict(kind="t5-distill", mend="mend-t5-tiny", demos=demos)
    for lengths, x, options in (((80,), 20, (1, 3, 2)), ((400,), 130, (6, 2)), ((30, 50), 9, (2, 2))):
        demos, labels = draw_demos(draw, lengths, t5)
        for encoder_input in (True, False):
            for method in ("zero", "icl", "mend"):
                if (method == "zero" and not encoder_input) or (method == "icl" and len(demos) > 1):
                    continue
                yield dict(kind="t5-score", llm="t5-tiny", mend="mend-t5-tiny", demos=demos, x=draw_ids(draw, x, t5),
                           options=[draw_ids(draw, n, t5) for n in options], method=method, encoder_input=encoder_input)
    for n, classes in ((1, 2), (2, 2), (10, 2), (50, 3), (200, 7), (30, 20)):
        for bias in (0, 1):  # 1: some classes are never predicted, others never true
            truth = [draw.randrange(classes) for _ in range(n)]
            yield dict(kind="metrics", truth=truth, predicted=[draw.choice((t, draw.randrange(classes + bias) // (1 + bias))) for t in truth])
    yield dict(kind="metrics", truth=[-1, -1, 0], predicted=[0, 0, 0])
    for both in (True, False):
        yield dict(kind="t5-buckets", bidirectional=both, span=300)


def rows_of(n, most=6):
    """Which rows to keep: the ends and some between."""
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


# ==== the re-statement: GPT-2 in plain torch, from the checkpoint's tensors ====

def gpt2_rows(w, heads, x, allowed):
    """x [n, C] with positions added; allowed [n, n]: may row i see row j. Returns the rows after ln_f."""
    import torch

    def norm(name, rows):
        d = rows - rows.mean(-1, keepdim=True)
        return d / torch.sqrt((d * d).mean(-1, keepdim=True) + 1e-5) * w[name + ".weight"] + w[name + ".bias"]

    def linear(name, rows):
        return rows @ w[name + ".weight"] + w[name + ".bias"]

    n, C = x.shape
    d, layer = C // heads, 0
    while "h.%d.ln_1.weight" % layer in w:
        at = "h.%d." % layer
        q, k, u = linear(at + "attn.c_attn", norm(at + "ln_1", x)).split(C, dim=1)
        out = []
        for h in range(heads):
            part = slice(h * d, h * d + d)
            scores = (q[:, part] @ k[:, part].T / math.sqrt(d)).masked_fill(~allowed, -math.inf)
            out.append(torch.softmax(scores, -1) @ u[:, part])
        x = x + linear(at + "attn.c_proj", torch.cat(out, 1))
        m = linear(at + "mlp.c_fc", norm(at + "ln_2", x))
        m = 0.5 * m * (1 + torch.tanh(math.sqrt(2 / math.pi) * (m + 0.044715 * m ** 3)))
        x = x + linear(at + "mlp.c_proj", m)
        layer += 1
    return norm("ln_f", x)


def causal(n):
    import torch
    return torch.ones(n, n, dtype=torch.bool).tril()


class Restated:
    """GPT-2's half of the cases once more, from the formulas of MEND's paper."""

    def __init__(self, suite):
        import torch
        self.torch, self.weights, self.heads = torch, {}, {}
        for name in suite.gpt2:
            self.add(name, suite.states[name])
        for name in suite.gpt2_mends:
            self.add(name, suite.states[name])
            self.heads[name] = suite.configs[name]["n_head"]
        for name in suite.gpt2:
            self.heads[name] = suite.configs[name]["n_head"]

    def add(self, name, state):
        self.weights[name] = {k.replace("transformer.", "").replace("hypernet.", ""): t.double() for k, t in state.items()}

    def embed(self, llm, ids):
        return self.weights[llm]["wte.weight"][ids]

    def run(self, llm, embeds, allowed=None):
        w = self.weights[llm]
        n = len(embeds)
        return gpt2_rows(w, self.heads[llm], embeds + w["wpe.weight"][:n], causal(n) if allowed is None else allowed)

    def logprob(self, llm, vectors, ids):
        """log p(ids[i] | vectors, ids[:i]); None for the first if there are no vectors."""
        embeds = self.torch.cat([vectors, self.embed(llm, ids)])
        logits = self.run(llm, embeds) @ self.weights[llm]["wte.weight"].T
        p = self.torch.log_softmax(logits, -1)
        v = len(vectors)
        return [p[v + i - 1, ids[i]] if v + i else None for i in range(len(ids))]

    def distill(self, mend, ids, labels, separated, padding=0):
        w = self.weights[mend]
        v, n = len(w["init_prompt_weight"]), len(ids) + padding
        allowed = causal(n + v)
        allowed[:, len(ids):n] = False
        allowed |= self.torch.eye(n + v, dtype=self.torch.bool)  # of no consequence: rows of padding are thrown away
        if separated:
            r = separated["label_rows"]
            label = self.torch.tensor([bool(t) for t in labels] + [False] * padding + [False] * (v - r) + [True] * r)
            allowed[n + v - r:] &= label
            if separated["both"]:
                allowed[n:n + v - r] &= ~label
        embeds = self.torch.cat([w["wte.weight"][ids], self.torch.zeros(padding, w["wte.weight"].shape[1], dtype=self.torch.float64), w["init_prompt_weight"]])
        rows = self.run(mend, embeds, allowed)[n:]
        if "adap_pooler.dense.weight" in w:
            rows = self.torch.tanh(rows @ w["adap_pooler.dense.weight"].T + w["adap_pooler.dense.bias"])
        return rows

    def vectors(self, case):
        labels = case.get("labels") or [[0] * len(d) for d in case["demos"]]
        return self.torch.cat([self.distill(case["mend"], d, t, case.get("separated")) for d, t in zip(case["demos"], labels)])

    def case(self, case):
        torch = self.torch
        if case["kind"] == "gpt2":
            rows = self.run(case["model"], self.embed(case["model"], case["ids"]))
            found = {"hidden.%d" % r: rows[r] for r in rows_of(len(rows))}
            return dict(found, logprob=self.logprob(case["model"], torch.zeros(0, rows.shape[1], dtype=torch.float64), case["ids"])[1:])
        if case["kind"] == "distill":
            found = {"row.%d" % r: row for r, row in enumerate(self.vectors(case))}
            if len(case["demos"]) > 1:
                last, longest = case["demos"][-1], max(map(len, case["demos"]))
                rows = self.distill(case["mend"], last, case["labels"][-1], case["separated"], longest - len(last))
                found.update({"released.%d" % r: row for r, row in enumerate(rows)})
            return found
        if case["kind"] == "logprob":
            return dict(logprob=self.logprob(case["llm"], self.vectors(case), case["ids"]))
        if case["kind"] == "score":
            llm = case["llm"]
            before = self.vectors(case) if case["method"] == "mend" else self.embed(llm, case["demos"][0] if case["method"] == "icl" else [])
            scores, dropped = [], []
            for option in case["options"]:
                first, second = (case["x"], option) if case["direction"] == "direct" else (option, case["x"])
                p = self.logprob(llm, before, first + second)[len(first):]
                scores.append(sum(p) / len(p))
                dropped.append(sum(p[1:]) / len(p[1:]) if p[1:] else math.nan)
            found = {"score": scores}
            if not case["x"] and case["method"] == "mend":
                found["dropped"] = dropped
            return found
        return None


# ==== the references ====

class Suite:
    """All models in one type, and every case's numbers by the references."""

    gpt2 = ("gpt2-tiny", "gpt2-base-tiny")
    gpt2_mends = ("mend-tiny", "mend-same")
    t5 = ("t5-tiny", "t5-gated-tiny")

    def __init__(self, folder, released, dtype):
        import torch
        import transformers
        from safetensors.torch import load_file
        self.torch, self.released, self.dtype, self.folder = torch, released, dtype, folder
        self.models, self.states, self.configs, self.distillers = {}, {}, {}, {}

        def load(name, cls):
            return cls.from_pretrained(os.path.join(folder, name), attn_implementation="eager").to(dtype).eval()

        for name in self.gpt2:
            self.models[name] = load(name, transformers.GPT2LMHeadModel)
        for name in self.t5:
            self.models[name] = load(name, transformers.T5ForConditionalGeneration)
        self.models["t5-encoder-tiny"] = load("t5-encoder-tiny", transformers.T5EncoderModel)
        for name in self.gpt2 + self.gpt2_mends + ("mend-t5-tiny",):
            path = os.path.join(folder, name)
            with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
                self.configs[name] = json.load(f)
            pickled = os.path.join(path, "pytorch_model.bin")
            state = torch.load(pickled) if os.path.exists(pickled) else load_file(os.path.join(path, "model.safetensors"))
            self.states[name] = {k: t for k, t in state.items() if t.dtype == torch.float32}
        state = {k.replace("hypernet.", ""): t for k, t in self.states["mend-t5-tiny"].items()}
        self.t5_mend = {k: t.to(dtype) for k, t in state.items()}
        encoder = transformers.T5EncoderModel(transformers.T5Config.from_pretrained(os.path.join(folder, "mend-t5-tiny")))
        encoder.config._attn_implementation = "eager"
        encoder.load_state_dict({k: t for k, t in state.items() if k.startswith(("shared", "encoder"))} | {"encoder.embed_tokens.weight": state["shared.weight"]})
        self.models["mend-t5-tiny"] = encoder.to(dtype).eval()

    # -- GPT-2 --

    def ids(self, ids):
        return self.torch.tensor([ids], dtype=self.torch.long)

    def distiller(self, mend, separated, groups=1, **flags):
        """The released DistillModel around gpt2-tiny, with the weights of a small MEND."""
        key = json.dumps([mend, separated, groups, flags], sort_keys=True)
        if key in self.distillers:
            return self.distillers[key]
        torch, v = self.torch, len(self.states[mend]["hypernet.init_prompt_weight"])
        with tempfile.TemporaryDirectory() as scratch:
            # The released code tells the family by the directory's name.
            base, weights = os.path.join(scratch, "gpt2"), os.path.join(scratch, "hypernet.bin")
            os.mkdir(base)
            for file in ("config.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
                os.symlink(os.path.join(self.folder, mend, file), os.path.join(base, file))
            state = {k.replace("hypernet.", ""): t for k, t in self.states[mend].items() if "init_prompt" not in k and "adap" not in k}
            torch.save(state, os.path.join(base, "pytorch_model.bin"))
            torch.save(self.states[mend], weights)
            arguments = self.released.ModelArguments(
                s_model_name_or_path=base, s_state_dict_path=weights, virtual_demo_len=v, is_init_prompt_weight=True, virtual_demo_init="random",
                demo_batch_count=groups, is_fid=groups > 1, expand_s_attention_mask=bool(separated),
                label_virtual_demo_len=separated["label_rows"] if separated else 1,
                is_expand_demo_input_mask=bool(separated and separated["both"]), **flags)
            arguments.do_train, arguments.add_same_task_count, arguments.t_demo_batch_count = False, 0, 0
            stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
            try:
                model = self.released.DistillModel(self.models["gpt2-tiny"], arguments)
            finally:
                sys.stdout.close()
                sys.stdout = stdout
        model.hypernet.config._attn_implementation = "eager"
        self.distillers[key] = model.to(self.dtype).eval()
        return model

    def batch(self, case, groups, labels, one=None):
        """What the released data code hands to the model for one query; channel (one): the option as query, x as its only candidate."""
        x, options = (case["x"], case["options"]) if one is None else (one, [case["x"]])
        demo = case["demos"][0]
        item = dict(input_ids=x, attention_mask=[1] * len(x), token_type_ids=[0] * len(x), teacher_input_ids=demo + x,
                    teacher_attention_mask=[1] * len(demo + x), teacher_token_type_ids=[0] * len(demo + x), demo_ids=groups,
                    demo_attention_mask=[[1] * len(g) for g in groups], demo_token_type_ids=labels, task_idx=[0], s_demo_count=[1] * len(groups),
                    label_candidates=options, label_candidates_attention_mask=[[1] * len(o) for o in options],
                    label_candidates_token_type_ids=[[1] * len(o) for o in options], clf_label=[0])
        return self.released.collate([item], t_tokenizer=None, is_fp16=False)

    def distill_batch(self, mend, groups, labels, separated):
        """The released hypernet on a batch of groups: what it returns, in the LLM's width."""
        model = self.distiller(mend, separated, len(groups))
        fake = dict(x=[5], options=[[5]], demos=groups)
        batch = self.batch(fake, groups, labels)
        vectors, _ = model.hypernet(input_ids=batch["demo_ids"], attention_mask=batch["demo_attention_mask"], demo_token_type_ids=batch["demo_token_type_ids"])
        if model.hypernet.adap_pooler is not None:
            vectors = model.hypernet.adap_pooler(vectors)
        return vectors[0]

    def vectors(self, case):
        labels = case.get("labels") or [[0] * len(d) for d in case["demos"]]
        return self.torch.cat([self.distill_batch(case["mend"], [d], [t], case.get("separated")) for d, t in zip(case["demos"], labels)])

    def gpt2_logits(self, llm, vectors, ids):
        """Logits of every position of [vectors ; ids]; vectors may be None."""
        model = self.models[llm]
        embeds = model.get_input_embeddings()(self.ids(ids))
        if vectors is not None:
            embeds = self.torch.cat([vectors[None], embeds], 1)
        return model(inputs_embeds=embeds, use_cache=False).logits[0]

    def score(self, case):
        torch = self.torch
        groups = case["demos"]
        labels = [[0] * len(g) for g in groups]
        if case["direction"] == "direct" and (case["method"] != "mend" or len(groups) == 1) and case["x"]:
            model = self.distiller(case["mend"], None, len(groups), is_no_s_embeds=case["method"] == "zero", is_t_demo=case["method"] == "icl")
            return {"score": model(**self.batch(case, groups, labels)).logits[0]}
        if case["direction"] == "channel" and case["method"] == "mend" and len(groups) == 1:
            model = self.distiller(case["mend"], None)
            return {"score": torch.stack([model(**self.batch(case, groups, labels, option)).logits[0, 0] for option in case["options"]])}
        if case["direction"] == "channel" and case["method"] != "mend":
            class Runner(self.released.MetaICLModel):
                def __init__(self, model):
                    self.model = model
            scores = []
            for option in case["options"]:
                prefix = (groups[0] if case["method"] == "icl" else []) + option
                kinds = [0] * len(prefix) + [1] * len(case["x"])
                loss = Runner(self.models[case["llm"]]).run_model(self.ids(prefix + case["x"]), self.ids([1] * len(kinds)), self.ids(kinds))
                scores.append(-loss[0])
            return {"score": torch.stack(scores)}
        # Several groups, or nothing between the vectors and the option: transformers behind the released code's vectors.
        scores, found = [], {}
        before = self.vectors(case) if case["method"] == "mend" else None
        for option in case["options"]:
            prefix = groups[0] if case["method"] == "icl" else []
            first, second = (case["x"], option) if case["direction"] == "direct" else (option, case["x"])
            ids = prefix + first + second
            p = torch.log_softmax(self.gpt2_logits(case["llm"], before, ids), -1)
            start = len(p) - len(second)
            scores.append(sum(p[start + i - 1, t] for i, t in enumerate(second)) / len(second))
        found["score"] = torch.stack(scores)
        if not case["x"] and case["method"] == "mend":
            found["dropped"] = self.distiller(case["mend"], None)(**self.batch(case, groups, labels)).logits[0]
        return found

    def greedy(self, case):
        """20 tokens, one at a time, each from the whole sequence: no cache to trust."""
        torch, margin, out = self.torch, math.inf, []
        t5 = case["model"] in self.t5
        vectors = self.vectors(case) if "mend" in case else None
        for _ in range(20):
            if t5:
                logits = self.models[case["model"]](input_ids=self.ids(case["encoder"]), decoder_input_ids=self.ids([0] + out), use_cache=False).logits[0, -1]
            else:
                logits = self.gpt2_logits(case["model"], vectors, case["ids"] + out)[-1]
            top = torch.topk(logits, 2)
            margin = min(margin, float(top.values[0] - top.values[1]))
            out.append(int(top.indices[0]))
        return dict(continuation=out, margin=margin)

    # -- T5 --

    def t5_vectors(self, case):
        torch, w, rows = self.torch, self.t5_mend, []
        for demo in case["demos"]:
            embeds = torch.cat([w["shared.weight"][demo], w["init_prompt_weight"]])[None]
            found = self.models["mend-t5-tiny"](inputs_embeds=embeds).last_hidden_state[0, len(demo):]
            rows.append(torch.tanh(found @ w["adap_pooler.dense.weight"].T + w["adap_pooler.dense.bias"]))
        return torch.cat(rows)

    def t5_score(self, case):
        torch, model, scores = self.torch, self.models[case["llm"]], []
        shared = model.get_input_embeddings()
        parts = [] if case["method"] == "zero" else [self.t5_vectors(case) if case["method"] == "mend" else shared(self.ids(case["demos"][0]))[0]]
        if case["encoder_input"]:
            parts.append(shared(self.ids(case["x"]))[0])
        for option in case["options"]:
            decoder = [0] + ([] if case["encoder_input"] else case["x"]) + option
            logits = model(inputs_embeds=torch.cat(parts)[None], decoder_input_ids=self.ids(decoder), use_cache=False).logits[0]
            p, start = torch.log_softmax(logits, -1), len(decoder) - len(option)
            scores.append(sum(p[start + i - 1, t] for i, t in enumerate(option)) / len(option))
        return {"score": torch.stack(scores)}

    # -- any --

    def case(self, case):
        """{name: numbers} of a case."""
        with self.torch.no_grad():
            return getattr(self, "run_" + case["kind"].replace("-", "_"))(case)

    def run_gpt2(self, case):
        done = self.models[case["model"]](input_ids=self.ids(case["ids"]), output_hidden_states=True, use_cache=False)
        rows, p = done.hidden_states[-1][0], self.torch.log_softmax(done.logits[0], -1)
        return dict({"hidden.%d" % r: rows[r] for r in rows_of(len(rows))}, logprob=[p[i, t] for i, t in enumerate(case["ids"][1:])])

    run_greedy = greedy
    run_score = score
    run_t5_score = t5_score

    def run_distill(self, case):
        found = {"row.%d" % r: row for r, row in enumerate(self.vectors(case))}
        if len(case["demos"]) > 1:
            rows = self.distill_batch(case["mend"], case["demos"], case["labels"], case["separated"])
            found.update({"released.%d" % r: row for r, row in enumerate(rows)})
        return found

    def run_logprob(self, case):
        p = self.torch.log_softmax(self.gpt2_logits(case["llm"], self.vectors(case), case["ids"]), -1)[-len(case["ids"]) - 1:]
        return dict(logprob=[p[i, t] for i, t in enumerate(case["ids"])])

    def run_t5(self, case):
        done = self.models[case["model"]](input_ids=self.ids(case["encoder"]), decoder_input_ids=self.ids(case["decoder"]), use_cache=False)
        rows, logits = done.encoder_last_hidden_state[0], done.logits[0]
        p = self.torch.log_softmax(logits, -1)
        found = {"encoder.%d" % r: rows[r] for r in rows_of(len(rows))}
        found.update({"logit.%d" % r: logits[r, case["columns"]] for r in rows_of(len(logits))})
        return dict(found, logprob=[p[i, t] for i, t in enumerate(case["decoder"][1:])])

    def run_t5_encoder(self, case):
        rows = self.models[case["model"]](input_ids=self.ids(case["encoder"])).last_hidden_state[0]
        return {"encoder.%d" % r: rows[r] for r in rows_of(len(rows))}

    def run_t5_distill(self, case):
        return {"row.%d" % r: row for r, row in enumerate(self.t5_vectors(case))}

    def run_metrics(self, case):
        import numpy
        import sklearn.metrics
        truth, predicted = case["truth"], case["predicted"]
        data = object.__new__(self.released.MetaICLData)
        data.metadata = truth
        running = [sklearn.metrics.accuracy_score(truth[:i + 1], predicted[:i + 1]) for i in range(len(truth))]
        return {"f1": [sklearn.metrics.f1_score(y_true=truth, y_pred=predicted, average="macro")], "accuracy": [sklearn.metrics.accuracy_score(truth, predicted)],
                "f1_truth": [data.evaluate([str(p) for p in predicted], [str(t) for t in truth], True)], "spread": [numpy.std(running)]}

    def run_t5_buckets(self, case):
        from transformers.models.t5.modeling_t5 import T5Attention
        distances = self.torch.arange(-case["span"], case["span"] + 1)
        return dict(buckets=T5Attention._relative_position_bucket(distances, bidirectional=case["bidirectional"]).tolist())


def exact_t5_norm():
    """T5's norm without its float32 island."""
    import torch
    from transformers.models.t5 import modeling_t5

    def forward(self, x):
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))
    old = modeling_t5.T5LayerNorm.forward
    modeling_t5.T5LayerNorm.forward = forward
    return lambda: setattr(modeling_t5.T5LayerNorm, "forward", old)


# ==== the file ====

def numbers(value):
    return [float(v) for v in value]


def versions():
    from importlib.metadata import version
    return {name: version(name) for name in ("torch", "transformers", "numpy", "scikit-learn")}


def thin(case, values):
    """Drop most rows of long vectors: their number and the ends say enough."""
    for prefix in ("row.", "released."):
        rows = sorted(int(k[len(prefix):]) for k in values if k.startswith(prefix))
        if len(rows) > 16:
            keep = {rows[i] for i in rows_of(len(rows), 4 if case.get("separated") else 6)}
            if case.get("separated"):  # the first and last of both kinds of rows
                keep |= {max(rows) + 1 - case["separated"]["label_rows"], max(rows) - case["separated"]["label_rows"]} & set(rows)
            for r in rows:
                if r not in keep:
                    del values[prefix + str(r)]
    return values


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
    torch.set_num_threads(1)  # one order of summation
    plan = list(cases())
    undo = exact_t5_norm()
    suite = Suite(folder, released, torch.float64)
    restated, exact, worst = Restated(suite), [], 0.0
    for case in plan:
        found = suite.case(case)
        again = restated.case(case)
        if again is not None:
            assert set(again) == set(found), (case["kind"], set(again) ^ set(found))
            for key in found:
                for a, b in zip(numbers(found[key]), numbers(again[key])):
                    # NaN: the released code averages over nothing.
                    assert abs(a - b) <= AGREE or (math.isnan(a) and math.isnan(b)), (case["kind"], key, a, b)
                    worst = max(worst, abs(a - b)) if a == a else worst
                assert len(found[key]) == len(again[key])
        exact.append(found)
    undo()
    suite = Suite(folder, released, torch.float32)
    lines = []
    for case, found in zip(plan, exact):
        line = dict(case)
        if "continuation" in found:
            assert suite.case(case)["continuation"] == found["continuation"] and found["margin"] > 1e-4, found["margin"]
            line.update(continuation=found["continuation"], margin="%.3g" % found["margin"])
        elif "buckets" in found:
            line["buckets"] = found["buckets"]
        elif "f1" in found:
            line["values"] = {key: ["%.17g" % x for x in numbers(value)] for key, value in found.items()}
        else:
            single = suite.case(case)
            apart = {}
            for key in found:
                group = key.split(".")[0]
                apart.setdefault(group, []).extend(a - b for a, b in zip(numbers(found[key]), numbers(single[key])) if a == a)
            if "score" in found:
                line["prediction"] = max(range(len(found["score"])), key=lambda i: (float(found["score"][i]), -i))
            line["f32"] = {key: {"rms": "%.2e" % math.sqrt(sum(d * d for d in ds) / len(ds)), "max": "%.2e" % max(map(abs, ds))} for key, ds in apart.items() if ds}
            line["values"] = {key: ["%.17g" % x if x == x else None for x in numbers(value)] for key, value in thin(case, found).items()}
        lines.append(line)
    digests = {}
    for name in make_mend_models.MODELS:
        for file in ("model.safetensors", "pytorch_model.bin"):
            path = os.path.join(folder, name, file)
            if os.path.exists(path):
                with open(path, "rb") as f:
                    digests[name] = hashlib.sha256(f.read()).hexdigest()
    header = {"header": "numbers of GPT-2, T5 and MEND in float64", "versions": versions(), "released": mend_released.COMMITS, "weights_sha256": digests}
    path = os.path.join(HERE, "golden", "mend-numbers.json.gz")
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=9) as f:
        body = ",\n".join(json.dumps(line, sort_keys=True) for line in lines)
        f.write(('{"header": %s, "cases": [\n%s\n]}\n' % (json.dumps(header, sort_keys=True), body)).encode())
    print("%d cases, %d bytes; restated to %.1e" % (len(lines), os.path.getsize(path), worst))


if __name__ == "__main__":
    main()
