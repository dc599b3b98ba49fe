// Sums over rows.
//
// Columns, for gradients of what is added to or multiplies every row: one thread a column and block of rows, then one thread a
// column. The gradient of picking rows: rows of `parts: [picked, width]` summed where they were picked. The numbers of the parts that
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

// The sum of a block of rows of `x: [rows, width]`. parts: [blocks, width].
kernel void column_parts(
    device const scalar* x [[buffer(0)]],
    device float* parts [[buffer(1)]],
    constant uint& rows [[buffer(2)]],
    constant uint& width [[buffer(3)]],
    constant uint& block_rows [[buffer(4)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint column = group.x * simd_count * LANES + thread_index;
    if (column >= width) {
        return;
    }
    const uint first = group.y * block_rows;
    const uint last = min(rows, first + block_rows);
    float sum = 0.0f;
    for (uint row = first; row < last; ++row) {
        sum += float(x[ulong(row) * ulong(width) + ulong(column)]);
    }
    parts[ulong(group.y) * ulong(width) + ulong(column)] = sum;
}

// The parts of all blocks, in their order. sums: [width].
kernel void column_sums(
    device const float* parts [[buffer(0)]],
    device scalar* sums [[buffer(1)]],
    constant uint& blocks [[buffer(2)]],
    constant uint& width [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint column = group * simd_count * LANES + thread_index;
    if (column >= width) {
        return;
    }
    float sum = 0.0f;
    for (uint block = 0; block < blocks; ++block) {
        sum += parts[ulong(block) * ulong(width) + ulong(column)];
    }
    sums[column] = scalar(sum);
}
