// Gradients of f32 with f32 multiply-adds.
#pragma once
#include "gradients.cuh"
#include "singles.cuh"

// TY times R rows or keys owned, N times 16 of the other side at a time; a thread's scores are of owned R y + i and walked
// x + 16 j, its sums of owned R y + i and columns 64 n + 4 x + j.
template <int D, int TY, int R, int N, bool OF_KEYS> __device__ void walk_singles(const Gradients &g) {
    extern __shared__ __align__(16) char shared[];
    constexpr int LD = D + 4, OWN = TY * R, WALK = N * 16, LD_DS = WALK + 4;
    Walk<float, D, LD, OWN, WALK, TY * 16, 1, OF_KEYS> walk(g, shared);
    int x = threadIdx.x % 16, y = threadIdx.x / 16;
    // A half warp's own rows: nobody else reads or writes them.
    float *ds = walk.rest() + y * R * LD_DS, *weights = ds + OWN * LD_DS;
    float out[2][R][D / 64][4] = {};
    walk.each_tile([&](int at) {
        const float *queries_or_keys = walk.walk[0] + at * LD, *grads_or_values = walk.walk[1] + at * LD;
        float s[R][N], dp[R][N];
        row_products<LD>(s, walk.own[0] + y * R * LD, queries_or_keys + x * LD, walk.c.d);
        row_products<LD>(dp, walk.own[1] + y * R * LD, grads_or_values + x * LD, walk.c.dv);
        auto each = [&](auto f) {
#pragma unroll
            for (int i = 0; i < R; i++)
#pragma unroll
                for (int j = 0; j < N; j++) f(y * R + i, x + 16 * j, s[i][j], dp[i][j]);
        };
        walk.template weigh<true>(each);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
            for (int j = 0; j < N; j++) {
                ds[i * LD_DS + x + 16 * j] = dp[i][j];
                if (OF_KEYS) weights[i * LD_DS + x + 16 * j] = s[i][j];
            }
        __syncwarp();
        add_products<LD_DS, LD, WALK>(out[0], ds, queries_or_keys + x * 4, walk.c.d);
        if (OF_KEYS) add_products<LD_DS, LD, WALK>(out[1], weights, grads_or_values + x * 4, walk.c.dv);
        if (!OF_KEYS && g.table) {
            __syncthreads();
            walk.template add_to_table<LD_DS>(walk.rest());
        }
    });
#pragma unroll
    for (int which = 0; which < (OF_KEYS ? 2 : 1); which++)
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
            for (int n = 0; n < D / 64; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) walk.store(y * R + i, which, n * 64 + x * 4 + j, out[which][i][n][j]);
}

// As ENTRY_HALVES_GRADIENTS.
#define ENTRY_SINGLES_GRADIENTS(D, TY, R, N, BLOCKS) \
    extern "C" __global__ __launch_bounds__(TY * 16, BLOCKS) void rows_gradient(const __grid_constant__ Gradients g) { \
        walk_singles<D, TY, R, N, false>(g); \
    } \
    extern "C" __global__ __launch_bounds__(TY * 16, BLOCKS) void keys_gradient(const __grid_constant__ Gradients g) { \
        walk_singles<D, TY, R, N, true>(g); \
    } \
    ENTRY_SUMS(float)
