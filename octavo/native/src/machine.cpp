// What this machine is: which kernels it can run, how fast it reads.
#include "kernels.h"
#include "pool.h"
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace octavo {

#if defined(__x86_64__)
namespace {

// What the processor has, where the system also saves those registers (XCR0); nothing otherwise.
// Not __builtin_cpu_supports: in what zig builds it answers no to everything.
struct Features {
    uint32_t leaf1_ecx = 0, leaf7_ebx = 0, leaf7_ecx = 0, xcr0 = 0;

    Features() {
        uint32_t eax, ebx, ecx, edx;
        if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return;
        leaf1_ecx = ecx;
        if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) leaf7_ebx = ebx, leaf7_ecx = ecx;
        __asm__("xgetbv" : "=a"(xcr0), "=d"(edx) : "c"(0));
    }
};

bool all_of(uint32_t bits, uint32_t wanted) { return (bits & wanted) == wanted; }

const Features &features() {
    static const Features found;
    return found;
}

}   // namespace

bool has_avx2() {
    const Features &f = features();
    return all_of(f.xcr0, 0x06) && all_of(f.leaf1_ecx, bit_FMA | bit_F16C) && all_of(f.leaf7_ebx, bit_AVX2);
}

bool has_avx512_vnni() {
    const Features &f = features();
    return has_avx2() && all_of(f.xcr0, 0xe6) && all_of(f.leaf7_ecx, bit_AVX512VNNI) &&
           all_of(f.leaf7_ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL);
}
#endif

namespace {

const Kernels *const all[] = {   // best first
#if defined(__x86_64__)
    &avx512, &avx2,
#endif
    &portable};

const Kernels *named(const char *name) {
    for (const Kernels *set : all)
        if (set->supported() && (!name || strcmp(set->name, name) == 0)) return set;
    return nullptr;
}

const Kernels *&chosen() {
    static const Kernels *set = [] {
        const Kernels *asked = named(getenv("OCTAVO_ISA"));
        return asked ? asked : named(nullptr);
    }();
    return set;
}

}   // namespace

const Kernels &kernels() { return *chosen(); }

}   // namespace octavo

using namespace octavo;

extern "C" const char *octavo_isa(void) { return kernels().name; }

extern "C" int32_t octavo_lanes(void) { return kernels().lanes; }

extern "C" const void *octavo_kernels(int64_t *bytes) {
    *bytes = sizeof(Kernels);
    return &kernels();
}

extern "C" const char *octavo_isas(void) {
    static const std::string names = [] {
        std::string out;
        for (const Kernels *set : all)
            if (set->supported()) out += (out.empty() ? "" : ",") + std::string(set->name);
        return out;
    }();
    return names.c_str();
}

extern "C" OctStatus octavo_use_isa(const char *name) {
    const Kernels *set = named(name);
    if (!set) return OCT_NO_THREADS;
    chosen() = set;
    return OCT_OK;
}

extern "C" const char *octavo_source_hash(void) {
#ifdef OCTAVO_SOURCE_HASH
    return OCTAVO_SOURCE_HASH;
#else
    return "";
#endif
}

// Bytes a second that `threads` threads read together, best of five passes over the data.
extern "C" double octavo_read_bandwidth(const uint8_t *data, int64_t bytes, int32_t threads) {
    constexpr int64_t BLOCK = 1 << 20;
    std::vector<uint64_t> sums(bytes / BLOCK + 1);
    double best = 0.0;
    try {
        Pool pool(threads);
        for (int pass = 0; pass < 5; pass++) {
            const auto began = std::chrono::steady_clock::now();
            pool.each(bytes / BLOCK, [&](int64_t block, int) {
                uint64_t parts[8] = {};
                const uint8_t *p = data + block * BLOCK;
                for (int64_t i = 0; i < BLOCK; i += 64)
                    for (int k = 0; k < 8; k++) {
                        uint64_t word;
                        memcpy(&word, p + i + k * 8, 8);
                        parts[k] += word;
                    }
                for (uint64_t part : parts) sums[block] += part;
            });
            const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
            const double rate = double(bytes / BLOCK * BLOCK) / took.count();
            best = rate > best ? rate : best;
        }
    } catch (const std::exception &) {
        return 0.0;
    }
    volatile uint64_t used = 0;
    for (uint64_t s : sums) used = used + s;
    return best;
}
