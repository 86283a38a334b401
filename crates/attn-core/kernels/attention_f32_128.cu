#include "singles.cuh"
ENTRY_SINGLES(128, 8, 8, 2)
