/* tensor_kernel.h - the one matrix kernel, and the two loops around it: linear and one attention head.
 *
 * tensor.c includes this file twice: with T = float for MATH_FAST, with T = double for MATH_REFERENCE. T is the type of the
 * accumulator; MAC(level, a, b, s) is one step s = a*b + s of S; TN(name) gives a name its type's suffix,
 * BODY(name) that of the body ISA_CLONES looks for.
 *
 * The kernel computes a tile of up to 6 rows x NR columns of outputs, all of whose sums live in registers. NR is a number
 * of vectors that depends on the instruction set. Each step k multiplies 6 numbers of x with NR numbers of w: the
 * inner loop runs over columns, never over k, so every sum is one ascending chain whatever the vector length. Operands are
 * packed first, so that the kernel reads memory in order:
 *
 *   x: tiles of 6 rows, [6][K]         w: panels of NR columns, [K][NR], zeros beyond the matrix
 *
 * C is cut into blocks of K so that a panel stays in the caches while all tiles pass; the sums wait between blocks in memory,
 * unrounded.
 */

/* ---- packing ---- */

/* out[r,k] = x[r,k]: `rows` rows of K numbers, one behind the other. */
ISA_BODY void BODY(pack_rows)(int level, T *restrict out, const float *restrict x, size_t ldx, size_t rows, size_t K) {
    (void)level;
    for (size_t r = 0; r < rows; r++) {
#pragma omp simd
        for (size_t k = 0; k < K; k++) out[r * K + k] = (T)x[r * ldx + k];
    }
}
ISA_CLONES(TN(pack_rows), (T *out, const float *x, size_t ldx, size_t rows, size_t K), out, x, ldx, rows, K)

/* out[k,r] = x[r,k]: `rows` rows of K numbers become the columns of out [K, LANES]. */
static void TN(pack_lanes)(T *out, const float *x, size_t ldx, size_t rows, size_t K) {
    for (size_t k = 0; k < K; k++)
        for (size_t r = 0; r < rows; r++) out[k * LANES + r] = (T)x[r * ldx + k];
}

/* One row of a panel. Arrays are assigned where nothing is converted: of a loop compilers make a call of memcpy, which costs more than the copy. */
ISA_BODY void TN(copy_row)(T *restrict to, const float *restrict from, const size_t NR) {
    typedef struct {
        float at[8];
    } Eight;
    if (sizeof(T) == sizeof(float)) {
        for (size_t i = 0; i < NR; i += 8) *(Eight *)(void *)(to + i) = *(const Eight *)(const void *)(from + i);
    } else {
#pragma omp simd
        for (size_t i = 0; i < NR; i++) to[i] = (T)from[i];
    }
}

/* out: rows k0.. of panels of [rows][NR] from w [K,O], row stride ldw; the last panel, if not full, has panel_width(...) columns. */
ISA_BODY void BODY(pack_panels)(int level, T *restrict out, size_t panel_rows, size_t k0, const float *restrict w, size_t ldw, size_t K, size_t O) {
    const size_t NR = panel_bytes(level) / sizeof(T);
    for (size_t k = 0; k < K; k++) {
        size_t j = 0;
        for (; j + NR <= O; j += NR) TN(copy_row)(out + j * panel_rows + (k0 + k) * NR, w + k * ldw + j, NR);
        if (j == O) continue;
        const size_t width = panel_width(O - j, NR);
        for (size_t i = 0; i < width; i++) out[j * panel_rows + (k0 + k) * width + i] = i < O - j ? (T)w[k * ldw + j + i] : 0;
    }
}
ISA_CLONES(TN(pack_panels), (T *out, size_t panel_rows, size_t k0, const float *w, size_t ldw, size_t K, size_t O), out, panel_rows, k0, w, ldw, K, O)

/* ---- the kernel ---- */

/* How x lies: x[r,k] at r*ldx + k (packed rows), or at k*ldx + r (lanes: one column of x per row of the tile). */
#define X_AT(lanes, ldx, r, k) ((lanes) ? (k) * (ldx) + (r) : (r) * (ldx) + (k))

/* s[r,j] (+)= S over k of x[r,k] * w[k,j], for r < M, j < NR; M, NR, lanes are constants wherever this is inlined. The sums
 * start from +0 if `first`, else from what s holds, and go on as if they had never stopped. */
ISA_BODY void TN(tile)(int level, const size_t M, const size_t NR, const bool lanes, T *restrict s, bool first, const T *restrict x,
                       size_t ldx, const T *restrict w, size_t ldw, size_t K) {
    T sum[TILE_ROWS][PANEL_BYTES_MAX / sizeof(T)];
    for (size_t r = 0; r < M; r++) {
#pragma omp simd
        for (size_t j = 0; j < NR; j++) sum[r][j] = first ? 0 : s[r * NR + j];
    }
    for (size_t k = 0; k < K; k++)
        for (size_t r = 0; r < M; r++) {
            const T a = x[X_AT(lanes, ldx, r, k)];
#pragma omp simd
            for (size_t j = 0; j < NR; j++) sum[r][j] = MAC(level, a, w[k * ldw + j], sum[r][j]);
        }
    for (size_t r = 0; r < M; r++) {
#pragma omp simd
        for (size_t j = 0; j < NR; j++) s[r * NR + j] = sum[r][j];
    }
}

/* The same for `rows` of 1..6 and `cols` of NR, NR/2 or NR/4. */
#define ROWS(M)                                                                                   \
    case M:                                                                                       \
        if (cols == NR) TN(tile)(level, M, NR, LANED, s, first, x, ldx, w, ldw, K);               \
        else if (cols == NR / 2) TN(tile)(level, M, NR / 2, LANED, s, first, x, ldx, w, ldw, K);  \
        else TN(tile)(level, M, NR / 4, LANED, s, first, x, ldx, w, ldw, K);                      \
        break;
ISA_BODY void BODY(multiply)(int level, T *s, bool first, const T *x, size_t ldx, const T *w, size_t ldw, size_t K, size_t rows,
                             size_t cols) {
    const size_t NR = panel_bytes(level) / sizeof(T);
#define LANED false
    switch (rows) { ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) }
#undef LANED
}
ISA_BODY void BODY(multiply_lanes)(int level, T *s, bool first, const T *x, size_t ldx, const T *w, size_t ldw, size_t K, size_t rows,
                                   size_t cols) {
    const size_t NR = panel_bytes(level) / sizeof(T);
#define LANED true
    switch (rows) { ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) }
#undef LANED
}
#undef ROWS
ISA_CLONES(TN(multiply), (T *s, bool first, const T *x, size_t ldx, const T *w, size_t ldw, size_t K, size_t rows, size_t cols),
           s, first, x, ldx, w, ldw, K, rows, cols)
ISA_CLONES(TN(multiply_lanes), (T *s, bool first, const T *x, size_t ldx, const T *w, size_t ldw, size_t K, size_t rows, size_t cols),
           s, first, x, ldx, w, ldw, K, rows, cols)

/* One row over `panels` full panels of w as it lies, side by side: K streams through memory, which processors foresee better than we ask for them. */
ISA_BODY void BODY(multiply_row)(int level, T *s, bool first, const T *x, const T *w, size_t ldw, size_t K, size_t panels) {
    const size_t NR = panel_bytes(level) / sizeof(T);
    for (size_t p = 0; p < panels; p++) TN(tile)(level, 1, NR, false, s + p * NR, first, x, 0, w + p * NR, ldw, K);
}
ISA_CLONES(TN(multiply_row), (T *s, bool first, const T *x, const T *w, size_t ldw, size_t K, size_t panels), s, first, x, w, ldw, K, panels)

/* ---- linear ---- */

/* y = RN32(s + b) for one finished tile [rows, cols], of which `valid` columns exist. */
ISA_BODY void BODY(finish)(int level, float *restrict y, size_t ldy, const T *restrict s, const float *restrict b, size_t rows,
                              size_t cols, size_t valid) {
    (void)level;
    for (size_t r = 0; r < rows; r++) {
        if (b) {
#pragma omp simd
            for (size_t j = 0; j < valid; j++) y[r * ldy + j] = (float)(s[r * cols + j] + (T)b[j]);
        } else {
#pragma omp simd
            for (size_t j = 0; j < valid; j++) y[r * ldy + j] = (float)s[r * cols + j];
        }
    }
}
ISA_CLONES(TN(finish), (float *y, size_t ldy, const T *s, const float *b, size_t rows, size_t cols, size_t valid),
           y, ldy, s, b, rows, cols, valid)

/* A block of w: panels [p0,p1), rows k in [k0,k0+K), for the tiles [t0,t1) of x. The sums wait in s, panel by panel within a tile. next: where
 * in w the block begins that follows. */
typedef struct {
    size_t p0, p1, t0, t1, k0, K, next;
} TN(Block);

/* Tile t over one panel. ldw: from row to row of the panel. */
static void TN(linear_tile)(const Linear *l, const TN(Block) *b, const T *xp, const T *panel, size_t ldw, T *sums, size_t p, size_t t) {
    const size_t NR = panel_bytes(isa_level) / sizeof(T), n = t * TILE_ROWS, j = p * NR;
    const size_t rows = min_size(TILE_ROWS, l->N - n), valid = min_size(NR, l->O - j), cols = panel_width(valid, NR);
    T *s = sums + ((t - b->t0) * (b->p1 - b->p0) + (p - b->p0)) * TILE_ROWS * NR;
    TN(multiply)(s, b->k0 == 0, xp + b->k0 * l->N + n * b->K, b->K, panel, ldw, b->K, rows, cols);
    if (b->k0 + b->K == l->C) TN(finish)(l->y + n * l->O + j, l->O, s, l->b ? l->b + j : NULL, rows, cols, valid);
}

/* One row, full panels of the kernel's own numbers; returns how many those are. */
static size_t TN(linear_row)(const Linear *l, const TN(Block) *b, const T *xp, T *sums) {
    const size_t NR = panel_bytes(isa_level) / sizeof(T), j = b->p0 * NR;
    if (sizeof(T) != sizeof(float) || l->N != 1) return 0;
    const size_t panels = min_size(b->p1, l->O / NR) - b->p0;
    TN(multiply_row)(sums, b->k0 == 0, xp + b->k0, (const T *)(const void *)(l->w + b->k0 * l->O + j), l->O, b->K, panels);
    if (b->k0 + b->K == l->C) TN(finish)(l->y + j, l->O, sums, l->b ? l->b + j : NULL, 1, panels * NR, panels * NR);
    return panels;
}

/* Few rows: full panels of the kernel's own numbers are read where they lie, what comes soon is asked for. */
static void TN(linear_few)(const Linear *l, const TN(Block) *b, const T *xp, T *wp, T *sums) {
    const size_t NR = panel_bytes(isa_level) / sizeof(T), O = l->O;
    for (size_t p = b->p0 + TN(linear_row)(l, b, xp, sums); p < b->p1; p++) {
        const size_t at = b->k0 * O + p * NR, valid = min_size(NR, O - p * NR);
        const bool lies = sizeof(T) == sizeof(float) && valid == NR;
        if (lies) prefetch_share(l->w, l->C * O, at + AHEAD, O, b->K, NR, 0, 1);
        else TN(pack_panels)(wp, b->K, 0, l->w + at, O, b->K, valid);
        for (size_t t = b->t0; t < b->t1; t++)
            TN(linear_tile)(l, b, xp, lies ? (const T *)(const void *)(l->w + at) : wp, lies ? O : panel_width(valid, NR), sums, p, t);
    }
}

/* Many rows: pack a strip of panels, then over each of its panels pass the tiles, a group at a time. */
static void TN(linear_many)(const Linear *l, const TN(Block) *b, const T *xp, T *wp, T *sums) {
    const size_t NR = panel_bytes(isa_level) / sizeof(T), O = l->O, tiles = b->t1 - b->t0;
    for (size_t q = b->p0, end; q < b->p1; q = end) {
        end = min_size(q + l->strip, b->p1);
        const size_t from = q * NR, to = min_size(end * NR, O), steps = (end - q) * tiles;
        TN(pack_panels)(wp, b->K, 0, l->w + b->k0 * O + from, O, b->K, to - from);
        size_t step = 0;
        for (size_t g = b->t0; g < b->t1; g += l->group)
            for (size_t p = q; p < end; p++)
                for (size_t t = g; t < min_size(g + l->group, b->t1); t++, step++) {
                    prefetch_share(l->w, l->C * O, b->next, O, b->K, to - from, step, steps);
                    TN(linear_tile)(l, b, xp, wp + (p * NR - from) * b->K, panel_width(min_size(NR, O - p * NR), NR), sums, p, t);
                }
    }
}

/* Panels [p0,p1), tiles [t0,t1) of one linear, `range` panels at a time. xp: all of x, packed; scratch: own of linear_pass. */
static void TN(linear_job)(const Linear *l, const T *xp, T *scratch, size_t p0, size_t p1, size_t t0, size_t t1) {
    const size_t NR = panel_bytes(isa_level) / sizeof(T), C = l->C;
    T *sums = scratch + l->block * l->strip * NR;
    for (size_t p = p0; p < p1; p += l->range)
        for (size_t k0 = 0; k0 == 0 || k0 < C; k0 += l->block) {
            const size_t K = min_size(l->block, C - k0), end = min_size(p + l->range, p1);
            const TN(Block) b = {p, end, t0, t1, k0, K, k0 + K < C ? (k0 + K) * l->O + p * NR : end * NR};
            if (t1 - t0 <= 2) TN(linear_few)(l, &b, xp, scratch, sums);
            else TN(linear_many)(l, &b, xp, scratch, sums);
        }
}

/* One pass over at most PASS_ROWS rows: pack x, then share tiles and panels out over the threads. */
static void TN(linear_pass)(const Linear *l) {
    const size_t NR = panel_bytes(isa_level) / sizeof(T), panels = divide_up(l->O, NR), tiles = divide_up(l->N, TILE_ROWS);
    const size_t parts = l->parts, jobs = l->groups * parts;
    const size_t x_size = round_up(l->N * l->C, 1024);
    const size_t own = round_up(l->block * l->strip * NR + l->range * divide_up(tiles, parts) * TILE_ROWS * NR, 1024);
    T *xp = workspace((x_size + own * (size_t)threads) * sizeof(T));
#pragma omp parallel for num_threads(threads) schedule(static) if (worth_threads(l->N * l->C))
    for (size_t t = 0; t < tiles; t++) {
        const size_t n = t * TILE_ROWS, rows = min_size(TILE_ROWS, l->N - n);
        for (size_t k0 = 0; k0 < l->C; k0 += l->block)
            TN(pack_rows)(xp + k0 * l->N + n * min_size(l->block, l->C - k0), l->x + n * l->C + k0, l->C, rows, min_size(l->block, l->C - k0));
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (worth_threads(l->N * l->C * l->O))
    for (size_t job = 0; job < jobs; job++) {
        const size_t g = job / parts, part = job % parts;
        TN(linear_job)(l, xp, xp + x_size + own * thread_index(), panels * g / l->groups, panels * (g + 1) / l->groups, tiles * part / parts,
                       tiles * (part + 1) / parts);
    }
}

/* ---- one attention head ---- */

/* Keys and values of one head as the kernel reads them, in one or two runs (a past and a present). k [n,D], row stride ldk. v: if packed,
 * panels [n,NR] one behind the other; else [n,D] as it lies, row stride ldv. */
typedef struct {
    const T *k, *v;
    size_t n, ldk, ldv;
    bool packed;
} TN(Run);

/* to[j,i] = RN32(s_ji * scale [+ bias_ij]) for `rows` keys and `cols` queries, of which `valid` exist; bias: that of the first of both. */
ISA_BODY void BODY(scale_scores)(int level, float *restrict to, const T *restrict s, double scale, const float *bias, ptrdiff_t ldbias, size_t rows,
                                 size_t cols, size_t valid) {
    (void)level;
    for (size_t j = 0; j < rows; j++) {
#pragma omp simd
        for (size_t i = 0; i < cols; i++) to[j * LANES + i] = (float)((double)s[j * cols + i] * scale);
        if (!bias) continue;
        if (ldbias == -1) {
#pragma omp simd
            for (size_t i = 0; i < valid; i++) to[j * LANES + i] = (float)((double)s[j * cols + i] * scale + (double)*(bias + j - i));
        } else {
#pragma omp simd
            for (size_t i = 0; i < valid; i++) to[j * LANES + i] = (float)((double)s[j * cols + i] * scale + (double)bias[(ptrdiff_t)i * ldbias + (ptrdiff_t)j]);
        }
    }
}
ISA_CLONES(TN(scale_scores), (float *to, const T *s, double scale, const float *bias, ptrdiff_t ldbias, size_t rows, size_t cols, size_t valid),
           to, s, scale, bias, ldbias, rows, cols, valid)

/* st[j,i] = RN32(S(q_i, k_j) * scale [+ bias_ij]) for the queries i0.. of one block, those of one run's keys, which begin at key j, that are below Tk. st,
 * like the packed queries qp [D, LANES], has a query in each lane, so that the softmax over j runs on all queries at once. */
static void TN(scores)(float *st, const Attention *h, const TN(Run) *run, size_t j, size_t Tk, const T *qp, T *s, size_t i0, size_t lanes) {
    const size_t cols = min_size(panel_bytes(isa_level) / sizeof(T), LANES);
    const size_t n = Tk > j ? min_size(run->n, Tk - j) : 0;
    for (size_t j0 = 0; j0 < n; j0 += TILE_ROWS) {
        const size_t rows = min_size(TILE_ROWS, n - j0);
        for (size_t c = 0; c < LANES; c += cols) {
            const size_t valid = lanes > c ? min_size(cols, lanes - c) : 0;
            const float *bias = h->bias && valid ? h->bias + (ptrdiff_t)(i0 + c) * h->ldbias + (ptrdiff_t)(j + j0) : NULL;
            TN(multiply)(s, true, run->k + j0 * run->ldk, run->ldk, qp + c, LANES, h->D, rows, cols);
            TN(scale_scores)(st + (j + j0) * LANES + c, s, h->scale, bias, h->ldbias, rows, cols, valid);
        }
    }
}

/* p = RN32(e / Z), widened to T. */
ISA_BODY void BODY(divide_lanes)(int level, T *restrict pt, const float *restrict e, const double *restrict Z, size_t Tk) {
    (void)level;
    for (size_t j = 0; j < Tk; j++) {
#pragma omp simd
        for (size_t i = 0; i < LANES; i++) pt[j * LANES + i] = (float)((double)e[j * LANES + i] / Z[i]);
    }
}
ISA_CLONES(TN(divide_lanes), (T *pt, const float *e, const double *Z, size_t Tk), pt, e, Z, Tk)

/* s [rows, cols] (+)= S(p, v) over the keys [from,to): the columns of v from d on, pt the lanes of these rows. */
static void TN(gather)(T *s, const TN(Run) *run, const T *pt, size_t d, size_t from, size_t to, size_t rows, size_t cols) {
    for (size_t r = 0, j = 0; r < 2; j += run[r++].n) {
        const size_t a = from > j ? from : j, b = min_size(to, j + run[r].n);
        const T *v = run[r].packed ? run[r].v + d * run[r].n : run[r].v + d;
        const size_t ldv = run[r].packed ? cols : run[r].ldv;
        if (a < b || (from == to && r == 0)) TN(multiply_lanes)(s, a == 0, pt + a * LANES, LANES, v + (a - j) * ldv, ldv, b > a ? b - a : 0, rows, cols);
    }
}

/* ctx_i = RN32(S(p_i, v)) for the queries of one block, pt [keys, LANES], over the keys each query attends to. */
static void TN(context)(const Attention *h, const TN(Run) *run, const T *pt, T *s, size_t i0, size_t lanes) {
    const size_t NR = panel_bytes(isa_level) / sizeof(T);
    for (size_t d = 0; d < h->D; d += NR) {
        const size_t valid = min_size(NR, h->D - d), cols = panel_width(valid, NR);
        for (size_t r0 = 0; r0 < lanes; r0 += TILE_ROWS) {
            const size_t rows = min_size(TILE_ROWS, lanes - r0), K = keys_of(h, i0 + r0);
            TN(gather)(s, run, pt + r0, d, 0, K, rows, cols);
            for (size_t r = 1; r < rows; r++) { /* a later query may see some keys more */
                const size_t all = keys_of(h, i0 + r0 + r);
                if (all > K) TN(gather)(s + r * cols, run, pt + r0 + r, d, K, all, 1, cols);
            }
            TN(finish)(h->ctx + (i0 + r0) * h->ldc + d, h->ldc, s, NULL, rows, cols, valid);
        }
    }
}

/* Copy one run's keys and values, so that many queries read them in order. */
static TN(Run) TN(pack_run)(const Attention *h, T *k, T *v) {
    for (size_t part = 0; part < 2; part++) {
        const size_t n = part ? h->Tk - h->Tp : h->Tp, from = part ? h->Tp : 0, ldk = part ? h->ldk : h->ldp, ldv = part ? h->ldv : h->ldp;
        if (n) TN(pack_rows)(k + from * h->D, part ? h->k : h->past_k, ldk, n, h->D);
        if (n) TN(pack_panels)(v, h->Tk, from, part ? h->v : h->past_v, ldv, n, h->D);
    }
    return (TN(Run)){k, v, h->Tk, h->D, 0, true};
}

/* Few queries read keys and values where they lie, if those are of type T already and no panel of v is cut: false if they must be packed. */
static bool TN(runs_as_they_lie)(TN(Run) run[2], const Attention *h, size_t NR) {
    if (sizeof(T) != sizeof(float) || h->Tq > TILE_ROWS || panel_width(h->D % NR, NR) != h->D % NR) return false;
    run[0] = (TN(Run)){(const T *)(const void *)h->past_k, (const T *)(const void *)h->past_v, h->Tp, h->ldp, h->ldp, false};
    run[1] = (TN(Run)){(const T *)(const void *)h->k, (const T *)(const void *)h->v, h->Tk - h->Tp, h->ldk, h->ldv, false};
    return true;
}

/* One query alone: lanes would stand empty, so its keys take their place, ONE_KEYS chains side by side. s[j] as in scores(), for the n keys of one run. */
ISA_BODY void TN(dots)(int level, const size_t keys, T *restrict sum, const float *restrict q, const float *restrict k, size_t ldk, size_t D) {
    T chain[ONE_KEYS] = {0};
    for (size_t d = 0; d < D; d++)
        for (size_t j = 0; j < keys; j++) chain[j] = MAC(level, (T)q[d], (T)k[j * ldk + d], chain[j]);
    for (size_t j = 0; j < keys; j++) sum[j] = chain[j];
}
ISA_BODY void BODY(scores_one)(int level, float *restrict s, const float *q, const float *k, size_t ldk, size_t n, size_t D, double scale, const float *bias) {
    for (size_t j = 0; j < n; j += ONE_KEYS) {
        const size_t keys = min_size(ONE_KEYS, n - j);
        T sum[ONE_KEYS];
        if (keys == ONE_KEYS) TN(dots)(level, ONE_KEYS, sum, q, k + j * ldk, ldk, D);
        else TN(dots)(level, keys, sum, q, k + j * ldk, ldk, D);
        for (size_t i = 0; i < keys; i++) s[j + i] = (float)(bias ? (double)sum[i] * scale + (double)bias[j + i] : (double)sum[i] * scale);
    }
}
ISA_CLONES(TN(scores_one), (float *s, const float *q, const float *k, size_t ldk, size_t n, size_t D, double scale, const float *bias),
           s, q, k, ldk, n, D, scale, bias)

/* sum[d] goes on as S(p, v) over the n keys of one run, for the D columns of v: NR at once, whose sums stay in registers. */
ISA_BODY void TN(blend)(int level, const size_t cols, T *restrict sum, const float *restrict p, const float *restrict v, size_t ldv, size_t n) {
    T chain[PANEL_BYTES_MAX / sizeof(T)];
    for (size_t d = 0; d < cols; d++) chain[d] = sum[d];
    for (size_t j = 0; j < n; j++) {
        const T a = (T)p[j];
#pragma omp simd
        for (size_t d = 0; d < cols; d++) chain[d] = MAC(level, a, (T)v[j * ldv + d], chain[d]);
    }
    for (size_t d = 0; d < cols; d++) sum[d] = chain[d];
}
ISA_BODY void BODY(context_one)(int level, T *sum, const float *p, const float *v, size_t ldv, size_t n, size_t D) {
    const size_t NR = panel_bytes(level) / sizeof(T);
    size_t d = 0;
    for (; d + NR <= D; d += NR) TN(blend)(level, NR, sum + d, p, v + d, ldv, n);
    if (d < D) TN(blend)(level, D - d, sum + d, p, v + d, ldv, n);
}
ISA_CLONES(TN(context_one), (T *sum, const float *p, const float *v, size_t ldv, size_t n, size_t D), sum, p, v, ldv, n, D)

/* A head of one query. */
static void TN(attention_one)(const Attention *h, T *scratch) {
    const size_t keys = keys_of(h, 0), past = min_size(h->Tp, keys);
    T *sum = scratch;
    float *s = (float *)(void *)(sum + h->D);
    if (past) TN(scores_one)(s, h->q, h->past_k, h->ldp, past, h->D, h->scale, h->bias);
    TN(scores_one)(s + past, h->q, h->k, h->ldk, keys - past, h->D, h->scale, h->bias ? h->bias + past : NULL);
    if (keys) softmax_group(s, s, 1, keys);
    for (size_t d = 0; d < h->D; d++) sum[d] = 0;
    if (past) TN(context_one)(sum, s, h->past_v, h->ldp, past, h->D);
    TN(context_one)(sum, s + past, h->v, h->ldv, keys - past, h->D);
    for (size_t d = 0; d < h->D; d++) h->ctx[d] = (float)sum[d];
}

/* Queries [i0,i1) of one head. scratch: as many numbers as attention() counts. */
static void TN(attention_job)(const Attention *h, T *scratch, size_t i0, size_t i1) {
    if (h->Tq == 1) {
        TN(attention_one)(h, scratch);
        return;
    }
    const size_t NR = panel_bytes(isa_level) / sizeof(T), D = h->D;
    T *kp = scratch, *vp = kp + h->Tk * D, *qp = vp + h->Tk * round_up(D, NR), *s = qp + D * LANES;
    T *pt = s + TILE_ROWS * NR;
    float *st = (float *)(void *)(pt + h->Tk * LANES);
    TN(Run) run[2] = {{0}};
    if (!TN(runs_as_they_lie)(run, h, NR)) run[0] = TN(pack_run)(h, kp, vp);
    for (; i0 < i1; i0 += LANES) {
        const size_t lanes = min_size(LANES, i1 - i0), Tk = keys_of(h, i0 + lanes - 1);
        memset(qp, 0, D * LANES * sizeof(T));
        TN(pack_lanes)(qp, h->q + i0 * h->ldq, h->ldq, lanes, D);
        TN(scores)(st, h, &run[0], 0, Tk, qp, s, i0, lanes);
        TN(scores)(st, h, &run[1], run[0].n, Tk, qp, s, i0, lanes);
        size_t keys[LANES];
        for (size_t i = 0; i < LANES; i++) keys[i] = keys_of(h, i0 + min_size(i, lanes - 1));
        double Z[LANES];
        exp_lanes(st, Z, keys, Tk);
        TN(divide_lanes)(pt, st, Z, Tk);
        TN(context)(h, run, pt, s, i0, lanes);
    }
}
