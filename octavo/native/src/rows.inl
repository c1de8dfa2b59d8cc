// Kernels on single rows of floats.

// e^x within 2 units in the last place for x <= 0, 0 below -87; NaN stays NaN. Cephes' reduction and polynomial.
static inline vf exp_negative(vf x) {
    const vf n = round(max(x, splat(-88.0f)) * 1.44269504088896341f);
    vf r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + 1.0f;
    const vf power = (vf)((__builtin_convertvector(n, vi) + 127) << 23);
    return x < -87.0f ? vf{} : p * power;
}

static inline vf sigmoid(vf x) {
    const vf e = exp_negative(-abs(x));
    return (x >= 0.0f ? splat(1.0f) : e) / (e + 1.0f);
}

// Apply op to [0, cols) by registers, the rest of a last one through a copy: no lane depends on another.
template <class Op> static inline void by_registers(int64_t cols, Op op) {
    for (int64_t i = 0; i < cols; i += LANES) op(i, cols - i < LANES ? int(cols - i) : LANES);
}
static inline vf load_some(const float *p, int count) {
    if (count == LANES) return load(p);
    float some[LANES] = {};
    memcpy(some, p, sizeof(float) * count);
    return load(some);
}
static inline void store_some(float *p, vf v, int count) { memcpy(p, &v, sizeof(float) * count); }

static void quantise(const float *x, int64_t cols, const Activations &out, int64_t row) {
    if (out.exact) {
        float *to = out.exact + row * out.groups * OCT_GROUP;
        memcpy(to, x, sizeof(float) * cols);
        memset(to + cols, 0, sizeof(float) * (out.groups * OCT_GROUP - cols));
        return;
    }
    for (int64_t g = 0; g < out.groups; g++) {
        const int64_t left = cols - g * OCT_GROUP;
        float group[OCT_GROUP] = {};
        memcpy(group, x + g * OCT_GROUP, sizeof(float) * (left < OCT_GROUP ? left : int64_t(OCT_GROUP)));
        vi top = {};   // as integers, positive floats keep their order and NaN comes last
        for (int i = 0; i < OCT_GROUP; i += LANES) {
            const vi bits = (vi)abs(load(group + i));
            top = bits > top ? bits : top;
        }
        int32_t bits = 0;
        for (int i = 0; i < LANES; i++) bits = top[i] > bits ? top[i] : bits;
        float amax;
        memcpy(&amax, &bits, 4);
        const bool finite = bits < 0x7f800000;
        const bool zero = amax < 1e-36f;   // 127 / amax leaves fp32 just below it
        const float inverse = finite && !zero ? 127.0f / amax : 0.0f;
        int8_t *q = out.q + (row * out.groups + g) * OCT_GROUP;
        vi total = {};
        if (inverse > 0.0f) {
            for (int i = 0; i < OCT_GROUP; i += LANES) {
                const vi rounded = __builtin_convertvector(round(load(group + i) * inverse), vi);
                const vb narrow = __builtin_convertvector(rounded, vb);
                memcpy(q + i, &narrow, LANES);
                total += rounded;
            }
        } else {
            memset(q, 0, OCT_GROUP);
        }
        out.scale[row * out.groups + g] = !finite ? NAN : zero ? 0.0f : amax / 127.0f;
        int32_t whole = 0;
        for (int lane = 0; lane < LANES; lane++) whole += total[lane];
        out.sum[row * out.groups + g] = whole;
    }
}

static float dot_rows(const float *a, const float *b, int64_t cols) {
    vf acc = {};
    by_registers(cols, [&](int64_t i, int n) { acc = fma(load_some(a + i, n), load_some(b + i, n), acc); });
    return sum(acc);
}

static void norm(const float *x, const float *weight, float eps, int64_t cols, float *out) {
    const float scale = 1.0f / sqrtf(dot_rows(x, x, cols) / float(cols) + eps);
    by_registers(cols, [&](int64_t i, int n) {
        store_some(out + i, load_some(weight + i, n) * (load_some(x + i, n) * scale), n);
    });
}

static void swiglu(const float *gate, const float *up, int64_t cols, float *out) {
    by_registers(cols, [&](int64_t i, int n) {
        const vf g = load_some(gate + i, n);
        store_some(out + i, g * sigmoid(g) * load_some(up + i, n), n);
    });
}

static void silu(float *x, int64_t cols) {
    by_registers(cols, [&](int64_t i, int n) {
        const vf v = load_some(x + i, n);
        store_some(x + i, v * sigmoid(v), n);
    });
}

static void sigmoid_gate(float *x, const float *gate, int64_t cols) {
    by_registers(cols, [&](int64_t i, int n) {
        store_some(x + i, load_some(x + i, n) * sigmoid(load_some(gate + i, n)), n);
    });
}

static void softmax_in_place(float *x, int64_t cols) {
    float top = x[0];
    for (int64_t i = 1; i < cols; i++) top = x[i] > top ? x[i] : top;
    float total = 0.0f;
    by_registers(cols, [&](int64_t i, int n) { store_some(x + i, exp_negative(load_some(x + i, n) - top), n); });
    for (int64_t i = 0; i < cols; i++) total += x[i];
    for (int64_t i = 0; i < cols; i++) x[i] /= total;
}
