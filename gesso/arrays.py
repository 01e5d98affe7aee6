"""The array types that cross between gesso's parts, named once.

B pictures in a batch, C latent channels, H × W latent height and width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
Array = NDArray[Any]

Latents = Float32
"""float32 [B, C, H, W]."""
Pixels = Float32
"""float32 [B, 3, height, width] in [-1, 1]."""
Picture = UInt8
"""uint8 [height, width, 3], sRGB."""
