"""Forms of public data: what rows of each become, one module for what belongs together."""
