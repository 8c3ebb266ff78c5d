// Products with packed weights: at one row as fast as memory is read, at many as fast as it counts.
//
// Packed weights lie in groups of sixteen outputs: four bytes of each output's row, then the next
// four bytes (two bfloat16, or four int8). One instruction multiplies them with the same four bytes
// of an input row and adds up, a lane per output.

#pragma once

#include <algorithm>

#include "steps.h"
#include "vectors.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define CORTEX_HAS_PRODUCTS 1

namespace cortex {

constexpr int ROWS = 6;    // of a tile: with
constexpr int GROUPS = 4;  // all sums of a tile stay in registers

struct BFloat16Pairs {
    typedef __m512 Sums;
    static Sums add(Sums sums, __m512i inputs, __m512i weights) {
        return _mm512_dpbf16_ps(sums, (__m512bh)inputs, (__m512bh)weights);
    }
};

struct Int8Fours {
    typedef __m512i Sums;
    static Sums add(Sums sums, __m512i inputs, __m512i weights) {
        return _mm512_dpbusd_epi32(sums, inputs, weights);
    }
};

// A linear layer. int8 has scales, and corrections for its inputs' zero point (128 times the sum of
// each output's weights); without them it is bfloat16. All three, and the bias, which may be none,
// are filled up to whole groups.
struct Product {
    const void *packed;
    const float *scales;
    const int32_t *corrections;
    const BFloat16 *bias;
    int64_t num_outputs, width;
};

// inputs: NUM_ROWS rows of `num_words` times four bytes; weights: NUM_GROUPS packed groups.
template <class Kind, int NUM_ROWS, int NUM_GROUPS>
inline void multiply(const int32_t *inputs, const int32_t *weights, int64_t num_words,
                     typename Kind::Sums (&sums)[ROWS][GROUPS]) {
    typename Kind::Sums kept[NUM_ROWS][NUM_GROUPS] = {};
    for (int64_t word = 0; word < num_words; word++) {
        __m512i columns[NUM_GROUPS];
        for (int group = 0; group < NUM_GROUPS; group++) {
            const int32_t *column = weights + (group * num_words + word) * LANES;
            columns[group] = _mm512_loadu_si512(column);
            _mm_prefetch((const char *)(column + NUM_GROUPS * num_words * LANES), _MM_HINT_T1);
        }
        for (int row = 0; row < NUM_ROWS; row++) {
            const __m512i input = _mm512_set1_epi32(inputs[row * num_words + word]);
            for (int group = 0; group < NUM_GROUPS; group++)
                kept[row][group] = Kind::add(kept[row][group], input, columns[group]);
        }
    }
    for (int row = 0; row < NUM_ROWS; row++)
        for (int group = 0; group < NUM_GROUPS; group++) sums[row][group] = kept[row][group];
}

template <class Kind, int NUM_GROUPS>
inline void multiply_rows(int num_rows, const int32_t *inputs, const int32_t *weights,
                          int64_t num_words, typename Kind::Sums (&sums)[ROWS][GROUPS]) {
    switch (num_rows) {
        case 1: return multiply<Kind, 1, NUM_GROUPS>(inputs, weights, num_words, sums);
        case 2: return multiply<Kind, 2, NUM_GROUPS>(inputs, weights, num_words, sums);
        case 3: return multiply<Kind, 3, NUM_GROUPS>(inputs, weights, num_words, sums);
        case 4: return multiply<Kind, 4, NUM_GROUPS>(inputs, weights, num_words, sums);
        case 5: return multiply<Kind, 5, NUM_GROUPS>(inputs, weights, num_words, sums);
        default: return multiply<Kind, 6, NUM_GROUPS>(inputs, weights, num_words, sums);
    }
}

// Multiply inputs [num_rows, K] by all weights, `num_words` steps each; hand out the sums of every
// sixteen outputs of every row as finish(row, first output, sums).
template <class Kind, class Finish>
void multiply_all(const int32_t *inputs, const int32_t *weights, int64_t num_rows,
                  int64_t num_groups, int64_t num_words, int num_threads, Finish finish) {
    const int64_t num_tiles = (num_rows + ROWS - 1) / ROWS;
    const int64_t num_panels = (num_groups + GROUPS - 1) / GROUPS;
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_threads > 1)
    for (int64_t panel = 0; panel < num_panels; panel++) {
        const int64_t first_group = panel * GROUPS;
        const int groups = std::min<int64_t>(GROUPS, num_groups - first_group);
        const int32_t *columns = weights + first_group * num_words * LANES;
        for (int64_t tile = 0; tile < num_tiles; tile++) {
            const int64_t first = num_rows * tile / num_tiles;
            const int64_t end = num_rows * (tile + 1) / num_tiles;
            const int32_t *rows = inputs + first * num_words;
            typename Kind::Sums sums[ROWS][GROUPS];
            if (groups == GROUPS)
                multiply_rows<Kind, GROUPS>(end - first, rows, columns, num_words, sums);
            else
                for (int group = 0; group < groups; group++) {
                    typename Kind::Sums one[ROWS][GROUPS];
                    multiply_rows<Kind, 1>(end - first, rows,
                                           columns + group * num_words * LANES, num_words, one);
                    for (int64_t row = 0; row < end - first; row++) sums[row][group] = one[row][0];
                }
            for (int64_t row = first; row < end; row++)
                for (int group = 0; group < groups; group++)
                    finish(row, (first_group + group) * LANES, sums[row - first][group]);
        }
    }
}

// Inputs as bytes around 128, each row by its own peak: a byte is worth the row's scale.
inline void to_bytes(const BFloat16 *inputs, int64_t num_rows, int64_t width, uint8_t *bytes,
                     float *scales, int num_threads) {
    for_rows(num_rows, num_threads, [=](int64_t row) {
        const BFloat16 *numbers = inputs + row * width;
        // Compared as bits: NaN is more than any number then, and the whole row becomes NaN.
        Words peaks = (Words)all(1e-30f);
        for (int64_t k = 0; k < width; k += LANES) {
            const Words some = (Words)load(numbers + k) & 0x7fffffff;
            peaks = some > peaks ? some : peaks;
        }
        uint32_t bits = 0;
        for (int lane = 0; lane < LANES; lane++) bits = std::max<uint32_t>(bits, peaks[lane]);
        float peak;
        memcpy(&peak, &bits, sizeof peak);
        scales[row] = peak / 127;
        const float scale = 127 / peak;
        for (int64_t k = 0; k < width; k += LANES) {
            const Floats moved = load(numbers + k) * scale + 128.5f;
            const __m128i some = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32((__m512)moved));
            memcpy(bytes + row * width + k, &some, LANES);
        }
    });
}

// Sixteen outputs, or as many as are left of the row, replace what is there or are added to it.
inline void put(BFloat16 *row, int64_t first, int64_t num_outputs, bool is_added, Floats numbers) {
    BFloat16 part[LANES] = {};
    const int64_t left = num_outputs - first;
    BFloat16 *to = left < LANES ? part : row + first;
    if (left < LANES) memcpy(part, row + first, left * sizeof(BFloat16));
    store(to, is_added ? load(to) + numbers : numbers);
    if (left < LANES) memcpy(row + first, part, left * sizeof(BFloat16));
}

// inputs [num_rows, width] -> out [num_rows, num_outputs], added to what is there if asked. int8
// needs a workspace: of each row a float and `width` bytes.
inline void apply(const Product &product, const BFloat16 *inputs, int64_t num_rows, BFloat16 *out,
                  bool is_added, float *workspace, int num_threads) {
    const int64_t num_outputs = product.num_outputs, width = product.width;
    const int64_t num_groups = (num_outputs + LANES - 1) / LANES;
    auto weights = (const int32_t *)product.packed;
    const BFloat16 *bias = product.bias;
    if (!product.scales) {
        multiply_all<BFloat16Pairs>(
            (const int32_t *)inputs, weights, num_rows, num_groups, width / 2, num_threads,
            [=](int64_t row, int64_t first, __m512 sums) {
                const Floats numbers = bias ? (Floats)sums + load(bias + first) : (Floats)sums;
                put(out + row * num_outputs, first, num_outputs, is_added, numbers);
            });
        return;
    }
    const float *scales = product.scales, *row_scales = workspace;
    auto bytes = (uint8_t *)(workspace + num_rows);
    to_bytes(inputs, num_rows, width, bytes, workspace, num_threads);
    const int32_t *corrections = product.corrections;
    multiply_all<Int8Fours>(
        (const int32_t *)bytes, weights, num_rows, num_groups, width / 4, num_threads,
        [=](int64_t row, int64_t first, __m512i sums) {
            Ints correction;
            memcpy(&correction, corrections + first, sizeof correction);
            Floats numbers = __builtin_convertvector((Ints)sums - correction, Floats);
            numbers *= load(scales + first) * row_scales[row];
            if (bias) numbers += load(bias + first);
            put(out + row * num_outputs, first, num_outputs, is_added, numbers);
        });
}

}  // namespace cortex

#endif
