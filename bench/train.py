"""A training step of GPT-2 small, side by side with PyTorch: forward, backward, clipping and AdamW, in one process each, round by round.

usage: make build/train_step && python3 bench/train.py [--threads N] [--rounds N] [--texts N] [--pieces N]

Needs the packages of test/requirements.txt. The configuration is GPT-2 small's, the weights are random, the same for both. Prints the least seconds of each,
their ratio, the losses of both, which must agree, and the most memory each took.
"""
import argparse
import os
import resource
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from compare import ROOT, WORK, alternate, report  # noqa: E402


def model_files():
    import torch
    import transformers
    folder, flat = os.path.join(WORK, "gpt2"), os.path.join(WORK, "gpt2.safetensors")
    if not os.path.exists(flat):
        torch.manual_seed(1)
        transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)
        subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), folder, "-o", flat], check=True)
    return folder, flat


class Ours:
    def __init__(self, flat, args, math):
        self.process = subprocess.Popen([os.path.join(ROOT, "build", "train_step"), flat, str(args.texts), str(args.pieces), math, str(args.threads)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.losses = []

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, loss = map(float, self.process.stdout.readline().split())
        self.losses.append(loss)
        return seconds


def main():
    import torch
    import transformers
    parser = argparse.ArgumentParser()
    for name, value in (("--threads", os.cpu_count()), ("--rounds", 3), ("--texts", 4), ("--pieces", 256)):
        parser.add_argument(name, type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder, flat = model_files()
    model = transformers.GPT2LMHeadModel.from_pretrained(folder, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    ids = torch.tensor([(i * 2654435761) % 50257 for i in range(args.texts * args.pieces)]).reshape(args.texts, args.pieces)
    losses = []

    def torch_step():
        optimizer.param_groups[0]["lr"] = 1e-4 * (1 - len(losses) / 1000000)
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    ours = Ours(flat, args, "fast")
    best = alternate(args.rounds, **{"PyTorch": torch_step, "fast": ours})
    print("GPT-2 small, %d texts of %d pieces, %d threads: one training step" % (args.texts, args.pieces, args.threads))
    report("train", best, ["fast"], ["PyTorch"])
    print("  losses %s, PyTorch's %s" % (ours.losses, losses))
    ours.process.stdin.close()
    ours.process.wait()
    print("  most memory %.2f GB, PyTorch's %.2f GB" % tuple(resource.getrusage(who).ru_maxrss / 1e6 for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)))


if __name__ == "__main__":
    main()
