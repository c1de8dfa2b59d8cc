// One token drawn from a row of logits: engine/draw.py is the plain form, and says what is computed.
//
// Nothing is sorted: the order of the candidates, likeliest first and ties by id, is only asked how much weight lies
// before a point, and bisection over the depth, the distance to the largest logit, finds the point.
#include "kernels.h"
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
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

// Depths, in temperatures, at which looking for candidates pauses to see whether there are enough. The last is all.
constexpr double PAUSES[] = {4, 8, 14, 30, INFINITY};

// A candidate's depth, as the bits of that float, which for positive floats have the same order, and its index.
struct Place {
    int32_t depth;
    int64_t index;
};

int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
float float_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// The tokens down to some depth. Those of equal depth lie by id; else the order is that of their coming.
struct Candidates {
    std::vector<float> depth, weight;
    std::vector<int32_t> id;

    int64_t count() const { return int64_t(id.size()); }

    void add(const float *logits, const Choice &how, float inverse, float nearest, float farthest) {
        constexpr int64_t BLOCK = 2048;
        int32_t numbers[BLOCK];
        const int64_t before = count();
        for (int64_t first = 0; first < how.vocab; first += BLOCK) {
            const int64_t some = std::min(BLOCK, how.vocab - first);
            const int64_t found = kernels().within(logits + first, some, how.largest, nearest, farthest, numbers);
            for (int64_t i = 0; i < found; i++) {
                id.push_back(int32_t(first) + numbers[i]);
                depth.push_back(how.largest - logits[id.back()]);
            }
        }
        weight.resize(count());
        kernels().weigh(depth.data() + before, count() - before, 0.0f, -inverse, weight.data() + before);
    }

    double within(float limit, const std::vector<float> &weights) const {
        return kernels().weight_within(depth.data(), weights.data(), count(), limit);
    }

    // The last candidate, in the order, whose depth is at most `limit`. There is one: the likeliest has depth 0.
    Place last(float limit) const {
        Place out = {0, 0};
        for (int64_t i = 0; i < count(); i++)
            if (depth[i] <= limit && bits_of(depth[i]) >= out.depth) out = {bits_of(depth[i]), i};
        return out;
    }

    // The first candidate, in the order, at which the summed weights reach `bound` (pass it, where `past`); `end`, if
    // none before it does. weights: `weight`, or others. *sum: that of all up to the place.
    Place find(double bound, bool past, Place end, const std::vector<float> &weights, double *sum) const {
        const auto reached = [=](double so_far) { return past ? so_far > bound : so_far >= bound; };
        int32_t low = -1, high = end.depth;   // not reached at low
        while (high - low > 1) {
            const int32_t middle = low + (high - low) / 2;
            (reached(within(float_of(middle), weights)) ? high : low) = middle;
        }
        *sum = high ? within(float_of(high - 1), weights) : 0.0;
        Place out = end;
        for (int64_t i = 0; i < count(); i++) {
            if (bits_of(depth[i]) != high) continue;
            *sum += weights[i];
            out = {high, i};
            if (reached(*sum) || (high == end.depth && i == end.index)) break;
        }
        return out;
    }

    void keep(Place end) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count(); i++) {
            const int32_t at = bits_of(depth[i]);
            if (at > end.depth || (at == end.depth && i > end.index)) continue;
            depth[kept] = depth[i], weight[kept] = weight[i], id[kept++] = id[i];
        }
        depth.resize(kept), weight.resize(kept), id.resize(kept);
    }
};

bool before(Place a, Place b) { return a.depth < b.depth || (a.depth == b.depth && a.index < b.index); }

// least: the depth down to which min_p lets tokens be.
bool enough(const Candidates &all, const Choice &how, double total, float farthest, float least) {
    if (farthest == FLT_MAX) return true;
    if (how.top_k) return all.count() >= how.top_k;
    if (farthest >= least) return true;
    const double found = all.within(FLT_MAX, all.weight);
    return how.top_p < 1.0 ? found > how.top_p * total : how.min_p == 0.0 && found > how.drawn * total;
}

int32_t pick(const Candidates &all, const Choice &how, double total, float least) {
    double sum;
    Place end = all.last(least);
    if (how.top_p < 1.0) {
        const Place nucleus = all.find(how.top_p * total, false, all.last(FLT_MAX), all.weight, &sum);
        if (before(nucleus, end)) end = nucleus;
    }
    if (how.top_p < 1.0 || how.min_p > 0.0) all.find(INFINITY, false, end, all.weight, &total);
    return all.id[all.find(how.drawn * total, true, end, all.weight, &sum).index];
}

int32_t draw(const float *logits, const Choice &how) {
    const float inverse = 1.0f / std::max(float(how.temperature), 1e-30f);
    const float least = how.min_p > 0.0 ? float(-std::log(how.min_p) * how.temperature) : FLT_MAX;
    double total = how.top_k ? 0.0 : kernels().weigh_all(logits, how.vocab, how.largest, inverse);
    Candidates all;
    float nearest = -1.0f, farthest = -1.0f;
    for (const double pause : PAUSES) {
        farthest = float(std::min(pause * how.temperature, double(FLT_MAX)));
        all.add(logits, how, inverse, nearest, farthest);
        if (enough(all, how, total, farthest, least)) break;
        nearest = farthest;
    }
    if (how.top_k && how.top_k < all.count()) {
        double count;
        all.keep(all.find(double(how.top_k), false, all.last(FLT_MAX), std::vector<float>(all.count(), 1.0f), &count));
    }
    // the sums of all and of the candidates differ in their roundings: a draw close to 1 would pass the last of them
    if (how.top_k || farthest == FLT_MAX) total = all.within(FLT_MAX, all.weight);
    return pick(all, how, total, least);
}

}   // namespace
}   // namespace octavo

extern "C" int32_t octavo_draw(const float *logits, int64_t vocab, float largest, double temperature, int64_t top_k,
                               double top_p, double min_p, double drawn) {
    try {
        return octavo::draw(logits, {vocab, largest, temperature, top_k, top_p, min_p, drawn});
    } catch (const std::exception &) {   // no memory
        return -1;
    }
}
