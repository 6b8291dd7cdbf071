"""The tests mirror app/: what is tested of app/agents/loop.py stands in tests/agents/test_loop.py."""
