"""One-line changes to the C, each of which must be caught by the conformance pack: by a tap of one of its runs, or by one of its vectors.

usage: python3 test/slow_mutants.py [WORD...]      only the changes whose text holds one of these words

Each changed file is compiled alone, without optimisation, and linked with the other parts. The table tells what was changed and where the pack says so first.
"""
import concurrent.futures
import glob
import os
import shutil
import subprocess
import sys

from checks import check, finish

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "test"))
import make_conformance  # noqa: E402

OUT = os.path.join(ROOT, "build", "mutants")
FLAGS = "-std=c11 -O0 -ffp-contract=off -fno-fast-math -fno-trapping-math -fno-math-errno -fopenmp-simd -D_XOPEN_SOURCE=700 -w".split()
CC = os.environ.get("CC", "cc")
# A header is compiled through the file that includes it.
THROUGH = {"tensor_kernel.h": "tensor.c", "tensor_step.h": "tensor.c", "tensor_backward_kernel.h": "tensor_backward.c"}

# file, what stands there, what the mutant says, which mistake that is
MUTANTS = [
    # sums
    ("tensor_kernel.h", "sum[r][j] = MAC(level, a, w[k * ldw + j], sum[r][j]);", "sum[r][j] = (T)(a * w[k * ldw + j]) + sum[r][j];", "a product rounded before it is added"),
    ("tensor_kernel.h", "(float)(s[r * cols + j] + (T)b[j]);", "(float)s[r * cols + j];", "the bias left out"),
    ("tensor_kernel.h", "(float)(s[r * cols + j] + (T)b[j]);", "(float)s[r * cols + j] + b[j];", "the sum rounded to float32 before the bias is added"),
    ("tensor.c", "#define MAC fma_double", "#define MAC(level, a, b, s) (double)(float)((s) + (a) * (b))", "a float32 accumulator in the reference arithmetic"),
    ("tensor_step.h", "return ISA_HAS_FMA(level) ? __builtin_fmaf(a, b, s) : soft_fma(a, b, s);", "return ISA_HAS_FMA(level) ? __builtin_fmaf(a, b, s) : (float)((double)a * b + s);",
     "a fused multiply-add in software that rounds twice"),
    ("tensor_step.h", "return h->Tk + i + 1 > h->Tq ? min_size(h->Tk + i + 1 - h->Tq, h->Tk) : 0;", "return h->Tk + i + 1 > h->Tq ? min_size(h->Tk + i + 2 - h->Tq, h->Tk) : 0;", "a mask that shows the next piece"),
    # attention
    ("tensor_kernel.h", "(float)((double)s[j * cols + i] * scale + (double)*(bias + j - i));", "(float)((double)s[j * cols + i] * scale);", "the position bias left out in the kernel"),
    ("tensor_kernel.h", "to[j * LANES + i] = (float)((double)s[j * cols + i] * scale);", "to[j * LANES + i] = (float)s[j * cols + i] * (float)scale;", "the scale in float32"),
    ("tensor_kernel.h", "(float)((double)e[j * LANES + i] / Z[i]);", "e[j * LANES + i] * (float)(1 / Z[i]);", "a product with the reciprocal of Z"),
    ("tensor.c", "sum[i] += (double)e[j * LANES + i];", "sum[i] = (double)(float)(sum[i] + (double)e[j * LANES + i]);", "Z summed in float32"),
    # LayerNorm, RMSNorm
    ("tensor.c", "for (size_t r = 0; r < rows; r++) u[r] /= (double)C;", "for (size_t r = 0; r < rows; r++) u[r] = (double)(float)(u[r] / (double)C);", "the mean rounded to float32"),
    ("tensor.c", "1 / sqrt(v[r] / (double)C + eps), C);", "1 / sqrt(v[r] / (double)(C - 1) + eps), C);", "the variance divided by C - 1"),
    ("tensor.c", "1 / sqrt(v[r] / (double)C + eps), C);", "1 / (sqrt(v[r] / (double)C) + eps), C);", "eps outside the root"),
    ("tensor.c", "1 / sqrt(v[r] / (double)C + eps), C);", "1 / sqrt(v[r] / (double)C), C);", "eps left out"),
    ("tensor.c", "1 / sqrt(v[r] / (double)C + eps), C);", "(float)(1 / sqrt(v[r] / (double)C + eps)), C);", "the reciprocal root rounded to float32"),
    ("tensor.c", "sum_rows(DEVIATIONS, v, u, x, C, rows, C);", "sum_rows(SQUARES, v, u, x, C, rows, C);", "the variance around 0"),
    ("tensor.c", "(float)((((double)x[c] - u) * r) * (double)g[c] + (double)b[c]);", "(float)((((double)x[c] - u) * r) * (double)g[c]);", "the bias of a norm left out"),
    ("tensor.c", "(float)((((double)x[c] - u) * r) * (double)g[c] + (double)b[c]);", "(float)(((double)x[c] * r - u * r) * (double)g[c] + (double)b[c]);", "another order: x*r - u*r"),
    ("tensor.c", "(float)(((double)x[c] * r) * (double)g[c]);", "(float)((double)x[c] * r) * g[c];", "the row of an RMSNorm rounded before its gain"),
    ("tensor.c", "if (math == MATH_REFERENCE) sum_rows(SQUARES, s, s, x, C, rows, C);", "if (true) sum_rows(SQUARES, s, s, x, C, rows, C);", "a float64 sum of squares in the fast arithmetic"),
    # the other ops
    ("tensor.c", "y[i] = (float)(c ? (double)a[i] + (double)b[i] + (double)c[i] : (double)a[i] + (double)b[i]);", "y[i] = c ? a[i] + b[i] + c[i] : a[i] + b[i];", "embeddings added in float32"),
    ("tensor.c", "y[i] = x[i] + z[i];", "y[i] = x[i] + z[i] * 0.5f;", "half of a residual"),
    ("tensor.c", "lse[r] = m[r] + cr_one(CR_LOG, (float)Z[r]);", "lse[r] = (float)(m[r] + log(Z[r]));", "a logarithm in float64"),
    ("tensor.c", "times(y + i, a, z + i, piece);", "times(y + i, a, x + i, piece);", "the gate multiplied with itself"),
    ("crmath.c", "return b > 0x80000000u ? 0 : x;", "return b >= 0x80000000u ? 0 : x;", "RELU(-0) = +0"),
    ("crmath.c", "if (doubtful(z[i])) z[i] = (double)cr_one(f, x[i]);", "if (false) z[i] = (double)cr_one(f, x[i]);", "results next to a midpoint left to float64"),
    # the encoder
    ("lingua2.c", "m->wye, m->wpe + b->position[n] * C, C);", "m->wye, m->wpe + n * C, C);", "positions of XLM-R counted from 0"),
    ("lingua2.c", "embedding_sum(x + n * C, m->wte + b->id[n] * C, m->wye, m->wpe + b->position[n] * C, C);", "embedding_sum(x + n * C, m->wte + b->id[n] * C, m->wpe + b->position[n] * C, NULL, C);", "the token type left out"),
    ("lingua2.c", "c->id[i] == m->pad_id ? m->pad_id : next++", "next++", "a padding piece counted"),
    ("lingua2.c", ".scale = 1 / sqrt((double)D)", ".scale = 1 / sqrt((double)C)", "the scale of the whole width"),
    ("lingua2.c", "linear(a->v, a->x, w->v_w, w->v_b, N, C, C);", "linear(a->v, a->x, w->v_w, w->k_b, N, C, C);", "the bias of another matrix"),
    ("lingua2.c", "residual(a->x, a->y, a->x, N * C);                                TAP(a->x, N, C, \"encoder.layer.%zu.output.residual\", l);",
     "residual(a->x, a->y, a->ctx, N * C);                              TAP(a->x, N, C, \"encoder.layer.%zu.output.residual\", l);", "the residual of another result"),
    # GPT-2, T5, MEND
    ("mend.c", "first = d > 0 ? buckets : 0;", "first = d < 0 ? buckets : 0;", "buckets of the other direction"),
    ("mend.c", "(bucket < buckets ? bucket : buckets - 1);", "(bucket < buckets - 1 ? bucket : buckets - 2);", "the last bucket never reached"),
    ("mend.c", "(size_t)(log_distance / log_range * (float)(buckets - exact));", "(size_t)(log_distance / log_range * (float)(buckets - exact) + 0.5f);", "a bucket rounded instead of cut"),
    ("mend.c", "(float)m->max_distance / (float)exact", "(float)m->max_distance / (float)buckets", "another base of the buckets' logarithm"),
    ("mend.c", "scaled[i] = (float)((double)x[i] * scale);", "scaled[i] = x[i];", "the scale before a tied T5 head left out"),
    ("mend.c", "activation(CR_TANH, s, s, U * O);", "activation(CR_RELU, s, s, U * O);", "another activation of the pooler"),
    ("mend.c", "linear(s, x + n * C, m->pool_w", "linear(s, x + (n - 1) * C, m->pool_w", "vectors from one row too early"),
    ("mend.c", "m->act = gated ? CR_GELU_NEW : CR_RELU;", "m->act = gated ? CR_GELU : CR_RELU;", "GELU in the place of GELU_NEW"),
    # gradients of the ops
    ("tensor_backward.c", "sum[c] += (double)x[n * ldx + c];", "sum[c] = (double)(float)(sum[c] + (double)x[n * ldx + c]);", "a bias' gradient summed in float32"),
    ("tensor_backward.c", "linear(dx, dy, turned, NULL, N, O, C);", "linear(dx, dy, w, NULL, N, O, C);", "a matrix not transposed"),
    ("tensor_backward.c", "dx[c] = (float)(((a - A) - h * B) * r);", "dx[c] = (float)((a - A) * r);", "what the variance gives left out"),
    ("tensor_backward.c", "dot_rows(t + r, row, p + at + r * h->Tk, h->Tk, 1, common, keys);", "", "t without the keys that not all rows of a group attend to"),
    ("tensor_backward_kernel.h", ".y = b->dk, .ldy = b->lddk, .scale = h->scale,", ".y = b->dk, .ldy = b->lddk, .scale = 1,", "the scale left out of dk"),
    ("tensor_backward_kernel.h", "scores_gradient(h, ds, p);", "", "the gradient of softmax left out"),
    ("tensor_backward.c", "times(inner, dy + i, z + i, piece);\n        times(dz + i, value, dy + i, piece);\n        times(dx + i, slope, inner, piece);",
     "times(dx + i, slope, dy + i, piece);\n        times(dz + i, value, dy + i, piece);\n        times(dx + i, dx + i, z + i, piece);", "another order: (F'(x)*dy)*z"),
    ("tensor_backward.c", "dl[i * V + target[i]] = (float)(((double)p - 1) / n);", "dl[i * V + target[i]] = (p - 1) / (float)n;", "p - 1 in float32"),
    # gradients of the models
    ("lingua2_backward.c", "if (b->padding < m->size[LETTER_V]) memset(G(m->wte)", "if (false) memset(G(m->wte)", "an embedding of padding that learns"),
    ("lingua2_backward.c", "cross_entropy_backward(logits, logits, target, (double)n, n, K);", "cross_entropy_backward(logits, logits, target, (double)N, n, K);", "a mean over rows without a label too"),
    ("lingua2_backward.c", "for (size_t i = 0; i < 3; i++) {\n        linear_backward(a->dx", "for (size_t i = 3; i-- > 0;) {\n        linear_backward(a->dx", "value, key, query in the place of query, key, value"),
    ("mend_backward.c", "for (size_t l = L; l-- > 0;) { /* every layer", "for (size_t l = 0; l < L; l++) { /* every layer", "what the decoder's layers ask of the encoder added from the first"),
    ("mend_backward.c", "dx[i] = (float)((double)dx[i] * scale);", "dx[i] = dx[i];", "the scale before a tied T5 head left out on the way back"),
    ("mend_backward.c", "sum[position_bucket(m, d, p->stack->decoder) * H + s % H]", "sum[position_bucket(m, -d, p->stack->decoder) * H + s % H]", "buckets of the other direction on the way back"),
    ("mend_backward.c", "kl_backward(q, q, p, o->lambda", "kl_backward(q, p, q, o->lambda", "the KL's gradient with the other sign"),
    ("mend_backward.c", "if (w->gate) {\n        TAP_GRADIENT(dgate", "if (false) {\n        TAP_GRADIENT(dgate", "a gate without a gradient"),
]
# What must not even run: other flags.
FLAG_MUTANTS = [
    (["-O2", "-mfma", "-ffp-contract=fast"], "contraction of a*b+c"),
    (["-O2", "-ffast-math"], "-ffast-math"),
]


def compile_part(source, target, *more):
    return subprocess.run([CC, *FLAGS, *more, "-I" + ROOT, "-c", source, "-o", target], stderr=subprocess.PIPE, universal_newlines=True)


def link(objects, target, *more):
    subprocess.run([CC, *FLAGS, *more, "-I" + ROOT, *objects, "-o", target, "-lm"], check=True)


def parts_of(program):
    """Objects of a program, by source name."""
    names = [os.path.basename(c) for c in glob.glob(os.path.join(ROOT, "*.c"))]
    other = {"lingua2": ("mend",), "mend": ("lingua2",), "test_vectors": ("lingua2", "mend")}[program]
    return {name: os.path.join(OUT, "base", name[:-2] + ".o") for name in names if not name.startswith(other)}


def build_base():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(os.path.join(OUT, "base"))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = {}
        for path in {**parts_of("lingua2"), **parts_of("mend")}.items():
            jobs[path] = pool.submit(compile_part, os.path.join(ROOT, path[0]), path[1])
        for (name, _), job in jobs.items():
            if job.result().returncode:
                sys.exit("%s does not compile: %s" % (name, job.result().stderr))


def programs_with(file):
    return ["lingua2"] if file.startswith("lingua2") else ["mend"] if file.startswith("mend") else ["test_vectors", "lingua2", "mend"]


def build(folder, file, source, *more):
    """The programs that hold this part, with a changed source of it; false if it does not compile."""
    target = os.path.join(folder, "changed.o")
    if compile_part(source, target, *more).returncode:
        return False
    for program in programs_with(file):
        objects = {**parts_of(program), file: target}
        link([*objects.values(), *([os.path.join(ROOT, "test", "test_vectors.c")] if program == "test_vectors" else [])], os.path.join(folder, program))
    return True


def lines_of(path):
    with open(path) as f:
        return ["\t".join(line.split("\t")[:6]) for line in f if not line.startswith("#")]


def first_difference(folder, programs):
    """Which tap of which run is not the pack's, or which vector's mistake was seen, or None."""
    for name, program, *rest in make_conformance.manifests(os.path.join(ROOT, "conformance")):
        if program not in programs:
            continue
        out = os.path.join(folder, "run")
        done = subprocess.run([os.path.join(folder, program), *rest, "--threads", "1", "--hash-only", "-o", out], stderr=subprocess.PIPE, universal_newlines=True)
        if not os.path.exists(out + ".taps"):
            return "refuses to run: " + done.stderr.strip()[:110]
        ours, theirs = lines_of(out + ".taps"), lines_of(os.path.join(ROOT, "conformance", name + ".taps"))
        os.remove(out + ".taps")
        for a, b in zip(ours, theirs):
            if a != b:
                return "%s: %s" % (name, b.split("\t")[1])
    if "test_vectors" in programs:
        done = subprocess.run([os.path.join(folder, "test_vectors")], cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True)
        for line in done.stdout.splitlines():
            if " failed: " in line:
                return line.split("failed: ", 1)[1].split(": ", 1)[1][:110]
    return None


def try_mutant(number, file, old, new, more=()):
    """(caught by what, or None; error)"""
    folder = os.path.join(OUT, "%02d" % number)
    os.makedirs(folder)
    through = THROUGH.get(file, file)
    with open(os.path.join(ROOT, file)) as f:
        text = f.read()
    if old not in text:
        return None, "the line to change is not there any more"
    shutil.copy(os.path.join(ROOT, through), folder)
    with open(os.path.join(folder, file), "w") as f:
        f.write(text.replace(old, new))
    if not build(folder, through, os.path.join(folder, through), *more):
        return ("does not compile", "") if more else (None, "does not compile")
    try:
        return first_difference(folder, programs_with(through)), "every result is the pack's"
    finally:
        shutil.rmtree(folder)


def main():
    words = sys.argv[1:]
    build_base()
    todo = [(file, old, new, (), what) for file, old, new, what in MUTANTS]
    todo += [("tensor.c", "/* tensor.c", "/* tensor.c", flags, what) for flags, what in FLAG_MUTANTS]
    todo = [m for m in todo if not words or any(word in " ".join((m[0], m[4])) for word in words)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(try_mutant, i, *m[:4]) for i, m in enumerate(todo)]
        for (file, _, _, _, what), job in zip(todo, jobs):
            where, error = job.result()
            print("%-16s %-58s %s" % (file, what, where or "NOT CAUGHT"), flush=True)
            check(where, "%s: %s: not caught: %s" % (file, what, error))
    return finish()


if __name__ == "__main__":
    sys.exit(main())
