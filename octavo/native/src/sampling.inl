// Passes over the logits of a row that the choice of a token needs.

constexpr int64_t STRIDE = 8 * LANES;   // logits that are looked at together

static float most_of(const float *x, int64_t count) {
    vf most[4] = {splat(-INFINITY), splat(-INFINITY), splat(-INFINITY), splat(-INFINITY)};
    vi wrong = {};   // all bits set where a number was NaN or infinite
    const auto look = [&](int k, vf v) {
        most[k] = max(v, most[k]);   // of a NaN, the other
        wrong |= ~(v <= splat(FLT_MAX));
    };
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int k = 0; k < 4; k++) look(k, load(x + i + k * LANES));
    for (; i < count; i++) look(0, splat(x[i]));
    if (lane_bits(wrong)) return NAN;
    return largest(max(max(most[0], most[1]), max(most[2], most[3])));
}

// e^((x - top) * inverse) of a register.
static inline vf weight_of(vf x, float top, float inverse) { return exp_negative((x - top) * inverse); }

static void weigh(const float *x, int64_t count, float top, float inverse, float *out) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(out + i, weight_of(load(x + i), top, inverse));
    if (i < count) store_some(out + i, weight_of(load_some(x + i, int(count - i)), top, inverse), int(count - i));
}

static double weigh_all(const float *x, int64_t count, float top, float inverse) {
    double total = 0.0;
    int64_t i = 0;
    for (; i + STRIDE <= count; i += STRIDE) {
        vf part[4];   // four chains, since one would wait for each addition
        for (int k = 0; k < 4; k++) part[k] = weight_of(load(x + i + k * LANES), top, inverse);
        for (int k = 0; k < 4; k++) part[k] += weight_of(load(x + i + (k + 4) * LANES), top, inverse);
        total += sum((part[0] + part[1]) + (part[2] + part[3]));
    }
    float rest[STRIDE];
    weigh(x + i, count - i, top, inverse, rest);
    for (int64_t k = 0; k < count - i; k++) total += rest[k];
    return total;
}

static int64_t within(const float *x, int64_t count, float top, float nearest, float farthest, int32_t *numbers) {
    int64_t found = 0;
    const auto look = [&](int64_t i, int n) {
        const vf depth = top - load_some(x + i, n);
        uint32_t bits = lane_bits((depth > nearest) & (depth <= farthest));
        if (n < LANES) bits &= (1u << n) - 1;
        for (; bits; bits &= bits - 1) numbers[found++] = int32_t(i) + __builtin_ctz(bits);
    };
    int64_t i = 0;
    for (; i + STRIDE <= count; i += STRIDE) {
        vf most = load(x + i);
        for (int k = 1; k < 8; k++) most = max(most, load(x + i + k * LANES));
        if (!lane_bits(top - most <= farthest)) continue;   // mostly
        for (int k = 0; k < 8; k++) look(i + k * LANES, LANES);
    }
    by_registers(count - i, [&](int64_t k, int n) { look(i + k, n); });
    return found;
}
