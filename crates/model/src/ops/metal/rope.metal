// RoPE in the half-split layout: `(x_i, x_{i+half})` of each head rotated by the angle of its token's position.

// One thread a pair. x, y: [tokens, heads, 2 half]; cosines, sines: [positions, half]; sign -1 rotates back.
kernel void rope(
    device const scalar* x [[buffer(0)]],
    device const float* cosines [[buffer(1)]],
    device const float* sines [[buffer(2)]],
    device const uint* positions [[buffer(3)]],
    device scalar* y [[buffer(4)]],
    constant uint& heads [[buffer(5)]],
    constant uint& half_dim [[buffer(6)]],
    constant uint& pairs [[buffer(7)]],
    constant float& sign [[buffer(8)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint pair = group * simd_count * LANES + thread_index;
    if (pair >= pairs) {
        return;
    }
    const uint i = pair % half_dim;
    const uint head = pair / half_dim;
    const ulong angle = ulong(positions[head / heads]) * ulong(half_dim) + ulong(i);
    const float c = cosines[angle];
    const float s = sines[angle] * sign;
    const ulong low = ulong(head) * ulong(2 * half_dim) + ulong(i);
    const ulong high = low + ulong(half_dim);
    const float a = float(x[low]);
    const float b = float(x[high]);
    y[low] = scalar(a * c - b * s);
    y[high] = scalar(b * c + a * s);
}
