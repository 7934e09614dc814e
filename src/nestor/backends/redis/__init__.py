"""What several processes share in Redis. The packages for it are the extra ``redis``."""
