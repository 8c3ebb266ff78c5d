// What a decoder layer does between products and attention, each in one pass over its rows.

#pragma once

#include <cmath>

#include "vectors.h"

namespace cortex {

// out[d] = x[d] / rms(x) * weight[d]
template <class Number>
inline void norm_row(const Number *row, const Number *weight, int64_t width, float epsilon,
                     Number *out) {
    Floats squares = {};
    for (int64_t d = 0; d < width; d += LANES) {
        const Floats numbers = load(row + d);
        squares += numbers * numbers;
    }
    const float scale = 1 / std::sqrt(sum(squares) / width + epsilon);
    for (int64_t d = 0; d < width; d += LANES)
        store(out + d, load(row + d) * scale * load(weight + d));
}

// Norm one head, where there is a weight, and turn it by its position's cosines and sines [D / 2].
template <class Number>
inline void turn_head(Number *head, const Number *weight, int64_t width, float epsilon,
                      const float *cosines, const float *sines) {
    if (weight) norm_row(head, weight, width, epsilon, head);
    const int64_t half = width / 2;
    for (int64_t d = 0; d < half; d += LANES) {
        const Floats left = load(head + d), right = load(head + half + d);
        const Floats cosine = load(cosines + d), sine = load(sines + d);
        store(head + d, left * cosine - right * sine);
        store(head + half + d, right * cosine + left * sine);
    }
}

// out[d] = silu(gate[d]) * up[d]; a row has all gates, then all ups.
template <class Number>
inline void gate_row(const Number *row, int64_t width, Number *out) {
    for (int64_t d = 0; d < width; d += LANES) {
        const Floats gate = load(row + d);
        store(out + d, gate / (exponential(-gate) + 1.0f) * load(row + width + d));
    }
}

constexpr int64_t LEAST_PARALLEL_ROWS = 16;  // fewer are done before other threads are awake

template <class Each>
void for_rows(int64_t num_rows, int num_threads, Each each) {
#pragma omp parallel for schedule(static) num_threads(num_threads) \
    if (num_threads > 1 && num_rows >= LEAST_PARALLEL_ROWS)
    for (int64_t row = 0; row < num_rows; row++) each(row);
}

template <class Number>
void norm(const Number *rows, const Number *weight, int64_t num_rows, int64_t width, float epsilon,
          Number *out, int num_threads) {
    for_rows(num_rows, num_threads, [=](int64_t row) {
        norm_row(rows + row * width, weight, width, epsilon, out + row * width);
    });
}

// Turn the first heads of each row, `row_stride` numbers apart; weights [num_heads, width] or none;
// turns: of each row cosines, then sines, of half a head each.
template <class Number>
void turn(Number *rows, const Number *weights, const float *turns, int64_t num_rows,
          int64_t row_stride, int64_t num_heads, int64_t width, float epsilon, int num_threads) {
    for_rows(num_rows, num_threads, [=](int64_t row) {
        const float *cosines = turns + row * width;
        for (int64_t head = 0; head < num_heads; head++)
            turn_head(rows + row * row_stride + head * width,
                      weights ? weights + head * width : nullptr, width, epsilon, cosines,
                      cosines + width / 2);
    });
}

template <class Number>
void gate(const Number *rows, int64_t num_rows, int64_t width, Number *out, int num_threads) {
    for_rows(num_rows, num_threads, [=](int64_t row) {
        gate_row(rows + row * 2 * width, width, out + row * width);
    });
}

}  // namespace cortex
