"""mend against transformers on PyTorch, the same random weights of real sizes, in one run; parts of bench/compare.py's table.

usage: python3 bench/mend.py [--threads N] [--rounds N] [--size gpt2|gpt2-large] [gpt2] [t5] [score]      (default: all, gpt2-large; make build/decode first)

gpt2   1000 pieces read at once, and one piece decoded behind them
t5     T5-large: 1000 pieces into the encoder, 16 pieces out
score  100 queries of 4 options behind 16 demonstrations: transformers as in-context learning is usually run, every option of every query with all
       demonstrations before it, nothing cached; ours with the demonstrations read once. transformers is timed on TIMED_QUERIES of them and so is
       `mend cost`, whose table is printed; both times are for 100 queries by the mean per query.
"""
import argparse
import json
import os
import subprocess
import sys
import time

from compare import ASSETS, ROOT, WORK

READ, DECODED, QUERIES, TIMED_QUERIES, DEMONSTRATIONS, OPTIONS, VECTORS = 1000, 16, 100, 2, 16, 4, 100
GPT2 = {"gpt2": dict(n_embd=768, n_layer=12, n_head=12), "gpt2-large": dict(n_embd=1280, n_layer=36, n_head=20)}
T5 = dict(vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0)


def export(folder, *more):
    flat = folder + ".safetensors"
    subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), folder, *more, "-o", flat], check=True, stderr=subprocess.DEVNULL)
    return flat


def checkpoint(name, make):
    """A Hugging Face folder with random weights, GPT-2's tokenizer in it, and the flat file; made once. make: the model, and what is to be saved in its place."""
    import shutil
    import torch
    folder = os.path.join(WORK, name)
    if not os.path.exists(folder + ".safetensors"):
        torch.manual_seed(1)
        model, tensors = make()
        model.save_pretrained(folder)
        for file in ("vocab.json", "merges.txt") if "t5" not in name else ():
            shutil.copy(os.path.join(ASSETS, "gpt2-tokenizer", file), folder)
        if tensors:
            torch.save(tensors, os.path.join(folder, "hypernet.bin"))
        export(folder, *(["--mend", os.path.join(folder, "hypernet.bin")] if tensors else []))
    return folder, folder + ".safetensors"


def gpt2_checkpoint(size):
    import transformers
    return checkpoint(size, lambda: (transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2[size])), None))


def distiller(width):
    """A GPT-2 small that distils for a language model of this hidden size."""
    import torch
    import transformers

    def make():
        model = transformers.GPT2Model(transformers.GPT2Config())
        tensors = {"hypernet." + name: x for name, x in model.state_dict().items()}
        tensors["hypernet.init_prompt_weight"] = torch.randn(VECTORS, 768) * 0.02
        if width != 768:
            tensors.update({"hypernet.adap_pooler.dense.weight": torch.randn(width, 768) * 0.02, "hypernet.adap_pooler.dense.bias": torch.zeros(width)})
        return model, tensors
    return checkpoint("mend-for-%d" % width, make)[1]


class Decode:
    """Our program, warm: the seconds of reading and of decoding."""

    def __init__(self, model, read, new, math, threads):
        self.process = subprocess.Popen([os.path.join(ROOT, "build", "decode"), model, str(read), str(new), math, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return [float(x) for x in self.process.stdout.readline().split()]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def ids_of(n):
    """The ids that bench/decode.c uses."""
    import torch
    return torch.tensor([[i * 2654435761 % 30000 + 1000 for i in range(n)]])


def compare(title, rounds, theirs, ours, parts):
    """Each program once per round, in turn, once unmeasured before; the least seconds of each part, and ours / theirs."""
    best = {}
    for n in range(rounds + 1):
        for name, program in {"transformers": theirs, **ours}.items():
            for part, seconds in zip(parts, program()):
                if n:
                    best[part, name] = min(best.get((part, name), seconds), seconds)
    print(title)
    for part in parts:
        for name in ("transformers", *ours):
            ratio = "" if name == "transformers" else "%9.2f of transformers" % (best[part, name] / best[part, "transformers"])
            print("  %-34s %9.4f s%s" % ("%s, %s" % (part, name), best[part, name], ratio), flush=True)


def gpt2(args):
    import torch
    import transformers
    folder, flat = gpt2_checkpoint(args.size)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    ids = ids_of(READ)

    def theirs():
        with torch.no_grad():
            start = time.perf_counter()
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            read = time.perf_counter()
            model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
            return read - start, time.perf_counter() - read
    ours = {math: Decode(flat, READ, 1, math, args.threads) for math in ("fast", "reference")}
    compare("%s: %d pieces read, 1 decoded, %d threads" % (args.size, READ, args.threads), args.rounds, theirs, ours, ("read", "decoded"))
    for process in ours.values():
        process.close()


def t5(args):
    import torch
    import transformers
    folder, flat = checkpoint("t5-large-lm-adapt", lambda: (transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)), None))
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    ids = ids_of(READ)

    def theirs():
        with torch.no_grad():
            start = time.perf_counter()
            model.generate(input_ids=ids, max_new_tokens=DECODED, min_new_tokens=DECODED, do_sample=False)
            return [time.perf_counter() - start]
    programs = {math: Decode(flat, READ, DECODED, math, args.threads) for math in ("fast", "reference")}
    ours = {math: lambda p=p: [sum(p())] for math, p in programs.items()}
    compare("t5-large: %d pieces in, %d out, %d threads" % (READ, DECODED, args.threads), args.rounds, theirs, ours, ("both",))
    for process in programs.values():
        process.close()


def examples(n):
    """Inputs of 25 words of our own texts, the three words that follow as the right option, those of other inputs as the wrong ones."""
    with open(os.path.join(ROOT, "data", "distill", "p1.jsonl"), encoding="utf-8") as f:
        words = " ".join(json.loads(line)["origin"] for line in f).split()
    pairs = [(" ".join(words[i:i + 25]), " ".join(words[i + 25:i + 28])) for i in range(0, 28 * (n + OPTIONS), 28)]
    return [{"task": "words", "input": x, "output": y, "options": [y] + [pairs[i + k + 1][1] for k in range(OPTIONS - 1)]} for i, (x, y) in enumerate(pairs[:n])]


def score(args):
    import torch
    import transformers
    folder, flat = gpt2_checkpoint(args.size)
    mend = distiller(GPT2[args.size]["n_embd"])
    all_examples = examples(DEMONSTRATIONS + TIMED_QUERIES)
    demos, queries = all_examples[:DEMONSTRATIONS], all_examples[DEMONSTRATIONS:]
    for name, content in (("demos", demos), ("queries", queries)):
        with open(os.path.join(WORK, name + ".jsonl"), "w", encoding="utf-8") as f:
            f.write("".join(json.dumps(e) + "\n" for e in content))
    model, tokenizer = transformers.GPT2LMHeadModel.from_pretrained(folder).eval(), transformers.GPT2Tokenizer.from_pretrained(folder)
    before = [i for d in demos for part in (d["input"], " " + d["output"]) for i in tokenizer(part)["input_ids"]]
    scores = []
    start = time.perf_counter()
    for q in queries:
        x = tokenizer(q["input"])["input_ids"]
        for option in q["options"]:
            o = tokenizer(" " + option)["input_ids"]
            with torch.no_grad():
                lp = model(input_ids=torch.tensor([before + x + o])).logits[0, -len(o) - 1:-1].log_softmax(-1)
            scores.append(lp[range(len(o)), o].mean().item())
    theirs = (time.perf_counter() - start) / TIMED_QUERIES * QUERIES
    common = ["-l", flat, "-d", os.path.join(WORK, "demos.jsonl"), "--threads", str(args.threads)]
    ours = [s for line in subprocess.run([os.path.join(ROOT, "mend"), "score", *common, "--json", os.path.join(WORK, "queries.jsonl")], check=True,
                                         stdout=subprocess.PIPE).stdout.splitlines() for s in json.loads(line)["scores"]]
    command = [os.path.join(ROOT, "mend"), "cost", *common, "-m", mend, os.path.join(WORK, "queries.jsonl")]
    bills = json.loads(subprocess.run(command + ["--json"], check=True, stdout=subprocess.PIPE).stdout)["methods"]
    print("score: %s, %d queries of %d options behind %d demonstrations (%d pieces), %d threads" % (args.size, QUERIES, OPTIONS, DEMONSTRATIONS, len(before), args.threads))
    print("  %-34s %9.1f s" % ("transformers, nothing cached", theirs))
    for b in bills:
        seconds = b["seconds_once"] + b["seconds_per_query"] * QUERIES
        print("  %-34s %9.1f s%9.3f of transformers" % (b["method"], seconds, seconds / theirs))
    print("  scores differ by %.2g at most" % max(abs(a - b) for a, b in zip(scores, ours)))
    subprocess.run(command, check=True)


def main():
    import torch
    parts = {p.__name__: p for p in (gpt2, t5, score)}
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--size", choices=list(GPT2), default="gpt2-large")
    arguments.add_argument("part", nargs="*", help="which comparisons: " + ", ".join(parts))
    args = arguments.parse_args()
    unknown = set(args.part) - set(parts)
    if unknown:
        arguments.error("no such comparison: " + ", ".join(sorted(unknown)))
    torch.set_num_threads(args.threads)
    os.makedirs(WORK, exist_ok=True)
    for name, part in parts.items():
        if not args.part or name in args.part:
            part(args)


if __name__ == "__main__":
    main()
