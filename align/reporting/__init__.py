"""What people look at: the report, the page, `align status` and `align view`."""
