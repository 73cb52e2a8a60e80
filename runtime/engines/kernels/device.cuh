// What our kernels share. They are plain CUDA C++ for NVRTC, without NVIDIA's headers, and their
// text is also compiled as C++ by the tests, which run it on the CPU.
#pragma once

constexpr unsigned FULL_WARP = 0xffffffffu;

// Shared memory whose size the launch decides; one in a kernel.
#ifdef KESTREL_EMULATED
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(kestrel::dynamic_shared())
#else
#define DYNAMIC_SHARED(type, name)                               \
    extern __shared__ __align__(16) unsigned char kestrel_dynamic[]; \
    type* name = reinterpret_cast<type*>(kestrel_dynamic)
#endif
