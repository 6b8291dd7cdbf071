"""The tests mirror ai_agent_service/: ai_agent_service/agents/loop.py is tested in
tests/agents/test_loop.py.

Tests of the whole service are in tests/system, helpers in tests/support.
"""
