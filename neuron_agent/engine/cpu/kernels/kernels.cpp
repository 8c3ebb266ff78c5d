// The functions that Python calls. Addresses and sizes are checked there.

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
                 int64_t row_step, int64_t num_heads, int64_t width, float epsilon, int is_float,
                 int num_threads) {
    FOR_NUMBER(is_float, turn((Number *)rows, (const Number *)weights, turns, num_rows, row_step,
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
                    BFloat16 *out, int num_threads) {
    multiply(*product, inputs, num_rows, out, false, num_threads);
}

void cortex_decoder(const Decoder *decoder, const Step *step, int num_threads) {
    StepRun(*decoder, *step, num_threads).run();
}

#endif
}
