// Kernels for x86-64 with AVX2, FMA and F16C (2013 and later). Compiled with those flags: nothing here may run, and no
// inline function of the standard library may be instantiated, before machine.cpp has seen that the machine has them.
#if defined(__x86_64__)
#include "kernels.h"
#include "pack.h"
#include <cfloat>
#include <cmath>
#include <cstring>
#include <immintrin.h>

namespace octavo {
namespace avx2_isa {

constexpr int LANES = 8;
#include "vector.inl"

using Bytes = __m256i;

static inline vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

static inline vf load(const int8_t *p) {
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline vf load_halves(const uint16_t *p) {
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline Bytes load_int8(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void load_int4(const uint8_t *p, Bytes *low, Bytes *high) {
    const __m256i mask = _mm256_set1_epi8(15), both = _mm256_loadu_si256((const __m256i *)p);
    *low = _mm256_and_si256(both, mask);
    *high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
}

static inline __m256i quad(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

// maddubs saturates int16. Nibbles never reach that: a group adds 8 pairs of at most 2 * 15 * 127, 30480 in all.
static inline vi dot_int4(const Bytes *w, const int8_t *x, int32_t sum) {
    __m256i pairs = _mm256_maddubs_epi16(w[0], quad(x));
    for (int i = 1; i < 8; i++) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[i], quad(x + 4 * i)));
    __m256i dots = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    return (vi)_mm256_sub_epi32(dots, _mm256_set1_epi32(8 * sum));
}

// Its first operand is unsigned: the weight's sign moves to the activation. A pair is at most 2 * 128 * 127, 32512.
static inline vi dot_int8(const Bytes *w, const int8_t *x, int32_t) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i dots = _mm256_setzero_si256();
    for (int i = 0; i < 8; i++) {
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(quad(x + 4 * i), w[i]));
        dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
    }
    return (vi)dots;
}

static inline uint32_t lane_bits(vi mask) { return uint32_t(_mm256_movemask_ps((__m256)mask)); }

static constexpr bool (*supported)() = has_avx2;

#include "kernels.inl"

}   // namespace avx2_isa

const Kernels avx2 = avx2_isa::table("avx2");

}   // namespace octavo
#endif
