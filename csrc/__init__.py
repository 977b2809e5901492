"""C++ and CUDA sources, shipped as package data and built on first use."""
