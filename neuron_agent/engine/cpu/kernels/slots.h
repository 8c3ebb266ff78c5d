// What attention is given: rows of a step, and the slots they are stored in.

#pragma once

#include <cmath>
#include <cstdint>

namespace cortex {

constexpr int MAX_HEAD_SIZE = 256;

// Queries' heads share keys' heads evenly. Rows of a step lie so many numbers apart.
struct Heads {
    int64_t num_heads, num_shared, key_size, value_size;
    int64_t query_step, key_step, value_step;
    double scale;
};

// A sequence's rows in the step, and where it keeps its tokens: [num_shared, capacity, size].
// Of 64-bit numbers only: Python fills it as an array.
struct Piece {
    int64_t keys, values;  // addresses
    int64_t capacity, first_row, num_rows, start;
    int64_t window;  // 0 = none
};

}  // namespace cortex
