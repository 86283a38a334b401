#include "singles.cuh"
ENTRY_SINGLES(128)
