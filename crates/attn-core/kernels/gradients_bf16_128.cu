#include "halves_gradients.cuh"
ENTRY_HALVES_GRADIENTS(__nv_bfloat16, 128, 4, 64, 1)
