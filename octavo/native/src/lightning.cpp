// Lightning attention of a layer (models/lightning.py), token by token: the bits do not depend on the chunking.
#include "runner.h"
#include <algorithm>

namespace octavo {

// Rows of attention_in are q, k and v of head 0, then of head 1 and so on; the output gate's follow.
void Runner::lightning_attention(const OctLayer &layer) {
    const int64_t dim = model_.head_dim, heads = model_.heads, inner = heads * dim;
    const int64_t width = units_of(layer.attention_in.rows) * OCT_UNIT, gate_at = units_of(3 * inner) * OCT_UNIT;
    times(layer.attention_in, quantised_.get(), rows_, projected_.get(), width);
    each_row([&](int64_t row) { k_.silu(projected_.get() + row * width, 3 * inner); });
    pool_.each(batch_->sequences * heads, 1, [&](int64_t task, int) {
        const int64_t sequence = task / heads, head = task % heads, first = batch_->cu_seqlens[sequence];
        const int64_t slot = layer.store * memory_.slots + batch_->state_slots[sequence];
        float *state = memory_.states + (slot * heads + head) * dim * dim;
        if (batch_->positions[first] == 0) std::fill(state, state + dim * dim, 0.0f);
        const float *q = projected_.get() + first * width + head * 3 * dim;
        k_.lightning(q, q + dim, q + 2 * dim, width, batch_->cu_seqlens[sequence + 1] - first, layer.decays[head], dim,
                     state, attended_.get() + first * inner + head * dim, inner);
    });
    each_row([&](int64_t row) {
        float *out = attended_.get() + row * inner;
        k_.norm(out, layer.inner_norm, model_.inner_norm_eps, inner, out);   // one norm over all heads together
        k_.sigmoid_gate(out, projected_.get() + row * width + gate_at, inner);
    });
    quantise_attended();
}

}   // namespace octavo
