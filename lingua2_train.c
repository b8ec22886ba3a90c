/* lingua2_train.c - `lingua2 train`: the classifier learns from labelled words (lingua2_distill.c), by the gradients of lingua2_backward.c.
 *
 *   annotated lines -> pieces with their words' labels -> batches -> loss, gradient -> AdamW -> the best checkpoint, which is a model file
 *
 * Two recipes. `ours` trains on what the compressor will see: the text as it stands, each piece with the label of its word, the mean over those pieces.
 * `paper` trains as the authors' script does, oddities included; paper_example says which.
 *
 * A training is a folder: best.safetensors, last.safetensors (with the optimizer's state, to go on from) and log.jsonl. The files are whole at any moment. The
 * same command gives the same bits on every machine, with any number of threads, stopped and resumed or not.
 *
 * This file, top to bottom: examples from lines, batches, recipes, checkpoints, evaluation, the loop, the command.
 */
#include "lingua2_train.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "posix.h"
#include "random.h"

/* What the seed is used for; order and dropout go on from the last ones, by epoch and step. */
enum { USE_WEIGHTS, USE_SPLIT, USE_ORDER, USE_DROPOUT };

/* ==== examples ===================================================================================================================== */

/* One sequence as the model sees it, and a label for each of its pieces (-1: not counted). */
typedef struct {
    Chunk pieces;
    int8_t *label;
    size_t keys; /* pieces that are no padding */
} Example;

typedef struct {
    Example *at;
    size_t n, cap;
} Examples;

static void examples_free(Examples *e) {
    for (size_t i = 0; i < e->n; i++) {
        chunk_free(&e->at[i].pieces);
        free(e->at[i].label);
    }
    free(e->at);
}

/* Room for a sequence of T pieces. */
static Example *examples_add(Examples *e, size_t T) {
    if (e->n == e->cap) e->at = mem_resize(e->at, e->cap = e->cap ? e->cap * 2 : 256, sizeof *e->at);
    e->at[e->n] = (Example){.pieces = {.id = mem_new(T, sizeof(uint32_t)), .T = T}, .label = mem_new(T, sizeof(int8_t)), .keys = T};
    return &e->at[e->n++];
}

/* What examples are made with, and where they go. */
typedef struct {
    const Model *m;
    bool paper;
    size_t limit;            /* pieces of an example at most */
    uint32_t cls, sep, pad;  /* special pieces around a text */
    Examples learn, choose;  /* to learn from, to choose the best checkpoint by */
    size_t texts, left_out;  /* read; kept for tests */
    Sha256 hash;             /* of all examples */
} Corpus;

/* A number from 0 to 9 for a text, by its name: sha256(id) mod 10. */
static unsigned bucket(Slice id) {
    char hex[65];
    unsigned rest = 0;
    sha256_hex(id.at, id.len, hex);
    for (const char *c = hex; *c; c++) rest = (rest * 16 + (unsigned)(*c <= '9' ? *c - '0' : *c - 'a' + 10)) % 10;
    return rest;
}

static bool need_array(const Json *line, const char *key, const Json **out, Error *err) {
    *out = json_get(line, key);
    if (*out && (*out)->type == JSON_ARRAY) return true;
    return fail(err, BAD_INPUT, "\"%s\" is %s, wanted an array, as annotate writes it", key, *out ? json_type_name((*out)->type) : "missing");
}

static bool need_labels(const Json *line, size_t words, const Json **out, Error *err) {
    if (!need_array(line, "labels", out, err)) return false;
    if ((*out)->len != words) return fail(err, BAD_INPUT, "there are %zu labels for %zu words", (*out)->len, words);
    for (size_t i = 0; i < words; i++)
        if ((*out)->item[i].type != JSON_TRUE && (*out)->item[i].type != JSON_FALSE)
            return fail(err, BAD_INPUT, "label %zu is %s, wanted true or false", i, json_type_name((*out)->item[i].type));
    return true;
}

/* ---- our recipe: the text itself ---- */

/* Words as places in the text: each behind the one before it. */
static bool take_spans(const Json *spans, size_t len, size_t *start, size_t *end, Error *err) {
    for (size_t i = 0, last = 0; i < spans->len; last = end[i++]) {
        const Json *span = &spans->item[i];
        if (span->type == JSON_ARRAY && span->len == 2 && json_size(&span->item[0], len, &start[i]) && json_size(&span->item[1], len, &end[i]) && start[i] >= last && end[i] > start[i])
            continue;
        return fail(err, BAD_INPUT, "span %zu is no [start, end] within the %zu bytes of the original and behind the span before it", i, len);
    }
    return true;
}

/* A piece has the label of the first word that it overlaps. */
static void label_pieces(const Pieces *p, const size_t *start, const size_t *end, const Json *labels, int8_t *out) {
    for (size_t i = 0, w = 0; i < p->n; i++) {
        while (w < labels->len && end[w] <= p->start[i]) w++;
        out[i] = w < labels->len && start[w] < p->end[i] ? labels->item[w].type == JSON_TRUE : -1;
    }
}

static bool all_uncounted(const int8_t *label, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (label[i] >= 0) return false;
    return true;
}

/* As many sequences as the text needs, each between the model's own special pieces. */
static void add_windows(const Corpus *c, const Pieces *p, const int8_t *label, Examples *to) {
    for (size_t at = 0, n; at < p->n; at += n) {
        n = p->n - at < c->limit - 2 ? p->n - at : c->limit - 2;
        if (all_uncounted(label + at, n)) continue;
        Example *e = examples_add(to, n + 2);
        e->pieces.id[0] = c->cls;
        e->pieces.id[n + 1] = c->sep;
        e->label[0] = e->label[n + 1] = -1;
        memcpy(e->pieces.id + 1, p->id + at, n * sizeof *p->id);
        memcpy(e->label + 1, label + at, n);
    }
}

static bool our_example(Corpus *c, const Json *line, Examples *to, Error *err) {
    const Json *spans, *labels;
    Slice origin = {0};
    Pieces p = {0};
    if (!need_text(line, "origin", &origin, err) || !need_array(line, "spans", &spans, err) || !need_labels(line, spans->len, &labels, err)) return false;
    size_t *start = mem_new(spans->len, sizeof *start), *end = mem_new(spans->len, sizeof *end);
    bool ok = take_spans(spans, origin.len, start, end, err) && tokenizer_encode(c->m->tokenizer, origin.at, origin.len, TOK_PLAIN, &p, err);
    if (ok) {
        int8_t *label = mem_new(p.n, sizeof *label);
        label_pieces(&p, start, end, labels, label);
        add_windows(c, &p, label, to);
        free(label);
    }
    pieces_free(&p);
    free(start);
    free(end);
    return ok;
}

/* ---- the paper's recipe ---- */

/* As the authors' script makes an example, oddities included:
 *   - the words are lemmas, without commas, each cut into pieces by itself: not the text that a compressor reads;
 *   - the label of the last piece goes to the special piece behind it, and the last piece itself is labelled drop;
 *   - every example is padded to 512 pieces, and padding is labelled drop and counted in the loss, though not in the accuracy;
 *   - what is longer than 512 pieces is cut off. */
static bool paper_example(Corpus *c, const Json *line, Examples *to, Error *err) {
    const Json *words, *labels;
    if (!need_array(line, "words", &words, err) || !need_labels(line, words->len, &labels, err)) return false;
    Pieces p = {0};
    Example *e = examples_add(to, c->limit);
    size_t T = 0, all = 1;
    bool ok = true;
    e->pieces.id[T++] = c->cls;
    for (size_t w = 0; ok && w < words->len; w++) {
        const Json *word = &words->item[w];
        if (word->type != JSON_STRING) ok = fail(err, BAD_INPUT, "word %zu is %s, wanted a string", w, json_type_name(word->type));
        else if (word->len == 1 && word->text[0] == ',') continue;
        p.n = 0;
        ok = ok && tokenizer_encode(c->m->tokenizer, word->text, word->len, TOK_ADDED, &p, err);
        all += p.n;
        for (size_t i = 0; ok && i < p.n && T < c->limit; i++, T++) {
            e->pieces.id[T] = p.id[i];
            e->label[T] = labels->item[w].type == JSON_TRUE;
        }
    }
    if (T < c->limit) e->label[T] = e->label[T - 1]; /* of [CLS], which is 0, if there are no words */
    if (all <= c->limit) e->label[T - 1] = 0;
    if (T < c->limit) e->pieces.id[T++] = c->sep;
    e->keys = T;
    for (; T < c->limit; T++) e->pieces.id[T] = c->pad;
    pieces_free(&p);
    return ok;
}

/* ---- all lines ---- */

static void hash_example(Sha256 *hash, const Example *e) {
    for (size_t k = 0; k < e->pieces.T; k++) {
        const uint32_t id = e->pieces.id[k];
        const unsigned char row[5] = {(unsigned char)id, (unsigned char)(id >> 8), (unsigned char)(id >> 16), (unsigned char)(id >> 24), (unsigned char)e->label[k]};
        sha256_add(hash, row, sizeof row);
    }
}

static bool take_line(void *to, const Json *line, const Bytes *text, Error *err) {
    Corpus *c = to;
    const Json *id = json_get(line, "id"), *origin = json_get(line, "origin");
    (void)text;
    if (!id || id->type != JSON_STRING) id = origin;
    const unsigned part = id && id->type == JSON_STRING ? bucket((Slice){id->text, id->len}) : 9;
    Examples none = {0}, *into = c->paper || part > 1 ? &c->learn : part == 1 ? &c->choose : &none;
    const size_t first = into->n;
    bool ok = c->paper ? paper_example(c, line, into, err) : our_example(c, line, into, err);
    for (size_t i = first; ok && i < into->n; i++) {
        ok = chunk_positions(c->m, &into->at[i].pieces, err);
        hash_example(&c->hash, &into->at[i]);
    }
    c->texts++;
    c->left_out += into == &none;
    examples_free(&none);
    return ok;
}

static bool special(const Model *m, const char *role, uint32_t *id, Error *err) {
    const int64_t found = tokenizer_special(m->tokenizer, role);
    if (found < 0) return fail(err, BAD_MODEL, "%s: the tokenizer has no piece for the role %s", weights_path(m->weights), role);
    *id = (uint32_t)found;
    return true;
}

/* The paper's split: a fifth of the texts, drawn by the seed, chooses the best checkpoint. */
static void split_paper(Corpus *c, uint64_t seed) {
    size_t *order = random_order(random_bits(seed, USE_SPLIT), c->learn.n), learn = c->learn.n * 4 / 5;
    Example *all = c->learn.at, *at = mem_new(c->learn.n, sizeof *at);
    for (size_t i = 0; i < c->learn.n; i++) at[i] = all[order[i]];
    c->choose.n = c->choose.cap = c->learn.n - learn;
    c->choose.at = mem_new(c->choose.n, sizeof *at);
    memcpy(c->choose.at, at + learn, c->choose.n * sizeof *at);
    c->learn.at = at;
    c->learn.n = learn;
    free(all);
    free(order);
}

static bool corpus_read(Corpus *c, const Model *m, const Texts *file, bool paper, uint64_t seed, Error *err) {
    const size_t positions = m->size[LETTER_P] - m->first_position;
    *c = (Corpus){.m = m, .paper = paper, .limit = positions < MAX_PIECES ? positions : MAX_PIECES};
    sha256_begin(&c->hash);
    if (!m->tokenizer) return *err = m->no_tokenizer, false;
    if (c->limit < 3) return fail(err, BAD_MODEL, "%s: has positions for %zu pieces: too few to learn from", weights_path(m->weights), positions);
    if (!special(m, "cls", &c->cls, err) || !special(m, "sep", &c->sep, err) || !special(m, "pad", &c->pad, err) || !each_line(file, false, take_line, c, err)) return false;
    if (paper) split_paper(c, seed);
    if (!c->learn.n) return fail(err, BAD_INPUT, "no text of %zu is left to learn from: a tenth is kept for tests, a tenth chooses the best checkpoint; give more", c->texts);
    return true;
}

static void corpus_free(Corpus *c) {
    examples_free(&c->learn);
    examples_free(&c->choose);
}

/* ==== batches ====================================================================================================================== */

/* Some examples one after another. */
typedef struct {
    LabelledBatch b;
    uint32_t *id;
    size_t *position, *start, *keys;
    int8_t *label;
} Gathered;

static Gathered gather(const Corpus *c, const Examples *from, const size_t *which, size_t B) {
    size_t N = 0;
    for (size_t s = 0; s < B; s++) N += from->at[which[s]].pieces.T;
    Gathered g = {.id = mem_new(N, sizeof *g.id), .position = mem_new(N, sizeof *g.position), .start = mem_new(B + 1, sizeof *g.start), .keys = mem_new(B, sizeof *g.keys),
                  .label = mem_new(N, sizeof *g.label)};
    for (size_t s = 0; s < B; s++) {
        const Example *e = &from->at[which[s]];
        const size_t at = g.start[s], T = e->pieces.T;
        memcpy(g.id + at, e->pieces.id, T * sizeof *g.id);
        memcpy(g.position + at, e->pieces.position, T * sizeof *g.position);
        memcpy(g.label + at, e->label, T);
        g.start[s + 1] = at + T;
        g.keys[s] = e->keys;
    }
    g.b = (LabelledBatch){{g.id, g.position, N, B, g.start}, g.keys, g.label, c->pad};
    return g;
}

static void gathered_free(Gathered *g) {
    free(g->id);
    free(g->position);
    free(g->start);
    free(g->keys);
    free(g->label);
}

/* ==== recipes and the state of a training =========================================================================================== */

typedef struct {
    const char *name;
    double epochs, batch, rate;
    double warm_up;              /* share of the steps in which the rate rises to its height, to fall to 0 by the last; 0: the rate stays as it is */
    double decay, clip, dropout; /* weight decay of matrices; norm that gradients are cut to, 0: they are not; share of hidden values */
    bool paper;
} Plan;

static const Plan plans[] = {
    {"ours", 6, 8, 1e-4, 0.1, 0.01, 1, 0.1, false},
    {"paper", 10, 10, 1e-5, 0, 0, 0, 0.1, true},
};

typedef struct {
    const Common *c;
    Plan plan;
    uint64_t seed;
    Bytes folder, run;     /* where it is kept; what two runs must share to be the same training, as JSON */
    Corpus corpus;
    Model m;
    Parameters p;
    AdamW o;
    Tape tape;
    size_t steps, stop;    /* of all epochs; where to stop now */
    size_t per_epoch, best_epoch;
    double best;           /* accuracy of the best checkpoint */
    FILE *log;
} Training;

static void file_name(const Training *t, const char *name, Bytes *path) { bytes_printf(path, "%s/%s", t->folder.at, name); }

/* ==== checkpoints ================================================================================================================== */

static void put_value(Bytes *line, const char *key, double x) {
    bytes_printf(line, ", \"%s\": ", key);
    json_put_double(line, x);
}

static bool weights_finite(const Training *t, Error *err) {
    for (size_t i = 0; i < t->p.n; i++)
        if (!all_finite(t->p.at[i].w, t->p.at[i].n))
            return fail(err, BAD_INPUT, "step %zu: it made NaN or infinity of %s; the checkpoints in %s are of before; a lower --rate may help", t->o.step, t->p.at[i].name, t->folder.at);
    return true;
}

/* best.safetensors, or last.safetensors with AdamW's means to go on from. */
static bool save(const Training *t, const char *name, bool state, Error *err) {
    Bytes path = {0}, progress = {0};
    if (!weights_finite(t, err)) return false;
    bytes_printf(&progress, "{\"run\": %s, \"step\": %zu, \"best_epoch\": %zu", t->run.at, t->o.step, t->best_epoch);
    put_value(&progress, "best", t->best);
    bytes_text(&progress, "}");
    file_name(t, name, &path);
    bool ok = checkpoint_write(path.at, t->m.weights, &t->p, state ? &t->o : NULL, progress.at, err);
    bytes_free(&path);
    bytes_free(&progress);
    return ok;
}

/* Go on from last.safetensors, which is open as the model. */
static bool resume(Training *t, Error *err) {
    const char *path = weights_path(t->m.weights), *text = weights_meta(t->m.weights, "training");
    Json j = {0};
    Error detail;
    Bytes run = {0};
    if (!text || !json_parse(text, strlen(text), &j, &detail)) return fail(err, BAD_MODEL, "%s: does not say how far its training was", path);
    const Json *other = json_get(&j, "run"), *best = json_get(&j, "best");
    if (other) json_put(&run, other);
    bool ok = json_size(json_get(&j, "step"), t->steps, &t->o.step) && json_size(json_get(&j, "best_epoch"), SIZE_MAX, &t->best_epoch) && best && best->type == JSON_NUMBER;
    if (!run.at || strcmp(run.at, t->run.at))
        ok = fail(err, BAD_INPUT, "%s: is of another training, %.350s, and this is %.350s; give the same options and files, or another folder", path, run.at ? run.at : "none", t->run.at);
    else if (!ok) fail(err, BAD_MODEL, "%s: does not say how far its training was", path);
    if (ok) t->best = best->number;
    json_free(&j);
    bytes_free(&run);
    return ok && checkpoint_resume(&t->p, t->m.weights, err);
}

/* Open log.jsonl: empty, or, resumed, with its lines up to the checkpoint, since what came behind will come again. */
static bool open_log(Training *t, Error *err) {
    Bytes path = {0}, old = {0}, kept = {0};
    Error ignored;
    file_name(t, "log.jsonl", &path);
    if (t->o.step && file_read(path.at, &old, &ignored))
        for (char *at = old.at, *end = old.at + old.len, *next; at < end && (next = memchr(at, '\n', (size_t)(end - at))); at = next + 1) {
            Json line;
            size_t step;
            if (!json_parse(at, (size_t)(next - at), &line, &ignored)) break;
            if (json_size(json_get(&line, "step"), t->o.step, &step)) bytes_add(&kept, at, (size_t)(next + 1 - at));
            json_free(&line);
        }
    bool ok = file_write(path.at, kept.at ? kept.at : "", kept.len, err);
    if (ok && !(t->log = fopen(path.at, "ab"))) ok = fail(err, BAD_SYSTEM, "%s: cannot be opened: %s", path.at, strerror(errno));
    bytes_free(&path);
    bytes_free(&old);
    bytes_free(&kept);
    return ok;
}

static bool write_log(const Training *t, Bytes *line, Error *err) {
    bytes_text(line, "}\n");
    bool ok = fwrite(line->at, 1, line->len, t->log) == line->len && fflush(t->log) == 0;
    if (!ok) fail(err, BAD_SYSTEM, "%s/log.jsonl: cannot be written: %s", t->folder.at, strerror(errno));
    bytes_free(line);
    return ok;
}

/* ==== evaluation =================================================================================================================== */

typedef struct {
    double loss, accuracy, f1; /* mean over batches; share of right labels; of the label keep */
} Score;

/* Count right labels, and of the label keep: right, wrong, missed. Padding does not count. */
static void count_labels(const LabelledBatch *b, const float *logits, size_t count[4]) {
    for (size_t s = 0; s < b->of.B; s++)
        for (size_t n = b->of.start[s]; n < b->of.start[s] + b->keys[s]; n++) {
            if (b->label[n] < 0) continue;
            const bool keep = logits[2 * n + 1] > logits[2 * n], is = b->label[n] == 1;
            count[0] += keep == is;
            count[1] += keep && is;
            count[2] += keep != is;
            count[3]++;
        }
}

static Score evaluate(Training *t) {
    const Examples *e = &t->corpus.choose;
    const size_t size = (size_t)t->plan.batch;
    const Dropout none = {0};
    Score score = {0};
    size_t count[4] = {0}, batches = 0, *order = mem_new(e->n, sizeof *order);
    for (size_t i = 0; i < e->n; i++) order[i] = i;
    for (size_t at = 0; at < e->n; at += size, batches++) {
        Gathered g = gather(&t->corpus, e, order + at, e->n - at < size ? e->n - at : size);
        score.loss += (double)encoder_loss(&t->m, NULL, &g.b, &none, &t->tape);
        count_labels(&g.b, t->tape.logits, count);
        gathered_free(&g);
    }
    free(order);
    if (batches) score.loss /= (double)batches;
    if (count[3]) score.accuracy = (double)count[0] / (double)count[3];
    if (count[1] + count[2]) score.f1 = 2 * (double)count[1] / (2 * (double)count[1] + (double)count[2]);
    return score;
}

/* The rows of [NEW0].. stand for no piece, so nothing teaches them: each is the mean of the pieces' rows. */
static void settle_new_rows(const Training *t) {
    const size_t C = t->m.size[LETTER_C], pieces = t->m.new_token_base;
    float *row = NULL;
    for (size_t i = 0; i < t->p.n; i++)
        if (t->p.at[i].w == t->m.wte) row = t->p.at[i].w + pieces * C;
    for (size_t c = 0; row && c < C; c++) {
        double sum = 0;
        for (size_t i = 0; i < pieces; i++) sum += (double)t->m.wte[i * C + c];
        for (size_t i = 0; i < NEW_TOKENS; i++) row[i * C + c] = (float)(sum / (double)pieces);
    }
}

/* At the end of an epoch: how good it is now; the best so far is kept. Without texts to choose by, the last is the best. */
static bool end_epoch(Training *t, Error *err) {
    const size_t epoch = t->o.step / t->per_epoch;
    const bool choose = t->corpus.choose.n > 0;
    Bytes line = {0};
    const Score score = evaluate(t);
    settle_new_rows(t);
    const bool better = !choose || !t->best_epoch || score.accuracy > t->best;
    bytes_printf(&line, "{\"step\": %zu, \"epoch\": %zu", t->o.step, epoch);
    if (choose) {
        put_value(&line, "choose_loss", score.loss);
        put_value(&line, "accuracy", score.accuracy);
        put_value(&line, "f1", score.f1);
    }
    if (better) {
        t->best = score.accuracy;
        t->best_epoch = epoch;
        bytes_text(&line, ", \"best\": true");
    }
    if (!t->c->quiet && choose) fprintf(stderr, "\repoch %zu: accuracy %.4f, F1 %.4f, loss %.4f%s          \n", epoch, score.accuracy, score.f1, score.loss, better ? ", the best so far" : "");
    return write_log(t, &line, err) && (!better || save(t, "best.safetensors", false, err)) && save(t, "last.safetensors", true, err);
}

/* ==== the loop ===================================================================================================================== */

static volatile sig_atomic_t interrupted;
static void interrupt(int number) {
    interrupted = 1;
    signal(number, SIG_DFL); /* a second one ends the program at once */
}

/* The loss is no number: name the first result of the forward pass that is none. */
static bool fail_nan(const Training *t, size_t N, double loss, Error *err) {
    const size_t C = t->m.size[LETTER_C];
    char where[64] = "classifier";
    for (size_t l = t->m.L; l-- > 0;)
        if (!all_finite(l + 1 < t->m.L ? t->tape.layer[l + 1].x : t->tape.x, N * C)) snprintf(where, sizeof where, "encoder.layer.%zu", l);
    if (!all_finite(t->tape.sum0, N * C)) snprintf(where, sizeof where, "embeddings");
    return fail(err, BAD_INPUT, "step %zu: the loss is %g; NaN or infinity first in the result of %s; the checkpoints in %s are of before; a lower --rate may help", t->o.step + 1, loss,
                where, t->folder.at);
}

/* One step: the gradient of one batch, and AdamW. */
static bool learn(Training *t, const size_t *order, Error *err) {
    const size_t step = t->o.step, size = (size_t)t->plan.batch, at = step % t->per_epoch * size, rest = t->corpus.learn.n - at;
    const Dropout drop = {t->plan.dropout, random_bits(random_bits(t->seed, USE_DROPOUT), step)};
    const double rate = rate_at(&t->o.recipe, step);
    double norm = 0;
    Bytes line = {0};
    Gathered g = gather(&t->corpus, &t->corpus.learn, order + at, rest < size ? rest : size);
    const double loss = (double)encoder_loss(&t->m, &t->p, &g.b, &drop, &t->tape);
    bool ok = (isfinite(loss) || fail_nan(t, g.b.of.N, loss, err)) && adamw_step(&t->o, &t->p, &norm, err);
    gathered_free(&g);
    if (!ok) return false;
    bytes_printf(&line, "{\"step\": %zu, \"epoch\": %zu", t->o.step, step / t->per_epoch + 1);
    put_value(&line, "loss", loss);
    put_value(&line, "norm", norm);
    put_value(&line, "rate", rate);
    return write_log(t, &line, err);
}

static bool train(Training *t, Error *err) {
    const time_t begun = time(NULL);
    const size_t first = t->o.step;
    size_t *order = NULL, epoch = SIZE_MAX;
    bool ok = true, saved = true;
    signal(SIGINT, interrupt);
    signal(SIGTERM, interrupt);
    while (ok && t->o.step < t->stop && !interrupted) {
        if (t->o.step / t->per_epoch != epoch) {
            epoch = t->o.step / t->per_epoch;
            free(order);
            order = random_order(random_bits(random_bits(t->seed, USE_ORDER), epoch), t->corpus.learn.n);
        }
        ok = learn(t, order, err);
        saved = t->o.step % t->per_epoch == 0;
        if (ok && saved) ok = end_epoch(t, err);
        if (ok) show_progress(t->c, "step", t->o.step - first, t->stop - first, begun);
    }
    free(order);
    if (ok && !saved) ok = save(t, "last.safetensors", true, err);
    if (ok && interrupted)
        ok = fail(err, BAD_SYSTEM, "stopped by a signal after step %zu of %zu; the same command with --resume goes on from there", t->o.step, t->steps);
    return ok;
}

/* ==== beginnings =================================================================================================================== */

/* Sizes of an encoder that begins from nothing; 0: as in the model file. */
typedef struct {
    bool wanted;
    double layers, hidden, heads, feed_forward;
} Fresh;

/* The file's configuration with other sizes. */
static void put_config(const Json *config, const Model *m, Bytes *out) {
    const struct { const char *key; size_t value; } sizes[] = {{"num_hidden_layers", m->L}, {"hidden_size", m->size[LETTER_C]}, {"num_attention_heads", m->H},
                                                               {"intermediate_size", m->size[LETTER_F]}};
    bytes_text(out, "{");
    for (size_t i = 0; i < config->len; i++) {
        size_t k = 0;
        while (k < 4 && strcmp(sizes[k].key, config->key[i])) k++;
        if (i) bytes_text(out, ", ");
        json_put_string(out, config->key[i], config->key_len[i]);
        bytes_text(out, ": ");
        if (k < 4) bytes_printf(out, "%zu", sizes[k].value);
        else json_put(out, &config->item[i]);
    }
    bytes_text(out, "}");
}

/* Tensors of a table with values of their own in *memory, which has `at` numbers and grows: matrices and embeddings uniform around 0 with deviation 0.02, as
 * BERT begins, scales 1, biases 0. Their data are set once the memory has its final place. */
static size_t draw_tensors(const Model *m, const TensorRow *row, size_t rows, size_t layer, uint64_t seed, Tensor *out, Bytes *name, float **memory, size_t at) {
    const double width = 2 * 0.02 * sqrt(3.0);
    for (size_t i = 0; i < rows; i++) {
        const size_t R = m->size[row[i].rows], S = row[i].cols < 0 ? 1 : m->size[row[i].cols];
        size_t count, end;
        weights_row_name(&row[i], layer, &name[i]);
        if (!size_mul(R, S, &count) || !size_add(at, count, &end)) end = SIZE_MAX; /* mem_resize says so and ends */
        *memory = mem_resize(*memory, end, sizeof **memory);
        const bool scale = row[i].cols < 0 && strstr(name[i].at, "LayerNorm.weight");
        for (size_t k = at; k < end; k++) (*memory)[k] = row[i].cols < 0 ? scale : (float)(width * (uniform(seed, k) - 0.5));
        out[i] = (Tensor){.name = name[i].at, .dtype = DTYPE_F32, .dims = row[i].cols < 0 ? 1 : 2, .shape = {R, row[i].cols < 0 ? 0 : S}, .count = count};
        at = end;
    }
    return at;
}

/* The base's metadata with another configuration and content; [2 * (weights_meta_count + 1)] at most, returns how many pairs. */
static size_t fresh_meta(const Weights *base, const char *config, const char *hash, const char **meta) {
    size_t k = 0;
    for (size_t i = 0; i < weights_meta_count(base); i++) {
        const char *key = weights_meta_key(base, i);
        if (strcmp(key, "source_sha256") == 0 || strcmp(key, "content_sha256") == 0) continue;
        meta[k++] = key, meta[k++] = strcmp(key, "config") ? weights_meta(base, key) : config;
    }
    meta[k++] = "content_sha256", meta[k++] = hash;
    return k / 2;
}

/* Write a model with m's sizes, random weights and m's tokenizer. */
static bool write_fresh(const Model *m, const char *config, uint64_t seed, const char *path, Error *err) {
    const size_t own = MODEL_TENSORS + m->L * LAYER_TENSORS, all = weights_count(m->weights);
    Tensor *tensor = mem_new(own + all, sizeof *tensor);
    Bytes *name = mem_new(own, sizeof *name);
    const char **meta = mem_new(2 * (weights_meta_count(m->weights) + 1), sizeof *meta);
    float *memory = NULL;
    char hash[65];
    size_t at = draw_tensors(m, model_table, MODEL_TENSORS, 0, seed, tensor, name, &memory, 0), n = own;
    for (size_t l = 0, i = MODEL_TENSORS; l < m->L; l++, i += LAYER_TENSORS) at = draw_tensors(m, layer_table, LAYER_TENSORS, l, seed, tensor + i, name + i, &memory, at);
    for (size_t i = 0, from = 0; i < own; from += tensor[i++].count) tensor[i].data = memory + from;
    for (size_t i = 0; i < all; i++)
        if (weights_at(m->weights, i)->dtype == DTYPE_U8) tensor[n++] = *weights_at(m->weights, i);
    weights_sha256(tensor, n, hash);
    const size_t metas = fresh_meta(m->weights, config, hash, meta);
    bool ok = weights_write(path, tensor, n, meta, metas, err);
    for (size_t i = 0; i < own; i++) bytes_free(&name[i]);
    free(tensor), free(name), free(meta), free(memory);
    return ok;
}

/* The base with other sizes and weights of its own, as a file. */
static bool make_fresh(const Model *base, const Fresh *f, uint64_t seed, const char *path, Error *err) {
    Model m = *base;
    Json config = {0};
    Bytes text = {0};
    if (f->layers > 0) m.L = (size_t)f->layers;
    if (f->heads > 0) m.H = (size_t)f->heads;
    if (f->hidden > 0) m.size[LETTER_C] = (size_t)f->hidden;
    if (f->feed_forward > 0) m.size[LETTER_F] = (size_t)f->feed_forward;
    if (m.size[LETTER_C] % m.H) return fail(err, BAD_USAGE, "%zu heads do not divide the hidden size %zu: give --heads and --hidden that do", m.H, m.size[LETTER_C]);
    if (!config_open(m.weights, &config, err)) return false;
    put_config(&config, &m, &text);
    bool ok = write_fresh(&m, text.at, seed, path, err);
    json_free(&config);
    bytes_free(&text);
    return ok;
}

/* The folder: made if it is not there; one that holds a training is not written over. */
static bool open_folder(const Training *t, bool resumed, Error *err) {
    Bytes path = {0};
    file_name(t, "last.safetensors", &path);
    bool ok = mkdir(t->folder.at, 0777) == 0 || errno == EEXIST || fail(err, BAD_SYSTEM, "%s: cannot be made: %s", t->folder.at, strerror(errno));
    if (ok && !resumed && access(path.at, F_OK) == 0)
        ok = fail(err, BAD_INPUT, "%s holds a training: --resume goes on with it; for a new one give another folder", t->folder.at);
    bytes_free(&path);
    return ok;
}

/* Open what the training starts from: the last checkpoint, a fresh encoder, or the base itself; base_hash: of the base's content. */
static bool open_start(Training *t, const Fresh *fresh, bool resumed, char base_hash[65], Error *err) {
    Model base = {0};
    Bytes path = {0};
    if (!open_default(t->c, &base)) return false;
    const char *hash = weights_meta(base.weights, "content_sha256");
    snprintf(base_hash, 65, "%s", hash ? hash : "none");
    bool ok = open_folder(t, resumed, err);
    if (resumed || fresh->wanted) file_name(t, resumed ? "last.safetensors" : "start.safetensors", &path);
    else bytes_text(&path, weights_path(base.weights));
    if (ok && fresh->wanted && !resumed) ok = make_fresh(&base, fresh, random_bits(t->seed, USE_WEIGHTS), path.at, err);
    model_close(&base);
    ok = ok && model_open(&t->m, path.at, err) && parameters_open(&t->p, t->m.weights, err);
    bytes_free(&path);
    return ok;
}

/* All that decides the bits of a training. */
static void describe_run(Training *t, const Fresh *f, const char *base_hash) {
    Sha256 hash = t->corpus.hash;
    char examples[65];
    sha256_end(&hash, examples);
    bytes_printf(&t->run, "{\"recipe\": \"%s\", \"seed\": %llu", t->plan.name, (unsigned long long)t->seed);
    put_value(&t->run, "epochs", t->plan.epochs);
    put_value(&t->run, "batch", t->plan.batch);
    put_value(&t->run, "rate", t->plan.rate);
    put_value(&t->run, "dropout", t->plan.dropout);
    if (f->wanted) bytes_printf(&t->run, ", \"fresh\": [%.0f, %.0f, %.0f, %.0f]", f->layers, f->hidden, f->heads, f->feed_forward);
    bytes_printf(&t->run, ", \"math\": \"%s\", \"model\": \"%.16s\", \"examples\": \"%.16s\"}", tensor_math() == MATH_FAST ? "fast" : "reference", base_hash, examples);
}

static bool run_training(Training *t, const Fresh *fresh, bool resumed, double stop, Error *err) {
    const Plan *p = &t->plan;
    char base_hash[65];
    if (!open_start(t, fresh, resumed, base_hash, err) || !corpus_read(&t->corpus, &t->m, &t->c->file, p->paper, t->seed, err)) return false;
    t->per_epoch = (t->corpus.learn.n + (size_t)p->batch - 1) / (size_t)p->batch;
    if (!size_mul(t->per_epoch, (size_t)p->epochs, &t->steps)) return fail(err, BAD_USAGE, "--epochs asks for more steps than can be counted");
    t->stop = stop > 0 && stop < (double)t->steps ? (size_t)stop : t->steps;
    t->o.recipe = (Recipe){.rate = p->rate, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = p->decay, .clip = p->clip, .warmup = (size_t)ceil(p->warm_up * (double)t->steps),
                           .steps = p->warm_up > 0 ? t->steps : SIZE_MAX}; /* a fall over so many steps is none */
    describe_run(t, fresh, base_hash);
    if (resumed && !resume(t, err)) return false;
    if (!t->c->quiet)
        fprintf(stderr, "%zu texts: %zu sequences to learn from, %zu to choose by, %zu texts left out; %zu numbers to learn, %zu steps\n", t->corpus.texts, t->corpus.learn.n,
                t->corpus.choose.n, t->corpus.left_out, t->p.all, t->steps);
    return open_log(t, err) && train(t, err);
}

static bool choose_plan(const Bytes *name, Plan *out, Error *err) {
    *out = plans[0];
    for (size_t i = 0; name->at && i < sizeof plans / sizeof *plans; i++)
        if (strcmp(plans[i].name, name->at) == 0) return *out = plans[i], true;
    return !name->at || fail(err, BAD_USAGE, "--recipe is ours or paper, not '%.50s'", name->at);
}

bool command_train(Common *c, int argc, char **argv) {
    Training t = {.c = c};
    Bytes name = {0};
    Fresh fresh = {0};
    double epochs = 0, batch = 0, rate = 0, dropout_share = -1, seed = 1, stop = 0;
    bool resumed = false, done = false;
    const CliOption own[] = {
        {"-m, model", "FILE", CLI_TEXT, &c->model, 0, 0, "the model to begin from (default: the embedded one)"},
        {"-o, output", "FOLDER", CLI_TEXT, &t.folder, 0, 0, "where checkpoints and the log go (needed)"},
        {"recipe", "ours|paper", CLI_TEXT, &name, 0, 0, "ours: the text as it stands, the mean over its pieces; paper: as the authors' script (default ours)"},
        {"epochs", "N", CLI_WHOLE, &epochs, 1, 1e6, "times through the examples (default 6; paper 10)"},
        {"batch", "N", CLI_WHOLE, &batch, 1, 1e4, "sequences of a step (default 8; paper 10)"},
        {"rate", "R", CLI_NUMBER, &rate, 1e-12, 1e6, "learning rate at its height (default 1e-4; paper 1e-5)"},
        {"dropout", "P", CLI_NUMBER, &dropout_share, 0, 0.9, "share of hidden values that a step leaves out (default 0.1)"},
        {"seed", "N", CLI_WHOLE, &seed, 0, 1e9, "of order, dropout, fresh weights and the paper's split (default 1)"},
        {"steps", "N", CLI_WHOLE, &stop, 1, 1e12, "stop after so many steps in all (default: those of all epochs)"},
        {"resume", NULL, CLI_FLAG, &resumed, 0, 0, "go on from the folder's last checkpoint"},
        {"fresh", NULL, CLI_FLAG, &fresh.wanted, 0, 0, "begin from random weights, with the model's tokenizer"},
        {"layers", "N", CLI_WHOLE, &fresh.layers, 1, MAX_LAYERS, "layers of a fresh encoder (default: the model's, and so on)"},
        {"hidden", "N", CLI_WHOLE, &fresh.hidden, 1, MAX_CONFIG, "its hidden size"},
        {"heads", "N", CLI_WHOLE, &fresh.heads, 1, MAX_CONFIG, "its attention heads"},
        {"feed-forward", "N", CLI_WHOLE, &fresh.feed_forward, 1, MAX_CONFIG, "its feed-forward size"},
    };
    bool ok = command_start(c, "usage: lingua2 train -o FOLDER [options] [FILE...|-]\nLearn from annotated lines: checkpoints best.safetensors and last.safetensors, and log.jsonl.", own,
                            sizeof own / sizeof *own, argc, argv, &done);
    if (ok && !done && !t.folder.len) ok = fail(c->err, BAD_USAGE, "train needs -o FOLDER, where the checkpoints go");
    if (ok && !done && !fresh.wanted && fresh.layers + fresh.hidden + fresh.heads + fresh.feed_forward > 0)
        ok = fail(c->err, BAD_USAGE, "--layers, --hidden, --heads and --feed-forward are the sizes of a --fresh encoder");
    ok = ok && (done || choose_plan(&name, &t.plan, c->err));
    if (epochs > 0) t.plan.epochs = epochs;
    if (batch > 0) t.plan.batch = batch;
    if (rate > 0) t.plan.rate = rate;
    if (dropout_share >= 0) t.plan.dropout = dropout_share;
    t.seed = (uint64_t)seed;
    if (ok && !done) ok = run_training(&t, &fresh, resumed, stop, c->err);
    if (t.log && fclose(t.log) != 0 && ok) ok = fail(c->err, BAD_SYSTEM, "%s/log.jsonl: cannot be written: %s", t.folder.at, strerror(errno));
    corpus_free(&t.corpus);
    parameters_free(&t.p);
    tape_free(&t.tape);
    model_close(&t.m);
    bytes_free(&name);
    bytes_free(&t.folder);
    bytes_free(&t.run);
    return ok;
}
