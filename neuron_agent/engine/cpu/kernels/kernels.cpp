// The functions that Python calls. It vouches for addresses, sizes and dtypes.

#include "decode_attention.h"
#include "decoder.h"
#include "products.h"
#include "prompt_attention.h"
#include "slots.h"
#include "steps.h"

using namespace cortex;

// Call `function` with numbers of the kind that the caller has.
#define FOR_NUMBER(is_float, function)  \
    if (is_float) {                     \
        typedef float Number;           \
        function;                       \
    } else {                            \
        typedef BFloat16 Number;        \
        function;                       \
    }

extern "C" {

// Runs something of everything, for a processor that lacks an instruction to die here and now.
// Returns 0.
int cortex_try() {
    constexpr int SIZE = 2 * LANES, ROWS_TRIED = 3;
    alignas(64) static BFloat16 rows[ROWS_TRIED * 4 * SIZE], out[ROWS_TRIED * 4 * SIZE];
    alignas(64) static float floats[ROWS_TRIED * 4 * SIZE], turns[ROWS_TRIED * SIZE];
    alignas(64) static BFloat16 slot[2 * ROWS_TRIED * SIZE];
    norm(rows, rows, ROWS_TRIED, SIZE, 1, out, 1);
    turn(rows, rows, turns, ROWS_TRIED, SIZE, 1, SIZE, 1, 1);
    gate(rows, ROWS_TRIED, SIZE, out, 1);
    norm(floats, floats, ROWS_TRIED, SIZE, 1, floats, 1);
    const Heads heads{1, 1, SIZE, SIZE, SIZE, SIZE, SIZE, 1};
    const int64_t keys = (int64_t)slot, values = (int64_t)(slot + ROWS_TRIED * SIZE);
    const Piece single{keys, values, ROWS_TRIED, 0, 1, 0, 0};
    store_pieces(heads, &single, 1, rows, rows);
    decode(heads, &single, 1, rows, out, 1);
#if defined(CORTEX_HAS_PRODUCTS)
    const Piece prompt{keys, values, ROWS_TRIED, 0, ROWS_TRIED, 0, 0};
    store_pieces(heads, &prompt, 1, rows, rows);
    attend_prompt(heads, prompt, rows, out, 1);
    alignas(64) static int32_t weights[LANES * SIZE], corrections[LANES];
    const Product pairs{weights, nullptr, nullptr, nullptr, LANES, SIZE};
    apply(pairs, rows, ROWS_TRIED, out, false, nullptr, 1);
    const Product fours{weights, floats, corrections, nullptr, LANES, SIZE};
    apply(fours, rows, ROWS_TRIED, out, true, turns, 1);
#endif
    return 0;
}

int cortex_has_products() {
#if defined(CORTEX_HAS_PRODUCTS)
    return 1;
#else
    return 0;
#endif
}

void cortex_store(const Heads *heads, const Piece *pieces, int64_t num_pieces, const void *key,
                  const void *value, int is_float) {
    FOR_NUMBER(is_float, store_pieces(*heads, pieces, num_pieces, (const Number *)key,
                                      (const Number *)value))
}

void cortex_decode(const Heads *heads, const Piece *pieces, int64_t num_pieces, const void *query,
                   void *out, int is_float, int num_threads) {
    FOR_NUMBER(is_float, decode(*heads, pieces, num_pieces, (const Number *)query, (Number *)out,
                                num_threads))
}

void cortex_norm(const void *rows, const void *weight, int64_t num_rows, int64_t width,
                 float epsilon, void *out, int is_float, int num_threads) {
    FOR_NUMBER(is_float, norm((const Number *)rows, (const Number *)weight, num_rows, width,
                              epsilon, (Number *)out, num_threads))
}

void cortex_turn(void *rows, const void *weights, const float *turns, int64_t num_rows,
                 int64_t row_stride, int64_t num_heads, int64_t width, float epsilon, int is_float,
                 int num_threads) {
    FOR_NUMBER(is_float, turn((Number *)rows, (const Number *)weights, turns, num_rows, row_stride,
                              num_heads, width, epsilon, num_threads))
}

void cortex_gate(const void *rows, int64_t num_rows, int64_t width, void *out, int is_float,
                 int num_threads) {
    FOR_NUMBER(is_float, gate((const Number *)rows, num_rows, width, (Number *)out, num_threads))
}

#if defined(CORTEX_HAS_PRODUCTS)

void cortex_prompt(const Heads *heads, const Piece *piece, const BFloat16 *query, BFloat16 *out,
                   int num_threads) {
    attend_prompt(*heads, *piece, query, out, num_threads);
}

void cortex_product(const Product *product, const BFloat16 *inputs, int64_t num_rows,
                    BFloat16 *out, float *workspace, int num_threads) {
    apply(*product, inputs, num_rows, out, false, workspace, num_threads);
}

void cortex_decoder(const Decoder *decoder, const Step *step, int num_threads) {
    StepRun(*decoder, *step, num_threads).run();
}

#endif
}
