#include "halves.cuh"
ENTRY_HALVES(__half, 128, 3)
