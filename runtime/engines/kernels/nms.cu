// KestrelNms: suppression per class, greedy or Fast NMS, in one launch of one block per image.
//
// What it gives is defined in export/graph/nms.py; NOTES.md beside this file says why it is built
// this way. Rows are taken in groups of 32. All warps hold a group against the rivals before it and
// against itself; one warp then settles the group by bit masks. Work ends with the M-th kept row.

#include "device.cuh"

inline namespace parts {  // not unnamed: NVRTC puts a random number into such names

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int MOST = 2048;  // the greatest T
constexpr int GROUPS = MOST / 32;

constexpr float LARGEST = 3.40282347e+38f;
constexpr float TINY = 1.17549435e-38f;  // the smallest normal float32

constexpr int FAST = 1;

struct alignas(16) Box {
    float x1, y1, x2, y2;
};

__device__ __forceinline__ float area_of(const Box& box) {
    return fmaxf(__fmul_rn(box.x2 - box.x1, box.y2 - box.y1), TINY);
}

// IoU > threshold, exactly as with the rounded quotient, which is computed only where it is close.
__device__ __forceinline__ bool is_over(const Box& a, const Box& b, float threshold) {
    const float width = fminf(a.x2, b.x2) - fmaxf(a.x1, b.x1);
    const float height = fminf(a.y2, b.y2) - fmaxf(a.y1, b.y1);
    if (!(width > 0.0f && height > 0.0f)) return false;  // IoU 0, or 0 / 0
    const float inter = __fmul_rn(width, height);
    const float both = __fadd_rn(area_of(a), area_of(b)) - inter;
    const float limit = __fmul_rn(threshold, both);
    if (threshold > 1e-6f && limit > 1e-30f && limit < 1e30f) {
        if (inter > __fmul_rn(limit, 1.000002f)) return true;
        if (inter < __fmul_rn(limit, 0.999998f)) return false;
    }
    return __fdiv_rn(inter, both) > threshold;
}

__device__ __forceinline__ bool is_finite(const Box& box) {
    return fabsf(box.x1) < LARGEST && fabsf(box.y1) < LARGEST && fabsf(box.x2) < LARGEST &&
           fabsf(box.y2) < LARGEST;
}

// Rows of a group that stay beside each other, the lowest first, at most `room`.
__device__ __forceinline__ unsigned settle_greedy(unsigned alive, unsigned puts_out, int room) {
    unsigned kept = 0;
    while (alive && room > 0) {
        const int row = __ffs(static_cast<int>(alive)) - 1;
        kept |= 1u << row;
        --room;
        alive &= ~(__shfl_sync(FULL_WARP, puts_out, row) | 1u << row);
    }
    return kept;
}

}  // namespace parts

// Grid (B, 1, 1), THREADS threads. T = num_rows is at most MOST.
//
// boxes (B, T, 4), scores (B, T), classes (B, T), iou_threshold (B); method 0 greedy, 1 fast;
// num_detections (B), det_boxes (B, M, 4), det_scores, det_classes, det_indices (B, M).
extern "C" __global__ void __launch_bounds__(512) kestrel_nms(
    const Box* __restrict__ boxes, const float* __restrict__ scores,
    const long long* __restrict__ classes, const float* __restrict__ iou_threshold, int num_rows,
    int max_detections, int method, int per_class_limit, int* __restrict__ num_detections,
    Box* __restrict__ det_boxes, float* __restrict__ det_scores, int* __restrict__ det_classes,
    long long* __restrict__ det_indices) {
    __shared__ Box rivals[MOST];   // all rows at first; those that may put others out move forward
    __shared__ int labels[MOST];
    __shared__ unsigned entered[GROUPS];
    __shared__ unsigned puts_out[32];   // for each row of the group, those behind it that it beats
    __shared__ unsigned is_same[32];    // ... that are of its class
    __shared__ int same_before[32];     // rivals of its class before the group
    __shared__ unsigned beaten;         // rows of the group that a rival before it beats
    __shared__ int num_groups, num_rivals, num_kept;

    const int image = blockIdx.x;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float threshold = iou_threshold[image];
    const long long first_row = 1LL * image * num_rows;
    const long long first_out = 1LL * image * max_detections;

    if (threadIdx.x < 32) same_before[threadIdx.x] = 0;
    if (threadIdx.x == 0) num_groups = num_rivals = num_kept = beaten = 0;
    __syncthreads();
    for (int start = 0; start < num_rows; start += THREADS) {
        const int row = start + threadIdx.x;
        bool enters = false;
        if (row < num_rows) {
            const Box box = boxes[first_row + row];
            rivals[row] = box;
            labels[row] = static_cast<int>(classes[first_row + row]);
            enters = scores[first_row + row] > 0.0f && is_finite(box);
        }
        const unsigned word = __ballot_sync(FULL_WARP, enters);
        if (lane == 0 && row < num_rows) {
            entered[row / 32] = word;
            if (word) atomicMax(&num_groups, row / 32 + 1);
        }
    }
    __syncthreads();

    for (int group = 0; group < num_groups && num_kept < max_detections; ++group) {
        const int row = group * 32 + lane;
        const bool is_row = row < num_rows;
        const Box mine = is_row ? rivals[row] : Box{0.0f, 0.0f, 0.0f, 0.0f};
        const int label = is_row ? labels[row] : -1;

        bool is_beaten = false;
        int same = 0;
        for (int rival = warp; rival < num_rivals; rival += WARPS) {
            if (labels[rival] != label) continue;
            ++same;
            is_beaten = is_beaten || is_over(rivals[rival], mine, threshold);
        }
        const unsigned word = __ballot_sync(FULL_WARP, is_beaten);
        if (lane == 0 && word) atomicOr(&beaten, word);
        if (method == FAST && same) atomicAdd(&same_before[lane], same);
        for (int other = warp; other < 32; other += WARPS) {
            const int other_row = group * 32 + other;
            const bool is_behind = other < lane && is_row && labels[other_row] == label;
            const bool loses = is_behind && is_over(rivals[other_row], mine, threshold);
            const unsigned losers = __ballot_sync(FULL_WARP, loses);
            const unsigned fellows = __ballot_sync(FULL_WARP, is_behind);
            if (lane == 0) {
                puts_out[other] = losers;
                is_same[other] = fellows;
            }
        }
        __syncthreads();

        if (warp == 0) {
            const unsigned alive = entered[group];
            const unsigned before_me = (1u << lane) - 1u;
            unsigned kept, moved;
            if (method == FAST) {
                unsigned out = beaten;
                int rank = same_before[lane];
                for (int other = 0; other < 32; ++other) {
                    if (!(alive >> other & 1u)) continue;
                    out |= puts_out[other];
                    rank += is_same[other] >> lane & 1u;
                }
                kept = __ballot_sync(FULL_WARP, rank < per_class_limit) & alive & ~out;
                moved = alive;
            } else {
                kept = settle_greedy(alive & ~beaten, puts_out[lane], max_detections - num_kept);
                moved = kept;
            }
            const int place = num_kept + __popc(kept & before_me);
            if ((kept >> lane & 1u) && place < max_detections) {
                const long long at = first_out + place;
                det_boxes[at] = mine;
                det_scores[at] = scores[first_row + row];
                det_classes[at] = label;
                det_indices[at] = row;
            }
            const int rival = num_rivals + __popc(moved & before_me);  // never behind its row
            __syncwarp(FULL_WARP);  // every lane has read the counts
            if (moved >> lane & 1u) {
                rivals[rival] = mine;
                labels[rival] = label;
            }
            same_before[lane] = 0;
            if (lane == 0) {
                num_rivals += __popc(moved);
                num_kept = min(num_kept + __popc(kept), max_detections);
                beaten = 0;
            }
        }
        __syncthreads();
    }

    if (threadIdx.x == 0) num_detections[image] = num_kept;
    for (int place = num_kept + threadIdx.x; place < max_detections; place += THREADS) {
        const long long at = first_out + place;
        det_boxes[at] = Box{0.0f, 0.0f, 0.0f, 0.0f};
        det_scores[at] = 0.0f;
        det_classes[at] = -1;
        det_indices[at] = 0;
    }
}
