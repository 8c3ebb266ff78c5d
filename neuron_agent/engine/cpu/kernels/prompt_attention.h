// Attention of prompts in bfloat16: many query rows of one sequence, by products of pairs.
//
// A lane is a column: one head of one query row. So neither the largest score of a column nor the
// sum of its shares needs anything across lanes. Scores are float and never rounded; shares are
// rounded to bfloat16 before they meet the values, as in FlashAttention (Dao et al., 2022).

#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "decode_attention.h"
#include "slots.h"
#include "vectors.h"

#if defined(__AVX512BF16__)

namespace cortex {

constexpr int TILES = 4;
constexpr int COLUMNS = TILES * LANES;
constexpr int TOGETHER = 4;  // rows of a product computed together

// sums[row][tile] += pairs of the row x pairs of the columns; a row's pairs lie `stride` apart.
inline void multiply_pairs(const int32_t *const (&rows)[TOGETHER], int64_t stride,
                           const int32_t (*columns)[COLUMNS], int64_t num_pairs,
                           Floats (&sums)[TOGETHER][TILES]) {
    for (int64_t pair = 0; pair < num_pairs; pair++) {
        __m512i lanes[TILES];
        for (int tile = 0; tile < TILES; tile++)
            lanes[tile] = _mm512_loadu_si512(columns[pair] + tile * LANES);
        for (int row = 0; row < TOGETHER; row++) {
            const __m512i both = _mm512_set1_epi32(rows[row][pair * stride]);
            for (int tile = 0; tile < TILES; tile++)
                sums[row][tile] = (Floats)_mm512_dpbf16_ps((__m512)sums[row][tile],
                                                           (__m512bh)lanes[tile], (__m512bh)both);
        }
    }
}

// Two rows of numbers as pairs of bfloat16: the first of each in the low half.
inline Ints paired(Floats first, Floats second) {
    return (Ints)(__builtin_convertvector(rounded(first), Words) |
                  __builtin_convertvector(rounded(second), Words) << 16);
}

class PromptTile {
  public:
    // Attend for the columns `first_column` .. of a piece, over its shared head number `shared`.
    void run(const Heads &heads, const Piece &piece, const BFloat16 *query, int64_t shared,
             int64_t first_column, BFloat16 *out) {
        const int64_t group = heads.num_heads / heads.num_shared;
        const int64_t num_columns =
            std::min<int64_t>(COLUMNS, piece.num_rows * group - first_column);
        take_queries(heads, piece, query, shared, first_column, num_columns, group);
        for (int tile = 0; tile < TILES; tile++)
            running_max[tile] = all(-FLT_MAX), running_sum[tile] = Floats{};
        for (int64_t d = 0; d < heads.value_size; d++)
            for (int tile = 0; tile < TILES; tile++) store(sums[d] + tile * LANES, Floats{});
        const int64_t head_offset = shared * piece.capacity;
        auto keys = (const BFloat16 *)piece.keys + head_offset * heads.key_size;
        auto values = (const BFloat16 *)piece.values + head_offset * heads.value_size;
        const int64_t lowest = positions[0], highest = positions[num_columns - 1];
        const int64_t first_seen =
            piece.window ? std::max<int64_t>(0, lowest - piece.window + 1) : 0;
        for (int64_t start = first_seen; start <= highest; start += BLOCK_KEYS) {
            const int count = std::min<int64_t>(BLOCK_KEYS, highest + 1 - start);
            score(keys + start * heads.key_size, heads.key_size, count);
            const bool is_cut = start + count - 1 > lowest ||
                                (piece.window && start <= highest - piece.window);
            share((float)heads.scale, start, count, is_cut ? &piece : nullptr, heads.value_size);
            accumulate(values + start * heads.value_size, heads.value_size, count);
        }
        give(heads, piece, shared, first_column, num_columns, group, out);
    }

  private:
    alignas(64) int32_t queries[MAX_HEAD_SIZE / 2][COLUMNS];  // pairs
    alignas(64) float scores[BLOCK_KEYS][COLUMNS];
    alignas(64) int32_t shares[BLOCK_KEYS / 2][COLUMNS];  // pairs of keys
    alignas(64) int32_t pairs[BLOCK_KEYS / 2][MAX_HEAD_SIZE];  // values, pairs of keys
    alignas(64) float sums[MAX_HEAD_SIZE][COLUMNS];
    alignas(64) int32_t positions[COLUMNS];
    Floats running_max[TILES], running_sum[TILES];

    void take_queries(const Heads &heads, const Piece &piece, const BFloat16 *query,
                      int64_t shared, int64_t first_column, int64_t num_columns, int64_t group) {
        for (int64_t column = 0; column < COLUMNS; column++) {
            const int64_t used = first_column + std::min(column, num_columns - 1);
            const int64_t row = used / group, head = shared * group + used % group;
            positions[column] = piece.start + row;
            auto from =
                query + (piece.first_row + row) * heads.query_stride + head * heads.key_size;
            for (int64_t pair = 0; pair < heads.key_size / 2; pair++)
                memcpy(&queries[pair][column], from + 2 * pair, sizeof(int32_t));
        }
    }

    void score(const BFloat16 *keys, int64_t width, int count) {
        for (int key = 0; key < count; key += TOGETHER) {
            const int32_t *rows[TOGETHER];
            for (int one = 0; one < TOGETHER; one++)  // the last one again, where there are fewer
                rows[one] = (const int32_t *)(keys + std::min(key + one, count - 1) * width);
            Floats products[TOGETHER][TILES] = {};
            multiply_pairs(rows, 1, queries, width / 2, products);
            for (int one = 0; one < TOGETHER; one++)
                for (int tile = 0; tile < TILES; tile++)
                    store(scores[key + one] + tile * LANES, products[one][tile]);
        }
    }

    // Turn scores into shares, in pairs of keys. `cut`: what a column may see is to be looked at.
    void share(float scale, int64_t start, int count, const Piece *cut, int64_t value_size) {
        for (int tile = 0; tile < TILES; tile++) {
            const int lane = tile * LANES;
            Ints position;
            memcpy(&position, positions + lane, sizeof position);
            Floats highest = running_max[tile];
            for (int key = 0; key < count; key++) {
                Floats row = load(scores[key] + lane) * scale;
                if (cut) {
                    const Ints distance = position - (int32_t)(start + key);
                    Ints seen = distance >= 0;
                    if (cut->window) seen &= distance < (int32_t)cut->window;
                    row = seen ? row : all(-INFINITY);
                }
                store(scores[key] + lane, row);
                highest = larger(highest, row);
            }
            Floats part = {};
            for (int key = 0; key < count; key += 2) {
                const Floats even = exponential(load(scores[key] + lane) - highest);
                const bool has_odd = key + 1 < count;
                const Floats odd =
                    has_odd ? exponential(load(scores[key + 1] + lane) - highest) : Floats{};
                part += even + odd;
                const Ints both = paired(even, odd);
                memcpy(shares[key / 2] + lane, &both, sizeof both);
            }
            const Floats rescale = exponential(running_max[tile] - highest);
            running_sum[tile] = running_sum[tile] * rescale + part;
            running_max[tile] = highest;
            for (int64_t d = 0; d < value_size; d++)
                store(sums[d] + lane, load(sums[d] + lane) * rescale);
        }
    }

    void accumulate(const BFloat16 *values, int64_t width, int count) {
        for (int key = 0; key < count; key += 2)
            for (int64_t d = 0; d < width; d += LANES) {
                const bool has_odd = key + 1 < count;
                const Ints both = paired(load(values + key * width + d),
                                         has_odd ? load(values + (key + 1) * width + d) : Floats{});
                memcpy(pairs[key / 2] + d, &both, sizeof both);
            }
        for (int64_t d = 0; d < width; d += TOGETHER) {
            const int32_t *rows[TOGETHER];
            Floats seen[TOGETHER][TILES];
            for (int one = 0; one < TOGETHER; one++) {
                rows[one] = &pairs[0][d + one];
                for (int tile = 0; tile < TILES; tile++)
                    seen[one][tile] = load(sums[d + one] + tile * LANES);
            }
            multiply_pairs(rows, MAX_HEAD_SIZE, shares, (count + 1) / 2, seen);
            for (int one = 0; one < TOGETHER; one++)
                for (int tile = 0; tile < TILES; tile++)
                    store(sums[d + one] + tile * LANES, seen[one][tile]);
        }
    }

    void give(const Heads &heads, const Piece &piece, int64_t shared, int64_t first_column,
              int64_t num_columns, int64_t group, BFloat16 *out) {
        alignas(64) uint16_t halves[MAX_HEAD_SIZE][COLUMNS];
        for (int64_t d = 0; d < heads.value_size; d++)
            for (int tile = 0; tile < TILES; tile++)
                store((BFloat16 *)halves[d] + tile * LANES,
                      load(sums[d] + tile * LANES) / running_sum[tile]);
        for (int64_t column = 0; column < num_columns; column++) {
            const int64_t used = first_column + column;
            const int64_t row = used / group, head = shared * group + used % group;
            auto to = out + ((piece.first_row + row) * heads.num_heads + head) * heads.value_size;
            for (int64_t d = 0; d < heads.value_size; d++) to[d].bits = halves[d][column];
        }
    }
};

// Attend for one piece of many rows.
inline void attend_prompt(const Heads &heads, const Piece &piece, const BFloat16 *query,
                          BFloat16 *out, int num_threads) {
    const int64_t group = heads.num_heads / heads.num_shared;
    const int64_t num_tiles = (piece.num_rows * group + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(dynamic) num_threads(num_threads) if (num_threads > 1)
    for (int64_t task = 0; task < num_tiles * heads.num_shared; task++) {
        // The last tiles see the most: they go first.
        const int64_t tile = num_tiles - 1 - task / heads.num_shared;
        static thread_local PromptTile workspace;
        workspace.run(heads, piece, query, task % heads.num_shared, tile * COLUMNS, out);
    }
}

}  // namespace cortex

#endif
