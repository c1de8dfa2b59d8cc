// Vectors of LANES floats, by the compilers' vector extensions. Included once in the namespace of each instruction set,
// so that no two of them share a function: the linker would keep one copy, perhaps that of a larger set.

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef int8_t vb __attribute__((vector_size(LANES)));

static inline vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
static inline vf splat(float x) { return x - vf{}; }
// The two bf16 numbers in each lane, the lower half first.
static inline vf low_bf16(vi pairs) { return (vf)(pairs << 16); }
static inline vf high_bf16(vi pairs) { return (vf)(pairs & ~0xffff); }
static inline vf to_float(vi v) { return __builtin_convertvector(v, vf); }
static inline vf max(vf a, vf b) { return a > b ? a : b; }
static inline vf abs(vf a) { return (vf)((vi)a & 0x7fffffff); }

static inline float sum(vf v) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}
static inline float largest(vf v) {
    float out = v[0];
    for (int i = 1; i < LANES; i++) out = v[i] > out ? v[i] : out;
    return out;
}

// To the nearest integer, halves to even; |x| below 2^22.
static inline vf round(vf x) {
    const float magic = 12582912.0f;   // 1.5 * 2^23
    return (x + magic) - magic;
}
