"""Measuring models: feature extractors, distances between sets of images, reconstruction figures, reports."""
