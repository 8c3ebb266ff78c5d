// What a decoder layer does between its products, each in one pass over its rows.

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

}  // namespace cortex
