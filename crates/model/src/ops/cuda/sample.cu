// Draws tokens from logits: temperature, top-k, top-p and the log-probability of what was drawn. One block a draw.
//
// The distribution `softmax(z / temperature)`, cut to the likeliest `top_k` tokens and then to the fewest that hold `top_p` of
// what is left, is inverted at `u`: the first token, by id, at which the running sum passes `u` times the total. Ties at
// the cuts go to the lower id. Weights are computed again in each pass: several draws may share their logits.
//
// A cut is a number of the weights' bits (which order as the weights do, since none is negative), found in four passes of
// eight bits each: of every bin the tokens are counted, and their weights summed as whole numbers, whose sum does not
// depend on the order of its terms.
#include "common.cuh"

constexpr uint32_t THREADS = 256;
constexpr uint32_t BINS = 256;
constexpr uint32_t MOST_TILES = 1024;
constexpr uint32_t NOBODY = 0xffffffffu;

typedef unsigned long long uint64;

// Which tokens remain: those whose weight has larger bits, and of those with equal bits the ones up to `last`.
struct Cut {
    uint32_t bits, last;
};

// One row of logits, as weights `exp((z - max) / temperature)`.
struct Row {
    const float *logits;
    uint32_t vocab, tile, tiles;
    float inverse, shift;

    __device__ float weight(uint32_t i) const {
        const float z = logits[i];
        // A logit that is not a number is never drawn, nor counted.
        return z == z ? expf(fmaf(z, inverse, -shift)) : 0.0f;
    }
    __device__ bool remains(uint32_t i, float weight, Cut cut) const {
        const uint32_t bits = __float_as_uint(weight);
        return bits > cut.bits || (bits == cut.bits && i <= cut.last);
    }
};

// What the threads of a block share.
struct Shared {
    float maxima[WARP];
    uint32_t places[THREADS];
    double sums[THREADS];
    double tiles[MOST_TILES];
    uint32_t counts[BINS];
    uint64 masses[BINS];
    // What one thread has found for all.
    uint32_t found, place;
    uint64 count_above, mass_above;
    double total, target;
};

// The first of the largest logits.
__device__ uint32_t likeliest(const float *logits, uint32_t first, uint32_t end, Shared &shared) {
    float best = -INFINITY;
    uint32_t place = NOBODY;
    for (uint32_t i = first + threadIdx.x; i < end; i += blockDim.x) {
        if (logits[i] > best) best = logits[i], place = i;
    }
    shared.sums[threadIdx.x] = best;
    shared.places[threadIdx.x] = place;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t t = 0; t < blockDim.x; t++) {
            const float other = float(shared.sums[t]);
            if (other > best || (other == best && shared.places[t] < place)) best = other, place = shared.places[t];
        }
        shared.found = place == NOBODY ? first : place;
    }
    __syncthreads();
    return shared.found;
}

// A weight as a whole number: sums of them are exact. `scale` leaves room for as many as there are tokens.
__device__ __forceinline__ uint64 whole(float weight, float scale) { return uint64(weight * scale); }

// The cut that keeps the fewest of the likeliest tokens that are `count` or more, or that have `mass` or more, of those
// that remain after `before`. What they are and have together is left in `shared`.
__device__ Cut cut(const Row &row, Cut before, uint64 count, uint64 mass, float scale, Shared &shared) {
    uint32_t prefix = 0;
    if (threadIdx.x == 0) shared.count_above = 0, shared.mass_above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < BINS; i += blockDim.x) shared.counts[i] = 0, shared.masses[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < row.vocab; i += blockDim.x) {
            const float weight = row.weight(i);
            const uint32_t bits = __float_as_uint(weight);
            const bool within = shift == 24 || bits >> (shift + 8) == prefix;
            if (within && row.remains(i, weight, before)) {
                atomicAdd(&shared.counts[bits >> shift & (BINS - 1)], 1u);
                atomicAdd(&shared.masses[bits >> shift & (BINS - 1)], whole(weight, scale));
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t lowest = NOBODY;
            for (uint32_t bin = BINS; bin-- > 0;) {
                if (shared.counts[bin] == 0) continue;
                if (lowest != NOBODY) {
                    shared.count_above += shared.counts[lowest];
                    shared.mass_above += shared.masses[lowest];
                }
                lowest = bin;
                if (shared.count_above + shared.counts[bin] >= count || shared.mass_above + shared.masses[bin] >= mass) break;
            }
            shared.found = lowest == NOBODY ? 0 : lowest;
        }
        __syncthreads();
        prefix = prefix << 8 | shared.found;
        __syncthreads();
    }
    // Of the tokens with these very bits, as many as are missing, lower ids first.
    const uint64 each = whole(__uint_as_float(prefix), scale);
    if (threadIdx.x == 0) {
        uint64 taken = shared.counts[prefix & (BINS - 1)];
        if (count > shared.count_above) taken = min(taken, count - shared.count_above);
        if (each > 0 && mass > shared.mass_above) taken = min(taken, (mass - shared.mass_above - 1) / each + 1);
        shared.place = uint32_t(taken);
        shared.count_above += taken;
        shared.mass_above += taken * each;
    }
    __syncthreads();
    const uint32_t missing = shared.place;
    __syncthreads();
    // Ties by tile, then within the one in which the last that is taken lies.
    uint32_t seen = 0, last = NOBODY;
    for (uint32_t tile = 0; tile < row.tiles && last == NOBODY; tile++) {
        const uint32_t first = tile * row.tile, end = min(row.vocab, first + row.tile);
        const uint32_t span = (end - first + blockDim.x - 1) / blockDim.x;
        const uint32_t from = min(end, first + threadIdx.x * span), to = min(end, from + span);
        uint32_t ties = 0;
        for (uint32_t i = from; i < to; i++) {
            const float weight = row.weight(i);
            ties += __float_as_uint(weight) == prefix && row.remains(i, weight, before);
        }
        shared.places[threadIdx.x] = ties;
        if (threadIdx.x == 0) shared.place = NOBODY;
        __syncthreads();
        uint32_t mine = seen;
        for (uint32_t t = 0; t < threadIdx.x; t++) mine += shared.places[t];
        if (mine < missing && mine + ties >= missing) {
            for (uint32_t i = from; i < to; i++) {
                const float weight = row.weight(i);
                mine += __float_as_uint(weight) == prefix && row.remains(i, weight, before);
                if (mine == missing) {
                    shared.place = i;
                    break;
                }
            }
        }
        for (uint32_t t = 0; t < blockDim.x; t++) seen += shared.places[t];
        __syncthreads();
        last = shared.place;
        __syncthreads();
    }
    return {prefix, last};
}

// The sum of a tile's remaining weights, in every thread.
__device__ double tile_sum(const Row &row, uint32_t tile, Cut cut, Shared &shared) {
    const uint32_t first = tile * row.tile, end = min(row.vocab, first + row.tile);
    double sum = 0.0;
#pragma unroll 16
    for (uint32_t i = first + threadIdx.x; i < end; i += THREADS) {
        const float weight = row.weight(i);
        sum += row.remains(i, weight, cut) ? double(weight) : 0.0;
    }
    return block_sum(sum, shared.sums);
}

// The token at `u`, and the sum of all remaining weights in `shared.total`.
__device__ uint32_t invert(const Row &row, Cut cut, double u, Shared &shared) {
    for (uint32_t tile = 0; tile < row.tiles; tile++) {
        const double sum = tile_sum(row, tile, cut, shared);
        if (threadIdx.x == 0) shared.tiles[tile] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0, before = 0.0;
        for (uint32_t tile = 0; tile < row.tiles; tile++) total += shared.tiles[tile];
        uint32_t found = 0;
        for (uint32_t tile = 0; tile < row.tiles; tile++) {
            if (!(shared.tiles[tile] > 0.0)) continue;
            found = tile;
            if (before + shared.tiles[tile] > u * total) break;
            before += shared.tiles[tile];
        }
        shared.found = found;
        shared.total = total;
        shared.target = u * total - before;
        shared.place = NOBODY;
    }
    __syncthreads();
    // Within the tile each thread has a stretch of neighbours; the stretches before it are summed in their order.
    const uint32_t first = shared.found * row.tile, end = min(row.vocab, first + row.tile);
    const uint32_t span = (end - first + blockDim.x - 1) / blockDim.x;
    const uint32_t from = min(end, first + threadIdx.x * span), to = min(end, from + span);
    double sum = 0.0;
    for (uint32_t i = from; i < to; i++) {
        const float weight = row.weight(i);
        if (row.remains(i, weight, cut)) sum += double(weight);
    }
    shared.sums[threadIdx.x] = sum;
    __syncthreads();
    double before = 0.0;
    for (uint32_t t = 0; t < threadIdx.x; t++) before += shared.sums[t];
    uint32_t mine = NOBODY;
    for (uint32_t i = from; i < to && mine == NOBODY; i++) {
        const float weight = row.weight(i);
        if (!row.remains(i, weight, cut)) continue;
        before += double(weight);
        if (weight > 0.0f && before > shared.target) mine = i;
    }
    shared.places[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t place = NOBODY;
        for (uint32_t t = 0; t < blockDim.x; t++) place = min(place, shared.places[t]);
        shared.place = place;
    }
    __syncthreads();
    // Rounding may keep the running sum from passing: then the likeliest of the tile.
    const uint32_t place = shared.place;
    __syncthreads();
    return place != NOBODY ? place : likeliest(row.logits, first, end, shared);
}

// An f64 from its two words.
__device__ __forceinline__ double number(uint32_t low, uint32_t high) {
    const uint64 bits = uint64(high) << 32 | low;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// `draws`: a row of the logits for each draw, then the low and then the high words of each `u` as an f64. `result`: tokens,
// then the bits of their log-probs. Temperature zero comes as `inverse = 0`, `top_p` as the two words of an f64.
extern "C" __global__ void __launch_bounds__(256) sample_draw(const float *logits, const uint32_t *draws, uint32_t *result,
                                                              uint32_t count, uint32_t vocab, float inverse, uint32_t top_k,
                                                              uint32_t top_p_low, uint32_t top_p_high) {
    __shared__ Shared shared;
    const uint32_t draw = blockIdx.x;
    const float *from = logits + size_t(draws[draw]) * vocab;
    if (inverse == 0.0f) {
        const uint32_t token = likeliest(from, 0, vocab, shared);
        if (threadIdx.x == 0) result[draw] = token, result[count + draw] = 0;
        return;
    }
    const double u = number(draws[count + draw], draws[2 * count + draw]), top_p = number(top_p_low, top_p_high);
    uint32_t tile = 4096;
    while ((vocab + tile - 1) / tile > MOST_TILES) tile *= 2;
    float top = -INFINITY;
#pragma unroll 16
    for (uint32_t i = threadIdx.x; i < vocab; i += THREADS) top = fmaxf(top, from[i]);
    top = block_max(top, shared.maxima);
    const Row row = {from, vocab, tile, (vocab + tile - 1) / tile, inverse, top * inverse};
    Cut cut_at = {0, NOBODY};
    // As many bits as leave room for the sum of all weights, none of which is above 1.
    float scale = 1.0f;
    for (uint64 room = 1ull << 62; room > 2 * uint64(vocab); room /= 2) scale *= 2.0f;
    const bool by_count = top_k > 0 && top_k < vocab;
    uint64 mass = 0;
    if (by_count) {
        cut_at = cut(row, cut_at, top_k, ~0ull, scale, shared);
        mass = shared.mass_above;
        __syncthreads();
    }
    if (top_p < 1.0) {
        if (!by_count) {
            // All tokens: a cut at a mass that is out of reach would keep them, and count them.
            double sum = 0.0;
            for (uint32_t i = threadIdx.x; i < vocab; i += blockDim.x) sum += double(whole(row.weight(i), scale));
            mass = uint64(block_sum(sum, shared.sums));
        }
        const uint64 wanted = uint64(top_p * double(mass));
        cut_at = cut(row, cut_at, ~0ull, wanted > 0 ? wanted : 1, scale, shared);
    }
    const uint32_t token = invert(row, cut_at, u, shared);
    if (threadIdx.x == 0) {
        result[draw] = token;
        result[count + draw] = __float_as_uint(float(log(double(row.weight(token)) / shared.total)));
    }
}
