#include "halves_gradients.cuh"
ENTRY_HALVES_GRADIENTS(__half, 64, 4, 64, 2)
