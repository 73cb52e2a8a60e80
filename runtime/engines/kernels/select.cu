// KestrelSelect: the T best (anchor, class) pairs of a dense head, in one launch.
//
// What it gives is defined in export/graph/select.py; NOTES.md beside this file says why it is
// built this way. Each block reads one stretch of an image's A * K logits and keeps its T best;
// the block that finishes last takes the best of those, sorts and writes them. All that is chosen
// is chosen by distinct 64-bit keys, so neither the order of threads nor of blocks can show.

#include "device.cuh"

inline namespace parts {  // not unnamed: NVRTC puts a random number into such names

constexpr int THREADS = 512;
constexpr int LOADS = 4;               // of a thread in a tile
constexpr int TILE = THREADS * LOADS;  // values between two barriers
constexpr int STRETCH = 16384;         // values of one block; SELECT_STRETCH in shipped.py
constexpr int MOST = 2048;             // the greatest T
constexpr int CAPACITY = MOST + TILE;  // a full tile always fits behind the best so far
constexpr int WARPS = THREADS / 32;
constexpr int TICKETS = 1024;

constexpr float LARGEST = 3.40282347e+38f;
constexpr float TINY = 1.17549435e-38f;  // the smallest normal float32
constexpr float LARGEST_BELOW_1 = 0.99999994f;

typedef unsigned long long Key;  // order of the value << 32 | ~flat index; 0 is no candidate

// Blocks that have finished, by the address of the image's scratch rows. A launch leaves the counts
// at 0. They cannot lie in the scratch itself, which nothing clears before a launch, and cannot be
// one counter, since streams run the same module side by side. Owners stay: a slot that was freed
// could split the blocks of a launch that is under way between two slots.
__device__ Key ticket_owner[TICKETS];
__device__ unsigned ticket_count[TICKETS];

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// Rising with the value; -0 counts as 0. Not for NaN.
__device__ __forceinline__ unsigned order_of(float value) {
    unsigned bits = __float_as_uint(value);
    if (bits == 0x80000000u) bits = 0u;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(Key key) {
    const unsigned order = static_cast<unsigned>(key >> 32);
    return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

__device__ __forceinline__ Key key_of(float value, unsigned flat) {
    return static_cast<Key>(order_of(value)) << 32 | (0xffffffffu - flat);
}

// The threshold in the units of the logits, as the body writes it, NaN included. A call, since few
// values come here: inlined it costs registers that the loop over all values lacks.
__device__ __noinline__ float cut_of(float threshold, int is_sigmoid) {
    if (!is_sigmoid) return threshold > 0.0f ? threshold : threshold <= 0.0f ? 0.0f : infinity();
    if (threshold > LARGEST_BELOW_1) return infinity();
    if (!(threshold > 0.0f)) return -LARGEST;
    const float inside = fmaxf(threshold, TINY);
    return logf(inside / (1.0f - inside));
}

// Candidates of one block in shared memory. `least` is what a key must exceed, once T were seen.
struct Best {
    Key* keys;   // (CAPACITY)
    int* count;
    Key least;
};

// Falling, by a bitonic network; room for the next power of two is filled with 0. In steps of at
// most 32 the pairs of a warp lie in 64 keys that no other warp touches.
__device__ void sort_falling(Key* keys, int count) {
    int size = 1;
    while (size < count) size *= 2;
    for (int at = count + threadIdx.x; at < size; at += THREADS) keys[at] = 0;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
        for (int stride = run / 2; stride > 0; stride /= 2) {
            for (int pair = threadIdx.x; pair < size / 2; pair += THREADS) {
                const int low = 2 * pair - (pair & (stride - 1));
                const Key first = keys[low], second = keys[low + stride];
                const bool falls = (low & run) == 0;
                if (falls ? first < second : first > second) {
                    keys[low] = second;
                    keys[low + stride] = first;
                }
            }
            const int next_stride = stride > 1 ? stride / 2 : run;
            if (stride > 32 || next_stride > 32) __syncthreads(); else __syncwarp(FULL_WARP);
        }
    }
    __syncthreads();
}

// Keep the T best, sorted. All threads call it, behind a barrier.
__device__ void prune(Best& best, int num_candidates) {
    const int count = *best.count;
    sort_falling(best.keys, count);
    if (count >= num_candidates) best.least = best.keys[num_candidates - 1];
    if (threadIdx.x == 0) *best.count = min(count, num_candidates);
    __syncthreads();
}

// Take a key in; true if there is no room for one more tile behind it.
__device__ __forceinline__ bool offer(Best& best, Key key) {
    const int place = atomicAdd(best.count, 1);
    best.keys[place] = key;
    return place >= CAPACITY - TILE;
}

// The lowest threshold of all classes, in the units of the logits: most values fall to it alone.
__device__ float lowest_cut(const float* thresholds, int num_classes, int is_sigmoid,
                            unsigned* shared_order) {
    if (threadIdx.x == 0) *shared_order = order_of(infinity());
    __syncthreads();
    float lowest = infinity();
    for (int label = threadIdx.x; label < num_classes; label += THREADS) {
        lowest = fminf(lowest, cut_of(thresholds[label], is_sigmoid));
    }
    atomicMin(shared_order, order_of(lowest));
    __syncthreads();
    return value_of(static_cast<Key>(*shared_order) << 32);
}

__device__ __forceinline__ void load(float* values, const float* logits, unsigned start,
                                     unsigned end) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
        const unsigned at = start + i * THREADS + threadIdx.x;
        values[i] = at < end ? logits[at] : -infinity();
    }
}

// Read values [begin, end) of an image and keep the T best candidates.
__device__ void read_stretch(Best& best, const float* logits, const float* thresholds,
                             unsigned begin, unsigned end, int num_classes, int num_candidates,
                             int is_sigmoid, float floor) {
    float values[LOADS], next[LOADS], after[LOADS];  // two tiles are on their way: NOTES.md
    load(values, logits, begin, end);
    load(next, logits, begin + TILE, end);
    for (unsigned start = begin; start < end; start += TILE) {
        load(after, logits, start + 2 * TILE, end);
        bool is_full = false;
#pragma unroll
        for (int i = 0; i < LOADS; ++i) {
            if (values[i] > floor) {  // never for NaN
                const unsigned flat = start + i * THREADS + threadIdx.x;
                const float threshold = thresholds[flat % num_classes];
                if (values[i] > cut_of(threshold, is_sigmoid)) {
                    is_full |= offer(best, key_of(values[i], flat));
                }
            }
            values[i] = next[i];
            next[i] = after[i];
        }
        if (__syncthreads_or(is_full)) {
            prune(best, num_candidates);
            // Equal values that come later have a higher index, and lose.
            if (best.least) floor = fmaxf(floor, value_of(best.least));
        }
    }
}

// How many threads before this one, and in all, by a sum over the block.
__device__ int sum_before(int count, int* warp_sums, int* total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int until = count;
    for (int step = 1; step < 32; step *= 2) {
        const int before = __shfl_up_sync(FULL_WARP, until, step);
        if (lane >= step) until += before;
    }
    if (lane == 31) warp_sums[warp] = until;
    __syncthreads();
    int warps_before = 0, all = 0;
    for (int other = 0; other < WARPS; ++other) {
        if (other < warp) warps_before += warp_sums[other];
        all += warp_sums[other];
    }
    *total = all;
    __syncthreads();
    return warps_before + until - count;
}

// Take in what all blocks of an image have kept: rows of (count, keys...), THREADS rows at a time.
__device__ void read_scratch(Best& best, const volatile Key* rows, int num_rows,
                             int num_candidates, int* starts, int* warp_sums) {
    const int width = num_candidates + 1;
    for (int first = 0; first < num_rows; first += THREADS) {
        const int row = first + threadIdx.x;
        const int count = row < num_rows ? static_cast<int>(rows[1LL * row * width]) : 0;
        int total;
        starts[threadIdx.x] = sum_before(count, warp_sums, &total);
        __syncthreads();
        for (int start = 0; start < total; start += TILE) {
            bool is_full = false;
            for (int i = 0; i < LOADS; ++i) {
                const int at = start + i * THREADS + threadIdx.x;
                if (at >= total) break;
                int low = 0, high = THREADS;  // the last row that starts at or before `at`
                while (high - low > 1) {
                    const int middle = (low + high) / 2;
                    if (starts[middle] <= at) low = middle; else high = middle;
                }
                const Key key = rows[1LL * (first + low) * width + 1 + at - starts[low]];
                if (key > best.least) is_full |= offer(best, key);
            }
            if (__syncthreads_or(is_full)) prune(best, num_candidates);
        }
        __syncthreads();
    }
}

// The slot that counts the blocks of an image; -1 once the table is full of others. Scratch of
// several contexts lies at one offset of large allocations: only the upper bits of the product mix
// the address's upper bits in.
__device__ int find_ticket(Key owner) {
    unsigned at = static_cast<unsigned>(((owner >> 6) * 0x9E3779B97F4A7C15ULL) >> 32) % TICKETS;
    for (int tries = 0; tries < TICKETS; ++tries) {
        const Key found = atomicCAS(&ticket_owner[at], 0ULL, owner);
        if (found == 0 || found == owner) return static_cast<int>(at);
        at = (at + 1) % TICKETS;
    }
    return -1;
}

}  // namespace parts

// Grid (ceil(A * K / STRETCH), B, 1), THREADS threads.
//
// logits (B, A, K), score_threshold (B, K); scores, anchors, classes (B, T);
// scratch (B, blocks of an image, T + 1), of any content; not touched where there is one block.
extern "C" __global__ void __launch_bounds__(512, 2) kestrel_select(
    const float* __restrict__ logits, const float* __restrict__ score_threshold, int num_anchors,
    int num_classes, int num_candidates, int is_sigmoid, float* __restrict__ scores,
    long long* __restrict__ anchors, long long* __restrict__ classes, Key* scratch) {
    __shared__ Key keys[CAPACITY];
    __shared__ int starts[THREADS];
    __shared__ int warp_sums[WARPS];
    __shared__ int count;
    __shared__ int verdict;
    __shared__ unsigned order;

    const int image = blockIdx.y;
    const int num_blocks = gridDim.x;
    const unsigned num_values = static_cast<unsigned>(num_anchors) * num_classes;
    const float* image_logits = logits + 1LL * image * num_values;
    const float* thresholds = score_threshold + 1LL * image * num_classes;

    if (threadIdx.x == 0) count = 0;
    const float floor = lowest_cut(thresholds, num_classes, is_sigmoid, &order);
    Best best = {keys, &count, 0};
    const unsigned begin = blockIdx.x * static_cast<unsigned>(STRETCH);
    const unsigned end = min(begin + STRETCH, num_values);
    read_stretch(best, image_logits, thresholds, begin, end, num_classes, num_candidates,
                 is_sigmoid, floor);

    if (num_blocks > 1) {
        if (count > num_candidates) prune(best, num_candidates);
        Key* rows = scratch + 1LL * image * num_blocks * (num_candidates + 1);
        Key* row = rows + 1LL * blockIdx.x * (num_candidates + 1);
        if (threadIdx.x == 0) row[0] = count;
        for (int at = threadIdx.x; at < count; at += THREADS) row[1 + at] = keys[at];
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            const int slot = find_ticket(reinterpret_cast<Key>(rows));
            if (slot < 0) {
                verdict = blockIdx.x == 0 ? -1 : 0;
            } else {
                __threadfence();  // what the block wrote, seen behind the barrier, before its count
                verdict = atomicAdd(&ticket_count[slot], 1u) == num_blocks - 1u;
                if (verdict == 1) ticket_count[slot] = 0;
            }
            count = 0;
        }
        __syncthreads();
        if (verdict == 0) return;
        __threadfence();
        best.least = 0;
        if (verdict == 1) {
            read_scratch(best, rows, num_blocks, num_candidates, starts, warp_sums);
        } else {  // no slot for a count: the first block reads the image on its own, slow and right
            read_stretch(best, image_logits, thresholds, 0, num_values, num_classes,
                         num_candidates, is_sigmoid, floor);
        }
    }

    prune(best, num_candidates);
    for (int at = threadIdx.x; at < num_candidates; at += THREADS) {
        const bool is_candidate = at < count;
        const Key key = is_candidate ? keys[at] : 0;
        const unsigned flat = is_candidate ? 0xffffffffu - static_cast<unsigned>(key) : 0u;
        const float value = value_of(key);
        const float score = is_sigmoid ? fmaxf(1.0f / (1.0f + expf(-value)), TINY) : value;
        const long long place = 1LL * image * num_candidates + at;
        scores[place] = is_candidate ? score : 0.0f;
        anchors[place] = flat / num_classes;
        classes[place] = flat % num_classes;
    }
}
