"""Side by side on this machine, in one run: our programs against transformers on PyTorch, ONNX Runtime and llmlingua.

usage: python3 bench/compare.py [--threads N] [--rounds N] [kernel] [functions] [encoder] [compress] [tokenizer] [mend] [memory]     (default: all)

Needs the packages of test/requirements.txt, and ../shared/assets for the real tokenizers. The models have real configurations and
random weights, the same for every program, made under build/bench. Each comparison alternates the programs round by round and takes the
minimum of each, so that a busy moment hurts all alike. What is printed is seconds and the ratio ours / theirs: below 1 we are faster.
"""
import argparse
import json
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORK = os.path.join(ROOT, "build", "bench")
ASSETS = os.path.join(ROOT, "..", "shared", "assets")
MBERT = "bert-base-multilingual-cased"
XLMR = "xlm-roberta-large"


def alternate(rounds, **programs):
    """Call each program once per round, in turn; returns {name: least seconds}. A program returns seconds, or None to be timed here."""
    best = {}
    for name, program in programs.items():
        program()  # once unmeasured: pages in, caches warm
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            seconds = program()
            seconds = time.perf_counter() - start if seconds is None else seconds
            best[name] = min(best.get(name, seconds), seconds)
    return best


def report(title, best, ours, theirs):
    for name in best:
        print("  %-34s %9.4f s" % (name, best[name]))
    for name in ours:
        for other in theirs:
            print("  %-34s %9.2f" % ("%s / %s" % (name, other), best[name] / best[other]))
    sys.stdout.flush()


class Forward:
    """The C encoder in a process of its own that stays warm: one line in, the seconds of one forward pass out."""

    def __init__(self, model, ids, math, threads):
        self.process = subprocess.Popen([os.path.join(ROOT, "build", "forward"), model, str(ids), math, str(threads)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def checkpoint(name):
    """A directory with a real configuration, random weights and the real tokenizer; and the flat file made from it."""
    import shutil
    import torch
    import transformers
    folder, flat = os.path.join(WORK, name), os.path.join(WORK, name + ".safetensors")
    if not os.path.exists(flat):
        torch.manual_seed(1)
        if name == MBERT:
            config = transformers.BertConfig(vocab_size=119547 + 100, num_labels=2)
            model, files = transformers.BertForTokenClassification(config), {"mbert-tokenizer/vocab.txt": "vocab.txt"}
        else:
            config = transformers.XLMRobertaConfig(vocab_size=250002 + 100, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                                                   intermediate_size=4096, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
                                                   num_labels=2)
            model = transformers.XLMRobertaForTokenClassification(config)
            files = {"xlmr-tokenizer/sentencepiece.bpe.rebuilt.model": "sentencepiece.bpe.model",
                     "xlmr-tokenizer/tokenizer.rebuilt.json": "tokenizer.json"}
        model.save_pretrained(folder)
        for source, target in files.items():
            shutil.copy(os.path.join(ASSETS, source), os.path.join(folder, target))
        subprocess.run([sys.executable, os.path.join(ROOT, "export.py"), folder, "-o", flat], check=True)
    return folder, flat


def kernel(args):
    print("kernel: share of the machine's multiply-add peak")
    subprocess.run([os.path.join(ROOT, "build", "kernel"), str(args.threads)], check=True)


def functions(args):
    print("functions: correctly rounded, against the C library's")
    subprocess.run([os.path.join(ROOT, "build", "functions")], check=True)


def encoder(args):
    import onnxruntime
    import torch
    import transformers
    torch.set_num_threads(args.threads)
    for name, kind in ((MBERT, transformers.BertForTokenClassification), (XLMR, transformers.XLMRobertaForTokenClassification)):
        folder, flat = checkpoint(name)
        model = kind.from_pretrained(folder).eval()
        # The ids that bench/forward.c uses: 512 of them, spread over the vocabulary.
        ids = torch.tensor([[(i * 2654435761) % 100000 + 1000 for i in range(512)]])

        def torch_forward():
            with torch.no_grad():
                model(input_ids=ids)
        programs = {"transformers": torch_forward}
        if name == MBERT:
            path = os.path.join(WORK, name + ".onnx")
            if not os.path.exists(path):
                torch.onnx.export(model, (ids,), path, input_names=["input_ids"], output_names=["logits"], dynamo=False, opset_version=17)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = args.threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            programs["onnxruntime"] = lambda: session.run(None, {"input_ids": ids.numpy()}) and None
        ours = {math: Forward(flat, 512, math, args.threads) for math in ("fast", "reference")}
        best = alternate(args.rounds, **programs, **ours)
        print("encoder: %s, 512 tokens, %d threads" % (name, args.threads))
        report(name, best, list(ours), list(programs))
        for process in ours.values():
            process.close()


def tiktoken_files():
    """What tiktoken would download."""
    cache = os.path.join(WORK, "tiktoken")
    os.makedirs(cache, exist_ok=True)
    link = os.path.join(cache, "9b5ad71b2ce5302211f9c61530b329a4922fc6a4")  # the name under which tiktoken caches cl100k_base
    if not os.path.exists(link):
        os.symlink(os.path.abspath(os.path.join(ASSETS, "tiktoken", "cl100k_base.tiktoken")), link)
    os.environ["TIKTOKEN_CACHE_DIR"] = cache


def text_of(tokens):
    """The beginning of a real text that has this many cl100k tokens."""
    import tiktoken
    tiktoken_files()
    encoding = tiktoken.get_encoding("cl100k_base")
    lines = [json.loads(line)["origin"] for line in open(os.path.join(ROOT, "data", "distill", "p1.jsonl"), encoding="utf-8")]
    return encoding.decode(encoding.encode("\n\n".join(lines), disallowed_special=())[:tokens])


def compress(args):
    import tempfile
    import torch
    tiktoken_files()
    from llmlingua import PromptCompressor
    torch.set_num_threads(args.threads)
    folder, flat = checkpoint(MBERT)
    compressor = PromptCompressor(folder, use_llmlingua2=True, device_map="cpu")
    for tokens in (300, 5000):
        text = text_of(tokens)
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            command = [os.path.join(ROOT, "lingua2"), "compress", "--compat", "-m", flat, "--rate", "0.5", "--threads", str(args.threads), file.name]
            results = {}

            def package():
                results["package"] = compressor.compress_prompt_llmlingua2([text], rate=0.5)["compressed_prompt"]

            def process():
                results["process"] = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode("utf-8")
            best = alternate(args.rounds if tokens == 300 else max(2, args.rounds // 2), llmlingua_call=package, lingua2_process=process)
        print("compress: %s, %d tokens, %d threads; ours is the whole process, start and model file included" % (MBERT, tokens, args.threads))
        report("compress", best, ["lingua2_process"], ["llmlingua_call"])
        print("  same text: %s" % (results["package"].rstrip("\n") == results["process"].rstrip("\n")))


def tokenizer(args):
    subprocess.run([sys.executable, os.path.join(ROOT, "bench", "tokenizer.py")], check=True)


def mend(args):
    subprocess.run([sys.executable, os.path.join(ROOT, "bench", "mend.py"), "--threads", str(args.threads), "--rounds", str(max(2, args.rounds // 2))])


# Runs a command and prints its peak memory in KB. In a process of its own: what this one holds would count for its child until that is another program.
PEAK = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def peak_memory(command):
    """KB, of a command that must succeed."""
    return int(subprocess.run([sys.executable, "-c", PEAK, *command], stdout=subprocess.PIPE, check=True).stdout)


def memory(args):
    """Peak resident memory of one process beside the size of its model file."""
    for name in (MBERT, XLMR):
        _, flat = checkpoint(name)
        text = os.path.join(WORK, "text.txt")
        with open(text, "w", encoding="utf-8") as file:
            file.write(text_of(5000))
        command = [os.path.join(ROOT, "lingua2"), "compress", "--compat", "-m", flat, "--threads", str(args.threads), text]
        print("memory: %s, 5000 tokens: peak %d MB, model file %d MB" % (name, peak_memory(command) // 1000, os.path.getsize(flat) // 1000000))


def main():
    parts = [kernel, functions, encoder, compress, tokenizer, mend, memory]
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("part", nargs="*", help="which comparisons: " + ", ".join(p.__name__ for p in parts))
    args = arguments.parse_args()
    unknown = set(args.part) - {p.__name__ for p in parts}
    if unknown:
        arguments.error("no such comparison: " + ", ".join(sorted(unknown)))
    os.makedirs(WORK, exist_ok=True)
    for part in parts:
        if not args.part or part.__name__ in args.part:
            part(args)


if __name__ == "__main__":
    main()
