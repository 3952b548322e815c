// Marks the functions that both the CPU kernels and the CUDA kernels call.

#pragma once

#ifdef __CUDACC__
#define MEGATRON_AQAA_HOST_DEVICE __host__ __device__
#else
#define MEGATRON_AQAA_HOST_DEVICE
#endif
