// The C interface of octavo's CPU core: what Python (library.py, by ctypes) sees. Structures here are mirrored there
// field by field; octavo_sizes() lets it check. Nothing here throws: functions that can fail return an OctStatus.
#pragma once
#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

enum OctStatus : int32_t { OCT_OK = 0, OCT_NO_MEMORY = 1, OCT_NO_THREADS = 2 };

// Numbers of activations and weights that share a scale, rows of a weight unit, tokens of a key/value page.
enum { OCT_GROUP = 32, OCT_UNIT = 32, OCT_PAGE = 32 };

// A packed matrix [rows, cols] (pack.h); `count` of them end to end for stacked experts. bits: 4, 8 or 16 (bf16).
struct OctMatrix {
    const uint8_t *data;
    int64_t rows, cols;
    int32_t bits, count;
};

// One layer. Pointers that its kind does not use are null.
struct OctLayer {
    int32_t lightning, experts;       // 0 or 1: which attention, which feed-forward
    int32_t store;                    // number among the layers of its attention kind: whose pages or states it has
    int32_t post_norm;                // the residual is the normed stream
    float attention_alpha, attention_beta, mlp_alpha, mlp_beta;
    const float *attention_norm, *mlp_norm;   // [hidden]
    const float *router;              // [experts, hidden]
    const float *decays;              // [heads]: e^-slope of each head
    const float *inner_norm;          // [heads * head_dim]
    const float *shared_gate;         // [hidden]
    OctMatrix attention_in;           // softmax: q, k, v; lightning: q, k, v, gate; each part padded to whole units
    OctMatrix attention_out;
    OctMatrix gate_up, down;          // gate_up: unit of gate rows, unit of up rows, in turns; count: experts
    OctMatrix shared_gate_up, shared_down;
};

struct OctModel {
    int32_t hidden, intermediate, shared_intermediate, vocab, layers, heads, kv_heads, head_dim;
    int32_t experts, top_k, rotary_dim, window;   // window 0: none
    int32_t advise;                   // 1: not all weights fit into memory; ask the system for them ahead (paging.cpp)
    float norm_eps, inner_norm_eps;
    const OctLayer *layer;            // [layers]
    const float *final_norm;          // [hidden]
    const float *frequencies;         // [rotary_dim / 2]
    OctMatrix embed, head;
};

// Keys and values: fp32 (scales null) or int8 with one fp32 scale a token and head. One page of one layer holds
//   keys   [kv_heads][head_dim][OCT_PAGE]        scales [kv_heads][OCT_PAGE]
//   values [kv_heads][OCT_PAGE][padded head_dim] scales [kv_heads][OCT_PAGE]
// where head_dim is padded to a multiple of 16; pages lie as [softmax layer][page].
struct OctMemory {
    void *keys, *values;
    float *key_scales, *value_scales;
    float *states;                    // [lightning layer][slot][heads][head_dim][head_dim]
    int64_t pages, slots;
};

// The arrays of engine/runner.py's StepBatch, and where the results go.
struct OctBatch {
    int64_t rows, sequences, table_width;
    const int64_t *ids, *cu_seqlens, *positions, *page_table, *state_slots;
    int64_t num_logit_rows, num_hidden_rows;
    const int64_t *logit_rows, *hidden_rows;
    float *logits, *hidden;           // [num_logit_rows, vocab], [num_hidden_rows, hidden]
    int64_t *expert_counts;           // [layers, experts], added to
};

// A token to be drawn from a row of logits, or its largest where the temperature is 0 (engine/draw.py).
struct OctDraw {
    int64_t row, top_k;
    double temperature, top_p, min_p, drawn;
};

struct OctRunner;

void octavo_sizes(int64_t sizes[6]);                  // of the six structures above, in their order
const char *octavo_source_hash(void);                 // of the sources this library was built from
const char *octavo_isa(void);                         // the kernels in use: portable, avx2, avx512
OctStatus octavo_use_isa(const char *name);           // choose among octavo_isas; not while a runner exists
const char *octavo_isas(void);                        // those this machine can run, best first, by commas
int32_t octavo_lanes(void);                           // of the kernels in use: rows that a packed matrix interleaves

int64_t octavo_packed_bytes(int64_t rows, int64_t cols, int32_t bits);
// Lay `rows` rows of weights into every `step`-th unit of a packed matrix, starting at unit `first`.
// bits 16: q bf16 [rows, cols]; bits 8: int8 [rows, cols]; bits 4: uint8 [rows, ceil(cols / 2)], low nibble first, 8 is
// zero. scales: fp16 [rows, ceil(cols / 32)], none for bits 16.
void octavo_pack(uint8_t *packed, const void *q, const uint16_t *scales, int64_t rows, int64_t cols, int32_t bits,
                 int64_t first, int64_t step);
uint32_t octavo_crc32c(const uint8_t *data, int64_t bytes, uint32_t crc);
// The table of single kernels in use (kernels.h) and its size, for tests.
const void *octavo_kernels(int64_t *bytes);
double octavo_read_bandwidth(const uint8_t *data, int64_t bytes, int32_t threads);   // bytes a second

// The sum of e^(logit - largest), right to some 1e-7 of itself. largest: the largest logit.
double octavo_weight_sum(const float *logits, int64_t vocab, float largest);
// The token that `drawn` (0 to below 1) falls on among those that the parameters leave (engine/draw.py). largest: the
// largest logit. -1: there is none that is finite, or `largest` is above them all; -2: no memory.
int32_t octavo_draw(const float *logits, int64_t vocab, float largest, double temperature, int64_t top_k, double top_p,
                    double min_p, double drawn);

OctStatus octavo_open(const OctModel *model, const OctMemory *memory, int32_t threads, OctRunner **runner);
OctStatus octavo_step(OctRunner *runner, const OctBatch *batch);
// Tokens drawn from logits [.., vocab], on the runner's threads. -1: a row has NaN, infinity or nothing finite; -2: no
// memory.
void octavo_draw_rows(OctRunner *runner, const float *logits, int64_t vocab, const OctDraw *draws, int64_t count,
                      int32_t *tokens);
void octavo_close(OctRunner *runner);
}
#pragma GCC visibility pop
