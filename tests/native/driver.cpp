// Runs the CPU core by itself, for sanitizers: every kernel of every instruction set of this machine in odd shapes, and
// whole steps of models with every kind of layer on several threads. Each array is a heap block of just its size, so
// that reading or writing past any of them is seen. Prints the instruction sets; exits with 1 where a result is wrong.
#include "kernels.h"
#include "pack.h"
#include "pool.h"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

using namespace octavo;

namespace {

std::mt19937 generator(1);

float normal() { return std::normal_distribution<float>()(generator); }
int64_t below(int64_t count) { return int64_t(generator() % uint64_t(count)); }

void require(bool good, const char *what) {
    if (good) return;
    std::fprintf(stderr, "driver: %s is wrong with %s\n", what, octavo_isa());
    std::exit(1);
}

// A heap block of exactly `count` elements.
template <class T> struct Block {
    std::unique_ptr<T[]> at;
    int64_t count;
    explicit Block(int64_t count, T value = T()) : at(new T[size_t(count)]), count(count) {
        std::fill(at.get(), at.get() + count, value);
    }
    Block(const T *from, int64_t count) : at(new T[size_t(count)]), count(count) {
        std::copy(from, from + count, at.get());
    }
    T *get() const { return at.get(); }
    T &operator[](int64_t i) const { return at[i]; }
};

Block<float> noise(int64_t count, float size = 1.0f) {
    Block<float> out(count);
    for (int64_t i = 0; i < count; i++) out[i] = normal() * size;
    return out;
}

// fp16 of 2^-exponent: an exact scale, whatever rounds.
uint16_t power_of_two(int exponent) { return uint16_t((15 - exponent) << 10); }

struct Weights {
    int64_t rows, cols;
    int bits;
    std::vector<int> q;   // [rows, cols]
    Block<uint8_t> packed;
};

// value * 2^-exponent, which is a bf16 number for any int8 value.
uint16_t bf16(int value, int exponent) {
    const float whole = std::ldexp(float(value), -exponent);
    uint32_t bits;
    memcpy(&bits, &whole, 4);
    return uint16_t(bits >> 16);
}

// Random integers over the whole range a file can hold, all with the same scale, packed into every unit.
Weights weights(int64_t rows, int64_t cols, int bits, int exponent = 6) {
    const int64_t width = bits == 16 ? 2 * cols : bits == 8 ? cols : (cols + 1) / 2;
    Block<uint8_t> packed(octavo_packed_bytes(rows, cols, bits));
    Weights out{rows, cols, bits, std::vector<int>(size_t(rows * cols)), std::move(packed)};
    Block<uint8_t> q(rows * width, bits == 4 ? 0x88 : 0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            const int value = bits == 4 ? int(below(16)) - 8 : int(below(256)) - 128;
            out.q[size_t(r * cols + c)] = value;
            if (bits == 16) {
                const uint16_t half = bf16(value, exponent);
                memcpy(q.get() + r * width + 2 * c, &half, 2);
                continue;
            }
            uint8_t &byte = q[r * width + (bits == 8 ? c : c / 2)];
            if (bits == 8) byte = uint8_t(int8_t(value));
            else byte = c % 2 ? uint8_t((byte & 15) | (value + 8) << 4) : uint8_t((byte & 0xf0) | (value + 8));
        }
    Block<uint16_t> scales(rows * groups_of(cols), power_of_two(exponent));
    octavo_pack(out.packed.get(), q.get(), bits == 16 ? nullptr : scales.get(), rows, cols, bits, 0, 1);
    return out;
}

struct Quantised {
    Block<int8_t> q;
    Block<float> scale;
    Block<int32_t> sum;
    Block<float> exact;
    int64_t groups;
    int bits;
    Quantised(const Block<float> &x, int64_t rows, int64_t cols, int bits = 8)
        : q(rows * groups_of(cols) * OCT_GROUP, 77), scale(rows * groups_of(cols)), sum(rows * groups_of(cols)),
          exact(rows * groups_of(cols) * OCT_GROUP, NAN), groups(groups_of(cols)), bits(bits) {
        for (int64_t row = 0; row < rows; row++) {
            const Block<float> alone(x.get() + row * cols, cols);
            kernels().quantise(alone.get(), cols, view(), row);
        }
    }
    Activations view() const {
        if (bits == 16) return {nullptr, nullptr, nullptr, groups, exact.get()};
        return {q.get(), scale.get(), sum.get(), groups, nullptr};
    }
    double at(int64_t row, int64_t c) const {   // the number that stands for x
        const int64_t g = row * groups + c / OCT_GROUP, place = g * OCT_GROUP + c % OCT_GROUP;
        return bits == 16 ? exact[place] : double(q[place]) * scale[g];
    }
};

void products(int bits) {
    const Kernels &k = kernels();
    for (const int64_t cols : {1, 3, 31, 32, 33, 64, 70, 100})
        for (const int64_t outputs : {1, 7, 32, 33, 50}) {
            const int64_t rows = 1 + below(19), units = units_of(outputs);
            const Block<float> x = noise(rows * cols);
            const Quantised quantised(x, rows, cols, bits);
            const Weights w = weights(outputs, cols, bits);
            const int64_t bytes = unit_bytes(groups_of(cols), bits, k.lanes);
            Block<int32_t> picked(rows);
            for (int64_t i = 0; i < rows; i++) picked[i] = int32_t(below(rows));
            for (const bool some : {false, true})
                for (int64_t unit = 0; unit < units; unit++) {
                    const Block<uint8_t> weights(w.packed.get() + unit * bytes, bytes);
                    const Block<float> out(rows * OCT_UNIT, NAN);
                    k.matmul(bits)(weights.get(), quantised.view(), some ? picked.get() : nullptr, rows, out.get(),
                                   OCT_UNIT);
                    for (int64_t i = 0; i < rows; i++)
                        for (int64_t j = unit * OCT_UNIT; j < (unit + 1) * OCT_UNIT; j++) {
                            const int64_t row = some ? picked[i] : i;
                            double expected = 0.0, size = 1e-30;
                            for (int64_t c = 0; c < cols && j < outputs; c++) {
                                const double term = w.q[size_t(j * cols + c)] / 64.0 * quantised.at(row, c);
                                expected += term, size += std::fabs(term);
                            }
                            const float found = out[i * OCT_UNIT + j - unit * OCT_UNIT];
                            require(std::fabs(found - expected) <= 1e-6 * size, "a product");
                        }
                }
            const int64_t tile = tile_bytes(groups_of(cols), bits, k.lanes);
            for (int64_t row = 0; row < outputs; row++) {
                const Block<uint8_t> alone(w.packed.get() + row / k.lanes * tile, tile);
                const Block<float> out(cols, NAN);
                k.unpack_row(alone.get(), bits, row % k.lanes, cols, out.get());
                for (int64_t c = 0; c < cols; c++)
                    require(out[c] == float(w.q[size_t(row * cols + c)]) / 64.0f, "an unpacked row");
            }
        }
}

void rows_of_floats() {
    const Kernels &k = kernels();
    const float odd[] = {0.0f, -0.0f, 1e-40f, 3e38f, -3e38f, INFINITY, -INFINITY, NAN, 1e-36f, 88.0f, -88.0f, -1e30f};
    for (int64_t cols = 1; cols < 70; cols++)
        for (const bool extreme : {false, true}) {
            const Block<float> x = noise(cols), y = noise(cols), out(cols);
            for (int64_t i = 0; extreme && i < cols; i++) x[i] = odd[below(12)];
            const Quantised quantised(x, 1, cols);
            double squares = 0.0;
            for (int64_t i = 0; i < cols; i++) squares += double(x[i]) * x[i];
            const float dot = k.dot(x.get(), x.get(), cols);
            require(extreme || std::fabs(dot - squares) <= 1e-5 * squares, "a dot product");
            k.norm(x.get(), y.get(), 1e-5f, cols, out.get());
            k.swiglu(x.get(), y.get(), cols, out.get());
            k.silu(out.get(), cols);
            k.sigmoid_gate(out.get(), x.get(), cols);
            const Block<float> chances(x.get(), cols);
            k.softmax(chances.get(), cols);
            const float total = std::accumulate(chances.get(), chances.get() + cols, 0.0f);
            require(extreme || std::fabs(total - 1.0f) < 1e-5f, "a softmax");
        }
}

void draws() {
    const double infinity = INFINITY;
    for (const int64_t vocab : {1, 2, 7, 15, 16, 17, 127, 128, 129, 2047, 2049, 5000})
        for (const double temperature : {1e-310, 1e-30, 0.7, 1.0, 100.0})
            for (const int64_t top_k : {0, 1, 3, 100, 9000})
                for (const double top_p : {1e-9, 0.5, 0.999, 1.0})
                    for (const double min_p : {0.0, 0.1, 1.0}) {
                        const Block<float> logits = noise(vocab, vocab % 3 ? 3.0f : 2e37f);
                        for (int64_t i = 0; i < vocab / 3; i++) logits[below(vocab)] = -float(infinity);
                        logits[below(vocab)] = 20.0f;
                        const float largest = *std::max_element(logits.get(), logits.get() + vocab);
                        for (const double drawn : {0.0, 0.6, 1.0 - 1.0 / (1LL << 53)}) {
                            const int32_t token = octavo_draw(logits.get(), vocab, largest, temperature, top_k, top_p,
                                                              min_p, drawn);
                            require(token >= 0 && token < vocab && logits[token] > -infinity, "a draw");
                            require(top_k != 1 || logits[token] == largest, "a greedy draw");
                        }
                    }
    const Block<float> tiny(33, 1e-39f);
    tiny[3] = 0.0f;
    require(octavo_draw(tiny.get(), 33, 0.0f, 1.0, 0, 0.9, 0.0, 0.5) >= 0, "a draw above the largest");
    const Block<float> row = noise(1000, 2.0f);
    const float largest = *std::max_element(row.get(), row.get() + row.count);
    double weights = 0.0;
    for (int64_t i = 0; i < row.count; i++) weights += std::exp(double(row[i]) - largest);
    require(std::fabs(octavo_weight_sum(row.get(), row.count, largest) / weights - 1.0) < 1e-6, "a sum of weights");
    const Block<float> nothing(33, -float(infinity)), wrong(33, 5.0f);
    require(octavo_draw(nothing.get(), 33, 0.0f, 1.0, 0, 1.0, 0.0, 0.5) == -1, "a draw from nothing");
    require(octavo_draw(wrong.get(), 33, 2.0f, 1.0, 0, 0.9, 0.0, 0.5) == -1, "a draw below the largest");
}

template <class T> void attention() {
    const Kernels &k = kernels();
    for (const int64_t dim : {1, 6, 8, 15, 16, 17, 20, 64, 80}) {
        const int64_t width = ceil_div(dim, 16) * 16;
        const Block<T> keys(dim * OCT_PAGE), values(OCT_PAGE * width);
        for (int64_t i = 0; i < keys.count; i++) keys[i] = T(below(255) - 127);
        for (int64_t i = 0; i < values.count; i++) values[i] = T(3);
        const Block<float> scales(OCT_PAGE, 0.01f), ones(OCT_PAGE, 1.0f);
        const KvPage page{keys.get(), values.get(), scales.get(), ones.get(), keys.get(), values.get()};
        for (int count = 1; count < 15; count++) {
            std::vector<Block<float>> queries, sums, later_sums;
            std::vector<const float *> pointers;
            Block<Softmax> into(count), later(count);
            for (int i = 0; i < count; i++) {
                queries.push_back(noise(dim)), sums.emplace_back(width), later_sums.emplace_back(width);
                into[i] = {-INFINITY, 0.0f, sums.back().get()}, later[i] = {-INFINITY, 0.0f, later_sums.back().get()};
            }
            for (const auto &query : queries) pointers.push_back(query.get());
            const Block<const float *> exact(pointers.data(), count);
            const int first = int(below(OCT_PAGE)), last = first + 1 + int(below(OCT_PAGE - first));
            const auto attend = sizeof(T) == 1 ? k.attend8 : k.attend;
            attend(page, first, last, exact.get(), count, dim, into.get());
            attend(page, 0, OCT_PAGE, exact.get(), count, dim, into.get());
            for (int i = 0; i < count; i++) {
                k.merge(later[i], width, &into[i]);   // one that saw nothing
                attend(page, 0, 1, exact.get() + i, 1, dim, &later[i]);
                k.merge(into[i], width, &later[i]);
                for (int64_t d = 0; d < dim; d++)
                    require(std::fabs(later[i].values[d] / later[i].sum - 3.0f) < 1e-4f, "attention");
            }
        }
    }
}

void recurrence() {
    for (const int64_t width : {1, 3, 8, 15, 16, 17, 20, 33})
        for (const int64_t count : {1, 3, 4, 5, 9}) {
            const int64_t stride = 3 * width;
            const Block<float> rows = noise(count * stride), state(width * width), out(count * width, NAN);
            kernels().lightning(rows.get(), rows.get() + width, rows.get() + 2 * width, stride, count, 0.5f, width,
                                state.get(), out.get(), width);
            double score = 0.0;   // of the first token: (q . k) v
            for (int64_t d = 0; d < width; d++) score += double(rows[d]) * rows[width + d];
            for (int64_t d = 0; d < width; d++)
                require(std::fabs(out[d] - score * rows[2 * width + d]) <= 1e-4, "lightning attention");
        }
}

// ---- whole steps

struct Shape {
    const char *what;
    int hidden, inner, shared, heads, kv_heads, head_dim, rotary, experts, top_k, window, bits;
    bool lightning, int8, post_norm;
};

// A random model of three layers with memory of its own: dense, and two with experts.
class Model {
public:
    Model(const Shape &shape, int threads) : shape_(shape), frequencies_(shape.rotary / 2, 0.3f) {
        const int64_t inner = int64_t(shape.heads) * shape.head_dim;
        const int64_t key = int64_t(shape.kv_heads) * shape.head_dim;
        model_ = {shape.hidden, shape.inner, shape.shared, VOCAB, LAYERS, shape.heads, shape.kv_heads, shape.head_dim,
                  shape.experts, shape.top_k, shape.rotary, shape.window, 1, 1e-5f, 1e-6f, layers_, floats(shape.hidden),
                  frequencies_.get(), matrix(VOCAB, shape.hidden), {}};
        model_.head = model_.embed;
        for (int i = 0; i < LAYERS; i++) {
            OctLayer &layer = layers_[i];
            layer = {};
            layer.lightning = shape.lightning && i < 2, layer.experts = i > 0;
            layer.store = layer.lightning ? i : shape.lightning ? 0 : i;
            layer.post_norm = shape.post_norm;
            layer.attention_alpha = layer.attention_beta = layer.mlp_alpha = layer.mlp_beta = 1.0f;
            layer.attention_norm = floats(shape.hidden), layer.mlp_norm = floats(shape.hidden);
            layer.router = floats(int64_t(shape.experts) * shape.hidden);
            layer.decays = floats(shape.heads, 0.1f), layer.inner_norm = floats(inner);
            const int64_t in = layer.lightning ? units(3 * inner) + units(inner) : units(inner) + 2 * units(key);
            layer.attention_in = matrix(in * OCT_UNIT, shape.hidden);
            layer.attention_out = matrix(shape.hidden, inner);
            const int count = layer.experts ? shape.experts : 1;
            layer.gate_up = matrix(2 * units(shape.inner) * OCT_UNIT, shape.hidden, count);
            layer.down = matrix(shape.hidden, shape.inner, count);
            if (layer.experts && shape.shared) {
                layer.shared_gate = floats(shape.hidden);
                layer.shared_gate_up = matrix(2 * units(shape.shared) * OCT_UNIT, shape.hidden);
                layer.shared_down = matrix(shape.hidden, shape.shared);
            }
        }
        const int64_t softmax = shape.lightning ? 1 : LAYERS, heads = softmax * PAGES * shape.kv_heads;
        const int64_t keys = heads * shape.head_dim * OCT_PAGE;
        const int64_t values = heads * OCT_PAGE * ceil_div(shape.head_dim, 16) * 16;
        memory_ = {};
        memory_.pages = PAGES, memory_.slots = SLOTS;
        if (shape.int8) {
            memory_.keys = held<int8_t>(keys, 111), memory_.values = held<int8_t>(values, 111);
            memory_.key_scales = held<float>(heads * OCT_PAGE, NAN);
            memory_.value_scales = held<float>(heads * OCT_PAGE, NAN);
        } else {
            memory_.keys = held<float>(keys, NAN), memory_.values = held<float>(values, NAN);
        }
        if (shape.lightning) memory_.states = held<float>(2 * SLOTS * inner * shape.head_dim, NAN);
        require(octavo_open(&model_, &memory_, threads, &runner_) == OCT_OK, "opening a runner");
    }
    ~Model() { octavo_close(runner_); }
    Model(const Model &) = delete;

    // Sequences of so many new tokens from so many old ones on; the logits of all rows, behind those so far.
    void step(const std::vector<std::pair<int64_t, int64_t>> &parts) {
        int64_t rows = 0;
        for (const auto &part : parts) rows += part.second;
        const int64_t sequences = int64_t(parts.size());
        const Block<int64_t> ids(rows), starts(sequences + 1), positions(rows), slots(sequences);
        const Block<int64_t> table(sequences * TABLE), wanted(rows), counts(LAYERS * shape_.experts);
        int64_t row = 0;
        for (int64_t s = 0; s < sequences; s++) {
            slots[s] = SLOTS - 1 - s;
            for (int64_t p = 0; p < TABLE; p++) table[s * TABLE + p] = s == 0 ? PAGES - 1 - p : s - 1;
            for (int64_t i = 0; i < parts[size_t(s)].second; i++, row++)
                positions[row] = parts[size_t(s)].first + i, ids[row] = (7 * s + 13 * positions[row]) % VOCAB;
            starts[s + 1] = row;
        }
        std::iota(wanted.get(), wanted.get() + rows, 0);
        const Block<float> logits(rows * VOCAB, NAN), hidden(rows * shape_.hidden, NAN);
        const OctBatch batch{rows, sequences, TABLE, ids.get(), starts.get(), positions.get(), table.get(), slots.get(),
                             rows, rows, wanted.get(), wanted.get(), logits.get(), hidden.get(), counts.get()};
        require(octavo_step(runner_, &batch) == OCT_OK, "a step");
        for (int64_t s = 0; s < sequences; s++)
            for (int64_t i = starts[s] * VOCAB; i < starts[s + 1] * VOCAB; i++) {
                require(std::isfinite(logits[i]), shape_.what);
                results[size_t(s)].push_back(logits[i]);
            }
        for (int64_t i = 0; i < hidden.count; i++) require(std::isfinite(hidden[i]), shape_.what);
        const Block<OctDraw> draws(rows);
        const Block<int32_t> tokens(rows, -3);
        for (int64_t i = 0; i < rows; i++) draws[i] = {i, i % 4, double(i % 3), 0.9, 0.01 * double(i % 2), 0.5};
        octavo_draw_rows(runner_, logits.get(), VOCAB, draws.get(), rows, tokens.get());
        for (int64_t i = 0; i < rows; i++) require(tokens[i] >= 0 && tokens[i] < VOCAB, "draws of many rows");
    }

    std::vector<float> results[3];   // logits by sequence

private:
    static constexpr int VOCAB = 45, LAYERS = 3, PAGES = 24, SLOTS = 4, TABLE = 20;

    static int64_t units(int64_t rows) { return units_of(rows); }
    template <class T> T *held(int64_t count, T value) {
        auto block = std::make_shared<Block<T>>(count, value);
        keep_.push_back(block);
        return block->get();
    }
    const float *floats(int64_t count, float least = 0.5f) {
        float *out = held<float>(count, 0.0f);
        for (int64_t i = 0; i < count; i++) out[i] = least + float(below(100)) / 300.0f;
        return out;
    }
    OctMatrix matrix(int64_t rows, int64_t cols, int count = 1) {
        const int64_t one = octavo_packed_bytes(rows, cols, shape_.bits);
        uint8_t *all = held<uint8_t>(one * count, 0);
        for (int i = 0; i < count; i++) {
            const Weights w = weights(rows, cols, shape_.bits, shape_.bits == 4 ? 7 : 11);
            memcpy(all + i * one, w.packed.get(), size_t(one));
        }
        return {all, rows, cols, shape_.bits, count};
    }

    Shape shape_;
    std::vector<std::shared_ptr<void>> keep_;
    Block<float> frequencies_;
    OctLayer layers_[LAYERS];
    OctModel model_;
    OctMemory memory_;
    OctRunner *runner_ = nullptr;
};

// The same requests in different chunks on 1 and on 3 threads: the same bits.
void steps(const Shape &shape, int64_t length) {
    std::vector<float> expected[3];
    for (const int threads : {1, 3}) {
        generator.seed(5);
        Model model(shape, threads);
        if (threads == 1) {
            model.step({{0, length}, {0, 9}, {0, 1}});
            for (int64_t i = 0; i < 3; i++) model.step({{length + i, 1}, {9 + i, 1}, {1 + i, 1}});
            for (int s = 0; s < 3; s++) expected[s] = model.results[s];
            continue;
        }
        model.step({{0, length / 2}, {0, 1}});
        model.step({{length / 2, 1}, {1, 8}, {0, 2}});
        model.step({{length / 2 + 1, length - length / 2 - 1}, {9, 2}, {2, 1}});
        for (int64_t i = 0; i < 2; i++) model.step({{length + i, 1}});
        model.step({{length + 2, 1}, {11, 1}, {3, 1}});
        for (int s = 0; s < 3; s++)
            require(model.results[s].size() == expected[s].size() &&
                        memcmp(model.results[s].data(), expected[s].data(), expected[s].size() * sizeof(float)) == 0,
                    shape.what);
    }
}

void whole_steps() {
    //  what       hidden inner shared heads kv dim rotary experts top_k window bits lightning int8 post_norm
    steps({"fp32 memory", 48, 40, 0, 6, 3, 16, 16, 5, 3, 0, 4, false, false, false}, 70);
    steps({"int8 memory", 50, 33, 0, 6, 1, 6, 4, 5, 2, 0, 8, false, true, false}, 70);
    steps({"a window", 31, 1, 0, 4, 2, 20, 20, 1, 1, 7, 8, false, true, false}, 570);
    steps({"segments", 33, 32, 0, 2, 1, 8, 8, 3, 3, 0, 4, false, false, false}, 570);
    steps({"many heads", 40, 20, 0, 70, 2, 6, 6, 4, 2, 0, 4, false, true, false}, 40);
    steps({"bf16", 50, 33, 45, 6, 2, 20, 6, 5, 2, 0, 16, true, true, false}, 70);
    steps({"lightning", 50, 40, 45, 3, 3, 20, 10, 5, 3, 0, 8, true, true, true}, 70);
}

void pools() {
    for (int threads = 1; threads <= 4; threads++) {
        Pool pool(threads);
        for (int64_t count = 0; count < 300; count++) {
            std::vector<int> seen(size_t(count), 0);   // written without a lock: each index is one thread's
            int64_t total = 0;
            pool.each(count, 1 + count % 5, [&](int64_t i, int worker) {
                require(0 <= worker && worker < threads, "a worker's number");
                seen[size_t(i)]++;
            });
            for (const int times : seen) total += times;
            require(total == count, "the pool");
        }
    }
}

}   // namespace

int main() {
    pools();
    const std::string names = octavo_isas();
    for (size_t at = 0; at < names.size();) {
        const size_t end = std::min(names.find(',', at), names.size());
        const std::string name = names.substr(at, end - at);
        require(octavo_use_isa(name.c_str()) == OCT_OK, "the choice of kernels");
        products(4), products(8), products(16);
        rows_of_floats();
        attention<float>(), attention<int8_t>();
        recurrence();
        draws();
        whole_steps();
        std::puts(name.c_str());
        at = end + 1;
    }
    const Block<uint8_t> data(3 << 20, 1);
    require(octavo_read_bandwidth(data.get(), data.count, 2) > 0.0, "the bandwidth");
    const uint32_t start = octavo_crc32c(data.get(), 4, 0);
    require(octavo_crc32c(data.get(), 9, 0) == octavo_crc32c(data.get() + 4, 5, start), "a checksum");
}
