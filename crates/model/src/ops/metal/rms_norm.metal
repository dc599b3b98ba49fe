// RMSNorm over rows: `y = x inverse w`, `inverse = 1 / sqrt(mean(x^2) + eps)`.

// One group a row. x, y: [rows, width]; w: [width].
kernel void rms_norm(
    device const scalar* x [[buffer(0)]],
    device const scalar* w [[buffer(1)]],
    device scalar* y [[buffer(2)]],
    constant uint& width [[buffer(3)]],
    constant float& eps [[buffer(4)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    threadgroup float shared[32];
    const uint threads = simd_count * LANES;
    const ulong start = ulong(row) * ulong(width);
    float squares = 0.0f;
    for (uint i = thread_index; i < width; i += threads) {
        const float value = float(x[start + i]);
        squares += value * value;
    }
    const float mean = group_sum(squares, shared, lane, simd_index, simd_count) / float(width);
    const float inverse = 1.0f / sqrt(mean + eps);
    for (uint i = thread_index; i < width; i += threads) {
        y[start + i] = scalar(float(x[start + i]) * inverse * float(w[i]));
    }
}

// One group a row: `dx = inverse (g w - x inverse^2 mean(g w x))`, and `inverse` itself for the gradient of the weights.
// x, g, dx: [rows, width]; inverses: [rows].
kernel void rms_norm_backward(
    device const scalar* x [[buffer(0)]],
    device const scalar* w [[buffer(1)]],
    device const scalar* g [[buffer(2)]],
    device scalar* dx [[buffer(3)]],
    device float* inverses [[buffer(4)]],
    constant uint& width [[buffer(5)]],
    constant float& eps [[buffer(6)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    threadgroup float shared[32];
    const uint threads = simd_count * LANES;
    const ulong start = ulong(row) * ulong(width);
    float squares = 0.0f;
    float products = 0.0f;
    for (uint i = thread_index; i < width; i += threads) {
        const float value = float(x[start + i]);
        squares += value * value;
        products += float(g[start + i]) * float(w[i]) * value;
    }
    const float mean = group_sum(squares, shared, lane, simd_index, simd_count) / float(width);
    const float inverse = 1.0f / sqrt(mean + eps);
    const float along = group_sum(products, shared, lane, simd_index, simd_count) * inverse * inverse / float(width);
    for (uint i = thread_index; i < width; i += threads) {
        const float through = float(g[start + i]) * float(w[i]);
        dx[start + i] = scalar(inverse * (through - float(x[start + i]) * along));
    }
    if (thread_index == 0) {
        inverses[row] = inverse;
    }
}

// One thread a column and block of rows: its part of `dw = sum over rows of g x inverse`. parts: [blocks, width].
kernel void rms_norm_weight_parts(
    device const scalar* x [[buffer(0)]],
    device const scalar* g [[buffer(1)]],
    device const float* inverses [[buffer(2)]],
    device float* parts [[buffer(3)]],
    constant uint& rows [[buffer(4)]],
    constant uint& width [[buffer(5)]],
    constant uint& block_rows [[buffer(6)]],
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
        const ulong at = ulong(row) * ulong(width) + ulong(column);
        sum += float(g[at]) * float(x[at]) * inverses[row];
    }
    parts[ulong(group.y) * ulong(width) + ulong(column)] = sum;
}
