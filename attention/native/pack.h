/* Floating-point matrices into the formats of packed.h. */
#ifndef MNEMOS_PACK_H
#define MNEMOS_PACK_H

#include "packed.h"

/* Codes of 32 weights in four bits with `levels` steps between the least and the greatest; the largest error
   in steps. */
static float codes_of(const float *w, float least, float greatest, int levels, uint8_t *codes,
                      uint16_t *scale_half, uint16_t *middle_half) {
    float step = (greatest - least) / (float)levels;
    *scale_half = to_half(step);
    *middle_half = to_half(least + 8 * step);
    float scale = half_to_float(*scale_half), middle = half_to_float(*middle_half);
    float inverse = scale > 0 ? 1 / scale : 0, worst = 0;
    const f8 shift = all8(8388608.0f); /* 2^23: adding it rounds to a whole number */
    f8 errors = all8(0);
    for (int i = 0; i < GROUP; i += 8) {
        f8 place = (load8(w + i) - all8(middle)) * all8(inverse) + all8(8);
        f8 bounded = max8(place, all8(0));
        bounded = choose8(bounded > 15, all8(15), bounded);
        f8 whole = (bounded + shift) - shift;
        f8 error = place - whole;
        errors = max8(errors, choose8(error < 0, -error, error));
        i8x code = (i8x)(bounded + shift); /* the last four bits */
        for (int j = 0; j < 8; j++) codes[i + j] = (uint8_t)(code[j] & 15);
    }
    worst = largest8(errors);
    return worst;
}

/* Four bits of 32 weights: exact where they are of a four-bit file, whichever of its codes it uses. */
static float fit4(const float *w, float tolerance, uint8_t *codes, uint16_t *scale, uint16_t *middle) {
    f8 most = load8(w), fewest = -most;
    for (int i = 8; i < GROUP; i += 8) {
        most = max8(most, load8(w + i));
        fewest = max8(fewest, -load8(w + i));
    }
    float least = -largest8(fewest), greatest = largest8(most);
    float error = codes_of(w, least, greatest, 15, codes, scale, middle);
    if (error <= tolerance || tolerance <= 0) return error;
    for (int levels = 14; levels > 0; levels--) {
        float found = codes_of(w, least, greatest, levels, codes, scale, middle);
        if (found <= tolerance) return found;
    }
    return codes_of(w, least, greatest, 15, codes, scale, middle);
}

static void fit8(const float *w, int8_t *codes, uint16_t *scale_half) {
    f8 most = all8(0);
    for (int i = 0; i < GROUP; i += 8) most = max8(most, max8(load8(w + i), -load8(w + i)));
    *scale_half = to_half(largest8(most) / 127);
    float scale = half_to_float(*scale_half), inverse = scale > 0 ? 1 / scale : 0;
    round_group(w, inverse, codes);
    for (int i = 0; i < GROUP; i++) codes[i] = codes[i] < -127 ? -127 : codes[i];
}

/* One row of blocks of `weight [out, in]`; the largest error in steps of a group, 0 for eight bits. Stops
   early above a `tolerance` that isn't 0. */
static float pack_block(const float *weight, int out, int in, int bits, int b, float tolerance, uint8_t *to) {
    float worst = 0;
    int groups = groups_of(in);
    for (int g = 0; g < groups; g++, to += bits == 4 ? BYTES4 : BYTES8) {
        int columns = in - g * GROUP < GROUP ? in - g * GROUP : GROUP;
        memset(to, 0, bits == 4 ? BYTES4 : BYTES8);
        for (int o = 0; o < LANES && b * LANES + o < out; o++) {
            float w[GROUP] = {0};
            memcpy(w, weight + (size_t)(b * LANES + o) * in + g * GROUP, (size_t)columns * sizeof(float));
            uint16_t scale, middle;
            uint8_t codes[GROUP];
            if (bits == 4) {
                float error = fit4(w, tolerance, codes, &scale, &middle);
                worst = error > worst ? error : worst;
                if (tolerance > 0 && worst > tolerance) return worst;
                memcpy(to + 16 + 2 * o, &middle, 2);
                for (int v = 0; v < 4; v++)
                    for (int j = 0; j < 4; j++)
                        to[32 + 32 * v + 4 * o + j] = codes[8 * v + j] | codes[8 * v + 4 + j] << 4;
            } else {
                fit8(w, (int8_t *)codes, &scale);
                for (int v = 0; v < 8; v++) memcpy(to + 16 + 32 * v + 4 * o, codes + 4 * v, 4);
            }
            memcpy(to + 2 * o, &scale, 2);
        }
    }
    return worst;
}

#endif
