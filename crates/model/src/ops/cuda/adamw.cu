// AdamW's update of one variable in one pass: moments, f32 master and, of a narrow variable, its copy.
//
// Every operation is rounded by itself, none is fused with the next, so that the bits are those of the CPU's update.
#include "common.cuh"

struct Factors {
    float grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, second_scale, epsilon, keep;
};

__device__ __forceinline__ float updated(float value, float &first, float &second, float gradient, const Factors &f) {
    gradient = __fmul_rn(gradient, f.grad_scale);
    first = __fadd_rn(__fmul_rn(first, f.beta1), __fmul_rn(gradient, f.one_minus_beta1));
    second = __fadd_rn(__fmul_rn(second, f.beta2), __fmul_rn(__fmul_rn(gradient, gradient), f.one_minus_beta2));
    const float divisor = __fadd_rn(__fmul_rn(__fsqrt_rn(second), f.second_scale), f.epsilon);
    return __fadd_rn(__fmul_rn(value, f.keep), -__fmul_rn(__fdiv_rn(first, divisor), f.step_size));
}

extern "C" __global__ void adamw_f32(float *values, float *first, float *second, const float *gradient, uint32_t count,
                                     float grad_scale, float beta1, float one_minus_beta1, float beta2, float one_minus_beta2,
                                     float step_size, float second_scale, float epsilon, float keep) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Factors f = {grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, second_scale, epsilon, keep};
    values[i] = updated(values[i], first[i], second[i], gradient[i], f);
}

extern "C" __global__ void adamw_bf16(bf16 *values, float *master, float *first, float *second, const float *gradient,
                                      uint32_t count, float grad_scale, float beta1, float one_minus_beta1, float beta2,
                                      float one_minus_beta2, float step_size, float second_scale, float epsilon, float keep) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Factors f = {grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, second_scale, epsilon, keep};
    const float value = updated(master[i], first[i], second[i], gradient[i], f);
    master[i] = value;
    values[i] = narrow<bf16>(value);
}
