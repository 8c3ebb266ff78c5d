// All layers of a decoder in one call: Llama, Qwen2, Qwen3 and Mistral in bfloat16 or int8.
//
// What `FusedForward` does layer by layer. A step of few rows takes little longer than its weights
// take to be read: calling a dozen kernels a layer from Python would cost a third of it again.

#pragma once

#include "decode_attention.h"
#include "products.h"
#include "prompt_attention.h"
#include "slots.h"
#include "steps.h"

#if defined(CORTEX_HAS_PRODUCTS)

namespace cortex {

struct Layer {
    const BFloat16 *input_norm, *head_norms, *mlp_norm;  // head_norms may be none
    Product query_key_value, output, gate_up, down;
};

struct Decoder {
    Heads heads;
    int64_t hidden, intermediate, num_layers;
    const Layer *layers;
    const BFloat16 *norm;
    double epsilon;
};

// One step's rows and where they are kept. Of every layer its pieces, those of a single row first.
struct Step {
    int64_t num_rows, num_pieces, num_single, num_wanted;
    const Piece *pieces;      // [num_layers, num_pieces]
    const float *turns;       // [num_rows, head size]
    const int64_t *wanted;    // [num_wanted]: the rows to give
    BFloat16 *states;         // [num_rows, hidden], overwritten
    BFloat16 *normed;         // [num_rows, hidden]
    BFloat16 *wide;           // [num_rows, all heads or 2 * intermediate, whichever is more]
    BFloat16 *narrow;         // [num_rows, queries' heads or intermediate, whichever is more]
    BFloat16 *out;            // [num_wanted, hidden], after the last norm
    float *workspace;         // for int8: see `apply`
};

class StepRun {
  public:
    StepRun(const Decoder &decoder, const Step &step, int num_threads)
        : decoder(decoder), heads(decoder.heads), step(step), num_threads(num_threads),
          num_rows(step.num_rows), states(step.states), attended(step.narrow) {}

    void run() {
        for (int64_t index = 0; index < decoder.num_layers; index++) {
            const Layer &layer = decoder.layers[index];
            const Piece *pieces = step.pieces + index * step.num_pieces;
            const bool is_last = index == decoder.num_layers - 1;
            store(layer, pieces);
            if (is_last && !step.num_wanted) return;  // nobody asks: the slots are filled
            attend(pieces);
            if (is_last) keep_wanted();
            apply_linear(layer.output, attended, states, true);
            norm_states(layer.mlp_norm, step.normed);
            apply_linear(layer.gate_up, step.normed, step.wide, false);
            gate(step.wide, num_rows, decoder.intermediate, step.narrow, num_threads);
            apply_linear(layer.down, step.narrow, states, true);
        }
        norm_states(decoder.norm, step.out);
    }

  private:
    const Decoder &decoder;
    const Heads &heads;
    const Step &step;
    const int num_threads;
    int64_t num_rows;
    BFloat16 *states, *attended;

    void norm_states(const BFloat16 *weight, BFloat16 *out) {
        norm(states, weight, num_rows, decoder.hidden, decoder.epsilon, out, num_threads);
    }

    void apply_linear(const Product &linear, const BFloat16 *inputs, BFloat16 *out, bool is_added) {
        apply(linear, inputs, num_rows, out, is_added, step.workspace, num_threads);
    }

    // Queries, keys and values into `wide`, and on into their slots.
    void store(const Layer &layer, const Piece *pieces) {
        const int64_t num_turned = heads.num_heads + heads.num_shared;
        norm_states(layer.input_norm, step.normed);
        apply_linear(layer.query_key_value, step.normed, step.wide, false);
        turn(step.wide, layer.head_norms, step.turns, num_rows, heads.query_stride, num_turned,
             heads.key_size, decoder.epsilon, num_threads);
        store_pieces(heads, pieces, step.num_pieces, step.wide + heads.num_heads * heads.key_size,
                     step.wide + num_turned * heads.key_size);
    }

    // What the heads see: [num_rows, H * D] in `attended`.
    void attend(const Piece *pieces) {
        decode(heads, pieces, step.num_single, step.wide, attended, num_threads);
        for (int64_t piece = step.num_single; piece < step.num_pieces; piece++)
            attend_prompt(heads, pieces[piece], step.wide, attended, num_threads);
    }

    // From here on only the rows that are asked for.
    void keep_wanted() {
        const int64_t width = heads.num_heads * heads.value_size;
        for (int64_t row = 0; row < step.num_wanted; row++) {
            const int64_t from = step.wanted[row];
            memcpy(step.out + row * decoder.hidden, states + from * decoder.hidden,
                   decoder.hidden * sizeof(BFloat16));
            memcpy(step.wide + row * width, attended + from * width, width * sizeof(BFloat16));
        }
        states = step.out;
        attended = step.wide;
        num_rows = step.num_wanted;
    }
};

}  // namespace cortex

#endif
