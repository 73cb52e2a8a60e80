// Frames of any size -> rows of the engine's input: resized, padded, as runtime/preprocess.py
// defines it. One launch for up to 16 frames; a thread writes four neighbouring pixels.
#include "device.cuh"

struct Row {
    const unsigned char* frame;          // (height, width, channels), BGR, BGRA or grey
    int pitch;                           // bytes from one line of it to the next
    int height, width, channels;         // 1, 3 or 4 channels
    int content_height, content_width;   // of the resized frame
    int top, left;                       // where that begins
    int pad_value;                       // around it
    int reserved;
};
static_assert(sizeof(Row) == 48, "runtime/engines/kernels/shipped.py: LETTERBOX_ROW_BYTES");

constexpr int MAX_ROWS = 16;
struct Rows {
    Row row[MAX_ROWS];
};

constexpr int PIXELS = 4;  // of a thread: 12 bytes, three aligned words
constexpr int CHANNELS = 3;

struct Tap {
    int low, high;  // neighbours in the frame
    float weight;   // of the second
};

// Half-pixel centres, clamped: place = (at + 0.5) * old / now - 0.5. In whole numbers, since a
// float holds no place of a 4K frame to better than 1/4000 of a pixel. Fits: 2 * 8192 * 65535.
__device__ __forceinline__ Tap find_tap(int at, int old, int now) {
    const int whole = 2 * now;
    const int place = max((2 * at + 1) * old - now, 0);
    Tap tap;
    tap.low = place / whole;
    tap.weight = static_cast<float>(place - tap.low * whole) / static_cast<float>(whole);
    tap.high = min(tap.low + 1, old - 1);
    return tap;
}

__device__ __forceinline__ unsigned blend(const unsigned char* upper, const unsigned char* lower,
                                          int left, int right, float x, float y) {
    const float top = upper[left] * (1.0f - x) + upper[right] * x;
    const float bottom = lower[left] * (1.0f - x) + lower[right] * x;
    return static_cast<unsigned>(top * (1.0f - y) + bottom * y + 0.5f);
}

extern "C" __global__ void __launch_bounds__(256) kestrel_letterbox(
    const __grid_constant__ Rows rows, unsigned char* __restrict__ images, int height, int width) {
    const Row& row = rows.row[blockIdx.z];
    const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * PIXELS;
    const int line = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
    if (first >= width || line >= height) return;

    const int y_in = line - row.top;
    const bool is_inside = y_in >= 0 && y_in < row.content_height;
    const Tap y = find_tap(is_inside ? y_in : 0, row.height, row.content_height);
    const unsigned char* upper = row.frame + static_cast<long long>(y.low) * row.pitch;
    const unsigned char* lower = row.frame + static_cast<long long>(y.high) * row.pitch;
    const int step = row.channels == 1 ? 0 : 1;  // grey is the same in all channels

    unsigned words[CHANNELS] = {0, 0, 0};
#pragma unroll
    for (int i = 0; i < PIXELS; i++) {
        const int x_in = first + i - row.left;
        const bool is_content = is_inside && x_in >= 0 && x_in < row.content_width;
        const Tap x = find_tap(is_content ? x_in : 0, row.width, row.content_width);
        const int left = x.low * row.channels, right = x.high * row.channels;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            unsigned value = static_cast<unsigned>(row.pad_value);
            if (is_content) {
                value = blend(upper, lower, left + c * step, right + c * step, x.weight, y.weight);
            }
            const int at = i * CHANNELS + c;
            words[at / 4] |= value << (at % 4 * 8);
        }
    }

    const long long line_at = (static_cast<long long>(blockIdx.z) * height + line) * width;
    unsigned char* out = images + (line_at + first) * CHANNELS;
    if (width % PIXELS == 0) {  // every line, and so every four pixels, begins on a word
        unsigned* aligned = reinterpret_cast<unsigned*>(out);
#pragma unroll
        for (int i = 0; i < CHANNELS; i++) aligned[i] = words[i];
        return;
    }
    const int count = min(width - first, PIXELS) * CHANNELS;
#pragma unroll
    for (int at = 0; at < PIXELS * CHANNELS; at++) {
        if (at < count) out[at] = static_cast<unsigned char>(words[at / 4] >> (at % 4 * 8));
    }
}
