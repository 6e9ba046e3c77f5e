"""Changes the toolkit's own code by hand-made faults, one at a time, and measures which of them its tests find."""
