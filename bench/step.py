"""One training step of a token classifier - loss, gradient, AdamW - by our encoder and by transformers on PyTorch, the same weights and ids, in turn.

usage: python3 bench/step.py [--threads N] [--rounds N] [default] [mbert]      (default: the first; make build/step first)

default: the size of the embedded model, 8 sequences of 256 pieces; mbert: BERT base, multilingual. No dropout in either. Prints the least seconds of each,
their ratio (below 1 we are faster) and both losses.
"""
import argparse
import os
import subprocess
import sys

from compare import ROOT, WORK, alternate, checkpoint, MBERT, report

SEQUENCES, TOKENS = 8, 256


def small():
    """A checkpoint of the embedded model's size with random weights, and its flat file, without a tokenizer."""
    import torch
    import transformers
    folder, flat = os.path.join(WORK, "default-size"), os.path.join(WORK, "default-size.safetensors")
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=6700, hidden_size=384, num_hidden_layers=4, num_attention_heads=12, intermediate_size=1536, num_labels=2)
    transformers.BertForTokenClassification(config).save_pretrained(folder)
    subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), folder, "-o", flat], check=True, stderr=subprocess.DEVNULL)
    return folder, flat


class Step:
    """Our program, warm: one line in, one step, its seconds out."""

    def __init__(self, flat, math, threads):
        self.process = subprocess.Popen([os.path.join(ROOT, "build", "step"), flat, str(SEQUENCES), str(TOKENS), math, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, self.loss = map(float, self.process.stdout.readline().split())
        return seconds


def main():
    import torch
    import transformers
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("what", nargs="*", default=["default"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.makedirs(WORK, exist_ok=True)
    for what in args.what:
        folder, flat = small() if what == "default" else checkpoint(MBERT)
        model = transformers.BertForTokenClassification.from_pretrained(folder).eval()  # no dropout
        ids = torch.tensor([n * 2654435761 % (model.config.vocab_size - 1000) + 500 for n in range(SEQUENCES * TOKENS)]).view(SEQUENCES, TOKENS)
        labels = torch.tensor([int(n * 7 % 3 == 0) for n in range(SEQUENCES * TOKENS)]).view(SEQUENCES, TOKENS)
        optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01), []

        def torch_step():
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

        ours = Step(flat, "fast", args.threads)
        best = alternate(args.rounds, **{"transformers": torch_step, "ours (fast)": ours})
        print("a training step, %s size, %d x %d pieces, %d threads" % (what, SEQUENCES, TOKENS, args.threads))
        report(what, best, ["ours (fast)"], ["transformers"])
        print("  losses of the last step            %.7f %.7f" % (ours.loss, losses[-1]))
        ours.process.stdin.close()


main()
