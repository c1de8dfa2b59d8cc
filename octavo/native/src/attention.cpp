// Softmax attention of a layer over paged keys and values.
//
// A query's keys are taken in segments of a fixed number of tokens, each a softmax of its own, joined in ascending
// order. So one long sequence can be shared out by segments, and gives the bits that it gives when it is not.
#include "runner.h"
#include <algorithm>
#include <cmath>

namespace octavo {

namespace {

constexpr int64_t SEGMENT = 16 * OCT_PAGE;   // tokens
constexpr int64_t LATER = 2 * OCT_PAGE;      // how far ahead pages are asked for, in tokens
constexpr int QUERIES = 32;                  // that go through the pages together: rows, times heads of one key head

int64_t padded(int64_t head_dim) { return ceil_div(head_dim, 16) * 16; }

// A vector in int8 with one scale, written at every stride-th place; returns the scale. NaN where x is not finite.
float store_int8(const float *x, int64_t count, int8_t *out, int64_t stride) {
    float top = 0.0f;
    bool finite = true;
    for (int64_t i = 0; i < count; i++) {
        finite = finite && std::isfinite(x[i]);
        top = std::max(top, std::fabs(x[i]));
    }
    const float inverse = finite && top > 1e-30f ? 127.0f / top : 0.0f;
    for (int64_t i = 0; i < count; i++) out[i * stride] = finite ? int8_t(std::nearbyint(x[i] * inverse)) : 0;
    return finite ? top / 127.0f : NAN;
}

// Fresh softmaxes of `count` queries over `values` [count, width].
void begin(Softmax *softmax, int64_t count, float *values, int64_t width) {
    std::fill(values, values + count * width, 0.0f);
    for (int64_t i = 0; i < count; i++) softmax[i] = {-INFINITY, 0.0f, values + i * width};
}

}   // namespace

void Runner::softmax_attention(const OctLayer &layer) {
    const int64_t width = units_of(layer.attention_in.rows) * OCT_UNIT;
    times(layer.attention_in, quantised_.get(), rows_, projected_.get(), width);
    each_row([&](int64_t row) { rotate_and_store(layer, row); });
    attend(layer);
    quantise_attended();
}

void Runner::quantise_attended() {
    const int64_t inner = int64_t(model_.heads) * model_.head_dim;
    each_row([&](int64_t row) {
        k_.quantise(attended_.get() + row * inner, inner, quantised_attended_.get(), row);
    });
}

// Queries and keys rotated (ops/rotary.py: pairs i, i + half), queries scaled, keys and values into their page.
void Runner::rotate_and_store(const OctLayer &layer, int64_t row) {
    const int64_t dim = model_.head_dim, half = model_.rotary_dim / 2;
    float *queries = projected_.get() + row * units_of(layer.attention_in.rows) * OCT_UNIT;
    float *keys = queries + units_of(model_.heads * dim) * OCT_UNIT;
    const float *values = keys + units_of(model_.kv_heads * dim) * OCT_UNIT;
    const float *cosines = cosines_.get() + row * half, *sines = sines_.get() + row * half;
    const auto rotate = [&](float *head) {
        for (int64_t i = 0; i < half; i++) {
            const float first = head[i], second = head[i + half];
            head[i] = first * cosines[i] - second * sines[i];
            head[i + half] = second * cosines[i] + first * sines[i];
        }
    };
    const float scale = 1.0f / std::sqrt(float(dim));
    for (int64_t h = 0; h < model_.heads; h++) {
        rotate(queries + h * dim);
        for (int64_t d = 0; d < dim; d++) queries[h * dim + d] *= scale;
    }
    const int64_t position = batch_->positions[row], page = page_of(layer, sequence_of_[row], position);
    for (int64_t h = 0; h < model_.kv_heads; h++) {
        rotate(keys + h * dim);
        store_token(page * model_.kv_heads + h, position % OCT_PAGE, keys + h * dim, values + h * dim);
    }
}

// One token's key and value into a page of one head (OctMemory's layout).
void Runner::store_token(int64_t page, int64_t token, const float *key, const float *value) {
    const int64_t dim = model_.head_dim, width = padded(dim);
    const int64_t keys_at = page * dim * OCT_PAGE + token, values_at = (page * OCT_PAGE + token) * width;
    if (memory_.key_scales) {
        int8_t *values = static_cast<int8_t *>(memory_.values) + values_at;
        const int64_t scale = page * OCT_PAGE + token;
        memory_.key_scales[scale] = store_int8(key, dim, static_cast<int8_t *>(memory_.keys) + keys_at, OCT_PAGE);
        memory_.value_scales[scale] = store_int8(value, dim, values, 1);
        std::fill(values + dim, values + width, int8_t(0));
    } else {
        float *keys = static_cast<float *>(memory_.keys) + keys_at;
        float *values = static_cast<float *>(memory_.values) + values_at;
        for (int64_t d = 0; d < dim; d++) keys[d * OCT_PAGE] = key[d];
        std::copy(value, value + dim, values);
        std::fill(values + dim, values + width, 0.0f);
    }
}

KvPage Runner::page_at(int64_t page) const {
    const int64_t keys_at = page * model_.head_dim * OCT_PAGE, values_at = page * OCT_PAGE * padded(model_.head_dim);
    const int64_t size = memory_.key_scales ? sizeof(int8_t) : sizeof(float);
    const char *keys = static_cast<const char *>(memory_.keys) + keys_at * size;
    const char *values = static_cast<const char *>(memory_.values) + values_at * size;
    if (!memory_.key_scales) return {keys, values, nullptr, nullptr, keys, values};
    return {keys, values, memory_.key_scales + page * OCT_PAGE, memory_.value_scales + page * OCT_PAGE, keys, values};
}

// Number of a token's page among those of all layers.
int64_t Runner::page_of(const OctLayer &layer, int64_t sequence, int64_t position) const {
    const int64_t page = batch_->page_table[sequence * batch_->table_width + position / OCT_PAGE];
    return layer.store * memory_.pages + page;
}

int64_t Runner::first_key(int64_t row) const {
    return model_.window ? std::max<int64_t>(0, batch_->positions[row] - model_.window + 1) : 0;
}

// The step's queries in blocks: rows of one sequence, times query heads that share a key head.
void Runner::plan_attention() {
    const int64_t group = model_.heads / model_.kv_heads, together = std::min<int64_t>(group, QUERIES);
    blocks_.clear();
    segments_.clear();
    const auto plan = [&](int64_t sequence, int64_t first, int64_t last, int64_t head, int64_t heads) {
        blocks_.push_back({sequence, first, last, head, heads, first_key(first) / SEGMENT,
                           batch_->positions[last - 1] / SEGMENT + 1, int64_t(segments_.size())});
        for (int64_t i = blocks_.back().first_segment; i < blocks_.back().last_segment; i++)
            segments_.push_back({int64_t(blocks_.size()) - 1, i});
    };
    for (int64_t s = 0; s < batch_->sequences; s++) {
        const int64_t end = batch_->cu_seqlens[s + 1], rows = QUERIES / together;
        for (int64_t row = batch_->cu_seqlens[s]; row < end; row += rows)
            for (int64_t key_head = 0; key_head < model_.kv_heads; key_head++)
                for (int64_t head = 0; head < group; head += together)
                    plan(s, row, std::min(row + rows, end), key_head * group + head, std::min(together, group - head));
    }
}

// Shared out by blocks, or where those are too few for the threads, by segments of blocks.
void Runner::attend(const OctLayer &layer) {
    const int64_t width = padded(model_.head_dim), blocks = int64_t(blocks_.size());
    const bool by_segment = blocks < 4 * pool_.threads() && int64_t(segments_.size()) > blocks;
    const int64_t size = QUERIES * width, partials = by_segment ? int64_t(segments_.size()) : pool_.threads();
    float *totals = attention_totals_.sized(pool_.threads() * size);
    float *partial_values = attention_partials_.sized(partials * size);
    Softmax *partial = softmaxes_.sized(partials * QUERIES);
    if (by_segment)
        pool_.each(int64_t(segments_.size()), 1, [&](int64_t i, int) {
            begin(partial + i * QUERIES, QUERIES, partial_values + i * size, width);
            attend_segment(layer, blocks_[segments_[i].block], segments_[i].number, partial + i * QUERIES);
        });
    pool_.each(blocks, 1, [&](int64_t i, int worker) {
        const AttentionBlock &block = blocks_[i];
        const int64_t queries = (block.last - block.first) * block.heads;
        Softmax total[QUERIES];
        begin(total, queries, totals + worker * size, width);
        for (int64_t segment = block.first_segment; segment < block.last_segment; segment++) {
            const int64_t at = by_segment ? block.segments_at + segment - block.first_segment : worker;
            if (!by_segment) {
                begin(partial + at * QUERIES, queries, partial_values + at * size, width);
                attend_segment(layer, block, segment, partial + at * QUERIES);
            }
            for (int64_t q = 0; q < queries; q++) k_.merge(partial[at * QUERIES + q], width, total + q);
        }
        finish_attention(block, total);
    });
}

// One segment of keys for every query of a block; query [row][head] has the softmax at row * block.heads + head.
void Runner::attend_segment(const OctLayer &layer, const AttentionBlock &block, int64_t segment, Softmax *into) {
    const int64_t width = units_of(layer.attention_in.rows) * OCT_UNIT;
    const int64_t key_head = block.head / (model_.heads / model_.kv_heads);
    const auto fold = memory_.key_scales ? k_.attend8 : k_.attend;
    const int64_t end = std::min((segment + 1) * SEGMENT, batch_->positions[block.last - 1] + 1);
    for (int64_t token = segment * SEGMENT; token < end; token += OCT_PAGE) {
        const auto seen = [&](int64_t row) {   // of this page, by a row
            return std::make_pair(int(std::max<int64_t>(first_key(row) - token, 0)),
                                  int(std::min<int64_t>(batch_->positions[row] + 1 - token, OCT_PAGE)));
        };
        if (seen(block.first).first >= OCT_PAGE) continue;   // the window has passed it
        KvPage page = page_at(page_of(layer, block.sequence, token) * model_.kv_heads + key_head);
        if (token + LATER < end) {
            const KvPage later = page_at(page_of(layer, block.sequence, token + LATER) * model_.kv_heads + key_head);
            page.later_keys = later.keys, page.later_values = later.values;
        }
        for (int64_t row = block.first, next; row < block.last; row = next) {
            const auto range = seen(row);
            for (next = row + 1; next < block.last && seen(next) == range;) next++;   // those that see the same
            if (range.first >= range.second) continue;
            const float *queries[QUERIES];
            int count = 0;
            for (int64_t r = row; r < next; r++)
                for (int64_t h = 0; h < block.heads; h++)
                    queries[count++] = projected_.get() + r * width + (block.head + h) * model_.head_dim;
            fold(page, range.first, range.second, queries, count, model_.head_dim,
                 into + (row - block.first) * block.heads);
        }
    }
}

void Runner::finish_attention(const AttentionBlock &block, const Softmax *total) {
    const int64_t dim = model_.head_dim;
    for (int64_t row = block.first; row < block.last; row++)
        for (int64_t h = 0; h < block.heads; h++, total++) {
            float *out = attended_.get() + (row * model_.heads + block.head + h) * dim;
            for (int64_t d = 0; d < dim; d++) out[d] = total->values[d] / total->sum;
        }
}

}   // namespace octavo
