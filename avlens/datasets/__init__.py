"""Clips and questions to run on: one file, one data set."""
