// What attention is given: rows of a step, and the slots they are stored in.

#pragma once

#include <cstdint>
#include <cstring>

namespace cortex {

constexpr int MAX_HEAD_SIZE = 256;

// Queries' heads share keys' heads evenly. Rows of a step lie so many numbers apart.
struct Heads {
    int64_t num_heads, num_shared, key_size, value_size;
    int64_t query_stride, key_stride, value_stride;
    double scale;
};

// A sequence's rows in the step, and where it keeps its tokens: [num_shared, capacity, size].
// Of 64-bit numbers only: Python fills it as an array.
struct Piece {
    int64_t keys, values;  // addresses
    int64_t capacity, first_row, num_rows, start;
    int64_t window;  // 0 = none
};

template <class Number>
void store_rows(const Heads &heads, const Piece &piece, const Number *rows, int64_t row_stride,
                int64_t size, int64_t address) {
    for (int64_t shared = 0; shared < heads.num_shared; shared++) {
        Number *to = (Number *)address + (shared * piece.capacity + piece.start) * size;
        for (int64_t row = 0; row < piece.num_rows; row++)
            memcpy(to + row * size, rows + (piece.first_row + row) * row_stride + shared * size,
                   size * sizeof(Number));
    }
}

// Write the step's new keys and values into their slots.
template <class Number>
void store_pieces(const Heads &heads, const Piece *pieces, int64_t num_pieces, const Number *key,
                  const Number *value) {
    for (int64_t number = 0; number < num_pieces; number++) {
        const Piece &piece = pieces[number];
        store_rows(heads, piece, key, heads.key_stride, heads.key_size, piece.keys);
        store_rows(heads, piece, value, heads.value_stride, heads.value_size, piece.values);
    }
}

}  // namespace cortex
