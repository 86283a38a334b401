#include "halves.cuh"
ENTRY_HALVES(__half, 256, 2)
