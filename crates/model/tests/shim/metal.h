// Enough of Metal's language for the kernels of this crate to be compiled as C++ and run on a CPU.
//
// The threads of a threadgroup are fibers, which meet at barriers and in SIMD-group functions. Threadgroup memory starts as
// NaN. Matrices of a SIMD-group are held by its first lane, so that what it stores is not there for others before a barrier.
//
// The test that builds this rewrites three things of Metal that are not C++: attributes, declarations of threadgroup
// memory, and the entry point of each kernel.

#include "fibers.hpp"

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
#define ulong uint64_t

#define device
#define constant const
#define kernel static
#define __HAVE_BFLOAT__ 1
#define UNROLL

struct uint3 {
    uint x, y, z;
};

struct ulong2 {
    ulong x, y;
    ulong2(ulong x, ulong y) : x(x), y(y) {}
};

// bf16 with the conversions that have to be written out in the sources.
struct bfloat {
    uint16_t bits;
    bfloat() = default;
    explicit bfloat(float value) {
        uint32_t u;
        memcpy(&u, &value, 4);
        if ((u & 0x7fffffffu) > 0x7f800000u) {
            bits = uint16_t((u >> 16) | 0x40);
        } else {
            bits = uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
        }
    }
    explicit operator float() const {
        uint32_t u = uint32_t(bits) << 16;
        float value;
        memcpy(&value, &u, 4);
        return value;
    }
};

namespace shim {

const uint WIDTH = fibers::WARP_SIZE;

struct Run {
    void (*body)(void** buffers);
    void** buffers;
    uint3 position;
    // Threadgroup memory that this group has declared.
    std::vector<void*> declared;
};

inline Run now;

inline uint index() { return fibers::block.current->index; }
inline uint lane() { return index() % WIDTH; }

inline void enter(void*) { now.body(now.buffers); }

// Runs a kernel over a grid. False where some threads of a group wait for others that never come.
inline bool run(void (*body)(void**), void** buffers, const uint* groups, uint threads, bool backwards) {
    now.body = body;
    now.buffers = buffers;
    for (uint i = 0; i < groups[0] * groups[1] * groups[2]; ++i) {
        now.position = uint3{i % groups[0], i / groups[0] % groups[1], i / groups[0] / groups[1]};
        now.declared.clear();
        if (!fibers::run(threads, backwards, enter, nullptr)) {
            return false;
        }
    }
    return true;
}

// NaN into threadgroup memory, once a group.
inline void poison(void* memory, size_t bytes) {
    for (void* seen : now.declared) {
        if (seen == memory) {
            return;
        }
    }
    now.declared.push_back(memory);
    memset(memory, 0xff, bytes);
}

template <typename T, typename F>
T exchange(T value, F pick) {
    uint64_t raw = 0;
    memcpy(&raw, &value, sizeof(T));
    const uint64_t* shown = fibers::show(raw);
    T all[WIDTH];
    for (uint i = 0; i < WIDTH; ++i) {
        memcpy(&all[i], &shown[i], sizeof(T));
    }
    return pick(all, lane());
}

}  // namespace shim

namespace metal {

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

static inline void threadgroup_barrier(mem_flags) { fibers::wait_block(); }
static inline void simdgroup_barrier(mem_flags) { fibers::wait_warp(); }

// By halves, as the hardware may do it.
template <typename T>
static T simd_sum(T value) {
    return shim::exchange(value, [](T* all, uint) {
        for (uint step = shim::WIDTH / 2; step > 0; step /= 2) {
            for (uint i = 0; i < step; ++i) {
                all[i] = all[i] + all[i + step];
            }
        }
        return all[0];
    });
}

template <typename T>
static T simd_max(T value) {
    return shim::exchange(value, [](T* all, uint) {
        T best = all[0];
        for (uint i = 1; i < shim::WIDTH; ++i) {
            best = all[i] > best ? all[i] : best;
        }
        return best;
    });
}

template <typename T>
static T simd_min(T value) {
    return shim::exchange(value, [](T* all, uint) {
        T best = all[0];
        for (uint i = 1; i < shim::WIDTH; ++i) {
            best = all[i] < best ? all[i] : best;
        }
        return best;
    });
}

template <typename T>
static T simd_shuffle_xor(T value, ushort mask) {
    return shim::exchange(value, [mask](T* all, uint lane) { return all[lane ^ mask]; });
}

template <typename T>
static T simd_broadcast(T value, ushort from) {
    return shim::exchange(value, [from](T* all, uint) { return all[from]; });
}

template <typename T>
static T simd_prefix_exclusive_sum(T value) {
    return shim::exchange(value, [](T* all, uint lane) {
        T sum = T(0);
        for (uint i = 0; i < lane; ++i) {
            sum = sum + all[i];
        }
        return sum;
    });
}

template <typename T>
static T min(T a, T b) {
    return b < a ? b : a;
}

template <typename T>
static T max(T a, T b) {
    return a < b ? b : a;
}

using std::ceil;
using std::exp;
using std::fabs;
using std::log;
using std::sqrt;

template <typename To, typename From>
static To as_type(From value) {
    static_assert(sizeof(To) == sizeof(From), "as_type");
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}

// A matrix of a SIMD-group, held by its first lane.
struct simdgroup_float8x8 {
    float at[8][8];
};

template <typename T, int Columns, int Rows>
static simdgroup_float8x8 make_filled_simdgroup_matrix(T value) {
    static_assert(Columns == 8 && Rows == 8, "matrices are 8 x 8");
    simdgroup_float8x8 filled;
    for (uint i = 0; i < 64; ++i) {
        filled.at[i / 8][i % 8] = value;
    }
    return filled;
}

static inline bool first_lane() { return shim::lane() == 0; }

static inline void simdgroup_load(
    simdgroup_float8x8& to, const float* from, ulong stride = 8, ulong2 origin = ulong2(0, 0), bool transposed = false
) {
    if (!first_lane()) {
        return;
    }
    from += origin.y * stride + origin.x;
    for (uint i = 0; i < 8; ++i) {
        for (uint j = 0; j < 8; ++j) {
            to.at[i][j] = transposed ? from[j * stride + i] : from[i * stride + j];
        }
    }
}

static inline void simdgroup_store(
    const simdgroup_float8x8& from, float* to, ulong stride = 8, ulong2 origin = ulong2(0, 0), bool transposed = false
) {
    if (!first_lane()) {
        return;
    }
    to += origin.y * stride + origin.x;
    for (uint i = 0; i < 8; ++i) {
        for (uint j = 0; j < 8; ++j) {
            (transposed ? to[j * stride + i] : to[i * stride + j]) = from.at[i][j];
        }
    }
}

// d = a b + c
static inline void simdgroup_multiply_accumulate(
    simdgroup_float8x8& d, const simdgroup_float8x8& a, const simdgroup_float8x8& b, const simdgroup_float8x8& c
) {
    if (!first_lane()) {
        return;
    }
    float sums[8][8];
    for (uint i = 0; i < 8; ++i) {
        for (uint j = 0; j < 8; ++j) {
            sums[i][j] = c.at[i][j];
        }
        for (uint k = 0; k < 8; ++k) {
            for (uint j = 0; j < 8; ++j) {
                sums[i][j] += a.at[i][k] * b.at[k][j];
            }
        }
    }
    memcpy(d.at, sums, sizeof(sums));
}

// d = a b
static inline void simdgroup_multiply(simdgroup_float8x8& d, const simdgroup_float8x8& a, const simdgroup_float8x8& b) {
    simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f));
}

}  // namespace metal

// What a kernel's attributes stand for.
#define SHIM_threadgroup_position_in_grid shim::now.position
#define SHIM_thread_index_in_threadgroup shim::index()
#define SHIM_thread_index_in_simdgroup shim::lane()
#define SHIM_simdgroup_index_in_threadgroup (shim::index() / shim::WIDTH)
#define SHIM_simdgroups_per_threadgroup uint(fibers::block.warps.size())
