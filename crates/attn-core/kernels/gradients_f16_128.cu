#include "halves_gradients.cuh"
ENTRY_HALVES_GRADIENTS(__half, 128, 4, 64, 1)
