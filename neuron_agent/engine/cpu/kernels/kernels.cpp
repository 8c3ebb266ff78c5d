// The functions that Python calls. Addresses and sizes are checked there.

#include <vector>

#include "decode_attention.h"
#include "layers.h"
#include "products.h"
#include "prompt_attention.h"
#include "slots.h"
#include "vectors.h"

using namespace cortex;

namespace {

template <class Number>
void store_rows(const Heads &heads, const Piece &piece, const Number *rows, int64_t row_step,
                int64_t size, int64_t address) {
    for (int64_t shared = 0; shared < heads.num_shared; shared++) {
        Number *to = (Number *)address + (shared * piece.capacity + piece.start) * size;
        for (int64_t row = 0; row < piece.num_rows; row++)
            memcpy(to + row * size, rows + (piece.first_row + row) * row_step + shared * size,
                   size * sizeof(Number));
    }
}

template <class Number>
void store(const Heads &heads, const Piece &piece, const Number *key, const Number *value) {
    store_rows(heads, piece, key, heads.key_step, heads.key_size, piece.keys);
    store_rows(heads, piece, value, heads.value_step, heads.value_size, piece.values);
}

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

template <class Number>
void decode(const Heads &heads, const Piece *pieces, int64_t num_pieces, const Number *query,
            Number *out, int num_threads) {
    const int64_t num_tasks = num_pieces * heads.num_shared;
#pragma omp parallel for schedule(dynamic) num_threads(num_threads) if (num_threads > 1)
    for (int64_t task = 0; task < num_tasks; task++)
        decode_head(heads, pieces[task / heads.num_shared], query, task % heads.num_shared, out);
}

template <class Number>
void norm(const Number *rows, const Number *weight, int64_t num_rows, int64_t width, float epsilon,
          Number *out, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_threads > 1)
    for (int64_t row = 0; row < num_rows; row++)
        norm_row(rows + row * width, weight, width, epsilon, out + row * width);
}

template <class Number>
void turn(Number *rows, const Number *weights, const float *turns, int64_t num_rows,
          int64_t row_size, int64_t num_heads, int64_t width, float epsilon, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_threads > 1)
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t head = 0; head < num_heads; head++)
            turn_head(rows + row * row_size + head * width,
                      weights ? weights + head * width : nullptr, width, epsilon,
                      turns + row * width, turns + row * width + width / 2);
}

template <class Number>
void gate(const Number *rows, int64_t num_rows, int64_t width, Number *out, int num_threads) {
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_threads > 1)
    for (int64_t row = 0; row < num_rows; row++)
        gate_row(rows + row * 2 * width, width, out + row * width);
}

}  // namespace

extern "C" {

int cortex_has_products() {
#if defined(CORTEX_HAS_PRODUCTS)
    return 1;
#else
    return 0;
#endif
}

void cortex_store(const Heads *heads, const Piece *pieces, int64_t num_pieces, const void *key,
                  const void *value, int is_float) {
    for (int64_t number = 0; number < num_pieces; number++) {
        const Piece &piece = pieces[number];
        if (is_float)
            store(*heads, piece, (const float *)key, (const float *)value);
        else
            store(*heads, piece, (const BFloat16 *)key, (const BFloat16 *)value);
    }
}

void cortex_decode(const Heads *heads, const Piece *pieces, int64_t num_pieces, const void *query,
                   void *out, int is_float, int num_threads) {
    if (is_float)
        decode(*heads, pieces, num_pieces, (const float *)query, (float *)out, num_threads);
    else
        decode(*heads, pieces, num_pieces, (const BFloat16 *)query, (BFloat16 *)out, num_threads);
}

void cortex_norm(const void *rows, const void *weight, int64_t num_rows, int64_t width,
                 float epsilon, void *out, int is_float, int num_threads) {
    if (is_float)
        norm((const float *)rows, (const float *)weight, num_rows, width, epsilon, (float *)out,
             num_threads);
    else
        norm((const BFloat16 *)rows, (const BFloat16 *)weight, num_rows, width, epsilon,
             (BFloat16 *)out, num_threads);
}

void cortex_turn(void *rows, const void *weights, const float *turns, int64_t num_rows,
                 int64_t row_size, int64_t num_heads, int64_t width, float epsilon, int is_float,
                 int num_threads) {
    if (is_float)
        turn((float *)rows, (const float *)weights, turns, num_rows, row_size, num_heads, width,
             epsilon, num_threads);
    else
        turn((BFloat16 *)rows, (const BFloat16 *)weights, turns, num_rows, row_size, num_heads,
             width, epsilon, num_threads);
}

void cortex_gate(const void *rows, int64_t num_rows, int64_t width, void *out, int is_float,
                 int num_threads) {
    if (is_float)
        gate((const float *)rows, num_rows, width, (float *)out, num_threads);
    else
        gate((const BFloat16 *)rows, num_rows, width, (BFloat16 *)out, num_threads);
}

#if defined(CORTEX_HAS_PRODUCTS)

void cortex_prompt(const Heads *heads, const Piece *piece, const BFloat16 *query, BFloat16 *out,
                   int num_threads) {
    const int64_t group = heads->num_heads / heads->num_shared;
    const int64_t num_tiles = (piece->num_rows * group + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for schedule(dynamic) num_threads(num_threads) if (num_threads > 1)
    for (int64_t task = 0; task < num_tiles * heads->num_shared; task++) {
        // The last tiles see the most: they go first.
        const int64_t tile = num_tiles - 1 - task / heads->num_shared;
        static thread_local PromptTile workspace;
        workspace.run(*heads, *piece, query, task % heads->num_shared, tile * COLUMNS, out);
    }
}

void cortex_bfloat16_product(const void *inputs, const void *weights, const BFloat16 *bias,
                             BFloat16 *out, int64_t num_rows, int64_t num_outputs, int64_t width,
                             int num_threads) {
    auto finish = [=](int64_t row, int64_t first, __m512 sums) {
        const Floats numbers = bias ? (Floats)sums + load(bias + first) : (Floats)sums;
        put(out + row * num_outputs, first, num_outputs, numbers);
    };
    product<BFloat16Pairs>((const int32_t *)inputs, (const int32_t *)weights, num_rows,
                           (num_outputs + LANES - 1) / LANES, width / 2, num_threads, finish);
}

// bias, scales and sums (128 times the sum of each output's weights) are padded to whole groups.
void cortex_int8_product(const BFloat16 *inputs, const void *weights, const float *scales,
                         const int32_t *sums, const BFloat16 *bias, BFloat16 *out,
                         int64_t num_rows, int64_t num_outputs, int64_t width, int num_threads) {
    static thread_local std::vector<uint8_t> bytes;
    static thread_local std::vector<float> worths;
    bytes.resize(num_rows * width);
    worths.resize(num_rows);
    to_bytes(inputs, num_rows, width, bytes.data(), worths.data());
    const float *worth = worths.data();
    auto finish = [=](int64_t row, int64_t first, __m512i total) {
        Ints correction;
        memcpy(&correction, sums + first, sizeof correction);
        Floats numbers = __builtin_convertvector((Ints)total - correction, Floats);
        numbers *= load(scales + first) * worth[row];
        if (bias) numbers += load(bias + first);
        put(out + row * num_outputs, first, num_outputs, numbers);
    };
    product<Int8Fours>((const int32_t *)bytes.data(), (const int32_t *)weights, num_rows,
                       (num_outputs + LANES - 1) / LANES, width / 4, num_threads, finish);
}

#endif
}
