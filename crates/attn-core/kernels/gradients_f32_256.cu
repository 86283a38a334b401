#include "singles_gradients.cuh"
ENTRY_SINGLES_GRADIENTS(256, 8, 4, 2, 1)
