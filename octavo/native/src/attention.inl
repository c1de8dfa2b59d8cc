// Softmax attention over a page of keys and values, for queries that are already scaled by 1/sqrt(head_dim).
//
// Each query's arithmetic is its own: scores are summed over head_dim in ascending order, values over tokens in
// ascending order, whatever the number of queries that share the loads.

constexpr int TOKEN_VECTORS = OCT_PAGE / LANES;
constexpr int TOGETHER = LANES == 16 ? 6 : 3;   // queries that fit the registers

// Pages lie apart, and each is too short for the hardware to see a stream: without this, attention over long contexts
// is up to twice as slow.
template <class T, int COUNT> static inline void ask_for(const T *later) {
    for (size_t i = 0; i < COUNT * sizeof(T); i += 64) __builtin_prefetch((const char *)later + i);
}

template <class T, int Q>
static inline void scores(const KvPage &page, const float *const *queries, int64_t head_dim, float (*out)[OCT_PAGE]) {
    const T *keys = (const T *)page.keys, *later = (const T *)page.later_keys;
    vf acc[Q][TOKEN_VECTORS] = {};
    for (int64_t d = 0; d < head_dim; d++) {
        ask_for<T, OCT_PAGE>(later + d * OCT_PAGE);
        for (int v = 0; v < TOKEN_VECTORS; v++) {
            const vf key = load(keys + d * OCT_PAGE + v * LANES);
            for (int q = 0; q < Q; q++) acc[q][v] = fma(splat(queries[q][d]), key, acc[q][v]);
        }
    }
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < TOKEN_VECTORS; v++) {
            if (sizeof(T) == 1) acc[q][v] = acc[q][v] * load(page.key_scales + v * LANES);
            store(out[q] + v * LANES, acc[q][v]);
        }
}

template <class T, int Q, int V>
static inline void add_values(const KvPage &page, const float (*weights)[OCT_PAGE], int first, int last, int64_t width,
                              int64_t column, Softmax *into) {
    const T *values = (const T *)page.values + column, *later = (const T *)page.later_values + column;
    vf acc[Q][V];
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < V; v++) acc[q][v] = load(into[q].values + column + v * LANES);
    for (int t = first; t < last; t++) {
        ask_for<T, V * LANES>(later + t * width);
        for (int v = 0; v < V; v++) {
            const vf value = load(values + t * width + v * LANES);
            for (int q = 0; q < Q; q++) acc[q][v] = fma(splat(weights[q][t]), value, acc[q][v]);
        }
    }
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < V; v++) store(into[q].values + column + v * LANES, acc[q][v]);
}

// Rescale the sums so far to a new largest score.
static inline void rescale(Softmax *state, float largest, int64_t width) {
    const float factor = exp_negative(splat(state->largest - largest))[0];
    state->sum *= factor;
    for (int64_t i = 0; i < width; i += LANES) store(state->values + i, load(state->values + i) * factor);
    state->largest = largest;
}

template <class T, int Q>
static inline void attend_some(const KvPage &page, int first, int last, const float *const *queries, int64_t head_dim,
                               Softmax *into) {
    const int64_t width = (head_dim + 15) / 16 * 16;
    float weights[Q][OCT_PAGE];
    scores<T, Q>(page, queries, head_dim, weights);
    for (int q = 0; q < Q; q++) {
        // what lies outside first..last-1 may be anything, NaN too
        for (int t = 0; t < first; t++) weights[q][t] = -INFINITY;
        for (int t = last; t < OCT_PAGE; t++) weights[q][t] = -INFINITY;
        vf top = load(weights[q]);
        for (int v = 1; v < TOKEN_VECTORS; v++) top = max(top, load(weights[q] + v * LANES));
        const float here = largest(top);
        if (here > into[q].largest) rescale(&into[q], here, width);
        vf total = {};
        for (int v = 0; v < TOKEN_VECTORS; v++) {
            const vf e = exp_negative(load(weights[q] + v * LANES) - into[q].largest);
            total += e;
            // an int8 value's scale goes into its weight
            store(weights[q] + v * LANES, sizeof(T) == 1 ? e * load(page.value_scales + v * LANES) : e);
        }
        into[q].sum += sum(total);
    }
    int64_t column = 0;
    for (; column + 4 * LANES <= width; column += 4 * LANES)
        add_values<T, Q, 4>(page, weights, first, last, width, column, into);
    for (; column < width; column += LANES)
        add_values<T, Q, 1>(page, weights, first, last, width, column, into);
}

template <class T, int Q>
static inline void attend_rest(const KvPage &page, int first, int last, const float *const *queries, int count,
                               int64_t head_dim, Softmax *into) {
    if constexpr (Q > 0) {
        if (count == Q) attend_some<T, Q>(page, first, last, queries, head_dim, into);
        else attend_rest<T, Q - 1>(page, first, last, queries, count, head_dim, into);
    }
}

template <class T>
static void attend(const KvPage &page, int first, int last, const float *const *queries, int count, int64_t head_dim,
                   Softmax *into) {
    int i = 0;
    for (; i + TOGETHER <= count; i += TOGETHER)
        attend_some<T, TOGETHER>(page, first, last, queries + i, head_dim, into + i);
    attend_rest<T, TOGETHER - 1>(page, first, last, queries + i, count - i, head_dim, into + i);
}

// Join the softmax over later tokens to that over earlier ones.
static void merge(const Softmax &later, int64_t width, Softmax *into) {
    if (later.sum == 0.0f) return;   // it saw no key, as where a window begins after it: -inf - -inf would be NaN
    float factor = 1.0f;
    if (later.largest > into->largest) rescale(into, later.largest, width);
    else factor = exp_negative(splat(later.largest - into->largest))[0];
    into->sum += later.sum * factor;
    for (int64_t i = 0; i < width; i += LANES)
        store(into->values + i, load(into->values + i) + load(later.values + i) * factor);
}
