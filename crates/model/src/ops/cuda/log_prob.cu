// The head's scores from strips of its logits: log-probability of the target and entropy, and the gradient of the logits.
//
// `z: [rows, strip]` are logits of the tokens `first..first + strip` of the vocabulary, f32, before the temperature; with
// `s = z inverse`, `state: [rows, 4]` holds, over the strips so far, the largest s, `sum e^(s - max)`,
// `sum e^(s - max) (s - max)` and the target's s. One block a row.
#include "common.cuh"

extern "C" __global__ void log_prob_strip(const float *z, const uint32_t *targets, float *state, uint32_t strip, uint32_t first,
                                          float inverse) {
    __shared__ float scratch[WARP];
    const float *row = z + size_t(blockIdx.x) * strip;
    float most = -INFINITY;
    for (uint32_t i = threadIdx.x; i < strip; i += blockDim.x) most = fmaxf(most, row[i] * inverse);
    most = block_max(most, scratch);
    float sum = 0.0f, weighted = 0.0f;
    for (uint32_t i = threadIdx.x; i < strip; i += blockDim.x) {
        const float s = row[i] * inverse - most, e = expf(s);
        sum += e;
        weighted += e * s;
    }
    sum = block_sum(sum, scratch);
    weighted = block_sum(weighted, scratch);
    if (threadIdx.x != 0) return;
    float *own = state + size_t(blockIdx.x) * 4;
    const uint32_t target = targets[blockIdx.x];
    if (target >= first && target - first < strip) own[3] = row[target - first] * inverse;
    if (first == 0) {
        own[0] = most, own[1] = sum, own[2] = weighted;
        return;
    }
    const float all = fmaxf(own[0], most), before = own[0] - all, here = most - all;
    const float scale_before = expf(before), scale_here = expf(here);
    own[2] = scale_before * (own[2] + before * own[1]) + scale_here * (weighted + here * sum);
    own[1] = scale_before * own[1] + scale_here * sum;
    own[0] = all;
}

// `scores: [2, rows]`: log-probabilities, then entropies.
extern "C" __global__ void log_prob_scores(const float *state, float *scores, uint32_t rows) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const float *own = state + size_t(row) * 4;
    const float log_sum = logf(own[1]);
    scores[row] = own[3] - own[0] - log_sum;
    scores[rows + row] = log_sum - own[2] / own[1];
}

// `log_sums[row] = log sum e^s`, from the target's logit, which is a product of two rows, and its log-probability. One warp
// a row.
template <class T>
__device__ void log_sums_of(const T *hidden, const T *head, const uint32_t *targets, const float *scores, float *log_sums,
                            uint32_t rows, uint32_t width, float inverse) {
    const uint32_t row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    const T *a = hidden + size_t(row) * width, *b = head + size_t(targets[row]) * width;
    float sum = 0.0f;
    for (uint32_t i = lane; i < width; i += WARP) sum += widen(a[i]) * widen(b[i]);
    sum = warp_sum(sum);
    if (lane == 0) log_sums[row] = sum * inverse - scores[row];
}

// `dz_j = ([j = y] g - p_j (g + h (log p_j + entropy))) inverse` for gradients `g` of the log-probability and `h` of the
// entropy, both in `gradients: [2, rows]`. Blocks of x take a row each, those of y a part of the strip.
template <class T>
__device__ void backward(const float *z, const uint32_t *targets, const float *log_sums, const float *scores,
                         const float *gradients, T *dz, uint32_t rows, uint32_t strip, uint32_t first, float inverse) {
    const uint32_t i = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (i >= strip) return;
    const size_t at = size_t(row) * strip + i;
    const float g = gradients[row], h = gradients[rows + row];
    const float log_p = z[at] * inverse - log_sums[row];
    float value = -expf(log_p) * (g + h * (log_p + scores[rows + row]));
    if (targets[row] == first + i) value += g;
    dz[at] = narrow<T>(value * inverse);
}

#define KERNELS(T, suffix)                                                                                                    \
    extern "C" __global__ void log_prob_log_sums_##suffix(const T *hidden, const T *head, const uint32_t *targets,            \
                                                          const float *scores, float *log_sums, uint32_t rows,                \
                                                          uint32_t width, float inverse) {                                    \
        log_sums_of<T>(hidden, head, targets, scores, log_sums, rows, width, inverse);                                        \
    }                                                                                                                         \
    extern "C" __global__ void log_prob_backward_##suffix(const float *z, const uint32_t *targets, const float *log_sums,     \
                                                          const float *scores, const float *gradients, T *dz,                 \
                                                          uint32_t rows, uint32_t strip, uint32_t first, float inverse) {     \
        backward<T>(z, targets, log_sums, scores, gradients, dz, rows, strip, first, inverse);                                \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
