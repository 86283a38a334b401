#include "rows.cuh"
ENTRY_ROWS(__nv_bfloat16)
