"""Make the golden prompts of MEND: the released data code on 1,000 random tasks, token for token.

usage: python3 test/make_mend_prompts.py MODELS RELEASED      writes test/golden/mend-prompts.jsonl.gz
       MODELS: where make_mend_models.py made or is to make its models (their tokenizers are used); RELEASED: the clones that mend_released.py names

Needs the packages of test/requirements.txt and ../shared. How it was made: the released MEND data set (DistillDataset) is built without its
constructor, which downloads, and its own methods tokenize, shorten, concatenate and assemble each task. Its random draw of demonstrations
is replaced by the order given here. Where MEND's evaluation is not usable (below), MetaICL's prepro_sentence_pair_single puts the two halves
together. Texts are stretches of public-domain books.

The file is gzipped JSON lines. The first line is the header; its "texts" are the stretches. A text of a task is [i, from, to]: the characters
from..to-1 (code points) of texts[i]. Every other line is a task:

  task        its name. An example of more than 256 - 2 tokens loses the end of its input. If the name begins with inst: and the input is shorter
              than the output, the output loses its end instead; for inst:piqa and inst:yahoo_answers_topics the input keeps 128, the output 126.
  method      "direct": the pair of an example is (input, output); "channel": (output, input)
  tokenizer   "gpt2" or "t5"
  limits      [of the teacher, of the distiller], 1024 and 900 in the released scripts
  options     the task's options, if all examples share them. An example's "output" is a text, or a number: which of the options.
  demos       K examples, in the order in which they are shown: input, output, and options where they have their own
  query       the example that is asked about, likewise. No options at all: the released code makes that the one option "NONE".

and under "expect" what comes of it. A list of up to 16 ids is written out, a longer one is {"n": length, "sha256": of the ids as little-endian uint32,
"first": 8 ids, "last": 8 ids}.

  distiller   {"ids", "labels"}: what the distiller reads, without init_prompt_weight, and the maximal runs [from, to) of label tokens in it, that
              is of the second halves of pairs (with channel these are the inputs). Everything else is an input token.
  x           the query's input as tokens, after shortening by its own output
  options     the tokens of each option, whole
  teacher     gpt2 {"demos", "full": for each option {"ids", "score": [from, to)}}: direct demos + x + option, option scored;
              channel: demos + option + x, x scored; if longer than the teacher's limit, cut from the left.
              t5 {"demos", "encoder_input": {"encoder": demos + x, cut from the right, "decoder": for each option 0 + option and "score"},
              "decoder_input": {"decoder": 0 + x + option; the encoder gets the demos}}. Channel: x and option change places.
  student     what follows the vectors: gpt2 {"full": as the teacher's, without demos}; t5 {"encoder": with encoder_input, else nothing follows};
              the decoders are the teacher's. "encoder" is one list for all options, or with channel, whose first halves differ, one for each.
  train       {"student", "teacher": ids with the true output, "y": the number of tokens at the end on which the cross entropy is taken, "query": the
              number of tokens at the end on which the divergence is taken}; gpt2 alone
  released    only where the released evaluation differs. "options": the released code cuts an option to limit - |demos + x| - |option| tokens
              (a negative number drops so many from its end), for teacher and student alike: these are the lengths left. It does so in place of
              cutting the demonstrations, and never needs to cut those. In evaluation by channel the released MEND code puts the options behind
              the true output and never shows x: not recorded.
"""
import gzip
import hashlib
import json
import os
import random
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
BOOKS = os.path.join(HERE, "..", "..", "shared", "data", "text", "gutenberg")
TASKS, STRETCHES, STRETCH = 1000, 48, 6000


# ==== tasks ====

def stretches(draw):
    """Pieces of books, each taken from anywhere."""
    books = []
    for name in sorted(os.listdir(BOOKS)):
        with open(os.path.join(BOOKS, name), "rb") as f:
            raw = f.read()
        try:
            books.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            books.append(raw.decode("latin-1"))
    texts = []
    for _ in range(STRETCHES):
        book = draw.choice(books)
        at = draw.randrange(len(book) - STRETCH)
        texts.append(book[at:at + STRETCH])
    return texts


class Writer:
    """Draws texts of about so many tokens."""

    def __init__(self, draw, texts):
        self.draw, self.texts = draw, texts

    def text(self, tokens, clean):
        """A slice of some 4.2 characters a token; clean: it begins and ends with something else than white space."""
        while True:
            i = self.draw.randrange(len(self.texts))
            size = min(round(tokens * self.draw.uniform(3.6, 4.8)), STRETCH)
            a = self.draw.randrange(STRETCH - size + 1)
            b, text = a + size, self.texts[i]
            while clean and a < b and text[a].isspace():
                a += 1
            while clean and a < b and text[b - 1].isspace():
                b -= 1
            if text[a:b].strip() or tokens == 0:
                return [i, a, b]

    def example(self, longest, outputs, options, long_output):
        """options: None (free form), a number (shared, how many), or "own"."""
        draw = self.draw
        size = 0 if draw.random() < 0.03 else draw.choice((draw.randint(1, 30), draw.randint(1, longest), draw.randint(1, longest)))
        example = {"input": self.text(size, draw.random() < 0.8)}
        length = draw.randint(100, 320) if long_output and draw.random() < 0.6 else draw.randint(1, outputs)
        clean = draw.random() < 0.9
        if isinstance(options, int):
            example["output"] = draw.randrange(options)
        elif options is None:
            example["output"] = self.text(length, clean)
        else:
            example["options"] = [self.text(draw.randint(1, outputs), clean) for _ in range(draw.randint(1, 5))]
            if long_output:
                example["options"][0] = self.text(length, clean)
            example["output"] = 0 if long_output else draw.randrange(len(example["options"]))
        return example

    def task(self, number):
        draw = self.draw
        inst = number % 12 == 0
        task = {"task": draw.choice(("inst:piqa:what", "inst:yahoo_answers_topics", "inst:emo:feeling", "inst:art")) if inst else "task-%d" % (number % 97),
                "method": "channel" if number % 2 else "direct", "tokenizer": "t5" if number % 10 in (2, 5, 7) else "gpt2",
                "limits": [1024, 900] if number % 7 else draw.choice(([1024, 512], [600, 600], [400, 300], [512, 900], [800, 1024]))}
        kind = draw.choice(("shared", "shared", "own", "free"))
        longest, outputs = draw.choice((20, 60, 120, 300, 600)), draw.choice((2, 2, 6, 15, 40))
        options = None if kind == "free" else "own"
        if kind == "shared":
            task["options"] = [self.text(draw.randint(1, outputs), draw.random() < 0.9) for _ in range(draw.randint(2, 6))]
            options = len(task["options"])
        K = draw.choice((0, 1, 2, 3, 4, 8, 16, 16, draw.randint(0, 16)))
        if number % 16 in (3, 4) and not inst:  # full of text, so that an option longer than the true output is too much
            longest, outputs, options, K = 1500, 40, "own", draw.randint(6, 16)
            task.pop("options", None)
        task["demos"] = [self.example(longest, outputs, options, inst) for _ in range(K)]
        task["query"] = self.example(longest, outputs, options, inst)
        return task


# ==== the released code ====

def digest(ids):
    return list(ids) if len(ids) <= 16 else {"n": len(ids), "sha256": hashlib.sha256(struct.pack("<%dI" % len(ids), *ids)).hexdigest(), "first": ids[:8], "last": ids[-8:]}


def runs(mask):
    """Maximal runs of ones."""
    found, start = [], None
    for i, bit in enumerate(list(mask) + [0]):
        if bit and start is None:
            start = i
        elif not bit and start is not None:
            found.append([start, i])
            start = None
    return found


class Released:
    """The released data set over one task at a time."""

    def __init__(self, folder, clones):
        import make_mend_models
        import mend_released
        self.code = mend_released.load(clones)
        from transformers import AutoTokenizer
        import src.dataset_distill as module
        import metaicl.data as metaicl
        self.pair = metaicl.prepro_sentence_pair_single
        self.tokenizers = {kind: AutoTokenizer.from_pretrained(make_mend_models.make(folder, name)) for kind, name in (("gpt2", "gpt2-tiny"), ("t5", "t5-tiny"))}
        numpy = module.np

        class Random:
            """numpy.random whose permutations leave the order as it is."""
            permutation = staticmethod(numpy.arange)

        class Numpy:
            random = Random

            def __getattr__(self, name):
                return getattr(numpy, name)
        module.np = Numpy()

    def dataset(self, task, texts, train):
        """The released object with what its constructor would have set, over the demonstrations and the query (index K + 9, so that it cannot be
        mistaken for one of them)."""
        from types import SimpleNamespace
        tokenizer = self.tokenizers[task["tokenizer"]]
        data = object.__new__(self.code.DistillDataset)
        data.data_args = SimpleNamespace(is_demo_only_label=False, is_demo_itself=False, is_wrong_label=False, is_random_label=False,
                                         is_include_test_example=False, use_new_options_map=False, is_encoder_input=False)
        data.max_length_per_example, data.method = 256, task["method"]
        data.t_max_length, data.s_max_length = task["limits"]
        data.t_name, data.s_name = {"gpt2": ("gpt2-large", "gpt2"), "t5": ("t5-large", "t5-small")}[task["tokenizer"]]
        data.t_add_newlines, data.is_demo_no_label, data.is_query_prefix_random_label = False, False, False
        data.t_bos_token_id = tokenizer.pad_token_id if task["tokenizer"] == "t5" else tokenizer.bos_token_id
        data.demo_batch_count, data.task_relevant_dict, data.task_idx_map = 1, None, {}
        data.is_train, data.is_target_train = train, False
        rows = []
        for example in task["demos"] + [task["query"]]:
            options = [text_of(o, texts) for o in example.get("options", task.get("options", []))]
            output = options[example["output"]] if isinstance(example["output"], int) else text_of(example["output"], texts)
            rows.append({"task": task["task"], "input": text_of(example["input"], texts), "output": output, "options": options})
        batch = {key: [row[key] for row in rows] for key in rows[0]}
        for prefix in (data.t_name, data.s_name):
            batch = data.tokenize_input(batch, tokenizer, prefix)
        rows = [{key: values[i] for key, values in batch.items()} for i in range(len(rows))]
        for prefix in (data.t_name, data.s_name):
            rows = [data.prerocess_tokenized_input(row, prefix) for row in rows]
        rows = [data.get_class_labels(row) for row in rows]
        K = len(task["demos"])
        data.all_dataset, data.target_dataset, data.task_dict = rows[:K], {K + 9: rows[K]}, {task["task"]: list(range(K))}
        return data, K + 9

    def sequence(self, first, second, limit):
        """MetaICL's pair: cut from the left, without its padding."""
        ids, attention, kinds = self.pair(first, second, limit, None, None, allow_truncation=True)
        n = sum(attention)
        return {"ids": digest(ids[:n]), "score": runs(kinds[:n])[0] if second else [n, n]}

    def expect(self, task, texts):
        """The expected half of a task's line; None if the released code refuses the task."""
        try:
            data, item = self.dataset(task, texts, False)
        except AssertionError:  # an output of more than 254 tokens
            return None
        K, channel, query = len(task["demos"]), task["method"] == "channel", data.target_dataset[item]
        options = query[data.t_name + "option_tokens"]
        # The released code swaps the two for channel; x is the input in either case.
        x, y = (query[data.t_name + part] for part in (("output_tokens", "input_tokens") if channel else ("input_tokens", "output_tokens")))
        if not all(options) or not y:
            return None
        limit = task["limits"][0]
        t5 = task["tokenizer"] == "t5"
        got = (data.basic_t5_getitem if t5 else data.basic_getitem)(item, demo_count=K)
        distiller = got["demo_ids"][0] if K else []
        labels = got["demo_token_type_ids"][0] if K else []
        first = query[data.t_name + "input_tokens"]
        assert got["input_ids"] == first
        if t5:
            demos = got["teacher_input_ids"]
            assert got["decoder_input_ids"] == [0] + first and got["label_candidates"] == options
        else:
            demos = got["teacher_input_ids"][:len(got["teacher_input_ids"]) - len(first)]
            assert got["teacher_input_ids"] == demos + first
        found = {"distiller": {"ids": digest(distiller), "labels": runs(labels)}, "x": digest(x), "options": [digest(o) for o in options]}
        pairs = [(o, x) if channel else (x, o) for o in options]
        if not t5:
            found["teacher"] = {"demos": digest(demos), "full": [self.sequence(demos + a, b, limit) for a, b in pairs]}
            found["student"] = {"full": [self.sequence(a, b, limit) for a, b in pairs]}
            cut = [len(o) for o in got["label_candidates"]]
            if not channel and cut != list(map(len, options)):
                found["released"] = {"options": cut}
            data, item = self.dataset(task, texts, True)
            got = data.basic_getitem(item, demo_count=K)
            n = got["teacher_demo_token_type_ids"].count(0)
            assert n == len(got["input_ids"]) and got["teacher_input_ids"] == demos + got["input_ids"]
            assert got["token_type_ids"] == [0] * (n - sum(got["token_type_ids"])) + [1] * sum(got["token_type_ids"])
            found["train"] = {"student": digest(got["input_ids"]), "teacher": digest(got["teacher_input_ids"]), "y": sum(got["token_type_ids"]), "query": n}
            return found

        def decoder(ids, scored):
            return {"ids": digest(ids), "score": [len(ids) - scored, len(ids)]}
        data.data_args.is_encoder_input = True
        got = data.basic_t5_getitem(item, demo_count=K)
        assert got["decoder_input_ids"] == [0] and got["teacher_input_ids"] == (demos + first)[:limit]
        found["teacher"] = {
            "demos": digest(demos),
            "encoder_input": {"encoder": [digest((demos + a)[:limit]) for a, b in (pairs if channel else pairs[:1])],
                              "decoder": [decoder([0] + b, len(b)) for a, b in pairs]},
            "decoder_input": {"decoder": [decoder([0] + a + b, len(b)) for a, b in pairs]}}
        found["student"] = {"encoder": [digest(a) for a, b in (pairs if channel else pairs[:1])]}
        return found


def text_of(where, texts):
    i, a, b = where
    return texts[i][a:b]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, clones = map(os.path.abspath, sys.argv[1:])
    os.chdir(os.path.dirname(HERE))
    draw = random.Random("mend prompts")
    texts = stretches(draw)
    writer, released = Writer(draw, texts), Released(folder, clones)
    lines, number, refused = [], 0, 0
    while len(lines) < TASKS:
        task = writer.task(number)
        number += 1
        found = released.expect(task, texts)
        if found is None:
            refused += 1
            continue
        lines.append(dict(task, expect=found))
    from importlib.metadata import version
    import mend_released
    header = {"header": "prompts of the released MEND data code", "versions": {name: version(name) for name in ("transformers", "tokenizers")},
              "released": mend_released.COMMITS, "texts": texts}
    path = os.path.join(HERE, "golden", "mend-prompts.jsonl.gz")
    with open(path, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=9) as f:
        for line in [header] + lines:
            f.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    cut = sum("released" in line["expect"] for line in lines)
    filled = [line["expect"]["distiller"]["ids"] for line in lines]
    full = sum(isinstance(ids, dict) and ids["n"] == line["limits"][1] - 258 for line, ids in zip(lines, filled))
    print("%d tasks, %d refused, %d with options that the released code cuts, %d with a full distiller, %d bytes" %
          (len(lines), refused, cut, full, os.path.getsize(path)))


if __name__ == "__main__":
    main()
