"""In place of ml_dtypes where it is not installed: mindone imports a name of it, and with float32 never uses it."""

import numpy as np

bfloat16 = np.dtype("V2")
