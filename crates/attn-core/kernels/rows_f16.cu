#include "rows.cuh"
ENTRY_ROWS(__half)
