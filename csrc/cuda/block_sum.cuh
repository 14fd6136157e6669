// Sums over the lanes of a warp and over the threads of a block, in an order that depends on their number alone.
#pragma once

#include "device.h"

namespace lk {

constexpr int kWarpSize = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

template <class S> LK_DEVICE S warp_sum(S x) {
    for (int lanes = kWarpSize / 2; lanes; lanes /= 2)
        x += __shfl_xor_sync(kAllLanes, x, lanes);
    return x;
}

// One sum after another. Two rooms take turns: a thread that is still reading the last sum's is not disturbed, because none
// comes to the sum after the next before all have come to the next.
template <class S> struct BlockSum {
    S (&rooms)[2][kWarpSize];
    int turn = 0;
    LK_DEVICE S of(S x) {
        S(&room)[kWarpSize] = rooms[turn];
        turn ^= 1;
        const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
        const int warps = int(blockDim.x) / kWarpSize;
        x = warp_sum(x);
        if (warps == 1)
            return x;
        if (lane == 0)
            room[warp] = x;
        __syncthreads();
        return warp_sum(lane < warps ? room[lane] : S(0));
    }
};

} // namespace lk
