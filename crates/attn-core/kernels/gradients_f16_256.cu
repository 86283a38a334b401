#include "halves_gradients.cuh"
ENTRY_HALVES_GRADIENTS(__half, 256, 4, 16, 2)
