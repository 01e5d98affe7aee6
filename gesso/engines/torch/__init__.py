"""The PyTorch engine: the only place that imports PyTorch and what stands on it."""

import logging

# peft imports bitsandbytes wherever it is installed, which then speaks of extras for inference that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
