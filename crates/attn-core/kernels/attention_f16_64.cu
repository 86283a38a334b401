#include "halves.cuh"
ENTRY_HALVES(__half, 64, 3)
