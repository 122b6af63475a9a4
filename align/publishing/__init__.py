"""A model on its way to the hub: its folder, its card, and what must never be in them."""
