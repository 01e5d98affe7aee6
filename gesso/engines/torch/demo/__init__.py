"""Makes the embedded base model: the parts that train networks, and so need torch."""
