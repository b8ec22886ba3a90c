/* mend.h - what the parts of mend share: models, forward passes, a language model's state, prompts, distillation, scores, texts (mend.c);
 * evaluation and cost (mend_eval.c); commands (mend_cli.c).
 *
 * Letters: N rows, B sequences, T rows of a sequence, C hidden size, H heads of D, E = H*D, F feed-forward size, L layers, V pieces,
 * P positions, R buckets of relative positions, U virtual rows (the paper's v), O the hidden size of the language model that reads them.
 */
#ifndef MEND_H
#define MEND_H

#include "json.h"
#include "program.h"
#include "random.h"
#include "tensor.h"
#include "tokenizer.h"
#include "weights.h"

/* ==== models ====================================================================================================================== */

typedef enum { GPT2, T5 } Kind;
enum { LETTER_V, LETTER_P, LETTER_C, LETTER_Q, LETTER_F, LETTER_E, LETTER_R, LETTER_H, LETTER_U, LETTER_O, LETTERS }; /* Q = 3C */
enum { MAX_LAYERS = 1000 };

typedef struct {
    const float *ln1_g, *ln1_b, *qkv_w, *qkv_b, *o_w, *o_b;     /* [C], [C], [C,3C], [3C], [C,C], [C] */
    const float *ln2_g, *ln2_b, *up_w, *up_b, *down_w, *down_b; /* [C], [C], [C,F], [F], [F,C], [C] */
} Gpt2Layer;

typedef struct {
    const float *q, *k, *v, *o, *ln_g; /* [C,E], [C,E], [C,E], [E,C], [C] */
} T5Attention;

typedef struct {
    T5Attention self, cross;
    const float *up, *gate, *down, *ln_g; /* [C,F], [C,F] or NULL, [F,C], [C] */
} T5Layer;

typedef struct {
    T5Layer *layer; /* [L] */
    size_t L;
    const float *position_w, *ln_g; /* [R,H], [C] */
    bool decoder;
} T5Stack;

typedef struct {
    Kind kind;
    const float *wte, *wpe, *ln_g, *ln_b; /* [C,V] or [V,C], [P,C], [C], [C] */
    const float *head;                    /* [C,V]; NULL: no language model */
    const float *prompt, *pool_w, *pool_b; /* a distiller's P [U,C]; its adap_pooler [C,O], [O], or NULL */
    Gpt2Layer *gpt2;                      /* [L] */
    T5Stack encoder, decoder;
    size_t size[LETTERS], L, H, D;
    double eps;
    CrFunction act;
    bool wte_is_head, scale_head; /* wte is stored as [C,V]; T5: the head takes x * C^-0.5 */
    size_t max_distance;
    uint32_t start_id; /* T5: what the decoder reads first */
    Weights *weights;
    Tokenizer *tokenizer; /* NULL if the file holds none */
    Error no_tokenizer;   /* then: why */
} Model;

typedef enum { ANY_MODEL, LANGUAGE_MODEL, DISTILLER } Role;

/* Errors: BAD_MODEL for a file that is damaged, of another architecture, or not fit for the role. */
bool model_open(Model *m, const char *path, Role role, Error *err);
void model_close(Model *m);
/* What says which weights these are: the hash that export.py wrote. */
const char *model_hash(const Model *m);

/* ==== one forward pass ============================================================================================================
 * Rows of B sequences one after another. Each sequence may go on from a past that all share: keys and values of rows read earlier. */

typedef struct {
    size_t N, B;
    const size_t *start; /* [B+1]: sequence b is the rows start[b]..start[b+1]-1 */
} Batch;

/* Keys and values per layer, [L][room][E] each. */
typedef struct {
    float *k, *v;
    size_t n, room, E, L;
} Cache;
void cache_free(Cache *c);

/* What the heads of one layer attend with: q, k, v [N,E] at row strides ldq, ldk; ctx [N,E]. */
typedef struct {
    const float *q, *k, *v;
    size_t ldq, ldk;
    float *ctx;
    double scale;
    bool causal;
    const float *bias;   /* [H][...] or NULL: element (i,j) of head h at bias[h*head_bias + i*ldbias + j] */
    ptrdiff_t ldbias;
    size_t head_bias;
} Heads;
/* Every head of every sequence, [B*H], to be freed; the past of layer l before them (or NULL). */
Attention *heads_of(const Model *m, const Batch *b, const Heads *h, const Cache *past, size_t l);
/* The same over the encoder's keys and values alone, [H]. */
Attention *cross_heads_of(const Model *m, const Batch *b, const float *q, float *ctx, const Cache *cross, size_t l);

/* The embedding [C] of one piece. */
void embed_piece(const Model *m, uint32_t id, float *x);
/* Embeddings [n,C] of pieces, to be freed. */
float *embed(const Model *m, const uint32_t *id, size_t n);

/* The length of the longest sequence. */
size_t longest(const Batch *b);

/* What one layer of a GPT-2 computes on its way, in the order of the forward pass. A backward pass wants each in a place of its own; else they may
 * share: mid and out the input's place, ln1, ln2 and proj one more, act that of up. */
typedef struct {
    float *ln1, *qkv, *ctx, *proj, *mid, *ln2, *up, *act, *out; /* up, act [N,F], qkv [N,3C], the others [N,C] */
} Gpt2Rows;
Heads gpt2_heads(const Model *m, const Batch *b, const Gpt2Rows *r, const float *mask);
void gpt2_layer(const Model *m, const Batch *b, size_t l, const Gpt2Rows *r, const float *x, Cache *past, bool keep, const float *mask);
/* Add the embeddings of the positions past, past+1, ... of each sequence. */
void add_positions(const Model *m, const Batch *b, size_t past, float *x);

/* x [N,C]: in embeddings (positions not yet added), out ln_f's output. mask [N,N] or NULL: added to the scores, for B = 1 without a past.
 * keep: the past goes on with these rows (B = 1). */
void gpt2_forward(const Model *m, const Batch *b, Cache *past, bool keep, const float *mask, float *x);

/* The same of a T5: q, k, v, ctx, cross_q, cross_ctx [N,E]; up, gate, act [N,F]; the others [N,C]. */
typedef struct {
    float *ln1, *q, *k, *v, *ctx, *proj, *mid, *cross_ln, *cross_q, *cross_ctx, *cross_mid, *ln2, *up, *gate, *act, *out;
} T5Rows;
/* bias: of position_bias with its reach, or of masked_bias with reach 0. */
Heads t5_heads(const Model *m, const T5Stack *stack, const Batch *b, const T5Rows *r, const float *bias, size_t reach, size_t past);
void t5_layer(const Model *m, const T5Stack *stack, const Batch *b, size_t l, const T5Rows *r, const Heads *self, float *x, Cache *past, bool keep, const Cache *cross);
/* [H][N,N]: the bias by position and a mask [N,N] together; to be freed. */
float *masked_bias(const Model *m, const float *bias, size_t reach, const float *mask, size_t N);

/* x [N,C]: in embeddings, out the final norm's output. past: what this stack read before (decoder), with keep it goes on; cross: the encoder's
 * keys and values (decoder). mask [N,N] or NULL: -infinity where a query must not look, for an encoder with B = 1. */
void t5_forward(const Model *m, const T5Stack *stack, const Batch *b, Cache *past, bool keep, const Cache *cross, const float *mask, float *x);
/* Keys and values of the decoder's cross attention from the encoder's output e [N,C]. */
Cache cross_cache(const Model *m, const float *e, size_t N);
/* The bucket of a key at distance d = j - i from its query. */
size_t position_bucket(const Model *m, ptrdiff_t d, bool decoder);
/* bias [H][2*reach], to be freed: for each head the bias at distance d is element d + reach, -reach <= d < reach. */
float *position_bias(const Model *m, const T5Stack *s, size_t reach);

/* ==== a language model that reads ================================================================================================= */

typedef struct {
    Cache self, cross; /* cross: T5's encoder side */
    float *last;       /* [C]: hidden state of the last row, if any */
} State;
State state_new(const Model *m);
void state_free(State *s);

/* Read n rows of embeddings x [n,C]; they become hidden states. Errors: BAD_INPUT if they are more than the positions. */
bool state_read(const Model *m, State *s, float *x, size_t n, Error *err);
bool state_read_ids(const Model *m, State *s, const uint32_t *id, size_t n, Error *err);
/* T5: read n rows on the encoder's side in place of what was there, then the first piece on the decoder's. x becomes the encoder's output. */
bool state_encode(const Model *m, State *s, float *x, size_t n, Error *err);

/* l [n,V] from hidden states x [n,C]. Errors: BAD_MODEL for weights that give NaN or infinity. */
bool logits(const Model *m, const float *x, size_t n, float *l, Error *err);
/* lp[i] = log p(target[i]) after the hidden state x_i, [n]. */
bool target_logprobs(const Model *m, const float *x, const uint32_t *target, size_t n, float *lp, Error *err);

/* ==== prompts ===================================================================================================================== */

typedef struct {
    uint32_t *at;
    size_t n, cap;
} Ids;
void ids_add(Ids *ids, const uint32_t *id, size_t n);
void ids_free(Ids *ids);

/* One example of MetaICL's data. */
typedef struct {
    Bytes task, input, output;
    bool has_output;
    Texts options;
} Example;
typedef struct {
    Example *at;
    size_t n, cap;
} Examples;
void example_free(Example *e);
void examples_free(Examples *e);
/* All examples of a file ("-": standard input). Errors: BAD_INPUT with path and line number. */
bool read_examples(const char *path, bool need_output, Examples *out, Error *err);

/* How examples become prompts. */
typedef struct {
    bool channel;       /* pairs are (y, x), and p(x | option) is what counts */
    bool encoder_input; /* T5: x stands on the encoder's side */
    size_t per_example; /* pieces of one example at most */
    size_t limit;       /* pieces of a prompt at most */
    bool no_input, no_label; /* demonstrations without one of their halves */
} Format;
enum { TEACHER_LIMIT = 1024, DISTILLER_LIMIT = 900, EXAMPLE_LIMIT = 256 };
/* The reference's limits; a model with fewer positions gives a quarter of them to one example. */
Format format_of(const Model *m, size_t limit, bool channel, bool encoder_input);

/* Append the pieces of a text, a blank before it for outputs and options. */
bool pieces_of(const Model *m, const Bytes *text, bool blank, Ids *out, Error *err);
/* The pieces of one demonstration, cut. Errors: BAD_INPUT. */
bool demonstration(const Model *m, const Example *e, const Format *f, Ids *x, Ids *y, Error *err);
/* Append demonstrations [from,to) one behind the other until the budget is used up; of the first pair that does not fit the first half is cut.
 * is_label (or NULL) gets a byte per piece: 1 for the second half of a pair. */
bool demonstrations(const Model *m, const Examples *d, size_t from, size_t to, const Format *f, Ids *out, Bytes *is_label, Error *err);

/* ==== distillation ================================================================================================================ */

typedef struct {
    size_t groups;       /* the demonstrations are distilled in so many groups and the vectors concatenated (fusion in decoder) */
    size_t label_rows;   /* the last so many rows of P see label pieces alone; 0: no separation */
    bool separate_input; /* then: the other rows of P see input pieces alone */
} Distilling;

typedef struct {
    float *at; /* [n,O] */
    size_t n, O;
} Vectors;

/* [N,N]: -infinity where row i must not look at row j, N = n pieces and U rows of P; to be freed. */
float *separation(const Distilling *d, const char *is_label, size_t n, size_t U);
/* s [U,O] from the pieces of one group. */
bool distill_group(const Model *m, const Distilling *d, const Ids *demos, const Bytes *is_label, float *s, Error *err);
/* Where group g of n demonstrations starts; groups differ in size by one at most. */
size_t group_start(const Distilling *d, size_t n, size_t g);
/* Vectors of all demonstrations, to be freed. */
bool distill(const Model *m, const Examples *demos, const Distilling *d, const Format *as, Vectors *out, Error *err);

/* A safetensors file: "vectors" [n,O], and in its metadata what they were made of and for. llm: NULL if it was not given. */
bool write_vectors(const char *path, const Vectors *v, const Model *distiller, const Model *llm, const char *demos_hash, Error *err);
/* Errors: BAD_MODEL if it is no such file, or was made for a language model of another width or hash; both are named. */
bool read_vectors(const char *path, const Model *llm, Vectors *v, Error *err);

/* ==== scores ====================================================================================================================== */

/* What stands before every query. */
typedef struct {
    const Model *lm;
    Format format;
    Ids demos;       /* in-context learning */
    Vectors vectors; /* MEND, or a tuned prompt */
    State state;     /* has read them */
    bool alone;      /* nothing is shared: every option of every query reads all of its prompt, as the reference does */
} Context;
/* Read what all queries share: the demonstrations or vectors; a T5 whose encoder also reads x does that for each query. */
bool context_begin(Context *c, Error *err);
void context_free(Context *c);

/* The pieces of a query: x, cut, and each option [options], all to be freed. Errors: BAD_INPUT. */
bool query_pieces(const Context *c, const Example *q, Ids *x, Ids *option, Error *err);
/* Whether a GPT-2's prompt of these pieces is over the limit, so that it loses pieces on the left and nothing is shared between options. */
bool query_is_cut(const Context *c, const Ids *x, const Ids *option, size_t B);
/* score [B] of the options. */
bool score_pieces(Context *c, const Ids *x, const Ids *option, size_t B, double *score, Error *err);
/* score [options] of one query. Errors: BAD_INPUT. */
bool score_query(Context *c, const Example *q, double *score, Error *err);
/* The highest score, of equals the first. */
size_t best(const double *score, size_t n);

/* ==== text ======================================================================================================================== */

typedef struct {
    double temperature, top_p; /* temperature 0: always the most probable */
    uint64_t seed;
} Sampling;
/* One piece from logits l [V], which are changed. */
uint32_t choose(float *l, size_t V, const Sampling *s, uint64_t count);
/* Append up to n pieces that follow the prompt; ends after the model's end piece. */
bool generate(Context *c, const Ids *prompt, size_t n, const Sampling *s, Ids *out, Error *err);
/* lp [n-1]: log p of each piece given those before it. A T5's decoder reads its start piece first, its encoder `source`; then lp is [n]. */
bool logprobs(const Model *m, const Ids *ids, const Ids *source, float *lp, Error *err);

/* ==== evaluation ================================================================================================================== */

typedef enum { ZERO, ICL, MEND, PROMPT, METHODS } Method;
extern const char *const method_names[METHODS];
typedef enum { NONE, NO_INPUT, NO_LABEL, RANDOM_LABEL, WRONG_LABEL, ITSELF, SHUFFLED, ABLATIONS } Ablation;
extern const char *const ablation_names[ABLATIONS];

/* The first n of the examples in random order; *count numbers are drawn already. */
void shuffle(Examples *e, size_t n, uint64_t seed, uint64_t *count);
/* Give each demonstration a label by chance, the right one left out if `wrong`. */
void relabel(Examples *e, bool wrong, uint64_t seed, uint64_t *count);
/* Which option is the output, or the number of options. */
size_t right_option(const Example *q);
/* Mean of 2PR/(P+R) over the labels that are right or said somewhere (as the release and scikit-learn count them). */
double macro_f1(const Examples *q, const size_t *prediction);
double accuracy(const Examples *q, const size_t *prediction);

/* One task, seed, method and ablation. */
typedef struct {
    const Model *lm, *mend; /* mend: NULL if there is none */
    const Vectors *prompt;
    Distilling distilling;
    Format format;
    Method method;
    Ablation ablation;
} Setting;
/* prediction [queries]. With ITSELF each query is its own demonstrations. Errors: BAD_INPUT naming the query. */
bool predict(const Setting *s, const Examples *demos, const Examples *queries, size_t *prediction, Error *err);

/* Tasks by seeds by methods by ablations. */
typedef struct {
    Setting setting;  /* all but method and ablation */
    Bytes data, split, output;
    Texts task, seed;
    bool method[METHODS], ablation[ABLATIONS]; /* which ones */
    size_t K;
    Texts classes;    /* tasks judged by macro-F1 */
    Texts done;       /* keys of the results that are there */
    double *value;    /* [done.n] */
    Bytes results;    /* JSON lines, old and new */
} Evaluation;
/* The test tasks of a partition (if one is named), and which tasks are classification, from {"NAME": {"train": [], "test": []}, ...,
 * "classification": []}. Errors: BAD_INPUT. */
bool read_partition(Evaluation *e, const char *path, const Bytes *name, Error *err);
/* Results of an earlier run: their lines are kept and not computed again. */
bool read_results(Evaluation *e, Error *err);
/* Everything that was asked for and is not there yet; e->output holds what is done at any time. c: where progress goes. */
bool evaluate(Evaluation *e, const Common *c, Error *err);
void evaluation_free(Evaluation *e);

/* Mean and deviation (over n, as the reference) over the seeds, once all is evaluated. */
void spread_of(const Evaluation *e, const Bytes *task, Method method, Ablation ablation, double *mean, double *deviation);

/* ==== cost ======================================================================================================================== */

/* What a method costs: once, and the mean per query; multiply-adds times two, and seconds. */
typedef struct {
    const char *name;
    double once, once_seconds, query, query_seconds;
} Bill;
enum { BILLS = 4 };
/* Bills of zero-shot, in-context learning with nothing and with the demonstrations cached, and MEND with its distiller; the operations are
 * counted from the shapes and must be those that were done. *first: 1 for a T5, which has nothing to encode without demonstrations.
 * Errors: BAD_INPUT naming the query. */
bool cost(const Model *lm, const Model *mend, const Distilling *d, const Examples *demos, const Examples *queries, Bill bill[BILLS], size_t *first, Error *err);
/* After how many queries `a` has cost less than `b` in all, or infinity. */
double break_even(const Bill *a, const Bill *b);

/* ==== commands ==================================================================================================================== */

bool command_distill(Common *c, int argc, char **argv);
bool command_score(Common *c, int argc, char **argv);
bool command_generate(Common *c, int argc, char **argv);
bool command_logprob(Common *c, int argc, char **argv);
bool command_eval(Common *c, int argc, char **argv);
bool command_cost(Common *c, int argc, char **argv);
bool command_train(Common *c, int argc, char **argv);
bool command_info(Common *c, int argc, char **argv);
bool command_trace(Common *c, int argc, char **argv);
bool command_replay(Common *c, int argc, char **argv);

#endif
