"""Pages and the scripts that make them."""
