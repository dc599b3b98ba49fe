// SwiGLU's gate, one thread an element: `y = silu(z) u`, `silu(z) = z s`, `s = 1 / (1 + e^-z)`.

inline float sigmoid(float z) {
    // The exponential of the negative magnitude: it never overflows.
    const float e = exp(-fabs(z));
    return z >= 0.0f ? 1.0f / (1.0f + e) : e / (1.0f + e);
}

kernel void swiglu(
    device const scalar* gate [[buffer(0)]],
    device const scalar* up [[buffer(1)]],
    device scalar* y [[buffer(2)]],
    constant uint& count [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint i = group * simd_count * LANES + thread_index;
    if (i >= count) {
        return;
    }
    const float z = float(gate[i]);
    y[i] = scalar(z * sigmoid(z) * float(up[i]));
}

// `du = g z s`, `dz = g u s (1 + z (1 - s))`.
kernel void swiglu_backward(
    device const scalar* gate [[buffer(0)]],
    device const scalar* up [[buffer(1)]],
    device const scalar* g [[buffer(2)]],
    device scalar* dgate [[buffer(3)]],
    device scalar* dup [[buffer(4)]],
    constant uint& count [[buffer(5)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint i = group * simd_count * LANES + thread_index;
    if (i >= count) {
        return;
    }
    const float z = float(gate[i]);
    const float s = sigmoid(z);
    const float through = float(g[i]) * s;
    dup[i] = scalar(through * z);
    dgate[i] = scalar(through * float(up[i]) * (1.0f + z * (1.0f - s)));
}
