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
    // when all are done. To be called from one thread; body must not throw.
    template <class Body> void each(int64_t count, const Body &body) {
        each(count, count / (int64_t(threads()) * 4), body);   // long streams, yet a late thread costs little
    }
    template <class Body> void each(int64_t count, int64_t chunk, const Body &body) {
        chunk = chunk < 1 ? 1 : chunk;
        if (workers_.empty() || count <= chunk) {
            for (int64_t i = 0; i < count; i++) body(i, 0);
            return;
        }
        // never that of STOP
        const uint64_t round = ((ticket_.load(std::memory_order_relaxed) >> 32) + 1) & 0x7fffffff;
        // closed while the loop is described: a straggler of the last round must not take a chunk by half of it
        ticket_.store(round << 32 | CLOSED, std::memory_order_seq_cst);
        call_ = [](const void *b, int64_t i, int worker) { (*static_cast<const Body *>(b))(i, worker); };
        body_ = &body;
        // release: who sees the new count sees the closed ticket too, and cannot take a chunk of the old one by it
        count_.store(count, std::memory_order_release), chunk_.store(chunk, std::memory_order_release);
        done_.store(0, std::memory_order_relaxed);
        publish(round << 32);
        take_chunks(round, 0);
        // for chunks that others have begun, not for others that the system has not let run: they may be long in coming
        for (int spins = 0; done_.load(std::memory_order_acquire) < count; spins++)
            if (spins < SPINS) pause_core();
            else std::this_thread::yield();
    }

private:
    // Pauses of some 10 to 40 ns: a millisecond at most. Waking a thread takes tens of microseconds, and more in a
    // virtual machine; Python's share of a decoded token should not send anybody to sleep.
    static constexpr int SPINS = 40000;
    static constexpr uint64_t CLOSED = 0xffffffff, STOP = ~uint64_t(0);

    void take_chunks(uint64_t round, int worker) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while (ticket >> 32 == round) {
            const int64_t first = int64_t(ticket & CLOSED), count = count_.load(std::memory_order_acquire);
            if (first >= count) return;
            const int64_t left = count - first, chunk = chunk_.load(std::memory_order_acquire);
            const int64_t size = left < chunk ? left : chunk;
            // it fails where the round has ended meanwhile; where it succeeds, the round cannot end without this chunk
            if (!ticket_.compare_exchange_weak(ticket, ticket + size, std::memory_order_acq_rel)) continue;
            for (int64_t i = first; i < first + size; i++) call_(body_, i, worker);
            done_.fetch_add(size, std::memory_order_release);
            ticket = ticket_.load(std::memory_order_acquire);
        }
    }

    void serve(int worker) {
        for (uint64_t seen = 0;;) {
            const auto news = [&] {
                const uint64_t ticket = ticket_.load(std::memory_order_acquire);
                return ticket >> 32 != seen && (ticket == STOP || (ticket & CLOSED) != CLOSED);
            };
            for (int spins = 0; spins < SPINS && !news(); spins++) pause_core();
            if (!news()) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleeping_++;
                wake_.wait(lock, news);
                sleeping_--;
            }
            const uint64_t ticket = ticket_.load(std::memory_order_acquire);
            if (ticket == STOP) return;
            seen = ticket >> 32;
            take_chunks(seen, worker);
        }
    }

    void publish(uint64_t ticket) {
        {
            // the lock is for sleepers only: one that is about to sleep must not miss the news
            std::lock_guard<std::mutex> lock(mutex_);
            ticket_.store(ticket, std::memory_order_release);
        }
        if (sleeping_.load() > 0) wake_.notify_all();
    }

    void stop() {
        publish(STOP);
        for (auto &worker : workers_) worker.join();
        workers_.clear();
    }

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<int> sleeping_{0};
    void (*call_)(const void *, int64_t, int) = nullptr;
    const void *body_ = nullptr;
    std::atomic<int64_t> count_{0}, chunk_{1};
    alignas(64) std::atomic<uint64_t> ticket_{0};   // number of the round, first index that nobody has taken
    alignas(64) std::atomic<int64_t> done_{0};      // indices finished in this round
};

}   // namespace octavo
