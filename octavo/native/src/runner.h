// One model on this machine's cores: the whole stack for a step. Mirrors models/decoder.py, which specifies it.
//
// What a step needs beyond weights and memory lies in the Runner's buffers, which only grow. Matrices read activations
// quantised in groups of 32, all else is fp32. Work on rows is shared out by rows, matrix work by units of 32 outputs.
#pragma once
#include "kernels.h"
#include "pack.h"
#include "pool.h"
#include <memory>
#include <vector>

namespace octavo {

// A buffer that only grows, without initialising what it holds.
template <class T> class Buffer {
public:
    T *sized(int64_t count) {
        if (count > capacity_) {
            memory_.reset(new T[size_t(count)]);
            capacity_ = count;
        }
        return memory_.get();
    }
    T *get() const { return memory_.get(); }

private:
    std::unique_ptr<T[]> memory_;
    int64_t capacity_ = 0;
};

// Activations with memory of their own, in the form that weights of `bits` bits take.
class ActivationRows {
public:
    const Activations &sized(int64_t rows, int64_t cols, int bits) {
        const int64_t groups = groups_of(cols), all = rows * groups;
        if (bits == 16) view_ = {nullptr, nullptr, nullptr, groups, exact_.sized(all * OCT_GROUP)};
        else view_ = {q_.sized(all * OCT_GROUP), scale_.sized(all), sum_.sized(all), groups, nullptr};
        return view_;
    }
    const Activations &get() const { return view_; }

private:
    Buffer<int8_t> q_;
    Buffer<float> scale_;
    Buffer<int32_t> sum_;
    Buffer<float> exact_;
    Activations view_ = {};
};

// Rows that go through one expert: `count` of them, from `first` on in the order sorted by expert.
struct ExpertRows {
    int64_t expert, first, count;
};

// Query rows first..last-1 of a sequence, for `heads` query heads from `head` on, all of one key head; the segments of
// keys they see, and where those are in the list of all segments.
struct AttentionBlock {
    int64_t sequence, first, last, head, heads, first_segment, last_segment, segments_at;
};
struct Segment {
    int64_t block, number;
};

class Runner {
public:
    Runner(const OctModel &model, const OctMemory &memory, int threads);
    void step(const OctBatch &batch);
    Pool &pool() { return pool_; }

private:
    // attention.cpp
    void plan_attention();
    void softmax_attention(const OctLayer &layer);
    void rotate_and_store(const OctLayer &layer, int64_t row);
    void store_token(int64_t page, int64_t token, const float *key, const float *value);
    void attend(const OctLayer &layer);
    void attend_segment(const OctLayer &layer, const AttentionBlock &block, int64_t segment, Softmax *into);
    void finish_attention(const AttentionBlock &block, const Softmax *total);
    void quantise_attended();
    int64_t page_of(const OctLayer &layer, int64_t sequence, int64_t position) const;
    int64_t first_key(int64_t row) const;
    KvPage page_at(int64_t page) const;
    // lightning.cpp
    void lightning_attention(const OctLayer &layer);
    // feed_forward.cpp
    void route(const OctLayer &layer, int64_t row, const float *x);
    void sort_by_expert(int64_t number);
    void feed_forward(const OctLayer &layer, int64_t number);
    void swiglu_rows(const OctMatrix &gate_up, const OctMatrix &down, const Activations &x, const int32_t *rows,
                     const std::vector<ExpertRows> &experts, int64_t count, int64_t width, float *out);
    void sum_experts(int64_t row);
    void add_shared(const OctLayer &layer);
    // paging.cpp
    void ask_ahead(int64_t number);
    void ask_for_layer(const OctLayer &layer);
    void ask_for_chosen(const OctLayer &layer);
    // runner.cpp
    void embed(int64_t row);
    void norm_and_quantise(const float *weight, int64_t row);
    void times(const OctMatrix &matrix, const Activations &x, int64_t rows, float *out, int64_t stride);
    void join(const float *update, float alpha, float beta, bool post_norm, int64_t row);
    void results();
    void sized();

    template <class Body> void each_row(const Body &body) {   // a row is little work: few of them stay on this thread
        pool_.each(rows_, rows_ < 4 ? rows_ : 1, [&](int64_t row, int) { body(row); });
    }

    OctModel model_;
    std::vector<OctLayer> layers_;
    OctMemory memory_;
    const Kernels &k_;
    Pool pool_;

    const OctBatch *batch_ = nullptr;
    int64_t rows_ = 0;
    std::vector<int32_t> sequence_of_;                 // of each row
    std::vector<ExpertRows> expert_rows_, all_rows_;   // all_rows_: the one "expert" of a dense layer
    std::vector<uint8_t> wanted_;                      // of each expert
    std::vector<int32_t> order_, place_;   // token copies sorted by expert: the row of each; where each copy went

    Buffer<float> x_, normed_, projected_, attended_, update_, copies_, shared_, cosines_, sines_;
    Buffer<float> scores_, route_weights_, attention_totals_, attention_partials_;
    Buffer<int32_t> route_experts_;
    Buffer<Softmax> softmaxes_;
    std::vector<AttentionBlock> blocks_;
    std::vector<Segment> segments_;
    ActivationRows quantised_, quantised_attended_, quantised_inner_, quantised_results_;
};

}   // namespace octavo
