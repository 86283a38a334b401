// The work around attention, each in one pass, computed in f32 and rounded once: rotary encoding, norms, gates.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

// As `Rotation` in position/rope_cuda.rs. xs is (b, h, t, d) in any strides, out the same contiguous; the tables are
// (b or 1, t, pairs).
struct Rotation {
    const void *xs;
    void *out;
    const float *cos, *sin;
    int64_t strides[4];
    int64_t table_stride;  // from batch row to batch row; 0 for one table
    int32_t h, t, d, pairs;
    int32_t interleaved;   // pairs lie side by side, rather than half the rotated lanes apart
};

template <class T> __device__ void rotate_rows(const Rotation &c) {
    int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    int b = blockIdx.y;
    if (row >= (int64_t)c.h * c.t) return;
    int head = row / c.t, token = row % c.t;
    const T *xs = (const T *)c.xs + b * c.strides[0] + head * c.strides[1] + token * c.strides[2];
    T *out = (T *)c.out + ((int64_t)b * c.h * c.t + row) * c.d;
    const float *cos = c.cos + b * c.table_stride + (int64_t)token * c.pairs;
    const float *sin = c.sin + b * c.table_stride + (int64_t)token * c.pairs;
    for (int lane = threadIdx.x; lane < c.d; lane += blockDim.x) {
        float x = (float)xs[lane * c.strides[3]];
        if (lane < 2 * c.pairs) {
            bool second = c.interleaved ? lane % 2 : lane >= c.pairs;
            int pair = c.interleaved ? lane / 2 : second ? lane - c.pairs : lane;
            int step = c.interleaved ? 1 : c.pairs;
            float other = (float)xs[(second ? lane - step : lane + step) * c.strides[3]];
            x = second ? x * cos[pair] + other * sin[pair] : x * cos[pair] - other * sin[pair];
        }
        out[lane] = (T)x;
    }
}

// As `Norm` in ops/cuda.rs. Rows of `width`; row r is scaled by weight and bias from (r * width) % period on.
struct Norm {
    const void *xs;
    void *out;
    const void *weight, *bias;  // or null
    int64_t weight_period, bias_period;
    int32_t width;
    int32_t weight_is_f32, bias_is_f32;
    int32_t subtract_mean;
    float eps;
};

// The sum over a block, in every thread.
__device__ __forceinline__ float block_sum(float x, float *shared) {
    for (int lanes = 16; lanes; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
    int warps = blockDim.x / 32;
    if (warps == 1) return x;
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = shared[0];
    for (int i = 1; i < warps; i++) x += shared[i];
    return x;
}

template <class T> __device__ __forceinline__ float parameter(const void *data, bool is_f32, int64_t i) {
    return is_f32 ? ((const float *)data)[i] : (float)((const T *)data)[i];
}

template <class T> __device__ void norm_rows(const Norm &c) {
    __shared__ float shared[32];
    int64_t row = blockIdx.x;
    const T *xs = (const T *)c.xs + row * c.width;
    T *out = (T *)c.out + row * c.width;
    float mean = 0.0f, squares = 0.0f;
    if (c.subtract_mean) {
        for (int i = threadIdx.x; i < c.width; i += blockDim.x) mean += (float)xs[i];
        mean = block_sum(mean, shared) / c.width;
    }
    for (int i = threadIdx.x; i < c.width; i += blockDim.x) {
        float x = (float)xs[i] - mean;
        squares += x * x;
    }
    float scale = 1.0f / sqrtf(block_sum(squares, shared) / c.width + c.eps);
    int64_t weight = c.weight ? row * c.width % c.weight_period : 0;
    int64_t bias = c.bias ? row * c.width % c.bias_period : 0;
    for (int i = threadIdx.x; i < c.width; i += blockDim.x) {
        float x = ((float)xs[i] - mean) * scale;
        if (c.weight) x *= parameter<T>(c.weight, c.weight_is_f32, weight + i);
        if (c.bias) x += parameter<T>(c.bias, c.bias_is_f32, bias + i);
        out[i] = (T)x;
    }
}

// As `Gate` in ops/cuda.rs: out = act(gate) * up.
struct Gate {
    const void *gate, *up;
    void *out;
    int64_t count, width, stride;  // numbers in all, in a row of out, and from row to row of gate and up
    int32_t activation;
};

__device__ __forceinline__ float activate(float x, int activation) {
    switch (activation) {
    case 0: return x / (1.0f + expf(-x));
    case 1: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case 2: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case 3: return x / (1.0f + expf(-1.702f * x));
    case 4: return fmaxf(x, 0.0f);
    default: x = fmaxf(x, 0.0f); return x * x;
    }
}

template <class T> __device__ void gate_rows(const Gate &c) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < c.count; i += (int64_t)gridDim.x * blockDim.x) {
        int64_t place = i / c.width * c.stride + i % c.width;
        float x = activate((float)((const T *)c.gate)[place], c.activation);
        ((T *)c.out)[i] = (T)(x * (float)((const T *)c.up)[place]);
    }
}

#define ENTRY_ROWS(T) \
    extern "C" __global__ void attn_rotate(const __grid_constant__ Rotation c) { rotate_rows<T>(c); } \
    extern "C" __global__ void attn_norm(const __grid_constant__ Norm c) { norm_rows<T>(c); } \
    extern "C" __global__ void attn_gate(const __grid_constant__ Gate c) { gate_rows<T>(c); }
