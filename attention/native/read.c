/* Reading what a bank keeps of memories: the mass that queries put on routing keys of eight bits, and KV of
   four or eight bits as the numbers that attention multiplies. */
#define _GNU_SOURCE
#include "attention.h"
#include "team.h"
#include "vectors.h"

#ifdef __clang__
#define SWAP_PAIRS(v) __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6)
#else
#define SWAP_PAIRS(v) __builtin_shuffle(v, (i8x){1, 0, 3, 2, 5, 4, 7, 6})
#endif

enum { WIDE = 4, FEW = 6, MOST_DIM = 512 }; /* vectors of rows, tokens and channels at once, at most */

/* One span of a memory's routing keys. */
typedef struct {
    const int8_t *codes; /* of its first token, [tokens, stride] */
    const float *scale;  /* [dim] */
    int32_t tokens, stride;
} Keys;

typedef struct {
    const Keys *keys;     /* [spans] */
    const float *queries; /* [dim, rows], scaled */
    float *sums, *tops;   /* [spans, rows] */
    uint8_t *own;         /* room of each member */
    size_t own_bytes;
    int32_t spans, rows, dim; /* rows are a multiple of eight */
} Mass;

/* Scores of `count` tokens for 8 `vectors` rows. */
INLINE void scores_of(const float *queries, const float (*key)[MOST_DIM], int dim, int count, int vectors,
                      float *scores) {
    f8 sums[FEW][WIDE];
    for (int t = 0; t < count; t++)
        for (int v = 0; v < vectors; v++) sums[t][v] = all8(0);
    for (int d = 0; d < dim; d++) {
        for (int v = 0; v < vectors; v++) {
            f8 query = load8(queries + (size_t)d * 8 * WIDE + 8 * v);
            for (int t = 0; t < count; t++) sums[t][v] = fma8(query, all8(key[t][d]), sums[t][v]);
        }
    }
    for (int t = 0; t < count; t++)
        for (int v = 0; v < vectors; v++) store8(scores + (size_t)t * 8 * WIDE + 8 * v, sums[t][v]);
}

/* A span's highest score of each row, and the sum of what e makes of the others relative to it. */
INLINE void span_mass(const Keys *keys, const float *queries, int dim, int vectors, float *scores, float *sums,
                      float *tops) {
    float key[FEW][MOST_DIM];
    const int few = vectors <= 2 ? FEW : FEW / 2; /* sums that fit the registers, and hide how long each takes */
    for (int first = 0; first < keys->tokens; first += few) {
        int count = keys->tokens - first < few ? keys->tokens - first : few;
        for (int t = 0; t < count; t++) {
            const int8_t *codes = keys->codes + (size_t)(first + t) * keys->stride;
            for (int d = 0; d < dim; d++) key[t][d] = codes[d];
        }
        float *to = scores + (size_t)first * 8 * WIDE;
        if (count == few)
            scores_of(queries, key, dim, few, vectors, to);
        else
            for (int t = 0; t < count; t++) scores_of(queries, key + t, dim, 1, vectors, to + t * 8 * WIDE);
    }
    for (int v = 0; v < vectors; v++) {
        f8 top = all8(-INFINITY), sum = all8(0);
        for (int t = 0; t < keys->tokens; t++) top = max8(load8(scores + (size_t)t * 8 * WIDE + 8 * v), top);
        for (int t = 0; t < keys->tokens; t++) sum += exp8(load8(scores + (size_t)t * 8 * WIDE + 8 * v) - top);
        store8(tops + 8 * v, top);
        store8(sums + 8 * v, sum);
    }
}

static void run_mass(Team *team, int member, void *given) {
    Mass *mass = given;
    float *queries = (float *)(mass->own + (size_t)member * mass->own_bytes); /* [dim, 8 WIDE] */
    float *scores = queries + (size_t)mass->dim * 8 * WIDE;
    for (int span; (span = take(team, 0, 1)) < mass->spans;) {
        const Keys *keys = &mass->keys[span];
        for (int row = 0; row < mass->rows; row += 8 * WIDE) {
            int rows = mass->rows - row < 8 * WIDE ? mass->rows - row : 8 * WIDE;
            for (int d = 0; d < mass->dim; d++)
                for (int r = 0; r < rows; r += 8)
                    store8(queries + (size_t)d * 8 * WIDE + r,
                           load8(mass->queries + (size_t)d * mass->rows + row + r) * all8(keys->scale[d]));
            float *sums = mass->sums + (size_t)span * mass->rows + row;
            float *tops = mass->tops + (size_t)span * mass->rows + row;
            switch (rows / 8) { /* a number the compiler knows keeps sums in registers */
            case 1: span_mass(keys, queries, mass->dim, 1, scores, sums, tops); break;
            case 2: span_mass(keys, queries, mass->dim, 2, scores, sums, tops); break;
            case 3: span_mass(keys, queries, mass->dim, 3, scores, sums, tops); break;
            default: span_mass(keys, queries, mass->dim, WIDE, scores, sums, tops);
            }
        }
    }
}

/* `tops` and `sums [spans, rows]` of `queries [dim, rows]`. 0, or -1 when memory is short or a key too long. */
int mnemos_route_mass(const Keys *keys, int spans, const float *queries, int rows, int dim, float *sums,
                      float *tops, int threads) {
    if (dim > MOST_DIM || rows % 8) return -1;
    int longest = 0;
    for (int s = 0; s < spans; s++) longest = keys[s].tokens > longest ? keys[s].tokens : longest;
    Mass mass = {keys, queries, sums, tops, NULL, 0, spans, rows, dim};
    mass.own_bytes = ((size_t)dim + (size_t)longest) * 8 * WIDE * sizeof(float);
    threads = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    void *room;
    if (posix_memalign(&room, 64, (size_t)threads * mass.own_bytes)) return -1;
    mass.own = room;
    int failed = with_team(threads, 1, run_mass, &mass);
    free(room);
    return failed;
}

/* KV of one span as `memory_codec.py` lays it out, and where its numbers go. */
typedef struct {
    const uint8_t *k_codes, *k_scales, *v_codes, *v_scales; /* may lie at any address */
    void *k, *v;                                            /* of each head [tokens, dim] */
    int32_t bits, heads, tokens, dim;
    int64_t stride; /* numbers from one head to the next */
    int32_t value_group, is_bf16;
    const float *turns; /* NULL, or [layers, dim]: cosine and sine of what each pair of K is turned on by */
    int32_t kv_heads;
} Packed;

static float half_of(const uint8_t *from) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
    if ((half & 0x7c00) != 0x7c00) return half_to_float(half);
    float value = half & 0x3ff ? NAN : INFINITY;
    return half & 0x8000 ? -value : value;
}

/* A scale as it is multiplied: in the format of the result. */
static float factor_of(const uint8_t *from, int is_bf16) {
    float value = half_of(from);
    uint16_t rounded;
    if (!is_bf16) return value;
    store_kv(&rounded, 0, value, 1);
    return kv1(&rounded, 0, 1);
}

/* One token: `to[d] = low[d] + code[d] scale[d]`. */
INLINE void expand(const uint8_t *restrict codes, const float *restrict scale, const float *restrict low, int dim,
                   int bits, float *restrict to) {
    if (bits == 8) {
        for (int d = 0; d < dim; d++) to[d] = low[d] + (float)codes[d] * scale[d];
        return;
    }
    int half = dim / 2;
    for (int d = 0; d < half; d++) to[d] = low[d] + (float)(codes[d] & 15) * scale[d];
    for (int d = 0; d < half; d++) to[half + d] = low[half + d] + (float)(codes[d] >> 4) * scale[half + d];
}

/* The same, where the halves of a token have a scale each and four bits a code. */
INLINE void expand_halves(const uint8_t *restrict codes, const float *scale, const float *low, int half,
                          float *restrict to) {
    float first = scale[0], second = scale[half], least = low[0], fewest = low[half];
    for (int d = 0; d < half; d++) to[d] = least + (float)(codes[d] & 15) * first;
    for (int d = 0; d < half; d++) to[half + d] = fewest + (float)(codes[d] >> 4) * second;
}

static void expand_to(const uint8_t *codes, const float *scale, const float *low, const Packed *kv, void *to,
                      size_t at) {
    float wide[MOST_DIM], *into = kv->is_bf16 ? wide : (float *)to + at;
    if (kv->dim == 64 && kv->bits == 4) /* a number the compiler knows */
        expand(codes, scale, low, 64, 4, into);
    else
        expand(codes, scale, low, kv->dim, kv->bits, into);
    if (kv->is_bf16)
        for (int d = 0; d < kv->dim; d++) store_kv(to, at + d, wide[d], 1);
}

/* Groups of tokens that share the scales of K: 32 each, the last between 16 and 47. */
static int groups_of_tokens(int tokens) {
    int full = tokens / 32, rest = tokens % 32;
    return full + (rest && !(full && rest < 16));
}

/* What the numbers of a head are multiplied by, and what their neighbours are. */
typedef struct {
    float along[MOST_DIM], across[MOST_DIM];
} Turn;

static Turn turn_of(const float *turns, int dim) {
    Turn turn;
    for (int d = 0; d < dim; d += 2) {
        turn.along[d] = turn.along[d + 1] = turns[d];
        turn.across[d] = -turns[d + 1];
        turn.across[d + 1] = turns[d + 1];
    }
    return turn;
}

static void turn_on(float *x, const Turn *turn, int dim) {
    int d = 0;
    for (; d + 8 <= dim; d += 8) {
        f8 own = load8(x + d), other = SWAP_PAIRS(own);
        store8(x + d, own * load8(turn->along + d) + other * load8(turn->across + d));
    }
    for (; d < dim; d += 2) {
        float own = x[d];
        x[d] = own * turn->along[d] + x[d + 1] * turn->across[d];
        x[d + 1] = x[d + 1] * turn->along[d + 1] + own * turn->across[d + 1];
    }
}

/* Keys `[layers, kv_heads, tokens, dim]`, `stride` numbers from one head to the next, turned on by `turns
   [layers, dim]`: cosine and sine of each pair. 0, or -1 for heads too wide. */
int mnemos_turn_keys(float *keys, int64_t stride, int layers, int kv_heads, int tokens, int dim,
                     const float *turns) {
    if (dim > MOST_DIM) return -1;
    for (int head = 0; head < layers * kv_heads; head++) {
        Turn turn = turn_of(turns + (size_t)(head / kv_heads) * dim, dim);
        for (int t = 0; t < tokens; t++) turn_on(keys + (size_t)head * stride + (size_t)t * dim, &turn, dim);
    }
    return 0;
}

static void expand_keys(const Packed *kv, int head) {
    int dim = kv->dim, tokens = kv->tokens, groups = groups_of_tokens(tokens);
    size_t row = (size_t)dim * kv->bits / 8, lows = (size_t)kv->heads * groups * dim * 2;
    float scale[MOST_DIM], low[MOST_DIM];
    int is_turned = kv->turns && !kv->is_bf16;
    Turn turn;
    if (is_turned) turn = turn_of(kv->turns + (size_t)(head / kv->kv_heads) * dim, dim);
    for (int g = 0; g < groups; g++) {
        const uint8_t *from = kv->k_scales + ((size_t)head * groups + g) * dim * 2;
        for (int d = 0; d < dim; d++) {
            scale[d] = factor_of(from + 2 * d, kv->is_bf16);
            low[d] = factor_of(from + lows + 2 * d, kv->is_bf16);
        }
        int end = g == groups - 1 ? tokens : 32 * (g + 1);
        for (int t = 32 * g; t < end; t++) {
            size_t at = (size_t)head * tokens + t;
            size_t to = (size_t)head * kv->stride + (size_t)t * dim;
            expand_to(kv->k_codes + at * row, scale, low, kv, kv->k, to);
            if (is_turned) turn_on((float *)kv->k + to, &turn, dim);
        }
    }
}

static void expand_values(const Packed *kv, int head) {
    int dim = kv->dim, group = kv->value_group, groups = dim / group;
    size_t row = (size_t)dim * kv->bits / 8, lows = (size_t)kv->heads * kv->tokens * groups * 2;
    float scale[MOST_DIM], low[MOST_DIM];
    int in_halves = dim == 64 && group == 32 && kv->bits == 4 && !kv->is_bf16;
    for (int t = 0; t < kv->tokens; t++) {
        size_t at = (size_t)head * kv->tokens + t, to = (size_t)head * kv->stride + (size_t)t * dim;
        const uint8_t *from = kv->v_scales + at * groups * 2;
        for (int g = 0; g < groups; g++) {
            float one = factor_of(from + 2 * g, kv->is_bf16), least = factor_of(from + lows + 2 * g, kv->is_bf16);
            scale[g * group] = one, low[g * group] = least;
            if (!in_halves)
                for (int d = 1; d < group; d++) scale[g * group + d] = one, low[g * group + d] = least;
        }
        if (in_halves) {
            expand_halves(kv->v_codes + at * row, scale, low, 32, (float *)kv->v + to);
            continue;
        }
        expand_to(kv->v_codes + at * row, scale, low, kv, kv->v, to);
    }
}

static void run_expand(Team *team, int member, void *given) {
    const Packed *kv = given;
    (void)member;
    for (int piece; (piece = take(team, 0, 1)) < 2 * kv->heads;)
        if (piece < kv->heads)
            expand_keys(kv, piece);
        else
            expand_values(kv, piece - kv->heads);
}

/* Fills `k` and `v`. 0, or -1 when memory is short or a head too wide. */
int mnemos_expand_kv(const Packed *kv, int threads) {
    if (kv->dim > MOST_DIM || (kv->bits == 4 && kv->dim % 2)) return -1;
    return with_team(threads, 1, run_expand, (void *)kv);
}

/* Of the structures that a caller fills, in bytes. */
void mnemos_read_sizes(size_t sizes[2]) {
    sizes[0] = sizeof(Keys);
    sizes[1] = sizeof(Packed);
}
