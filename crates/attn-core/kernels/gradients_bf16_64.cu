#include "halves_gradients.cuh"
ENTRY_HALVES_GRADIENTS(__nv_bfloat16, 64, 4, 64, 2)
