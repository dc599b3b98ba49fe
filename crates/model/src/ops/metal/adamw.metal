// AdamW's update in place, one thread an element, in PyTorch's order of operations:
//
//     g = g grad_scale;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//     p = p keep - m / (sqrt(v) second_scale + epsilon) step_size
//
// `keep = 1 - lr weight_decay`, `step_size = lr / (1 - beta1^t)`, `second_scale = 1 / sqrt(1 - beta2^t)`.

struct Factors {
    float grad_scale;
    float beta1;
    float one_minus_beta1;
    float beta2;
    float one_minus_beta2;
    float step_size;
    float second_scale;
    float epsilon;
    float keep;
};

// The new value of `p`; moves the moments at `i`.
inline float stepped(
    float p, device float* first, device float* second, device const float* gradient, uint i, constant Factors& f
) {
    const float g = gradient[i] * f.grad_scale;
    const float m = first[i] * f.beta1 + g * f.one_minus_beta1;
    const float v = second[i] * f.beta2 + g * g * f.one_minus_beta2;
    first[i] = m;
    second[i] = v;
    const float divisor = sqrt(v) * f.second_scale + f.epsilon;
    return p * f.keep - m / divisor * f.step_size;
}

// f32 values.
kernel void adamw(
    device float* values [[buffer(0)]],
    device float* first [[buffer(1)]],
    device float* second [[buffer(2)]],
    device const float* gradient [[buffer(3)]],
    constant Factors& factors [[buffer(4)]],
    constant uint& count [[buffer(5)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint i = group * simd_count * LANES + thread_index;
    if (i >= count) {
        return;
    }
    values[i] = stepped(values[i], first, second, gradient, i, factors);
}

// f32 masters of values in another type.
kernel void adamw_master(
    device scalar* values [[buffer(0)]],
    device float* first [[buffer(1)]],
    device float* second [[buffer(2)]],
    device const float* gradient [[buffer(3)]],
    constant Factors& factors [[buffer(4)]],
    constant uint& count [[buffer(5)]],
    device float* masters [[buffer(6)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint i = group * simd_count * LANES + thread_index;
    if (i >= count) {
        return;
    }
    const float master = stepped(masters[i], first, second, gradient, i, factors);
    masters[i] = master;
    values[i] = scalar(master);
}
