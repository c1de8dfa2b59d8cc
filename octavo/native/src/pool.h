// A small pool of threads that share loops. Workers spin for a moment between loops, since a decoded token has hundreds
// of them, and sleep when none comes: an idle pool takes nothing from torch's or anybody's threads.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octavo {

inline void pause_core() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

class Pool {
public:
    // Throws std::system_error when the threads cannot be had. The caller counts as one of them.
    explicit Pool(int threads) {
        try {
            for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { serve(i); });
        } catch (...) {
            stop();
            throw;
        }
    }
    ~Pool() { stop(); }
    Pool(const Pool &) = delete;

    int threads() const { return int(workers_.size()) + 1; }

    // body(i, worker) for every i below count, in chunks taken by whoever is free; worker is below threads(). Returns
    // when all are done. To be called from one thread, and body must not throw.
    template <class Body> void each(int64_t count, const Body &body) {
        each(count, count / (int64_t(threads()) * 4), body);   // long streams, yet a late thread costs little
    }
    template <class Body> void each(int64_t count, int64_t chunk, const Body &body) {
        chunk = chunk < 1 ? 1 : chunk;
        if (workers_.empty() || count <= chunk) {
            for (int64_t i = 0; i < count; i++) body(i, 0);
            return;
        }
        call_ = [](const void *b, int64_t i, int worker) { (*static_cast<const Body *>(b))(i, worker); };
        body_ = &body, count_ = count, chunk_ = chunk;
        next_.store(0, std::memory_order_relaxed);
        working_.store(int(workers_.size()), std::memory_order_relaxed);
        {
            // the lock is for sleepers only: one that is about to sleep must not miss the new round
            std::lock_guard<std::mutex> lock(mutex_);
            round_.fetch_add(1, std::memory_order_release);
        }
        if (sleeping_.load() > 0) wake_.notify_all();
        take_chunks(0);
        for (int spins = 0; working_.load(std::memory_order_acquire) > 0; spins++)
            if (spins < SPINS) pause_core();
            else std::this_thread::yield();
    }

private:
    // Pauses of some 10 to 40 ns: a millisecond at most. Waking a thread takes tens of microseconds, and more in a
    // virtual machine; Python's share of a decoded token should not send anybody to sleep.
    static constexpr int SPINS = 40000;

    void take_chunks(int worker) {
        for (;;) {
            const int64_t first = next_.fetch_add(chunk_, std::memory_order_relaxed);
            if (first >= count_) return;
            const int64_t last = first + chunk_ < count_ ? first + chunk_ : count_;
            for (int64_t i = first; i < last; i++) call_(body_, i, worker);
        }
    }

    void serve(int worker) {
        for (uint64_t seen = 0;;) {
            for (int spins = 0; spins < SPINS && round_.load(std::memory_order_acquire) == seen; spins++) pause_core();
            if (round_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleeping_++;
                wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
                sleeping_--;
            }
            seen = round_.load(std::memory_order_acquire);
            if (stopping_.load(std::memory_order_acquire)) return;
            take_chunks(worker);
            working_.fetch_sub(1, std::memory_order_release);
        }
    }

    void stop() {
        stopping_.store(true, std::memory_order_release);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (auto &worker : workers_) worker.join();
        workers_.clear();
    }

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    void (*call_)(const void *, int64_t, int) = nullptr;
    const void *body_ = nullptr;
    int64_t count_ = 0, chunk_ = 1;
    alignas(64) std::atomic<uint64_t> round_{0};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> working_{0};
    std::atomic<int> sleeping_{0};
    std::atomic<bool> stopping_{false};
};

}   // namespace octavo
