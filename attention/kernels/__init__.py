"""GPU kernels in Triton, each beside a twin in plain torch; call them through `dispatch`."""
