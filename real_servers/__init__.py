"""Tests of the service against real model servers, which `make real-servers` installs and runs."""
