#include "halves_gradients.cuh"
ENTRY_HALVES_GRADIENTS(__nv_bfloat16, 256, 4, 16, 2)
