"""A stand-in for the few names of torchvision that diffusers' training scripts use, where torchvision is missing."""
