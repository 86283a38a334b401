#include "singles_gradients.cuh"
ENTRY_SINGLES_GRADIENTS(128, 8, 4, 2, 2)
