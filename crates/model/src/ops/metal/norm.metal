// The sum of squares of a gradient: a part a threadgroup, then the parts in their order.

// Group `i` sums elements `i span ..` of `values: [count]`. parts: [groups].
kernel void square_parts(
    device const float* values [[buffer(0)]],
    device float* parts [[buffer(1)]],
    constant uint& count [[buffer(2)]],
    constant uint& span [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    threadgroup float shared[32];
    const uint first = group * span;
    const uint last = min(count, first + span);
    float sum = 0.0f;
    for (uint i = first + thread_index; i < last; i += simd_count * LANES) {
        sum += values[i] * values[i];
    }
    const float total = group_sum(sum, shared, lane, simd_index, simd_count);
    if (thread_index == 0) {
        parts[group] = total;
    }
}

// One group: the sum of `parts: [count]` into `sums[place]`.
kernel void sum_parts(
    device const float* parts [[buffer(0)]],
    device float* sums [[buffer(1)]],
    constant uint& count [[buffer(2)]],
    constant uint& place [[buffer(3)]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    threadgroup float shared[32];
    float sum = 0.0f;
    for (uint i = thread_index; i < count; i += simd_count * LANES) {
        sum += parts[i];
    }
    const float total = group_sum(sum, shared, lane, simd_index, simd_count);
    if (thread_index == 0) {
        sums[place] = total;
    }
}
