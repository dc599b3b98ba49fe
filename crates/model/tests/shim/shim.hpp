// As much of CUDA C++ as the kernels use, on the CPU: a block's threads are fibers, shared memory is static, warp
// instructions exchange values at a barrier, tensor-core instructions are loops.
#pragma once
#include "fibers.hpp"
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

// The test looks for this word in the preprocessed text to find the kernels.
#define __global__ __attribute__((used))
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static thread_local
#define __constant__ static const
#define __ldg(pointer) (*(pointer))

namespace shim {
struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct ThreadIndex {
    unsigned x, y, z;
};
inline thread_local Dim3 block_index, block_size, grid_size;
inline thread_local unsigned char *dynamic_shared = nullptr;
inline ThreadIndex thread_index() { return {fibers::block.current->index, 0, 0}; }
} // namespace shim

#define threadIdx (shim::thread_index())
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(shim::dynamic_shared)

// ---- types

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (std::isnan(x)) return {uint16_t(0x7fff)};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }

// ---- arithmetic

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { volatile float y = a + b; return y; }
inline float __fmul_rn(float a, float b) { volatile float y = a * b; return y; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline uint32_t __float_as_uint(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
inline float __uint_as_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }

// ---- barriers and warp instructions, of whole warps only

inline void __syncthreads() { fibers::wait_block(); }
inline void __syncwarp(unsigned = 0xffffffffu) { fibers::wait_warp(); }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace shim {
template <class T> inline uint64_t to_bits(T x) {
    static_assert(sizeof(T) <= 8, "a value of a warp has at most eight bytes");
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof(T));
    return bits;
}
template <class T> inline T from_bits(uint64_t bits) {
    T x;
    memcpy(&x, &bits, sizeof(T));
    return x;
}
inline unsigned lane() { return fibers::block.current->index % 32; }
} // namespace shim

template <class T> inline T __shfl_sync(unsigned, T x, int from, int width = 32) {
    const unsigned lane = shim::lane();
    const uint64_t *shown = fibers::show(shim::to_bits(x));
    return shim::from_bits<T>(shown[lane / width * width + (unsigned(from) % unsigned(width))]);
}
template <class T> inline T __shfl_xor_sync(unsigned, T x, int mask, int = 32) {
    const unsigned lane = shim::lane();
    return shim::from_bits<T>(fibers::show(shim::to_bits(x))[lane ^ unsigned(mask)]);
}
template <class T> inline T __shfl_down_sync(unsigned, T x, unsigned by, int width = 32) {
    const unsigned lane = shim::lane(), from = lane % width + by < unsigned(width) ? lane + by : lane;
    return shim::from_bits<T>(fibers::show(shim::to_bits(x))[from]);
}
template <class T> inline T __shfl_up_sync(unsigned, T x, unsigned by, int width = 32) {
    const unsigned lane = shim::lane(), from = lane % width >= by ? lane - by : lane;
    return shim::from_bits<T>(fibers::show(shim::to_bits(x))[from]);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    const uint64_t *shown = fibers::show(predicate != 0);
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; i++) bits |= unsigned(shown[i]) << i;
    return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }

// ---- atomics, of whole numbers: sums of floats would depend on the order of the threads

template <class T> inline T atomicAdd(T *at, T value) {
    static_assert(std::is_integral_v<T>, "an atomic sum of floats has no fixed order");
    const T old = *at;
    *at = T(old + value);
    return old;
}

// ---- running a kernel

namespace shim {

// What the caller says an argument is; the same numbers stand in the Rust side.
enum Kind : uint32_t { READ_F32, READ_BF16, READ_U32, WRITE_F32, WRITE_BF16, WRITE_U32, NOTHING, U32, F32, READ_F64, WRITE_F64 };

template <class A> constexpr bool fits(uint32_t kind) {
    if constexpr (std::is_pointer_v<A>) {
        using E = std::remove_pointer_t<A>;
        using V = std::remove_const_t<E>;
        if constexpr (std::is_same_v<V, double>) return kind == NOTHING || kind == (std::is_const_v<E> ? READ_F64 : WRITE_F64);
        constexpr uint32_t type = std::is_same_v<V, float> ? 0 : std::is_same_v<V, __nv_bfloat16> ? 1 : std::is_same_v<V, uint32_t> ? 2 : 99;
        return kind == NOTHING || kind == (std::is_const_v<E> ? READ_F32 : WRITE_F32) + type;
    } else if constexpr (std::is_same_v<A, float>) {
        return kind == F32;
    } else {
        return std::is_same_v<A, uint32_t> && kind == U32;
    }
}

struct Call {
    void (*invoke)(const uint64_t *);
    const uint64_t *values;
};

template <auto F, class... A, size_t... I> void invoke(void (*)(A...), const uint64_t *values, std::index_sequence<I...>) {
    F(from_bits<A>(values[I])...);
}
template <class... A, size_t... I> int misfit(void (*)(A...), const uint32_t *kinds, std::index_sequence<I...>) {
    int found = -1;
    ((found < 0 && !fits<A>(kinds[I]) ? void(found = int(I)) : void()), ...);
    return found;
}
template <class... A> constexpr size_t arity(void (*)(A...)) { return sizeof...(A); }

struct Entry {
    const char *name;
    size_t arity;
    void (*invoke)(const uint64_t *);
    int (*misfit)(const uint32_t *);
};

template <auto F> constexpr Entry entry(const char *name) {
    constexpr size_t count = arity(F);
    return {name, count, [](const uint64_t *values) { invoke<F>(F, values, std::make_index_sequence<count>()); },
            [](const uint32_t *kinds) { return misfit(F, kinds, std::make_index_sequence<count>()); }};
}

struct Request {
    uint32_t blocks[3];
    uint32_t threads, shared_bytes, backwards, count;
    const uint32_t *kinds;
    const uint64_t *values;
};

// 0; -1: no such kernel; -2: another number of arguments; -3: threads that wait for ever; 100 + i: argument i is another.
inline int run(const Entry *entries, size_t count, const char *name, const Request *request) {
    const Entry *entry = nullptr;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(entries[i].name, name) == 0) entry = &entries[i];
    }
    if (!entry) return -1;
    if (entry->arity != request->count) return -2;
    if (const int wrong = entry->misfit(request->kinds); wrong >= 0) return 100 + wrong;
    block_size = {request->threads, 1, 1};
    grid_size = {request->blocks[0], request->blocks[1], request->blocks[2]};
    // Bytes of ones are NaNs: shared memory holds nothing that was not put there.
    std::vector<unsigned char> shared(request->shared_bytes + 16);
    dynamic_shared = shared.data() + (16 - reinterpret_cast<uintptr_t>(shared.data()) % 16) % 16;
    Call call = {entry->invoke, request->values};
    const uint64_t blocks = uint64_t(grid_size.x) * grid_size.y * grid_size.z;
    for (uint64_t i = 0; i < blocks; i++) {
        const uint64_t at = request->backwards ? blocks - 1 - i : i;
        block_index = {unsigned(at % grid_size.x), unsigned(at / grid_size.x % grid_size.y), unsigned(at / grid_size.x / grid_size.y)};
        memset(dynamic_shared, 0xff, request->shared_bytes);
        auto body = [](void *argument) { const Call *call = static_cast<Call *>(argument); call->invoke(call->values); };
        if (!fibers::run(request->threads, request->backwards != 0, body, &call)) return -3;
    }
    return 0;
}

} // namespace shim
