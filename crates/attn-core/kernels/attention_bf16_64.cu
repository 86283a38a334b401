#include "halves.cuh"
ENTRY_HALVES(__nv_bfloat16, 64, 3)
