"""hw-agent: says what hardware and software a node has, and how busy it is."""
