/* Weight matrices of four or eight bits, and their products with activations of eight bits.

   A matrix [out, in] is cut into blocks of 8 rows by 32 columns, a row of blocks after the other; what lies
   beyond its edges is zero. Each row of a block has a scale, and with four bits the value of code 8.

     four bits   8 scales, 8 middles (fp16), then 4 x 32 bytes:  byte 4 row + j of the v-th holds column
                 8 v + j in its low half and column 8 v + 4 + j in its high half
     eight bits  8 scales (fp16), then 8 x 32 signed bytes:  byte 4 row + j of the v-th is column 4 v + j

   Activations have a scale per 32 columns. Each row of them is computed alone and in one order, so that a
   product is the same to the last bit whichever rows it shares a call with. */
#ifndef MNEMOS_PACKED_H
#define MNEMOS_PACKED_H

#include "vectors.h"

enum { GROUP = 32, LANES = 8, BYTES4 = 160, BYTES8 = 272, ROWS = 4 };

typedef struct {
    int32_t bits; /* 4 or 8 */
    int32_t out, in;
    int32_t groups; /* of 32 columns */
    const uint8_t *data;
} Matrix;

/* 32 activations of one row. */
typedef struct {
    int8_t codes[GROUP];
    float scale;
    float sum;      /* of the values themselves */
    int32_t offset; /* 8 times the sum of the codes */
    int32_t unused;
} Cell;

typedef Cell *Row; /* one cell per group */

INLINE int groups_of(int in) { return (in + GROUP - 1) / GROUP; }
INLINE int blocks_of(int out) { return (out + LANES - 1) / LANES; }
INLINE size_t row_bytes(int groups) { return (size_t)groups * sizeof(Cell); }

/* The 32 values times `inverse` as whole numbers from -127 to 127; their sum. */
INLINE int32_t round_group(const float *from, float inverse, int8_t *codes) {
    f8 factor = all8(inverse), none = all8(0);
    f8 value[4];
    for (int i = 0; i < 4; i++) { /* without a factor the values may be anything */
        value[i] = load8(from + 8 * i) * factor;
        value[i] = choose8(factor > none, value[i], none);
    }
#ifdef MNEMOS_AVX2
    __m256i a = _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)value[0]), _mm256_cvtps_epi32((__m256)value[1]));
    __m256i b = _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)value[2]), _mm256_cvtps_epi32((__m256)value[3]));
    /* packing works in halves of 128 bits: runs of four codes end as 0 2 4 6 1 3 5 7 */
    __m256i bytes = _mm256_packs_epi16(a, b);
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)codes, bytes);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    i8x sums = (i8x)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
#else
    int32_t sum = 0;
    for (int i = 0; i < GROUP; i++) {
        const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
        float bounded = value[i / 8][i % 8] > 127 ? 127 : value[i / 8][i % 8];
        volatile float shifted = (bounded < -127 ? -127 : bounded) + shift;
        codes[i] = (int8_t)(shifted - shift);
        sum += codes[i];
    }
    return sum;
#endif
}

/* `x [in]` in eight bits. What isn't finite makes its group NaN. */
static __attribute__((noinline)) void quantize_row(const float *x, int in, Row row) {
    int groups = groups_of(in);
    for (int g = 0; g < groups; g++) {
        float padded[GROUP];
        const float *from = x + g * GROUP;
        if ((g + 1) * GROUP > in) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, from, (size_t)(in - g * GROUP) * sizeof(float));
            from = padded;
        }
        f8 most = all8(0), sum = all8(0);
        for (int i = 0; i < GROUP; i += 8) {
            f8 v = load8(from + i);
            f8 size = choose8(v < 0, -v, v);
            most = choose8(size > most, size, most);
            sum += v;
        }
        float largest = largest8(most);
        float total = sum8(sum), scale = largest / 127.0f;
        float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        if (!(fabsf(total) <= 3.4e38f) || !(largest <= 3.4e38f) || !(inverse <= 3.4e38f)) {
            inverse = 0;
            scale = total - total; /* 0 where the values are too small to count, NaN where not finite */
            if (!(largest <= 3.4e38f)) scale = NAN;
        }
        row[g].offset = 8 * round_group(from, inverse, row[g].codes);
        row[g].scale = scale;
        row[g].sum = total;
    }
}

#ifdef MNEMOS_AVX2

/* Sums in the order written: a tree of them needs more registers than there are. */
#define KEEP_ORDER(value) __asm__("" : "+x"(value))

INLINE __m256i four_codes(const int8_t *codes) {
    int32_t value;
    memcpy(&value, codes, sizeof value);
    return _mm256_set1_epi32(value);
}

/* Eight outputs of `count` rows; `y[r]` gets those of row r. */
INLINE void block4(const uint8_t *w, int groups, const Row *x, int count, float (*y)[LANES]) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256 sums[ROWS];
    for (int r = 0; r < count; r++) sums[r] = _mm256_setzero_ps();
    for (int g = 0; g < groups; g++, w += BYTES4) {
        __m256i part[ROWS];
        for (int r = 0; r < count; r++) part[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            __m256i both = _mm256_loadu_si256((const __m256i *)(w + 32 + 32 * v));
            __m256i first = _mm256_and_si256(both, low);
            __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
            for (int r = 0; r < count; r++) {
                const int8_t *codes = x[r][g].codes + 8 * v;
                /* 16 products of at most 15 * 127 meet in one sum of 16 bits: 30,480 */
                part[r] = _mm256_add_epi16(part[r], _mm256_maddubs_epi16(first, four_codes(codes)));
                KEEP_ORDER(part[r]);
                part[r] = _mm256_add_epi16(part[r], _mm256_maddubs_epi16(second, four_codes(codes + 4)));
                KEEP_ORDER(part[r]);
            }
        }
        __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)w));
        __m256 middle = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(w + 16)));
        for (int r = 0; r < count; r++) {
            __m256i whole = _mm256_madd_epi16(part[r], ones);
            whole = _mm256_sub_epi32(whole, _mm256_set1_epi32(x[r][g].offset));
            __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(x[r][g].scale));
            sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), factor, sums[r]);
            sums[r] = _mm256_fmadd_ps(middle, _mm256_set1_ps(x[r][g].sum), sums[r]);
        }
    }
    for (int r = 0; r < count; r++) _mm256_storeu_ps(y[r], sums[r]);
}

INLINE void block8(const uint8_t *w, int groups, const Row *x, int count, float (*y)[LANES]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 sums[ROWS];
    for (int r = 0; r < count; r++) sums[r] = _mm256_setzero_ps();
    for (int g = 0; g < groups; g++, w += BYTES8) {
        __m256i whole[ROWS];
        for (int r = 0; r < count; r++) whole[r] = _mm256_setzero_si256();
        for (int v = 0; v < 8; v++) {
            __m256i weights = _mm256_loadu_si256((const __m256i *)(w + 16 + 32 * v));
            __m256i sizes = _mm256_abs_epi8(weights);
            for (int r = 0; r < count; r++) {
                __m256i codes = _mm256_sign_epi8(four_codes(x[r][g].codes + 4 * v), weights);
                __m256i pairs = _mm256_maddubs_epi16(sizes, codes); /* at most 2 * 127 * 127 = 32,258 */
                whole[r] = _mm256_add_epi32(whole[r], _mm256_madd_epi16(pairs, ones));
                KEEP_ORDER(whole[r]);
            }
        }
        __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)w));
        for (int r = 0; r < count; r++) {
            __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(x[r][g].scale));
            sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[r]), factor, sums[r]);
        }
    }
    for (int r = 0; r < count; r++) _mm256_storeu_ps(y[r], sums[r]);
}

#else

INLINE float half_at(const uint8_t *from) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
    return half_to_float(half);
}

INLINE void block4(const uint8_t *w, int groups, const Row *x, int count, float (*y)[LANES]) {
    for (int r = 0; r < count; r++)
        for (int o = 0; o < LANES; o++) y[r][o] = 0;
    for (int g = 0; g < groups; g++, w += BYTES4)
        for (int r = 0; r < count; r++)
            for (int o = 0; o < LANES; o++) {
                int32_t whole = -x[r][g].offset;
                for (int v = 0; v < 4; v++)
                    for (int j = 0; j < 4; j++) {
                        const int8_t *codes = x[r][g].codes + 8 * v + j;
                        uint8_t both = w[32 + 32 * v + 4 * o + j];
                        whole += (both & 15) * codes[0] + (both >> 4) * codes[4];
                    }
                y[r][o] += (float)whole * (half_at(w + 2 * o) * x[r][g].scale);
                y[r][o] += half_at(w + 16 + 2 * o) * x[r][g].sum;
            }
}

INLINE void block8(const uint8_t *w, int groups, const Row *x, int count, float (*y)[LANES]) {
    for (int r = 0; r < count; r++)
        for (int o = 0; o < LANES; o++) y[r][o] = 0;
    for (int g = 0; g < groups; g++, w += BYTES8)
        for (int r = 0; r < count; r++)
            for (int o = 0; o < LANES; o++) {
                int32_t whole = 0;
                for (int v = 0; v < 8; v++)
                    for (int j = 0; j < 4; j++)
                        whole += (int8_t)w[16 + 32 * v + 4 * o + j] * x[r][g].codes[4 * v + j];
                y[r][o] += (float)whole * (half_at(w + 2 * o) * x[r][g].scale);
            }
}

#endif

INLINE void block(const Matrix *m, const uint8_t *w, const Row *x, int count, float (*y)[LANES]) {
    if (m->bits == 4)
        block4(w, m->groups, x, count, y);
    else
        block8(w, m->groups, x, count, y);
}

/* Outputs [8 first, 8 last) of `rows` rows into `y [rows, stride]`. */
static __attribute__((noinline)) void multiply(const Matrix *m, const Row *x, int rows, int first, int last,
                                               float *y, size_t stride) {
    size_t block_bytes = (size_t)m->groups * (m->bits == 4 ? BYTES4 : BYTES8);
    for (int b = first; b < last; b++) {
        const uint8_t *w = m->data + (size_t)b * block_bytes;
        int outs = m->out - b * LANES < LANES ? m->out - b * LANES : LANES;
        for (int r = 0; r < rows; r += ROWS) {
            float found[ROWS][LANES];
            int count = rows - r < ROWS ? rows - r : ROWS;
            switch (count) { /* a number the compiler knows unrolls the loops over rows */
            case 1: block(m, w, x + r, 1, found); break;
            case 2: block(m, w, x + r, 2, found); break;
            case 3: block(m, w, x + r, 3, found); break;
            default: block(m, w, x + r, 4, found);
            }
            for (int i = 0; i < count; i++)
                memcpy(y + (size_t)(r + i) * stride + b * LANES, found[i], (size_t)outs * sizeof(float));
        }
    }
}

#endif
