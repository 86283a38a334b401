// Gradients of bf16 and f16 on tensor cores. Scores have what the block owns as rows, queries or keys, so that weights and
// gradients are where the products after them want them: in registers, as in the forward pass.
#pragma once
#include "gradients.cuh"
#include "halves.cuh"

#if __CUDA_ARCH__ >= 800

// FIRST: dq or dk; SECOND: dv.
template <class T, int D, int WARPS, int WALK, bool OF_KEYS, bool FIRST, bool SECOND>
__device__ __forceinline__ void walk_halves(const Gradients &g, char *shared) {
    constexpr int LD = D + 8, OWN = WARPS * 16, LD_DS = WALK + 1;
    Walk<T, D, LD, OWN, WALK, WARPS * 32, 2, OF_KEYS> walk(g, shared);
    int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16;
    float out[2][D / 8][4] = {};
    walk.each_tile([&](int at) {
        const T *queries_or_keys = walk.walk[0] + at * LD, *grads_or_values = walk.walk[1] + at * LD;
        float s[WALK / 8][4], dp[WALK / 8][4];
        row_products<T, D, LD, WALK>(s, walk.own[0] + first * LD, queries_or_keys, walk.c.d);
        if constexpr (FIRST) row_products<T, D, LD, WALK>(dp, walk.own[1] + first * LD, grads_or_values, walk.c.dv);
        walk.template weigh<FIRST>([&](auto f) {
#pragma unroll
            for (int n = 0; n < WALK / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) f(first + lane / 4 + j / 2 * 8, n * 8 + lane % 4 * 2 + j % 2, s[n][j], dp[n][j]);
        });
        if constexpr (FIRST) add_products<T, D, LD, WALK>(out[0], dp, queries_or_keys, walk.c.d);
        if constexpr (SECOND) add_products<T, D, LD, WALK>(out[1], s, grads_or_values, walk.c.dv);
        if (!OF_KEYS && g.table) {
            float *ds = walk.rest();
#pragma unroll
            for (int n = 0; n < WALK / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    ds[(first + lane / 4 + j / 2 * 8) * LD_DS + n * 8 + lane % 4 * 2 + j % 2] = dp[n][j];
            __syncthreads();
            walk.template add_to_table<LD_DS>(ds);
        }
    });
#pragma unroll
    for (int which = FIRST ? 0 : 1; which < (SECOND ? 2 : 1); which++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                walk.store(first + lane / 4 + j / 2 * 8, which, n * 8 + lane % 4 * 2 + j % 2, out[which][n][j]);
}

#endif

template <class T, int D, int WARPS, int WALK> __device__ void gradient_of_rows(const Gradients &g) {
#if __CUDA_ARCH__ >= 800
    extern __shared__ __align__(16) char shared[];
    walk_halves<T, D, WARPS, WALK, false, true, false>(g, shared);
#endif
}

// Sums of both at once need more registers than there are from a head dim of 256 on.
template <class T, int D, int WARPS, int WALK> __device__ void gradient_of_keys(const Gradients &g) {
#if __CUDA_ARCH__ >= 800
    extern __shared__ __align__(16) char shared[];
    if constexpr (D <= 128) {
        walk_halves<T, D, WARPS, WALK, true, true, true>(g, shared);
    } else {
        walk_halves<T, D, WARPS, WALK, true, true, false>(g, shared);
        __syncthreads();
        walk_halves<T, D, WARPS, WALK, true, false, true>(g, shared);
    }
#endif
}

// One file per dtype and head dim has these kernels: WARPS of 16 rows or keys, WALK of the other side at a time. BLOCKS: how
// many fit a multiprocessor at a time.
#define ENTRY_HALVES_GRADIENTS(T, D, WARPS, WALK, BLOCKS) \
    extern "C" __global__ __launch_bounds__(WARPS * 32, BLOCKS) void rows_gradient(const __grid_constant__ Gradients g) { \
        gradient_of_rows<T, D, WARPS, WALK>(g); \
    } \
    extern "C" __global__ __launch_bounds__(WARPS * 32, BLOCKS) void keys_gradient(const __grid_constant__ Gradients g) { \
        gradient_of_keys<T, D, WARPS, WALK>(g); \
    } \
    ENTRY_SUMS(T)
