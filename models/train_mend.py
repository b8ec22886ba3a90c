"""Make the small language model that learns in context and its distiller, for `make demo`.

usage: python3 models/train_mend.py OUT      writes OUT/lm and OUT/mend (Hugging Face directories); then
       python3 export.py OUT/lm -o models/mend-lm.safetensors
       python3 export.py OUT/mend --mend OUT/mend -o models/mend-distiller.safetensors
       python3 models/train_mend.py OUT evaluate      the table of models/README.md
       python3 models/train_mend.py OUT demo          writes demo/demonstrations.jsonl and demo/queries.jsonl

Needs torch and transformers. The task: an episode binds C categories of words (models/categories.txt: 48 of 12) to C random label words; a
demonstration is two words of a category and its label. Nothing but the demonstrations says which label is whose, so zero-shot is chance.
  language model  GPT-2, 4 layers x 128, on episodes of 16 demonstrations (loss on the labels) and lists of words of one category
  distiller       GPT-2 of the same size, started from the language model, its output scaled to the length of the embeddings; 16 vectors;
                  first 4 demonstrations, then more and more; cross entropy and KL against the language model that sees the demonstrations
  held out        the last 8 categories are in no episode of training, only in the lists; bindings are drawn anew for every episode
"""
import json
import os
import random
import sys
import time

import torch
import torch.nn.functional as F
import transformers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CATEGORIES = [line.split()[1:] for line in open(os.path.join(ROOT, "models", "categories.txt"), encoding="utf-8")]
LABELS = """dax wug blick fep toma zorp kiki bouba snarf glim plonk quib vash drel mub trell yorp zint corl bim frab glorp hask jeeb klom lirp morf
nask osk plim quon rell skib tulp urm vint welp xan yim zeb""".split()
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = SPECIALS + sorted({w for c in CATEGORIES for w in c} | set(LABELS))
ID = {w: i for i, w in enumerate(VOCABULARY)}
WORDS = torch.tensor([[ID[w] for w in c] for c in CATEGORIES])
LABEL_IDS = torch.tensor([ID[w] for w in LABELS])
HELD_OUT, U, SEED = 8, 16, 1
TRAIN = len(CATEGORIES) - HELD_OUT


def episodes(B, K, C, Q, generator, first=0, last=TRAIN, words=12):
    """demos [B,K,3], queries [B,Q,3] (two different words and the right label), labels [B,C] of the episode. Every class is shown about K/C times;
    of each category only so many words occur."""
    classes = torch.rand(B, last - first, generator=generator).argsort(-1)[:, :C] + first
    labels = LABEL_IDS[torch.rand(B, len(LABELS), generator=generator).argsort(-1)[:, :C]]

    own = torch.rand(B, C, 12, generator=generator).argsort(-1)[..., :words]

    def draw(n, which):
        two = torch.rand(B, n, words, generator=generator).argsort(-1)[..., :2]
        index = own.gather(1, which[..., None].expand(-1, -1, words)).gather(-1, two)
        return torch.cat([WORDS[classes.gather(1, which)].gather(-1, index), labels.gather(1, which)[..., None]], -1)
    shown = (torch.arange(K) % C).expand(B, K).gather(1, torch.rand(B, K, generator=generator).argsort(-1))
    return draw(K, shown), draw(Q, torch.randint(0, C, (B, Q), generator=generator)), labels


def lists(B, T, generator):
    """Lists of words of one category."""
    category = torch.randint(0, len(CATEGORIES), (B, 1), generator=generator).expand(B, T)
    return WORDS[category[:, 0]].gather(1, torch.randint(0, 12, (B, T), generator=generator))


def optimizer(parameters, rate, steps, warm_up=100):
    """The rate rises, stays, and falls in the last third."""
    opt = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    return opt, torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1, (s + 1) / warm_up, max(0.02, 3 * (1 - s / steps))))


def step(opt, schedule, loss, model):
    opt.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    schedule.step()


def config(cls=transformers.GPT2Config):
    return cls(vocab_size=len(VOCABULARY), n_positions=128, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
               bos_token_id=None, eos_token_id=None)


def wire(lm):
    """Start where a plateau of training ends: layer 0 looks one and two rows back, layer 1 compares the last word with the words before each
    label and copies that label (an induction head). Positions begin as waves in 32 dimensions, words in the other 96; all of it is then trained."""
    W, heads = 32, torch.linspace(0.1, 3.0, 16)
    first, second = lm.transformer.h[0].attn, lm.transformer.h[1].attn
    back = [torch.linalg.qr(torch.randn(96, 96))[0] for _ in range(4)]

    def columns(attention, part, head):
        return attention.c_attn.weight[:, 128 * part + W * head:128 * part + W * (head + 1)]
    angle = torch.arange(128)[:, None] * heads
    lm.transformer.wpe.weight.zero_()
    lm.transformer.wpe.weight[:, :W] = 0.3 * torch.cat([angle.sin(), angle.cos()], 1)
    lm.transformer.wte.weight.mul_(6)
    lm.transformer.wte.weight[:, :W] = 0
    for h in range(4):
        steps = 1 + h % 2  # rows back
        turn_sin, turn_cos = (steps * heads).sin(), (steps * heads).cos()
        q, k, v = (columns(first, part, h) for part in range(3))
        q[:W].zero_(), k[:W].zero_()
        k[:W] = torch.eye(W)
        q[:16, :16], q[16:W, :16] = torch.diag(turn_cos), torch.diag(-turn_sin)  # sin(a - s) = sin a cos s - cos a sin s
        q[:16, 16:], q[16:W, 16:] = torch.diag(turn_sin), torch.diag(turn_cos)
        seen = slice(W + 32 * (h // 2), W + 32 * (h // 2) + 32)  # which dimensions of the word this head carries
        v.zero_()
        v[seen] = torch.eye(W)
        first.c_proj.weight[W * h:W * (h + 1)] = 0
        first.c_proj.weight[W * h:W * (h + 1), W:] = 0.25 * back[h][:W]
        q, k, v = (columns(second, part, h) for part in range(3))
        q[seen] += 2 * torch.eye(W)
        k[W:] += 2 * back[h][:W].T
        label = slice(W + 32 * (h % 3), W + 32 * (h % 3) + 32)
        v[label] += torch.eye(W)
        second.c_proj.weight[W * h:W * (h + 1), label] += 2 * torch.eye(W)


def seen_before(labels):
    """[B,K]: whether the label of a demonstration stood in an earlier one; the first time it is anyone's guess."""
    return (labels[:, :, None] == labels[:, None, :]).tril(-1).any(-1)


def train_lm(steps, generator):
    """Words that come again and again are the easy beginning: first 2 words of each category, then more as the model learns to look back."""
    lm = transformers.GPT2LMHeadModel(config())
    with torch.no_grad():
        wire(lm)
        print("wired: in context %.3f, with 2 words %.3f" % (icl(lm, 256, 16, 2, generator), icl(lm, 256, 8, 2, generator, words=2)), flush=True)
    opt, schedule = optimizer(lm.parameters(), 1e-3, steps)
    start, words = time.time(), 2
    for i in range(steps):
        K, B = (8, 64) if words < 12 else (16, 32)
        demos, _, _ = episodes(B, K, random.choice((2, 2, 3, 4)), 1, generator, words=words if random.random() < 0.7 else 12)
        ids = demos.reshape(B, -1)
        logits = lm(ids).logits[:, 1::3]
        counts = seen_before(demos[:, :, 2])
        loss = F.cross_entropy(logits[counts], demos[:, :, 2][counts])
        text = lists(16, 16, generator)
        plain = F.cross_entropy(lm(text).logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
        step(opt, schedule, loss + 0.3 * plain, lm)
        if i % 50 == 0 and words < 12 and icl(lm, 128, 8, 2, generator, words=words) > 0.9:
            words = {2: 3, 3: 5, 5: 8, 8: 12}[words]
        if i % 100 == 0 or i == steps - 1:
            print("lm %d: label loss %.3f, list loss %.3f, %d words, in context %.3f, %.0f s" % (
                i, loss.item(), plain.item(), words, icl(lm, 256, 16, 2, generator), time.time() - start), flush=True)
    return lm.eval()


def choice(logits, labels):
    """The label of the episode with the highest logit: [B,Q]."""
    return labels.gather(1, logits.gather(-1, labels[:, None].expand(-1, logits.shape[1], -1)).argmax(-1))


@torch.no_grad()
def icl(lm, B, K, C, generator, first=0, last=TRAIN, words=12):
    demos, queries, labels = episodes(B, K, C, 1, generator, first, last, words)
    logits = lm(torch.cat([demos.reshape(B, -1), queries[:, 0, :2]], 1)).logits[:, -1:]
    return (choice(logits, labels) == queries[:, :, 2]).float().mean().item()


def distil(hypernet, prompt, demos):
    B = demos.shape[0]
    x = torch.cat([hypernet.wte(demos.reshape(B, -1)), prompt.expand(B, -1, -1)], 1)
    return hypernet(inputs_embeds=x).last_hidden_state[:, -U:]


def student_logits(lm, S, queries):
    """[B,Q,V] at the last word of each query."""
    B, Q = queries.shape[:2]
    x = torch.cat([S[:, None].expand(-1, Q, -1, -1).reshape(B * Q, U, -1), lm.transformer.wte(queries[..., :2].reshape(B * Q, 2))], 1)
    return lm(inputs_embeds=x).logits[:, -1].reshape(B, Q, -1)


@torch.no_grad()
def mend(lm, hypernet, prompt, B, K, C, generator, first=0, last=TRAIN):
    demos, queries, labels = episodes(B, K, C, 4, generator, first, last)
    return (choice(student_logits(lm, distil(hypernet, prompt, demos), queries), labels) == queries[..., 2]).float().mean().item()


def train_mend(lm, minutes, generator):
    for p in lm.parameters():
        p.requires_grad_(False)
    hypernet = transformers.GPT2Model(config())
    hypernet.load_state_dict(lm.transformer.state_dict())
    length = lm.transformer.wte.weight.norm(dim=1).mean()
    with torch.no_grad():
        hypernet.ln_f.weight.fill_(length / 128 ** 0.5)
        hypernet.ln_f.bias.zero_()
    prompt = torch.nn.Parameter(lm.transformer.wte.weight[torch.randint(len(SPECIALS), len(VOCABULARY), (U,), generator=generator)].clone())
    hypernet.register_parameter("init_prompt_weight", prompt)
    steps = 1000000
    opt, schedule = optimizer(hypernet.parameters(), 1e-3, steps)
    start, B, Q, i = time.time(), 48, 4, 0
    while time.time() - start < 60 * minutes:
        done = (time.time() - start) / (60 * minutes)
        K = 4 if done < 0.3 else random.choice((4, 8)) if done < 0.45 else random.choice((4, 8, 16))
        C = 2 if done < 0.6 else random.choice((2, 2, 3, 4))
        if done > 0.75:  # the last quarter of the time: the rate falls
            for group in opt.param_groups:
                group["lr"] = 1e-3 * max(0.02, (1 - done) / 0.25)
        demos, queries, _ = episodes(B, K, C, Q, generator)
        with torch.no_grad():
            teacher = lm(torch.cat([demos.reshape(B, 1, -1).expand(-1, Q, -1).reshape(B * Q, -1), queries[..., :2].reshape(B * Q, 2)], 1)).logits[:, -1]
        logits = student_logits(lm, distil(hypernet, prompt, demos), queries).flatten(0, 1)
        ce = F.cross_entropy(logits, queries[..., 2].flatten())
        kl = F.kl_div(logits.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
        opt.zero_grad()
        (ce + kl).backward()
        torch.nn.utils.clip_grad_norm_(hypernet.parameters(), 1.0)
        opt.step()
        if done <= 0.75:
            schedule.step()
        if i % 200 == 0:
            print("mend %d: ce %.3f kl %.3f, K=4 %.3f, K=16 %.3f, C=4 %.3f, held out %.3f, %.0f s" % (
                i, ce.item(), kl.item(), mend(lm, hypernet, prompt, 64, 4, 2, generator), mend(lm, hypernet, prompt, 64, 16, 2, generator),
                mend(lm, hypernet, prompt, 64, 16, 4, generator), mend(lm, hypernet, prompt, 64, 4, 2, generator, TRAIN, TRAIN + HELD_OUT),
                time.time() - start), flush=True)
        i += 1
    return hypernet.eval(), prompt


def save(out, name, model, state):
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    c = model.config.to_dict()
    c["architectures"] = [type(model).__name__]
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(c, file, indent=1)
    with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8") as file:
        file.write("".join(w + "\n" for w in VOCABULARY))
    torch.save(state, os.path.join(folder, "pytorch_model.bin"))


def load(out):
    lm = transformers.GPT2LMHeadModel(config())
    lm.load_state_dict(torch.load(os.path.join(out, "lm", "pytorch_model.bin")))
    path, hypernet, prompt = os.path.join(out, "mend", "pytorch_model.bin"), None, None
    if os.path.exists(path):
        state = {k.replace("hypernet.", "", 1): v for k, v in torch.load(path).items()}
        prompt = state.pop("init_prompt_weight")
        hypernet = transformers.GPT2Model(config())
        hypernet.load_state_dict(state)
        hypernet.eval()
    return lm.eval(), hypernet, prompt


def evaluate(out):
    lm, hypernet, prompt = load(out)
    generator = torch.Generator().manual_seed(99)
    for K, C in ((4, 2), (8, 2), (16, 2), (16, 4)):
        for name, first, last in (("training categories", 0, TRAIN), ("held-out categories", TRAIN, TRAIN + HELD_OUT)):
            print("K=%d C=%d %s: in context %.3f, MEND %.3f, chance %.3f" % (
                K, C, name, icl(lm, 1000, K, C, generator, first, last), mend(lm, hypernet, prompt, 500, K, C, generator, first, last), 1 / C))


def words(ids):
    return " ".join(VOCABULARY[i] for i in ids.tolist())


def demo():
    """One fixed binding of four training categories to labels: 16 demonstrations, 40 queries."""
    demos, queries, labels = episodes(1, 16, 4, 40, torch.Generator().manual_seed(2026))
    options = [VOCABULARY[i] for i in labels[0].tolist()]
    for name, rows in (("demonstrations", demos[0]), ("queries", queries[0])):
        with open(os.path.join(ROOT, "demo", name + ".jsonl"), "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({"task": "categories", "input": words(row[:2]), "output": VOCABULARY[row[2]], "options": options}) + "\n")


def main():
    out, what = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "train"
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # matrices this small gain nothing from more
    if what == "evaluate":
        return evaluate(out)
    if what == "demo":
        return demo()
    torch.manual_seed(SEED)
    random.seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    if os.path.exists(os.path.join(out, "lm", "pytorch_model.bin")):
        lm = load(out)[0]
    else:
        lm = train_lm(int(os.environ.get("LM_STEPS", "300")), generator)
        save(out, "lm", lm, lm.state_dict())
    hypernet, prompt = train_mend(lm, float(os.environ.get("MEND_MINUTES", "14")), generator)
    save(out, "mend", hypernet, {"hypernet." + k: v for k, v in hypernet.state_dict().items()})


main()
