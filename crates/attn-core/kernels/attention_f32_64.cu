#include "singles.cuh"
ENTRY_SINGLES(64, 8, 8, 2)
