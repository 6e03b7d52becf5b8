"""Builds as Jobs of a cluster, records as its ConfigMaps."""
