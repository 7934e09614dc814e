"""Breakers and limits that keep one failing part from taking the others down."""
