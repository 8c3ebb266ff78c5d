// Sixteen numbers at a time, in the vectors of GCC and Clang: the compiler maps them to what the
// processor has. Numbers in memory are float or bfloat16; in registers they are always float.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace cortex {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct BFloat16 {
    uint16_t bits;
};

inline Floats all(float number) { return number - Floats{}; }

inline Floats load(const float *from) {
    Floats numbers;
    memcpy(&numbers, from, sizeof numbers);
    return numbers;
}

inline Floats load(const BFloat16 *from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float *to, Floats numbers) { memcpy(to, &numbers, sizeof numbers); }

// Rounded to the nearest, ties to even; NaN stays NaN.
inline Halves rounded(Floats numbers) {
#if defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)numbers);
#else
    Words words = (Words)numbers;
    Words near = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
    Words quiet = (words >> 16) | 0x40;
    return __builtin_convertvector((Ints)(numbers == numbers) ? near : quiet, Halves);
#endif
}

inline void store(BFloat16 *to, Floats numbers) {
    Halves halves = rounded(numbers);
    memcpy(to, &halves, sizeof halves);
}

inline float sum(Floats numbers) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)numbers);
#else
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += numbers[lane];
    return total;
#endif
}

// The sums of four vectors, one behind the other.
inline void store_sums(float *to, const Floats (&numbers)[4]) {
#if defined(__AVX512DQ__)
    __m256 halves[4];
    for (int one = 0; one < 4; one++) {
        const __m512 all = (__m512)numbers[one];
        halves[one] = _mm256_add_ps(_mm512_castps512_ps256(all),
                                    _mm512_extractf32x8_ps(all, 1));
    }
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(halves[0], halves[1]),
                                       _mm256_hadd_ps(halves[2], halves[3]));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
#else
    for (int one = 0; one < 4; one++) to[one] = sum(numbers[one]);
#endif
}

inline Floats larger(Floats left, Floats right) { return left > right ? left : right; }

// e to the power of each number, to some 2e-7 of it. 0 below -87, infinite above 88; NaN stays NaN.
inline Floats exponential(Floats powers) {
    Floats low = all(-87), high = all(88);
    Floats bounded = powers < low ? low : powers;
    bounded = bounded > high ? high : bounded;
    // e^x = 2^n * e^r with r within half of ln 2
    Floats magic = all(12582912);  // 1.5 * 2^23: adding it rounds to a whole number
    Floats whole = (bounded * 1.44269504f + magic) - magic;
    Floats rest = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats series = all(1.9875691e-4f);
    series = series * rest + 1.3981999e-3f;
    series = series * rest + 8.3334519e-3f;
    series = series * rest + 4.1665796e-2f;
    series = series * rest + 1.6666665e-1f;
    series = series * rest + 5.0000001e-1f;
    series = series * rest * rest + rest + 1.0f;
    Ints exponent = (__builtin_convertvector(whole, Ints) + 127) << 23;
    Floats result = series * (Floats)exponent;
    result = powers > high ? all(INFINITY) : result;
    return powers < low ? Floats{} : result;
}

}  // namespace cortex
