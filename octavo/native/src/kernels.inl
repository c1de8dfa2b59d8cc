// All kernels, for the vectors and the dot products that the including file has defined, and their table.
#include "matmul.inl"
#include "rows.inl"
#include "attention.inl"
#include "lightning.inl"
#include "sampling.inl"

static constexpr Kernels table(const char *name) {
    return {name, LANES, supported, matmul<4>, matmul<8>, matmul<16>, unpack_row, quantise, norm, dot_rows, swiglu,
            silu, sigmoid_gate, softmax_in_place, attend<float>, attend<int8_t>, merge, lightning, most_of, weigh,
            weigh_all, within};
}
