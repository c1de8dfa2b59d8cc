// Quantised rows times a packed unit. Each output is sum over groups g, ascending, of
// fma(float(integer dot of g), weight scale * activation scale, acc): ops/quantize.py's quantized_linear.

// How far ahead weights are asked for, in bytes. A unit's weights are read once, from memory, in a stream too short for
// the hardware to get going: without this decoding is a third slower. Reading past the end asks for nothing.
constexpr int64_t AHEAD = 4096;

template <int BITS> static inline void load_group(const uint8_t *p, Bytes w[8]) {
    constexpr int stride = LANES * 4;
    if (BITS == 8)
        for (int i = 0; i < 8; i++) w[i] = load_int8(p + i * stride);
    else
        for (int i = 0; i < 4; i++) load_int4(p + i * stride, &w[i], &w[i + 4]);
}

// One tile for M rows: a group's weights are loaded and unpacked once for all of them.
template <int BITS, int M>
static inline void tile_times(const uint8_t *tile, const Activations &x, const int64_t *rows, float *out,
                              int64_t stride) {
    const uint16_t *scales = (const uint16_t *)tile;
    const uint8_t *weights = tile + scale_bytes(x.groups, LANES);
    const int8_t *q[M];
    const float *scale[M];
    const int32_t *sum[M];
    vf acc[M];
    for (int m = 0; m < M; m++) {
        q[m] = x.q + rows[m] * x.groups * OCT_GROUP;
        scale[m] = x.scale + rows[m] * x.groups;
        sum[m] = x.sum + rows[m] * x.groups;
        acc[m] = vf{};
    }
    for (int64_t g = 0; g < x.groups; g++, weights += group_bytes(BITS, LANES)) {
        for (int64_t i = 0; i < group_bytes(BITS, LANES); i += 64) __builtin_prefetch(weights + AHEAD + i);
        Bytes w[8];
        load_group<BITS>(weights, w);
        const vf weight_scale = load_halves(scales + g * LANES);
        for (int m = 0; m < M; m++) {
            const int8_t *activations = q[m] + g * OCT_GROUP;
            const vi dots = BITS == 8 ? dot_int8(w, activations, sum[m][g]) : dot_int4(w, activations, sum[m][g]);
            acc[m] = fma(to_float(dots), weight_scale * scale[m][g], acc[m]);
        }
    }
    for (int m = 0; m < M; m++) store(out + m * stride, acc[m]);
}

template <int BITS, int M>
static inline void unit_times(const uint8_t *unit, const Activations &x, const int32_t *rows, int64_t first, float *out,
                              int64_t stride) {
    int64_t of[M];
    for (int m = 0; m < M; m++) of[m] = rows ? rows[first + m] : first + m;
    const int64_t bytes = tile_bytes(x.groups, BITS, LANES);
    for (int tile = 0; tile < OCT_UNIT / LANES; tile++)
        tile_times<BITS, M>(unit + tile * bytes, x, of, out + first * stride + tile * LANES, stride);
}

// The rows that are left, fewer than 8: together, so that the weights are unpacked only once more.
template <int BITS, int M>
static inline void rest_times(const uint8_t *unit, const Activations &x, const int32_t *rows, int64_t first,
                              int64_t count, float *out, int64_t stride) {
    if constexpr (M > 0) {
        if (count == M) unit_times<BITS, M>(unit, x, rows, first, out, stride);
        else rest_times<BITS, M - 1>(unit, x, rows, first, count, out, stride);
    }
}

template <int BITS>
static void matmul(const uint8_t *unit, const Activations &x, const int32_t *rows, int64_t count, float *out,
                   int64_t stride) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) unit_times<BITS, 8>(unit, x, rows, i, out, stride);
    rest_times<BITS, 7>(unit, x, rows, i, count - i, out, stride);
}

// One row of a tile back to floats, as for an embedding.
static void unpack_row(const uint8_t *tile, int bits, int64_t lane, int64_t cols, float *out) {
    const int64_t groups = groups_of(cols);
    const uint16_t *scales = (const uint16_t *)tile;
    const uint8_t *weights = tile + scale_bytes(groups, LANES);
    for (int64_t c = 0; c < cols; c++) {
        const int64_t g = c / OCT_GROUP, quad = c % OCT_GROUP / 4;
        const uint8_t *group = weights + g * group_bytes(bits, LANES) + lane * 4 + c % 4;
        const float scale = load_halves(scales + g * LANES)[lane];
        if (bits == 8) out[c] = scale * float(int8_t(group[quad * LANES * 4]));
        else out[c] = scale * float((group[quad % 4 * LANES * 4] >> (quad < 4 ? 0 : 4) & 15) - 8);
    }
}
