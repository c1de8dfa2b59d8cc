// Models larger than memory: weights are a mapped file, and the system drops and reads its pages as it likes. Left
// alone it reads an expert in pieces of some 100 kB, each when a thread runs into it. So what will be read is asked for
// ahead: a layer's experts once they are chosen, and the next layer's attention and likely experts before this layer's
// feed-forward. Which those are is told by the next router on what this layer hands on so far, as residual streams
// change little from layer to layer (Eliseev & Mazur 2023, "Fast Inference of Mixture-of-Experts Language Models with
// Offloading", section 3.2).
#include "runner.h"
#include <algorithm>
#include <sys/mman.h>
#include <unistd.h>

namespace octavo {

namespace {

#if defined(__linux__)
typedef unsigned char Presence;   // of a page, as mincore tells it
#else
typedef char Presence;            // macOS and the BSDs
#endif

// Only of pages that are not there: asking for one that is costs as much as half of its multiplications.
// Who may not write the file is told by Linux that all of it is there, and asks for nothing.
void ask_for(const uint8_t *data, int64_t bytes) {
    static const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t first = uintptr_t(data) / page * page;
    const size_t pages = size_t((uintptr_t(data) + bytes - first + page - 1) / page);
    static thread_local std::vector<Presence> there;
    there.resize(pages);
    if (mincore(reinterpret_cast<void *>(first), pages * page, there.data())) return;   // all of this is a hint
    for (size_t i = 0; i < pages;) {
        const size_t begin = i;
        while (i < pages && !(there[i] & 1)) i++;
        if (i > begin) madvise(reinterpret_cast<void *>(first + begin * page), (i - begin) * page, MADV_WILLNEED);
        while (i < pages && (there[i] & 1)) i++;
    }
}

void ask_for(const OctMatrix &matrix, int lanes, int64_t number = 0) {
    const int64_t bytes = units_of(matrix.rows) * unit_bytes(groups_of(matrix.cols), matrix.bits, lanes);
    if (matrix.data) ask_for(matrix.data + number * bytes, bytes);
}

}   // namespace

void Runner::ask_for_layer(const OctLayer &layer) {
    for (const OctMatrix *matrix : {&layer.attention_in, &layer.attention_out, &layer.shared_gate_up,
                                    &layer.shared_down})
        ask_for(*matrix, k_.lanes);
    if (!layer.experts) ask_for(layer.gate_up, k_.lanes), ask_for(layer.down, k_.lanes);
}

void Runner::ask_for_chosen(const OctLayer &layer) {
    wanted_.assign(size_t(model_.experts), 0);
    for (int64_t i = 0; i < rows_ * model_.top_k; i++) wanted_[size_t(route_experts_.get()[i])] = 1;
    for (int64_t expert = 0; expert < model_.experts; expert++)
        if (wanted_[size_t(expert)])
            ask_for(layer.gate_up, k_.lanes, expert), ask_for(layer.down, k_.lanes, expert);
}

// After layer `number` has routed, before its experts compute. With so many rows that most experts are read, one after
// the other, the system's own reading ahead does better (docs/log.md).
void Runner::ask_ahead(int64_t number) {
    if (rows_ * model_.top_k >= model_.experts) return;
    if (layers_[number].experts) ask_for_chosen(layers_[number]);
    if (number + 1 == model_.layers) {
        if (batch_->num_logit_rows) ask_for(model_.head, k_.lanes);
        return ask_for_layer(layers_[0]);   // for the next step
    }
    const OctLayer &next = layers_[number + 1];
    ask_for_layer(next);
    if (!next.experts) return;
    // this layer's choice is still wanted: it is put back
    const int64_t count = layers_[number].experts ? rows_ * model_.top_k : 0;
    const std::vector<int32_t> chosen(route_experts_.get(), route_experts_.get() + count);
    const std::vector<float> weights(route_weights_.get(), route_weights_.get() + count);
    std::vector<float> likely(size_t(model_.hidden));
    for (int64_t row = 0; row < rows_; row++) {
        k_.norm(x_.get() + row * model_.hidden, next.mlp_norm, model_.norm_eps, model_.hidden, likely.data());
        route(next, row, likely.data());
    }
    ask_for_chosen(next);
    std::copy(chosen.begin(), chosen.end(), route_experts_.get());
    std::copy(weights.begin(), weights.end(), route_weights_.get());
}

}   // namespace octavo
