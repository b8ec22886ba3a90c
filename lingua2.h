/* lingua2.h - what the parts of lingua2 share: the classifier and how pieces go through it, requests and results, the commands.
 *
 * lingua2.c          the model, the encoder, chunks through the classifier, main
 * lingua2_compat.c   compression as the Python package does it
 * lingua2_cli.c      requests and results as options, JSON and JSON lines; commands
 * lingua2_trace.c    one pass through the classifier, recorded and replayed
 */
#ifndef LINGUA2_H
#define LINGUA2_H

#include "program.h"
#include "tensor.h"

/* ==== the model (lingua2.c) ==== */

typedef enum { FAMILY_BERT, FAMILY_XLMR } Family; /* which rules of the package apply */
enum { LETTER_V, LETTER_P, LETTER_Y, LETTER_C, LETTER_F, LETTER_K, LETTERS };
enum { MAX_PIECES = 512, NEW_TOKENS = 100, MAX_LAYERS = 1000 };

typedef struct {
    const float *q_w, *q_b, *k_w, *k_b, *v_w, *v_b; /* [C,C], [C] */
    const float *o_w, *o_b, *ln1_g, *ln1_b;         /* [C,C], [C], [C], [C] */
    const float *up_w, *up_b, *down_w, *down_b;     /* [C,F], [F], [F,C], [C] */
    const float *ln2_g, *ln2_b;                     /* [C] */
} Layer;

typedef struct {
    const float *wte, *wpe, *wye;       /* [V,C], [P,C], [Y,C] */
    const float *ln_g, *ln_b;           /* [C] */
    const float *head_w, *head_b;       /* [C,K], [K] */
    Layer *layer;                       /* [L] */
    size_t size[LETTERS], L, H;
    double eps;
    CrFunction act;
    size_t first_position; /* row of wpe for the first piece: 0 for BERT, padding id + 1 for XLM-R */
    uint32_t pad_id;
    Family family;
    Weights *weights;
    Tokenizer *tokenizer; /* NULL if the file holds none */
    Error no_tokenizer;   /* then: why */
    uint32_t new_token_base;
} Model;

/* Every tensor of a model, and of each of its layers: name in the file, shape in letters, place in Model and Layer. */
enum { MODEL_TENSORS = 7, LAYER_TENSORS = 16 };
extern const TensorRow model_table[MODEL_TENSORS], layer_table[LAYER_TENSORS];

/* Map a model file and check it. Release with model_close, which leaves {0}. Errors: BAD_INPUT (no such file), BAD_MODEL. */
bool model_open(Model *m, const char *path, Error *err);
void model_close(Model *m);

/* ==== the encoder (lingua2.c) ==== */

/* Rows of several sequences: ids and positions [N], sequence b is the rows start[b]..start[b+1]-1. */
typedef struct {
    const uint32_t *id;
    const size_t *position;
    size_t N, B;
    const size_t *start; /* [B+1] */
} Batch;

/* Working memory for N rows of B sequences. */
typedef struct {
    float *memory;                  /* one allocation */
    float *x, *q, *k, *v, *ctx, *y; /* [N,C] */
    float *h;                       /* [N,F] */
    Attention *head;                /* [B*H] */
} Activations;
Activations activations_new(const Model *m, size_t N, size_t B);
void activations_free(Activations *a);

/* logits [N,K]. With `where`, each result is looked through and the first that holds a NaN or infinity is named. */
void encoder_forward(const Model *m, const Batch *b, const Activations *a, float *logits, char where[64]);
/* p [N]: the probability that a piece is worth keeping, softmax(logits)[1]. Errors: BAD_MODEL for weights that give NaN or infinity. */
bool keep_probabilities(const Model *m, const Batch *b, float *p, Error *err);

/* Pieces of one chunk as the model sees them, special tokens included. */
typedef struct {
    uint32_t *id;
    size_t *position;
    float *p;
    size_t T;
} Chunk;
void chunk_free(Chunk *c);
/* Make position and p for the ids there. Errors: BAD_INPUT for ids and lengths that the model does not have. */
bool chunk_positions(const Model *m, Chunk *c, Error *err);
/* Fill p of n chunks. */
bool classify_chunks(const Model *m, Chunk *chunk, size_t n, Error *err);

/* ==== requests and results (lingua2_cli.c) ==== */

/* The keyword arguments of PromptCompressor.compress_prompt_llmlingua2, with its defaults. Numbers are float64 as Python's are. */
typedef struct {
    Texts context;
    double rate, target_token, target_context, context_level_rate, context_level_target_token;
    bool use_context_level_filter, use_token_level_filter, return_word_label, force_reserve_digit, drop_consecutive;
    Texts force_context_ids, force_tokens, chunk_end_tokens;
    Bytes word_sep, label_sep, token_to_word;
} Request;
Request request_new(void);
void request_free(Request *r);

/* The dict it returns. */
typedef struct {
    Texts context;                      /* compressed_prompt_list */
    size_t origin_tokens, compressed_tokens;
    Bytes labels;                       /* fn_labeled_original_prompt */
    bool has_labels;
} Result;
void result_free(Result *r);

/* ==== compatible mode (lingua2_compat.c) ==== */

/* [NEW0]..[NEW99] become pieces of the model's tokenizer: once, before the first compress_compat. */
void add_new_tokens(Model *m);
/* compress_prompt_llmlingua2; counter: cl100k_base. Errors: BAD_INPUT wherever the package raises, before or after work was done. */
bool compress_compat(const Model *m, const Tokenizer *counter, const Request *r, Result *out, Error *err);
/* np.percentile(value, q), method "linear", of n values in float32 (single) or float64; sorts value. In float32 each step is rounded. */
double percentile(double *value, size_t n, int q, bool single);
/* The string of piece i as the reference's tokenize() gives it. */
Slice piece_string(const Tokenizer *t, const Bytes *text, const Pieces *p, size_t i);

/* ==== data distillation (lingua2_distill.c), the lemmas of English words (lingua2_lemma.c) ==== */

/* Parse each line of JSON lines files (none: standard input; blank lines mean nothing) and give it to `take`, which uses it or fills the Error. A line
 * that cannot be used ends it; with go_on it is reported on standard error and the rest goes on, unless the failure is another than BAD_INPUT.
 * Errors: BAD_INPUT if any line could not be used, naming file and line. */
typedef bool (*TakeLine)(void *to, const Json *line, const Bytes *text, Error *err);
bool each_line(const Texts *file, bool go_on, TakeLine take, void *to, Error *err);
/* The string under a key. Errors: BAD_INPUT. */
bool need_text(const Json *line, const char *key, Slice *out, Error *err);
/* Replace an English word in lower case by its lemma; words of other letters stay. */
void lemma_english(Bytes *word);

/* The model that -m names, or the embedded one. */
bool open_default(const Common *c, Model *m);
/* The pieces of a whole text between the model's own first and last special token. Errors: BAD_INPUT; the model's, if it has no tokenizer. */
bool encode_whole(const Model *m, const Bytes *text, Chunk *c, Error *err);

/* ==== commands (lingua2_cli.c, lingua2_distill.c) ==== */

bool command_compress(Common *c, int argc, char **argv);
bool command_classify(Common *c, int argc, char **argv);
bool command_trace(Common *c, int argc, char **argv);
bool command_replay(Common *c, int argc, char **argv);
bool command_tokenize(Common *c, int argc, char **argv);
bool command_chunk(Common *c, int argc, char **argv);
bool command_collect(Common *c, int argc, char **argv);
bool command_annotate(Common *c, int argc, char **argv);
bool command_filter(Common *c, int argc, char **argv);
bool command_info(Common *c, int argc, char **argv);

#endif
