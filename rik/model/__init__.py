"""The nouns: workloads, instances, nodes, resources, and the change of one of them. Pure data and pure rules."""
