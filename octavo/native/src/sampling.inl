// Passes over logits and over candidates for the next token.

// e^((x - top) * inverse) of a register. top: the largest x.
static inline vf weight_of(vf x, float top, float inverse) { return exp_negative((x - top) * inverse); }

static void weigh(const float *x, int64_t count, float top, float inverse, float *out) {
    by_registers(count, [&](int64_t i, int n) { store_some(out + i, weight_of(load_some(x + i, n), top, inverse), n); });
}

// The sum of the weights, right to some 1e-7 of itself: 8 registers are added up in fp32, those sums in fp64.
static double weigh_all(const float *x, int64_t count, float top, float inverse) {
    double total = 0.0;
    int64_t i = 0;
    for (; i + 8 * LANES <= count; i += 8 * LANES) {
        vf part[4];   // four chains, since one would wait for each addition
        for (int k = 0; k < 4; k++) part[k] = weight_of(load(x + i + k * LANES), top, inverse);
        for (int k = 0; k < 4; k++) part[k] += weight_of(load(x + i + (k + 4) * LANES), top, inverse);
        total += sum((part[0] + part[1]) + (part[2] + part[3]));
    }
    float rest[8 * LANES];
    weigh(x + i, count - i, top, inverse, rest);
    for (int64_t k = 0; k < count - i; k++) total += rest[k];
    return total;
}

static int64_t within(const float *x, int64_t count, float top, float nearest, float farthest, int32_t *numbers) {
    int64_t found = 0;
    by_registers(count, [&](int64_t i, int n) {
        const vf depth = top - load_some(x + i, n);
        uint32_t bits = lane_bits((depth > nearest) & (depth <= farthest));
        if (n < LANES) bits &= (1u << n) - 1;
        for (; bits; bits &= bits - 1) numbers[found++] = int32_t(i) + __builtin_ctz(bits);
    });
    return found;
}

// In fp64, in one order whatever the limit: so a larger limit never gives a smaller sum.
static double weight_within(const float *depth, const float *weight, int64_t count, float limit) {
    typedef double vd __attribute__((vector_size(LANES * 8)));
    vd total = {};
    by_registers(count, [&](int64_t i, int n) {   // past the end weights are 0
        const vf some = load_some(weight + i, n);
        total += __builtin_convertvector(load_some(depth + i, n) <= limit ? some : vf{}, vd);
    });
    double out = 0.0;
    for (int lane = 0; lane < LANES; lane++) out += total[lane];
    return out;
}
