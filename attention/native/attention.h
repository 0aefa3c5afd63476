/* Attention of one query head to the slots of a cache: a prefix, paged memories, working memory. */
#ifndef MNEMOS_ATTENTION_H
#define MNEMOS_ATTENTION_H

#include "vectors.h"

/* A range of slots, and where its keys, values and scores are. Keys and values are [slots, dim]. */
typedef struct {
    const void *keys, *values;
    int dim, is_bf16;
} Head;

INLINE f8 kv8(const void *from, size_t at, int is_bf16) {
    if (!is_bf16) return load8((const float *)from + at);
    const uint16_t *half = (const uint16_t *)from + at;
    i8x wide;
    for (int i = 0; i < 8; i++) wide[i] = (int32_t)((uint32_t)half[i] << 16);
    return (f8)wide;
}

INLINE float kv1(const void *from, size_t at, int is_bf16) {
    if (!is_bf16) return ((const float *)from)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE void store_kv(void *to, size_t at, float value, int is_bf16) {
    if (!is_bf16) {
        ((float *)to)[at] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value)
        bits |= 0x400000; /* a NaN stays one */
    else
        bits += 0x7fff + ((bits >> 16) & 1);
    ((uint16_t *)to)[at] = (uint16_t)(bits >> 16);
}

INLINE void scores_in(const float *q, Head head, int begin, int end, float *scores, int is_bf16) {
    int dim = head.dim;
    for (int s = begin; s < end; s++) {
        size_t at = (size_t)s * dim;
        f8 sum = all8(0);
        int d = 0;
        for (; d + 8 <= dim; d += 8) sum = fma8(load8(q + d), kv8(head.keys, at + d, is_bf16), sum);
        float score = sum8(sum);
        for (; d < dim; d++) score += q[d] * kv1(head.keys, at + d, is_bf16);
        scores[s] = score;
    }
}

INLINE void add_values(Head head, int begin, int end, const float *shares, float *out, int is_bf16) {
    int dim = head.dim, d = 0;
    for (; d + 32 <= dim; d += 32) {
        f8 sums[4];
        for (int i = 0; i < 4; i++) sums[i] = load8(out + d + 8 * i);
        for (int s = begin; s < end; s++) {
            f8 share = all8(shares[s]);
            for (int i = 0; i < 4; i++)
                sums[i] = fma8(share, kv8(head.values, (size_t)s * dim + d + 8 * i, is_bf16), sums[i]);
        }
        for (int i = 0; i < 4; i++) store8(out + d + 8 * i, sums[i]);
    }
    for (; d < dim; d++)
        for (int s = begin; s < end; s++) out[d] += shares[s] * kv1(head.values, (size_t)s * dim + d, is_bf16);
}

static float largest_of(const float *scores, int begin, int end) {
    float most = -INFINITY;
    for (int s = begin; s < end; s++) most = scores[s] > most ? scores[s] : most;
    return most;
}

/* Scores become e^(score + shift); their sum. */
static float exponents(float *scores, int begin, int end, float shift) {
    f8 sum = all8(0);
    int s = begin;
    for (; s + 8 <= end; s += 8) {
        f8 value = exp8(load8(scores + s) + all8(shift));
        store8(scores + s, value);
        sum += value;
    }
    float total = sum8(sum);
    if (s < end) {
        float last[8];
        for (int i = 0; i < 8; i++) last[i] = s + i < end ? scores[s + i] : -INFINITY;
        f8 value = exp8(load8(last) + all8(shift));
        for (int i = 0; s + i < end; i++) {
            scores[s + i] = value[i];
            total += value[i];
        }
    }
    return total;
}

typedef struct {
    int first;                    /* slots before are out of sight */
    int memory_start, memory_end; /* none where they are equal */
    int after;                    /* slots between the memories and this one are out of sight */
    int end;
    float temperature, mass_scale; /* of adaptive parallel encoding */
} Sight;

/* `out [dim]` for a `q [dim]` that is scaled already; `scores` has room for every slot. */
static __attribute__((noinline)) void attend(const float *q, Head head, Sight sight, float *scores, float *out) {
    int parts[3][2] = {{sight.first, sight.memory_start},
                       {sight.memory_start, sight.memory_end},
                       {sight.after, sight.end}};
    float most = -INFINITY;
    for (int p = 0; p < 3; p++) {
        int begin = parts[p][0], end = parts[p][1];
        if (begin >= end) continue;
        if (head.is_bf16)
            scores_in(q, head, begin, end, scores, 1);
        else
            scores_in(q, head, begin, end, scores, 0);
        if (p == 1 && (sight.temperature != 1 || sight.mass_scale != 1)) {
            float colder = 1 / sight.temperature;
            for (int s = begin; s < end; s++) scores[s] *= colder;
            if (sight.mass_scale != 1) {
                float top = largest_of(scores, begin, end), mass = 0;
                for (int s = begin; s < end; s++) mass += expf(scores[s] - top);
                float added = (sight.mass_scale - 1) * (top + logf(mass));
                for (int s = begin; s < end; s++) scores[s] += added;
            }
        }
        float top = largest_of(scores, begin, end);
        most = top > most ? top : most;
    }
    float mass = 0;
    for (int p = 0; p < 3; p++) {
        if (parts[p][0] < parts[p][1]) mass += exponents(scores, parts[p][0], parts[p][1], -most);
    }
    memset(out, 0, (size_t)head.dim * sizeof(float));
    for (int p = 0; p < 3; p++) {
        if (parts[p][0] >= parts[p][1]) continue;
        if (head.is_bf16)
            add_values(head, parts[p][0], parts[p][1], scores, out, 1);
        else
            add_values(head, parts[p][0], parts[p][1], scores, out, 0);
    }
    for (int d = 0; d < head.dim; d++) out[d] /= mass;
}

#endif
