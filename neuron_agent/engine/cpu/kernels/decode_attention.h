// Attention of sequences that decode: one query row each, over all that their slots keep.
//
// Shares of the keys are made on the way, a block of keys at a time, against the largest score so
// far (the online softmax of Milakov and Gimelshein, 2018). Scores and sums are float.

#pragma once

#include <algorithm>
#include <cmath>

#include "slots.h"
#include "vectors.h"

namespace cortex {

constexpr int BLOCK_KEYS = 64;

template <class Number, int HEADS>
class DecodeTask {
  public:
    // query [HEADS, D], out [HEADS, Dv], keys [.., D], values [.., Dv] of the head that they share.
    static void run(const Heads &heads, const Number *query, const Number *keys,
                    const Number *values, int64_t first, int64_t end, Number *out) {
        const int64_t width = heads.key_size, value_width = heads.value_size;
        float queries[HEADS][MAX_HEAD_SIZE], sums[HEADS][MAX_HEAD_SIZE] = {};
        float most[HEADS], total[HEADS] = {};
        for (int head = 0; head < HEADS; head++) {
            most[head] = -1e30f;
            for (int64_t d = 0; d < width; d += LANES)
                store(queries[head] + d, load(query + head * width + d) * (float)heads.scale);
        }
        for (int64_t start = first; start < end; start += BLOCK_KEYS) {
            const int count = std::min<int64_t>(BLOCK_KEYS, end - start);
            alignas(64) float shares[HEADS][BLOCK_KEYS];
            score(queries, keys + start * width, width, count, shares);
            for (int head = 0; head < HEADS; head++) {
                const float fade = share(shares[head], count, most[head], total[head]);
                for (int64_t d = 0; d < value_width; d += LANES)
                    store(sums[head] + d, load(sums[head] + d) * fade);
            }
            gather(shares, values + start * value_width, value_width, count, sums);
        }
        for (int head = 0; head < HEADS; head++)
            for (int64_t d = 0; d < value_width; d += LANES)
                store(out + head * value_width + d, load(sums[head] + d) / total[head]);
    }

  private:
    static void score(const float (&queries)[HEADS][MAX_HEAD_SIZE], const Number *keys,
                      int64_t width, int count, float (&scores)[HEADS][BLOCK_KEYS]) {
        for (int key = 0; key < count; key++) {
            Floats products[HEADS] = {};
            for (int64_t d = 0; d < width; d += LANES) {
                const Floats numbers = load(keys + key * width + d);
                for (int head = 0; head < HEADS; head++)
                    products[head] += numbers * load(queries[head] + d);
            }
            for (int head = 0; head < HEADS; head++) scores[head][key] = sum(products[head]);
        }
        for (int head = 0; head < HEADS; head++)
            std::fill(scores[head] + count, scores[head] + BLOCK_KEYS, -INFINITY);
    }

    // Turn scores into shares. Returns what earlier sums are to be multiplied by.
    static float share(float *scores, int count, float &most, float &total) {
        float highest = most;
        for (int key = 0; key < count; key++) highest = std::max(highest, scores[key]);
        Floats part = {};
        for (int key = 0; key < BLOCK_KEYS; key += LANES) {
            const Floats shares = exponential(load(scores + key) - highest);
            store(scores + key, shares);
            part += shares;
        }
        const float fade = exponential(all(most - highest))[0];
        total = total * fade + sum(part);
        most = highest;
        return fade;
    }

    static void gather(const float (&shares)[HEADS][BLOCK_KEYS], const Number *values,
                       int64_t width, int count, float (&sums)[HEADS][MAX_HEAD_SIZE]) {
        for (int64_t d = 0; d < width; d += LANES) {
            Floats seen[HEADS];
            for (int head = 0; head < HEADS; head++) seen[head] = load(sums[head] + d);
            for (int key = 0; key < count; key++) {
                const Floats numbers = load(values + key * width + d);
                for (int head = 0; head < HEADS; head++) seen[head] += numbers * shares[head][key];
            }
            for (int head = 0; head < HEADS; head++) store(sums[head] + d, seen[head]);
        }
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
        auto from = query + piece.first_row * heads.query_step + head * heads.key_size;
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
