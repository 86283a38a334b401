#include "singles_gradients.cuh"
ENTRY_SINGLES_GRADIENTS(64, 8, 8, 4, 2)
