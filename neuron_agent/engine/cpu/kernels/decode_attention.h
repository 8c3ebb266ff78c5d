// Attention of sequences that decode: one query row each, over all that their slots keep.
//
// Shares of the keys are made on the way, a block of keys at a time, against the largest score so
// far (the online softmax of Milakov and Gimelshein, 2018). Scores and sums are float.

#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <type_traits>

#include "slots.h"
#include "vectors.h"

namespace cortex {

constexpr int BLOCK_KEYS = 64;

// The products of one row of keys with the queries of the heads that share it.
template <class Number, int HEADS>
struct Queries {
    static constexpr int NUMBERS = LANES;
    float rows[HEADS][MAX_HEAD_SIZE];

    Queries(const Number *query, int64_t width) {
        for (int head = 0; head < HEADS; head++)
            for (int64_t d = 0; d < width; d += LANES)
                store(rows[head] + d, load(query + head * width + d));
    }

    static Floats keys(const Number *row) { return load(row); }

    Floats add(Floats sums, Floats keys, int head, int64_t d) const {
        return sums + keys * load(rows[head] + d);
    }
};

#if defined(__AVX512BF16__)

// In pairs, as far as a head has whole vectors of them.
template <int HEADS>
struct PairQueries {
    static constexpr int NUMBERS = 2 * LANES;
    const BFloat16 *rows;
    int64_t width;

    static __m512bh keys(const BFloat16 *row) { return (__m512bh)_mm512_loadu_si512(row); }

    Floats add(Floats sums, __m512bh keys, int head, int64_t d) const {
        const __m512i pairs = _mm512_loadu_si512(rows + head * width + d);
        return (Floats)_mm512_dpbf16_ps((__m512)sums, keys, (__m512bh)pairs);
    }
};

#endif

template <class Number, int HEADS>
class DecodeTask {
  public:
    // query [HEADS, D], out [HEADS, Dv], keys [.., D], values [.., Dv] of the head that they share.
    static void run(const Heads &heads, const Number *query, const Number *keys,
                    const Number *values, int64_t first, int64_t end, Number *out) {
#if defined(__AVX512BF16__)
        if constexpr (std::is_same_v<Number, BFloat16>)
            if (heads.key_size % PairQueries<HEADS>::NUMBERS == 0) {
                const PairQueries<HEADS> queries{query, heads.key_size};
                return attend(heads, queries, keys, values, first, end, out);
            }
#endif
        attend(heads, Queries<Number, HEADS>(query, heads.key_size), keys, values, first, end, out);
    }

  private:
    template <class Query>
    static void attend(const Heads &heads, const Query &queries, const Number *keys,
                       const Number *values, int64_t first, int64_t end, Number *out) {
        const int64_t width = heads.key_size, value_width = heads.value_size;
        float sums[HEADS][MAX_HEAD_SIZE] = {}, running_max[HEADS], running_sum[HEADS] = {};
        std::fill(running_max, running_max + HEADS, -FLT_MAX);
        for (int64_t start = first; start < end; start += BLOCK_KEYS) {
            const int count = std::min<int64_t>(BLOCK_KEYS, end - start);
            alignas(64) float shares[HEADS][BLOCK_KEYS];
            score(queries, keys + start * width, width, count, shares);
            for (int head = 0; head < HEADS; head++) {
                const float rescale = share(shares[head], count, heads.scale, running_max[head],
                                            running_sum[head]);
                for (int64_t d = 0; d < value_width; d += LANES)
                    store(sums[head] + d, load(sums[head] + d) * rescale);
            }
            accumulate(shares, values + start * value_width, value_width, count, sums);
        }
        for (int head = 0; head < HEADS; head++)
            for (int64_t d = 0; d < value_width; d += LANES)
                store(out + head * value_width + d, load(sums[head] + d) / running_sum[head]);
    }

    // Four keys at a time: their sums across lanes are made together.
    template <class Query>
    static void score(const Query &queries, const Number *keys, int64_t width, int count,
                      float (&scores)[HEADS][BLOCK_KEYS]) {
        for (int key = 0; key < count; key += 4) {
            const Number *rows[4];
            for (int one = 0; one < 4; one++)
                rows[one] = keys + std::min(key + one, count - 1) * width;
            Floats products[HEADS][4] = {};
            for (int64_t d = 0; d < width; d += Query::NUMBERS)
                for (int one = 0; one < 4; one++) {
                    const auto numbers = Query::keys(rows[one] + d);
                    for (int head = 0; head < HEADS; head++)
                        products[head][one] = queries.add(products[head][one], numbers, head, d);
                }
            for (int head = 0; head < HEADS; head++) store_sums(scores[head] + key, products[head]);
        }
        for (int head = 0; head < HEADS; head++)
            std::fill(scores[head] + count, scores[head] + BLOCK_KEYS, -INFINITY);
    }

    // Turn scores into shares. Returns what earlier sums are to be multiplied by.
    static float share(float *scores, int count, float scale, float &running_max,
                       float &running_sum) {
        float highest = running_max;
        for (int key = 0; key < count; key++) highest = std::max(highest, scores[key] *= scale);
        Floats part = {};
        for (int key = 0; key < BLOCK_KEYS; key += LANES) {
            const Floats shares = exponential(load(scores + key) - highest);
            store(scores + key, shares);
            part += shares;
        }
        const float rescale = exponential(all(running_max - highest))[0];
        running_sum = running_sum * rescale + sum(part);
        running_max = highest;
        return rescale;
    }

    static void accumulate(const float (&shares)[HEADS][BLOCK_KEYS], const Number *values,
                       int64_t width, int count, float (&sums)[HEADS][MAX_HEAD_SIZE]) {
        // Wide rows are gone through in parts: a few keys at once, so that they stay near.
        const int most_keys = width > 4 * LANES ? 16 : BLOCK_KEYS;
        for (int key = 0; key < count; key += most_keys) {
            const int some = std::min(most_keys, count - key);
            int64_t d = 0;
            for (; d + 4 * LANES <= width; d += 4 * LANES)
                accumulate_part<4>(shares, key, values + key * width + d, width, some, d, sums);
            for (; d < width; d += LANES)
                accumulate_part<1>(shares, key, values + key * width + d, width, some, d, sums);
        }
    }

    template <int VECTORS>
    static void accumulate_part(const float (&shares)[HEADS][BLOCK_KEYS], int first,
                            const Number *values, int64_t width, int count, int64_t d,
                            float (&sums)[HEADS][MAX_HEAD_SIZE]) {
        Floats seen[HEADS][VECTORS];
        for (int head = 0; head < HEADS; head++)
            for (int part = 0; part < VECTORS; part++)
                seen[head][part] = load(sums[head] + d + part * LANES);
        for (int key = 0; key < count; key++)
            for (int part = 0; part < VECTORS; part++) {
                const Floats numbers = load(values + key * width + part * LANES);
                for (int head = 0; head < HEADS; head++)
                    seen[head][part] += numbers * shares[head][first + key];
            }
        for (int head = 0; head < HEADS; head++)
            for (int part = 0; part < VECTORS; part++)
                store(sums[head] + d + part * LANES, seen[head][part]);
    }
};

template <class Number>
void decode_head(const Heads &heads, const Piece &piece, const Number *query, int64_t shared,
                 Number *out) {
    const int64_t group = heads.num_heads / heads.num_shared;
    const int64_t end = piece.start + 1;
    const int64_t first = piece.window ? std::max<int64_t>(0, end - piece.window) : 0;
    auto keys = (const Number *)piece.keys + shared * piece.capacity * heads.key_size;
    auto values = (const Number *)piece.values + shared * piece.capacity * heads.value_size;
    for (int64_t done = 0; done < group;) {
        const int64_t head = shared * group + done;
        auto from = query + piece.first_row * heads.query_stride + head * heads.key_size;
        auto to = out + (piece.first_row * heads.num_heads + head) * heads.value_size;
        if (group - done >= 4) {
            DecodeTask<Number, 4>::run(heads, from, keys, values, first, end, to);
            done += 4;
        } else if (group - done >= 2) {
            DecodeTask<Number, 2>::run(heads, from, keys, values, first, end, to);
            done += 2;
        } else {
            DecodeTask<Number, 1>::run(heads, from, keys, values, first, end, to);
            done += 1;
        }
    }
}

// Attend for all pieces, of one row each.
template <class Number>
void decode(const Heads &heads, const Piece *pieces, int64_t num_pieces, const Number *query,
            Number *out, int num_threads) {
    const int64_t num_tasks = num_pieces * heads.num_shared;
#pragma omp parallel for schedule(dynamic) num_threads(num_threads) if (num_threads > 1)
    for (int64_t task = 0; task < num_tasks; task++)
        decode_head(heads, pieces[task / heads.num_shared], query, task % heads.num_shared, out);
}

}  // namespace cortex
