"""Fast kernels, each beside a plain twin in torch; the only home of optional imports."""
