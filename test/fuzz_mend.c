/* fuzz_mend.c - damaged model and vectors files of mend: what opens reads, scores, generates, distils (fuzz.h). */
#include "../mend.c"

static const char *const seed_names[] = {"gpt2.model", "t5.model", "t5-gated.model", "mend-gpt2.model", "mend-t5.model", "vectors"};
static const int seed_weight[] = {0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5};
#include "fuzz.h"

static Model sound; /* a GPT-2 that damaged distillers and vectors are tried with */
static char sound_vectors[512];

static Example example_of(const char *input, const char *output) {
    static const char *const options[] = {"fox", "the foxes run", "12"};
    Example e = {.has_output = true};
    bytes_text(&e.input, input);
    bytes_text(&e.output, output);
    for (size_t i = 0; i < COUNT_OF(options); i++) texts_add(&e.options, options[i], strlen(options[i]));
    return e;
}

/* A context that has its demonstrations or vectors: one query, then a text. */
static void use_context(Context *c, const Example *query) {
    Error err = {0};
    double score[3];
    Ids prompt = {0}, made = {0};
    if (context_begin(c, &err) && score_query(c, query, score, &err) && pieces_of(c->lm, &query->input, false, &prompt, &err))
        (void)generate(c, &prompt, 4, &(Sampling){.temperature = 0.8, .top_p = 0.9}, &made, &err);
    ids_free(&prompt), ids_free(&made);
    context_free(c);
}

/* In all the ways a language model is used: demonstrations or vectors or nothing before the query, direct or channel, either side of a T5. */
static void use_language_model(const Model *m, const Examples *demos, const Example *query) {
    Error err = {0};
    for (unsigned way = 0; way < 8; way++) {
        Context c = {.lm = m, .format = format_of(m, TEACHER_LIMIT, way & 1, way & 2 && m->kind == T5), .alone = way == 4};
        bool ok = true;
        if (way & 4) ok = demonstrations(m, demos, 0, demos->n, &c.format, &c.demos, NULL, &err);
        else if (way & 2) ok = read_vectors(sound_vectors, m, &c.vectors, &err);
        if (ok) use_context(&c, query);
        else context_free(&c);
    }
    Ids ids = {0};
    const uint32_t id[] = {0, 1, (uint32_t)m->size[LETTER_V] - 1};
    float lp[3];
    ids_add(&ids, id, 3);
    (void)logprobs(m, &ids, &ids, lp, &err);
    ids_free(&ids);
}

static void use_distiller(const Model *m, const Examples *demos, const Example *query) {
    Error err = {0};
    for (size_t groups = 1; groups < 3; groups++) {
        const Distilling d = {groups, groups - 1, true};
        Context c = {.lm = &sound, .format = format_of(&sound, TEACHER_LIMIT, false, false)};
        if (distill(m, demos, &d, &c.format, &c.vectors, &err)) use_context(&c, query);
        else context_free(&c);
    }
}

static void use_file(const char *path) {
    Error err = {0};
    Model m;
    Example demo[] = {example_of("The foxes run, the fox ran. \xEF\xBC\xA1", "fox"), example_of("", "12 do not!")}, query = example_of("the fox", "fox");
    const Examples demos = {demo, COUNT_OF(demo), 0};
    if (model_open(&m, path, ANY_MODEL, &err)) {
        if (m.head) use_language_model(&m, &demos, &query);
        if (m.prompt) use_distiller(&m, &demos, &query);
        model_close(&m);
    } else if (err.code == DONE || !err.text[0]) abort(); /* an error must say something */
    Context c = {.lm = &sound, .format = format_of(&sound, TEACHER_LIMIT, false, false)};
    if (read_vectors(path, &sound, &c.vectors, &err)) use_context(&c, &query);
    for (size_t i = 0; i < COUNT_OF(demo); i++) example_free(&demo[i]);
    example_free(&query);
}

int main(int argc, char **argv) {
    Error err;
    if (argc < 3) return printf("usage: fuzz_mend FOLDER COUNT [FIRST]\n"), 2;
    Bytes path = {0};
    bytes_printf(&path, "%s/gpt2.model", argv[1]);
    snprintf(sound_vectors, sizeof sound_vectors, "%s/vectors", argv[1]);
    if (!tensor_start(MATH_FAST, 1, &err) || !model_open(&sound, path.at, LANGUAGE_MODEL, &err)) return printf("%s\n", err.text), 1;
    bytes_free(&path);
    const int code = fuzz(argv[1], strtoul(argv[2], NULL, 10), argc > 3 ? strtoul(argv[3], NULL, 10) : 0);
    model_close(&sound);
    return code;
}
