/* mend_train.h - training: forward passes kept for their gradients (mend_backward.c), then data, stages and the command (mend_train.c). Letters as in mend.h.
 *
 * dX is the gradient of the loss by X. Parameters are those of optimizer.h; NULL stands for a frozen model, through which gradients pass.
 */
#ifndef MEND_TRAIN_H
#define MEND_TRAIN_H

#include "mend.h"
#include "optimizer.h"

/* ==== gradients =================================================================================================================== */

/* One pass through a stack of layers, kept for its gradient: the input of every layer, and, if they are not large, all results in between. What is not
 * kept is computed anew, to the same bits. Memory is kept for the next pass. Start from {0}. */
typedef struct {
    const Model *m;
    const T5Stack *stack; /* NULL: GPT-2 */
    Batch b;
    size_t *start;        /* of b */
    const float *mask;    /* as of gpt2_forward and t5_forward */
    const Cache *cross;
    size_t reach;
    float *bias, *masked; /* T5 */
    float *x;             /* [L+1][N,C]: what each layer reads, and the final norm */
    float *memory;        /* all of it */
    size_t room;
    bool kept;
} Pass;

/* x [N,C]: in embeddings (GPT-2: without positions), out the final norm's output. As gpt2_forward and t5_forward. */
void pass_forward(Pass *p, const Model *m, const T5Stack *stack, const Batch *b, const float *mask, const Cache *cross, float *x);
/* d [N,C]: in the gradient of the output, out that of the embeddings. dcross: of the encoder's keys and values, [L][n,E] each (decoder). */
void pass_backward(const Pass *p, const Parameters *g, float *d, const Cache *dcross);
void pass_free(Pass *p);

/* A language model that has read a batch: a GPT-2's rows, or a T5's rows on both sides (one sequence each). Start from {0}. */
typedef struct {
    const Model *m;
    Pass encoder, decoder;
    Cache cross;
    float *encoded; /* [encoder rows, C] */
} Reading;
/* x [N,C]: in embeddings, out hidden states. T5: e [n,C], the encoder's embeddings. */
void reading_forward(Reading *r, const Model *m, const Batch *b, float *x, const float *e, size_t n);
/* dx [N,C]: in of the hidden states, out of the embeddings. T5: de [n,C] of the encoder's. */
void reading_backward(Reading *r, const Parameters *g, float *dx, float *de);
void reading_free(Reading *r);

/* Gradients of logits l = head x to those of x, and to the head's. dx, x [n,C]; dl [n,V]; dx may be x. */
void logits_backward(const Model *m, const Parameters *g, float *dx, const float *dl, const float *x, size_t n);
/* Of embeddings looked up, to the table's. */
void embed_backward(const Model *m, const Parameters *g, const float *dx, const uint32_t *id, size_t n);

/* Vectors of a batch of groups of demonstrations, kept for their gradient. Start from {0}. */
typedef struct {
    const Model *m;
    size_t n;              /* groups */
    Ids *demos;            /* [n]: the caller's pieces */
    Pass *pass;            /* one for all groups, or, where label pieces are separated, one for each */
    size_t passes;
    float **mask;          /* [passes] */
    float *last, *pooled;  /* [n*U,C]: the last rows; [n*U,O]: before tanh */
} Distillation;
/* s [n*U,O] from the pieces of n groups; is_label: [n], for the separation of d->label_rows. Errors: BAD_INPUT if they are more than the positions. */
bool distillation_forward(Distillation *d, const Model *m, const Distilling *how, const Ids *demos, const Bytes *is_label, size_t n, float *s, Error *err);
/* ds [n*U,O], used up. The pieces that the forward pass was given must still be there. */
void distillation_backward(Distillation *d, const Parameters *g, float *ds);
void distillation_free(Distillation *d);

/* ==== the loss ==================================================================================================================== */

/* loss = CE + lambda KL, of one text x y whose rows x [n,C] are hidden states (section 3.3 of the paper):
 *   CE = mean over the targets of -log Q(target)          KL = mean over all rows of sum_v P (log P - log Q)
 * Q is the student's softmax, P the teacher's; in KL both at temperature tau. */
typedef struct {
    bool ce, kl;
    double lambda, tau;
} Objective;

/* What is asked of one text of a batch: rows of hidden states. */
typedef struct {
    size_t first, teacher, n; /* KL: the student's rows first.. against the teacher's rows teacher.., n of them */
    const size_t *row;        /* CE: these rows of the student, ascending, none behind first+n if there is KL, */
    const uint32_t *target;   /* have these pieces as targets, */
    size_t targets;           /* so many */
} Graded;

typedef struct {
    double ce, kl, loss; /* means over the texts */
} Loss;

/* Part of the loss of a batch of B texts: n of them, from the student's hidden states x [N,C] and the teacher's t (NULL: no KL), m being the language
 * model of both. Added to *out; dx [N,C] (or NULL) is written, the head's gradient added. Errors: BAD_MODEL for NaN or infinity. */
bool loss_of(const Objective *o, const Model *m, const Parameters *g, const Graded *text, size_t n, size_t B, const float *x, const float *t, size_t N, float *dx,
             Loss *out, Error *err);

/* ==== lessons ===================================================================================================================== */

/* What one loss is computed from: demonstrations for the distiller and the teacher, a query x y for both models. */
typedef struct {
    size_t groups;
    Ids *demos;      /* [groups]: what the distiller reads */
    Bytes *is_label; /* [groups] */
    Ids before;      /* what the teacher reads before x y */
    Ids x, y;
    Bytes counted;   /* which pieces of y are targets, a byte each; empty: all that something stands before */
} Lesson;
void lesson_free(Lesson *l);

typedef enum { PRETRAIN, FINETUNE, TUNE_PROMPT, LANGUAGE, STAGES } Stage;
extern const char *const stage_names[STAGES];

/* Where lessons come from: passages of text, or examples of tasks. */
typedef struct {
    Stage stage;
    const Model *lm, *mend; /* mend: NULL where there is none */
    Distilling how;
    bool channel, encoder_input;
    size_t K, length;      /* demonstrations of a lesson; pieces of a passage at most */
    Ids *passage;          /* [passages] */
    size_t passages;
    Examples examples;     /* the tasks' one behind the other */
    size_t *task_start;    /* [tasks+1] */
    size_t tasks;
} Corpus;
/* Files of text (passages between blank lines), JSON lines with "text", or JSON lines of examples. Errors: BAD_INPUT with path and line, or that the
 * stage cannot use what is there. */
bool corpus_read(Corpus *c, const Texts *path, Error *err);
void corpus_free(Corpus *c);
/* Lesson number `number` of a seed: always the same. */
bool lesson_of(const Corpus *c, uint64_t seed, uint64_t number, Lesson *out, Error *err);

/* ==== a step ====================================================================================================================== */

typedef struct {
    const Model *lm, *mend;  /* mend: NULL where there is none */
    const Parameters *trained;
    float *vectors;          /* prompt tuning: [U,O], else NULL */
    size_t U;
    Distilling how;
    Objective objective;
    bool encoder_input;
    size_t texts;            /* the loss is a mean over so many lessons, of which B come at a time; 0: over B */
    Distillation distillation;
    Reading reading;
} Trainer;
/* The loss of B lessons, its gradients added to the parameters' if wanted. ds (or NULL) gets the gradient of the vectors that the language model read, one lesson
 * behind the other. Errors: BAD_INPUT for lessons that are too long, BAD_MODEL for NaN or infinity. */
bool lessons_loss(Trainer *t, const Lesson *lesson, size_t B, bool gradients, float *ds, Loss *out, Error *err);
void trainer_free(Trainer *t);

/* ==== new models ================================================================================================================== */

/* A GPT-2 of this configuration (a config.json's text), its numbers drawn from the seed, with the tokenizer of an open model file. */
bool make_gpt2(const char *path, const char *config_path, const Weights *tokenizer, uint64_t seed, Error *err);
/* A distiller of U rows from a GPT-2: its weights, P from pieces by chance, vectors as large as the embeddings of lm, a pooler if lm's width differs. */
bool make_distiller(const char *path, const Model *base, const Model *lm, size_t U, uint64_t seed, Error *err);
/* Vectors [U,O] for prompt tuning: embeddings of pieces by chance. */
bool make_prompt(const char *path, const Model *lm, size_t U, uint64_t seed, Error *err);

#endif
