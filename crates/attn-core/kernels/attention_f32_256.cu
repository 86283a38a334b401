#include "singles.cuh"
ENTRY_SINGLES(256, 16, 4, 1)
