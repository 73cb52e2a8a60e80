"""The emulation behind the kernels' tests: what CUDA defines happens, what it does not is told."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_emulation import KernelFault, Program, compile_program

from runtime.engines.kernels.shipped import Bounds, Kernel, Parameter

ORDERS = pytest.mark.parametrize("order", [0, 1, 2, 99], ids=["rising", "falling", "a", "b"])
SOURCE = r"""
#include "device.cuh"
#define ENTRY extern "C" __global__ void __launch_bounds__(1024)

// Each thread hands its value to its neighbour, many times.
ENTRY rotate(float* data, int rounds) {
    __shared__ float held[1024];
    for (int i = 0; i < rounds; i++) {
        held[threadIdx.x] = data[threadIdx.x];
        __syncthreads();
        const float next = held[(threadIdx.x + 1) % blockDim.x];
        __syncthreads();
        data[threadIdx.x] = next;
    }
}

// A race: the second barrier is missing, and the first.
ENTRY race(float* data, int rounds) {
    __shared__ float held[1024];
    for (int i = 0; i < rounds; i++) {
        held[threadIdx.x] = data[threadIdx.x];
        data[threadIdx.x] = held[(threadIdx.x + 1) % blockDim.x];
    }
}

ENTRY indices(int* out, int mode) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const unsigned size = blockDim.x * blockDim.y * blockDim.z;
    if (mode == 0) out[block * size + thread] = block * size + thread;
    if (mode == 1 && thread == 0) out[block] = block;
}

ENTRY shuffles(int* out, int mode) {
    const int lane = threadIdx.x % 32, n = blockDim.x;
    const int mine = 100 + static_cast<int>(threadIdx.x);
    out[threadIdx.x] = __shfl_sync(FULL_WARP, mine, 5);
    out[n + threadIdx.x] = __shfl_up_sync(FULL_WARP, mine, 3);
    out[2 * n + threadIdx.x] = __shfl_down_sync(FULL_WARP, mine, 3);
    out[3 * n + threadIdx.x] = __shfl_xor_sync(FULL_WARP, mine, 6);
    out[4 * n + threadIdx.x] = __shfl_sync(FULL_WARP, mine, 9, 8);
    out[5 * n + threadIdx.x] = __ballot_sync(FULL_WARP, lane % 3 == 0);
    out[6 * n + threadIdx.x] = __any_sync(FULL_WARP, threadIdx.x == 33);
    out[7 * n + threadIdx.x] = __all_sync(FULL_WARP, threadIdx.x < 32);
    out[8 * n + threadIdx.x] = __match_any_sync(FULL_WARP, lane / 12);
    if (lane % 2 == 0) out[9 * n + threadIdx.x] = __ballot_sync(0x55555555u, lane < 8);
    else out[9 * n + threadIdx.x] = __ballot_sync(0xaaaaaaaau, lane < 8);
}

// The sum over a block by shuffles, the usual way.
ENTRY total(float* data, int rounds) {
    __shared__ double parts[32];
    double sum = 0;
    for (int i = 0; i < rounds; i++) {
        sum = data[threadIdx.x];
        for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(FULL_WARP, sum, by);
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
        __syncthreads();
        if (threadIdx.x < 32) {
            sum = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : 0.0;
            for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, by);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) data[0] = sum;
}

ENTRY counts(int* out, int mode) {
    unsigned* bits = reinterpret_cast<unsigned*>(out);
    atomicAdd(&out[0], 2);
    atomicMax(&out[1], static_cast<int>(threadIdx.x));
    atomicMin(&out[2], -static_cast<int>(threadIdx.x));
    atomicOr(&bits[3], 1u << (threadIdx.x % 32));
    atomicAdd(reinterpret_cast<unsigned long long*>(out + 4), 1ull << 33);
    atomicAdd(reinterpret_cast<float*>(out + 6), 0.5f);
    if (atomicCAS(&out[7], 0, 1 + static_cast<int>(threadIdx.x)) == 0) atomicExch(&out[8], 7);
    atomicInc(&bits[9], 9u);
    out[10] = __syncthreads_count(threadIdx.x % 4 == 0);
    out[11] = __syncthreads_or(threadIdx.x == 17);
    out[12] = __syncthreads_and(threadIdx.x < 17);
}

ENTRY poisoned(int* out, int mode) {
    __shared__ int held[64];
    DYNAMIC_SHARED(int, more);
    out[blockIdx.x * 2] = held[7];
    out[blockIdx.x * 2 + 1] = more[3];
    held[7] = more[3] = 1;
}

ENTRY faults(int* out, int mode) {
    const int lane = threadIdx.x % 32;
    if (mode == 0 && threadIdx.x < 40) __syncthreads();  // not all come: the rest ...
    if (mode == 0 && threadIdx.x >= 40) out[0] = __ballot_sync(FULL_WARP, 1);  // ... wait elsewhere
    if (mode == 1) { if (threadIdx.x % 2) { __syncthreads(); } else
        __syncthreads(); }
    if (mode == 2 && lane < 16) out[0] = __shfl_sync(FULL_WARP, lane, 0);
    if (mode == 3) out[0] = __ballot_sync(0xfffffffeu, 1);
    if (mode == 4) { if (lane < 16) out[0] = __ballot_sync(FULL_WARP, 1);
        else out[0] = __shfl_sync(FULL_WARP, lane, 0); }
    if (mode == 5 && lane < 16) out[0] = __shfl_sync(0xffffu, lane, 20);
    if (mode == 7) out[threadIdx.x + 1] = 1;
    if (mode == 8) { if (threadIdx.x > 3) return; __syncthreads(); out[0] = 5; }  // defined
}

ENTRY words(int* out, int mode) {
    out[0] = __popc(0xf0f0u) + __popcll(1ull << 40);
    out[1] = __clz(1) * 100 + __clz(0);
    out[2] = __ffs(8) * 100 + __ffsll(1ll << 40);
    out[3] = static_cast<int>(__brev(1u));
    out[4] = __float_as_int(1.0f);
    out[5] = __float2int_rd(-1.5f) * 100 + __float2int_rn(2.5f);
    out[6] = __float2int_rz(__int_as_float(0x7fc00000)) + (__float2int_rz(1e20f) == 0x7fffffff);
    out[7] = min(3, -4) + static_cast<int>(max(2u, 9u));
    out[8] = fmaxf(__int_as_float(0x7fc00000), 2.0f) == 2.0f;
    out[9] = static_cast<int>(__umulhi(0x80000000u, 6u));
}
"""
NAMES = ("rotate", "race", "indices", "shuffles", "total", "counts", "poisoned", "faults", "words")


@pytest.fixture(scope="module")
def program() -> Program:
    parameters = (Parameter("data", "pointer"), Parameter("mode", "i32"))
    kernels = [Kernel(name, "test.cu", parameters, 1024, Bounds(255)) for name in NAMES]
    return compile_program(SOURCE, kernels)


@ORDERS
def test_barriers_keep_writers_and_readers_apart(program, order):
    data = np.arange(1024, dtype=np.float32)
    program.launch("rotate", (1,), (1024,), [data, 150], order=order)
    np.testing.assert_array_equal(data, np.roll(np.arange(1024), -150))


def test_race_gives_another_result_in_another_order(program):
    results = []
    for order in (0, 1):
        data = np.arange(64, dtype=np.float32)
        program.launch("race", (1,), (64,), [data, 1], order=order)
        results.append(data)
    assert not np.array_equal(*results)


@ORDERS
def test_indices_of_blocks_and_threads(program, order):
    out = np.full(2 * 3 * 2 * 4 * 5 * 3, -1, np.int32)
    program.launch("indices", (2, 3, 2), (4, 5, 3), [out, 0], order=order, guarded=True)
    np.testing.assert_array_equal(out, np.arange(len(out)))


@ORDERS
def test_warp_operations_do_what_cuda_says(program, order):
    n = 64
    out = np.zeros((10, n), np.int32)
    program.launch("shuffles", (1,), (n,), [out, 0], order=order)
    thread = np.arange(n)
    lane, base = thread % 32, thread // 32 * 32
    np.testing.assert_array_equal(out[0], 100 + base + 5)
    np.testing.assert_array_equal(out[1], 100 + np.where(lane < 3, thread, thread - 3))
    np.testing.assert_array_equal(out[2], 100 + np.where(lane > 28, thread, thread + 3))
    np.testing.assert_array_equal(out[3], 100 + base + (lane ^ 6))
    np.testing.assert_array_equal(out[4], 100 + thread // 8 * 8 + 1)
    thirds = sum(1 << at for at in range(0, 32, 3))
    np.testing.assert_array_equal(out[5].view(np.uint32), thirds)
    np.testing.assert_array_equal(out[6], thread >= 32)
    np.testing.assert_array_equal(out[7], thread < 32)
    groups = [0x00000FFF, 0x00FFF000, 0xFF000000]
    np.testing.assert_array_equal(out[8].view(np.uint32), np.array(groups)[lane // 12])
    np.testing.assert_array_equal(out[9], np.where(lane % 2 == 0, 0x55, 0xAA))


@ORDERS
@pytest.mark.parametrize("num_threads", [32, 256, 1024])
def test_reduction_over_a_block(program, order, num_threads):
    data = np.random.default_rng(num_threads).integers(0, 1000, num_threads).astype(np.float32)
    wanted = data.sum()
    program.launch("total", (1,), (num_threads,), [data, 3], order=order)
    assert data[0] == wanted


@ORDERS
def test_atomics_lose_nothing(program, order):
    out = np.zeros(14, np.int32)
    program.launch("counts", (3,), (64,), [out, 0], order=order)
    assert out[0] == 3 * 64 * 2
    assert (out[1], out[2]) == (63, -63)
    assert out[3:4].view(np.uint32)[0] == 0xFFFFFFFF
    assert out[4:6].view(np.uint64)[0] == (3 * 64) << 33
    assert out[6:7].view(np.float32)[0] == 3 * 64 * 0.5
    assert 1 <= out[7] <= 64
    assert out[8] == 7
    assert out[9] == 3 * 64 % 10
    assert (out[10], out[11], out[12]) == (16, 1, 0)


def test_shared_memory_is_poisoned_before_each_block(program):
    out = np.zeros(6, np.uint32)
    program.launch("poisoned", (3,), (1,), [out, 0], shared_bytes=64)
    np.testing.assert_array_equal(out, 0xA5A5A5A5)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (
            0,
            r"deadlock: thread 40 waits at __ballot_sync in line \d+ for lane 0 of its warp, which",
        ),
        (1, r"different barriers: thread 0 at __syncthreads in line \d+, thread 1 at"),
        (2, "deadlock: thread 0 waits at __shfl_sync .* for lane 16 of its warp, which has ended"),
        (3, "thread 0 calls __ballot_sync in line .* with mask 0xfffffffe, which leaves it out"),
        (4, "thread 16 calls __shfl_sync .*; others of its warp wait at __ballot_sync"),
        (5, r"thread \d+ reads lane 20 by __shfl_sync .*; mask 0xffff leaves that out"),
        (7, "faults writes outside of data"),
    ],
)
def test_what_cuda_leaves_undefined_is_told_and_never_hangs(program, mode, words):
    out = np.zeros(64, np.int32)
    with pytest.raises(KernelFault, match=words):
        program.launch("faults", (1,), (64,), [out, mode], guarded=True)
    data = np.arange(64, dtype=np.float32)  # and the next launch is right again
    program.launch("rotate", (1,), (64,), [data, 1])
    assert data[0] == 1


def test_barrier_waits_for_no_thread_that_has_ended(program):
    out = np.zeros(64, np.int32)
    program.launch("faults", (1,), (64,), [out, 8])
    assert out[0] == 5


def test_mask_with_lanes_that_the_block_has_not_is_a_fault(program):
    with pytest.raises(KernelFault, match="mask 0xffffffff; its warp has 20 threads"):
        program.launch("total", (1,), (20,), [np.zeros(20, np.float32), 1])


def test_intrinsics_give_the_values_of_cudas_manual(program):
    out = np.zeros(10, np.int32)
    program.launch("words", (1,), (1,), [out, 0])
    quiet = [9, 3132, 441, -(2**31), 0x3F800000, -198, 1, 5, 1, 3]
    np.testing.assert_array_equal(out, quiet)


def test_launch_refuses_what_the_kernel_is_not_declared_for(program):
    with pytest.raises(AssertionError, match="1025 threads"):
        program.launch("rotate", (1,), (1025,), [np.zeros(1, np.float32), 1])
    with pytest.raises(AssertionError, match="number of arguments"):
        program.launch("rotate", (1,), (1,), [np.zeros(1, np.float32)])
