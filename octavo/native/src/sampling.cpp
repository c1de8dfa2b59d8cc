// One token drawn from a row of logits: engine/draw.py is the plain form, and says what is computed.
#include "kernels.h"
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <exception>
#include <vector>

namespace octavo {
namespace {

struct Choice {
    int64_t vocab;
    float largest;   // of the logits
    double temperature;
    int64_t top_k;
    double top_p, min_p, drawn;
};

struct Candidate {
    float depth, weight;   // largest logit minus logit, e^(-depth / temperature)
    int32_t id;
};

// Candidates in their order, likeliest first and ties by id, as far as anybody asks: they lie in some hundred bands of
// depth, and a band is sorted when a question about it comes. Sorting all would take longer than all else together.
class Order {
public:
    Order(const std::vector<float> &depths, const std::vector<float> &weights, const std::vector<int32_t> &ids)
        : candidates_(ids.size()), starts_(ids.size() / 8 + 2), before_(starts_.size()) {
        const size_t bands = starts_.size() - 1;
        const double deepest = *std::max_element(depths.begin(), depths.end());
        const double scale = deepest > 0.0 ? double(bands - 1) / deepest : 0.0;
        std::vector<int32_t> band(ids.size());
        for (size_t i = 0; i < ids.size(); i++) {
            band[i] = int32_t(double(depths[i]) * scale);
            starts_[band[i] + 1]++;
            before_[band[i] + 1] += weights[i];
        }
        for (size_t b = 0; b < bands; b++) starts_[b + 1] += starts_[b], before_[b + 1] += before_[b];
        std::vector<int32_t> next(starts_.begin(), starts_.end() - 1);
        for (size_t i = 0; i < ids.size(); i++) candidates_[next[band[i]]++] = {depths[i], weights[i], ids[i]};
    }

    int64_t count() const { return int64_t(candidates_.size()); }
    double total() const { return before_.back(); }

    // How many have at most that depth: they come first.
    int64_t down_to(float depth) const {
        return std::count_if(candidates_.begin(), candidates_.end(), [=](auto &c) { return c.depth <= depth; });
    }

    // The weight of the first `number` candidates, at least one.
    double weight(int64_t number) {
        const size_t band = std::upper_bound(starts_.begin(), starts_.end(), number - 1) - starts_.begin() - 1;
        sort(band);
        double sum = before_[band];
        for (int64_t i = starts_[band]; i < number; i++) sum += candidates_[i].weight;
        return sum;
    }

    // How many candidates it takes until their weight is at least `bound`, or more than that; at most all.
    int64_t reaching(double bound, bool more) {
        const auto reached = [=](double sum) { return more ? sum > bound : sum >= bound; };
        size_t band = 0;
        while (band + 2 < before_.size() && !reached(before_[band + 1])) band++;
        sort(band);
        double sum = before_[band];
        for (int64_t i = starts_[band]; i < starts_[band + 1]; i++)
            if (reached(sum += candidates_[i].weight)) return i + 1;
        return starts_[band + 1];
    }

    int32_t id(int64_t at) const { return candidates_[at].id; }   // in a band that was sorted

private:
    void sort(size_t band) {
        std::sort(candidates_.begin() + starts_[band], candidates_.begin() + starts_[band + 1],
                  [](auto &a, auto &b) { return a.depth < b.depth || (a.depth == b.depth && a.id < b.id); });
    }

    std::vector<Candidate> candidates_;
    std::vector<int32_t> starts_;   // [bands + 1]: each band's first candidate
    std::vector<double> before_;    // [bands + 1]: the weight of all bands before
};

// The tokens down to some depth, in shells: how deep must be looked is not known before.
struct Shells {
    std::vector<float> depths, weights;
    std::vector<int32_t> ids;
    double total = 0.0;

    void add(const float *logits, const Choice &how, float inverse, float nearest, float farthest) {
        constexpr int64_t BLOCK = 2048;
        int32_t numbers[BLOCK];
        const size_t before = ids.size();
        for (int64_t first = 0; first < how.vocab; first += BLOCK) {
            const int64_t some = std::min(BLOCK, how.vocab - first);
            const int64_t found = kernels().within(logits + first, some, how.largest, nearest, farthest, numbers);
            for (int64_t i = 0; i < found; i++) {
                ids.push_back(int32_t(first) + numbers[i]);
                depths.push_back(std::max(0.0f, how.largest - logits[ids.back()]));
            }
        }
        weights.resize(ids.size());
        kernels().weigh(depths.data() + before, ids.size() - before, 0.0f, -inverse, weights.data() + before);
        for (size_t i = before; i < ids.size(); i++) total += weights[i];
    }

    // Do they, down to `farthest`, hold all that can matter? everything: the weight of the whole vocabulary; least: the
    // depth down to which min_p lets tokens be.
    bool suffice(const Choice &how, double everything, float farthest, float least) const {
        if (how.top_k) return int64_t(ids.size()) >= how.top_k;
        if (farthest >= least) return true;
        return how.top_p < 1.0 ? total > how.top_p * everything : how.min_p == 0.0 && total > how.drawn * everything;
    }
};

// total: the weight of which top_p is a share, 0 for that of the candidates.
int32_t pick(Order order, const Choice &how, double total, float least) {
    int64_t kept = order.count();
    if (how.top_k && how.top_k < kept) total = order.weight(kept = how.top_k);
    // otherwise a sum of the same numbers: another one's roundings would let a draw close to 1 pass the last of them
    else if (total == 0.0) total = order.total();
    if (how.top_p < 1.0) kept = std::min(kept, order.reaching(how.top_p * total, false));
    if (how.min_p > 0.0) kept = std::min(kept, order.down_to(least));
    if (how.top_p < 1.0 || how.min_p > 0.0) total = order.weight(kept);
    const int64_t taken = std::min(kept, order.reaching(how.drawn * total, true));
    return order.id(taken - 1);
}

int32_t draw(const float *logits, const Choice &how) {
    const float inverse = 1.0f / std::max(float(how.temperature), 1e-30f);
    const float least = how.min_p > 0.0 ? float(-std::log(how.min_p) * how.temperature) : FLT_MAX;
    const bool whole = !how.top_k && (how.top_p < 1.0 || how.min_p == 0.0);   // else the candidates' weight is enough
    const double everything = whole ? kernels().weigh_all(logits, how.vocab, how.largest, inverse) : 0.0;
    // the flatter the distribution, the deeper: its nucleus may lie below what would be deep in a steep one
    const double first = whole ? std::log(everything) : 0.0;
    Shells shells;
    float nearest = -FLT_MIN;   // a depth of 0 is past it, also where denormal numbers count as 0
    for (const double pause : {2.0, 4.0, 6.0, 8.0, 11.0, 15.0, 24.0}) {
        const float farthest = float((first + pause) * how.temperature);
        shells.add(logits, how, inverse, nearest, farthest);
        if (!shells.ids.empty() && shells.suffice(how, everything, farthest, least))
            return pick({shells.depths, shells.weights, shells.ids}, how, everything, least);
        nearest = farthest;
    }
    shells.add(logits, how, inverse, nearest, FLT_MAX);
    if (shells.ids.empty()) return -1;
    return pick({shells.depths, shells.weights, shells.ids}, how, 0.0, least);
}

// The first logit that is `largest`.
int32_t place_of(const float *logits, int64_t vocab, float largest) {
    constexpr int64_t BLOCK = 2048;
    int32_t numbers[BLOCK];
    for (int64_t first = 0; first < vocab; first += BLOCK) {
        const int64_t some = std::min(BLOCK, vocab - first);
        const int64_t found = kernels().within(logits + first, some, largest, -FLT_MIN, 0.0f, numbers);
        if (found) return int32_t(first) + numbers[0];
    }
    return -1;
}

}   // namespace

int32_t draw_from(const float *logits, int64_t vocab, const OctDraw &how) {
    const float largest = kernels().most_of(logits, vocab);
    if (!(largest >= -FLT_MAX)) return -1;
    if (how.temperature == 0.0) return place_of(logits, vocab, largest);
    return octavo_draw(logits, vocab, largest, how.temperature, how.top_k, how.top_p, how.min_p, how.drawn);
}

}   // namespace octavo

extern "C" double octavo_weight_sum(const float *logits, int64_t vocab, float largest) {
    return octavo::kernels().weigh_all(logits, vocab, largest, 1.0f);
}

extern "C" int32_t octavo_draw(const float *logits, int64_t vocab, float largest, double temperature, int64_t top_k,
                               double top_p, double min_p, double drawn) {
    try {
        return octavo::draw(logits, {vocab, largest, temperature, top_k, top_p, min_p, drawn});
    } catch (const std::exception &) {   // no memory
        return -2;
    }
}
