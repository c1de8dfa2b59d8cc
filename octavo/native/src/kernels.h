// The table of single-threaded kernels. Each instruction set has one (isa_*.cpp); machine.cpp picks.
//
// One arithmetic per row: what a kernel computes for a row never depends on the rows beside it, so a request gives the
// same bits alone, in any batch and in any chunking.
#pragma once
#include "octavo.h"

namespace octavo {

// Rows of activations in groups of 32, the last one filled up with zeros. For int4 and int8 weights they are quantised:
// x ~ q * scale, and `sum` is that of the group's q. For bf16 weights they are `exact`, the other pointers are null.
struct Activations {
    int8_t *q;        // [rows, groups * 32]
    float *scale;     // [rows, groups]; NaN where the group held NaN or an infinity
    int32_t *sum;     // [rows, groups]
    int64_t groups;
    float *exact;     // [rows, groups * 32]

    Activations group(int64_t number) const {   // one group by itself
        if (exact) return {nullptr, nullptr, nullptr, 1, exact + number * OCT_GROUP};
        return {q + number * OCT_GROUP, scale + number, sum + number, 1, nullptr};
    }
};

// Keys and values of one head in one page (octavo.h, OctMemory), and those that will be read soon, or again these.
struct KvPage {
    const void *keys, *values;
    const float *key_scales, *value_scales;
    const void *later_keys, *later_values;
};

// The running softmax of one query over the keys seen so far (Milakov & Gimelshein 2018): largest score, sum of
// exponentials, and their weighted sum of values [padded head_dim].
struct Softmax {
    float largest, sum;
    float *values;
};

// 32 outputs for each of `count` rows: out[i * stride + 0..31]. Row i is row rows[i] of x, or i where rows is null.
using Matmul = void(const uint8_t *unit, const Activations &x, const int32_t *rows, int64_t count, float *out,
                    int64_t stride);

struct Kernels {
    const char *name;
    int lanes;   // rows interleaved in a weight tile, floats in a register
    bool (*supported)();

    Matmul *matmul4, *matmul8, *matmul16;
    void (*unpack_row)(const uint8_t *tile, int bits, int64_t lane, int64_t cols, float *out);   // of a packed matrix
    void (*quantise)(const float *x, int64_t cols, const Activations &out, int64_t row);   // or copy, where it is exact
    void (*norm)(const float *x, const float *weight, float eps, int64_t cols, float *out);
    float (*dot)(const float *a, const float *b, int64_t cols);
    void (*swiglu)(const float *gate, const float *up, int64_t cols, float *out);
    void (*silu)(float *x, int64_t cols);
    void (*sigmoid_gate)(float *x, const float *gate, int64_t cols);   // x *= sigmoid(gate)
    void (*softmax)(float *x, int64_t cols);

    // Fold tokens first..last-1 of a page into the softmax of `count` queries [head_dim], all of which see them all.
    void (*attend)(const KvPage &page, int first, int last, const float *const *queries, int count, int64_t head_dim,
                   Softmax *into);
    void (*attend8)(const KvPage &page, int first, int last, const float *const *queries, int count, int64_t head_dim,
                    Softmax *into);
    void (*merge)(const Softmax &later, int64_t width, Softmax *into);

    // Lightning attention over `count` tokens of one head: S = decay S + k v^T, o = S^T q. Token i's q, k, v [width]
    // lie at i * stride, its o at i * out_stride; state: [width, width].
    void (*lightning)(const float *q, const float *k, const float *v, int64_t stride, int64_t count, float decay,
                      int64_t width, float *state, float *out, int64_t out_stride);

    // The largest of some logits; NaN where one is NaN or infinite.
    float (*most_of)(const float *x, int64_t count);
    // The weights e^((x - top) * inverse) of logits x, the largest being `top`; their sum, right to about 1e-7.
    void (*weigh)(const float *x, int64_t count, float top, float inverse, float *out);
    double (*weigh_all)(const float *x, int64_t count, float top, float inverse);
    // Numbers, ascending, of those x for which nearest < top - x <= farthest, and how many they are.
    int64_t (*within)(const float *x, int64_t count, float top, float nearest, float farthest, int32_t *numbers);

    Matmul *matmul(int bits) const { return bits == 4 ? matmul4 : bits == 8 ? matmul8 : matmul16; }
};

extern const Kernels portable, avx2, avx512;

const Kernels &kernels();   // those in use

bool has_avx2(), has_avx512_vnni();   // can this machine run those kernels? x86-64 only

// sampling.cpp: one of octavo_draw_rows.
int32_t draw_from(const float *logits, int64_t vocab, const OctDraw &how);

// sampling.cpp: one of octavo_draw_rows.
int32_t draw_from(const float *logits, int64_t vocab, const OctDraw &how);

}   // namespace octavo
