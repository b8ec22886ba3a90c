/* lingua2.h - what the parts of lingua2 share: the classifier and how pieces go through it, requests and results, the commands.
 *
 * lingua2.c          the model, the encoder, the faithful mode, main
 * lingua2_compat.c   compression as the Python package does it
 * lingua2_structured.c   parts with rates of their own: tags, JSON
 * lingua2_label.c    every word with its verdict: lines, JSON, colours, a page
 * lingua2_stream.c   JSON lines through a warm model
 * lingua2_eval.c     answers kept by the model and by rules that need none
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
bool all_finite(const float *x, size_t n);
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
    /* the faithful mode alone */
    double threshold; /* below 0: none */
    bool only_if_smaller, structured; /* structured: the contexts hold <llmlingua> tags */
    Bytes count, keep, baseline;
} Request;
Request request_new(void);
Request request_copy(const Request *from); /* without the contexts */
void default_ends(Request *r); /* the package's chunk_end_tokens, if there are none */
void request_free(Request *r);

/* A word of a context: its bytes there, its probability (1 if forced), its verdict. */
typedef struct {
    size_t start, end, context;
    float p;
    bool forced, kept;
} Label;

/* The dict it returns. */
typedef struct {
    Texts context;                      /* compressed_prompt_list */
    size_t origin_tokens, compressed_tokens;
    Bytes labels;                       /* fn_labeled_original_prompt */
    bool has_labels;
    /* the faithful mode alone */
    Bytes prompt;
    bool json; /* the prompt is JSON */
    size_t budget;
    Label *word; /* [words], if there are labels */
    size_t words;
} Result;
void result_free(Result *r);

/* The request's keywords as options of a command. */
enum { KEYWORDS = 22, PACKAGE_KEYWORDS = 16 };
void request_options(Request *r, CliOption option[KEYWORDS]);
/* {"id": ..., "context": ..., keyword: ...}; with compat the package's keywords alone. Errors: BAD_INPUT. */
bool request_read(const Json *j, bool compat, Request *r, Error *err);
/* The contexts are the files of the command line, or standard input. */
bool read_contexts(const Common *c, Request *r);
/* Append the result as JSON, without braces: the package's keys; in the faithful mode `rate` is a number, and what was asked for and the words are told too. */
void put_result(const Request *r, const Result *result, bool compat, Bytes *out);
/* Append "words": [...], each with the bytes where it stands in its context. */
void put_words(const Request *r, const Result *result, Bytes *out);

/* ==== the faithful mode (lingua2.c) ==== */

typedef struct {
    size_t start, end; /* bytes */
} Span;

/* A word: a slice of a document's text. */
typedef struct {
    size_t start, end, context;
    float p;             /* of its pieces, forcing aside */
    bool forced, listed; /* listed: by a force token */
    size_t step;         /* the step that takes it; SIZE_MAX: none */
} Word;

/* What was taken up to a step makes a text of so many tokens; p: the probability of the word that the step took. */
typedef struct {
    size_t tokens;
    float p;
} Step;

typedef enum { COUNT_CL100K, COUNT_MODEL, COUNT_WORDS } Counting;
enum { KEEP_CODE = 1, KEEP_URLS = 2, KEEP_NUMBERS = 4, KEEP_QUOTES = 8 };

/* A request's contexts as one text, cut into words, and the order in which a growing budget takes them: step 0 takes the forced words, each further one a word
 * (with the marks that it needs beside it). A budget is met by all steps before the first that would pass it, so one ranking serves any rate:
 *
 *     document_open, classify_chunks on its chunks, document_rank with SIZE_MAX, then for any budget document_steps, document_label, document_text */
typedef struct {
    const Model *m;
    const Tokenizer *counter;
    const Request *r;
    Bytes text; /* the contexts, a blank line between two */
    size_t contexts;
    Span *context;
    bool *reserve; /* by context: the context filter leaves it in */
    Counting counting;
    unsigned keep;
    size_t origin_tokens;
    Pieces piece;
    Word *word; /* [n] */
    size_t n;
    Chunk *chunk; /* [chunks] */
    size_t chunks;
    const float *given; /* [piece.n] probabilities in place of the chunks', or NULL */
    unsigned char *space; /* [n + 1] the white space before each word and before the end: 0 none, 1 some, 2 a line break, 3 a blank line */
    size_t *spaces[4];    /* [n + 2] how often there is at least so much before words 0..i-1 */
    Step *step;           /* [steps + 1] */
    size_t steps;
    bool guessed;         /* the tokens of the steps may be a little off */
} Document;

/* What a request says in words, checked. Errors: BAD_INPUT. */
bool request_check(const Request *r, Counting *counting, unsigned *keep, Error *err);
/* m, counter (cl100k_base) and r must outlive it. Errors: BAD_INPUT for a request that makes no sense; the model's, if it has no tokenizer. */
bool document_open(const Model *m, const Tokenizer *counter, const Request *r, Document *d, Error *err);
void document_close(Document *d);
/* False if its result does not depend on the classifier: then its chunks need not be classified. */
bool document_needs_model(const Document *d);
/* Order the words and count, as far as the first step that makes more than `most` tokens. */
bool document_rank(Document *d, size_t most, Error *err);
/* The tokens that the request allows; the last step that may be taken with so many (or by the request's threshold). At least one word is taken. */
size_t document_budget(const Document *d);
size_t document_steps(const Document *d, size_t budget);
/* The same, the text that these steps make and its exact count; where the counts of the steps are guessed, whole texts are counted until the place is found. */
bool document_choose(const Document *d, size_t budget, size_t *step, Bytes *text, size_t *tokens, Error *err);
/* The classifier's probabilities of the pieces [piece.n], to be freed. */
float *document_probabilities(const Document *d);
/* The tokens of a text, as the document counts them; 0 if it counts words. */
bool document_tokens(const Document *d, const char *text, size_t len, size_t *n, Error *err);
/* Word i after a step; append the text after a step. */
Label document_label(const Document *d, size_t i, size_t step);
void document_text(const Document *d, size_t step, Bytes *out);
/* Rank and choose for its request. */
bool document_compress(Document *d, Result *out, Error *err);

/* n requests through the classifier together. ok[i] says whether out[i] or err[i] is filled. */
void compress_batch(const Model *m, const Tokenizer *counter, const Request *r, size_t n, Result *out, Error *err, bool *ok);

/* The first word of a text at or after byte `at`, where none is begun; false if there is none. */
bool next_word(const char *text, size_t len, size_t at, Span *word);
/* The first place at or after `from` where `what` (not empty) stands in text[0..end), or end. */
size_t find(const char *text, size_t end, size_t from, const char *what, size_t len);
/* A mark that belongs to what is before it. */
bool is_closing(uint32_t code);
/* A decimal digit of any script. */
bool has_digit(const char *text, size_t len);
/* np.percentile(value, q), method "linear", of n values in float32 (single) or float64; sorts value. In float32 each step is rounded. */
double percentile(double *value, size_t n, int q, bool single);
/* The context filter's rate, and whether it must leave context i in. */
double context_rate(const Request *r, size_t origin_tokens);
bool is_forced_context(const Request *r, size_t i);

/* ==== parts with rates of their own (lingua2_structured.c) ==== */

/* A stretch of a context, where it stands in the text that came in, and its rate; below 0: the request's. */
typedef struct {
    size_t start, end, origin;
    double rate;
} Segment;

/* All of a context's, side by side from its first byte to its last. */
typedef struct {
    Segment *at;
    size_t n, cap;
} Segments;
void segments_free(Segments *s);

/* A text with <llmlingua> tags: what is left without them, and the segments they make. Errors: BAD_INPUT with the byte. */
bool tags_read(const Bytes *text, Bytes *plain, Segments *s, Error *err);
/* A request whose contexts hold tags. */
bool compress_tags(const Model *m, const Tokenizer *counter, const Request *r, Result *out, Error *err);
/* A file with a JSON object instead of contexts, and one that says what is to become of its keys: {key: {"rate", "compress", "value_type", "pair_remove"}}. The
 * object's strings are shortened, the rest stays as it is. */
bool compress_json_file(const Model *m, const Tokenizer *counter, const Request *r, const char *config_path, const char *path, Result *out, Error *err);

/* ==== compatible mode (lingua2_compat.c) ==== */

/* [NEW0]..[NEW99] become pieces of the model's tokenizer: once, before the first compress_compat. */
void add_new_tokens(Model *m);
/* compress_prompt_llmlingua2; counter: cl100k_base. Errors: BAD_INPUT wherever the package raises, before or after work was done. */
bool compress_compat(const Model *m, const Tokenizer *counter, const Request *r, Result *out, Error *err);
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

/* The model that -m names, or the embedded one; the counting vocabulary. */
bool open_default(const Common *c, Model *m);
bool open_counter(const Common *c, Weights **w, Tokenizer **t);
/* The pieces of a whole text between the model's own first and last special token. Errors: BAD_INPUT; the model's, if it has no tokenizer. */
bool encode_whole(const Model *m, const Bytes *text, Chunk *c, Error *err);

/* ==== JSON lines (lingua2_stream.c) ==== */

/* Answer the lines of c->file, or of standard input; options: what holds where a line says nothing. */
bool compress_lines(const Common *c, const Model *m, const Tokenizer *counter, const Request *options, bool compat);

/* ==== commands (lingua2_cli.c, lingua2_distill.c) ==== */

bool command_compress(Common *c, int argc, char **argv);
bool command_label(Common *c, int argc, char **argv);
bool command_classify(Common *c, int argc, char **argv);
bool command_eval(Common *c, int argc, char **argv);
bool command_trace(Common *c, int argc, char **argv);
bool command_replay(Common *c, int argc, char **argv);
bool command_tokenize(Common *c, int argc, char **argv);
bool command_chunk(Common *c, int argc, char **argv);
bool command_collect(Common *c, int argc, char **argv);
bool command_annotate(Common *c, int argc, char **argv);
bool command_filter(Common *c, int argc, char **argv);
bool command_train(Common *c, int argc, char **argv);
bool command_info(Common *c, int argc, char **argv);

#endif
