"""Where rows come from: files, folders, the hub, and what keeps splits apart."""
