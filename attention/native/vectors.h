/* Eight floats at a time, in the vector extensions that GCC and Clang share. */
#ifndef MNEMOS_VECTORS_H
#define MNEMOS_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(MNEMOS_PORTABLE)
#include <immintrin.h>
#define MNEMOS_AVX2 1
#endif

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8x __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))

INLINE f8 load8(const float *from) {
    f8 out;
    memcpy(&out, from, sizeof out);
    return out;
}

INLINE void store8(float *to, f8 value) { memcpy(to, &value, sizeof value); }

INLINE f8 all8(float value) { return (f8){value, value, value, value, value, value, value, value}; }

/* a b + c. Written out, since the compiler is told to contract nothing: what it contracts may differ from one
   copy of an inlined function to the next. */
INLINE f8 fma8(f8 a, f8 b, f8 c) {
#ifdef MNEMOS_AVX2
    return (f8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE float sum8(f8 v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

INLINE f8 choose8(i8x where, f8 yes, f8 no) { return (f8)(((i8x)yes & where) | ((i8x)no & ~where)); }

INLINE f8 max8(f8 a, f8 b) { return choose8(a > b, a, b); }

INLINE float larger(float a, float b) { return a > b ? a : b; }

INLINE float largest8(f8 v) {
    float first = larger(larger(v[0], v[4]), larger(v[2], v[6]));
    return larger(first, larger(larger(v[1], v[5]), larger(v[3], v[7])));
}

/* e^x to about two units in the last place; 0 below -87, infinity above 88, NaN of NaN. */
INLINE f8 exp8(f8 x) {
    const f8 low = all8(-87.0f), high = all8(88.0f);
    f8 bounded = choose8(x < low, low, choose8(x > high, high, x));
    const f8 shift = all8(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    f8 shifted = fma8(bounded, all8(1.44269504f), shift);
    f8 whole = shifted - shift;
    f8 rest = fma8(whole, all8(2.12194440e-4f), fma8(whole, all8(-0.693359375f), bounded));
    f8 value = all8(1.98756915e-4f);
    value = fma8(value, rest, all8(1.39819995e-3f));
    value = fma8(value, rest, all8(8.33345205e-3f));
    value = fma8(value, rest, all8(4.16657959e-2f));
    value = fma8(value, rest, all8(1.66666657e-1f));
    value = fma8(value, rest, all8(5.00000000e-1f));
    value = fma8(value, rest * rest, rest + all8(1.0f));
    i8x exponent = ((i8x)shifted - (i8x)shift + 127) << 23;
    value = value * (f8)exponent;
    value = choose8(x < low, all8(0.0f), choose8(x > high, all8(INFINITY), value));
    return choose8(x != x, x, value);
}

INLINE float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    float value;
    if (rest >= 0x0400) { /* never infinity or NaN here: `to_half` makes none */
        uint32_t bits = sign | ((rest << 13) + (112u << 23));
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    value = (float)rest * 5.9604644775390625e-8f; /* subnormal: 2^-24 each */
    return sign ? -value : value;
}

/* Rounds to the nearest; what is too large becomes the largest. */
static uint16_t to_half(float value) {
    float size = fabsf(value);
    uint16_t sign = value < 0 ? 0x8000 : 0;
    if (!(size < 65504.0f)) return sign | 0x7bff;
    if (size < 6.103515625e-5f) return sign | (uint16_t)lrintf(size * 16777216.0f);
    uint32_t bits;
    memcpy(&bits, &size, sizeof bits);
    bits += 0xfff + ((bits >> 13) & 1);
    return sign | (uint16_t)((bits - (112u << 23)) >> 13);
}

#endif
