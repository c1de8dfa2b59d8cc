// The step as a whole, and the C interface to it.
#include "runner.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <system_error>

namespace octavo {

Runner::Runner(const OctModel &model, const OctMemory &memory, int threads)
    : model_(model), layers_(model.layer, model.layer + model.layers), memory_(memory), k_(kernels()), pool_(threads) {}

void Runner::step(const OctBatch &batch) {
    batch_ = &batch;
    rows_ = batch.rows;
    sized();
    each_row([&](int64_t row) { embed(row); });
    for (int64_t number = 0; number < model_.layers; number++) {
        const OctLayer &layer = layers_[number];
        each_row([&](int64_t row) { norm_and_quantise(layer.attention_norm, row); });
        if (layer.lightning) lightning_attention(layer);
        else softmax_attention(layer);
        times(layer.attention_out, quantised_attended_.get(), rows_, update_.get(), model_.hidden);
        each_row([&](int64_t row) {
            join(update_.get() + row * model_.hidden, layer.attention_alpha, layer.attention_beta, layer.post_norm,
                 row);
            norm_and_quantise(layer.mlp_norm, row);
            if (layer.experts) route(layer, row, normed_.get() + row * model_.hidden);
        });
        if (model_.advise) ask_ahead(number);
        feed_forward(layer, number);
        each_row([&](int64_t row) {
            join(update_.get() + row * model_.hidden, layer.mlp_alpha, layer.mlp_beta, layer.post_norm, row);
        });
    }
    results();
    batch_ = nullptr;
}

// Nearly everything of this step's size, before the first layer; attention sizes its sums where it knows their number.
void Runner::sized() {
    const int64_t hidden = model_.hidden, inner = int64_t(model_.heads) * model_.head_dim;
    const int64_t half = model_.rotary_dim / 2, copies = rows_ * (model_.top_k > 1 ? model_.top_k : 1);
    const int bits = model_.embed.bits;   // all matrices have the same
    int64_t projected = 0;
    for (const OctLayer &layer : layers_) projected = std::max(projected, units_of(layer.attention_in.rows) * OCT_UNIT);
    x_.sized(rows_ * hidden), normed_.sized(rows_ * hidden), update_.sized(rows_ * hidden);
    projected_.sized(rows_ * projected), attended_.sized(rows_ * inner);
    quantised_.sized(rows_, hidden, bits), quantised_attended_.sized(rows_, inner, bits);
    quantised_inner_.sized(copies, std::max(model_.intermediate, model_.shared_intermediate), bits);
    route_weights_.sized(copies), route_experts_.sized(copies);
    copies_.sized(copies * hidden);
    if (model_.shared_intermediate) shared_.sized(rows_ * hidden);
    quantised_results_.sized(batch_->num_logit_rows, hidden, bits);
    order_.resize(copies), place_.resize(copies), sequence_of_.resize(rows_);
    all_rows_.assign(1, {0, 0, rows_});
    scores_.sized(rows_ * model_.experts);
    float *cosines = cosines_.sized(rows_ * half), *sines = sines_.sized(rows_ * half);
    for (int64_t s = 0; s < batch_->sequences; s++)
        for (int64_t row = batch_->cu_seqlens[s]; row < batch_->cu_seqlens[s + 1]; row++) {
            sequence_of_[row] = int32_t(s);
            for (int64_t i = 0; i < half; i++) {
                const float angle = float(batch_->positions[row]) * model_.frequencies[i];
                cosines[row * half + i] = std::cos(angle), sines[row * half + i] = std::sin(angle);
            }
        }
    plan_attention();
}

void Runner::embed(int64_t row) {
    const OctMatrix &table = model_.embed;
    const int64_t id = batch_->ids[row], groups = groups_of(table.cols);
    const int64_t tile = id % OCT_UNIT / k_.lanes, lane = id % k_.lanes;
    const uint8_t *at = table.data + id / OCT_UNIT * unit_bytes(groups, table.bits, k_.lanes) +
                        tile * tile_bytes(groups, table.bits, k_.lanes);
    k_.unpack_row(at, table.bits, lane, table.cols, x_.get() + row * model_.hidden);
}

void Runner::norm_and_quantise(const float *weight, int64_t row) {
    float *normed = normed_.get() + row * model_.hidden;
    k_.norm(x_.get() + row * model_.hidden, weight, model_.norm_eps, model_.hidden, normed);
    k_.quantise(normed, model_.hidden, quantised_.get(), row);
}

// x = alpha * r + beta * update, where r is x or, in layers that say so, the normed x.
void Runner::join(const float *update, float alpha, float beta, bool post_norm, int64_t row) {
    float *x = x_.get() + row * model_.hidden;
    const float *stream = post_norm ? normed_.get() + row * model_.hidden : x;
    for (int64_t i = 0; i < model_.hidden; i++) x[i] = alpha * stream[i] + beta * update[i];
}

// out[row * stride + j] = matrix row j . x row, shared out by units.
void Runner::times(const OctMatrix &matrix, const Activations &x, int64_t rows, float *out, int64_t stride) {
    Matmul *const multiply = k_.matmul(matrix.bits);
    const int64_t bytes = unit_bytes(x.groups, matrix.bits, k_.lanes);
    pool_.each(units_of(matrix.rows), [&](int64_t unit, int) {
        const int64_t first = unit * OCT_UNIT, width = std::min<int64_t>(OCT_UNIT, matrix.rows - first);
        const uint8_t *weights = matrix.data + unit * bytes;
        if (width == OCT_UNIT) return multiply(weights, x, nullptr, rows, out + first, stride);
        for (int32_t row = 0; row < rows; row++) {
            float whole[OCT_UNIT];
            multiply(weights, x, &row, 1, whole, OCT_UNIT);
            memcpy(out + row * stride + first, whole, sizeof(float) * width);
        }
    });
}

void Runner::results() {
    const int64_t hidden = model_.hidden;
    const Activations &rows = quantised_results_.get();
    const auto normed = [&](int64_t from, float *to) {
        k_.norm(x_.get() + from * hidden, model_.final_norm, model_.norm_eps, hidden, to);
    };
    for (int64_t i = 0; i < batch_->num_hidden_rows; i++) normed(batch_->hidden_rows[i], batch_->hidden + i * hidden);
    if (!batch_->num_logit_rows) return;
    for (int64_t i = 0; i < batch_->num_logit_rows; i++) {
        normed(batch_->logit_rows[i], normed_.get());
        k_.quantise(normed_.get(), hidden, rows, i);
    }
    times(model_.head, rows, batch_->num_logit_rows, batch_->logits, model_.vocab);
}

}   // namespace octavo

using namespace octavo;

struct OctRunner {
    Runner runner;
};

namespace {

template <class Body> OctStatus guarded(const Body &body) {
    try {
        body();
        return OCT_OK;
    } catch (const std::system_error &) {
        return OCT_NO_THREADS;
    } catch (const std::exception &) {   // bad_alloc and its like
        return OCT_NO_MEMORY;
    }
}

}   // namespace

extern "C" void octavo_sizes(int64_t sizes[6]) {
    sizes[0] = sizeof(OctMatrix), sizes[1] = sizeof(OctLayer), sizes[2] = sizeof(OctModel);
    sizes[3] = sizeof(OctMemory), sizes[4] = sizeof(OctBatch);
    sizes[5] = sizeof(OctDraw);
}

extern "C" OctStatus octavo_open(const OctModel *model, const OctMemory *memory, int32_t threads, OctRunner **runner) {
    return guarded([&] { *runner = new OctRunner{{*model, *memory, threads}}; });
}

extern "C" OctStatus octavo_step(OctRunner *runner, const OctBatch *batch) {
    return guarded([&] { runner->runner.step(*batch); });
}

extern "C" void octavo_draw_rows(OctRunner *runner, const float *logits, int64_t vocab, const OctDraw *draws,
                                 int64_t count, int32_t *tokens) {
    runner->runner.pool().each(count, 1, [&](int64_t i, int) {
        tokens[i] = draw_from(logits + draws[i].row * vocab, vocab, draws[i]);
    });
}

extern "C" void octavo_close(OctRunner *runner) { delete runner; }
