// What every kernel file starts with. `scalar` is the type of the tensors (float or bfloat); arithmetic is in float.
//
// Written for the strictest reading of Metal's language: every pointer has its address space, every conversion between
// float and scalar is spelled out, threadgroup memory is declared in kernels only, and all threads of a group take part
// in every barrier and SIMD-group function. No atomics on floats: every sum has one order.

using namespace metal;

// Threads of a SIMD-group.
#define LANES 32u

// Loops over what has to stay in registers.
#ifndef UNROLL
#define UNROLL _Pragma("clang loop unroll(full)")
#endif

// Below every score and logit; finite, so that no arithmetic on infinities is needed.
#define LOWEST (-3.0e38f)

// The sum of `value` over the threads of a group, the same in all of them. `shared` holds one float a SIMD-group.
inline float group_sum(float value, threadgroup float* shared, uint lane, uint simd_index, uint simd_count) {
    const float part = simd_sum(value);
    // What was in `shared` may still be read.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) {
        shared[simd_index] = part;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float total = 0.0f;
    for (uint i = 0; i < simd_count; ++i) {
        total += shared[i];
    }
    return total;
}

// The largest `value` of the threads of a group, likewise.
inline float group_max(float value, threadgroup float* shared, uint lane, uint simd_index, uint simd_count) {
    const float part = simd_max(value);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) {
        shared[simd_index] = part;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float best = shared[0];
    for (uint i = 1; i < simd_count; ++i) {
        best = max(best, shared[i]);
    }
    return best;
}
