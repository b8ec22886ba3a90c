/* tensor_backward_kernel.h - attention's backward pass for one head: five small matrix products and what lies between.
 *
 * tensor_backward.c includes this file twice, as tensor.c does tensor_kernel.h: T is the type of the accumulator, MAC(level, a, b, s) one step
 * of S. As there, the vectors run over columns of outputs, so that every sum is one ascending chain.
 */

/* s[r,j] goes on over k in [from,to) with x[r,k]*w[k,j], for r < M, j < NR; x[r,k] lies at r*xr + k*xk, w is packed [.., NR]. */
ISA_BODY void TN(steps)(int level, const size_t M, T *restrict s, const float *restrict x, size_t xr, size_t xk, const T *restrict w, size_t from,
                        size_t to) {
    const size_t NR = head_panel_bytes(level) / sizeof(T);
    T sum[HEAD_ROWS][HEAD_PANEL_BYTES_MAX / sizeof(T)];
    for (size_t r = 0; r < M; r++) {
#pragma omp simd
        for (size_t j = 0; j < NR; j++) sum[r][j] = s[r * NR + j];
    }
    for (size_t k = from; k < to; k++)
        for (size_t r = 0; r < M; r++) {
            const T a = x[r * xr + k * xk];
#pragma omp simd
            for (size_t j = 0; j < NR; j++) sum[r][j] = MAC(level, a, w[k * NR + j], sum[r][j]);
        }
    for (size_t r = 0; r < M; r++) {
#pragma omp simd
        for (size_t j = 0; j < NR; j++) s[r * NR + j] = sum[r][j];
    }
}

/* A tile of `rows` of 1..6 rows from row r0 on: what is summed differs from row to row, the part that all share is done at once. */
ISA_BODY void TN(tile)(int level, const Product *p, T *restrict s, const T *restrict w, size_t r0, size_t rows) {
    const size_t NR = head_panel_bytes(level) / sizeof(T), from = span_from(p, r0 + rows - 1), to = span_to(p, r0);
    const float *x = p->x + r0 * p->xr;
    for (size_t r = 0; r < rows; r++)
        if (span_from(p, r0 + r) < from) TN(steps)(level, 1, s + r * NR, x + r * p->xr, p->xr, p->xk, w, span_from(p, r0 + r), from);
    switch (rows) {
    case 1: TN(steps)(level, 1, s, x, p->xr, p->xk, w, from, to); break;
    case 2: TN(steps)(level, 2, s, x, p->xr, p->xk, w, from, to); break;
    case 3: TN(steps)(level, 3, s, x, p->xr, p->xk, w, from, to); break;
    case 4: TN(steps)(level, 4, s, x, p->xr, p->xk, w, from, to); break;
    case 5: TN(steps)(level, 5, s, x, p->xr, p->xk, w, from, to); break;
    default: TN(steps)(level, 6, s, x, p->xr, p->xk, w, from, to);
    }
    for (size_t r = 0; r < rows; r++)
        if (to < span_to(p, r0 + r)) TN(steps)(level, 1, s + r * NR, x + r * p->xr, p->xr, p->xk, w, to, span_to(p, r0 + r));
}

/* y = RN32(S(x,w)*scale [+ bias]). panel: [K, NR]. */
ISA_BODY void BODY(product)(int level, const Product *p, T *panel) {
    const size_t NR = head_panel_bytes(level) / sizeof(T);
    for (size_t j0 = 0; j0 < p->cols; j0 += NR) {
        const size_t width = min_size(NR, p->cols - j0);
        for (size_t k = 0; k < p->K; k++)
            for (size_t j = 0; j < NR; j++) panel[k * NR + j] = j < width ? (T)p->w[k * p->ldw + j0 + j] : 0;
        for (size_t r0 = 0; r0 < p->rows; r0 += HEAD_ROWS) {
            const size_t rows = min_size(HEAD_ROWS, p->rows - r0);
            T s[HEAD_ROWS * HEAD_PANEL_BYTES_MAX / sizeof(T)] = {0};
            if (p->span == PAIRS && j0 >= keys_of(p->head, r0 + rows - 1)) continue;
            TN(tile)(level, p, s, panel, r0, rows);
            for (size_t r = 0; r < rows; r++) {
                const float *bias = p->bias ? p->bias + (ptrdiff_t)(r0 + r) * p->ldbias + (ptrdiff_t)j0 : NULL;
                float *y = p->y + (r0 + r) * p->ldy + j0;
                for (size_t j = 0; j < width; j++) y[j] = (float)(bias ? (double)s[r * NR + j] * p->scale + (double)bias[j] : (double)s[r * NR + j] * p->scale);
            }
        }
    }
}
ISA_CLONES(TN(product), (const Product *p, T *panel), p, panel)

/* scratch: as many numbers as attention_backward counts; of it p [Tq,Tk] and ds [Tq,Tk], where a query does not attend they hold anything. */
static void TN(backward_head)(const AttentionBackward *b, float *scratch) {
    const Attention *h = &b->of;
    const size_t Tq = h->Tq, Tk = h->Tk, D = h->D;
    float *p = scratch, *ds = p + Tq * Tk, *turned = ds + Tq * Tk, *rows = turned + D * Tk;
    T *panel = (T *)(void *)(scratch + round_up((size_t)(rows + ROW_GROUP * Tk - scratch), 16));
    Product scores = {.y = p, .ldy = Tk, .scale = h->scale, .x = h->q, .xr = h->ldq, .xk = 1, .w = turned, .ldw = Tk, .rows = Tq, .K = D, .cols = Tk,
                      .bias = h->bias, .ldbias = h->ldbias, .head = h, .span = PAIRS};
    turn(turned, h->k, h->ldk, Tk, D);
    TN(product)(&scores, panel);
    softmax_of_head(h, p, rows);
    turn(turned, h->v, h->ldv, Tk, D);
    TN(product)(&(Product){.y = ds, .ldy = Tk, .scale = 1, .x = b->dctx, .xr = b->lddctx, .xk = 1, .w = turned, .ldw = Tk, .rows = Tq, .K = D, .cols = Tk,
                           .head = h, .span = PAIRS}, panel); /* dp */
    if (b->dv)
        TN(product)(&(Product){.y = b->dv, .ldy = b->lddv, .scale = 1, .x = p, .xr = 1, .xk = Tk, .w = b->dctx, .ldw = b->lddctx, .rows = Tk, .K = Tq,
                               .cols = D, .head = h, .span = QUERIES}, panel);
    scores_gradient(h, ds, p);
    if (b->dbias) bias_gradient(b, ds);
    if (b->dq)
        TN(product)(&(Product){.y = b->dq, .ldy = b->lddq, .scale = h->scale, .x = ds, .xr = Tk, .xk = 1, .w = h->k, .ldw = h->ldk, .rows = Tq, .K = Tk,
                               .cols = D, .head = h, .span = KEYS}, panel);
    if (b->dk)
        TN(product)(&(Product){.y = b->dk, .ldy = b->lddk, .scale = h->scale, .x = ds, .xr = 1, .xk = Tk, .w = h->q, .ldw = h->ldq, .rows = Tk, .K = Tq,
                               .cols = D, .head = h, .span = QUERIES}, panel);
}
