from datasets.utils import logging

__all__ = ["logging"]
