// Rows times a packed unit. With int4 and int8 weights each output is the sum over groups g, ascending, of
// fma(float(integer dot of g), weight scale * activation scale, acc): ops/quantize.py's quantized_linear. With bf16
// weights it is an fp32 sum over the even columns plus one over the odd columns, both ascending.

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
static inline void quantised_tile_times(const uint8_t *tile, const Activations &x, const int64_t *rows, float *out,
                              int64_t stride) {
    const uint16_t *scales = (const uint16_t *)tile;
    const uint8_t *weights = tile + scale_bytes(x.groups, BITS, LANES);
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

template <int M>
static inline void bf16_tile_times(const uint8_t *tile, const Activations &x, const int64_t *rows, float *out,
                                   int64_t stride) {
    const float *values[M];
    vf even[M], odd[M];
    for (int m = 0; m < M; m++) values[m] = x.exact + rows[m] * x.groups * OCT_GROUP, even[m] = odd[m] = vf{};
    for (int64_t g = 0; g < x.groups; g++, tile += group_bytes(16, LANES)) {
        for (int64_t i = 0; i < group_bytes(16, LANES); i += 64) __builtin_prefetch(tile + AHEAD + i);
        for (int64_t i = 0; i < OCT_GROUP; i += 2) {
            vi pairs;
            memcpy(&pairs, tile + i / 2 * LANES * 4, sizeof pairs);
            for (int m = 0; m < M; m++) {
                const float *at = values[m] + g * OCT_GROUP + i;
                even[m] = fma(splat(at[0]), low_bf16(pairs), even[m]);
                odd[m] = fma(splat(at[1]), high_bf16(pairs), odd[m]);
            }
        }
    }
    for (int m = 0; m < M; m++) store(out + m * stride, even[m] + odd[m]);
}

template <int BITS, int M>
static inline void tile_times(const uint8_t *tile, const Activations &x, const int64_t *rows, float *out,
                              int64_t stride) {
    if constexpr (BITS == 16) bf16_tile_times<M>(tile, x, rows, out, stride);
    else quantised_tile_times<BITS, M>(tile, x, rows, out, stride);
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

// The rows that are left: together, so that the weights are unpacked only once more.
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
    constexpr int TOGETHER_ROWS = BITS == 16 && LANES == 8 ? 4 : 8;   // whose sums fit the registers
    int64_t i = 0;
    for (; i + TOGETHER_ROWS <= count; i += TOGETHER_ROWS)
        unit_times<BITS, TOGETHER_ROWS>(unit, x, rows, i, out, stride);
    rest_times<BITS, TOGETHER_ROWS - 1>(unit, x, rows, i, count - i, out, stride);
}

// One row of a tile back to floats, as for an embedding.
static void unpack_row(const uint8_t *tile, int bits, int64_t lane, int64_t cols, float *out) {
    const int64_t groups = groups_of(cols);
    const uint16_t *scales = (const uint16_t *)tile;
    const uint8_t *weights = tile + scale_bytes(groups, bits, LANES);
    for (int64_t c = 0; c < cols; c++) {
        if (bits == 16) {
            uint16_t half;
            memcpy(&half, weights + (c / 2 * LANES + lane) * 4 + c % 2 * 2, 2);
            const uint32_t whole = uint32_t(half) << 16;
            memcpy(out + c, &whole, 4);
            continue;
        }
        const int64_t g = c / OCT_GROUP, quad = c % OCT_GROUP / 4;
        const uint8_t *group = weights + g * group_bytes(bits, LANES) + lane * 4 + c % 4;
        const float scale = load_halves(scales + g * LANES)[lane];
        if (bits == 8) out[c] = scale * float(int8_t(group[quad * LANES * 4]));
        else out[c] = scale * float((group[quad % 4 * LANES * 4] >> (quad < 4 ? 0 : 4) & 15) - 8);
    }
}
