"""What has nothing to do with bounds: modes of torch, generators, files, processes, statistics."""
