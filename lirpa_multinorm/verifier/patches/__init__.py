"""Certification against patches, by the difference to the clean image."""
