#include "singles.cuh"
ENTRY_SINGLES(256)
