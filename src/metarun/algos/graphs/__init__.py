"""Methods on a graph of nodes: to tell the classes of nodes, and to mislead those that do."""
