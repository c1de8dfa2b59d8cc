// Kernels for x86-64 with AVX-512 and VNNI (Ice Lake, Zen 4 and later). The caution of isa_avx2.cpp holds here too.
#if defined(__x86_64__)
#include "kernels.h"
#include "pack.h"
#include <cfloat>
#include <cmath>
#include <cstring>


#if defined(__clang__)
#include <immintrin.h>
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"   // of gcc 12 on its own _mm512_cvtph_ps
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace octavo {
namespace avx512_isa {

constexpr int LANES = 16;
#include "vector.inl"

using Bytes = __m512i;

static inline vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

static inline vf load(const int8_t *p) {
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline vf load_halves(const uint16_t *p) {
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
// dpbusd takes unsigned weights: 128 is added here and taken off in dot_int8
static inline Bytes load_int8(const uint8_t *p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
}
static inline void load_int4(const uint8_t *p, Bytes *low, Bytes *high) {
    const __m512i mask = _mm512_set1_epi8(15), both = _mm512_loadu_si512(p);
    *low = _mm512_and_si512(both, mask);
    *high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
}

static inline vi dot(const Bytes *w, const int8_t *x, int32_t start) {
    __m512i dots = _mm512_set1_epi32(start);
    for (int i = 0; i < 8; i++) {
        int32_t four;
        memcpy(&four, x + 4 * i, 4);
        dots = _mm512_dpbusd_epi32(dots, w[i], _mm512_set1_epi32(four));
    }
    return (vi)dots;
}
static inline vi dot_int4(const Bytes *w, const int8_t *x, int32_t sum) { return dot(w, x, -8 * sum); }
static inline vi dot_int8(const Bytes *w, const int8_t *x, int32_t sum) { return dot(w, x, -128 * sum); }

static inline uint32_t lane_bits(vi mask) { return _mm512_movepi32_mask((__m512i)mask); }

static constexpr bool (*supported)() = has_avx512_vnni;

#include "kernels.inl"

}   // namespace avx512_isa

const Kernels avx512 = avx512_isa::table("avx512");

}   // namespace octavo
#endif
