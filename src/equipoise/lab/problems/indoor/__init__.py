"""Indoor scenes from a seed: parts, furniture, rooms, and a ray tracer that gives images with their labels."""
