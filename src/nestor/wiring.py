"""Turn Settings into running parts. The only module that names backends."""
