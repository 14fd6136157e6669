// CUDA kernels on the CPU: each thread of a block is a fiber, and fibers run in random order until they wait for one another.
// Blocks run one after another, in random order too. What only a barrier or a warp operation orders is thus never ordered by
// chance: shared memory starts as NaN, and a value read without waiting for its writer is wrong for about every second seed.
// Divergence at a barrier, a lane missing from a warp operation and two barriers mixed up stop the run with a message.
#pragma once

#include <ucontext.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim; // of the fiber that runs

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 18;

enum class State { kReady, kAtBarrier, kInWarp, kFinished };

struct Place {
    const char* file;
    int line;
    bool operator==(const Place& other) const { return line == other.line && !strcmp(file, other.file); }
    std::string text() const {
        const char* name = strrchr(file, '/');
        return std::string(name ? name + 1 : file) + ":" + std::to_string(line);
    }
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    void* fake_stack = nullptr; // of AddressSanitizer
    State state;
    Place place;
    uint32_t mask;                        // lanes that take part in the warp operation
    uint64_t given;                       // to it by this lane
    std::array<uint64_t, kWarp> received; // from all lanes
};

// What the launches of one kernel did, all together.
struct Account {
    int64_t launches = 0, blocks = 0, threads = 0, barriers = 0, warp_operations = 0;
};

struct Machine {
    std::map<std::string, Account> accounts;
    Account* account = nullptr;
    std::mt19937_64 random{0};
    std::vector<Fiber> fibers;
    ucontext_t scheduler;
    void* scheduler_fake_stack = nullptr;
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_size = 0;
    int current = 0, threads = 0, at_barrier = 0;
    std::vector<int> ready;
    const std::function<void()>* kernel = nullptr;
    std::map<std::pair<std::string, int>, std::unique_ptr<char[]>> shared;
    std::string failure;
};
inline Machine machine;

inline void seed(uint64_t number) { machine.random.seed(number); }

inline std::string thread_text(int i) { return "thread " + std::to_string(i); }

// From a fiber to the scheduler; returns when the scheduler picks the fiber again.
inline void leave(bool for_good = false) {
    Fiber& fiber = machine.fibers[machine.current];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, machine.scheduler_stack,
                                   machine.scheduler_stack_size);
#endif
    (void)for_good;
    swapcontext(&fiber.context, &machine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &machine.scheduler_stack, &machine.scheduler_stack_size);
#endif
}

[[noreturn]] inline void fail(const std::string& message) {
    machine.failure = message;
    leave(true);
    std::abort(); // the scheduler never comes back
}

inline void start() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_size);
#endif
    (*machine.kernel)();
    machine.fibers[machine.current].state = State::kFinished;
    leave(true);
}

inline void resume(int i) {
    Fiber& fiber = machine.fibers[i];
    machine.current = i;
    threadIdx = {unsigned(i), 0, 0};
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, fiber.stack.get(), kStack);
#endif
    swapcontext(&machine.scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
    if (!machine.failure.empty())
        throw std::runtime_error(std::exchange(machine.failure, ""));
}

// Lets the lanes of fiber i's warp operation go on, once all have come.
inline void meet_in_warp(int i) {
    const int first = i / kWarp * kWarp;
    const Fiber& latest = machine.fibers[i];
    std::array<uint64_t, kWarp> values{};
    for (int lane = 0; lane < kWarp; ++lane) {
        if (!(latest.mask >> lane & 1u))
            continue;
        if (first + lane >= machine.threads)
            throw std::runtime_error("the mask at " + latest.place.text() + " names lanes that the block does not have");
        const Fiber& other = machine.fibers[first + lane];
        if (other.state != State::kInWarp)
            return; // still on its way, or stuck elsewhere: see stuck()
        if (!(other.place == latest.place) || other.mask != latest.mask)
            throw std::runtime_error("lanes of one warp meet at different operations, " + latest.place.text() + " and " +
                                     other.place.text());
        values[lane] = other.given;
    }
    machine.account->warp_operations += 1;
    for (int lane = 0; lane < kWarp; ++lane)
        if (latest.mask >> lane & 1u) {
            machine.fibers[first + lane].received = values;
            machine.fibers[first + lane].state = State::kReady;
            machine.ready.push_back(first + lane);
        }
}

inline void meet_at_barrier() {
    if (++machine.at_barrier < machine.threads)
        return;
    machine.at_barrier = 0;
    machine.account->barriers += 1;
    const Place place = machine.fibers[0].place;
    for (int i = 0; i < machine.threads; ++i) {
        if (!(machine.fibers[i].place == place))
            throw std::runtime_error("threads of one block wait at different barriers, " + place.text() + " and " +
                                     machine.fibers[i].place.text());
    }
    for (int i = 0; i < machine.threads; ++i) {
        machine.fibers[i].state = State::kReady;
        machine.ready.push_back(i);
    }
}

// Nobody can run and not all have finished: says who waits where, and who does not come.
[[noreturn]] inline void stuck() {
    int waiting = -1, other = -1;
    for (int i = 0; i < machine.threads; ++i)
        if (machine.fibers[i].state == State::kAtBarrier || machine.fibers[i].state == State::kInWarp)
            waiting = waiting < 0 ? i : waiting;
    const Fiber& fiber = machine.fibers[waiting];
    for (int i = 0; i < machine.threads && other < 0; ++i) {
        const bool needed = fiber.state == State::kAtBarrier || (i / kWarp == waiting / kWarp && fiber.mask >> i % kWarp & 1u);
        if (needed && machine.fibers[i].state != fiber.state)
            other = i;
    }
    const Fiber& missing = machine.fibers[other];
    throw std::runtime_error("divergence: " + thread_text(waiting) + " waits at the " +
                             (fiber.state == State::kAtBarrier ? "barrier " : "warp operation ") + fiber.place.text() +
                             ", but " + thread_text(other) +
                             (missing.state == State::kFinished ? " has finished" : " is at " + missing.place.text()));
}

inline void run_block(int threads, const std::function<void()>& kernel) {
    Machine& m = machine;
    m.threads = threads, m.kernel = &kernel;
    m.shared.clear(), m.ready.clear(), m.at_barrier = 0;
    if (m.fibers.size() < size_t(threads))
        m.fibers.resize(threads);
    for (int i = 0; i < threads; ++i) {
        Fiber& fiber = m.fibers[i];
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), kStack); // of a fiber that never came to its end
#endif
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start, 0);
        fiber.state = State::kReady;
        m.ready.push_back(i);
    }
    for (int finished = 0; finished < threads;) {
        if (m.ready.empty())
            stuck();
        const size_t pick = m.random() % m.ready.size();
        const int i = m.ready[pick];
        m.ready[pick] = m.ready.back();
        m.ready.pop_back();
        resume(i);
        switch (m.fibers[i].state) {
        case State::kFinished:
            ++finished;
            break;
        case State::kAtBarrier:
            meet_at_barrier();
            break;
        default:
            meet_in_warp(i);
        }
    }
}

struct Grid {
    int64_t x, y = 1;
    Grid(int64_t blocks) : x(blocks) {}
    Grid(int64_t columns, int64_t rows) : x(columns), y(rows) {}
};

// kernel<<<grid, threads>>>, with the kernel and its arguments in a closure; name is for the account.
template <class F> void launch(const char* name, Grid grid, int threads, const F& kernel) {
    const std::function<void()> body = kernel;
    const int64_t blocks = grid.x * grid.y;
    std::vector<int64_t> order(blocks);
    for (int64_t i = 0; i < blocks; ++i)
        order[i] = i;
    for (int64_t i = blocks; i > 1; --i)
        std::swap(order[i - 1], order[machine.random() % uint64_t(i)]);
    gridDim = {unsigned(grid.x), unsigned(grid.y), 1};
    blockDim = {unsigned(threads), 1, 1};
    Account& account = machine.accounts[name];
    machine.account = &account;
    account.launches += 1;
    for (const int64_t i : order) {
        blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x), 0};
        run_block(threads, body);
        account.blocks += 1, account.threads += threads;
    }
}

inline void wait(State state, Place place) {
    Fiber& fiber = machine.fibers[machine.current];
    fiber.state = state, fiber.place = place;
    leave();
}

// What every lane of `mask` gave, as 64 bits each.
template <class T> const std::array<uint64_t, kWarp>& exchange(uint32_t mask, T value, Place place) {
    static_assert(sizeof(T) <= 8);
    Fiber& fiber = machine.fibers[machine.current];
    if (!(mask >> machine.current % kWarp & 1u))
        fail(thread_text(machine.current) + " is not in its own mask at " + place.text());
    fiber.mask = mask, fiber.given = 0;
    memcpy(&fiber.given, &value, sizeof value);
    wait(State::kInWarp, place);
    return fiber.received;
}
template <class T> T shuffled(uint32_t mask, T value, int source, Place place) {
    const auto& values = exchange(mask, value, place);
    if (source < 0 || source >= kWarp)
        return value;
    if (!(mask >> source & 1u))
        fail("lane " + std::to_string(source) + " is read at " + place.text() + ", which its mask does not name");
    memcpy(&value, &values[source], sizeof value);
    return value;
}

// Shared memory of a block, NaN until it is written; its own allocation, so that AddressSanitizer knows its ends.
template <class T> T& shared(const char* file, int line) {
    auto& place = machine.shared[{file, line}];
    if (!place) {
        place.reset(new char[sizeof(T)]);
        memset(place.get(), 0xff, sizeof(T));
    }
    return *reinterpret_cast<T*>(place.get());
}

} // namespace emulation

#define LK_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(LK_PLACE) { emulation::wait(emulation::State::kAtBarrier, {file, line}); }
inline void __syncwarp(uint32_t mask = 0xffffffffu, LK_PLACE) { emulation::exchange(mask, 0, {file, line}); }
template <class T> T __shfl_sync(uint32_t mask, T value, int lane, LK_PLACE) {
    return emulation::shuffled(mask, value, lane % emulation::kWarp, {file, line});
}
template <class T> T __shfl_xor_sync(uint32_t mask, T value, int lanes, LK_PLACE) {
    return emulation::shuffled(mask, value, (emulation::machine.current % emulation::kWarp) ^ lanes, {file, line});
}
template <class T> T __shfl_up_sync(uint32_t mask, T value, int lanes, LK_PLACE) {
    return emulation::shuffled(mask, value, emulation::machine.current % emulation::kWarp - lanes, {file, line});
}
template <class T> T __shfl_down_sync(uint32_t mask, T value, int lanes, LK_PLACE) {
    return emulation::shuffled(mask, value, emulation::machine.current % emulation::kWarp + lanes, {file, line});
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, LK_PLACE) {
    const auto& values = emulation::exchange(mask, predicate, {file, line});
    uint32_t bits = 0;
    for (int lane = 0; lane < emulation::kWarp; ++lane)
        bits |= uint32_t(values[lane] != 0) << lane;
    return bits & mask;
}
template <class T> T atomicAdd(T* place, T value) { return std::exchange(*place, T(*place + value)); }

#undef LK_PLACE
