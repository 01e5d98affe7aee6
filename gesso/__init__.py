"""gesso teaches text-to-image diffusion models your own pictures.

Importing this package imports no framework; see docs/architecture.md for the map.
"""

__version__ = "0.1.0"
