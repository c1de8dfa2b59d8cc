// Kernels in plain C++, for every machine: the compiler makes of its vectors what the machine has.
#include "kernels.h"
#include "pack.h"
#include <cfloat>
#include <cmath>
#include <cstring>

namespace octavo {
namespace portable_isa {

constexpr int LANES = 8;
#include "vector.inl"

struct Bytes { uint8_t at[LANES * 4]; };   // a quad: 4 columns of each lane's row

static inline vf fma(vf a, vf b, vf c) { return a * b + c; }

static inline float half(uint16_t bits) {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff, wide;
    if (rest >= 0x7c00) wide = 0x7f800000 | (rest & 0x3ff) << 13;
    else if (rest >= 0x400) wide = (rest << 13) + 0x38000000;
    else {   // subnormal: rest * 2^-24
        float value = float(rest) * 5.9604644775390625e-8f;
        memcpy(&wide, &value, 4);
    }
    wide |= sign;
    float out;
    memcpy(&out, &wide, 4);
    return out;
}

static inline vf load(const int8_t *p) {
    vb v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(__builtin_convertvector(v, vi), vf);
}

static inline vf load_halves(const uint16_t *p) {
    vf out;
    for (int i = 0; i < LANES; i++) out[i] = half(p[i]);
    return out;
}

static inline Bytes load_int8(const uint8_t *p) {
    Bytes out;
    memcpy(out.at, p, sizeof out.at);
    return out;
}
static inline void load_int4(const uint8_t *p, Bytes *low, Bytes *high) {
    for (int i = 0; i < LANES * 4; i++) low->at[i] = p[i] & 15, high->at[i] = p[i] >> 4;
}

template <class Weight> static inline vi dot(const Bytes *w, const int8_t *x) {
    vi out = {};
    for (int quad = 0; quad < 8; quad++)
        for (int lane = 0; lane < LANES; lane++)
            for (int i = 0; i < 4; i++) out[lane] += Weight(w[quad].at[lane * 4 + i]) * x[quad * 4 + i];
    return out;
}
static inline vi dot_int8(const Bytes *w, const int8_t *x, int32_t) { return dot<int8_t>(w, x); }
static inline vi dot_int4(const Bytes *w, const int8_t *x, int32_t sum) { return dot<uint8_t>(w, x) - 8 * sum; }

static inline uint32_t lane_bits(vi mask) {
    uint32_t bits = 0;
    for (int lane = 0; lane < LANES; lane++) bits |= uint32_t(mask[lane] & 1) << lane;
    return bits;
}

static bool supported() { return true; }

#include "kernels.inl"

}   // namespace portable_isa

const Kernels portable = portable_isa::table("portable");

}   // namespace octavo
