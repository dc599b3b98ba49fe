// Drawing tokens by inverting the cumulative distribution of `softmax(z / temperature)` at a given number, with top-k and
// top-p; ties go to the lower id. The logits stay on the device and are not changed: weights `e^(s - max)` are computed
// again in each pass.
//
// What top-k and top-p keep is all weights above a threshold and the first few of those equal to it. The threshold is found
// by bisection over the bits of a float, which are ordered as the floats from zero up are; each step counts or sums.

// Tokens that are searched at a time, and the most tiles of them: vocabularies up to 2^19.
#define TILE 1024u
#define TILES 512u

// Threads of a group.
#define THREADS 256u

// Tokens of a tile that a thread owns, one behind the other.
#define OWN (TILE / THREADS)

// What is kept: weights with bits above `bits`, and of those equal to it the ids below `cut`.
struct Kept {
    uint bits;
    uint cut;
};

// The weight of a token, zero if it is not kept.
inline float kept_weight(float weight, uint id, Kept kept) {
    const uint bits = as_type<uint>(weight);
    return bits > kept.bits || (bits == kept.bits && id < kept.cut) ? weight : 0.0f;
}

struct Where {
    uint thread_index;
    uint lane;
    uint simd_index;
};

struct Row {
    device const scalar* z;
    uint vocab;
    float inverse;
    float highest;
};

inline float weight_of(Row row, uint id) {
    return exp((float(row.z[id]) - row.highest) * row.inverse);
}

// The sum of the weights whose bits are at least `bits`.
inline float sum_from(Row row, uint bits, threadgroup float* shared, Where at) {
    float sum = 0.0f;
    for (uint i = at.thread_index; i < row.vocab; i += THREADS) {
        const float weight = weight_of(row, i);
        sum += as_type<uint>(weight) >= bits ? weight : 0.0f;
    }
    return group_sum(sum, shared, at.lane, at.simd_index, THREADS / LANES);
}

// Their number; exact, for a vocabulary has fewer than 2^24 tokens.
inline float count_from(Row row, uint bits, threadgroup float* shared, Where at) {
    float count = 0.0f;
    for (uint i = at.thread_index; i < row.vocab; i += THREADS) {
        count += as_type<uint>(weight_of(row, i)) >= bits ? 1.0f : 0.0f;
    }
    return group_sum(count, shared, at.lane, at.simd_index, THREADS / LANES);
}

// The id behind the `count`-th weight, counted from one, that has just these bits.
inline uint cut_behind(Row row, uint bits, float count, threadgroup float* shared, Where at) {
    float before = 0.0f;
    for (uint first = 0; first < row.vocab; first += THREADS) {
        const uint id = first + at.thread_index;
        const float own = id < row.vocab && as_type<uint>(weight_of(row, id)) == bits ? 1.0f : 0.0f;
        const float ahead = simd_prefix_exclusive_sum(own);
        const float part = simd_sum(own);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (at.lane == 0) {
            shared[at.simd_index] = part;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float place = before + ahead + own;
        float all = before;
        for (uint i = 0; i < THREADS / LANES; ++i) {
            place += i < at.simd_index ? shared[i] : 0.0f;
            all += shared[i];
        }
        const float found = own > 0.0f && place == count ? float(id + 1u) : 0.0f;
        const float cut = group_max(found, shared, at.lane, at.simd_index, THREADS / LANES);
        if (cut > 0.0f) {
            return uint(cut);
        }
        before = all;
    }
    return row.vocab;
}

// What top-k and top-p leave.
inline Kept kept_of(Row row, uint top_k, float top_p, threadgroup float* shared, Where at) {
    Kept kept;
    kept.bits = 0;
    kept.cut = row.vocab;
    float within = 0.0f;
    float ties = float(row.vocab);
    const bool limited = top_k > 0 && top_k < row.vocab;
    if (limited) {
        // The largest threshold that at least k weights reach.
        uint bits = 0;
        for (uint bit = 1u << 30; bit > 0; bit >>= 1) {
            if (count_from(row, bits | bit, shared, at) >= float(top_k)) {
                bits |= bit;
            }
        }
        ties = float(top_k) - count_from(row, bits + 1u, shared, at);
        kept.bits = bits;
        kept.cut = cut_behind(row, bits, ties, shared, at);
        within = sum_from(row, bits + 1u, shared, at) + ties * as_type<float>(bits);
    } else {
        within = sum_from(row, 0, shared, at);
    }
    if (top_p >= 1.0f) {
        return kept;
    }
    // The largest threshold whose weights reach the share; that of top-k, and any below it, does.
    const float share = top_p * within;
    uint bits = 0;
    for (uint bit = 1u << 30; bit > 0; bit >>= 1) {
        const uint tried = bits | bit;
        if (tried <= kept.bits || sum_from(row, tried, shared, at) >= share) {
            bits = tried;
        }
    }
    const float weight = as_type<float>(bits);
    if (weight == 0.0f) {
        return kept;
    }
    const float missing = share - sum_from(row, bits + 1u, shared, at);
    const float needed = max(1.0f, ceil(missing / weight));
    if (bits == kept.bits && needed >= ties) {
        return kept;
    }
    kept.bits = bits;
    kept.cut = cut_behind(row, bits, needed, shared, at);
    return kept;
}

// The first id of the largest logit.
inline uint likeliest(Row row, threadgroup float* shared, Where at) {
    // As a float below zero, so that the largest is the first.
    float first = -float(row.vocab);
    for (uint i = at.thread_index; i < row.vocab; i += THREADS) {
        if (float(row.z[i]) == row.highest) {
            first = max(first, -float(i));
        }
    }
    return uint(-group_max(first, shared, at.lane, at.simd_index, THREADS / LANES));
}

// Draws one token a row. logits: [rows, vocab]; rows_of: [draws], the row that a draw is from; numbers: [draws], in [0, 1);
// tokens: [draws]; log_probs: [draws]. One group a draw.
kernel void sample(
    device const scalar* logits [[buffer(0)]],
    device const uint* rows_of [[buffer(1)]],
    device const float* numbers [[buffer(2)]],
    device uint* tokens [[buffer(3)]],
    device float* log_probs [[buffer(4)]],
    constant uint& vocab [[buffer(5)]],
    constant float& inverse_temperature [[buffer(6)]],
    constant uint& top_k [[buffer(7)]],
    constant float& top_p [[buffer(8)]],
    uint draw [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]]
) {
    threadgroup float shared[32];
    threadgroup float sums[TILES];
    Where at;
    at.thread_index = thread_index;
    at.lane = lane;
    at.simd_index = simd_index;
    Row row;
    row.z = logits + ulong(rows_of[draw]) * ulong(vocab);
    row.vocab = vocab;
    row.inverse = inverse_temperature;
    float highest = LOWEST;
    for (uint i = thread_index; i < vocab; i += THREADS) {
        highest = max(highest, float(row.z[i]));
    }
    row.highest = group_max(highest, shared, lane, simd_index, THREADS / LANES);
    // The inverse is zero where the temperature is: the likeliest token, with certainty.
    if (inverse_temperature == 0.0f) {
        const uint token = likeliest(row, shared, at);
        if (thread_index == 0) {
            tokens[draw] = token;
            log_probs[draw] = 0.0f;
        }
        return;
    }
    Kept kept;
    kept.bits = 0;
    kept.cut = vocab;
    if ((top_k > 0 && top_k < vocab) || top_p < 1.0f) {
        kept = kept_of(row, top_k, top_p, shared, at);
    }
    const uint tiles = (vocab + TILE - 1u) / TILE;
    for (uint tile = 0; tile < tiles; ++tile) {
        float own = 0.0f;
        for (uint i = 0; i < OWN; ++i) {
            const uint id = tile * TILE + thread_index * OWN + i;
            own += id < vocab ? kept_weight(weight_of(row, id), id, kept) : 0.0f;
        }
        const float sum = group_sum(own, shared, lane, simd_index, THREADS / LANES);
        if (thread_index == 0) {
            sums[tile] = sum;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float total = 0.0f;
    for (uint tile = 0; tile < tiles; ++tile) {
        total += sums[tile];
    }
    // The tile in which the running sum passes the target; the last that has a weight, if rounding keeps it from that.
    const float target = numbers[draw] * total;
    float before = 0.0f;
    float running = 0.0f;
    uint found = 0;
    bool passed = false;
    for (uint tile = 0; tile < tiles; ++tile) {
        if (!passed && sums[tile] > 0.0f) {
            found = tile;
            before = running;
            passed = running + sums[tile] > target;
            running += sums[tile];
        }
    }
    // The same within it: each thread knows the sum before its tokens.
    float weights[OWN];
    float own = 0.0f;
    for (uint i = 0; i < OWN; ++i) {
        const uint id = found * TILE + thread_index * OWN + i;
        weights[i] = id < vocab ? kept_weight(weight_of(row, id), id, kept) : 0.0f;
        own += weights[i];
    }
    float reached = before + simd_prefix_exclusive_sum(own);
    const float part = simd_sum(own);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane == 0) {
        shared[simd_index] = part;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < simd_index; ++i) {
        reached += shared[i];
    }
    // Ids as negative floats again: the first that passes, or the last that has a weight.
    float first = -float(TILE);
    float rest = -1.0f;
    for (uint i = 0; i < OWN; ++i) {
        reached += weights[i];
        if (weights[i] > 0.0f) {
            rest = float(thread_index * OWN + i);
            if (reached > target) {
                first = max(first, -rest);
            }
        }
    }
    const float best = group_max(first, shared, lane, simd_index, THREADS / LANES);
    const float final_one = group_max(rest, shared, lane, simd_index, THREADS / LANES);
    if (thread_index == 0) {
        const uint place = best > -float(TILE) ? uint(-best) : uint(final_one);
        const uint token = found * TILE + place;
        tokens[draw] = token;
        log_probs[draw] = log(weight_of(row, token) / total);
    }
}
