// The gradient of picking rows: rows of `parts: [picked, width]` summed where they were picked. The numbers of the parts that
// belong to row `i` of a list are `order[starts[i]..starts[i + 1]]`, in the order they are added in.

// One thread a column of a row of `sums: [rows, width]`, all of which are in the list; zero where nothing was picked.
kernel void gather_sums(
    device const scalar* parts [[buffer(0)]],
    device const uint* starts [[buffer(1)]],
    device const uint* order [[buffer(2)]],
    device scalar* sums [[buffer(3)]],
    constant uint& width [[buffer(4)]],
    constant uint& count [[buffer(5)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint i = group * simd_count * LANES + thread_index;
    if (i >= count) {
        return;
    }
    const uint row = i / width;
    float sum = 0.0f;
    for (uint at = starts[row]; at < starts[row + 1u]; ++at) {
        sum += float(parts[ulong(order[at]) * ulong(width) + ulong(i % width)]);
    }
    sums[i] = scalar(sum);
}

// One thread a column of a listed row: its parts are added to row `ids[i]` of f32 `sums: [rows, width]`.
kernel void add_picked(
    device const scalar* parts [[buffer(0)]],
    device const uint* starts [[buffer(1)]],
    device const uint* order [[buffer(2)]],
    device float* sums [[buffer(3)]],
    constant uint& width [[buffer(4)]],
    constant uint& count [[buffer(5)]],
    device const uint* ids [[buffer(6)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint i = group * simd_count * LANES + thread_index;
    if (i >= count) {
        return;
    }
    const uint row = i / width;
    const ulong to = ulong(ids[row]) * ulong(width) + ulong(i % width);
    float sum = sums[to];
    for (uint at = starts[row]; at < starts[row + 1u]; ++at) {
        sum += float(parts[ulong(order[at]) * ulong(width) + ulong(i % width)]);
    }
    sums[to] = sum;
}
