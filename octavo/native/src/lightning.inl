// The recurrence of lightning attention (ops/linear_attention.py), a strip of LANES value columns at a time.
//
// Tokens go through a strip in blocks whose state stays in a register: the arithmetic is that of one token at a time.

template <int T>
static inline void lightning_block(const float *q, const float *k, const float *v, int64_t stride, float decay,
                                   int64_t width, int64_t row, float *state, vf *out) {
    vf value[T], o[T];
    for (int t = 0; t < T; t++) value[t] = load(v + t * stride), o[t] = vf{};
    for (int64_t d = 0; d < width; d++) {
        vf s = load(state + d * row);
        for (int t = 0; t < T; t++) {
            s = fma(splat(k[t * stride + d]), value[t], s * decay);
            o[t] = fma(splat(q[t * stride + d]), s, o[t]);
        }
        store(state + d * row, s);
    }
    for (int t = 0; t < T; t++) out[t] = o[t];
}

// A strip that does not fill a register goes through copies of its state and values.
static inline void lightning_strip(const float *q, const float *k, const float *v, int64_t stride, int64_t count,
                                   float decay, int64_t width, int64_t column, float *state, float *out,
                                   int64_t out_stride) {
    const int lanes = width - column < LANES ? int(width - column) : LANES;
    for (int64_t i = 0; i < count;) {
        const int block = count - i >= 4 && lanes == LANES ? 4 : 1;
        vf o[4];
        if (block == 4) {
            lightning_block<4>(q + i * stride, k + i * stride, v + i * stride + column, stride, decay, width, width,
                               state + column, o);
        } else if (lanes == LANES) {
            lightning_block<1>(q + i * stride, k + i * stride, v + i * stride + column, stride, decay, width, width,
                               state + column, o);
        } else {
            const vf value = load_some(v + i * stride + column, lanes);
            o[0] = vf{};
            for (int64_t d = 0; d < width; d++) {
                vf s = load_some(state + d * width + column, lanes);
                s = fma(splat(k[i * stride + d]), value, s * decay);
                o[0] = fma(splat(q[i * stride + d]), s, o[0]);
                store_some(state + d * width + column, s, lanes);
            }
        }
        for (int t = 0; t < block; t++) store_some(out + (i + t) * out_stride + column, o[t], lanes);
        i += block;
    }
}

static void lightning(const float *q, const float *k, const float *v, int64_t stride, int64_t count, float decay,
                      int64_t width, float *state, float *out, int64_t out_stride) {
    for (int64_t column = 0; column < width; column += LANES)
        lightning_strip(q, k, v, stride, count, decay, width, column, state, out, out_stride);
}
