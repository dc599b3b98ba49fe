// Log-probability, entropy and the gradient of logits, a row at a time. With `s = z / temperature`:
// `log_prob = s_y - log sum e^s`, `entropy = -sum p log p`, and for gradients `g` and `h` of the two
// `dz_j = ([j = y] g - p_j (g + h (log p_j + entropy))) / temperature`.

// What a softmax needs to know of some logits: their maximum, `sum e^(s - max)` and `sum e^(s - max) (s - max)`.
struct Softmax {
    float highest;
    float sum;
    float weighted;
};

// Of these logits and others.
inline Softmax joined(Softmax a, Softmax b) {
    Softmax both;
    both.highest = max(a.highest, b.highest);
    const float da = a.highest - both.highest;
    const float db = b.highest - both.highest;
    const float ea = exp(da);
    const float eb = exp(db);
    both.sum = ea * a.sum + eb * b.sum;
    // A side without logits has the lowest maximum there is: its shift times zero must not count.
    const float wa = a.sum > 0.0f ? ea * (a.weighted + da * a.sum) : 0.0f;
    const float wb = b.sum > 0.0f ? eb * (b.weighted + db * b.sum) : 0.0f;
    both.weighted = wa + wb;
    return both;
}

// Of a row of logits, in every thread of its group. `shared` holds three floats a SIMD-group.
inline Softmax softmax_of(
    device const scalar* z,
    uint vocab,
    float inverse,
    threadgroup float* shared,
    uint thread_index,
    uint lane,
    uint simd_index,
    uint simd_count
) {
    Softmax own;
    own.highest = LOWEST;
    own.sum = 0.0f;
    own.weighted = 0.0f;
    for (uint i = thread_index; i < vocab; i += simd_count * LANES) {
        const float s = float(z[i]) * inverse;
        if (s > own.highest) {
            const float shift = own.highest - s;
            const float shrink = own.sum > 0.0f ? exp(shift) : 0.0f;
            own.weighted = own.sum > 0.0f ? shrink * (own.weighted + shift * own.sum) : 0.0f;
            own.sum = shrink * own.sum + 1.0f;
            own.highest = s;
        } else {
            const float shift = s - own.highest;
            const float weight = exp(shift);
            own.sum += weight;
            own.weighted += weight * shift;
        }
    }
    for (uint step = 1; step < LANES; step *= 2) {
        Softmax other;
        other.highest = simd_shuffle_xor(own.highest, ushort(step));
        other.sum = simd_shuffle_xor(own.sum, ushort(step));
        other.weighted = simd_shuffle_xor(own.weighted, ushort(step));
        own = joined(own, other);
    }
    if (lane == 0) {
        shared[3u * simd_index] = own.highest;
        shared[3u * simd_index + 1u] = own.sum;
        shared[3u * simd_index + 2u] = own.weighted;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    Softmax all;
    all.highest = shared[0];
    all.sum = shared[1];
    all.weighted = shared[2];
    for (uint i = 1; i < simd_count; ++i) {
        Softmax other;
        other.highest = shared[3u * i];
        other.sum = shared[3u * i + 1u];
        other.weighted = shared[3u * i + 2u];
        all = joined(all, other);
    }
    return all;
}

// One group a row of `logits: [rows, vocab]`. scores: [2, all], of which rows `first ..` are written.
kernel void score_rows(
    device const scalar* logits [[buffer(0)]],
    device const uint* targets [[buffer(1)]],
    device float* scores [[buffer(2)]],
    constant uint& vocab [[buffer(3)]],
    constant uint& first [[buffer(4)]],
    constant uint& all [[buffer(5)]],
    constant float& inverse_temperature [[buffer(6)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    threadgroup float shared[96];
    device const scalar* z = logits + ulong(row) * ulong(vocab);
    const Softmax softmax =
        softmax_of(z, vocab, inverse_temperature, shared, thread_index, lane, simd_index, simd_count);
    if (thread_index == 0) {
        const float at_target = float(z[targets[first + row]]) * inverse_temperature;
        const float log_sum = log(softmax.sum);
        scores[first + row] = (at_target - softmax.highest) - log_sum;
        scores[all + first + row] = log_sum - softmax.weighted / softmax.sum;
    }
}

// One group a row: its logits become their gradient. gradients: [2, all], those of log-probabilities and entropies.
kernel void logit_gradients(
    device scalar* logits [[buffer(0)]],
    device const uint* targets [[buffer(1)]],
    device const float* gradients [[buffer(2)]],
    constant uint& vocab [[buffer(3)]],
    constant uint& first [[buffer(4)]],
    constant uint& all [[buffer(5)]],
    constant float& inverse_temperature [[buffer(6)]],
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    threadgroup float shared[96];
    device scalar* z = logits + ulong(row) * ulong(vocab);
    const Softmax softmax =
        softmax_of(z, vocab, inverse_temperature, shared, thread_index, lane, simd_index, simd_count);
    const float log_sum = log(softmax.sum);
    const float entropy = log_sum - softmax.weighted / softmax.sum;
    const float g = gradients[first + row];
    const float h = gradients[all + first + row];
    const uint target = targets[first + row];
    for (uint i = thread_index; i < vocab; i += simd_count * LANES) {
        const float log_p = (float(z[i]) * inverse_temperature - softmax.highest) - log_sum;
        const float through = -exp(log_p) * (g + h * (log_p + entropy));
        z[i] = scalar((i == target ? through + g : through) * inverse_temperature);
    }
}

// `sum += part`, one thread an element, for gradients that chunks of tokens add to.
kernel void add_to(
    device float* sum [[buffer(0)]],
    device const scalar* part [[buffer(1)]],
    constant uint& count [[buffer(2)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint i = group * simd_count * LANES + thread_index;
    if (i < count) {
        sum[i] += float(part[i]);
    }
}
