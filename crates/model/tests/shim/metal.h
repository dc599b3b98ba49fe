// Enough of Metal's language for the kernels of this crate to be compiled as C++ and run on a CPU.
//
// The threads of a threadgroup are fibers of one thread: each runs until it meets a barrier or a SIMD-group function, then
// the next one does. A barrier that not all threads reach ends the program. Threadgroup memory starts as NaN. Matrices of a
// SIMD-group are held by its first lane, so that a value stored by it and read without a barrier is an old one.
//
// The test that builds this rewrites three things of Metal that are not C++: attributes, declarations of threadgroup
// memory, and the entry point of each kernel.

#include <ucontext.h>

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

const uint WIDTH = 32;

struct Barrier {
    uint size = 0, arrived = 0, generation = 0;
};

struct Lanes {
    Barrier barrier;
    uint64_t slots[2][WIDTH];
};

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
    uint turn = 0;
};

struct Group {
    std::vector<Fiber> fibers;
    std::vector<Lanes> simds;
    Barrier barrier;
    std::vector<void*> poisoned;
    ucontext_t main;
    uint current = 0, live = 0, idle = 0;
    uint3 position;
    void (*body)(void** buffers);
    void** buffers;
};

static Group group;

[[noreturn]] static void fail(const char* message) {
    fprintf(stderr, "metal shim: %s\n", message);
    abort();
}

// Runs the next fiber that is not done; its own caller when there is none.
static void leave() {
    const uint from = group.current, count = uint(group.fibers.size());
    if (group.live == 0) {
        setcontext(&group.main);
    }
    if (++group.idle > 4 * count + 8) {
        fail("a barrier or SIMD-group function that not all threads reach");
    }
    uint next = from;
    do {
        next = (next + 1) % count;
    } while (group.fibers[next].done);
    if (next == from) {
        return;
    }
    group.current = next;
    swapcontext(&group.fibers[from].context, &group.fibers[next].context);
}

static void meet(Barrier& barrier) {
    const uint generation = barrier.generation;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.generation;
        group.idle = 0;
    }
    while (barrier.generation == generation) {
        leave();
    }
}

static void run_fiber() {
    group.body(group.buffers);
    group.fibers[group.current].done = true;
    group.idle = 0;
    --group.live;
    leave();
}

static void run(void (*body)(void**), void** buffers, const uint* groups, uint threads) {
    if (threads == 0 || threads % WIDTH != 0 || threads > 1024) {
        fail("a threadgroup has 32 to 1024 threads, whole SIMD-groups of them");
    }
    group.body = body;
    group.buffers = buffers;
    group.fibers.resize(threads);
    for (uint z = 0; z < groups[2]; ++z) {
        for (uint y = 0; y < groups[1]; ++y) {
            for (uint x = 0; x < groups[0]; ++x) {
                group.position = uint3{x, y, z};
                group.simds.assign(threads / WIDTH, Lanes());
                for (Lanes& lanes : group.simds) {
                    lanes.barrier.size = WIDTH;
                }
                group.barrier = Barrier();
                group.barrier.size = threads;
                group.poisoned.clear();
                group.live = threads;
                group.idle = 0;
                for (Fiber& fiber : group.fibers) {
                    fiber.done = false;
                    fiber.turn = 0;
                    fiber.stack.resize(64 << 10);
                    getcontext(&fiber.context);
                    fiber.context.uc_stack.ss_sp = fiber.stack.data();
                    fiber.context.uc_stack.ss_size = fiber.stack.size();
                    fiber.context.uc_link = nullptr;
                    makecontext(&fiber.context, run_fiber, 0);
                }
                group.current = 0;
                swapcontext(&group.main, &group.fibers[0].context);
            }
        }
    }
}

// NaN into threadgroup memory, once a group.
static void poison(void* memory, size_t bytes) {
    for (void* seen : group.poisoned) {
        if (seen == memory) {
            return;
        }
    }
    group.poisoned.push_back(memory);
    memset(memory, 0xff, bytes);
}

template <typename T, typename F>
static T exchange(T value, F pick) {
    Lanes& lanes = group.simds[group.current / WIDTH];
    uint64_t* slots = lanes.slots[group.fibers[group.current].turn++ & 1];
    uint64_t raw = 0;
    memcpy(&raw, &value, sizeof(T));
    slots[group.current % WIDTH] = raw;
    meet(lanes.barrier);
    T all[WIDTH];
    for (uint i = 0; i < WIDTH; ++i) {
        memcpy(&all[i], &slots[i], sizeof(T));
    }
    return pick(all, group.current % WIDTH);
}

}  // namespace shim

namespace metal {

enum class mem_flags { mem_none, mem_device, mem_threadgroup };

static inline void threadgroup_barrier(mem_flags) { shim::meet(shim::group.barrier); }
static inline void simdgroup_barrier(mem_flags) { shim::meet(shim::group.simds[shim::group.current / shim::WIDTH].barrier); }

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
    simdgroup_float8x8() = default;
    explicit simdgroup_float8x8(float diagonal) {
        for (uint i = 0; i < 8; ++i) {
            for (uint j = 0; j < 8; ++j) {
                at[i][j] = i == j ? diagonal : 0.0f;
            }
        }
    }
};

static inline bool first_lane() { return shim::group.current % shim::WIDTH == 0; }

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
    simdgroup_multiply_accumulate(d, a, b, simdgroup_float8x8(0.0f));
}

}  // namespace metal

// What a kernel's attributes stand for.
#define SHIM_threadgroup_position_in_grid shim::group.position
#define SHIM_thread_index_in_threadgroup shim::group.current
#define SHIM_thread_index_in_simdgroup (shim::group.current % shim::WIDTH)
#define SHIM_simdgroup_index_in_threadgroup (shim::group.current / shim::WIDTH)
#define SHIM_simdgroups_per_threadgroup uint(shim::group.simds.size())
