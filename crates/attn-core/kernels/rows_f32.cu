#include "rows.cuh"
ENTRY_ROWS(float)
