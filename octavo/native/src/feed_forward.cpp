// Feed-forward of a layer: dense, or routed to experts; a dense layer is one expert that has all rows.
#include "runner.h"
#include <algorithm>
#include <cstring>

namespace octavo {

// ops/experts.py's route: softmax over all experts, the top_k largest (ties to the lower number), renormalised.
void Runner::route(const OctLayer &layer, int64_t row, const float *x) {
    const int64_t experts = model_.experts, top_k = model_.top_k;
    float *weights = route_weights_.get() + row * top_k;
    int32_t *chosen = route_experts_.get() + row * top_k;
    float *scores = scores_.get() + row * experts;
    for (int64_t e = 0; e < experts; e++) scores[e] = k_.dot(layer.router + e * model_.hidden, x, model_.hidden);
    k_.softmax(scores, experts);
    float total = 0.0f;
    for (int64_t j = 0; j < top_k; j++) {
        int64_t best = -1;   // never an expert twice, even where every score is NaN
        for (int64_t e = 0; e < experts; e++) {
            if (std::find(chosen, chosen + j, int32_t(e)) != chosen + j) continue;
            if (best < 0 || scores[e] > scores[best]) best = e;
        }
        chosen[j] = int32_t(best), weights[j] = scores[best];
        total += scores[best];
    }
    for (int64_t j = 0; j < top_k; j++) weights[j] /= total;
}

void Runner::sort_by_expert(int64_t number) {
    const int64_t copies = rows_ * model_.top_k;
    const int32_t *chosen = route_experts_.get();
    std::vector<int64_t> begin(model_.experts + 1, 0);
    for (int64_t i = 0; i < copies; i++) begin[chosen[i] + 1]++;
    expert_rows_.clear();
    for (int64_t e = 0; e < model_.experts; e++) {
        const int64_t count = begin[e + 1];
        if (batch_->expert_counts) batch_->expert_counts[number * model_.experts + e] += count;
        if (count) expert_rows_.push_back({e, begin[e], count});
        begin[e + 1] += begin[e];
    }
    for (int64_t i = 0; i < copies; i++) {
        const int64_t place = begin[chosen[i]]++;
        order_[place] = int32_t(i / model_.top_k), place_[i] = int32_t(place);
    }
}

void Runner::feed_forward(const OctLayer &layer, int64_t number) {
    if (!layer.experts) {
        swiglu_rows(layer.gate_up, layer.down, quantised_.get(), nullptr, all_rows_, rows_, model_.intermediate,
                    update_.get());
        return;
    }
    sort_by_expert(number);
    swiglu_rows(layer.gate_up, layer.down, quantised_.get(), order_.data(), expert_rows_, rows_ * model_.top_k,
                model_.intermediate, copies_.get());
    each_row([&](int64_t row) { sum_experts(row); });
    if (layer.shared_gate) add_shared(layer);
}

// out row i = down (silu(gate x) * up x), x being row rows[i] (i where null); each expert has a range of i.
void Runner::swiglu_rows(const OctMatrix &gate_up, const OctMatrix &down, const Activations &x, const int32_t *rows,
                         const std::vector<ExpertRows> &experts, int64_t count, int64_t width, float *out) {
    constexpr int64_t BLOCK = 32;
    const Activations &inner = quantised_inner_.sized(count, width, down.bits);
    const int64_t units = units_of(width), gate_bytes = unit_bytes(x.groups, gate_up.bits, k_.lanes);
    Matmul *const into_inner = k_.matmul(gate_up.bits);
    pool_.each(int64_t(experts.size()) * units, [&](int64_t task, int) {
        const ExpertRows &of = experts[task / units];
        const int64_t unit = task % units, group_width = std::min<int64_t>(OCT_UNIT, width - unit * OCT_UNIT);
        const uint8_t *weights = gate_up.data + (of.expert * units + unit) * 2 * gate_bytes;
        for (int64_t first = of.first; first < of.first + of.count; first += BLOCK) {
            const int64_t n = std::min(BLOCK, of.first + of.count - first);
            float gate[BLOCK * OCT_UNIT], up[BLOCK * OCT_UNIT];
            int32_t block[BLOCK];
            for (int64_t i = 0; i < n; i++) block[i] = rows ? rows[first + i] : int32_t(first + i);
            into_inner(weights, x, block, n, gate, OCT_UNIT);
            into_inner(weights + gate_bytes, x, block, n, up, OCT_UNIT);
            k_.swiglu(gate, up, n * OCT_UNIT, gate);
            for (int64_t i = 0; i < n; i++) {   // a unit is one group of the rows it makes
                k_.quantise(gate + i * OCT_UNIT, group_width, inner.group((first + i) * inner.groups + unit), 0);
            }
        }
    });
    Matmul *const out_of_inner = k_.matmul(down.bits);
    const int64_t down_units = units_of(down.rows), down_bytes = unit_bytes(inner.groups, down.bits, k_.lanes);
    pool_.each(int64_t(experts.size()) * down_units, [&](int64_t task, int) {
        const ExpertRows &of = experts[task / down_units];
        const int64_t unit = task % down_units, first = unit * OCT_UNIT;
        const int64_t columns = std::min<int64_t>(OCT_UNIT, down.rows - first);
        const uint8_t *weights = down.data + (of.expert * down_units + unit) * down_bytes;
        for (int64_t begin = of.first; begin < of.first + of.count; begin += BLOCK) {
            const int64_t n = std::min(BLOCK, of.first + of.count - begin);
            float whole[BLOCK * OCT_UNIT];
            int32_t block[BLOCK];
            for (int64_t i = 0; i < n; i++) block[i] = int32_t(begin + i);
            out_of_inner(weights, inner, block, n, whole, OCT_UNIT);
            for (int64_t i = 0; i < n; i++)
                memcpy(out + (begin + i) * down.rows + first, whole + i * OCT_UNIT, sizeof(float) * columns);
        }
    });
}

// A token's experts weighted and summed, in the order it chose them.
void Runner::sum_experts(int64_t row) {
    const int64_t hidden = model_.hidden, top_k = model_.top_k;
    float *out = update_.get() + row * hidden;
    for (int64_t j = 0; j < top_k; j++) {
        const float *copy = copies_.get() + place_[row * top_k + j] * hidden;
        const float weight = route_weights_.get()[row * top_k + j];
        if (j == 0)
            for (int64_t i = 0; i < hidden; i++) out[i] = weight * copy[i];
        else
            for (int64_t i = 0; i < hidden; i++) out[i] += weight * copy[i];
    }
}

// MiniMax's shared expert: update = (1 - g) * update + g * shared, g = sigmoid(c . x).
void Runner::add_shared(const OctLayer &layer) {
    swiglu_rows(layer.shared_gate_up, layer.shared_down, quantised_.get(), nullptr, all_rows_, rows_,
                model_.shared_intermediate, shared_.get());
    each_row([&](int64_t row) {
        const int64_t hidden = model_.hidden;
        float one[16] = {1.0f};   // a whole register of any instruction set
        const float score[16] = {k_.dot(layer.shared_gate, normed_.get() + row * hidden, hidden)};
        k_.sigmoid_gate(one, score, 1);
        float *update = update_.get() + row * hidden;
        const float *shared = shared_.get() + row * hidden;
        for (int64_t i = 0; i < hidden; i++) update[i] = (1.0f - one[0]) * update[i] + one[0] * shared[i];
    });
}

}   // namespace octavo
