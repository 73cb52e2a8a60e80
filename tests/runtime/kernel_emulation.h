// CUDA on the CPU, for tests: the shipped .cu text is compiled as C++ behind this header.
//
// The threads of a block are fibers on one OS thread. Each runs until it comes to a barrier or a
// warp operation, so what the hardware does at once happens here in an order that the caller
// chooses; a kernel whose result depends on that order has a race. Blocks run one after another.
// Shared memory is poisoned before each block. What CUDA leaves undefined and people get wrong
// (barriers that not all threads reach, warp operations that lanes of the mask never join) is a
// fault with a message, never a hang.
#pragma once

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include <ucontext.h>

#define KESTREL_EMULATED 1
#define __global__
#define __device__ static
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("kestrel_shared")))
// Names that the linker gives to the ends of that section; absent where nothing is shared.
extern "C" {
extern unsigned char __start_kestrel_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_kestrel_shared[] __attribute__((weak, visibility("hidden")));
}

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(4) uchar4 { unsigned char x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace kestrel {

constexpr int WARP = 32;
constexpr unsigned char POISON = 0xA5;
// Not a power of two: else the tops of all stacks would share a few lines of the cache.
constexpr std::size_t STACK_BYTES = 64 * 1024 + 17 * 64;
constexpr std::uint64_t CANARY = 0x5ca1ab1e0ddba11ULL;

enum class State { fresh, runnable, at_barrier, at_warp, done };

struct Fiber {
    jmp_buf place;
    ucontext_t start;
    State state = State::fresh;
    bool has_begun = false;
    uint3 thread{};
    int number = 0;
    const char* what = "";  // it waits for
    int line = 0;
    int vote = 0;            // what it brings to a barrier, and what it takes away
    unsigned mask = 0;
    std::uint64_t values[WARP];  // of all lanes, after a warp operation
};

struct Meeting {  // of the lanes of one mask
    unsigned mask = 0, arrived = 0;
    const char* what = "";
    int line = 0;
    std::uint64_t values[WARP];
};

struct Warp { Meeting by_lowest_lane[WARP]; };

struct Machine {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> stacks, shared;
    jmp_buf scheduler;
    Fiber* current = nullptr;
    dim3 grid, block;
    uint3 block_at{};
    int num_threads = 0;
    void (*body)(void*) = nullptr;
    void* arguments = nullptr;
    bool is_faulty = false;
    char message[512] = "";
};

inline Machine machine;

[[noreturn]] inline void fault(const char* format, ...) {
    va_list values;
    va_start(values, format);
    char text[400];
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    const uint3 at = machine.block_at;
    std::snprintf(machine.message, sizeof machine.message, "block (%u, %u, %u): %s", at.x, at.y,
                  at.z, text);
    machine.is_faulty = true;
    _longjmp(machine.scheduler, 1);
}

inline void yield() {
    if (_setjmp(machine.current->place) == 0) _longjmp(machine.scheduler, 1);
}

inline void fiber_main() {
    for (;;) {  // once for each block
        machine.body(machine.arguments);
        machine.current->state = State::done;
        yield();
    }
}

inline std::uint64_t* canary_of(int number) {
    auto at = reinterpret_cast<std::uintptr_t>(machine.stacks.data() + number * STACK_BYTES);
    return reinterpret_cast<std::uint64_t*>((at + 15) & ~std::uintptr_t{15});
}

inline void resume(Fiber& fiber) {
    machine.current = &fiber;
    if (_setjmp(machine.scheduler) != 0) return;
    if (fiber.has_begun) _longjmp(fiber.place, 1);
    fiber.has_begun = true;
    getcontext(&fiber.start);
    unsigned char* stack = reinterpret_cast<unsigned char*>(canary_of(fiber.number)) + 16;
    fiber.start.uc_stack.ss_sp = stack;
    fiber.start.uc_stack.ss_size = STACK_BYTES - 32;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
    setcontext(&fiber.start);
}

// All live threads wait: let them go on together, or say why they never will.
inline bool open_barrier(bool& is_over) {
    const Fiber* first = nullptr;
    const Fiber* waiting = nullptr;
    int count = 0;
    for (int i = 0; i < machine.num_threads; i++) {
        Fiber& fiber = machine.fibers[i];
        if (fiber.state == State::done) continue;
        if (fiber.state == State::at_warp) { if (!waiting) waiting = &fiber; continue; }
        if (!first) first = &fiber;
        if (fiber.line != first->line || std::strcmp(fiber.what, first->what) != 0) {
            std::snprintf(machine.message, sizeof machine.message,
                          "block (%u, %u, %u): threads wait at different barriers: thread %d at %s "
                          "in line %d, thread %d at %s in line %d", machine.block_at.x,
                          machine.block_at.y, machine.block_at.z, first->number, first->what,
                          first->line, fiber.number, fiber.what, fiber.line);
            return false;
        }
        count += fiber.vote != 0;
    }
    if (waiting) {
        const Meeting& met = machine.warps[waiting->number / WARP]
                                 .by_lowest_lane[__builtin_ctz(waiting->mask)];
        const int lane = __builtin_ctz(met.mask & ~met.arrived);
        std::snprintf(machine.message, sizeof machine.message,
                      "block (%u, %u, %u): deadlock: thread %d waits at %s in line %d for lane %d "
                      "of its warp, which %s", machine.block_at.x, machine.block_at.y,
                      machine.block_at.z, waiting->number, waiting->what, waiting->line, lane,
                      machine.fibers[waiting->number / WARP * WARP + lane].state == State::done
                          ? "has ended" : "waits elsewhere");
        return false;
    }
    is_over = first == nullptr;
    for (int i = 0; i < machine.num_threads; i++) {
        Fiber& fiber = machine.fibers[i];
        if (fiber.state == State::done) continue;
        fiber.vote = count;
        fiber.state = State::runnable;
    }
    return true;
}

inline bool run_block(unsigned order, std::mt19937& random) {
    std::fill(machine.shared.begin(), machine.shared.end(), POISON);
    if (__start_kestrel_shared != nullptr)
        std::memset(__start_kestrel_shared, POISON,
                    static_cast<std::size_t>(__stop_kestrel_shared - __start_kestrel_shared));
    for (auto& warp : machine.warps) warp = Warp{};
    std::vector<int> turns(static_cast<std::size_t>(machine.num_threads));
    std::iota(turns.begin(), turns.end(), 0);
    if (order == 1) std::reverse(turns.begin(), turns.end());
    for (int i = 0; i < machine.num_threads; i++) machine.fibers[i].state = State::runnable;
    for (bool is_over = false; !is_over;) {
        if (order >= 2) std::shuffle(turns.begin(), turns.end(), random);
        for (bool is_moving = true; is_moving;) {
            is_moving = false;
            for (int i : turns) {
                Fiber& fiber = machine.fibers[i];
                if (fiber.state != State::runnable) continue;
                resume(fiber);
                if (machine.is_faulty) return false;
                is_moving = true;
            }
        }
        if (!open_barrier(is_over)) return false;
    }
    for (int i = 0; i < machine.num_threads; i++)
        if (*canary_of(i) != CANARY) {
            std::snprintf(machine.message, sizeof machine.message,
                          "thread %d needs more than %zu bytes of stack", i, STACK_BYTES);
            return false;
        }
    return true;
}

inline void set_up(dim3 block, std::size_t shared_bytes) {
    const int num_threads = static_cast<int>(block.x * block.y * block.z);
    if (num_threads > static_cast<int>(machine.fibers.size()) || machine.is_faulty) {
        const std::size_t size = std::max<std::size_t>(num_threads, machine.fibers.size());
        machine.fibers = std::vector<Fiber>(size);
        machine.stacks = std::vector<unsigned char>();  // before the new ones are taken
        machine.stacks.reserve(size * STACK_BYTES + 64);  // reserved and untouched: costs nothing
        for (std::size_t i = 0; i < size; i++) *canary_of(static_cast<int>(i)) = CANARY;
    }
    machine.is_faulty = false;
    machine.num_threads = num_threads;
    machine.warps.resize(static_cast<std::size_t>((num_threads + WARP - 1) / WARP));
    machine.shared.resize(shared_bytes + 16);
    machine.block = block;
    for (int i = 0; i < num_threads; i++) {
        Fiber& fiber = machine.fibers[i];
        fiber.number = i;
        const unsigned n = static_cast<unsigned>(i);
        fiber.thread = {n % block.x, n / block.x % block.y, n / block.x / block.y};
    }
}

inline int run(void (*body)(void*), void* arguments, const unsigned* grid, const unsigned* block,
               std::size_t shared_bytes, unsigned order, char* message, std::size_t size) {
    machine.body = body;
    machine.arguments = arguments;
    machine.grid = {grid[0], grid[1], grid[2]};
    machine.message[0] = 0;
    set_up({block[0], block[1], block[2]}, shared_bytes);
    std::mt19937 random(order);
    const std::uint64_t num_blocks = std::uint64_t{grid[0]} * grid[1] * grid[2];
    for (std::uint64_t i = 0; i < num_blocks; i++) {
        const std::uint64_t at = order == 1 ? num_blocks - 1 - i : i;
        machine.block_at = {static_cast<unsigned>(at % grid[0]),
                            static_cast<unsigned>(at / grid[0] % grid[1]),
                            static_cast<unsigned>(at / grid[0] / grid[1])};
        if (!run_block(order, random)) {
            std::snprintf(message, size, "%s", machine.message);
            machine.is_faulty = true;  // its fibers stand somewhere: make new ones next time
            return 1;
        }
    }
    return 0;
}

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(values[I])...);
}
template <class... A>
void call(void (*kernel)(A...), void** values) {
    call(kernel, values, std::index_sequence_for<A...>{});
}
template <class... A>
constexpr unsigned count_of(void (*)(A...)) { return sizeof...(A); }
template <class... A>
void sizes_of(void (*)(A...), std::size_t* sizes) { ((*sizes++ = sizeof(A)), ...); }

inline int barrier(const char* what, int line, int vote) {
    Fiber& me = *machine.current;
    me.what = what;
    me.line = line;
    me.vote = vote;
    me.state = State::at_barrier;
    yield();
    return me.vote;
}

// Each lane of `mask` brings a value and sees those of all.
inline const std::uint64_t* meet(const char* what, int line, unsigned mask, std::uint64_t value) {
    Fiber& me = *machine.current;
    const int lane = me.number % WARP, base = me.number - lane;
    const int lanes = std::min(WARP, machine.num_threads - base);
    if (!(mask >> lane & 1u))
        fault("thread %d calls %s in line %d with mask %#x, which leaves it out", me.number, what,
              line, mask);
    if (lanes < WARP && mask >> lanes != 0)
        fault("thread %d calls %s in line %d with mask %#x; its warp has %d threads", me.number,
              what, line, mask, lanes);
    Meeting& met = machine.warps[static_cast<std::size_t>(base / WARP)]
                       .by_lowest_lane[__builtin_ctz(mask)];
    if (met.arrived == 0) {
        met.mask = mask;
        met.what = what;
        met.line = line;
    }
    if (met.mask != mask || std::strcmp(met.what, what) != 0)
        fault("thread %d calls %s in line %d with mask %#x; others of its warp wait at %s in "
              "line %d with mask %#x", me.number, what, line, mask, met.what, met.line, met.mask);
    met.values[lane] = value;
    met.arrived |= 1u << lane;
    me.mask = mask;
    me.what = what;
    me.line = line;
    if (met.arrived != mask) {
        me.state = State::at_warp;
        yield();
        return me.values;
    }
    met.arrived = 0;
    for (unsigned left = mask; left != 0; left &= left - 1) {
        Fiber& other = machine.fibers[static_cast<std::size_t>(base + __builtin_ctz(left))];
        std::memcpy(other.values, met.values, sizeof met.values);
        other.state = State::runnable;
    }
    return me.values;
}

template <class T> std::uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T> T from_bits(std::uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

enum class Shuffle { index, up, down, exclusive };

template <class T>
T shuffle(const char* what, int line, Shuffle kind, unsigned mask, T value, int by,
          int width = WARP) {
    const int lane = machine.current->number % WARP;
    if (width < 1 || width > WARP || (width & (width - 1)))
        fault("%s in line %d has width %d; expected a power of two up to 32", what, line, width);
    const std::uint64_t* values = meet(what, line, mask, to_bits(value));
    const int first = lane & ~(width - 1), last = first + width - 1;
    int from = lane;
    if (kind == Shuffle::index) from = first + (by & (width - 1));
    if (kind == Shuffle::up) from = lane - by < first ? lane : lane - by;
    if (kind == Shuffle::down) from = lane + by > last ? lane : lane + by;
    if (kind == Shuffle::exclusive) from = (lane ^ by) > last ? lane : lane ^ by;
    if (!(mask >> from & 1u))
        fault("thread %d reads lane %d by %s in line %d; mask %#x leaves that out",
              machine.current->number, from, what, line, mask);
    return from_bits<T>(values[from]);
}

inline unsigned ballot(const char* what, int line, unsigned mask, int vote) {
    const std::uint64_t* values = meet(what, line, mask, vote != 0);
    unsigned found = 0;
    for (unsigned left = mask; left != 0; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        found |= static_cast<unsigned>(values[lane]) << lane;
    }
    return found;
}

template <class T> unsigned match_any(const char* what, int line, unsigned mask, T value) {
    const std::uint64_t* values = meet(what, line, mask, to_bits(value));
    unsigned found = 0;
    for (unsigned left = mask; left != 0; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        found |= static_cast<unsigned>(values[lane] == to_bits(value)) << lane;
    }
    return found;
}

inline void* dynamic_shared() {
    auto at = reinterpret_cast<std::uintptr_t>(machine.shared.data());
    return reinterpret_cast<void*>((at + 15) & ~std::uintptr_t{15});
}

}  // namespace kestrel

#define threadIdx (kestrel::machine.current->thread)
#define blockIdx (kestrel::machine.block_at)
#define blockDim (kestrel::machine.block)
#define gridDim (kestrel::machine.grid)
#define warpSize 32

#define __syncthreads() ((void)kestrel::barrier("__syncthreads", __LINE__, 0))
#define __syncthreads_or(vote) (kestrel::barrier("__syncthreads_or", __LINE__, (vote) != 0) != 0)
#define __syncthreads_count(vote) (kestrel::barrier("__syncthreads_count", __LINE__, (vote) != 0))
#define __syncthreads_and(vote) \
    (kestrel::barrier("__syncthreads_and", __LINE__, (vote) == 0) == 0)
#define __syncwarp(...) \
    ((void)kestrel::meet("__syncwarp", __LINE__, kestrel_full_mask(__VA_ARGS__), 0))
#define KESTREL_SHUFFLE(name, kind, ...) \
    kestrel::shuffle(name, __LINE__, kestrel::Shuffle::kind, __VA_ARGS__)
#define __shfl_sync(...) KESTREL_SHUFFLE("__shfl_sync", index, __VA_ARGS__)
#define __shfl_up_sync(...) KESTREL_SHUFFLE("__shfl_up_sync", up, __VA_ARGS__)
#define __shfl_down_sync(...) KESTREL_SHUFFLE("__shfl_down_sync", down, __VA_ARGS__)
#define __shfl_xor_sync(...) KESTREL_SHUFFLE("__shfl_xor_sync", exclusive, __VA_ARGS__)
#define __ballot_sync(mask, vote) kestrel::ballot("__ballot_sync", __LINE__, mask, (vote) != 0)
#define __any_sync(mask, vote) \
    (kestrel::ballot("__any_sync", __LINE__, mask, (vote) != 0) != 0)
#define __all_sync(mask, vote) \
    (kestrel::ballot("__all_sync", __LINE__, mask, (vote) == 0) == 0)
#define __match_any_sync(mask, value) \
    kestrel::match_any("__match_any_sync", __LINE__, mask, value)

inline unsigned kestrel_full_mask(unsigned mask = 0xffffffffu) { return mask; }
inline void __threadfence() {}
inline void __threadfence_block() {}

// One OS thread: what happens between two meetings of fibers is atomic.
#define KESTREL_ATOMIC(name, expression) \
    template <class T> T name(T* at, std::common_type_t<T> by) { \
        const T old = *at; \
        *at = static_cast<T>(expression); \
        return old; \
    }
KESTREL_ATOMIC(atomicAdd, old + by)
KESTREL_ATOMIC(atomicSub, old - by)
KESTREL_ATOMIC(atomicMin, by < old ? by : old)
KESTREL_ATOMIC(atomicMax, by > old ? by : old)
KESTREL_ATOMIC(atomicAnd, old & by)
KESTREL_ATOMIC(atomicOr, old | by)
KESTREL_ATOMIC(atomicXor, old ^ by)
KESTREL_ATOMIC(atomicExch, by)
KESTREL_ATOMIC(atomicInc, old >= by ? 0 : old + 1)
template <class T> T atomicCAS(T* at, std::common_type_t<T> wanted, std::common_type_t<T> value) {
    const T old = *at;
    if (old == wanted) *at = value;
    return old;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
    return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned found = 0;
    for (int i = 0; i < 32; i++) found |= (x >> i & 1u) << (31 - i);
    return found;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline int __mul24(int a, int b) { return a * b; }
inline int __float_as_int(float x) { return kestrel::from_bits<int>(kestrel::to_bits(x)); }
inline unsigned __float_as_uint(float x) {
    return kestrel::from_bits<unsigned>(kestrel::to_bits(x));
}
inline float __int_as_float(int x) { return kestrel::from_bits<float>(kestrel::to_bits(x)); }
inline float __uint_as_float(unsigned x) {
    return kestrel::from_bits<float>(kestrel::to_bits(x));
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __saturatef(float a) { return a > 0 ? (a < 1 ? a : 1) : 0; }
// NaN gives 0, and what does not fit the nearest end, as on the GPU.
inline int kestrel_to_int(double x) {
    if (!(x == x)) return 0;
    return x < -2147483648.0 ? INT32_MIN : x > 2147483647.0 ? INT32_MAX : static_cast<int>(x);
}
inline int __float2int_rd(float x) { return kestrel_to_int(std::floor(x)); }
inline int __float2int_ru(float x) { return kestrel_to_int(std::ceil(x)); }
inline int __float2int_rn(float x) { return kestrel_to_int(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return kestrel_to_int(std::trunc(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
template <class T> T __ldg(const T* at) { return *at; }

#define KESTREL_LESSER(type, a, b) \
    inline type min(a x, b y) { return static_cast<type>(x) < static_cast<type>(y) ? x : y; } \
    inline type max(a x, b y) { return static_cast<type>(x) > static_cast<type>(y) ? x : y; }
KESTREL_LESSER(int, int, int)
KESTREL_LESSER(unsigned, unsigned, unsigned)
KESTREL_LESSER(unsigned, int, unsigned)
KESTREL_LESSER(unsigned, unsigned, int)
KESTREL_LESSER(long long, long long, long long)
KESTREL_LESSER(unsigned long long, unsigned long long, unsigned long long)
inline float min(float x, float y) { return std::fmin(x, y); }
inline float max(float x, float y) { return std::fmax(x, y); }

// What Python calls, for each entry point of the file.
#define KESTREL_ENTRY(name) \
    extern "C" __attribute__((visibility("default"))) int emulate_##name( \
        const unsigned* grid, const unsigned* block, std::size_t shared_bytes, void** values, \
        unsigned order, char* message, std::size_t size) { \
        return kestrel::run([](void* given) { kestrel::call(&name, static_cast<void**>(given)); }, \
                            values, grid, block, shared_bytes, order, message, size); \
    } \
    extern "C" __attribute__((visibility("default"))) unsigned parameters_of_##name( \
        std::size_t* sizes) { \
        if (sizes != nullptr) kestrel::sizes_of(&name, sizes); \
        return kestrel::count_of(&name); \
    }
