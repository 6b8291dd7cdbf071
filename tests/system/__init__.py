"""Tests of the whole service, its deployment and its documentation."""
